"""A value of 16 float32 lanes, and the operations the kernels are written in.

Numba has no vector type, and LLVM's own vectorisation of scalar loops reaches 6 to 40 % of the peak. `vector` is a
Numba type that *is* LLVM's `<16 x float>`: it lives in registers, `+ - * /` work lane by lane, and the functions below
load, store, broadcast and combine. Memory is named by byte addresses (int64); none needs more than 4-byte alignment.

Nothing here checks bounds: addresses come from the plan (mmref.engine) or from arrays whose shapes were checked.
"""

from __future__ import annotations

import operator
from inspect import Parameter, Signature

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from mmref.kernels.target import LANES, TARGET

FLOAT, DOUBLE, INT32, INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
BYTE_POINTER = ir.IntType(8).as_pointer()
VECTOR, INDEX_VECTOR = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)


class VectorType(types.Type):
    """Numba's name for `<16 x float>`."""

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


vector = VectorType()


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VECTOR)


# ------------------------------------------------------- emitting LLVM: values in, value out

def constant(value: float, kind: ir.VectorType = VECTOR) -> ir.Constant:
    """The same number in every lane of a vector of that type."""
    return ir.Constant(kind, [value] * kind.count)


def call(builder, name, returns, values):
    """Call the LLVM intrinsic or external function `name`."""
    function_type = ir.FunctionType(returns, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), values)


def emit_load(builder, address, kind=VECTOR):
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 4
    return loaded


def emit_store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def emit_prefetch(builder, address):
    """Ask for the cache line at an address. That never fails, but one that is not mapped costs Intel's processors a
    walk through the page tables every time: kernels ask for memory of their own only."""
    hints = [ir.Constant(INT32, value) for value in (0, 3, 1)]  # for reading, into the first level, data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.inttoptr(address, BYTE_POINTER), *hints])


def emit_splat(builder, scalar):
    kind = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INDEX_VECTOR, [0] * LANES))


def emit_fma(builder, x, y, z):
    """x * y + z, rounded once where the processor can."""
    if TARGET.has_fma:
        return call(builder, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])
    return builder.fadd(builder.fmul(x, y), z)


def emit_maximum(builder, x, limit):
    """The larger of x and a constant vector; NaN in x stays NaN."""
    return builder.select(builder.fcmp_ordered(">", limit, x), limit, x)


def emit_minimum(builder, x, limit):
    """The smaller of x and a constant vector; NaN in x stays NaN."""
    return builder.select(builder.fcmp_ordered("<", limit, x), limit, x)


def emit_relu(builder, x):
    return emit_maximum(builder, x, constant(0.0))


def emit_join(builder, values):
    """Vectors end to end, as one value of as many times 16 lanes; there must be 2, 4, 8, ... of them."""
    while len(values) > 1:
        lanes = ir.Constant(ir.VectorType(INT32, 2 * values[0].type.count), list(range(2 * values[0].type.count)))
        values = [builder.shuffle_vector(*pair, lanes) for pair in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def emit_split(builder, wide):
    """The vectors that `emit_join` put end to end."""
    undefined = ir.Constant(wide.type, ir.Undefined)
    return [builder.shuffle_vector(wide, undefined, ir.Constant(INDEX_VECTOR, list(range(first, first + LANES))))
            for first in range(0, wide.type.count, LANES)]


def emit_mask(builder, count):
    """Lanes 0 .. count - 1."""
    lanes = ir.Constant(INDEX_VECTOR, list(range(LANES)))
    return builder.icmp_signed("<", lanes, emit_splat(builder, builder.trunc(count, INT32)))


# --------------------------------------------------------------- the same, as Numba functions

def operation(returns, *arguments):
    """Decorator: a function `emit(builder, *values)` becomes a Numba intrinsic of this signature."""
    def decorate(emit):
        def typing(_context, *_arguments):
            def generate(context, builder, _signature, values):
                result = emit(builder, *values)
                return context.get_dummy_value() if result is None else result
            return signature(returns, *arguments), generate
        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        names = ["_context", *(f"argument{i}" for i in range(len(arguments)))]  # Numba counts them
        typing.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        return intrinsic(typing)
    return decorate


def operation_on_each(emit):
    """Decorator: an elementwise `emit(builder, value)` becomes a Numba intrinsic on a tuple of 2, 4, 8, ... vectors.

    The vectors are worked on in step, one operation on all of them before the next. A chain of operations that wait for
    each other (a polynomial by Horner's rule) leaves most of a processor idle; several chains side by side fill it."""
    def typing(_context, values):
        def generate(context, builder, _signature, arguments):
            parts = cgutils.unpack_tuple(builder, arguments[0], values.count)
            results = emit_split(builder, emit(builder, emit_join(builder, parts)))
            return context.make_tuple(builder, values, results)
        return signature(values, values), generate
    typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
    return intrinsic(typing)


@intrinsic
def fma_broadcast_each(_context, sums, address, step, x):
    """sums[i] + x * (the float at address + i * step), for every vector of the tuple `sums`."""
    def generate(context, builder, _signature, arguments):
        packed, at, step, x = arguments
        results = []
        for total in cgutils.unpack_tuple(builder, packed, sums.count):
            results.append(emit_fma(builder, emit_splat(builder, emit_load(builder, at, FLOAT)), x, total))
            at = builder.add(at, step)
        return context.make_tuple(builder, sums, results)
    return signature(sums, sums, types.int64, types.int64, vector), generate


@intrinsic
def multiply_each(_context, values, factor):
    """values[i] * factor."""
    def generate(context, builder, _signature, arguments):
        parts = cgutils.unpack_tuple(builder, arguments[0], values.count)
        return context.make_tuple(builder, values, [builder.fmul(part, arguments[1]) for part in parts])
    return signature(values, values, vector), generate


@intrinsic
def view(_context, address, dtype):
    """The record of a dtype (records.py) that lies at an address; its fields read as attributes."""
    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))
    return dtype.dtype(types.int64, dtype), generate


