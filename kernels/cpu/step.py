"""A step of the CPU epoch in two halves, each on a part of its data: rows of the batch, then rows of the weights.

T is the working type. Integers are int64 and sizes of arrays in bytes where they are added to an address.
"""

import numpy as np
from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, SUMS, address, blas_gemm, call, integers, matrix, vector
from bpgpu.kernels.cpu.columns import *
from bpgpu.kernels.cpu.softmax import (
    complements,
    softmax,
    softmax_binary_cross_entropy,
    softmax_cost_delta,
    softmax_cross_entropy,
    softmax_delta,
)
from bpgpu.kernels.cpu.sparse import sparse_descent, sparse_gradient, sparse_product
from bpgpu.kernels.cpu.sums import block_of, weighted_sum

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1, _W0, _W1 = (np.uint64(x) for x in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))


@njit(**EXACT)
def gemm(function, trans_a, trans_b, alpha, a, lda, b, ldb, beta, c, ldc, m, n, k, like):
    """Compute C = alpha op(A) op(B) + beta C at addresses, rows being contiguous.

    A sum of many terms for few elements goes in blocks, because BLAS adds them all up one after another.
    """
    if m * n * k > SMALL_PRODUCT or k > MANY_TERMS:
        size = like.itemsize
        block = max(block_of(k), MANY_TERMS // 2) if k > MANY_TERMS and m * n <= FEW_SUMS else k
        for start in range(0, k, block):
            a_, b_ = a + start * size * (lda if trans_a else 1), b + start * size * (1 if trans_b else ldb)
            terms = min(block, k - start)
            blas_gemm(function, trans_b, trans_a, n, m, terms, alpha, b_, ldb, a_, lda, beta, c, ldc)
            beta = like.dtype.type(1)
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
def dense_input(data, start, like, layers):
    """Return the address of the batch's input, where X is dense: in the plan if it was gathered."""
    return layers[0, A] if data[ORDER] else data[X] + start * layers[0, SIZE] * like.itemsize


@njit(**EXACT)
def load(data, start, rows, r0, r1, p, layers, network):
    """Take rows r0 ... r1 of the batch; return the address of the batch's dense input and the weight of the batch."""
    T = p.dtype.type
    n, K, samples = layers[0, SIZE], layers[-1, SIZE], data[SAMPLES]
    X_, x = matrix(data[X], samples, n, p), matrix(layers[0, A], rows, n, p)
    targets, y = matrix(data[TARGETS], samples, K, p), matrix(network[Y], rows, K, p)
    weight, scale = vector(data[WEIGHT], samples, p), vector(network[SCALE], rows, p)
    order, labels = integers(data[ORDER], samples), integers(data[LABELS], samples)
    sum_weight = float(rows)
    if data[WEIGHT]:
        sum_weight, block = 0.0, block_of(rows)
        for first in range(start, start + rows, block):
            share = 0.0
            for i in range(first, min(first + block, start + rows)):
                share += weight[order[i] if data[ORDER] else i]
            sum_weight += share
    for i in range(r0, r1):
        row = order[start + i] if data[ORDER] else start + i
        # Loops, for assignments of slices take seconds to compile.
        if data[ORDER] and not data[INDPTR]:
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
    return dense_input(data, start, p, layers), sum_weight


@njit(**EXACT)
def forward_and_back(part, start, r0, r1, p, x, step, data, layers, network, numbers, sums, shares):
    """Take rows r0 ... r1 of the batch, with a dense input at x, to the costs and deltas of all layers."""
    T = p.dtype.type
    size, L, rows = p.itemsize, len(layers) - 1, r1 - r0
    weights = address(p)
    factor = address(numbers[FACTOR:])
    source, n_in = x + r0 * layers[0, SIZE] * size, layers[0, SIZE]
    if not data[INDPTR]:
        sums[part, 0, SUM_A] = magnitudes(vector(source, rows * n_in, p))
    for l in range(1, L + 1):
        n = layers[l, SIZE]
        at = r0 * n * size
        a = layers[l, A] + at
        z = layers[l, Z] + at if layers[l, Z] else a
        b = weights + layers[l, B] * size if layers[l, B] >= 0 else network[ZEROS]
        z_, a_, b_ = matrix(z, rows, n, p), matrix(a, rows, n, p), vector(b, n, p)
        W_ = weights + layers[l, W] * size
        if l == 1 and data[INDPTR]:
            sums[part, 0, SUM_A] = sparse_product(data, start + r0, matrix(W_, n_in, n, p), z_)
        else:
            gemm(network[GEMM], 0, 0, T(1), source, n_in, W_, n, T(0), z, n, rows, n, n_in, p)
        if layers[l, ACTIVATE]:
            call(layers[l, ACTIVATE], (z, b, a, rows, n, address(sums[part, l])))
        elif l < L or network[OUTPUT] == SOFTMAX:
            softmax(z_, b_, a_)
            sums[part, l, SUM_A] = T(rows)
        if l < L:
            source, n_in = layers[l, H] + at, n
            if numbers[KEEP]:
                flat = vector(a, rows * n, p)
                dropout(flat, vector(source, rows * n, p), r0 * n, network, numbers[KEEP], step, data[EPOCH], l)
                sums[part, l, SUM_A] *= numbers[KEEP]
    y, scale = network[Y] + at, network[SCALE] + r0 * size
    delta, cost = layers[L, DELTA] + at, network[ROW_COST] + r0 * size
    y_, delta_ = matrix(y, rows, n, p), matrix(delta, rows, n, p)
    scale_, cost_ = vector(scale, rows, p), vector(cost, rows, p)
    sum_delta = address(sums[part, L, SUM_DELTA:])
    if network[OUTPUT] == SOFTMAX_CROSS_ENTROPY:
        softmax_cross_entropy(z_, b_, a_, y_, delta_, scale_, cost_)
    elif network[OUTPUT] == SOFTMAX_BINARY_CROSS_ENTROPY:
        softmax_binary_cross_entropy(z_, b_, a_, y_, delta_, scale_, cost_)
    elif network[OUTPUT] == SOFTMAX:
        complements(a_, delta_)
        call(network[COST], (delta, a, y, delta, scale, cost, rows, n, factor, sum_delta))
        softmax_cost_delta(delta_, a_)
    else:
        call(network[COST], (z, a, y, delta, scale, cost, rows, n, factor, sum_delta))
        if layers[L, DERIVE]:
            call(layers[L, DERIVE], (delta, z, a, rows * n, sum_delta))
    for i in range(rows):
        if cost_[i] > numbers[LARGEST_COST]:
            cost_[i] = numbers[LARGEST_COST]
    if network[OUTPUT] != ELEMENTWISE:
        sums[part, L, SUM_DELTA] = magnitudes(vector(delta, rows * n, p))
    shares[part, COST_SHARE] = weighted_sum(scale_, cost_)
    for l in range(L - 1, 0, -1):
        n, n_out = layers[l, SIZE], layers[l + 1, SIZE]
        at = r0 * n * size
        a, source, delta = layers[l, A] + at, delta, layers[l, DELTA] + at
        z = layers[l, Z] + at if layers[l, Z] else a
        W_next = weights + layers[l + 1, W] * size
        gemm(network[GEMM], 0, 1, T(1), source, n_out, W_next, n_out, T(0), delta, n, rows, n, n_out, p)
        flat = vector(delta, rows * n, p)
        if numbers[KEEP]:
            dropout(flat, flat, r0 * n, network, numbers[KEEP], step, data[EPOCH], l)
        sum_delta = address(sums[part, l, SUM_DELTA:])
        if layers[l, DERIVE]:
            call(layers[l, DERIVE], (delta, z, a, rows * n, sum_delta))
        else:
            if not layers[l, ACTIVATE]:
                softmax_delta(matrix(delta, rows, n, p), matrix(a, rows, n, p))
            sums[part, l, SUM_DELTA] = magnitudes(flat)


@njit(**EXACT)
def gradient(l, k0, k1, begin, rows, x, decay, direct, eta, p, g, data, layers, network):
    """Compute rows k0 ... k1 of a layer's weight gradient; or, `direct`, take SGD's step with them in the same GEMM.

    That is for networks without a penalty. With one the GEMM's beta would be 1 - eta decay, which the rounding takes
    from a small decay altogether.
    """
    T = p.dtype.type
    size, n_in, n = p.itemsize, layers[l - 1, SIZE], layers[l, SIZE]
    source = (x if l == 1 else layers[l - 1, H]) + k0 * size
    start, stop = layers[l, W] + k0 * n, layers[l, W] + k1 * n
    target = address(p if direct else g) + start * size
    alpha, beta = (-eta, T(1)) if direct else (T(1), T(0))
    if l == 1 and data[INDPTR]:
        delta, dW = matrix(layers[l, DELTA], rows, n, p), matrix(address(g), n_in, n, p)  # W_1 is the first in p and g
        lost = matrix(network[LOST], n_in if network[LOST] else 0, n, p)
        if direct:
            seen, met = integers(network[SEEN], n_in), integers(network[MET], n_in)
            sparse_descent(data, begin, k0, k1, delta, dW, matrix(address(p), n_in, n, p), eta, lost, seen, met)
        else:
            sparse_gradient(data, begin, k0, k1, delta, dW, lost)
    else:
        gemm(network[GEMM], 1, 0, alpha, source, n_in, layers[l, DELTA], n, beta, target, n, k1 - k0, n, rows, p)
    if direct:
        return
    g_, p_ = g[start:stop], p[start:stop]
    if decay:
        for i in range(g_.size):
            g_[i] += decay * p_[i]
    if layers[l, MASK]:
        mask = vector(layers[l, MASK] + k0 * n * size, g_.size, p)
        for i in range(g_.size):
            g_[i] *= mask[i]
