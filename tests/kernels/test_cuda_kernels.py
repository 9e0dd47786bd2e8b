"""Every CUDA kernel but the products, run by g++ in three orders of threads, against the reference backend.

Outputs begin as NaN, so that every element must be written; arrays lie amid NaN that must stay as it is; the orders of
threads must agree to the last bit.
"""

import ctypes
import dataclasses
import functools
import itertools
import math
import os
import re
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

import bpgpu
from benchmarks import gpu_sources
from bpgpu.backends.data import Data, Dropout
from bpgpu.kernels import formulas, philox
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.kernels.rules import MAX_STATES
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, output_formulas
from bpgpu.model.costs import COSTS as COST_TABLE
from bpgpu.model.optimizers import OPTIMIZERS
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")

REFERENCE = bpgpu.get_backend("numpy")
DTYPES = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
SHAPES = [(1, 1), (1, 31), (33, 1), (9, 33), (31, 65), (3, 257), (2, 1031)]
GRIDS = [1, 2, 40]
DROP = Dropout(0.3, 0x0123456789ABCDEF, 2, 5, 3)
MAX = 2**31 - 1

SWISH = bpgpu.Activation(
    "swish2", value="z / (1 + exp(-2 * z))", derivative="where(z == 0, 0.5, a / z) * (1 + 2 * z - 2 * a)"
)
LOG_COSH = bpgpu.Cost(
    "log_cosh", value="abs(a - y) + log1p(exp(-2 * abs(a - y)))", gradient="tanh(a - y)", reduction="mean"
)
ELEMENTWISE = {name: sigma for name, sigma in ACTIVATIONS.items() if not sigma.rowwise} | {"swish2": SWISH}
COSTS = COST_TABLE | {"log_cosh": LOG_COSH}
PAIRS = {f"{s}_{c}": (ELEMENTWISE[s], COSTS[c]) for s, c in itertools.product(ELEMENTWISE, COSTS)}


# Compiling and launching


def module(file, dtype, **expressions):
    return device.compile_module(cuda_kernels.module_source(file, np.dtype(dtype), expressions))


def combined(file, dtype, cases):
    """Compile a file for many sets of formulas into one module; kernels that call formulas are named name__case."""
    return device.compile_module(gpu_sources.combined(file, np.dtype(dtype), cases)[0])


@functools.cache
def forward_module(dtype):
    return combined("forward.cu", dtype, {name: {"sigma": s.value} for name, s in ELEMENTWISE.items()})


@functools.cache
def hidden_module(dtype):
    return combined("hidden.cu", dtype, {name: {"sigma_prime": s.derivative} for name, s in ELEMENTWISE.items()})


@functools.cache
def output_module(dtype):
    cases = {}
    for case, (sigma, cost) in PAIRS.items():
        value, delta = output_formulas(sigma, cost)
        cases[case] = {"sigma": sigma.value, "cost_value": value, "cost_delta": delta}
    return combined("output.cu", dtype, cases)


@functools.cache
def softmax_module(dtype):
    cases = {}
    for name, cost in COSTS.items():
        value, gradient = output_formulas(ACTIVATIONS["softmax"], cost)
        cases[name] = {"cost_value": value, "cost_gradient": gradient}
    return combined("output_softmax.cu", dtype, cases)


MARGIN = 0 if device.SANITIZE in os.environ else 64  # there the sanitizer sees what is outside


def padded(array, offset=0):
    """Return a copy amid NaN (-1 for integers), 64-byte aligned but for `offset` elements, and all of its memory."""
    if not MARGIN:
        memory = np.empty(offset + array.size, array.dtype)  # that ends with the copy
        copy = memory[offset:].reshape(array.shape)
    else:
        memory = np.full((array.size + 2 * MARGIN) * array.itemsize + 64, 0xFF, np.uint8)
        start = -memory.ctypes.data % 64 + (MARGIN + offset) * array.itemsize
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy, memory


def check_margins(copy, memory):
    if MARGIN:
        start = copy.ctypes.data - memory.ctypes.data
        assert (memory[:start] == 0xFF).all(), "written before an array"
        assert (memory[start + copy.nbytes :] == 0xFF).all(), "written behind an array"


def launch(kernel, grid, *args, block=256, offset=0):
    """Run a kernel in all orders of threads; return its arguments afterwards, which must agree bit for bit."""
    runs = []
    for order in device.ORDERS:
        copies = {id(arg): padded(arg, offset) for arg in args if isinstance(arg, np.ndarray)}
        values = tuple(copies[id(arg)][0] if id(arg) in copies else arg for arg in args)
        kernel(grid if isinstance(grid, tuple) else (grid,), (block,), values, order=order)
        for copy, memory in copies.values():
            check_margins(copy, memory)
        runs.append(values)
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert not isinstance(one, np.ndarray) or one.tobytes() == other.tobytes(), (
                "depends on the order of threads"
            )
    return runs[0]


def control(step=0, latch=0, closed=0, epoch=0):
    return np.array([latch, step, MAX, MAX, closed, np.uint32(epoch).view(np.int32), 0, 0], np.int32)


def control_of(dropout):
    return control(step=dropout.step, epoch=dropout.epoch)


def dropout_args(dropout, dtype):
    """Return DROPOUT_ARGS of a kernel."""
    if dropout is None:
        return np.uint32(0), dtype(1), np.uint32(0), np.uint32(0), np.uint32(0)
    threshold = min(round(dropout.rate * 2**32), 2**32 - 1)
    key = np.uint32(dropout.seed & 0xFFFFFFFF), np.uint32(dropout.seed >> 32)
    return np.uint32(threshold), dtype(1 / (1 - dropout.rate)), *key, np.uint32(dropout.layer)


def nan(*shape, dtype):
    return np.full(shape, np.nan, dtype)


def close(got, want, factor=64):
    """Compare to a few units in the last place, relative to the element and to the largest."""
    eps = np.finfo(got.dtype).eps * factor
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=eps, atol=eps * np.abs(want).max(initial=0))


