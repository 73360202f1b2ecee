"""What `mmref compare` must not do to people: accuse right programs, explain without evidence, hide what was not
shown."""

from __future__ import annotations

import re

import numpy as np
import pytest

import mmref
from mmref.cli import main
from mmref.errors import ValueProblem
from mmref.nn.layer import BatchNorm, Conv2d
from mmref.validate.compare import compare
from mmref.validate.exercise import not_exercised, thorough_input
from mmref.validate.inputs import of_input
from mmref.validate.matching import match
from mmref.validate.names import paired, plain
from mmref.validate.roundings import bfloat16 as rounded_to_bfloat16
from mmref.validate.trace import Trace, trace_model
from mmref.validate.trace_file import TraceError, read_trace, write_trace

BLOCK = "blocks2.3"
SCAN = f"{BLOCK}.mixer.m.attn.global_op.global_atten"

STEM = "patch_embed.2.c"


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)


@pytest.fixture(scope="module")
def reference(model):
    x = np.random.default_rng(3).standard_normal((2, 3, 83, 49)).astype(np.float32) * 2
    return trace_model(model, x)


def single(reference):
    return {name: array.astype(np.float32) for name, array in reference.records.items()}


def changed(model, reference, change) -> dict:
    """Records of the network after `change(copy of it)`, float32."""
    wrong = model.astype(np.float64)
    change(wrong)
    return single(trace_model(wrong, reference.records["input"]))


def layer(model, path):
    return next(found for name, found in model.walk() if name == path)


# ------------------------------------------------------------------------------------------------- foreign names

def test_right_records_under_foreign_names_are_not_accused(model, reference):
    """Catches names matched by shape and order that make a right program wrong, with layers left out or shuffled."""
    rng = np.random.default_rng(0)
    records = single(reference)
    names = [name for name in records if name in ("input", "output") or rng.random() < 0.5]
    foreign = {name if name in ("input", "output") else f"t{i}": records[name] for i, name in enumerate(names)}
    order = list(foreign)
    for keys in (order, [order[i] for i in rng.permutation(len(order))], [k for k in order if k != "output"]):
        result = compare(reference, Trace({key: foreign[key] for key in keys}), model=model)
        assert result.same and not result.diagnoses and result.matched > 100, result.first
        assert (result.output == "agrees") == ("output" in keys)


def test_a_fault_under_foreign_names_is_bracketed(model, reference):
    """Catches an accusation of a record that only its place suggests, or one that begins too early."""
    records = changed(model, reference, lambda m: setattr(layer(m, f"{BLOCK}.ffn0.m.pw1.bn"), "eps", 1e-2))
    candidate = Trace({name if name in ("input", "output") else f"t{i}": array
                       for i, (name, array) in enumerate(records.items())})
    result = compare(reference, candidate, model=model)
    assert not result.same and not result.located and result.output == "differs"
    assert result.first.startswith(f"{BLOCK}.ffn0.m.pw1") and result.last == f"{BLOCK}.ffn0.m.pw1.c"


@pytest.mark.parametrize("rename", [
    lambda n: f"module.{n}", lambda n: f"net.model.{n}", lambda n: n.replace(".", "_"),
    lambda n: "/" + n.replace(".", "/"), lambda n: f"{n}/Conv_output_0", lambda n: f"before/Relu + {n}/Add"])
def test_names_are_read_as_people_write_them(model, reference, rename):
    """Catches a wrapper's prefix, a separator or an exporter's suffix that hides a layer's name."""
    records = changed(model, reference, lambda m: setattr(layer(m, f"{BLOCK}.ffn0.m.pw1.bn"), "eps", 1e-2))
    candidate = Trace({n if n in ("input", "output") else rename(n): a for n, a in records.items() if ":" not in n})
    result = compare(reference, candidate, model=model)
    assert result.first == f"{BLOCK}.ffn0.m.pw1.bn" and result.located
    assert [d.key for d in result.diagnoses] == ["bn-eps"]


def test_names_of_torch_onnx():
    """Catches scopes that repeat their parents read as other layers."""
    assert plain("/blocks1/blocks1.0/dw0/m/c/Conv_output_0") == plain("blocks1.0.dw0.m.c/Conv_output_0")
    found = paired(["patch_embed.0.c", "head.l"],
                   ["/patch_embed/patch_embed.0/c/Conv_output_0", "/head/l/Gemm_output_0"])
    assert set(found) == {"patch_embed.0.c", "head.l"}


