"""Long sums of the reference in levels: blocks of terms, then the sums of the blocks.

Terms that are added one after another all get the rounding of the whole sum, and where they are alike they get the same
one: a plain sum of n equal terms may be off by n / 6 roundings. With about sqrt(n) terms in a block, no sum of any
length is off by more than what ``docs/accuracy.md`` promises.
"""

import math
from typing import Any

import numpy as np

from bpgpu import forks
from bpgpu.interop import is_sparse

Array = Any
FEW = 32  # terms of a block at least
# From where on a product of more terms for at most so many sums goes in blocks: BLAS has blocks of its own in others.
MANY_TERMS, FEW_SUMS = 256, 2**14


def block_of(n: int) -> int:
    """Return how many of n terms make a block."""
    return max(FEW, 2 * math.isqrt(n))


def blocks_of(n: int, at_least: int = FEW) -> list[slice]:
    """Return the blocks of n terms."""
    block = max(block_of(n), at_least)
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


def in_blocks(terms: int, sums: int) -> bool:
    """Return whether a product of so many terms for so many sums goes in blocks."""
    return terms > MANY_TERMS and sums <= FEW_SUMS


def dot(xp: Any, x: Array, y: Array) -> float:
    """Return the sum of the products of two vectors."""
    return total(xp, x * y)


def total(xp: Any, x: Array) -> float:
    """Return the sum of a vector, which NumPy takes in pairs; in float64 at least."""
    return float(xp.sum(x, dtype=np.promote_types(x.dtype, np.float64)))


def column_sums(xp: Any, x: Array, *, out: Array) -> None:
    """Write the sums of the columns of a matrix; NumPy's own adds up one row after another."""
    while len(x) > FEW:
        whole = len(x) - len(x) % FEW
        parts = x[:whole].reshape(-1, FEW, x.shape[1]).sum(axis=1)
        x = parts if whole == len(x) else xp.concatenate([parts, x[whole:].sum(axis=0, keepdims=True)])
    xp.sum(x, axis=0, out=out)


def product(xp: Any, x: Array, y: Array, *, out: Array) -> Array:
    """Compute x y, of which x may be sparse."""
    terms = x.shape[1]
    with forks.in_blas():
        if is_sparse(x):
            out[...] = _sparse_product(x, y)
        elif in_blocks(terms, out.size):
            out[...] = 0
            for block in blocks_of(terms, MANY_TERMS // 2):
                out += x[:, block] @ y[block]
        else:
            xp.matmul(x, y, out=out)
    return out


def _sparse_product(x: Array, y: Array) -> Array:
    """Return x y; SciPy adds up the entries of a row one after another, so long rows are cut into blocks."""
    if x.shape[1] <= FEW:
        return x @ y
    x = x.tocsr()
    lengths = np.diff(x.indptr)
    block = block_of(int(lengths.max(initial=0)))
    pieces = -(-lengths // block)
    if pieces.max(initial=0) <= 1:
        return x @ y
    first = np.cumsum(pieces) - pieces  # of each row
    piece = np.arange(pieces.sum()) - np.repeat(first, pieces)
    starts = np.repeat(x.indptr[:-1], pieces) + block * piece
    indptr = np.append(starts, x.indptr[-1]).astype(x.indptr.dtype)
    parts = type(x)((x.data, x.indices, indptr), shape=(len(starts), x.shape[1])) @ y
    ones = (np.ones(len(starts), y.dtype), np.arange(len(starts)), np.append(first, len(starts)))
    return type(x)(ones, shape=(x.shape[0], len(starts))) @ parts
