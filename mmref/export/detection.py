"""A detector of one stage as an ONNX graph that answers with boxes: raw maps, decoding, and suppression if wanted.

    to_onnx(model, **results_of(model, "boxes"))        boxes (B, N, 4) and scores (B, N, classes) of all anchors
    to_onnx(model, **results_of(model, "objects"))      boxes (n, 4), scores (n,), labels (n,) of one picture

Sizes stay free: anchors are computed from the maps' sizes when the graph runs. What differs from `model.detect`: boxes
are in pixels of the input and clipped to it, padding included. Of equal scores ONNX leaves the order open, and runtimes
differ. All is computed in float32.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from onnx import TensorProto

from mmref.arguments import check_choice
from mmref.detection.boxes import decode
from mmref.detection.candidates import by_anchor, softmax
from mmref.errors import ValueProblem
from mmref.export.lowering import Lowering
from mmref.models.detection import DetectionNetwork, OneStage
from mmref.nn.functional import sigmoid

MOST_GROWTH = math.log(1000 / 16)
RESULTS = ("maps", "boxes", "objects")


def results_of(model, results: str, fixed: tuple[int, int] | None = None) -> dict:
    """Options of `mmref.export.onnx.to_onnx` for a graph with these results.

    results  "maps": what the network's text gives, for any network; of a detector of one stage also "boxes", of every
             anchor before any is left out, and "objects", the answer for a single picture
    fixed    (height, width) for this size only

    Raises ValueProblem for any other network than these."""
    check_choice("results", results, RESULTS)
    if results == "maps":
        return {"fixed": fixed}
    if not isinstance(model, OneStage):
        raise ValueProblem(f"results must be maps for {model.config.name}, got {results}: only of a detector of one "
                           f"stage (SSDLite, RetinaNet) do boxes follow from the raw maps")
    if results == "boxes":
        return {"fixed": fixed, "behind": partial(_boxes, model)}
    return {"inputs": {"input": (1, model.config.in_chans, *(fixed or ("height", "width")))},
            "behind": partial(_detections, model)}


def default_results(model) -> str:
    """What a model is exported with where nobody says: "boxes" of a detector of one stage."""
    return "boxes" if isinstance(model, OneStage) else "maps"


def reference(model, results: str):
    """A function of pictures x that gives what the graph with these results, maps or boxes, does; in NumPy and the
    model's dtype."""
    return partial(_every_box, model) if results == "boxes" else model


def _every_box(model: DetectionNetwork, x):
    """(boxes (B, N, 4), scores (B, N, classes)) of every anchor."""
    raw, found = model(x), []
    for i in range(len(x)):
        levels = []
        for anchors, cls, reg in zip(model.anchors, raw["cls"], raw["reg"], strict=True):
            logits = by_anchor(cls[i], model.outputs)
            levels.append((decode(anchors.grid(*cls.shape[2:]), by_anchor(reg[i], 4), model.spread, x.shape[2:]),
                           softmax(logits)[:, :-1] if model.background else sigmoid(logits)))
        found.append([np.concatenate(parts) for parts in zip(*levels, strict=True)])
    return [np.stack(parts).astype(model.dtype) for parts in zip(*found, strict=True)]


def _boxes(model, g, raw):
    boxes, scores = _decoded(model, g, raw)
    return {"boxes": (g.concatenate(boxes, 1), ("batch", "anchors", 4)),
            "scores": (g.concatenate(scores, 1), ("batch", "anchors", model.config.num_classes))}


def _detections(model, g, raw):
    boxes, scores = _decoded(model, g, raw)
    boxes = g.concatenate(boxes, 1)                                         # (1, N, 4)
    scores = g.concatenate([_best(g, level, model.candidates) for level in scores], 1)
    low, high = g.split(boxes, [2, 2], 2)
    sides = g.node("ReduceMin", [g.node("Sub", [high, low])], axes=[2], keepdims=1)
    real = g.node("Greater", [sides, _number(g, 0.0)])                      # a box without area shows nothing
    scores = g.node("Where", [real, scores, _number(g, 0.0)])
    chosen = g.node("NonMaxSuppression", [
        boxes, g.transpose(scores, 0, 2, 1), g.integers(model.kept), _number(g, model.overlap, 1),
        _number(g, model.score, 1)])                                        # (n, 3): picture, class, anchor
    _, labels, anchors = (g.node("Squeeze", [part, g.integers(1)]) for part in g.split(chosen, [1, 1, 1], 1))
    pairs = g.node("Transpose", [g.node("Squeeze", [scores, g.integers(0)])], perm=(1, 0))
    found = g.node("GatherND", [pairs, g.node("Slice", [chosen, g.integers(1), g.integers(3), g.integers(1)])])
    count = g.node("Min", [g.node("Shape", [found]), g.integers(model.kept)])
    found, order = g.node("TopK", [found, count], 2, axis=0)

    def taken(values):
        return g.node("Gather", [values, order], axis=0)
    boxes = g.node("Gather", [g.node("Squeeze", [boxes, g.integers(0)]), taken(anchors)], axis=0)
    return {"boxes": (boxes, ("objects", 4)), "scores": (found, ("objects",)),
            "labels": (taken(labels), ("objects",), TensorProto.INT64)}


