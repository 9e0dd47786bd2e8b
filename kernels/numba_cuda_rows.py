"""The Numba-CUDA kernels that work row by row: softmax, the output layer, dropout, gather.

What they compute, read and write stands in the CUDA C++ files of their names in ``cuda/``. 32 threads work on a row, 8
rows are in a block at a time; each element is written and read by one thread only. Where a row is reduced, all
threads of the block must come along, so those without a row have one of no elements (``stop = 0``).
"""

from bpgpu.kernels._numba_cuda_shim import cuda, math
from bpgpu.kernels.numba_cuda_parts import (
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
    add_to,
    after_dropout,
    is_finite,
    larger,
    latch_unless,
    make_dropout,
    reduction,
)


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


# The output layer


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
    """Return a device function: add b to a row of z, leave exp(z - largest) in a; return largest and sum."""
    row_sum, row_max = reduction(T, LANES, add), reduction(T, LANES, larger)

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
        total = T(0)
        for j in range(lane, stop, LANES):
            v = math.exp(z[row, j] - largest)
            a[row, j] = v
            total += v
        return largest, row_sum(total)

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
            largest, total = exponentials(z, a, b, row, lane, stop)
            sum_y = T(0)
            for j in range(lane, stop, LANES):
                sum_y += y[row, j]
            sum_y = row_sum(sum_y)
            log_total = math.log(total) if row < rows else T(0)
            value = T(0)
            for j in range(lane, stop, LANES):
                zi, ai, yi = z[row, j], a[row, j] / total, y[row, j]
                di = (sum_y * ai - yi) * (factor * scale[row])
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
                        error_m = ai - yi
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
                error = ai - y[row, j]
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
    """Make the kernel: softmax with any other cost, g = dC/da: delta_i = a_i (g_i - sum_k g_k a_k)."""
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
            _, total = exponentials(z, a, b, row, lane, stop)
            value, sum_ga = T(0), T(0)
            for j in range(lane, stop, LANES):
                zi, ai, yi = z[row, j], a[row, j] / total, y[row, j]
                ga = cost_gradient(zi, ai, yi) * ai
                value += cost_value(zi, ai, yi)
                sum_ga += ga
                a[row, j] = ai
                delta[row, j] = ga
            sum_ga = row_sum(sum_ga)
            for j in range(lane, stop, LANES):
                ai = a[row, j]
                di = (delta[row, j] - ai * sum_ga) * (factor * scale[row])
                delta[row, j] = di
                all_finite = all_finite and is_finite(z[row, j]) and is_finite(ai) and is_finite(di)
            value = factor * row_sum(value)
            if lane == 0 and row < rows:
                all_finite = write_cost(value, row, weight, cost, total_cost) and all_finite
        latch_unless(all_finite, ctl)

    return softmax_cost


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
        sample_weight: Vector, order: Ints, schedule: Matrix, rows: Int, n_in: Int, n_out: Int, batch_size: Int,
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
                scale[row] = w * schedule[s, 3]

    return gather


def advance(T):
    """Make the kernel: one step counted, while the latch is open."""

    def advance(ctl: Ints):
        if cuda.grid(1) == 0 and ctl[LATCH] == 0:
            ctl[STEP] += 1

    return advance
