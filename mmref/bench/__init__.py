"""Timing mmref beside other runtimes on this machine: `mmref bench`, or `run_bench` from Python."""

from __future__ import annotations

from importlib import import_module

_PUBLIC = {"run_bench": "measure", "run_sweep": "measure", "run_start": "measure", "Report": "measure",
           "BACKENDS": "backends"}


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmref.bench' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"mmref.bench.{_PUBLIC[name]}"), name))
