"""`mmref explain PICTURE -o page.html`: one run as one page, which needs no network and nothing beside it."""

from __future__ import annotations

import os

from mmref.cli.common import add_class_names_argument, add_model_arguments, model_from
from mmref.cli.output import note, say
from mmref.cli.pictures import picture_from
from mmref.data.samples import SAMPLES


def add_arguments(parser):
    parser.add_argument("picture", nargs="?", metavar="PICTURE", help="a picture file; - is standard input")
    parser.add_argument("--sample", choices=SAMPLES, help="a picture that comes along, instead of a file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page, .html")
    add_model_arguments(parser)
    add_class_names_argument(parser)
    parser.add_argument("--layers", default="*", metavar="PATTERNS", help="comma-separated patterns of the layers "
                        "whose maps, scans and sub-bands the page holds, such as 'blocks2.*' (default: all; where that "
                        "is too much for a page, fewer channels of each)")
    parser.add_argument("--cells", type=int, default=16, metavar="N", help="the picture is covered in N x N places, "
                        "one after another, to see what the answer rests on (default: %(default)s)")


def run(args) -> int:
    from mmref.data.picture import open_picture
    from mmref.data.samples import sample_picture
    from mmref.errors import ValueProblem
    from mmref.explain.page import needs_jinja, work, write_page
    from mmref.progress import progress
    if (args.picture is not None) + (args.sample is not None) != 1:
        raise ValueProblem("PICTURE or --sample NAME must be given, and not both")
    needs_jinja()
    if args.sample:
        picture, notes, name = sample_picture(args.sample).convert("RGB"), [], f"sample {args.sample}"
    else:
        picture, notes = open_picture(picture_from(args.picture))
        name = "standard input" if args.picture == "-" else os.path.basename(args.picture)
    for text in notes:
        note(f"{name}: {text}")
    model = model_from(args)
    with progress(work(args.cells), "cell") as bar:
        size = write_page(args.output, model, picture, name, args.layers, args.cells, bar.update)
    say(f"{args.output}: {model.config.name} on {name}, {size / 1e6:.1f} MB")
    return 0
