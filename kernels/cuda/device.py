"""What kernels are written in: elements of arrays, and functions of one float32.

Nothing here is "fast math": each function states its error. The simulator has no PTX, so what is written as such has a
NumPy twin there.
"""

from __future__ import annotations

import math

import numpy as np

from mmref.kernels.cuda.driver import SIMULATOR, cuda

LOG2_E = np.float32(1.4426950408889634)
ZERO, ONE, SIX = np.float32(0), np.float32(1), np.float32(6)

# log1p(z) = z * p(z) for z in [0, 1]: p of degree 8, fitted for the least largest relative error, 3e-8; with rounding
# 2.1 units in the last place.
P0, P1, P2, P3, P4, P5, P6, P7, P8 = (np.float32(c) for c in (
    0.99999994, -0.49999493, 0.33319098, -0.24842982, 0.19106005, -0.13663243, 0.07822591, -0.029505214, 0.005232688))

if SIMULATOR:
    def device_function(function):
        """A function that kernels call; becomes part of the kernel."""
        return cuda.jit(device=True)(function)

    def load(array, i, j):
        """array[i, j], i and j >= 0."""
        return array[i, j]

    def load3(array, i, j, k):
        """array[i, j, k], all >= 0."""
        return array[i, j, k]

    def store(array, i, j, value):
        """array[i, j] = value, i and j >= 0."""
        array[i, j] = value

    def store3(array, i, j, k, value):
        """array[i, j, k] = value, all >= 0."""
        array[i, j, k] = value

    def load_at(array, offset):
        """Element `offset` behind the first, in a 2-D array or a contiguous one of any rank."""
        array = array._item._ary
        pitch = array.strides[-2] // array.itemsize
        return array.reshape(-1, array.shape[-1])[offset // pitch, offset % pitch]

    def load4(array, i, j):
        """array[i, j:j + 4], 16 bytes that begin at a multiple of 16: one access."""
        return array[i, j], array[i, j + 1], array[i, j + 2], array[i, j + 3]

    def load4_of(vector, j):
        """vector[j:j + 4], as load4."""
        return vector[j], vector[j + 1], vector[j + 2], vector[j + 3]

    def store4(array, i, j, values):
        """array[i, j:j + 4] = values, as load4."""
        for k in range(4):
            array[i, j + k] = values[k]

    def bits(x):
        """The bits of a float32, as an integer."""
        return np.float32(x).view(np.int32)

    def exp2(x):
        """2**x."""
        return np.exp2(np.float32(x))

    def exp(x):
        """e**x."""
        with np.errstate(over="ignore"):
            return np.exp(np.float32(x))
else:
    from functools import reduce

    from llvmlite import ir
    from numba.core import types
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    def device_function(function):
        """A function that kernels call; becomes part of the kernel."""
        return cuda.jit(device=True, forceinline=True)(function)

    def _instruction(text):
        """A float32 function of one float32: one PTX instruction."""
        @intrinsic
        def call(_, x):
            def emit(context, builder, signature, args):
                value = ir.FloatType()
                code = ir.InlineAsm(ir.FunctionType(value, [value]), f"{text} $0, $1;", "=f,f")
                return builder.call(code, args, attrs=("readnone", "nounwind"))  # loads may move across it
            return types.float32(types.float32), emit
        return call

    def _pointer(context, builder, array_type, array, index):
        """Address of an element of an array whose last axis is contiguous, its space still known to the compiler."""
        array = context.make_array(array_type)(context, builder, array)
        strides = cgutils.unpack_tuple(builder, array.strides)
        strides[-1] = ir.Constant(strides[-1].type, array_type.dtype.bitwidth // 8)
        offset = reduce(builder.add, (builder.mul(i, stride) for i, stride in zip(index, strides, strict=True)))
        start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        return builder.bitcast(builder.gep(start, [offset], inbounds=True), array.data.type)

    @intrinsic
    def load(_, array, i, j):
        """array[i, j], i and j >= 0: no index is asked whether it counts from the end."""
        def emit(context, builder, signature, args):
            return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1:]))
        return array.dtype(array, types.int64, types.int64), emit

    @intrinsic
    def load3(_, array, i, j, k):
        """array[i, j, k], all >= 0."""
        def emit(context, builder, signature, args):
            return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1:]))
        return array.dtype(array, types.int64, types.int64, types.int64), emit

    @intrinsic
    def store(_, array, i, j, value):
        """array[i, j] = value, i and j >= 0."""
        def emit(context, builder, signature, args):
            builder.store(args[3], _pointer(context, builder, signature.args[0], args[0], args[1:3]))
            return context.get_dummy_value()
        return types.void(array, types.int64, types.int64, array.dtype), emit

    @intrinsic
    def store3(_, array, i, j, k, value):
        """array[i, j, k] = value, all >= 0."""
        def emit(context, builder, signature, args):
            builder.store(args[4], _pointer(context, builder, signature.args[0], args[0], args[1:4]))
            return context.get_dummy_value()
        return types.void(array, types.int64, types.int64, types.int64, array.dtype), emit

    @intrinsic
    def load_at(_, array, offset):
        """Element `offset` behind the first, in a 2-D array or a contiguous one of any rank."""
        def emit(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            return builder.load(builder.gep(array.data, [args[1]], inbounds=True))
        return array.dtype(array, types.int64), emit

    _four = ir.VectorType(ir.FloatType(), 4)

    def _load4(context, builder, signature, args):
        start = _pointer(context, builder, signature.args[0], args[0], args[1:])
        four = builder.load(builder.bitcast(start, _four.as_pointer(start.type.addrspace)), align=16)
        values = [builder.extract_element(four, ir.Constant(ir.IntType(32), k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, values)

    @intrinsic
    def load4(_, array, i, j):
        """array[i, j:j + 4], 16 bytes that begin at a multiple of 16: one access."""
        return types.UniTuple(array.dtype, 4)(array, types.int64, types.int64), _load4

    @intrinsic
    def load4_of(_, vector, j):
        """vector[j:j + 4], as load4."""
        return types.UniTuple(vector.dtype, 4)(vector, types.int64), _load4

    @intrinsic
    def store4(_, array, i, j, values):
        """array[i, j:j + 4] = values, as load4."""
        def emit(context, builder, signature, args):
            start = _pointer(context, builder, signature.args[0], args[0], args[1:3])
            four = ir.Constant(_four, ir.Undefined)
            for k, value in enumerate(cgutils.unpack_tuple(builder, args[3], 4)):
                four = builder.insert_element(four, value, ir.Constant(ir.IntType(32), k))
            builder.store(four, builder.bitcast(start, _four.as_pointer(start.type.addrspace)), align=16)
            return context.get_dummy_value()
        return types.void(array, types.int64, types.int64, types.UniTuple(array.dtype, 4)), emit

    @intrinsic
    def bits(_, x):
        """The bits of a float32, as an integer."""
        def emit(context, builder, signature, args):
            return builder.bitcast(args[0], ir.IntType(32))
        return types.int32(types.float32), emit

    exp2 = _instruction("ex2.approx.ftz.f32")  # 2 units in the last place; 0 below 2**-126

    @device_function
    def exp(x):
        """e**x, 1 unit in the last place."""
        return math.exp(x)


@device_function
def relu(x):
    """max(x, 0); NaN stays NaN, as in the reference."""
    return ZERO if x < ZERO else x


@device_function
def relu6(x):
    """min(max(x, 0), 6); NaN stays NaN."""
    return SIX if x > SIX else relu(x)


@device_function
def add4(x, y):
    """x + y, four values each."""
    return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3]


@device_function
def relu4(x):
    """relu of four values."""
    return relu(x[0]), relu(x[1]), relu(x[2]), relu(x[3])


@device_function
def sigmoid(x):
    """1 / (1 + exp(-x)), 3 units in the last place."""
    return ONE / (ONE + exp(-x))


@device_function
def silu(x):
    """x / (1 + exp(-x)), 3 units in the last place."""
    return x / (ONE + exp(-x))


@device_function
def gelu(x):
    """x times the normal distribution's share below x, by the complementary error function of the C library."""
    return np.float32(0.5) * x * np.float32(math.erfc(x * np.float32(-0.70710677)))


@device_function
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), which neither overflows nor cancels.

    Error: 4 units in the last place and, below 0, |x| / 2 more, the rounding of x log2(e): the dot product that x is
    has lost as much already."""
    z = exp2(-abs(x) * LOG2_E)
    p = P7 + P8 * z
    p = P6 + p * z
    p = P5 + p * z
    p = P4 + p * z
    p = P3 + p * z
    p = P2 + p * z
    p = P1 + p * z
    p = P0 + p * z
    return (x if x > ZERO else ZERO) + p * z
