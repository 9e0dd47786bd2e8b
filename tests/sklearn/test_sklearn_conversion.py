"""Estimators as scikit-learn's own and back, as a network, and as ONNX files."""

import copy
import inspect
import pickle
import warnings

import numpy as np
import onnxruntime
import pytest
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import bpgpu
from bpgpu import cli
from bpgpu import sklearn as ours

CLASSIFIERS = {
    "binary": lambda scores: np.array(["no", "yes"])[(scores[:, 0] > 0).astype(int)],
    "classes": lambda scores: scores.argmax(axis=1) + 3,
    "booleans": lambda scores: scores[:, 0] > 0,
    "multilabel": lambda scores: (scores > 0).astype(int),
    "two labels": lambda scores: (scores[:, :2] > 0).astype(int),
    "one class": lambda scores: np.full(len(scores), 7),
}
TASKS = CLASSIFIERS | {
    "regression": lambda scores: scores[:, 0],
    "outputs": lambda scores: scores,
    "poisson": lambda scores: np.floor(np.exp(scores[:, 0])),
}
CUBE = bpgpu.Activation("cube", value="0.1 * z ** 3", derivative="0.3 * z ** 2")
SOLVERS = ["sgd", "adam", "lbfgs"]
ACTIVATIONS = ["identity", "logistic", "tanh", "relu"]


def problem(task, dtype="float64"):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)).astype(dtype)
    return X, TASKS[task](X @ rng.normal(size=(4, 3)) + 0.1)


def make(module, task, **options):
    kind = module.MLPClassifier if task in CLASSIFIERS else module.MLPRegressor
    options = {"hidden_layer_sizes": (5, 3), "max_iter": 4, "random_state": 1} | options
    if task == "poisson":
        options["loss"] = "poisson"
    if module is ours:
        options.setdefault("backend", "numpy")
    return kind(**options)


