"""Traces: what they hold, that files come whole, that foreign files are read safely."""

from __future__ import annotations

import contextlib
import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

import mmref
from mmref.cli import main
from mmref.validate.trace import trace_model
from mmref.validate.trace_file import TraceError, read_npy, read_trace, write_trace


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((2, 3, 33, 17)).astype(np.float32)


def test_holds_every_layer_and_the_inside_of_the_scan(model, x):
    """Catches a layer that is not recorded, a wrong order, or an output that is not the run's."""
    trace = trace_model(model, x)
    assert list(trace.records)[0] == "input" and list(trace.records)[-1] == "output"
    for name in ("patch_embed.0.c", "blocks2.1.se.gate", "blocks1.0.mixer.m.attn.global_op.global_atten:delta"):
        assert name in trace.records
    np.testing.assert_array_equal(trace.records["output"], model(x.astype(np.float64)))
    assert set(trace.manifest["noise"]) == set(trace.records) and min(trace.manifest["noise"].values()) > 0


def test_command_writes_what_it_says(tmp_path, x):
    """Catches a filter that is ignored, a lost manifest, float32 that becomes float64."""
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "t.safetensors"
    options = ["--dtype", "float32", "--filter", "input,blocks1.*", "-o", str(out)]
    assert main(["trace", str(tmp_path / "x.npy"), *options]) == 0
    trace = read_trace(out)
    assert all(name == "input" or name.startswith("blocks1.") for name in trace.records)
    assert {array.dtype for array in trace.records.values()} == {np.dtype(np.float32)}
    assert trace.manifest["order"] == list(trace.records) and trace.manifest["weights"] == "pretrained"


