"""Files as training programs, tools and hubs leave them: read without executing anything, or refused with advice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from assertions import assert_close
from torch import nn

from mmref.errors import CheckpointError
from mmref.weights import read_checkpoint
from mmref.weights.state_dicts import choose, says_average


def network(seed=0):
    """A small network with learned parameters, buffers and a counter, its values drawn from `seed`."""
    torch.manual_seed(seed)
    made = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 3), bn=nn.BatchNorm2d(3), head=nn.Linear(3, 4)))
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return made


RAW, AVERAGE = network(1).state_dict(), network(2).state_dict()


def same(found, state):
    """Assert that `found` holds the tensors of a state dict, bit for bit and under its names."""
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert_close(found[name], tensor.numpy(), 0)


def saved(tmp_path, value, **options):
    torch.save(value, tmp_path / "a.pth", **options)
    return tmp_path / "a.pth"


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


# ------------------------------------------------------------------------------------------ prefixes

@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "net.", "module._orig_mod.",
                                    "_orig_mod.module.", "model._orig_mod.", "model.model.", "model.backbone.module.",
                                    "_forward_module.model.", "module.module._orig_mod.backbone."])
def test_prefixes_of_wrappers(tmp_path, prefix):
    """Catches wrappers whose prefix is not cut, in any order and number, and a cut that nobody is told of."""
    found = read_checkpoint(saved(tmp_path, {"state_dict": prefixed(RAW, prefix)}))
    same(found.tensors, RAW)
    assert found.prefix == prefix and f"prefix {prefix} cut" in found.account


def test_wrappers_of_real_torch(tmp_path):
    """Catches prefixes as we imagine them: those that torch.compile, DataParallel and AveragedModel really write."""
    made = network()
    nested = torch.compile(nn.DataParallel(torch.compile(made)))
    same(read_checkpoint(saved(tmp_path, nested.state_dict())).tensors, made.state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(torch.compile(made))
    found = read_checkpoint(saved(tmp_path, averaged.state_dict()))
    same(found.tensors, made.state_dict())
    assert "n_averaged" in found.account
    parts = network()
    parts.conv = torch.compile(parts.conv)
    found = read_checkpoint(saved(tmp_path, parts.state_dict()))
    same(found.tensors, made.state_dict())
    assert "_orig_mod. cut from within" in found.account


def test_a_prefix_that_not_all_share_stays(tmp_path):
    """Catches a detector whose neck and head lose their meaning, and a layer whose own name is that of a wrapper."""
    detector = {**prefixed(RAW, "backbone."), "neck.conv.weight": torch.ones(2, 2)}
    found = read_checkpoint(saved(tmp_path, {"state_dict": detector}))
    assert list(found.tensors) == list(detector) and found.prefix == "" and found.account == "took state_dict"
    for part in ({"model": torch.ones(2), "module": torch.ones(3)}, {"model.a": torch.ones(2), "net.b": torch.ones(3)}):
        assert list(read_checkpoint(saved(tmp_path, part)).tensors) == list(part)


def test_what_tools_leave_beside_the_weights(tmp_path):
    """Catches counters and settings taken for weights, weights refused for them, and their being dropped unsaid."""
    counts = {"total_ops": torch.zeros(1, dtype=torch.float64), "conv.total_params": torch.zeros(1).double()}
    for state in ({**RAW, **counts}, prefixed({**RAW, **counts}, "module."), {**prefixed(RAW, "module."), **counts}):
        found = read_checkpoint(saved(tmp_path, state))
        same(found.tensors, RAW)
        assert "left out as no weights: " in found.account and "total_ops" in found.account
    for extra in ({"scale": 3, "names": ["a"]}, b"x", "text", torch.ones(3), {"t": torch.ones(2)}, {1, 2},
                  nn.Linear(1, 1)):
        found = read_checkpoint(saved(tmp_path, {**RAW, "head._extra_state": extra}))
        same(found.tensors, RAW)
        assert "head._extra_state" in found.account
    same(read_checkpoint(saved(tmp_path, {**RAW, "epoch": 3, "note": None})).tensors, RAW)
    lightning = {**prefixed(RAW, "model."), "criterion.weight": torch.ones(4), "step": torch.tensor(5)}
    found = read_checkpoint(saved(tmp_path, {"state_dict": lightning, "hyper_parameters": {"lr": 1.0}, "epoch": 1}))
    same(found.tensors, RAW)
    assert "criterion.weight" in found.account
    hidden = {**RAW, "inner": {"conv.weight": torch.ones(2)}}
    with pytest.raises(CheckpointError, match="inner: must be a tensor, got dict"):
        read_checkpoint(saved(tmp_path, hidden))


# ------------------------------------------------------------------------------------------ which entry

NAMES = ["ema", "net_E", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "module_ema", "EMA", "modelEMA",
         "ModelEma", "emamodel", "model_ema_0.9999", "swa_model", "averaged_model", "netG_E", "shadow_params",
         "ema_weights", "exponential_moving_average"]


@pytest.mark.parametrize("raw", ["model", "net", "model_state_dict", "state_dict", "whatever"])
@pytest.mark.parametrize("name", NAMES)
def test_the_moving_average_is_taken_and_said(tmp_path, name, raw):
    """Catches raw weights taken for want of a name in a list, in silence, and a choice that cannot be changed."""
    path = saved(tmp_path, {raw: RAW, name: AVERAGE, "optimizer": {"state": {0: {"m": torch.ones(2)}}}})
    found = read_checkpoint(path)
    same(found.tensors, AVERAGE)
    assert found.source == name and found.others == (raw,)
    assert found.account.startswith(f"took {name}; also there: {raw}")
    for prefer in (raw, "raw"):
        same(read_checkpoint(path, prefer=prefer).tensors, RAW)
    same(read_checkpoint(path, prefer="ema").tensors, AVERAGE)


def test_names_that_only_sound_like_it():
    """Catches a substring match: cinema, schema, remapped."""
    assert not any(map(says_average, ["schema", "cinema", "remapped", "system", "net", "model", "emanate", "Edge_E2"]))


def test_averages_one_level_down(tmp_path):
    """Catches averages that hide below: in a dict of their own, beside flat weights, in one dict under two prefixes."""
    for value, source in (({"model": RAW, "ema": {"decay": 0.9, "state_dict": AVERAGE}}, "ema.state_dict"),
                          ({"model": RAW, "ema": {"module": prefixed(AVERAGE, "module."), "updates": 3}}, "ema.module"),
                          ({"state": {"model": RAW, "ema": AVERAGE}}, "state.ema"),
                          ({"state": {"model": AVERAGE}}, "state.model"),
                          ({"state": {"deeper": {"state_dict": AVERAGE}}}, "state.deeper.state_dict"),
                          ({**RAW, "ema": AVERAGE}, "ema"),
                          ({**prefixed(RAW, "online_model."), **prefixed(AVERAGE, "ema_model."),
                            "initted": torch.tensor([True]), "step": torch.tensor([7])}, "ema_model"),
                          ({"state_dict": {**prefixed(RAW, "model."), **prefixed(AVERAGE, "model_ema.module.")}},
                           "state_dict.model_ema")):
        found = read_checkpoint(saved(tmp_path, value))
        same(found.tensors, AVERAGE)
        assert found.source == source and (f"took {source}" in found.account)


def test_an_average_of_parameters_alone(tmp_path):
    """Catches an average without buffers, as many a training loop keeps it, being refused or taken without a word."""
    learned = {name: AVERAGE[name] for name, _ in network().named_parameters()}
    found = read_checkpoint(saved(tmp_path, {"model": prefixed(RAW, "module."), "ema": {"shadow": learned}}))
    assert list(found.tensors) == list(RAW) and found.source == "ema.shadow"
    for name, array in found.tensors.items():
        assert_close(array, (AVERAGE if name in learned else RAW)[name].numpy(), 0)
    assert "3 tensors that ema.shadow lacks are those of model" in found.account


def test_averages_that_cannot_be_read_are_said(tmp_path):
    """Catches raw weights taken in silence where an average is there, as a list without names, as an object, or in a
    list of several."""
    for ema in ({"shadow_params": [torch.ones(2)], "decay": 0.9}, nn.Linear(2, 2), [RAW, RAW]):
        found = read_checkpoint(saved(tmp_path, {"model": RAW, "ema": ema}))
        same(found.tensors, RAW)
        assert "moving average ema" in found.account and "cannot be read" in found.account
    other = {"acc_avg": {"top1": torch.ones(3)}, "model": RAW}
    found = read_checkpoint(saved(tmp_path, other))
    same(found.tensors, RAW)
    assert "acc_avg is named like a moving average and holds other names" in found.account


def test_mmengine_exchanges_the_two(tmp_path):
    """Catches the raw weights taken for the average: mmengine's hook saves the average as state_dict."""
    raw = {**prefixed(RAW, "module."), "steps": torch.tensor(100)}
    path = saved(tmp_path, {"meta": {"mmengine_version": "0.10.4"}, "message_hub": {}, "state_dict": AVERAGE,
                            "ema_state_dict": raw, "optimizer": {}})
    found = read_checkpoint(path)
    same(found.tensors, AVERAGE)
    assert found.source == "state_dict" and "mmengine keeps the moving average in state_dict" in found.account
    same(read_checkpoint(path, prefer="raw").tensors, RAW)


