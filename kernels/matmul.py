"""The matrix product with everything that follows it in registers: bias, up to two residuals, ReLU.

Parallel   the (panel, block of rows) pairs, panel by panel, in equal contiguous shares: with few rows a thread thus
           reads its own part of the weights only. With `share` 1 the rows instead.
Loops      chunks of rows, panels, blocks of at most `tile_rows` rows, depth innermost.
Moves      a panel (depth x 48 floats) stays in the cache while a chunk of rows passes it; an output is written once.
Costs      2 * depth operations an output. A step of a 9 x 3 tile loads 3 vectors of weights and 9 single values for 27
           multiply-adds of 16 lanes: the multiply-adds are the limit, not the loads.

Every output is one sum over depth in order, whatever the tile, so no result depends on the threads or on the batch.

The tile, the innermost part, is emitted as LLVM IR for every number of rows and vectors up to the processor's largest,
because its accumulators must be registers, not an array. The kernels call tiles through a table of addresses.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mmref.kernels.records import MATMUL, PANEL, view
from mmref.kernels.target import TARGET, VECTOR_BYTES
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
)

# `rows` rows of `a` lie `pitch` apart. For every tap in y and x (1 x 1 in a plain product) they hold `depth` values
# side by side; the packed weights follow the same order. Residuals are addresses, 0 for none; relu is 0 or 1.
TILE_ARGUMENTS = ("a", "pitch", "depth", "taps_y", "tap_y", "taps_x", "tap_x", "weights", "out", "out_pitch", "bias",
                  "residual", "residual2", "relu")
TABLE_VECTORS = 4                                       # entry [rows * TABLE_VECTORS + vectors] of the address table
TABLE_SIZE = (TARGET.tile_rows + 1) * TABLE_VECTORS
_TILE_TYPE = ir.FunctionType(ir.VoidType(), [INT64] * len(TILE_ARGUMENTS))
PANEL_BYTES = PANEL.itemsize
# How far ahead of their use weights are asked for: some 300 cycles, which a trip to the third-level cache takes. The
# hardware's own prefetching stops at every 4 kB. With 9 rows (a small picture's last stage) this is worth 40 %.
PREFETCH_BYTES = 4096


def _define_tile(module, rows: int, vectors: int) -> ir.Function:
    """One tile as a function of an LLVM module."""
    function = ir.Function(module, _TILE_TYPE, f"mmref_tile_{rows}_{vectors}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    argument = dict(zip(TILE_ARGUMENTS, function.args, strict=True))
    sums = [[cgutils.alloca_once_value(builder, constant(0)) for _ in range(vectors)] for _ in range(rows)]
    weights = cgutils.alloca_once_value(builder, argument["weights"])

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
            for j in range(vectors):
                emit_prefetch(builder, plus_bytes(position, PREFETCH_BYTES + VECTOR_BYTES * j))
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


def matmul(record, thread, threads):
    """Kernel of MATMUL."""
    op = view(record, MATMUL)
    start, last = 0, op.rows
    if op.share == 1:
        start, last = op.rows * thread // threads, op.rows * (thread + 1) // threads
    while start < last:
        rows = min(op.chunk, last - start)
        blocks = (rows + op.tile_rows - 1) // op.tile_rows
        unit, units = 0, op.panels * blocks
        if op.share == 0:
            unit, units = units * thread // threads, units * (thread + 1) // threads
        while unit < units:
            panel = view(op.panel_table + unit // blocks * PANEL_BYTES, PANEL)
            block = unit % blocks
            i = start + rows * block // blocks
            count = start + rows * (block + 1) // blocks - i
            place = i * op.out_pitch + panel.column
            residual = op.residual
            if residual != 0:
                residual += place
            residual2 = op.residual2
            if residual2 != 0:
                residual2 += place
            call_tile(op.tiles, count, panel.vectors,
                      (op.a + i * op.pitch, op.pitch, op.depth, 1, 0, 1, 0, panel.weights, op.out + place,
                       op.out_pitch, op.bias + panel.column, residual, residual2, op.relu))
            unit += 1
        start += rows
