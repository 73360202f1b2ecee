"""Compiled kernels of mmref, in Numba.

Importing this package loads no compiler; `load_op` does, for the one operation asked for.
"""

from __future__ import annotations

from importlib import import_module

from mmref.errors import MissingBackend

_MODULES = {("selective_scan", "numba"): "selective_scan", ("depthwise_conv2d", "numba"): "depthwise",
            ("nms", "numba"): "nms", ("roi_align", "numba"): "roi_align",
            ("selective_scan", "cuda"): "cuda.ops", ("depthwise_conv2d", "cuda"): "cuda.ops"}


def load_op(name: str, backend: str):
    """The compiled twin of a reference operation; MissingBackend says what to install where it cannot run."""
    try:
        return getattr(import_module(f"mmref.kernels.{_MODULES[name, backend]}"), name)
    except MissingBackend:
        raise
    except ImportError as error:
        remedy = {"numba": "numba", "cuda": '"mmref[cuda]"'}[backend]
        raise MissingBackend(f"backend {backend!r} cannot run {name}: {error}; pip install {remedy}") from error
