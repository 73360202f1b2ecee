"""The network as an ONNX graph, written from mmref's own layers (no tracing, no PyTorch).

    export_onnx(mmref.create_model("mobilemamba_nano", pretrained=True), "nano.onnx")

One function here for every kind of layer, with the same steps as the layer's `forward`; batch norms are folded
first. Batch, height and width stay free, from 1 up. What is not a plain operation in ONNX:

selective scan   everything that depends on one step alone (projections, softplus, exp) is computed for all steps at
                 once; the recurrence h = decay * h + input is one ONNX `Scan` node for all directions. Directions
                 that run backwards are reversed before it and after it.
odd maps         the analysis always pads one row and column: the stride of 2 never reaches them on an even map, so
                 no size has to be known. The synthesis is cropped to the sizes its input has when the graph runs.

Letters as in ss2d.py: B batch, D inner channels, H x W pixels, L = H*W steps, K directions, N states, R rank.
"""

from __future__ import annotations

import json

import numpy as np

from mmref.errors import MissingBackend, ValueProblem
from mmref.files import replacing
from mmref.models.mobilemamba import FFN, Block, Mixer, MobileMamba, PatchMerging, SqueezeExcite, Stem
from mmref.models.mrffi import MRFFI, WaveletMamba
from mmref.nn.layer import Conv2d, LayerNorm, Linear, ReLU, Residual, Scale, Sequential, Sigmoid
from mmref.nn.ss2d import SS2D

try:
    import onnx
    from onnx import helper

    from mmref.export.graph import GraphBuilder
except ImportError as error:
    raise MissingBackend('ONNX export needs the package onnx: pip install "mmref[onnx]"') from error

__all__ = ["export_onnx", "to_onnx"]

OLDEST_OPSET = 17  # the first with LayerNormalization
INPUT, LOGITS, FEATURES = "input", "logits", "features"


def export_onnx(model: MobileMamba, path, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """Write `to_onnx(model, opset)` to `path`, whole or not at all.

    Returns the ModelProto. Raises what `to_onnx` raises, and OSError where the file cannot be written.
    """
    proto = to_onnx(model, opset)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return proto


def to_onnx(model: MobileMamba, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """The model as a float32 ModelProto: input "input" (batch, 3, height, width), output "logits" (batch, classes),
    or "features" (batch, C3) where the model has no head.

    Metadata: model, img_size, mean, std, transform, class_names, mmref_version (JSON where not text). The graph has
    passed onnx's checker with strict shape inference. Raises ValueProblem (an opset that onnx does not know or older
    than 17, not a NumPy model, a layer that is not the network's).
    """
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise ValueProblem(f"opset must be {OLDEST_OPSET} to {newest}, the newest that onnx {onnx.__version__} knows, "
                           f"got {opset!r}")
    if not isinstance(model, MobileMamba):
        raise ValueProblem(f'model must be a network of create_model(..., backend="numpy"), got {type(model).__name__}')
    folded, config = model.fold_batchnorm(), model.config
    g = GraphBuilder()
    features = INPUT
    for stage in (folded.patch_embed, folded.blocks1, folded.blocks2, folded.blocks3):
        features = emit(g, stage, features)
    pooled = g.node("Flatten", [g.node("GlobalAveragePool", [features], "head")], "head")
    answer = emit(g, folded.head, pooled)
    output, width = (LOGITS, config.num_classes) if config.num_classes else (FEATURES, config.widths[-1])
    g.nodes[-1].output[0] = output
    assert g.nodes[-1].name == answer
    graph = g.graph(config.name, [(INPUT, ("batch", config.in_chans, "height", "width"))], [(output, ("batch", width))])
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets),
                              producer_name="mmref", producer_version=_version())
    helper.set_model_props(proto, metadata(model))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def metadata(model: MobileMamba) -> dict[str, str]:
    """What a program needs beside the graph to classify a picture, as text."""
    transform = model.transform
    props = {"model": model.config.name, "mmref_version": _version()}
    if transform is not None:
        props |= {"img_size": str(transform.size), "mean": json.dumps(transform.mean),
                  "std": json.dumps(transform.std), "transform": json.dumps(transform.to_dict())}
    if model.class_names is not None:
        props["class_names"] = json.dumps(list(model.class_names), ensure_ascii=False)
    return props


