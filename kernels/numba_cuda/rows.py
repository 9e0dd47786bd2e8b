"""The Numba-CUDA kernels that work row by row: softmax, dropout, gather; the output layer is in `output`.

What they compute, read and write stands in the CUDA C++ files of their names in ``cuda/``. 32 threads work on a row, 8
rows are in a block at a time; each element is written and read by one thread only. Where a row is reduced, all
threads of the block must come along, so those without a row have one of no elements (``stop = 0``).
"""

from bpgpu.kernels.numba_cuda.device import (
    CLOSED,
    GROUPS,
    LANES,
    LATCH,
    STEP,
    Int,
    Ints,
    Matrix,
    Real,
    Unsigned,
    Vector,
    add,
    after_dropout,
    is_finite,
    larger,
    latch_unless,
    make_dropout,
    reduction,
)
from bpgpu.kernels.numba_cuda.library import cuda, math


def bias_softmax(T):
    """Make the kernel: bias and softmax behind a product."""
    row_sum, row_max, dropped = reduction(T, LANES, add), reduction(T, LANES, larger), after_dropout(T)

    def bias_softmax(
        a: Matrix, h: Matrix, z: Matrix, b: Vector, rows: Int, n: Int,
        threshold: Unsigned, keep: Real, key0: Unsigned, key1: Unsigned, layer: Unsigned, ctl: Ints,
    ):  # fmt: skip
        dropout = make_dropout(threshold, keep, key0, key1, layer, ctl)
        lane = cuda.threadIdx.x % LANES
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            largest = T(-math.inf)
            for j in range(lane, stop, LANES):
                v = a[row, j]
                if b.size > 0:
                    v += b[j]
                if z.size > 0:
                    z[row, j] = v
                a[row, j] = v
                largest = larger(largest, v)
            largest = row_max(largest)
            total = T(0)
            for j in range(lane, stop, LANES):
                v = math.exp(a[row, j] - largest)
                a[row, j] = v
                total += v
            total = row_sum(total)
            for j in range(lane, stop, LANES):
                v = a[row, j] / total
                a[row, j] = v
                if h.size > 0:
                    h[row, j] = dropped(v, row * n + j, dropout)

    return bias_softmax


def hidden_softmax(T):
    """Make the kernel: delta_i = a_i (d_i - sum_k d_k a_k), d the product after dropout."""
    row_sum, dropped = reduction(T, LANES, add), after_dropout(T)

    def hidden_softmax(
        delta: Matrix, a: Matrix, z: Matrix, rows: Int, n: Int,
        threshold: Unsigned, keep: Real, key0: Unsigned, key1: Unsigned, layer: Unsigned, ctl: Ints,
    ):  # fmt: skip
        dropout = make_dropout(threshold, keep, key0, key1, layer, ctl)
        lane = cuda.threadIdx.x % LANES
        all_finite = True
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            total = T(0)
            for j in range(lane, stop, LANES):
                da = dropped(delta[row, j], row * n + j, dropout) * a[row, j]
                delta[row, j] = da
                total += da
            total = row_sum(total)
            for j in range(lane, stop, LANES):
                di = delta[row, j] - a[row, j] * total
                delta[row, j] = di
                all_finite = all_finite and is_finite(di)
        latch_unless(all_finite, ctl)

    return hidden_softmax


# Dropout by itself, and the next minibatch


def dropout(T):
    """Make the kernel: dropout of the input of a layer whose activations were computed elsewhere."""
    dropped = after_dropout(T)

    def dropout(
        out: Matrix, x: Matrix, rows: Int, n: Int,
        threshold: Unsigned, keep: Real, key0: Unsigned, key1: Unsigned, layer: Unsigned, ctl: Ints,
    ):  # fmt: skip
        how = make_dropout(threshold, keep, key0, key1, layer, ctl)
        for row in range(cuda.grid(1) // LANES, rows, cuda.gridsize(1) // LANES):
            for j in range(cuda.threadIdx.x % LANES, n, LANES):
                out[row, j] = dropped(x[row, j], row * n + j, how)

    return dropout


def gather(T):
    """Make the kernel: the next minibatch, from data and a permutation that are on the device."""

    def gather(
        x: Matrix, y: Matrix, scale: Vector, weight: Vector, X: Matrix, Y: Matrix, labels: Ints,
        sample_weight: Vector, order: Ints, inverse_weight: Vector, rows: Int, n_in: Int, n_out: Int, batch_size: Int,
        step: Int, ctl: Ints,
    ):  # fmt: skip
        first = cuda.grid(1) == 0
        if ctl[LATCH] != 0:
            if first:
                ctl[CLOSED] = 1
            return
        s = step if step >= 0 else ctl[STEP]
        if step >= 0 and first:
            ctl[STEP] = step
        lane = cuda.threadIdx.x % LANES
        for row in range(cuda.grid(1) // LANES, rows, cuda.gridsize(1) // LANES):
            source = s * batch_size + row
            if order.size > 0:
                source = order[source]
            for j in range(lane, n_in, LANES):
                x[row, j] = X[source, j]
            for k in range(lane, n_out, LANES):
                if Y.size > 0:
                    y[row, k] = Y[source, k]
                else:
                    y[row, k] = T(1) if labels[source] == k else T(0)
            if lane == 0:
                w = sample_weight[source] if sample_weight.size > 0 else T(1)
                weight[row] = w
                scale[row] = w * inverse_weight[s]

    return gather


def advance(T):
    """Make the kernel: one step counted, while the latch is open."""

    def advance(ctl: Ints):
        if cuda.grid(1) == 0 and ctl[LATCH] == 0:
            ctl[STEP] += 1

    return advance
