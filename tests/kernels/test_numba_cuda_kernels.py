"""Every Numba-CUDA kernel on the race-checking simulator, held to the checks of the CUDA C++ kernels.

Each launch runs in three orders of threads, to the same bits; `tests/simgpu/numba_sim.py` says what it finds besides.
"""

import functools
import inspect
import re

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.data import Dropout
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import CROSS_ENTROPY
from tests.kernels import gemm_cases
from tests.kernels import test_cuda_kernels as checks
from tests.simgpu import numba_runner

DTYPES = checks.DTYPES
SOFTMAX = ACTIVATIONS["softmax"]
# What takes cuBLAS's products, which this language does not have, and the column sums, which the fused product gives.
NOT_HERE = {"bias_sigma", "hidden_delta", "column_sums_partial", "column_sums_final"}


@functools.cache
def kernels(threads=256):
    return numba_runner.load(threads=threads)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """As they are."""
    numba_runner.use(monkeypatch, kernels(), checks)


@pytest.fixture
def small_blocks(blocks, monkeypatch):
    """Of 64 threads, for the many checks whose time is that of threads."""
    numba_runner.use(monkeypatch, kernels(64), checks)


def gemm_module(dtype, activation):
    value, derivative = bpgpu.kernels.formulas.ACTIVATIONS.get(activation) or activation.split("; ")
    return numba_runner.Module(kernels(), dtype, {"": {"sigma": value, "sigma_prime": derivative}})


# The same arguments as in CUDA C++


def test_the_same_kernels():
    assert set(kernels().KERNELS) == set(cuda_kernels.ABI) - NOT_HERE


def declared(name):
    """Return the names of a C++ kernel's arguments."""
    file, _ = cuda_kernels.ABI[name]
    text = re.search(rf"\b{name}\(([^)]*)\)\n", cuda_kernels._text(file)).group(1)
    return [re.search(r"\w+$", argument.strip()).group() for argument in text.split(",")]


@pytest.mark.parametrize("name", sorted(set(cuda_kernels.ABI) - NOT_HERE))
def test_the_same_arguments(name):
    types = {"T": None, "int": "int32", "unsigned": "uint32", "long long": "int64"}
    kinds = kernels().arguments(name)
    assert list(kinds) == declared(name)
    for kind, cpp in zip(kinds.values(), cuda_kernels.ABI[name][1], strict=True):
        pointee = cpp.removeprefix("const ").removesuffix("*")
        assert (kind.dtype, kind.ndim > 0) == (types[pointee], cpp.endswith("*"))


@pytest.mark.parametrize("name", sorted(set(cuda_kernels.ABI) - NOT_HERE))
def test_formulas_are_among_those_of_the_cpp_file(name):
    assert set(kernels().formulas_of(name)) <= set(cuda_kernels.FORMULAS[cuda_kernels.ABI[name][0]])


def test_unknown_kernels_and_formulas():
    with pytest.raises(KeyError, match="no_such"):
        kernels().kernel("no_such", np.dtype(np.float32), {})
    with pytest.raises(KeyError, match="sigma"):
        kernels().kernel("gemm_forward", np.dtype(np.float32), {"sigma_prime": "1"})
    with pytest.raises(KeyError, match="float16"):
        kernels().kernel("total", np.dtype(np.float16), {})
    with pytest.raises(bpgpu.FormulaError):
        kernels().kernel("gemm_forward", np.dtype(np.float32), {"sigma": "__import__('os')"})


def test_a_kernel_is_made_once_for_the_formulas_it_calls():
    float32 = np.dtype(np.float32)
    one = kernels().kernel("gemm_forward", float32, {"sigma": "z", "sigma_prime": "1"})
    assert kernels().kernel("gemm_forward", float32, {"sigma": "z", "sigma_prime": "a"}) is one
    assert kernels().kernel("gemm_forward", np.dtype(np.float64), {"sigma": "z"}) is not one


@pytest.mark.parametrize("module", numba_runner.MODULES)
def test_no_float_but_in_t(module):
    """Numba makes float32 * 0.5 a float64; the compile gate sees it too."""
    code = re.sub(r'"""[\s\S]*?"""|#[^\n]*', "", numba_runner.source(module))
    assert not re.search(r"(?<![\w.])\d+\.\d*|(?<![\w.])\.\d|\bfloat\(", code)


# The products