def _version():
    from mmref import __version__
    return __version__


# ------------------------------------------------------------------------------------------ one function a layer

def emit(g: GraphBuilder, layer, x: str) -> str:
    """Append `layer` applied to the value `x`; returns the value of its output."""
    if type(layer) not in EMITTERS:
        raise ValueProblem(f"model must consist of mmref's own layers, got {type(layer).__name__} at {layer.name!r}")
    return EMITTERS[type(layer)](g, layer, x)


def parameter(g, layer, name):
    """A parameter as initialiser, under its name in the state dict."""
    return g.constant(f"{layer.name}.{name}", getattr(layer, name))


def sequential(g, layer, x):
    for child in layer.children.values():
        x = emit(g, child, x)
    return x


def wrapped(child):
    """The emitter of a layer that only hands on to its child of that name."""
    return lambda g, layer, x: emit(g, getattr(layer, child), x)


def residual(g, layer, x):
    return g.node("Add", [x, emit(g, layer.m, x)], layer.name)


def conv2d(g, layer, x):
    weights = [parameter(g, layer, name) for name in layer.shapes]
    return g.node("Conv", [x, *weights], layer.name, kernel_shape=[layer.kernel] * 2, strides=[layer.stride] * 2,
                  pads=[layer.kernel // 2] * 4, group=layer.groups)


def linear(g, layer, x):
    return g.node("Gemm", [x, parameter(g, layer, "weight"), parameter(g, layer, "bias")], layer.name, transB=1)


def scale(g, layer, x):
    return g.node("Mul", [x, parameter(g, layer, "weight")], layer.name)


def relu(g, layer, x):
    return g.node("Relu", [x], layer.name)


def sigmoid(g, layer, x):
    return g.node("Sigmoid", [x], layer.name)


def layer_norm(g, layer, x):
    """Over the last axis, which is where `ss2d` has its channels."""
    return g.node("LayerNormalization", [x, parameter(g, layer, "weight"), parameter(g, layer, "bias")], layer.name,
                  axis=-1, epsilon=1e-5)


def silu(g, x, scope):
    return g.node("Mul", [x, g.node("Sigmoid", [x], scope)], scope)


def ffn(g, layer, x):
    return emit(g, layer.pw2, relu(g, layer, emit(g, layer.pw1, x)))


def block(g, layer, x):
    y = x
    for part in (layer.dw0, layer.ffn0, layer.mixer, layer.dw1, layer.ffn1):
        y = emit(g, part, y)
    return g.node("Add", [x, y], layer.name)


def squeeze_excite(g, layer, x):
    means = g.node("GlobalAveragePool", [x], layer.name)
    gate = emit(g, layer.gate, emit(g, layer.fc2, relu(g, layer, emit(g, layer.fc1, means))))
    return g.node("Mul", [x, gate], layer.name)


def patch_merging(g, layer, x):
    x = relu(g, layer, emit(g, layer.conv1, x))
    x = relu(g, layer, emit(g, layer.conv2, x))
    return emit(g, layer.conv3, emit(g, layer.se, x))


def mrffi(g, layer, x):
    parts = g.split(x, layer.split, 1, layer.name)  # identity may be empty; then there are two
    parts[:2] = emit(g, layer.global_op, parts[0]), emit(g, layer.local_op, parts[1])
    return emit(g, layer.proj, g.node("Concat", parts, layer.name, axis=1))


# ------------------------------------------------------------------------------------------------ wavelet branch

def wavelet_mamba(g, layer, x):
    attended = emit(g, layer.base_scale, emit(g, layer.global_atten, x))
    return g.node("Add", [attended, wavelet_branch(g, layer, x, 0)], layer.name)


def wavelet_branch(g, layer, x, level):
    """One level, and those below it: (B, C, H, W) -> (B, C, H, W), any wavelet."""
    name, (bands, _, k, _) = layer.name, layer.wt_filter.shape
    margin, channels = k // 2 - 1, bands // 4
    analysed = g.node("Conv", [x, parameter(g, layer, "wt_filter")], name, kernel_shape=[k, k], strides=[2, 2],
                      pads=[margin, margin, margin + 1, margin + 1], group=channels)
    convolved = emit(g, layer.wavelet_convs.children[str(level)], analysed)
    convolved = emit(g, layer.wavelet_scale.children[str(level)], convolved)
    if level + 1 < layer.levels:
        low = g.node("Slice", [analysed, *(g.integers(i) for i in (0, bands, 1, 4))], name)  # every fourth channel
        convolved = _add_to_low(g, convolved, wavelet_branch(g, layer, low, level + 1), channels, name)
    full = g.node("ConvTranspose", [convolved, parameter(g, layer, "iwt_filter")], name, kernel_shape=[k, k],
                  strides=[2, 2], pads=[margin] * 4, group=channels)
    return g.node("Slice", [full, g.integers(0, 0), g.sizes(x, 2, 4, name), g.integers(2, 3)], name)


def _add_to_low(g, bands, low, channels, name):
    """bands[:, ::4] + low, the other channels as they are."""
    apart = g.node("Reshape", [bands, _sizes(g, [g.sizes(bands, 0, 1, name), g.integers(channels, 4),
                                                 g.sizes(bands, 2, 4, name)], name)], name)
    first, rest = g.split(apart, (1, 3), 2, name)
    first = g.node("Add", [first, g.node("Unsqueeze", [low, g.integers(2)], name)], name)
    joined = g.node("Concat", [first, rest], name, axis=2)
    return g.node("Reshape", [joined, g.sizes(bands, 0, 4, name)], name)


def _sizes(g, parts, name):
    return g.node("Concat", parts, name, axis=0)


# ----------------------------------------------------------------------------------------------------------- scan

# Directions of each order, as (axes of H and W in the order of the pass, backwards), as nn/scan_order.py has them.
ROWS, COLUMNS = (2, 3), (3, 2)
WAYS = {"unidirectional": ((ROWS, False),), "bidirectional": ((ROWS, False), (ROWS, True)),
        "cross": ((ROWS, False), (COLUMNS, False), (ROWS, True), (COLUMNS, True))}


def ss2d(g, layer, x):
    (K, D, _), name = layer.dt_projs_weight.shape, layer.name
    x, z = g.split(emit(g, layer.in_proj, x), (D, D), 1, name)
    x = silu(g, emit(g, layer.conv2d, x), name)                             # (B, D, H, W)
    pixels, sequences = {}, {}
    for axes in dict.fromkeys(axes for axes, _ in WAYS[layer.order]):
        pixels[axes] = g.node("Transpose", [x], name, perm=(*axes, 0, 1))   # (H, W, B, D) or (W, H, B, D)
        length = _sizes(g, [g.integers(-1), g.sizes(x, 0, 1, name), g.integers(D)], name)
        sequences[axes] = g.node("Reshape", [pixels[axes], length], name)   # (L, B, D)
    u = [flipped(g, sequences[axes], name) if backwards else sequences[axes] for axes, backwards in WAYS[layer.order]]
    y = [flipped(g, value, name) if backwards else value
         for value, (_, backwards) in zip(scan(g, layer, u), WAYS[layer.order], strict=True)]
    merged = []
    for axes in pixels:
        same = g.total([y[k] for k in range(K) if WAYS[layer.order][k][0] == axes], name)
        same = g.node("Reshape", [same, g.sizes(pixels[axes], 0, 4, name)], name)
        merged.append(same if axes == ROWS else g.node("Transpose", [same], name, perm=(1, 0, 2, 3)))
    y = emit(g, layer.out_norm, g.total(merged, name))                      # (H, W, B, D)
    y = g.node("Transpose", [y], name, perm=(2, 3, 0, 1))                   # (B, D, H, W)
    return emit(g, layer.out_proj, g.node("Mul", [y, silu(g, z, name)], name))


def flipped(g, sequence, name):
    """Steps in the other order."""
    return g.node("Slice", [sequence, g.integers(-1), g.integers(-2 ** 62), g.integers(0), g.integers(-1)], name)


def scan(g, layer, u):
    """The selective scan of the K sequences u, each (L, B, D), with its coefficients; returns K sequences y.

    All recurrences h[l] = decay[l] * h[l-1] + input[l], one a direction and state-space dimension, stand side by
    side along the last axis of one Scan: its cost is the number of nodes run, not their width.
    """
    (K, D, R), N, name = layer.dt_projs_weight.shape, layer.d_state, layer.name
    A = -np.exp(layer.A_logs).reshape(K, D, N)
    decays, inputs, C = [], [], []                                          # K * N values each
    for k in range(K):
        own = f"{name}.%s[{k}]"
        weight = g.constant(own % "x_proj_weight", layer.x_proj_weight[k].T)
        dt, *BC = g.split(g.node("MatMul", [u[k], weight], name), [R] + [1] * 2 * N, 2, name)  # B and C: (L, B, 1)
        delta = g.node("MatMul", [dt, g.constant(own % "dt_projs_weight", layer.dt_projs_weight[k].T)], name)
        delta = g.node("Add", [delta, g.constant(own % "dt_projs_bias", layer.dt_projs_bias[k])], name)
        delta = g.node("Softplus", [delta], name)                           # (L, B, D)
        delta_u = g.node("Mul", [delta, u[k]], name)
        for n in range(N):
            faded = g.node("Mul", [delta, g.constant(own % f"A_{n}", A[k, :, n])], name)
            decays.append(g.node("Exp", [faded], name))
            inputs.append(g.node("Mul", [delta_u, BC[n]], name))
        C += BC[N:]
    hidden = recurrence(g, *(g.node("Concat", values, name, axis=2) for values in (decays, inputs)), K * N * D, name)
    answers = [g.node("Mul", [h, c], name) for h, c in zip(g.split(hidden, [D] * K * N, 2, name), C, strict=True)]
    skips = [g.node("Mul", [u[k], g.constant(f"{name}.Ds[{k}]", layer.Ds.reshape(K, D)[k])], name) for k in range(K)]
    return [g.total([skips[k], *answers[k * N:(k + 1) * N]], name) for k in range(K)]


def recurrence(g, decay, values, width, name):
    """h[l] = decay[l] * h[l-1] + values[l] along the first axis, from h = 0; all (L, B, width)."""
    zero = g.node("ConstantOfShape", [_sizes(g, [g.sizes(decay, 1, 2, name), g.integers(width)], name)], name)
    body, step = GraphBuilder(), ("batch", width)
    # Factors in this order: OpenVINO 2026.4 with fixed shapes computes something else for decay * h.
    h = body.node("Add", ["input", body.node("Mul", ["h", "decay"], "")], "")
    shown = body.node("Identity", [h], "")                                  # a value can be an output only once
    graph = body.graph("step", [("h", step), ("decay", step), ("input", step)], [(h, step), (shown, step)])
    return g.node("Scan", [zero, decay, values], name, 2, body=graph, num_scan_inputs=2)[1]


EMITTERS = {Block: block, Conv2d: conv2d, FFN: ffn, LayerNorm: layer_norm, Linear: linear, MRFFI: mrffi,
            Mixer: wrapped("attn"), PatchMerging: patch_merging, ReLU: relu, Residual: residual, SS2D: ss2d,
            Scale: scale, Sequential: sequential, Sigmoid: sigmoid, SqueezeExcite: squeeze_excite, Stem: sequential,
            WaveletMamba: wavelet_mamba}
