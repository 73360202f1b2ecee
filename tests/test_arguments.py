"""The door of everything public: what cannot be meant is refused in words, what can is taken, however it is given."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import lively, normal

import mmref
import mmref.weights
from mmref.data.labels import CIFAR10, class_names, read_class_names
from mmref.data.picture import Transform, load_batch, open_picture, to_array
from mmref.engine import CompiledModel
from mmref.errors import MissingBackend, MmrefError, ShapeError, ValueProblem
from mmref.evaluate import PictureSet, evaluate, read_folder
from mmref.models.summary import summarize
from mmref.models.variants import VARIANTS
from mmref.nn import functional as F
from mmref.nn import tokens
from mmref.nn.layer import recording
from mmref.nn.paths import paths
from mmref.nn.recurrence import selective_scan
from mmref.nn.scan_order import cross_merge, cross_scan
from mmref.nn.wavelet import analysis, filter_bank, synthesis
from mmref.validate.check import check, make_input
from mmref.validate.compare import compare
from mmref.validate.trace import Trace, trace_model
from mmref.validate.trace_file import read_trace, write_trace
from mmref.weights.checkpoint import from_dict, read_checkpoint
from mmref.weights.conversion import convert

NANO = VARIANTS["mobilemamba_nano"]


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


# What people and programs pass by mistake, whatever the argument; and some values that are right for one or another.
INTEGERS, THREE, HALVES, ZEROS = np.array([1, 2, 3]), (1, 2, 3), [0.5] * 3, np.zeros(3)
ODD = (
    None, True, False, np.True_, 0, 1, 2, -1, 3, 10**5000, -(10**5000), np.int64(2), np.uint8(2), np.int64(-3), 0.5,
    2.0, float("nan"), float("inf"), np.float64(2), np.float32("nan"), Fraction(1, 2), 1j, "", "2", "10", "a.jpg", "no",
    "a\0b", "numpy", b"", b"2", bytearray(b"a.jpg"), Path("nosuch"), [], [1], (1, 2), THREE, HALVES, ["1", "2", "3"],
    {}, {1: 2}, set(), iter([1]), range(3), ZEROS, np.zeros((2, 2)), np.array(2), INTEGERS, torch.zeros(3), object(),
    Unprintable(), int, len, io.BytesIO(b"x"), io.StringIO("x"), SimpleNamespace(config=1), Image.new("RGB", (3, 3)))


def integer(low, high=2**31 - 1, *also):
    """Whether a value is an integer in a range, or one of `also`."""
    def fits(value):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        return one_of(*also)(value) or (whole and low <= value <= high)
    return fits


def number(low, high):
    """Whether a value is a finite number in a range."""
    def fits(value):
        real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        return real and bool(low <= value <= high)
    return fits


def one_of(*values):
    """Whether a value is one of these very objects."""
    return lambda value: any(value is each for each in values)


def perhaps(fits):
    """For values that may be refused for another reason, in words that say which: None where `fits`, else False."""
    return lambda value: None if fits(value) else False


def flag(value):
    return isinstance(value, (bool, np.bool_))


def build(**options):
    return mmref.create_model("mobilemamba_nano", **options)


@pytest.fixture(scope="module")
def nano():
    return lively()


@pytest.fixture(scope="module")
def compiled(nano):
    return CompiledModel(nano, threads=1)


def a_path(*also):
    """Refused unless it is a path (which may be none of a right file), or one of `also`."""
    return lambda v: True if any(v is a for a in also) else (
        None if isinstance(v, (str, Path)) and str(v) and "\0" not in str(v) else False)


NO_PICTURES = PictureSet(Path("nosuch"), (), np.zeros(0, np.int32))
FOLDER = Path(__file__).parent
CHECKPOINT = Path(mmref.weights.__file__).parent / "mobilemamba_nano.safetensors"
X = normal(0, 1, 3, 9, 8)
SMALL = normal(1, 2, 4, 5, 6)
FILTERS = normal(2, 4, 1, 3, 3)
BANDS, BANK = normal(3, 1, 8, 3, 2), np.tile(filter_bank("db1")[0][:, None], (2, 1, 1, 1))

# {argument: (call of a value, whether the value is right: it is tried too)}
SETTINGS = {
    "num_classes": (lambda v: build(num_classes=v), integer(0, 10**6, None)),
    "in_chans": (lambda v: replace(NANO, in_chans=v), integer(1, 4096)),
    "img_size": (lambda v: replace(NANO, img_size=v), integer(1, 4096)),
    "ssm_ratio": (lambda v: replace(NANO, ssm_ratio=v), integer(1, 64)),
    "d_state": (lambda v: replace(NANO, d_state=v), integer(1, 1024)),
    "wavelet_levels": (lambda v: replace(NANO, wavelet_levels=v), integer(1, 16)),
    "wavelet": (lambda v: replace(NANO, wavelet=v), one_of()),
    "scan_order": (lambda v: replace(NANO, scan_order=v), one_of()),
    "widths": (lambda v: replace(NANO, widths=v), one_of()),
    "depths": (lambda v: replace(NANO, depths=v), one_of(THREE, INTEGERS)),
    "kernels": (lambda v: replace(NANO, kernels=v), one_of()),
    "global_ratio": (lambda v: replace(NANO, global_ratio=v), one_of(HALVES)),
    "local_ratio": (lambda v: replace(NANO, local_ratio=v), one_of(HALVES)),
    "class_names": (lambda v: build(class_names=v),
                    perhaps(lambda v: v is None or isinstance(v, (str, Path, list, tuple)))),
    "prefer": (lambda v: build(prefer=v), lambda v: isinstance(v, str)),
    "Predictor's prefer": (lambda v: mmref.Predictor(prefer=v), lambda v: isinstance(v, str)),
    "Predictor's num_classes": (lambda v: mmref.Predictor(num_classes=v), integer(0, 2**31 - 1, None)),
    "Predictor's in_chans": (lambda v: mmref.Predictor(in_chans=v), integer(1, 2**31 - 1, None)),
    "seed": (lambda v: build(seed=v), integer(0)),
    "threads": (lambda v: build(threads=v), integer(1, 2**31 - 1, None)),
    "dtype": (lambda v: build(dtype=v), one_of()),
    "pretrained": (lambda v: build(pretrained=v), flag),
    "backend": (lambda v: build(backend=v), lambda v: isinstance(v, str) and v == "numpy"),
    "graph": (lambda v: build(graph=v), lambda v: v is None or flag(v)),
    "matmul": (lambda v: build(matmul=v), one_of()),
    "tf32": (lambda v: build(tf32=v), flag),
    "filter": (mmref.list_models, lambda v: isinstance(v, str)),
    "topk": (lambda v: mmref.Predictor(topk=v), integer(1)),
    "batch_size": (lambda v: mmref.Predictor(batch_size=v), integer(1)),
    "workers": (lambda v: mmref.Predictor(workers=v), integer(0)),
    "exif": (lambda v: mmref.Predictor(exif=v), flag),
    "transform": (lambda v: mmref.Predictor(transform=v), one_of(None)),
    "model": (mmref.Predictor, one_of()),
    "config": (mmref.MobileMamba, one_of()),
    "stride": (lambda v: F.conv2d(SMALL, normal(0, 2, 4, 3, 3), stride=v), integer(1)),
    "padding": (lambda v: F.depthwise_conv2d(SMALL, FILTERS, padding=v), integer(0, 65535)),
    "groups": (lambda v: F.conv2d(SMALL, normal(0, 4, 2, 3, 3), groups=v), perhaps(integer(1))),
    "eps": (lambda v: F.layer_norm_channels(SMALL, *normal(0, 2, 4), eps=v), number(0, 1e30)),
    "keep_axes": (lambda v: F.global_average_pool(SMALL, v), flag),
    "height": (lambda v: synthesis(BANDS, BANK, v, 4), perhaps(integer(1))),
    "width": (lambda v: paths("cross", 2, v), integer(0, 1 << 24)),
    "order": (lambda v: cross_scan(SMALL, v), one_of()),
    "sizes": (lambda v: F.split(SMALL, v), perhaps(lambda v: isinstance(v, (tuple, list)) or v is INTEGERS)),
    "axis": (lambda v: F.slice_axis(SMALL, v, 0, 1), integer(0, 3)),
    "size": (lambda v: Transform(size=v), integer(1, 4096)),
    "shrink_to": (lambda v: Transform(9, shrink_to=v), integer(1, 4096, None)),
    "crop_ratio": (lambda v: Transform(9, crop_ratio=v), number(0.1, 1)),
    "mean": (lambda v: Transform(9, mean=v), lambda v: True if one_of(THREE, INTEGERS, HALVES, ZEROS)(v) else
             perhaps(lambda v: type(v) is list and len(v) == 1)(v)),  # one for a grey picture, with one std
    "std": (lambda v: Transform(9, std=v), one_of(THREE, INTEGERS, HALVES)),
    "--cells": (lambda v: _draw(cells=v), integer(1, 16)),
    "examples": (lambda v: check(np.asarray, build(), examples=v), perhaps(integer(1))),
    "magnitude": (lambda v: make_input((1, 3, 2, 2), "noise", v, 0), number(-1e30, 1e30)),
    "fill": (lambda v: make_input((1, 3, 2, 2), v, 1.0, 0), one_of()),
    "precision": (lambda v: compare(Trace({}), Trace({}), precision=v), one_of()),
    "reference": (lambda v: compare(v, Trace({})), one_of()),
    "processes": (lambda v: evaluate(mmref.Predictor(), NO_PICTURES, processes=v), lambda v: False if not
                  integer(1)(v) else None),
    "predictor": (lambda v: evaluate(v, NO_PICTURES), one_of()),
    "pictures": (lambda v: evaluate(mmref.Predictor(), v), one_of()),
    "scheduler": (lambda v: evaluate(mmref.Predictor(), NO_PICTURES, scheduler=v),
                  lambda v: v is None or perhaps(lambda v: isinstance(v, str))(v)),
    "progress": (lambda v: callable(v) or evaluate(mmref.Predictor(), NO_PICTURES, progress=v),
                 lambda v: v is None or callable(v)),
    "resume": (lambda v: a_path()(v) is None or evaluate(mmref.Predictor(), NO_PICTURES, resume=v), a_path(None)),
    "root": (lambda v: read_folder(v, CIFAR10), a_path()),
    "labels": (lambda v: v is None or read_folder(FOLDER / "golden", CIFAR10, labels=v), a_path(None)),
    "class_map": (lambda v: v is None or read_folder(FOLDER / "golden", CIFAR10, class_map=v), a_path(None)),
    "read_folder's order": (lambda v: read_folder(FOLDER, CIFAR10, order=v), perhaps(one_of(None))),
    "read_folder's class_names": (lambda v: read_folder(FOLDER, v),
                                  perhaps(lambda v: isinstance(v, (list, tuple)))),
    "limit": (NO_PICTURES.limit, integer(1)),
    "count": (lambda v: read_class_names("cifar10", v), perhaps(integer(0))),
    "read_checkpoint's prefer": (lambda v: read_checkpoint(CHECKPOINT, prefer=v),
                                 perhaps(lambda v: isinstance(v, str))),
    "from_dict's prefer": (lambda v: from_dict({"a.weight": ZEROS}, prefer=v), perhaps(lambda v: isinstance(v, str))),
    "strict": (lambda v: read_checkpoint(CHECKPOINT, strict=v), flag),
    "allow_nonfinite": (lambda v: read_checkpoint(CHECKPOINT, allow_nonfinite=v), flag),
    "source": (lambda v: convert(v, "nosuch.safetensors"), a_path()),
    "target": (lambda v: convert(CHECKPOINT, v), a_path()),
    "path": (read_trace, perhaps(lambda v: isinstance(v, (str, Path)) and str(v) != "" and "\0" not in str(v))),
}


def _draw(**options):
    pytest.importorskip("matplotlib")
    from mmref.show.pictures import draw
    return draw("erf", build(pretrained=True), Image.new("RGB", (20, 20)), "patch_embed", 16, **options)


@pytest.mark.parametrize("argument", SETTINGS)
def test_settings_are_taken_or_refused_in_words(argument):
    """Catches TypeError, KeyError and IndexError from deep inside, a boolean or a string taken for a number, a NumPy
    integer refused, a value taken that means nothing: every setting is tried with everything."""
    call, is_right = SETTINGS[argument]
    for value in ODD:
        right = is_right(value)
        try:
            call(value)
        except (MmrefError, OSError) as error:
            message = str(error)
            assert right is not True, f"{argument}, a {type(value).__name__}: {message}"
            assert right is None or argument.split("'s ")[-1] in message, message
            assert "\n" not in message and len(message) < 600, message
        else:
            assert right is not False, f"{argument}: {type(value).__name__} was taken"


@pytest.mark.parametrize("changes, said", [
    ({"num_classes": -1}, "num_classes must be an integer in 0..1000000, got -1"),
    ({"num_classes": 2.0}, "got 2.0: write 2"), ({"num_classes": "10"}, "got '10': write 10"),
    ({"in_chans": 0}, "in_chans must be an integer in 1..4096, got 0"),
    ({"weights": b"abc"}, "weights must be the path of .* or a state dict .*got bytes"),
    ({"weights": io.BytesIO(b"abc")}, "got an open file: pass its path"), ({"weights": [1]}, r"got \[1\]"),
    ({"weights": torch.nn.Linear(1, 1)}, r"got Linear: pass its state_dict\(\)"), ({"weights": ""}, "got ''"),
    ({"weights": {0: np.zeros(3)}}, "got the name 0"), ({"dtype": "float16"}, "dtype must be float32 or float64"),
    ({"dtype": None}, "float64, got None"), ({"dtype": ">f4"}, "got '>f4'"), ({"threads": 0}, "threads must be .*>= 1"),
    ({"widths": (64, 128)}, "widths must be 3 integers"), ({"widths": (64, 128, 2.5)}, r"widths\[2\] must be"),
    ({"depths": (1, -1, 1)}, r"depths\[1\] must be .*got -1"), ({"kernels": (7, 4, 3)}, "kernels must be odd"),
    ({"global_ratio": (1.5, 0.7, 0.6)}, r"global_ratio\[0\] must be .*0..1, got 1.5"),
    ({"global_ratio": (0.8, float("nan"), 0.6)}, r"global_ratio\[1\] .*got nan"),
    ({"global_ratio": (1, 1, 1)}, "leave a local channel"), ({"local_ratio": (0, 0.2, 0.3)}, "larger than 0"),
    ({"wavelet": "nosuch"}, "wavelet must be a discrete wavelet"), ({"wavelet": "morl"}, "discrete"),
    ({"scan_order": "spiral"}, "scan_order: order must be one of unidirectional"), ({"colour": 1}, "changes must be"),
])
def test_what_a_network_cannot_be(changes, said):
    """Catches networks without meaning, and messages that do not say what to do."""
    with pytest.raises(ValueProblem, match=said):
        mmref.create_model("mobilemamba_nano", **changes)


def test_numpy_numbers_are_numbers(nano):
    """Catches a NumPy integer refused, one kept as it is (int8 overflows, JSON does not know it), and NumPy's float64
    that turns float32 results into float64."""
    x = normal(5, 1, 4, 20, 30)
    for stride, padding in ((np.int8(2), np.int8(100)), (np.uint8(3), np.int64(1))):
        expected = F.depthwise_conv2d(x, FILTERS, stride=int(stride), padding=int(padding))
        np.testing.assert_array_equal(F.depthwise_conv2d(x, FILTERS, stride=stride, padding=padding), expected)
    for groups in (2, np.uint8(2)):
        assert F.conv2d(x, normal(0, 4, 2, 1, 1), groups=groups).shape == x.shape
    v = abs(normal(6, 4))
    assert F.batch_norm(x, v, v, v, v, eps=np.float64(1e-5)).dtype == np.float32
    assert F.layer_norm_channels(x, v, v, eps=np.float64(1e-5)).dtype == np.float32
    config = replace(NANO, widths=np.array([64, 128, 160]), num_classes=np.int64(10), depths=[np.int32(1), 2, 2])
    assert config == NANO and type(config.widths[0]) is int and type(config.num_classes) is int
    assert len(nano.forward_intermediates(X, indices=np.int64(2), intermediates_only=True)) == 2
    assert class_names(np.int64(3)) == class_names(3) and Transform(np.int32(8)).size == 8
    assert mmref.Predictor(topk=np.int64(2)).topk == 2


# --------------------------------------------------------------------------------------------------- arrays

u = abs(normal(7, 1, 2, 3, 4))
OPERATIONS = {
    "conv2d": (F.conv2d, dict(x=SMALL, weight=normal(0, 6, 4, 3, 3), bias=normal(1, 6))),
    "grouped conv2d": (lambda **o: F.conv2d(**o, groups=2), dict(x=SMALL, weight=normal(0, 6, 2, 3, 3),
                                                                 bias=normal(1, 6))),
    "depthwise_conv2d": (F.depthwise_conv2d, dict(x=SMALL, weight=FILTERS, bias=normal(1, 4))),
    "depthwise_conv2d numba": (lambda **o: F.depthwise_conv2d(**o, backend="numba"),
                               dict(x=SMALL, weight=FILTERS, bias=normal(1, 4))),
    "depthwise_conv_transpose2d": (lambda **o: F.depthwise_conv_transpose2d(**o, groups=2),
                                   dict(x=SMALL, weight=FILTERS)),
    "batch_norm": (F.batch_norm, dict(x=SMALL, weight=normal(0, 4), bias=normal(1, 4), running_mean=normal(2, 4),
                                      running_var=abs(normal(3, 4)))),
    "layer_norm_channels": (F.layer_norm_channels, dict(x=SMALL, weight=normal(0, 4), bias=normal(1, 4))),
    "linear": (F.linear, dict(x=normal(0, 3, 4), weight=normal(1, 5, 4), bias=normal(2, 5))),
    "relu": (F.relu, dict(x=SMALL)), "sigmoid": (F.sigmoid, dict(x=SMALL)), "silu": (F.silu, dict(x=SMALL)),
    "softplus": (F.softplus, dict(x=SMALL)), "global_average_pool": (F.global_average_pool, dict(x=SMALL)),
    "add": (F.add, dict(x=SMALL, y=SMALL)), "multiply": (F.multiply, dict(x=SMALL, y=SMALL)),
    "analysis": (analysis, dict(x=normal(4, 1, 2, 5, 4), bank=BANK)),
    "synthesis": (lambda **o: synthesis(**o, height=5, width=4), dict(bands=BANDS, bank=BANK)),
    "selective_scan": (selective_scan, dict(u=u, delta=u, A=-abs(normal(1, 2, 3, 5)), B=normal(2, 1, 2, 5, 4),
                                            C=normal(3, 1, 2, 5, 4), D=normal(4, 2, 3))),
    "gelu": (tokens.gelu, dict(x=SMALL)), "pad_to_multiple": (lambda **o: tokens.pad_to_multiple(**o, side=3),
                                                              dict(x=SMALL)),
    "rms_norm_channels": (tokens.rms_norm_channels, dict(x=SMALL, weight=normal(0, 4))),
    "causal_conv": (tokens.causal_conv, dict(sequences=u, weight=normal(0, 2, 3, 4), bias=normal(1, 2, 3))),
    "rotary": (tokens.rotary, dict(x=SMALL, cos=normal(1, 1, *SMALL.shape[1:]), sin=normal(2, 1, *SMALL.shape[1:]))),
    "selective_scan numba": (lambda **o: selective_scan(**o, backend="numba"),
                             dict(u=u, delta=u, A=-abs(normal(1, 2, 3, 5)), B=normal(2, 1, 2, 5, 4),
                                  C=normal(3, 1, 2, 5, 4), D=normal(4, 2, 3))),
}
NO_ARRAYS = {
    "list": np.ndarray.tolist, "torch": lambda a: torch.from_numpy(a.copy()), "masked": np.ma.masked_array,
    "matrix": lambda a: np.ones((2, 2), np.float32).view(np.matrix), "text": lambda a: "x",
    "number": lambda a: a.ravel()[0],
    "float16": lambda a: a.astype(np.float16), "int": lambda a: a.astype(np.int64), "bool": lambda a: a > 0,
    "complex": lambda a: a.astype(np.complex64), "object": lambda a: a.astype(object),
    "other endian": lambda a: a.astype(a.dtype.newbyteorder()), "no axis": lambda a: a.ravel()[0].reshape(()),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrays_of_operations(operation):
    """Catches arrays that NumPy would broadcast, upcast or read past their mask, and an AttributeError for a list."""
    call, arrays = OPERATIONS[operation]
    call(**arrays)
    tried = [(name, make(array)) for name, array in arrays.items() for make in NO_ARRAYS.values()]
    tried += [(name, None) for name in arrays if name != "bias"]
    if len(arrays) > 1:
        tried += [(name, array.astype(np.float64)) for name, array in arrays.items()]
        tried += [(name, other) for name, array in arrays.items() for other in (array[None], array[0])]
        tried += [(name, v[part]) for name, v in arrays.items() if v.ndim == 1 for part in (slice(1), slice(-1))]
    for name, changed in tried:
        with pytest.raises(ShapeError) as caught:
            call(**{**arrays, name: changed})
        message = str(caught.value)
        assert any(message.startswith(f"{argument} must") for argument in (*arrays, "x and y")), message


def test_what_one_array_alone_may_be():
    """Catches ranks and empty arrays that end in a warning, NaN or NumPy's own error."""
    for call, x in ((F.global_average_pool, SMALL[0]), (F.global_average_pool, SMALL[:, :, :0]),
                    (F.layer_norm_channels, SMALL[:, :0]), (F.channels_last, SMALL[0]), (F.channels_first, SMALL[0]),
                    (F.per_channel, SMALL), (lambda x: F.pad_pixels(x, 1, 1, 1, 1), SMALL[0]), (cross_scan, SMALL[0]),
                    (lambda x: analysis(x, BANK), SMALL[:, :2, :0]), (lambda x: cross_merge(x, "cross", 2, 2), SMALL)):
        with pytest.raises(ShapeError):
            call(x if call is not F.layer_norm_channels else x, **({} if call is not F.layer_norm_channels else dict(
                weight=normal(0, 0), bias=normal(0, 0))))


