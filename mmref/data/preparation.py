"""What the descriptions of a picture's preparation share: `Transform`, `KeepRatio` and `Frame` are built on it."""

from __future__ import annotations

from dataclasses import asdict, fields

from mmref.arguments import check_numbers
from mmref.errors import ValueProblem

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_GREY = ((0.449,), (0.226,))  # mean and std of networks with one input channel: the averages of the three
_FARTHEST = 1e6  # of a mean and a std, and one over it, from 0: no picture needs more


class Preparation:
    """Base of frozen dataclasses with `mean` and `std` per channel, in 0..1: plain values out and in."""

    needed = None  # what a file's description must have; None for all
    later = ()     # settings that files did not have at first, each with the value they meant: ((name, value), ...)

    @property
    def channels(self) -> int:
        """Of the network's input: 3, or 1 for grey."""
        return len(self.mean)

    def check_mean_and_std(self) -> None:
        """Make `mean` and `std` tuples of three numbers, or of one for grey. Raises ValueProblem."""
        grey = all(isinstance(values, (list, tuple)) and len(values) == 1 for values in (self.mean, self.std))
        for name, low in (("mean", -_FARTHEST), ("std", 1 / _FARTHEST)):  # the same numbers in float32
            numbers = check_numbers(f"transform: {name}", getattr(self, name), 1 if grey else 3, low, _FARTHEST)
            object.__setattr__(self, name, numbers)

    def to_dict(self) -> dict:
        """Plain values, as kept in a weights file's metadata; `from_dict` reads them back. What files did not have at
        first goes unsaid where it is as it was then."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
                if (key, value) not in self.later}

    @classmethod
    def from_dict(cls, values: dict):
        """The inverse of `to_dict`. Raises ValueProblem for anything else, an unknown key included: a step of the
        transform that is not understood must not be left out."""
        known = [field.name for field in fields(cls)]
        needed = known if cls.needed is None else cls.needed
        if not isinstance(values, dict) or not set(needed) <= set(values) <= set(known):
            others = [name for name in known if name not in needed]
            raise ValueProblem(f"transform must be a dict with {', '.join(needed)}"
                               f"{' and perhaps ' * bool(others)}{', '.join(others)}, got {str(values)[:200]}")
        return cls(**values)
