"""`mmref eval` as a user meets it: output, files, exit status, and one line for every failure."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from colour_model import paint
from safetensors.numpy import save_file

import mmref
from mmref.cli import main
from mmref.data.labels import CIFAR10


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten class folders of four pictures, one broken, and untrained weights: answers are arbitrary but fixed."""
    root = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(0)
    for name in CIFAR10:
        for i in range(4):
            paint(root / "data" / "test" / name / f"{i}.png", tuple(rng.integers(0, 256, 3).tolist()))
    (root / "data" / "test" / "frog" / "2.png").write_bytes(b"GIF89a")
    parameters = mmref.create_model("mobilemamba_nano", seed=1).state_dict()
    save_file({name: np.ascontiguousarray(array) for name, array in parameters.items()}, root / "nano.safetensors",
              {"class_names": json.dumps(CIFAR10)})
    return root


def command(data, *more):
    return ["eval", str(data / "data" / "test"), "--weights", str(data / "nano.safetensors"), "--img-size", "32",
            "--batch-size", "8", *map(str, more)]


def test_output_files_and_status(data, tmp_path, capsys):
    """Catches: a bad picture that stops the run or leaves the status 0; CSV, JSON and screen that disagree."""
    assert main(command(data, "--results-file", tmp_path / "r.csv", "--json")) == 2
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert results["pictures"] == 40 and results["answered"] == 39
    assert results["bad"] == [{"picture": os.path.join("frog", "2.png"), "error": results["bad"][0]["error"]}]
    assert "expected JPEG, PNG, WEBP or BMP, got GIF" in err and "classes by names" in err
    row, = csv.DictReader((tmp_path / "r.csv").open())
    assert list(row) == ["model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct",
                         "interpolation"]
    assert {k: str(results[k]) for k in row} == row and row["param_count"] == "1.79" and row["img_size"] == "32"
    assert main(command(data, "--topk", 3, "--worst", 2, "--results-file", tmp_path / "r3.json")) == 2
    out, _ = capsys.readouterr()
    three = json.loads((tmp_path / "r3.json").read_text())
    assert f"top-1  {results['top1']:.2f} %" in out and f"top-3  {three['top3']:.2f} %" in out
    assert "bad    1 pictures, not counted" in out and out.count("/4") + out.count("/3") == 2


