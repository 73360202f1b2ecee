"""A scan with any number of states a channel and in any order of directions, laid back on the map.

Parallel   (image, vector of 16 channels): channels never meet in the recurrence.
Loops      directions; steps, eight at a time; states, in groups of up to 16. A group's states are registers for eight
           steps: with 16 states, the usual number, they are loaded and stored once in eight steps. What does not depend
           on the state, a rank-R product and a softplus, is done for all eight before.
Moves      u and the result (to which every direction adds), R + 2 N floats, once a direction and step.
Costs      an exp2 and three multiply-adds a channel, step and state: with 16 states about 250 instructions a vector,
           and the exponential is two thirds of them.

Shared exponentials. Networks of this kind start training with A[n] = n A[1], and where that still holds, to a millionth
of each (mmref/engine/weights.py looks), the decay of state 4 i + j is that of state 4 i times that of state j: six
exponentials and ten products in place of sixteen exponentials, each decay within three roundings of its own.

u and coefficients are either those of the map's pixels, which the table of the order finds (`by_path`), or have been
read off already, step by step.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from mmref.kernels.records import STATE_BLOCK, STATE_SCAN
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import (
    FLOAT,
    INT64,
    emit_fma,
    emit_join,
    emit_load,
    emit_splat,
    emit_split,
    emit_store,
    load,
    load_integer,
    store,
    store_integer,
    vector,
    view,
    zeros,
)
from mmref.kernels.vector_math import emit_exp2, softplus_each

SIDE_BY_SIDE = 4  # exponentials that are computed in step


@intrinsic
def _fma_broadcast_at(_context, sums, addresses, offset, x):
    """sums[i] + x * (the float `offset` bytes behind addresses[i])."""
    def generate(context, builder, _signature, arguments):
        packed, places, offset, x = arguments
        totals, places = (cgutils.unpack_tuple(builder, both, sums.count) for both in (packed, places))
        values = [emit_splat(builder, emit_load(builder, builder.add(place, offset), FLOAT)) for place in places]
        results = [emit_fma(builder, value, x, total) for value, total in zip(values, totals, strict=True)]
        return context.make_tuple(builder, sums, results)
    return signature(sums, sums, addresses, types.int64, vector), generate


def _emit_decays(builder, delta, A, first, count):
    """exp2(delta A) of states first .. first + count - 1, whose rates stand at A."""
    rates = [emit_load(builder, builder.add(A, INT64((first + n) * VECTOR_BYTES))) for n in range(count)]
    return emit_split(builder, emit_exp2(builder, emit_join(builder, [builder.fmul(delta, rate) for rate in rates])))


def _emit_shared_decays(builder, delta, A):
    """The same of 16 states whose rates are multiples of the first's: 1 2 3 4, and each of those plus 4, 8, 12."""
    first = _emit_decays(builder, delta, A, 0, 4)
    eight, twelve = (emit_load(builder, builder.add(A, INT64((n - 1) * VECTOR_BYTES))) for n in (8, 12))
    apart = emit_split(builder, emit_exp2(builder, emit_join(builder, [builder.fmul(delta, rate)
                                                                      for rate in (eight, twelve)])))
    return [*first, *(builder.fmul(factor, decay) for factor in (first[3], *apart) for decay in first)]


def _advance(states: int, shared: bool):
    """An intrinsic: eight steps of a group of `states` states, which lie at `h_at`, their rates at A; the offsets lead
    from the addresses at `where` to the group's first B and C."""
    def typing(_context, h_at, A, block, where, B_offset, C_offset):
        def generate(context, builder, _signature, arguments):
            h_at, A, block, where, B_offset, C_offset = arguments

            def at(base, index, size=VECTOR_BYTES):
                return builder.add(base, INT64(index * size))
            h = [cgutils.alloca_once_value(builder, emit_load(builder, at(h_at, n))) for n in range(states)]
            with cgutils.for_range(builder, ir.Constant(INT64, STATE_BLOCK)) as step:
                place = builder.add(block, builder.mul(step.index, INT64(VECTOR_BYTES)))
                delta, drive = emit_load(builder, place), emit_load(builder, at(place, STATE_BLOCK))
                y, y_at = [emit_load(builder, at(place, 2 * STATE_BLOCK)), None], at(place, 2 * STATE_BLOCK)
                entry = builder.add(where, builder.mul(step.index, INT64(16)))
                row = builder.load(builder.inttoptr(entry, INT64.as_pointer()))
                B, C = builder.add(row, B_offset), builder.add(row, C_offset)
                decays = _emit_shared_decays(builder, delta, A) if shared else None
                for first in range(0, states, SIDE_BY_SIDE):
                    count = min(SIDE_BY_SIDE, states - first)
                    group = decays[first:first + count] if shared else _emit_decays(builder, delta, A, first, count)
                    for n, decay in enumerate(group, first):
                        value = emit_splat(builder, emit_load(builder, at(B, n, 4), FLOAT))
                        new = emit_fma(builder, decay, builder.load(h[n]), builder.fmul(drive, value))
                        builder.store(new, h[n])
                        value = emit_splat(builder, emit_load(builder, at(C, n, 4), FLOAT))
                        part = y[n % 2]  # two sums, so that one multiply-add need not wait for the one before
                        y[n % 2] = builder.fmul(new, value) if part is None else emit_fma(builder, new, value, part)
                emit_store(builder, y[0] if y[1] is None else builder.fadd(*y), y_at)
            for n in range(states):
                emit_store(builder, builder.load(h[n]), at(h_at, n))
            return context.get_dummy_value()
        return signature(types.void, *[types.int64] * 6), generate
    typing.__name__ = f"advance_{states}{'_shared' if shared else ''}"
    return intrinsic(typing)


