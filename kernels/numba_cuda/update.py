"""The optimizers in Numba-CUDA, over the flat buffers, with the norm and the sums that go with them.

What the arguments are, and what the kernels compute, read and write, stands at the top of ``cuda/update.cu``.
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


# The rules. Each returns a device function that changes parameter i, whose gradient is g, and returns whether it and
# its state are finite. numbers = (eta, c1, c2, h0, h1, h2, h3, h4, h5).


@cuda.jit(device=True)
def decayed(x, beta, rest, added):
    """Return beta x + added, of which rest is 1 - beta: near 1, beta rounded would have lost part of that."""
    if beta > rest:
        return x + (added - rest * x if is_finite(x) else added)  # an infinite x stays what it is
    return beta * x + added


def _sgd():
    @cuda.jit(device=True)
    def change(p, g, m, v, i, is_weight, numbers):
        p[i] += -numbers[0] * g
        return is_finite(p[i])

    return change


def _momentum(nesterov):
    @cuda.jit(device=True)
    def change(p, g, m, v, i, is_weight, numbers):
        eta, mu, rest = numbers[0], numbers[3], numbers[7]
        step = -eta * g
        velocity = decayed(m[i], mu, rest, step)
        m[i] = velocity
        p[i] += step + mu * velocity if nesterov else velocity
        return is_finite(p[i]) and is_finite(velocity)

    return change


def _rmsprop():
    @cuda.jit(device=True)
    def change(p, g, m, v, i, is_weight, numbers):
        eta, rho, epsilon, rest = numbers[0], numbers[3], numbers[4], numbers[7]
        vi = decayed(v[i], rho, rest, rest * g * g)
        v[i] = vi
        p[i] -= eta * g / (math.sqrt(vi) + epsilon)
        return is_finite(p[i]) and is_finite(vi)

    return change


def _adam(decoupled):
    @cuda.jit(device=True)
    def change(p, g, m, v, i, is_weight, numbers):
        eta, c1, c2, beta1, beta2, epsilon, weight_decay, rest1, rest2 = numbers
        mi = decayed(m[i], beta1, rest1, rest1 * g)
        vi = decayed(v[i], beta2, rest2, rest2 * g * g)
        m[i] = mi
        v[i] = vi
        direction = mi * c1 / (math.sqrt(vi * c2) + epsilon)
        if decoupled and is_weight:
            direction += weight_decay * p[i]
        p[i] -= eta * direction
        return is_finite(p[i]) and is_finite(mi) and is_finite(vi)

    return change


def _update(T, change):
    """Make the kernel of a rule."""
    gradient_at, block_sum = gradient_part(T), reduction(T, THREADS, add)

    def update(
        p: Vector, g: Vector, m: Vector, v: Vector, mask: Vector, count: Long, n_weights: Long, decay: Real,
        clip: Vector, schedule: Matrix, h0: Real, h1: Real, h2: Real, h3: Real, h4: Real, h5: Real,
        penalty_scale: Real, penalty: Vector, ctl: Ints,
    ):  # fmt: skip
        if ctl[LATCH] == 1 or ctl[CLOSED] != 0:
            return
        step = ctl[STEP]
        numbers = (schedule[step, 0], schedule[step, 1], schedule[step, 2], h0, h1, h2, h3, h4, h5)
        factor = clip[0] if clip.size > 0 else T(1)
        squares = T(0)
        for i in range(cuda.grid(1), count, cuda.gridsize(1)):
            if penalty.size > 0 and i < n_weights:
                squares += p[i] * p[i]
            gi = gradient_at(g, p, mask, i, n_weights, decay)
            if not is_finite(gi):
                report(GRADIENT, i, ctl)
            gi *= factor
            if is_finite(gi) and not change(p, gi, m, v, i, i < n_weights, numbers):
                report(STATE, i, ctl)
        if penalty.size > 0:
            squares = block_sum(squares)
            share = schedule[step, 3]
            weight = T(1) / share if share > T(0) else T(0)  # of the batch
            if cuda.threadIdx.x == 0:
                add_to(penalty, cuda.blockIdx.x, penalty_scale * weight * squares)

    return update


def sgd(T):
    """Make the kernel: gradient descent."""
    return _update(T, _sgd())


def momentum(T):
    """Make the kernel: gradient descent with momentum."""
    return _update(T, _momentum(False))


def nesterov(T):
    """Make the kernel: gradient descent with Nesterov's momentum."""
    return _update(T, _momentum(True))


def rmsprop(T):
    """Make the kernel: RMSprop."""
    return _update(T, _rmsprop())


def adam(T):
    """Make the kernel: Adam."""
    return _update(T, _adam(False))


def adamw(T):
    """Make the kernel: Adam with decoupled weight decay."""
    return _update(T, _adam(True))


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