SHAPES = [(1, 1, 1), (1, 70, 3), (5, 2, 66), (31, 33, 65), (33, 65, 31), (17, 16, 17)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", gemm_cases.KERNELS)
def test_products(kernel, shape):
    k = SHAPES.index(shape)
    dtype = ["float32", "float64"][k % 2]
    case = gemm_cases.Case(kernel, shape, dtype, "sigmoid", rate=0.3 * (k % 3 > 0), decay=0.02)
    gemm_cases.check(gemm_module(dtype, "sigmoid"), case)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("kernel", gemm_cases.KERNELS[:2])
def test_activations_of_products(kernel, activation):
    gemm_cases.check(
        gemm_module("float32", activation), gemm_cases.Case(kernel, (9, 5, 7), "float32", activation, rate=0.5)
    )


@pytest.mark.parametrize("absent", [("b",), ("h",), ("z",), ("b", "h", "z")], ids=str)
def test_forward_without(absent):
    case = gemm_cases.Case("gemm_forward", (3, 4, 6), rate=0.4, absent=absent)
    gemm_cases.check(gemm_module("float32", "sigmoid"), case)


def test_hidden_without_z():
    case = gemm_cases.Case("gemm_hidden", (3, 6, 4), rate=0.4, absent=("z",))
    gemm_cases.check(gemm_module("float32", "sigmoid"), case)


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("absent", [("mask",), ("db",), ("mask", "db"), ("W",)], ids=str)
def test_gradient_without(absent, decay):
    case = gemm_cases.Case("gemm_gradient", (5, 4, 6), decay=decay, absent=absent)
    gemm_cases.check(gemm_module("float32", "sigmoid"), case)


def test_no_dropout_reads_no_control_words():
    launch = gemm_cases.Launch(gemm_cases.Case("gemm_forward", (3, 4, 5), rate=0.0))
    launch.ctl = None
    results = launch.run(gemm_module("float32", "sigmoid"))
    assert results["h"].tobytes() == results["a"].tobytes()


def test_no_rows_and_no_terms():
    module = gemm_module("float32", "sigmoid")
    gradient = gemm_cases.Launch(gemm_cases.Case("gemm_gradient", (0, 3, 65), decay=0.5))
    results = gradient.run(module)
    assert (results["db"] == 0).all()
    np.testing.assert_array_equal(results["dW"], np.float32(0.5) * gradient.arrays["W"] * gradient.arrays["mask"])
    for kernel in gemm_cases.KERNELS[:2]:
        gemm_cases.Launch(gemm_cases.Case(kernel, (0, 3, 65), rate=0.5)).run(module)
    for case in [gemm_cases.Case("gemm_forward", (3, 0, 5)), gemm_cases.Case("gemm_hidden", (3, 5, 0))]:
        gemm_cases.check(module, case)


@pytest.mark.parametrize("latch", [0, 2])
def test_hidden_latches_what_is_not_finite(latch):
    launch = gemm_cases.Launch(gemm_cases.Case("gemm_hidden", (5, 7, 3)))
    launch.arrays["delta"][4, 2] = np.inf
    launch.ctl[0] = latch
    launch.run(gemm_module("float32", "sigmoid"))
    assert launch.ctl[0] == (latch or 1)


# Rows


@pytest.mark.parametrize(("dtype", "spread"), [(np.float32, 3.0), (np.float64, 3000.0)], ids=["usual", "large"])
def test_bias_softmax(dtype, spread):
    checks.test_bias_softmax(dtype, spread)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["sigmoid_binary_cross_entropy", "tanh_mean_squared_error", "swish2_log_cosh"])
def test_output_delta(case, dtype):
    checks.test_output_delta(case, dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("name", "dtype"), [("squared_error", np.float32), ("log_cosh", np.float64)])
