"""Bugs put into the Numba-CUDA kernels on purpose: each must make a check fail, or the simulator stop.

The text that a bug replaces must be there exactly once, so that this table can not fall behind the kernels. That a
float64 is found is a test of the compile gate (test_gpu_compile.py).
"""

from typing import Any, NamedTuple

import numpy as np
import pytest

from bpgpu.kernels.formulas import ACTIVATIONS as FORMULAS
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS, CROSS_ENTROPY
from tests.kernels import test_cuda_kernels as checks
from tests.kernels.test_cuda_mutants import RULE_MUTANTS, with_mutated_rule
from tests.simgpu import gemm_cases, numba_runner, numba_sim

F32 = np.float32
SOFTMAX = ACTIVATIONS["softmax"]


def product(kernel, shape=(9, 20, 7), **options):
    def check(kernels):
        value, derivative = FORMULAS["sigmoid"]
        module = numba_runner.Module(kernels, F32, {"": {"sigma": value, "sigma_prime": derivative}})
        gemm_cases.check(module, gemm_cases.Case(kernel, shape, rate=0.5, decay=0.1, **options))

    return check


def call(name, *arguments):
    return lambda kernels: getattr(checks, name)(*arguments)


def softmax(kernels):
    checks.test_bias_softmax(F32, 3000.0)


def output(kernels):
    checks.test_output_delta("tanh_mean_squared_error", F32)


def cross_entropy(kernels):
    kernel = checks.softmax_module(F32).get_function("softmax_cross_entropy")
    checks.check_output(kernel, SOFTMAX, CROSS_ENTROPY, F32)


def binary(kernels):
    checks.test_softmax_binary_cross_entropy_of_outputs_that_are_rounded_or_equal(2, F32)


def any_cost(kernels):
    kernel = checks.softmax_module(F32).get_function("softmax_cost__squared_error")
    checks.check_output(kernel, SOFTMAX, COSTS["squared_error"], F32)


def dropout(kernels):
    checks.test_dropout_has_the_bits_of_the_reference(checks.DROP, F32)


forward, hidden, gradient = (product(name) for name in gemm_cases.KERNELS)
hidden_softmax = call("test_hidden_softmax", F32)
total = call("test_total", 257, 300, F32)
gather = call("test_gather", 31, True, F32)
norm = call("test_norm", 257, 2, F32)


class Mutant(NamedTuple):
    name: str
    module: str
    text: str
    instead: str
    check: Any
    threads: int = 64


