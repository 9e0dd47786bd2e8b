"""The three matrix products of backpropagation in Numba-CUDA, each with all that follows it in one launch.

kernel         result                  multiplies          then reads   writes
gemm_forward   sigma(a_prev W + b)     (B x m) (m x n)     b            a; z and h if given
gemm_hidden    (delta W^T) * sigma'    (B x n) (n x m)     a; z if used out
gemm_gradient  a_prev^T delta + ...    (m x B) (B x n)     W, mask      dW; db if given

FLOPs: 2 B m n each. A block computes a tile of 64 x 64 of the result from slabs of 16 terms in shared memory; a thread
computes 4 x 4 elements of it, 16 rows and 16 columns apart, so that neighbouring threads read neighbouring words of
shared memory and write neighbouring elements of the result. Every element is summed over k = 0, 1, 2, ... by one
thread, in blocks, whose sums are added in order, so the bits are the same on any grid.
"""

import math

from bpgpu.kernels.numba_cuda.device import (
    THREADS,
    Int,
    Ints,
    Matrix,
    Real,
    Unsigned,
    Vector,
    after_dropout,
    is_finite,
    latch_unless,
    make_dropout,
)
from bpgpu.kernels.numba_cuda.library import cuda

SIDE = math.isqrt(THREADS)  # 16 threads along a side of the tile
TILE = 4 * SIDE  # rows and columns of the result in a block's tile
DEPTH = 16  # terms of the sum that are in shared memory at a time
WIDTH = TILE + 1  # of a slab: odd, so that threads that store a column of it do not meet in a bank


