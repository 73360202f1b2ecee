"""The benchmark runs everything once, tiny; what is checked is structure and arithmetic, never a time."""

from __future__ import annotations

import csv
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mmref.bench import backends, measure, side_by_side
from mmref.bench.measure import Plan, run_bench, run_sweep
from mmref.bench.process import WorkerFailed, WorkerProcess
from mmref.bench.report import TIMM_COLUMNS, to_json, to_text
from mmref.bench.worker import Worker
from mmref.bench.worker import test_input as bench_input
from mmref.cli import main
from mmref.errors import MissingBackend, ValueProblem
from mmref.graph.work import work
from mmref.models.create import create_model
from mmref.nn.layer import BatchNorm, Conv2d, ReLU, Sequential, recording

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("torch")

TINY = ("bench", "--models", "mobilemamba_nano", "--img-size", "32", "--rounds", "2", "--turn", "0.001",
        "--threads", "1")
PEERS = ["numpy", "torch-eager", "onnxruntime", "openvino"]


def job(tmp_path, backend="numpy", **changes):
    path = tmp_path / "parameters.npz"
    if not path.exists():
        np.savez(path, **create_model("mobilemamba_nano").state_dict())
    return backends.Job(**{"backend": backend, "model": "mobilemamba_nano", "threads": 1, "parameters": str(path),
                           **changes})


def test_command_and_csv(tmp_path, capsys):
    """A contestant lost on the way, a wrong answer timed, columns in an order that timm's readers do not know."""
    path = tmp_path / "bench.csv"
    assert main([*TINY, "--batch", "1", "3", "--starts", "1", "--csv", str(path), "--json",
                 "--backends", *PEERS]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(r["batch"], r["backend"]) for r in report["results"]] == [(b, n) for b in (1, 3) for n in PEERS]
    assert report["left_out"] == {}
    for row in report["results"]:
        assert len(row["rounds"]) == len(row["ratios"]) == len(row["rates"]) == 2
        assert row["error"] < 1e-5 and row["seconds"] == np.median(row["rounds"])
        assert 1e7 < row["peak_bytes"] < 1e10
        assert (row["seconds_cold"] is None) == (row["batch"] == 3)  # starts are measured once a model
    assert report["machine"]["cpu"] and report["machine"]["libraries"]["numpy"] == np.__version__
    assert len(report["calibration"]["rates"]) == 4

    lines = list(csv.DictReader(path.open()))
    assert tuple(lines[0])[:len(TIMM_COLUMNS)] == TIMM_COLUMNS
    for line, row in zip(lines, report["results"], strict=True):
        assert (line["model"], line["backend"], line["infer_img_size"]) == ("mobilemamba_nano", row["backend"], "32")
        assert float(line["infer_step_time"]) == pytest.approx(1e3 * row["seconds"], abs=1e-3)
        assert float(line["infer_samples_per_sec"]) == pytest.approx(row["batch"] / row["seconds"], rel=1e-2)
        assert line["cpu"] == report["machine"]["cpu"]


def test_text_and_sweep(capsys):
    """The tables that people read missing the machine, a contestant, or a size."""
    plan = Plan(("mobilemamba_nano",), img_size=32, rounds=2, turn=0.001, threads=1,
                backends=("numpy", "onnxruntime"))
    report = run_sweep(plan, sizes=(16, 32, 48), batches=(1, 2))
    assert [(r.batch, r.img_size) for r in report.sweep[::2]] == [(1, 16), (1, 32), (1, 48), (2, 32)]
    text = to_text(report)
    assert report.machine["cpu"] in text and "48x48" in text and "onnxruntime" in text
    assert "multiply-adds" in text or "np.matmul" in text  # which calibration it was
    assert json.loads(json.dumps(to_json(report)))["sweep"][0]["img_size"] == 16