def test_several_of_which_none_is_known(tmp_path):
    """Catches the first of two networks taken because it stands first."""
    path = saved(tmp_path, {"student": RAW, "teacher": AVERAGE, "rng_state": torch.ones(9)})
    with pytest.raises(CheckpointError, match=r"several state dicts.*student, teacher; choose one"):
        read_checkpoint(path)
    same(read_checkpoint(path, prefer="teacher").tensors, AVERAGE)
    with pytest.raises(CheckpointError, match="prefer must be one of student, teacher, got 'net'"):
        read_checkpoint(path, prefer="net")
    both = saved(tmp_path, {"w": torch.ones(2, 2), "aux": {"x": torch.ones(3)}})
    with pytest.raises(CheckpointError, match="flat, aux; choose one"):
        read_checkpoint(both)
    same(read_checkpoint(saved(tmp_path, {"model": RAW, "rng_state": torch.ones(9), "loss": torch.tensor(1.)})).tensors,
         RAW)


@pytest.mark.parametrize("name", ["teacher", "slow_model", "netE", "target_network"])
def test_a_second_network_is_said_whatever_it_is_called(tmp_path, name):
    """Catches raw weights taken without a word about their average, which goes by a name that nobody foresaw."""
    found = read_checkpoint(saved(tmp_path, {"model": RAW, name: AVERAGE}))
    same(found.tensors, RAW)
    assert found.others == (name,) and found.account == f"took model; also there: {name} (prefer, --prefer)"


