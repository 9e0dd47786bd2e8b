"""What scikit-learn refuses and bpgpu's estimators do: each beside a reference of its own."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, mean_pinball_loss
from sklearn.utils.class_weight import compute_sample_weight

import bpgpu
from bpgpu import sklearn as ours
from bpgpu.sklearn import networks
from tests.sklearn.test_sklearn_parity import BACKENDS, estimator, fit, problem

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def same_network(model, cost, **options):
    """Return a bpgpu.MLP with the initial weights that the estimator starts from."""
    start = model.coefs_[0].dtype
    hidden = [model.activation] * (len(model.coefs_) - 1) if isinstance(model.activation, str) else [*model.activation]
    output = {"softmax": "softmax", "logistic": "sigmoid", "identity": "identity"}[model.out_activation_]
    sizes = [len(model.coefs_[0]), *map(len, model.intercepts_)]
    init = list(zip(model.coefs_, model.intercepts_, strict=True))
    return bpgpu.MLP(
        sizes, [*hidden, output], cost, l2=model.alpha, dtype=start.name, backend="numpy", init=init, **options
    )


def initial(task, X, y, **options):
    """Return the estimator as it is before its first epoch."""
    model = estimator(ours, task, **options)
    model.set_params(max_iter=1, learning_rate_init=1e-300, optimizer=bpgpu.SGD(1e-300))
    return model.fit(X, y)


def train(net, X, y, rule, epochs, weight=None, order=None):
    net.fit(X, y, optimizer=rule, epochs=epochs, batch_size=32, sample_weight=weight, shuffle=False)
    return net


def assert_same_weights(model, net, tolerance=1e-9):
    for W, expected in zip(model.coefs_, net.weights, strict=True):
        np.testing.assert_allclose(W, expected, rtol=tolerance, atol=tolerance)


# Networks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("activation", "sizes"),
    [
        ("gelu", (7,)),
        ("softmax", (7,)),  # scikit-learn knows it of the output alone
        (["tanh", "leaky_relu", "softmax"], (7, 5, 4)),
        (bpgpu.Activation("softsign", value="z / (1 + abs(z))", derivative="(1 - abs(a)) ** 2"), (6,)),
    ],
)
def test_activations(activation, sizes, backend):
    X, y, _ = problem("classes")
    options = {"activation": activation, "hidden_layer_sizes": sizes, "shuffle": False, "backend": backend}
    start = initial("classes", X, y, **options)
    model = fit(ours, "classes", X, y, optimizer=bpgpu.RMSprop(0.01), max_iter=4, **options)
    hidden = activation if isinstance(activation, list) else [activation]
    net = same_network(start.set_params(activation=hidden), "cross_entropy")
    train(net, X, y - 3, bpgpu.RMSprop(0.01), 4)
    assert_same_weights(model, net)
    np.testing.assert_allclose(model.predict_proba(X), net.predict(X), rtol=1e-10)


def test_layers_draw_their_weights_by_their_own_activation():
    X, y, _ = problem("classes")
    mixed = initial("classes", X, y, hidden_layer_sizes=(200, 300), activation=["logistic", "relu"])
    bounds = [np.sqrt(2 / (6 + 200)), np.sqrt(6 / (200 + 300)), np.sqrt(6 / (300 + 3))]
    for W, bound in zip(mixed.coefs_, bounds, strict=True):
        assert 0.98 * bound < np.abs(W).max() <= bound


def test_as_many_activations_as_hidden_layers():
    X, y, _ = problem("classes")
    with pytest.raises(ValueError, match="one for each of 1 layers, got 2"):
        fit(ours, "classes", X, y, activation=["tanh", "relu"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout(backend):
    X, y, _ = problem("regression")
    options = {"dropout": 0.4, "backend": backend, "shuffle": False, "optimizer": bpgpu.SGD(0.05)}
    model = fit(ours, "regression", X, y, max_iter=3, **options)
    start = initial("regression", X, y)
    net = same_network(start, "half_squared_error", dropout=0.4, seed=model._bpgpu_dropout_seed)
    train(net, X, y, bpgpu.SGD(0.05), 3)
    assert_same_weights(model, net)
    without = fit(ours, "regression", X, y, max_iter=3, **options | {"dropout": 0.0})
    assert np.abs(model.coefs_[0] - without.coefs_[0]).max() > 1e-3


def test_dropout_leaves_initial_weights_and_orders_alone():
    X, y, _ = problem("regression")
    without, with_none = (fit(ours, "regression", X, y, dropout=rate, max_iter=3) for rate in (0.0, 1e-300))
    assert all((W == V).all() for W, V in zip(without.coefs_, with_none.coefs_, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype(dtype):
    X, y, _ = problem("classes")
    model = fit(ours, "classes", X, y, dtype=dtype, max_iter=5)
    assert {W.dtype.name for W in model.coefs_ + model.intercepts_} == {dtype}
    other = fit(ours, "classes", X.astype(dtype), y, max_iter=5)
    assert all((W == V).all() for W, V in zip(model.coefs_, other.coefs_, strict=True))


# Losses


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["regression", "outputs"])
@pytest.mark.parametrize(
    ("loss", "values"),
    [
        ("absolute_error", np.abs),
        ("huber", lambda e: np.where(np.abs(e) < 0.7, e**2 / 2, 0.7 * (np.abs(e) - 0.35))),
        ("log_cosh", lambda e: np.log(np.cosh(e))),
        ("quantile", lambda e: np.where(e < 0, -0.8 * e, 0.2 * e)),
    ],
)
def test_losses(loss, values, task, backend):
    X, y, _ = problem(task)
    options = {"loss": loss, "huber_delta": 0.7, "quantile": 0.8, "alpha": 0.0, "backend": backend}
    model = fit(ours, task, X, y, batch_size=90, max_iter=1, **options, optimizer=bpgpu.SGD(1e-300))
    a = model.predict(X)
    assert model.loss_ == pytest.approx(values(a - y).mean(), rel=1e-10)
    # A step of gradient descent lowers the loss by eta |gradient|^2, outputs summed: the reported mean by 1/K of it.
    step = fit(ours, task, X, y, batch_size=90, max_iter=2, **options, optimizer=bpgpu.SGD(1e-6), tol=0)
    change = np.concatenate(
        [(V - W).ravel() for V, W in zip(step.coefs_ + step.intercepts_, model.coefs_ + model.intercepts_, strict=True)]
    )
    slope = (change**2).sum() / 1e-6 / 4  # of two equal steps
    outputs = 1 if y.ndim == 1 else y.shape[1]
    assert step.loss_curve_[0] - step.loss_curve_[1] == pytest.approx(slope / outputs, rel=0.02)


def test_quantile_and_absolute_error_estimate_what_they_say():
    X, y, _ = problem("regression", n=400)
    y = y + np.random.default_rng(0).exponential(2, len(y))
    options = {"max_iter": 300, "learning_rate_init": 0.01, "tol": 0, "backend": "numba"}
    high, low, middle, mean = (
        fit(ours, "regression", X, y, **options, **given)
        for given in (
            {"loss": "quantile", "quantile": 0.9},
            {"loss": "quantile", "quantile": 0.1},
            {"loss": "absolute_error"},
            {},
        )
    )
    assert abs((y < high.predict(X)).mean() - 0.9) < 0.05
    assert abs((y < low.predict(X)).mean() - 0.1) < 0.05
    assert mean_absolute_error(y, middle.predict(X)) < mean_absolute_error(y, mean.predict(X))
    assert mean_pinball_loss(y, high.predict(X), alpha=0.9) < mean_pinball_loss(y, mean.predict(X), alpha=0.9)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_cost_of_the_users_own(solver):
    X, y, _ = problem("outputs")
    cost = bpgpu.Cost("fourth", value="0.25 * (y - a) ** 4", gradient="(a - y) * (a - y) * (a - y)", reduction="mean")
    model = fit(ours, "outputs", X, y, loss=cost, solver=solver, alpha=0.0, max_iter=60, learning_rate_init=0.01)
    start = initial("outputs", X, y, loss=cost, alpha=0.0)
    before, after = (((m.predict(X) - y) ** 4).mean() / 4 for m in (start, model))
    assert after < before / 5
    if solver == "lbfgs":
        assert model.loss_ == pytest.approx(after, rel=1e-9)
    pickle.loads(pickle.dumps(model)).predict(X)


@pytest.mark.parametrize(("task", "labels"), [("binary", 2), ("classes", 3), ("multilabel", 2)])
def test_label_smoothing(task, labels):
    X, y, _ = problem(task)
    model = fit(
        ours, task, X, y, label_smoothing=0.3, alpha=0.0, batch_size=90, max_iter=1, optimizer=bpgpu.SGD(1e-300)
    )
    hot = (y[:, None] == model.classes_).astype(float) if y.ndim == 1 else y.astype(float)
    hot = hot * 0.7 + 0.3 / labels
    a = model.predict_proba(X)
    terms = -(hot * np.log(a) + (1 - hot) * np.log(1 - a)) if task == "multilabel" else -hot * np.log(a)
    assert model.loss_ == pytest.approx(terms.sum() / len(X), rel=1e-10)


@pytest.mark.parametrize("class_weight", ["balanced", {3: 5.0, 5: 0.5}])
def test_class_weight_multiplies_sample_weight(class_weight):
    X, y, _ = problem("classes")
    weight = np.linspace(0.5, 2, len(y))
    by_class = compute_sample_weight(class_weight, y)
    for given in (None, weight):
        model = fit(ours, "classes", X, y, weight=given, class_weight=class_weight, max_iter=5)
        other = fit(ours, "classes", X, y, weight=by_class if given is None else by_class * given, max_iter=5)
        assert all((W == V).all() for W, V in zip(model.coefs_, other.coefs_, strict=True))
    with pytest.raises(ValueError, match="'balanced' is not supported for partial_fit"):
        estimator(ours, "classes", class_weight="balanced").partial_fit(X, y, classes=[3, 4, 5])


# Steps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "rule",
    [
        bpgpu.AdamW(0.01, weight_decay=0.3),
        bpgpu.RMSprop(bpgpu.CosineDecay(0.02, steps=9)),
        bpgpu.SGD(bpgpu.StepDecay(0.1, 0.5, 2), momentum=0.9, clip_norm=0.1),
    ],
    ids=["AdamW", "RMSprop with a schedule", "SGD, clipped"],
)
def test_optimizers(rule, backend):
    X, y, _ = problem("classes")
    model = fit(ours, "classes", X, y, optimizer=rule, max_iter=4, shuffle=False, backend=backend)
    net = train(same_network(initial("classes", X, y), "cross_entropy"), X, y - 3, rule, 4)
    assert_same_weights(model, net)
    halves = estimator(ours, "classes", optimizer=rule, shuffle=False, backend=backend)
    for _ in range(4):
        halves.partial_fit(X, y, classes=[3, 4, 5])
    assert_same_weights(halves, net)


def test_an_optimizer_by_name_takes_scikit_learns_learning_rate():
    X, y, _ = problem("classes")
    named, given = (
        fit(ours, "classes", X, y, optimizer=o, learning_rate_init=0.03, max_iter=3)
        for o in ("adamw", bpgpu.AdamW(0.03))
    )
    assert all((W == V).all() for W, V in zip(named.coefs_, given.coefs_, strict=True))


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_resume(solver):
    X, y, _ = problem("classes")
    options = {"solver": solver, "backend": "numba", "dropout": 0.2, "tol": 0}
    whole = fit(ours, "classes", X, y, max_iter=10, warm_start="resume", **options)
    halves = fit(ours, "classes", X, y, max_iter=5, warm_start="resume", **options)
    halves = pickle.loads(pickle.dumps(halves))
    halves.fit(X, y)
    assert halves.loss_curve_ == whole.loss_curve_
    assert all((W == V).all() for W, V in zip(halves.coefs_, whole.coefs_, strict=True))
    warm = fit(ours, "classes", X, y, max_iter=5, warm_start=True, **options).fit(X, y)
    assert warm.loss_curve_[5:] != whole.loss_curve_[5:]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_resume_goes_on_from_the_last_epoch_though_early_stopping_leaves_the_best(solver, backend):
    X, y, _ = problem("classes")
    scores = [0.1, 0.5, 0.2, 0.3, 0.4, 0.3, 0.6, 0.2]  # the best of the first fit is not its last

    def run(*epochs):
        given = iter(scores)
        options = {"learning_rate_init": 0.05, "early_stopping": True, "scoring": lambda *_: next(given)}
        model = estimator(ours, "classes", solver=solver, backend=backend, warm_start="resume", **options)
        for n in epochs:
            model = copy.deepcopy(model.set_params(max_iter=n).fit(X, y))
            best = [x.copy() for x in model.coefs_]
        return model, best

    (whole, expected), (parts, got) = run(8), run(4, 1, 3)
    assert parts.loss_curve_ == whole.loss_curve_
    assert parts.validation_scores_ == whole.validation_scores_ == scores
    assert all((W == V).all() for W, V in zip(got, expected, strict=True))
    first, second = run(4)[1], run(4, 1)[1]  # which has no better score
    assert all((W == V).all() for W, V in zip(first, second, strict=True))


def test_resume_goes_on_from_weights_that_have_been_set():
    X, y, _ = problem("classes")
    options = {"early_stopping": True, "warm_start": "resume", "optimizer": bpgpu.SGD(1e-12), "max_iter": 2}
    model = fit(ours, "classes", X, y, **options)
    model.coefs_ = [np.full_like(W, 0.25) for W in model.coefs_]
    held = model.coefs_[0]
    model.fit(X, y)
    np.testing.assert_allclose(held, 0.25, atol=1e-9)


def test_resume_holds_out_a_part_after_a_fit_with_validation_data():
    X, y, _ = problem("classes")
    model = estimator(ours, "classes", early_stopping=True, warm_start="resume", max_iter=2)
    model.fit(X, y, X_val=X, y_val=y).fit(X, y)
    assert len(model.validation_scores_) == 4


def test_resume_holds_out_the_same_samples():
    X, y, _ = problem("classes")
    held_out = []

    def score(model, X, y):
        held_out.append(X)
        return 0.0

    options = {"max_iter": 1, "early_stopping": True, "scoring": score}
    fit(ours, "classes", X, y, warm_start="resume", **options).fit(X, y).fit(X, y)
    fit(ours, "classes", X, y, random_state=4, **options)
    assert (held_out[0] == held_out[1]).all()
    assert (held_out[0] == held_out[2]).all()
    assert (held_out[0] != held_out[3]).any()


# Validation


@pytest.mark.parametrize("task", ["binary", "classes", "multilabel", "regression", "outputs", "poisson"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_validation_data(task, early_stopping):
    X, y, options = problem(task)
    weight = np.linspace(0.1, 1, 30)
    model = estimator(ours, task, max_iter=4, early_stopping=early_stopping, batch_size=60, alpha=0.0, **options)
    model.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:], sample_weight_val=weight)
    assert len(model.validation_loss_curve_) == 4
    plain = fit(ours, task, X[:60], y[:60], max_iter=4, batch_size=60, alpha=0.0, **options)
    assert plain.loss_curve_ == model.loss_curve_  # all of X is trained on, and validation changes nothing
    if early_stopping:
        assert len(model.validation_scores_) == 4
        assert max(model.validation_scores_) == pytest.approx(model.score(X[60:], y[60:], weight), rel=1e-12)
    else:  # the loss after the last epoch is what the next would begin with
        encoded = y if task in ("regression", "outputs", "poisson") else model._label_binarizer.transform(y)
        encoded = encoded.reshape(len(y), -1)
        a = model._forward_pass_fast(X[60:])
        expected = networks.loss(model, encoded[60:], a, weight)
        assert model.validation_loss_curve_[-1] == pytest.approx(expected, rel=1e-12)
        model.fit(X[:60], y[:60], X_val=X[:60], y_val=y[:60])
        assert model.validation_loss_curve_[:3] == pytest.approx(model.loss_curve_[1:], rel=1e-9)


def test_early_stopping_has_a_validation_curve_too():
    X, y, _ = problem("classes")
    model = fit(ours, "classes", X, y, early_stopping=True, max_iter=5)
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == 5
    assert not hasattr(fit(ours, "classes", X, y, max_iter=2), "validation_loss_curve_")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y_val": [3, 4]}, "X_val and y_val must be given together"),
        ({"sample_weight_val": [1, 2]}, "sample_weight_val needs X_val and y_val"),
        ({"X_val": np.ones((2, 5)), "y_val": [3, 4]}, "X has 5 features"),
        ({"X_val": np.ones((2, 6)), "y_val": [3, 9]}, "y_val has classes that y does not have"),
        ({"X_val": np.ones((2, 6)), "y_val": [3]}, "inconsistent numbers of samples"),
    ],
)
def test_bad_validation_data(given, message):
    X, y, _ = problem("classes")
    with pytest.raises(ValueError, match=message):
        estimator(ours, "classes").fit(X, y, **given)
    with pytest.raises(ValueError, match="needs a stochastic solver"):
        estimator(ours, "classes", solver="lbfgs").fit(X, y, X_val=X, y_val=y)


def test_scoring():
    X, y, _ = problem("binary")
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    options = {"early_stopping": True, "max_iter": 6}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "X does not have valid feature names")
        by_name = fit(ours, "binary", frame, y, scoring="balanced_accuracy", **options)
    given = estimator(ours, "binary", scoring="balanced_accuracy", **options)
    given.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    best = balanced_accuracy_score(y[60:], given.predict(X[60:]))
    assert given.best_validation_score_ == pytest.approx(best)
    by_function = fit(ours, "binary", X, y, scoring=lambda model, X, y: -len(X), **options)
    assert by_function.validation_scores_ == [-9.0] * 6
    by_loss = fit(ours, "binary", X, y, scoring="loss", **options)
    assert by_loss.validation_scores_ == [-x for x in by_loss.validation_loss_curve_]
    assert len(by_name.validation_scores_) == 6


# Callbacks


@pytest.mark.parametrize("backend", BACKENDS)
def test_callbacks_see_the_network_in_training(backend, tmp_path):
    X, y, _ = problem("classes")
    seen = []

    class Look(bpgpu.Callback):
        def on_epoch_end(self, training):
            seen.append((training.history.loss[-1], training.net.predict(X)))
            if training.epoch == 3:
                training.stop("enough")

        def on_train_end(self, training):
            seen.append(training.history.stop_reason)

    checkpoint = bpgpu.Checkpoint(tmp_path / "model.safetensors")
    model = fit(ours, "classes", X, y, callbacks=[Look(), checkpoint], backend=backend)
    assert model.n_iter_ == 3
    assert [loss for loss, _ in seen[:-1]] == model.loss_curve_
    assert seen[-1] == "enough"
    np.testing.assert_allclose(seen[-2][1], model.predict_proba(X), rtol=1e-10)
    saved = bpgpu.MLP.load(tmp_path / "model.safetensors", backend="numpy")
    np.testing.assert_allclose(saved.predict(X), model.predict_proba(X), rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_scikit_learn", [False, True])
def test_callbacks_can_set_weights_and_learning_rates(backend, in_scikit_learn):
    X, y, _ = problem("regression")
    weight = np.where(np.arange(len(X)), 1.0, -0.1) if in_scikit_learn else None

    class Halve(bpgpu.Callback):
        def on_train_end(self, training):
            training.net.parameters[:] /= 2

    options = {"max_iter": 4, "solver": "sgd", "backend": backend, "momentum": 0.0, "weight": weight}
    model = fit(ours, "regression", X, y, callbacks=[Halve(), bpgpu.LearningRateSchedule(lambda e, h: 0.02)], **options)
    assert model.fit_report_.backend == ("scikit-learn" if in_scikit_learn else backend)
    other = fit(ours, "regression", X, y, learning_rate_init=0.02, **options)
    np.testing.assert_allclose(2 * model.coefs_[0], other.coefs_[0], rtol=1e-12)


def test_early_stopping_of_bpgpu_restores_the_best_weights():
    X, y, _ = problem("regression")
    stop = bpgpu.EarlyStopping(patience=2)
    model = estimator(ours, "regression", callbacks=[stop], max_iter=200, batch_size=30, learning_rate_init=0.1)
    model.fit(X[:30], y[:30], X_val=X[30:], y_val=y[30:])
    assert model.n_iter_ == stop.best_epoch + 2 < 200
    a = model.predict(X[30:])
    assert ((a - y[30:]) ** 2).mean() / 2 == pytest.approx(min(model.validation_loss_curve_), rel=1e-9)


def test_callbacks_end_also_where_the_fit_fails():
    X, y, _ = problem("regression")
    seen = []

    class Fail(bpgpu.Callback):
        def on_epoch_end(self, training):
            raise RuntimeError("mine")

        def on_train_end(self, training):
            seen.append("end")

    with pytest.raises(RuntimeError, match="mine"):
        fit(ours, "regression", X, y, callbacks=[Fail()])
    assert seen == ["end"]
    with pytest.raises(TypeError, match=r"must be a list of bpgpu\.Callback objects"):
        fit(ours, "regression", X, y, callbacks=[Fail])


def test_progress(monkeypatch):
    X, y, _ = problem("regression")
    epochs = []
    monkeypatch.setattr(
        "bpgpu.training.callbacks.ProgressBar.on_epoch_end", lambda self, training: epochs.append(training.epoch)
    )
    fit(ours, "regression", X, y, progress=True, max_iter=3)
    assert epochs == [1, 2, 3]


def test_scikit_learns_callbacks():
    callback = pytest.importorskip("sklearn.callback")
    X, y, _ = problem("classes")
    tasks = []

    class Look:
        def setup(self, estimator, context):
            tasks.append("setup")

        def teardown(self, estimator, context):
            tasks.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            tasks.append(("begin", context.task_name, context.task_id))

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            tasks.append(("end", context.task_name, fitted_estimator.predict(X)))
            return context.task_id == 1 and context.task_name == "epoch"

    assert isinstance(Look(), callback.FitCallback)
    model = estimator(ours, "classes").set_callbacks(Look()).fit(X, y)
    assert model.n_iter_ == 2
    assert [task if isinstance(task, str) else task[:2] for task in tasks] == [
        "setup",
        ("begin", "fit"),
        *[("begin", "epoch"), ("end", "epoch")] * 2,
        ("end", "fit"),
        "teardown",
    ]
    assert (tasks[-2][2] == model.predict(X)).all()


# Inside


@pytest.mark.parametrize("task", ["binary", "classes", "multilabel", "outputs", "poisson"])
@pytest.mark.parametrize("activation", ["logistic", ["gelu", "softmax"]])
def test_input_gradients_and_hidden_activations(task, activation):
    X, y, options = problem(task)
    model = fit(ours, task, X, y, hidden_layer_sizes=(5, 4), activation=activation, max_iter=3, **options)
    hidden = model.hidden_activations(X)
    assert [a.shape for a in hidden] == [(90, 5), (90, 4)]
    if activation == "logistic":
        np.testing.assert_allclose(hidden[0], 1 / (1 + np.exp(-X @ model.coefs_[0] - model.intercepts_[0])), rtol=1e-12)
    gradients = model.input_gradients(X)
    outputs = len(model.intercepts_[-1])
    assert gradients.shape == (90, outputs, 6)
    for j in range(6):
        step = 1e-5 * np.eye(6)[j]
        difference = (model._forward_pass_fast(X + step) - model._forward_pass_fast(X - step)) / 2e-5
        np.testing.assert_allclose(gradients[:, :, j], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.1}, {"activation": "gelu"}, {"activation": "softmax"}, {"loss": "huber"}, {"optimizer": "adamw"}],
    ids=["dropout", "activation", "softmax", "loss", "optimizer"],
)
def test_what_neither_can_do_is_said(options):
    X, y, _ = problem("regression")
    with pytest.raises(
        ValueError, match=f"only scikit-learn can.*a sample weight is negative.* only bpgpu can.*{next(iter(options))}"
    ):
        fit(ours, "regression", X, y, weight=-np.ones(len(X)), **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_with_what_scikit_learn_cannot_do():
    X, y, _ = problem("regression")
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights.*layer"):
        fit(ours, "regression", X, y, optimizer=bpgpu.SGD(50.0), dropout=0.1)