def fitted(module, task, precision="float64", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make(module, task, **options).fit(*problem(task, precision))


def go_on(estimator, X, y):
    """Train on, by what the solver allows."""
    if estimator.solver == "lbfgs" or estimator.early_stopping:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return estimator.set_params(warm_start=True).fit(X, y)
    return estimator.partial_fit(X, y).partial_fit(X, y)


def state(value):
    """Return all that an object holds, as something that can be compared to the bit."""
    match value:
        case np.ndarray():
            return (value.dtype.str, value.shape, value.tobytes() if value.dtype != object else value.tolist())
        case np.random.RandomState():
            return state(list(value.get_state()))
        case dict():
            return {key: state(entry) for key, entry in value.items()}
        case list() | tuple():
            return [state(entry) for entry in value]
    if hasattr(value, "__dict__") and not inspect.isclass(value):
        return type(value), state(vars(value))
    return repr(value)


# scikit-learn's own estimator


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_copy_is_scikit_learns_and_holds_all(task, solver, dtype):
    X, y = problem(task, dtype)
    mine = fitted(ours, task, dtype, solver=solver)
    plain = mine.to_sklearn()
    assert type(plain) is (neural_network.MLPClassifier if task in CLASSIFIERS else neural_network.MLPRegressor)
    names = vars(fitted(neural_network, task, dtype, solver=solver)).keys()
    assert state(vars(plain)) == state({name: vars(mine)[name] for name in names})
    assert plain.predict(X).tobytes() == mine.predict(X).tobytes()
    if task in CLASSIFIERS:
        assert plain.predict_proba(X).tobytes() == mine.predict_proba(X).tobytes()
    assert b"bpgpu" not in pickle.dumps(plain)
    before = copy.deepcopy(vars(mine))
    go_on(plain, X, y)
    assert state(vars(mine)) == state(before)  # nothing is shared


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", ["booleans", "classes", "regression", "poisson"])
def test_the_copy_goes_on_as_the_estimator_does(task, solver, early_stopping):
    X, y = problem(task)
    mine = fitted(ours, task, solver=solver, early_stopping=early_stopping)
    plain = mine.to_sklearn()
    go_on(mine, X, y)
    go_on(plain, X, y)
    for W, V in zip(mine.coefs_ + mine.intercepts_, plain.coefs_ + plain.intercepts_, strict=True):
        np.testing.assert_allclose(W, V, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_there_and_back_nothing_is_lost(task, solver):
    X, y = problem(task)
    theirs = fitted(neural_network, task, solver=solver)
    kind = ours.MLPClassifier if task in CLASSIFIERS else ours.MLPRegressor
    mine = kind.from_sklearn(theirs, backend="numpy")
    assert (type(mine), mine.backend) == (kind, "numpy")
    back = mine.to_sklearn()
    assert state(vars(back)) == state(vars(theirs))
    assert mine.predict(X).tobytes() == theirs.predict(X).tobytes()
    again = kind.from_sklearn(back, backend="numpy")
    assert state(vars(again)) == state(vars(mine))
    for estimator in (mine, theirs, back):
        go_on(estimator, X, y)
    assert state(vars(back)) == state(vars(theirs))
    for W, V in zip(mine.coefs_ + mine.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(W, V, rtol=1e-9, atol=1e-12)


def test_a_random_state_that_is_shared_stays_shared():
    mine = fitted(ours, "classes", random_state=np.random.RandomState(3))
    plain = mine.to_sklearn()
    assert plain._random_state is plain.random_state
    assert plain.random_state is not mine.random_state


def test_what_was_never_fitted_is_converted_too():
    mine = ours.MLPRegressor(alpha=0.3, n_threads=1)
    plain = mine.to_sklearn()
    assert plain.get_params() == neural_network.MLPRegressor(alpha=0.3).get_params()
    assert ours.MLPRegressor.from_sklearn(plain, n_threads=1).get_params() == mine.get_params()


def test_an_estimator_of_bpgpu_keeps_its_own_parameters():
    mine = ours.MLPRegressor(backend="numpy", n_threads=2, progress=True)
    assert ours.MLPRegressor.from_sklearn(mine, progress=False).get_params() == mine.get_params() | {"progress": False}


@pytest.mark.parametrize("other", [neural_network.MLPRegressor(), 3, None])
def test_something_else_is_refused(other):
    with pytest.raises(TypeError, match="estimator must be scikit-learn's MLPClassifier, got "):
        ours.MLPClassifier.from_sklearn(other)
    with pytest.raises(ValueError, match="Invalid parameter 'depth'"):
        ours.MLPClassifier.from_sklearn(neural_network.MLPClassifier(), depth=3)


@pytest.mark.parametrize(
    ("options", "default"),
    [
        ({"dropout": 0.5}, 0.0),
        ({"class_weight": "balanced"}, None),
        ({"label_smoothing": 0.1}, 0.0),
        ({"optimizer": "adamw"}, None),
        ({"scoring": "loss", "early_stopping": True}, None),
        ({"dtype": "float32"}, None),
    ],
    ids=str,
)
def test_a_parameter_that_scikit_learn_lacks_is_not_dropped_in_silence(options, default):
    X, y = problem("classes")
    mine, name = fitted(ours, "classes", **options), next(iter(options))
    with pytest.raises(
        ValueError, match=rf"scikit-learn has no parameter {name}, .* call set_params\({name}={default}\)"
    ):
        mine.to_sklearn()
    plain = mine.set_params(**{name: default}).to_sklearn()
    assert plain.predict_proba(X).tobytes() == mine.predict_proba(X).tobytes()
    assert b"bpgpu" not in pickle.dumps(plain)
    go_on(plain, X, y)


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"loss": "huber"}, {"warm_start": "resume"}], ids=str)
def test_a_value_that_scikit_learn_does_not_know_is_refused(options):
    with pytest.raises(ValueError, match=f"The '{next(iter(options))}' parameter of MLPRegressor must be"):
        fitted(ours, "regression", **options).to_sklearn()