def test_starts(capsys):
    """A start timed without its answer, a cold one taken for a warm one, ratios over another round."""
    assert main(["bench", "start", "--models", "mobilemamba_nano", "--rounds", "2", "--threads", "1", "--json",
                 "--backends", "numpy", "numba", "torch-eager"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in report["starts"]}
    assert report["left_out"] == {}
    assert {name: len(row["rounds"]) for name, row in rows.items()} == {
        "mmref classify, numba, cold": 1, "mmref classify, numba": 2, "mmref classify, numpy": 2,
        "import torch + first forward": 2}
    cold, warm, torch = (rows[name] for name in ("mmref classify, numba, cold", "mmref classify, numba",
                                                 "import torch + first forward"))
    assert warm["ratios"] == list(np.divide(warm["rounds"], torch["rounds"])) and cold["ratios"] == []
    assert all(1e7 < peak < 1e10 for row in rows.values() for peak in row["peaks"])
    assert max(warm["peaks"]) < min(cold["peaks"])  # a warm start has not got the compiler in memory


def test_a_start_that_fails(monkeypatch, capsys):
    """The time that a process needed to say that it cannot, in the table as if it had answered."""
    from mmref.bench import start
    monkeypatch.setattr(start, "_write_files", lambda job, scratch: ("/nonexistent.jpg", "/nonexistent.safetensors"))
    assert main(["bench", "start", "--models", "mobilemamba_nano", "--rounds", "1", "--threads", "1",
                 "--backends", "numpy"]) == 1
    assert "exit status 2" in capsys.readouterr().out


@pytest.mark.parametrize("is_peak", [True, False])
def test_a_share_beyond_the_peak_is_an_alarm(monkeypatch, capsys, is_peak):
    """Catches 326 % of the machine's rate printed as a figure; and an alarm where the ruler is a NumPy product, which
    others may exceed."""
    ask = WorkerProcess.ask

    def slow_ruler(worker, what, **arguments):
        reply = ask(worker, what, **arguments)
        return reply | {"rate": 1e3, "is_peak": is_peak} if what == "rate" else reply
    monkeypatch.setattr(WorkerProcess, "ask", slow_ruler)
    assert main([*TINY, "--starts", "0", "--backends", "numpy"]) == 0
    out, err = capsys.readouterr()
    row = next(line for line in out.splitlines() if line.startswith("numpy  "))
    assert ("alarm" in row) == is_peak and ("%" in row) != is_peak
    assert err.startswith("mmref: alarm: numpy, mobilemamba_nano, batch 1, 32x32: ") == is_peak
    assert main([*TINY, "--starts", "0", "--backends", "numpy", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["alarms"]) == is_peak


def test_options_before_a_tool(capsys):
    """Catches an option that is taken and then forgotten, because another tool's default replaces it."""
    for order in (["--rounds", "3", "start"], ["--csv", "x.csv", "gpu-report"], ["--unfolded", "sweep"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *order])
        assert ended.value.code == 2
        assert f"{order[0]} must stand behind '{order[-1]}'" in capsys.readouterr().err


def test_ratios_are_paired(tmp_path, monkeypatch):
    """Ratios of medians in place of medians of ratios; unfolded measured against folded."""
    report = run_bench(Plan(("mobilemamba_nano",), img_size=16, rounds=3, turn=0.001, threads=1, starts=0,
                            backends=("numpy", "torch-eager"), unfolded=True))
    times = {row.backend: np.array(row.rounds) for row in report.results}
    rows = {row.backend: row for row in report.results}
    assert rows["torch-eager"].ratios == list(times["torch-eager"] / times["numpy"])
    assert rows["torch-eager unfolded"].ratios == list(times["torch-eager unfolded"] / times["numpy unfolded"])
    macs = 1e9 * rows["numpy"].gmacs
    assert rows["numpy"].rates == pytest.approx(list(macs / times["numpy"] / report.calibration["rates"]))


def test_parameters_are_like_trained_ones():
    """Timing denormals (decays that underflow, activations out of hand), or comparing logits that are all rounding."""
    network = create_model("mobilemamba_t2")
    measure.settle_batch_norms(network)
    largest = {}
    with recording(lambda name, y, layer: largest.update({name: float(np.abs(y).max())})):
        logits = network(bench_input((1, 3, 192, 192)))
    deltas = [value for name, value in largest.items() if name.endswith(":delta")]
    assert len(deltas) == 5 and max(deltas) < 20 and max(largest.values()) < 1e3
    truth = network.astype(np.float64)(bench_input((1, 3, 192, 192)).astype(np.float64))
    assert np.abs(truth).max() > 0.1 and np.abs(logits - truth).max() < 1e-5 * np.abs(truth).max()


def test_settled_norms_give_what_training_gives():
    """Norms found by the names of MobileMamba's layers: those of another network stay as they were; and ones that go on
    taking statistics, which mixes the pictures of a batch."""
    network = Sequential(Conv2d(8, 12, 3), BatchNorm(12), ReLU(), Conv2d(12, 5), BatchNorm(5))
    network.config = SimpleNamespace(in_chans=8)
    for _, layer, name in network.named_parameters():
        setattr(layer, name, layer.initial(name, np.random.default_rng(1)).astype(np.float32))
    measure.settle_batch_norms(network)
    found = {}
    with recording(lambda name, y, layer: found.update({layer: y})):
        network(np.random.default_rng(2).standard_normal((8, 8, 128, 128), np.float32))
    norms = [y for layer, y in found.items() if isinstance(layer, BatchNorm)]
    assert len(norms) == 2
    for y in norms:
        assert np.abs(y.mean((0, 2, 3))).max() < 0.1 and np.abs(y.std((0, 2, 3)) - 1).max() < 0.1
    assert not any("forward" in vars(layer) for _, layer in network.walk())


def test_workers_answer_as_the_model_does(tmp_path):
    """A worker that times another network than the one it was given, or prints into its own replies."""
    worker = WorkerProcess(job(tmp_path))
    try:
        reply = worker.ask("prepare", shape=(2, 3, 17, 16))
        with np.load(tmp_path / "parameters.npz") as state:
            expected = create_model("mobilemamba_nano", dict(state)).fold_batchnorm()(bench_input((2, 3, 17, 16)))
        assert np.allclose(np.reshape(reply["logits"], expected.shape), expected, atol=1e-5 * np.abs(expected).max())
        assert len(worker.ask("run", count=4)["seconds"]) == 4
        with pytest.raises(WorkerFailed, match="ShapeError"):
            worker.ask("prepare", shape=(1, 4, 8, 8))
        assert worker.ask("memory")["bytes"] > 1e7  # alive after the error
    finally:
        worker.close()


def test_failures_are_reported_not_hidden(tmp_path, monkeypatch):
    """One contestant's failure ending the benchmark, or its absence from the table passing unnoticed."""
    monkeypatch.setattr(measure, "_job", lambda job, backend, unfolded=False: backends.Job(
        **{**vars(job), "backend": backend, "unfolded": unfolded,
           "graph": "/nonexistent.onnx" if backend == "onnxruntime" else job.graph}))
    report = run_bench(Plan(("mobilemamba_nano",), img_size=16, rounds=1, turn=0.001, threads=1, starts=0,
                            backends=("numpy", "onnxruntime")))
    assert [row.backend for row in report.results] == ["numpy"]
    (name, reason), = report.left_out.items()
    assert "onnxruntime" in name and "nonexistent" in reason and reason in to_text(report)


def test_a_contestant_that_dies_in_a_round(monkeypatch):
    """A benchmark of an hour lost to the last contestant's crash, or its half-filled row in the table."""
    ask = WorkerProcess.ask

    def dying(worker, what, **arguments):
        if what == "run" and worker.opened and worker.job.backend == "onnxruntime" and arguments["count"] > 1:
            worker._process.kill()
            worker._process.wait()
        return ask(worker, what, **arguments)
    monkeypatch.setattr(WorkerProcess, "ask", dying)
    report = run_bench(Plan(("mobilemamba_nano",), img_size=16, rounds=2, turn=0.02, threads=1, starts=0,
                            backends=("numpy", "onnxruntime")))
    assert [(row.backend, len(row.rounds)) for row in report.results] == [("numpy", 2)]
    assert any("onnxruntime" in name and "the process ended" in reason for name, reason in report.left_out.items())


def test_a_worker_that_dies_or_sleeps(tmp_path):
    """Waiting for ever on a process that crashed or hangs."""
    with pytest.raises(WorkerFailed, match="no answer within"):
        WorkerProcess(job(tmp_path), limit=0.001)
    worker = WorkerProcess(job(tmp_path))
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(WorkerFailed, match="the process ended"):
        worker.ask("memory")
    worker.close()


def test_absent_backends(monkeypatch, capsys):
    """A backend that was asked for by name silently left out; one that was not asked for ending the run."""
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "openvino" else True)
    assert 'pip install "mmref[openvino]"' in backends.absent("openvino")
    assert backends.absent("onnxruntime") is None
    with pytest.raises(MissingBackend, match="openvino is not installed"):
        run_bench(Plan(("mobilemamba_nano",), backends=("numpy", "openvino")))
    assert main([*TINY, "--backends", "tensorflow"]) == 2
    assert "numpy, numba, torch-eager" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"batches": (0,)}, {"batches": ()}, {"threads": 0},
                                     {"img_size": -1}])
