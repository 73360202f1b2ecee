"""The published variants (paper table 2) and ours, as one page of data."""

from __future__ import annotations

from dataclasses import dataclass

from mmref.arguments import check_integer, check_integers, check_kind, check_numbers
from mmref.errors import ValueProblem
from mmref.models.mrffi import split_channels
from mmref.nn.paths import directions
from mmref.nn.wavelet import filter_bank

MOST_CLASSES = 1_000_000
MOST_CHANNELS = 4096


@dataclass(frozen=True)
class Variant:
    """What determines a network's parameters and shapes; tuples are by stage.

    Parameters
    ----------
    img_size
        side of the pictures it was trained on, 1 to 4096 pixels
    widths
        channels, 16 to 8192
    depths
        blocks, 0 to 1000
    kernels
        sides of the local and sub-band convolutions, odd, 1 to 63
    global_ratio, local_ratio
        shares of the channels in (0, 1], see `mmref.models.mrffi.split_channels`
    ssm_ratio
        inner channels of the scan for each of its channels, 1 to 64; d_state: states of each, 1 to 1024
    scan_order
        a name or a tuple of directions, see `mmref.nn.paths`
    wavelet
        a discrete wavelet that PyWavelets knows, and how often it is applied (wavelet_levels, 1 to 16)
    num_classes
        outputs of the head, 0 to 1,000,000; 0 for no head
    in_chans
        channels of the pictures, 1 to 4096

    Raises
    ------
    ValueProblem
        for anything else, and for ratios that leave no channel to one of the branches

    Examples
    --------
    >>> import mmref
    >>> config = mmref.create_model("mobilemamba_nano").config
    >>> config.widths, config.d_state, config.scan_order
    ((64, 128, 160), 1, 'bidirectional')
    """

    name: str
    img_size: int
    widths: tuple[int, int, int]
    depths: tuple[int, int, int] = (1, 2, 2)
    kernels: tuple[int, int, int] = (7, 5, 3)
    global_ratio: tuple[float, float, float] = (0.8, 0.7, 0.6)
    local_ratio: tuple[float, float, float] = (0.2, 0.2, 0.3)
    ssm_ratio: int = 2
    d_state: int = 1
    scan_order: str | tuple[str, ...] = "bidirectional"
    wavelet: str = "db1"
    wavelet_levels: int = 1
    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self):
        def put(field, value):  # frozen for everyone else
            object.__setattr__(self, field, value)
        if not check_kind("name", self.name, str, "a name"):
            raise ValueProblem("name must be a name, got an empty one")
        for field, low, high in (("img_size", 1, 4096), ("ssm_ratio", 1, 64), ("d_state", 1, 1024),
                                 ("wavelet_levels", 1, 16), ("num_classes", 0, MOST_CLASSES),
                                 ("in_chans", 1, MOST_CHANNELS)):
            put(field, check_integer(field, getattr(self, field), low, high))
        for field, low, high in (("widths", 16, 8192), ("depths", 0, 1000), ("kernels", 1, 63)):
            put(field, check_integers(field, getattr(self, field), 3, low, high))
        for field in ("global_ratio", "local_ratio"):
            put(field, check_numbers(field, getattr(self, field), 3, 0, 1))
        if min(*self.global_ratio, *self.local_ratio) <= 0:
            raise ValueProblem(f"global_ratio and local_ratio must be larger than 0, got {self.global_ratio} and "
                               f"{self.local_ratio}")
        if not all(kernel % 2 for kernel in self.kernels):
            raise ValueProblem(f"kernels must be odd, so that they have a middle, got {self.kernels}")
        try:
            named = directions(self.scan_order)
        except ValueProblem as error:
            raise ValueProblem(f"scan_order: {error}") from error
        put("scan_order", self.scan_order if isinstance(self.scan_order, str) else named)
        check_kind("wavelet", self.wavelet, str, "the name of a discrete wavelet")
        if self.wavelet != "db1":  # which needs no PyWavelets, slow to import
            filter_bank(self.wavelet)
        for width, global_ratio, local_ratio in zip(self.widths, self.global_ratio, self.local_ratio, strict=True):
            if not split_channels(width, global_ratio, local_ratio)[1]:
                raise ValueProblem(f"global_ratio and local_ratio must leave a local channel of {width}, "
                                   f"got {global_ratio} and {local_ratio}")

    def build(self):
        """The network, its parameters not loaded yet."""
        from mmref.models.mobilemamba import MobileMamba
        return MobileMamba(self)


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
