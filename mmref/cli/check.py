"""`mmref check module:callable`: f(batch) against the network on awkward inputs.

Exit status 0 same, 1 differs, 2 bad input.
"""

from __future__ import annotations

from mmref.cli.common import add_model_arguments, model_from, size_from


def add_arguments(parser):
    parser.add_argument("callable", metavar="MODULE:CALLABLE", help="takes (B, 3, H, W) float32, gives (B, classes); "
                        "the working folder is importable")
    add_model_arguments(parser)
    parser.add_argument("--examples", type=int, default=60,
                        help="inputs to try before shrinking (default: %(default)s)")
    parser.add_argument("--max-side", type=int, default=96, help="largest height and width (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=4, help="largest batch (default: %(default)s)")
    parser.add_argument("--size", metavar="HxW", help="only this size, for graphs of a fixed one")
    parser.add_argument("--no-own-size", action="store_true", help="leave out the size the network is used with, which "
                        "is tried first, alone and in a batch of 8")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from dataclasses import asdict

    from mmref.cli.output import print_json, say
    from mmref.errors import ValueProblem
    from mmref.validate.check import check, load_callable
    if min(args.examples, args.max_side, args.max_batch) < 1:
        raise ValueProblem("--examples, --max-side and --max-batch must be at least 1")
    size = size_from("--size", args.size)
    model = model_from(args)
    own = not args.no_own_size
    failure, tried = check(load_callable(args.callable), model, args.examples, args.max_side, args.max_batch, size, own)
    limits = declared_limits(model, args.max_side, args.max_batch, size, own)
    if args.json:
        print_json({"same": failure is None, "tried": tried, "failure": failure and asdict(failure),
                    "exercised": limits})
    elif failure is None:
        say(f"SAME on all {tried} inputs tried")
        say(f"  exercised: {'; '.join(limits)}; nothing is known beyond")
    else:
        say(f"DIFFERS; the smallest input found ({tried} tried): batch {failure.batch}, {failure.height} x "
              f"{failure.width} pixels, {failure.fill} of magnitude {failure.magnitude:g}, seed {failure.seed}")
        say(f"  {failure.reason}")
        shape = (failure.batch, model.config.in_chans, failure.height, failure.width)
        say(f"  input again: mmref.validate.check.make_input({shape}, "
              f"{failure.fill!r}, {failure.magnitude:g}, {failure.seed})")
    return 0 if failure is None else 1


def declared_limits(model, max_side, max_batch, size, own) -> list[str]:
    """What was tried, in words."""
    from mmref.validate.check import deployed
    sides = f"{size[0]} x {size[1]} pixels" if size else f"sides of 1 to {max_side} pixels"
    lines = [sides, f"batches of 1 to {max_batch}"]
    if own:
        lines += [f"batch {batch} of {height} x {width}" for batch, height, width, *_ in deployed(model, size)]
    return lines