@pytest.mark.parametrize(
    ("activation", "name"), [("sigmoid", "logistic"), (["relu", "relu"], "relu"), ("linear", "identity")]
)
def test_activations_that_scikit_learn_has_under_another_name(activation, name):
    X, _ = problem("classes")
    mine = fitted(ours, "classes", activation=activation)
    plain = mine.to_sklearn()
    assert plain.activation == name
    np.testing.assert_allclose(plain.predict_proba(X), mine.predict_proba(X), rtol=1e-13)


def test_what_only_watches_or_says_where_stays_behind():
    history = []

    class Watch(bpgpu.Callback):
        def on_epoch_end(self, training):
            history.append(training.history.loss[-1])

    X, y = problem("regression")
    mine = make(ours, "regression", callbacks=[Watch()], n_threads=1, quantile=0.3, tol=1, max_iter=50).fit(X, y)
    assert history
    assert b"bpgpu" not in pickle.dumps(mine.to_sklearn())


# A network


@pytest.mark.parametrize("module", [ours, neural_network], ids=["bpgpu", "scikit-learn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_a_network_predicts_what_the_estimator_does(task, dtype, module):
    X, _ = problem(task, dtype)
    estimator = fitted(module, task, dtype)
    net = bpgpu.MLP.from_sklearn(estimator, backend="numpy")
    a = net.predict(X)
    assert a.dtype == dtype
    expected = estimator.predict_proba(X) if task in CLASSIFIERS else estimator.predict(X).reshape(len(X), -1)
    if a.shape[1] < expected.shape[1]:
        expected = expected[:, 1:]
    np.testing.assert_allclose(a, expected, rtol=1e-5 if dtype == "float32" else 1e-13)
    net.weights[0][:] = 0
    assert estimator.coefs_[0].all()  # nothing is shared


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_a_network_goes_on_with_the_same_gradients(task, activation):
    X, y = problem(task)
    options = {"solver": "sgd", "momentum": 0.0, "alpha": 0.3, "batch_size": 60, "activation": activation}
    estimator = fitted(neural_network, task, **options)
    net = bpgpu.MLP.from_sklearn(estimator, backend="numpy")
    targets = estimator._label_binarizer.transform(y).astype(float) if task in CLASSIFIERS else y
    bpgpu.check_gradients(net, X, targets)
    net.fit(X, targets, optimizer=bpgpu.SGD(1e-3), epochs=2, batch_size=60, shuffle=False)
    estimator.partial_fit(X, y).partial_fit(X, y)
    for W, V in zip(net.weights + net.biases, estimator.coefs_ + estimator.intercepts_, strict=True):
        np.testing.assert_allclose(W, V, rtol=1e-10, atol=1e-13)


def test_a_network_can_be_saved_and_the_command_line_predicts_with_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for task in ("binary", "classes", "regression"):
        X, y = problem(task)
        estimator = fitted(ours, task)
        bpgpu.MLP.from_sklearn(estimator).save("net.safetensors")
        np.savez("data.npz", X=X, y=y)
        assert cli.run(["predict", "net.safetensors", "data.npz", "--json"]) == 0
        out, _ = capfd.readouterr()
        assert f'"test_metric": {estimator.score(X, y):.6f}'[:-3] in out
    for task in ("multilabel", "outputs", "one class", "poisson"):
        net = bpgpu.MLP.from_sklearn(fitted(ours, task))
        net.save("net.safetensors")
        assert bpgpu.MLP.load("net.safetensors").architecture == net.architecture
        assert bool(net.metadata) == (task == "poisson")


def test_names_of_columns_are_kept():
    pd = pytest.importorskip("pandas")
    X, y = problem("classes")
    estimator = make(ours, "classes", max_iter=1000, tol=1).fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert bpgpu.MLP.from_sklearn(estimator).metadata["columns"] == list("abcd")


@pytest.mark.parametrize("kind", [ours.MLPClassifier, neural_network.MLPRegressor])
def test_what_is_not_fitted_has_no_network(kind, tmp_path):
    with pytest.raises(NotFittedError):
        bpgpu.MLP.from_sklearn(kind())
    with pytest.raises(NotFittedError):
        ours.MLPClassifier().to_onnx(tmp_path / "net.onnx")
    with pytest.raises(TypeError, match="estimator must be an MLPClassifier or MLPRegressor"):
        bpgpu.MLP.from_sklearn("net")


@pytest.mark.parametrize("task", ["regression", "outputs"])
@pytest.mark.parametrize("loss", ["absolute_error", "huber", "log_cosh", "quantile", "own"])
def test_a_network_has_the_loss_the_activations_and_the_dropout(tmp_path, loss, task):
    X, y = problem(task)
    own = bpgpu.Cost("own", "(a - y) ** 4", "4 * (a - y) ** 3")
    options = {"activation": ["gelu", CUBE], "dropout": 0.25, "quantile": 0.3, "huber_delta": 0.5}
    mine = fitted(ours, task, loss=own if loss == "own" else loss, **options)
    net = bpgpu.MLP.from_sklearn(mine, backend="numpy")
    np.testing.assert_allclose(net.predict(X), mine.predict(X).reshape(len(X), -1), rtol=1e-13)
    assert (net.architecture.cost.name, net.architecture.dropout) == (loss, 0.25)
    bpgpu.check_gradients(net, X, y)
    net.save(tmp_path / "net.safetensors")
    assert bpgpu.MLP.load(tmp_path / "net.safetensors").architecture == net.architecture
    mine.to_onnx(tmp_path / "net.onnx")
    np.testing.assert_allclose(run(tmp_path / "net.onnx", X)["variable"], net.predict(X), rtol=1e-10)


# ONNX


def run(path, X):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, {"X": X}), strict=True))


