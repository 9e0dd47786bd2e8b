"""Softmax on the CPU, row by row, with the costs that are computed together with it."""

import math

from numba import njit

from bpgpu.kernels.numba_cpu_math import exp
from bpgpu.kernels.numba_cpu_parts import EXACT, SUMS, address, matrix


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
def total(x):
    """Return the sum of a vector."""
    s = x.dtype.type(0)
    for j in range(x.size):
        s += x[j]
    return s


@njit(**SUMS)
def dot(x, y):
    """Return the sum of products of two rows."""
    s = x.dtype.type(0)
    for j in range(x.size):
        s += x[j] * y[j]
    return s


@njit(**EXACT)
def softmax(z, b, a):
    """Compute z + b into z and its softmax into a, row by row."""
    exponentials(z, b, a, b[:0])
    for i in range(z.shape[0]):
        inverse = z.dtype.type(1) / total(a[i])
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
def times_logarithm(y, log_a):
    """Return y log a, 0 where y is 0 even if the logarithm is -infinity."""
    return y * log_a if y != 0 else y


@njit(**EXACT)
def softmax_cross_entropy(z, b, a, y, delta, scale, cost):
    """Compute softmax, -sum_k y_k log a_k and delta; sum_k y_k is 1 for probabilities."""
    T = z.dtype.type
    exponentials(z, b, a, cost)
    for i in range(z.shape[0]):
        sum_a, sum_y, value = total(a[i]), total(y[i]), T(0)
        largest, log_total, inverse = cost[i], math.log(sum_a), T(1) / sum_a
        for j in range(z.shape[1]):
            if y[i, j] != 0:
                value -= y[i, j] * (z[i, j] - largest - log_total)
            aj = a[i, j] * inverse
            a[i, j] = aj
            delta[i, j] = (sum_y * aj - y[i, j]) * scale[i]
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
        rest = T(0)
        for j in range(n):
            if j != m:
                delta[i, j] = exp(z[i, j] - top)
                rest += delta[i, j]
        largest = z[i, m]
        gap = exp(top - largest)
        odds = gap * rest
        log_total = math.log1p(odds)
        log_others = top - largest + math.log(rest) - log_total  # log(1 - a_m)
        a[i, m] = T(1) / (T(1) + odds)
        error_m, quotients = a[i, m] - y[i, m], T(0)
        value = times_logarithm(y[i, m], -log_total) + times_logarithm(T(1) - y[i, m], log_others)
        for j in range(n):
            if j != m:
                aj, yj = delta[i, j] * gap / (T(1) + odds), y[i, j]
                a[i, j] = aj
                quotients += (aj - yj) / (T(1) - aj)
                value += times_logarithm(yj, z[i, j] - largest - log_total)
                value += times_logarithm(T(1) - yj, math.log1p(-aj))
        for j in range(n):
            aj, yj = a[i, j], y[i, j]
            if j == m:
                delta[i, j] = (aj - yj - aj * quotients) * scale[i]
            else:
                others = quotients - (aj - yj) / (T(1) - aj)
                delta[i, j] = (aj - yj - aj * others - delta[i, j] / rest * error_m) * scale[i]
        cost[i] = -value
