"""`mmref export onnx MODEL -o m.onnx`: the network as a graph that other runtimes take."""

from __future__ import annotations

from functools import partial

from mmref.cli.common import (
    add_class_names_argument,
    add_model_arguments,
    add_transform_arguments,
    model_from,
    size_from,
    transform_from,
)
from mmref.cli.output import print_json, say
from mmref.tables import table
from mmref.text import name_fields


def add_arguments(parser):
    parser.add_argument("format", choices=("onnx",), metavar="FORMAT", help="onnx")
    add_model_arguments(parser, positional=True)
    add_class_names_argument(parser)
    add_transform_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="default: MODEL.onnx in the current folder")
    parser.add_argument("--untrained", action="store_true", help="random parameters, to try a runtime without weights")
    parser.add_argument("--opset", type=int, default=17, help="ONNX operator set, 17 or later (default: %(default)s)")
    parser.add_argument("--fixed", metavar="HxW", help="only pictures of this size, for runtimes that want to know it "
                        "(default: any size)")
    parser.add_argument("--results", choices=("maps", "boxes", "objects"), metavar="KIND", help="of a detector: its "
                        "raw maps; boxes and scores of every anchor (the default of SSDLite and RetinaNet); or "
                        "objects, non-maximum suppression included, of one picture at a time")
    parser.add_argument("--verify", action="store_true", help="run the file in the installed runtimes and compare")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.errors import ValueProblem
    from mmref.export.detection import default_results, results_of
    from mmref.export.onnx import export_onnx
    from mmref.export.verify import TOLERANCE
    if args.weights and args.untrained:
        raise ValueProblem("--weights and --untrained: pass one of them, not both")
    if args.verify and args.results == "objects":
        raise ValueProblem("--verify must be left out with --results objects: which of two boxes stays may turn on a "
                           "last digit; verify --results boxes, the same graph up to there")
    model = model_from(args, untrained=args.untrained)
    model.transform = transform_from(args, model.transform)
    fixed = size_from("--fixed", args.fixed)
    target = args.output or f"{model.config.name}.onnx"
    results = args.results or default_results(model)
    proto = export_onnx(model, target, args.opset, **results_of(model, results, fixed))
    compared = _compared(model, target, results, fixed) if args.verify else []
    status = int(not all(row.passed for row in compared))
    inputs, outputs = (list(map(_described, values)) for values in (proto.graph.input, proto.graph.output))
    if args.json:
        print_json({**name_fields("file", target), "model": model.config.name, "opset": args.opset,
                    "bytes": proto.ByteSize(),
                    "nodes": len(proto.graph.node), "inputs": inputs, "outputs": outputs,
                    "metadata": {prop.key: prop.value for prop in proto.metadata_props},
                    "verified": [vars(row) | {"passed": row.passed} for row in compared]})
        return status
    weights = "random parameters" if args.untrained else args.weights or "the model's own weights"
    say(f"{target}: {model.config.name} with {weights}, opset {args.opset}, {len(proto.graph.node)} nodes, "
          f"{proto.ByteSize() / 1e6:.1f} MB")
    for kind, values in (("input", inputs), ("output", outputs)):
        for value in values:
            sides = ", ".join("?" if side is None else str(side) for side in value["shape"])
            print(f"{kind} {value['name']}: {value['type']} ({sides})")
    if compared:
        print("\nlargest error of the results, over the largest of them, against mmref in float64")
        print(table([(row.runtime, "x".join(map(str, row.shape)), f"{row.error:.1e}", f"{row.own:.1e}",
                      "equal" if row.passed else "DIFFERS") for row in compared],
                    ("runtime", "input", "error", "mmref float32", f"to {TOLERANCE:.0e}"), left=2))
    return status


def _compared(model, path, results, fixed):
    """The file beside the model, in the installed runtimes."""
    from mmref.export.detection import reference
    from mmref.export.verify import verify
    channels, side = model.config.in_chans, model.config.img_size
    shapes = [(batch, channels, *fixed) for batch in (1, 3)] if fixed else None
    if results != "boxes":
        return verify(model, path, shapes)
    # none of a single pixel: boxes clipped to it are smaller than the rounding of the anchors they were
    shapes = shapes or [(1, channels, side, side), (3, channels, side // 2 + 1, side // 3)]
    return verify(model, path, shapes, partial(reference, results=results), least=1.0)


def _described(value):
    from onnx import TensorProto
    tensor = value.type.tensor_type
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}
    return {"name": value.name, "type": kinds[tensor.elem_type],
            "shape": [d.dim_param or d.dim_value or None for d in tensor.shape.dim]}
