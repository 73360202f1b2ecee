"""`mmref convert in.pth out.safetensors`: a PyTorch checkpoint without PyTorch."""

from __future__ import annotations

from mmref.cli.output import print_json, say
from mmref.text import name_fields

SHOWN = 20  # names; a file can hold a million


def add_arguments(parser):
    parser.add_argument("source", metavar="IN", help=".pth (zip form) or .safetensors")
    parser.add_argument("target", metavar="OUT", help="a .safetensors file; an old one is replaced when all is well")
    parser.add_argument("--prefer", default="auto", help="which entry of a trainer's file: net_E (the moving average), "
                        "net, ... (default: the moving average where it is there)")
    parser.add_argument("--strict", action="store_true", help="refuse files that name anything but tensors")
    parser.add_argument("--allow-nonfinite", action="store_true", help="accept NaN and infinity")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.weights import convert
    done = convert(args.source, args.target, prefer=args.prefer, strict=args.strict,
                   allow_nonfinite=args.allow_nonfinite)
    values = sum(array.size for array in done.tensors.values())
    if args.json:
        print_json({**name_fields("source", done.path), **name_fields("target", args.target),
                    "format": done.format, "taken": done.source,
                    "others": list(done.others), "tensors": len(done.tensors), "values": values,
                    "foreign": list(done.foreign)})
        return 0
    taken = "the file's one state dict" if done.source == "flat" else f"its entry {done.source}"
    others = f" (also there: {', '.join(done.others)}; --prefer chooses)" if done.others else ""
    say(f"{args.target}: {len(done.tensors)} tensors, {values:,} values, read back bit for bit")
    say(f"taken from {done.path}: {taken}{others}")
    if done.foreign:
        say(f"passed over, not run: {listed(done.foreign)}")
    return 0


def listed(names) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