def _decoded(model, g: Lowering, raw):
    """Lists by level: boxes (B, N, 4), scores (B, N, classes)."""
    boxes, scores = [], []
    limit = g.node("Shape", [g.inputs[0]], start=2, end=4)                  # height, width
    limit = g.node("Cast", [g.node("Gather", [limit, g.integers(1, 0, 1, 0)])], to=TensorProto.FLOAT)
    for level, (anchors, cls, reg) in enumerate(zip(model.anchors, raw["cls"], raw["reg"], strict=True)):
        g.scope = f"level{level}"
        count = len(anchors.shapes)
        apart = g.node("Reshape", [reg, g.integers(0, count, 4, -1)])
        offsets = g.transpose(apart, 0, 3, 1, 2)                            # (B, H*W, anchors, 4)
        spread = _constant(g, "spread", model.spread)
        moves, growth = g.split(g.node("Mul", [offsets, spread]), [2, 2], 3)
        sizes = _constant(g, "sizes", np.reshape(anchors.shapes, (1, 1, count, 2)))
        centres = g.node("Add", [_centres(g, reg, anchors), g.node("Mul", [moves, sizes])])
        growth = g.node("Clip", [growth, _number(g, -MOST_GROWTH), _number(g, MOST_GROWTH)])
        halves = g.node("Mul", [g.node("Exp", [growth]), _constant(g, "halves", np.reshape(
            anchors.shapes, (1, 1, count, 2)) / 2)])
        whole = g.concatenate([g.node("Sub", [centres, halves]), g.node("Add", [centres, halves])], 3)
        whole = g.node("Min", [g.node("Max", [whole, _number(g, 0.0)]), limit])
        boxes.append(g.node("Reshape", [whole, g.integers(0, -1, 4)]))
        logits = g.transpose(g.node("Reshape", [cls, g.integers(0, count, model.outputs, -1)]), 0, 3, 1, 2)
        logits = g.node("Reshape", [logits, g.integers(0, -1, model.outputs)])
        if model.background:
            values = g.node("Softmax", [logits], axis=2)
            scores.append(g.split(values, [model.outputs - 1, 1], 2)[0])
        else:
            scores.append(g.node("Sigmoid", [logits]))
    g.scope = ""
    return boxes, scores


def _centres(g, reg, anchors):
    """(H*W, 1, 2) x and y of the centres of a map's cells."""
    rows, columns = (g.node("Reshape", [_positions(g, reg, axis, anchors), g.integers(*shape)])
                     for axis, shape in ((2, (-1, 1, 1)), (3, (1, -1, 1))))
    nothing = _number(g, 0.0)
    x = g.node("Add", [columns, g.node("Mul", [rows, nothing])])
    y = g.node("Add", [rows, g.node("Mul", [columns, nothing])])
    return g.node("Reshape", [g.concatenate([x, y], 2), g.integers(-1, 1, 2)])


def _positions(g, reg, axis, anchors):
    length = g.node("Squeeze", [g.node("Shape", [reg], start=axis, end=axis + 1), g.integers(0)])
    steps = g.node("Range", [_number(g, 0.0), g.node("Cast", [length], to=TensorProto.FLOAT), _number(g, 1.0)])
    return g.node("Mul", [g.node("Add", [steps, _number(g, anchors.offset)]), _number(g, anchors.stride)])


def _best(g, scores, candidates):
    """Scores (1, N, classes) with zeros for all but the `candidates` best."""
    flat = g.node("Reshape", [scores, g.integers(-1)])
    count = g.node("Min", [g.node("Shape", [flat]), g.integers(candidates)])
    best, _ = g.node("TopK", [flat, count], 2, axis=0)
    bar = g.node("Slice", [best, g.integers(-1), g.integers(2 ** 31 - 1), g.integers(0)])
    return g.node("Where", [g.node("Less", [scores, bar]), _number(g, 0.0), scores])


def _number(g, value: float, axes: int = 0):
    return g.constant(f"number/{value}/{axes}", np.full((1,) * axes, value, np.float32))


def _constant(g, name, values):
    return g.constant(g.unique(g.scoped(name)), np.asarray(values, np.float32))