def test_shapes_that_nearly_fit():
    """Catches a bank for a number of channels that is no multiple of four, a padding that leaves nothing, kernels and
    groups of nothing: division by zero, or a result of the wrong size."""
    for error, call in ((ShapeError, lambda: synthesis(normal(0, 1, 5, 2, 2), normal(0, 5, 1, 2, 2), 4, 4)),
                        (ShapeError, lambda: synthesis(normal(0, 1, 3, 2, 2), normal(0, 3, 1, 2, 2), 4, 4)),
                        (ShapeError, lambda: analysis(SMALL, normal(0, 16, 1, 0, 0))),
                        (ShapeError, lambda: analysis(SMALL, normal(0, 16, 1, 3, 3))),
                        (ShapeError, lambda: F.depthwise_conv_transpose2d(SMALL, FILTERS, groups=2, padding=4)),
                        (ShapeError, lambda: F.depthwise_conv_transpose2d(SMALL, FILTERS, groups=3)),
                        (ShapeError, lambda: F.depthwise_conv_transpose2d(SMALL[:, :, :0], FILTERS, groups=2)),
                        (ValueProblem, lambda: F.depthwise_conv_transpose2d(SMALL, FILTERS, groups=0)),
                        (ShapeError, lambda: F.conv2d(SMALL[:, :0], normal(0, 2, 0, 1, 1))),
                        (ShapeError, lambda: F.conv2d(SMALL, normal(0, 2, 4, 0, 1))),
                        (ShapeError, lambda: F.depthwise_conv2d(SMALL, normal(0, 4, 1, 3, 0))),
                        (ValueProblem, lambda: F.split(SMALL, 4)), (ShapeError, lambda: F.split(SMALL, (1, 2))),
                        (MissingBackend, lambda: F.depthwise_conv2d(SMALL, FILTERS, backend="NumPy")),
                        (MissingBackend, lambda: selective_scan(**OPERATIONS["selective_scan"][1], backend=None))):
        with pytest.raises(error):
            call()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrays_may_lie_anyhow(operation, tmp_path):
    """Catches a check that refuses read-only, strided, reversed, Fortran-ordered or memory-mapped arrays, and code that
    reads them as if they were contiguous."""
    call, arrays = OPERATIONS[operation]
    expected = call(**arrays)

    def mapped(a):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, a)
        return np.load(path, mmap_mode="r")

    def strided(a):
        wide = np.zeros([2 * n for n in a.shape], a.dtype)[tuple(slice(None, None, -2) for _ in a.shape)]
        wide[...] = a
        wide.flags.writeable = False
        return wide
    for lay in (mapped, strided, np.asfortranarray):
        got = call(**{name: lay(array) for name, array in arrays.items()})
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------- networks

