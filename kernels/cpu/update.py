"""The update in the CPU epoch: whether a gradient is finite, what clips its norm, and the step of a rule."""

import math

from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, SUMS
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
def part(x, start, stop):
    """Return a part of a vector, of size 0 if the vector is not there."""
    return x[start:stop] if x.size else x


@njit(**EXACT)
def decayed(x, beta, rest, added):
    """Return beta x + added, of which rest is 1 - beta: near 1, beta rounded would have lost part of that."""
    if beta > rest:
        return x + (added - rest * x if x < math.inf else added)  # an infinite x stays what it is
    return beta * x + added


@njit(**EXACT)
def change(start, stop, p, g, m, v, decoupled, rule, numbers, rates):
    """Take the step of a rule for parameters start ... stop; rates are eta and the two bias corrections."""
    if rule == NONE:
        return
    T = p.dtype.type
    p, g, m, v = p[start:stop], g[start:stop], part(m, start, stop), part(v, start, stop)
    eta, c1, c2 = T(rates[0]), T(rates[1]), T(rates[2])
    if rule == SGD:
        for i in range(p.size):
            p[i] += -eta * g[i]
    elif rule == MOMENTUM:
        mu, rest = numbers[0], numbers[4]
        for i in range(p.size):
            velocity = decayed(m[i], mu, rest, -eta * g[i])
            m[i] = velocity
            p[i] += velocity
    elif rule == NESTEROV:
        mu, rest = numbers[0], numbers[4]
        for i in range(p.size):
            step = -eta * g[i]
            velocity = decayed(m[i], mu, rest, step)
            m[i] = velocity
            p[i] += step + mu * velocity
    elif rule == RMSPROP:
        rho, epsilon, rest = numbers[0], numbers[1], numbers[4]
        for i in range(p.size):
            square = decayed(v[i], rho, rest, rest * g[i] * g[i])
            v[i] = square
            p[i] -= eta * g[i] / (math.sqrt(square) + epsilon)
    else:
        beta1, beta2, epsilon, rest1, rest2 = numbers[0], numbers[1], numbers[2], numbers[4], numbers[5]
        weight_decay = numbers[3] if decoupled else T(0)
        for i in range(p.size):
            gi, pi = g[i], p[i]
            mean = decayed(m[i], beta1, rest1, rest1 * gi)
            square = decayed(v[i], beta2, rest2, rest2 * gi * gi)
            m[i] = mean
            v[i] = square
            p[i] = pi - eta * (mean * c1 / (math.sqrt(square * c2) + epsilon) + weight_decay * pi)
