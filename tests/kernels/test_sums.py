"""Long sums, and constants that are small beside 1: what float32 loses of them, unless one takes care."""

import ctypes
import math

import numpy as np
import pytest
from scipy import sparse

import bpgpu
from bpgpu.backends import sums
from bpgpu.backends.plan import Plan
from bpgpu.kernels.cpu import formulas as compiled
from bpgpu.kernels.cpu import sums as numba_cpu_sums
from bpgpu.kernels.cpu import update as numba_cpu_update

BACKENDS = ["numpy", "numba"]
EPS = float(np.finfo(np.float32).eps)


# The penalty. One step of each weight is rounded to about 1e-7; on average over many weights that cancels out.


@pytest.mark.parametrize("given", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shrinks_by", [2e-8, 4e-8, 1e-6])
def test_penalty_of_plain_sgd_is_not_rounded_away(shrinks_by, backend, given):
    """1 - 2e-8 is 1 in float32, and 1 - 4e-8 is 1 - 6e-8."""
    rng, n, eta = np.random.default_rng(0), 20_000, 1e-2
    W = rng.uniform(1, 2, (1, n)).astype(np.float32)
    y = W + rng.uniform(-1e-4, 1e-4, (1, n)).astype(np.float32)
    net = bpgpu.MLP(
        [1, n], "identity", "half_squared_error", bias=False, l2=shrinks_by / eta, init=[W], backend=backend
    )
    net.fit(given(np.ones((1, 1), np.float32)), y, optimizer=bpgpu.SGD(eta), epochs=1, batch_size=1)
    W = W.astype(float)
    right = W - eta * (W - y) - shrinks_by * W
    assert abs(np.mean(net.weights[0] - right)) < 5e-9


def test_penalty_of_inputs_that_no_sample_has():
    """Their gradient is the penalty alone."""
    X = sparse.csr_array(np.array([[1, 0, 2, 0], [0, 0, 1, 0]], np.float32))
    nets = [bpgpu.MLP([4, 3], "identity", "half_squared_error", l2=0.5, seed=1, backend=name) for name in BACKENDS]
    for net in nets:
        net.fit(X, np.ones((2, 3)), optimizer=bpgpu.SGD(0.1), epochs=3, batch_size=1, shuffle=False)
    np.testing.assert_allclose(nets[0].weights[0], nets[1].weights[0], rtol=4 * EPS)


# Rules whose beta is near 1

RULES = {
    "momentum": lambda beta: bpgpu.SGD(1.0, momentum=beta),
    "nesterov": lambda beta: bpgpu.SGD(1.0, momentum=beta, nesterov=True),
    "rmsprop": lambda beta: bpgpu.RMSprop(1.0, rho=beta, epsilon=1.0),
    "adam": lambda beta: bpgpu.Adam(1.0, beta, beta, 1.0),
    "adam_hat": lambda beta: bpgpu.Adam(1.0, beta, beta, 1.0, epsilon_hat=True),
    "adamw": lambda beta: bpgpu.AdamW(1.0, beta, beta, 1.0),
    "adamw_hat": lambda beta: bpgpu.AdamW(1.0, beta, beta, 1.0, epsilon_hat=True),
}


def compiled_update(rule, p, g, state):
    """Take the first step of a rule in compiled code."""
    address = compiled.rule(rule.compiled.text, p.dtype)
    arrays = np.array([x.ctypes.data for x in (p, g, *state)])
    (numbers,) = rule.compiled.schedule([1.0], 1, p.dtype)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(address)
    function(arrays.ctypes.data, numbers.ctypes.data, 0, p.size, 0)


@pytest.mark.parametrize("missing", [2e-8, 1e-6])
@pytest.mark.parametrize("in_compiled_code", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_state_of_a_rule_with_a_beta_near_1_is_right_on_average(name, in_compiled_code, missing):
    """A beta rounded to float32 would shrink it by 0 or by 1.013e-6."""
    T, size, rng, momentum = np.float32, 4000, np.random.default_rng(0), name in ("momentum", "nesterov")
    start, g = rng.uniform(1, 2, size).astype(T), rng.uniform(-1, 1, size).astype(T)
    g *= T(1e-6 if momentum else 10)
    rule, p = RULES[name](1 - missing), np.zeros(size, T)
    state = [start.copy() for _ in range(rule.n_state)]
    if in_compiled_code:
        compiled_update(rule, p, g, state)
    else:
        bpgpu.get_backend("numpy").update(rule, p, g, state, t=1, learning_rate=1.0, n_weights=0)
    g, start = g.astype(float), start.astype(float)
    added = [-g] if momentum else [missing * g**2] if name == "rmsprop" else [missing * g, missing * g**2]
    for found, more in zip(state, added, strict=True):
        assert abs(np.mean(found - ((1 - missing) * start + more))) < 5e-9


@pytest.mark.parametrize("in_compiled_code", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_state_of_a_rule_without_memory_is_what_the_gradient_says(name, in_compiled_code):
    """Where beta is 0, or nearly, the state must not keep a trace of what was large before."""
    rule = RULES[name](1e-3)
    p, g, momentum = np.zeros(3, np.float32), np.full(3, 1e-3, np.float32), name in ("momentum", "nesterov")
    state = [np.full(3, 1.0, np.float32) for _ in range(rule.n_state)]
    if in_compiled_code:
        compiled_update(rule, p, g, state)
    else:
        bpgpu.get_backend("numpy").update(rule, p, g, state, t=1, learning_rate=1.0, n_weights=0)
    squares = 1e-3 + (1 - 1e-3) * 1e-6
    expected = [1e-3 - 1e-3] if momentum else [squares] if name == "rmsprop" else [1e-3 + (1 - 1e-3) * 1e-3, squares]
    for found, wanted in zip(state, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=8 * EPS, atol=1e-9)


# Sums. That of gradients over rows is in the parity matrix, `bpgpu/proof/accuracy_sums.py`.


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1025, 4097])
@pytest.mark.parametrize("columns", [1, 5])
def test_column_sums_have_every_row_once(n, columns):
    x = np.random.default_rng(n).integers(-9, 9, (n, columns)).astype(np.float64)
    out, compiled = np.full(columns, np.nan), np.full(columns, np.nan)
    sums.column_sums(np, x, out=out)
    numba_cpu_sums.column_sums(x.ctypes.data, n, columns, compiled)
    assert out.tolist() == compiled.tolist() == x.sum(axis=0).tolist()


@pytest.mark.parametrize("terms", [1, 256, 257, 1000, 4099])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_products_have_every_term_once(terms, form):
    rng = np.random.default_rng(terms)
    x, y = rng.integers(-9, 9, (3, terms)) * (rng.random((3, terms)) < 0.7), rng.integers(-9, 9, (terms, 2))
    x[1] = 0
    x, y, out = x.astype(np.float64), y.astype(np.float64), np.full((3, 2), np.nan)
    sums.product(np, form(x), y, out=out)
    assert out.tolist() == (x @ y).tolist()


@pytest.mark.parametrize("given", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_equal_inputs_are_summed_as_exactly_as_promised(backend, given):
    n = 100_000
    X, W = np.full((2, n), 0.1, np.float32), np.full((n, 2), 0.1, np.float32)
    net = bpgpu.MLP([n, 2], "identity", "half_squared_error", bias=False, init=[W], backend=backend)
    data = net.checked_data(given(X), np.zeros((2, 2), np.float32))
    plan = Plan(net.architecture, 2, net.backend, nonzeros=data.nonzeros).allocate()
    net.backend.gradients(plan, data, net.parameters)
    exact = n * float(np.float32(0.1)) ** 2
    np.testing.assert_allclose(plan.batch(2).z[1], exact, rtol=8 * EPS * math.sqrt(n / 64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_penalty_of_many_equal_weights_does_not_drift(backend):
    W = np.full((1000, 1000), 0.1)
    net = bpgpu.MLP(
        [1000, 1000], "identity", "half_squared_error", bias=False, l2=1.0, init=[W], dtype="float32", backend=backend
    )
    X = np.zeros((4, 1000), np.float32)
    exact = 1e6 * float(np.float32(0.1)) ** 2 / (2 * 4)
    assert net.loss(X, X) == pytest.approx(exact, rel=4 * EPS)
    loss = net.fit(X, X, optimizer=bpgpu.SGD(1e-9), epochs=1, batch_size=4).loss[0]
    assert loss == pytest.approx(exact, rel=4 * EPS)


@pytest.mark.parametrize("weight", [None, 0.3])
@pytest.mark.parametrize(("backend", "steps"), [("numpy", 3000), ("numba", 100_000)])
def test_loss_of_an_epoch_of_many_equal_steps_does_not_drift(backend, steps, weight):
    net = bpgpu.MLP([1, 1], "identity", "half_squared_error", init="zeros", dtype="float64", backend=backend)
    y, weights = np.full((steps, 1), 0.1), None if weight is None else np.full(steps, weight)
    rule = bpgpu.SGD(1e-30)  # which leaves every cost what it is
    (loss,) = net.fit(np.zeros((steps, 1)), y, optimizer=rule, epochs=1, batch_size=1, sample_weight=weights).loss
    assert loss == pytest.approx(0.1**2 / 2, rel=8 * float(np.finfo(float).eps))


def test_norm_that_clips_does_not_drift():
    g = np.full(1_000_000, 0.1)
    slabs = np.array([[0, 1000], [1000, len(g)]])
    exact = len(g) * 0.3**2
    assert numba_cpu_update.squares(g, 0.1 / 0.3, slabs) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("cost", ["cross_entropy", "binary_cross_entropy", "half_squared_error"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_of_many_equal_outputs_keeps_the_promise(backend, cost):
    n = 10_000
    b = np.full(n, 0.1, np.float32)
    b[0] = 2
    y = np.full((2, n), 1 / n, np.float32)
    costs = []
    for dtype in ("float32", "float64"):
        net = bpgpu.MLP([1, n], "softmax", cost, init=[(np.zeros((1, n)), b)], dtype=dtype, backend=backend)
        data = net.checked_data(np.zeros((2, 1)), y.astype(dtype))
        plan = Plan(net.architecture, 2, net.backend).allocate()
        costs.append(net.backend.gradients(plan, data, net.parameters))
    assert costs[0] == pytest.approx(costs[1], rel=16 * EPS * math.sqrt(n / 64))


@pytest.mark.parametrize(("activation", "cost"), [("identity", "half_squared_error"), ("sigmoid", "cross_entropy")])
@pytest.mark.parametrize("outputs", [100, 1000, 200_000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_cost_of_a_sample_with_many_equal_outputs_does_not_drift(backend, outputs, activation, cost):
    b = np.full(outputs, 0.3, np.float32)
    y = np.full((1, outputs), 0.1)
    costs = []
    for dtype in ("float32", "float64"):
        net = bpgpu.MLP(
            [1, outputs], activation, cost, init=[(np.zeros((1, outputs)), b)], dtype=dtype, backend=backend
        )
        rule = bpgpu.SGD(1e-30)
        costs += net.fit(np.zeros((1, 1)), y, optimizer=rule, epochs=1, batch_size=1).loss
    assert costs[0] == pytest.approx(costs[1], rel=8 * EPS)