@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_inputs_of_a_network(nano, compiled, backend):
    """Catches indices taken letter by letter, a mask that is dropped, another library's array, a big-endian input that
    is told to change the model's dtype, features of another stage that are pooled all the same."""
    model = {"numpy": nano, "numba": compiled}[backend]
    for x, said in ((X.tolist(), "NumPy array .*got list: np.asarray"),
                    (np.ma.masked_array(X), "got MaskedArray: x.filled"), (torch.zeros(X.shape), "got Tensor"),
                    (X.astype(">f4"), r"got >f4 \(x.astype\(np.float32\) is"),
                    (X.astype(np.float64), "got float64"), (X[0], r"must have shape"), (None, "got NoneType")):
        for method in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ShapeError, match=said):
                method(x)
    last = model.forward_features(X)
    for wrong in (last[:, 1:], last[0], last.astype(np.float64), last[:, :, :0], last.tolist()):
        with pytest.raises(ShapeError, match="x must"):
            model.forward_head(wrong, pre_logits=True)
    for indices in ("12", "1", 2.0, True, np.True_, [1.0], ["1"], [[1]], 5, 0, -1, [4], [-5], [None], object(), {1},
                    b"1", (True,), 10**5000):
        with pytest.raises(ValueProblem, match="indices"):
            model.forward_intermediates(X, indices)
    for options in (dict(pre_logits=1), dict(pre_logits="no"), dict(pre_logits=None)):
        with pytest.raises(ValueProblem, match="pre_logits must be True or False"):
            model.forward_head(last, **options)
    with pytest.raises(ValueProblem, match="intermediates_only must be True or False"):
        model.forward_intermediates(X, intermediates_only="no")
    for indices in (2, np.int64(2), [2, 3], (2, -1), np.array([-2, -1]), [np.int8(2), 3]):
        maps = model.forward_intermediates(X, indices, intermediates_only=True)
        assert [m.shape for m in maps] == [(1, 128, 1, 1), (1, 160, 1, 1)]
    assert model.forward_intermediates(X, [], intermediates_only=True) == []


