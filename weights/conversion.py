"""Turn a checkpoint into a safetensors file, which many programs read and which cannot hide code."""

from __future__ import annotations

import os
from collections.abc import Callable

from mmref.arguments import check_path
from mmref.errors import CheckpointError
from mmref.weights import safetensors_file
from mmref.weights.checkpoint import Checkpoint, read_checkpoint


def convert(source, target, *, prefer: str = "auto", strict: bool = False, allow_nonfinite: bool = False,
            metadata: dict[str, str] | None = None,
            check: Callable[[Checkpoint], None] | None = None) -> Checkpoint:
    """Read `source` (see `read_checkpoint`) and write its tensors to `target`, a .safetensors file.

    The file appears whole or not at all, is read back and compared bit for bit first, and carries the source's
    metadata with `metadata` added. `check` sees what was read before anything is written, and may raise. Returns what
    was read. Raises CheckpointError; OSError where it cannot be written.
    """
    source, target = check_path("source", source), check_path("target", target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"target must end in .safetensors, got {target}")
    if target.exists() and os.path.exists(source) and os.path.samefile(source, target):
        raise CheckpointError(f"target must be another file than the source, got {target} for both")
    checkpoint = read_checkpoint(source, prefer=prefer, strict=strict, allow_nonfinite=allow_nonfinite)
    if check is not None:
        check(checkpoint)
    safetensors_file.write(target, checkpoint.tensors, {**checkpoint.metadata, **(metadata or {})} or None)
    return checkpoint