def test_a_guess_accuses_nobody(model, reference):
    """Catches a verdict on records that nothing but their shape identifies."""
    x = reference.records["input"]
    records = {f"t{i}": np.random.default_rng(i).standard_normal(a.shape).astype(np.float32)
               for i, a in enumerate(reference.records.values())}
    result = compare(reference, Trace({"input": x.astype(np.float32), **records}), model=model)
    assert result.guesses and all(row.name == "input" for row in result.rows)
    assert result.same and any("output was not compared" in text for text in result.blind_spots)


def test_a_norm_that_does_nothing_hides_no_difference():
    """Catches a record that differs under its own name, excused by one before it that has the right value by chance:
    an untrained batch norm changes hardly anything."""
    untrained = mmref.create_model("mobilemamba_nano", seed=0, dtype=np.float64)
    reference = trace_model(untrained, np.random.default_rng(0).standard_normal((2, 3, 64, 96)))
    for name in ("patch_embed.6.bn", f"{BLOCK}.ffn0.m.pw1.bn"):
        records = changed(untrained, reference, lambda m, name=name: setattr(layer(m, name), "eps", 1e-2))
        result = compare(reference, Trace(records), model=untrained)
        assert result.first == name and [d.key for d in result.diagnoses][:1] == ["bn-eps"], result.diagnoses


def test_values_decide_before_names(reference):
    """Catches records whose names are exchanged, all values being right."""
    records = reference.records
    names = ("input", "blocks1.0.dw0", "blocks1.0.ffn0", "blocks2.0", "blocks3.0", "output")
    some = {name: records[name] for name in names}
    turned = dict(zip(["input", "a.ffn0", "a.dw0", "b", "c", "output"], some.values(), strict=True))
    found = match(some, turned, lambda name, array: np.array_equal(some[name], array))
    assert found.pairs["blocks1.0.dw0"] == "a.ffn0" and found.pairs["blocks1.0.ffn0"] == "a.dw0"


# ----------------------------------------------------------------------------------------- evidence, or no cause

def test_not_finite_is_located_counted_and_not_explained(model, reference):
    """Catches a cause named for a run that is nothing but NaN."""
    records = single(reference)
    names = list(records)
    for name in names[names.index(f"{SCAN}.out_norm"):]:
        records[name] = np.full_like(records[name], np.nan)
    result = compare(reference, Trace(records), model=model)
    assert result.first == f"{SCAN}.out_norm" and result.diagnoses == []
    size = records[f"{SCAN}.out_norm"].size
    assert f"{size} NaN and 0 infinite of {size}" in result.note


def eps(m):
    for _, found in m.walk():
        if type(found).__name__ == "BatchNorm":
            found.eps = 1e-3


def test_one_mistake_everywhere_is_found_in_blocks(model, reference):
    """Catches a search that plants one mistake at a time where a port has made it in every layer."""
    records = changed(model, reference, eps)
    kept = {name: a for name, a in records.items() if name in ("input", "patch_embed", "output")
            or name.startswith("blocks") and name.count(".") == 1}
    result = compare(reference, Trace(kept), model=model)
    assert result.diagnoses and result.diagnoses[0].key == "bn-eps" and "0.001" in result.diagnoses[0].text


def parameter(path, attribute, function):
    def change(m):
        found = layer(m, path)
        setattr(found, attribute, np.ascontiguousarray(function(getattr(found, attribute))))
    return change


def exchange(m):
    a, b = layer(m, f"{BLOCK}.dw0.m.c"), layer(m, f"{BLOCK}.dw1.m.c")
    a.weight, b.weight = b.weight, a.weight


def norm_twice(m):
    class Twice(BatchNorm):
        def forward(self, x):
            return super().forward(super().forward(x))
    layer(m, f"{BLOCK}.ffn0.m.pw1.bn").__class__ = Twice


def rounded(w):
    scale = np.abs(w).max(axis=(1, 2, 3), keepdims=True) / 127
    return np.round(w / scale) * scale


def bfloat16(w):
    return (np.asarray(w, np.float32).view(np.uint32) & np.uint32(0xffff0000)).view(np.float32).astype(np.float64)


def noise(w):
    return w.std() * np.random.default_rng(1).standard_normal(w.shape)


@pytest.mark.parametrize("change, key, word", [
    (parameter(STEM, "weight", noise), "weights", "nothing to do with"),
    (parameter(STEM, "weight", lambda w: w + 0.05 * noise(w)), "weights", "another state of the training"),
    (parameter(STEM, "weight", lambda w: w[[1, 0, *range(2, len(w))]]), "weights", "channel"),
    (parameter(STEM, "weight", rounded), "weights-rounded", "int8"),
    (parameter("blocks1.0.dw0.m.c", "weight", bfloat16), "weights", ""),
    (exchange, "weights-exchanged", f"{BLOCK}.dw1.m.c"), (norm_twice, "bn-twice", "twice")])
