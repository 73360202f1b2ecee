"""A network as an ONNX graph, lowered from the graph of operations that its own text gives (mmref.graph.trace).

    export_onnx(mmref.create_model("mobilemamba_nano", pretrained=True), "nano.onnx")

Any network made of mmref's operations can be exported: operations.py and scans.py have an emitter for each operation,
and nothing here knows a network. Batch norms are folded where a convolution or linear layer stands beside them. Batch,
height and width stay free: where the text hands on a size, the graph asks for it as it runs. What is not a plain
operation in ONNX:

selective scan   everything that depends on one step alone (projections, softplus, exp) is computed for all steps at
                 once; the recurrence h = h * decay + input is one ONNX `Scan` node for all directions and states
odd maps         the analysis always pads one row and column: the stride of 2 never reaches them on an even map, so
                 no size has to be known. The synthesis is cropped to the sizes its input has when the graph runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

from mmref.arguments import check_callable, check_integer, check_integers, shown
from mmref.data.picture import Transform
from mmref.errors import MissingBackend, ValueProblem
from mmref.files import replacing
from mmref.models.network import Network, check_numpy_model
from mmref.nn.layer import Layer

try:
    import onnx
    from onnx import helper

    from mmref.export import operations, scans, tokens  # noqa: F401  (they register their emitters)
    from mmref.export.graph import dimensions, graph_of
    from mmref.export.lowering import Lowering
except ImportError as error:
    raise MissingBackend('ONNX export needs the package onnx: pip install "mmref[onnx]"') from error

__all__ = ["export_onnx", "to_onnx"]

OLDEST_OPSET = 17  # the first with LayerNormalization
LOGITS, FEATURES = "logits", "features"


def export_onnx(model: Network, path, opset: int = OLDEST_OPSET, **options) -> onnx.ModelProto:
    """Write `to_onnx(model, opset, **options)` to `path`, whole or not at all.

    Returns the ModelProto. Raises what `to_onnx` raises, and OSError where the file cannot be written.
    """
    proto = to_onnx(model, opset, **options)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return proto


def to_onnx(model: Network, opset: int = OLDEST_OPSET, *, fixed: tuple[int, int] | None = None,
            function: Callable | None = None, inputs: dict[str, tuple] | None = None,
            behind: Callable | None = None) -> onnx.ModelProto:
    """The model, as it is now, as a float32 ModelProto.

    fixed     (height, width), for a network that computes otherwise for every size: then the graph takes this one
    function  what to export: called with the model and its inputs, it returns an activation or several (in tuples,
              lists and dictionaries, which come one after another). Default: the model's forward
    inputs    {name: dimensions} of the function's inputs: a number, or a symbol that stands for any size; the batch
              comes first, then channels, which are a number. Default: input (batch, in_chans, height, width)
    behind    what is appended: called with the `mmref.export.lowering.Lowering` and the function's result, ONNX values
              in the place of activations, it returns {name: (value, dimensions)} of the graph's outputs, or
              (value, dimensions, ONNX type)

    The output is called "logits" if it is (batch, num_classes), or a whole network's (batch, num_classes, height,
    width), any other "features"; several are "output_0" and so on, those of a dictionary by its keys, "cls_0" for the
    first of a list under "cls".
    Metadata: model, img_size (the shorter side where pictures keep their ratio), mean, std, transform, class_names,
    mmref_version (JSON where not text). The graph has passed onnx's checker with strict shape inference. Raises
    ValueProblem (an opset that onnx does not know or older than 17, not a NumPy model, a size below 1) and
    NotTraceable, naming the layer, for what is not mmref's operation and for a network that cannot be exported with
    free sizes.
    """
    newest = onnx.defs.onnx_opset_version()
    try:
        opset = check_integer("opset", opset, OLDEST_OPSET, newest)
    except ValueProblem as error:
        raise ValueProblem(f"{error} ({newest} is the newest that onnx {onnx.__version__} knows)") from error
    check_numpy_model(model)
    model, config = model.frozen(), model.config
    inputs = _dimensions_of(inputs, fixed, config)
    whole = function is None                     # of a whole network, also a map may be logits
    function = check_callable("function", Layer.__call__ if whole else function,
                              "a function of the model and its inputs, or None")
    shapes = list(inputs.values())
    graph, names = graph_of(partial(function, model), model, shapes, config.img_size)
    if not graph.outputs:
        raise ValueProblem("function must return an activation or several, got none")
    g, outputs = Lowering(names, model.state_dict()), []
    values, names = g.lower(graph, list(inputs)), _names_of(graph.structure)
    if behind is None:
        ends = {}
        for value, node, name in zip(values, graph.outputs, names, strict=True):
            dims = dimensions(node, shapes, graph)
            if not name:
                classes = dims[1:2 if whole else None]
                name = LOGITS if config.num_classes and classes == (config.num_classes,) else FEATURES
            ends[name] = value, dims
    else:
        g.scope = ""
        ends = behind(g, graph.arrange(values))
    for name, (value, *described) in ends.items():
        name = g.unique(name)
        g.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        outputs.append((name, *described))
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(g.graph(config.name, inputs.items(), outputs), opset_imports=opsets,
                              ir_version=helper.find_min_ir_version_for(opsets),
                              producer_name="mmref", producer_version=_version())
    helper.set_model_props(proto, metadata(model))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _names_of(structure) -> list[str]:
    """Names of outputs in the order in which a structure has them; an empty one for the only output."""
    found, keyed = [], isinstance(structure, dict)

    def walk(part, path):
        if isinstance(part, int):
            found.append("_".join(path))
        for key, inner in part.items() if isinstance(part, dict) else enumerate(() if isinstance(part, int) else part):
            walk(inner, (*path, str(key)))
    walk(structure, ())
    return found if keyed or len(found) == 1 and not found[0] else [f"output_{i}" for i in range(len(found))]


def _dimensions_of(inputs, fixed, config):
    """{name: dimensions} of the inputs, numbers and symbols."""
    if inputs is None:
        sides = ("height", "width") if fixed is None else check_integers("fixed", fixed, 2, 1)
        return {"input": ("batch", config.in_chans, *sides)}
    if fixed is not None:
        raise ValueProblem("fixed must be None where inputs are given: write the sizes as numbers in their dimensions")
    if not isinstance(inputs, Mapping) or not inputs or not all(isinstance(name, str) and name for name in inputs):
        raise ValueProblem(f"inputs must be {{name: dimensions}} of at least one input, got {shown(inputs)}")
    return {name: _checked(f"inputs[{name!r}]", dims) for name, dims in inputs.items()}


def _checked(name, dims):
    if not isinstance(dims, (tuple, list)) or not dims:
        raise ValueProblem(f"{name} must be a tuple of dimensions, the batch's first, got {shown(dims)}")
    return tuple(dim if isinstance(dim, str) and dim and axis != 1 else check_integer(f"{name}[{axis}]", dim, 1)
                 for axis, dim in enumerate(dims))


def metadata(model: Network) -> dict[str, str]:
    """What a program needs beside the graph to make an input of a picture and words of the answer, as text."""
    transform = model.transform
    props = {"model": model.config.name, "mmref_version": _version()}
    if transform is not None:
        side = transform.size if isinstance(transform, Transform) else transform.short
        props |= {"img_size": str(side), "mean": json.dumps(transform.mean),
                  "std": json.dumps(transform.std), "transform": json.dumps(transform.to_dict())}
    if model.class_names is not None:
        props["class_names"] = json.dumps(list(model.class_names), ensure_ascii=False)
    return props


def _version():
    from mmref import __version__
    return __version__
