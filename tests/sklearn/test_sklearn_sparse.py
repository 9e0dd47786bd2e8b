"""bpgpu's estimators on sparse X, beside scikit-learn's on the same."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning

from bpgpu import sklearn as ours
from bpgpu.backends.cpu.engine import NumbaBackend
from bpgpu.backends.numpy_backend import NumpyBackend
from tests.simgpu import device
from tests.sklearn.test_sklearn_parity import (
    BACKENDS,
    SOLVERS,
    TASKS,
    TOLERANCE,
    assert_equal,
    estimator,
    fit,
    fit_both,
    problem,
)

KINDS = [sparse.csr_array, sparse.csr_matrix, sparse.csc_array, sparse.csc_matrix]


def sparse_problem(task, dtype="float64"):
    X, y, options = problem(task, dtype)
    X[X < 0.5] = 0
    X[4] = 0
    X[:, 5] = 0
    return X, y, options


@pytest.fixture(autouse=True)
def never_dense(monkeypatch):
    """Let nobody make X dense; scikit-learn does it with labels."""
    for kind in KINDS:
        whole = kind.toarray

        def toarray(self, *arguments, whole=whole, **options):
            assert self.shape[1] != 6, "X is made dense"
            return whole(self, *arguments, **options)

        monkeypatch.setattr(kind, "toarray", toarray)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("solver", "task"), itertools.product(("sgd", "nesterov", "adam", "lbfgs"), TASKS))
def test_solver_and_task(solver, task, backend, dtype):
    X, y, options = sparse_problem(task, dtype)
    options |= SOLVERS[solver]
    if solver == "lbfgs":  # no overshoot to where scikit-learn cuts the logarithms of probabilities off
        options |= {"max_iter": 20, "alpha": 3.0}
    X = sparse.csr_array(X)
    mine, theirs = fit_both(task, X, y, backend=backend, **options)
    assert mine.fit_report_.backend == backend
    assert_equal(mine, theirs, X, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_early_stopping_and_weights(kind, weighted, backend):
    X, y, _ = sparse_problem("classes")
    weight = np.random.default_rng(5).uniform(0.1, 3, len(X)) if weighted else None
    X, options = kind(X), SOLVERS["adam"] | {"early_stopping": True, "alpha": 0.5}
    mine, theirs = fit_both("classes", X, y, weight=weight, backend=backend, **options)
    assert mine.fit_report_.backend == backend
    assert_equal(mine, theirs, X, 1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_fit_on_sparse_and_dense_parts(backend):
    X, y, _ = sparse_problem("classes")
    models = [estimator(module, "classes", backend=backend) for module in (ours, neural_network)]
    for model in models:
        for i, rows in enumerate((slice(0, 40), slice(40, 90), slice(10, 60))):
            part = X[rows] if i == 1 else sparse.csr_array(X)[rows]
            model.partial_fit(part, y[rows], classes=np.unique(y))
    assert models[0].fit_report_.backend == backend
    assert_equal(*models, sparse.csr_array(X), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.3}, {"activation": "gelu"}, {"loss": "huber"}, {"optimizer": "adamw"}, {"activation": ["tanh"]}],
    ids=str,
)
def test_what_scikit_learn_refuses_as_of_dense_data(options, backend):
    X, y, _ = sparse_problem("regression")
    compressed = sparse.csr_array(X)
    models = [estimator(ours, "regression", max_iter=9, backend=backend, **options) for _ in range(2)]
    for model, given in zip(models, (X, compressed), strict=True):
        with pytest.warns(ConvergenceWarning):
            model.fit(given, y, X_val=given, y_val=y)
        assert model.fit_report_.backend == backend
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(models[0].coefs_[0], models[1].coefs_[0], **close)
    np.testing.assert_allclose(models[0].validation_loss_curve_, models[1].validation_loss_curve_, **close)
    np.testing.assert_allclose(models[0].predict(X), models[1].predict(compressed), **close)
    np.testing.assert_allclose(models[0].hidden_activations(X), models[1].hidden_activations(compressed), **close)
    np.testing.assert_allclose(models[0].input_gradients(X), models[1].input_gradients(compressed.tocsc()), **close)


def test_what_is_too_large_for_int32_trains_in_scikit_learn(monkeypatch):
    X, y, _ = sparse_problem("classes")
    X = sparse.csr_array(X)
    monkeypatch.setattr("bpgpu.sklearn.fitting.LARGEST_SPARSE", X.nnz - 1)
    mine, theirs = (fit(module, "classes", X, y, max_iter=2) for module in (ours, neural_network))
    assert mine.fit_report_.backend == "scikit-learn" and "too large" in mine.fit_report_.reason
    assert_equal(mine, theirs, X, 1e-12)


@pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
def test_on_a_gpu_batches_are_made_dense_but_not_all_at_once(monkeypatch):
    from tests.simgpu import cupy as simulated

    monkeypatch.undo()  # the batches are made dense
    with pytest.MonkeyPatch.context() as patch:
        simulated.install(patch)
        from bpgpu.backends.cuda.cupy_backend import CupyBackend

        X, y, _ = sparse_problem("classes")
        X = sparse.csr_array(X)
        for solver, where in (("nesterov", "cupy"), ("adam", "cupy"), ("lbfgs", "scikit-learn")):
            options = SOLVERS[solver] | {"max_iter": 5}
            mine = fit(ours, "classes", X, y, backend=CupyBackend(), **options)
            theirs = fit(neural_network, "classes", X, y, **options)
            assert mine.fit_report_.backend == where
            assert_equal(mine, theirs, X, 1e-8)
    assert NumpyBackend.takes_sparse and NumbaBackend.takes_sparse and not CupyBackend.takes_sparse


DAMAGE = {"indptr": 0, "indptr too far": 10**9, "indices": 10**9}


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "predict", "predict_proba", "score"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_matrices_are_refused_before_scipy_reads_them(damage, method, early_stopping):
    """scikit-learn ends with a segmentation fault, or predicts from foreign memory."""
    rng = np.random.default_rng(0)
    X, y = sparse.csr_matrix(rng.random((60, 20)) < 0.5, dtype=float), np.arange(60) % 2
    early_stopping = early_stopping and method == "fit"
    model = ours.MLPClassifier((4,), max_iter=1, early_stopping=early_stopping, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
    getattr(X, damage.split()[0])[-1] = DAMAGE[damage]
    arguments = {"partial_fit": [y, [0, 1]], "predict": [], "predict_proba": []}.get(method, [y])
    with pytest.raises(ValueError, match="X is not a valid sparse matrix"):
        getattr(model, method)(X, *arguments)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("damage", ["index", "negative index", "pointer", "last pointer"])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "score"])
def test_damaged_targets_are_refused(damage, method):
    """Before scikit-learn has SciPy make them dense, which writes wherever their indices point."""
    X = np.random.default_rng(0).normal(size=(40, 6))
    y = sparse.csr_matrix(np.eye(3, dtype=int)[np.arange(40) % 3])
    model = ours.MLPClassifier((3,), max_iter=2).fit(X, y)
    name, place, value = {
        "index": ("indices", 0, 10**6),
        "negative index": ("indices", 0, -(10**8)),
        "pointer": ("indptr", 5, 10**7),
        "last pointer": ("indptr", -1, 0),
    }[damage]
    getattr(y, name)[place] = value
    with pytest.raises(ValueError, match=r"^y is not a valid sparse matrix"):
        getattr(model, method)(X, y)
