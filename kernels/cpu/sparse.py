"""The first layer of the CPU epoch where X comes in compressed sparse rows: its product and its weight gradient.

Row r of X has the entries ``indptr[r]`` ... ``indptr[r + 1] - 1``, in columns ``indices``, ascending. Nothing here is
of the size of X made dense; each entry of X meets one contiguous row of W or of its gradient.
"""

import numpy as np
from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, integers, matrix
from bpgpu.kernels.cpu.columns import *
from bpgpu.kernels.cpu.softmax import plus
from bpgpu.kernels.cpu.sums import block_of


@njit(**EXACT)
def compressed(data, like):
    """Return the order of the samples, and X as its indptr, indices and values."""
    indptr = integers(data[INDPTR], data[SAMPLES] + 1)
    entries = indptr[data[SAMPLES]]
    values = matrix(data[X], 1, entries, like)[0]
    return integers(data[ORDER], data[SAMPLES]), indptr, integers(data[INDICES], entries), values


@njit(**EXACT)
def add_entries(start, stop, indices, values, W, z):
    """Add the product of entries start ... stop of X with W to z; return the sum of their magnitudes."""
    total = z.dtype.type(0)
    for e in range(start, stop):
        x, W_ = values[e], W[indices[e]]
        total += abs(x)
        for j in range(z.size):
            z[j] += x * W_[j]
    return total


@njit(**EXACT)
def add_product(x, delta, sums, lost):
    """Add x delta to sums; `lost`, if there is one, keeps what their roundings have left out."""
    if lost.size:
        for j in range(sums.size):
            sums[j], lost[j] = plus(sums[j], lost[j], x * delta[j])
    else:
        for j in range(sums.size):
            sums[j] += x * delta[j]


@njit(**EXACT)
def sparse_product(data, start, W, z):
    """Compute z = X W for the samples from `start` on; return the sum of the magnitudes of their entries."""
    T = z.dtype.type
    order, indptr, indices, values = compressed(data, z)
    total = T(0)
    for i in range(z.shape[0]):
        row = order[start + i] if data[ORDER] else start + i
        z_ = z[i]
        first, stop = indptr[row], indptr[row + 1]
        block = MANY_TERMS if stop - first <= MANY_TERMS else max(block_of(stop - first), MANY_TERMS // 2)
        for j in range(z_.size):
            z_[j] = T(0)
        total += add_entries(first, min(first + block, stop), indices, values, W, z_)
        if first + block >= stop:
            continue
        part = np.empty(z_.size, z_.dtype)
        for e in range(first + block, stop, block):
            for j in range(z_.size):
                part[j] = T(0)
            total += add_entries(e, min(e + block, stop), indices, values, W, part)
            for j in range(z_.size):
                z_[j] += part[j]
    return total


@njit(**EXACT)
def first_from(indices, start, stop, k):
    """Return where in entries start ... stop of a row the columns from k on begin."""
    while start < stop:
        middle = (start + stop) >> 1
        if indices[middle] < k:
            start = middle + 1
        else:
            stop = middle
    return start


@njit(**EXACT)
def sparse_gradient(data, start, k0, k1, delta, dW, lost):
    """Compute rows k0 ... k1 of dW = X^T delta for the samples from `start` on; for `lost` see `add_product`."""
    T = dW.dtype.type
    order, indptr, indices, values = compressed(data, dW)
    for k in range(k0, k1):
        dW_ = dW[k]
        for j in range(dW_.size):
            dW_[j] = T(0)
    for k in range(k0, k1 if lost.size else k0):
        for j in range(dW.shape[1]):
            lost[k, j] = T(0)
    for i in range(delta.shape[0]):
        row = order[start + i] if data[ORDER] else start + i
        stop = indptr[row + 1]
        for e in range(first_from(indices, indptr[row], stop, k0), stop):
            if indices[e] >= k1:
                break
            k, delta_ = indices[e], delta[i]
            add_product(values[e], delta_, dW[k], lost[k] if lost.size else delta_[:0])


@njit(**EXACT)
def sparse_descent(data, start, k0, k1, delta, dW, W, eta, lost, seen, met):
    """Take SGD's step with rows k0 ... k1 of W; only of columns that the samples have is there a gradient at all.

    `seen` marks the columns that have come up, from 0 and back to 0, and `met` lists them from k0 on.
    """
    order, indptr, indices, values = compressed(data, dW)
    last = k0
    for i in range(delta.shape[0]):
        row = order[start + i] if data[ORDER] else start + i
        stop = indptr[row + 1]
        for e in range(first_from(indices, indptr[row], stop, k0), stop):
            k = indices[e]
            if k >= k1:
                break
            x, delta_, dW_ = values[e], delta[i], dW[k]
            lost_ = lost[k] if lost.size else delta_[:0]
            if seen[k]:
                add_product(x, delta_, dW_, lost_)
            else:
                seen[k], met[last] = 1, k
                last += 1
                for j in range(dW_.size):
                    dW_[j] = x * delta_[j]
                for j in range(lost_.size):
                    lost_[j] = dW.dtype.type(0)
    for i in range(k0, last):
        k = met[i]
        W_, dW_ = W[k], dW[k]
        for j in range(W_.size):
            W_[j] -= eta * dW_[j]
        seen[k] = 0
