"""The command line: what a person and a program get, and that nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmref.cli import COMMANDS, main
from mmref.data.samples import sample_picture


def run(capsys, *argv):
    """(exit status, stdout, stderr) of a command run in this process."""
    try:
        status = main([str(a) for a in argv])
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def one_line_error(status, err):
    assert status == 2
    assert err.startswith("mmref: error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder: a photograph, another in a folder below, a broken file, and something that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    sample_picture("cat").save(folder / "cat.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    Image.fromarray(noise).save(folder / "below" / "noise.png")
    (folder / "broken.jpg").write_bytes((folder / "cat.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("no picture")
    (folder / "._cat.jpg").write_bytes(b"\0\5\x16\7 what macOS leaves beside a picture")
    return folder


def test_the_main_job(capsys):
    """Catches a package that installs and answers nothing, or nonsense: the cat must be a cat. And no word on stderr,
    or more than one, about a network that knows ten classes: it calls fields from the air an airplane."""
    status, out, err = run(capsys, "classify", "--sample", "cat")
    assert status == 0 and err.count("\n") == 1 and "mobilemamba_nano knows ten classes only (airplane, auto" in err
    first = out.splitlines()[1].split()
    assert first[-1] == "cat" and float(first[0].rstrip("%")) > 90
    status, out, err = run(capsys, "classify", "--sample", "aero", "--sample", "camera")
    assert status == 0 and err.count("ten classes only") == 1 and out.startswith("sample aero: airplane")


def test_json_and_topk(capsys, pictures):
    """Catches output that a program cannot read, and probabilities that do not belong to their labels."""
    status, out, _ = run(capsys, "classify", pictures / "cat.jpg", "--json", "--topk", 10)
    answer = json.loads(out)[0]
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert status == 0 and answer["error"] is None and answer["predictions"][0]["label"] == "cat"
    assert len(probabilities) == 10 and abs(sum(probabilities) - 1) < 1e-9
    assert probabilities == sorted(probabilities)[::-1]


def test_folders_and_a_bad_picture(capsys, pictures):
    """Catches a bad picture that stops the others, is passed over in silence, or leaves the exit status at 0."""
    status, out, err = run(capsys, "classify", pictures)
    assert status == 2 and len(out.splitlines()) == 2
    assert "cat.jpg: cat" in out and "noise.png: " in out
    assert len([line for line in err.splitlines() if "error" in line and "broken.jpg" in line]) == 1
    assert "alpha dropped" in err and "notes.txt" not in out + err


@pytest.mark.parametrize("arguments", [["classify", "-"], ["trace", "-", "--dry-run", "-o", "t"],
                                       ["show", "-", "--what", "scan", "-o", "x.png"]])
def test_a_picture_from_standard_input(arguments, pictures, tmp_path):
    """Catches "-" taken for a file of that name, wherever a picture is taken; and a hang where there is no input."""
    if arguments[0] == "show":
        pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "mmref", *arguments]
    data = (pictures / "cat.jpg").read_bytes()
    done = subprocess.run(command, input=data, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if arguments[0] == "classify":
        assert b"cat" in done.stdout.splitlines()[1]
    empty = subprocess.run(command, input=b"", capture_output=True, check=False, cwd=tmp_path)
    assert empty.returncode == 2 and b"empty file" in empty.stderr and empty.stderr.count(b"\n") == 1
    if os.name == "posix":
        closed = subprocess.run([*command, *arguments[1:2]] if arguments[0] == "classify" else command,
                                preexec_fn=lambda: os.close(0), capture_output=True, check=False, cwd=tmp_path)
        assert closed.returncode == 2 and b"standard input" in closed.stderr and closed.stderr.count(b"\n") == 1


@pytest.mark.parametrize("argv, message", [
    (["classify"], "at least one file or folder"),
    (["classify", "/nonexistent.jpg"], "nonexistent"),
    (["classify", "--sample", "moon"], "cat, scene1, scene2, aero, ascent, camera, got 'moon'"),
    (["classify", "--sample", "cat", "--model", "resnet"], "got 'resnet'"),
    (["classify", "--sample", "cat", "--weights", "/nonexistent.pth"], "/nonexistent.pth"),
    (["classify", "--sample", "cat", "--num-classes", "7"], "must be 10"),
    (["classify", "--sample", "cat", "--topk", "0"], "topk"),
    (["classify", "--sample", "cat", "--model", "mobilemamba_t2", "--weights", "NANO"], "They fit mobilemamba_nano"),
    (["info", "mobilemamba_x"], "mobilemamba_x"),
])
def test_errors_are_one_line(capsys, monkeypatch, tmp_path, argv, message):
    """Catches tracebacks, errors of several lines and exit status 0."""
    from mmref.models.create import pretrained_weights
    monkeypatch.setenv("MMREF_HOME", str(tmp_path))
    argv = [str(pretrained_weights("mobilemamba_nano")) if a == "NANO" else a for a in argv]
    status, out, err = run(capsys, *argv)
    assert message in one_line_error(status, err) and out == ""


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["classify", "--nonsense"], ["info"], ["classify", "--std", "1"],
                                  ["classify", "--topk", "a\nb"]])
def test_wrong_usage(capsys, argv):
    """Catches a usage error that is not status 2, or of more than one line."""
    status, out, err = run(capsys, *argv)
    assert "--help" in one_line_error(status, err) and out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    """Catches a command whose module does not import or whose arguments clash."""
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and f"usage: mmref {command}" in out


def test_models_and_info(capsys):
    """Catches parameter and multiply-add counts that differ from those that spec and paper give."""
    status, out, _ = run(capsys, "models", "--json")
    rows = {row["model"]: row for row in json.loads(out)}
    assert status == 0 and rows["mobilemamba_t2"]["param_count"] == 8_806_682
    assert rows["mobilemamba_b4"]["top1"] == 82.496
    assert "mobilemamba_s6" in run(capsys, "models")[1]
    status, out, _ = run(capsys, "info", "mobilemamba_t2", "--json")
    total = json.loads(out)["layers"][0]
    assert status == 0 and total["parameters"] == 8_806_682 and round(total["macs"] / 1e6, 1) == 251.4
    status, out, _ = run(capsys, "info", "mobilemamba_nano", "--img-size", "33")
    assert status == 0 and "blocks2.1" in out and "backend numpy: ready" in out


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
def test_streams_that_cannot_be_written():
    """Catches tracebacks where standard output is closed, messages in the answer where standard error is, an answer
    lost with the messages, and an answer lost without a word."""
    def status_and_texts(redirection):
        program = f'{shlex.quote(sys.executable)} -m mmref classify --sample cat --json {redirection}'
        done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
    status, out, err = status_and_texts(">&-")
    assert status == 2 and out == "" and err.count("mmref: error") == 1 and "standard output is closed" in err
    for lost in ("2>&-", "2>/dev/full")[:1 + os.path.exists("/dev/full")]:
        status, out, err = status_and_texts(lost)
        assert status == 0 and json.loads(out)[0]["error"] is None and err == ""
    assert status_and_texts(">&- 2>&-") == (2, "", "")


def test_a_closed_pipe_and_ctrl_c(tmp_path):
    """Catches "Exception ignored ... BrokenPipeError", and a traceback on Ctrl-C."""
    command = [sys.executable, "-m", "mmref", "models"]
    ends = os.pipe()
    os.close(ends[0])
    closed = subprocess.run(command, stdout=ends[1], stderr=subprocess.PIPE, text=True, check=False)
    os.close(ends[1])
    assert closed.returncode == 0 and closed.stderr == ""
    # a shell starts background jobs with SIGINT ignored, their children inherit that, and Python leaves it so
    code = "import os, signal, mmref.cli.models as m; signal.signal(signal.SIGINT, signal.default_int_handler); " \
           "m.run = lambda args: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(5); " \
           "from mmref.cli import main; raise SystemExit(main(['models']))"
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr
