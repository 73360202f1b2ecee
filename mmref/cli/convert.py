"""`mmref convert in.pth out.safetensors`: a PyTorch checkpoint without PyTorch."""

from __future__ import annotations

from mmref.cli.common import add_class_names_argument, add_prefer_argument
from mmref.cli.output import print_json, say
from mmref.text import name_fields

SHOWN = 20  # names; a file can hold a million


def add_arguments(parser):
    parser.add_argument("source", metavar="IN", help=".pth (zip form) or .safetensors, an index of one in parts, or a "
                        "folder with one of these")
    parser.add_argument("target", metavar="OUT", help="a .safetensors file; an existing one is replaced if all goes "
                        "well")
    add_prefer_argument(parser)
    parser.add_argument("--model", metavar="MODEL", help="the network it must fit: anything else is an error, and "
                        "nothing is written (default: only say which it fits)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="with --model: how many its head must answer; 0 "
                        "allows a file without head (default: any number)")
    add_class_names_argument(parser)
    parser.add_argument("--strict", action="store_true", help="refuse files that name anything but tensors")
    parser.add_argument("--allow-nonfinite", action="store_true", help="accept NaN and infinity")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    import json

    from mmref.data.labels import check_class_names, load_class_names
    from mmref.errors import ParameterMismatch, ValueProblem
    from mmref.models.parameters import account_of_fit, described, fitting_variants, head_classes, load_parameters
    from mmref.models.registry import resolve
    from mmref.weights import convert
    if args.num_classes is not None and not args.model:
        raise ValueProblem("--num-classes must be left out without --model: nothing is checked then")
    wanted = resolve(args.model)[0] if args.model else None
    names = load_class_names(args.class_names) if args.class_names else None

    def check(found):
        if wanted is not None:
            if args.num_classes is None and not any(name.startswith("head.") for name in found.tensors):
                raise ParameterMismatch(f"{found.named}: --model {args.model} wants a head, and the file has none; "
                                        f"--num-classes 0 allows that")
            load_parameters(wanted, found.tensors, source=found.named, num_classes=args.num_classes)
        if names is not None and (classes := head_classes(found.tensors)) is not None:
            check_class_names("--class-names", names, classes)

    done = convert(args.source, args.target, prefer=args.prefer, strict=args.strict, check=check,
                   allow_nonfinite=args.allow_nonfinite,
                   metadata=names and {"class_names": json.dumps(names, ensure_ascii=False)})
    values, fit = sum(array.size for array in done.tensors.values()), account_of_fit(done.tensors)
    if args.json:
        print_json({**name_fields("source", done.path), **name_fields("target", args.target),
                    "format": done.format, "taken": done.source, "others": list(done.others), "prefix": done.prefix,
                    "notes": list(done.notes), "tensors": len(done.tensors), "values": values,
                    "foreign": list(done.foreign),
                    "fits": [described(variant) for variant in fitting_variants(done.tensors)], "fit": fit})
        return 0
    taken = "the file's one state dict" if done.source == "flat" else f"its entry {done.source}"
    others = f" (also there: {', '.join(done.others)}; --prefer chooses)" if done.others else ""
    say(f"{args.target}: {len(done.tensors)} tensors, {values:,} values, read back bit for bit")
    say(f"taken from {done.path}: {taken}{others}")
    for note in done.notes:
        say(note)
    say(fit)
    if done.foreign:
        say(f"passed over, not executed: {listed(done.foreign)}")
    return 0


def listed(names) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
