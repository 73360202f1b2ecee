"""The contestants. Each class runs inside a process of its own (worker.py) and answers three questions there:

    load()               what has to be imported
    __init__(job)        build the network from the job's parameters (or graph)
    prepare(shape)       whatever a shape asks for; returns x -> logits, or all results of a network that has several

All compute in float32 with the same number of threads and the same parameters. Peers get what their users are told
to give them: shapes fixed where they are known, no gradient bookkeeping, one stream, lowest latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this file is read before a contestant's import is timed
    import numpy as np


@dataclass(frozen=True)
class Job:
    """What a worker is asked to run: `parameters` and `graph` are files."""

    backend: str
    model: str
    threads: int
    parameters: str
    graph: str = ""
    unfolded: bool = False

    @property
    def state(self) -> dict[str, np.ndarray]:
        import numpy as np
        with np.load(self.parameters) as file:
            return dict(file)


class NumPy:
    package, can_unfold = "numpy", True

    @staticmethod
    def load():
        import mmref.models.create  # noqa: F401

    def __init__(self, job):
        from mmref.models.create import create_model
        model = create_model(job.model, job.state)
        self.run = model if job.unfolded else model.fold_batchnorm()

    def prepare(self, shape):
        return self.run


class Numba:
    package, can_unfold = "numba", False

    @staticmethod
    def load():
        import mmref.engine
        import mmref.models.create
        _ = mmref.engine.CompiledModel

    def __init__(self, job):
        from mmref.models.create import create_model
        self.run = create_model(job.model, job.state, backend="numba", threads=job.threads)

    def prepare(self, shape):
        return self.run


def torch_module(name: str, state: dict[str, np.ndarray]):
    """The network of that name in PyTorch, ready to be run; ValueProblem for one that nobody has written there."""
    import torch

    from mmref.bench import torch_localvim, torch_network
    from mmref.errors import ValueProblem
    if name in torch_localvim.VARIANTS:
        model = torch_localvim.create(name, num_classes=len(state["head.bias"]))
    elif name.startswith("mobilemamba_"):
        model = torch_network.create(name.removeprefix("mobilemamba_"), num_classes=len(state["head.l.bias"]))
    else:
        raise ValueProblem(f"model must be a MobileMamba or a LocalVim to run in PyTorch here, got {name}")
    # all but batch counters, which inference does not use
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()}, strict=False)
    return model.eval()


class TorchEager:
    """The network in PyTorch: torch_network.py, its scan a loop over the steps as in the published CPU path, or
    torch_localvim.py, its scan in whichever form is the faster for the shape."""

    package, can_unfold = "torch", True

    @staticmethod
    def load():
        import torch  # noqa: F401

    def __init__(self, job):
        import torch

        from mmref.bench import torch_network
        torch.set_num_threads(job.threads)
        torch.backends.mkldnn.enabled = True
        model = torch_module(job.model, job.state)
        self.module = model if job.unfolded else torch_network.fold_batchnorm(model)

    def prepare(self, shape):
        from mmref.bench import torch_localvim
        if isinstance(self.module, torch_localvim.LocalVim):
            torch_localvim.use_scan(self.module, self._faster(torch_localvim, shape))
        return self._runner(self.module)

    def _faster(self, torch_localvim, shape):
        """The name of the form of the recurrence that takes less processor time for this shape."""
        import time

        import numpy as np
        x, seconds = np.zeros(shape, np.float32), {name: [] for name in torch_localvim.SCANS}
        for name in 3 * list(seconds):  # in turn; the first of each wakes what sleeps
            run = self._runner(torch_localvim.use_scan(self.module, name))
            start = time.process_time()
            run(x)
            seconds[name].append(time.process_time() - start)
        return min(seconds, key=lambda name: min(seconds[name]))

    def _runner(self, module):
        import torch

        def run(x):
            with torch.inference_mode():
                return module(torch.from_numpy(x)).numpy()
        return run


class TorchCompile(TorchEager):
    """The same through `torch.compile`: the loop is unrolled, one long kernel sequence for each shape."""

    def prepare(self, shape):
        import torch
        return self._runner(torch.compile(self.module, dynamic=False))


class OnnxRuntime:
    package, can_unfold = "onnxruntime", False

    @staticmethod
    def load():
        import onnxruntime  # noqa: F401

    def __init__(self, job):
        self.job = job

    def prepare(self, shape):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.job.threads, 1
        for name, size in zip(("batch", None, "height", "width"), shape, strict=True):
            if name:
                options.add_free_dimension_override_by_name(name, size)
        session = onnxruntime.InferenceSession(self.job.graph, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"input": x})


class OpenVino:
    package, can_unfold = "openvino", False

    @staticmethod
    def load():
        import openvino  # noqa: F401

    def __init__(self, job):
        import openvino
        self.core, self.job = openvino.Core(), job

    def prepare(self, shape):
        model = self.core.read_model(self.job.graph)
        model.reshape(list(shape))
        compiled = self.core.compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": self.job.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32"})  # without the last, bfloat16 on processors that have it
        return lambda x: list(compiled(x).values())


class Calibration:
    """No network: float32 multiply-adds a second of this machine, now, with these threads."""

    package, can_unfold = "numpy", False

    @staticmethod
    def load():
        pass

    def __init__(self, job):
        self.rate, self.method, self.is_peak = calibration(job.threads)


def calibration(threads: int):
    """(callable -> multiply-adds a second, how they are measured, whether nothing can be faster)."""
    method = "float32 np.matmul, 1024 x 1024 (less than the vector units can do)"
    if find_spec("mmref.kernels.calibrate") and find_spec("numba"):
        try:
            from mmref.kernels.calibrate import multiply_add_rate
            multiply_add_rate(threads)  # compiles
        except Exception as error:  # no reason to measure nothing, but one to say so
            return _matmul_rate, f"{method}; mmref.kernels.calibrate failed: {error}", False
        return lambda: 0.5e9 * multiply_add_rate(threads), "multiply-adds in registers (mmref.kernels.calibrate)", True
    return _matmul_rate, method, False


def _matmul_rate():
    import time

    import numpy as np
    a = np.ones((1024, 1024), np.float32)
    out, best = np.empty_like(a), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - start)
    return 1024 ** 3 / best


BACKENDS = {"numpy": NumPy, "numba": Numba, "torch-eager": TorchEager, "torch-compile": TorchCompile,
            "onnxruntime": OnnxRuntime, "openvino": OpenVino}
PIP = {"torch": 'pip install "mmref[test]"', "onnxruntime": 'pip install "mmref[onnx]"',
       "openvino": 'pip install "mmref[openvino]"', "numba": "pip install numba", "onnx": 'pip install "mmref[onnx]"'}


def absent(backend: str) -> str | None:
    """Why a backend cannot be measured here, None where it can; imports nothing heavy."""
    kind = BACKENDS[backend]
    needed = [kind.package] + ["onnx"] * (kind in (OnnxRuntime, OpenVino))
    for package in needed:
        if not find_spec(package):
            return f"{package} is not installed: {PIP[package]}"
    return None
