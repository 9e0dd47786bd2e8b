"""exp, expm1, log, log1p, tanh, erf and erfc in operations that vectorise: the C library takes one number at a time.

exp: x = n ln 2 + r with a whole n and |r| <= ln(2) / 2; exp(r) - 1 is its Taylor polynomial, of degree 7 in float32
and 13 in float64, whose rest is below a tenth of the rounding.
log: x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), and with s = f / (2 + f), log(1 + f) = 2 atanh(s)
= f - f^2/2 + s (f^2/2 + s^2 p(s^2)); log1p puts what 1 + x rounds off back into f.
erfc: exp(-x^2) (1 + (1 + t) p(t)) / (1 + 2 x) with t = (x - c) / (x + c) for x >= 0, after M. Shepherd and
J. Laframboise (Mathematics of Computation 36, 1981), and 2 - erfc(-x) below; erf is x + x p(x^2) up to 3/4, and
1 - erfc(x) from there.

Each p interpolates its function at the Chebyshev points (the zeros of a Chebyshev polynomial) of an interval; it was
computed with 50 digits, and the tests do it again. NaN and the infinities are those of the C library, which computes
the other functions.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from bpgpu.kernels.cpu.addresses import EXACT

cos, fabs, pow, sin, sqrt = math.cos, math.fabs, math.pow, math.sin, math.sqrt

# fmt: off
# Coefficients of p by the bits of the type, the highest power first.
# Of (2 atanh(s) / s - 2) / s^2 in s^2 from 0 to ((sqrt(2) - 1) / (sqrt(2) + 1))^2: within 2.8e-7 and 4.6e-16.
LOG = {
    32: (0.295799494, 0.399887806, 0.66666685),
    64: (0.14616449685043406, 0.15331721600556041, 0.18182889125261722, 0.2222221113479508, 0.28571428625975485,
         0.39999999999899504, 0.66666666666666697),
}
# Of erf(x) / x - 1 in x^2 from 0 to 9/16: within 1.5e-9 and 8.3e-19.
ERF = {
    32: (-6.75647957e-4, 5.11533211e-3, -2.68351146e-2, 0.112833865, -0.376126195, 0.128379166),
    64: (1.1472499701094692e-8, -1.5940066854661717e-7, 1.6430684179741549e-6, -1.4924196305569617e-5,
         1.2055289567541707e-4, -8.5483261887597527e-4, 5.2239776154205387e-3, -2.6866170644428484e-2,
         0.11283791670952596, -0.37612638903183717, 0.12837916709551257),
}
# Of ((1 + 2 x) exp(x^2) erfc(x) - 1) / (1 + t) in t, for x from 0 to FARTHEST, where erfc is 0 in the type: erfc is
# within 6.3e-9 and 3.9e-17 of itself. The centre c is the best of those tried.
CENTRE, FARTHEST = {32: 3.0, 64: 4.0}, {32: 10.1, 64: 27.3}
ERFC = {
    32: (-2.89535875e-4, -5.42159981e-4, 2.51407715e-3, 7.66446196e-5, -2.38507877e-2, 9.2145195e-2, -0.211421004,
         0.341067092, -0.388629174, 0.253008056),
    64: (-2.7772174345777253e-9, -1.385875795866339e-8, 5.7716654997241262e-9, 1.1681737580024153e-7,
         -4.887742577674563e-8, -7.9334245263612935e-7, 1.0868920661962497e-6, 4.6343422560212925e-6,
         -1.5853501161139483e-5, -8.5503177638610176e-6, 1.5917020395551723e-4, -3.5842578293788038e-4,
         -3.993469562577397e-4, 5.4313167734832255e-3, -2.1629050925940975e-2, 5.8796566476250898e-2,
         -0.12512693227943931, 0.21885976727731099, -0.31989883331404504, 0.38799588756874259,
         -0.37261623546611497, 0.23299511862555249),
}
# fmt: on


@njit(**EXACT)
def select(condition, x, y):
    """Return x or y, both of which are there already."""
    return x if condition else y


def _polynomial(number, real, coefficients):
    """Return the function of such coefficients, the highest power first; LLVM does not unroll a loop over many."""
    highest, *others = (real(float(c)) for c in coefficients)

    @intrinsic
    def polynomial(typingctx, x):
        def codegen(context, builder, signature, args):
            p = highest
            for c in others:
                p = builder.fadd(builder.fmul(p, args[0], flags=("contract",)), c, flags=("contract",))
            return p

        return number(number), codegen

    return polynomial


def _of_type(T, bits, mantissa, degree, lowest, highest, ln2_high, ln2_low):
    """Return the functions for a type, whose numbers have so many bits; exp is 0 below `lowest`.

    The two parts of ln 2 are W. Cody and W. Waite's: products of the first with n are exact.
    """
    magic = T(1.5 * 2**mantissa)  # added to a number, it leaves its nearest whole number in the low bits
    log2e, ln2_high, ln2_low = T(math.log2(math.e)), T(ln2_high), T(ln2_low)
    lowest, highest, half, one, two = T(lowest), T(highest), T(0.5), T(1), T(2)
    nothing, enough = T(-40), T(40)  # exp(-40) does not count beside 1
    integer, real, bias = (
        ir.IntType(bits),
        ir.FloatType() if bits == 32 else ir.DoubleType(),
        2 ** (bits - mantissa - 2) - 1,
    )
    number = types.float32 if bits == 32 else types.float64
    exp_rest = _polynomial(number, real, [T(1 / math.factorial(k)) for k in range(degree, 1, -1)])
    log_rest, erf_rest, erfc_rest = (_polynomial(number, real, map(T, table[bits])) for table in (LOG, ERF, ERFC))
    infinity, no_number, centre, farthest = T(math.inf), T(math.nan), T(CENTRE[bits]), T(FARTHEST[bits])
    tiny, lift = np.finfo(T).tiny, T(mantissa + 1)  # times 2^lift, a subnormal number is none
    lifting, large = T(2.0 ** (mantissa + 1)), T(64)  # from 2^large on, 1 does not count
    coarse = T(1.5 * 2 ** (mantissa - (mantissa - 9) // 2))  # what it leaves of x <= FARTHEST has an exact square
    root_half, whole = (int(np.array(x, T).view(f"i{bits // 8}")) for x in (math.sqrt(0.5), 1.5 * 2**mantissa))

    @intrinsic
    def power_of_two(typingctx, t):
        """Return 2^n for t = magic + n."""

        def codegen(context, builder, signature, args):
            n = builder.bitcast(args[0], integer)
            return builder.bitcast(builder.shl(builder.add(n, integer(bias)), integer(mantissa)), real)

        return number(number), codegen

    @intrinsic
    def parts(typingctx, x):
        """Return magic + n and m, from sqrt(1/2) to sqrt(2), for a normal number x = 2^n m."""

        def codegen(context, builder, signature, args):
            shifted = builder.add(builder.bitcast(args[0], integer), integer((bias << mantissa) - root_half))
            n = builder.add(builder.lshr(shifted, integer(mantissa)), integer(whole - bias))
            m = builder.add(builder.and_(shifted, integer(2**mantissa - 1)), integer(root_half))
            found = [builder.bitcast(n, real), builder.bitcast(m, real)]
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(number, 2)(number), codegen

    @njit(**EXACT)
    def reduce(x, rest):
        """Return q = exp(r) - 1 and, for exp(x - rest) = (1 + q) 2^n, the halves of n, each plus magic.

        2^n itself may overflow; the rest is small.
        """
        n = (x * log2e + magic) - magic
        r = x - n * ln2_high - n * ln2_low - rest
        first = half * n + magic
        return r * r * exp_rest(r) + r, first, (n - (first - magic)) + magic

    @njit(**EXACT)
    def exp(x):
        q, first, second = reduce(highest if x > highest else (lowest if x < lowest else x), T(0))
        return (one + q) * power_of_two(first) * power_of_two(second)

    @njit(**EXACT)
    def expm1(x):
        q, first, second = reduce(highest if x > highest else (nothing if x < nothing else x), T(0))
        scale = power_of_two(first)
        return (scale * q + (scale - power_of_two(magic + magic - second))) * power_of_two(second)

    @njit(**EXACT)
    def tanh(x):
        u = two * math.fabs(x)
        e = expm1(enough if u > enough else u)
        t = e / (e + two)
        return -t if x < T(0) else t

    @njit(**EXACT)
    def logarithm(x, f, n):
        """Return n ln 2 + log(1 + f), the logarithm of x; or what it is at the ends of its range."""
        s = f / (two + f)
        square, h = s * s, half * f * f
        value = n * ln2_high + (f - (h - (s * (h + square * log_rest(square)) + n * ln2_low)))
        value = value if x < infinity else x
        return value if x > T(0) else (-infinity if x == T(0) else (no_number if x < T(0) else x))

    @njit(**EXACT)
    def log(x):
        t, m = parts(x * lifting if x < tiny else x)
        return logarithm(x, m - one, (t - magic) - (lift if x < tiny else T(0)))

    @njit(**EXACT)
    def log1p(x):
        u = one + x
        added = u - one
        rounded_off = (one - (u - added)) + (x - added)  # u + rounded_off is 1 + x exactly
        t, m = parts(u)
        n = t - magic
        scale = power_of_two(magic - (large if n > large else n))
        return logarithm(u, (m - one) + rounded_off * scale, n)

    @njit(**EXACT)
    def upper(x):
        """Return erfc(x) for x >= 0."""
        x = farthest if x > farthest else x
        c = (x + coarse) - coarse
        q, first, second = reduce(-c * c, (x - c) * (x + c))
        below, scale = x + centre, one + two * x
        inverse = one / (below * scale)
        u = two * x * (scale * inverse)  # 1 + t
        p = (one + u * erfc_rest(u - one)) * (below * inverse)
        return (one + q) * p * power_of_two(first) * power_of_two(second)

    @njit(**EXACT)
    def erfc(x):
        y = upper(math.fabs(x))
        return two - y if x < T(0) else y

    @njit(**EXACT)
    def erf(x):
        y = one - upper(math.fabs(x))
        y = -y if x < T(0) else y
        square = x * x
        inner = x + x * erf_rest(square)
        return inner if square < T(0.5625) else y

    return {"exp": exp, "expm1": expm1, "tanh": tanh, "log": log, "log1p": log1p, "erf": erf, "erfc": erfc}


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


def log(x):
    """Return the natural logarithm of a number, in its type."""


def log1p(x):
    """Return the natural logarithm of 1 + x of a number, in its type."""


def erf(x):
    """Return the error function of a number, in its type."""


def erfc(x):
    """Return 1 - erf(x) of a number, in its type, to full accuracy where that is small."""


def _chooser(name):
    def choose(x):
        found = _IMPLEMENTATIONS[x][name]
        return lambda x: found(x)

    return choose


# LLVM by itself leaves erfc a call, and a loop with a call does not vectorise.
for _function in (exp, expm1, tanh, log, log1p, erf, erfc):
    overload(_function, jit_options={"forceinline": True})(_chooser(_function.__name__))
