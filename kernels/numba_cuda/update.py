"""The step of an optimizer in Numba-CUDA, over the flat buffers, with the norm and the sums that go with it.

What the arguments are, and what the kernels compute, read and write, stands in ``cuda/update.cu`` and ``norm.cu``.
"""

from bpgpu.kernels.numba_cuda.device import (
    CLOSED,
    LATCH,
    STEP,
    THREADS,
    Int,
    Ints,
    Long,
    Matrix,
    Real,
    Vector,
    add,
    add_to,
    is_finite,
    larger_or_bad,
    reduction,
    sum_and_rest,
)
from bpgpu.kernels.numba_cuda.library import cuda, math

GRADIENT, STATE = 2, 3  # faults, and the control words that hold the smallest index of one
LAST_INDEX = 0x7FFFFFFE  # that a control word names; behind it are all others


@cuda.jit(device=True)
def report(fault, i, ctl):
    """Report a fault; if both kinds occur in one update, it does not depend on chance which is kept."""
    cuda.atomic.max(ctl, LATCH, fault)
    cuda.atomic.min(ctl, fault, min(i, LAST_INDEX))


def gradient_part(T):
    """Return a device function: element i of the gradient with penalty and mask."""

    @cuda.jit(device=True)
    def gradient_at(g, p, mask, i, n_weights, decay):
        gi = g[i]
        if i < n_weights:
            if decay != T(0):
                gi += decay * p[i]
            if mask.size > 0:
                gi *= mask[i]
        return gi

    return gradient_at


def update(T, rule):
    """Make the kernel: a step of an optimizer."""
    gradient_at, block_sum = gradient_part(T), reduction(T, THREADS, add)
    states, numbers_at, change = rule or (0, add, add)  # without one only the arguments are looked at

    def update(
        p: Vector, g: Vector, s0: Vector, s1: Vector, s2: Vector, s3: Vector, mask: Vector, count: Long,
        n_weights: Long, decay: Real, clip: Vector, schedule: Matrix, inverse_weight: Vector, penalty_scale: Real,
        penalty: Vector, ctl: Ints,
    ):  # fmt: skip
        if ctl[LATCH] == 1 or ctl[CLOSED] != 0:
            return
        step = ctl[STEP]
        n = numbers_at(schedule, step)
        factor = clip[0] if clip.size > 0 else T(1)
        squares = T(0)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            if penalty.size > 0 and i < n_weights:
                squares += p[i] * p[i]
            gi = gradient_at(g, p, mask, i, n_weights, decay)
            if not is_finite(gi):
                report(GRADIENT, i, ctl)
            gi *= factor
            if is_finite(gi):
                x0, x1, x2, x3 = T(0), T(0), T(0), T(0)
                if states > 0:
                    x0 = s0[i]
                if states > 1:
                    x1 = s1[i]
                if states > 2:
                    x2 = s2[i]
                if states > 3:
                    x3 = s3[i]
                pi, x0, x1, x2, x3 = change(p[i], gi, T(1) if i < n_weights else T(0), x0, x1, x2, x3, n)
                p[i] = pi
                if states > 0:
                    s0[i] = x0
                if states > 1:
                    s1[i] = x1
                if states > 2:
                    s2[i] = x2
                if states > 3:
                    s3[i] = x3
                if not (is_finite(pi) and is_finite(x0) and is_finite(x1) and is_finite(x2) and is_finite(x3)):
                    report(STATE, i, ctl)
        if penalty.size > 0:
            squares = block_sum(squares)
            inverse = inverse_weight[step]
            weight = T(1) / inverse if inverse > T(0) else T(0)  # of the batch
            if cuda.threadIdx.x == 0:
                add_to(penalty, cuda.blockIdx.x, penalty_scale * weight * squares)

    return update


# The norm: largest * sqrt(squares) is that of some numbers, largest the largest of their magnitudes, so that no square
# can overflow: all are of quotients by the largest.


def _norms(T):
    """Return two device functions: the norm of two norms, and of what the threads of a block have."""
    block_larger, block_sum = reduction(T, THREADS, larger_or_bad), reduction(T, THREADS, add)

    @cuda.jit(device=True)
    def rescaled(largest, squares, to):
        if to == T(0):
            return T(0)
        ratio = largest / to
        return squares * ratio * ratio

    @cuda.jit(device=True)
    def combine(largest, squares, other_largest, other_squares):
        both = larger_or_bad(largest, other_largest)
        return both, rescaled(largest, squares, both) + rescaled(other_largest, other_squares, both)

    @cuda.jit(device=True)
    def block_norm(largest, squares):
        of_block = block_larger(largest)
        return of_block, block_sum(rescaled(largest, squares, of_block))

    return combine, block_norm


def norm_partial(T):
    """Make the kernel: the norm of what each block has seen of the gradient."""
    gradient_at, (combine, block_norm) = gradient_part(T), _norms(T)

    def norm_partial(
        g: Vector, p: Vector, mask: Vector, count: Long, n_weights: Long, decay: Real, partial: Vector
    ):  # fmt: skip
        largest, squares = T(0), T(0)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            size = math.fabs(gradient_at(g, p, mask, i, n_weights, decay))
            largest, squares = combine(largest, squares, size, T(1))
        largest, squares = block_norm(largest, squares)
        if cuda.threadIdx.x == 0:
            partial[2 * cuda.blockIdx.x] = largest
            partial[2 * cuda.blockIdx.x + 1] = squares

    return norm_partial


def norm_final(T):
    """Make the kernel: the factor that brings the norm down to clip_norm. One block."""
    combine, block_norm = _norms(T)

    def norm_final(partial: Vector, blocks: Int, clip_norm: Real, clip: Vector):
        largest, squares = T(0), T(0)
        for block in range(cuda.threadIdx.x, blocks, THREADS):
            largest, squares = combine(largest, squares, partial[2 * block], partial[2 * block + 1])
        largest, squares = block_norm(largest, squares)
        if cuda.threadIdx.x == 0:
            if largest == T(0):
                clip[0] = T(1)
            else:
                ratio = clip_norm / largest / math.sqrt(squares)
                clip[0] = T(1) if ratio > T(1) else ratio

    return norm_final


def total(T):
    """Make the kernel: the sum of all costs and penalties, which are pairs. One block, so one order."""
    sum_of_wholes, sum_of_rests = reduction(T, THREADS, add), reduction(T, THREADS, add)

    def total(cost: Vector, n: Long, penalty: Vector, slots: Int, out: Vector):
        whole, rest = T(0), T(0)
        for i in range(cuda.threadIdx.x, 2 * n, THREADS):
            whole, rest = sum_and_rest(whole, rest, cost[i])
        if penalty.size > 0:
            for i in range(cuda.threadIdx.x, 2 * slots, THREADS):
                whole, rest = sum_and_rest(whole, rest, penalty[i])
        whole = sum_of_wholes(whole)
        rest = sum_of_rests(rest)
        if cuda.threadIdx.x == 0:
            out[0] = whole + rest

    return total
