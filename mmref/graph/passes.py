"""Passes: graph in, graph out, one idea each. What the compiled backends run is `fused(graph)`: all of them, in order.

A pass changes results by rounding only. Folded parameters are new constants, computed where a backend lays them out.
"""

from __future__ import annotations

import numpy as np

from mmref.graph import fused as fused_operations
from mmref.graph.graph import Constant, Graph, Node, derived, rewrite
from mmref.nn.operation import OPERATIONS
from mmref.nn.wavelet import HAAR

CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "linear")


def fused(graph: Graph) -> Graph:
    """All passes; those that look at different operations in one walk over the graph."""
    for group in GROUPS:
        rules = {name: one.rule for one in group for name in one.operations}
        graph = rewrite(graph, lambda node, only, of=rules: of[node.name](node, only) if node.name in of else None)
    return graph


class Pass:
    """A rule for nodes of some operations, as a function of graphs: `rule(node, only)` as `rewrite` takes it."""

    def __init__(self, rule, operations):
        self.rule, self.operations = rule, operations
        self.__doc__, self.__name__ = rule.__doc__, rule.__name__

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, lambda node, only: self.rule(node, only) if node.name in self.operations else None)


def rule_for(*operations: str):
    """Decorator: a rule becomes a Pass over the nodes of these operations."""
    return lambda rule: Pass(rule, operations)


def replaced(node: Node, kept: Node, operation, operands, **attributes) -> Node:
    """A node with the result of one and the layer of another, `kept`; operands that are None are left out."""
    operands = {name: value for name, value in operands.items() if value is not None}
    return Node(operation, operands, attributes, kept.layer, node.shape, node.dtype, node.elsewhere)


def _is(node, *names) -> bool:
    return isinstance(node, Node) and node.name in names


# ------------------------------------------------------------------------------------------ batch norm, scales

@rule_for("batch_norm", "linear")
def fold_batch_norm(node, only):
    """A batch norm behind a convolution or linear layer, or before a linear layer, goes into its weight and bias."""
    x = node.operands.get("x")
    if node.name == "batch_norm" and _is(x, *CONVOLUTIONS) and only(x):
        return _followed_by_norm(node, x)
    if node.name == "linear" and _is(x, "batch_norm") and only(x):
        return _preceded_by_norm(node, x)
    return None


def _norm_parts(norm):
    """(weight, bias, mean, variance), and what names the fold."""
    return [norm.operands[name] for name in ("weight", "bias", "running_mean", "running_var")], norm.attributes["eps"]


def _scale_and_shift(weight, bias, mean, variance, eps):
    """float64 pair with norm(x) = scale * x + shift."""
    scale = weight / np.sqrt(variance.astype(np.float64) + eps)
    return scale, bias - mean * scale


def _along_rows(scale, weight):
    return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _followed_by_norm(node, conv):
    parts, eps = _norm_parts(node)
    weight, bias = conv.operands["weight"], conv.operands.get("bias")

    def fold_weight(weight, *norm):
        return _along_rows(_scale_and_shift(*norm, eps)[0], weight)

    def fold_bias(gamma, beta, mean, variance, bias=0):
        scale, shift = _scale_and_shift(gamma, beta, mean, variance, eps)
        return shift + bias * scale
    new_weight = derived(f"times the batch norm's scale, eps {eps}", weight.shape, fold_weight, weight, *parts)
    sources = parts if bias is None else [*parts, bias]
    new_bias = derived(f"the batch norm's shift, eps {eps}", parts[1].shape, fold_bias, *sources)
    operands = {**conv.operands, "weight": new_weight, "bias": new_bias}
    return replaced(node, conv, conv.operation, operands, **conv.attributes)


def _preceded_by_norm(node, norm):
    parts, eps = _norm_parts(norm)
    weight, bias = node.operands["weight"], node.operands.get("bias")

    def fold_weight(weight, *norm):
        return weight * _scale_and_shift(*norm, eps)[0]

    def fold_bias(weight, gamma, beta, mean, variance, bias=0):
        return bias + weight @ _scale_and_shift(gamma, beta, mean, variance, eps)[1]
    new_weight = derived(f"behind a batch norm, eps {eps}", weight.shape, fold_weight, weight, *parts)
    sources = [weight, *parts] if bias is None else [weight, *parts, bias]
    new_bias = derived(f"bias behind a batch norm, eps {eps}", weight.shape[:1], fold_bias, *sources)
    return replaced(node, node, node.operation, {"x": norm.operands["x"], "weight": new_weight, "bias": new_bias},
                    **node.attributes)


