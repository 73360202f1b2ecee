"""Checks of the arguments of public functions: every one says the argument, what was expected, what was received and
what to do.

Each check returns the plain value (an `int` for a NumPy integer, a `Path` for any path), so that the code behind it
meets one kind of value only. Arrays are compared by type, dtype and shape, never by value: that takes less than a
microsecond, which the layers of a network can afford in every call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mmref.errors import MmrefError, ShapeError, ValueProblem


class Shaped:
    """What has the shape and dtype of an array but no values: it stands for one while a network's text is traced.

    `check_ndarray` and those built on it let it pass; it must have `shape`, `ndim` and `dtype`."""

    __slots__ = ()


MATMULS = "cublas", "cublaslt", "own"  # what multiplies matrices on a GPU: mmref.engine.cuda.products
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_SHOWN = 80  # characters of a value that a message repeats
_MOST = 2 ** 31 - 1  # of an integer without another bound: no count or size is larger, and arithmetic with it is safe


def shown(value) -> str:
    """A value as messages repeat it: its repr on one line, cut where it is long; arrays by type and shape."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{type(value).__name__} of shape {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody's own __repr__, or an integer of more digits than Python prints
        text = f"{type(value).__name__} that cannot be printed"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _bounds(low, high) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" >= {low}"
    return f" <= {high}" if low is None else f" in {low}..{high}"


def check_integer(name: str, value, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int between the bounds (inclusive); NumPy integers are integers, booleans, floats and text are
    not. Without `high`, 2**31 - 1 is the most. Raises ValueProblem."""
    if type(value) is int or isinstance(value, np.integer) or (isinstance(value, int) and not isinstance(value, bool)):
        whole = int(value)
        if whole > _MOST and high is None:
            high = _MOST
        if (low is None or whole >= low) and (high is None or whole <= high):
            return whole
    raise ValueProblem(f"{name} must be an integer{_bounds(low, high)}, got {shown(value)}{_advice(value, low, high)}")


def _advice(value, low, high) -> str:
    """": write 2" for 2.0 and "2", if 2 would do."""
    try:
        whole = int(float(value)) if isinstance(value, (str, float, np.floating)) else None
    except (ValueError, OverflowError):
        return ""
    fits = whole is not None and whole == float(value) and (low is None or whole >= low) and (
        high is None or whole <= high)
    return f": write {whole}" if fits else ""


def check_integers(name: str, values, count: int | None = None, low: int | None = None,
                   high: int | None = None) -> tuple[int, ...]:
    """`count` integers (None: any number of them), each as `check_integer` wants it, as a tuple. Raises
    ValueProblem."""
    values = _several(name, values, count, "integers")
    return tuple(check_integer(f"{name}[{i}]", value, low, high) for i, value in enumerate(values))


def check_number(name: str, value, low: float | None = None, high: float | None = None) -> float:
    """`value` as a finite float between the bounds (inclusive); Python's and NumPy's numbers are taken, booleans are
    not. Raises ValueProblem."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if np.isfinite(number) and (low is None or number >= low) and (high is None or number <= high):
            return number
    raise ValueProblem(f"{name} must be a finite number{_bounds(low, high)}, got {shown(value)}")


def check_numbers(name: str, values, count: int, low: float | None = None,
                  high: float | None = None) -> tuple[float, ...]:
    """`count` numbers, each as `check_number` wants it, as a tuple. Raises ValueProblem."""
    values = _several(name, values, count, "numbers")
    return tuple(check_number(f"{name}[{i}]", value, low, high) for i, value in enumerate(values))


def _several(name, values, count, what):
    sequence = isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim == 1)
    if not sequence or count not in (None, len(values)):
        wanted = f"a list of {what}" if count is None else f"{count} {what if count > 1 else what[:-1]}"
        raise ValueProblem(f"{name} must be {wanted}, got {shown(values)}")
    return values


