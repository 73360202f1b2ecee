"""`mmref compare`: the first layer that differs and why, names and layouts, and runs that must not be accused.

The whole mutation bench is tests/mutation_bench.py; here are some of its faults of every kind.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import mmref
from mmref.cli import main
from mmref.errors import ValueProblem
from mmref.validate.compare import compare
from mmref.validate.matching import align, read_mapping
from mmref.validate.trace import Trace, trace_model
from mmref.validate.trace_file import write_trace

pytest.importorskip("torch")

import mutation_bench as bench
from mutations import GLOBAL, PREPARATION, SCAN, TORCH

FEW = ("sub-bands swapped in both", "samples mixed in the merge", "batch norm eps 1e-6", "softplus missing",
       "odd map padded top left", "FFN with ReLU6", "one weight off by 1 %")
FEW_ONNX = ("backward reads forwards", "batch norm folded without mean", "dt bias missing",
            "state carried to the next sample", "channels joined local first", "in_proj transposed")


def check(rows, count):
    wrong = [row for row in rows if not row["layer_right"] or row["key_right"] is False]
    assert not wrong and len(rows) == count


def test_faults_in_pytorch_are_named():
    """Catches a comparison that has gone blind, or diagnoses that no longer reproduce what a port does."""
    check(list(bench.run_torch([m for m in TORCH if m.name in FEW])), len(FEW))


def test_faults_in_an_onnx_graph_are_named():
    """Catches the same for folded graphs, whose layers have other names and other mistakes."""
    pytest.importorskip("onnxruntime")
    from onnx_mutations import ONNX
    check(list(bench.run_onnx([m for m in ONNX if m.name in FEW_ONNX])), len(FEW_ONNX))


def test_faults_in_preparing_the_picture_are_named():
    """Catches a picture prepared otherwise that is blamed on the network."""
    check(list(bench.run_preparation()), len(PREPARATION))


def test_every_fault_changes_something():
    """Catches a planted fault that is none: a mutation nobody could find."""
    assert len({m.name for m in TORCH}) == len(TORCH) >= 40
    onnx_mutations = pytest.importorskip("onnx_mutations")
    assert len({m.name for m in onnx_mutations.ONNX}) == len(onnx_mutations.ONNX) >= 40


def test_faithful_runs_are_not_accused():
    """Catches limits so tight that rounding, folding, float16 or another runtime's fusions look like faults."""
    pytest.importorskip("onnxruntime")
    rows = list(bench.run_faithful(len(bench.KINDS), seed=1, largest=64))
    assert [row for row in rows if not row["same"]] == []
    assert {row["judged"] for row in rows} >= {"float64", "float32", "float16 weights", "float16"}
    assert min(row["rows"] for row in rows) > 80


# ---------------------------------------------------------------------------------------------- names and layouts

@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)


@pytest.fixture(scope="module")
def reference(model):
    return trace_model(model, bench.random_input(0, (2, 3, 83, 145)) * 20)


def single(reference):
    return {name: array.astype(np.float32) for name, array in reference.records.items()}


def test_channels_last_is_told_apart(model, reference):
    """Catches an NHWC candidate that is called wrong."""
    records = {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 and name != "input" else array
               for name, array in single(reference).items()}
    result = compare(reference, Trace(records), model=model)
    assert result.same and {row.layout for row in result.rows if row.name.startswith("blocks")} >= {"NHWC"}


def test_other_names_match_by_map_and_by_value(model, reference, tmp_path):
    """Catches a mapping that is ignored, and values that are not found again under foreign names."""
    ours = ["input", "patch_embed", "blocks1.0.dw0", "blocks2.3.ffn0", "output"]
    records = {f"mine/{i}": single(reference)[name] for i, name in enumerate(ours)}
    (tmp_path / "map.txt").write_text("# mine = theirs\n" + "".join(f"mine/{i} = {n}\n" for i, n in enumerate(ours)))
    (tmp_path / "map.json").write_text(json.dumps({f"mine/{i}": name for i, name in enumerate(ours)}))
    for file in ("map.txt", "map.json"):
        result = compare(reference, Trace(records), read_mapping(tmp_path / file), model)
        assert result.same and result.matched_by == "mapping" and [row.name for row in result.rows] == ours
    small = Trace({name: reference.records[name] for name in ours}, reference.manifest)
    result = compare(small, Trace(records), model=model)
    assert result.same and result.matched_by == "values"
    assert [(row.name, row.candidate) for row in result.rows] == list(zip(ours, records, strict=True))


def test_alignment_skips_what_has_no_partner():
    """Catches a greedy match that one extra record throws off."""
    a = {"x": np.ones((1, 2, 3, 4)), "y": np.ones((1, 5)), "z": np.ones((1, 7))}
    assert align(a, {"1": np.ones((1, 9)), "2": np.ones((1, 3, 4, 2)), "3": np.ones((1, 7))}) == {"x": "2", "z": "3"}


@pytest.mark.parametrize("text", ["no equals sign", '{"a": ', '{"a": 3}', "nobody = patch_embed",
                                  "a = patch_embed\nb = patch_embed", b"\xff\xfe"])
def test_bad_maps_are_refused(tmp_path, model, reference, text):
    """Catches a map of nonsense that ends in a traceback, or in a record that is quietly dropped."""
    path = tmp_path / "map"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    candidate = Trace({"a": reference.records["patch_embed"], "b": reference.records["patch_embed"]})
    with pytest.raises(ValueProblem, match="--map"):
        compare(reference, candidate, read_mapping(path), model)


