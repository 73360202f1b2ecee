"""The matrix product with everything that follows it in registers: bias, up to two residuals, ReLU.

Parallel   panels, and in the panel where two shares meet its rows: all shares have equally many vectors of results.
           With few rows a thread reads its own part of the weights only.
Loops      chunks of rows, panels, blocks of at most `tile_rows` rows, depth innermost.
Moves      a panel (depth x 48 floats) stays in the cache while a chunk of rows passes it; an output is written once.
           With few rows, loading the weights from memory is what takes time: tiles ask for the next panel meanwhile.
Costs      2 * depth operations an output. A step of a 9 x 3 tile loads 3 vectors of weights and 9 single values for 27
           multiply-adds of 16 lanes: the multiply-adds are the limit, not the loads.

Every output is one sum over depth in order, whatever the tile, so no result depends on the threads or on the batch.

The tile, the innermost part, is emitted as LLVM IR for every number of rows and vectors up to the processor's largest,
because its accumulators must be registers, not an array. The kernels call tiles through a table of addresses.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from mmref.kernels.records import MATMUL, PANEL
from mmref.kernels.target import TABLE_VECTORS, TARGET, VECTOR_BYTES
from mmref.kernels.vector import (
    FLOAT,
    INT64,
    constant,
    emit_fma,
    emit_load,
    emit_prefetch,
    emit_relu,
    emit_splat,
    emit_store,
    view,
)

# `rows` rows of `a` lie `pitch` apart. For every tap in y and x (1 x 1 in a plain product) they hold `depth` values
# side by side; the packed weights follow the same order. Residuals are addresses, 0 for none; relu is 0 or 1. `ahead`
# is memory that will be read next: `ahead_step` bytes of it are asked for at every step of the depth.
TILE_ARGUMENTS = ("a", "pitch", "depth", "taps_y", "tap_y", "taps_x", "tap_x", "weights", "out", "out_pitch", "bias",
                  "residual", "residual2", "relu", "ahead", "ahead_step")
_TILE_TYPE = ir.FunctionType(ir.VoidType(), [INT64] * len(TILE_ARGUMENTS))
PANEL_BYTES = PANEL.itemsize


def _define_tile(module, rows: int, vectors: int) -> ir.Function:
    """One tile as a function of an LLVM module."""
    function = ir.Function(module, _TILE_TYPE, f"mmref_tile_{rows}_{vectors}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    argument = dict(zip(TILE_ARGUMENTS, function.args, strict=True))
    sums = [[cgutils.alloca_once_value(builder, constant(0)) for _ in range(vectors)] for _ in range(rows)]
    weights = cgutils.alloca_once_value(builder, argument["weights"])
    steps = cgutils.alloca_once_value(builder, INT64(0))

    def times(stride, count):
        return builder.mul(stride, INT64(count))

    def plus_bytes(address, count):
        return builder.add(address, INT64(count))

    def update(change):
        for i in range(rows):
            for j in range(vectors):
                builder.store(change(i, j, builder.load(sums[i][j])), sums[i][j])

    with cgutils.for_range(builder, argument["taps_y"]) as y, cgutils.for_range(builder, argument["taps_x"]) as x:
        offset = builder.add(builder.mul(y.index, argument["tap_y"]), builder.mul(x.index, argument["tap_x"]))
        first = builder.add(argument["a"], offset)
        starts = [builder.add(first, times(argument["pitch"], i)) for i in range(rows)]
        with cgutils.for_range(builder, argument["depth"]) as k:
            position, value_offset = builder.load(weights), builder.shl(k.index, INT64(2))
            columns = [emit_load(builder, plus_bytes(position, VECTOR_BYTES * j)) for j in range(vectors)]
            soon = builder.add(argument["ahead"], builder.mul(builder.load(steps), argument["ahead_step"]))
            builder.store(builder.add(builder.load(steps), INT64(1)), steps)
            for j in range(vectors):
                emit_prefetch(builder, plus_bytes(soon, VECTOR_BYTES * j))
            for i in range(rows):
                value = emit_splat(builder, emit_load(builder, builder.add(starts[i], value_offset), FLOAT))
                for j in range(vectors):
                    builder.store(emit_fma(builder, value, columns[j], builder.load(sums[i][j])), sums[i][j])
            builder.store(plus_bytes(position, VECTOR_BYTES * vectors), weights)

    def place(base, i, j):
        return plus_bytes(builder.add(base, times(argument["out_pitch"], i)), VECTOR_BYTES * j)

    bias = [emit_load(builder, plus_bytes(argument["bias"], VECTOR_BYTES * j)) for j in range(vectors)]
    update(lambda i, j, total: builder.fadd(total, bias[j]))
    for name in ("residual", "residual2"):
        with builder.if_then(builder.icmp_signed("!=", argument[name], INT64(0))):
            update(lambda i, j, total, base=argument[name]: builder.fadd(total, emit_load(builder, place(base, i, j))))
    with builder.if_then(builder.icmp_signed("!=", argument["relu"], INT64(0))):
        update(lambda i, j, total: emit_relu(builder, total))
    for i in range(rows):
        for j in range(vectors):
            emit_store(builder, builder.load(sums[i][j]), place(argument["out"], i, j))
    builder.ret_void()
    return function


@intrinsic
def _write_addresses(_context, table):
    """Define all tiles and write their addresses to the table."""
    def generate(context, builder, signature, values):
        for rows in range(1, TARGET.tile_rows + 1):
            for vectors in range(1, TARGET.tile_vectors + 1):
                tile = _define_tile(builder.module, rows, vectors)
                entry = builder.add(values[0], INT64(8 * (rows * TABLE_VECTORS + vectors)))
                builder.store(builder.ptrtoint(tile, INT64), builder.inttoptr(entry, INT64.as_pointer()))
        return context.get_dummy_value()
    return types.void(types.int64), generate


def install_tiles(table, thread, threads):
    """Not a step of a plan: fills the table of TABLE_SIZE addresses that MATMUL and STEM records point to."""
    _write_addresses(table)


@intrinsic
def call_tile(_context, tiles, rows, vectors, arguments):
    """Call the tile of that size; `arguments` is a tuple in the order of TILE_ARGUMENTS."""
    def generate(context, builder, signature, values):
        tiles, rows, vectors, packed = values
        index = builder.add(builder.mul(rows, INT64(TABLE_VECTORS)), vectors)
        entry = builder.inttoptr(builder.add(tiles, builder.shl(index, INT64(3))), INT64.as_pointer())
        tile = builder.inttoptr(builder.load(entry), _TILE_TYPE.as_pointer())
        builder.call(tile, cgutils.unpack_tuple(builder, packed, len(TILE_ARGUMENTS)))
        return context.get_dummy_value()
    return types.void(types.int64, types.int64, types.int64, types.UniTuple(types.int64, len(TILE_ARGUMENTS))), generate


@njit(error_model="numpy")
def first_row(panel, rows, tile_rows, all_vectors, thread, threads):
    """Where in a panel's rows a thread begins, and the one before it ends: 0 .. rows.

    All panels' vector-rows, one panel after the other, are cut into equal parts. Few rows are not cut:
    loading a panel from memory is then what takes time, and two threads would both wait for it."""
    before = panel.column // VECTOR_BYTES * rows
    row = (rows * all_vectors * thread // threads - before + panel.vectors // 2) // panel.vectors
    if rows <= tile_rows:
        row = rows * (2 * row // (rows + 1))
    return min(max(row, 0), rows)


@njit(error_model="numpy")
def _first_weights(record, thread, threads):
    """What this thread will read first in a matrix product: (address, bytes) of a panel's weights."""
    op = view(record, MATMUL)
    panel = view(op.panel_table + op.panels * thread // threads * PANEL_BYTES, PANEL)
    return panel.weights, op.depth * panel.vectors * VECTOR_BYTES


@njit(error_model="numpy")
def ahead_step_of(size, vectors, depth, blocks):
    """How many bytes farther on each step of a tile asks for its `vectors` cache lines, so that `blocks` blocks of
    `depth` steps ask for `size` bytes (as many as the panel in use has at most) and for nothing behind them."""
    line = vectors * VECTOR_BYTES
    step = (min(size, depth * line) + blocks * depth - 1) // (blocks * depth)
    return min(step, (size - line) // max(depth - 1, 1))


def matmul(record, thread, threads):
    """Kernel of MATMUL."""
    op = view(record, MATMUL)
    final = view(op.panel_table + (op.panels - 1) * PANEL_BYTES, PANEL)
    all_vectors = final.column // VECTOR_BYTES + final.vectors
    for start in range(0, op.rows, op.chunk):
        rows = min(op.chunk, op.rows - start)
        for p in range(op.panels):
            panel_at = op.panel_table + p * PANEL_BYTES
            panel = view(panel_at, PANEL)
            first = first_row(panel, rows, op.tile_rows, all_vectors, thread, threads)
            last = first_row(panel, rows, op.tile_rows, all_vectors, thread + 1, threads)
            if first >= last:
                continue
            # while one panel is in use the next is on its way, a part of it with every block of rows
            blocks = (last - first + op.tile_rows - 1) // op.tile_rows
            line = panel.vectors * VECTOR_BYTES
            ahead, size = panel.weights, line  # where nothing follows: what is there already
            following = view(panel_at + PANEL_BYTES, PANEL)
            if p + 1 < op.panels and first_row(following, rows, op.tile_rows, all_vectors, thread + 1, threads) > 0:
                ahead, size = following.weights, op.depth * following.vectors * VECTOR_BYTES
            elif op.next != 0:
                ahead, size = _first_weights(op.next, thread, threads)
            if size < line:
                ahead, size = panel.weights, line
            ahead_step = ahead_step_of(size, panel.vectors, op.depth, blocks)
            farthest = size - line - (op.depth - 1) * ahead_step
            for block in range(blocks):
                i = start + first + (last - first) * block // blocks
                count = start + first + (last - first) * (block + 1) // blocks - i
                place = i * op.out_pitch + panel.column
                residual = op.residual
                if residual != 0:
                    residual += place
                residual2 = op.residual2
                if residual2 != 0:
                    residual2 += place
                call_tile(op.tiles, count, panel.vectors,
                          (op.a + i * op.pitch, op.pitch, op.depth, 1, 0, 1, 0, panel.weights, op.out + place,
                           op.out_pitch, op.bias + panel.column, residual, residual2, op.relu,
                           ahead + min(block * op.depth * ahead_step, farthest), ahead_step))
