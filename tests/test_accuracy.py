"""That the measurement of accuracy can fail: errors planted in every step; and the page and the command that show it."""

import json

import numpy as np
import pytest

from bpgpu import accuracy
from bpgpu.accuracy_cases import CASES, PROMISED, Bench, Measurement
from bpgpu.backends.numpy_backend import NumpyBackend
from tests import parity

# The steps of the contract, the result that is spoiled in each, and the operations that must notice.
PLANTED = [
    ("forward", "out", "forward"),
    ("output_delta", "out_a", "output"),
    ("output_delta", "out_delta", "output"),
    ("output_delta", "out_cost", "output"),
    ("hidden_delta", "out", "hidden"),
    ("weight_gradient", "out_W", "gradient"),
    ("weight_gradient", "out_b", "gradient"),
    ("update", "parameters", "update"),
    ("dropout", "out", "dropout"),
    ("forward", "out", "epoch"),
    ("update", "parameters", "epoch"),
]
SPOILS = {
    "a factor of 1.0001": ("float32", lambda x: x * x.dtype.type(1.0001)),
    "float32 within float64": ("float64", lambda x: x.astype(np.float32)),
    "the last element off by a thousandth": ("float32", lambda x: np.append(x.ravel()[:-1], x.flat[-1] + 1e-3)),
}


def spoiled(step, result, spoil):
    """Return a backend that spoils one result of one step."""

    class Spoiled(NumpyBackend):
        pass

    method = getattr(NumpyBackend, step)

    def spoiling(self, *args, **options):
        method(self, *args, **options)
        target = args[1] if step == "update" else options[result]
        if target is not None and target.size:
            target[...] = spoil(target.copy()).reshape(target.shape)

    setattr(Spoiled, step, spoiling)
    return Spoiled()


@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize(("step", "result", "operation"), PLANTED)
def test_an_error_in_any_step_is_noticed_in_every_case(step, result, operation, kind):
    """Also by a bench that measures as little as it may."""
    dtype, spoil = SPOILS[kind]
    backend = spoiled(step, result, spoil)
    for case in CASES:
        if case.operation == operation:
            assert not all(each.ok for each in Bench(backend, dtype, 2**15, crossed=False).measure(case)), case


@pytest.mark.parametrize(("step", "name"), [("forward", "a_prev"), ("hidden_delta", "delta"), ("output_delta", "z")])
def test_a_step_that_writes_to_an_input_is_noticed(step, name):
    method = getattr(NumpyBackend, step)

    class Careless(NumpyBackend):
        pass

    def careless(self, **arguments):
        method(self, **arguments)
        arguments[name] *= 2

    setattr(Careless, step, careless)
    case = next(case for case in CASES if case.operation == step.split("_")[0])
    with pytest.raises(RuntimeError, match=f"{step} of the backend 'numpy' writes to its input {name}"):
        list(Bench(Careless(), "float32").measure(case))


@pytest.mark.parametrize("result", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.ones(3), np.ones((2, 1))])
def test_a_result_that_is_not_finite_or_of_another_shape_keeps_no_promise(result):
    measurement = Bench(NumpyBackend(), "float64").compare("forward", "", result, np.ones(2))
    assert measurement.error == np.inf
    assert not measurement.ok


def test_an_error_is_counted_in_roundings_of_the_largest_result():
    bench, truth = Bench(NumpyBackend(), "float32"), np.array([0.0, -4.0])
    result = truth + np.array([2.0**-20, 0])
    assert bench.compare("forward", "", result, truth).error == 2.0**-20 / (4 * 2.0**-23) == 2
    assert bench.compare("forward", "", result, truth, scale=8).error == 1
    assert bench.compare("forward", "", result, truth, n=192).error == 1  # growth 2
    assert bench.compare("forward", "", np.zeros((0, 2)), np.zeros((0, 2))).error == 0
