"""Softmax on the CPU, row by row, with the costs that are computed together with it."""

import math

from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, SUMS, address, matrix
from bpgpu.kernels.cpu.math import exp, log1p, select

PIECE = 1024  # numbers of a long sum that are added up side by side, in vectors


@njit(**EXACT)
def exponentials(z, b, a, largest):
    """Compute z + b into z and exp(z - its row's largest) into a; write the largest, if wanted."""
    for i in range(z.shape[0]):
        z[i, 0] += b[0]
        top = z[i, 0]
        for j in range(1, z.shape[1]):
            z[i, j] += b[j]
            top = z[i, j] if z[i, j] > top or z[i, j] != z[i, j] else top
        for j in range(z.shape[1]):
            a[i, j] = z[i, j] - top
        if largest.size:
            largest[i] = top
    flat = matrix(address(a), 1, a.size, a)[0]
    for i in range(flat.size):
        flat[i] = exp(flat[i])


@njit(**SUMS)
def small_and_ones(x):
    """Return the sum of what is not 1, and how many are."""
    T = x.dtype.type
    small, ones = T(0), T(0)
    for j in range(x.size):
        small += select(x[j] == T(1), T(0), x[j])
        ones += select(x[j] == T(1), T(1), T(0))
    return small, ones


@njit(**EXACT)
def sum_of_others(x):
    """Return the sum of a row of `exponentials` without the largest, 1: so no small one is lost beside it."""
    if x.size <= PIECE:
        small, ones = small_and_ones(x)
    else:
        small, ones = x.dtype.type(0), x.dtype.type(0)
        for start in range(0, x.size, PIECE):
            more_small, more_ones = small_and_ones(x[start : start + PIECE])
            small += more_small
            ones += more_ones
    return small + (ones - x.dtype.type(1))  # in this order, which is why it is not in the function above


@njit(**SUMS)
def total_of_piece(x):
    """Return the sum of a vector that is not long."""
    s = x.dtype.type(0)
    for j in range(x.size):
        s += x[j]
    return s


@njit(**SUMS)
def dot_of_piece(x, y):
    """Return the sum of products of two vectors that are not long."""
    s = x.dtype.type(0)
    for j in range(x.size):
        s += x[j] * y[j]
    return s


@njit(**EXACT)
def total(x):
    """Return the sum of a vector."""
    if x.size <= PIECE:
        return total_of_piece(x)
    s = x.dtype.type(0)
    for start in range(0, x.size, PIECE):
        s += total_of_piece(x[start : start + PIECE])
    return s


@njit(**EXACT)
def dot(x, y):
    """Return the sum of products of two rows."""
    if x.size <= PIECE:
        return dot_of_piece(x, y)
    s = x.dtype.type(0)
    for start in range(0, x.size, PIECE):
        s += dot_of_piece(x[start : start + PIECE], y[start : start + PIECE])
    return s


@njit(**EXACT)
def plus(s, lost, x):
    """Return the sum s with x added, and what its roundings have left out (W. Kahan)."""
    x -= lost
    after = s + x
    return after, (after - s) - x


@njit(**EXACT)
def softmax(z, b, a):
    """Compute z + b into z and its softmax into a, row by row."""
    exponentials(z, b, a, b[:0])
    for i in range(z.shape[0]):
        inverse = z.dtype.type(1) / (z.dtype.type(1) + sum_of_others(a[i]))
        for j in range(z.shape[1]):
            a[i, j] *= inverse


@njit(**EXACT)
def softmax_delta(delta, a):
    """Compute delta_i = a_i (g_i - sum_k g_k a_k) in place of g."""
    for i in range(a.shape[0]):
        mean = dot(delta[i], a[i])
        for j in range(a.shape[1]):
            delta[i, j] = a[i, j] * (delta[i, j] - mean)


@njit(**EXACT)
def complements(a, out):
    """Compute 1 - a of a softmax: of a row's largest as the sum of the others, for it may be rounded to 1."""
    T = a.dtype.type
    for i in range(a.shape[0]):
        m, rest, lost = 0, T(0), T(0)
        for j in range(a.shape[1]):
            out[i, j] = T(1) - a[i, j]
            if a[i, j] > a[i, m]:
                m = j
        for j in range(a.shape[1]):
            rest, lost = plus(rest, lost, a[i, j] if j != m else T(0))
        out[i, m] = rest


