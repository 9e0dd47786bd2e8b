"""The gradient check: over the whole table, on kinks, in large networks, and that it can fail."""

import dataclasses
import warnings

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.base import Backend
from bpgpu.backends.numpy_backend import NumpyBackend
from bpgpu.model.activations import ACTIVATIONS, IDENTITY
from bpgpu.model.costs import COSTS
from bpgpu.proof import gradcheck

STEPS = {"forward", "dropout", "output_delta", "hidden_delta", "weight_gradient", "batch_forward", "batch_gradients"}


def has_steps_of_its_own(name):
    """Whether a backend computes gradients otherwise than the reference, which need be checked only once."""
    return name == "numpy" or any(STEPS & set(vars(cls)) for cls in type(bpgpu.get_backend(name)).__mro__[:-2])


CHECKED = [info.name for info in bpgpu.backends() if info.available and has_steps_of_its_own(info.name)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_whole_table(dtype, differences_once):
    """Every activation × cost × (1, 3) outputs × depths 1-3, with weights, penalty, masks and dropout on."""
    seen = {backend: set() for backend in CHECKED}
    tables = [gradcheck.check_table(bpgpu.get_backend(backend), dtype) for backend in CHECKED]
    for found in zip(*tables, strict=True):
        for backend, (case, report) in zip(CHECKED, found, strict=True):
            assert not isinstance(report, bpgpu.GradientError), f"{backend}, {case}: {report}"
            assert report.exhaustive, (backend, case)
            assert report.checked >= 3 * report.kinks, (backend, case)
            seen[backend].add(case)
    assert "numpy" in seen
    for cases in seen.values():
        assert len(cases) == len(ACTIVATIONS) * len(COSTS) * 2 * 3


def network(sizes=(4, 5, 3), activations=("tanh", "softmax"), cost="cross_entropy", **options):
    return bpgpu.MLP(sizes, activations, cost, **{"dtype": "float64", "backend": "numpy"} | options)


def samples(n=7, inputs=4, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)), rng.integers(0, outputs, n)


def test_the_report_counts_every_free_parameter():
    mask = np.ones((4, 5))
    mask[0, :2] = 0
    report = bpgpu.check_gradients(network(connectivity=[mask, None]), *samples())
    assert (report.checked, report.kinks, report.exhaustive) == (4 * 5 - 2 + 5 + 5 * 3 + 3, 0, True)
    assert 0 < report.max_error < report.tolerance == 1e-6


def test_a_large_network_is_checked_along_directions():
    report = bpgpu.check_gradients(network((4, 700, 3), dtype="float64"), *samples())
    assert (report.checked, report.exhaustive) == (gradcheck.DIRECTIONS, False)


def test_the_network_is_left_alone():
    net = network()
    before = net.parameters.copy()
    bpgpu.check_gradients(net, *samples())
    np.testing.assert_array_equal(net.parameters, before)
    assert net.architecture.dtype == np.float64
    assert net.epoch == 0


def test_a_kink_at_the_point_is_counted_not_failed():
    X, y = samples()
    X[:3] = 0  # with zero biases, relu sits exactly on its kink for these samples
    report = bpgpu.check_gradients(network(activations=("relu", "softmax")), X, y)
    assert 0 < report.kinks <= 5
    assert report.checked + report.kinks == 4 * 5 + 5 + 5 * 3 + 3


def test_a_kink_inside_the_step_is_left_behind_by_smaller_steps():
    net = bpgpu.MLP([1, 1], "relu", "half_squared_error", dtype="float64", init=[([[1.0]], [-1.0 + 3e-5])])
    report = bpgpu.check_gradients(net, [[1.0]], [2.0])
    assert (report.checked, report.kinks) == (2, 0)


def test_nothing_but_kinks_is_no_check():
    net = bpgpu.MLP([1, 1], "relu", "half_squared_error", dtype="float64", init=[([[-1.0]], [1.0])])
    with pytest.raises(bpgpu.GradientError, match="2 of 2 derivatives lie at kinks of the cost, too many"):
        bpgpu.check_gradients(net, [[1.0]], [1.0])


def test_user_formulas_are_checked_with_the_rest():
    swish = bpgpu.Activation("swish", value="z * sigmoid(z)", derivative="sigmoid(z) * (1 + z * (1 - sigmoid(z)))")
    log_cosh = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", "mean")
    X, y = samples()
    net = network(activations=(swish, "identity"), cost=log_cosh, l2=0.1, dropout=0.5)
    assert bpgpu.check_gradients(net, X, np.eye(3)[y]).checked == 43


# Mutations: each breaks one thing that a backend does, and the check must say so.


class BrokenDerivative(NumpyBackend):
    def hidden_delta(self, delta, W, a, activation, *, out, z=None, dropout=None):
        super().hidden_delta(delta, W, a, IDENTITY, out=out, z=z, dropout=dropout)
        out *= 1 - a


class DroppedPenalty(NumpyBackend):
    def weight_gradient(self, a_prev, delta, *, out_W, out_b=None, W=None, decay=0.0, mask=None):
        super().weight_gradient(a_prev, delta, out_W=out_W, out_b=out_b, W=W, mask=mask)


class TransposedWeight(NumpyBackend):
    def hidden_delta(self, delta, W, a, activation, *, out, z=None, dropout=None):
        super().hidden_delta(delta, np.ascontiguousarray(W.T).reshape(W.shape), a, activation, out=out, dropout=dropout)


