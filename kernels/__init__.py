"""Compiled kernels of mmref, in Numba.

Importing this package loads no compiler; `load_op` does, for the one operation asked for.
"""

from __future__ import annotations

from importlib import import_module

from mmref.errors import MissingBackend

_MODULES = {"selective_scan": "selective_scan", "depthwise_conv2d": "depthwise"}


def load_op(name: str, backend: str):
    """The compiled twin of a reference operation; MissingBackend says what to install where it cannot run."""
    try:
        return getattr(import_module(f"mmref.kernels.{_MODULES[name]}"), name)
    except ImportError as error:
        raise MissingBackend(f"backend {backend!r} cannot run {name}: {error}; pip install numba") from error
