"""The GPU report, without a GPU: what it says of itself, and that a section that fails costs itself only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from mmref.bench import gpu, gpu_worker
from mmref.bench.gpu import GpuPlan, kernel_sources, report_text, right

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')


def test_hash_follows_the_sources(tmp_path, monkeypatch):
    """Catches figures that are taken for those of kernels that have been changed since."""
    before, names = gpu.kernel_sources_hash(), [source.name for source in kernel_sources()]
    assert {"scan.py", "wavelet_branch.py", "matmul.py", "driver.py"} <= set(names) and "twins.py" not in names
    assert gpu.identity()["kernel_sources"] == before
    for changed in kernel_sources():
        copies = [tmp_path / name for name in names]
        for source, copy in zip(kernel_sources(), copies, strict=True):
            copy.write_bytes(source.read_bytes() + b"\n" * (source == changed))
        with monkeypatch.context() as patch:
            patch.setattr(gpu, "kernel_sources", lambda copies=copies: copies)
            assert gpu.kernel_sources_hash() != before, changed


SCRIPT = """
import json, os, sys, time
job = json.loads(sys.argv[1])
def say(**message): print(json.dumps(message), flush=True)
for section in job["sections"]:
    say(begin=section)
    say(path=[section, "a"], value=1)
    if section == "bits":
        say(error=section, message="a fault")
        sys.exit(1)
    if section == "correctness":
        print("last words", file=sys.stderr)
        os._exit(5)
    if section == "kernels":
        time.sleep(600)
    say(path=[section, "b"], value=2)
    say(end=section)
"""


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Workers that run SCRIPT; returns the path of the report."""
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    real = gpu.command
    monkeypatch.setattr(gpu, "command", lambda *arguments: [sys.executable, str(script), real(*arguments)[-1]])
    return tmp_path / "report.json"


def test_sections_fail_alone(scripted):
    """Catches a section that takes others with it: by an error, by a crash, by never coming to an end."""
    report = {"simulator": True, "errors": {}, "seconds": {}}
    seen = []
    writer = gpu._Writer(report, scripted, seen.append)
    sections = ["device", "bits", "correctness", "throughput", "kernels", "torch"]
    plan = GpuPlan()
    gpu._run(writer, plan, sections, gpu.time.monotonic() + 8)
    assert seen == ["device", "bits", "correctness", "throughput", "kernels"]
    assert report["device"] == report["throughput"] == {"a": 1, "b": 2}
    assert report["bits"] == report["correctness"] == report["kernels"] == {"a": 1}
    assert report["errors"] == {"bits": "a fault", "correctness": "the process ended: last words",
                                "kernels": "stopped: out of time", "torch": "no time left"}
    assert json.loads(scripted.read_text())["errors"] == report["errors"]
    assert set(report["seconds"]) == {"device", "bits", "correctness", "throughput", "kernels"}


def test_a_worker_that_does_not_start(scripted, monkeypatch):
    """Catches waiting for ever, and starting for ever."""
    monkeypatch.setattr(gpu, "command", lambda plan, sections, limit: [
        sys.executable, "-c", "raise SystemExit('no module')", json.dumps({"sections": list(sections)})])
    report = {"simulator": True, "errors": {}, "seconds": {}}
    gpu._run(gpu._Writer(report, scripted, print), GpuPlan(), ["device", "bits"], gpu.time.monotonic() + 60)
    assert report["errors"] == {"device": "the process ended: no module", "bits": "the process ended: no module"}


def test_memory_checker(scripted, monkeypatch, tmp_path):
    """Catches a checker that is silently left out, and one whose findings are not read."""
    report = {"simulator": False, "errors": {}, "seconds": {}, "correctness": {"x": {"passed": True, "error": 0.0}}}
    writer = gpu._Writer(report, scripted, print)
    monkeypatch.setattr(gpu, "find_sanitizer", lambda: None)
    gpu.check_memory(writer, gpu.time.monotonic() + 60)
    for section in ("memory_checker", "race_checker"):
        assert report[section] == {"run": False, "why": "compute-sanitizer was not found on this machine"}
    assert "race checker: compute-sanitizer was not found" in report_text(report) and right(report)
    monkeypatch.undo()
    tool = tmp_path / "nsight" / "2026.1" / "target" / "compute-sanitizer" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    monkeypatch.setattr(gpu, "NSIGHT", str(tmp_path / "nsight"))
    for faulty in (None, "memcheck", "racecheck"):
        tool.write_text(f"#!/bin/sh\n[ $2 = {faulty} ] && status=9 || status=0\necho \"========= $2: $status\"\n"
                        "echo '{\"path\": [\"sanitize\"], \"value\": {\"error\": 1e-7}}'\nexit $status\n")
        tool.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", "/bin")
            assert gpu.find_sanitizer() == str(tool)
            gpu.check_memory(writer, gpu.time.monotonic() + 60)
        for name, section in (("memcheck", "memory_checker"), ("racecheck", "race_checker")):
            found = report[section]
            assert found["passed"] == (name != faulty) and found["said"] == [f"{name}: {9 * (name == faulty)}"]
            assert found["errors_of_results"] == [{"error": 1e-7}]
        assert right(report) == (faulty is None)