@rule_for("multiply")
def fold_factors(node, only):
    """One factor a channel behind a convolution or linear layer goes into its weight and bias."""
    for one, other in (("x", "y"), ("y", "x")):
        conv, factor = node.operands[one], node.operands[other]
        if _is(conv, *CONVOLUTIONS) and only(conv) and isinstance(factor, Constant) \
                and factor.shape == (1, conv.shape[1]) + (1,) * (conv.ndim - 2):
            return _scaled(node, conv, factor)
    return None


def _scaled(node, conv, factor):
    operands = dict(conv.operands)
    weight, bias = operands["weight"], operands.get("bias")
    operands["weight"] = derived("rows scaled", weight.shape, lambda w, factor: _along_rows(factor, w), weight, factor)
    if bias is not None:
        operands["bias"] = derived("scaled", bias.shape, lambda bias, factor: bias * factor.reshape(-1), bias, factor)
    return replaced(node, conv, conv.operation, operands, **conv.attributes)


# --------------------------------------------------------------------------------------------------- shortcuts

@rule_for("add")
def shortcut_into_centre_tap(node, only):
    """x + depthwise(x) is the depthwise convolution with one more in the middle of every filter."""
    if node.name != "add":
        return None
    for one, other in (("x", "y"), ("y", "x")):
        conv, x = node.operands[one], node.operands[other]
        if _is(conv, "depthwise_conv2d") and conv.operands["x"] is x and only(conv) and _keeps_size(conv):
            weight = conv.operands["weight"]
            raised = derived("one more in the centre", weight.shape, _raise_centre, weight)
            return replaced(node, conv, conv.operation, {**conv.operands, "weight": raised}, **conv.attributes)
    return None


def _keeps_size(conv):
    """Whether it is an odd square filter in the middle of its padding, one result for each pixel."""
    k_h, k_w = conv.operands["weight"].shape[2:]
    return k_h == k_w and k_h % 2 and conv.attributes["padding"] == k_h // 2 and conv.attributes["stride"] == 1


