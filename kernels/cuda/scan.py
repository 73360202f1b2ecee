"""SS2D's scan in both directions, one state a channel, with step-size projection, softplus and D inside.

Parallel   (picture, slab of channels) a block; in it (segment of 8 pixels, two channels) a thread. The recurrence
           h = a h + b is cut into segments: a thread runs its own from h = 0, in both directions over the same pixels,
           and keeps beside y what a unit of the state that really enters would add to it: C times the decays so far.
           A short pass over the ends of the segments finds those states, one multiply-add a pixel puts them in.
Loops      tiles of `segments` x 8 pixels. A picture of one tile (256 pixels and fewer) is read and written once. With
           more, the backward states that enter each tile are found first, in a pass over the tiles from the last to
           the second; they wait in the first row of their tile of `out`, which is not yet written.
Moves      u once and the result once, R + 2 coefficients a pixel and direction (u once more beyond one tile).
Why        The work is about 2 R + 60 operations a channel, pixel and direction, which takes as long as moving the data
           does: no instruction is to spare. Coefficients are the same for all channels; taken from shared memory one
           a multiply-add they would cost four times what the multiply-adds do, hence four neighbouring pixels at a
           time (they lie transposed), for two channels at a time. y0 and y1 meet in a register: no atomics, no second
           pass over the result, the same sum in every run.
"""

from __future__ import annotations

from functools import cache

from numba import float32

from mmref.kernels.cuda.device import LOG2_E, ONE, ZERO, device_function, exp2, load, load3, softplus, store
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.launch import build

STEPS = 8            # pixels of a segment: what a thread keeps in registers
PAIR = 2             # channels of a thread, `lanes` apart
AHEAD = 8            # segments whose ends are fetched together
FORWARD, BACKWARD = 0, 1
SHARED_BYTES = 48 * 1024
SIGNATURE = ("void(float32[:, :], float32[:, :], float32[:, :, ::1], float32[:, ::1], float32[:, ::1], "
             "float32[:, ::1], float32[:, :], int32)")