def test_networks_that_are_none(nano, compiled, tmp_path):
    """Catches AttributeError for what is no network, or has no parameters yet."""
    empty = mmref.MobileMamba(NANO)
    for call in (empty, CompiledModel, summarize, lambda m: trace_model(m, X)):
        with pytest.raises(ValueProblem, match="got no(ne|thing) for patch_embed.0.c.weight"):
            call(X if call is empty else empty)
    for wrong in ("mobilemamba_nano", None, compiled, nano.state_dict(), object()):
        for call in (CompiledModel, summarize, lambda m: trace_model(m, X), lambda m: check(np.asarray, m)):
            with pytest.raises(ValueProblem, match="model must be"):
                call(wrong)
    for threads in (0, 1025, 1.5, True, "2"):
        with pytest.raises(ValueProblem, match="threads must be an integer"):
            CompiledModel(nano, threads)
    assert CompiledModel(nano, np.int64(1)).threads == 1
    for shape in (None, "abcd", (1, 3, 8), (1, 4, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8), (1, 3, 8.0, 8), (1, 3, -8, 8)):
        with pytest.raises((ShapeError, ValueProblem), match="shape"):
            compiled.plan(shape)
    wide = lively().astype(np.float32)
    wide.head.l.bias = wide.head.l.bias.astype(np.float64)
    with pytest.raises(ValueProblem, match="got float64 for head.l.bias"):
        CompiledModel(wide)
    for dtype in ("float16", int, None, "nosuch", object()):
        with pytest.raises(ValueProblem, match="dtype must be float32 or float64"):
            nano.astype(dtype)
    for call in (lambda: trace_model(nano, X.tolist()), lambda: trace_model(nano, X * 1j)):
        with pytest.raises(ShapeError, match="x must"):
            call()
    for path in (None, b"x.safetensors", io.BytesIO()):
        for call in (mmref.read_checkpoint, read_trace, lambda p: write_trace(p, Trace({}))):
            with pytest.raises(ValueProblem, match="path must be a path"):
                call(path)


