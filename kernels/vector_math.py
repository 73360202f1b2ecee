"""exp, exp2, softplus, SiLU, GELU and the logistic function on vectors: within 2 units in the last place (GELU 7) over
all of float32.

There is no vector library to call (Numba's SVML is optional and absent from the usual wheels), and `math.exp` lane by
lane costs 2.4 ns where these cost 0.2 to 0.5. tests/test_vector_math.py measures the error over the whole range:
denormals, infinities and NaN included. Kernels run with denormals flushed (float_mode.py): what is below the smallest
normal number, 1.2e-38, is then zero, and nothing else may be lost with it.

exp      x = n ln 2 + r, |r| <= ln(2) / 2 with n an integer: exp(x) = 2**n * p(r), p a polynomial of degree 6. ln 2 is
         taken off in two parts, the first so short that n times it is exact. Where p * 2**n leaves the normal range it
         must round once only, so 2**n is applied last: AVX-512 has an instruction for it, elsewhere two factors do.
exp2     the same with n the nearest integer and r = x - n, which is exact: three operations fewer.
softplus max(x, 0) + log1p(e), e = exp(-|x|) in [0, 1]: log1p(e) = e - e**2 q(e), q a polynomial of degree 8, needs no
         division and keeps the relative precision for small e, where the result is e.
SiLU     x / (1 + exp(-x)) overflows below -88 where the result is not yet zero. So exp(-x) = 2**n (1 + t) is taken
         with n held at 100, where the reciprocal of the sum is still far from denormal, and the quotient multiplied by
         the rest of 2**n at the end. The denominator is added up with what the addition loses, and the quotient, from
         an estimate of its reciprocal, corrected once with both. The limit at -infinity is -0 (x * sigmoid(x),
         evaluated literally, would be NaN there). The logistic function is the same with 1 for x.
GELU     x times the normal distribution's share below x, from that beyond |x|: exp(-x**2 / 2) times a polynomial of
         degree 8 in 1 / (1 + 0.35 |x|).
"""

from __future__ import annotations

from llvmlite import ir

from mmref.kernels.target import TARGET
from mmref.kernels.vector import (
    INT32,
    VECTOR,
    call,
    constant,
    emit_fma,
    emit_join,
    emit_maximum,
    emit_minimum,
    emit_split,
    operation,
    operation_on_each,
    vector,
)

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4    # high: 9 bits, so n * LN2_HIGH is exact
GELU_REACH, GELU_BEND = 15.0, 0.35                           # beyond the first the share is below all of float32
EXP_LOWEST, EXP_HIGHEST = -104.0, 89.0                       # beyond: 0 and infinity
EXP2_LOWEST, EXP2_HIGHEST = -151.0, 129.0
SILU_LOWEST = -110.0                                         # x exp(x) rounds to -0 from here on

# (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2, and (log1p(e) - e) / e**2 on 0 <= e <= 1: minimax fits, highest power first
# (weighted least squares on Chebyshev nodes, reweighted until level); their own error is below 0.05 of the last place
EXP_TAIL = (0.0013814539415761828, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552)
EXP2 = (0.00015353360504377633, 0.0013398875016719103, 0.00961843691766262, 0.055503323674201965, 0.24022647738456726,
        0.6931471824645996, 1.0)
LOG1P_TAIL = (-0.003290468594059348, 0.020086241886019707, -0.05745723098516464, 0.10661128163337708,
              -0.15344880521297455, 0.19692102074623108, -0.24958018958568573, 0.33330464363098145, -0.4999993145465851)

# exp(x**2 / 2) * the normal distribution's share below -x, over s = 1 / (1 + 0.35 x), as a polynomial in s: likewise
NORMAL_SHARE = (-0.02916393240242635, 0.1440608335285332, -0.2559019259587735, 0.15939298049737322,
                -0.0232638803580507, 0.10557481967340374, 0.11981549407202301, 0.13986433657408037, 0.13962125836753211)


