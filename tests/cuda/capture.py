"""A stand-in for a CUDA graph that is as strict as a stream capture.

While it captures, everything that a capture refuses fails: memory allocated or uploaded, anything copied to the host or
waited for, a kernel that is not compiled yet, and in the stand-in for cuBLAS (blas.py) everything but products.
"""

from __future__ import annotations

import contextlib
from unittest.mock import patch

from mmref.engine.cuda import device
from mmref.kernels.cuda.driver import cuda


class Refused(AssertionError):
    """What a capture refuses."""


def _refuse(what):
    def refused(*_, **__):
        raise Refused(f"{what} while a stream is captured")
    return refused


@contextlib.contextmanager
def capturing(stand_in=None):
    """As if a stream were being captured."""
    array = type(cuda.device_array(1))
    with contextlib.ExitStack() as patches:
        for where, name in ((device, "allocate"), (device, "load"), (device, "wait_for_uploads"),
                            (cuda, "device_array"), (cuda, "to_device"), (cuda, "synchronize"), (cuda, "stream"),
                            (cuda.stream, "synchronize"), (array, "copy_to_host"), (array, "copy_to_device")):
            patches.enter_context(patch.object(where, name, _refuse(name)))
        if stand_in is not None:
            stand_in.capturing = True
        try:
            yield
        finally:
            if stand_in is not None:
                stand_in.capturing = False
                assert not stand_in.refused and not stand_in.errors, (stand_in.refused, stand_in.errors)


def graphs(stand_in=None):
    """(class in place of device.Graph, list of those made)."""
    made = []

    class Graph:
        def __init__(self, stream, launch):
            self.plan, self.captured, self.replays = launch.__self__, launch.__self__.given, 0
            with capturing(stand_in):
                launch()
            made.append(self)

        def launch(self):
            self.replays, self.plan.given = self.replays + 1, self.captured
            self.plan.launch()
    return Graph, made
