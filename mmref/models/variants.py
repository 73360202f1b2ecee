"""The published variants (paper table 2) and ours, as one page of data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmref.errors import ValueProblem


@dataclass(frozen=True)
class Variant:
    """What determines a network's parameters and shapes; tuples are by stage."""

    name: str
    img_size: int
    widths: tuple[int, int, int]
    depths: tuple[int, int, int] = (1, 2, 2)
    kernels: tuple[int, int, int] = (7, 5, 3)
    global_ratio: tuple[float, float, float] = (0.8, 0.7, 0.6)
    local_ratio: tuple[float, float, float] = (0.2, 0.2, 0.3)
    ssm_ratio: int = 2
    d_state: int = 1
    scan_order: str = "bidirectional"
    wavelet: str = "db1"
    wavelet_levels: int = 1
    num_classes: int = 1000
    in_chans: int = 3


VARIANTS = {v.name: v for v in (
    Variant("mobilemamba_nano", 128, (64, 128, 160), num_classes=10),
    Variant("mobilemamba_t2", 192, (144, 272, 368)),
    Variant("mobilemamba_t4", 192, (176, 368, 448)),
    Variant("mobilemamba_s6", 224, (192, 384, 448)),
    Variant("mobilemamba_b1", 256, (200, 376, 448), (2, 3, 2)),
    Variant("mobilemamba_b2", 384, (200, 376, 448), (2, 3, 2)),
    Variant("mobilemamba_b4", 512, (200, 376, 448), (2, 3, 2)),
)}


# Percent of ImageNet's validation set, as published; the dagger weights are the same network trained longer, with
# soft distillation. mobilemamba_nano's figure is ours, of CIFAR-10's test set (see its model card).
ACCURACY = {name: dict(zip(("top1", "top5", "top1_dagger", "top5_dagger"), figures, strict=True)) for name, figures in {
    "mobilemamba_t2": (73.638, 91.422, 76.934, 93.100), "mobilemamba_t4": (76.086, 92.772, 78.914, 94.160),
    "mobilemamba_s6": (78.002, 93.992, 80.742, 95.182), "mobilemamba_b1": (79.948, 94.924, 82.234, 95.872),
    "mobilemamba_b2": (81.624, 95.890, 83.260, 96.438), "mobilemamba_b4": (82.496, 96.252, 83.644, 96.606),
}.items()}
ACCURACY["mobilemamba_nano"] = {"top1": 87.30}


def resolve(name: str) -> tuple[Variant, bool]:
    """(variant, dagger) of a name in any spelling people use: `mobilemamba_t2`, upstream's `MobileMamba_T2`, and
    `mobilemamba_t2s` for the dagger weights (the same network trained longer). Raises ValueProblem."""
    plain = str(name).lower()
    if plain in VARIANTS:
        return VARIANTS[plain], False
    match = re.fullmatch(r"(mobilemamba_[tsb]\d)s", plain)
    if match and match[1] in VARIANTS:
        return VARIANTS[match[1]], True
    raise ValueProblem(f"model must be one of {', '.join(VARIANTS)} (an s at the end asks for the dagger weights), "
                       f"got {name!r}")