def test_recording_an_engine_is_an_error(nano, compiled):
    """Catches a recorder around a model of another backend that stays empty, and one that is nothing to call."""
    last, seen = compiled.forward_features(X), []
    for method, x in ((compiled, X), (compiled.forward_features, X), (compiled.forward_intermediates, X),
                      (compiled.forward_head, last)):
        with recording(lambda *record: seen.append(record)), pytest.raises(MmrefError, match="'numba'.*numpy"):
            method(x)
    assert not seen
    assert compiled(X).shape == (1, 10)  # and only within the block
    for record in (None, [], "x"):
        with pytest.raises(ValueProblem, match="record must be a function"), recording(record):
            pass


# --------------------------------------------------------------------------------------------------- pictures

def test_one_picture_is_no_list_of_pictures(tmp_path):
    """Catches a path taken for a picture a letter, a file for a picture a line, an array for a list."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    predict, one = mmref.Predictor("mobilemamba_nano"), tmp_path / "a.png"
    for pictures in (str(one), one, one.read_bytes(), bytearray(one.read_bytes()), Image.open(one), open(one, "rb"),
                     None, 5, np.zeros((2, 9, 9, 3), np.uint8), NANO, int, np.array("a.png")):
        for call in (predict, lambda p: list(predict.stream(p)), lambda p: load_batch(p, Transform(8))):
            with pytest.raises(ValueProblem, match="pictures must be a list"):
                call(pictures)
    answers = predict([str(one), one, one.read_bytes(), Image.open(one), np.zeros((9, 9, 3), np.uint8), None, 5, ["a"],
                       Image.new("RGB", (0, 5))])
    assert [answer.error is None for answer in answers] == [True] * 4 + [False] * 5
    assert all("picture must be" in answer.error for answer in answers[4:8])
    assert "no pixels: 0 x 5" in answers[8].error  # and the others have their answers all the same
    assert len(predict(iter([one]))) == len(predict((str(one),))) == len(predict(np.array([str(one)]))) == 1
    for exif in (1, "no", None):
        with pytest.raises(ValueProblem, match="exif must be True or False"):
            open_picture(one, exif)
    for image, transform, error in ((one, Transform(8), ShapeError), (np.zeros((3, 3, 3)), Transform(8), ShapeError),
                                    (Image.open(one), None, ValueProblem), (Image.open(one), {}, ValueProblem)):
        with pytest.raises(error, match="must be"):
            to_array(image, transform)


def test_a_path_is_no_model(nano, tmp_path):
    """Catches `Predictor("a.jpg")` and `Predictor("my.pth")` answered with a list of models, and settings that a ready
    model ignores without a word."""
    with pytest.raises(ValueProblem, match=r"got the path 'a.jpg', .* call: Predictor\(\)\(\[picture\]\)"):
        mmref.Predictor("a.jpg")
    for path in ("my.pth", Path("folder") / "my.safetensors", os.path.join("folder", "my.pth")):
        with pytest.raises(ValueProblem, match=r"got the path .*, which belongs into weights=\.\.\."):
            mmref.Predictor(path)
    with pytest.raises(ValueProblem, match="model must be one of mobilemamba_nano"):
        mmref.Predictor("resnet50")
    for options in (dict(weights=nano.state_dict()), dict(backend="numba"), dict(threads=2)):
        with pytest.raises(ValueProblem, match="must be left out with a ready model"):
            mmref.Predictor(nano, **options)
    with pytest.raises(ValueProblem, match="model must have a transform"):
        bare = lively()
        bare.transform = None
        mmref.Predictor(bare).load()


# --------------------------------------------------------------------------------------------------- names

@pytest.mark.parametrize("first", ["names", "modules"])
def test_a_public_name_means_one_thing(first):
    """Catches a function and a module of one name, of which the last import wins: whatever is imported before or after,
    a public name is a class, a function or a text."""
    modules = ["mmref.nn.recurrence", "mmref.nn.functional", "mmref.models.create", "mmref.weights", "mmref.kernels",
               "mmref.kernels.selective_scan", "mmref.kernels.depthwise", "mmref.tasks.predictor"]
    names = "kinds = [type(getattr(mmref, name)).__name__ for name in mmref.__all__]"
    imports = "for name in sys.argv[1:]: importlib.import_module(name)"
    code = "\n".join(["import importlib, sys, mmref", *((names, imports) if first == "names" else (imports, names)),
                      "again = [type(getattr(mmref, name)).__name__ for name in mmref.__all__]",
                      "assert kinds == again and 'module' not in kinds, (kinds, again)",
                      "assert mmref.selective_scan.__name__ == 'selective_scan'"])
    for order in (modules, modules[::-1]):
        subprocess.run([sys.executable, "-c", code, *order], check=True)
