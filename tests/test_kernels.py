"""Every kernel by itself at awkward sizes, against the NumPy text in float64."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import channels, normal, seeds, sides

from mmref.engine.weights import Weights, by_vectors
from mmref.errors import ShapeError
from mmref.graph.graph import Constant
from mmref.kernels import records
from mmref.kernels.program import addresses, run, tile_table
from mmref.kernels.target import LANES, TARGET, describe, round_up
from mmref.nn.functional import conv2d, depthwise_conv2d
from mmref.nn.recurrence import selective_scan
from mmref.nn.wavelet import analysis, filter_bank, synthesis

GUARD = np.float32(12345.5)  # stands where nothing may be written
shares = st.integers(1, 3)   # more than this machine has threads, too


def step(kernel, dtype, threads=1, /, **fields):
    """Run one kernel; arrays stand for their addresses."""
    record, steps = np.zeros(1, dtype), np.zeros(1, records.STEP)
    assert set(fields) == set(dtype.names)
    for name, value in fields.items():
        record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    steps[0] = addresses()[kernel], record.ctypes.data, -1, 1
    run(steps, threads)


def padded(x, extra=0):
    """(..., C) float32 -> (..., pitch in floats) with channels filled up to vectors, and `extra` vectors more."""
    out = np.zeros((*x.shape[:-1], round_up(x.shape[-1]) + extra * LANES), np.float32)
    out[..., :x.shape[-1]] = x
    return out


@given(seeds, st.sampled_from([1, 2, 8, 9, 10, 19, 37]), st.sampled_from([1, 3, 16, 31, 64]),
       st.sampled_from([1, 15, 16, 17, 47, 48, 49, 100]), st.integers(0, 2), st.booleans(), shares,
       st.sampled_from([1, 5, 9, 1000]))
@settings(max_examples=60)
def test_matmul(seed, rows, depth, columns, residuals, relu, threads, chunk):
    """Catches rows or columns beyond a tile left out or done twice, residuals of another row, writes behind the end."""
    a, matrix, bias = normal(seed, rows, depth), normal(seed + 1, depth, columns), normal(seed + 2, columns)
    added = [padded(normal(seed + 3 + i, rows, columns)) for i in range(residuals)]
    expected = a.astype(np.float64) @ matrix + bias + sum(part[:, :columns].astype(np.float64) for part in added)
    weights = Weights()
    packed = weights.pack_matrix(matrix, bias, threads)
    x, out = padded(a), np.full((rows + 1, round_up(columns)), GUARD, np.float32)
    added += [0] * (2 - residuals)
    step("matmul", records.MATMUL, threads, a=x, pitch=x.strides[0], rows=rows, depth=depth, panels=packed.panels,
         panel_table=packed.panel_table, bias=packed.bias, out=out, out_pitch=out.strides[0], residual=added[0],
         residual2=added[1], relu=int(relu), chunk=chunk, tiles=tile_table(), tile_rows=TARGET.tile_rows, next=0)
    terms = np.abs(a) @ np.abs(matrix) + np.abs(bias) + sum(np.abs(part[:, :columns]) for part in added[:residuals])
    error = np.abs(out[:-1, :columns] - (np.maximum(expected, 0) if relu else expected))
    assert (error <= 5e-7 * terms).all() and (out[-1] == GUARD).all()  # of what was added up: sums may cancel


def constant(name, array):
    """What weights are packed from."""
    return Constant(name, name, array.shape, array.dtype, lambda: array)


@given(seeds, st.sampled_from([3, 18, 36]), st.sampled_from([5, 16, 72]), sides, sides, st.booleans(), shares,
       st.sampled_from([1, 3, 4, 5]), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(0, 2))
@settings(max_examples=50)
def test_stem(seed, c_in, c_out, height, width, relu, threads, k, stride, padding, images, residuals):
    """Catches a border that is read as picture, odd sizes rounded down, taps in another order than the weights,
    shortcuts of another pixel, an image that starts elsewhere than behind the one before."""
    assume(min(height, width) + 2 * padding >= k)
    x, bias = normal(seed, images, c_in, height, width), normal(seed + 1, c_out)
    weight = normal(seed, c_out, c_in, k, k)

    def exact(move):
        y = conv2d(*map(move, (x, weight, bias)), stride=stride, padding=padding).transpose(0, 2, 3, 1)
        y = y + sum(move(part) for part in added)
        return np.maximum(y, 0) if relu else y
    added = []
    shape = exact(np.float64).shape
    added = [normal(seed + 5 + i, *shape) for i in range(residuals)]
    expected, tolerance = rounding(exact)
    packed, tight = Weights().window(constant("w", weight), constant("b", bias)), c_in == 3
    pixel = 4 * (c_in if tight else round_up(c_in))
    source = np.zeros((images, height + 2 * padding, width + 2 * padding, pixel // 4), np.float32)
    cells, inside = np.array([x.ctypes.data, 0], np.int64), slice(padding, padding + height)
    for image in range(images):
        here = source[image, padding:, padding:]
        step("picture", records.PICTURE, threads, cell=cells, offset=image * x[0].nbytes, channels=c_in, height=height,
             width=width, out=here, pixel=pixel, row=source.strides[1], alarm=cells.ctypes.data + 8)
    assert cells[1] == 0 and np.count_nonzero(source) == np.count_nonzero(x)
    assert (source[:, inside, padding:padding + width, :c_in] == x.transpose(0, 2, 3, 1)).all()
    out = np.full((*shape[:3], round_up(c_out)), GUARD, np.float32)
    shortcuts = [padded(part) for part in added] + [0] * (2 - residuals)
    step("stem", records.STEM, threads, x=source, pixel=pixel, row=source.strides[1], image=source.strides[0],
         depth=k * c_in if tight else c_in, kernel=k, tap_row=source.strides[1], taps=1 if tight else k, tap=pixel,
         stride=stride, out=out, out_pixel=out.strides[2], out_row=out.strides[1], out_image=out.strides[0],
         height=shape[1], width=shape[2], images=images, panels=packed.panels, panel_table=packed.panel_table,
         bias=packed.bias, residual=shortcuts[0], residual2=shortcuts[1], relu=int(relu), tiles=tile_table(),
         tile_rows=TARGET.tile_rows)
    assert_close(out[..., :c_out], expected, tolerance, dtype=np.float32)
    result = np.full((out.size // out.shape[3] + 1, c_out), GUARD, np.float32)
    cells[0] = result.ctypes.data
    step("result", records.RESULT, threads, x=out, pitch=out.strides[2], rows=len(result) - 1, channels=c_out,
         cell=cells, offset=0)
    assert (result[:-1] == out[..., :c_out].reshape(-1, c_out)).all() and (result[-1] == GUARD).all()


def silu(x):
    return x / (1 + np.exp(-x))


@given(seeds, st.integers(1, 2), st.sampled_from([1, 15, 16, 17, 40]), sides, sides, st.sampled_from([3, 5, 7]),
       st.integers(1, 2), st.integers(0, 3), shares, st.integers(1, 3))
@settings(max_examples=60)
def test_depthwise(seed, images, dim, height, width, k, stride, activation, threads, bands):
    """Catches borders, strides, bands that overlap or leave rows out, and lanes written over the channels beside."""
    x, weight, bias = normal(seed, images, dim, height, width), normal(seed, dim, 1, k, k), normal(seed + 1, dim)
    scale, shift = normal(seed + 2, dim), normal(seed + 3, dim)

    def exact(move):
        y = depthwise_conv2d(*map(move, (x, weight, bias)), stride=stride, padding=k // 2).transpose(0, 2, 3, 1)
        return (y, np.maximum(y, 0), silu(y),
                np.maximum(np.maximum(y, 0) * move(scale) + move(shift), 0))[activation]
    y, tolerance = rounding(exact)
    source, out = padded(x.transpose(0, 2, 3, 1)), np.full((*y.shape[:3], round_up(dim) + LANES), GUARD, np.float32)
    after = np.concatenate([by_vectors(scale).ravel(), by_vectors(shift).ravel()])
    step("depthwise", records.DEPTHWISE, threads, x=source, pitch=source.strides[2], height=height, width=width,
         kernel=k, stride=stride, out_height=y.shape[1], out_width=y.shape[2],
         weights=np.ascontiguousarray(by_vectors(weight)), bias=np.ascontiguousarray(by_vectors(bias)), out=out,
         out_pitch=out.strides[2], activation=activation, after=after, vectors=round_up(dim) // LANES, images=images,
         lanes=(dim - 1) % LANES + 1, bands=min(bands, y.shape[1]), zero=np.zeros(LANES, np.float32))
    assert_close(out[..., :dim], y, tolerance, dtype=np.float32)
    assert (out[..., dim:] == GUARD).all()


@given(seeds, st.integers(1, 2), st.sampled_from([16, 48]), sides, sides, st.sampled_from([3, 5, 7]), shares)
@settings(max_examples=30)
def test_wavelet_branch(seed, images, dim, height, width, k, threads):
    """Catches sub-bands in another order, a sign, a border of the half-sized map, odd sizes, scratch that is shared."""
    x, taps = normal(seed, images, dim, height, width), normal(seed + 1, 4 * dim, 1, k, k)
    scale = normal(seed + 2, 1, 4 * dim, 1, 1)
    banks = [np.tile(bank[:, None], (dim, 1, 1, 1)) for bank in filter_bank("db1")]

    def exact(move):
        exact = [bank.astype(np.float64) for bank in banks]
        bands = depthwise_conv2d(analysis(move(x), exact[0]), move(taps), padding=k // 2) * move(scale)
        return synthesis(bands, exact[1], height, width).transpose(0, 2, 3, 1)
    weights = Weights()
    packed = weights.bands(constant("w", taps * scale.reshape(-1, 1, 1, 1)))
    source = padded(x.transpose(0, 2, 3, 1))
    out = np.full((images, height, width, dim + LANES), GUARD, np.float32)
    size = records.wavelet_scratch_bytes(height, width, k)
    scratch = np.full(threads * size // 4, GUARD, np.float32)
    step("wavelet_branch", records.WAVELET, threads, x=source, pitch=source.strides[2], height=height, width=width,
         kernel=k, weights=packed, out=out, out_pitch=out.strides[2], vectors=dim // LANES, images=images,
         scratch=scratch, scratch_size=size)
    assert_close(out[..., :dim], *rounding(exact), dtype=np.float32)
    assert (out[..., dim:] == GUARD).all()


@given(seeds, st.integers(1, 3), st.sampled_from([16, 32, 48]), st.sampled_from([1, 2, 3, 5, 7, 8, 9, 33]),
       st.integers(1, 14), shares)
@settings(max_examples=30)
def test_scan(seed, images, dim, length, rank, threads):
    """Catches a direction scanned forwards, a state kept from the picture before, steps lost beyond a multiple of 8."""
    u, dt = normal(seed, images, length, dim), normal(seed + 1, images, length, 2, rank + 2)
    projection, bias = normal(seed + 2, 2, dim, rank, scale=0.3), normal(seed + 3, 2, dim)
    A, D = -np.exp(normal(seed + 4, 2, dim, 1)), normal(seed + 5, 2, dim)
    weights = Weights()
    parameters = weights.scan(*(constant(i, part) for i, part in enumerate((projection, bias, A, D))), False)

    def exact(move):
        moved_u, moved_dt, weight, shift, decays, skip = map(move, (u, dt, projection, bias, A, D))
        total = np.zeros((images, length, dim))
        for direction in range(2):
            order = slice(None) if direction == 0 else slice(None, None, -1)
            inputs, steps = moved_u[:, order], moved_dt[:, order, direction]
            delta = np.logaddexp(0, steps[..., :rank] @ weight[direction].T + shift[direction])
            B, C = (steps[..., rank + i][:, None, None] for i in range(2))
            y = selective_scan(*(np.ascontiguousarray(v.swapaxes(1, 2)[:, None]) for v in (inputs, delta)),
                               decays[direction][None], B, C, skip[direction][None])
            total += y[:, 0].swapaxes(1, 2)[:, order]
        return total
    coefficients, out = padded(dt.reshape(images, length, -1)), np.full((images, length, dim), GUARD, np.float32)
    step("scan", records.SCAN, threads, u=u, pitch=u.strides[1], coefficients=coefficients,
         coefficients_pitch=coefficients.strides[1], rank=rank, parameters=parameters, out=out,
         out_pitch=out.strides[1], vectors=dim // LANES, images=images, length=length,
         zero=np.zeros(LANES, np.float32))
    assert_close(out, *rounding(exact), dtype=np.float32)


@given(seeds, st.sampled_from([1, 2, 5, 17]), st.sampled_from([16, 48, 448]), st.sampled_from([0.0, 3000.0]), shares)
@settings(max_examples=20)
def test_norm_gate(seed, rows, dim, offset, threads):
    """Catches a variance from squares that cancel, another epsilon, SiLU on the wrong factor."""
    y = normal(seed, rows, dim, scale=1 if offset else 0.03) + np.float32(offset)  # 0.03: epsilon matters
    z, weight, bias = normal(seed + 1, rows, 2 * dim, scale=3), normal(seed + 2, dim), normal(seed + 3, dim)

    def exact(move):
        wide, gate = move(y), move(z[:, dim:])
        normed = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
        return (normed * move(weight) + move(bias)) * silu(gate)
    out = np.full((rows, dim), GUARD, np.float32)
    step("norm_gate", records.NORM_GATE, threads, y=y, pitch=y.strides[0], z=z[:, dim:], z_pitch=z.strides[0],
         rows=rows, vectors=dim // LANES, parameters=np.concatenate([weight, bias]), out=out, out_pitch=out.strides[0])
    assert_close(out, *rounding(exact), dtype=np.float32)


@given(seeds, st.integers(1, 3), st.sampled_from([1, 2, 63, 64, 65, 150]), st.sampled_from([16, 48]), shares)
@settings(max_examples=20)
def test_mean_gate_and_copy(seed, images, pixels, dim, threads):
    """Catches pixels left out, a gate of the picture before, a copy that overwrites its neighbours."""
    x, gates = normal(seed, images, pixels, dim), normal(seed + 1, images, dim, scale=5)
    mean, scaled = np.full((images, dim), GUARD, np.float32), x.copy()
    shape = dict(images=images, length=pixels, vectors=dim // LANES)
    step("mean", records.MEAN, threads, x=x, pitch=x.strides[1], out=mean, out_pitch=mean.strides[0], **shape)
    assert_close(mean, *rounding(lambda move: move(x).mean(1)), dtype=np.float32)
    step("gate", records.GATE, threads, x=scaled, pitch=x.strides[1], gate=gates, gate_pitch=gates.strides[0], **shape)
    assert_close(scaled, *rounding(lambda move: move(x) / (1 + np.exp(-move(gates)[:, None]))), dtype=np.float32)
    target = np.full((images * pixels, dim), GUARD, np.float32)
    step("copy_relu", records.COPY_RELU, threads, x=x.reshape(-1, dim)[:, 3:], pitch=x.strides[1], rows=len(target),
         channels=dim - 5, out=target[:, 2:], out_pitch=target.strides[0])
    assert (target[:, 2:-3] == np.maximum(x.reshape(-1, dim)[:, 3:-2], 0)).all()
    assert (target[:, :2] == GUARD).all() and (target[:, -3:] == GUARD).all()


# --------------------------------------------------------------------- the operations of the reference

@given(seeds, st.integers(0, 2), st.integers(1, 4), channels, st.integers(1, 4), st.sampled_from([1, 2, 3, 7, 33]))
@settings(max_examples=40)
def test_selective_scan(seed, batch, K, dim, N, length):
    """Catches states that mix, directions that share parameters, inputs written to; equal to the reference."""
    u, delta = normal(seed, batch, K, dim, length), normal(seed + 1, batch, K, dim, length)
    inputs = (u, np.log1p(np.exp(delta)), -np.exp(0.5 * normal(seed, K, dim, N)), normal(seed + 2, batch, K, N, length),
              normal(seed + 3, batch, K, N, length), normal(seed, K, dim))
    for array in inputs:
        array.flags.writeable = False
    assert_close(selective_scan(*inputs, backend="numba"), *rounding(lambda move: selective_scan(*map(move, inputs))),
                 dtype=np.float32)


@given(seeds, st.integers(0, 2), channels, sides, sides, st.integers(1, 7), st.integers(1, 7), st.integers(1, 3),
       st.integers(0, 4), st.booleans())
@settings(max_examples=60)
def test_depthwise_conv2d(seed, batch, dim, height, width, k_h, k_w, stride, padding, with_bias):
    """Catches even or oblong filters, paddings other than k // 2 and strides that the kernel does not know itself."""
    x, weight = normal(seed, batch, dim, height, width), normal(seed + 1, dim, 1, k_h, k_w)
    bias = normal(seed + 2, dim) if with_bias else None
    if min(height + 2 * padding - k_h, width + 2 * padding - k_w) < 0:
        with pytest.raises(ShapeError):
            depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, backend="numba")
        return

    def exact(move):
        return depthwise_conv2d(move(x), move(weight), bias if bias is None else move(bias), stride=stride,
                                padding=padding)
    assert_close(depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, backend="numba"), *rounding(exact),
                 dtype=np.float32)