def test_state_of_an_optimizer_is_no_choice(tmp_path):
    """Catches an optimizer's tensors by parameter name offered as weights, or refused for their number."""
    steps = {f"layer{i}.weight": {"m": torch.ones(2), "v": torch.ones(2)} for i in range(100)}
    found = read_checkpoint(saved(tmp_path, {"model": RAW, "adam": {"state": steps}, "optim": {"ema": RAW}}))
    same(found.tensors, RAW)
    assert found.others == () and found.account == "took model"
    many = {f"ema{i}": {"w": torch.ones(2)} for i in range(100)}
    with pytest.raises(CheckpointError, match="more than 64 state dicts"):
        read_checkpoint(saved(tmp_path, many))


def test_aliases_without_end():
    """Catches a long list that is looked through again for every name it goes by: that would not end here."""
    long, tensors = [None] * 300_000, {"w": np.ones(2), **{f"n{i}": 0 for i in range(300_000)}}
    choose({"model": {"w": np.ones(2)}, **{f"ema{i}": long for i in range(300_000)}})
    with pytest.raises(CheckpointError, match="several state dicts"):
        choose({f"k{i}": tensors for i in range(300_000)})


# ------------------------------------------------------------------------------------------ pickles

@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(tmp_path, protocol):
    """Catches opcodes of later protocols: frames, memo by count, names from the stack, sets, bytes, long integers."""
    beside = {"set": {1, 2}, "frozen": frozenset("ab"), "bytes": b"abc" * 200, "array": bytearray(b"xy"),
              "big": 1 << 9000, "text": "ä" * 300, "numbers": np.arange(3), "key": {b"b": 1}, "none": None, "f": 0.5,
              "list": [[], ()], "dtype": torch.float32, "size": torch.Size([1, 2]), "device": torch.device("cpu")}
    found = read_checkpoint(saved(tmp_path, {"net": RAW, "beside": beside}, pickle_protocol=protocol))
    same(found.tensors, RAW)
    assert read_checkpoint(saved(tmp_path, RAW, pickle_protocol=protocol), strict=True).foreign == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_bits_of_negation(tmp_path, dtype):
    """Catches the sign of a conjugate's imaginary part lost: the storage holds the other sign, a flag says so."""
    lazy = torch.tensor([[1 + 2j, 3 - 4j], [0 + 0.5j, 1j]]).conj().imag
    assert lazy.is_neg()
    found = read_checkpoint(saved(tmp_path, {"w": lazy, "t": lazy.t()}), strict=True).tensors
    assert_close(found["w"], np.float32([[-2, 4], [-0.5, -1]]), 0)
    assert_close(found["t"], found["w"].T, 0)
    plain = torch._neg_view(torch.tensor([1.0, -2.0]).to(dtype))
    assert_close(read_checkpoint(saved(tmp_path, {"w": plain})).tensors["w"], np.float32([-1, 2]), 0)