DEVICE, GEMM, OUTPUT, ROWS, UPDATE = "device", "gemm", "output", "rows", "update"
DECAY = "        if W.size > 0 and decay != T(0):\n            v += decay * W[row, column]\n"
MASK = "        if mask.size > 0:\n            v *= mask[row, column]\n"
MUTANTS = [
    # Reductions, dropout, the latch
    Mutant(
        "barrier dropped behind the first write",
        DEVICE,
        "        shared[thread] = x\n        cuda.syncthreads()\n",
        "        shared[thread] = x\n",
        total,
    ),
    Mutant(
        "barrier dropped in the loop",
        DEVICE,
        "            cuda.syncthreads()\n            step //= 2",
        "            step //= 2",
        total,
    ),
    Mutant(
        "barrier dropped before the next reduction",
        DEVICE,
        "        cuda.syncthreads()  # the next reduction may overwrite it\n",
        "",
        cross_entropy,
    ),
    Mutant(
        "barrier for some",
        DEVICE,
        "            cuda.syncthreads()\n            step //= 2",
        "                cuda.syncthreads()\n            step //= 2",
        total,
    ),
    Mutant("off by one in the reduction", DEVICE, "while step > 0", "while step > 1", total),
    Mutant("half of the lanes", DEVICE, "step = width // 2", "step = width // 4", output),
    Mutant("<= in the reduction", DEVICE, "if lane < step", "if lane <= step", total),
    Mutant("result of another row", DEVICE, "shared[thread - lane]", "shared[0]", output),
    Mutant("wrong Philox counter", DEVICE, "philox(i >> 2,", "philox(i,", dropout),
    Mutant("step and epoch swapped", DEVICE, "layer, step, epoch = dropout", "layer, epoch, step = dropout", dropout),
    Mutant("nine rounds", DEVICE, "range(10)", "range(9)", dropout),
    Mutant("kept the other way", DEVICE, ">= threshold else", "< threshold else", dropout),
    Mutant("not scaled", DEVICE, "return x * keep if", "return x if", hidden_softmax),
    Mutant(
        "latch overwritten",
        DEVICE,
        "cuda.atomic.max(ctl, LATCH, 1)",
        "ctl[LATCH] = 1",
        call("test_output_sets_the_latch", 13, np.nan),
    ),
    Mutant(
        "NaN lost",
        DEVICE,
        "x >= y or not is_finite(x)",
        "x >= y",
        call("test_norm_of_zeros_and_of_what_is_not_finite", F32),
    ),
    # The products
    Mutant(
        "stale tile",
        GEMM,
        "                    cuda.syncthreads()  # the next slab may overwrite this one\n",
        "",
        forward,
        256,
    ),
    Mutant(
        "barrier dropped behind the slabs",
        GEMM,
        "terms)\n                    cuda.syncthreads()\n",
        "terms)\n",
        forward,
        256,
    ),
    Mutant("<= in the bound of the rows", GEMM, "if row < rows and", "if row <= rows and", forward, 256),
    Mutant(
        "<= in the bound of the terms",
        GEMM,
        "matrix[i0 + i, k0 + k] if i0 + i < extent and k0 + k < terms",
        "matrix[i0 + i, k0 + k] if i0 + i < extent and k0 + k <= terms",
        forward,
        256,
    ),
    Mutant(
        "missing tail of the sum", GEMM, "range(0, terms, DEPTH)", "range(0, terms - DEPTH + 1, DEPTH)", forward, 256
    ),
    Mutant("swapped index", GEMM, "matrix[k0 + k, i0 + i] if", "matrix[i0 + i, k0 + k] if", forward, 256),
    Mutant(
        "wrong stride",
        GEMM,
        "range(cuda.threadIdx.x // TILE, DEPTH, THREADS // TILE)",
        "range(cuda.threadIdx.x // TILE, DEPTH, 2 * THREADS // TILE)",
        gradient,
        256,
    ),
    Mutant(
        "a column of sums lost",
        GEMM,
        "(totals0[1], totals0[2], totals0[3], totals0[0])",
        "(totals0[1], totals0[1], totals0[3], totals0[0])",
        product("gemm_forward", (3, 4, 60)),
        256,
    ),
    Mutant(
        "z stored behind sigma",
        GEMM,
        "        if z.size > 0:\n            z[row, column] = v\n        v = sigma(v)\n",
        "        v = sigma(v)\n        if z.size > 0:\n            z[row, column] = v\n",
        forward,
        256,
    ),
    Mutant(
        "dropout of another element",
        GEMM,
        "v = dropped(v, row * m + column, dropout)",
        "v = dropped(v, column * m + row, dropout)",
        hidden,
        256,
    ),
    Mutant(
        "mask forgotten",
        GEMM,
        "        if mask.size > 0:\n            v *= mask[row, column]\n        dW[row, column] = v\n",
        "        dW[row, column] = v\n",
        gradient,
        256,
    ),
    Mutant(
        "mask before decay",
        GEMM,
        DECAY + MASK,
        MASK + DECAY,
        gradient,
        256,
    ),
    Mutant(
        "column sums by every row of tiles",
        GEMM,
        "if summing and row0 == 0 and thread < TILE and",
        "if summing and thread < TILE and",
        product("gemm_gradient", (3, 70, 5)),
        256,
    ),
    Mutant("column sums of one slab", GEMM, "column_sum += b_slab", "column_sum = b_slab", gradient, 256),
    # Rows
    Mutant("maximum forgotten", ROWS, "math.exp(a[row, j] - largest)", "math.exp(a[row, j])", softmax),
    Mutant(
        "threads without a row leave",
        OUTPUT,
        "            stop = n if row < rows else 0\n            value = T(0)\n",
        "            if row >= rows:\n                break\n            stop = n\n            value = T(0)\n",
        output,
    ),
    Mutant(
        "rows behind the last",
        OUTPUT,
        "            stop = n if row < rows else 0\n            value = T(0)",
        "            stop = n\n            value = T(0)",
        output,
    ),
    Mutant("z not written back", OUTPUT, "                z[row, j] = zi\n", "", output),
    Mutant("total not added to", OUTPUT, "add_to(total_cost, row, value)", "total_cost[2 * row] = value", output),
    Mutant("targets taken to add up to 1", OUTPUT, "(sum_y - yi) * ai", "(T(1) - yi) * ai", cross_entropy),
    Mutant(
        "1 - a as a difference", OUTPUT, "times(T(1) - yi, log_others)", "times(T(1) - yi, math.log1p(-ai))", binary
    ),
    Mutant("two threads have the largest", OUTPUT, "if owner != T(lane)", "if owner == T(-2)", binary),
    Mutant("Jacobian without its sum", OUTPUT, "- ai * (sum_top + (sum_others - ga))", "- ai", any_cost),
    Mutant("order from its beginning", ROWS, "source = order[source]", "source = order[row]", gather),
    Mutant("weight of another batch", ROWS, "inverse_weight[s]", "inverse_weight[s + 1]", gather),
    Mutant(
        "latch not closed",
        ROWS,
        "ctl[CLOSED] = 1",
        "ctl[CLOSED] = 0",
        call("test_gather_stops_at_the_latch_and_closes_it", 2),
    ),
    Mutant("all blocks count the step", ROWS, "if cuda.grid(1) == 0 and ctl", "if ctl", call("test_advance")),
    # Updates
    Mutant(
        "always the first step's schedule",
        UPDATE,
        "step = ctl[STEP]\n",
        "step = 0\n",
        call("test_update", "sgd", None, F32),
    ),
    Mutant(
        "decay of the first bias",
        UPDATE,
        "        if i < n_weights:\n",
        "        if i <= n_weights:\n",
        call("test_update", "sgd", None, F32),
    ),
    Mutant(
        "weight of the first batch",
        UPDATE,
        "inverse_weight[step]",
        "inverse_weight[0]",
        call("test_update", "sgd", None, F32),
    ),
    Mutant("state forgotten", UPDATE, "s0[i] = x0", "s0[i] = T(0)", call("test_update", "momentum", None, F32)),
    Mutant("states swapped", UPDATE, "x1 = s1[i]", "x1 = s0[i]", call("test_update", "adam", None, F32)),
    Mutant(
        "the last state forgotten",
        UPDATE,
        "s3[i] = x3",
        "s3[i] = x2",
        call("test_update_with_as_much_state_as_there_may_be"),
    ),
    Mutant(
        "biases are weights", UPDATE, "T(1) if i < n_weights else T(0)", "T(1)", call("test_update", "adamw", None, F32)
    ),
    Mutant(
        "faults of the second state pass",
        UPDATE,
        " and is_finite(x1)",
        "",
        call("test_update_that_overflows", "adam"),
    ),
    Mutant(
        "smallest index left to chance",
        UPDATE,
        "    cuda.atomic.min(ctl, fault, min(i, LAST_INDEX))",
        "    ctl[fault] = i",
        call("test_update_of_a_fault", "sgd"),
    ),
    Mutant(
        "gate closes behind the first fault",
        UPDATE,
        "ctl[LATCH] == 1 or ctl[CLOSED] != 0",
        "ctl[LATCH] != 0",
        call("test_update_of_a_fault", "sgd"),
    ),
    Mutant(
        "penalty of every thread",
        UPDATE,
        "            if cuda.threadIdx.x == 0:\n                add_to",
        "            if True:\n                add_to",
        call("test_update", "sgd", None, F32),
    ),
    Mutant(
        "norm overflows",
        UPDATE,
        "clip_norm / largest / math.sqrt(squares)",
        "clip_norm / math.sqrt(largest * largest * squares)",
        norm,
    ),
]