# ------------------------------------------------------------------------------------------------------- verdicts

def test_same_says_what_it_could_not_show(model):
    """Catches a "same" that hides what one square sample of small values cannot show."""
    x = bench.random_input(0, (1, 3, 128, 128))
    trace = trace_model(model, x * 1e-3)
    text = " ".join(compare(trace, Trace(single(trace)), model=model).blind_spots)
    for word in ("samples that mix", "not square", "odd height", "odd width", "ReLU6"):
        assert word in text
    trace = trace_model(model, bench.random_input(0, (2, 3, 83, 145)) * 20)
    left, = compare(trace, Trace(single(trace)), model=model).blind_spots
    assert "chunks of 60 steps" in left  # which `mmref trace --thorough` shows, see test_validator_cases.py


def test_a_faint_fault_does_not_hide_behind_float16(model):
    """Catches a float32 candidate that is excused as one of float16, and a float16 one whose fault is excused."""
    reference = trace_model(model, bench.random_input(0, (2, 3, 83, 145)))
    records = single(reference)
    name = f"{SCAN}.out_norm"
    noise, half = (reference.manifest[key][name] for key in ("noise", "noise_float16"))
    assert half > 20 * noise
    records[name] = (reference.records[name] + 100 * noise).astype(np.float32)
    upto = list(records)[:list(records).index(name) + 1]  # what is behind it agrees, and would excuse it
    assert compare(reference, Trace({key: records[key] for key in upto}), model=model).first == name
    halves = {key: array.astype(np.float16) for key, array in reference.records.items()}
    assert compare(reference, Trace(halves), model=model).precision == "float16"
    halves[name] = (reference.records[name] + 40 * half).astype(np.float16)
    assert compare(reference, Trace({key: halves[key] for key in upto}), model=model).first == name


def test_not_finite_and_other_shapes(model, reference):
    """Catches NaN that compares as equal, and a shape that ends in a traceback."""
    for change, verdict in ((lambda a: a * np.float32(np.nan), "NOT FINITE"), (lambda a: a[..., 1:], "SHAPE")):
        records = single(reference)
        records[GLOBAL] = change(records[GLOBAL])
        result = compare(reference, Trace(records), model=model)
        assert result.first == GLOBAL and next(r for r in result.rows if r.name == GLOBAL).verdict == verdict


# --------------------------------------------------------------------------------------------------- command line

@pytest.fixture(scope="module")
def files(tmp_path_factory, model, reference):
    """(reference, faithful, faulty): what a user has on the disk."""
    folder = tmp_path_factory.mktemp("traces")
    reference.manifest["weights"] = "pretrained"
    write_trace(folder / "reference.safetensors", reference)
    np.savez(folder / "same.npz", **single(reference))
    wrong = model.astype(np.float32)
    scale, = (layer for path, layer in wrong.walk() if path == f"{GLOBAL}.base_scale")
    scale.weight = np.ones_like(scale.weight)
    np.savez(folder / "wrong.npz", **trace_model(wrong, reference.records["input"]).records)
    return folder


def test_command_status_and_json(files, capsys):
    """Catches an exit status that CI cannot use, and JSON with Infinity in it."""
    reference = str(files / "reference.safetensors")
    assert main(["compare", reference, str(files / "same.npz")]) == 0
    assert "SAME" in capsys.readouterr().out
    assert main(["compare", reference, str(files / "wrong.npz"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert answer["first"] == f"{GLOBAL}.base_scale" and not answer["same"]
    assert "scale-missing" in [d["key"] for d in answer["diagnoses"]]


def test_what_users_break_is_one_line(files, tmp_path, capsys, monkeypatch):
    """Catches a traceback: truncated and empty files, other weights, no files, outputs that cannot be written."""
    reference, same = str(files / "reference.safetensors"), str(files / "same.npz")
    for name, source in (("cut.safetensors", reference), ("cut.npz", same)):
        data = (files / source).read_bytes()
        (tmp_path / name).write_bytes(data[:len(data) // 2])
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "strangers.npz", a=np.ones(3), b=np.ones((7, 7)))
    wrong = tmp_path / "wrong.safetensors"
    from mmref.weights.safetensors_file import write
    write(wrong, mmref.create_model("mobilemamba_nano", seed=3).state_dict())
    for arguments in ([tmp_path / "cut.safetensors", same], [reference, tmp_path / "cut.npz"],
                      [reference, tmp_path / "nothing"], [reference, tmp_path / "folder"],
                      [reference, tmp_path / "absent"], [reference, tmp_path / "strangers.npz"],
                      [reference, same, "--weights", wrong], [reference, same, "--weights", tmp_path / "absent"],
                      [reference, same, "--map", tmp_path / "absent"],
                      [reference, same, "--html", tmp_path / "absent" / "x.html"],
                      [reference, same, "--html", tmp_path]):
        assert main(["compare", *map(str, arguments)]) == 2, arguments
        out, error = capsys.readouterr()
        assert error.startswith("mmref: error: ") and error.count("\n") == 1, (arguments, error)


def test_another_model_or_input_is_said(files, tmp_path, capsys):
    """Catches a run on another picture that is blamed on the network."""
    x = bench.random_input(9, (2, 3, 83, 145))
    other = trace_model(mmref.create_model("mobilemamba_nano", seed=1), x)
    np.savez(tmp_path / "other.npz", **other.records)
    assert main(["compare", str(files / "reference.safetensors"), str(tmp_path / "other.npz")]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS first at input" in out and "different inputs" in out