def _operand(T, sum_in_rows):
    """Return a device function that brings a slab of an operand from memory.

    Term k of the sum for row (or column) i of the result is matrix[i, k] if `sum_in_rows`, else matrix[k, i]; either
    way it comes to slab[k, i], and is 0 outside of the matrix. Neighbouring threads bring neighbours in memory.
    """

    @cuda.jit(device=True)
    def bring_rows(matrix, slab, i0, k0, extent, terms):
        k = cuda.threadIdx.x % DEPTH
        for i in range(cuda.threadIdx.x // DEPTH, TILE, THREADS // DEPTH):
            slab[k, i] = matrix[i0 + i, k0 + k] if i0 + i < extent and k0 + k < terms else T(0)

    @cuda.jit(device=True)
    def bring_columns(matrix, slab, i0, k0, extent, terms):
        i = cuda.threadIdx.x % TILE
        for k in range(cuda.threadIdx.x // TILE, DEPTH, THREADS // TILE):
            slab[k, i] = matrix[k0 + k, i0 + i] if i0 + i < extent and k0 + k < terms else T(0)

    return bring_rows if sum_in_rows else bring_columns


@cuda.jit(device=True)
def add_products(sums, x, y):
    """Return sums + x y, for four columns; tuples, for those stay in registers."""
    return sums[0] + x * y[0], sums[1] + x * y[1], sums[2] + x * y[2], sums[3] + x * y[3]


@cuda.jit(device=True)
def add_sums(x, y):
    """Return x + y, for four columns."""
    return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3]


def _blocks(T):
    """Return a device function: how many of so many terms are added up before their sum is added to the others'."""

    @cuda.jit(device=True)
    def block_of(terms):
        # About the square root: a sum of n terms that are alike may be off by n / 6 roundings.
        return max(4 * DEPTH, int(math.sqrt(T(terms))) // DEPTH * DEPTH)

    return block_of


@cuda.jit(device=True)
def no_column_sum(column, total, to):
    """Take the place of what stores the sums of the right operand's columns."""


def _product(T, a_sums_in_rows, b_sums_in_rows, epilogue, store_column_sum=no_column_sum):
    """Return a device function: the product of two operands, handed on as epilogue(row, column, v, to).

    With `store_column_sum` also the sums of b over the terms, as store_column_sum(column, total, to).
    """
    bring_a, bring_b, block_of = _operand(T, a_sums_in_rows), _operand(T, b_sums_in_rows), _blocks(T)
    summing = store_column_sum is not no_column_sum

    @cuda.jit(device=True)
    def product(a, b, rows, columns, terms, to):
        a_slab = cuda.shared.array((DEPTH, WIDTH), T)
        b_slab = cuda.shared.array((DEPTH, WIDTH), T)
        thread = cuda.threadIdx.x
        down, across = thread // SIDE, thread % SIDE
        none, block = (T(0), T(0), T(0), T(0)), block_of(terms)
        for row0 in range(cuda.blockIdx.y * TILE, rows, cuda.gridDim.y * TILE):
            for column0 in range(cuda.blockIdx.x * TILE, columns, cuda.gridDim.x * TILE):
                totals0, totals1, totals2, totals3, column_total = none, none, none, none, T(0)
                sums0, sums1, sums2, sums3, column_sum = none, none, none, none, T(0)
                end = block  # of the terms that are added up in the sums
                for k0 in range(0, terms, DEPTH):
                    bring_a(a, a_slab, row0, k0, rows, terms)
                    bring_b(b, b_slab, column0, k0, columns, terms)
                    cuda.syncthreads()
                    for k in range(DEPTH):
                        y0, y1 = b_slab[k, across], b_slab[k, across + SIDE]
                        y2, y3 = b_slab[k, across + 2 * SIDE], b_slab[k, across + 3 * SIDE]
                        sums0 = add_products(sums0, a_slab[k, down], (y0, y1, y2, y3))
                        sums1 = add_products(sums1, a_slab[k, down + SIDE], (y0, y1, y2, y3))
                        sums2 = add_products(sums2, a_slab[k, down + 2 * SIDE], (y0, y1, y2, y3))
                        sums3 = add_products(sums3, a_slab[k, down + 3 * SIDE], (y0, y1, y2, y3))
                    if summing and row0 == 0 and thread < TILE:
                        for k in range(DEPTH):
                            column_sum += b_slab[k, thread]
                    if k0 + DEPTH == end or k0 + DEPTH >= terms:
                        totals0, totals1 = add_sums(totals0, sums0), add_sums(totals1, sums1)
                        totals2, totals3 = add_sums(totals2, sums2), add_sums(totals3, sums3)
                        column_total += column_sum
                        sums0, sums1, sums2, sums3, column_sum = none, none, none, none, T(0)
                        end += block
                    cuda.syncthreads()  # the next slab may overwrite this one
                # Loops that move the sums along, as registers have no index, and not 16 copies of a long formula.
                for row in range(row0 + down, row0 + TILE, SIDE):
                    for column in range(column0 + across, column0 + TILE, SIDE):
                        if row < rows and column < columns:
                            epilogue(row, column, totals0[0], to)
                        totals0 = (totals0[1], totals0[2], totals0[3], totals0[0])
                    totals0, totals1, totals2 = totals1, totals2, totals3
                if summing and row0 == 0 and thread < TILE and column0 + thread < columns:
                    store_column_sum(column0 + thread, column_total, to)

    return product


def gemm_forward(T, sigma):
    """Make the kernel: the forward pass of a layer."""
    dropped = after_dropout(T)

    @cuda.jit(device=True)
    def epilogue(row, column, v, to):
        b, a, h, z, n, dropout = to
        if b.size > 0:
            v += b[column]
        if z.size > 0:
            z[row, column] = v
        v = sigma(v)
        a[row, column] = v
        if h.size > 0:
            h[row, column] = dropped(v, row * n + column, dropout)

    product = _product(T, True, False, epilogue)

    def gemm_forward(
        a_prev: Matrix, W: Matrix, b: Vector, a: Matrix, h: Matrix, z: Matrix, rows: Int, m: Int, n: Int,
        threshold: Unsigned, keep: Real, key0: Unsigned, key1: Unsigned, layer: Unsigned, ctl: Ints,
    ):  # fmt: skip
        dropout = make_dropout(threshold, keep, key0, key1, layer, ctl)
        product(a_prev, W, rows, n, m, (b, a, h, z, n, dropout))

    return gemm_forward


def gemm_hidden(T, sigma_prime):
    """Make the kernel: the error of a hidden layer."""
    dropped = after_dropout(T)

    @cuda.jit(device=True)
    def epilogue(row, column, v, to):
        # delta comes back through the dropout first and through sigma second, the other way round than a went.
        a, z, out, m, dropout, ctl = to
        v = dropped(v, row * m + column, dropout)
        v *= sigma_prime(z[row, column] if z.size > 0 else T(0), a[row, column])
        out[row, column] = v
        latch_unless(is_finite(v), ctl)

    product = _product(T, True, True, epilogue)

    def gemm_hidden(
        delta: Matrix, W: Matrix, a: Matrix, z: Matrix, out: Matrix, rows: Int, m: Int, n: Int,
        threshold: Unsigned, keep: Real, key0: Unsigned, key1: Unsigned, layer: Unsigned, ctl: Ints,
    ):  # fmt: skip
        dropout = make_dropout(threshold, keep, key0, key1, layer, ctl)
        product(delta, W, rows, m, n, (a, z, out, m, dropout, ctl))

    return gemm_hidden


def gemm_gradient(T):
    """Make the kernel: the gradients of a layer's weights and biases."""

    @cuda.jit(device=True)
    def epilogue(row, column, v, to):
        # The mask comes last: what is not connected has no penalty either.
        W, mask, dW, decay = to[1:]
        if W.size > 0 and decay != T(0):
            v += decay * W[row, column]
        if mask.size > 0:
            v *= mask[row, column]
        dW[row, column] = v

    @cuda.jit(device=True)
    def store_column_sum(column, total, to):
        db = to[0]
        if db.size > 0:
            db[column] = total

    product = _product(T, False, False, epilogue, store_column_sum)

    def gemm_gradient(
        a_prev: Matrix, delta: Matrix, W: Matrix, mask: Matrix, dW: Matrix, db: Vector, rows: Int, m: Int, n: Int,
        decay: Real,
    ):  # fmt: skip
        product(a_prev, delta, m, n, rows, (db, W, mask, dW, decay))

    return gemm_gradient
