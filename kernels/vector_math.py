"""exp, softplus, SiLU and the logistic function on vectors: within 2 units in the last place over all of float32.

There is no vector library to call (Numba's SVML is optional and absent from the usual wheels), and `math.exp` lane by
lane costs 2.4 ns where these cost 0.2 to 0.5. tests/test_vector_math.py measures the error over the whole range:
denormals, infinities and NaN included.

exp      x = n ln 2 + r, |r| <= ln(2) / 2 with n an integer: exp(x) = 2**n * p(r), p a polynomial of degree 6. ln 2 is
         taken off in two parts, the first so short that n times it is exact. Where p * 2**n leaves the normal range it
         must round once only, so 2**n is applied last: AVX-512 has an instruction for it, elsewhere two factors do.
softplus max(x, 0) + log1p(e), e = exp(-|x|) in [0, 1]: log1p(e) = e - e**2 q(e), q a polynomial of degree 8, needs no
         division and keeps the relative precision for small e, where the result is e.
SiLU     x / (1 + exp(-x)) overflows below -88 where the result is not yet zero. With e = exp(-|x|) = 2**n p it is
         x / (1 + e) above zero and 2**n (x p / (1 + e)) below. The limit at -infinity is -0 (x * sigmoid(x), evaluated
         literally, would be NaN there). The logistic function is the same with 1 for x.
"""

from __future__ import annotations

from llvmlite import ir

from mmref.kernels.target import LANES, TARGET
from mmref.kernels.vector import (
    INDEX_VECTOR,
    INT32,
    VECTOR,
    call,
    constant,
    emit_fma,
    emit_maximum,
    emit_minimum,
    operation,
    vector,
)

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4    # high: 9 bits, so n * LN2_HIGH is exact
EXP_LOWEST, EXP_HIGHEST = -104.0, 89.0                       # beyond: 0 and infinity
SILU_LOWEST = -110.0                                         # x exp(x) rounds to -0 from here on

# (exp(r) - 1 - r) / r**2 on |r| <= ln(2)/2, and (log1p(e) - e) / e**2 on 0 <= e <= 1: minimax fits, highest power first
# (weighted least squares on Chebyshev nodes, reweighted until level); their own error is below 0.05 of the last place
EXP_TAIL = (0.0013814539415761828, 0.00836874544620514, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552)
LOG1P_TAIL = (-0.003290468594059348, 0.020086241886019707, -0.05745723098516464, 0.10661128163337708,
              -0.15344880521297455, 0.19692102074623108, -0.24958018958568573, 0.33330464363098145, -0.4999993145465851)


def _fused(builder, x, y, z):
    """x * y + z rounded once; where there is no such instruction, in float64 (the products are then exact)."""
    if TARGET.has_fma:
        return emit_fma(builder, x, y, z)
    double = ir.VectorType(ir.DoubleType(), LANES)
    x, y, z = (builder.fpext(value, double) for value in (x, y, z))
    return builder.fptrunc(builder.fadd(builder.fmul(x, y), z), VECTOR)


def _polynomial(builder, x, coefficients):
    """Horner's rule, highest power first."""
    value = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fused(builder, value, x, constant(coefficient))
    return value


def _exp_parts(builder, x):
    """(p, n) with exp(x) = p * 2**n, p in [0.7, 1.42], n integral floats; x must be clamped or NaN."""
    n = call(builder, f"llvm.nearbyint.v{LANES}f32", VECTOR, [builder.fmul(x, constant(LOG2_E))])
    r = _fused(builder, n, constant(-LN2_HIGH), x)
    r = _fused(builder, n, constant(-LN2_LOW), r)
    tail = _polynomial(builder, r, EXP_TAIL)
    p = _fused(builder, builder.fmul(r, r), tail, r)
    return builder.fadd(p, constant(1.0)), n


