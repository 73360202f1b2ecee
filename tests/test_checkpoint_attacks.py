"""Files that want to run something: they get nothing run, whatever they ask for."""

from __future__ import annotations

import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from assertions import assert_close

from mmref.errors import CheckpointError
from mmref.weights import pickle_tensors, read_checkpoint
from mmref.weights.pth_writer import write_pth

pytest.importorskip("torch")

import torch


class Runs:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save(path, value, protocol=2):
    """A zip file as torch.save makes it, with `value` pickled beside a good tensor."""
    torch.save({"good": torch.arange(6.0).reshape(2, 3), "evil": value}, path, pickle_protocol=protocol)
    return path


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path):
    """After each test: no canary, no new module, memory bounded."""
    modules = set(sys.modules)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not (tmp_path / "canary").exists()
    assert {m for m in set(sys.modules) - modules if not m.startswith(("torch", "mmref", "encodings"))} == set()
    assert peak < 50e6


@pytest.mark.parametrize("name", ["system", "eval", "exec", "getattr", "resolve_name", "loads"])
def test_calls_are_not_run(tmp_path, name):
    """Catches an interpreter that calls a name from the file: the tensors beside it are read, the name reported,
    and with strict the file refused."""
    import builtins
    import os
    import pkgutil
    canary = f"open({str(tmp_path / 'canary')!r}, 'w')"
    value = {"system": Runs(os.system, f"touch {tmp_path / 'canary'}"), "eval": Runs(builtins.eval, canary),
             "exec": Runs(builtins.exec, canary), "getattr": Runs(builtins.getattr, "x", "upper"),
             "resolve_name": Runs(pkgutil.resolve_name, "os:system"),
             "loads": Runs(pickle.loads, pickle.dumps(Runs(builtins.eval, canary)))}[name]
    torch.save({"state_dict": {"good": torch.arange(6.0).reshape(2, 3)}, "evil": value}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert_close(found.tensors["good"], np.arange(6, dtype=np.float32).reshape(2, 3), 0)
    assert any(name in foreign for foreign in found.foreign)
    with pytest.raises(CheckpointError, match="strict"):
        read_checkpoint(tmp_path / "a.pth", strict=True)
    with pytest.raises(CheckpointError, match="evil: must be a tensor, got something of "):
        read_checkpoint(save(tmp_path / "b.pth", value))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_calls_in_later_protocols(tmp_path, protocol):
    """Catches STACK_GLOBAL or NEWOBJ_EX as a way around the table of names."""
    import os
    canary, keyword = tmp_path / "canary", object.__new__(Keyword)
    keyword.x = str(canary)
    torch.save({"net": {"good": torch.ones(2)}, "evil": [Runs(os.system, f"touch {canary}"), keyword]},
               tmp_path / "a.pth", pickle_protocol=protocol)
    found = read_checkpoint(tmp_path / "a.pth")
    assert list(found.tensors) == ["good"]
    assert {name.rpartition(".")[2] for name in found.foreign} >= {"system", "Keyword"}
    with pytest.raises(CheckpointError, match="strict"):
        read_checkpoint(tmp_path / "a.pth", strict=True)


class Keyword:
    """Is made again with a keyword argument: by NEWOBJ_EX from protocol 4 on, by functools.partial before."""

    def __new__(cls, *, x):
        open(x, "w").close()
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"x": self.x}


def stream(*parts):
    return b"\x80\x02" + b"".join(parts)


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


