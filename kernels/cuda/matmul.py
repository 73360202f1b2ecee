"""Our own matrix product, tiled, with bias, shortcuts and ReLU inside: to read, and to run without cuBLAS.

Parallel   tiles of rows x columns of the result, a block each; in it (8 or 4) x (8, 6 or 4) results a thread.
Loops      the depth, 8 at a time.
Moves      a once for every column of tiles, the weights once for every row of tiles, mostly from caches (tiles of the
           same rows run side by side, so a comes from memory once); the result and the shortcuts once.
Why        A multiply-add that fetches both its factors from shared memory costs eight times itself. A thread that
           keeps 8 x 8 sums in registers fetches 16 values for 64 multiply-adds; the tile of a, stored transposed, is
           read four rows at a time. Two buffers: the next 8 of the depth are on their way from memory, in registers,
           while these 8 are multiplied, and one barrier a step suffices.

Every sum is one chain of fused multiply-adds from 0 over the depth, in order, then bias, then shortcuts: it depends
neither on the tile nor on how many rows there are.
"""

from __future__ import annotations

from functools import cache

from numba import float32

from mmref.kernels.cuda.device import ZERO, device_function, load, store
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.epilogue import finish, shortcuts_of
from mmref.kernels.cuda.launch import MOST_BLOCKS, build, no_map, no_vector

STEP = 8                     # of the depth
ACROSS, DOWN = 8, 16         # threads of a block
THREADS = ACROSS * DOWN
SIGNATURE = "void(float32[:, :], float32[:, :], float32[::1], float32[:, :], float32[:, :], float32[:, :])"
# results of a thread along the columns, and the cost of each: values fetched a multiply-add, relative to 8 x 8
COLUMNS = ((8, 1.0), (6, 1.17), (4, 1.5))


@cache
def tile_shape(rows: int, columns: int) -> tuple[int, int]:
    """(rows, columns) of a thread: columns that leave the least of the last tile empty, few rows for few."""
    across = min(COLUMNS, key=lambda choice: -(-columns // (ACROSS * choice[0])) * ACROSS * choice[0] * choice[1])[0]
    return (4 if rows <= 4 * DOWN * 64 else 8), across


def tile_grid(rows: int, columns: int, down: int, across: int) -> tuple[int, int, int]:
    """Blocks along x, y and z: tiles of the same rows side by side; more rows of tiles than y has room for, in z."""
    tiles = -(-rows // (DOWN * down))
    layers = -(-tiles // MOST_BLOCKS[1])
    return -(-columns // (ACROSS * across)), -(-tiles // layers), layers


@cache
def tile_functions(down: int, across: int):
    """Device functions of a tile of (16 * down, 8 * across) results, shared with stem.py."""
    rows, columns = DOWN * down, ACROSS * across
    fetched_b = columns * STEP // THREADS

    @device_function
    def row_of(i):
        """Row of the tile of a thread's i-th row: four together, the next four half a tile further."""
        return cuda.threadIdx.y * 4 + i // 4 * (4 * DOWN) + i % 4

    @device_function
    def clear(total):
        for i in range(down):
            for j in range(across):
                total[i, j] = ZERO

    @device_function
    def fetch_b(weight, depth, first_column, k, values):
        """The thread's share of 8 rows of the weights from row k on; 0 outside."""
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        for e in range(fetched_b):
            item = e * THREADS + thread
            row, column = k + item // columns, first_column + item % columns
            values[e] = ZERO
            if row < depth and column < weight.shape[1]:
                values[e] = load(weight, row, column)

    @device_function
    def put_b(values, buffer, shared):
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        for e in range(fetched_b):
            item = e * THREADS + thread
            store(shared, buffer * STEP + item // columns, item % columns, values[e])

    @device_function
    def put_a(values, buffer, shared):
        """The counterpart of a fetch in which element e is row e * 16 + thread // 8, step thread % 8."""
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        for e in range(down):
            store(shared, buffer * STEP + thread % STEP, e * DOWN + thread // STEP, values[e])

    @device_function
    def multiply(a, b, buffer, total):
        x = cuda.local.array(down, float32)
        y = cuda.local.array(across, float32)
        for k in range(STEP):
            for i in range(down):
                x[i] = load(a, buffer * STEP + k, row_of(i))
            for j in range(across):
                y[j] = load(b, buffer * STEP + k, cuda.threadIdx.x + j * ACROSS)
            for i in range(down):
                for j in range(across):
                    total[i, j] += x[i] * y[j]

    return rows, columns, fetched_b, row_of, clear, fetch_b, put_b, put_a, multiply


def matmul_kernel(down: int, across: int, bias: bool, shortcuts: int, relu: bool):
    """The kernel for (down, across) results a thread."""
    rows, columns, fetched_b, row_of, clear, fetch_b, put_b, put_a, multiply = tile_functions(down, across)
    line, buffers = rows + 4, 2 * STEP
    finished = finish(bias, shortcuts, relu)

    @device_function
    def fetch_a(a, first_row, k, values):
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        column = k + thread % STEP
        for e in range(down):
            row = first_row + e * DOWN + thread // STEP
            values[e] = ZERO
            if row < a.shape[0] and column < a.shape[1]:
                values[e] = load(a, row, column)

    def kernel(a, weight, shift, first, second, out):
        shared_a = cuda.shared.array((buffers, line), float32, ALIGNMENT)
        shared_b = cuda.shared.array((buffers, columns), float32, ALIGNMENT)
        total = cuda.local.array((down, across), float32)
        next_a = cuda.local.array(down, float32)
        next_b = cuda.local.array(fetched_b, float32)
        first_row, first_column = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * rows, cuda.blockIdx.x * columns
        depth = a.shape[1]
        clear(total)
        fetch_a(a, first_row, 0, next_a)
        fetch_b(weight, depth, first_column, 0, next_b)
        buffer = 0
        for k in range(0, depth, STEP):
            put_a(next_a, buffer, shared_a)
            put_b(next_b, buffer, shared_b)
            cuda.syncthreads()
            fetch_a(a, first_row, k + STEP, next_a)
            fetch_b(weight, depth, first_column, k + STEP, next_b)
            multiply(shared_a, shared_b, buffer, total)
            buffer = 1 - buffer
        for i in range(down):
            row = first_row + row_of(i)
            for j in range(across):
                column = first_column + cuda.threadIdx.x + j * ACROSS
                if row < out.shape[0] and column < out.shape[1]:
                    store(out, row, column, finished(total[i, j], row, column, shift, first, second))

    return kernel


def matmul(a, weight, bias, out, *, residual=None, residual2=None, relu=False, stream=0, shape=None):
    """Launch: out = a @ weight + bias + residual + residual2, ReLU behind it where asked for.

    a (rows, depth), weight (depth, columns), bias (columns,) or None, residuals and out (rows, columns); float32. out
    may be a residual, not a. `shape` (rows, columns) of a thread is for tests and tuning: 4 or 8 by 4, 6 or 8."""
    rows, columns = out.shape
    down, across = shape or tile_shape(rows, columns)
    shortcuts = shortcuts_of(residual, residual2)
    kernel = build(matmul_kernel, down, across, bias is not None, len(shortcuts), bool(relu), threads=THREADS)
    first, second = [*shortcuts, no_map(), no_map()][:2]
    kernel[tile_grid(rows, columns, down, across), (ACROSS, DOWN), stream](
        a, weight, no_vector() if bias is None else bias, first, second, out)
