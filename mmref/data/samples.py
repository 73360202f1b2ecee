"""Pictures to try things on: some that come along, and those of PyWavelets, which is a dependency already."""

from __future__ import annotations

from importlib.resources import files

from mmref.errors import ValueProblem

SAMPLES = ("cat", "scene1", "scene2", "aero", "ascent", "camera")
OWN = {"cat": "chelsea.jpg", "scene1": "scene1.png", "scene2": "scene2.png"}  # files of this folder


def sample_picture(name: str):
    """A PIL image, 8 bits.

    name  "cat": a photograph of a cat (RGB, 451 x 300; CC0, see README.md in this folder). "scene1", "scene2": what
          the included networks for segmentation and detection were trained on (RGB, 160 x 160), composed from test
          pictures of CIFAR-10. Of PyWavelets (grey, 512 x 512): "aero", fields and trees from the air; "ascent", two
          people climbing stairs; "camera", a man with a camera. CIFAR-10 has no class for these three, and a network of
          its ten classes answers one all the same

    Raises ValueProblem for another name."""
    if name not in SAMPLES:
        raise ValueProblem(f"sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    if name in OWN:
        from mmref.data.picture import open_picture
        return open_picture((files("mmref.data") / OWN[name]).read_bytes())[0]
    import numpy as np
    import pywt.data
    from PIL import Image
    return Image.fromarray(getattr(pywt.data, name)().astype(np.uint8))
