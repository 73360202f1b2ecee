"""Pictures to try things on: one that comes along, and those of PyWavelets, which is a dependency already."""

from __future__ import annotations

from importlib.resources import files

from mmref.errors import ValueProblem

SAMPLES = ("cat", "aero", "ascent", "camera")


def sample_picture(name: str):
    """A PIL image, 8 bits.

    name  "cat": a photograph of a cat (RGB, 451 x 300; CC0, see README.md in this folder). Of PyWavelets (grey,
          512 x 512): "aero", fields and trees from the air; "ascent", two people climbing stairs; "camera", a man with
          a camera. CIFAR-10 has no class for these three, and a network of its ten classes answers one all the same

    Raises ValueProblem for another name."""
    if name not in SAMPLES:
        raise ValueProblem(f"sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    if name == "cat":
        from mmref.data.picture import open_picture
        return open_picture((files("mmref.data") / "chelsea.jpg").read_bytes())[0]
    import numpy as np
    import pywt.data
    from PIL import Image
    return Image.fromarray(getattr(pywt.data, name)().astype(np.uint8))
