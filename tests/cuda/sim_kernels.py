"""Every CUDA kernel on small awkward shapes, in the simulator, against the reference in float64.

Run by test_kernels_sim.py. The simulator runs each thread as a Python thread and checks every index; a barrier that
only some threads reach goes unseen, and so do types: the compile check sees those. Maps are columns of a wider array
filled with a guard value, as in the engine's arena.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

from mmref.errors import ShapeError
from mmref.kernels.cuda import maps, plain, twins
from mmref.kernels.cuda import scan as scan_module
from mmref.kernels.cuda.depthwise import depthwise
from mmref.kernels.cuda.driver import SIMULATOR, cuda
from mmref.kernels.cuda.epilogue import epilogue
from mmref.kernels.cuda.join import copy_relu
from mmref.kernels.cuda.launch import width
from mmref.kernels.cuda.layout import to_channels_first, to_contiguous
from mmref.kernels.cuda.matmul import matmul
from mmref.kernels.cuda.norm_gate import is_able as norm_able
from mmref.kernels.cuda.norm_gate import norm_gate
from mmref.kernels.cuda.pool import mean
from mmref.kernels.cuda.rows import compare_rows, repeat_rows
from mmref.kernels.cuda.scan import scan
from mmref.kernels.cuda.squeeze_excite import gate
from mmref.kernels.cuda.stem import stem
from mmref.kernels.cuda.wavelet_branch import is_able, tiling, wavelet_branch
from mmref.nn.functional import depthwise_conv2d
from mmref.nn.paths import paths
from mmref.nn.recurrence import selective_scan

assert SIMULATOR
GUARD = np.float32(-77)
BEFORE = 4  # columns of the guard


def behind(channels: int) -> int:
    """Columns of the guard behind a map: those of 8, 16, ... channels may be read four at a time, others not."""
    return 4 if channels % 8 == 0 else 3


def on_device(array):
    """(device array, the host's array under it): a map becomes columns of a wider one."""
    if array.ndim != 2:
        held = cuda.to_device(array)
        return held, held._ary
    last = BEFORE + array.shape[1]
    wide = np.full((array.shape[0], last + behind(array.shape[1])), GUARD, np.float32)
    wide[:, BEFORE:last] = array
    held = cuda.to_device(wide)
    return held[:, BEFORE:last], held._ary


def check(launcher, result, whole=(), aliases=(), settings=None, **arguments):
    """Launch twice, and compare argument `result` with the twin in float64; nothing else may have changed.

    `whole` names 2-D arguments that are contiguous; `aliases` those that are the memory of `result`."""
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    rest = {name: value for name, value in arguments.items() if name not in arrays}

    def exact(move):
        moved = {name: move(value) if value.dtype == np.float32 else value for name, value in arrays.items()}
        moved |= {name: moved[result].copy() for name in aliases}
        getattr(twins, launcher.__name__)(**moved, **rest)
        return moved[result]
    runs = []
    for _ in range(2):
        held = {name: (cuda.to_device(value),) * 2 if name in whole else on_device(value)
                for name, value in arrays.items()}
        held = {name: tuple(held[result if name in aliases else name]) for name in held}
        launcher(**{name: device for name, (device, _) in held.items()}, **rest, **(settings or {}))
        runs.append(np.ascontiguousarray(held[result][0]._ary))
        for name, (device, under) in held.items():
            if name != result and name not in aliases:
                assert np.array_equal(device._ary, arrays[name]), f"{name} was written to"
            if arrays[name].ndim == 2 and name not in whole:
                beyond = under[:, BEFORE + arrays[name].shape[1]:]
                assert (under[:, :BEFORE] == GUARD).all() and (beyond == GUARD).all(), f"beyond {name}"
    assert np.array_equal(*runs), "another result in another run"
    assert_close(runs[0], *rounding(exact), dtype=np.float32)


def blank(*shape):
    """An output that shows where nothing was written."""
    return np.full(shape, 1e6, np.float32)


@pytest.mark.parametrize("kernel, stride, activation, height, width, channels", [
    (3, 1, "none", 1, 1, 1), (3, 1, "silu", 4, 9, 3), (3, 1, "none", 3, 17, 33), (3, 2, "relu", 5, 4, 2),
    (3, 2, "relu", 2, 17, 2), (5, 1, "local", 3, 3, 3), (7, 1, "local", 5, 10, 2), (5, 2, "none", 1, 9, 1)])
def test_depthwise(kernel, stride, activation, height, width, channels):
    """Catches a border, the last strip of a row, a channel slab, an activation."""
    images, out_height, out_width = 2, -(-height // stride), -(-width // stride)
    out = images * out_height * out_width
    check(depthwise, "out", whole=("weight", "after"), x=normal(1, images * height * width, channels),
          weight=normal(2, kernel * kernel, channels), bias=normal(3, channels), out=blank(out, channels),
          after=normal(4, 2, channels) if activation == "local" else None,
          images=images, height=height, width=width, filter_shape=(kernel, kernel), stride=stride,
          padding=kernel // 2, activation=activation)


@pytest.mark.parametrize("images, length, rank, channels, shape", [
    (1, 1, 1, 1, None), (2, 9, 3, 5, (2, 2)), (1, 16, 4, 17, None), (2, 33, 5, 6, (2, 2)), (1, 50, 2, 3, (1, 2)),
    (1, 40, 6, 3, (4, 2)), (1, 17, 9, 33, (2, 16)), (1, 72, 7, 2, (16, 1))])
def test_scan(images, length, rank, channels, shape):
    """Catches a state lost between segments or tiles, a direction scanned forwards, steps behind the picture's end
    that decay the state, coefficients left over from a multiple of 4, a picture that sees the one before."""
    check(scan, "out", ("coefficients", "dt_bias", "A", "D"), settings=dict(shape=shape),
          u=normal(1, images * length, channels), coefficients=normal(2, images * length, 2 * (rank + 2)),
          dt_weight=normal(3, 2, rank, channels, scale=0.3), dt_bias=normal(4, 2, channels),
          A=-np.exp(normal(5, 2, channels)), D=normal(6, 2, channels), out=blank(images * length, channels),
          images=images, length=length, rank=rank)


def test_scan_of_large_and_small_steps():
    """Catches a softplus that overflows or loses its small values, and a vanished state that becomes NaN."""
    length, rank, channels = 12, 1, 4
    check(scan, "out", ("coefficients", "dt_bias", "A", "D"), u=normal(1, length, channels),
          coefficients=np.tile(np.float32([0, 1, 1]), (length, 2)), dt_weight=np.zeros((2, rank, channels), np.float32),
          dt_bias=np.float32([[-100, -20, 0, 30], [100, 19.5, 20.5, -87]]), A=-np.ones((2, channels), np.float32),
          D=np.zeros((2, channels), np.float32), out=blank(length, channels), images=1, length=length, rank=rank)


@pytest.mark.parametrize("rank", [1, 7, 10, 17, 22, 40, 150, 200])
def test_scan_block_fits(rank):
    """Catches a block whose shared memory no device has."""
    for length in (1, 8, 9, 16, 64, 196, 256, 1024):
        assert scan_module.is_able(rank)
        segments, lanes = scan_module.block_shape(rank, length)
        assert scan_module.shared_bytes(rank, segments, lanes) <= 48 * 1024
        assert segments & (segments - 1) == 0 and segments * lanes <= 256


@pytest.mark.parametrize("kernel, height, width, images, channels", [
    (3, 1, 1, 9, 3), (3, 4, 4, 3, 17), (5, 7, 6, 2, 3), (7, 9, 5, 1, 2), (5, 3, 16, 2, 1), (7, 17, 2, 1, 1),
    (3, 18, 18, 1, 1), (7, 4, 27, 1, 1)])
def test_wavelet_branch(kernel, height, width, images, channels):
    """Catches sub-bands in another order, a sign, odd sides, tiles that miss their neighbours, a picture's last rows
    taken for the next one's first."""
    check(wavelet_branch, "out", x=normal(1, images * height * width, channels),
          weight=normal(2, 4, kernel * kernel, channels), out=blank(images * height * width, channels), images=images,
          height=height, width=width, kernel=kernel)


def test_what_fits_no_block():
    """Catches a block that no device has, promised for a rank, a filter or a width that is too large."""
    assert not scan_module.is_able(300) and scan_module.shared_bytes(300, 1, 8) > 48 * 1024
    assert is_able(16, 16, 31) and not is_able(17, 16, 13) and is_able(17, 400, 11)
    assert norm_able(2048) and not norm_able(2049)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize("height, width", [(1, 1), (3, 3), (16, 16), (17, 5), (24, 24), (32, 32), (100, 41)])
def test_wavelet_tiles(kernel, height, width):
    """Catches tiles that leave pixels out, or want more shared memory than a block has."""
    tile, overlap, pictures, tiles = tiling(height, width, kernel)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    assert tiles * tile * tile >= rows * columns and (overlap == kernel // 2 or max(rows, columns) <= tile)
    side = tile + 2 * overlap
    assert 16 * pictures * 4 * side * (side + 1 - side % 2) * 4 <= 48 * 1024 and 16 * tile * pictures <= 256


@pytest.mark.parametrize("rows, channels, offset", [(1, 1, 0), (9, 33, 0), (7, 34, 3000), (2, 65, 0), (9, 8, 0),
                                                    (2, 136, 0)])
def test_norm_gate(rows, channels, offset):
    """Catches a variance from squares that cancel, another epsilon, SiLU on the wrong factor, padding in the mean."""
    y = normal(1, rows, channels, scale=1 if offset else 0.03) + np.float32(offset)  # 0.03: epsilon matters
    check(norm_gate, "out", y=y, z=normal(2, rows, channels, scale=3),
          weight=normal(3, channels), bias=normal(4, channels), out=blank(rows, channels))


@pytest.mark.parametrize("images, pixels, channels", [(1, 1, 1), (2, 9, 33), (3, 65, 2), (2, 9, 136), (3, 65, 8)])
def test_mean_and_gate(images, pixels, channels):
    """Catches pixels left out, and a mean or gate of the picture before."""
    x = normal(1, images * pixels, channels)
    check(mean, "out", x=x, out=blank(images, channels), images=images, length=pixels)
    check(gate, "x", x=x, gates=normal(2, images, channels, scale=5), images=images, length=pixels)


@pytest.mark.parametrize("rows, channels", [(1, 1), (33, 5), (3, 33), (70, 8), (3, 136), (9, 4)])
def test_copy_and_layout(rows, channels):
    """Catches a row or channel beyond a tile, and neighbours overwritten."""
    check(copy_relu, "out", x=normal(1, rows, channels), out=blank(rows, channels))
    check(to_channels_first, "out", x=normal(1, 2 * rows, channels), out=blank(2, channels, rows), images=2,
          pixels=rows)


def test_width():
    """Catches a misaligned access of 16 bytes, which no device forgives, and four accesses where one would do."""
    for channels, expected in ((8, 4), (136, 4), (4, 1), (12, 1), (33, 1)):  # by the guard behind them
        assert width(on_device(normal(1, 3, channels))[0]) == expected
    wide, _ = on_device(normal(1, 3, 16))
    for columns, expected in ((slice(4, 12), 4), (slice(1, 9), 1), (slice(4, 11), 1), (slice(2, None), 1)):
        assert width(wide[:, columns]) == expected == width(wide, wide[:, columns])
    assert width(cuda.to_device(normal(1, 8))) == 4 and width(cuda.to_device(normal(1, 9))[1:]) == 1


@pytest.mark.parametrize("rows, channels", [(1, 1), (65, 3), (300, 33)])
def test_test_rows(rows, channels):
    """Catches rows that repeat otherwise, and bits that differ in one place, in the sign of a zero or of a NaN."""
    test = normal(1, 7, channels)
    test[3, 0], test[4, 0] = np.nan, -0.0
    out, _ = on_device(blank(rows, channels))
    repeat_rows(cuda.to_device(test), out)
    expected = test[np.arange(rows) % 7]
    assert np.array_equal(np.ascontiguousarray(out._ary).view(np.int32), expected.view(np.int32))
    for row, value in ((None, 0), (rows - 1, 1), (4, 0.0), (3, -np.nan)):
        if row is not None and row >= rows:
            continue
        other = expected.copy()
        if row is not None:
            other[row, 0] = value
        found = cuda.to_device(np.zeros(1, np.float32))
        compare_rows(on_device(other)[0], cuda.to_device(test), found)
        assert found.copy_to_host()[0] == (row is not None)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 3, 30, 31)])
def test_to_contiguous(shape):
    """Catches strides that are ignored: pictures channels-last, mirrored, or cut out of larger ones."""
    images, channels, height, width = shape
    last = normal(1, images, height, width, channels)
    for lying in (cuda.to_device(last).transpose((0, 3, 1, 2)), cuda.to_device(normal(1, *shape))[:, :, ::-1],
                  cuda.to_device(normal(1, images, channels, height + 2, width + 1))[:, :, 1:-1, 1:]):
        out = cuda.to_device(blank(*shape))
        to_contiguous(lying, out)
        assert np.array_equal(out.copy_to_host(), lying._ary)


@pytest.mark.parametrize("rows, channels", [(1, 1), (33, 5), (3, 33), (70, 8), (3, 136), (9, 4)])
@pytest.mark.parametrize("bias, shortcuts, relu", [(True, 0, False), (True, 1, True), (False, 2, False)])
def test_epilogue(rows, channels, bias, shortcuts, relu):
    """Catches a shortcut left out or added behind the ReLU, and a result that is not in place."""
    more = dict(bias=normal(2, channels) if bias else None, residual=normal(3, rows, channels) if shortcuts else None,
                residual2=normal(4, rows, channels) if shortcuts > 1 else None, relu=relu)
    check(epilogue, "x", x=normal(1, rows, channels), **more)
    check(epilogue, "out", x=normal(1, rows, channels), out=blank(rows, channels), **more)


@pytest.mark.parametrize("rows, depth, columns, shape", [
    (1, 1, 1, None), (5, 9, 7, None), (65, 17, 33, (4, 4)), (3, 16, 49, (8, 6)), (129, 3, 2, (8, 8)), (2, 8, 65, None)])
def test_matmul(rows, depth, columns, shape):
    """Catches a depth that is no multiple of 8, a row or column beyond a tile, a buffer overwritten while in use."""
    arrays = dict(a=normal(1, rows, depth), weight=normal(2, depth, columns), out=blank(rows, columns))
    check(matmul, "out", settings=dict(shape=shape), bias=None, **arrays)
    arrays["out"] = normal(3, rows, columns)
    check(matmul, "out", aliases=("residual",), settings=dict(shape=shape), bias=normal(4, columns),
          residual=arrays["out"].copy(), residual2=normal(5, rows, columns), relu=True, **arrays)


def test_matmul_does_not_depend_on_the_tile():
    """Catches a sum whose order depends on the tile, and with it on the batch."""
    a, weight = (cuda.to_device(normal(i, *size)) for i, size in ((1, (5, 19)), (2, (19, 9))))
    results = []
    for shape in ((4, 4), (4, 8), (8, 6)):
        out = cuda.to_device(blank(5, 9))
        matmul(a, weight, None, out, shape=shape)
        results.append(out.copy_to_host())
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_more_tiles_than_a_grid_is_high(monkeypatch):
    """Catches rows left out or written beyond, where tiles go on in the third dimension of the grid."""
    monkeypatch.setattr(import_module("mmref.kernels.cuda.matmul"), "MOST_BLOCKS", (9, 3, 9))
    check(matmul, "out", settings=dict(shape=(4, 4)), a=normal(1, 250, 2), weight=normal(2, 2, 33), bias=None,
          out=blank(250, 33))  # 4 x 2 tiles in layers of 2
    check(stem, "out", settings=dict(shape=(4, 4)), x=normal(1, 1, 1, 31, 31), weight=normal(2, 9, 5),
          bias=normal(3, 5), out=blank(256, 5), images=1, height=31, width=31, c_in=1, filter_shape=(3, 3),
          stride=2, padding=1, nchw=True)


@pytest.mark.parametrize("images, height, width, c_in, columns, nchw, relu, filter_shape, stride, padding, shortcuts", [
    (1, 1, 1, 3, 1, True, False, (3, 3), 2, 1, 0), (2, 5, 7, 3, 5, True, True, (3, 3), 2, 1, 0),
    (2, 5, 6, 5, 9, False, False, (3, 3), 2, 1, 0), (3, 1, 1, 9, 33, False, True, (3, 3), 2, 1, 0),
    (1, 16, 17, 1, 2, False, True, (3, 3), 2, 1, 0), (2, 4, 5, 3, 7, False, True, (3, 3), 1, 1, 2),
    (2, 5, 4, 2, 3, True, False, (2, 4), 3, 0, 1), (1, 3, 3, 2, 3, False, False, (1, 1), 2, 0, 0),
    (2, 3, 2, 1, 2, False, False, (1, 2), 1, 3, 0), (2, 9, 10, 2, 3, False, True, (9, 8), 2, 4, 1),
    (1, 8, 9, 1, 3, True, False, (8, 8), 8, 0, 0)])
def test_stem(images, height, width, c_in, columns, nchw, relu, filter_shape, stride, padding, shortcuts):
    """Catches a border, a tap of the next row or picture, the picture's channels in another order, filters that are not
    square or have more taps than a word has bits, shortcuts behind the ReLU."""
    x = normal(1, images, c_in, height, width) if nchw else normal(1, images * height * width, c_in)
    out_height, out_width = ((side + 2 * padding - k) // stride + 1
                             for side, k in zip((height, width), filter_shape, strict=True))
    rows = images * out_height * out_width
    more = {name: normal(4 + i, rows, columns) for i, name in enumerate(("residual", "residual2")[:shortcuts])}
    check(stem, "out", x=x, weight=normal(2, filter_shape[0] * filter_shape[1] * c_in, columns),
          bias=None if shortcuts == 1 else normal(3, columns), out=blank(rows, columns), images=images, height=height,
          width=width, c_in=c_in, filter_shape=filter_shape, stride=stride, padding=padding, nchw=nchw, relu=relu,
          **more)


@pytest.mark.parametrize("dilation, filter_shape, stride, padding, nchw", [
    (2, (3, 3), 1, 2, False), (5, (3, 3), 1, 5, False), (3, (2, 3), 2, 3, True), (2, (9, 8), 1, 8, False)])
def test_dilated_stem(dilation, filter_shape, stride, padding, nchw):
    """Catches taps side by side, and a dilated tap of the next row taken for one inside."""
    images, height, width, c_in = 2, 7, 8, 2
    x = normal(1, images, c_in, height, width) if nchw else normal(1, images * height * width, c_in)
    rows = images * np.prod([(side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
                             for side, k in zip((height, width), filter_shape, strict=True)])
    check(stem, "out", x=x, weight=normal(2, filter_shape[0] * filter_shape[1] * c_in, 5), bias=normal(3, 5),
          out=blank(rows, 5), images=images, height=height, width=width, c_in=c_in, filter_shape=filter_shape,
          stride=stride, padding=padding, dilation=dilation, nchw=nchw)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("height, width, out_height, out_width, channels", [
    (1, 1, 3, 2, 1), (3, 5, 6, 10, 3), (4, 2, 7, 3, 35), (6, 7, 2, 3, 2), (5, 4, 5, 4, 1)])
def test_resize(height, width, out_height, out_width, channels, nearest):
    """Catches a source of the next row or picture, rows and columns exchanged, weights the wrong way round."""
    pixels, results = 2 * height * width, 2 * out_height * out_width
    check(maps.resize, "out", x=normal(1, pixels, channels), out=blank(results, channels), height=height, width=width,
          out_height=out_height, out_width=out_width, nearest=nearest)


@pytest.mark.parametrize("height, width, rows, columns, channels", [(1, 1, 2, 3, 1), (7, 5, 3, 2, 33), (4, 6, 6, 6, 2)])
def test_adaptive_mean(height, width, rows, columns, channels):
    """Catches parts that leave pixels out, or reach into the next row or picture."""
    check(maps.adaptive_mean, "out", x=normal(1, 2 * height * width, channels), out=blank(2 * rows * columns, channels),
          height=height, width=width, rows=rows, columns=columns)


@pytest.mark.parametrize("height, width, size, stride, padding", [(1, 1, 3, 2, 1), (7, 5, 3, 2, 1), (4, 6, 2, 2, 0),
                                                                  (5, 5, 1, 2, 0)])
def test_maximum_pool(height, width, size, stride, padding):
    """Catches padding that counts as zeros (all values are below), and windows of the next row."""
    out_height, out_width = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    check(maps.maximum_pool, "out", x=normal(1, 2 * height * width, 3) - 9, out=blank(2 * out_height * out_width, 3),
          height=height, width=width, out_height=out_height, out_width=out_width, kernel=size, stride=stride,
          padding=padding)


def test_maximum_of_nan():
    """Catches NaN lost in a comparison, whichever side of it it is on."""
    x, out = np.zeros((4, 4), np.float32), cuda.to_device(blank(1, 4))
    x[range(4), range(4)] = np.nan
    maps.maximum_pool(cuda.to_device(x), out, height=2, width=2, out_height=1, out_width=1, kernel=2, stride=1,
                      padding=0)
    assert np.isnan(out.copy_to_host()).all()


# ------------------------------------------------------------------------------------------ plain kernels

@pytest.mark.parametrize("add", [False, True])
def test_move(add):
    """Catches steps of one axis taken for those of another, a box that begins elsewhere, values moved twice."""
    box = np.int64([[3, 1, 1, 0], [6, 0, 12, 0], [2, 0, 4, 0], [1, 0, 0, 2], [0, 2, 1, 0]])
    check(plain.move, "out", whole=("box",), x=normal(1, 20, 5), out=normal(2, 23, 5), box=box, sizes=(2, 3, 2, 2),
          add=add)


@pytest.mark.parametrize("operation", ["copy", "relu", "relu6", "sigmoid", "silu", "softplus", "add", "multiply"])
@pytest.mark.parametrize("rows, channels, count, length", [(1, 1, 1, 1), (70, 3, 70, 1), (12, 33, 3, 4), (9, 2, 3, 1)])
def test_combine(operation, rows, channels, count, length):
    """Catches a row of another picture, a column beyond the map, an operation taken for another."""
    y = normal(2, count, channels) if operation in ("add", "multiply") else None
    x = normal(1, rows, channels, scale=9)
    check(plain.combine, "out", x=x, y=y, out=blank(rows, channels), operation=operation, length=length)
    check(plain.combine, "out", aliases=("x",), x=x, y=y, out=x.copy(), operation=operation, length=length)


@pytest.mark.parametrize("rows, channels, offset", [(1, 1, 0), (9, 33, 0), (7, 2, 300), (2, 65, 0)])
def test_norm(rows, channels, offset):
    """Catches a variance from squares that cancel, another epsilon, padding in the mean, a row read when written."""
    x = normal(1, rows, channels) + np.float32(offset)
    more = dict(weight=normal(3, channels), bias=normal(4, channels), epsilon=np.float32([0.01]))
    check(plain.norm, "out", x=x, out=blank(rows, channels), **more)
    check(plain.norm, "out", aliases=("x",), x=x, out=x.copy(), **more)


def test_gather():
    """Catches a row of the picture before, and pixels of zeros that are somebody's."""
    table = np.int32([[0, 3, 2, -1, 1], [4, 4, -1, -1, 0]])
    check(plain.gather, "out", whole=("table",), x=normal(1, 3 * 6, 35), table=table, out=blank(3 * 5, 35), images=3)
    check(plain.gather, "out", whole=("table",), x=normal(1, 4, 1), table=np.int32([[3]]), out=blank(1, 1), images=1)


def test_project():
    """Catches the matrix of another direction."""
    check(plain.project, "out", x=normal(1, 2 * 3 * 7, 5), weight=normal(2, 3, 5, 9), out=blank(2 * 3 * 7, 9), length=7)


@pytest.mark.parametrize("kernel", [2, 4, 6])
@pytest.mark.parametrize("height, width, channels", [(1, 1, 1), (4, 5, 3), (5, 2, 2), (7, 8, 1)])
def test_any_wavelet(kernel, height, width, channels):
    """Catches sub-bands in another order, filters reversed, odd sides, a border that belongs to the next picture."""
    half, images = -(-height // 2) * -(-width // 2), 2
    arguments = dict(whole=("bank",), bank=normal(2, 4 * channels, kernel ** 2), height=height, width=width,
                     kernel=kernel)
    check(plain.analysis, "out", x=normal(1, images * height * width, channels),
          out=blank(images * half, 4 * channels), **arguments)
    check(plain.synthesis, "out", x=normal(1, images * half, 4 * channels),
          out=blank(images * height * width, channels), **arguments)


@pytest.mark.parametrize("order, height, width, rank, states, channels", [
    ("cross", 2, 3, 2, 1, 3), ("bidirectional", 1, 5, 1, 4, 33), ("atrous", 3, 3, 2, 2, 2), (("rows",), 1, 1, 1, 17, 1),
    (("windows 2", "columns backwards"), 3, 3, 1, 16, 2), ("unidirectional", 2, 2, 3, 0, 2)])
def test_path_scan(order, height, width, rank, states, channels):
    """Catches a path that visits another pixel, a pixel of zeros that adds to the state or does not fade it, states
    beyond sixteen, a direction or picture that starts with another's state."""
    table, images = paths(order, height, width).astype(np.int32), 2
    K, rows = len(table), 2 * height * width
    check(plain.path_scan, "out", ("dt_bias", "D", "table"), u=normal(1, rows, channels),
          coefficients=normal(2, rows, K * (rank + 2 * states)), dt_weight=normal(3, K, rank, channels, scale=0.3),
          dt_bias=normal(4, K, channels), A=-np.exp(normal(5, K, max(states, 1), channels)), D=normal(6, K, channels),
          table=table, out=blank(rows, channels), images=images, rank=rank, states=states)


@pytest.mark.parametrize("images, K, length, states, channels", [(1, 1, 1, 1, 1), (2, 3, 5, 2, 33), (1, 2, 4, 17, 2),
                                                                 (2, 1, 3, 0, 3), (1, 1, 9, 32, 1)])
def test_scan_rows(images, K, length, states, channels):
    """Catches states that mix, sequences that go on from the one before, parameters of another direction."""
    rows = images * K * length
    B, C = normal(7, rows, states), normal(8, rows, states)
    check(plain.scan_rows, "out", ("D",), u=normal(1, rows, channels), delta=np.abs(normal(2, rows, channels)),
          A=-np.exp(normal(5, K, max(states, 1), channels)), B=B, C=C, D=normal(6, K, channels),
          out=blank(rows, channels), length=length, states=states)


# --------------------------------------------------------------------- the operations of the reference

few = st.sampled_from([1, 2, 3, 5])


@given(seeds, st.integers(0, 2), st.integers(1, 3), st.sampled_from([1, 2, 3, 33]), st.sampled_from([0, 1, 2, 3, 17]),
       st.sampled_from([1, 2, 7, 32, 33]))
@settings(max_examples=12)
def test_selective_scan(seed, batch, K, dim, N, length):
    """Catches states that mix, directions that share parameters, inputs written to; equal to the reference."""
    u, delta = normal(seed, batch, K, dim, length), normal(seed + 1, batch, K, dim, length)
    inputs = (u, np.log1p(np.exp(delta)), -np.exp(0.5 * normal(seed, K, dim, N)), normal(seed + 2, batch, K, N, length),
              normal(seed + 3, batch, K, N, length), normal(seed, K, dim))
    for array in inputs:
        array.flags.writeable = False
    assert_close(selective_scan(*inputs, backend="cuda"), *rounding(lambda move: selective_scan(*map(move, inputs))),
                 dtype=np.float32)


@pytest.mark.parametrize("N", [0, 1, 3, 17])
def test_selective_scan_of_values_that_are_not_finite(N):
    """Catches states that are not there taking part (0 times an infinite decay), a first state of 0 that meets no
    decay, and a rate that overflows where delta is 0. The recurrence is written out, as its definition has it."""
    u, delta = normal(1, 1, 1, 6, 5), np.abs(normal(2, 1, 1, 6, 5))
    A = -np.exp(normal(3, 1, 6, N))
    B, C, D = normal(4, 1, 1, N, 5), normal(5, 1, 1, N, 5), normal(6, 1, 6)
    delta[0, 0, 0, 0] = np.nan   # the first decay is no number
    delta[0, 0, 1, 0] = -np.inf  # infinite
    delta[0, 0, 2, 2] = np.inf   # in the middle
    u[0, 0, 3, 1] = np.inf
    delta[0, 0, 4] = 0
    A[0, 4] = -3e38
    with np.errstate(all="ignore"):
        y = u * D[:, :, None]
        for n in range(N):
            h = np.zeros((1, 1, 6), np.float32)
            for step in range(5):
                h = np.exp(delta[..., step] * A[:, :, n]) * h + delta[..., step] * u[..., step] * B[:, :, n, step, None]
                y[..., step] += C[:, :, n, step, None] * h
        got = selective_scan(u, delta, A, B, C, D, backend="cuda")
    assert np.array_equal(np.isnan(got), np.isnan(y)) and np.array_equal(np.isinf(got), np.isinf(y))
    finite = np.isfinite(y)
    assert np.array_equal(got[~finite & ~np.isnan(y)], y[~finite & ~np.isnan(y)])
    assert_close(got[finite], y[finite], 5e-6)


@given(seeds, st.integers(0, 2), few, st.sampled_from([1, 2, 5, 9]), st.sampled_from([1, 2, 5, 9, 17]),
       st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(0, 4), st.booleans())
@settings(max_examples=40)
def test_depthwise_conv2d(seed, batch, dim, height, width, k_h, k_w, stride, padding, with_bias):
    """Catches even or oblong filters, paddings other than k // 2 and strides of 3."""
    x, weight = normal(seed, batch, dim, height, width), normal(seed + 1, dim, 1, k_h, k_w)
    bias = normal(seed + 2, dim) if with_bias else None
    if min(height + 2 * padding - k_h, width + 2 * padding - k_w) < 0:
        with pytest.raises(ShapeError):
            depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, backend="cuda")
        return

    def exact(move):
        return depthwise_conv2d(move(x), move(weight), bias if bias is None else move(bias), stride=stride,
                                padding=padding)
    assert_close(depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, backend="cuda"), *rounding(exact),
                 dtype=np.float32)


def test_operations_refuse_other_dtypes():
    """Catches float64 read as if it were float32."""
    x = np.zeros((1, 2, 3, 3))
    with pytest.raises(ShapeError, match="float32"):
        depthwise_conv2d(x, np.zeros((2, 1, 3, 3)), backend="cuda")
    u, A, B = np.zeros((1, 1, 2, 3)), np.zeros((1, 2, 1)), np.zeros((1, 1, 1, 3))
    with pytest.raises(ShapeError, match="float32"):
        selective_scan(u, u, A, B, B, np.zeros((1, 2)), backend="cuda")
