"""What an operation is: a function of arrays that backends know by name.

A network's text is written in operations (functional.py, wavelet.py, scan_order.py, recurrence.py). Called with arrays
an operation computes. Called with a `Symbol`, which stands for an array that is not there, it only notes that it was
called: so running a network's own text once on symbols yields its graph (mmref.graph.trace), and there is no second
description of any network.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import numpy as np

from mmref.arguments import Shaped
from mmref.errors import ValueProblem

OPERATIONS: dict[str, Callable] = {}  # every operation by name; docs/operations.md lists them


class Symbol(Shaped):
    """Stands for an array while a network's text is traced; mmref.graph.trace derives the one that records.

    What it must have: `shape`, `ndim`, `dtype`; `record(operation, operands, attributes)`, which notes a call and
    returns the symbol of its result; and `inside(layer, *inputs)`, which runs a layer's forward.
    """

    __slots__ = ()


def operation(result_shape: Callable, name: str | None = None, registry: dict = OPERATIONS):
    """Decorator: make a function of arrays an operation.

    result_shape  a function of the same arguments: raises ShapeError or ValueProblem where they do not fit together and
                  returns the shape of the result. It is asked before anything is computed and when symbols are traced;
                  it may look at `shape`, `ndim` and `dtype` of arrays only.
    name          the operation's name, if it is not the function's
    registry      where it is listed by name

    Arrays and symbols are operands, known by their parameters' names (those of a `*parts` by "0", "1", ...); everything
    else is an attribute. The result has the dtype of the first operand. Raises ValueProblem for a name that is taken.
    """
    def decorate(compute):
        parameters = inspect.signature(compute).parameters
        spread = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
        defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}

        @functools.wraps(compute)
        def call(*args, **options):
            args = [_plain(value) for value in args]
            options = {n: _plain(value) for n, value in options.items()}
            symbol = _first_symbol(args, options)
            if symbol is None:
                result_shape(*args, **options)
                return compute(*args, **options)
            names = map(str, range(len(args))) if spread else parameters
            given = defaults | dict(zip(names, args, strict=False)) | options
            if given.pop("backend", "numpy") != "numpy":
                raise ValueProblem(f"backend must be 'numpy' where a network is traced, got {options['backend']!r}")
            operands = {n: value for n, value in given.items() if isinstance(value, (np.ndarray, Symbol))}
            attributes = {n: value for n, value in given.items() if n not in operands and value is not None}
            return symbol.record(call, operands, attributes)

        call.name, call.compute = name or compute.__name__, compute
        call.result_shape, call.spread = result_shape, spread
        known = registry.setdefault(call.name, call)
        if (known.__module__, known.__qualname__) != (call.__module__, call.__qualname__):  # a cell run again is fine
            raise ValueProblem(f"operation {call.name!r} is there already, that of {known.__module__}: choose another "
                               f"name, which backends then know apart")
        registry[call.name] = call
        return call
    return decorate


def _plain(value):
    """NumPy's numbers as Python's: a float64 among float32 arrays would make their result float64, an int8 overflow."""
    return value.item() if isinstance(value, np.generic) else value


def _first_symbol(args, options):
    for value in args:
        if isinstance(value, Symbol):
            return value
    for value in options.values():
        if isinstance(value, Symbol):
            return value
    return None


def apply(operation, operands: dict, attributes: dict, function: Callable | None = None):
    """What the operation computes, or another `function` of the same arguments, on operands and attributes by name."""
    function = function or operation.compute
    return function(*operands.values(), **attributes) if operation.spread else function(**operands, **attributes)
