"""Pictures to try things on, from packages that are dependencies already."""

from __future__ import annotations

from mmref.errors import ValueProblem

SAMPLES = ("aero", "ascent", "camera")


def sample_picture(name: str):
    """A PIL image (grey, 8 bits, 512 x 512) of PyWavelets' sample data: "aero" is an aeroplane over fields, "ascent"
    two people climbing stairs, "camera" a man with a camera. Raises ValueProblem for another name."""
    if name not in SAMPLES:
        raise ValueProblem(f"sample must be one of {', '.join(SAMPLES)}, got {name!r}")
    import numpy as np
    import pywt.data
    from PIL import Image
    return Image.fromarray(getattr(pywt.data, name)().astype(np.uint8))
