"""Compiled kernels of mmref: Numba for CPUs here, numba.cuda in `mmref.kernels.cuda`.

Importing this package loads neither; `load_op` does, for the one operation asked for.
"""

from __future__ import annotations

from importlib import import_module

from mmref.errors import MissingBackend

_MODULES = {"selective_scan": "selective_scan", "depthwise_conv2d": "depthwise"}
_INSTALL = {"numba": "pip install numba", "cuda": 'pip install "mmref[cuda]", and an NVIDIA GPU with its driver'}


def load_op(name: str, backend: str):
    """The compiled twin of a reference operation; MissingBackend says what to install where it cannot run."""
    module = f"mmref.kernels.{'cuda.' if backend == 'cuda' else ''}{_MODULES[name]}"
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        message = f"backend {backend!r} cannot run {name}: {error}; it needs: {_INSTALL[backend]}"
        raise MissingBackend(message) from error