def test_wrong_weights_are_recovered(model, reference, change, key, word):
    """Catches right arithmetic on other weights that is called unknown."""
    result = compare(reference, Trace(changed(model, reference, change)), model=model)
    assert result.diagnoses and result.diagnoses[0].key == key, (result.first, result.diagnoses, result.note)
    assert word in result.diagnoses[0].text


def everywhere(kind, change):
    def planted(m):
        for _, found in m.walk():
            if isinstance(found, kind):
                change(found)
    return planted


def blocks_of(records):
    return {name: a for name, a in records.items() if name in ("input", "output") or name.count(".") <= 1}


def with_eps(eps):
    def change(norm):
        norm.eps = eps
    return change


@pytest.mark.parametrize("path", ["patch_embed.2.bn", "head.bn"])
def test_an_eps_of_any_size_is_named(model, reference, path):
    """Catches an eps that nobody listed called other weights, or unknown."""
    result = compare(reference, Trace(changed(model, reference, lambda m: with_eps(3e-4)(layer(m, path)))), model=model)
    assert [(one.key, one.layer) for one in result.diagnoses] == [("bn-eps", path)], (result.diagnoses, result.note)
    assert "eps is 0.0003" in result.diagnoses[0].text


def test_a_mistake_as_small_as_rounding_is_still_one():
    """Catches a mistake everywhere that is taken for products in fewer bits, since it is no larger."""
    other = mmref.create_model("mobilemamba_nano", seed=0, dtype=np.float64)
    for _, norm in other.walk():
        if isinstance(norm, BatchNorm):
            norm.running_var = np.random.default_rng(1).uniform(0.5, 2, len(norm.running_var))
    reference = trace_model(other, np.random.default_rng(3).standard_normal((1, 3, 65, 49)).astype(np.float32))
    records = changed(other, reference, everywhere(BatchNorm, with_eps(1e-3)))
    result = compare(reference, Trace(blocks_of(records)), model=other)
    assert not result.same and result.diagnoses[0].key == "bn-eps", (result.precision, result.note)


def in_bfloat16(conv):
    conv.weight = np.asarray(rounded_to_bfloat16(conv.weight), np.float64)


def test_weights_rounded_everywhere_are_named_and_not_accused(model, reference):
    """Catches rounded weights of which no more is said than that products are in fewer bits, or called a mistake."""
    records = blocks_of(changed(model, reference, everywhere(Conv2d, in_bfloat16)))
    result = compare(reference, Trace(records), model=model)
    assert result.same and "rounded to bfloat16" in result.note, (result.first, result.precision, result.note)



def test_the_inside_of_the_scan_is_replayed(model, reference):
    """Catches a known mistake that is never held against records of the scan's inside."""
    result = compare(reference, Trace(changed(model, reference, parameter(SCAN, "Ds", np.zeros_like))), model=model)
    assert result.first == f"{SCAN}:y" and result.diagnoses[0].text == "skip term Ds * u left out"


class GateApart(BatchNorm):
    """Another eps for the second half of the channels, which is the gate."""

    def forward(self, x):
        right, half = super().forward(x), x.shape[1] // 2
        self.eps, eps = 1e-2, self.eps
        wrong = super().forward(x)
        self.eps = eps
        return np.concatenate([right[:, :half], wrong[:, half:]], 1)


def test_diagnoses_contradict_no_record(model, reference):
    """Catches a mistake that reproduces one record and would have changed another, which is right."""
    records = changed(model, reference, lambda m: setattr(layer(m, f"{SCAN}.in_proj.bn"), "__class__", GateApart))
    kept = {name: array for name, array in records.items() if not name.startswith(f"{SCAN}.in_proj")}
    result = compare(reference, Trace(kept), model=model)
    assert result.first == f"{SCAN}.out_proj.c" and f"{SCAN}.conv2d" in [row.name for row in result.rows]
    assert not [d for d in result.diagnoses if d.layer.startswith(f"{SCAN}.in_proj")], result.diagnoses


def test_every_mistake_has_words():
    """Catches a diagnosis without a text."""
    from mmref.validate.search import FAULTS
    assert FAULTS and all(fault.key.strip() and fault.text.strip() for faults in FAULTS.values() for fault in faults)


