"""The answer of a run and what it rests on: classes or a label map, covered cells, the receptive field, the last layer.

For each cell of the picture a square of 3 x 3 cells around it is covered with the mean colour of the pictures the
network was trained on (0 after normalisation), and the network run again: what the answer loses was seen there. The
receptive fields come from mmref.show.field.
"""

from __future__ import annotations

import numpy as np

from mmref.explain.drawing import children_of
from mmref.explain.pack import packed
from mmref.explain.run import Run
from mmref.nn.layer import Linear, recording
from mmref.show.field import batches, cell_slices, fields

LISTED = 10   # classes
PARTS = 8     # features that tell the first class from the second
PIXELS = 1 << 18  # in one run of the network, all pictures of the batch together


def answer(run: Run, labels, cells: int, seen=None) -> dict:
    """What the network says and what it rests on. `cells` a side; `seen` is called with the number of cells done."""
    output = run.output
    kind = "classes" if output.ndim == 2 and labels else "maps" if output.ndim == 4 else "features"
    found = {"kind": kind, "cells": cells, "shape": list(output.shape[1:])}
    if kind == "classes":
        found |= _classes(run, output[0].astype(np.float64), labels)
    elif kind == "maps":
        found |= _label_map(output[0], labels)
    found["covered"] = _covered(run, kind, found, cells, seen)
    found["fields"] = _fields(run, cells, seen)
    return found


def runs(cells: int) -> int:
    """How many cells `answer` runs the network for."""
    return 2 * cells ** 2


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _classes(run, logits, labels):
    order = np.argsort(-logits, kind="stable")[:LISTED]
    share = probabilities(logits)
    found = {"classes": [{"class": int(i), "label": labels[i], "logit": float(logits[i]), "probability":
                          float(share[i])} for i in order], "of": len(logits), "gap": None}
    if len(order) > 1:
        found["gap"] = _gap(run, *map(int, order[:2]))
    return found


def _gap(run, first, second):
    """What of the last layer's features makes the first class's logit larger than the second's: (w1 - w2) x feature."""
    node = run.graph.outputs[0]
    layer = run.layers.get(node.layer)
    if not isinstance(layer, Linear) or node.name != "linear" or layer.weight is None:
        return None
    features = run.values[node.sources[0]][0].astype(np.float64)
    parts = (layer.weight[first].astype(np.float64) - layer.weight[second]) * features
    bias = float(layer.bias[first]) - float(layer.bias[second]) if layer.bias is not None else 0.0
    order = np.argsort(-np.abs(parts), kind="stable")[:PARTS]
    return {"layer": node.layer, "bias": bias, "for": float(parts[parts > 0].sum()),
            "against": float(parts[parts < 0].sum()), "features": len(parts),
            "parts": [{"feature": int(i), "value": float(features[i]), "part": float(parts[i])} for i in order]}


def _label_map(maps, labels):
    step = max(1, -(-max(maps.shape[1:]) // 256))
    classes = maps[:, ::step, ::step].argmax(0)
    numbers, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    place = np.zeros(len(maps), int)
    place[numbers[order]] = np.minimum(np.arange(len(order)), 255)
    return {"size": list(classes.shape), "map": packed(place[classes], np.uint8), "step": step,
            "classes": [{"class": int(numbers[i]), "label": labels[numbers[i]] if labels else f"map {numbers[i]}",
                         "share": float(counts[i] / counts.sum())} for i in order[:256]]}


def _covered(run, kind, found, cells, seen):
    """For each cell what the answer is without it and its neighbours."""
    x, model = run.values[run.input], run.model
    several = []
    for batch in batches(cell_slices(cells, *x.shape[2:]), _batch(x)):
        inputs = np.repeat(x, len(batch), 0)
        for one, (_, rows, columns) in zip(inputs, batch, strict=True):
            one[:, _wider(rows), _wider(columns)] = 0
        outputs = model(inputs)
        if kind == "classes":
            top = [entry["class"] for entry in found["classes"]]
            several += [probabilities(logits.astype(np.float64))[top] for logits in outputs]
        elif kind == "maps":
            several += [[np.mean(maps.argmax(0) != run.output[0].argmax(0))] for maps in outputs]
        else:
            scale = np.linalg.norm(run.output[0].astype(np.float64)) or 1.0
            several += [[np.linalg.norm(one.astype(np.float64) - run.output[0]) / scale] for one in outputs]
        if seen is not None:
            seen(len(batch))
    return packed(np.array(several).T)                                      # (classes or 1, cells * cells)


def _wider(cell):
    size = cell.stop - cell.start
    return slice(max(0, cell.start - size), cell.stop + size)


def _fields(run, cells, seen):
    """The receptive field of the centre of the map that each layer of the network itself gives."""
    names = [name for name in children_of(run)[""] if run.graph.layers[name].ndim == 4]
    if not names:
        return []
    double = run.model.astype(np.float64)
    x = run.values[run.input].astype(np.float64)

    def maps(pictures):
        found = {}
        with recording(lambda name, y, layer: found.setdefault(name, y) if name in names else None):
            double(pictures)
        return found
    return [{"layer": name, "field": packed(field), "centre": list(centre)}
            for name, (field, centre) in fields(maps, x, cells, seen, _batch(x)).items()]


def _batch(x):
    return int(max(1, min(16, PIXELS // (x.shape[2] * x.shape[3]))))