@njit(**EXACT)
def softmax_cost_delta(delta, a):
    """Do what `softmax_delta` does, for the largest a of a row as ``a_m (g_m (1 - a_m) - sum_{k != m} g_k a_k)``."""
    T = a.dtype.type
    for i in range(a.shape[0]):
        m, rest, others, lost, lost_others = 0, T(0), T(0), T(0), T(0)
        for j in range(1, a.shape[1]):
            if a[i, j] > a[i, m]:
                m = j
        for j in range(a.shape[1]):
            if j != m:
                rest, lost = plus(rest, lost, a[i, j])
                others, lost_others = plus(others, lost_others, delta[i, j] * a[i, j])
        own = delta[i, m]
        for j in range(a.shape[1]):
            delta[i, j] = a[i, j] * (delta[i, j] - (others + own * a[i, m]))
        delta[i, m] = a[i, m] * (own * rest - others)


@njit(**EXACT)
def times_logarithm(y, log_a):
    """Return y log a, 0 where y is 0 even if the logarithm is -infinity."""
    return y * log_a if y != 0 else y


@njit(**EXACT)
def softmax_cross_entropy(z, b, a, y, delta, scale, cost):
    """Compute softmax, -sum_k y_k log a_k and delta, as ``bpgpu/backends/softmax.py`` does."""
    T = z.dtype.type
    exponentials(z, b, a, cost)
    for i in range(z.shape[0]):
        rest, sum_y, value, lost = sum_of_others(a[i]), total(y[i]), T(0), T(0)
        largest, log_total, inverse = cost[i], log1p(rest), T(1) / (T(1) + rest)
        for j in range(z.shape[1]):
            if y[i, j] != 0:
                value, lost = plus(value, lost, -y[i, j] * (z[i, j] - largest - log_total))
        for j in range(z.shape[1]):  # a loop of its own, which vectorises
            complement = select(a[i, j] == T(1), rest, T(1) + rest - a[i, j]) * inverse
            aj = a[i, j] * inverse
            a[i, j] = aj
            delta[i, j] = ((sum_y - y[i, j]) * aj - y[i, j] * complement) * scale[i]
        cost[i] = value


@njit(**EXACT)
def softmax_binary_cross_entropy(z, b, a, y, delta, scale, cost):
    """Compute softmax with binary cross-entropies, of two outputs or more, as ``bpgpu/backends/softmax.py`` does.

    m is the largest output, r the softmax of the others, and gap * rest the odds (1 - a_m) / a_m.
    """
    T = z.dtype.type
    n = z.shape[1]
    for i in range(z.shape[0]):
        m, top = 0, T(-math.inf)
        for j in range(n):
            z[i, j] += b[j]
            if z[i, j] > z[i, m]:
                m = j
        for j in range(n):
            if j != m and (z[i, j] > top or z[i, j] != z[i, j]):
                top = z[i, j]
        rest, lost = T(0), T(0)
        for j in range(n):
            if j != m:
                delta[i, j] = exp(z[i, j] - top)
                rest, lost = plus(rest, lost, delta[i, j])
        largest = z[i, m]
        gap = exp(top - largest)
        odds = gap * rest
        log_total = math.log1p(odds)
        log_others = top - largest + math.log(rest) - log_total  # log(1 - a_m)
        a[i, m] = T(1) / (T(1) + odds)
        error_m, quotients = (T(1) - y[i, m]) * a[i, m] - y[i, m] * odds / (T(1) + odds), T(0)
        value = times_logarithm(y[i, m], -log_total) + times_logarithm(T(1) - y[i, m], log_others)
        lost, lost_quotients = T(0), T(0)
        for j in range(n):
            if j != m:
                aj, yj = delta[i, j] * gap / (T(1) + odds), y[i, j]
                a[i, j] = aj
                quotients, lost_quotients = plus(quotients, lost_quotients, (aj - yj) / (T(1) - aj))
                log_aj, log_rest = z[i, j] - largest - log_total, math.log1p(-aj)
                value, lost = plus(value, lost, times_logarithm(yj, log_aj) + times_logarithm(T(1) - yj, log_rest))
        for j in range(n):
            aj, yj = a[i, j], y[i, j]
            if j == m:
                delta[i, j] = (error_m - aj * quotients) * scale[i]
            else:
                others = quotients - (aj - yj) / (T(1) - aj)
                delta[i, j] = (aj - yj - aj * others - delta[i, j] / rest * error_m) * scale[i]
        cost[i] = -value
