"""Rounds: everyone does a turn, one after another, again and again; believe the ratios within a round.

Other work on a machine, its temperature and its clock change from second to second, and everybody's time with them.
Hence no contestant is measured on its own: in every round each does one turn (a few forwards, their median), in an
order that rotates, and the multiply-add rate is measured in the same round. What is reported of a time is its median
over the rounds with the quartiles; what is reported of two contestants is the median of their ratios within rounds.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from mmref.bench.backends import BACKENDS, Job, absent
from mmref.bench.process import WorkerFailed, WorkerProcess
from mmref.bench.side_by_side import SideBySide, measure_side_by_side
from mmref.bench.start import Start, start_model
from mmref.cores import usable_cores
from mmref.errors import MissingBackend, NotTraceable, ValueProblem
from mmref.machine import describe_machine
from mmref.models.registry import resolve

REST = 0.05  # seconds between turns: thread pools spin for some milliseconds after their work
SWEEP_SIZES, SWEEP_BATCHES = (128, 192, 256, 384, 512, 768, 1024), (1, 2, 4, 8, 16, 32, 64)
NOT_SWEPT = {"torch-compile": "unrolls the scan, one program for every shape: not swept"}
ON_REQUEST = {"torch-compile": "compiles for minutes, the scan being unrolled: measured when named by --backends"}


@dataclass
class Result:
    """One contestant on one input shape. Times in seconds a batch, one value per round."""

    backend: str
    model: str
    batch: int
    img_size: int
    gmacs: float                       # one picture
    params: float                      # millions
    baseline: str = ""                 # whom the ratios compare with
    rounds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)   # its time over the baseline's , a round
    rates: list[float] = field(default_factory=list)    # its multiply-adds a second over the calibration's, a round
    alarm: bool = False                # they cannot be: more than the machine was measured to do at most
    error: float | None = None         # logits, largest difference to the baseline's over their largest
    peak_bytes: int | None = None
    seconds_import: float | None = None
    seconds_cold: float | None = None  # start of the process to the first logits, nothing compiled before
    seconds_warm: float | None = None  # the same again

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


@dataclass
class Report:
    """Everything a run found out, and where."""

    machine: dict
    threads: int
    baseline: str
    calibration: dict
    rounds: int
    clock: str = "wall"                # "processor": seconds that the process computed, whatever else the machine did
    results: list[Result] = field(default_factory=list)
    sweep: list[Result] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    side_by_side: list[SideBySide] = field(default_factory=list)  # several networks in the same rounds
    left_out: dict[str, str] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)  # figures that cannot be right, in words


@dataclass(frozen=True)
class Plan:
    """What to measure; `run_bench` and `run_sweep` take it. Defaults are those of the command line."""

    models: tuple[str, ...] = ("mobilemamba_t2",)
    batches: tuple[int, ...] = (1,)
    img_size: int | None = None        # None: each model's own
    threads: int | None = None         # None: all cores
    rounds: int = 15
    turn: float = 0.3                  # seconds of forwards a turn aims at
    starts: int = 1                    # warm starts to take the median of; 0: starts are not measured
    backends: tuple[str, ...] = ()     # empty: all that are there but those of ON_REQUEST
    unfolded: bool = False             # numpy and torch also with batch norms as layers
    limit: float = 600.0               # seconds for one answer of a worker
    cpu_time: bool = False             # the processor's seconds, not the clock's; of one thread

    def __post_init__(self):
        for name, values in (("batch", self.batches), ("rounds", (self.rounds,)),
                             ("img_size", () if self.img_size is None else (self.img_size,)),
                             ("threads", () if self.threads is None else (self.threads,))):
            if not values and name == "batch" or any(value < 1 for value in values):
                raise ValueProblem(f"{name} must be 1 or more, got {', '.join(map(str, values)) or 'none'}")
        if self.cpu_time and self.threads != 1:
            raise ValueProblem(f"threads must be 1 to take processor time, which adds up over threads, waiting ones "
                               f"too, got {self.threads or 'all cores'}")
        unknown = [name for name in self.backends if name not in BACKENDS]
        if unknown:
            raise ValueProblem(f"backends must be of {', '.join(BACKENDS)}, got {', '.join(unknown)}")


def run_bench(plan: Plan, progress=None) -> Report:
    """Measure every model at every batch size; then, where there are several, the models side by side.

    `progress(text, step, steps)` is called as the work goes on. A backend that was asked for by name but is not
    there raises MissingBackend; one that fails on the way is left out, and the report says why.
    """
    report = _run(plan, progress or _silent, _bench_model)
    models = list(dict.fromkeys(resolve(name)[0].name for name in plan.models))
    if len(models) > 1:
        names = [name for name in dict.fromkeys(result.backend for result in report.results) if name in BACKENDS]
        measure_side_by_side(plan, report, models, names, _write_inputs, _open, _own_size, progress or _silent, REST)
    return report


def run_sweep(plan: Plan, progress=None, sizes=SWEEP_SIZES, batches=SWEEP_BATCHES) -> Report:
    """How cost grows: batch 1 over the `sizes` of picture, the model's own size over the `batches`."""
    def sweep_model(plan, report, job, contestants, scratch, progress):
        side = plan.img_size or _own_size(job.model)
        shapes = list(dict.fromkeys([(1, size) for size in sizes] + [(batch, side) for batch in batches]))
        report.left_out |= {name: reason for name, reason in NOT_SWEPT.items() if name in contestants}
        with ExitStack() as stack:
            calibrator = _open_calibration(stack, job, plan, report)
            workers = {name: _open(stack, report, change, plan) for name, change in contestants.items()
                       if name not in NOT_SWEPT}
            for batch, size in shapes:
                report.sweep += _measure(plan, report, job, workers, calibrator, batch, size, progress)
    return _run(plan, progress or _silent, sweep_model)