def variants(shapes=SHAPES):
    """Shapes and grids; what may be null given and not; arrays on and off their alignment."""
    for k, (optional, shape) in enumerate(itertools.product([True, False], shapes)):
        yield shape, GRIDS[k % 3], optional, k % 2


# Sources


def test_every_file_has_its_formulas_and_every_kernel_its_abi():
    folder = cuda_kernels.resources.files("bpgpu.kernels.cuda")
    files = {entry.name for entry in folder.iterdir() if entry.name.endswith(".cu")}
    assert files == set(cuda_kernels.FORMULAS) == {file for file, _ in cuda_kernels.ABI.values()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("file", cuda_kernels.FORMULAS)
def test_abi_is_what_the_compiler_sees(file, dtype):
    """The types that a regex finds in the text are those of the compiled functions."""
    expressions = {name: "p = 1" if name == "rule" else "1" for name in cuda_kernels.FORMULAS[file]}
    built = module(file, dtype, **expressions)
    names = {"T": np.dtype(dtype).name, "int": "int32", "unsigned": "uint32", "long long": "int64"}
    for kernel in built.names:
        where, types = cuda_kernels.ABI[kernel]
        assert where == file
        found = []
        for declared in types:
            const, name, star = re.fullmatch(r"(const )?([a-zA-Z ]+?)(\*?)", declared).groups()
            found.append((const or "") + names[name] + star)
        assert built.get_function(kernel).types == found
    assert set(built.names) == {name for name, (where, _) in cuda_kernels.ABI.items() if where == file}


@pytest.mark.parametrize("file", ["common.cuh", "philox.cuh", *cuda_kernels.FORMULAS])
def test_no_type_but_the_working_type(file):
    """No double, no float, and no literal of either but inside T(...)."""
    code = re.sub(r"//[^\n]*", "", cuda_kernels._text(file))
    assert not re.search(r"\b(double|float)\b", code)
    assert not re.search(r"\d\.|\.\d|\b\d+[eE]\d", re.sub(r"\w+\.x|\.w\[", "", code))
    assert not re.search(r"atomic(?!Max\(&ctl\[0\]|Min\(&ctl\[fault\])", code)


def test_module_source_refuses_what_it_does_not_know():
    float32 = np.dtype(np.float32)
    with pytest.raises(KeyError):
        cuda_kernels.module_source("backward.cu", float32, {})
    with pytest.raises(KeyError):
        cuda_kernels.module_source("dropout.cu", np.dtype(np.float16), {})
    with pytest.raises(KeyError, match="sigma_prime"):
        cuda_kernels.module_source("hidden.cu", float32, {"sigma": "z"})
    with pytest.raises(bpgpu.FormulaError):
        cuda_kernels.module_source("forward.cu", float32, {"sigma": "a"})
    with pytest.raises(bpgpu.FormulaError):
        cuda_kernels.module_source("forward.cu", float32, {"sigma": "z; }"})


# forward.cu


def check_bias(kernel, sigma, dtype, spread=3.0):
    rng = np.random.default_rng(1)
    for (rows, n), grid, optional, offset in variants():
        product = (spread * rng.normal(size=(rows, n))).astype(dtype)
        b = rng.normal(size=n).astype(dtype) if optional else None
        dropout = DROP if optional else None
        want_a, want_z, want_h = np.empty_like(product), np.empty_like(product), np.empty_like(product)
        REFERENCE.forward(product, np.eye(n, dtype=dtype), b, sigma, out=want_a, out_z=want_z)
        z, h = (nan(rows, n, dtype=dtype) if optional else None for _ in range(2))
        ctl = control_of(DROP)
        sizes = np.int32(rows), np.int32(n)
        a, h, z, *_ = launch(kernel, grid, product, h, z, b, *sizes, *dropout_args(dropout, dtype), ctl, offset=offset)
        close(a, want_a)
        if optional:
            close(z, want_z, 1)
            REFERENCE.dropout(a, DROP, out=want_h)
            close(h, want_h, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_bias_sigma(name, dtype):
    check_bias(forward_module(dtype).get_function(f"bias_sigma__{name}"), ELEMENTWISE[name], dtype)


@pytest.mark.parametrize("spread", [3.0, 3000.0], ids=["usual", "large"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_softmax(dtype, spread):
    """Large z: exp of any of them alone would overflow."""
    check_bias(forward_module(dtype).get_function("bias_softmax"), ACTIVATIONS["softmax"], dtype, spread)


# output.cu, output_softmax.cu


def check_output(kernel, sigma, cost, dtype, factor=2000, shapes=SHAPES, gap=0):
    """Hold an output kernel against the reference; with a gap, one z of each row is larger than the others by that."""
    rng = np.random.default_rng(2)
    for (rows, n), grid, optional, offset in variants(shapes):
        product = rng.uniform(-2, 2, size=(rows, n)).astype(dtype)
        product[np.arange(rows), rng.integers(n, size=rows)] += gap
        y = rng.uniform(size=(rows, n)).astype(dtype) * (rng.uniform(size=(rows, n)) < 0.7).astype(dtype)
        b = rng.normal(size=n).astype(dtype) / 4 if optional else None
        weight = rng.uniform(0.5, 2, size=rows).astype(dtype) if optional else None
        scale = rng.uniform(0.5, 2, size=rows).astype(dtype)
        z = product if b is None else product + b
        want_a, want_delta, want_cost = np.empty_like(z), np.empty_like(z), np.empty_like(scale)
        REFERENCE.output_delta(z, y, scale, sigma, cost, out_a=want_a, out_delta=want_delta, out_cost=want_cost)
        part = dtype(1 / n if cost.reduction == "mean" else 1)
        outputs = nan(rows, n, dtype=dtype), nan(rows, n, dtype=dtype), nan(rows, dtype=dtype)
        totals = rng.normal(size=2 * rows).astype(dtype) if optional else None  # pairs
        inputs = b, y, scale, weight, totals, np.int32(rows), np.int32(n), part
        got_z, a, delta, costs, *_, got_totals, _, _, _, ctl = launch(
            kernel, grid, product, *outputs, *inputs, control(), offset=offset
        )
        close(got_z, z, 1)
        close(a, want_a)
        close(delta, want_delta, factor)
        close(costs, want_cost if weight is None else want_cost * weight, factor)
        if totals is not None:
            close(got_totals[0::2], totals[0::2] + costs, 1)
            left_out = got_totals.reshape(-1, 2).astype(float).sum(axis=1) - totals.reshape(-1, 2).sum(axis=1) - costs
            largest = max(np.abs(x).max(initial=0) for x in (totals, costs))
            assert np.abs(left_out).max(initial=0) <= 8 * np.finfo(dtype).eps * largest
        assert ctl.tolist() == control().tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PAIRS)
def test_output_delta(case, dtype):
    check_output(output_module(dtype).get_function(f"output_delta__{case}"), *PAIRS[case], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name, cost in COSTS.items() if cost != CROSS_ENTROPY])
def test_softmax_cost(name, dtype):
    kernel = softmax_module(dtype).get_function(f"softmax_cost__{name}")
    check_output(kernel, ACTIVATIONS["softmax"], COSTS[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_cross_entropy(dtype):
    kernel = softmax_module(dtype).get_function("softmax_cross_entropy")
    check_output(kernel, ACTIVATIONS["softmax"], CROSS_ENTROPY, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_cross_entropy_of_sure_outputs(dtype):
    """z so far apart that a is 0 or 1: cost and delta stay finite, and a target of 0 costs nothing."""
    kernel = softmax_module(dtype).get_function("softmax_cross_entropy")
    far = np.finfo(dtype).max  # -far - far, a logarithm of an output, is -infinity
    z = np.array([[1e4, -1e4, 0], [-far, far, 0]], dtype)
    y = np.array([[0, 1, 0], [0, 1, 0]], dtype)
    outputs = nan(2, 3, dtype=dtype), nan(2, 3, dtype=dtype), nan(2, dtype=dtype)
    inputs = None, y, np.ones(2, dtype), None, None, np.int32(2), np.int32(3), dtype(1)
    _, a, delta, cost, *_, ctl = launch(kernel, 1, z, *outputs, *inputs, control())
    assert a.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert delta.tolist() == [[1, -1, 0], [0, 0, 0]]
    assert cost.tolist() == [2e4, 0]
    assert ctl[0] == 0


# Two outputs or more: with one, softmax_cost runs.
SEVERAL = [(9, 2), (5, 31), (7, 33), (31, 65), (3, 257), (2, 1031)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0, 40, 200])
def test_softmax_binary_cross_entropy(gap, dtype):
    kernel = softmax_module(dtype).get_function("softmax_binary_cross_entropy")
    check_output(kernel, ACTIVATIONS["softmax"], BINARY_CROSS_ENTROPY, dtype, shapes=SEVERAL, gap=gap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 31, 33, 65])
def test_softmax_binary_cross_entropy_of_outputs_that_are_rounded_or_equal(n, dtype):
    """Against the reference in float64; column 0 and the last, from width 33 on also 0 and 32, are of one lane."""
    kernel = softmax_module(dtype).get_function("softmax_binary_cross_entropy")
    z, y = [], []
    for first, last, target in itertools.product([0, 17, 40, 200, 4000], [0, 39, 40, 4000], [0, 0.5, 1]):
        z.append(np.zeros(n))
        y.append(np.linspace(0, 1, n)[::-1].copy())
        z[-1][0], z[-1][-1] = first, last
        z[-1][32 % n] = z[-1][32 % n] or last
        y[-1][0] = target
    z, y = np.array(z, dtype), np.array(y, dtype)
    rows = len(z)
    wanted = np.empty((rows, n)), np.empty((rows, n)), np.empty(rows)
    sigma, cost = ACTIVATIONS["softmax"], BINARY_CROSS_ENTROPY
    arguments = z.astype(float), y.astype(float), np.ones(rows), sigma, cost
    REFERENCE.output_delta(*arguments, out_a=wanted[0], out_delta=wanted[1], out_cost=wanted[2])
    outputs = nan(rows, n, dtype=dtype), nan(rows, n, dtype=dtype), nan(rows, dtype=dtype)
    inputs = None, y, np.ones(rows, dtype), None, None, np.int32(rows), np.int32(n), dtype(1)
    _, *got, ctl = launch(kernel, 2, z, *outputs, *inputs, control())
    eps = 200 * np.finfo(dtype).eps
    for one, want in zip(got, wanted, strict=False):
        np.testing.assert_allclose(one, want, rtol=eps, atol=eps)
    assert ((got[0] == 1).any(axis=1) & (y[:, 0] != 1)).sum() > 10
    assert ctl.tolist() == control().tolist()


# hidden.cu


def check_hidden(kernel, sigma, dtype):
    rng = np.random.default_rng(3)
    for (rows, n), grid, optional, offset in variants():
        z, product = rng.normal(size=(2, rows, n)).astype(dtype)
        a, want = np.empty_like(z), np.empty_like(z)
        REFERENCE.forward(z, np.eye(n, dtype=dtype), None, sigma, out=a)
        dropout = DROP if optional else None
        needed = z if sigma.derivative_needs_z else None
        REFERENCE.hidden_delta(product, np.eye(n, dtype=dtype), a, sigma, out=want, z=needed, dropout=dropout)
        args = np.int32(rows), np.int32(n), *dropout_args(dropout, dtype), control_of(DROP)
        delta, *_, ctl = launch(kernel, grid, product, a, needed, *args, offset=offset)
        close(delta, want)
        assert ctl.tolist() == control_of(DROP).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_hidden_delta(name, dtype):
    check_hidden(hidden_module(dtype).get_function(f"hidden_delta__{name}"), ELEMENTWISE[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_softmax(dtype):
    check_hidden(hidden_module(dtype).get_function("hidden_softmax"), ACTIVATIONS["softmax"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_delta_latches_nothing_past_the_end(dtype):
    """Behind the last element a and z read as 0, where this derivative is not finite."""
    kernel = module("hidden.cu", dtype, sigma_prime="1 / a + 1 / z").get_function("hidden_delta")
    delta, a, z = np.ones((3, 3, 11), dtype)
    args = np.int32(3), np.int32(11), *dropout_args(None, dtype), control()
    delta, *_, ctl = launch(kernel, 1, delta, a, z, *args)
    assert (delta == 2).all()
    assert ctl.tolist() == control().tolist()


# dropout.cu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "where",
    [
        DROP,
        Dropout(0.5, 0, 0, 0, 1),
        Dropout(0.9, 2**64 - 1, 2**32 - 1, MAX, 9),
        Dropout(0.01, 2**63 + 1, 1, 0, 2**31),
        Dropout(1 - 2**-40, 1, 0, 0, 1),
    ],
    ids=["usual", "zeros", "ones", "large", "all"],
)
def test_dropout_has_the_bits_of_the_reference(where, dtype):
    kernel = module("dropout.cu", dtype).get_function("dropout")
    threshold, _, *rest = dropout_args(where, dtype)
    for (rows, n), grid, in_place, offset in variants():
        x, out = np.ones((rows, n), dtype), nan(rows, n, dtype=dtype)
        args = np.int32(rows), np.int32(n), threshold, dtype(1), *rest, control_of(where)
        out, *_ = launch(kernel, grid, x if in_place else out, x, *args, offset=offset)
        np.testing.assert_array_equal(out, philox.keep_mask((rows, n), **vars(where)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_scales_what_it_keeps(dtype):
    kernel = module("dropout.cu", dtype).get_function("dropout")
    x = np.random.default_rng(4).normal(size=(31, 33)).astype(dtype)
    out, want = nan(31, 33, dtype=dtype), np.empty_like(x)
    ctl = control_of(DROP)
    out, *_ = launch(kernel, 2, out, x, np.int32(31), np.int32(33), *dropout_args(DROP, dtype), ctl)
    REFERENCE.dropout(x, DROP, out=want)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_dropout_drops_is_zero_also_if_it_is_not_finite(value):
    """In kernels that take four elements at a time, and in one that takes them singly."""
    kept = philox.keep_mask((33, 31), **vars(DROP))
    x = np.full((33, 31), value, np.float32)
    sizes, drop = (np.int32(33), np.int32(31)), dropout_args(DROP, np.float32)
    kernel = module("dropout.cu", np.float32).get_function("dropout")
    out, *_ = launch(kernel, 2, nan(33, 31, dtype=np.float32), x, *sizes, *drop, control_of(DROP))
    np.testing.assert_array_equal(out, np.where(kept, x, 0))
    kernel = hidden_module(np.float32).get_function("hidden_delta__identity")
    out, *_, ctl = launch(kernel, 2, x, x, None, *sizes, *drop, control_of(DROP))
    np.testing.assert_array_equal(out, np.where(kept, x, 0))
    assert ctl[0] == 1
    x[kept] = 1  # now all that is not finite is dropped
    kernel = hidden_module(np.float32).get_function("hidden_softmax")
    out, *_, ctl = launch(kernel, 2, x, np.ones_like(x), None, *sizes, *drop, control_of(DROP))
    assert np.isfinite(out).all()
    assert ctl[0] == 0


# gather.cu


def gather_case(rng, dtype, *, rows=33, n_in=64, n_out=10, batch_size=40, step=1, explicit=True, **options):
    """Return the arguments of gather and what it must give."""
    options = {"labels": False, "weighted": True, "ordered": True} | options
    size = batch_size * step + rows
    X, Y = rng.normal(size=(size, n_in)).astype(dtype), rng.normal(size=(size, n_out)).astype(dtype)
    labels = rng.integers(n_out, size=size).astype(np.int32) if options["labels"] else None
    weight = rng.uniform(0.5, 2, size=size).astype(dtype) if options["weighted"] else None
    order = rng.permutation(size).astype(np.int32) if options["ordered"] else None
    place = slice(batch_size * step, size)
    chosen = place if order is None else order[place]
    batch = SimpleNamespace(
        a=[np.empty((rows, n_in), dtype)], y=np.empty((rows, n_out), dtype), scale=np.empty(rows, dtype)
    )
    total = 1.0 if rows == 0 else REFERENCE.load_batch(batch, Data(X, Y if labels is None else labels, weight), chosen)
    inverse_weight = nan(step + 2, dtype=dtype)
    inverse_weight[step] = 1 / total
    outputs = [nan(*shape, dtype=dtype) for shape in ((rows, n_in), (rows, n_out), (rows,), (rows,))]
    inputs = X, None if options["labels"] else Y, labels, weight, order, inverse_weight
    sizes = np.int32(rows), np.int32(n_in), np.int32(n_out), np.int32(batch_size)
    steps = (np.int32(step), control(step=7)) if explicit else (np.int32(-1), control(step=step))
    weights = np.ones(rows, dtype) if weight is None else weight[chosen]
    return (*outputs, *inputs, *sizes, *steps), (batch.a[0], batch.y, batch.scale, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("explicit", [True, False], ids=["step", "ctl"])
@pytest.mark.parametrize("n_in", [1, 2, 4, 31, 64, 257, 784])
def test_gather(n_in, explicit, dtype):
    kernel = module("gather.cu", dtype).get_function("gather")
    rng = np.random.default_rng(n_in)
    cases = itertools.product([True, False], repeat=3)
    for k, (labels, weighted, ordered) in enumerate(cases):
        rows, n_out, step = [1, 31, 33, 65][k % 4], [1, 10, 33][k % 3], k % 3
        options = {"rows": rows, "n_in": n_in, "n_out": n_out, "batch_size": 66, "step": step, "explicit": explicit}
        args, wanted = gather_case(rng, dtype, **options, labels=labels, weighted=weighted, ordered=ordered)
        x, y, scale, weight, *_, ctl = launch(kernel, GRIDS[k % 3], *args, offset=k % 2)
        np.testing.assert_array_equal(x, wanted[0])
        np.testing.assert_array_equal(y, wanted[1])
        close(scale, wanted[2], 4)
        np.testing.assert_array_equal(weight, wanted[3])
        assert ctl.tolist() == control(step=step).tolist()


def test_gather_of_far_rows():
    """Element numbers past 2^31 need 64 bits: the address of X is moved back by as many rows as `order` is ahead."""
    kernel = module("gather.cu", np.float32).get_function("gather")
    X = np.arange(24, dtype=np.float32).reshape(3, 8)
    n_in, first = 8, 2**29
    outputs = [nan(*shape, dtype=np.float32) for shape in ((3, n_in), (3, 1), (3,), (3,))]
    order = np.arange(first, first + 3, dtype=np.int32)
    far = np.ctypeslib.as_array((ctypes.c_float * 1).from_address(X.ctypes.data - first * n_in * X.itemsize))
    args = (far, far, None, None, order, np.ones(1, np.float32))
    sizes = np.int32(3), np.int32(n_in), np.int32(0), np.int32(3), np.int32(0)
    kernel((1,), (256,), (*outputs, *args, *sizes, control()))
    np.testing.assert_array_equal(outputs[0], X)


@pytest.mark.parametrize("latch", [1, 2])
def test_gather_stops_at_the_latch_and_closes_it(latch):
    kernel = module("gather.cu", np.float64).get_function("gather")
    args, _ = gather_case(np.random.default_rng(1), np.float64)
    args[-1][0] = latch
    before = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
    after = launch(kernel, 2, *args)
    for old, new in zip(before[:-1], after[:-1], strict=True):
        np.testing.assert_array_equal(old, new)
    assert after[-1].tolist() == control(step=7, latch=latch, closed=1).tolist()


def test_advance():
    kernel = module("gather.cu", np.float32).get_function("advance")
    assert launch(kernel, 1, control(step=4), block=1)[0].tolist() == control(step=5).tolist()
    assert launch(kernel, 1, control(step=4), block=32)[0].tolist() == control(step=5).tolist()
    for latch in (1, 2):
        assert launch(kernel, 1, control(step=4, latch=latch), block=1)[0].tolist() == control(4, latch).tolist()


# gradient.cu


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 33, 257])
@pytest.mark.parametrize("chunks", [1, 3, 8])
def test_column_sums(chunks, rows, dtype):
    built = module("gradient.cu", dtype)
    widths = [1, 129, 31, 128, 300]
    rng = np.random.default_rng(rows)
    deltas = [rng.normal(size=(rows, n)).astype(dtype) for n in widths]
    blocks = sum(-(-n // 128) for n in widths)
    results = []
    for order, (blocks_x, blocks_y) in itertools.product(device.ORDERS, [(blocks, chunks), (2, 1), (blocks + 3, 9)]):
        copies = [padded(delta) for delta in deltas]
        outs = [padded(nan(n, dtype=dtype)) for n in widths]
        partial = padded(nan(chunks * sum(widths), dtype=dtype))
        offsets = chunks * np.cumsum([0, *widths[:-1]])
        rows_of_table = zip(copies, outs, widths, offsets, strict=True)
        table = np.array([[d[0].ctypes.data, o[0].ctypes.data, n, at] for d, o, n, at in rows_of_table], np.int64)
        sizes = np.int32(len(widths)), np.int32(rows), np.int32(chunks)
        first, second = built.get_function("column_sums_partial"), built.get_function("column_sums_final")
        first((blocks_x, blocks_y), (128,), (table, *sizes, partial[0]), order=order)
        second((blocks_x,), (128,), (table, sizes[0], sizes[2], partial[0]), order=order)
        for memory in (*copies, *outs, partial):
            check_margins(*memory)
        for delta, (out, _), n in zip(deltas, outs, widths, strict=True):
            want = np.empty(n, dtype)
            REFERENCE.weight_gradient(np.ones((rows, 1), dtype), delta, out_W=np.empty((1, n), dtype), out_b=want)
            np.testing.assert_allclose(out, want, atol=(rows + 1) * np.finfo(dtype).eps)
        results.append(b"".join(out.tobytes() for out, _ in outs))
    assert len(set(results)) == 1, "depends on the order of threads or on the grid"


# update.cu

RULES = {
    "sgd": bpgpu.SGD(),
    "momentum": bpgpu.SGD(momentum=0.9),
    "nesterov": bpgpu.SGD(momentum=0.8, nesterov=True),
    "rmsprop": bpgpu.RMSprop(rho=0.95, epsilon=1e-6),
    "adam": bpgpu.Adam(beta1=0.85, beta2=0.999, epsilon=1e-7),
    "adam_hat": bpgpu.Adam(epsilon=1e-5, epsilon_hat=True),
    "adamw": bpgpu.AdamW(beta1=0.9, beta2=0.99, weight_decay=0.1),
    "adamw_hat": bpgpu.AdamW(weight_decay=0.1, epsilon_hat=True),
}


LISTED = list(RULES)  # of which it is known what overflows, and what the betas are of
RULES |= {name: kind() for name, kind in OPTIMIZERS.items() if name not in RULES}


def test_every_rule_of_the_table_is_tried():
    assert {name: formulas.RULES[name] for name in RULES} == formulas.RULES
    assert all(rule.formulas == formulas.RULES[name] for name, rule in RULES.items())


def update_kernel(rule, dtype):
    return module("update.cu", dtype, rule=rule.compiled.text).get_function("update")


def step_args(rule, dtype, p, g, states, ctl, *, n_weights=None, decay=0.0, mask=None, clip=None, **more):
    """Return the arguments of the update kernel."""
    schedule = more["schedule"] if "schedule" in more else rule.compiled.schedule([0.1], 1, np.dtype(dtype))
    inverse_weight = more.get("inverse_weight", nan(len(schedule), dtype=dtype))
    n_weights = p.size if n_weights is None else n_weights
    sizes = np.int64(p.size), np.int64(n_weights)
    last = dtype(more.get("penalty_scale", 0)), more.get("penalty"), ctl
    states = [*states, *[None] * (MAX_STATES - len(states))]
    return p, g, *states, mask, *sizes, dtype(decay), clip, schedule, inverse_weight, *last


def changed(rule, after):
    """Return p, the state and the control words of the arguments afterwards."""
    return after[0], list(after[2 : 2 + rule.n_state]), after[-1]


def states_of(rule, size, dtype, fill=0.0):
    return [np.full(size, fill, dtype) for _ in range(rule.n_state)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_norm", [None, 3.0])
@pytest.mark.parametrize("name", RULES)
def test_update(name, clip_norm, dtype):
    """Several steps of a schedule, with decay, mask, clipping and the sum of the penalty, `advance` in between."""
    norms, gather = module("norm.cu", dtype), module("gather.cu", dtype)
    rates = [0.1, 0.03, 0.2, 0.05]
    rule = dataclasses.replace(RULES[name], clip_norm=clip_norm)
    kernel = update_kernel(rule, dtype)
    rng = np.random.default_rng(5)
    for k, ((size, n_weights), grid) in enumerate(
        itertools.product([(1, 1), (31, 0), (257, 200), (1100, 1065)], [1, 3])
    ):
        decay = [0.0, 0.01][k % 2]
        mask = (rng.uniform(size=n_weights) < 0.8).astype(dtype) if k // 2 % 2 == 0 else None
        want = rng.normal(size=size).astype(dtype)
        state, want_state = states_of(rule, size, dtype), states_of(rule, size, dtype)
        p, ctl = want.copy(), control()
        penalty, want_penalty = np.zeros(2 * grid, dtype), 0.0  # pairs
        schedule = rule.compiled.schedule(rates, 1, np.dtype(dtype))
        inverse_weight = 1 / np.arange(1, len(rates) + 1, dtype=dtype)  # the batch of step t has weight t
        for t, eta in enumerate(rates, 1):
            g = rng.normal(size=size).astype(dtype)
            total = g.copy()
            total[:n_weights] += dtype(decay) * want[:n_weights]
            if mask is not None:
                total[:n_weights] *= mask
            want_penalty += t * REFERENCE.penalty(want[:n_weights], decay)
            REFERENCE.update(rule, want, total, want_state, t=t, learning_rate=eta, n_weights=n_weights)
            clip = None
            if clip_norm is not None:
                partial = nan(grid, 2, dtype=dtype)
                args = g, p, mask, np.int64(size), np.int64(n_weights), dtype(decay), partial
                partial = launch(norms.get_function("norm_partial"), grid, *args)[-1]
                args = partial, np.int32(grid), dtype(clip_norm), nan(1, dtype=dtype)
                clip = launch(norms.get_function("norm_final"), 1, *args)[-1]
            options = {"n_weights": n_weights, "decay": decay, "mask": mask, "clip": clip, "schedule": schedule}
            options |= {"penalty": penalty if decay else None, "penalty_scale": decay / 2}
            args = step_args(rule, dtype, p, g, state, ctl, inverse_weight=inverse_weight, **options)
            after = launch(kernel, grid, *args, offset=k % 2)
            p, state, ctl = changed(rule, after)
            penalty = penalty if after[-2] is None else after[-2]
            close(p, want, 8 * t if clip_norm is None else 100)
            assert ctl.tolist() == control(step=t - 1).tolist()
            ctl = launch(gather.get_function("advance"), 1, ctl, block=1)[0]
        for got, wanted in zip(state, want_state, strict=True):
            close(got, wanted, 32 if clip_norm is None else 100)
        close(penalty.sum(keepdims=True), np.array([want_penalty]), 100)


@pytest.mark.parametrize("name", RULES)
def test_update_of_a_fault(name):
    """The smallest index is named in whatever order, and what is not finite changes nothing."""
    rule, size = RULES[name], 3000
    kernel = update_kernel(rule, np.float32)
    for bad in ([2999], [700, 2500, 258], [0, 1, 2]):
        for value in (np.nan, np.inf, -np.inf):
            g, p = np.ones(size, np.float32), np.ones(size, np.float32)
            g[bad] = value
            args = step_args(rule, np.float32, p, g, states_of(rule, size, np.float32, fill=0.25), control())
            p, state, ctl = changed(rule, launch(kernel, 5, *args))
            assert ctl.tolist() == [2, 0, min(bad), MAX, 0, 0, 0, 0]
            assert (p[bad] == 1).all()
            assert (np.delete(p, bad) != 1).all()
            assert all((x[bad] == 0.25).all() for x in state)


@pytest.mark.parametrize("name", LISTED)
def test_update_that_overflows(name):
    """A parameter or its state that is not finite afterwards is named; also beside a gradient that was not finite."""
    rule = RULES[name]
    kernel = update_kernel(rule, np.float32)
    largest = np.finfo(np.float32).max
    for bad, also in itertools.product([[2999], [700, 2500, 258]], [[], [3, 2998]]):
        p, g = np.ones(3000, np.float32), np.ones(3000, np.float32)
        if "g * g" in str(rule.formulas):  # it overflows
            g[bad] = largest
        else:
            p[bad], g[bad] = largest, -largest
        g[also] = np.nan
        args = step_args(rule, np.float32, p, g, states_of(rule, 3000, np.float32), control())
        ctl = launch(kernel, 5, *args)[-1]
        assert ctl.tolist() == [3, 0, min(also, default=MAX), min(bad), 0, 0, 0, 0]


@pytest.mark.parametrize(
    "ctl", [control(latch=1), control(latch=1, closed=1), control(latch=2, closed=1), control(latch=3, closed=1)]
)
@pytest.mark.parametrize("name", RULES)
def test_update_stops_at_the_latch(name, ctl):
    rule = RULES[name]
    p, g, penalty = np.ones(300, np.float32), np.full(300, np.nan, np.float32), np.ones(4, np.float32)
    state = states_of(rule, 300, np.float32)
    args = step_args(rule, np.float32, p, g, state, ctl, penalty=penalty, penalty_scale=1)
    after = launch(update_kernel(rule, np.float32), 2, *args)
    for old, new in zip(args, after, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", [name for name in LISTED if name != "sgd"])
def test_an_infinite_state_stays_what_it_is(name):
    """And p with it, of the rules that divide by its root: with NaN, nothing would say that it was the state."""
    rule, p, g = RULES[name], np.ones(40, np.float32), np.ones(40, np.float32)
    *others, last = states_of(rule, 40, np.float32)
    args = step_args(rule, np.float32, p, g, [*others, np.full_like(last, np.inf)], control())
    p, state, _ = changed(rule, launch(update_kernel(rule, np.float32), 1, *args))
    assert (state[-1] == np.inf).all()
    assert np.isfinite(p).all() == ("sqrt" in rule.formulas["p"])


def test_update_of_nothing():
    rule, empty, penalty = RULES["sgd"], np.empty(0, np.float32), np.full(4, 3.0, np.float32)
    options = {"penalty": penalty, "penalty_scale": 1, "inverse_weight": np.ones(1, np.float32)}
    args = step_args(rule, np.float32, empty, empty, [], control(), **options)
    *_, penalty, ctl = launch(update_kernel(rule, np.float32), 2, *args)
    assert penalty.tolist() == [3, 3, 3, 3]
    assert ctl.tolist() == control().tolist()


def test_update_with_as_much_state_as_there_may_be():
    """Each state by itself, and what is made of all of them."""

    class Four(bpgpu.Optimizer):
        formulas: ClassVar = {
            "first": "first + g",
            "p": "p - eta * first",
            "s3": "s3 + 2 * g",  # names that the kernels have for something else
            "n0": "n0 + s3",
            "int": "int + first * p * is_weight",
        }

    rule, size, dtype = Four(0.5), 300, np.float64
    rng = np.random.default_rng(2)
    p, g = rng.normal(size=size), rng.normal(size=size)
    want, state, want_state = p.copy(), states_of(rule, size, dtype), states_of(rule, size, dtype)
    for t in (1, 2):
        REFERENCE.update(rule, want, g, want_state, t=t, learning_rate=0.1, n_weights=200)
        args = step_args(rule, dtype, p, g, state, control(), n_weights=200)
        p, state, _ = changed(rule, launch(update_kernel(rule, dtype), 2, *args))
    for got, wanted in zip([p, *state], [want, *want_state], strict=True):
        close(got, wanted, 32)
    np.testing.assert_allclose(state[2], 6 * g)  # 2 g + 4 g
    assert (state[3][200:] == 0).all()


# Norm and total


def clip_factor(dtype, g, clip_norm, grid=3):
    built = module("norm.cu", dtype)
    args = g, g, None, np.int64(g.size), np.int64(g.size), dtype(0), nan(grid, 2, dtype=dtype)
    partial = launch(built.get_function("norm_partial"), grid, *args)[-1]
    args = partial, np.int32(grid), dtype(clip_norm), nan(1, dtype=dtype)
    return launch(built.get_function("norm_final"), 1, *args)[-1][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "grid"), [(1, 1), (31, 1), (257, 2), (2000, 1), (2000, 3), (257, 300)])
def test_norm(size, grid, dtype):
    rng = np.random.default_rng(size)
    g = rng.normal(size=size).astype(dtype)
    norm = np.linalg.norm(g.astype(np.float64))
    for magnitude in (1, float(np.finfo(dtype).max) / 8, float(np.finfo(dtype).tiny) * 4):
        scaled = (g * dtype(magnitude)).astype(dtype)
        got = clip_factor(dtype, scaled, dtype(magnitude * 0.5), grid)
        assert got == pytest.approx(min(1, 0.5 / norm), rel=float(200 * np.finfo(dtype).eps))
    assert clip_factor(dtype, g, 1.01 * norm, grid) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_zeros_and_of_what_is_not_finite(dtype):
    g = np.zeros(1000, dtype)
    assert clip_factor(dtype, g, 1.0) == 1
    for value in (np.nan, np.inf, -np.inf):
        for where, others in itertools.product((0, 500, 999), (np.linspace(-1, 1, 1000), np.zeros(1000))):
            bad = others.astype(dtype)
            bad[where] = value
            assert np.isnan(clip_factor(dtype, bad, 1.0)), (value, where)


def test_a_clip_that_is_not_finite_changes_nothing():
    rule, p, g = RULES["sgd"], np.ones(600, np.float32), np.ones(600, np.float32)
    g[400] = np.inf
    args = step_args(rule, np.float32, p, g, [], control(), clip=np.full(1, np.nan, np.float32))
    p, *_, ctl = launch(update_kernel(rule, np.float32), 2, *args)
    assert (p == 1).all()
    assert ctl[:3].tolist() == [2, 0, 400]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "slots"), [(0, 0), (1, 0), (255, 1), (257, 300), (1000, 3)])
def test_total(n, slots, dtype):
    rng = np.random.default_rng(n)
    cost, penalty = rng.normal(size=2 * n).astype(dtype), rng.normal(size=2 * slots).astype(dtype)
    args = cost, np.int64(n), penalty if slots else None, np.int32(slots), nan(1, dtype=dtype)
    out = launch(module("norm.cu", dtype).get_function("total"), 1, *args)[-1]
    np.testing.assert_allclose(out[0], cost.sum() + penalty.sum(), atol=1000 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_total_of_many_equal_costs_does_not_drift(dtype):
    cost = np.zeros(20_000, dtype)
    cost[0::2], cost[1::2] = dtype(0.1), dtype(1e-9)
    args = cost, np.int64(10_000), None, np.int32(0), nan(1, dtype=dtype)
    out = launch(module("norm.cu", dtype).get_function("total"), 1, *args)[-1]
    np.testing.assert_allclose(out[0], math.fsum(cost.astype(float)), rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_total_cost_of_many_steps_does_not_drift(dtype):
    """One row, whose cost of each step is added to what the steps before have left."""
    formulas = {"sigma": "z", "cost_value": "y", "cost_delta": "y"}
    kernel, totals = module("output.cu", dtype, **formulas).get_function("output_delta"), np.zeros(2, dtype)
    one, y, steps = np.ones(1, dtype), np.full((1, 1), 0.1, dtype), 500
    for _ in range(steps):
        outputs = np.ones((1, 1), dtype), nan(1, 1, dtype=dtype), nan(1, 1, dtype=dtype), nan(1, dtype=dtype)
        *_, totals, _, _, _, _ = launch(
            kernel, 1, *outputs, None, y, one, None, totals, np.int32(1), np.int32(1), dtype(1), control()
        )
    np.testing.assert_allclose(totals[0] + totals[1], steps * float(y[0, 0]), rtol=np.finfo(dtype).eps)


@pytest.mark.parametrize("missing", [2e-8, 1e-6])
@pytest.mark.parametrize("name", [name for name in LISTED if name != "sgd"])
def test_update_with_a_beta_near_1_is_right_on_average(name, missing):
    """A beta rounded to float32 would shrink the state by 0 or 1.013e-6; the roundings of many numbers cancel out."""
    T, size, kept, rng = np.float32, 4000, 1 - missing, np.random.default_rng(0)
    betas = {"momentum", "rho", "beta1", "beta2"} & set(vars(RULES[name]))
    rule = dataclasses.replace(RULES[name], **dict.fromkeys(betas, kept))
    momentum = "momentum" in betas
    start, g = rng.uniform(1, 2, size).astype(T), rng.uniform(-1, 1, size).astype(T)
    g *= T(1e-6 if momentum else 10)
    schedule = rule.compiled.schedule([1.0], 1, np.dtype(T))
    args = step_args(
        rule, T, np.zeros(size, T), g, [start.copy() for _ in range(rule.n_state)], control(), schedule=schedule
    )
    _, state, _ = changed(rule, launch(update_kernel(rule, T), 3, *args))
    g, start = g.astype(float), start.astype(float)
    added = {"momentum": -g, "rho": missing * g**2, "beta1": missing * g, "beta2": missing * g**2}
    for found, beta in zip(state, sorted(betas), strict=True):
        assert abs(np.mean(found - (kept * start + added[beta]))) < 5e-9


# The latch


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 13, 32])
def test_output_sets_the_latch(row, value):
    cases = {
        "identity_half_squared_error": output_module(np.float32).get_function(
            "output_delta__identity_half_squared_error"
        ),
        "softmax_cost": softmax_module(np.float32).get_function("softmax_cost__squared_error"),
        "softmax_cross_entropy": softmax_module(np.float32).get_function("softmax_cross_entropy"),
        "softmax_binary_cross_entropy": softmax_module(np.float32).get_function("softmax_binary_cross_entropy"),
    }
    shape = (33, 40)
    for kernel in cases.values():
        for latch in (0, 1, 2):
            z = np.zeros(shape, np.float32)
            z[row, 37] = value
            outputs = (*(nan(*shape, dtype=np.float32) for _ in range(2)), nan(33, dtype=np.float32))
            ones = np.ones(33, np.float32)
            inputs = None, np.ones(shape, np.float32), ones, ones, None, np.int32(33), np.int32(40), np.float32(1)
            ctl = launch(kernel, 2, z, *outputs, *inputs, control(step=3, latch=latch))[-1]
            assert ctl.tolist() == control(step=3, latch=latch or 1).tolist()


def test_each_output_may_set_the_latch():
    """A scale, a weight, a target, a bias that is not finite: what it spoils alone is enough."""
    kernel = output_module(np.float32).get_function("output_delta__sigmoid_half_squared_error")
    for spoiled in range(4):
        b, y, scale, weight = (np.ones(s, np.float32) for s in ((40,), (33, 40), (33,), (33,)))
        target = (b, y, scale, weight)[spoiled]
        target.flat[target.size - 1] = np.inf
        outputs = (*(nan(33, 40, dtype=np.float32) for _ in range(2)), nan(33, dtype=np.float32))
        inputs = b, y, scale, weight, None, np.int32(33), np.int32(40), np.float32(1)
        ctl = launch(kernel, 2, np.ones((33, 40), np.float32), *outputs, *inputs, control())[-1]
        assert ctl[0] == 1, spoiled


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["hidden_delta__tanh", "hidden_softmax"])
def test_hidden_sets_the_latch(name, value):
    kernel = hidden_module(np.float32).get_function(name)
    for place in (0, 700, 33 * 41 - 1):
        for latch in (0, 1, 2):
            delta, a = np.ones((33, 41), np.float32), np.full((33, 41), 0.5, np.float32)
            delta.flat[place] = value
            args = np.int32(33), np.int32(41), *dropout_args(None, np.float32), control(latch=latch)
            assert launch(kernel, 1, delta, a, None, *args)[-1].tolist() == control(latch=latch or 1).tolist()


# Nothing to do


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    empty, line, ctl = np.empty((0, 5), dtype), np.empty(0, dtype), control()
    sizes = np.int32(0), np.int32(5)
    drop = dropout_args(DROP, dtype)
    for name in ("bias_sigma__tanh", "bias_softmax"):
        launch(forward_module(dtype).get_function(name), 1, empty, empty, empty, np.ones(5, dtype), *sizes, *drop, ctl)
    for name in ("hidden_delta__gelu", "hidden_softmax"):
        after = launch(hidden_module(dtype).get_function(name), 1, empty, empty, empty, *sizes, *drop, ctl)
        assert after[-1].tolist() == ctl.tolist()
    kernels = [
        output_module(dtype).get_function("output_delta__tanh_squared_error"),
        softmax_module(dtype).get_function("softmax_cost__squared_error"),
        softmax_module(dtype).get_function("softmax_cross_entropy"),
        softmax_module(dtype).get_function("softmax_binary_cross_entropy"),
    ]
    for kernel in kernels:
        inputs = np.ones(5, dtype), empty, line, line, line, *sizes, dtype(1), ctl
        assert launch(kernel, 1, empty, empty, empty, line, *inputs)[-1].tolist() == ctl.tolist()
    launch(module("dropout.cu", dtype).get_function("dropout"), 1, empty, empty, *sizes, *drop, ctl)
    args, _ = gather_case(np.random.default_rng(0), dtype, rows=0, weighted=False)
    launch(module("gather.cu", dtype).get_function("gather"), 1, *args)