BAD_STREAMS = {
    "stack global": (stream(text("os"), text("system"), b"\x93."), "opcode 0x93"),
    "inst": (stream(b"(ios\nsystem\n."), "opcode 0x69"),
    "obj": (stream(b"(cos\nsystem\no."), "opcode 0x6f"),
    "extension": (stream(b"\x82\x01."), "opcode 0x82"),
    "next buffer": (stream(b"\x97."), "opcode 0x97"),
    "frame": (stream(b"\x95" + bytes(8) + b"N."), "opcode 0x95"),
    "two pickles": (stream(b"N.", stream(b"N.")), "bytes after its end"),
    "missing memo": (stream(b"h\x07."), "memo 7"),
    "underflow": (stream(b"\x86."), "malformed"),
    "end of file": (stream(b"N"), "ends in the middle"),
    "no mark": (stream(b"Nt."), "mark that is not there"),
    "two values": (stream(b"NN."), "2 values"),
    "huge text": (stream(b"X\xff\xff\xff\x7f."), "ends in the middle"),
    "deep nest": (stream(b")" + b"\x85" * 200_000 + b"."), "nests more than"),
    "laughs": (stream(b")q\x00" + b"h\x00h\x00\x86q\x00" * 150 + b"cos\nx\n\x81."), "arguments|calls|malformed|nests"),
    "nest as a key": (stream(b"}", b")" + b"".join(b"q\x00h\x00\x86" for _ in range(90)), b"Ns."), "for a key"),
    "persistent id": (stream(text("data"), b"Q."), "persistent id"),
    "key outside": (stream(b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("../data/0") + text("cpu")
                           + b"K\x06tQ."), "persistent id"),
    "tensor called": (stream(b"K\x01)R."), "not a function"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_malformed_streams(name):
    """Catches bare KeyErrors and IndexErrors, endless recursion, exponential printing and hashing."""
    data, message = BAD_STREAMS[name]
    with pytest.raises(CheckpointError, match=message):
        pickle_tensors.load(data)


def test_state_is_never_set():
    """Catches BUILD setting attributes: __class__ and __dict__ are data like any other, and are dropped."""
    data = stream(b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"cos\nsystem\nsb.")
    found = pickle_tensors.load(data)
    assert type(found.value) is dict and found.value == {} and found.foreign == {"os.system"}


def tensor_stream(offset=0, shape=(2, 3), stride=(3, 1), numel=6, dtype="Float"):
    """A state dict of one tensor with the given numbers."""
    def number(n):
        return b"\x8a" + bytes([len(raw := n.to_bytes(9, "little", signed=True))]) + raw
    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"
    return stream(b"}" + text("x") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
                  + f"ctorch\n{dtype}Storage\n".encode() + text("0") + text("cpu") + number(numel) + b"tQ"
                  + number(offset) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtRs.")


def zip_file(path, records):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            archive.writestr(f"archive/{name}", data)
    return path


def test_a_hand_made_tensor_is_read(tmp_path):
    """Guards the tests below: the same writer with good numbers gives a good file."""
    data = np.arange(6, dtype="<f4").tobytes()
    path = zip_file(tmp_path / "a.pth", [("data.pkl", tensor_stream()), ("data/0", data)])
    assert_close(read_checkpoint(path).tensors["x"], np.arange(6, dtype=np.float32).reshape(2, 3), 0)


@pytest.mark.parametrize("numbers, message", [
    ({"offset": 1}, "beyond"), ({"offset": -1}, ">= 0"), ({"shape": (-2, 3)}, ">= 0"), ({"stride": (3, -1)}, ">= 0"),
    ({"shape": (2, 3, 1)}, "equal rank"), ({"stride": (4, 1)}, "beyond"),
    ({"shape": (2**40,), "stride": (0,)}, "beyond"),
    ({"shape": (2**62, 2**62), "stride": (0, 0)}, "beyond"), ({"numel": 7}, "bytes, expected"),
    ({"numel": 2**40}, "bytes, expected"), ({"dtype": "Double"}, "bytes, expected"),
])
def test_numbers_that_do_not_fit(tmp_path, numbers, message):
    """Catches views beyond their storage, and allocations before the numbers are checked."""
    path = zip_file(tmp_path / "a.pth", [("data.pkl", tensor_stream(**numbers)), ("data/0", bytes(24))])
    with pytest.raises(CheckpointError, match=f"a.pth: .*{message}"):
        read_checkpoint(path)


def test_a_flipped_bit(tmp_path):
    """Catches a reader that does not verify checksums (torch.load does not)."""
    path = zip_file(tmp_path / "a.pth", [("data.pkl", tensor_stream()), ("data/0", bytes(range(24)))])
    raw = bytearray(path.read_bytes())
    raw[raw.index(bytes(range(24))) + 5] ^= 0x10
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="data/0.*damaged"):
        read_checkpoint(path)


def test_a_zip_bomb(tmp_path):
    """Catches a deflated record being inflated."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_stream())
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("content, message", [
    (b"", "empty"), (b"<!DOCTYPE html><html>", "HTML"), (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    (b"\x93NUMPY\x01\x00", "NumPy"), (b"\x80\x02\x8a\nl\xfc\x9c", "old, pre-1.6"), (b"PK\x03\x04 no more", "broken"),
    (b"anything", "no weights file"),
])
def test_what_it_looks_like(tmp_path, content, message):
    """Catches an error that leaves the user guessing."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.pth: .*{message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_values(tmp_path):
    """Catches rounding of half and bfloat16, silent overflow of float64, NaN and negative variances let through."""
    half, brain = torch.tensor([1.5, -6e-8, 65504.0]).half(), torch.tensor([1.5, 1e38, -1e-40]).bfloat16()
    torch.save({"h": half, "b": brain, "n.num_batches_tracked": torch.tensor(7)}, tmp_path / "a.pth")
    tensors = read_checkpoint(tmp_path / "a.pth").tensors
    assert_close(tensors["h"], half.float().numpy(), 0)
    assert_close(tensors["b"], brain.float().numpy(), 0)
    assert tensors["n.num_batches_tracked"].dtype == np.int64 and tensors["n.num_batches_tracked"] == 7
    for bad, message in (({"x": torch.tensor([np.nan])}, "NaN"), ({"x": torch.tensor([torch.inf])}, "infinity"),
                         ({"bn.running_var": torch.tensor([-1.0])}, "variance")):
        torch.save(bad, tmp_path / "b.pth")
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / "b.pth")
        read_checkpoint(tmp_path / "b.pth", allow_nonfinite=True)
    torch.save({"x": torch.tensor([1.5, 1e300], dtype=torch.float64)}, tmp_path / "c.pth")
    for allow in (False, True):
        with pytest.raises(CheckpointError, match="x: has values beyond float32"):
            read_checkpoint(tmp_path / "c.pth", allow_nonfinite=allow)


def test_trainer_files_and_prefixes(tmp_path):
    """Catches the raw weights taken for the moving average, in silence, and a prefix that stays."""
    net, ema = {"module.a": torch.tensor([1.0])}, {"module.a": torch.tensor([2.0])}
    optimizer = {"state": {0: {"m": torch.ones(3)}}}
    torch.save({"net": net, "net_E": ema, "epoch": 3, "optimizer": optimizer}, tmp_path / "t.pth")
    found = read_checkpoint(tmp_path / "t.pth")
    assert found.source == "net_E" and found.others == ("net",) and found.tensors == {"a": np.float32([2.0])}
    assert read_checkpoint(tmp_path / "t.pth", prefer="net").tensors["a"] == 1
    torch.save({"net": net, "net_E": None}, tmp_path / "n.pth")
    assert read_checkpoint(tmp_path / "n.pth").source == "net"
    with pytest.raises(CheckpointError, match="prefer must be one of net, got 'net_E'"):
        read_checkpoint(tmp_path / "n.pth", prefer="net_E")


def test_our_own_writer(tmp_path):
    """Catches a writer whose files PyTorch or the reader understands otherwise."""
    state = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(300), "e": np.zeros((0, 2), np.float32)}
    write_pth(tmp_path / "a.pth", state)
    theirs, ours = torch.load(tmp_path / "a.pth", weights_only=True), read_checkpoint(tmp_path / "a.pth").tensors
    for name, array in state.items():
        assert_close(theirs[name].numpy(), array, 0)
        assert_close(ours[name], array, 0)
