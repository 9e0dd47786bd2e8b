"""Cost and delta of every output layer against 150 digits, each relative to its own size, also near the bounds.

The accuracy matrix measures beside the largest result of an array; here each number stands for itself.
"""

import functools
import itertools
import warnings

import mpmath
import numpy as np
import pytest

import bpgpu
from bpgpu.backends.plan import Plan
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from tests import parity

mpmath.mp.dps = 150
HALF, ONE = mpmath.mpf(1) / 2, mpmath.mpf(1)
SQUARED = {"half_squared_error": HALF, "squared_error": ONE, "mean_squared_error": ONE}
FINE = [0, 1e-3, -1e-3, 0.3, -0.3, 5.1, 8.3, -8.3, 14.3, 14.75, 16, 17, 36, 37]
Z = np.unique(np.concatenate([np.linspace(-100, 100, 81), FINE]))
Y = (0.0, 0.1, 0.5, 0.9, 1.0)
# Roundings of the result. A last bit of z changes gelu by z^2 / 2 last bits where it is small.
UNITS, UNITS_OF_GELU = 8, 512


def sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


# sigma and sigma', from their definitions.
DEFINITIONS = {
    "identity": (lambda z: z, lambda z: ONE),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "relu": (lambda z: max(z, 0 * z), lambda z: ONE if z > 0 else 0 * z),
    "leaky_relu": (lambda z: z if z > 0 else z / 100, lambda z: ONE if z > 0 else ONE / 100),
    "elu": (lambda z: z if z > 0 else mpmath.expm1(z), lambda z: mpmath.exp(z) if z < 0 else ONE),
    "softplus": (lambda z: mpmath.log1p(mpmath.exp(z)), sigmoid),
    "gelu": (
        lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
        lambda z: mpmath.erfc(-z / mpmath.sqrt(2)) / 2 + z * mpmath.npdf(z),
    ),
    "silu": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * sigmoid(-z))),
}
# A cross-entropy takes numbers of (0, 1): all that sigmoid and softmax give, and some of identity.
PAIRS = [
    *itertools.product(DEFINITIONS, SQUARED),
    *itertools.product(("sigmoid", "identity"), set(COSTS) - set(SQUARED)),
]


def cost_and_gradient(cost, a, y):
    """Return the cost of one output, and dC/da."""
    if cost in SQUARED:
        return SQUARED[cost] * (a - y) ** 2, 2 * SQUARED[cost] * (a - y)
    if cost == "cross_entropy":
        return -y * mpmath.log(a), -y / a
    return -y * mpmath.log(a) - (1 - y) * mpmath.log(1 - a), (1 - y) / (1 - a) - y / a


def costs(cost, a, y):
    """Return the cost of some outputs; and its size, for in between it may be 0: as if each y were 0 or 1."""
    pairs = list(zip(a, y, strict=True))
    value = sum(cost_and_gradient(cost, *pair)[0] for pair in pairs)
    if cost not in SQUARED:
        return value, value
    return value, sum(SQUARED[cost] * ((1 - share) * abs(p) + share * abs(p - 1)) ** 2 for p, share in pairs)


@functools.cache
def rows(outputs, every, dtype):
    """Return z and y of some cases, as numbers of a dtype: of one output, or of three that share y."""
    cases = list(itertools.product(Z, Y))[::every]
    if outputs == 1:
        z, y = ([[case[i]] for case in cases] for i in (0, 1))
    else:
        z, y = [(z, 0, -1) for z, _ in cases], [(share, 1 - share, 0) for _, share in cases]
    return np.array(z, dtype), np.array(y, dtype)


@functools.cache
def truth(activation, cost, every, dtype):
    """Return costs, their sizes, deltas and their sizes, NaN for what the cost is not defined for."""
    found = []
    at = functools.cache(lambda z: [f(mpmath.mpf(z)) for f in DEFINITIONS[activation]])
    for (z,), (y,) in zip(*(x.tolist() for x in rows(1, every, dtype)), strict=True):
        (a, slope), y = at(z), mpmath.mpf(y)
        if cost not in SQUARED and not 0 < a < 1:
            found.append([mpmath.nan] * 4)
            continue
        sizes = [weight * abs(cost_and_gradient(cost, a, end)[1]) for end, weight in ((0, 1 - y), (1, y))]
        delta = cost_and_gradient(cost, a, y)[1] * slope
        found.append([*costs(cost, [a], [y]), delta, sum(sizes) * abs(slope)])
    value, size, *of_delta = np.array(found, np.longdouble).T
    return value, size, *(x[:, None] for x in of_delta)


