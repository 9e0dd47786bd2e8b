"""A whole epoch on the CPU as one compiled function, run by every thread at once.

Each thread takes a slab of the batch's rows through gather, forward, output and hidden deltas, which needs no barrier,
and then a slab of every layer's weight rows through gradient and update. One compilation for each dtype serves every
network: what varies comes in tables of integers, the formulas and BLAS as addresses.

T is the working type. Integers are int64 and sizes of arrays in bytes where they are added to an address.
"""

import math

import numpy as np
from numba import njit, types
from numba.np.numpy_support import from_dtype

from bpgpu.kernels import numba_cpu_cache as cache
from bpgpu.kernels.numba_cpu_parts import EXACT, SUMS, address, barrier, blas_gemm, call, integers, matrix
from bpgpu.kernels.numba_cpu_softmax import (
    dot,
    softmax,
    softmax_binary_cross_entropy,
    softmax_cross_entropy,
    softmax_delta,
)
from bpgpu.kernels.numba_cpu_tables import *
from bpgpu.kernels.numba_cpu_update import change, clip, finite

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1, _W0, _W1 = (np.uint64(x) for x in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))


@njit(**EXACT)
def gemm(function, trans_a, trans_b, alpha, a, lda, b, ldb, beta, c, ldc, m, n, k, like):
    """Compute C = alpha op(A) op(B) + beta C at addresses, rows being contiguous."""
    if m * n * k > SMALL_PRODUCT:
        blas_gemm(function, trans_b, trans_a, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc)
        return
    # The call alone would take longer.
    A_ = matrix(a, k if trans_a else m, lda, like)
    B_ = matrix(b, n if trans_b else k, ldb, like)
    C_ = matrix(c, m, ldc, like)
    for i in range(m):
        for j in range(n):
            s = like.dtype.type(0)
            for l in range(k):
                s += (A_[l, i] if trans_a else A_[i, l]) * (B_[j, l] if trans_b else B_[l, j])
            s *= alpha
            C_[i, j] = s if beta == 0 else s + beta * C_[i, j]


@njit(**SUMS)
def magnitudes(x):
    """Return the sum of all magnitudes of a vector: finite only if all are."""
    s = x.dtype.type(0)
    for i in range(x.size):
        s += abs(x[i])
    return s


@njit(**EXACT)
def philox(block, step, epoch, layer, k0, k1):
    """Return the four words of ``kernels/philox.py`` for the counter (block, step, epoch, layer)."""
    c0, c1, c2, c3 = np.uint64(block), np.uint64(step), np.uint64(epoch), np.uint64(layer)
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(**EXACT)
def dropout(x, out, start, network, keep, step, number, layer):
    """Drop elements of the vector x, of which the first is element `start` of the batch."""
    threshold = np.uint64(network[THRESHOLD])
    k0, k1 = np.uint64(network[KEY0]), np.uint64(network[KEY1])
    for block in range(start >> 2, (start + x.size + 3) >> 2):
        words = philox(block, step, number, layer, k0, k1)
        for k in range(4):
            i = 4 * block + k - start
            if 0 <= i < x.size:
                out[i] = x[i] * keep if words[k] >= threshold else x.dtype.type(0)


# The two halves of a step


@njit(**EXACT)
def load(data, start, rows, r0, r1, p, layers, network):
    """Take rows r0 ... r1 of the batch; return the address of their input and the weight of the batch."""
    T = p.dtype.type
    n, K, samples = layers[0, SIZE], layers[-1, SIZE], data[SAMPLES]
    X_, x = matrix(data[X], samples, n, p), matrix(layers[0, A], rows, n, p)
    targets, y = matrix(data[TARGETS], samples, K, p), matrix(network[Y], rows, K, p)
    weight, scale = matrix(data[WEIGHT], 1, samples, p)[0], matrix(network[SCALE], 1, rows, p)[0]
    order, labels = integers(data[ORDER], samples), integers(data[LABELS], samples)
    sum_weight = float(rows)
    if data[WEIGHT]:
        sum_weight = 0.0
        for i in range(start, start + rows):
            sum_weight += weight[order[i] if data[ORDER] else i]
    for i in range(r0, r1):
        row = order[start + i] if data[ORDER] else start + i
        # Loops, for assignments of slices take seconds to compile.
        if data[ORDER]:
            for j in range(n):
                x[i, j] = X_[row, j]
        if data[LABELS]:
            for j in range(K):
                y[i, j] = T(0)
            y[i, labels[row]] = T(1)
        else:
            for j in range(K):
                y[i, j] = targets[row, j]
        if data[WEIGHT]:  # a batch may draw rows of weight 0 only
            scale[i] = T(weight[row] / sum_weight) if sum_weight > 0 else T(0)
        else:
            scale[i] = T(1 / rows)
    return layers[0, A] if data[ORDER] else data[X] + start * n * p.itemsize, sum_weight


