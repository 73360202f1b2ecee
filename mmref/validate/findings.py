"""What a diagnosis says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Diagnosis:
    """A cause that reproduces the candidate: `key` for programs (faults.py), `text` for people, `layer` where it is;
    `left` the error that remains, in units of rounding noise; `explains` how many of the wrong records it accounts for,
    of those that do not follow from the candidate's own values."""

    key: str
    text: str
    layer: str
    left: float
    explains: int = 1
