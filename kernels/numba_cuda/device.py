"""What the Numba-CUDA kernels share: their arguments' types, sums in a fixed order, dropout, the latch.

T is the working type, float32 or float64, and only T is computed in: Numba makes ``float32 * 0.5`` a float64, so a
number is written ``T(0.5)``. Integers are 64 bits wide in arithmetic, whatever they were as arguments. Reductions go
through shared memory and no atomics, so the same launch gives the same bits; there are no operations on warps.
"""

import functools
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from bpgpu.kernels.numba_cuda.library import cuda

THREADS = 256  # of a block, always
LANES = 32  # threads that work on one row
GROUPS = THREADS // LANES  # rows that a block works on at a time
# Control words; what they mean stands in cuda/common.cuh.
LATCH, STEP, CLOSED, EPOCH = 0, 1, 4, 5


@dataclass(frozen=True)
class Kind:
    """What an argument is: its dimensions, 0 for a number, and its dtype, None for T."""

    ndim: int
    dtype: str | None = None


# The types in the kernels' signatures. An array of size 0 stands for one that is not there.
Matrix = Annotated[Any, Kind(2)]
Vector = Annotated[Any, Kind(1)]
Ints = Annotated[Any, Kind(1, "int32")]
Real = Annotated[Any, Kind(0)]
Int = Annotated[Any, Kind(0, "int32")]
Unsigned = Annotated[Any, Kind(0, "uint32")]
Long = Annotated[Any, Kind(0, "int64")]


@cuda.jit(device=True)
def is_finite(x):
    """Return whether x is neither infinite nor NaN."""
    difference = x - x
    return difference == difference


@cuda.jit(device=True)
def latch_unless(all_finite, ctl):
    """Set the latch, if nothing has yet: an atomic maximum, for many threads may."""
    if not all_finite:
        cuda.atomic.max(ctl, LATCH, 1)


# Reductions


@cuda.jit(device=True)
def add(x, y):
    """Return the sum."""
    return x + y


@cuda.jit(device=True)
def larger(x, y):
    """Return the larger of two, x if one is NaN."""
    return y if y > x else x


@cuda.jit(device=True)
def larger_or_bad(x, y):
    """Return the larger of two, or what is not finite."""
    return x if x >= y or not is_finite(x) else y


def reduction(T, width, operation):
    """Return a device function that reduces the x of `width` neighbours, a power of two, and gives it to all of them.

    All threads of the block must call it. Every function that reduces makes its own: if two functions of a kernel
    called the same one, its shared array would be defined twice, which NVVM refuses.
    """

    @cuda.jit(device=True)
    def reduce(x):
        shared = cuda.shared.array(THREADS, T)
        thread = cuda.threadIdx.x
        lane = thread % width
        shared[thread] = x
        cuda.syncthreads()
        step = width // 2
        while step > 0:
            if lane < step:
                shared[thread] = operation(shared[thread], shared[thread + step])
            cuda.syncthreads()
            step //= 2
        result = shared[thread - lane]
        cuda.syncthreads()  # the next reduction may overwrite it
        return result

    return reduce


@cuda.jit(device=True)
def sum_and_rest(total, rest, x):
    """Return a sum with x added, and what its roundings have left out: no number of additions makes it drift."""
    after = total + x
    of_x = after - total
    return after, rest + ((total - (after - of_x)) + (x - of_x))


@cuda.jit(device=True)
def add_to(pairs, i, x):
    """Add x to pair i, of a sum and what its roundings have left out."""
    pairs[2 * i], pairs[2 * i + 1] = sum_and_rest(pairs[2 * i], pairs[2 * i + 1], x)


# Dropout


@cuda.jit(device=True)
def unsigned(x):
    """Return the 32 bits of an int32 as they are."""
    return np.uint32(np.int64(x) & 0xFFFFFFFF)


@cuda.jit(device=True)
def make_dropout(threshold, keep, key0, key1, layer, ctl):
    """Return all that dropout depends on; step and epoch are read only where there is any."""
    step, epoch = np.uint32(0), np.uint32(0)
    if threshold > 0:
        step, epoch = unsigned(ctl[STEP]), unsigned(ctl[EPOCH])
    return threshold, keep, key0, key1, layer, step, epoch


@cuda.jit(device=True)
def philox(block, step, epoch, layer, key0, key1):
    """Return the four words of ``kernels/philox.py`` for the counter (block, step, epoch, layer)."""
    c0, c1, c2, c3, k0, k1 = np.uint32(block), step, epoch, layer, key0, key1
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * np.uint64(c0), np.uint64(0xCD9E8D57) * np.uint64(c2)
        c0, c1 = np.uint32(np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0), np.uint32(p1 & np.uint64(0xFFFFFFFF))
        c2, c3 = np.uint32(np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1), np.uint32(p0 & np.uint64(0xFFFFFFFF))
        k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@functools.cache
def after_dropout(T):
    """Return a device function: element i (row-major in the batch) after dropout."""

    @cuda.jit(device=True)
    def after_dropout(x, i, dropout):
        threshold, keep, key0, key1, layer, step, epoch = dropout
        if threshold == 0:
            return x
        w0, w1, w2, w3 = philox(i >> 2, step, epoch, layer, key0, key1)
        even, odd = (w0, w1) if i & 2 == 0 else (w2, w3)
        return x * keep if (even if i & 1 == 0 else odd) >= threshold else T(0)

    return after_dropout
