"""bpgpu's estimators beside those of the installed scikit-learn: solver x task x option, and what goes wrong."""

import itertools
import warnings

import joblib
import numpy as np
import pytest
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning

from bpgpu import sklearn as ours

EPOCHS, TOLERANCE = 50, {"float64": 1e-8, "float32": 1e-3}
SOLVERS = {
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.05},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.02},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.02},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5, "power_t": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.1, "tol": 1e-2},
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
    "lbfgs": {"solver": "lbfgs", "alpha": 0.1},
}
TASKS = ["binary", "classes", "multilabel", "regression", "outputs", "poisson"]
BACKENDS = ["numpy", "numba"]


def problem(task, dtype="float64", n=90, seed=0):
    """Return X, y and the estimators' options of a task."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(dtype)
    scores = X @ rng.normal(size=(6, 3)) + 0.3 * rng.normal(size=(n, 3))
    y = {
        "binary": np.array([-1, 7])[(scores[:, 0] > 0).astype(int)],
        "classes": scores.argmax(axis=1) + 3,
        "multilabel": (scores > 0).astype(int),
        "regression": scores[:, 0],
        "outputs": scores,
        "poisson": rng.poisson(np.exp(scores[:, 0] / 3)).astype(float),
    }[task]
    return X, y, ({"loss": "poisson"} if task == "poisson" else {})


def estimator(module, task, **options):
    kind = module.MLPClassifier if task in ("binary", "classes", "multilabel") else module.MLPRegressor
    backend = {"backend": options.pop("backend", "numpy")} if module is ours else {}
    options.pop("backend", None)
    return kind(
        **{"hidden_layer_sizes": (7,), "max_iter": EPOCHS, "batch_size": 32, "random_state": 3} | options, **backend
    )


def fit(module, task, X, y, *, weight=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator(module, task, **options).fit(X, y, sample_weight=weight)


_theirs = {}


def fit_both(task, X, y, *, backend, **options):
    """Return our estimator and scikit-learn's, whose fit serves all backends: their tests follow each other."""
    key = joblib.hash((task, X, y, options))
    if key not in _theirs:
        if len(_theirs) == 16:
            _theirs.pop(next(iter(_theirs)))
        _theirs[key] = fit(neural_network, task, X, y, **options)
    return fit(ours, task, X, y, backend=backend, **options), _theirs[key]


def assert_equal(mine, theirs, X, tolerance):
    """Compare all that a fit leaves behind."""

    def close(x, y):
        scale = np.abs(y).max() if np.size(y) else 0
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale)

    assert mine.n_iter_ == theirs.n_iter_
    for name in ("coefs_", "intercepts_"):
        for x, y in zip(getattr(mine, name), getattr(theirs, name), strict=True):
            close(x, y)
            assert x.dtype == y.dtype
    close(mine.loss_, theirs.loss_)
    if mine.solver != "lbfgs":
        close(mine.loss_curve_, theirs.loss_curve_)
        assert mine.t_ == theirs.t_
        assert (mine.validation_scores_ is None) == (theirs.validation_scores_ is None)
        if mine.validation_scores_ is not None:
            close(mine.validation_scores_, theirs.validation_scores_)
            close(mine.best_validation_score_, theirs.best_validation_score_)
        else:
            close(mine.best_loss_, theirs.best_loss_)
        assert mine._optimizer.learning_rate == pytest.approx(theirs._optimizer.learning_rate, rel=1e-12)
    if hasattr(mine, "predict_proba"):
        close(mine.predict_proba(X), theirs.predict_proba(X))
        assert (mine.predict(X) == theirs.predict(X)).all()
    else:
        close(mine.predict(X), theirs.predict(X))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_and_task(solver, task, backend, dtype):
    X, y, options = problem(task, dtype)
    options |= SOLVERS[solver]
    if (solver, dtype) == ("lbfgs", "float32"):  # near its end the line search goes by the last bits
        options["max_iter"] = 20
    mine, theirs = fit_both(task, X, y, backend=backend, **options)
    assert mine.fit_report_.backend == backend
    assert_equal(mine, theirs, X, TOLERANCE[dtype])


OPTIONS = {
    "no hidden layer": {"hidden_layer_sizes": ()},
    "three hidden layers": {"hidden_layer_sizes": [9, 1, 5]},
    "identity": {"activation": "identity"},
    "logistic": {"activation": "logistic"},
    "tanh": {"activation": "tanh"},
    "no penalty": {"alpha": 0.0},
    "strong penalty": {"alpha": 3.0},
    "one batch": {"batch_size": "auto"},
    "batches of one": {"batch_size": 1, "max_iter": 3, "learning_rate_init": 1e-3},
    "no shuffle": {"shuffle": False},
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 3},
    "stops by itself": {"tol": 0.05, "n_iter_no_change": 2},
    "never stops": {"tol": 0.05, "n_iter_no_change": np.inf},
    "betas": {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1},
    "momentum 1": {"momentum": 1.0, "max_iter": 5},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("option", "solver", "task"), itertools.product(OPTIONS, ("nesterov", "adam"), ("binary", "outputs"))
)
def test_option(option, solver, task, backend):
    X, y, options = problem(task)
    options |= SOLVERS[solver] | OPTIONS[option]
    mine, theirs = fit_both(task, X, y, backend=backend, **options)
    assert mine.fit_report_.backend == backend
    assert_equal(mine, theirs, X, 1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("solver", "task"), itertools.product(("nesterov", "adam", "lbfgs"), TASKS))
def test_sample_weight(solver, task, zeros, early_stopping, backend):
    X, y, options = problem(task)
    weight = np.random.default_rng(5).uniform(0.1, 3, len(X))
    weight[:9] *= not zeros
    options |= SOLVERS[solver] | {"early_stopping": early_stopping, "max_iter": 20, "alpha": 0.5}
    mine, theirs = fit_both(task, X, y, weight=weight, backend=backend, **options)
    assert_equal(mine, theirs, X, 1e-8)
