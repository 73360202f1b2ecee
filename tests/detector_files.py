"""The published detectors' figures: which files there are, and the networks and inputs they belong to."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

import mmref

FILES = ("ssdlite_1x320x320", "ssdlite_2x97x131", "ssdlite_512_1x512x512", "retinanet_1x160x224", "retinanet_2x128x128",
         "mask_rcnn_1x160x224", "mask_rcnn_2x128x128")
PICTURES = ("ssdlite_picture", "retinanet_picture", "mask_rcnn_picture")
RAW = 1e-10, 5e-6      # of the largest value of a raw map: float64, float32
PIXELS = 1e-7, 0.05    # of a box
SCORES = 1e-9, 1.5e-4  # ten times what upstream's own float32 run is off by


@cache
def parameters(folder: Path):
    """`det_params.py` of the golden folder, which imports its neighbour by name."""
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("golden_det_params", folder / "det_params.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@cache
def shapes(folder: Path, network: str) -> dict:
    return json.loads((folder / f"state_dict_det_{network.removesuffix('_512')}.json").read_text())


def figures(folder: Path, name: str):
    return np.load(folder / f"det_{name}.npz")


def model(folder: Path, name: str, dtype=np.float32, backend="numpy"):
    """The network of a file, with its parameters."""
    found = figures(folder, name)
    network = str(found["name"])
    state = parameters(folder).detector_state_dict(shapes(folder, network), int(found["seed"]),
                                                   json.loads(str(found["rules"])))
    return mmref.create_model(f"mobilemamba_b1_{network}", state, dtype=dtype, backend=backend)


def inputs(folder: Path, name: str, dtype=np.float32) -> np.ndarray:
    found = figures(folder, name)
    padded = parameters(folder).padded_input(int(found["seed"]), found["input_shape"], found["img_shape"])
    return padded.astype(dtype)


def raw_error(found, raw) -> float:
    """The largest error of the samples of raw maps, each over its map's largest magnitude."""
    errors = []
    for kind, maps in raw.items():
        for i, value in enumerate(maps):
            assert value.shape == tuple(found[f"{kind}/{i}/shape"])
            errors.append(sample_error(value, found[f"{kind}/{i}/samples"], found[f"{kind}/{i}/stats"][2]))
    return max(errors)


def sample_error(value, samples, largest) -> float:
    flat = value.ravel().astype(np.float64)
    return float(np.abs(flat[np.linspace(0, flat.size - 1, len(samples)).astype(int)] - samples).max() / largest)


def check_detections(found, detections, which: int, rounded: bool = False) -> None:
    """Count, order, labels, boxes, scores and masks of every picture, in float64 (0) or float32 (1); `rounded`: of an
    input that was rounded to float32."""
    pixels, scores = (1e-4, 1e-6) if rounded and not which else (PIXELS[which], SCORES[which])
    for b, one in enumerate(detections):
        np.testing.assert_array_equal(one.labels, found[f"det/{b}/labels"])
        np.testing.assert_allclose(one.boxes, found[f"det/{b}/boxes"], rtol=0, atol=pixels)
        np.testing.assert_allclose(one.scores, found[f"det/{b}/scores"], rtol=0, atol=scores)
        if one.masks is None:
            assert f"det/{b}/masks_bits" not in found.files
            continue
        shape = tuple(found[f"det/{b}/masks_shape"])
        expected = np.unpackbits(found[f"det/{b}/masks_bits"])[:np.prod(shape)].reshape(shape).astype(bool)
        assert one.masks.shape == shape
        unequal = one.masks != expected
        assert not (unequal & ~near_half(one, shape[1:])).any()


def near_half(detections, size) -> np.ndarray:
    """Pixels whose probability is within 1e-5 of one half: their side is nobody's fault."""
    from mmref.detection.masks import paste
    values = [paste(part, box, size) for part, box in zip(detections.probabilities, detections.exact, strict=True)]
    return np.abs(np.reshape(values, (len(values), *size)) - 0.5) <= 1e-5
