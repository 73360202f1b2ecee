"""`mmref selftest`: the published figures, batch independence and the backends, on this machine. 0 passed, 1 failed."""

from __future__ import annotations

from mmref.cli.common import add_model_arguments, model_from


def add_arguments(parser):
    add_model_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.cli.output import print_json
    from mmref.validate.selftest import report, selftest
    result = selftest(model_from(args))
    if args.json:
        print_json(result)
    else:
        print(report(result))
    return 0 if result["passed"] else 1