def scan_kernel(rank: int, segments: int, lanes: int):
    """The kernel for `rank` coefficients of delta and blocks of (lanes, segments) threads: 2 * lanes channels."""
    rows = rank + 2                  # coefficients of a direction: delta's, B, C
    both = 2 * rows
    tile = STEPS * segments
    line = tile + 4                  # an odd number of fours: neighbouring rows start in different banks
    width = PAIR * lanes
    threads = lanes * segments
    ahead = min(AHEAD, segments)

    @device_function
    def load_weights(dt_weight, slab, weights):
        """weights[direction * rank + r, channel of the slab]."""
        for item in range(cuda.threadIdx.y * lanes + cuda.threadIdx.x, 2 * rank * width, threads):
            row, lane = item // width, item % width
            channel = min(slab + lane, dt_weight.shape[2] - 1)
            store(weights, row, lane, load3(dt_weight, row // rank, row % rank, channel))

    @device_function
    def load_coefficients(coefficients, first, left, shared):
        """shared[k, pixel] of the tile that begins at row `first`, `left` pixels before the picture's end; else 0."""
        for item in range(cuda.threadIdx.y * lanes + cuda.threadIdx.x, tile // 4 * both, threads):
            k, pixel = item % both, item // both * 4
            if pixel + 4 <= left:
                for j in range(4):
                    store(shared, k, pixel + j, load(coefficients, first + pixel + j, k))
            else:
                for j in range(4):
                    value = load(coefficients, first + pixel + j, k) if pixel + j < left else ZERO
                    store(shared, k, pixel + j, value)

    @device_function
    def load_inputs(u, first, left, channel, values):
        """The thread's pixels of two channels. Outside the picture u and B are 0, which leaves a state of 0 at 0."""
        pixel = cuda.threadIdx.y * STEPS
        for m in range(PAIR):
            for i in range(STEPS):
                values[m, i] = ZERO
                if pixel + i < left and channel + m * lanes < u.shape[1]:
                    values[m, i] = load(u, first + pixel + i, channel + m * lanes)

    @device_function
    def project(direction, r, weights, shared, delta):
        """Adds coefficient r times its weights to delta."""
        for m in range(PAIR):
            w = load(weights, direction * rank + r, cuda.threadIdx.x + m * lanes)
            for i in range(STEPS):
                delta[m, i] += w * load(shared, direction * rows + r, cuda.threadIdx.y * STEPS + i)

    @device_function
    def run_segment(direction, channel, shared, weights, dt_bias, A, values, y, reach, decays, states):
        """The segment from h = 0: adds to y, sets `reach` to what a unit of the state that enters would add, and
        leaves the segment's decay and last state in shared memory."""
        pixel, base = cuda.threadIdx.y * STEPS, direction * rows
        delta = cuda.local.array((PAIR, STEPS), float32)
        for m in range(PAIR):
            bias = load(dt_bias, direction, min(channel + m * lanes, A.shape[1] - 1))
            for i in range(STEPS):
                delta[m, i] = bias
        for r in range(0, rank - rank % 4, 4):  # by hand: the compiler unrolls no loop of this size
            project(direction, r, weights, shared, delta)
            project(direction, r + 1, weights, shared, delta)
            project(direction, r + 2, weights, shared, delta)
            project(direction, r + 3, weights, shared, delta)
        for r in range(rank - rank % 4, rank):
            project(direction, r, weights, shared, delta)
        for m in range(PAIR):
            rate = load(A, direction, min(channel + m * lanes, A.shape[1] - 1)) * LOG2_E
            h, through = ZERO, ONE
            for step in range(STEPS):
                i = step if direction == FORWARD else STEPS - 1 - step
                d = softplus(delta[m, i])
                decay = exp2(d * rate)
                h = decay * h + d * values[m, i] * load(shared, base + rank, pixel + i)
                through *= decay
                C = load(shared, base + rank + 1, pixel + i)
                y[m, i] += C * h
                reach[m, i] = C * through
            store(decays, direction * segments + cuda.threadIdx.y, cuda.threadIdx.x + m * lanes, through)
            store(states, direction * segments + cuda.threadIdx.y, cuda.threadIdx.x + m * lanes, h)

    @device_function
    def join_segments(direction, lane, entering, decays, states):
        """Puts the state that enters a segment where its last state was; returns the one that leaves the tile."""
        decay = cuda.local.array(ahead, float32)
        state = cuda.local.array(ahead, float32)
        h = entering
        for start in range(0, segments, ahead):
            for i in range(ahead):
                segment = start + i if direction == FORWARD else segments - 1 - start - i
                decay[i] = load(decays, direction * segments + segment, lane)
                state[i] = load(states, direction * segments + segment, lane)
            for i in range(ahead):
                segment = start + i if direction == FORWARD else segments - 1 - start - i
                store(states, direction * segments + segment, lane, h)
                h = decay[i] * h + state[i]
        return h

    double = 2 * segments
    weight_rows = max(2 * rank, 1)

    def kernel(u, coefficients, dt_weight, dt_bias, A, D, out, length):
        shared = cuda.shared.array((both, line), float32, ALIGNMENT)
        weights = cuda.shared.array((weight_rows, width), float32)
        decays = cuda.shared.array((double, width), float32)
        states = cuda.shared.array((double, width), float32)
        carry = cuda.shared.array((2, width), float32)
        values = cuda.local.array((PAIR, STEPS), float32)
        y = cuda.local.array((PAIR, STEPS), float32)
        forward = cuda.local.array((PAIR, STEPS), float32)
        backward = cuda.local.array((PAIR, STEPS), float32)
        slabs = (u.shape[1] + width - 1) // width
        slab = cuda.blockIdx.x % slabs * width
        channel = slab + cuda.threadIdx.x
        thread = cuda.threadIdx.y * lanes + cuda.threadIdx.x
        picture = cuda.blockIdx.x // slabs * length
        tiles = (length + tile - 1) // tile

        load_weights(dt_weight, slab, weights)
        for lane in range(thread, width, threads):
            store(carry, FORWARD, lane, ZERO)
            store(carry, BACKWARD, lane, ZERO)
        for t in range(tiles - 1, 0, -1):  # backward states that enter tiles: from the last tile to the second
            first, left = picture + t * tile, length - t * tile
            cuda.syncthreads()
            load_coefficients(coefficients, first, left, shared)
            load_inputs(u, first, left, channel, values)
            for m in range(PAIR):
                for i in range(STEPS):
                    y[m, i] = ZERO
            cuda.syncthreads()
            run_segment(BACKWARD, channel, shared, weights, dt_bias, A, values, y, backward, decays, states)
            cuda.syncthreads()
            for lane in range(thread, width, threads):
                h = join_segments(BACKWARD, lane, load(carry, BACKWARD, lane), decays, states)
                store(carry, BACKWARD, lane, h)
                if slab + lane < u.shape[1]:
                    store(out, first - tile, slab + lane, h)
        for t in range(tiles):
            first, left = picture + t * tile, length - t * tile
            cuda.syncthreads()
            load_coefficients(coefficients, first, left, shared)
            load_inputs(u, first, left, channel, values)
            for m in range(PAIR):
                c = min(channel + m * lanes, A.shape[1] - 1)
                skip = load(D, FORWARD, c) + load(D, BACKWARD, c)
                for i in range(STEPS):
                    y[m, i] = skip * values[m, i]
            cuda.syncthreads()
            run_segment(FORWARD, channel, shared, weights, dt_bias, A, values, y, forward, decays, states)
            run_segment(BACKWARD, channel, shared, weights, dt_bias, A, values, y, backward, decays, states)
            cuda.syncthreads()
            for item in range(thread, 2 * width, threads):
                lane = item % width
                if item < width:
                    h = join_segments(FORWARD, lane, load(carry, FORWARD, lane), decays, states)
                    store(carry, FORWARD, lane, h)
                else:
                    h = ZERO
                    if t + 1 < tiles and slab + lane < u.shape[1]:
                        h = load(out, first, slab + lane)
                    join_segments(BACKWARD, lane, h, decays, states)
            cuda.syncthreads()
            for m in range(PAIR):
                before = load(states, cuda.threadIdx.y, cuda.threadIdx.x + m * lanes)
                behind = load(states, segments + cuda.threadIdx.y, cuda.threadIdx.x + m * lanes)
                for i in range(STEPS):
                    pixel = cuda.threadIdx.y * STEPS + i
                    if pixel < left and channel + m * lanes < u.shape[1]:
                        store(out, first + pixel, channel + m * lanes,
                              y[m, i] + forward[m, i] * before + backward[m, i] * behind)

    return kernel


def shared_bytes(rank: int, segments: int, lanes: int) -> int:
    """Shared memory of a block."""
    width = PAIR * lanes
    return 4 * (2 * (rank + 2) * (STEPS * segments + 4) + max(2 * rank, 1) * width + (4 * segments + 2) * width)


def is_able(rank: int) -> bool:
    """Whether the smallest block's coefficients go into shared memory."""
    return shared_bytes(rank, 1, 8) <= SHARED_BYTES


@cache
def block_shape(rank: int, length: int) -> tuple[int, int]:
    """(segments, lanes) of a block: the whole picture where 32 segments hold it and its coefficients fit.

    Blocks of 32 segments are narrow, 16 channels, so that two fit a multiprocessor and one computes while the other
    waits for memory; 16 channels are two sectors of 32 bytes, and d_inner is always a multiple of 32."""
    segments = 1
    while segments < 32 and segments * STEPS < length:
        segments *= 2
    while segments > 1 and shared_bytes(rank, segments, 8) > SHARED_BYTES:
        segments //= 2
    lanes = 8 if segments > 16 or shared_bytes(rank, segments, 16) > SHARED_BYTES else 16
    return segments, lanes


def resident(threads: int) -> int:
    """Blocks that a multiprocessor should hold: 16 warps, which leaves a thread 128 registers; 12 for small blocks,
    whose loops over segments the compiler unrolls altogether and which then want a few more."""
    return 512 // threads if threads >= 128 else 384 // max(threads, 32)


def scan(u, coefficients, dt_weight, dt_bias, A, D, out, *, images, length, rank, stream=0, shape=None):
    """Launch: out = y0 + reverse(y1), SS2D's two scans of every picture.

    u, out (images * length, d_inner); coefficients (images * length, 2 * (rank + 2)), per direction rank for delta,
    then B, then C; dt_weight (2, rank, d_inner); dt_bias, A, D (2, d_inner); all float32. `shape` (segments, lanes) is
    for tests and tuning; segments and lanes must be powers of two."""
    segments, lanes = shape or block_shape(rank, length)
    kernel = build(scan_kernel, rank, segments, lanes, threads=segments * lanes, blocks=resident(segments * lanes))
    slabs = -(-u.shape[1] // (PAIR * lanes))
    kernel[slabs * images, (lanes, segments), stream](u, coefficients, dt_weight, dt_bias, A, D, out, length)
