"""bpgpu's estimators on a GPU backend, simulated: what is trained there comes back, and nothing stays."""

import numpy as np
import pytest
from sklearn import neural_network

import bpgpu
from bpgpu import sklearn as ours
from tests.simgpu import cupy, device
from tests.sklearn.test_sklearn_parity import SOLVERS, assert_equal, estimator, fit, problem

pytestmark = [
    pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    cupy.install(monkeypatch)


@pytest.mark.parametrize("solver", ["nesterov", "adam", "lbfgs"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", ["classes", "outputs", "poisson"])
def test_parity(task, solver, weighted):
    X, y, options = problem(task)
    options |= SOLVERS[solver] | {"max_iter": 4, "early_stopping": solver == "adam", "alpha": 0.5}
    weight = np.linspace(0.2, 2, len(X)) if weighted else None
    mine, theirs = (
        fit(module, task, X, y, weight=weight, backend="cupy", **options) for module in (ours, neural_network)
    )
    assert mine.fit_report_.backend == "cupy"
    assert mine.fit_report_.gemm_share is None
    assert_equal(mine, theirs, X, 1e-8)
    assert all(type(array) is np.ndarray for array in mine.coefs_ + mine.intercepts_)


def test_partial_fit_and_callbacks():
    X, y, _ = problem("classes")
    mine, theirs = (estimator(module, "classes", backend="cupy") for module in (ours, neural_network))
    for _ in range(3):
        for model in (mine, theirs):
            model.partial_fit(X, y, classes=[3, 4, 5])
    assert_equal(mine, theirs, X, 1e-10)

    class Halve(bpgpu.Callback):
        def on_train_end(self, training):
            net = training.net
            net.backend.assign(net.parameters, net.parameters * 0.5)

    halved = fit(ours, "classes", X, y, backend="cupy", max_iter=2, callbacks=[Halve()])
    whole = fit(ours, "classes", X, y, backend="cupy", max_iter=2)
    np.testing.assert_array_equal(2 * halved.coefs_[0], whole.coefs_[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_only_the_loss_overflows_scikit_learn_goes_on():
    X, y, _ = problem("regression")
    mine, theirs = (fit(m, "regression", X, y * 1e170, max_iter=3, backend="cupy") for m in (ours, neural_network))
    assert_equal(mine, theirs, X, 1e-10)
    assert mine.fit_report_.backend == "scikit-learn"
