"""`mmref show PICTURE --what wavelet|scan|delta|erf|features -o out.png`: pictures of what happens inside;
`mmref show --what graph -o net.svg`: the network itself, one layer opened into its operations; `mmref show --what scan`
without a picture: the orders in which a layer scans its map (no weights needed), or any order by its name."""

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
                        "the effective receptive field; feature maps; the network as a drawing (no PICTURE). scan "
                        "without a PICTURE draws the orders alone, of a network without weights, too, or of --order")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".png, .pdf or .svg")
    add_model_arguments(parser)
    parser.add_argument("--layer", metavar="NAME", help="a block (wavelet), a layer that scans (scan, delta), a stage "
                        "(erf), any layer with a map (features), any layer (graph)")
    parser.add_argument("--order", nargs="+", metavar="ORDER", help="scan without PICTURE and network: unidirectional, "
                        "bidirectional, cross, atrous, or directions such as rows \"columns backwards\" \"windows 7\"")
    parser.add_argument("--size", type=int, metavar="N", help="show the network N x N pixels (default: 512; for erf "
                        "about the model's own size, without PICTURE that size); with --order: the map's side "
                        "(default: 8)")
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
    if given > 1 or not given and args.what not in ("graph", "scan"):
        raise ValueProblem("PICTURE or --sample NAME must be given, and not both")
    if args.order and (args.what != "scan" or given or args.layer or args.weights):
        raise ValueProblem("--order draws an order by its name: it goes with --what scan, without PICTURE, --sample, "
                           "--layer and --weights")
    kind = Path(args.output).suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ValueProblem(f"-o must end in .png, .pdf or .svg, got {args.output}")
    if args.size is not None and not 1 <= args.size <= 4096:
        raise ValueProblem(f"--size must be 1 to 4096 pixels, got {args.size}")
    if args.what == "graph":
        from mmref.show.panels import needs_matplotlib
        needs_matplotlib()
        from mmref.show.graph import draw_graph
        model = model_from(args, untrained=True)
        return _save(draw_graph(model, args.layer, args.size), f"graph of {model.config.name}", args.output, kind)
    if not given:
        return _save(*_orders(args), args.output, kind)
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
    return _save(figure, f"{args.what} of {model.config.name}", args.output, kind)


def _orders(args):
    """(figure, what it shows) of an order by its name, or of those of a network's layer."""
    from mmref.errors import ValueProblem
    from mmref.nn.paths import ORDERS
    from mmref.show import scans
    from mmref.show.panels import needs_matplotlib
    needs_matplotlib()
    if args.order:
        order = args.order[0] if len(args.order) == 1 and args.order[0] in ORDERS else tuple(args.order)
        if args.size is not None and args.size > scans.MOST:
            raise ValueProblem(f"--size must be 1 to {scans.MOST} with --order, the side of the map, got {args.size}")
        side, name = args.size or scans.MAP_SIDE, ", ".join(args.order)
        return scans.orders(scans.of_order(order, side, side), f"{name}: a map of {side} x {side}"), f"order {name}"
    model = model_from(args, untrained=True)
    side = args.size or model.config.img_size
    layer, found = scans.of_layer(model, (1, model.config.in_chans, side, side), args.layer)
    title = (f"Scan orders of {layer}, a map of {found[0].height} x {found[0].width}\n{model.config.name}, "
             f"input {side} x {side} pixels")
    return scans.orders(found, title), f"scan orders of {model.config.name}, {layer}"


def _save(figure, what, output, kind) -> int:
    from mmref.files import replacing
    with replacing(output) as temporary:
        figure.savefig(temporary, format=kind)
    say(f"{output}: {what}")
    return 0
