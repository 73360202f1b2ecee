"""A callable against the network, on inputs that break ports: failures are shrunk to the smallest input.

The size and batch that the network is used with come first, then Hypothesis draws shapes, batch sizes, ranges and
seeds; NumPy draws the values. It is an extra: `pip install hypothesis`. What the callable prints goes to standard
error, and a failure is tried again, first among other inputs, so that a flaky callable is called that.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmref.arguments import check_callable, check_choice, check_integer, check_integers, check_kind, check_number
from mmref.errors import MissingBackend, ValueProblem
from mmref.models.network import check_numpy_model
from mmref.validate.answers import answer_of, wrong

DEPLOYED = 8  # the batch that the network's own size is tried with, beside 1


@dataclass
class Failure:
    """The smallest input found on which the callable and the network differ; `flaky` where it does not differ every
    time."""

    batch: int
    height: int
    width: int
    fill: str
    magnitude: float
    seed: int
    reason: str
    flaky: bool = False

    def input(self, channels: int = 3) -> np.ndarray:
        return make_input((self.batch, channels, self.height, self.width), self.fill, self.magnitude, self.seed)


def load_callable(name: str):
    """The object `module:callable` names, the working folder importable. Raises ValueProblem."""
    module, _, attribute = check_kind("CALLABLE", name, str, "text that reads module:callable").partition(":")
    if not module or not attribute:
        raise ValueProblem(f"CALLABLE must read module:callable, got {name!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way when it is imported
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


def deployed(model, fixed_shape=None, max_batch: int | None = None) -> list[tuple]:
    """The cases that are tried first: the size the network is used with, one picture and a batch of DEPLOYED."""
    size = fixed_shape or (model.config.img_size,) * 2
    batches = dict.fromkeys((1, DEPLOYED if max_batch is None else min(DEPLOYED, max_batch)))
    return [(batch, *size, "noise", 1.0, seed) for seed, batch in enumerate(batches)]


def check(function, model, examples: int = 60, max_side: int = 96, max_batch: int = 4,
          fixed_shape: tuple[int, int] | None = None, own_size: bool = True) -> tuple[Failure | None, int]:
    """(smallest failure or None, examples tried) of `function(x float32 (B, C, H, W)) -> (B, classes)`.

    The function passes where its result has the network's shape, is finite and lies within its limit of
    float32's rounding, measured for every input. `fixed_shape` (H, W) is for graphs of one size; `own_size`: the
    network's own size is tried too, alone and in a batch of DEPLOYED, whatever `max_side` and `max_batch` say. Raises
    MissingBackend without hypothesis, ValueProblem for arguments out of range."""
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
    exact, single = model.astype(np.float64), model.astype(np.float32)
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

    def judge(case):
        return reason(function, exact, single, make_input((case[0], model.config.in_chans, *case[1:3]), *case[3:]))

    def fails(case):
        if case not in seen:
            seen[case] = judge(case)
        return seen[case] is not None
    first = next((case for case in (deployed(model, fixed_shape) if own_size else ()) if fails(case)), None)
    try:
        smallest = find(cases, fails, settings=settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)))
    except NoSuchExample:
        smallest = first
    if smallest is None:
        return None, len(seen)
    return Failure(*smallest, *_again(judge, smallest, seen)), len(seen)


def _again(judge, case, seen) -> tuple[str, bool]:
    """(why a case fails, whether it does not every time): once more, and once more after others that passed."""
    others = [other for other, was in seen.items() if was is None][-2:]
    again = [judge(case)]
    drifted = [judge(other) for other in others]
    again.append(judge(case))
    first = seen[case]
    if all(again) and not any(drifted):
        return first, False
    passed = sum(was is None for was in again)
    words = (f"failed, and passed {passed} of 2 times when it was tried again" if passed else
             "failed, and then inputs failed that had passed")
    return f"flaky: {words} (does it keep state, or draw random numbers?); the failure: {first}", True


def reason(function, exact, single, x) -> str | None:
    """Why the function's result on x is wrong; None where it is right."""
    given = x.copy()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            got = function(given)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever somebody's function raises is the finding, a sys.exit too
        return f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not np.array_equal(given, x):
        return "changed its input"
    try:
        got = answer_of(got)
    except ValueProblem as error:
        return str(error)
    return wrong(got, exact(x.astype(np.float64)), single(x))
