"""The first layer of the CPU epoch where X comes in compressed sparse rows: its product and its weight gradient.

Row r of X has the entries ``indptr[r]`` ... ``indptr[r + 1] - 1``, in columns ``indices``, ascending. Nothing here is
of the size of X made dense; each entry of X meets one contiguous row of W or of its gradient.
"""

from numba import njit

from bpgpu.kernels.numba_cpu_parts import EXACT, integers, matrix
from bpgpu.kernels.numba_cpu_tables import *


@njit(**EXACT)
def compressed(data, like):
    """Return the order of the samples, and X as its indptr, indices and values."""
    indptr = integers(data[INDPTR], data[SAMPLES] + 1)
    entries = indptr[data[SAMPLES]]
    values = matrix(data[X], 1, entries, like)[0]
    return integers(data[ORDER], data[SAMPLES]), indptr, integers(data[INDICES], entries), values


@njit(**EXACT)
def sparse_product(data, start, W, z):
    """Compute z = X W for the samples from `start` on; return the sum of the magnitudes of their entries."""
    T = z.dtype.type
    order, indptr, indices, values = compressed(data, z)
    total = T(0)
    for i in range(z.shape[0]):
        row = order[start + i] if data[ORDER] else start + i
        z_ = z[i]
        for j in range(z_.size):
            z_[j] = T(0)
        for e in range(indptr[row], indptr[row + 1]):
            x, W_ = values[e], W[indices[e]]
            total += abs(x)
            for j in range(z_.size):
                z_[j] += x * W_[j]
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
def sparse_gradient(data, start, k0, k1, delta, dW):
    """Compute rows k0 ... k1 of dW = X^T delta for the samples from `start` on."""
    T = dW.dtype.type
    order, indptr, indices, values = compressed(data, dW)
    for k in range(k0, k1):
        dW_ = dW[k]
        for j in range(dW_.size):
            dW_[j] = T(0)
    for i in range(delta.shape[0]):
        row = order[start + i] if data[ORDER] else start + i
        stop = indptr[row + 1]
        for e in range(first_from(indices, indptr[row], stop, k0), stop):
            if indices[e] >= k1:
                break
            x, delta_, dW_ = values[e], delta[i], dW[indices[e]]
            for j in range(dW_.size):
                dW_[j] += x * delta_[j]


@njit(**EXACT)
def sparse_descent(data, start, k0, k1, delta, dW, W, eta, shrink, seen, met):
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
            if seen[k]:
                for j in range(dW_.size):
                    dW_[j] += x * delta_[j]
            else:
                seen[k], met[last] = 1, k
                last += 1
                for j in range(dW_.size):
                    dW_[j] = x * delta_[j]
    if shrink != 1:
        for k in range(k0, k1):
            W_ = W[k]
            for j in range(W_.size):
                W_[j] *= shrink
    for i in range(k0, last):
        k = met[i]
        W_, dW_ = W[k], dW[k]
        for j in range(W_.size):
            W_[j] -= eta * dW_[j]
        seen[k] = 0