def test_rebuild_arguments_that_nobody_knows(tmp_path, monkeypatch):
    """Catches further arguments of a rebuilding function swallowed: what they say about the numbers is unknown."""
    rebuild = torch._utils._rebuild_tensor_v2
    for extra, message in ((({"scaled": True},), "must be neg or conj"), ((None, 1), "malformed"),
                           ((7,), "neg or conj"), (({"neg": 1},), "neg or conj"),
                           (({"conj": True},), "cannot be conjugate")):
        monkeypatch.setattr(torch.Tensor, "__reduce_ex__", lambda t, _, extra=extra: (
            rebuild, (t.storage(), 0, tuple(t.shape), t.stride(), False, OrderedDict(), *extra)))
        path = saved(tmp_path, {"w": torch.ones(2)})
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(path)


class Kind(torch.Tensor):
    """A subclass of somebody's own."""


def test_parameters_buffers_and_subclasses(tmp_path):
    """Catches weights refused for an attribute that Python code has set on them (Mamba's own `_no_weight_decay`), for
    being an nn.Buffer, or for their class; and numbers taken whose class says what they mean."""
    parameter, buffer, tensor = nn.Parameter(torch.ones(2)), nn.Buffer(torch.ones(3)), torch.ones(4)
    parameter._no_weight_decay, tensor.note = True, {"a": 1}
    state = {"p": parameter, "b": buffer, "t": tensor}
    found = read_checkpoint(saved(tmp_path, state), strict=True)
    same(found.tensors, {name: value.detach() for name, value in state.items()})
    found = read_checkpoint(saved(tmp_path, {"k": torch.ones(2).as_subclass(Kind)}))
    assert (found.tensors["k"] == 1).all() and "of the class" in found.account and "Kind" in found.account
    scaled = torch.ones(2).as_subclass(Kind)
    scaled.scale = 0.5
    with pytest.raises(CheckpointError, match="k: .*Kind .a tensor subclass with attributes of its own: save plain"):
        read_checkpoint(saved(tmp_path, {"k": scaled}))


def test_expanded_tensors(tmp_path):
    """Catches tensors with a stride of zero, as expand() makes them, called out of bounds; and a few bytes that expand
    without end."""
    state = {"e": torch.tensor([[1.0], [2.0]]).expand(2, 300), "s": torch.tensor(3.0).expand(1000, 1000),
             "w": torch.arange(9.0).unfold(0, 3, 1)}
    same(read_checkpoint(saved(tmp_path, state)).tensors, state)
    for many in ({"e": torch.ones(1).expand(1 << 40)}, {f"e{i}": torch.ones(1).expand(1 << 25) for i in range(40)}):
        with pytest.raises(CheckpointError, match="elements"):
            read_checkpoint(saved(tmp_path, many))


def test_files_without_checksums(tmp_path):
    """Catches "damaged" said of a file that was written without checksums, and damage passed over where there are."""
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"net": RAW}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    found = read_checkpoint(path)
    same(found.tensors, RAW)
    assert "written without checksums" in found.account
    torch.save({"net": RAW}, path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 16:at + 20] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("value, advice", [
    (nn.Linear(2, 2), "torch.nn.modules.linear.Linear: a whole object.*save its state_dict"),
    ({"epoch": 1, "model": nn.Linear(2, 2), "ema": None}, "model is something of torch.*save its state_dict"),
    ({"w": torch.eye(2).to_sparse()}, "sparse tensor: save tensor.to_dense"),
    ({"w": torch.ones(2, device="meta")}, "device meta"),
    ({"w": torch.ones(2, dtype=torch.complex64)}, "complex numbers"),
    ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "float8: save tensor.float"),
    ({"w": nn.parameter.UninitializedParameter()}, "lazy module"),
    ({"w": torch.ones(2), "v": np.ones(2)}, "v: .*NumPy array: save torch.from_numpy"),
    ([torch.ones(2)], "must hold a dict of tensors, got a list"), (torch.ones(2), "got a Tensor")])