def test_every_way_gives_the_same_file(data, tmp_path, capsys):
    """Catches: figures that depend on processes, threads, the cluster or a resume: the files are equal to the byte."""
    files = []
    ways = [["--workers", 0], ["--workers", 3], ["--processes", 2], ["--resume", tmp_path / "j"],
            ["--resume", tmp_path / "j", "--processes", 2]]
    try:
        import distributed  # noqa: F401
        ways.append(["--scheduler", "local:2"])
    except ImportError:
        pass
    for i, way in enumerate(ways):
        files.append(tmp_path / f"{i}.json")
        assert main(command(data, "--results-file", files[-1], *way)) == 2
        if "--resume" in way:  # as a kill would leave it
            journal = (tmp_path / "j").read_bytes()
            (tmp_path / "j").write_bytes(journal[:len(journal) * 2 // 3])
    assert len({file.read_bytes() for file in files}) == 1


def test_results_that_cannot_be_written_are_not_lost(data, tmp_path, capsys, monkeypatch):
    """Catches: hours of answers lost because the last step fails: the disk is full, the folder gone. The figures are
    printed, the message says where the answers are, and the same command goes on from there."""
    from mmref.evaluate import tally
    results = tmp_path / "r.json"
    replacing = tally.replacing

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tally, "replacing", full)
    assert main(command(data, "--results-file", results, "--json")) == 2
    out, err = capsys.readouterr()
    journal = tmp_path / "r.json.journal"
    assert json.loads(out)["answered"] == 39 and not results.exists() and journal.exists()
    assert f"r.json: No space left on device; all answers are in {journal}" in err.splitlines()[-1]
    monkeypatch.setattr(tally, "replacing", replacing)
    from mmref.tasks.predictor import Predictor
    monkeypatch.setattr(Predictor, "answers", None)  # nothing is computed again
    assert main(command(data, "--results-file", results)) == 2
    assert json.loads(results.read_text()) == json.loads(out) and not journal.exists()


def test_a_journal_that_cannot_be_written(data, tmp_path, capsys):
    """Catches: a traceback, or a second error from closing the file, when the disk is full in the middle."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    from mmref.evaluate.journal import Journal
    with pytest.raises(OSError, match="No space left.*--resume") as caught:
        with Journal(tmp_path / "j", {"a": 1}, None) as journal:
            with open("/dev/full", "wb") as full:
                os.dup2(full.fileno(), journal._file.fileno())
            journal.append({"start": 0, "top": []})
    assert caught.value.filename == str(tmp_path / "j")


def test_split_limit_labels_crop(data, tmp_path, capsys):
    """Catches: a flag that is read and has no effect."""
    def figures(*arguments):
        capsys.readouterr()
        assert main([*arguments, "--weights", str(data / "nano.safetensors"), "--img-size", "32", "--json"]) in (0, 2)
        return json.loads(capsys.readouterr().out)

    test = str(data / "data" / "test")
    everything = figures("eval", test)
    assert figures("eval", str(data / "data"), "--split", "test") == everything
    assert figures("eval", test, "--limit", "10")["pictures"] == 10
    assert figures("eval", test, "--crop-pct", "0.5")["crop_pct"] == 0.5
    reverse = tmp_path / "map.txt"
    reverse.write_text("\n".join(reversed(CIFAR10)))
    assert figures("eval", test, "--class-map", str(reverse))["list_sha256"] != everything["list_sha256"]
    flat = tmp_path / "flat"
    paint(flat / "a.png", "red")
    (tmp_path / "l.txt").write_text("a.png truck\n")
    assert figures("eval", str(flat), "--labels", str(tmp_path / "l.txt"))["classes"][0]["name"] == "truck"


@pytest.mark.parametrize("arguments, message", [
    (["eval", "none"], "none: not a folder"),
    (["eval", ".", "--model", "resnet50"], "model must be one of"),
    (["eval", ".", "--batch-size", "0"], "batch_size must be"),
    (["eval", ".", "--crop-pct", "7"], "crop_ratio must be"),
    (["eval", "{data}", "--limit", "0"], "limit must be"),
    (["eval", "{data}", "--processes", "0"], "processes must be"),
    (["eval", "{data}", "--scheduler", "local:x"], "scheduler must be local:N"),
    (["eval", "{data}", "--labels", "none.txt"], "none.txt: No such file"),
    (["eval", "{data}", "--resume", "/"], "/: "),
    (["eval", "{data}", "--resume", os.devnull], f"{os.devnull}: a journal must be a regular file"),
    (["eval", "{data}", "--worst", "-1"], "--worst must be an integer >= 0"),
    (["eval", "{data}", "--mean", "1e39", "0", "0"], "mean[0] must be a finite number in"),
    (["eval", "{data}", "--std", "1e-45", "1", "1"], "std[0] must be a finite number in"),
    (["eval", "{data}", "--results-file", "{data}/../nowhere/r.csv"], "nowhere")])
def test_one_line_and_status_2(data, arguments, message, capsys, monkeypatch):
    """Catches: a traceback, a second line, or status 0 for what a user can get wrong."""
    monkeypatch.chdir(data)
    arguments = [a.format(data=data / "data" / "test") for a in arguments]
    assert main([*arguments, "--weights", str(data / "nano.safetensors"), "--img-size", "32"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("mmref: 4")]
    assert len(err) == 1 and err[0].startswith("mmref: error: ") and message in err[0]


def test_no_picture_is_readable(data, tmp_path, capsys):
    """Catches: a division by zero, or 0 % reported where nothing was seen."""
    for name in CIFAR10:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    assert main(["eval", str(tmp_path), "--weights", str(data / "nano.safetensors"), "--img-size", "32"]) == 2
    assert "no picture could be read of 10, first:" in capsys.readouterr().err


def heed_ctrl_c():
    """In the child, before it runs: a shell starts background jobs with SIGINT ignored, and so are their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("way", [["--workers", "1"], ["--processes", "2"], ["--scheduler", "local:2"]])
def test_ctrl_c(data, tmp_path, way):
    """Catches: a traceback after Ctrl-C, from this process or from its workers, or processes that live on."""
    journal = tmp_path / "journal"
    arguments = command(data, "--resume", journal, "--progress", *way)
    if "--scheduler" in way:
        pytest.importorskip("distributed")
    arguments[arguments.index("--batch-size") + 1] = "1"
    arguments[arguments.index("--img-size") + 1] = "512"
    child = subprocess.Popen([sys.executable, "-m", "mmref", *arguments], stderr=subprocess.PIPE, text=True,
                             start_new_session=True, preexec_fn=heed_ctrl_c)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    err = child.stderr.read()
    assert child.wait(60) == 130 and "Traceback" not in err
    assert f"kept in {journal}: the same command resumes from there" in err
    assert "img/s" in err or "s/img" in err
