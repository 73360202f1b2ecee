"""A network's parameters with batch norms folded, one block at a time.

Folding a whole network at once would double it in memory just when it is being packed, which doubles it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mmref.models.mobilemamba import MobileMamba


class FoldedParameters(Mapping):
    """`model.fold_batchnorm().state_dict()`, but each block is folded when asked for, and only the last one kept."""

    def __init__(self, model: MobileMamba):
        self.model = model
        self._group, self._arrays = "", {}

    def __getitem__(self, name: str) -> np.ndarray:
        """By checkpoint name, as in upstream's folded checkpoints."""
        group = "head" if name.startswith("head.") else ".".join(name.split(".")[:2])  # "head", "blocks1.0", ...
        if group != self._group:
            layer = self.model
            for attribute in group.split("."):
                layer = getattr(layer, attribute)
            folded = layer.fold_batchnorm()
            self._arrays = {f"{group}.{path}": getattr(inner, attribute)
                            for path, inner, attribute in folded.named_parameters()}
            self._group = group
        return self._arrays[name]

    def forget(self) -> None:
        """Let go of the block kept."""
        self._group, self._arrays = "", {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.model.fold_batchnorm().state_dict())

    def __len__(self) -> int:
        return len(list(iter(self)))