def test_what_cannot_be_read_says_what_to_do(tmp_path, value, advice):
    """Catches refusals that name an internal class and leave the user there."""
    with pytest.raises(CheckpointError, match=advice):
        read_checkpoint(saved(tmp_path, value))


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors(tmp_path):
    """Catches quantised weights read as their integers."""
    value = {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    with pytest.raises(CheckpointError, match="quantised tensor: save tensor.dequantize"):
        read_checkpoint(saved(tmp_path, value))


def test_the_old_form_says_how_to_go_on(tmp_path):
    """Catches a message that sends users to a newer PyTorch where loading and saving again is what helps."""
    path = saved(tmp_path, RAW, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="old, pre-1.6 form.*save its state_dict"):
        read_checkpoint(path)


# ------------------------------------------------------------------------------------------ files in parts

@pytest.fixture
def parts(tmp_path):
    """make(kind) writes RAW in two parts with an index, as the hub's tools name them; returns the index's path."""
    def make(kind="safetensors", folder=tmp_path):
        from safetensors.torch import save_file
        stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
        names, places = list(RAW), {}
        for number, chosen in enumerate((names[:3], names[3:]), 1):
            part = f"{stem}-{number:05}-of-00002.{suffix}"
            (save_file if kind == "safetensors" else torch.save)({n: RAW[n] for n in chosen}, folder / part)
            places |= dict.fromkeys(chosen, part)
        index = folder / f"{stem}.{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
        return index
    return make


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_parts_and_their_index(parts, tmp_path, kind):
    """Catches an index that is no checkpoint to us, a folder that is none, and order or numbers lost between parts."""
    index = parts(kind)
    for path in (index, tmp_path):
        found = read_checkpoint(path)
        assert found.tensors.keys() == RAW.keys() and found.path == index
        for name, tensor in RAW.items():
            assert_close(found.tensors[name], tensor.numpy(), 0)
    with pytest.raises(CheckpointError, match="one of 2 parts: name the index"):
        read_checkpoint(next(tmp_path.glob("*-00001-of-00002.*")))


def edited(index, change):
    value = json.loads(index.read_text())
    change(value)
    index.write_text(json.dumps(value))
    return index


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\\b", "c:x", 3,
                                  None, ["x"], "a\nb", "x" * 300])
def test_parts_outside_the_folder(parts, tmp_path, name):
    """Catches an index that makes us read a file elsewhere."""
    index = edited(parts(), lambda value: value["weight_map"].update({"conv.weight": name}))
    with pytest.raises(CheckpointError, match="name of a file beside the index"):
        read_checkpoint(index)


def test_parts_that_do_not_agree_with_the_index(parts, tmp_path):
    """Catches half a network, a tensor in another part than the index says, and indices that are something else."""
    index = parts()
    second = tmp_path / "model-00002-of-00002.safetensors"
    good = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match="1 of 2 parts are not beside the index, first model-00002"):
        read_checkpoint(index)
    second.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match="part model-00002-of-00002.safetensors: "):
        read_checkpoint(index)
    second.write_bytes(good)
    edited(index, lambda value: value["weight_map"].pop("head.bias"))
    with pytest.raises(CheckpointError, match="holds the tensor 'head.bias' against"):
        read_checkpoint(index)
    edited(index, lambda value: value["weight_map"].update({"x": second.name, "head.bias": second.name}))
    with pytest.raises(CheckpointError, match="lacks the tensor 'x' against"):
        read_checkpoint(index)
    for text, message in (("{", "not JSON"), ("{}", "weight_map"), ('{"weight_map": []}', "weight_map"),
                          ('{"weight_map": {"a": "x", "a": "y"}}', "name twice"),
                          ('{"a": ' + "[" * 100_000, "not JSON"),
                          ('{"weight_map": {"a": "model.safetensors.index.json"}}', "must be a weights file"),
                          ('{"weight_map": {"a": ' + "9" * 5000 + "}}", "not JSON"),
                          ("{" + " " * (5 << 20), "more than")):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(index)


def test_folders(tmp_path):
    """Catches a folder whose one checkpoint is not found, and one of several taken at random."""
    with pytest.raises(CheckpointError, match="folder with a checkpoint in it"):
        read_checkpoint(tmp_path)
    torch.save(RAW, tmp_path / "b.pth")
    (tmp_path / "readme.md").write_text("x")
    same(read_checkpoint(tmp_path).tensors, RAW)
    torch.save(AVERAGE, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="'b.pth', 'c.pt'; name one"):
        read_checkpoint(tmp_path)
    torch.save(AVERAGE, tmp_path / "pytorch_model.bin")
    same(read_checkpoint(tmp_path).tensors, AVERAGE)


def test_reading_these_imports_nothing_of_torch(tmp_path, parts):
    """Catches a reader that leans on PyTorch for the odd forms."""
    torch.save({"net": prefixed(RAW, "module.")}, tmp_path / "a.pth", pickle_protocol=5)
    code = (f"import sys, mmref; mmref.read_checkpoint({str(tmp_path / 'a.pth')!r}); "
            f"mmref.read_checkpoint({str(parts())!r}); print('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
