"""The wavelet branches of a run: sub-bands before and after their convolution, of the picture and of channels."""

from __future__ import annotations

import numpy as np

from mmref.explain.pack import as_maps, most_varied, packed, thinned
from mmref.explain.run import Run
from mmref.nn.wavelet import analysis

CHANNELS = 24      # of a branch on the page
BAND_BYTES = 500_000


def branches(run: Run, shown: np.ndarray, wanted) -> list[dict]:
    """Every analysis with its synthesis, in network order. `shown` is the picture (H, W, 3), 0..1."""
    by_layer = {}
    for node in run.graph:
        if node.name in ("analysis", "synthesis") and wanted(node.layer):
            by_layer.setdefault(node.layer, ([], []))[node.name == "synthesis"].append(node)
    pairs = [(layer, level, before, after) for layer, (downs, ups) in by_layer.items() if len(downs) == len(ups)
             for level, (before, after) in enumerate(zip(downs, reversed(ups), strict=True))]  # the deepest comes first
    return [_branch(run, *pair, shown, BAND_BYTES // len(pairs)) for pair in pairs]


def _branch(run, layer, level, before, after, shown, budget):
    x, bank = run.read[before]["x"], run.read[before]["bank"]
    bands, changed = run.values[before], run.read[after]["bands"]
    maps, C = as_maps(x), x.shape[1]
    small, step = thinned(maps)
    a_channel = small[0].size + 2 * 4 * bands[0, 0].size // step ** 2 + small[0].size
    kept = most_varied(as_maps(changed).reshape(C, -1, changed.shape[-1]),
                       max(1, min(CHANNELS, budget // max(1, a_channel))))

    def plane(array):
        array = array[:, ::step, ::step]
        largest = np.abs(array).max((1, 2), keepdims=True)
        levels = np.rint(array / np.where(largest > 0, largest, 1) * 127) + 128
        return {"size": list(array.shape[1:]), "count": len(array), "largest": packed(largest),
                "levels": packed(levels, np.uint8)}

    def of(array):
        return array[0].reshape(C, 4, *array.shape[2:])[kept].reshape(-1, *array.shape[2:])
    grey = shown.mean(-1)[None, None].astype(x.dtype)
    return {"layer": layer, "level": level, "channels": kept.tolist(), "of": C, "step": step,
            "energy": _energy(bands, changed, C)[kept].tolist(),
            "picture": plane(analysis(grey, np.ascontiguousarray(bank[:4]))[0]), "x": plane(maps[kept]),
            "before": plane(of(bands)), "after": plane(of(changed)), "y": plane(as_maps(run.values[after])[kept])}


def _energy(bands, changed, C):
    """(C, 2, 4) root of the mean square of every sub-band, before and after the convolution."""
    both = [np.sqrt(np.square(part[0].reshape(C, 4, -1).astype(np.float64)).mean(-1)) for part in (bands, changed)]
    return np.stack(both, 1)
