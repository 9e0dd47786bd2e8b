"""exp, expm1 and tanh in operations that vectorise: the C library takes one number at a time.

x = n ln 2 + r with a whole n and |r| <= ln(2) / 2; exp(r) - 1 is its Taylor polynomial, of degree 7 in float32 and 13
in float64, whose rest is below a tenth of the rounding. NaN and the infinities are those of the C library, which
computes the other functions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from bpgpu.kernels.numba_cpu_parts import EXACT

cos, erf, erfc, fabs, log = math.cos, math.erf, math.erfc, math.fabs, math.log
log1p, pow, sin, sqrt = math.log1p, math.pow, math.sin, math.sqrt


@njit(**EXACT)
def select(condition, x, y):
    """Return x or y, both of which are there already."""
    return x if condition else y


def _of_type(T, bits, mantissa, degree, lowest, highest, ln2_high, ln2_low):
    """Return exp, expm1 and tanh for a type, whose numbers have so many bits; exp is 0 below `lowest`.

    The two parts of ln 2 are W. Cody and W. Waite's: products of the first with n are exact.
    """
    magic = T(1.5 * 2**mantissa)  # added to a number, it leaves its nearest whole number in the low bits
    log2e, ln2_high, ln2_low = T(math.log2(math.e)), T(ln2_high), T(ln2_low)
    lowest, highest, half, one = T(lowest), T(highest), T(0.5), T(1)
    nothing, enough = T(-40), T(40)  # exp(-40) does not count beside 1
    coefficients = tuple(T(1 / math.factorial(k)) for k in range(degree, 1, -1))
    integer, real, bias = (
        ir.IntType(bits),
        ir.FloatType() if bits == 32 else ir.DoubleType(),
        2 ** (bits - mantissa - 2) - 1,
    )
    number = types.float32 if bits == 32 else types.float64

    @intrinsic
    def power_of_two(typingctx, t):
        """Return 2^n for t = magic + n."""

        def codegen(context, builder, signature, args):
            n = builder.bitcast(args[0], integer)
            return builder.bitcast(builder.shl(builder.add(n, integer(bias)), integer(mantissa)), real)

        return number(number), codegen

    @njit(**EXACT)
    def reduce(x):
        """Return q = exp(r) - 1 and, for exp(x) = (1 + q) 2^n, the halves of n, each plus magic: 2^n may overflow."""
        n = (x * log2e + magic) - magic
        r = x - n * ln2_high - n * ln2_low
        q = T(0)
        for c in coefficients:
            q = q * r + c
        first = half * n + magic
        return r * r * q + r, first, (n - (first - magic)) + magic

    @njit(**EXACT)
    def exp(x):
        q, first, second = reduce(highest if x > highest else (lowest if x < lowest else x))
        return (one + q) * power_of_two(first) * power_of_two(second)

    @njit(**EXACT)
    def expm1(x):
        q, first, second = reduce(highest if x > highest else (nothing if x < nothing else x))
        scale = power_of_two(first)
        return (scale * q + (scale - power_of_two(magic + magic - second))) * power_of_two(second)

    @njit(**EXACT)
    def tanh(x):
        u = T(2) * math.fabs(x)
        e = expm1(enough if u > enough else u)
        t = e / (e + T(2))
        return -t if x < T(0) else t

    return exp, expm1, tanh


_IMPLEMENTATIONS = {
    types.float32: _of_type(np.float32, 32, 23, 7, -104, 89, 0.693359375, -2.12194440e-4),
    types.float64: _of_type(np.float64, 64, 52, 13, -746, 710, 0.693145751953125, 1.42860682030941723212e-6),
}


def exp(x):
    """Return e^x of a number, in its type."""


def expm1(x):
    """Return e^x - 1 of a number, in its type."""


def tanh(x):
    """Return the hyperbolic tangent of a number, in its type."""


def _chooser(place):
    def choose(x):
        found = _IMPLEMENTATIONS[x][place]
        return lambda x: found(x)

    return choose


for _place, _function in enumerate((exp, expm1, tanh)):
    overload(_function)(_chooser(_place))
