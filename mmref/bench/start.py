"""How long a person waits for a first answer: `mmref classify` beside PyTorch's import and first forward.

A process is timed from outside, from its start to its end: interpreter, imports, weights read, kernels loaded (or
compiled, the first time), the picture decoded, the answer printed. Of PyTorch only `import torch` and the first forward
count, not the interpreter's start nor building the network: what no PyTorch program can do without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np

from mmref.bench.process import THREAD_VARIABLES, WorkerFailed, WorkerProcess

TORCH = "import torch + first forward"


@dataclass
class Start:
    """One way to a first answer of a model: seconds and peak memory, one value per round."""

    name: str
    model: str
    rounds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)      # over PyTorch's in the same round; empty without PyTorch
    peaks: list[int] = field(default_factory=list)         # bytes

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


def start_model(plan, report, job, contestants, scratch, progress):
    """Time starts of one model; as `measure._run` calls it. There is one cold start per model, the first round's."""
    picture, weights = _write_files(job, scratch)
    ways = {f"mmref classify, {name}": [sys.executable, "-m", "mmref", "classify", picture, "--model", job.model,
                                        "--weights", weights, "--backend", name] for name in ("numpy", "numba")
            if name in contestants}
    found = {}
    torch = contestants.get("torch-eager")
    for step in range(plan.rounds + 1):  # round 0 fills caches: the file system's for all, that of kernels for numba
        progress(f"{job.model}: first answers", max(step - 1, 0), plan.rounds)
        order = [*ways, *([TORCH] if torch else [])]
        for name in order[step % len(order):] + order[:step % len(order)]:
            try:
                seconds, peak = (_torch(torch, plan.limit, job.model) if name == TORCH
                                 else _process(ways[name], job.threads, scratch, plan.limit))
            except WorkerFailed as failure:
                report.left_out[f"{name}, {job.model}"] = str(failure)
                continue
            key = f"{name}, cold" if not step else name
            if step or name == "mmref classify, numba":
                row = found.setdefault(key, Start(key, job.model))
                row.rounds.append(seconds)
                row.peaks.append(peak)
    base = found.get(TORCH)
    for row in found.values():
        if base and len(row.rounds) == len(base.rounds):
            row.ratios = list(np.divide(row.rounds, base.rounds))
    report.starts += found.values()


def _write_files(job, scratch):
    """A photograph's worth of JPEG, and the network's parameters as `mmref classify` reads them."""
    from PIL import Image

    from mmref.weights import safetensors_file
    picture, weights = os.path.join(scratch, "picture.jpg"), os.path.join(scratch, "weights.safetensors")
    smooth = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(smooth).resize((640, 480), Image.Resampling.BICUBIC).save(picture, quality=90)
    safetensors_file.write(weights, job.state)
    return picture, weights


def _process(command, threads, scratch, limit):
    """(seconds, peak bytes) of a process that answers."""
    environment = os.environ | {"MMREF_CACHE_DIR": os.path.join(scratch, "kernels")}
    environment |= {name: str(threads) for name in THREAD_VARIABLES}
    try:
        done = subprocess.run([sys.executable, "-m", "mmref.bench.stopwatch", *command], env=environment, text=True,
                              capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise WorkerFailed(f"no answer within {limit:g} s") from None
    if done.returncode:
        raise WorkerFailed(f"exit status {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    reply = json.loads(done.stdout.splitlines()[-1])
    return reply["seconds"], reply["bytes"]


def _torch(job, limit, model):
    from mmref.models.registry import models
    side = models()[model].img_size
    worker = WorkerProcess(job, None, limit)
    try:
        first = worker.ask("prepare", shape=(1, 3, side, side))["first"]
        return worker.opened["import"] + first, worker.ask("memory")["bytes"]
    finally:
        worker.close()