def test_jobs(monkeypatch):
    """Catches a whole report that leaves out a variant, a batch, or a form of PyTorch that was asked for."""
    job = gpu_worker.Job(**json.loads(gpu.command(GpuPlan(), ["torch"], 100)[-1]))
    assert [label[-2:] for label in job.variants] == ["t2", "t4", "s6", "b1", "b2", "b4", "_t"]
    assert [job.variants[name]["side"] for name in job.variants] == [192, 192, 224, 256, 384, 512, 224]
    assert job.batches == [1, 32, 256] and 90 < job.left <= 100
    modes = {mode for _, _, mode in job.torch_cases}
    assert {mode for label, _, mode in job.torch_cases if label == "localvim_t"} == {"eager"}
    assert modes == set(gpu_worker.TORCH_SCANS) - {"mamba-ssm"}
    for label, batch in job.kernel_cases:
        assert label in job.variants and batch in job.batches
    monkeypatch.setattr(gpu, "find_spec", lambda name: name == "mamba_ssm" or None)
    assert "mamba-ssm" in {mode for _, _, mode in json.loads(gpu.command(GpuPlan(), ["torch"], 9)[-1])["torch_cases"]}


def test_the_paper_s_rival_beside_the_others():
    """Catches a ratio upside down or of other batches, and one of a network that was not measured."""
    variants = {name: {"name": name, "changes": {}, "side": side} for name, side in (
        ("mobilemamba_t2", 192), ("mobilemamba_b1", 256), ("localvim_t", 224))}
    plan = GpuPlan(variants, batches=(1, 32))
    report = {"simulator": False, "errors": {}, "plan": asdict(plan), "work": gpu.works(plan), "throughput": {
        "mobilemamba_t2": {"1": {"graph": {"ms": 1, "images_per_s": 600.0}, "eager": {"ms": 2, "images_per_s": 300.0}}},
        "localvim_t": {"1": {"graph": {"ms": 1, "images_per_s": 400.0}}, "32": {"skipped": "no time left"}}}}
    lines = [line.split() for line in report_text(report).splitlines()]
    rows = {line[0]: line[1:5] + line[6:] for line in lines if line and line[0] in variants and len(line) > 5}
    assert rows == {"mobilemamba_t2": ["192", "251", "0.14", "468", "600", "1.50"],
                    "mobilemamba_b1": ["256", "1,069", "0.56", "1,472"],
                    "localvim_t": ["224", "1,260", "96.34", "15,680", "400", "1.00"]}


def test_what_is_wrong_is_not_right():
    """Catches a report that ends well although a kernel errs, bits differ or a section failed."""
    good = {"correctness": {"x": {"passed": True}}, "kernels_checked": {"scan": {"passed": True}},
            "bits": {"x": {"two_runs": True}}, "memory_checker": {"passed": True}, "errors": {}}
    assert right(good) and not right({**good, "correctness": {}})
    for bad in ({"kernels_checked": {"scan": {"passed": False}}}, {"bits": {"x": {"two_runs": False}}},
                {"memory_checker": {"passed": False}}, {"race_checker": {"passed": False}},
                {"errors": {"bits": "a fault"}}):
        assert not right({**good, **bad})


def test_without_a_gpu(tmp_path):
    """Catches a file overwritten, or minutes spent, where nothing can be measured."""
    path = tmp_path / "report.json"
    done = subprocess.run([sys.executable, "-m", "mmref", "bench", "gpu-report", str(path)], capture_output=True,
                          text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2 and done.stderr.startswith("mmref: error: a GPU report needs a GPU")
    assert done.stderr.count("\n") == 1 and not path.exists()


def test_forms_of_the_scan():
    """Catches a PyTorch form that is fast because it computes something else."""
    torch = pytest.importorskip("torch")
    from mmref.bench import torch_network
    rng = np.random.default_rng(0)
    for length, states in ((1, 1), (2, 3), (13, 1), (64, 2)):
        u, delta = (torch.from_numpy(rng.standard_normal((2, 2, 5, length))) for _ in range(2))
        A, D = -torch.from_numpy(rng.random((2, 5, states))), torch.from_numpy(rng.standard_normal((2, 5)))
        B, C = (torch.from_numpy(rng.standard_normal((2, 2, states, length))) for _ in range(2))
        expected = torch_network.selective_scan(u, delta.abs(), A, B, C, D)
        for name in ("doubling", "associative"):
            torch.testing.assert_close(torch_network.SCANS[name](u, delta.abs(), A, B, C, D), expected)
    model = torch_network.use_scan(torch_network.create("nano", 10), "doubling").double().eval()
    x = torch.from_numpy(rng.standard_normal((1, 3, 40, 33)))
    with torch.inference_mode():
        fast = model(x)
        torch.testing.assert_close(torch_network.use_scan(model, "loop")(x), fast, rtol=0, atol=1e-10)


def test_command_in_the_simulator(tmp_path):
    """The command from end to end, as far as that goes without a GPU: every section, every kernel, no figures."""
    path = tmp_path / "report.json"
    done = subprocess.run([sys.executable, "-m", "mmref", "bench", "gpu-report", str(path)], capture_output=True,
                          text=True, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["simulator"] and report["complete"]
    assert set(report["kernels"]["tiny, batch 1"]) == {
        "stem", "depthwise", "matmul", "wavelet_branch", "copy_relu", "scan", "norm_gate", "mean", "gate",
        "to_channels_first"} <= set(report["kernels_checked"])
    assert report["correctness"]["tiny"]["error"] < 1e-5
    assert report["bits"]["tiny"] == {"two_runs": True, "alone_as_in_batch": True}
    assert "the simulator: no time means anything" in done.stdout