@njit(**EXACT)
def forward_and_back(thread, r0, r1, p, x, step, number, layers, network, numbers, sums, shares):
    """Take rows r0 ... r1 of the batch, with their input at x, to the costs and deltas of all layers."""
    T = p.dtype.type
    size, L, rows = p.itemsize, len(layers) - 1, r1 - r0
    weights = address(p)
    factor = address(numbers[FACTOR:])
    source, n_in = x + r0 * layers[0, SIZE] * size, layers[0, SIZE]
    sums[thread, 0, SUM_A] = magnitudes(matrix(source, 1, rows * n_in, p)[0])
    for l in range(1, L + 1):
        n = layers[l, SIZE]
        at = r0 * n * size
        a = layers[l, A] + at
        z = layers[l, Z] + at if layers[l, Z] else a
        b = weights + layers[l, B] * size if layers[l, B] >= 0 else network[ZEROS]
        gemm(network[GEMM], 0, 0, T(1), source, n_in, weights + layers[l, W] * size, n, T(0), z, n, rows, n, n_in, p)
        z_, a_, b_ = matrix(z, rows, n, p), matrix(a, rows, n, p), matrix(b, 1, n, p)[0]
        if layers[l, ACTIVATE]:
            call(layers[l, ACTIVATE], (z, b, a, rows, n, address(sums[thread, l])))
        elif l < L or network[OUTPUT] == SOFTMAX:
            softmax(z_, b_, a_)
            sums[thread, l, SUM_A] = T(rows)
        if l < L:
            source, n_in = layers[l, H] + at, n
            if numbers[KEEP]:
                flat = matrix(a, 1, rows * n, p)[0]
                dropout(flat, matrix(source, 1, rows * n, p)[0], r0 * n, network, numbers[KEEP], step, number, l)
                sums[thread, l, SUM_A] *= numbers[KEEP]
    y, scale = network[Y] + at, network[SCALE] + r0 * size
    delta, cost = layers[L, DELTA] + at, network[ROW_COST] + r0 * size
    y_, delta_ = matrix(y, rows, n, p), matrix(delta, rows, n, p)
    scale_, cost_ = matrix(scale, 1, rows, p)[0], matrix(cost, 1, rows, p)[0]
    sum_delta = address(sums[thread, L, SUM_DELTA:])
    if network[OUTPUT] == SOFTMAX_CROSS_ENTROPY:
        softmax_cross_entropy(z_, b_, a_, y_, delta_, scale_, cost_)
    elif network[OUTPUT] == SOFTMAX_BINARY_CROSS_ENTROPY:
        softmax_binary_cross_entropy(z_, b_, a_, y_, delta_, scale_, cost_)
    elif network[OUTPUT] == SOFTMAX:
        call(network[COST], (z, a, y, delta, scale, cost, rows, n, factor, sum_delta))
        softmax_delta(delta_, a_)
    else:
        call(network[COST], (z, a, y, delta, scale, cost, rows, n, factor, sum_delta))
        if layers[L, DERIVE]:
            call(layers[L, DERIVE], (delta, z, a, rows * n, sum_delta))
    if network[OUTPUT] != ELEMENTWISE:
        sums[thread, L, SUM_DELTA] = magnitudes(matrix(delta, 1, rows * n, p)[0])
    C = 0.0
    for i in range(rows):
        C += scale_[i] * cost_[i]
    shares[thread, COST_SHARE] = C
    for l in range(L - 1, 0, -1):
        n, n_out = layers[l, SIZE], layers[l + 1, SIZE]
        at = r0 * n * size
        a, source, delta = layers[l, A] + at, delta, layers[l, DELTA] + at
        z = layers[l, Z] + at if layers[l, Z] else a
        W_next = weights + layers[l + 1, W] * size
        gemm(network[GEMM], 0, 1, T(1), source, n_out, W_next, n_out, T(0), delta, n, rows, n, n_out, p)
        flat = matrix(delta, 1, rows * n, p)[0]
        if numbers[KEEP]:
            dropout(flat, flat, r0 * n, network, numbers[KEEP], step, number, l)
        sum_delta = address(sums[thread, l, SUM_DELTA:])
        if layers[l, DERIVE]:
            call(layers[l, DERIVE], (delta, z, a, rows * n, sum_delta))
        else:
            if not layers[l, ACTIVATE]:
                softmax_delta(matrix(delta, rows, n, p), matrix(a, rows, n, p))
            sums[thread, l, SUM_DELTA] = magnitudes(flat)


