"""The Numba-CUDA kernels of the output layer: activation, costs of the rows, delta.

As in `rows`, 32 threads work on a row, and those without one have a row of no elements.
"""

from bpgpu.kernels.numba_cuda.device import (
    GROUPS,
    LANES,
    Int,
    Ints,
    Matrix,
    Real,
    Vector,
    add,
    add_to,
    is_finite,
    larger,
    latch_unless,
    reduction,
)
from bpgpu.kernels.numba_cuda.library import cuda, math


@cuda.jit(device=True)
def write_cost(value, row, weight, cost, total_cost):
    """Write the cost of a row, times its weight, and add it to its pair; return whether it is finite."""
    if weight.size > 0:
        value *= weight[row]
    cost[row] = value
    if total_cost.size > 0:
        add_to(total_cost, row, value)
    return is_finite(value)


def times_logarithm(T):
    """Return a device function: y log a, 0 where y is 0, also if log a is -infinity."""

    @cuda.jit(device=True)
    def times_logarithm(y, log_a):
        return T(0) if y == T(0) else y * log_a

    return times_logarithm


def biased_exponentials(T):
    """Return a device function: add b to a row of z, leave exp(z - largest) in a; return largest, and the others' sum.

    The sum is without the largest, 1, so that no small one is lost beside it: 1 - a of the largest is
    rest / (1 + rest). Of several that are 1, all but one are in it.
    """
    row_sum, row_max = reduction(T, LANES, add), reduction(T, LANES, larger)
    row_count = reduction(T, LANES, add)

    @cuda.jit(device=True)
    def biased_exponentials(z, a, b, row, lane, stop):
        largest = T(-math.inf)
        for j in range(lane, stop, LANES):
            v = z[row, j]
            if b.size > 0:
                v += b[j]
            z[row, j] = v
            largest = larger(largest, v)
        largest = row_max(largest)
        others, ones = T(0), T(0)
        for j in range(lane, stop, LANES):
            v = math.exp(z[row, j] - largest)
            a[row, j] = v
            if v == T(1):
                ones += T(1)
            else:
                others += v
        return largest, row_sum(others) + (row_count(ones) - T(1))

    return biased_exponentials


def output_delta(T, sigma, cost_value, cost_delta):
    """Make the kernel: the error of an elementwise output layer."""
    row_sum = reduction(T, LANES, add)

    def output_delta(
        z: Matrix, a: Matrix, delta: Matrix, cost: Vector, b: Vector, y: Matrix, scale: Vector, weight: Vector,
        total_cost: Vector, rows: Int, n: Int, factor: Real, ctl: Ints,
    ):  # fmt: skip
        lane = cuda.threadIdx.x % LANES
        all_finite = True
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            value = T(0)
            for j in range(lane, stop, LANES):
                zi = z[row, j]
                if b.size > 0:
                    zi += b[j]
                ai, yi = sigma(zi), y[row, j]
                di = cost_delta(zi, ai, yi) * (factor * scale[row])
                value += cost_value(zi, ai, yi)
                z[row, j] = zi
                a[row, j] = ai
                delta[row, j] = di
                all_finite = all_finite and is_finite(zi) and is_finite(ai) and is_finite(di)
            value = factor * row_sum(value)
            if lane == 0 and row < rows:
                all_finite = write_cost(value, row, weight, cost, total_cost) and all_finite
        latch_unless(all_finite, ctl)

    return output_delta


def softmax_cross_entropy(T):
    """Make the kernel: softmax with the cost -sum_k y_k log a_k; sum_k y_k is 1 for probabilities."""
    row_sum, exponentials, times = reduction(T, LANES, add), biased_exponentials(T), times_logarithm(T)

    def softmax_cross_entropy(
        z: Matrix, a: Matrix, delta: Matrix, cost: Vector, b: Vector, y: Matrix, scale: Vector, weight: Vector,
        total_cost: Vector, rows: Int, n: Int, factor: Real, ctl: Ints,
    ):  # fmt: skip
        lane = cuda.threadIdx.x % LANES
        all_finite = True
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            largest, rest = exponentials(z, a, b, row, lane, stop)
            total, sum_y = T(1) + rest, T(0)
            for j in range(lane, stop, LANES):
                sum_y += y[row, j]
            sum_y = row_sum(sum_y)
            log_total = math.log1p(rest) if row < rows else T(0)
            value = T(0)
            for j in range(lane, stop, LANES):
                complement = (rest if a[row, j] == T(1) else total - a[row, j]) / total  # 1 - a_i
                zi, ai, yi = z[row, j], a[row, j] / total, y[row, j]
                di = ((sum_y - yi) * ai - yi * complement) * (factor * scale[row])
                value -= times(yi, zi - largest - log_total)
                a[row, j] = ai
                delta[row, j] = di
                all_finite = all_finite and is_finite(zi) and is_finite(ai) and is_finite(di)
            value = factor * row_sum(value)
            if lane == 0 and row < rows:
                all_finite = write_cost(value, row, weight, cost, total_cost) and all_finite
        latch_unless(all_finite, ctl)

    return softmax_cross_entropy