@pytest.mark.parametrize("arguments", [["--filter", "nothing"], ["-o", "/nowhere/t.safetensors"]])
def test_bad_use_is_status_2_and_leaves_no_file(tmp_path, x, arguments, capsys):
    """Catches a traceback or a half-written file."""
    np.save(tmp_path / "x.npy", x)
    assert main(["trace", str(tmp_path / "x.npy"), "-o", str(tmp_path / "t.safetensors"), *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def _npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def _npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def _bad_files(folder):
    _npz(folder / "object.npz", a=_npy(np.array([{}], object), allow_pickle=True))
    _npz(folder / "complex.npz", a=_npy(np.ones(3, complex)))
    huge = _npy(np.zeros((11, 11), np.float32)).replace(b"(11, 11)", b"(2**40,)"[:8].replace(b"2**40,", b"99999,"))
    _npz(folder / "huge.npz", a=huge)
    _npz(folder / "cut.npz", a=_npy(np.zeros(100))[:-8])
    (folder / "text.npz").write_text("<html>")
    (folder / "cut.safetensors").write_bytes(b"\x00" * 7)
    (folder / "folder").mkdir()
    np.save(folder / "folder" / "a.npy", np.array([None], object), allow_pickle=True)
    (folder / "empty").mkdir()
    return ["object.npz", "complex.npz", "huge.npz", "cut.npz", "text.npz", "cut.safetensors", "folder", "empty"]


def test_foreign_files_are_read_safely(tmp_path):
    """Catches unpickling, allocation by a header's word, and errors without a type."""
    for name in _bad_files(tmp_path):
        with pytest.raises(TraceError, match=name):
            read_trace(tmp_path / name)


def _header(text, version=1, length=None):
    body = text.encode()
    size = (len(body) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + body


def _attack(folder, kind):
    """A file made to hurt whoever reads it."""
    path, header = folder / f"{kind}.npz", "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "bomb":
            with archive.open("a.npy", "w", force_zip64=True) as file:
                file.write(_header(header % "(90000000,)"))
                for _ in range(9):
                    file.write(bytes(40_000_000))
        elif kind == "twice":
            with pytest.warns(UserWarning):
                archive.writestr("a.npy", _npy(np.ones(3)))
                archive.writestr("a.npy", _npy(np.zeros(3)))
        else:
            archive.writestr("a.npy", {
                "header-of-4-GB": _header("", 2, 2 ** 32 - 1), "header-of-code": _header("__import__('os').abort()"),
                "header-nested": _header("(" * 5000), "header-cut": _header(header % "(2,)", length=9000),
                "header-tokens": _header("{'descr': " + 3 * "'"), "negative": _header(header % "(-1, -4)") + bytes(16),
                "overflow": _header(header % "(4611686018427387904, 4611686018427387904)") + bytes(16),
                "empty-giant": _header(header % "(0, 9223372036854775807, 9)"),
                "record-type": _npy(np.zeros(2, [("a", "f4"), ("b", "O")]), allow_pickle=True),
                "text": _npy(np.array(["a"])), "times": _npy(np.array(["2020"], "M8[s]")),
                "version-3": _header("", 3)}[kind])
    return path


@pytest.mark.parametrize("kind", ["bomb", "twice", "header-of-4-GB", "header-of-code", "header-nested", "header-cut",
                                  "header-tokens", "negative", "overflow", "empty-giant", "record-type", "text",
                                  "times", "version-3"])
def test_attacks_are_refused(tmp_path, kind, capsys):
    """Catches a reader that believes a header before it has counted, or lets a parser's error through; on the command
    line it is one line and status 2."""
    path = _attack(tmp_path, kind)
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match=path.name):
            read_trace(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["link", "link away", "fifo", "folder"])
def test_folders_lead_nowhere_else(tmp_path, kind):
    """Catches a folder of records that reads what lies outside it, or waits for ever on what is no file."""
    np.save(tmp_path / "outside.npy", np.ones(3))
    folder = tmp_path / "trace"
    folder.mkdir()
    record = folder / "a.npy"
    {"link": lambda: record.symlink_to(tmp_path / "outside.npy"), "link away": lambda: record.symlink_to("/dev/zero"),
     "fifo": lambda: os.mkfifo(record), "folder": record.mkdir}[kind]()
    with pytest.raises(TraceError, match="plain file"):
        read_trace(folder)
    with pytest.raises(TraceError) if kind not in ("link",) else contextlib.nullcontext():
        read_npy(record)


def test_names_are_only_names(tmp_path):
    """Catches a record's name that is used as a path."""
    names = ["../../escaped", "/etc/passwd", "a\\b", "<b>", "\x1b[2J", "ü" * 300]
    np.savez(tmp_path / "a.npz", **{name: np.ones(2) for name in names})
    assert set(read_trace(tmp_path / "a.npz").records) == set(names)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_folder_and_npz_and_fortran_order_come_back(tmp_path):
    """Catches axes that are turned, or a big-endian array left so."""
    array = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.b.npy", np.asfortranarray(array))
    np.savez_compressed(tmp_path / "a.npz", **{"a.b": array})
    for path in ("folder", "a.npz"):
        got = read_trace(tmp_path / path).records["a.b"]
        np.testing.assert_array_equal(got, array)
        assert got.dtype == np.dtype("f4")


@pytest.mark.parametrize("key, value", [
    ("noise", {"input": float("nan")}), ("noise", {"input": float("inf")}), ("noise", {"input": 10 ** 400}),
    ("noise", {"input": -1}), ("noise", {"input": True}), ("noise_float16", {"input": "1"}), ("noise", [1]),
    ("order", [1]), ("order", "input"), ("model", 3), ("weights", {}), ("num_classes", "10"), ("folded", "no")])
def test_manifest_of_wrong_types_is_refused(tmp_path, model, x, key, value):
    """Catches a manifest that is believed: NaN noise would make every record the same."""
    trace = trace_model(model, x, "input")
    trace.manifest[key] = value
    write_trace(tmp_path / "t.safetensors", trace)
    with pytest.raises(TraceError, match=key.split("_f")[0]):
        read_trace(tmp_path / "t.safetensors")


def test_the_estimate_is_right(tmp_path, x, capsys):
    """Catches an estimate that forgets the batch, the filter or the dtype, and one that writes."""
    np.save(tmp_path / "x.npy", x)
    for options in ((), ("--dtype", "float32"), ("--filter", "*:A,*:delta")):
        arguments = ["trace", str(tmp_path / "x.npy"), "-o", str(tmp_path / "t.safetensors"), *options]
        assert main([*arguments, "--dry-run"]) == 0
        said = capsys.readouterr().err.strip()
        assert not (tmp_path / "t.safetensors").exists()
        assert main(arguments) == 0
        records = read_trace(tmp_path / "t.safetensors").records
        assert said == f"{len(records)} records, {sum(a.nbytes for a in records.values()) / 1e6:,.1f} MB"
        (tmp_path / "t.safetensors").unlink()
        capsys.readouterr()