@njit(**EXACT)
def column_sums(x, rows, columns, out):
    """Write the sums of the columns of a part of a matrix that has so many columns in all; x is the part's address."""
    n, pitch = out.size, columns * out.itemsize
    for j in range(n):
        out[j] = out.dtype.type(0)
    whole = rows - rows % 4
    for i in range(0, whole, 4):  # four at a time: a row alone may be no longer than a vector
        start = x + i * pitch
        first, second = matrix(start, 1, n, out)[0], matrix(start + pitch, 1, n, out)[0]
        third, fourth = matrix(start + 2 * pitch, 1, n, out)[0], matrix(start + 3 * pitch, 1, n, out)[0]
        for j in range(n):
            out[j] += (first[j] + second[j]) + (third[j] + fourth[j])
    for i in range(whole, rows):
        row = matrix(x + i * pitch, 1, n, out)[0]
        for j in range(n):
            out[j] += row[j]


@njit(**EXACT)
def gradient(l, k0, k1, rows, x, decay, direct, eta, p, g, layers, network):
    """Compute rows k0 ... k1 of a layer's weight gradient; or, `direct`, take SGD's step with them in the same GEMM."""
    T = p.dtype.type
    size, n_in, n = p.itemsize, layers[l - 1, SIZE], layers[l, SIZE]
    source = (x if l == 1 else layers[l - 1, H]) + k0 * size
    start, stop = layers[l, W] + k0 * n, layers[l, W] + k1 * n
    target = address(p if direct else g) + start * size
    alpha, beta = (-eta, T(1) - eta * decay) if direct else (T(1), T(0))
    gemm(network[GEMM], 1, 0, alpha, source, n_in, layers[l, DELTA], n, beta, target, n, k1 - k0, n, rows, p)
    if direct:
        return
    g_, p_ = g[start:stop], p[start:stop]
    if decay:
        for i in range(g_.size):
            g_[i] += decay * p_[i]
    if layers[l, MASK]:
        mask = matrix(layers[l, MASK] + k0 * n * size, 1, g_.size, p)[0]
        for i in range(g_.size):
            g_[i] *= mask[i]


@njit(**EXACT)
def proven_finite(layers, sums):
    """Return whether no gradient can overflow: |sum_i a_ik delta_ij| is at most the product of all magnitudes."""
    T = sums.dtype.type
    for l in range(1, len(layers)):
        a, delta = T(0), T(0)
        for thread in range(len(sums)):
            a += sums[thread, l - 1, SUM_A]
            delta += sums[thread, l, SUM_DELTA]
        bound = (a + T(1)) * delta * T(4)
        if bound - bound != 0:  # infinite or NaN
            return False
    return True


