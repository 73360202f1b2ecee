"""A plan's launches one by one beside their NumPy twins: which kernel errs, and in which layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.engine.cuda import device
from mmref.kernels.cuda import twins


@dataclass
class Checked:
    """All launches of one kernel. `error`: largest difference to the twin over the twin's largest value, in `layer`."""

    launches: int = 0
    error: float = -1.0
    layer: str = ""


def check_launches(plan, *given) -> dict[str, Checked]:
    """Run a plan on device arrays of its inputs' shapes, every launch on what the ones before it left, and compare each
    with its twin.

    Slow: every argument is copied to the host. Returns {kernel: Checked}, NaN as an infinite error."""
    found: dict[str, Checked] = {}
    plan.given = list(given)
    device.wait_for_uploads()  # of what is given, perhaps: the plan's stream does not wait for the default one
    for operation, launch in zip(plan.operations, plan.launches, strict=True):
        arguments = plan.filled(launch.arguments)
        result = "out" if "out" in arguments else "x"  # in place
        expected = {name: to_host(value, plan.stream) for name, value in arguments.items()}
        with np.errstate(all="ignore"):
            twins.LAUNCHERS[launch.kernel](**expected)
        for call in launch.calls:
            call()
        got, expected = to_host(arguments[result], plan.stream), expected[result]
        scale = max(float(np.abs(expected).max()), 1e-30)
        error = float(np.abs(got.astype(np.float64) - expected).max()) / scale
        checked = found.setdefault(launch.kernel, Checked())
        checked.launches += 1
        if not error <= checked.error:
            checked.error, checked.layer = error if np.isfinite(error) else np.inf, operation.layer
    plan.given = None
    return found


def to_host(value, stream):
    """A copy on the host of what lies on the device; anything else as it is."""
    if not getattr(value, "__cuda_ndarray__", False):
        return value
    copy = value.copy_to_host(stream=stream)
    stream.synchronize()
    return copy
