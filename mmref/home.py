"""Where mmref keeps what it makes or fetches for later: one rule for weights and compiled kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mmref.errors import ValueProblem

__all__ = ["cache_folder"]


def cache_folder(*variables: str) -> Path:
    """The folder that the first of the environment's `variables` and MMREF_HOME that is set names; else `mmref` in the
    platform's folder for caches (XDG_CACHE_HOME or ~/.cache, ~/Library/Caches, LOCALAPPDATA). It need not exist.

    Raises ValueProblem where that depends on a home folder and there is none: a user without an entry in the system's
    list, a `~name` nobody has."""
    for variable in (*variables, "MMREF_HOME"):
        if os.environ.get(variable):
            return Path(_expanded(os.environ[variable], variable))
    if sys.platform == "win32":
        place = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        place = "~/Library/Caches"
    else:
        place = os.environ.get("XDG_CACHE_HOME", "")
        place = place if os.path.isabs(place) else "~/.cache"  # relative ones are invalid and to be ignored, says XDG
    return Path(_expanded(place, None), "mmref")


def _expanded(path, variable):
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        reason = f"{variable} must be a folder, got {path!r}" if variable else "this user has no home folder"
        raise ValueProblem(f"{reason}: set MMREF_HOME to a folder that mmref may write")
    return expanded