def _raise_centre(weight):
    raised = weight.copy()
    raised[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
    return raised


@rule_for("relu")
def relu_before_concatenation(node, only):
    """relu(concatenate(parts)) is concatenate(relu(part), ...): each part is clipped where it is made."""
    joined = node.operands.get("x")
    if node.name != "relu" or not _is(joined, "concatenate") or not only(joined):
        return None
    parts = {name: Node(node.operation, {"x": part}, {}, part.layer, part.shape, part.dtype, part.elsewhere)
             for name, part in joined.operands.items() if 0 not in part.shape}
    return replaced(node, joined, joined.operation, parts, **joined.attributes)


@rule_for("linear")
def linear_of_whole_map(node, only):
    """A linear layer on all values of a map is a convolution with filters as large as the map, whose weights may lie in
    the order in which the map does."""
    flat = node.operands["x"]
    if not _is(flat, "flatten") or not only(flat) or flat.operands["x"].shape[2:] == (1, 1):
        return None
    x, weight = flat.operands["x"], node.operands["weight"]
    shape = weight.shape[0], *x.shape[1:]
    filters = derived(f"as filters {shape[1:]}", shape, lambda weight: weight.reshape(shape), weight)
    conv = Node(OPERATIONS["conv2d"], {**node.operands, "x": x, "weight": filters},
                {"stride": 1, "padding": 0, "groups": 1, "dilation": 1}, node.layer, (*node.shape, 1, 1), node.dtype,
                (*node.elsewhere, 1, 1))
    return replaced(node, node, flat.operation, {"x": conv})


# --------------------------------------------------------------------------------------------------- epilogues

@rule_for("conv2d", "depthwise_conv2d", "linear", "relu", "silu", "add")
def epilogues(node, only):
    """Convolutions and linear layers take over what follows: up to two shortcuts, ReLU, SiLU of a depthwise one."""
    if node.name in CONVOLUTIONS and node.attributes.get("groups", 1) == 1:
        options = {name: value for name, value in node.attributes.items() if name != "groups"}
        return replaced(node, node, TAKES_OVER[node.name], node.operands, **options, activation="none")
    if node.name in ("relu", "silu"):
        x = node.operands["x"]
        able = ("convolution", "product", "depthwise") if node.name == "relu" else ("depthwise",)
        if _is(x, *able) and only(x) and x.attributes["activation"] == "none" and "scale" not in x.operands:
            return replaced(node, x, x.operation, x.operands, **{**x.attributes, "activation": node.name})
    if node.name == "add":
        for one, other in (("y", "x"), ("x", "y")):
            conv, rest = node.operands[one], node.operands[other]
            if _is(conv, "convolution", "product") and only(conv) and isinstance(rest, Node) \
                    and rest.shape == conv.shape and conv.attributes["activation"] == "none" \
                    and "shortcut2" not in conv.operands:
                name = "shortcut2" if "shortcut" in conv.operands else "shortcut"
                return replaced(node, conv, conv.operation, {**conv.operands, name: rest}, **conv.attributes)
    return None


TAKES_OVER = {"conv2d": fused_operations.convolution, "depthwise_conv2d": fused_operations.depthwise,
              "linear": fused_operations.product}


@rule_for("depthwise")
def pointwise_depthwise(node, only):
    """A 1x1 depthwise convolution with ReLU, behind another with ReLU, is a scale and a shift more in that one."""
    x = node.operands.get("x")
    if node.name == "depthwise" and node.attributes == {"stride": 1, "padding": 0, "activation": "relu"} \
            and node.operands["weight"].shape[2:] == (1, 1) and "scale" not in node.operands \
            and _is(x, "depthwise") and only(x) and x.attributes["activation"] == "relu" \
            and "scale" not in x.operands:
        weight, bias = node.operands["weight"], node.operands.get("bias")
        channels = weight.shape[:1]
        scale = derived("as a vector", channels, lambda weight: weight.reshape(-1), weight)
        shift = bias or derived("zeros", channels, lambda weight: np.zeros(len(weight)), weight)
        return replaced(node, x, x.operation, {**x.operands, "scale": scale, "shift": shift}, **x.attributes)
    return None


# ------------------------------------------------------------------------------- wavelet branch, scan, gates

@rule_for("synthesis")
def wavelet_branches(node, only):
    """Haar analysis, a depthwise convolution of the sub-bands, Haar synthesis: one operation."""
    if node.name != "synthesis" or not _is_haar(node.operands["bank"]):
        return None
    conv = node.operands["bands"]
    if not _is(conv, "depthwise_conv2d") or not only(conv) or not _keeps_size(conv) or "bias" in conv.operands:
        return None
    bands = conv.operands["x"]
    if not _is(bands, "analysis") or not only(bands) or not _is_haar(bands.operands["bank"]):
        return None
    x = bands.operands["x"]
    if x.shape != node.shape:
        return None
    return replaced(node, conv, fused_operations.wavelet_branch, {"x": x, "weight": conv.operands["weight"]})


def _is_haar(bank):
    if not isinstance(bank, Constant) or bank.shape[1:] != (1, 2, 2):
        return False
    filters = bank.value().reshape(-1, *HAAR.shape)
    return np.array_equal(filters, np.broadcast_to(HAAR, filters.shape))


@rule_for("silu", "causal_conv")
def path_convs(node, only):
    """A map read off along paths and convolved along the steps, then SiLU: one operation."""
    x = node.operands.get("x")
    if node.name == "silu" and _is(x, "path_conv") and only(x) and x.attributes["activation"] == "none":
        return replaced(node, x, x.operation, x.operands, **{**x.attributes, "activation": "silu"})
    sequences = node.operands.get("sequences")
    if node.name == "causal_conv" and _is(sequences, "cross_scan") and only(sequences):
        operands = {"x": sequences.operands["x"], "weight": node.operands["weight"], "bias": node.operands["bias"]}
        if all(isinstance(operands[name], Constant) for name in ("weight", "bias")):
            return replaced(node, node, fused_operations.path_conv, operands, order=sequences.attributes["order"],
                            activation="none")
    return None


@rule_for("cross_merge")
def scans(node, only):
    """SS2D's scan, and those like it: step sizes, recurrence and laying back are one operation, which takes the
    coefficients of all steps from one product. Where sequences hold the map's own pixels, reading off is a part of it,
    and the product is a 1x1 convolution of the map."""
    scan = node.operands.get("y")
    if node.name != "cross_merge" or not _is(scan, "selective_scan") or not only(scan):
        return None
    u, delta = scan.operands["u"], scan.operands["delta"]
    if not _is(u, "cross_scan", "path_conv") or u.attributes["order"] != node.attributes["order"] \
            or u.operands["x"].shape != node.shape or not _is(delta, "softplus"):
        return None
    total = delta.operands["x"]
    if not _is(total, "add"):
        return None
    lifted, bias = total.operands["x"], total.operands["y"]
    if not _is(lifted, "project") or not isinstance(bias, Constant) or bias.shape != (1, *lifted.shape[1:3], 1):
        return None
    low = lifted.operands["sequences"]
    parts = low, scan.operands["B"], scan.operands["C"]
    if not all(_is(part, "slice_axis") and part.attributes["axis"] == 2 for part in parts):
        return None
    source = low.operands["x"]
    cuts = [(part.attributes["start"], part.attributes["stop"], part.attributes["step"]) for part in parts]
    R, N = low.shape[2], scan.operands["A"].shape[2]
    if not _is(source, "project") or source.operands["sequences"] is not u \
            or any(part.operands["x"] is not source for part in parts) \
            or cuts != [(0, R, 1), (R, R + N, 1), (R + N, R + 2 * N, 1)] or source.shape[2] != R + 2 * N \
            or not all(isinstance(scan.operands[name], Constant) for name in "AD"):
        return None
    dt_bias = derived("as (K, D)", bias.shape[1:3], lambda bias: bias[0, :, :, 0], bias)
    shared = {"dt_weight": lifted.operands["weight"], "dt_bias": dt_bias, "A": scan.operands["A"],
              "D": scan.operands["D"]}
    if u.name == "path_conv":
        return replaced(node, node, fused_operations.sequence_scan, {"u": u, "coefficients": source, **shared},
                        **node.attributes)
    x, weight = u.operands["x"], source.operands["weight"]
    K, M, channels = weight.shape
    as_convolution = derived("as a 1x1 convolution", (K * M, channels, 1, 1),
                             lambda weight: weight.reshape(-1, weight.shape[2], 1, 1), weight)
    coefficients = Node(OPERATIONS["conv2d"], {"x": x, "weight": as_convolution},
                        {"stride": 1, "padding": 0, "groups": 1, "dilation": 1}, node.layer,
                        (x.shape[0], K * M, *x.shape[2:]), x.dtype,
                        (x.elsewhere[0], K * M, *x.elsewhere[2:]))
    return replaced(node, node, fused_operations.path_scan, {"x": x, "coefficients": coefficients, **shared},
                    order=node.attributes["order"])


@rule_for("global_average_pool")
def norm_means(node, only):
    """The mean of a layer norm: the normalised map is never written."""
    x = node.operands.get("x")
    if node.name == "global_average_pool" and _is(x, "layer_norm_channels") and only(x):
        return replaced(node, x, fused_operations.norm_mean, x.operands, eps=x.attributes["eps"],
                        keep_axes=node.attributes["keep_axes"])
    return None


@rule_for("multiply")
def gates(node, only):
    """Layer norm times SiLU of a gate; a map times the sigmoid of one value a channel; a scan times another map."""
    if node.name != "multiply":
        return None
    for one, other in (("x", "y"), ("y", "x")):
        x, factor = node.operands[one], node.operands[other]
        if _is(x, "layer_norm_channels") and only(x) and _is(factor, "silu") and only(factor) \
                and factor.shape == x.shape:
            return replaced(node, x, fused_operations.norm_gate,
                            {"y": x.operands["x"], "weight": x.operands["weight"], "bias": x.operands["bias"],
                             "z": factor.operands["x"]}, eps=x.attributes["eps"])
        if _is(factor, "sigmoid") and only(factor) and isinstance(x, Node) and x.ndim == 4 \
                and factor.shape == (*x.shape[:2], 1, 1):
            return replaced(node, factor, fused_operations.gate, {"x": x, "values": factor.operands["x"]})
        if _is(x, "sequence_scan") and only(x) and "factor" not in x.operands and isinstance(factor, Node) \
                and factor.shape == x.shape and factor is not x:
            return replaced(node, x, x.operation, {**x.operands, "factor": factor}, **x.attributes)
    return None


GROUPS = ((fold_batch_norm, fold_factors),
          (shortcut_into_centre_tap, wavelet_branches, path_convs, scans, norm_means, gates, relu_before_concatenation,
           linear_of_whole_map),
          (epilogues,), (pointwise_depthwise,))
PASSES = tuple(one for group in GROUPS for one in group)