def identity(mutant):
    return f"{mutant.module}: {mutant.name}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=identity)
def test_text_is_there_once(mutant):
    assert numba_runner.source(mutant.module).count(mutant.text) == 1
    assert mutant.text != mutant.instead


@pytest.mark.parametrize("threads", [64, 256])
def test_checks_pass_without_a_bug(threads, monkeypatch):
    kernels = numba_runner.load(threads=threads)
    numba_runner.use(monkeypatch, kernels, checks)
    for check in dict.fromkeys(mutant.check for mutant in MUTANTS if mutant.threads == threads):
        check(kernels)


@pytest.mark.parametrize("mutant", RULE_MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.name}")
def test_bug_in_a_rule_is_caught(mutant, monkeypatch):
    numba_runner.use(monkeypatch, numba_runner.load(threads=64), checks)
    with_mutated_rule(monkeypatch, mutant)
    with pytest.raises(AssertionError):
        mutant.check()


@pytest.mark.parametrize("mutant", MUTANTS, ids=identity)
def test_bug_is_caught(mutant, monkeypatch):
    text = numba_runner.source(mutant.module).replace(mutant.text, mutant.instead)
    kernels = numba_runner.load({mutant.module: text}, mutant.threads)
    numba_runner.use(monkeypatch, kernels, checks)
    with pytest.raises((AssertionError, numba_sim.SimulatorError)):
        mutant.check(kernels)
