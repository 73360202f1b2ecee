"""What mmref raises. Every message says which argument (or file and record), what was expected,
what was received."""

from __future__ import annotations

from mmref.text import printable


class MmrefError(Exception):
    """Base of all errors that come from the user's input, files or installation, never from a bug in mmref.

    The command line prints its message on one line and exits with status 2. A message names files and records, which
    may be called anything: what a terminal would obey or cannot show is escaped in it (`mmref.text.printable`)."""

    def __str__(self) -> str:
        return printable(self.args[0] if len(self.args) == 1 else super().__str__())  # KeyError's own would be a repr


class ShapeError(MmrefError, ValueError):
    """An array of the wrong rank, shape or dtype."""


class ValueProblem(MmrefError, ValueError):
    """An argument outside its domain: an unknown model name, NaN in the input, a negative size."""


class CheckpointError(MmrefError):
    """A weights file that cannot be trusted or read."""


class ParameterMismatch(CheckpointError, KeyError):
    """Weights that do not fit the model: missing, unexpected or wrongly shaped parameters."""


class PictureError(MmrefError):
    """A picture file that cannot be decoded safely."""


class MissingBackend(MmrefError, ImportError):
    """An optional package or device that is not there; the message says what to install."""


class NotTraceable(MmrefError, TypeError):
    """Something in a network's text that a backend other than NumPy cannot take; the message names the layer."""


class OutOfDeviceMemory(MmrefError, MemoryError):
    """A batch too large for the GPU's memory; the message names one that would fit."""
