"""The selective scan on its own: the reference's recurrence and its shapes, any number of states and directions.

    h[n] = exp(delta * A[n]) * h[n] + delta * B[n] * u,    y = sum over n of C[n] * h[n] + D * u

Parallel   (sequence, slab of 32 channels) a block of one warp; a channel a thread.
Loops      groups of up to 16 states, kept in registers; tiles of 32 steps; steps; states. States that the last group
           lacks take no part at all: times an infinite or undefined decay their zeros would count.
Moves      u, delta once a group of states, y once (twice, there and back, for every further group); B and C once a
           slab of channels.
Why        The steps of a sequence are contiguous here, not its channels: tiles of 32 x 32 go through shared memory, in
           rows read by threads side by side and in columns used by one thread each.

The network itself runs scan.py, which has one state and computes delta on the way.
"""

from __future__ import annotations

from numba import float32

from mmref.kernels.cuda.device import LOG2_E, ZERO, exp2, load, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

TILE, LINE = 32, 33
GROUP = 16           # states that a thread keeps
SIGNATURE = ("void(float32[:, :], float32[:, :], float32[:, :], float32[:, :], float32[:, :], float32[::1], "
             "float32[:, :], int32, int32, int32, int32)")


def scan_states_kernel(group: int, whole: bool):
    """The kernel for groups of `group` states; `whole`: the last group is no smaller."""

    def kernel(u, delta, A, B, C, D, y, directions, channels, states, length):
        tile_u = cuda.shared.array((TILE, LINE), float32)
        tile_delta = cuda.shared.array((TILE, LINE), float32)
        tile_y = cuda.shared.array((TILE, LINE), float32)
        tile_B = cuda.shared.array((group, TILE), float32)
        tile_C = cuda.shared.array((group, TILE), float32)
        h = cuda.local.array(group, float32)
        rate = cuda.local.array(group, float32)
        lane = cuda.threadIdx.x
        slabs = (channels + TILE - 1) // TILE
        sequence, first = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * TILE
        count = min(TILE, channels - first)
        parameters = sequence % directions * channels + first + min(lane, count - 1)

        for base in range(0, max(states, 1), group):
            for n in range(group):
                h[n] = ZERO
                rate[n] = load(A, parameters, base + n) if whole or base + n < states else ZERO
            for start in range(0, length, TILE):
                cuda.syncthreads()
                inside = start + lane < length
                for c in range(TILE):
                    row = sequence * channels + first + c
                    held = inside and c < count
                    store(tile_u, c, lane, load(u, row, start + lane) if held else ZERO)
                    store(tile_delta, c, lane, load(delta, row, start + lane) if held else ZERO)
                    store(tile_y, c, lane, load(y, row, start + lane) if held and base > 0 else ZERO)
                for n in range(group):
                    row = sequence * states + base + n
                    held = inside and base + n < states
                    store(tile_B, n, lane, load(B, row, start + lane) if held else ZERO)
                    store(tile_C, n, lane, load(C, row, start + lane) if held else ZERO)
                cuda.syncthreads()
                for step in range(min(TILE, length - start)):
                    value, d = load(tile_u, lane, step), load(tile_delta, lane, step)
                    total = load(tile_y, lane, step) if base > 0 else D[parameters] * value
                    gain = d * value
                    for n in range(group):
                        if whole or base + n < states:
                            h[n] = exp2(d * rate[n] * LOG2_E) * h[n] + gain * load(tile_B, n, step)
                            total += load(tile_C, n, step) * h[n]
                    store(tile_y, lane, step, total)
                cuda.syncthreads()
                for c in range(count):
                    if inside:
                        store(y, sequence * channels + first + c, start + lane, load(tile_y, c, lane))

    return kernel


def scan_states(u, delta, A, B, C, D, y, *, stream=0):
    """Launch: y = the reference's selective scan. u, delta, y (batch, K, D, L), A (K, D, N), B, C (batch, K, N, L),
    D (K, D), contiguous, none empty but for N, which may be 0; float32."""
    batch, directions, channels, length = u.shape
    states = A.shape[2]
    group = max(min(states, GROUP), 1)
    kernel = build(scan_states_kernel, group, states > 0 and states % group == 0, threads=TILE)
    sequences = batch * directions
    rows, few = (sequences * channels, length), (sequences * max(states, 1), length)
    if not states:  # nothing of A, B and C is read, but a kernel needs arrays
        A = B = C = D.reshape(directions * channels, 1)
    else:
        A, B, C = A.reshape(directions * channels, states), B.reshape(*few), C.reshape(*few)
    kernel[sequences * -(-channels // TILE), TILE, stream](
        u.reshape(*rows), delta.reshape(*rows), A, B, C, D.reshape(directions * channels), y.reshape(*rows),
        directions, channels, states, length)