def epoch(
    thread, threads, first, last, data, p, g, m, v, schedule, layers, network, numbers, sums, shares, slabs,
    counter, result,
):  # fmt: skip
    """Train steps first ... last of an epoch; the first step that has a fault ends it, without its update.

    Parameters
    ----------
    thread, threads, first, last : int
    p, g, m, v : array, shape (n_parameters,)
        Parameters, gradients and the rule's state; state that there is not has size 0.
    schedule : array of float64, shape (steps, 3 or more)
        eta and Adam's bias corrections.
    data, layers, network, numbers : array
        The tables above; numbers in T.
    sums : array, shape (threads, L + 1, 2)
    shares : array of float64, shape (threads, 8)
    slabs : array of int64, shape (threads, 2 L, 2)
        What each thread computes of p: rows of W_1 ... W_L, then entries of b_1 ... b_L.
    counter : address of an int64
        0 before the call.
    result : array of float64
        Receives the sums of costs and weights of the batches, and step + 1 of a fault.
    """
    T = p.dtype.type
    L = len(layers) - 1
    passed = 0
    mine = slabs[thread]
    n_weights = mine[L - 1, 1]  # if there is one thread
    together = threads == 1 and p.size <= SMALL_NETWORK
    for step in range(first, last):
        start = step * network[BATCH]
        rows = min(network[BATCH], data[SAMPLES] - start)
        r0, r1 = rows * thread // threads, rows * (thread + 1) // threads
        x, weight = load(data, start, rows, r0, r1, p, layers, network)
        forward_and_back(thread, r0, r1, p, x, step, data[EPOCH], layers, network, numbers, sums, shares)
        count = weight if network[BY_WEIGHT] else float(rows)
        decay = numbers[L2] / T(count) if count > 0 else T(0)
        if decay:
            penalty = 0.0
            for i in range(L):
                penalty += dot(p[mine[i, 0] : mine[i, 1]], p[mine[i, 0] : mine[i, 1]])
            shares[thread, PENALTY_SHARE] = penalty
        passed = barrier(counter, threads, passed, network[GIVE_WAY])
        if passed < 0:  # a thread could not be started: nothing has been changed
            return
        C, penalty = 0.0, 0.0
        for other in range(threads):
            C += shares[other, COST_SHARE]
            penalty += shares[other, PENALTY_SHARE]
        if decay:
            C += float(decay) / 2 * float(T(penalty))
        good = math.isfinite(T(C))
        at_once = good and numbers[CLIP] == 0 and proven_finite(layers, sums)
        direct = at_once and network[RULE] == SGD and not network[MASKED]
        rates = schedule[step]
        eta = T(rates[0])
        bad = not good
        for i in range(2 * L):
            s0, s1 = mine[i, 0], mine[i, 1]
            if i < L:
                l, columns = i + 1, layers[i + 1, SIZE]
                k0, k1 = (s0 - layers[l, W]) // columns, (s1 - layers[l, W]) // columns
                gradient(l, k0, k1, rows, x, decay, direct, eta, p, g, layers, network)
            else:
                l, columns = i - L + 1, layers[i - L + 1, SIZE]
                column_sums(layers[l, DELTA] + (s0 - layers[l, B]) * p.itemsize, rows, columns, g[s0:s1])
            if not at_once:
                bad = bad or not finite(g[s0:s1])
            elif not together and (not direct or i >= L):
                change(s0, s1, p, g, m, v, network[RULE] == ADAMW and i < L, network[RULE], numbers, rates)
        if not at_once:
            shares[thread, BAD_SHARE] = bad
            passed = barrier(counter, threads, passed, network[GIVE_WAY])
            for other in range(threads):
                bad = bad or shares[other, BAD_SHARE] != 0
            if bad:
                if thread == 0:
                    result[FAULT] = step + 1
                return
            if numbers[CLIP]:
                passed = clip(thread, threads, passed, counter, g, numbers, network, shares, mine)
            for i in range(2 * L):
                decoupled = network[RULE] == ADAMW and i < L
                change(mine[i, 0], mine[i, 1], p, g, m, v, decoupled, network[RULE], numbers, rates)
        elif together:
            if not direct:
                change(0, n_weights, p, g, m, v, network[RULE] == ADAMW, network[RULE], numbers, rates)
            change(n_weights, p.size, p, g, m, v, False, network[RULE], numbers, rates)
        if thread == 0:
            share = float(rows) if network[BY_WEIGHT] else weight
            result[TOTAL_COST] += share * C
            result[TOTAL_WEIGHT] += share
        passed = barrier(counter, threads, passed, network[GIVE_WAY])


def signature(dtype):
    """Return the types of the parameters of `epoch`."""
    T = types.Array(from_dtype(np.dtype(dtype)), 1, "C")
    number, integers = types.int64, types.Array(types.int64, 1, "C")
    tables = types.Array(types.int64, 2, "C")
    real, sums = types.Array(types.float64, 1, "C"), T.copy(ndim=3)
    pairs = real.copy(ndim=2)
    slabs = tables.copy(ndim=3)
    return (number,) * 4 + (
        integers, T, T, T, T, pairs, tables, integers, T, sums, pairs, slabs, number, real,
    )  # fmt: skip


# Numba's cache goes by the file in which a function says that it stands.
_KEPT = """
from types import FunctionType

from bpgpu.kernels import numba_cpu
from numba import njit

_code = numba_cpu.epoch.__code__.replace(co_filename=__file__)
_function = FunctionType(_code, vars(numba_cpu), "epoch")
epoch = njit(numba_cpu.signature("{dtype}"), cache=True, **numba_cpu.EXACT)(_function)
"""


def epoch_source(dtype):
    """Return source that compiles `epoch` for a dtype when it is loaded."""
    heading = cache.heading("its epoch")
    return heading + _KEPT.format(dtype=dtype.name)


def compiled_epoch(dtype):
    """Compile `epoch` for a dtype, or load it from the cache."""
    return cache.load(epoch_source(dtype)).epoch