_advance_16_shared = _advance(16, True)
_advance_16, _advance_8, _advance_4, _advance_2, _advance_1 = (_advance(count, False) for count in (16, 8, 4, 2, 1))


@njit(error_model="numpy")
def _eight_steps(h_at, A, block, where, rank, states, shared):
    """All states, in groups of 16 and of what is left."""
    if shared == 1:
        _advance_16_shared(h_at, A, block, where, 4 * rank, 4 * (rank + 16))
        return
    done = 0
    while done + 16 <= states:
        _advance_16(h_at + done * VECTOR_BYTES, A + done * VECTOR_BYTES, block, where, 4 * (rank + done),
                    4 * (rank + states + done))
        done += 16
    if states - done >= 8:
        _advance_8(h_at + done * VECTOR_BYTES, A + done * VECTOR_BYTES, block, where, 4 * (rank + done),
                   4 * (rank + states + done))
        done += 8
    if states - done >= 4:
        _advance_4(h_at + done * VECTOR_BYTES, A + done * VECTOR_BYTES, block, where, 4 * (rank + done),
                   4 * (rank + states + done))
        done += 4
    if states - done >= 2:
        _advance_2(h_at + done * VECTOR_BYTES, A + done * VECTOR_BYTES, block, where, 4 * (rank + done),
                   4 * (rank + states + done))
        done += 2
    if states - done >= 1:
        _advance_1(h_at + done * VECTOR_BYTES, A + done * VECTOR_BYTES, block, where, 4 * (rank + done),
                   4 * (rank + states + done))


@njit(error_model="numpy")
def _prepare(where, block, weights, bias, D, rank):
    """Step sizes of the eight steps whose coefficients and u stand at the addresses in `where`: delta, delta * u and
    what y begins with, D * u."""
    c = (load_integer(where), load_integer(where + 16), load_integer(where + 32), load_integer(where + 48),
         load_integer(where + 64), load_integer(where + 80), load_integer(where + 96), load_integer(where + 112))
    delta = bias, bias, bias, bias, bias, bias, bias, bias
    for r in range(rank):
        delta = _fma_broadcast_at(delta, c, 4 * r, load(weights + r * VECTOR_BYTES))
    delta = softplus_each(delta)
    for s in range(STATE_BLOCK):
        u = load(load_integer(where + 16 * s + 8))
        store(block + s * VECTOR_BYTES, delta[s])
        store(block + (STATE_BLOCK + s) * VECTOR_BYTES, delta[s] * u)
        store(block + (2 * STATE_BLOCK + s) * VECTOR_BYTES, D * u)


def state_scan(record, thread, threads):
    """Kernel of STATE_SCAN. Writes whole vectors."""
    op = view(record, STATE_SCAN)
    rank, states, length = op.rank, op.states, op.length
    h_at = op.scratch + thread * op.scratch_size
    block = h_at + states * VECTOR_BYTES
    where = block + 3 * STATE_BLOCK * VECTOR_BYTES  # for each step the addresses of its coefficients and of its u
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, column = item // op.vectors, item % op.vectors * VECTOR_BYTES
        out = op.out + image * op.pixels * op.out_pitch + column
        for pixel in range(op.pixels):
            store(out + pixel * op.out_pitch, zeros())
        for direction in range(op.directions):
            rows = (item % op.vectors * op.directions + direction) * (rank + states + 2)
            weights = op.parameters + rows * VECTOR_BYTES
            bias, D = load(weights + rank * VECTOR_BYTES), load(weights + (rank + 1) * VECTOR_BYTES)
            table = op.table + direction * length * 8
            own = 0
            if op.by_path == 1:
                own = direction * (rank + 2 * states) * 4
            for n in range(states):
                store(h_at + n * VECTOR_BYTES, zeros())
            for first in range(0, length, STATE_BLOCK):
                for s in range(STATE_BLOCK):
                    row = -1  # beyond the last step, as on a pixel of zeros: all coefficients are 0
                    if first + s < length:
                        row = (image * op.directions + direction) * length + first + s
                        if op.by_path == 1:
                            row = load_integer(table + (first + s) * 8)
                            if row >= 0:
                                row += image * op.pixels
                    c, u = op.nothing, op.nothing
                    if row >= 0:
                        c, u = op.coefficients + row * op.coefficients_pitch + own, op.u + row * op.pitch + column
                    store_integer(where + 16 * s, c)
                    store_integer(where + 16 * s + 8, u)
                _prepare(where, block, weights, bias, D, rank)
                _eight_steps(h_at, weights + (rank + 2) * VECTOR_BYTES, block, where, rank, states, op.shared)
                for s in range(min(STATE_BLOCK, length - first)):
                    pixel = load_integer(table + (first + s) * 8)
                    if pixel >= 0:
                        place = out + pixel * op.out_pitch
                        store(place, load(place) + load(block + (2 * STATE_BLOCK + s) * VECTOR_BYTES))
        if op.factor != 0:
            factor = op.factor + image * op.pixels * op.factor_pitch + column
            for pixel in range(op.pixels):
                place = out + pixel * op.out_pitch
                store(place, load(place) * load(factor + pixel * op.factor_pitch))