def check_flag(name: str, value) -> bool:
    """True or False; no other value is taken for one of them ("no" and 0 are not). Raises ValueProblem."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueProblem(f"{name} must be True or False, got {shown(value)}")


def check_choice(name: str, value, choices: Iterable[str], error: type[MmrefError] = ValueProblem) -> str:
    """`value`, which must be one of the names `choices`. Raises `error`, whose message lists them."""
    if isinstance(value, str) and value in choices:
        return value
    raise error(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def check_kind(name: str, value, kind, expected: str):
    """`value`, which must be an instance of `kind` (a class or several), called `expected`. Raises ValueProblem."""
    if not isinstance(value, kind):
        raise ValueProblem(f"{name} must be {expected}, got {shown(value)}")
    return value


def check_callable(name: str, value, expected: str):
    """`value`, which must be callable as `expected` describes. Raises ValueProblem."""
    if not callable(value):
        raise ValueProblem(f"{name} must be {expected}, got {shown(value)}")
    return value


def check_path(name: str, value, expected: str = "a path (str or pathlib.Path)") -> Path:
    """A str or path object as a Path. Raises ValueProblem for anything else: bytes, an open file, an empty string."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if isinstance(path, str) and path and "\0" not in path:
        return Path(path)
    if isinstance(path, (bytes, bytearray, memoryview)):
        received = f"{type(path).__name__}: os.fsdecode(...) turns a path into a str; contents belong in a file"
    elif hasattr(value, "read"):
        received = "an open file: pass its path"
    elif callable(getattr(value, "state_dict", None)):
        received = f"{type(value).__name__}: pass its state_dict()"
    else:
        received = shown(value)
    raise ValueProblem(f"{name} must be {expected}, got {received}")


def check_weights(weights):
    """None, a file's Path, or a state dict {name: array} as it is. Raises ValueProblem for anything else."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        for name in weights:
            if not isinstance(name, str):
                raise ValueProblem(f"weights must be a state dict {{name: array}}, got the name {shown(name)}")
        return weights
    return check_path("weights", weights, "the path of a .safetensors or .pth file, or a state dict {name: array}")


def check_dtype(name: str, value) -> np.dtype:
    """float32 or float64, in any spelling that NumPy knows, as a dtype. Raises ValueProblem."""
    try:  # NumPy would take None for float64, and an array for its dtype
        dtype = np.dtype(value) if isinstance(value, (str, type, np.dtype)) else None
    except Exception:  # TypeError, ValueError, SyntaxError, by what the value trips over in NumPy
        dtype = None
    if dtype is None or dtype not in FLOATS:  # None == float64, to NumPy
        raise ValueProblem(f"{name} must be float32 or float64, got {shown(value)}")
    return dtype


# ----------------------------------------------------------------------------------------------------- arrays

def check_ndarray(name: str, array, axes: str = "") -> None:
    """A NumPy array, memory-mapped or not. Raises ShapeError for lists, other libraries' arrays, and for masked arrays
    and matrices, whose own rules would be lost on the way. `axes` names the axes, for the message."""
    if type(array) is np.ndarray or isinstance(array, (np.memmap, Shaped)):
        return
    if isinstance(array, np.ma.MaskedArray):
        advice = f"{name}.filled(value) makes one"
    elif hasattr(array, "__cuda_array_interface__"):
        advice = "copy it to the host first"
    else:
        advice = f"np.asarray({name}) makes one"
    wanted = f" ({', '.join(axes.split())})" if axes else ""
    raise ShapeError(f"{name} must be a NumPy array{wanted}, got {type(array).__name__}: {advice}")


def check_rank(name: str, array, axes: str) -> None:
    """Raise ShapeError unless `array` is a NumPy array, of any dtype, with one axis for every word of `axes` ("batch
    channels height width")."""
    check_ndarray(name, array, axes)
    if array.ndim != axes.count(" ") + 1:
        raise ShapeError(f"{name} must be rank {axes.count(' ') + 1} ({', '.join(axes.split())}), "
                         f"got shape {array.shape}")


def check_array(name: str, array, axes: str = "", dtype: np.dtype | None = None) -> None:
    """Raise ShapeError unless `array` is a NumPy array with one axis for every word of `axes` (any rank from 1 where
    there are none) and of `dtype`, that of the first array, or float32 or float64 where none is given."""
    if axes:
        check_rank(name, array, axes)
    else:
        check_ndarray(name, array)
    if not array.ndim:
        raise ShapeError(f"{name} must have at least one axis, got a single number: {name}.reshape(1) has one")
    if dtype is None:
        if array.dtype not in FLOATS:
            raise ShapeError(f"{name} must be float32 or float64, got {array.dtype}: {name}.astype(np.float32) is")
    elif array.dtype != dtype:
        raise ShapeError(f"{name} must be {dtype} like the first array, got {array.dtype} (NumPy would compute in the "
                         f"wider of the two): {name}.astype(np.{dtype}) is")


def check_vector(name: str, array, length: int, dtype: np.dtype) -> None:
    """Raise ShapeError unless `array` is (length,) of `dtype`: NumPy would broadcast (1,) without a word."""
    check_ndarray(name, array)
    if array.shape != (length,):
        raise ShapeError(f"{name} must have shape ({length},), one value per channel, got {array.shape}")
    check_array(name, array, dtype=dtype)