@operation(types.int64, types.int64)
def load_integer(builder, address):
    """The int64 at an address."""
    return builder.load(builder.inttoptr(address, INT64.as_pointer()))


@operation(types.void, types.int64, types.int64)
def store_integer(builder, address, value):
    """The int64 at an address."""
    builder.store(value, builder.inttoptr(address, INT64.as_pointer()))


@operation(vector, types.int64)
def load(builder, address):
    """16 consecutive floats."""
    return emit_load(builder, address)


@operation(types.void, types.int64, vector)
def store(builder, address, value):
    """16 consecutive floats."""
    emit_store(builder, value, address)


@operation(vector, types.int64)
def load_broadcast(builder, address):
    """One float, in every lane."""
    return emit_splat(builder, emit_load(builder, address, FLOAT))


@operation(vector, types.float32)
def broadcast(builder, value):
    """One float, in every lane."""
    return emit_splat(builder, value)


@operation(vector)
def zeros(builder):
    return constant(0.0)


@operation(vector, types.int64, types.int64)
def load_part(builder, address, count):
    """The first `count` lanes from memory, zeros in the rest; reads nothing beyond them."""
    pointer = builder.inttoptr(address, VECTOR.as_pointer())
    return call(builder, f"llvm.masked.load.v{LANES}f32.p0", VECTOR,
                [pointer, ir.Constant(INT32, 4), emit_mask(builder, count), constant(0.0)])


@operation(types.void, types.int64, vector, types.int64)
def store_part(builder, address, value, count):
    """The first `count` lanes to memory; writes nothing beyond them."""
    pointer = builder.inttoptr(address, VECTOR.as_pointer())
    call(builder, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(),
         [value, pointer, ir.Constant(INT32, 4), emit_mask(builder, count)])


@operation(types.float32, types.int64)
def load_scalar(builder, address):
    return emit_load(builder, address, FLOAT)


@operation(types.void, types.int64, types.float32)
def store_scalar(builder, address, value):
    emit_store(builder, value, address)


@operation(types.float64, types.int64)
def load_double(builder, address):
    return emit_load(builder, address, DOUBLE)


@operation(types.void, types.int64, types.float64)
def store_double(builder, address, value):
    emit_store(builder, value, address)


@operation(vector, vector, vector, vector)
def fma(builder, x, y, z):
    """x * y + z."""
    return emit_fma(builder, x, y, z)


@operation(vector, vector)
def relu(builder, x):
    """max(x, 0); NaN stays NaN, as in the reference."""
    return emit_relu(builder, x)


@operation(vector, vector)
def relu6(builder, x):
    """min(max(x, 0), 6); NaN stays NaN."""
    return emit_minimum(builder, emit_relu(builder, x), constant(6.0))


@operation(vector, vector, vector)
def maximum(builder, x, y):
    """The larger of each lane; NaN where one of them is."""
    larger = builder.or_(builder.fcmp_ordered(">", y, x), builder.fcmp_unordered("uno", y, y))
    return builder.select(larger, y, x)


@operation(types.float32, vector)
def lane_sum(builder, x):
    """The sum of the 16 lanes, as a tree: always in the same order."""
    while x.type.count > 1:
        half = x.type.count // 2
        undefined = ir.Constant(x.type, ir.Undefined)
        low, high = (builder.shuffle_vector(x, undefined, ir.Constant(
            ir.VectorType(INT32, half), list(range(start, start + half)))) for start in (0, half))
        x = builder.fadd(low, high)
    return builder.extract_element(x, ir.Constant(INT32, 0))


@operation(types.void, types.int64, vector, vector, vector)
def store_interleaved(builder, address, r, g, b):
    """48 floats r0 g0 b0 r1 g1 b1 ...: three planes become 16 pixels of three channels."""
    both = builder.shuffle_vector(r, g, ir.Constant(ir.VectorType(INT32, 2 * LANES), list(range(2 * LANES))))
    third = builder.shuffle_vector(b, b, ir.Constant(ir.VectorType(INT32, 2 * LANES), list(range(LANES)) * 2))
    for part in range(3):
        picks = []
        for position in range(part * LANES, (part + 1) * LANES):
            pixel, channel = divmod(position, 3)
            picks.append((pixel, LANES + pixel, 2 * LANES + pixel)[channel])
        value = builder.shuffle_vector(both, third, ir.Constant(INDEX_VECTOR, picks))
        emit_store(builder, value, builder.add(address, ir.Constant(INT64, part * LANES * 4)))


for _symbol, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
                              (operator.truediv, "fdiv")):
    @infer_global(_symbol)
    class _VectorOperator(ConcreteTemplate):
        cases = [signature(vector, vector, vector)]

    @lower_builtin(_symbol, vector, vector)
    def _lower(context, builder, sig, values, instruction=_instruction):
        return getattr(builder, instruction)(*values)