def run_start(plan: Plan, progress=None) -> Report:
    """How long a first answer takes: whole processes of `mmref classify` beside PyTorch (start.py)."""
    torch = () if absent("torch-eager") else ("torch-eager",)
    backends = plan.backends or ("numpy", "numba", *torch)
    return _run(replace(plan, backends=backends), progress or _silent, start_model)


def _silent(text, step, steps):
    pass


def _run(plan, progress, each_model):
    missing = {name: reason for name in plan.backends or BACKENDS if (reason := absent(name))}
    if plan.backends and missing:
        raise MissingBackend("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    left_out = missing | ({} if plan.backends else ON_REQUEST | missing)
    names = [name for name in plan.backends or BACKENDS if name not in left_out]
    threads = plan.threads or usable_cores()
    report = Report(describe_machine(), threads, "numba" if "numba" in names else names[0], {"rates": []}, plan.rounds,
                    "processor" if plan.cpu_time else "wall", left_out=left_out)
    models = [resolve(name)[0].name for name in plan.models]
    for model in models:
        with tempfile.TemporaryDirectory(prefix="mmref-bench-") as scratch:
            job = _write_inputs(model, names, threads, scratch)
            contestants = {}
            for name in names:
                contestants[name] = _job(job, name)
                if plan.unfolded and BACKENDS[name].can_unfold:
                    contestants[f"{name} unfolded"] = _job(job, name, unfolded=True)
            each_model(plan, report, job, contestants, scratch, progress)
    if report.calibration["rates"]:
        report.calibration["median"] = float(np.median(report.calibration["rates"]))
    return report


def _job(job, backend, unfolded=False):
    return Job(**{**vars(job), "backend": backend, "unfolded": unfolded})


def _write_inputs(model, names, threads, scratch):
    """Parameters and graph that all contestants of a model read."""
    from mmref.models.create import create_model
    network = create_model(model)
    settle_batch_norms(network)
    spread_rates(network)
    parameters, graph = os.path.join(scratch, "parameters.npz"), os.path.join(scratch, "model.onnx")
    np.savez(parameters, **network.state_dict())
    if {"onnxruntime", "openvino"} & set(names):
        from mmref.export.onnx import export_onnx
        try:
            export_onnx(network, graph)
        except NotTraceable:  # another graph for every size
            export_onnx(network, graph, fixed=(network.config.img_size,) * 2)
    return Job("", model, threads, parameters, graph)


def settle_batch_norms(network):
    """Give an untrained network's batch norms the statistics of what they meet in one forward, in place.

    That is what training does. Without it activations grow from block to block (to 1e7 in T2's last scan), decays
    exp(-delta) underflow to denormals there, on which processors are many times slower, and whoever does not flush them
    would be measured at that.
    """
    from mmref.nn.layer import BatchNorm
    norms = [layer for _, layer in network.walk() if isinstance(layer, BatchNorm)]

    def settle(norm, x):
        if x.ndim == 4:  # of features without pixels, eight pictures say too little
            norm.running_mean, norm.running_var = x.mean((0, 2, 3)), x.var((0, 2, 3)) + np.float32(1e-3)
        return type(norm).forward(norm, x)
    # Not the picture that is timed: its own statistics would make every channel's mean, and so all logits, zero.
    pictures = np.random.default_rng(1).standard_normal((8, network.config.in_chans, 128, 128), np.float32)
    for norm in norms:
        norm.forward = partial(settle, norm)
    try:
        network(pictures)
    finally:
        for norm in norms:
            del norm.forward


def spread_rates(network):
    """Give an untrained network's scans decay rates as training leaves them, in place: no multiples of each other.

    Untrained, the n-th state of a channel fades n times as fast as the first, and our kernels then compute six
    exponentials for sixteen states: a speed that trained weights do not have."""
    rng = np.random.default_rng(2)
    for _, layer, name in network.named_parameters():
        if name.startswith("A_log"):
            logs = getattr(layer, name)
            setattr(layer, name, (logs + rng.normal(0, 0.3, logs.shape)).astype(logs.dtype))


def _own_size(model):
    from mmref.models.registry import models
    return models()[model].img_size


def _bench_model(plan, report, job, contestants, scratch, progress):
    side = plan.img_size or _own_size(job.model)
    started = {}
    for position, batch in enumerate(plan.batches):
        with ExitStack() as stack:
            calibrator = _open_calibration(stack, job, plan, report)
            workers = {}
            for name, change in contestants.items():
                progress(f"{job.model}: starting {name}", 0, plan.rounds)
                if plan.starts and not position:
                    started[name] = _starts(plan, change, (batch, 3, side, side), os.path.join(scratch, name))
                workers[name] = _open(stack, report, change, plan,
                                      os.path.join(scratch, name) if plan.starts else None)
            for result in _measure(plan, report, job, workers, calibrator, batch, side, progress):
                for key, value in ({} if position else started.get(result.backend, {})).items():
                    setattr(result, key, value)
                report.results.append(result)


def _starts(plan, job, shape, cache):
    """Process start to first logits: in a process that finds nothing compiled, then in some that do."""
    os.makedirs(cache, exist_ok=True)
    seconds, imports = [], []
    for _ in range(1 + plan.starts):
        try:
            worker = WorkerProcess(job, cache, plan.limit)
        except WorkerFailed:
            return {}  # _open meets the same and notes it
        try:
            worker.ask("prepare", shape=shape)
            seconds.append(time.perf_counter() - worker.started)
            imports.append(worker.opened["import"])
        except WorkerFailed:
            return {}
        finally:
            worker.close()
    return {"seconds_cold": seconds[0], "seconds_warm": float(np.median(seconds[1:])),
            "seconds_import": float(np.median(imports[1:]))}


def _open(stack, report, job, plan, cache=None):
    try:
        worker = WorkerProcess(job, cache, plan.limit)
    except WorkerFailed as failure:
        report.left_out[f"{job.backend}, {job.model}"] = str(failure)
        return None
    stack.callback(worker.close)
    return worker


def _open_calibration(stack, job, plan, report):
    worker = WorkerProcess(_job(job, "calibration"), None, plan.limit)
    stack.callback(worker.close)
    first = worker.ask("rate")  # compiles
    report.calibration |= {"method": first["method"], "is_peak": first["is_peak"]}
    return worker


def _measure(plan, report, job, workers, calibrator, batch, side, progress):
    """Results of one input shape, workers that fail left out."""
    macs, params = _work(job.model, side)
    results, logits, counts = {}, {}, {}
    for name, worker in workers.items():
        if worker is None:
            continue
        try:
            logits[name] = np.array(worker.ask("prepare", shape=(batch, 3, side, side))["logits"])
            worker.ask("run", count=1)
            once = worker.ask("run", count=1, cpu=plan.cpu_time)["seconds"][0]
            counts[name] = min(max(math.ceil(plan.turn / max(once, 1e-6)), 1), 200)
            results[name] = Result(name, job.model, batch, side, macs / 1e9, params / 1e6)
        except WorkerFailed as failure:
            report.left_out[f"{name}, {job.model}, batch {batch}, {side}x{side}"] = str(failure)
    order = list(results)
    rates = []
    for step in range(plan.rounds):
        progress(f"{job.model}, batch {batch}, {side}x{side}", step, plan.rounds)
        rates.append(calibrator.ask("rate")["rate"])
        for name in order[step % len(order):] + order[:step % len(order)]:
            if name not in results:
                continue
            time.sleep(REST)
            try:
                seconds = workers[name].ask("run", count=counts[name], cpu=plan.cpu_time)["seconds"]
                results[name].rounds.append(float(np.median(seconds)))
            except WorkerFailed as failure:
                del results[name]
                report.left_out[f"{name}, {job.model}, batch {batch}, {side}x{side}"] = str(failure)
    report.calibration["rates"] += rates
    baseline = report.baseline if report.baseline in results else next(iter(results), None)
    for name, result in results.items():
        alike = f"{baseline} unfolded" if name.endswith(" unfolded") else baseline
        result.baseline = alike if alike in results else baseline
        result.ratios = list(np.divide(result.rounds, results[result.baseline].rounds))
        result.rates = list(macs * batch / np.array(result.rounds) / rates)
        result.alarm = report.calibration["is_peak"] and _beyond_peak(result.rates)
        if result.alarm:
            report.alarms.append(f"{name}, {job.model}, batch {batch}, {side}x{side}: {np.median(result.rates):.0%} of "
                                 f"the calibrated multiply-add rate; one of the two is measured wrongly here")
        result.error = float(np.abs(logits[name] - logits[baseline]).max() / max(np.abs(logits[baseline]).max(), 1e-30))
        result.peak_bytes = workers[name].ask("memory")["bytes"]
    return list(results.values())


def _beyond_peak(shares):
    from mmref.kernels.calibrate import NOISE  # here, because a machine without Numba has another ruler
    return bool(np.median(shares) > 1 + NOISE)


def _work(model, side):
    """(multiply-adds, learned parameters) of one picture."""
    from mmref.models.create import create_model
    from mmref.models.summary import summarize
    total = summarize(create_model(model), side)[0]
    return total.macs, total.parameters
