"""`mmref trace PICTURE...|INPUT.npy -o trace.safetensors`: every named activation of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from mmref.cli.common import add_model_arguments, model_from
from mmref.cli.output import say
from mmref.cli.pictures import check_once, picture_from


def add_arguments(parser):
    parser.add_argument("inputs", nargs="*", metavar="INPUT",
                        help="pictures (a batch of them; - is standard input), or one .npy (B, 3, H, W) that is "
                        "normalised already")
    add_model_arguments(parser)
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"), help="default: %(default)s")
    parser.add_argument("--filter", default="*", metavar="PATTERN",
                        help="names to keep, for instance 'blocks1.*,output'")
    parser.add_argument("--thorough", action="store_true", help="make the input: a batch of two, odd and unequal "
                        "sides, ordinary and large values, scans longer than any chunk; --input-file keeps it for your "
                        "network")
    parser.add_argument("--input-file", metavar="FILE", help="where --thorough writes its input (default: the output's "
                        "name with .npy behind)")
    parser.add_argument("--dry-run", action="store_true", help="only say how large the file would be")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a .safetensors file")


def run(args) -> int:
    import numpy as np

    from mmref.errors import ValueProblem
    from mmref.files import replacing
    from mmref.progress import progress
    from mmref.validate.exercise import declared, thorough_input
    from mmref.validate.trace import estimate, runs, trace_model
    from mmref.validate.trace_file import check_room, write_trace
    model = model_from(args, dtype=np.dtype(args.dtype))
    if args.thorough == bool(args.inputs):
        raise ValueProblem("INPUT must be given, or --thorough, which makes one; not both")
    x = thorough_input(model) if args.thorough else read_input(args.inputs, model)
    count, size = estimate(model, x, args.filter)
    print(f"{count} records, {size / 1e6:,.1f} MB", file=sys.stderr)
    if args.dry_run:
        return 0
    check_room(args.output, size)
    kept = args.input_file or f"{args.output}.npy"
    if args.thorough:
        check_room(kept, x.nbytes)
    with progress(runs(model) * sum(1 for _ in model.walk()), "layer") as bar:
        trace = trace_model(model, x, args.filter, lambda name, value: bar.update())
    trace.manifest["weights"] = str(Path(args.weights).resolve()) if args.weights else "pretrained"
    trace.manifest["prefer"] = args.prefer
    write_trace(args.output, trace)
    if args.thorough:
        with replacing(kept) as temporary, open(temporary, "wb") as stream:
            np.save(stream, x)
        say(f"{kept}: the input, float32 {tuple(x.shape)}")
    say(f"{args.output}: {len(trace.records)} records of {model.config.name} on {tuple(x.shape)}, {args.dtype}")
    say(f"it exercises: {'; '.join(declared(trace.manifest['exercise']))}")
    return 0


def read_input(paths, model):
    """(B, 3, H, W) float32 or float64 from pictures or one .npy; a single (3, H, W) becomes a batch of one."""
    from mmref.errors import ShapeError
    from mmref.validate.trace_file import read_npy
    if not any(path.endswith(".npy") for path in paths):
        check_once(paths)
        return _prepared(list(map(picture_from, paths)), model.transform)
    if len(paths) > 1:
        raise ShapeError(f"INPUT must be pictures or one .npy, got {len(paths)} files with an .npy among them")
    x = read_npy(paths[0])
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != model.config.in_chans or 0 in x.shape or x.dtype.kind != "f":
        raise ShapeError(f"{paths[0]}: INPUT must be floats (batch, {model.config.in_chans}, height, width), "
                         f"got {x.dtype} {x.shape}")
    return x


def _prepared(pictures, transform):
    """A batch of pictures as the network's task prepares them: those that keep their ratio are turned as EXIF asks."""
    import numpy as np

    from mmref.data.frame import Frame, filled_up, to_frame
    from mmref.data.keep_ratio import KeepRatio, to_map
    from mmref.data.picture import load_batch, open_picture
    from mmref.errors import ShapeError
    if not isinstance(transform, (Frame, KeepRatio)):
        return load_batch(pictures, transform)
    images = [open_picture(picture, exif=True)[0] for picture in pictures]
    if isinstance(transform, Frame):
        return filled_up([to_frame(image, transform)[0] for image in images], transform.multiple)
    maps = [to_map(image, transform) for image in images]
    if len({x.shape for x in maps}) > 1:
        raise ShapeError(f"INPUT must be pictures of one size once they are scaled, got "
                         f"{' and '.join(sorted({f'{x.shape[1]} x {x.shape[2]}' for x in maps}))}")
    return np.stack(maps)
