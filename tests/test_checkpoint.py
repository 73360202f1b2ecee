"""Reading weights files: what good files give, and the containers (zip, safetensors) around bad ones."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import types
import zipfile
import zlib

import numpy as np
import pytest
from assertions import assert_close
from test_checkpoint_attacks import stream, tensor_stream, text, zip_file

from mmref.errors import CheckpointError, ParameterMismatch
from mmref.weights import pickle_tensors, read_checkpoint
from mmref.weights.pth_writer import write_pth

pytest.importorskip("torch")

import torch

GOOD = np.arange(6, dtype="<f4")


@pytest.fixture
def bounded():
    """Memory stays below 100 MB of Python objects and arrays."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def refuse(path, message, **options):
    modules = set(sys.modules)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path, **options)
    assert {m for m in set(sys.modules) - modules if not m.startswith(("mmref", "encodings"))} == set()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1500


# ------------------------------------------------------------------------------------------- good files

def test_what_torch_saves(tmp_path):
    """Catches wrong strides, offsets, shared storages and dtypes: every view equals the one PyTorch made."""
    base = torch.arange(24.0)
    views = {"plain": base.reshape(4, 6), "transposed": base.reshape(4, 6).t(), "offset": base[5:17:3],
             "column": base.reshape(2, 3, 4)[:, 1], "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3),
             "parameter": torch.nn.Parameter(torch.ones(2, 2)), "double": torch.tensor([0.1]).double(),
             "counter": torch.tensor(7), "mask": torch.tensor([True, False]), "byte": torch.tensor([255]).byte(),
             "int": torch.tensor([-5]).int(), "short": torch.tensor([-6]).short(), "char": torch.tensor([-7]).char()}
    torch.save(views, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.source == "flat" and found.foreign == () and list(found.tensors) == list(views)
    for name, tensor in views.items():
        expected = tensor.detach().numpy()
        assert_close(found.tensors[name], expected.astype(np.float32) if expected.dtype.kind == "f" else expected, 0)
        assert found.tensors[name].base is None and found.tensors[name].flags.c_contiguous


def test_a_whole_model(tmp_path):
    """Catches names or `_metadata` of a real module's state dict tripping the reader, and a writer PyTorch cannot
    read."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    tensors = read_checkpoint(tmp_path / "a.pth", strict=True).tensors
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    write_pth(tmp_path / "b.pth", tensors)
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(back) == list(module.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in module.state_dict().items())


def test_a_trainers_file(tmp_path):
    """Catches an optimizer, a None or a stray tensor at the top being taken for the weights."""
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    trainer = {"net": module.state_dict(), "net_E": None, "optimizer": optimizer.state_dict(), "scheduler": {"last": 3},
               "scaler": None, "iter": 10, "epoch": 2, "topk_recorder": {"net_top1": [1.5], "net_E_top1": []},
               "total_time": 12.5, "nan_or_inf_cnt": 0, "loss": torch.tensor(0.5), ("a", 1): "tuple key"}
    torch.save(trainer, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth", strict=True)
    assert found.source == "net" and found.others == () and set(found.tensors) == {"weight", "bias"}
    refuse(tmp_path / "a.pth", "prefer must be one of net, got 'net_E'", prefer="net_E")
    torch.save({"epoch": 3, "args": {"lr": 1.0}}, tmp_path / "b.pth")
    refuse(tmp_path / "b.pth", "holds no state dict, only 'epoch', 'args'")


def test_mmengine_files(tmp_path, monkeypatch, bounded):
    """Catches a reader that needs mmengine, runs what its files name, or loses the tensors beside it."""
    class HistoryBuffer:
        def __init__(self):
            self.history, self.statistics = np.arange(300.0), {"mean": getattr}

    class ConfigDict(dict):
        pass

    names = ["mmengine", "mmengine.logging", "mmengine.logging.history_buffer", "mmengine.config"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for made, module in ((HistoryBuffer, names[2]), (ConfigDict, names[3])):
        made.__module__, made.__qualname__ = module, made.__name__
        setattr(sys.modules[module], made.__name__, made)
    state = {"backbone.w": torch.arange(4.0), "backbone.bn.num_batches_tracked": torch.tensor(3)}
    torch.save({"meta": {"epoch": 1, "cfg": ConfigDict(a=ConfigDict()), "seed": np.float64(0.5), "names": {"a", "b"}},
                "state_dict": state, "message_hub": {"log_scalars": {"loss": HistoryBuffer()}, "raw": b"\x00\xff"},
                "optimizer": {"state": {}}}, tmp_path / "a.pth")
    monkeypatch.undo()
    assert not any(name in sys.modules for name in names)
    before = set(sys.modules)
    found = read_checkpoint(tmp_path / "a.pth")
    assert set(sys.modules) == before
    assert found.source == "state_dict"
    assert_close(found.tensors["w"], np.arange(4, dtype=np.float32), 0)
    wanted = {"mmengine.logging.history_buffer.HistoryBuffer", "numpy.dtype", "numpy.ndarray", "_codecs.encode",
              "__builtin__.getattr"}
    assert wanted <= set(found.foreign)
    assert {name.rpartition(".")[2] for name in found.foreign} >= {"_reconstruct", "scalar", "ConfigDict", "set"}
    refuse(tmp_path / "a.pth", "refused .strict.", strict=True)


def test_the_names_that_old_numpy_writes(tmp_path):
    """Catches a table that knows the global names of one NumPy version only (`numpy.core` became `numpy._core`)."""
    core = b"cnumpy.core.multiarray\n"
    data = stream(b"}(", text("hub"), core, b"_reconstruct\n(cnumpy\nndarray\nK\x00\x85c_codecs\nencode\n", text("b"),
                  text("latin1"), b"\x86RtR(K\x01", core, b"scalar\ncnumpy\ndtype\n)Rtb",
                  text("state_dict"), tensor_stream()[2:-1], b"u.")
    zip_file(tmp_path / "a.pth", [("data.pkl", data), ("data/0", GOOD.tobytes())])
    found = read_checkpoint(tmp_path / "a.pth")
    assert_close(found.tensors["x"], GOOD.reshape(2, 3), 0)
    assert {"numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar"} <= set(found.foreign)


def test_reading_imports_nothing_of_torch(tmp_path):
    """Catches a reader that quietly leans on PyTorch."""
    write_pth(tmp_path / "a.pth", {"x": GOOD})
    code = f"import sys, mmref; mmref.read_checkpoint({str(tmp_path / 'a.pth')!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_prefixes_that_clash(tmp_path):
    """Catches one of two tensors being lost when the prefix is cut off."""
    write_pth(tmp_path / "a.pth", {"module.x": GOOD, "x": GOOD})
    refuse(tmp_path / "a.pth", "with and without the prefix")


# ----------------------------------------------------------------------------------------- the container

def test_byte_order(tmp_path):
    """Catches big-endian numbers read as little-endian, and an unknown order taken for one of the two."""
    big = zip_file(tmp_path / "big.pth", [("data.pkl", tensor_stream()), ("byteorder", b"big"),
                                          ("data/0", GOOD.astype(">f4").tobytes())])
    assert_close(read_checkpoint(big).tensors["x"], GOOD.reshape(2, 3), 0)
    for order in (b"middle", b"", b"little" * 100):
        records = [("data.pkl", tensor_stream()), ("byteorder", order), ("data/0", bytes(24))]
        refuse(zip_file(tmp_path / "bad.pth", records), "byteorder must be little or big")


def good_records():
    return [("data.pkl", tensor_stream()), ("version", b"3\n"), ("data/0", GOOD.tobytes())]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("records, message", [
    ([*good_records(), ("data.pkl", tensor_stream())], "'data.pkl' is there twice"),
    (good_records()[1:], "without data.pkl"),
    (good_records()[:2], "record 'data/0' is missing"),
    ([*good_records(), ("code/model.py", b"x")], "TorchScript"),
    ([*good_records(), ("../../evil", b"x")], "not one that torch.save writes"),
    ([*good_records(), ("data/x", b"x")], "not one that torch.save writes"),
    ([*good_records()[:2], ("data/0", bytes(20))], "20 bytes, expected 6 elements"),
])
def test_records_that_do_not_belong(tmp_path, records, message):
    """Catches readers that take the first of two records, invent missing ones or pass over strange ones."""
    refuse(zip_file(tmp_path / "a.pth", records), message)


def test_two_prefixes(tmp_path):
    """Catches a second, hidden checkpoint in one file."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, data in good_records():
            archive.writestr(f"one/{name}", data)
            archive.writestr(f"two/{name}", data)
    refuse(tmp_path / "a.pth", "2 top folders")


def patched(path, records, find, replace):
    """A zip file with all occurrences of some bytes after the first replaced: the central directory, not the record."""
    raw = zip_file(path, records).read_bytes()
    first = raw.index(find) + 1
    path.write_bytes(raw[:first] + raw[first:].replace(find, replace))
    return path


def test_the_directory_and_the_record_disagree(tmp_path):
    """Catches a record that goes by another name where it lies, and an encryption flag ignored."""
    refuse(patched(tmp_path / "a.pth", good_records(), b"archive/version", b"archive/data/12"[:15]), "damaged|missing")
    raw = bytearray(zip_file(tmp_path / "b.pth", good_records()).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.pth").write_bytes(raw)
    refuse(tmp_path / "b.pth", "record 'data.pkl' is encrypted$")


def test_records_inside_records(tmp_path):
    """Catches one stretch of the file read as several records: a small file that means a large one."""
    inner = zip_file(tmp_path / "inner.pth", [("data/1", bytes(10_000))]).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, data in (*good_records(), ("data/2", inner)):
            archive.writestr(f"archive/{name}", data)
        hidden = zipfile.ZipInfo("archive/data/1")
        hidden.file_size = hidden.compress_size = 10_000
        hidden.CRC = zlib.crc32(bytes(10_000))
        hidden.header_offset = archive.fp.tell() - len(inner)
        archive.filelist.append(hidden)
    refuse(tmp_path / "a.pth", "records overlap")


def test_damage_in_a_record_nobody_wants(tmp_path):
    """Catches checksums verified for the chosen tensors only: a damaged file is a damaged file."""
    torch.save({"net": {"w": torch.ones(2)}, "optimizer": {"state": {0: torch.full((64,), 7.25)}}}, tmp_path / "a.pth")
    raw = bytearray((tmp_path / "a.pth").read_bytes())
    raw[raw.index(struct.pack("<f", 7.25) * 64) + 9] ^= 1
    (tmp_path / "a.pth").write_bytes(raw)
    refuse(tmp_path / "a.pth", "data/1.*damaged")


def test_every_truncation(tmp_path):
    """Catches a length at which a cut file passes, or raises something else."""
    write_pth(tmp_path / "a.pth", {"x": GOOD})
    raw = (tmp_path / "a.pth").read_bytes()
    for length in range(len(raw)):
        (tmp_path / "a.pth").write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "a.pth")


def test_a_huge_directory(tmp_path, bounded):
    """Catches a zip directory read whole, whatever its size: small records, gigabytes of objects."""
    write_pth(tmp_path / "a.pth", {"x": GOOD})
    raw = (tmp_path / "a.pth").read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    start = raw.index(b"PK\x01\x02")
    entry = raw[start:end]
    directory = entry * (12_000_000 // len(entry))
    fields = list(struct.unpack("<4s4H2LH", raw[end:end + 22]))
    fields[5] = len(directory)
    (tmp_path / "a.pth").write_bytes(raw[:start] + directory + struct.pack("<4s4H2LH", *fields))
    refuse(tmp_path / "a.pth", "zip directory of 1[12][0-9]{6}")


def test_other_kinds_of_file(tmp_path):
    """Catches "broken" said of files that are whole, and merely something else."""
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    refuse(tmp_path / "old.pth", "tar archive")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refuse(tmp_path / "objects.npy", "NumPy array file")
    torch.save({"x": torch.ones(2)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "legacy.pth", "old, pre-1.6 form")
    refuse(tmp_path, "regular file")
    refuse(tmp_path / "nowhere.pth", "No such file")


# ----------------------------------------------------------------------------------------- the pickle

def number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(key="0", numel=6, kind="torch\nFloatStorage", tail=b""):
    return b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(numel) + tail + b"tQ"


HUGE = (1 << 2000) - 1
HOSTILE = {
    "one storage, two dtypes": (stream(b"]", storage(), b"a", storage(kind="torch\nDoubleStorage"), b"a."), "and as"),
    "one storage, two sizes": (stream(b"]", storage(), b"a", storage(numel=7), b"a."), "and as"),
    "storage id too long": (stream(storage(tail=b"N"), b"."), "persistent id"),
    "unicode digits for a key": (stream(storage(key="²"), b"."), "persistent id"),
    "storage of 2^2000": (stream(storage(numel=HUGE), b"."), "persistent id"),
    "integer for a key": (stream(b"}", number(HUGE), b"Ns."), "int for a key"),
    "list for a key": (stream(b"}]Ns."), "list for a key"),
    "nested tuple for a key": (stream(b"}", b"N\x85\x85Ns."), "tuple for a key"),
    "escape codes in a name": (stream(b"c\x1b[31mos\nsystem\n."), "cannot be a name"),
    "pop into a mark": (stream(b"(N\x86."), "below a mark"),
    "call without a tuple": (stream(b"ccollections\nOrderedDict\nNR."), "not a tuple"),
    "call with too many": (stream(b"ctorch._utils\n_rebuild_parameter\n)R."), "malformed"),
    "items of a list": (stream(b"]NNs."), "not a dict"),
    "append to a dict": (stream(b"}Na."), "not a list"),
    "odd items": (stream(b"}(Nu."), "not a dict|sets items"),
    "protocol in the middle": (stream(b"\x80\x02N."), "opcode 0x80"),
    "reduce of a dtype": (stream(b"ctorch\nfloat32\n)R."), "not a function"),
    "ordered dict of numbers": (stream(b"ccollections\nOrderedDict\nK\x01\x85R."), "list of pairs"),
    "bad utf-8": (stream(b"X\x01\x00\x00\x00\xff."), "malformed"),
    "nothing": (b"", "protocol 2"),
    "long names in a wrong id": (stream(b"(", *(text("x" * 250) for _ in range(6)), b"tQ."),
                                 r"got \('xxx.{,300}\.\.\."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams(name, bounded):
    """Catches numbers that outgrow the machine, hash collisions, terminal escapes and arguments of the wrong kind."""
    data, message = HOSTILE[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        pickle_tensors.load(data)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("function", ["torch\nSize", "collections\nOrderedDict"])
def test_copies_are_counted(function, bounded):
    """Catches amplification: a long list made once and copied by every call, a few bytes a copy."""
    pair = b"NN\x86" if "Ordered" in function else b"N"
    copies = b"h\x01h\x00\x85Ra" * 20_000
    data = stream(b"](", pair * 50_000, b"eq\x00c" + function.encode() + b"\nq\x01]", copies, b".")
    with pytest.raises(CheckpointError, match="more than 1000000 values"):
        pickle_tensors.load(data)


@pytest.mark.parametrize("numbers, message", [
    ({"shape": (1 << 1000, 0), "stride": (1, 1)}, "beyond"),
    ({"shape": (1 << 31, 1 << 31, 0), "stride": (1, 1, 1)}, "beyond"),
    ({"shape": (1,) * 65, "stride": (1,) * 65}, "at most 64"), ({"shape": (6,) * 64, "stride": (0,) * 64}, "beyond"),
    ({"offset": 1 << 1000}, "beyond"), ({"shape": (1 << 25, 2), "stride": (0, 1)}, "beyond"),
])
def test_shapes_that_outgrow_the_machine(tmp_path, numbers, message, bounded):
    """Catches products and strides that overflow before they are refused, or after."""
    refuse(zip_file(tmp_path / "a.pth", [("data.pkl", big_tensor(**numbers)), ("data/0", bytes(24))]), message)


def big_tensor(offset=0, shape=(2, 3), stride=(3, 1)):
    """A state dict of one tensor whose numbers may be of any size."""
    numbers = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    return stream(b"}", text("x"), b"ctorch._utils\n_rebuild_tensor_v2\n(", storage(), number(offset), numbers,
                  b"\x89NtRs.")


def test_sizes_of_one_and_none_need_no_stride(tmp_path):
    """Catches a huge stride that is never used being handed to NumPy, which cannot hold it."""
    for shape, stride in (((1, 6), (1 << 900, 1)), ((0, 3), (1 << 900, 1 << 900))):
        zip_file(tmp_path / "a.pth", [("data.pkl", big_tensor(shape=shape, stride=stride)), ("data/0", GOOD.tobytes())])
        expected = GOOD[:np.prod(shape)].reshape(shape)
        assert_close(read_checkpoint(tmp_path / "a.pth").tensors["x"], expected, 0)


def test_one_storage_cannot_fill_the_memory(tmp_path, bounded):
    """Catches a thousand tensors that share one storage, each copied out."""
    numel = 200_000
    entry = b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00" + number(numel) + b"\x85K\x01\x85\x89NtR"
    data = stream(b"}", text("s"), storage(numel=numel), b"q\x00s", text("net"), b"}(",
                  b"".join(text(f"x{i}") + entry for i in range(1000)), b"us.")
    path = zip_file(tmp_path / "a.pth", [("data.pkl", data), ("data/0", bytes(4 * numel))])
    refuse(path, "elements, more than a file of")


def test_cycles_and_deep_growth(bounded):
    """Catches endless recursion over a list that holds itself, and over a chain grown from the outside in, which no
    count of depth at the time of building sees."""
    assert type(pickle_tensors.load(stream(b"]q\x00h\x00a.")).value) is list
    links = b"".join(b"j" + struct.pack("<I", i) + b"]r" + struct.pack("<I", i + 1) + b"a" for i in range(50_000))
    chain = pickle_tensors.load(stream(b"]]r\x00\x00\x00\x00", b"a", b"(", links, b"e."))
    assert len(pickle_tensors.short(chain.value)) < 2000


def test_foreign_tensors_beside_ours(tmp_path):
    """Catches a complex tensor in the optimizer making the weights unreadable, or being read as weights."""
    strange = torch.ones(2, dtype=torch.complex64)
    torch.save({"net": {"w": torch.ones(2)}, "optimizer": {"c": strange}}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").tensors) == ["w"]
    torch.save({"w": torch.ones(2), "c": strange}, tmp_path / "b.pth")
    refuse(tmp_path / "b.pth", "c: must be a tensor, got something")


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "\x1b[2J", "", "x" * 201])
def test_names_that_cannot_be_shown(tmp_path, name):
    """Catches names that break a terminal, an error's one line, or the safetensors file they are written to."""
    raw = name.encode("utf-8", "surrogatepass")
    data = tensor_stream().replace(text("x"), b"X" + struct.pack("<I", len(raw)) + raw)
    path = zip_file(tmp_path / "a.pth", [("data.pkl", data), ("data/0", GOOD.tobytes())])
    if name:
        refuse(path, "name must be printable")
    else:
        assert "" in read_checkpoint(path).tensors


def test_time_stays_bounded():
    """Catches quadratic work: a million marks or memo writes end by the count of values, or this never ends."""
    for body in (b"(" * 2_000_000, b"Nq\x00" * 1_000_000, b"}" * 2_000_000):
        with pytest.raises(CheckpointError, match="more than 1000000 values"):
            pickle_tensors.load(stream(body, b"."))


def test_long_record_names_and_signalling_nans(tmp_path, recwarn):
    """Faults that the fuzzer found: an error as long as a record's name, NumPy's warning instead of an error."""
    refuse(zip_file(tmp_path / "a.pth", [*good_records(), ("x" * 60_000, b"")]), "not one that torch.save writes")
    raw = bytearray(zip_file(tmp_path / "b.pth", good_records()).read_bytes())
    at = raw.index(b"archive/data/0") - 4  # in the record's own header: its name, says this, is 60,000 bytes long
    raw[at:at + 2] = (60_000).to_bytes(2, "little")
    (tmp_path / "b.pth").write_bytes(raw)
    refuse(tmp_path / "b.pth", "damaged")
    nans = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    write_pth(tmp_path / "c.pth", {"x": nans})
    refuse(tmp_path / "c.pth", "x: has NaN")
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


# ----------------------------------------------------------------------------------------- safetensors

def safetensors(path, header, body=bytes(24)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


def entry(begin=0, end=24, shape=(2, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS = {
    "duplicate names": (b'{"x":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"x":{"dtype":"F32","shape":[6],'
                        b'"data_offsets":[0,24]}}', "name twice"),
    "duplicate fields": (b'{"x":{"dtype":"F32","shape":[6],"shape":[6],"data_offsets":[0,24]}}', "name twice"),
    "overlap": ({"x": entry(), "y": entry(0, 24)}, "overlap"),
    "partial overlap": ({"x": entry(0, 16, (4,)), "y": entry(8, 24, (4,))}, "overlap"),
    "gap": ({"x": entry(0, 8, (2,)), "y": entry(12, 24, (3,))}, "gap"),
    "gap at the start": ({"x": entry(4, 24, (5,))}, "gap"),
    "trailing bytes": ({"x": entry(0, 8, (2,))}, "follow the last tensor"),
    "beyond the end": ({"x": entry(0, 48, (12,))}, "outside the file"),
    "shape and bytes": ({"x": entry(shape=(5,))}, "cannot hold"),
    "negative": ({"x": entry(-4, 24, (7,))}, "header entry"),
    "dtype": ({"x": entry(dtype="F8_E4M3")}, "header entry"),
    "dtype a list": ({"x": {**entry(), "dtype": ["F32"]}}, "header entry"),
    "true for a size": ({"x": {**entry(), "shape": [True]}}, "header entry"),
    "rank": ({"x": entry(shape=(1,) * 65)}, "header entry"),
    "numbers of 4000 digits": (b'{"x":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,24]}}',
                               "header entry"),
    "empty of a huge shape": ({"x": entry(0, 0, (1 << 62, 1 << 62, 0))}, "empty tensor"),
    "extra field": ({"x": {**entry(), "call": "os.system"}}, "header entry"),
    "no object": (b'["x"]                ', "broken|no weights|begin as one"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "x": entry()}, "must be text"),
    "no json": (b'{"x": nonsense', "not JSON"),
    "nest": (b'{"x":' + b"[" * 100_000, "not JSON"),
    "escape in a name": ({"\x1b[2J": entry()}, "printable"),
    "surrogate in a name": (b'{"\\ud800":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}', "printable"),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_bad_safetensors(tmp_path, name, bounded):
    """Catches what the safetensors library lets through, and bare KeyErrors and ValueErrors of our own."""
    header, message = SAFETENSORS[name]
    refuse(safetensors(tmp_path / "a.safetensors", header), message)


def test_a_header_too_large(tmp_path, bounded):
    """Catches a header of gigabytes being taken into memory before its size is looked at."""
    for size in ((16 << 20) + 1, 100_000_001, 1 << 40, (1 << 64) - 1):
        with open(tmp_path / "a.safetensors", "wb") as file:
            file.write(size.to_bytes(8, "little") + b'{"x":')
            file.truncate(min(size, 1 << 27) + 100)
        refuse(tmp_path / "a.safetensors", "header")


def test_good_safetensors(tmp_path):
    """Catches wrong widening and lost order: every dtype the library writes, and bfloat16 by hand."""
    from safetensors.torch import save_file
    state = {"z": torch.randn(2, 3), "h": torch.randn(3).half(), "b": torch.randn(3).bfloat16(), "n": torch.tensor(5),
             "d": torch.tensor([0.5]).double(), "e": torch.zeros(0, 4), "m": torch.tensor([True, False])}
    save_file(state, tmp_path / "a.safetensors", {"licence": "MIT"})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.metadata == {"licence": "MIT"} and found.format == "safetensors"
    for name, tensor in state.items():
        assert_close(found.tensors[name], (tensor.float() if tensor.is_floating_point() else tensor).numpy(), 0)
    refuse(tmp_path / "a.safetensors", "no such entry", prefer="net_E")


def test_what_does_not_fit_is_listed(tmp_path):
    """Catches an error that leaves the user guessing which network a file is for: ten differences, the variant."""
    import mmref
    write_pth(tmp_path / "nano.pth", mmref.create_model("mobilemamba_nano").state_dict())
    with pytest.raises(ParameterMismatch, match="They fit mobilemamba_nano with num_classes=10") as caught:
        mmref.create_model("mobilemamba_t2", tmp_path / "nano.pth")
    assert "and " in str(caught.value) and str(caught.value).count(": expected") <= 10
    state = read_checkpoint(tmp_path / "nano.pth").tensors
    state.pop("head.l.bias")
    with pytest.raises(ParameterMismatch, match=r"missing head.l.bias \(10,\)"):
        mmref.create_model("mobilemamba_nano", state)
    folded = mmref.create_model("mobilemamba_nano").fold_batchnorm().state_dict()
    write_pth(tmp_path / "folded.pth", folded)
    assert set(mmref.create_model("mobilemamba_nano", tmp_path / "folded.pth").state_dict()) == set(folded)