@pytest.mark.parametrize("wrong, cause", [("patch_embed.0.bn", "patch_embed.1"), (STEM, STEM)])
def test_inputs_of_layers_tell_a_wrong_input_from_a_wrong_layer(model, reference, wrong, cause):
    """Catches a layer blamed for what came into it, where nothing between was recorded."""
    records = changed(model, reference, parameter(wrong, "weight", lambda w: w * np.linspace(0.5, 2, w.size).reshape(
        w.shape)))
    kept = {key: records[key] for key in ("input", STEM, "blocks1", "output")}
    result = compare(reference, Trace({**kept, f"{STEM}:in": records["patch_embed.1"]}), model=model)
    assert result.first == STEM and result.causes == [cause]
    assert [d.key for d in result.diagnoses if d.layer == STEM] == (["weights"] if wrong == STEM else [])


def test_several_causes_are_listed(model, reference):
    """Catches a second mistake that hides behind the first."""
    def both(m):
        parameter(SCAN, "Ds", np.zeros_like)(m)
        layer(m, "blocks3.3.ffn0.m.pw1.bn").eps = 1e-2
    result = compare(reference, Trace(changed(model, reference, both)), model=model)
    assert {d.key for d in result.diagnoses} == {"Ds-missing", "bn-eps"}
    assert result.causes == [f"{SCAN}:y", "blocks3.3.ffn0.m.pw1.bn"]


def test_records_overwritten_in_place_are_no_difference(model, reference):
    """Catches an in-place ReLU, which changes what a hook has kept, taken for a wrong layer."""
    records = single(reference)
    for name in ("patch_embed.0.bn", "patch_embed.0"):
        records[name] = np.maximum(records[name], 0)
    result = compare(reference, Trace(records), model=model)
    assert result.same and "recording, not arithmetic" in result.note
    assert [row.name for row in result.rows if row.verdict == "RECORDING"] == ["patch_embed.0.bn", "patch_embed.0"]


def test_another_shape_is_shown(model, reference, capsys):
    """Catches "nan nan inf" where the candidate's shape would tell."""
    records = single(reference)
    records[BLOCK] = records[BLOCK][..., 1:]
    result = compare(reference, Trace(records), model=model)
    row = next(row for row in result.rows if row.name == BLOCK)
    assert row.verdict == "SHAPE" and "x".join(map(str, records[BLOCK].shape)) in result.note


# ----------------------------------------------------------------------------------------------------- the input

INPUTS = {
    "gamma": (lambda x: np.sign(x) * np.abs(x) ** 0.7, "curve"), "range": (lambda x: x * 0.86 + 0.06, "normalisation"),
    "float16": (lambda x: x.astype(np.float16).astype(np.float64), "rounded"),
    "saturated": (lambda x: x.clip(-1, 1), "range"),
    "row": (lambda x: np.where(np.arange(x.shape[2])[:, None] == 5, 0, x), "region"),
    "turned": (lambda x: x[:, :, ::-1, ::-1], "input-permuted"),
    "HWC": (lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape), "input-permuted")}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_named_only_where_reproduced(reference, name):
    """Catches "resize or crop" said of everything."""
    change, key = INPUTS[name]
    x = reference.records["input"].astype(np.float64)
    found, note = of_input(x, np.ascontiguousarray(change(x)))
    assert [d.key for d in found] == [key], (found, note)
    blurred = (x + np.roll(x, 1, 2) + np.roll(x, 2, 3)) / 3
    found, note = of_input(x, blurred)
    assert not found and "nothing known reproduces" in note


def test_a_wrong_preparation_and_a_wrong_network_are_apart(model, reference):
    """Catches a network blamed for its input, or excused by it."""
    x = reference.records["input"][:, ::-1]
    result = compare(reference, Trace(single(trace_model(model, x))), model=model)
    assert result.first == "input" and "network is right" in result.note and not result.causes
    wrong = model.astype(np.float64)
    parameter(SCAN, "Ds", np.zeros_like)(wrong)
    result = compare(reference, Trace(single(trace_model(wrong, x))), model=model)
    assert [d.key for d in result.diagnoses] == ["input-permuted", "Ds-missing"]


# ------------------------------------------------------------------------------------- what was shown, and tolerance