@given(seeds, st.sampled_from([1, 3, 17]), st.integers(1, 8), st.integers(1, 8),
       st.sampled_from([(3, 3, 1), (2, 2, 0), (2, 2, 1), (1, 1, 0), (1, 1, 2), (5, 5, 2), (3, 5, 1), (4, 1, 3)]),
       st.integers(1, 4), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_depthwise_conv2d_not_finite(seed, dim, height, width, filter_, stride, strange_x, strange_w):
    """Catches a filter that is laid into a larger one: zeros times infinity are NaN where no tap lies. And taps left
    out in the padding: infinity times its zeros is NaN there."""
    k_h, k_w, padding = filter_
    assume(min(height + 2 * padding - k_h, width + 2 * padding - k_w) >= 0)
    x, weight, bias = normal(seed, 2, dim, height, width), normal(seed + 1, dim, 1, k_h, k_w), normal(seed + 2, dim)
    rng = np.random.default_rng(seed)
    for array, strange in ((x, strange_x), (weight, strange_w), (bias, strange_w)):
        if strange:
            array[rng.random(array.shape) < 0.1] = rng.choice([np.inf, -np.inf, np.nan, 0])
    with np.errstate(invalid="ignore"):
        expected = depthwise_conv2d(x, weight, bias, stride=stride, padding=padding)
    got = depthwise_conv2d(x, weight, bias, stride=stride, padding=padding, backend="numba")
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    added_up = depthwise_conv2d(*(np.where(np.isfinite(array), np.abs(array), 0) for array in (x, weight, bias)),
                                stride=stride, padding=padding)
    assert (np.abs(got[finite] - expected[finite]) <= 5e-6 * added_up[finite]).all()  # sums may cancel


def test_one_infinity():
    """Catches the same, by hand: an infinity within a filter of 2x2 ones reaches four places."""
    x = np.zeros((1, 1, 7, 7), np.float32)
    x[0, 0, 3, 3] = np.inf
    expected = np.zeros((6, 6), np.float32)
    expected[2:4, 2:4] = np.inf
    got = depthwise_conv2d(x, np.ones((1, 1, 2, 2), np.float32), backend="numba")
    np.testing.assert_array_equal(got[0, 0], expected)


def test_operations_refuse_other_dtypes():
    """Catches float64 read as if it were float32."""
    x = np.zeros((1, 2, 3, 3))
    with pytest.raises(ShapeError, match="float32"):
        depthwise_conv2d(x, np.zeros((2, 1, 3, 3)), backend="numba")
    u, A, B = np.zeros((1, 1, 2, 3)), np.zeros((1, 2, 1)), np.zeros((1, 1, 1, 3))
    with pytest.raises(ShapeError, match="float32"):
        selective_scan(u, u, A, B, B, np.zeros((1, 2)), backend="numba")


@pytest.mark.parametrize("triple, features, name, tile", [
    ("x86_64-unknown-linux-gnu", "+avx2,+fma,+avx512f", "AVX-512", (9, 3)),
    ("x86_64-pc-windows-msvc", "+avx2,+fma,-avx512f", "AVX2", (6, 1)),
    ("x86_64-apple-darwin", "+sse4.2,+avx,-avx2", "SSE", (2, 1)), ("x86_64-unknown-linux-gnu", "", "SSE", (2, 1)),
    ("aarch64-unknown-linux-gnu", "+neon", "NEON", (6, 1)), ("arm64-apple-darwin", "", "NEON", (6, 1)),
    ("riscv64-unknown-linux-gnu", "+v", "generic", (2, 1))])
def test_tile_by_processor(triple, features, name, tile):
    """Catches a tile that spills its registers, and instructions a processor lacks."""
    target = describe(triple, features)
    assert (target.name, (target.tile_rows, target.tile_vectors)) == (name, tile)
    assert target.is_x86 == triple.startswith("x86") and not (target.has_scalef and name != "AVX-512")