@pytest.mark.parametrize("file_dtype", [None, "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_a_file_gives_what_the_estimator_predicts(tmp_path, task, activation, dtype, file_dtype):
    X, _ = problem(task, dtype)
    mine = fitted(ours, task, dtype, activation=activation)
    mine.to_onnx(tmp_path / "net.onnx", dtype=file_dtype)
    found = run(tmp_path / "net.onnx", X.astype(file_dtype or dtype))
    tolerance = 1e-5 if "float32" in (dtype, file_dtype) else 1e-12
    if task not in CLASSIFIERS:
        assert list(found) == ["variable"]
        expected = mine.predict(X).reshape(len(X), -1)
        np.testing.assert_allclose(found["variable"], expected, rtol=tolerance, atol=tolerance)
        return
    assert list(found) == ["label", "probabilities"]
    assert found["probabilities"].dtype == (file_dtype or dtype)
    np.testing.assert_allclose(found["probabilities"], mine.predict_proba(X), rtol=tolerance, atol=tolerance)
    assert found["label"].tolist() == mine.predict(X).tolist()
    assert found["label"].dtype == (object if task == "binary" else np.int64)


def test_a_file_with_other_numbers_than_the_estimators_is_not_kept(tmp_path, monkeypatch):
    mine = fitted(ours, "classes")
    probabilities = mine.predict_proba
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"gives .* as output 1, but predict"):
        patch.setattr(mine, "predict_proba", lambda X: probabilities(X) + 1e-6)
        mine.to_onnx(tmp_path / "net.onnx")
    mine._label_binarizer.classes_ = mine.classes_[::-1].copy()
    with pytest.raises(RuntimeError, match="onnxruntime gives other labels than predict"):
        mine.to_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_names_of_columns_give_no_warning(tmp_path):
    pd = pytest.importorskip("pandas")
    X, y = problem("classes")
    estimator = make(ours, "classes", max_iter=1000, tol=1).fit(pd.DataFrame(X, columns=list("abcd")), y)
    estimator.to_onnx(tmp_path / "net.onnx")
