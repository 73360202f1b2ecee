"""Conversion: the right numbers, or the old file untouched, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from assertions import assert_close

from mmref.cli import main
from mmref.errors import CheckpointError
from mmref.weights import convert, read_checkpoint, safetensors_file
from mmref.weights.pth_writer import write_pth

STATE = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.float32([1, 2, 3]),
         "n.num_batches_tracked": np.array(7), "scalar": np.array(2.5, np.float32)}


@pytest.fixture
def source(tmp_path):
    write_pth(tmp_path / "in.pth", STATE)
    return tmp_path / "in.pth"


@pytest.fixture
def old(tmp_path):
    """A good file that stands where the new one is to go, and a check that it is still the old one."""
    write_pth(tmp_path / "old.pth", {"old": np.ones(3, np.float32)})
    convert(tmp_path / "old.pth", tmp_path / "out.safetensors")
    return tmp_path / "out.safetensors"


def temporaries(folder):
    return list(folder.glob(".mmref-*"))


def test_numbers_survive(source, tmp_path):
    """Catches permuted, narrowed or renamed tensors: our reader and the safetensors library both give what went in."""
    from safetensors.numpy import load_file
    done = convert(source, tmp_path / "out.safetensors", metadata={"licence": "MIT"})
    assert done.source == "flat"
    for tensors in (read_checkpoint(tmp_path / "out.safetensors").tensors, load_file(tmp_path / "out.safetensors")):
        assert set(tensors) == set(STATE)
        for name, array in STATE.items():
            assert_close(tensors[name], array, 0)
    assert read_checkpoint(tmp_path / "out.safetensors").metadata == {"licence": "MIT"}
    assert temporaries(tmp_path) == []


def test_transposed_arrays(tmp_path):
    """Catches the safetensors library's silent permutation of arrays that are not C-contiguous."""
    torch = pytest.importorskip("torch")
    torch.save({"t": torch.arange(6.0).reshape(2, 3).t()}, tmp_path / "t.pth")
    convert(tmp_path / "t.pth", tmp_path / "t.safetensors")
    assert_close(read_checkpoint(tmp_path / "t.safetensors").tensors["t"],
                 np.arange(6, dtype=np.float32).reshape(2, 3).T, 0)
    views = {"t": STATE["a.weight"].T, "s": STATE["a.weight"][:, ::2], "r": STATE["a.bias"][::-1]}
    safetensors_file.write(tmp_path / "v.safetensors", views)
    for name, array in read_checkpoint(tmp_path / "v.safetensors").tensors.items():
        assert_close(array, views[name], 0)


def test_a_write_that_goes_wrong_is_noticed(source, old, monkeypatch):
    """Catches a file put in place without being read back: one flipped bit in what the library writes is enough."""
    import safetensors.numpy
    good = safetensors.numpy.save

    def flipped(*args, **kwargs):
        data = bytearray(good(*args, **kwargs))
        data[-1] ^= 1
        return bytes(data)

    before = old.read_bytes()
    monkeypatch.setattr(safetensors.numpy, "save", flipped)
    with pytest.raises(CheckpointError, match="does not read back bit for bit"):
        convert(source, old)
    assert old.read_bytes() == before and temporaries(old.parent) == []


def test_targets_that_cannot_be(source, tmp_path):
    """Catches a source overwritten by its own conversion, and files whose name says something else."""
    with pytest.raises(CheckpointError, match="must end in .safetensors"):
        convert(source, tmp_path / "out.pth")
    convert(source, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="another file than the source"):
        convert(tmp_path / "a.safetensors", tmp_path / "." / "a.safetensors")
    write_pth(tmp_path / "meta.pth", {"__metadata__": np.ones(2, np.float32)})
    with pytest.raises(CheckpointError, match="__metadata__"):
        convert(tmp_path / "meta.pth", tmp_path / "b.safetensors")
    with pytest.raises(OSError):
        convert(source, tmp_path / "nowhere" / "b.safetensors")
    long = tmp_path / ("x" * 240 + ".safetensors")  # a temporary name must not be longer than the name itself
    convert(source, long)
    assert long.exists()


