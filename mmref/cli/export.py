"""`mmref export onnx MODEL -o m.onnx`: the network as a graph that other runtimes take."""

from __future__ import annotations

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
    parser.add_argument("--verify", action="store_true", help="run the file in the installed runtimes and compare")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.errors import ValueProblem
    from mmref.export.onnx import export_onnx
    from mmref.export.verify import TOLERANCE, verify
    if args.weights and args.untrained:
        raise ValueProblem("--weights and --untrained: pass one of them, not both")
    model = model_from(args, untrained=args.untrained)
    model.transform = transform_from(args, model.transform)
    fixed = size_from("--fixed", args.fixed)
    target = args.output or f"{model.config.name}.onnx"
    proto = export_onnx(model, target, args.opset, fixed=fixed)
    shapes = [(batch, model.config.in_chans, *fixed) for batch in (1, 3)] if fixed else None
    compared = verify(model, target, shapes) if args.verify else []
    status = int(not all(row.passed for row in compared))
    inputs, outputs = ([{"name": v.name, "shape": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]}
                        for v in values] for values in (proto.graph.input, proto.graph.output))
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
            print(f"{kind} {value['name']}: float32 ({', '.join(map(str, value['shape']))})")
    if compared:
        print("\nlargest error of the logits, over the largest logit, against mmref in float64")
        print(table([(row.runtime, "x".join(map(str, row.shape)), f"{row.error:.1e}", f"{row.own:.1e}",
                      "equal" if row.passed else "DIFFERS") for row in compared],
                    ("runtime", "input", "error", "mmref float32", f"to {TOLERANCE:.0e}"), left=2))
    return status
