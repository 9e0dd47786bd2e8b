"""bpgpu's estimators inside scikit-learn: its own checks, its tools, and everything around a fit."""

import copy
import inspect
import io
import logging
import pickle
import warnings

import joblib
import numpy as np
import pytest
import sklearn
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import bpgpu
from bpgpu import sklearn as ours
from bpgpu.backends.cpu import threads as cpu_threads
from bpgpu.backends.cpu.blas_threads import blas_threads
from bpgpu.sklearn.steps import BackendSteps
from tests.sklearn.test_sklearn_parity import BACKENDS, SOLVERS, assert_equal, estimator, fit, problem

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        ours.MLPClassifier(max_iter=100, backend="numba"),
        ours.MLPRegressor(max_iter=100, backend="numba"),
        ours.MLPRegressor(solver="lbfgs", backend="numpy", max_iter=20),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_signature_is_scikit_learns_with_more_at_the_end(name):
    mine, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ours, neural_network))
    assert list(mine)[: len(theirs)] == list(theirs)
    for key, parameter in theirs.items():
        assert (mine[key].default, mine[key].kind) == (parameter.default, parameter.kind)
    assert all(mine[key].kind is inspect.Parameter.KEYWORD_ONLY for key in list(mine)[len(theirs) :])
    assert issubclass(getattr(ours, name), getattr(neural_network, name))


@pytest.mark.parametrize(
    ("option", "value"), [("backend", "gpu"), ("backend", 3), ("n_threads", 0), ("progress", "yes")]
)
def test_bad_parameters_get_scikit_learns_error(option, value):
    X, y, _ = problem("binary")
    with pytest.raises(ValueError, match=f"The '{option}' parameter of MLPClassifier must be"):
        ours.MLPClassifier(**{option: value}).fit(X, y)