def python(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# Sends itself SIGKILL at the n-th system-level step of writing.
KILLED = """
import os, signal, sys
import mmref.files as atomic, mmref.weights.safetensors_file as file
import pathlib, safetensors.numpy
from mmref.weights import convert
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
def half(self, data):
    with open(self, 'wb') as f: f.write(data[:len(data) // 2]); f.flush()
    die()
stage = sys.argv[1]
if stage == 'read': file.write = die; import mmref.weights.conversion as c; c.safetensors_file.write = die
if stage == 'serialised': safetensors.numpy.save = die
if stage == 'half written': pathlib.Path.write_bytes = half
if stage == 'written': file.read = die
if stage == 'before fsync': os.fsync = die
if stage == 'before replace': os.replace = die
if stage == 'after replace': atomic.sync_folder = die
convert(sys.argv[2], sys.argv[3])
"""


@pytest.mark.parametrize("stage", ["read", "serialised", "half written", "written", "before fsync", "before replace",
                                   "after replace"])
def test_kill_9(source, old, stage):
    """Catches a moment at which a killed conversion leaves neither the old file nor the new one."""
    command = [sys.executable, "-c", KILLED, stage, str(source), str(old)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tensors = read_checkpoint(old).tensors
    assert set(tensors) == (set(STATE) if stage == "after replace" else {"old"})
    convert(source, old)  # what a killed one left behind is in nobody's way
    assert set(read_checkpoint(old).tensors) == set(STATE)


def test_kill_9_at_any_time(source, old):
    """Catches what the named stages miss: kills at moments the clock chooses."""
    code = ("from mmref.weights import convert\nprint('ready', flush=True)\n"
            f"while True: convert({str(source)!r}, {str(old)!r})")
    for wait in np.linspace(0, 0.05, 6):
        process = python(code)
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.communicate()
        assert set(read_checkpoint(old).tensors) in (set(STATE), {"old"})


def test_a_full_disk(source, old):
    """Catches a half-written file in place of the old one, and rubbish left when the disk is full (here: a limit on
    the size of files, which fails in the same call)."""
    before = old.read_bytes()
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from mmref.cli import main; "
            "sys.exit(main(['convert', sys.argv[1], sys.argv[2]]))")
    command = [sys.executable, "-c", code, str(source), str(old)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{old}: File too large" in done.stderr
    assert old.read_bytes() == before and temporaries(old.parent) == []


def test_two_at_once(source, old):
    """Catches two conversions that share a temporary file: both end well and the file is whole."""
    code = f"from mmref.weights import convert\nfor _ in range(20): convert({str(source)!r}, {str(old)!r})"
    processes = [python(code), python(code)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert set(read_checkpoint(old).tensors) == set(STATE) and temporaries(old.parent) == []


def test_ctrl_c_cleans_up(source, old, monkeypatch):
    """Catches a temporary file that stays when the user stops a conversion."""
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["convert", str(source), str(old)]) == 130
    assert temporaries(old.parent) == []


def test_the_command(tmp_path, capsys):
    """Catches a command that does not say what it took, what it left and what it passed over."""
    torch = pytest.importorskip("torch")
    torch.save({"net": {"w": torch.ones(2)}, "net_E": {"w": torch.zeros(2)}, "note": {"x": {1, 2}}}, tmp_path / "a.pth")
    out = str(tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.pth"), out]) == 0
    text = capsys.readouterr().out
    assert "entry net_E" in text and "also there: net" in text and "not executed: __builtin__.set" in text
    assert main(["convert", str(tmp_path / "a.pth"), out, "--prefer", "net", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["taken"] == "net" and answer["tensors"] == 1 and answer["foreign"] == ["__builtin__.set"]
    assert (read_checkpoint(out).tensors["w"] == 1).all()
    before = open(out, "rb").read()
    assert main(["convert", str(tmp_path / "a.pth"), out, "--strict"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmref: error: ") and "a.pth" in error and error.count("\n") == 1
    assert open(out, "rb").read() == before
    torch.save({"w": torch.tensor([float("nan")])}, tmp_path / "n.pth")
    assert main(["convert", str(tmp_path / "n.pth"), str(tmp_path / "n.safetensors")]) == 2
    assert not (tmp_path / "n.safetensors").exists()
    assert main(["convert", str(tmp_path / "n.pth"), str(tmp_path / "n.safetensors"), "--allow-nonfinite"]) == 0
