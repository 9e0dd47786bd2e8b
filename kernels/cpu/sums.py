"""Long sums on the CPU in two levels: blocks first, then the sums of the blocks.

Terms that are added one after another all get the rounding of the whole sum, and where they are alike they get the same
one: a plain sum of n equal terms may be off by n / 6 roundings. With about sqrt(n) terms in a block, no sum of any
length is off by more than what ``docs/accuracy.md`` promises.
"""

import math

import numpy as np
from numba import njit

from bpgpu.kernels.cpu.addresses import EXACT, vector
from bpgpu.kernels.cpu.softmax import PIECE, dot_of_piece, plus

FEW = 32  # terms of a block at least


@njit(**EXACT)
def block_of(n):
    """Return how many of n terms make a block."""
    return FEW if 4 * n <= FEW * FEW else 2 * int(math.sqrt(n))


@njit(**EXACT)
def accumulate(sums, i, lost, x):
    """Add x to a sum; another entry of the array keeps what its roundings have left out."""
    sums[i], sums[lost] = plus(sums[i], sums[lost], x)


@njit(**EXACT)
def weighted_sum(weight, x):
    """Return the sum of the products of two vectors, in float64."""
    n, total = x.size, 0.0
    if n <= FEW:
        for i in range(n):
            total += weight[i] * x[i]
        return total
    block = block_of(n)
    for start in range(0, n, block):
        part = 0.0
        for i in range(start, min(start + block, n)):
            part += weight[i] * x[i]
        total += part
    return total


@njit(**EXACT)
def sum_of_squares(x):
    """Return the sum of the squares of a vector, in float64."""
    total = 0.0
    for start in range(0, x.size, PIECE):
        piece = x[start : start + PIECE]
        total += dot_of_piece(piece, piece)
    return total


@njit(**EXACT)
def add_rows(x, rows, pitch, out):
    """Add so many rows to `out`; x is the address of the first, and from one to the next are `pitch` bytes."""
    n = out.size
    whole = rows - rows % 4
    for i in range(0, whole, 4):  # four at a time: a row alone may be no longer than a vector
        start = x + i * pitch
        first, second = vector(start, n, out), vector(start + pitch, n, out)
        third, fourth = vector(start + 2 * pitch, n, out), vector(start + 3 * pitch, n, out)
        for j in range(n):
            out[j] += (first[j] + second[j]) + (third[j] + fourth[j])
    for i in range(whole, rows):
        row = vector(x + i * pitch, n, out)
        for j in range(n):
            out[j] += row[j]


@njit(**EXACT)
def column_sums(x, rows, columns, out):
    """Write the sums of the columns of a part of a matrix that has so many columns in all; x is the part's address."""
    n, pitch = out.size, columns * out.itemsize
    for j in range(n):
        out[j] = out.dtype.type(0)
    block = 8 * block_of(rows)  # four rows are one addition
    add_rows(x, min(block, rows), pitch, out)
    if rows <= block:
        return
    part = np.empty(n, out.dtype)
    for start in range(block, rows, block):
        for j in range(n):
            part[j] = out.dtype.type(0)
        add_rows(x + start * pitch, min(block, rows - start), pitch, part)
        for j in range(n):
            out[j] += part[j]