def _fused(builder, x, y, z):
    """x * y + z rounded once; where there is no such instruction, in float64 (the products are then exact)."""
    if TARGET.has_fma:
        return emit_fma(builder, x, y, z)
    double = ir.VectorType(ir.DoubleType(), x.type.count)
    x, y, z = (builder.fpext(value, double) for value in (x, y, z))
    return builder.fptrunc(builder.fadd(builder.fmul(x, y), z), ir.VectorType(ir.FloatType(), double.count))


def _polynomial(builder, x, coefficients):
    """Horner's rule, highest power first."""
    value = constant(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        value = _fused(builder, value, x, constant(coefficient, x.type))
    return value


def _nearest(builder, x):
    return call(builder, f"llvm.nearbyint.v{x.type.count}f32", x.type, [x])


def _reduced(builder, x):
    """(r, n) with x = n ln 2 + r, |r| <= ln(2) / 2, n integral floats; x must be clamped or NaN."""
    n = _nearest(builder, builder.fmul(x, constant(LOG2_E, x.type)))
    r = _fused(builder, n, constant(-LN2_HIGH, x.type), x)
    return _fused(builder, n, constant(-LN2_LOW, x.type), r), n


def _exp_of_clamped(builder, x):
    """exp(x) for x that is clamped or NaN."""
    r, n = _reduced(builder, x)
    return _times_power_of_two(builder, _polynomial(builder, r, (*EXP_TAIL, 1.0, 1.0)), n)


def _times_power_of_two(builder, p, n):
    """p * 2**n for -160 <= n <= 129, rounded once."""
    if TARGET.has_scalef:
        every_lane = ir.Constant(ir.IntType(16), -1)
        nearest = ir.Constant(INT32, 4)  # round to nearest, by the control register
        return emit_join(builder, [
            call(builder, "llvm.x86.avx512.mask.scalef.ps.512", VECTOR, [p, n, constant(0.0), every_lane, nearest])
            for p, n in zip(emit_split(builder, p), emit_split(builder, n), strict=True)])
    integers = ir.VectorType(INT32, n.type.count)
    n = builder.fptosi(n, integers)
    half = builder.ashr(n, constant(1, integers))
    for exponent in (half, builder.sub(n, half)):  # both factors normal, the first product exact
        biased = builder.add(exponent, constant(127, integers))
        p = builder.fmul(p, builder.bitcast(builder.shl(biased, constant(23, integers)), p.type))
    return p


def emit_exp(builder, x):
    x = emit_minimum(builder, x, constant(EXP_HIGHEST, x.type))
    return _exp_of_clamped(builder, emit_maximum(builder, x, constant(EXP_LOWEST, x.type)))


def emit_exp2(builder, x):
    x = emit_minimum(builder, x, constant(EXP2_HIGHEST, x.type))
    x = emit_maximum(builder, x, constant(EXP2_LOWEST, x.type))
    n = _nearest(builder, x)
    return _times_power_of_two(builder, _polynomial(builder, builder.fsub(x, n), EXP2), n)


def emit_softplus(builder, x):
    magnitude = call(builder, f"llvm.fabs.v{x.type.count}f32", x.type, [x])
    e = _exp_of_clamped(builder, emit_maximum(builder, builder.fneg(magnitude), constant(EXP_LOWEST, x.type)))
    log1p = _fused(builder, builder.fmul(e, e), _polynomial(builder, e, LOG1P_TAIL), e)
    return builder.fadd(emit_maximum(builder, x, constant(0.0, x.type)), log1p)


def _reciprocal_estimate(builder, d):
    """1 / d, to 2**-14 at least."""
    if not TARGET.has_scalef:
        return builder.fdiv(constant(1.0, d.type), d)
    every_lane = ir.Constant(ir.IntType(16), -1)
    return emit_join(builder, [call(builder, "llvm.x86.avx512.rcp14.ps.512", VECTOR, [part, constant(0.0), every_lane])
                               for part in emit_split(builder, d)])


def _over_one_plus_exp(builder, numerator, x):
    """numerator / (1 + exp(-x)), for finite numerators."""
    one = constant(1.0, x.type)
    x = emit_maximum(builder, emit_minimum(builder, x, constant(-EXP_LOWEST, x.type)), constant(SILU_LOWEST, x.type))
    r, n = _reduced(builder, builder.fneg(x))
    held = emit_minimum(builder, n, constant(100.0, x.type))
    power = _times_power_of_two(builder, one, held)
    tail = builder.fmul(r, _polynomial(builder, r, (*EXP_TAIL, 1.0)))  # exp(r) - 1
    sum_ = builder.fadd(power, one)
    d = _fused(builder, power, tail, sum_)
    lost = _fused(builder, power, tail, builder.fsub(sum_, d))
    reciprocal = _reciprocal_estimate(builder, d)
    quotient = builder.fmul(numerator, reciprocal)
    excess = _fused(builder, quotient, d, builder.fneg(numerator))  # with this sign a zero keeps its own
    excess = _fused(builder, quotient, lost, excess)
    quotient = _fused(builder, builder.fneg(reciprocal), excess, quotient)
    return _times_power_of_two(builder, quotient, builder.fsub(held, n))


def emit_silu(builder, x):
    low = emit_maximum(builder, x, constant(SILU_LOWEST, x.type))
    large = builder.fcmp_ordered(">", x, constant(40.0, x.type))  # is x itself; of infinity there is no quotient
    return builder.select(large, x, _over_one_plus_exp(builder, low, x))


def emit_gelu(builder, x):
    """x less |x| times the share of the normal distribution beyond |x| where x is positive, minus that where it is not:
    its last places hold however small it is. exp(-x**2 / 2) is taken of the square in two parts."""
    one, half = constant(1.0, x.type), constant(-0.5, x.type)
    t = emit_minimum(builder, call(builder, f"llvm.fabs.v{x.type.count}f32", x.type, [x]), constant(GELU_REACH, x.type))
    square = builder.fmul(t, t)
    rest = _fused(builder, t, t, builder.fneg(square))
    s = builder.fdiv(one, _fused(builder, t, constant(GELU_BEND, x.type), one))
    tail = builder.fmul(builder.fmul(t, s), _polynomial(builder, s, NORMAL_SHARE))
    tail = _fused(builder, builder.fmul(rest, half), tail, tail)
    tail = builder.fmul(tail, _exp_of_clamped(builder, emit_maximum(builder, builder.fmul(square, half),
                                                                    constant(EXP_LOWEST, x.type))))
    positive = builder.fcmp_ordered(">=", x, constant(0.0, x.type))
    return builder.select(positive, builder.fsub(x, tail), builder.fneg(tail))


@operation(vector, vector)
def exp(builder, x):
    """e to the x."""
    return emit_exp(builder, x)


@operation(vector, vector)
def exp2(builder, x):
    """2 to the x."""
    return emit_exp2(builder, x)


@operation(vector, vector)
def softplus(builder, x):
    """log(1 + exp(x))."""
    return emit_softplus(builder, x)


@operation(vector, vector)
def silu(builder, x):
    """x / (1 + exp(-x)); -0 at -infinity."""
    return emit_silu(builder, x)


@operation(vector, vector)
def gelu(builder, x):
    """x (1 + erf(x / sqrt(2))) / 2; -0 at -infinity."""
    return emit_gelu(builder, x)


@operation(vector, vector)
def sigmoid(builder, x):
    """1 / (1 + exp(-x))."""
    return _over_one_plus_exp(builder, constant(1.0), x)


@operation_on_each
def exp2_each(builder, x):
    """`exp2` of every vector of a tuple."""
    return emit_exp2(builder, x)


@operation_on_each
def softplus_each(builder, x):
    """`softplus` of every vector of a tuple."""
    return emit_softplus(builder, x)


@operation_on_each
def silu_each(builder, x):
    """`silu` of every vector of a tuple."""
    return emit_silu(builder, x)