def _times_power_of_two(builder, p, n):
    """p * 2**n for -160 <= n <= 129, rounded once."""
    if TARGET.has_scalef:
        every_lane = ir.Constant(ir.IntType(16), -1)
        nearest = ir.Constant(INT32, 4)  # round to nearest, by the control register
        return call(builder, "llvm.x86.avx512.mask.scalef.ps.512", VECTOR, [p, n, constant(0.0), every_lane, nearest])
    n = builder.fptosi(n, INDEX_VECTOR)
    half = builder.ashr(n, ir.Constant(INDEX_VECTOR, [1] * LANES))
    for exponent in (half, builder.sub(n, half)):  # both factors normal, the first product exact
        biased = builder.add(exponent, ir.Constant(INDEX_VECTOR, [127] * LANES))
        factor = builder.bitcast(builder.shl(biased, ir.Constant(INDEX_VECTOR, [23] * LANES)), VECTOR)
        p = builder.fmul(p, factor)
    return p


def emit_exp(builder, x):
    x = emit_maximum(builder, emit_minimum(builder, x, constant(EXP_HIGHEST)), constant(EXP_LOWEST))
    return _times_power_of_two(builder, *_exp_parts(builder, x))


def _minus_magnitude(builder, x):
    magnitude = call(builder, f"llvm.fabs.v{LANES}f32", VECTOR, [x])
    return builder.fneg(magnitude)


@operation(vector, vector)
def exp(builder, x):
    """e to the x."""
    return emit_exp(builder, x)


@operation(vector, vector)
def softplus(builder, x):
    """log(1 + exp(x))."""
    e = emit_exp(builder, _minus_magnitude(builder, x))
    log1p = _fused(builder, builder.fmul(e, e), _polynomial(builder, e, LOG1P_TAIL), e)
    return builder.fadd(emit_maximum(builder, x, constant(0.0)), log1p)


def _reciprocal(builder, d):
    """1 / d to 2e-7: an estimate and one step of Newton where AVX-512 offers one (a division takes 16 cycles)."""
    if not TARGET.has_scalef:
        return builder.fdiv(constant(1.0), d)
    every_lane = ir.Constant(ir.IntType(16), -1)
    estimate = call(builder, "llvm.x86.avx512.rcp14.ps.512", VECTOR, [d, constant(0.0), every_lane])
    return _fused(builder, estimate, _fused(builder, builder.fneg(d), estimate, constant(1.0)), estimate)


def _logistic_times(builder, x, factor):
    """factor / (1 + exp(-x)), factor x or 1, corrected once: only exp's own error and one rounding stay."""
    low = emit_maximum(builder, x, constant(SILU_LOWEST))
    p, n = _exp_parts(builder, emit_maximum(builder, _minus_magnitude(builder, x), constant(SILU_LOWEST)))
    e = _times_power_of_two(builder, p, n)
    negative = builder.fcmp_ordered("<", x, constant(0.0))
    factor = low if factor is x else factor
    p = builder.select(negative, p, constant(1.0))
    n = builder.select(negative, n, constant(0.0))
    numerator = builder.fmul(factor, p)
    denominator = builder.fadd(e, constant(1.0))
    lost_above = _fused(builder, factor, p, builder.fneg(numerator))
    lost_below = builder.fsub(e, builder.fsub(denominator, constant(1.0)))
    reciprocal = _reciprocal(builder, denominator)
    quotient = builder.fmul(numerator, reciprocal)
    rest = _fused(builder, builder.fneg(quotient), denominator, numerator)
    rest = _fused(builder, builder.fneg(quotient), lost_below, builder.fadd(rest, lost_above))
    return _times_power_of_two(builder, _fused(builder, rest, reciprocal, quotient), n)


@operation(vector, vector)
def silu(builder, x):
    """x / (1 + exp(-x)); -0 at -infinity."""
    large = builder.fcmp_ordered(">", x, constant(40.0))  # is x itself; infinity would meet infinity - infinity
    settled = builder.or_(large, builder.fcmp_ordered("==", x, constant(0.0)))  # -0 would lose its sign
    return builder.select(settled, x, _logistic_times(builder, x, x))


@operation(vector, vector)
def sigmoid(builder, x):
    """1 / (1 + exp(-x))."""
    return _logistic_times(builder, x, constant(1.0))
