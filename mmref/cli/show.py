"""`mmref show PICTURE --what wavelet|scan|delta|erf|features -o out.png`: pictures of what happens inside;
`mmref show --what graph -o net.svg`: the network itself, one layer opened into its operations."""

from __future__ import annotations

from mmref.cli.common import add_model_arguments, model_from
from mmref.cli.output import note, say
from mmref.cli.pictures import picture_from
from mmref.data.samples import SAMPLES


def add_arguments(parser):
    parser.add_argument("picture", nargs="?", metavar="PICTURE", help="a picture file; - is standard input")
    parser.add_argument("--sample", choices=SAMPLES, help="a picture that comes along, instead of a file")
    parser.add_argument("--what", required=True, choices=("wavelet", "scan", "delta", "erf", "features", "graph"),
                        help="sub-bands before and after their convolution; the orders of the scan; its step sizes; "
                        "the effective receptive field; feature maps; the network as a drawing (no PICTURE)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".png, .pdf or .svg")
    add_model_arguments(parser)
    parser.add_argument("--layer", metavar="NAME", help="a block (wavelet, scan, delta), a stage (erf), any layer with "
                        "a map (features), any layer (graph)")
    parser.add_argument("--size", type=int, metavar="N", help="show the network N x N pixels (default: 512; for erf "
                        "about the model's own size)")
    parser.add_argument("--cells", type=int, default=32, help="of erf, per side; one run each (default: %(default)s)")


def run(args) -> int:
    from pathlib import Path

    from mmref.data.picture import open_picture
    from mmref.data.samples import sample_picture
    from mmref.errors import ValueProblem
    from mmref.progress import progress
    from mmref.show.pictures import draw
    given = (args.picture is not None) + (args.sample is not None)
    if args.what == "graph" and given:
        raise ValueProblem("--what graph draws the network itself: leave PICTURE and --sample out")
    if args.what != "graph" and given != 1:
        raise ValueProblem("PICTURE or --sample NAME must be given, and not both")
    kind = Path(args.output).suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ValueProblem(f"-o must end in .png, .pdf or .svg, got {args.output}")
    if args.size is not None and not 1 <= args.size <= 4096:
        raise ValueProblem(f"--size must be 1 to 4096 pixels, got {args.size}")
    if args.what == "graph":
        from mmref.show.pictures import needs_matplotlib
        needs_matplotlib()
        from mmref.show.graph import draw_graph
        model = model_from(args, untrained=True)
        return _save(draw_graph(model, args.layer, args.size), args.output, kind, args.what, model)
    if args.sample:
        picture, notes = sample_picture(args.sample).convert("RGB"), []
    else:
        picture, notes = open_picture(picture_from(args.picture))
    for text in notes:
        note(f"{args.picture}: {text}")
    model = model_from(args)
    total = args.cells ** 2 if args.what == "erf" else 1
    with progress(total, "cell", wanted=None if total > 1 else False) as bar:
        figure = draw(args.what, model, picture, args.layer, args.size, args.cells, bar.update)
    return _save(figure, args.output, kind, args.what, model)


def _save(figure, output, kind, what, model) -> int:
    from mmref.files import replacing
    with replacing(output) as temporary:
        figure.savefig(temporary, format=kind)
    say(f"{output}: {what} of {model.config.name}")
    return 0
