"""`mmref bench gpu-report`: everything there is to see on a GPU, in one run, in one file.

Sections run in processes of their own (gpu_worker.py), which say what they find as they find it: a section that fails,
crashes the device or takes too long costs itself only, and the report says so. What was found so far is in the file at
any moment. The report says what it was made of: versions, the commit, and a hash of the kernels' sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from mmref.bench.gpu_worker import TINY, Job
from mmref.bench.process import Process
from mmref.bench.side_by_side import COUNTED, WORK_TITLES, work_cells
from mmref.errors import MissingBackend
from mmref.files import replacing
from mmref.machine import describe_machine, versions
from mmref.tables import table

SECONDS = 460.0   # of a whole report
RESERVED = 200.0  # of them kept for PyTorch and the checkers
CHECKED = 80.0    # of those kept for the checkers, a half each
CHECKERS = {"memcheck": "memory_checker", "racecheck": "race_checker"}  # tool of compute-sanitizer -> section
NSIGHT = "/opt/nvidia/nsight-compute"  # which brings a compute-sanitizer of its own
ENGINE = ("device", "correctness", "kernels_checked", "bits", "throughput", "kernels")
RIVAL = "localvim_t"  # the network that the paper compares throughput with: what others are measured against
PACKAGES = ("mmref", "numpy", "numba", "numba-cuda", "cuda-toolkit", "nvidia-cublas", "cuda-bindings",
            "torch", "triton", "mamba-ssm")
EAGER_MODES = (("eager", (1, 32, 256)), ("eager channels-last", (1, 32, 256)), ("mamba-ssm", (1, 256)))
COMPILE_MODES = (("compile", 256), ("compile graphs", 1), ("compile", 1), ("compile channels-last", 256),
                 ("compile channels-last", 1))  # a minute each, so most wanted first


@dataclass
class GpuPlan:
    """What a report covers; the defaults are the whole of it."""

    variants: dict[str, dict] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 32, 256)
    kernel_cases: tuple = (("mobilemamba_b1", 256), ("mobilemamba_t2", 256))
    torch_models: tuple[str, ...] = ("mobilemamba_b1", "mobilemamba_t2", RIVAL)
    seconds: float = 0.4               # of forwards, for one case
    matmul: str = "cublas"
    limit: float = SECONDS

    def __post_init__(self):
        if not self.variants:
            from mmref.models.registry import resolve
            from mmref.models.variants import VARIANTS
            networks = {**VARIANTS, RIVAL: resolve(RIVAL)[0]}
            self.variants = {name: {"name": name, "changes": {}, "side": variant.img_size}
                             for name, variant in networks.items() if name != "mobilemamba_nano"}


def tiny_plan() -> GpuPlan:
    """For the simulator, where nothing can be timed: one block of 24 channels, a picture of a few pixels."""
    return GpuPlan({"tiny": {"name": "mobilemamba_nano", "changes": TINY | {"depths": (1, 0, 0)}, "side": 17}},
                   batches=(1,),
                   kernel_cases=(("tiny", 1),), torch_models=(), seconds=0.0, matmul="own")


def run_gpu_report(path, plan: GpuPlan | None = None, progress=None, limit: float | None = None) -> dict:
    """Make the report, write it to `path` after every finding, and return it.

    `progress(text)` hears of every section; `limit`: seconds, in place of the plan's. Raises MissingBackend where there
    is no device (nor the simulator)."""
    from mmref.kernels.cuda.driver import SIMULATOR, device
    device()
    plan = plan or (tiny_plan() if SIMULATOR else GpuPlan())
    plan.limit = limit or plan.limit
    report = {"simulator": SIMULATOR, "complete": False, **identity(), "versions": versions(PACKAGES),
              "machine": describe_machine(), "plan": asdict(plan), "errors": {}, "seconds": {}, "work": works(plan)}
    writer = _Writer(report, path, progress or (lambda text: None))
    writer.save()
    end = time.monotonic() + plan.limit
    _run(writer, plan, list(ENGINE), end - (RESERVED if not SIMULATOR else 0))
    if not SIMULATOR:
        _run(writer, plan, ["torch"], end - CHECKED)
        check_memory(writer, end)
    report["complete"] = not report["errors"]
    writer.save()
    return report


def works(plan) -> dict[str, dict]:
    """What every network has to do for a picture (`mmref.graph.work.Work`): to be read beside its throughput."""
    from mmref.graph.work import work
    from mmref.models.create import create_model
    return {label: asdict(work(create_model(settings["name"], **settings["changes"]), settings["side"]))
            for label, settings in plan.variants.items()}


class _Writer:
    """Keeps the file up to date with what workers say."""

    def __init__(self, report, path, progress):
        self.report, self.path, self.progress = report, path, progress
        self.begun = {}

    def take(self, message):
        if "begin" in message:
            self.begun[message["begin"]] = time.monotonic()
            self.progress(message["begin"])
        elif "end" in message:
            self.finish(message["end"])
        elif "error" in message:
            self.error(message["error"], message["message"])
        else:
            place = self.report
            *parents, last = message["path"]
            for name in parents:
                place = place.setdefault(name, {})
            place[last] = message["value"]
        self.save()

    def finish(self, section):
        if section in self.begun:
            self.report["seconds"][section] = round(time.monotonic() - self.begun.pop(section), 1)

    def error(self, section, message):
        self.finish(section)
        self.report["errors"][section] = message
        self.save()

    def save(self):
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")


def _run(writer, plan, sections, end):
    """Sections in a process; what a failed or stopped one leaves undone goes to a new process."""
    while sections:
        left = end - time.monotonic()
        if left < 5:
            for section in sections:
                writer.error(section, "no time left")
            return
        waiting, running, stopped = len(sections), None, False
        with Process(command(plan, sections, left)) as process:
            try:
                while (message := process.next_message(end - time.monotonic())) is not None:
                    writer.take(message)
                    if "begin" in message:
                        running = message["begin"]
                        sections.remove(running)
                    elif "end" in message or "error" in message:
                        running = None
            except TimeoutError:
                stopped = True
            last_words = process.last_words()
        if running is not None:
            writer.error(running, "stopped: out of time" if stopped else f"the process ended: {last_words}")
        elif sections and len(sections) == waiting:  # did not even begin
            writer.error(sections.pop(0), f"the process ended: {last_words}")


def command(plan, sections, limit) -> list[str]:
    """That starts a worker."""
    cases = [(model, batch, mode) for model in plan.torch_models for mode, batches in EAGER_MODES for batch in batches]
    cases += [(model, batch, mode) for model in plan.torch_models for mode, batch in COMPILE_MODES]
    torch_cases = [case for case in cases
                   if case[1] in plan.batches and (case[2] != "mamba-ssm" or find_spec("mamba_ssm"))
                   and (case[0] != RIVAL or case[2] == "eager")]  # in one form, whose loop nobody compiles in a minute
    job = Job(list(sections), plan.variants, list(plan.batches), list(plan.kernel_cases), torch_cases, plan.seconds,
              plan.matmul, limit)
    return [sys.executable, "-m", "mmref.bench.gpu_worker", json.dumps(asdict(job))]


# ------------------------------------------------------------------------------------- memory checker

def find_sanitizer() -> str | None:
    """NVIDIA's compute-sanitizer: on the path, in a toolkit, with Nsight Compute, or in a package beside us."""
    places = [os.path.join(root, folder, "compute-sanitizer")
              for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if root
              for folder in ("bin", "compute-sanitizer")]
    places += sorted(glob(os.path.join(NSIGHT, "**", "compute-sanitizer"), recursive=True), reverse=True)  # newest
    places += [path for root in sys.path for path in glob(os.path.join(root, "nvidia", "*", "**", "compute-sanitizer"),
                                                          recursive=True) if root.endswith("site-packages")]
    return shutil.which("compute-sanitizer") or next(
        (place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)


def check_memory(writer, end):
    """A small forward and the host operations under the memory checker, then under the race checker."""
    middle = (time.monotonic() + end) / 2
    for (tool, section), until in zip(CHECKERS.items(), (middle, end), strict=True):
        _check(writer, tool, section, until)


def _check(writer, check, section, end):
    tool = find_sanitizer()
    if tool is None:
        writer.report[section] = {"run": False, "why": "compute-sanitizer was not found on this machine"}
        writer.save()
        return
    writer.take({"begin": section})
    small = GpuPlan({"nano": {"name": "mobilemamba_nano", "changes": {}, "side": 65}}, matmul="own")
    order = [tool, "--tool", check, "--error-exitcode", "9", *command(small, ["sanitize"], 600)]
    try:
        done = subprocess.run(order, capture_output=True, text=True, timeout=max(end - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        writer.error(section, "stopped: out of time")
        return
    lines = (done.stdout + done.stderr).splitlines()
    said = [line.removeprefix("=========").strip() for line in lines if line.startswith("=========")]
    found = [json.loads(line)["value"] for line in lines if line.startswith('{"path": ["sanitize"')]
    writer.report[section] = {"run": True, "tool": tool, "passed": done.returncode == 0, "said": said[-12:],
                              "errors_of_results": found}
    writer.take({"end": section})


# ------------------------------------------------------------------------------- what a report stands on

def kernel_sources() -> list[Path]:
    """The files whose hash a report holds: all CUDA kernels, their NumPy twins aside."""
    folder = find_spec("mmref.kernels.cuda").submodule_search_locations[0]
    return sorted(path for path in Path(folder).glob("*.py") if path.name != "twins.py")


def kernel_sources_hash() -> str:
    """SHA-256 over the names and contents of `kernel_sources`."""
    digest = hashlib.sha256()
    for path in kernel_sources():
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def identity() -> dict:
    """Commit, whether there is more than that, and the hash of the kernels' sources."""
    root = Path(__file__).parents[2]

    def git(*arguments):
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None
    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": None if changes is None else bool(changes),
            "kernel_sources": kernel_sources_hash(), "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


# ----------------------------------------------------------------------------------------- reading it

def report_text(report) -> str:
    """The report for people."""
    card = report.get("device", {})
    parts = [f"{card.get('name')}, driver {card.get('driver')}, copy {card.get('copy_gb_per_s') or 0:,.0f} GB/s"
             + (" (the simulator: no time means anything)" if report["simulator"] else "")]
    parts.append(table([(name, f"{found['error']:.1e}", "yes" if found["passed"] else "NO")
                        for name, found in {**report.get("correctness", {}),
                                            **report.get("kernels_checked", {})}.items()],
                       ("variant or kernel", "error", "within the limit")))
    bits = [(name, *("yes" if ok else "NO" for ok in found.values())) for name, found in report.get("bits", {}).items()]
    if bits:
        parts.append(table(bits, ("same bits", *next(iter(report["bits"].values())))))
    rows = [(name, batch, mode, f"{found['ms']:.3f}", f"{found['images_per_s']:,.0f}")
            for section in ("throughput", "torch") for name, batches in report.get(section, {}).items()
            if isinstance(batches, dict) for batch, modes in batches.items() if isinstance(modes, dict)
            for mode, found in modes.items() if isinstance(found, dict) and "ms" in found]
    if rows:
        parts.append(table(rows, ("model", "batch", "as", "ms", "images/s"), left=3))
    if RIVAL in report.get("work", {}):
        parts.append(_beside_the_rival(report))
    for case, kernels in report.get("kernels", {}).items():
        copy = card.get("copy_gb_per_s") or float("nan")
        nominal = card.get("nominal_gb_per_s") or float("nan")
        lines = [(name, row["launches"], f"{row['ms']:.3f}", f"{speed:,.0f}", f"{100 * speed / copy:.0f}",
                  f"{100 * speed / nominal:.0f}", f"{2 * row['gmac'] / row['ms']:.1f}")
                 for name, row in kernels.items() for speed in [row["mib"] * 2**20 / (1e6 * max(row["ms"], 1e-9))]]
        parts.append(table(lines, (case, "launches", "ms", "GB/s", "% of a copy", "% nominal", "TFLOP/s")))
    parts += [f"{section.replace('_', ' ')}: {' '.join(found['said'][-1:]) if found['run'] else found['why']}"
              for section in CHECKERS.values() if (found := report.get(section))]
    parts += [f"{section} failed: {message}" for section, message in report["errors"].items()]
    return "\n\n".join(parts)


def _beside_the_rival(report) -> str:
    """The work of a picture, counted, beside the images a second of our kernels and their ratio to the rival's."""
    sizes = {label: settings["side"] for label, settings in report["plan"]["variants"].items()}
    batches = [str(batch) for batch in report["plan"]["batches"]]

    def rate(label, batch):
        modes = report.get("throughput", {}).get(label, {}).get(batch, {})
        return max((found["images_per_s"] for found in modes.values() if isinstance(found, dict)), default=None)
    lines = []
    for label, found in report["work"].items():
        cells = [label, *work_cells(sizes[label], **found)]
        for batch in batches:
            mine, its = rate(label, batch), rate(RIVAL, batch)
            cells += [f"{mine:,.0f}" if mine else "", f"{mine / its:.2f}" if mine and its else ""]
        lines.append(cells)
    return table(lines, ("model", *WORK_TITLES, *(title for batch in batches
                                                  for title in (f"batch {batch}: images/s", f"of {RIVAL}'s")))) + (
        "\n" + COUNTED)


def right(report) -> bool:
    """Whether everything that was looked at is right: errors within their limits, bits equal, no memory error."""
    checks = [found["passed"] for section in ("correctness", "kernels_checked")
              for found in report.get(section, {}).values()]
    checks += [ok for found in report.get("bits", {}).values() for ok in found.values()]
    checks += [report.get(section, {}).get("passed", True) for section in CHECKERS.values()]
    return bool(report.get("correctness")) and all(checks) and not report["errors"]


def require_device() -> None:
    """MissingBackend, before anything is started, where no report can be made."""
    try:
        from mmref.kernels.cuda.driver import device
        device()
    except MissingBackend as error:
        raise MissingBackend(f"a GPU report needs a GPU: {error}") from error
