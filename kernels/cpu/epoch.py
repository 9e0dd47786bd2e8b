"""A whole epoch on the CPU as one compiled function, which any number of threads run at once.

Each step has two phases: parts of the batch's rows go through gather, forward, output and hidden deltas, and then parts
of every layer's weight rows through gradient and update. One compilation for each dtype serves every network: what
varies comes in tables of integers, the formulas and BLAS as addresses.

T is the working type.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.np.numpy_support import from_dtype

from bpgpu.kernels.cpu import cache
from bpgpu.kernels.cpu.addresses import EXACT, vector
from bpgpu.kernels.cpu.columns import *
from bpgpu.kernels.cpu.phases import begin, done, leave, switch, take, wait_for_parts, wait_for_phase
from bpgpu.kernels.cpu.step import dense_input, forward_and_back, gradient, load
from bpgpu.kernels.cpu.sums import accumulate, column_sums, sum_of_squares
from bpgpu.kernels.cpu.update import change, finite, largest, scale, squares


@njit(**EXACT)
def batch(step, data, network):
    """Return the first sample of a step's batch, and how many it has."""
    start = step * network[BATCH]
    return start, min(network[BATCH], data[SAMPLES] - start)


@njit(**EXACT)
def flat(entry, data, like):
    """Return the parameters, the gradients or a state of the optimizer, of size 0 if it is not there."""
    return vector(data[entry], data[COUNT] if data[entry] else 0, like)


# The phases of a step, each on all parts of its data


@njit(**EXACT)
def forward(part, parts, data, layers, network, numbers, sums, shares, slabs):
    """Take a part of the batch to costs and deltas."""
    p = vector(data[P], data[COUNT], numbers)
    step, mine = int(shares[parts, STEP]), slabs[part]
    start, rows = batch(step, data, network)
    r0, r1 = rows * part // parts, rows * (part + 1) // parts
    x, shares[part, WEIGHT_SHARE] = load(data, start, rows, r0, r1, p, layers, network)
    forward_and_back(part, start, r0, r1, p, x, step, data, layers, network, numbers, sums, shares)
    if numbers[L2]:
        penalty = 0.0
        for i in range(len(layers) - 1):
            penalty += sum_of_squares(p[mine[i, 0] : mine[i, 1]])
        shares[part, PENALTY_SHARE] = penalty


@njit(**EXACT)
def descend(part, parts, data, layers, network, numbers, shares, slabs):
    """Compute a part of the gradients; and take the step with it, if it cannot be infinite."""
    p, g = flat(P, data, numbers), flat(G, data, numbers)
    T = p.dtype.type
    L, now, mine = len(layers) - 1, shares[parts], slabs[part]
    step, decay, at_once, direct = int(now[STEP]), T(now[DECAY]), now[AT_ONCE] != 0, now[DIRECT] != 0
    start, rows = batch(step, data, network)
    x = dense_input(data, start, p, layers)
    eta = vector(data[SCHEDULE] + step * network[ROW], 1, p)[0]
    n_weights = mine[L - 1, 1]  # if there is one part
    together = at_once and parts == 1 and p.size <= SMALL_NETWORK
    bad = False
    for i in range(2 * L):
        s0, s1 = mine[i, 0], mine[i, 1]
        if i < L:
            l, columns = i + 1, layers[i + 1, SIZE]
            k0, k1 = (s0 - layers[l, W]) // columns, (s1 - layers[l, W]) // columns
            gradient(l, k0, k1, start, rows, x, decay, direct, eta, p, g, data, layers, network)
        else:
            l, columns = i - L + 1, layers[i - L + 1, SIZE]
            column_sums(layers[l, DELTA] + (s0 - layers[l, B]) * p.itemsize, rows, columns, g[s0:s1])
        if not at_once:
            bad = bad or not finite(g[s0:s1])
        elif not together and (not direct or i >= L):
            change(s0, s1, i < L, step, data, network)
    shares[part, BAD_SHARE] = bad
    if together:
        if not direct:
            change(0, n_weights, True, step, data, network)
        change(n_weights, p.size, False, step, data, network)


