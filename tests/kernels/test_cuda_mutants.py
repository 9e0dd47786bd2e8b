"""Bugs put into the CUDA kernels on purpose: each must make a check of `test_cuda_kernels` fail.

The text that a bug replaces must be there exactly once, so that this table can not fall behind the kernels.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest

from bpgpu.kernels import rules
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS, output_formulas
from tests.kernels import test_cuda_kernels as checks
from tests.simgpu import device

F32 = np.float32
SOURCE = cuda_kernels._text


def forward(activation="tanh", kernel="bias_sigma", spread=3.0):
    sigma = ACTIVATIONS[activation]
    formula = "z" if sigma.rowwise else sigma.value
    built = checks.module("forward.cu", F32, sigma=formula)
    checks.check_bias(built.get_function(kernel), sigma, F32, spread)


def softmax():
    forward("softmax", "bias_softmax", 3000.0)


def output():
    sigma, cost = ACTIVATIONS["tanh"], COSTS["mean_squared_error"]
    value, delta = output_formulas(sigma, cost)
    built = checks.module("output.cu", F32, sigma=sigma.value, cost_value=value, cost_delta=delta)
    checks.check_output(built.get_function("output_delta"), sigma, cost, F32)


def output_softmax(kernel="softmax_cross_entropy", cost="cross_entropy"):
    cost = COSTS[cost]
    value, gradient = output_formulas(ACTIVATIONS["softmax"], cost)
    built = checks.module("output_softmax.cu", F32, cost_value=value, cost_gradient=gradient)
    checks.check_output(built.get_function(kernel), ACTIVATIONS["softmax"], cost, F32)


def output_softmax_cost():
    output_softmax("softmax_cost", "squared_error")


def output_softmax_binary():
    checks.test_softmax_binary_cross_entropy_of_outputs_that_are_rounded_or_equal(33, F32)


def hidden():
    sigma = ACTIVATIONS["silu"]
    built = checks.module("hidden.cu", F32, sigma_prime=sigma.derivative)
    checks.check_hidden(built.get_function("hidden_delta"), sigma, F32)


def hidden_softmax():
    built = checks.module("hidden.cu", F32, sigma_prime="1")
    checks.check_hidden(built.get_function("hidden_softmax"), ACTIVATIONS["softmax"], F32)


def dropout():
    checks.test_dropout_has_the_bits_of_the_reference(checks.DROP, F32)


def gather():
    for n_in in (31, 64):
        checks.test_gather(n_in, True, F32)


def column_sums():
    checks.test_column_sums(3, 257, F32)


def update(name, clip_norm=None):
    return lambda: checks.test_update(name, clip_norm, F32)


def total():
    checks.test_total(257, 300, F32)


def latch_kept():
    checks.test_output_sets_the_latch(13, np.nan)


def past_the_end():
    checks.test_hidden_delta_latches_nothing_past_the_end(F32)


def norm():
    checks.test_norm(2000, 3, F32)


def norm_of_nan():
    checks.test_norm_of_zeros_and_of_what_is_not_finite(F32)


def fault_sgd():
    checks.test_update_of_a_fault("sgd")


def overflowing_state(name):
    checks.test_update_that_overflows(name)


def infinite_state(name):
    checks.test_an_infinite_state_stays_what_it_is(name)


def dropped_faults():
    checks.test_what_dropout_drops_is_zero_also_if_it_is_not_finite(np.inf)


def sure_outputs():
    checks.test_softmax_cross_entropy_of_sure_outputs(F32)


def gate():
    checks.test_update_stops_at_the_latch("sgd", checks.control(latch=1))


def gather_gate():
    checks.test_gather_stops_at_the_latch_and_closes_it(2)


class Mutant(NamedTuple):
    name: str
    file: str
    text: str
    instead: str
    check: Any
    compiles: bool = True


COMMON, PHILOX = "common.cuh", "philox.cuh"
MUTANTS = [
    # Sums, barriers, access
    Mutant(
        "shuffle step dropped",
        COMMON,
        "step = WARP / 2; step > 0; step /= 2) x +=",
        "step = WARP / 4; step > 0; step /= 2) x +=",
        output,
    ),
    Mutant("last shuffle step dropped", COMMON, "step > 0; step /= 2) x +=", "step > 1; step /= 2) x +=", total),
    Mutant(
        "wrong shuffle lane",
        COMMON,
        "x += __shfl_xor_sync(ALL_LANES, x, step)",
        "x += __shfl_xor_sync(ALL_LANES, x, step - 1)",
        output,
    ),
    Mutant(
        "maximum of half a warp",
        COMMON,
        "T warp_max(T x)\n{\n    for (int step = WARP / 2;",
        "T warp_max(T x)\n{\n    for (int step = WARP / 4;",
        softmax,
    ),
    Mutant("barrier dropped", COMMON, "    __syncthreads();\n    T total", "    T total", total),
    Mutant(
        "barrier in one warp only",
        COMMON,
        "    __syncthreads();\n    T total",
        "    if (threadIdx.x < WARP) __syncthreads();\n    T total",
        total,
    ),
    Mutant(
        "one warp left out",
        COMMON,
        "warp < (int)blockDim.x / WARP; ++warp) total",
        "warp < (int)blockDim.x / WARP - 1; ++warp) total",
        total,
    ),
    Mutant(
        "every lane writes the warp's sum",
        COMMON,
        "if (lane_index() == 0) sums[threadIdx.x / WARP] = x;",
        "sums[threadIdx.x % WARP] = x;",
        total,
    ),
    Mutant(
        "vector store past the end",
        COMMON,
        "void store(T* p, long long i, long long size, const Four& v)\n{\n    if (aligned(p) && i + 4 <= size)",
        "void store(T* p, long long i, long long size, const Four& v)\n{\n    if (aligned(p) && i < size)",
        forward,
    ),
    Mutant(
        "<= in the tail's bound",
        COMMON,
        "if (i + k < size) p[i + k] = v.x[k];",
        "if (i + k <= size) p[i + k] = v.x[k];",
        forward,
    ),
    Mutant(
        "missing tail", COMMON, "if (i + k < size) p[i + k] = v.x[k];", "if (i + 4 <= size) p[i + k] = v.x[k];", forward
    ),
    Mutant(
        "column of the wrong width", COMMON, "(unsigned)i % (unsigned)n", "(unsigned)i % (unsigned)(n + 1)", forward
    ),
    # Dropout
    Mutant("step and epoch swapped", PHILOX, "c1 = d.step, c2 = d.epoch", "c1 = d.epoch, c2 = d.step", dropout),
    Mutant(
        "counter of the element, not the block",
        PHILOX,
        "philox((unsigned)(i / 4), d);\n    const unsigned w01",
        "philox((unsigned)i, d);\n    const unsigned w01",
        hidden_softmax,
    ),
    Mutant("nine rounds", PHILOX, "round < 10", "round < 9", dropout),
    Mutant("keys swapped", PHILOX, "k0 = d.key0, k1 = d.key1", "k0 = d.key1, k1 = d.key0", dropout),
    Mutant("wrong word", PHILOX, "i % 2 ? words.w[3] : words.w[2]", "i % 2 ? words.w[2] : words.w[3]", hidden_softmax),
    Mutant("kept the other way", PHILOX, "words.w[k] >= d.threshold", "words.w[k] < d.threshold", hidden),
    Mutant("not scaled", PHILOX, "? v.x[k] * d.keep : T(0)", "? v.x[k] : T(0)", hidden),
    Mutant(
        "dropped by a product with 0",
        PHILOX,
        "words.w[k] >= d.threshold ? v.x[k] * d.keep : T(0)",
        "v.x[k] * (words.w[k] >= d.threshold ? d.keep : T(0))",
        dropped_faults,
    ),
    Mutant(
        "one dropped by a product with 0",
        PHILOX,
        "(i % 4 < 2 ? w01 : w23) >= d.threshold ? x * d.keep : T(0)",
        "x * ((i % 4 < 2 ? w01 : w23) >= d.threshold ? d.keep : T(0))",
        dropped_faults,
    ),
    Mutant("step forgotten", PHILOX, "threshold ? (unsigned)ctl[1] : 0u", "0u", dropout),
    Mutant("epoch forgotten", PHILOX, "threshold ? (unsigned)ctl[5] : 0u", "0u", dropout),
    Mutant("epoch of the wrong word", PHILOX, "(unsigned)ctl[5]", "(unsigned)ctl[4]", dropout),
    # forward.cu
    Mutant("bias runs over", "forward.cu", "j + 1 < n ? j + 1 : 0", "j + 1 <= n ? j + 1 : 0", forward),
    Mutant(
        "z stored behind sigma",
        "forward.cu",
        "        if (z) store(z, i, size, v);\n        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);\n",
        "        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);\n        if (z) store(z, i, size, v);\n",
        forward,
    ),
    Mutant(
        "wrong stride", "forward.cu", "i < size; i += 4 * thread_count()", "i < size; i += 8 * thread_count()", forward
    ),
    Mutant("maximum forgotten", "forward.cu", "exp(a[start + j] - largest)", "exp(a[start + j])", softmax),
    Mutant("float64 literal", "forward.cu", "sigma(v.x[k]);", "0.5 * sigma(2 * v.x[k]);", forward, compiles=False),
    # output.cu
    Mutant("rows passed over", "output.cu", "row += warp_count()", "row += warp_count() + 1", output),
    Mutant("mean forgotten in delta", "output.cu", "share = factor * scale[row]", "share = scale[row]", output),
    Mutant(
        "scale of the column", "output.cu", "share = factor * scale[row]", "share = factor * scale[row % n]", output
    ),
    Mutant("z not written back", "output.cu", "            z[i] = zi;\n", "", output),
    Mutant("total not added to", COMMON, "add_to(total_cost + 2 * row, sum)", "total_cost[2 * row] = sum", output),
    Mutant(
        "latch forgotten",
        "output.cu",
        "    latch_unless(all_finite, ctl);\n",
        "",
        checks.test_each_output_may_set_the_latch,
    ),
    Mutant(
        "cost not looked at",
        COMMON,
        "return is_finite(sum);",
        "return true;",
        checks.test_each_output_may_set_the_latch,
    ),
    Mutant("latch overwritten", COMMON, "if (!all_finite && ctl[0] == 0)", "if (!all_finite)", latch_kept),
    # output_softmax.cu
    Mutant(
        "targets taken to add up to 1", "output_softmax.cu", "(sum_y - yi) * ai", "(T(1) - yi) * ai", output_softmax
    ),
    Mutant("0 log 0", "output_softmax.cu", "y == T(0) ? T(0) : y * log_a", "y * log_a", sure_outputs),
    Mutant(
        "Jacobian without its sum",
        "output_softmax.cu",
        "T(1) - ai) - ai * others) * share",
        "T(1) - ai) - ai) * share",
        output_softmax_cost,
    ),
    Mutant(
        "share of the others as a difference",
        "output_softmax.cu",
        "top - largest + log(rest) - log_total",
        "log(T(1) - T(1) / (T(1) + odds))",
        output_softmax_binary,
    ),
    Mutant("largest among the others", "output_softmax.cu", "if (j != m) rest +=", "rest +=", output_softmax_binary),
    Mutant(
        "every lane of equals has the largest",
        "output_softmax.cu",
        "has_it = lane == warp_max(own.first == largest ? lane : T(-1))",
        "has_it = own.first == largest",
        output_softmax_binary,
    ),
    Mutant(
        "others of the largest's lane forgotten",
        "output_softmax.cu",
        "warp_max(has_it ? own.second : own.first)",
        "warp_max(has_it ? minus_infinity() : own.first)",
        output_softmax_binary,
    ),
    Mutant(
        "second of a lane only if it was the first",
        "output_softmax.cu",
        "        else if (v > found.second)\n            found.second = v;\n",
        "",
        output_softmax_binary,
    ),
    Mutant(
        "own term not left out",
        "output_softmax.cu",
        "j == m ? quotients : quotients - error / (T(1) - ai)",
        "quotients",
        output_softmax_binary,
    ),
    Mutant(
        "term of the largest forgotten",
        "output_softmax.cu",
        "(error - ai * others - delta[i] * error_m) * share",
        "(error - ai * others) * share",
        output_softmax_binary,
    ),
    # hidden.cu
    Mutant(
        "dropout forgotten",
        "hidden.cu",
        "after_dropout(load(delta, i, size), i, dropout)",
        "load(delta, i, size)",
        hidden,
    ),
    Mutant(
        "past the end latches", "hidden.cu", "(is_finite(d.x[k]) || i + k >= size)", "is_finite(d.x[k])", past_the_end
    ),
    Mutant("a and z swapped", "hidden.cu", "sigma_prime(zi.x[k], ai.x[k])", "sigma_prime(ai.x[k], zi.x[k])", hidden),
    Mutant("sum of one lane", "hidden.cu", "        sum = warp_sum(sum);\n", "", hidden_softmax),
    # gather.cu
    Mutant(
        "order from its beginning", "gather.cu", "order ? order[place] : place", "order ? order[row] : place", gather
    ),
    Mutant("weight of another batch", "gather.cu", "w * inverse_weight[s]", "w * inverse_weight[s + 1]", gather),
    Mutant(
        "rows wide taken for vectors", "gather.cu", "n_in * sizeof(T) % 16 == 0 && aligned(x)", "aligned(x)", gather
    ),
    Mutant("label of the row in the batch", "gather.cu", "labels[source] == k", "labels[row] == k", gather),
    Mutant("weight of the row in the batch", "gather.cu", "sample_weight[source]", "sample_weight[row]", gather),
    Mutant("step not stored", "gather.cu", "    if (step >= 0 && thread_index() == 0) ctl[1] = step;\n", "", gather),
    Mutant(
        "latch does not gate",
        "gather.cu",
        "    if (ctl[0] != 0) {\n        if",
        "    if (false) {\n        if",
        gather_gate,
    ),
    Mutant("latch not closed", "gather.cu", "ctl[4] = 1", "ctl[4] = 0", gather_gate),
    # gradient.cu
    Mutant(
        "rows left over",
        "gradient.cu",
        "stop = (chunk + 1) * rows / chunks",
        "stop = (chunk + 1) * (rows / chunks)",
        column_sums,
    ),
    Mutant(
        "first row left out",
        "gradient.cu",
        "row = chunk * rows / chunks; row",
        "row = chunk * rows / chunks + 1; row",
        column_sums,
    ),
    Mutant(
        "swapped index", "gradient.cu", "c.delta[row * c.n + c.column]", "c.delta[c.column * rows + row]", column_sums
    ),
    Mutant("layer not found", "gradient.cu", "        block -= blocks;\n", "", column_sums),
    Mutant(
        "no layer's own place",
        "gradient.cu",
        "partial[c.offset + chunk * c.n + c.column] = sum",
        "partial[chunk * c.n + c.column] = sum",
        column_sums,
    ),
    Mutant(
        "<= in the columns' bound",
        "gradient.cu",
        "            T sum = T(0);\n            if (c.column >= c.n) continue;",
        "            T sum = T(0);\n            if (c.column > c.n) continue;",
        column_sums,
    ),
    # update.cu, and what it calls
    Mutant(
        "always the first step's schedule",
        "update.cu",
        "schedule[(long long)step * NUMBERS + k]",
        "schedule[k]",
        update("sgd"),
    ),
    Mutant(
        "a schedule of one number", "update.cu", "(long long)step * NUMBERS + k", "(long long)step + k", update("adam")
    ),
    Mutant("weight of the first batch", "update.cu", "inverse_weight[step]", "inverse_weight[0]", update("sgd")),
    Mutant(
        "decay of the first bias",
        COMMON,
        "if (i < n_weights && decay != T(0))",
        "if (i <= n_weights && decay != T(0))",
        update("sgd"),
    ),
    Mutant(
        "mask before decay",
        COMMON,
        "    if (i < n_weights && decay != T(0)) gi += decay * p[i];\n    if (i < n_weights && mask) gi *= mask[i];\n",
        "    if (i < n_weights && mask) gi *= mask[i];\n    if (i < n_weights && decay != T(0)) gi += decay * p[i];\n",
        update("sgd"),
    ),
    Mutant("state forgotten", "update.cu", "states[k][i] = s[k];", "states[k][i] = T(0);", update("momentum")),
    Mutant("states swapped", "update.cu", "s[0], s[1], s[2]", "s[1], s[0], s[2]", update("adam")),
    Mutant("biases are weights", "update.cu", "is_weight ? T(1) : T(0)", "T(1)", update("adamw")),
    Mutant(
        "faults of the second state pass", "update.cu", " && is_finite(s[1])", "", lambda: overflowing_state("adam")
    ),
    Mutant("clip forgotten", "update.cu", "clip ? clip[0] : T(1)", "T(1)", update("sgd", 3.0)),
    Mutant(
        "penalty of the last step only",
        "update.cu",
        "add_to(penalty + 2 * blockIdx.x, penalty_scale * weight * squares)",
        "penalty[2 * blockIdx.x] = penalty_scale * weight * squares",
        update("sgd"),
    ),
    Mutant(
        "smallest index left to chance",
        "update.cu",
        "    atomicMin(&ctl[fault], i < 0x7fffffffll ? (int)i : 0x7ffffffe);",
        "    ctl[fault] = (int)i;",
        fault_sgd,
    ),
    Mutant(
        "gate closes behind the first fault",
        "update.cu",
        "if (closed(ctl)) return;",
        "if (ctl[0] != 0) return;",
        fault_sgd,
    ),
    Mutant("latch does not gate", "update.cu", "    if (closed(ctl)) return;\n", "", gate),
    Mutant("fault not reported", "update.cu", "        if (!is_finite(gi)) report(2, i, ctl);\n", "", fault_sgd),
    Mutant("warp left out of the norm", "norm.cu", "for (int warp = 1; warp <", "for (int warp = 2; warp <", norm),
    Mutant(
        "norm's barrier dropped",
        "norm.cu",
        "    __syncthreads();\n    if (threadIdx.x == 0)\n",
        "    if (threadIdx.x == 0)\n",
        norm,
    ),
    Mutant(
        "norm overflows",
        "norm.cu",
        "clip_norm / norm.largest / sqrt(norm.squares)",
        "clip_norm / sqrt(norm.largest * norm.largest * norm.squares)",
        norm,
    ),
    Mutant(
        "NaN lost in the norm",
        "norm.cu",
        "a.largest >= b.largest || !is_finite(a.largest)",
        "a.largest >= b.largest",
        norm_of_nan,
    ),
]

# Bugs in the text of a row of the table of optimizers, as the kernel gets it.
RULE_MUTANTS = [
    Mutant("corrections swapped", "adam", "s0 * n7 / (sqrt(s1 * n8)", "s0 * n8 / (sqrt(s1 * n7)", update("adam")),
    Mutant("1 - beta from a rounded beta", "adam", "n5 * g * g", "(g - (n4 - n6) * g) * g", update("adam")),
    Mutant("velocity too small", "nesterov", "n2 * g + n4 * s0", "n2 * g + n4 * n4 * s0", update("nesterov")),
    Mutant("epsilon under the root", "rmsprop", "(sqrt(s0) + n4)", "sqrt(s0 + n4)", update("rmsprop")),
    Mutant("biases decay too", "adamw", "n10 * is_weight * p", "n10 * p", update("adamw")),
    Mutant("infinite state is NaN", "rmsprop", "where(s0 - s0 == 0, s0, 0)", "s0", lambda: infinite_state("rmsprop")),
]

# What only a sanitizer sees: reading outside, and 128 bits at an address that is no multiple of 16.
SANITIZED_MUTANTS = [
    Mutant("<= in the bound of a read", COMMON, "i + k < size ? p[i + k]", "i + k <= size ? p[i + k]", forward),
    Mutant(
        "vector off its alignment", COMMON, "unsigned long long)p % 16 == 0", "unsigned long long)p % 4 == 0", forward
    ),
    Mutant("row past the last", "gradient.cu", "row < stop; ++row", "row <= stop; ++row", column_sums),
]


available = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
sanitizer = pytest.mark.skipif(not device.sanitizer_available(), reason="needs g++ with AddressSanitizer, on Linux")


def identity(mutant):
    return f"{mutant.file}: {mutant.name}"


@pytest.mark.parametrize("mutant", MUTANTS + SANITIZED_MUTANTS, ids=identity)
def test_text_is_there_once(mutant):
    assert SOURCE(mutant.file).count(mutant.text) == 1
    assert mutant.text != mutant.instead


def mutated(mutant):
    return lambda file: SOURCE(file).replace(mutant.text, mutant.instead) if file == mutant.file else SOURCE(file)


def forget():
    """Modules that were compiled from other sources than the present ones."""
    for made in (checks.forward_module, checks.hidden_module, checks.output_module, checks.softmax_module):
        made.cache_clear()


@pytest.mark.parametrize("mutant", RULE_MUTANTS, ids=identity)
def test_text_of_a_rule_is_there_once(mutant):
    assert rules.text_of_row(mutant.file).count(mutant.text) == 1


def with_mutated_rule(monkeypatch, mutant):
    """Let the update kernel be compiled with a bug in its rule."""

    def update_kernel(rule, dtype):
        text = rule.compiled.text.replace(mutant.text, mutant.instead)
        return checks.module("update.cu", dtype, rule=text).get_function("update")

    monkeypatch.setattr(checks, "update_kernel", update_kernel)


@available
@pytest.mark.parametrize("mutant", RULE_MUTANTS, ids=identity)
def test_bug_in_a_rule_is_caught(mutant, monkeypatch):
    mutant.check()
    with_mutated_rule(monkeypatch, mutant)
    with pytest.raises(AssertionError):
        mutant.check()


@available
@pytest.mark.parametrize("mutant", MUTANTS, ids=identity)
def test_bug_is_caught(mutant, monkeypatch):
    monkeypatch.setattr(cuda_kernels, "_text", mutated(mutant))
    forget()
    try:
        with pytest.raises((AssertionError, device.SimulatorError)) as caught:
            mutant.check()
    finally:
        forget()
    # A bug that does not compile would prove nothing, but for the one that the compiler is there to catch.
    assert ("g++ refuses" in str(caught.value)) == (not mutant.compiles)


@sanitizer
def test_no_kernel_reads_or_writes_outside():
    names = "forward softmax output output_softmax output_softmax_cost output_softmax_binary hidden hidden_softmax"
    names += " dropout gather column_sums"
    calls = [f"{name}()" for name in (*names.split(), "norm", "total", "update('adamw', 3.0)")]
    device.run_sanitized("from tests.kernels.test_cuda_mutants import *; " + "; ".join(calls))


@sanitizer
@pytest.mark.parametrize("mutant", SANITIZED_MUTANTS, ids=identity)
def test_sanitizer_catches(mutant):
    script = f"""
from tests.kernels import test_cuda_mutants as m
mutant = next(mutant for mutant in m.SANITIZED_MUTANTS if mutant.name == {mutant.name!r})
m.cuda_kernels._text = m.mutated(mutant)
mutant.check()
"""
    with pytest.raises(device.SanitizerError, match=r"AddressSanitizer|misaligned"):
        device.run_sanitized(script)