def test_what_was_exercised_is_declared(model, reference):
    """Catches a "same" that says nothing of short scans, and a thorough input that shows no more."""
    result = compare(reference, Trace(single(reference)), model=model)
    assert any("scans of 4, 12, 24 steps" in line or "steps" in line for line in result.exercised)
    assert any("smallest error that shows" in line for line in result.exercised)
    assert any("chunks of" in line for line in result.blind_spots)
    x = thorough_input(model)
    from mmref.validate.replay import graph_of
    longest = max(node.shape[-1] for node in graph_of(model, x.shape)[0] if node.name == "selective_scan")
    assert longest > 512 and len(x) == 2 and x.shape[2] % 2 and x.shape[3] % 2 and x.shape[2] != x.shape[3]
    shown = not_exercised({"batch": 2, "size": [259, 547], "samples_differ": True, "scan_lengths": [longest]})
    assert not any("chunks" in line for line in shown)


def test_a_scan_in_chunks_is_named(model, reference):
    """Catches a scan that forgets its state every few steps."""
    from mmref.nn import ss2d
    from mmref.nn.recurrence import selective_scan

    def chunks(u, delta, A, B, C, D):
        parts = [[values[..., start:start + 8] for values in (u, delta, B, C)] for start in range(0, u.shape[-1], 8)]
        return np.concatenate([selective_scan(u, delta, A, B, C, D) for u, delta, B, C in parts], -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ss2d, "selective_scan", chunks)
        records = single(trace_model(model, reference.records["input"]))
    result = compare(reference, Trace(records), model=model)
    assert result.diagnoses[0].key == "scan-reset" and "chunks of 8" in result.diagnoses[0].text


def test_any_two_recordings_compare(reference):
    """Catches a comparison that only takes our own traces, and one that calls float32 rounding a difference."""
    before = Trace(single(reference))
    after = Trace({name: array * np.float32(1 + 1e-7) for name, array in before.records.items()})
    assert compare(before, after).same
    after.records["blocks1.0"] = after.records["blocks1.0"] * np.float32(1.01)
    result = compare(before, after)
    assert result.first == "blocks1.0" and result.output == "agrees"
    assert compare(before, after, tolerance={"blocks1.*": 0.02}).same
    assert compare(before, after, tolerance=0.02).same
    assert not compare(before, after, tolerance={"blocks2.*": 0.02}).same
    with pytest.raises(ValueProblem, match="--tolerance"):
        compare(before, after, tolerance={"*": -1.0})
    figures = next(row.figures for row in result.rows if row.name == "blocks1.0")
    assert figures["off"] > 0.5 and figures["p50"] < figures["p99"] <= figures["largest"]
    assert {"top1", "top5"} <= set(next(row.figures for row in result.rows if row.name == "output"))


# --------------------------------------------------------------------------------------------------- command line

def test_other_files_are_named(tmp_path, capsys):
    """Catches a safetensors error about an .npy, a torch.save, an empty file, a text, a picture or half a trace."""
    (tmp_path / "text.txt").write_text("layer,value\n1,2\n" * 9)
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    write_trace(tmp_path / "whole.safetensors", Trace({"input": np.ones((1, 3, 2, 2), np.float32)}))
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:20])
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle.pkl").write_bytes(b"\x80\x04K\x01.")
    words = {"a.npy": "one .npy array", "empty": "an empty file", "pickle.pkl": "a pickle",
             "text.txt": "another kind of file, which begins with b'layer,val'", "picture.png": "begins with .*PNG",
             "short.txt": "cut off", "half.safetensors": "cut off"}
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, tmp_path / "t.pt")
    for name, word in {**words, "t.pt": "torch.save"}.items():
        with pytest.raises(TraceError, match=word):
            read_trace(tmp_path / name)


def test_commands(tmp_path, reference, capsys):
    """Catches options that are not passed on, and a verdict that hides how little was matched."""
    reference.manifest["weights"] = "pretrained"
    write_trace(tmp_path / "r.safetensors", reference)
    few = {name: reference.records[name].astype(np.float32) for name in ("input", "blocks1.0", "output")}
    few["blocks1.0"] = few["blocks1.0"] * np.float32(1.01)
    np.savez(tmp_path / "few.npz", **few)
    arguments = ["compare", str(tmp_path / "r.safetensors"), str(tmp_path / "few.npz")]
    assert main([*arguments, "--tolerance", "blocks1.*=0.02"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"\d of the reference's {len(reference.records)} records matched", out)
    assert "with 3 of the candidate's 3" in out and "output: agrees" in out
    assert main([*arguments, "--tolerance", "nonsense"]) == 2
    assert main(["trace", "-o", str(tmp_path / "t.safetensors")]) == 2
    assert main(["trace", "--thorough", "--dry-run", "-o", str(tmp_path / "t.safetensors")]) == 0