@njit(**EXACT)
def update(part, parts, data, network, numbers, shares, slabs):
    """Take the step with a part of the gradients, which are known by now to be finite."""
    now, mine = shares[parts], slabs[part]
    L = len(mine) // 2
    if now[CLIPPING] != 1:
        scale(flat(G, data, numbers), numbers.dtype.type(now[CLIPPING]), mine)
    for i in range(2 * L):
        change(mine[i, 0], mine[i, 1], i < L, int(now[STEP]), data, network)


# What comes between


@njit(**EXACT)
def proven_finite(layers, sums):
    """Return whether no gradient can overflow: |sum_i a_ik delta_ij| is at most the product of all magnitudes."""
    T = sums.dtype.type
    for l in range(1, len(layers)):
        a, delta = T(0), T(0)
        for part in range(len(sums)):
            a += sums[part, l - 1, SUM_A]
            delta += sums[part, l, SUM_DELTA]
        bound = (a + T(1)) * delta * T(4)
        if bound - bound != 0:  # infinite or NaN
            return False
    return True


@njit(**EXACT)
def go_on(parts, last, data, layers, network, numbers, sums, shares, result):
    """Put down what the next phase is, all parts of one being done; return False if there is none."""
    T = sums.dtype.type
    now = shares[parts]
    step = int(now[STEP])
    _, rows = batch(step, data, network)
    weight = shares[0, WEIGHT_SHARE]
    if now[PHASE_IS] == FORWARD:
        count = weight if network[BY_WEIGHT] else float(rows)
        decay = numbers[L2] / T(count) if count > 0 else T(0)
        C, penalty = 0.0, 0.0
        for part in range(parts):
            C += shares[part, COST_SHARE]
            penalty += shares[part, PENALTY_SHARE]
        if decay:
            C += float(decay) / 2 * float(T(penalty))
        at_once = math.isfinite(T(C)) and numbers[CLIP] == 0 and proven_finite(layers, sums)
        now[COST_IS], now[DECAY], now[AT_ONCE] = C, decay, at_once
        now[DIRECT] = at_once and network[DESCENT] and not network[MASKED] and not decay
        now[PHASE_IS] = DESCEND
        return True
    if now[PHASE_IS] == DESCEND and not now[AT_ONCE]:
        bad = not math.isfinite(T(now[COST_IS]))
        for part in range(parts):
            bad = bad or shares[part, BAD_SHARE] != 0
        if bad:
            result[FAULT] = step + 1
            return False
        now[CLIPPING] = 1
        now[PHASE_IS] = LARGEST if numbers[CLIP] else UPDATE
        return True
    if now[PHASE_IS] == LARGEST:
        most = 0.0
        for part in range(parts):
            most = max(most, shares[part, LARGEST_SHARE])
        now[LARGEST_IS] = most
        now[PHASE_IS] = NORM if most > 0 else UPDATE
        return True
    if now[PHASE_IS] == NORM:
        total = 0.0
        for part in range(parts):
            total += shares[part, NORM_SHARE]
        norm = now[LARGEST_IS] * math.sqrt(total)
        if norm > numbers[CLIP]:
            now[CLIPPING] = numbers[CLIP] / norm
        now[PHASE_IS] = UPDATE
        return True
    share = float(rows) if network[BY_WEIGHT] else weight
    accumulate(result, TOTAL_COST, LOST_COST, share * now[COST_IS])
    if data[WEIGHT]:
        accumulate(result, TOTAL_WEIGHT, LOST_WEIGHT, share)
    else:  # whole numbers, which lose nothing
        result[TOTAL_WEIGHT] += share
    now[STEP], now[PHASE_IS] = step + 1, FORWARD
    return step + 1 < last