def softmax_binary_cross_entropy(T):
    """Make the kernel: softmax with binary cross-entropies, for two outputs or more; exact where an output rounds to 1.

    Only the largest output a_m can come near 1, so 1 - a_m is not a difference but the share of the others: with their
    softmax r and odds = (1 - a_m) / a_m it is odds / (1 + odds), and a_i = r_i (1 - a_m). Then
    delta_i = (a_i - y_i) - a_i sum_{k != i} (a_k - y_k) / (1 - a_k), of which r_i (a_m - y_m) is the term of k = m.
    """
    row_sum, row_max, times = reduction(T, LANES, add), reduction(T, LANES, larger), times_logarithm(T)

    def softmax_binary_cross_entropy(
        z: Matrix, a: Matrix, delta: Matrix, cost: Vector, b: Vector, y: Matrix, scale: Vector, weight: Vector,
        total_cost: Vector, rows: Int, n: Int, factor: Real, ctl: Ints,
    ):  # fmt: skip
        lane = cuda.threadIdx.x % LANES
        all_finite = True
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            # What this thread has seen: the largest, its column, the largest of its others.
            largest_here, second_here, m = T(-math.inf), T(-math.inf), -1
            for j in range(lane, stop, LANES):
                v = z[row, j]
                if b.size > 0:
                    v += b[j]
                z[row, j] = v
                if v > largest_here:
                    largest_here, second_here, m = v, largest_here, j
                else:
                    second_here = larger(second_here, v)
            largest = row_max(largest_here)
            # One thread has the largest, also of equals; the others' m is no column.
            owner = row_max(T(lane) if largest_here == largest else T(-1))
            if owner != T(lane):
                m, second_here = -1, largest_here
            top = row_max(second_here)  # the largest of the others
            rest = T(0)
            for j in range(lane, stop, LANES):
                if j != m:
                    v = math.exp(z[row, j] - top)
                    delta[row, j] = v
                    rest += v
            rest = row_sum(rest)
            value, error_m, quotients = T(0), T(0), T(0)
            if row < rows:
                gap = math.exp(top - largest)
                odds = gap * rest
                log_total = math.log1p(odds)
                log_others = top - largest + math.log(rest) - log_total  # log(1 - a_m)
                for j in range(lane, stop, LANES):
                    yi = y[row, j]
                    if j == m:
                        ai = T(1) / (T(1) + odds)
                        error_m = (T(1) - yi) * ai - yi * odds / (T(1) + odds)
                        value -= times(yi, -log_total) + times(T(1) - yi, log_others)
                        delta[row, j] = T(0)
                    else:
                        ai = delta[row, j] * gap / (T(1) + odds)
                        quotients += (ai - yi) / (T(1) - ai)
                        value -= times(yi, z[row, j] - largest - log_total) + times(T(1) - yi, math.log1p(-ai))
                        delta[row, j] /= rest  # r_i
                    a[row, j] = ai
            error_m = row_sum(error_m)
            quotients = row_sum(quotients)
            for j in range(lane, stop, LANES):
                ai = a[row, j]
                error = error_m if j == m else ai - y[row, j]
                others = quotients if j == m else quotients - error / (T(1) - ai)
                di = (error - ai * others - delta[row, j] * error_m) * (factor * scale[row])
                delta[row, j] = di
                all_finite = all_finite and is_finite(z[row, j]) and is_finite(ai) and is_finite(di)
            value = factor * row_sum(value)
            if lane == 0 and row < rows:
                all_finite = write_cost(value, row, weight, cost, total_cost) and all_finite
        latch_unless(all_finite, ctl)

    return softmax_binary_cross_entropy


def softmax_cost(T, cost_value, cost_gradient):
    """Make the kernel: softmax with any other cost, g = dC/da: delta_i = a_i (g_i (1 - a_i) - sum_{k != i} g_k a_k).

    Its formulas take 1 - a, exact also where a is rounded to 1, as their z. The sum of the largest outputs and that of
    the others are kept apart, so that nothing is left of the term of a largest output once it is taken out.
    """
    row_sum, exponentials = reduction(T, LANES, add), biased_exponentials(T)

    def softmax_cost(
        z: Matrix, a: Matrix, delta: Matrix, cost: Vector, b: Vector, y: Matrix, scale: Vector, weight: Vector,
        total_cost: Vector, rows: Int, n: Int, factor: Real, ctl: Ints,
    ):  # fmt: skip
        lane = cuda.threadIdx.x % LANES
        all_finite = True
        for first in range(cuda.blockIdx.x * GROUPS, rows, cuda.gridDim.x * GROUPS):
            row = first + cuda.threadIdx.x // LANES
            stop = n if row < rows else 0
            _, rest = exponentials(z, a, b, row, lane, stop)
            value, sum_top, sum_others, top, below_top = T(0), T(0), T(0), T(0), T(0)
            if row < rows:
                top, below_top = T(1) / (T(1) + rest), rest / (T(1) + rest)
            for j in range(lane, stop, LANES):
                ai, yi = a[row, j] / (T(1) + rest), y[row, j]
                complement = below_top if ai == top else T(1) - ai
                ga = cost_gradient(complement, ai, yi) * ai
                value += cost_value(complement, ai, yi)
                if ai == top:
                    sum_top += ga
                else:
                    sum_others += ga
                a[row, j] = ai
                delta[row, j] = ga
            sum_top = row_sum(sum_top)
            sum_others = row_sum(sum_others)
            for j in range(lane, stop, LANES):
                ai, ga = a[row, j], delta[row, j]
                if ai == top:
                    di = ga * below_top - ai * ((sum_top - ga) + sum_others)
                else:
                    di = ga * (T(1) - ai) - ai * (sum_top + (sum_others - ga))
                di *= factor * scale[row]
                delta[row, j] = di
                all_finite = all_finite and is_finite(z[row, j]) and is_finite(ai) and is_finite(di)
            value = factor * row_sum(value)
            if lane == 0 and row < rows:
                all_finite = write_cost(value, row, weight, cost, total_cost) and all_finite
        latch_unless(all_finite, ctl)

    return softmax_cost
