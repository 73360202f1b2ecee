"""Maps enlarged and shrunk to any size: bilinear (`align_corners=False`) and nearest, with the reference's sources.

Sources are computed with integers, without a table and without a division for each pixel: from one result to the next
the source moves by the same fraction. The result may be the caller's array itself: a network that ends in a resize to
the picture's size, 40 million logits for 512 x 512, would otherwise hold them twice.

Parallel   rows of the result.
Loops      rows: the two source rows are blended into one (kept in the cache, a map is narrow); pixels: two of these.
Moves      the result once: memory is the limit where maps grow, which is what this is for.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mmref.kernels.records import RESIZE
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import broadcast, fma, load, load_integer, store, store_part, view


@njit(error_model="numpy")
def _write(out, value, vector, vectors, lanes):
    if vector == vectors - 1 and lanes < LANES:
        store_part(out + vector * VECTOR_BYTES, value, lanes)
    else:
        store(out + vector * VECTOR_BYTES, value)


@njit(error_model="numpy")
def _nearest(op, x, row, out):
    """One row of the result, from a map at address x."""
    source = x + row * op.height // op.out_height * op.width * op.pitch
    column, rest = 0, 0
    for _ in range(op.out_width):
        for vector in range(op.vectors):
            _write(out, load(source + column * op.pitch + vector * VECTOR_BYTES), vector, op.vectors, op.lanes)
        out += op.out_pitch
        rest += op.width
        column, rest = column + rest // op.out_width, rest % op.out_width


@njit(error_model="numpy")
def _share(part, whole):
    """(1 - part / whole, part / whole), in every lane."""
    share = np.float32(part / whole)
    return broadcast(np.float32(1) - share), broadcast(share)


@njit(error_model="numpy")
def _bilinear(op, x, row, out, scratch):
    """Likewise; `scratch` has room for a row of the map."""
    whole, line = 2 * op.out_height, op.vectors * VECTOR_BYTES
    part = max((2 * row + 1) * op.height - op.out_height, 0)                # the source, times `whole`
    upper = part // whole
    near, far = _share(part % whole, whole)
    above = x + upper * op.width * op.pitch
    below = x + min(upper + 1, op.height - 1) * op.width * op.pitch
    for column in range(op.width):
        for vector in range(op.vectors):
            at = column * op.pitch + vector * VECTOR_BYTES
            store(scratch + column * line + vector * VECTOR_BYTES, fma(load(below + at), far, load(above + at) * near))
    whole, part, left = 2 * op.out_width, op.width - op.out_width, 0
    for _ in range(op.out_width):
        while part >= whole:
            part, left = part - whole, left + 1
        near, far = _share(max(part, 0), whole)
        first = scratch + left * line
        second = scratch + min(left + 1, op.width - 1) * line
        for vector in range(op.vectors):
            at = vector * VECTOR_BYTES
            _write(out, fma(load(second + at), far, load(first + at) * near), vector, op.vectors, op.lanes)
        out += op.out_pitch
        part += 2 * op.width


def resize(record, thread, threads):
    """Kernel of RESIZE."""
    op = view(record, RESIZE)
    target = op.out
    if op.cell != 0:
        target += load_integer(op.cell)
    lines = op.images * op.out_height
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, row = line // op.out_height, line % op.out_height
        x, out = op.x + image * op.height * op.width * op.pitch, target + line * op.out_width * op.out_pitch
        if op.nearest == 1:
            _nearest(op, x, row, out)
        else:
            _bilinear(op, x, row, out, op.scratch + thread * op.scratch_size)