def epoch(thread, first, last, data, layers, network, numbers, sums, shares, slabs, shared, result):
    """Train steps first ... last of an epoch; the first step that has a fault ends it, without its update.

    Thread 0 returns when that is done, with what help there was. Any other helps, in this epoch and in those after it,
    and returns when none has come for a while.

    Parameters
    ----------
    thread, first, last : int
        The last two are for thread 0.
    data, layers, network, numbers : array
        The tables of `bpgpu.kernels.cpu.columns`; numbers in T.
    sums : array, shape (parts, L + 1, 2)
    shares : array of float64, shape (parts + 1, 8)
        What each part found, and what the phase is that all are in.
    slabs : array of int64, shape (parts, 2 L, 2)
        What each part computes of p: rows of W_1 ... W_L, then entries of b_1 ... b_L.
    shared : address of int64
        See `bpgpu.kernels.cpu.phases`.
    result : array of float64
        Receives the sums of costs and weights of the batches, step + 1 of a fault, after the last step whether p and
        the state are finite, and what the roundings of the sums have left out.
    """
    parts, give_way = len(slabs), network[GIVE_WAY]
    now = shares[parts]
    if thread == 0:
        now[STEP], now[PHASE_IS] = first, FORWARD
        switch(shared, 1)
        phase = begin(shared)
    else:
        phase = wait_for_phase(shared, 0, give_way)
    while phase > 0:
        for i in range(parts):
            part = (thread + i) % parts  # its own first: it has that in its cache
            if parts > 1 and not take(shared, part, phase):
                continue
            if now[PHASE_IS] == FORWARD:
                forward(part, parts, data, layers, network, numbers, sums, shares, slabs)
            elif now[PHASE_IS] == DESCEND:
                descend(part, parts, data, layers, network, numbers, shares, slabs)
            elif now[PHASE_IS] == LARGEST:
                shares[part, LARGEST_SHARE] = largest(flat(G, data, numbers), slabs[part])
            elif now[PHASE_IS] == NORM:
                unit = numbers.dtype.type(now[LARGEST_IS])
                shares[part, NORM_SHARE] = squares(flat(G, data, numbers), unit, slabs[part])
            else:
                update(part, parts, data, network, numbers, shares, slabs)
            done(shared)
        if thread > 0:
            phase = wait_for_phase(shared, phase, give_way)
            continue
        wait_for_parts(shared, parts * phase, give_way)
        if not go_on(parts, last, data, layers, network, numbers, sums, shares, result):
            break
        phase = begin(shared)
    if thread > 0:
        leave(shared)
        return
    if last == data[STEPS]:
        all_finite = finite(flat(P, data, numbers))
        for state in range(STATE, STATES_END):
            all_finite = all_finite and finite(flat(state, data, numbers))
        result[FINITE] = all_finite
    switch(shared, 0)


def signature(dtype):
    """Return the types of the parameters of `epoch`."""
    T, real, integers = (types.Array(x, 1, "C") for x in (from_dtype(np.dtype(dtype)), types.float64, types.int64))
    sums, shares, table, slabs = T.copy(ndim=3), real.copy(ndim=2), integers.copy(ndim=2), integers.copy(ndim=3)
    return (types.int64,) * 3 + (integers, table, integers, T, sums, shares, slabs, types.int64, real)


# Numba's cache goes by the file in which a function says that it stands.
_KEPT = """
from types import FunctionType

from bpgpu.kernels.cpu import epoch as kernels
from numba import njit

_code = kernels.epoch.__code__.replace(co_filename=__file__)
_function = FunctionType(_code, vars(kernels), "epoch")
epoch = njit(kernels.signature("{dtype}"), cache=True, **kernels.EXACT)(_function)
"""


def epoch_source(dtype: np.dtype[Any]) -> str:
    """Return source that compiles `epoch` for a dtype when it is loaded."""
    heading = cache.heading("its epoch")
    return heading + _KEPT.format(dtype=dtype.name)


def compiled_epoch(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Compile `epoch` for a dtype, or load it from the cache."""
    function: Callable[..., None] = cache.load(epoch_source(dtype)).epoch
    return function
