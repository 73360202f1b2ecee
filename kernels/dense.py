"""k x k convolutions of many channels as matrix products, one for each tap, added up in the result; nothing is copied.

A tap is a product of the map's pixels, moved by some rows and columns, with one matrix (depth x columns). What a tap
would read outside of the map is left out: no border of zeros is laid around the map nor multiplied with, which for taps
36 pixels apart on a map of 8 x 8 would be nearly all there is to do.

Parallel   panels, and in the panel where two shares meet its lines: all shares have equally many vectors of results.
Loops      panels, bands of lines of the result, taps, lines, blocks of at most `tile_rows` pixels; then, in the tile,
           the depth.
Moves      a tap's weights of a panel (depth x 48 floats: 50 kB for 256 channels, 280 kB for 1472) stay in the cache
           while a band passes, and the next tap's are asked for meanwhile. A band, of BAND pixels at least, is small
           enough that its part of the map and of the result stay in the second-level cache from tap to tap, and large
           enough that loading the weights costs less than using them.
Costs      2 * depth operations for each output and tap inside the map; one addition more for each.

Every output is the bias, the residuals, then one sum over the depth for each tap in order, so no result depends on the
threads or on the batch.
"""

from __future__ import annotations

from numba import njit

from mmref.kernels.matmul import PANEL_BYTES, ahead_step_of, call_tile, first_row
from mmref.kernels.records import DENSE, PANEL
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import load, relu, store, view

BAND = 128  # pixels


@njit(error_model="numpy")
def _start(op, panel, out):
    """Bias and residuals of one line, at address `out`; `out - op.out` is the place of the residuals, too."""
    for pixel in range(op.width):
        at = out + pixel * op.out_pixel
        for vector in range(panel.vectors):
            here = at + vector * VECTOR_BYTES
            value = load(op.bias + panel.column + vector * VECTOR_BYTES)
            if op.residual != 0:
                value = value + load(op.residual + here - op.out)
            if op.residual2 != 0:
                value = value + load(op.residual2 + here - op.out)
            store(here, value)


@njit(error_model="numpy")
def _clip(op, panel, out):
    """ReLU of one line."""
    for pixel in range(op.width):
        for vector in range(panel.vectors):
            at = out + pixel * op.out_pixel + vector * VECTOR_BYTES
            store(at, relu(load(at)))


@njit(error_model="numpy")
def _line(op, panel, line):
    """Address of a line of the result, in this panel's columns."""
    return op.out + line // op.height * op.out_image + line % op.height * op.out_row + panel.column


@njit(error_model="numpy")
def _tap(op, panel, tap, first, last):
    """Add one tap to lines first .. last - 1."""
    down = tap // op.kernel_w * op.dilation - op.padding
    across = tap % op.kernel_w * op.dilation - op.padding
    left = max(0, (op.stride - 1 - across) // op.stride)                    # pixels whose tap is inside the map
    right = min(op.width, (op.in_width - 1 - across) // op.stride + 1)
    if left >= right:
        return
    size = op.depth * panel.vectors * VECTOR_BYTES
    weights, step = panel.weights + tap * size, op.stride * op.pixel
    blocks = (right - left + op.tile_rows - 1) // op.tile_rows
    ahead, count = weights, (last - first) * blocks
    if tap + 1 < op.kernel_h * op.kernel_w:
        ahead += size
    ahead_step = ahead_step_of(size, panel.vectors, op.depth, count)
    farthest = size - panel.vectors * VECTOR_BYTES - (op.depth - 1) * ahead_step
    done = 0
    for line in range(first, last):
        row = line % op.height * op.stride + down
        if row < 0 or row >= op.in_height:
            continue
        x = op.x + ((line // op.height * op.in_height + row) * op.in_width + across) * op.pixel
        out = _line(op, panel, line)
        for block in range(blocks):
            i = left + (right - left) * block // blocks
            rows = left + (right - left) * (block + 1) // blocks - i
            here = out + i * op.out_pixel
            call_tile(op.tiles, rows, panel.vectors,
                      (x + i * step, step, op.depth, 1, 0, 1, 0, weights, here, op.out_pixel, op.zeros, here, 0, 0,
                       ahead + min(done * op.depth * ahead_step, farthest), ahead_step))
            done += 1


def dense(record, thread, threads):
    """Kernel of DENSE."""
    op = view(record, DENSE)
    final = view(op.panel_table + (op.panels - 1) * PANEL_BYTES, PANEL)
    all_vectors, lines = final.column // VECTOR_BYTES + final.vectors, op.images * op.height
    for p in range(op.panels):
        panel = view(op.panel_table + p * PANEL_BYTES, PANEL)
        first = first_row(panel, lines, 0, all_vectors, thread, threads)
        last = first_row(panel, lines, 0, all_vectors, thread + 1, threads)
        if first >= last:
            continue
        bands = max((last - first) * op.width // BAND, 1)
        for band in range(bands):
            start, stop = first + (last - first) * band // bands, first + (last - first) * (band + 1) // bands
            for line in range(start, stop):
                _start(op, panel, _line(op, panel, line))
            for tap in range(op.kernel_h * op.kernel_w):
                _tap(op, panel, tap, start, stop)
            if op.relu != 0:
                for line in range(start, stop):
                    _clip(op, panel, _line(op, panel, line))
