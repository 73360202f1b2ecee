"""Traces: what they hold, that files come whole, that foreign files are read safely."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

import mmref
from mmref.cli import main
from mmref.validate.trace import trace_model
from mmref.validate.trace_file import TraceError, read_trace, write_trace


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


def test_manifest_of_wrong_types_is_refused(tmp_path, model, x):
    """Catches a manifest that is believed: NaN noise would make every record the same."""
    trace = trace_model(model, x, "input")
    trace.manifest["noise"] = {"input": float("nan")}
    write_trace(tmp_path / "t.safetensors", trace)
    with pytest.raises(TraceError, match="noise"):
        read_trace(tmp_path / "t.safetensors")