@functools.cache
def softmax_truth(cost, every, dtype):
    """Return what `truth` does."""
    found = []

    def deltas(a, y):
        g = [cost_and_gradient(cost, *pair)[1] for pair in zip(a, y, strict=True)]
        mean = sum(x * p for x, p in zip(g, a, strict=True))
        return [p * (x - mean) for p, x in zip(a, g, strict=True)]

    for z, y in zip(*(x.tolist() for x in rows(3, every, dtype)), strict=True):
        exp, y = [mpmath.exp(x) for x in z], [mpmath.mpf(share) for share in y]
        a = [e / sum(exp) for e in exp]
        ends = [deltas(a, end) for end in ([1, 0, 0], [0, 1, 0])]
        sizes = [y[0] * abs(first) + y[1] * abs(second) for first, second in zip(*ends, strict=True)]
        found.append([*costs(cost, a, y), *deltas(a, y), *sizes])
    value, size, *of_delta = np.array(found, np.longdouble).T
    mean = 3 if COSTS[cost].reduction == "mean" else 1
    return value / mean, size / mean, np.stack(of_delta[:3], axis=1) / mean, np.stack(of_delta[3:], axis=1) / mean


def computed(backend, activation, cost, z, y):
    """Return what the whole engine of a backend computes of z: cost and delta of each row."""
    n, outputs = z.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that identity leaves [0, 1]
        options = {"dtype": z.dtype, "bias": False, "init": [np.eye(outputs)], "backend": backend}
        net = bpgpu.MLP([outputs, outputs], activation, cost, **options)
    plan = Plan(net.architecture, n, backend).allocate()
    backend.gradients(plan, backend.place(net.checked_data(z, y), plan), net.parameters)
    batch = plan.batch(n)
    return backend.to_numpy(batch.cost), n * backend.to_numpy(batch.delta[1])


def check(name, got, exact, size, units):
    """Compare with the exact numbers, where they are known, beside their own size."""
    limits, good = np.finfo(got.dtype), np.isfinite(exact)
    assert good.any()
    error = np.abs(got - exact)[good] / (limits.eps * size[good] + limits.tiny)
    worst = np.argmax(error)
    assert error[worst] <= units, f"{name}: {got[good][worst]}, not {exact[good][worst]}; {error[worst]:.3g} roundings"


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("which", parity.PARAMETERS)
def test_cost_and_delta_are_exact_to_a_few_roundings_of_themselves(which, dtype):
    entry, way = which
    every = 37 if entry.simulator else 1
    with entry.ways() as backends:
        for activation, cost in PAIRS:
            units = UNITS_OF_GELU if activation == "gelu" else UNITS
            got = computed(backends[way], activation, cost, *rows(1, every, dtype))
            value, size, delta, size_of_delta = truth(activation, cost, every, dtype)
            check(f"{activation}, {cost}, cost", got[0], value, size, units)
            check(f"{activation}, {cost}, delta", got[1], delta, size_of_delta, units)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("which", parity.PARAMETERS)
def test_cost_and_delta_behind_softmax_are_exact_to_a_few_roundings_of_themselves(which, dtype):
    entry, way = which
    every = 37 if entry.simulator else 1
    with entry.ways() as backends:
        for cost in COSTS:
            got = computed(backends[way], "softmax", cost, *rows(3, every, dtype))
            value, size, delta, size_of_delta = softmax_truth(cost, every, dtype)
            check(f"softmax, {cost}, cost", got[0], value, size, UNITS)
            check(f"softmax, {cost}, delta", got[1], delta, size_of_delta, 2 * UNITS)


def test_the_pairs_cover_the_tables():
    assert set(DEFINITIONS) == {name for name, sigma in ACTIVATIONS.items() if not sigma.rowwise}
    assert {cost for _, cost in PAIRS} == set(COSTS)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("z", [8.3, 14.3, 14.75, 17, 40, 80])
def test_a_sure_and_right_output_costs_what_it_should_in_loss_and_fit(z, backend):
    cases = [
        ([1, 1], "sigmoid", "binary_cross_entropy", [[z]], [1.0], 1),
        ([1, 2], "softmax", "cross_entropy", [[z, 0]], [0], 1),
        ([1, 2], "softmax", "binary_cross_entropy", [[z, 0]], [0], 2),
    ]
    expected = np.log1p(np.exp(-np.float64(np.float32(z))))
    for sizes, activation, cost, init, y, terms in cases:
        net = bpgpu.MLP(sizes, activation, cost, bias=False, init=[np.array(init)], backend=backend)
        np.testing.assert_allclose(net.loss([[1.0]], y), terms * expected, rtol=1e-6)
        history = net.fit([[1.0]], y, optimizer=bpgpu.SGD(1e-9), epochs=1)
        np.testing.assert_allclose(history.loss, terms * expected, rtol=1e-6)