def test_softmax_cost(name, dtype):
    checks.test_softmax_cost(name, dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_cross_entropy(dtype):
    kernel = checks.softmax_module(dtype).get_function("softmax_cross_entropy")
    checks.check_output(kernel, SOFTMAX, CROSS_ENTROPY, dtype)
    checks.test_softmax_cross_entropy_of_sure_outputs(dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_binary_cross_entropy(dtype):
    checks.test_softmax_binary_cross_entropy(40, dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("n", "dtype"), [(2, np.float64), (33, np.float32)])
def test_softmax_binary_cross_entropy_of_outputs_that_are_rounded_or_equal(n, dtype):
    checks.test_softmax_binary_cross_entropy_of_outputs_that_are_rounded_or_equal(n, dtype)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_softmax(dtype):
    checks.test_hidden_softmax(dtype)


WHERE = [
    checks.DROP,
    Dropout(0.5, 0, 0, 0, 1),
    Dropout(0.9, 2**64 - 1, 2**32 - 1, checks.MAX, 9),
    Dropout(1 - 2**-40, 1, 0, 0, 1),
]


@pytest.mark.parametrize("where", WHERE, ids=["usual", "zeros", "ones", "all"])
def test_dropout(where):
    checks.test_dropout_has_the_bits_of_the_reference(where, np.float32)
    checks.test_dropout_scales_what_it_keeps(np.float64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("n_in", "explicit", "dtype"), [(1, True, np.float32), (33, False, np.float64)])
def test_gather(n_in, explicit, dtype):
    checks.test_gather(n_in, explicit, dtype)


@pytest.mark.parametrize("latch", [1, 2])
def test_gather_stops_at_the_latch_and_closes_it(latch):
    checks.test_gather_stops_at_the_latch_and_closes_it(latch)


def test_advance():
    checks.test_advance()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("row", "value"), [(0, np.nan), (32, -np.inf)])
def test_output_sets_the_latch(row, value):
    checks.test_output_sets_the_latch(row, value)


@pytest.mark.usefixtures("small_blocks")
def test_each_output_may_set_the_latch():
    checks.test_each_output_may_set_the_latch()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_hidden_softmax_sets_the_latch(value):
    checks.test_hidden_sets_the_latch("hidden_softmax", value)


def test_no_rows():
    """Nothing to do for any kernel that works row by row."""
    dtype = np.float32
    for name in ("bias_softmax", "hidden_softmax", "output_delta", "softmax_cost", "softmax_cross_entropy", "dropout"):
        formulas = dict.fromkeys(kernels().formulas_of(name), "z")
        function = numba_runner.Module(kernels(), dtype, {"": formulas}).get_function(name)
        arguments = []
        for argument, kind in function.kinds.items():
            if kind.ndim == 0:
                arguments.append(np.dtype(kind.dtype or dtype).type(5 if argument == "n" else 0))
            elif argument == "ctl":
                arguments.append(checks.control())
            else:
                arguments.append(np.empty((0, 5)[: kind.ndim], dtype))
        assert checks.launch(function, 1, *arguments)[-1].tolist() == checks.control().tolist()


# Updates


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("name", "clip_norm"), [*((name, None) for name in checks.RULES), ("sgd", 3.0)])
def test_update(name, clip_norm):
    checks.test_update(name, clip_norm, [np.float32, np.float64][len(name) % 2])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["momentum", "rmsprop", "adamw"])
def test_update_with_a_beta_near_1_is_right_on_average(name):
    checks.test_update_with_a_beta_near_1_is_right_on_average(name, 1e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", checks.RULES)
def test_update_of_a_fault(name):
    checks.test_update_of_a_fault(name)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", checks.LISTED)
def test_update_that_overflows(name):
    checks.test_update_that_overflows(name)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["momentum", "rmsprop", "adam"])
def test_an_infinite_state_stays_what_it_is(name):
    checks.test_an_infinite_state_stays_what_it_is(name)


@pytest.mark.usefixtures("small_blocks")
def test_update_with_as_much_state_as_there_may_be():
    checks.test_update_with_as_much_state_as_there_may_be()


@pytest.mark.usefixtures("small_blocks")
def test_update_at_the_latch_and_of_nothing():
    for ctl in (checks.control(latch=1), checks.control(latch=2, closed=1)):
        checks.test_update_stops_at_the_latch("adamw", ctl)
    checks.test_update_of_nothing()
    checks.test_a_clip_that_is_not_finite_changes_nothing()


@pytest.mark.parametrize(("size", "grid", "dtype"), [(1, 1, np.float64), (257, 2, np.float32), (600, 3, np.float64)])
def test_norm(size, grid, dtype):
    checks.test_norm(dtype=dtype, size=size, grid=grid)


@pytest.mark.usefixtures("small_blocks")
def test_norm_of_zeros_and_of_what_is_not_finite():
    checks.test_norm_of_zeros_and_of_what_is_not_finite(np.float32)


@pytest.mark.parametrize(("n", "slots"), [(0, 0), (1, 0), (255, 1), (257, 300)])
def test_total(n, slots):
    checks.test_total(n, slots, [np.float32, np.float64][n % 2])


def test_annotations_are_all_there():
    for name, make in kernels().KERNELS.items():
        function = make(np.float32, *(None for _ in kernels().formulas_of(name)))
        assert all(hasattr(p.annotation, "__metadata__") for p in inspect.signature(function).parameters.values()), name


def test_totals_do_not_drift():
    checks.test_total_of_many_equal_costs_does_not_drift(np.float32)
    checks.test_total_cost_of_many_steps_does_not_drift(np.float32)
