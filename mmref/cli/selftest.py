"""`mmref selftest`: the published figures, batch independence and the backends, on this machine. 0 passed, 1 failed."""

from __future__ import annotations

NAME, HELP = "selftest", "the published figures on this machine"


def add_arguments(parser):
    parser.add_argument("--model", default="mobilemamba_nano", help="default: %(default)s")
    parser.add_argument("--weights", metavar="FILE", help="your weights (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.cli.output import print_json
    from mmref.models.create import create_model
    from mmref.validate.selftest import report, selftest
    result = selftest(create_model(args.model, args.weights, pretrained=args.weights is None))
    if args.json:
        print_json(result)
    else:
        print(report(result))
    return 0 if result["passed"] else 1
