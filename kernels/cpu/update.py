"""The update in the CPU epoch: whether a gradient is finite, what clips its norm, and the step of an optimizer."""

import numpy as np
from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, SUMS, address, call
from bpgpu.kernels.cpu.columns import *
from bpgpu.kernels.cpu.softmax import PIECE


@njit(**SUMS)
def finite(x):
    """Return whether no element of a vector is infinite or NaN."""
    s = x.dtype.type(0)
    for i in range(x.size):
        s += x[i] * x.dtype.type(0)
    return s == 0


@njit(**EXACT)
def largest(g, slabs):
    """Return the largest magnitude in the slabs of a vector."""
    most = g.dtype.type(0)
    for i in range(len(slabs)):
        for j in range(slabs[i, 0], slabs[i, 1]):
            most = max(most, abs(g[j]))
    return most


@njit(**EXACT)
def squares(g, unit, slabs):
    """Return the sum of the squares of the slabs of a vector, in units that none of them exceeds."""
    total = 0.0
    for i in range(len(slabs)):
        for start in range(slabs[i, 0], slabs[i, 1], PIECE):
            part = 0.0
            for j in range(start, min(start + PIECE, slabs[i, 1])):
                part += float(g[j] / unit) ** 2
            total += part
    return total


@njit(**EXACT)
def scale(g, factor, slabs):
    """Multiply the slabs of a vector by a factor."""
    for i in range(len(slabs)):
        for j in range(slabs[i, 0], slabs[i, 1]):
            g[j] *= factor


@njit(**EXACT)
def change(start, stop, is_weight, step, data, network):
    """Take a step of the optimizer, if there is one, for parameters start ... stop."""
    if network[RULE]:
        numbers = data[SCHEDULE] + step * network[ROW]
        call(network[RULE], (address(data[P:]), numbers, start, stop - start, np.int64(is_weight)))