def test_plans_refused(changes):
    """A benchmark of nothing that divides by zero after a minute."""
    with pytest.raises(ValueProblem, match="must be 1 or more"):
        Plan(**changes)


def test_networks_side_by_side():
    """Catches a ratio that is upside down or not paired, work of another size, and a network timed at a wrong one."""
    report = run_bench(Plan(("mobilemamba_nano", "localvim_t"), img_size=32, rounds=3, turn=0.001, threads=1, starts=0,
                            backends=("torch-eager",), cpu_time=True))
    found, = report.side_by_side
    assert report.clock == "processor" and report.left_out == {}
    assert [(row.model, row.img_size) for row in found.rows] == [("mobilemamba_nano", 32), ("localvim_t", 32)]
    for row in found.rows:
        counted = work(create_model(row.model), 32)
        assert (row.macs, row.state_updates, row.steps, row.bytes) == (
            counted.macs, counted.state_updates, counted.steps, counted.bytes)
    first, last = (np.array(row.rounds["torch-eager"]) for row in found.rows)
    low, middle, high = np.quantile(last / first, (0.25, 0.5, 0.75))
    lines = to_text(report).split("Networks side by side")[1].splitlines()
    line = next(line.split() for line in lines if line.startswith("mobilemamba_nano"))
    assert line[-2:] == [f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
    assert line[-4] == f"{1 / np.median(first):.1f}"
    assert side_by_side.shapes_of(["a", "b"], {"a": 192, "b": 224}.get) == [("a", 192), ("a", 224), ("b", 224)]


def test_processor_time(monkeypatch):
    """Catches the clock's seconds taken for the processor's, and the sum over threads taken for a time."""
    worker = Worker()
    worker.forward = lambda: time.sleep(0.02)
    assert max(worker.run(3, cpu=True)["seconds"]) < min(worker.run(3)["seconds"])
    for threads in (2, None):
        with pytest.raises(ValueProblem, match="threads must be 1"):
            Plan(threads=threads, cpu_time=True)


def test_rates_are_those_of_trained_networks():
    """Catches untrained decay rates timed, for which kernels have a short cut that trained weights do not take."""
    model = create_model("localvim_t")
    before = dict(model.walk())["layers.0.mixer"].A_log_0.copy()
    measure.spread_rates(model)
    after = dict(model.walk())["layers.0.mixer"].A_log_0
    rates = np.exp(after)
    assert after.dtype == np.float32 and not np.array_equal(before, after)
    assert np.abs(rates / rates[:, :1] - np.arange(1, 17))[:, 1:].min(1).max() > 1e-2


def test_the_faster_form_of_the_scan(monkeypatch):
    """Catches PyTorch's LocalVim timed with the slower form of its recurrence."""
    from mmref.bench import torch_localvim

    def slow(*arguments):
        return [torch_localvim.scan_by_steps(*arguments) for _ in range(20)][0]
    contestant = object.__new__(backends.TorchEager)
    contestant.module = torch_localvim.LocalVim(16, ("h v", "w2 v_flip"), 5, 64).eval()
    for scans in ({"slow": slow, "fast": torch_localvim.scan_by_steps}, {"fast": torch_localvim.scan_by_steps,
                                                                         "slow": slow}):
        monkeypatch.setattr(torch_localvim, "SCANS", scans)
        contestant.prepare((1, 3, 64, 64))
        assert {module.scan for module in contestant.module.modules() if isinstance(module, torch_localvim.Mixer)} == {
            torch_localvim.scan_by_steps}
