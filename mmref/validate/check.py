"""A callable against the network, on inputs that break ports: failures are shrunk to the smallest input.

Hypothesis draws shapes, batch sizes, ranges and seeds; NumPy draws the values. It is an extra:
`pip install hypothesis`.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmref.arguments import check_callable, check_choice, check_integer, check_integers, check_kind, check_number
from mmref.errors import MissingBackend, ValueProblem
from mmref.models.network import check_numpy_model
from mmref.validate.trace import largest

LIMIT = 64.0  # units of rounding noise


@dataclass
class Failure:
    """The smallest input found on which the callable and the network differ."""

    batch: int
    height: int
    width: int
    fill: str
    magnitude: float
    seed: int
    reason: str

    def input(self, channels: int = 3) -> np.ndarray:
        return make_input((self.batch, channels, self.height, self.width), self.fill, self.magnitude, self.seed)


def load_callable(name: str):
    """The object `module:callable` names, the working folder importable. Raises ValueProblem."""
    module, _, attribute = check_kind("CALLABLE", name, str, "text that reads module:callable").partition(":")
    if not module or not attribute:
        raise ValueProblem(f"CALLABLE must read module:callable, got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may fail in any way when it is imported
        raise ValueProblem(f"{name}: cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueProblem(f"{name}: must be callable, got {type(found).__name__}")
    return found


def make_input(shape, fill, magnitude, seed) -> np.ndarray:
    """float32 (B, 3, H, W): "noise", "constant" (one value a sample), "spikes" (zeros with a few large values).
    Raises ValueProblem."""
    shape = check_integers("shape", shape, 4, 0)
    check_choice("fill", fill, ("noise", "constant", "spikes"))
    magnitude, seed = check_number("magnitude", magnitude), check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    if fill == "noise":
        values = rng.standard_normal(shape)
    elif fill == "constant":
        values = np.broadcast_to(rng.standard_normal((shape[0], 1, 1, 1)), shape)
    else:
        values = rng.standard_normal(shape) * (rng.random(shape) < 0.02) * 20
    return (values * magnitude).astype(np.float32)


def check(function, model, examples: int = 60, max_side: int = 96, max_batch: int = 4,
          fixed_shape: tuple[int, int] | None = None) -> tuple[Failure | None, int]:
    """(smallest failure or None, examples tried) of `function(x float32 (B, C, H, W)) -> (B, classes)`.

    The function passes where its result has the network's shape, is finite and lies within LIMIT units of
    float32's rounding, measured for every input. `fixed_shape` (H, W) is for graphs of one size. Raises MissingBackend
    without hypothesis, ValueProblem for arguments out of range."""
    check_callable("function", function, "a function x (B, 3, H, W) -> (B, classes)")
    check_numpy_model(model)
    examples, max_side = check_integer("examples", examples, 1), check_integer("max_side", max_side, 1)
    max_batch = check_integer("max_batch", max_batch, 1)
    if fixed_shape is not None:
        fixed_shape = check_integers("fixed_shape", fixed_shape, 2, 1)
    try:
        from hypothesis import HealthCheck, Phase, find, settings
        from hypothesis import strategies as st
        from hypothesis.errors import NoSuchExample
    except ImportError as error:
        raise MissingBackend("mmref check needs hypothesis, which is not installed: pip install hypothesis") from error
    exact, single, tried = model.astype(np.float64), model.astype(np.float32), 0
    if not isinstance(single(np.zeros((1, model.config.in_chans, 1, 1), np.float32)), np.ndarray):
        raise ValueProblem(f"model must be a network with one result, and {model.config.name} gives several maps: "
                           f"mmref trace and mmref compare look at them")
    side = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 63, 64, 65]), st.integers(1, max_side))
    side = side.filter(lambda n: n <= max_side)
    heights, widths = (side, side) if fixed_shape is None else map(st.just, fixed_shape)

    def one_of(*values):  # st.sampled_from, derandomised, may leave one of four out for all of 60 examples
        return st.integers(0, 1023).map(lambda n: values[n % len(values)])
    cases = st.tuples(st.integers(1, max_batch), heights, widths, one_of("noise", "constant", "spikes"),
                      one_of(1.0, 30.0, 0.0, 1e-3), st.integers(0, 99))
    seen = {}

    def fails(case):
        nonlocal tried
        if case not in seen:
            tried += 1
            shape = (case[0], model.config.in_chans, *case[1:3])
            seen[case] = reason(function, exact, single, make_input(shape, *case[3:]))
        return seen[case] is not None
    try:
        smallest = find(cases, fails, settings=settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)))
    except NoSuchExample:
        return None, tried
    return Failure(*smallest, seen[smallest]), tried


def reason(function, exact, single, x) -> str | None:
    """Why the function's result on x is wrong; None where it is right."""
    given = x.copy()
    try:
        got = np.asarray(function(given))
    except Exception as error:  # whatever somebody's function raises is the finding
        return f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not np.array_equal(given, x):
        return "changed its input"
    truth = exact(x.astype(np.float64))
    if got.shape != truth.shape:
        return f"gave shape {got.shape}, expected {truth.shape}"
    if got.dtype.kind != "f" or not np.isfinite(got).all():
        return f"gave NaN, infinity or no floats ({got.dtype})"
    noise = max(largest(single(x) - truth), np.finfo(np.float32).eps * largest(truth))
    error = largest(got - truth)
    if error <= LIMIT * noise:
        return None
    worst = int(np.abs(got - truth).max(axis=1).argmax())
    return (f"off by {error:.3g} ({error / max(noise, 1e-300):.3g} units of float32 rounding), most in sample {worst} "
            f"of {len(x)}")
