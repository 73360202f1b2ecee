"""The process in which sections of the GPU report run: `python -m mmref.bench.gpu_worker JOB`, JSON lines out.

    {"begin": section}                        a section starts
    {"path": [section, ...], "value": ...}    something that was found out
    {"error": section, "message": "..."}      a section that failed; the process ends, a new one goes on with the next
    {"end": section}                          a section is done

The parent (gpu.py) puts them together and stops a process that takes too long; what it said until then counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial

import numpy as np

LIMIT = 1e-5          # largest error over the largest value, of logits and of every kernel
PICTURES = 8          # different ones, repeated to a batch
TINY = dict(widths=(24, 24, 24), depths=(1, 1, 1), num_classes=5)  # a network for the simulator


@dataclass
class Job:
    """variants: {label: {"name": variant, "changes": {...}, "side": pixels}}. `seconds`: how long a case is timed."""

    sections: list[str]
    variants: dict[str, dict]
    batches: list[int]
    kernel_cases: list[list]               # (label, batch) whose kernels are timed
    torch_cases: list[list]                # (label, batch, mode), most wanted first
    seconds: float = 0.5
    matmul: str = "cublas"
    limit: float = 600.0                   # seconds of this process

    def __post_init__(self):
        self.started = time.perf_counter()

    @property
    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.started)


@dataclass
class Network:
    """One variant, batch norms settled, its float64 twin and its device model made when asked for."""

    label: str
    name: str
    changes: dict
    side: int
    matmul: str
    logits: dict = field(default_factory=dict)

    @cached_property
    def numpy(self):
        from mmref.bench.measure import settle_batch_norms, spread_rates
        from mmref.models.create import create_model
        model = create_model(self.name, **self.changes)
        settle_batch_norms(model)
        spread_rates(model)
        return model

    @cached_property
    def device(self):
        from mmref.engine.cuda import DeviceModel
        return DeviceModel(self.numpy, matmul=self.matmul)

    def forget(self):
        """Give device memory back."""
        self.__dict__.pop("device", None)

    def pictures(self, batch, side=None):
        """Standard normal pictures; from the ninth on they repeat."""
        side = side or self.side
        few = np.random.default_rng(0).standard_normal((min(batch, PICTURES), 3, side, side), np.float32)
        return few if batch <= PICTURES else few[np.arange(batch) % PICTURES]


class Worker:
    """One method a section; `say(*path, value)` reports."""

    def __init__(self, job: Job, say):
        self.job, self.say = job, say
        self.networks = {label: Network(label, settings["name"], settings["changes"], settings["side"], job.matmul)
                         for label, settings in job.variants.items()}

    # ---------------------------------------------------------------------------- our engine

    def device(self):
        """The card and what it is made to do by a plain copy."""
        from mmref.kernels.cuda.driver import SIMULATOR, cuda, device
        for name, value in asdict(device()).items():
            self.say("device", name, value)
        self.say("device", "driver", driver_version())
        copy = copy_bandwidth(1 << 12 if SIMULATOR else 1 << 30)
        self.say("device", "copy_gb_per_s", copy)
        if not SIMULATOR:
            current = cuda.get_current_device()
            nominal = 2e-6 * current.MEMORY_CLOCK_RATE * current.GLOBAL_MEMORY_BUS_WIDTH / 8  # kHz, bits, two a cycle
            self.say("device", "nominal_gb_per_s", nominal)

    def correctness(self):
        """Logits of every variant beside the NumPy model in float64."""
        for label, network in self.each_network():
            x = network.pictures(2)
            expected = network.numpy.astype(np.float64)(x.astype(np.float64))
            error = relative(network.device(x), expected)
            self.say("correctness", label, {"batch": 2, "side": network.side, "error": error, "limit": LIMIT,
                                            "passed": bool(error <= LIMIT)})

    def kernels_checked(self):
        """Every launch of every variant beside its NumPy twin, and the operations that the network does not use."""
        from mmref.engine.cuda.check import Checked, check_launches
        from mmref.kernels.cuda.driver import SIMULATOR, cuda
        worst: dict[str, Checked] = {}
        for label, network in self.each_network():
            x = network.pictures(2)
            for kernel, found in check_launches(network.device.plan(x.shape), cuda.to_device(x)).items():
                best = worst.setdefault(kernel, Checked())
                best.launches += found.launches
                if found.error > best.error:
                    best.error, best.layer = found.error, f"{label} {found.layer}"
        for kernel, found in worst.items():
            self.say("kernels_checked", kernel, asdict(found) | {"limit": LIMIT, "passed": bool(found.error <= LIMIT)})
        for name, error in reference_operations(small=SIMULATOR).items():
            self.say("kernels_checked", name, {"launches": 1, "error": error, "limit": LIMIT,
                                               "passed": bool(error <= LIMIT)})
        if self.job.matmul == "cublas":  # our own product has not run yet
            from mmref.engine.cuda import DeviceModel
            label, network = next(self.each_network())
            x = network.pictures(2)
            own = DeviceModel(network.numpy, matmul="own")
            found = check_launches(own.plan(x.shape), cuda.to_device(x))["matmul"]
            self.say("kernels_checked", "matmul (own kernel)", asdict(found) | {
                "limit": LIMIT, "passed": bool(found.error <= LIMIT),
                "same_bits_as_cublas": same(own(x), network.device(x))})

    def bits(self):
        """Whether results are the same from run to run, as a graph, and in any batch."""
        for label, network in self.each_network():
            model, few = network.device, network.pictures(3 if can_graph() else 2)
            model.graph = False
            first = model(few)
            found = {"two_runs": same(first, model(few)), "alone_as_in_batch": same(first[1:2], model(few[1:2]))}
            largest = max(self.job.batches)
            if largest > PICTURES:
                many = model(network.pictures(largest))
                found["places_in_largest_batch"] = same(many, many[np.arange(largest) % PICTURES])
                found["few_as_in_largest_batch"] = same(many[:3], first)
            if can_graph():
                model.graph = True
                found["graph_as_eager"] = same(first, model(few)) and same(first, model(few))
            self.say("bits", label, found)
            network.forget()

    def throughput(self):
        """Forwards of pictures that lie on the device, each waited for."""
        from mmref.kernels.cuda.driver import cuda
        for label, network in self.each_network():
            for batch in self.job.batches:
                if self.job.left < 5:
                    self.say("throughput", label, str(batch), {"skipped": "no time left"})
                    continue
                try:
                    x = cuda.to_device(network.pictures(batch))
                    for mode in ("graph", "eager"):
                        if mode == "graph" and not can_graph():
                            continue
                        network.device.graph = mode == "graph"
                        seconds = time_calls(partial(network.device, x), cuda.synchronize, self.job.seconds)
                        self.say("throughput", label, str(batch), mode, rate(seconds, batch))
                except MemoryError as error:
                    self.say("throughput", label, str(batch), {"skipped": str(error)})
            products = network.device._products
            self.say("matrix_products", label, [describe_choice(key, rows, calls)
                                                for key, by_rows in products.choices.items()
                                                for rows, calls in by_rows.items()])
            network.forget()

    def kernels(self):
        """Time and data of each kernel within a forward."""
        from mmref.kernels.cuda.driver import cuda
        for label, batch in self.job.kernel_cases:
            network = self.networks[label]
            x = cuda.to_device(network.pictures(batch))
            plan = network.device.plan(x.shape)
            times = time_launches(plan, x)
            rows: dict[str, dict] = {}
            for operation, launch, seconds in zip(plan.operations, plan.launches, times, strict=True):
                row = rows.setdefault(launch.kernel, {"launches": 0, "ms": 0.0, "mib": 0.0, "gmac": 0.0})
                row["launches"] += 1
                row["ms"] += 1e3 * seconds
                row["mib"] += moved(plan, launch, x) / 2**20
                row["gmac"] += operation.macs / 1e9
            for kernel, row in rows.items():
                self.say("kernels", f"{label}, batch {batch}", kernel, row)
            network.forget()

    def sanitize(self):
        """What the memory checker watches: a small forward by our kernels only, and the operations on host arrays."""
        from mmref.engine.cuda import DeviceModel
        network = next(iter(self.networks.values()))
        x = network.pictures(2, side=65)
        error = relative(DeviceModel(network.numpy, matmul="own")(x), network.numpy(x))
        self.say("sanitize", {"error": error, **reference_operations(small=False)})

    def each_network(self):
        """(label, network), as long as there is time."""
        for label, network in self.networks.items():
            if self.job.left < 5:
                self.say("skipped", label, "no time left")
                continue
            yield label, network

    # ------------------------------------------------------------------------------ PyTorch

    def torch(self):
        """The network in PyTorch on the same card; float32 throughout, batch norms folded."""
        import torch
        if not torch.cuda.is_available():
            self.say("torch", {"skipped": f"PyTorch {torch.__version__} finds no CUDA device"})
            return
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.say("torch", "version", torch.__version__)
        for label, batch, mode in self.job.torch_cases:
            if self.job.left < 3:
                self.say("torch", label, str(batch), mode, {"skipped": "no time left"})
                continue
            try:
                self.say("torch", label, str(batch), mode, self.torch_case(torch, label, batch, mode))
            except Exception as error:  # one form of many: the others go on
                self.say("torch", label, str(batch), mode, {"skipped": words(error)})
            torch.cuda.empty_cache()

    def torch_case(self, torch, label, batch, mode):
        from mmref.bench import torch_localvim, torch_network
        from mmref.bench.backends import torch_module
        network = self.networks[label]
        model = torch_network.fold_batchnorm(torch_module(network.name, network.numpy.state_dict()))
        torch_network.use_scan(model, TORCH_SCANS[mode])
        torch_localvim.use_scan(model, "all")  # few and large operations: what a GPU wants
        x = torch.from_numpy(network.pictures(batch))
        if "channels-last" in mode:
            model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        model, x = model.cuda(), x.cuda()
        if mode.startswith("compile"):
            torch.compiler.reset()
            model = torch.compile(model, dynamic=False, mode="reduce-overhead" if "graphs" in mode else None)
        with torch.inference_mode():
            start = time.perf_counter()
            first = model(x)
            torch.cuda.synchronize()
            compiled = time.perf_counter() - start
            first = first[:2].cpu().numpy()
            seconds = time_calls(partial(model, x), torch.cuda.synchronize, self.job.seconds)
        if label not in network.logits:
            network.logits[label] = network.numpy(network.pictures(2)[:min(batch, 2)])
        expected = network.logits[label][:len(first)]
        return rate(seconds, batch) | {"first_s": compiled, "error": relative(first[:len(expected)], expected)}


TORCH_SCANS = {"eager": "doubling", "eager channels-last": "doubling", "compile": "associative",
               "compile channels-last": "associative", "compile graphs": "associative", "mamba-ssm": "mamba-ssm"}


# ------------------------------------------------------------------------------------- measuring

def can_graph() -> bool:
    from mmref.kernels.cuda.driver import SIMULATOR
    return not SIMULATOR


def relative(got, expected) -> float:
    """Largest difference over the largest value expected; infinite for NaN."""
    error = float(np.abs(np.asarray(got, np.float64) - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    return error if np.isfinite(error) else float("inf")


def same(a, b) -> bool:
    return bool(np.array_equal(np.asarray(a).view(np.int32), np.asarray(b).view(np.int32)))


def time_calls(call, wait, seconds) -> list[float]:
    """Seconds of each of some calls, waited for; after three that do not count, where time matters at all."""
    for _ in range(3 if seconds else 0):
        call()
    wait()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return times


def rate(seconds, batch) -> dict:
    median = float(np.median(seconds))
    return {"ms": 1e3 * median, "images_per_s": batch / median, "forwards": len(seconds)}


def copy_bandwidth(size) -> float:
    """GB/s, read and written, of a copy of `size` bytes from the device to itself: the median of ten."""
    from mmref.kernels.cuda.driver import cuda
    a, b = (cuda.to_device(np.zeros(size // 4, np.float32)) for _ in range(2))
    stream = cuda.stream()
    times = time_calls(lambda: b.copy_to_device(a, stream=stream), stream.synchronize, 0.2 if size >= 1 << 20 else 0)
    return 2e-9 * size / float(np.median(times))


def time_launches(plan, x, repeats=7) -> list[float]:
    """Seconds of each launch within a forward, the median of some.

    Events on the stream take the times. Work is put before the first launch, so that Python is ahead of the device and
    the device never waits for it."""
    from mmref.kernels.cuda.driver import SIMULATOR, cuda
    times, plan.given = [], [x]
    if SIMULATOR:
        for launch in plan.launches:
            start = time.perf_counter()
            for call in launch.calls:
                call()
            times.append(time.perf_counter() - start)
        return times
    plan.launch()
    plan.stream.synchronize()
    ahead = [cuda.device_array(1 << 28, np.float32) for _ in range(2)]  # a copy of 1 GiB is most of a millisecond
    for _ in range(repeats):
        events = [cuda.event() for _ in range(len(plan.launches) + 1)]
        for _ in range(12):
            ahead[1].copy_to_device(ahead[0], stream=plan.stream)
        events[0].record(plan.stream)
        for launch, event in zip(plan.launches, events[1:], strict=True):
            for call in launch.calls:
                call()
            event.record(plan.stream)
        plan.stream.synchronize()
        times.append([1e-3 * a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)])
    plan.given = None
    return np.median(times, axis=0).tolist()


def moved(plan, launch, x) -> int:
    """Bytes a launch cannot do without: each array once, twice what is changed in place."""
    plan.given = [x]
    arrays = [value for value in plan.filled(launch.arguments).values() if getattr(value, "__cuda_ndarray__", False)]
    plan.given = None
    if "out" not in launch.arguments:
        arrays.append(launch.arguments["x"])
    return sum(4 * int(np.prod(array.shape)) for array in arrays)


def reference_operations(small) -> dict[str, float]:
    """Errors of the reference's operations on host arrays: the general scan, the depthwise convolution."""
    from mmref.nn.functional import depthwise_conv2d
    from mmref.nn.recurrence import selective_scan
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)
    batch, K, D, N, length = (1, 1, 3, 2, 5) if small else (2, 4, 67, 5, 99)
    scan = (normal(batch, K, D, length), np.abs(normal(batch, K, D, length)) + np.float32(0.01),
            -np.abs(normal(K, D, N)), normal(batch, K, N, length), normal(batch, K, N, length), normal(K, D))
    x = normal(1, 3, 5, 4) if small else normal(2, 67, 29, 31)
    errors = {"selective_scan (any states)": relative(selective_scan(*scan, backend="cuda"), selective_scan(
        *(a.astype(np.float64) for a in scan)))}
    for kernel, stride in ((3, 2),) if small else ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)):
        arguments = x, normal(x.shape[1], 1, kernel, kernel), normal(x.shape[1])
        options = dict(stride=stride, padding=kernel // 2)
        errors[f"depthwise_conv2d {kernel}x{kernel}, stride {stride}"] = relative(
            depthwise_conv2d(*arguments, **options, backend="cuda"),
            depthwise_conv2d(*(a.astype(np.float64) for a in arguments), **options))
    return errors


def describe_choice(key, rows, calls) -> dict:
    depth, columns = key[:2]
    return {"rows": rows, "depth": depth, "columns": columns,
            "by": "our own kernel" if calls is None else "cuBLAS", "calls": 1 if calls is None else len(calls),
            "rows_a_call": rows if calls is None else calls[0][1]}


def driver_version() -> str | None:
    """Of NVIDIA's driver, as its kernel module says."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            return next(word for word in file.readline().split() if word[0].isdigit() and "." in word)
    except (OSError, StopIteration):
        return None


def words(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def main(argv) -> int:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like a reply

    def tell(**message):
        print(json.dumps(message), file=replies, flush=True)
    job = Job(**json.loads(argv[1]))
    worker = Worker(job, lambda *path: tell(path=path[:-1], value=path[-1]))
    for section in job.sections:
        tell(begin=section)
        try:
            getattr(worker, section)()
        except Exception as error:
            tell(error=section, message=words(error))
            return 1  # a device that met an illegal access answers nothing any more in this process
        tell(end=section)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
