"""Weights: reading files from anyone safely, converting, and the trained weights that are included."""

from __future__ import annotations

from importlib import import_module

_PUBLIC = {"Checkpoint": "checkpoint", "read_checkpoint": "checkpoint", "convert": "conversion",
           "fetch": "store", "pretrained_path": "store", "write_pth": "pth_writer"}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmref.weights' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"mmref.weights.{_PUBLIC[name]}"), name))