class ForgottenMask(NumpyBackend):
    def weight_gradient(self, a_prev, delta, *, out_W, out_b=None, W=None, decay=0.0, mask=None):
        super().weight_gradient(a_prev, delta, out_W=out_W, out_b=out_b, W=W, decay=decay)


class ForgottenDropout(NumpyBackend):
    def hidden_delta(self, delta, W, a, activation, *, out, z=None, dropout=None):
        super().hidden_delta(delta, W, a, activation, out=out, z=z)


class UnscaledDropout(NumpyBackend):
    def dropout(self, x, dropout, *, out):
        super().dropout(x, dropout, out=out)
        out *= 1 - dropout.rate


class ForgottenSampleWeight(NumpyBackend):
    def load_batch(self, batch, data, rows):
        return super().load_batch(batch, dataclasses.replace(data, weight=None), rows)


class DiagonalSoftmax(NumpyBackend):
    def output_delta(self, z, y, scale, activation, cost, *, out_a, out_delta, out_cost):
        super().output_delta(z, y, scale, activation, cost, out_a=out_a, out_delta=out_delta, out_cost=out_cost)
        out_delta[...] = (out_a - y) * out_a * (1 - out_a) * scale[:, None]


class BiasFromOneRow(NumpyBackend):
    def weight_gradient(self, a_prev, delta, *, out_W, out_b=None, W=None, decay=0.0, mask=None):
        super().weight_gradient(a_prev, delta, out_W=out_W, out_b=out_b, W=W, decay=decay, mask=mask)
        out_b[...] = delta[0]


class SumInPlaceOfMean(NumpyBackend):
    def output_delta(self, z, y, scale, activation, cost, *, out_a, out_delta, out_cost):
        super().output_delta(z, y, scale, activation, cost, out_a=out_a, out_delta=out_delta, out_cost=out_cost)
        out_delta *= len(z)


MUTANTS = [
    BrokenDerivative,
    DroppedPenalty,
    TransposedWeight,
    ForgottenMask,
    ForgottenDropout,
    UnscaledDropout,
    ForgottenSampleWeight,
    DiagonalSoftmax,
    BiasFromOneRow,
    SumInPlaceOfMean,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught_and_placed(mutant):
    X, y = samples()
    weight = np.random.default_rng(1).uniform(0.5, 2, 7)
    mask = np.ones((4, 5))
    mask[2, 1] = 0
    options = {"l2": 0.5, "dropout": 0.4, "connectivity": [mask, None], "cost": "half_squared_error"}
    assert bpgpu.check_gradients(network(**options), X, y, weight).checked == 42
    with pytest.raises(bpgpu.GradientError, match=r"layer \d, [Wb]\[\d+(, \d+)?\]") as caught:
        bpgpu.check_gradients(network(backend=mutant(), **options), X, y, weight)
    if mutant is ForgottenMask:
        assert "layer 1, W[2, 1] is masked, but its gradient is" in str(caught.value)
    else:
        for part in (
            "backprop (float64, numpy) gives",
            "central differences give",
            "step was 0.0001",
            "tolerance 1e-06",
        ):
            assert part in str(caught.value)


@pytest.mark.parametrize("mutant", [BrokenDerivative, TransposedWeight, SumInPlaceOfMean], ids=lambda m: m.__name__)
def test_mutants_are_caught_along_directions_and_in_float32(mutant):
    X, y = samples()
    for options in ({"sizes": (4, 700, 3)}, {"dtype": "float32"}):
        bpgpu.check_gradients(network(**options), X, y)
        with pytest.raises(bpgpu.GradientError, match="direction" if "sizes" in options else "float32"):
            bpgpu.check_gradients(network(backend=mutant(), **options), X, y)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in ("softmax", "identity")])
def test_every_derivative_of_the_table_is_needed(name, monkeypatch):
    """Exchange one row's derivative for another's value: the check over the table must notice each."""
    right = ACTIVATIONS[name]
    wrong = object.__new__(bpgpu.Activation)
    vars(wrong).update(name=name, value=right.value, derivative=f"1.001 * ({right.derivative})")
    net = network(activations=("tanh", "identity"), cost="half_squared_error")
    object.__setattr__(net.architecture, "activations", (wrong, IDENTITY))
    with pytest.raises(bpgpu.GradientError):
        bpgpu.check_gradients(net, *samples())


def test_warnings_of_pairs_outside_the_domain_are_for_users():
    with pytest.warns(UserWarning, match=r"'cross_entropy' is defined for outputs in \[0, 1\], but 'tanh'"):
        network(activations=("tanh", "tanh"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for output in ("sigmoid", "softmax"):
            network(activations=("tanh", output))


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_no_false_alarm_where_kinks_crowd_around_the_point(activation, scale):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((200, 5)) * scale, rng.standard_normal(200)
        net = network((5, 16, 1), (activation, "identity"), "half_squared_error", seed=seed)
        assert bpgpu.check_gradients(net, X, y).checked > 56
        with pytest.raises(bpgpu.GradientError, match="central differences"):
            broken = network(
                (5, 16, 1), (activation, "identity"), "half_squared_error", seed=seed, backend=BiasFromOneRow()
            )
            bpgpu.check_gradients(broken, X, y)


def test_base_class_is_the_reference():
    public = {name for name, method in vars(Backend).items() if callable(method) and name[0] != "_"}
    assert public & set(vars(NumpyBackend)) == {"run_epoch"}  # which limits threads around the reference's