# Going on


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["sgd", "nesterov", "invscaling", "adam"])
@pytest.mark.parametrize("task", ["classes", "outputs", "multilabel"])
def test_partial_fit(task, solver, backend):
    X, y, _ = problem(task)
    classes = {"classes": {"classes": [3, 4, 5]}, "multilabel": {"classes": [0, 1, 2]}, "outputs": {}}[task]
    mine, theirs = (estimator(module, task, backend=backend, **SOLVERS[solver]) for module in (ours, neural_network))
    for rows in (slice(40), slice(40, 90), slice(3), slice(10, 70)):
        for model in (mine, theirs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the batch of 3 is clipped
                model.partial_fit(X[rows], y[rows], **classes)
    assert_equal(mine, theirs, X, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["nesterov", "adam", "lbfgs"])
def test_warm_start(solver, backend):
    X, y, _ = problem("classes")
    options = SOLVERS[solver] | {"warm_start": True, "max_iter": 10}
    mine, theirs = (
        fit(module, "classes", X, y, backend=backend, **options).fit(X[::-1], y[::-1])
        for module in (ours, neural_network)
    )
    assert_equal(mine, theirs, X, 1e-8)


def test_labels_of_text():
    X, y, _ = problem("classes")
    names = np.array(["a", "b", "c"])[y - 3]
    mine, theirs = (fit(module, "classes", X, names, backend="numba") for module in (ours, neural_network))
    assert_equal(mine, theirs, X, 1e-8)
    assert set(mine.predict(X)) == set("abc")


def test_partial_fit_after_fit_and_after_a_pickle():
    X, y, _ = problem("regression")
    models = [fit(module, "regression", X, y, max_iter=5) for module in (ours, neural_network)]
    models = [pickle.loads(pickle.dumps(model)).partial_fit(X, y).partial_fit(X, y) for model in models]
    assert_equal(*models, X, 1e-10)
    assert models[0]._optimizer.t == models[1]._optimizer.t == 7 * 3


def test_partial_fit_refuses_early_stopping_as_scikit_learn_does():
    X, y, _ = problem("regression")
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        ours.MLPRegressor(early_stopping=True).partial_fit(X, y)
    assert not hasattr(ours.MLPClassifier(solver="lbfgs"), "partial_fit")


# In scikit-learn's tools


def test_a_fitted_model_is_plain_numpy():
    X, y, _ = problem("classes")
    mine, theirs = (fit(module, "classes", X, y, backend="numba") for module in (ours, neural_network))
    content = pickle.dumps(mine)
    assert len(content) < len(pickle.dumps(theirs)) + 2000
    assert b"bpgpu.backends" not in content
    assert b"bpgpu.backends.plan" not in content
    file = io.BytesIO()
    joblib.dump(mine, file)
    file.seek(0)
    for again in (pickle.loads(content), joblib.load(file), copy.deepcopy(mine)):
        assert (again.predict_proba(X) == mine.predict_proba(X)).all()
        assert not hasattr(again, "fit_report_")


def test_unpickles_where_the_backend_is_not():
    X, y, _ = problem("classes")
    mine = fit(ours, "classes", X, y).set_params(backend="cupy")
    again = pickle.loads(pickle.dumps(mine))
    assert (again.predict(X) == mine.predict(X)).all()


def test_clone_keeps_every_parameter():
    mine = ours.MLPRegressor(backend=bpgpu.get_backend("numba"), n_threads=2, progress=False, alpha=3)
    again = clone(mine)
    assert again.get_params() | {"backend": 0} == mine.get_params() | {"backend": 0}
    assert type(again.backend) is type(mine.backend)


def test_grid_search_and_pipeline():
    X, y, _ = problem("binary")
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__hidden_layer_sizes": [(3,), (4, 4)]}
    searches = []
    for module in (ours, neural_network):
        pipeline = make_pipeline(StandardScaler(), estimator(module, "binary", backend="numba", max_iter=10))
        searches.append(GridSearchCV(pipeline, grid, cv=2, n_jobs=2 if module is ours else None).fit(X, y))
    for result in ("params", "mean_test_score"):
        assert list(searches[0].cv_results_[result]) == list(searches[1].cv_results_[result])


def test_set_output_leaves_predictions_alone_and_feature_names_are_kept():
    pandas = pytest.importorskip("pandas")
    X, y, _ = problem("regression")
    frame = pandas.DataFrame(X, columns=list("abcdef"))
    with sklearn.config_context(transform_output="pandas"):
        mine = make_pipeline(StandardScaler(), estimator(ours, "regression", max_iter=3)).fit(frame, y)
        assert list(mine[-1].feature_names_in_) == list("abcdef")
        assert type(mine.predict(frame)) is np.ndarray


def test_metadata_routing_brings_sample_weights():
    X, y, _ = problem("binary")
    weight = np.linspace(0.1, 3, len(X))
    results = []
    with sklearn.config_context(enable_metadata_routing=True):
        for module in (ours, neural_network):
            model = estimator(module, "binary", max_iter=5).set_fit_request(sample_weight=True)
            model.set_score_request(sample_weight=False)
            found = cross_validate(model, X, y, cv=2, params={"sample_weight": weight}, return_estimator=True)
            results.append(found["estimator"][0])
    assert_equal(*results, X, 1e-10)
    assert np.abs(results[0].coefs_[0] - fit(ours, "binary", X[45:], y[45:], max_iter=5).coefs_[0]).max() > 1e-4


# What a backend leaves to scikit-learn, and what goes wrong


def test_negative_weights_train_in_scikit_learn(caplog):
    X, y, _ = problem("regression")
    weight = np.where(np.arange(len(X)) % 5, 1.0, -0.2)
    with caplog.at_level(logging.INFO, "bpgpu"):
        mine = fit(ours, "regression", X, y, weight=weight, max_iter=9)
    assert_equal(mine, fit(neural_network, "regression", X, y, weight=weight, max_iter=9), X, 1e-12)
    assert (mine.fit_report_.backend, mine.fit_report_.reason) == ("scikit-learn", "a sample weight is negative")
    assert "MLPRegressor.fit runs on scikit-learn" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_no_weight_fails_as_in_scikit_learn(backend):
    X, y, _ = problem("binary")
    weight = np.r_[np.ones(64), np.zeros(26)]
    for module in (ours, neural_network):
        with pytest.raises(ZeroDivisionError, match="Weights sum to zero"):
            fit(module, "binary", X, y, weight=weight, shuffle=False, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_ends_as_in_scikit_learn(backend):
    X, y, _ = problem("regression")
    models = [
        estimator(m, "regression", solver="sgd", learning_rate_init=9.0, backend=backend)
        for m in (ours, neural_network)
    ]
    for model in models:
        with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
            model.fit(X, y)
    np.testing.assert_allclose(models[0].loss_curve_, models[1].loss_curve_, rtol=1e-6)
    assert models[0].n_iter_ == models[1].n_iter_


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_goes_on_where_only_the_loss_overflows(backend):
    X, y, _ = problem("regression")
    y[-1] = 1e170  # in the last batch: the steps before it are taken again
    options = {"shuffle": False, "max_iter": 5, "backend": backend}
    mine, theirs = (fit(m, "regression", X, y, **options) for m in (ours, neural_network))
    assert theirs.loss_curve_ == [np.inf] * 5
    assert_equal(mine, theirs, X, 1e-10)
    assert mine.fit_report_.backend == "scikit-learn"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_negative_targets_of_poisson():
    X, y, options = problem("poisson")
    mine, theirs = (fit(module, "poisson", X, y - 1, max_iter=5, **options) for module in (ours, neural_network))
    assert np.isnan(theirs.loss_curve_).all()
    assert_equal(mine, theirs, X, 1e-10)


def test_ctrl_c_keeps_the_model(monkeypatch):
    X, y, _ = problem("regression")
    whole = fit(ours, "regression", X, y, max_iter=3)
    train = BackendSteps.epoch

    def interrupted(self, order):
        if self.estimator.n_iter_ == 3:
            raise KeyboardInterrupt
        return train(self, order)

    monkeypatch.setattr(BackendSteps, "epoch", interrupted)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        mine = fit(ours, "regression", X, y)
    assert mine.n_iter_ == len(mine.loss_curve_) == 3
    assert (mine.predict(X) == whole.predict(X)).all()


def test_verbose_prints_what_scikit_learn_prints(capsys):
    X, y, _ = problem("binary")
    printed = []
    for module in (ours, neural_network):
        for options in ({"early_stopping": True}, {"tol": 0.5, "learning_rate": "adaptive", "solver": "sgd"}):
            fit(module, "binary", X, y, verbose=True, n_iter_no_change=2, **options)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "Setting learning rate" in printed[0]
    assert "Validation score did not improve" in printed[0]


def test_warnings_are_scikit_learns():
    X, y, _ = problem("binary")
    heard = []
    for module in (ours, neural_network):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator(module, "binary", max_iter=2, batch_size=1000).fit(X, y)
        heard.append([(w.category, str(w.message)) for w in caught])
    assert heard[0] == heard[1]
    assert {category for category, _ in heard[0]} == {UserWarning, ConvergenceWarning}


# Where, and how fast


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_fit_report(solver):
    X, y, _ = problem("classes")
    mine = fit(ours, "classes", X, y, backend="numba", solver=solver, max_iter=8)
    report = mine.fit_report_
    assert (report.backend, report.dtype, report.samples, report.threads >= 1) == ("numba", "float64", 90, True)
    assert report.epochs == mine.n_iter_
    assert report.multiply_adds == 2 * 6 * 7 + 3 * 7 * 3
    assert {"checks", "prepare", "epochs"} <= set(report.seconds)
    assert report.samples_per_second == pytest.approx(90 * mine.n_iter_ / report.seconds["epochs"])
    assert 0 < report.gemm_share < 1
    assert str(report).startswith("numba on CPU")


def test_auto_says_why():
    X, y, _ = problem("classes")
    report = fit(ours, "classes", X, y, backend="auto", max_iter=2).fit_report_
    assert report.backend == bpgpu.get_backend("auto").name
    assert report.reason.startswith("the fastest that runs here")


def test_n_threads_limits_blas_and_the_engine_while_it_trains(monkeypatch):
    X, y, _ = problem("classes")
    seen = []
    train = BackendSteps.epoch

    def looking(self, order):
        seen.append((cpu_threads.allowed_threads(), max(blas_threads().now(), default=1)))
        return train(self, order)

    monkeypatch.setattr(BackendSteps, "epoch", looking)
    monkeypatch.setattr(cpu_threads, "processors", lambda: 3)
    with threadpool_limits(2, user_api="blas"):  # more than one, wherever the tests run
        before = blas_threads().now()
        fit(ours, "classes", X, y, max_iter=1, n_threads=1)
        fit(ours, "classes", X, y, max_iter=1)
        assert seen == [(1, 1), (3, max(before, default=1))]
        assert blas_threads().now() == before
