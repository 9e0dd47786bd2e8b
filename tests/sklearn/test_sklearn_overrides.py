"""What a program puts in the place of scikit-learn's training, or of its arrays, counts as it does there."""

import copy
import inspect
import pickle
import sys
import types
from unittest import mock

import joblib
import numpy as np
import pytest
from sklearn import neural_network
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.neural_network import _stochastic_optimizers as optimizers
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight

import bpgpu
from bpgpu import sklearn as ours
from bpgpu.sklearn.listeners import CallbackSupportMixin
from bpgpu.sklearn.parameters import TAKEN

pytestmark = pytest.mark.filterwarnings("ignore")
BACKENDS = ["numpy", "numba"]
BASE = perceptron.BaseMultilayerPerceptron


def data(n=90, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    return X, X[:, 0] * X[:, 1], (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def make(module, kind="MLPRegressor", base=None, **options):
    """Return an estimator of a module, or of a class that `base` makes of its own."""
    cls = getattr(module, kind)
    options = {"hidden_layer_sizes": (7,), "max_iter": 4, "random_state": 0, "batch_size": 16, **options}
    if module is not ours:
        options.pop("backend", None)
    return (base(cls) if base else cls)(**options)


def outcome(action):
    """Return what a function leaves: an estimator's numbers, or its error."""
    try:
        estimator = action()
    except Exception as error:
        return type(error), str(error)
    arrays = [np.asarray(x) for x in [*estimator.coefs_, *estimator.intercepts_]]
    return arrays, float(estimator.loss_), estimator.n_iter_, estimator.n_outputs_


def assert_same(action, tolerance=1e-9):
    """Compare what a function of the module leaves in scikit-learn and in bpgpu; return the former."""
    theirs, mine = (outcome(lambda module=module: action(module)) for module in (neural_network, ours))
    if isinstance(theirs[0], type):
        assert mine[0] is theirs[0], (mine, theirs)
        return theirs
    assert not isinstance(mine[0], type), mine
    assert mine[2:] == theirs[2:]
    assert mine[1] == pytest.approx(theirs[1], rel=tolerance, nan_ok=True)
    for x, y in zip(mine[0], theirs[0], strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=tolerance, atol=tolerance)
    return theirs


def assert_in_scikit_learn(estimator, reason):
    assert estimator.fit_report_.backend == "scikit-learn"
    assert reason in estimator.fit_report_.reason


# Another shape than the network's


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3), (3, 2), (100, 3), (100, 0), (3, 100), (1, 0)])
def test_targets_of_another_width(before, after, how, backend):
    X, y, _ = data(2000)

    def targets(width):
        return np.repeat(y[:, None], width, axis=1) + np.arange(width) if width else y

    def action(module):
        estimator = make(module, warm_start=True, backend=backend)
        fit = estimator.fit if how == "warm_start" else estimator.partial_fit
        fit(X, targets(before))
        return fit(X, targets(after))

    assert_same(action)


@pytest.mark.parametrize("solver", ["adam", "sgd"])  # with lbfgs scikit-learn reads memory that nobody has written
def test_another_width_with_other_solvers(solver):
    X, y, _ = data()

    def action(module):
        estimator = make(module, warm_start=True, solver=solver).fit(X, np.c_[y, y, y])
        return estimator.fit(X, y)

    assert_same(action)


def test_another_number_of_features_is_refused():
    X, y, _ = data()

    def action(module):
        return make(module, warm_start=True).fit(X, y).fit(X[:, :4], y)

    assert assert_same(action)[0] is ValueError


def as_dtype(dtype, intercepts=True):
    def change(e):
        e.coefs_ = [W.astype(dtype) for W in e.coefs_]
        if intercepts:
            e.intercepts_ = [b.astype(dtype) for b in e.intercepts_]

    return change


def each(function, *names):
    """Return a change of all arrays in the lists of these names."""

    def change(e):
        for name in names:
            setattr(e, name, [function(x) for x in getattr(e, name)])

    return change


def pruned(e):
    e.coefs_ = [e.coefs_[0][:, :5].copy(), e.coefs_[1][:5].copy()]
    e.intercepts_ = [e.intercepts_[0][:5].copy(), e.intercepts_[1]]


def pruned_with_optimizer(e):
    pruned(e)
    del e._optimizer


def assign(path, value):
    """Return a change that sets an attribute, also of the optimizer, perhaps to what a function makes of the model."""

    def change(e):
        *owner, name = path.split(".")
        setattr(getattr(e, owner[0]) if owner else e, name, value(e) if callable(value) else value)

    return change


def frozen(e):
    for array in e.coefs_ + e.intercepts_:
        array.setflags(write=False)


def tied(e):
    e.coefs_ = [e.coefs_[0], e.coefs_[0][:1].reshape(-1, 1)]


CHANGES = {
    "transposed": assign("coefs_", lambda e: [W.T.copy() for W in e.coefs_]),
    "fewer rows": assign("coefs_", lambda e: [e.coefs_[0][:3].copy(), e.coefs_[1]]),
    "another layer": assign("coefs_", lambda e: [e.coefs_[0], np.ones((4, 2))]),
    "a layer more": assign("coefs_", lambda e: [*e.coefs_, np.ones((1, 1))]),
    "intercepts as rows": each(lambda b: b.reshape(1, -1), "intercepts_"),
    "intercepts as columns": each(lambda b: b.reshape(-1, 1), "intercepts_"),
    "intercepts of one number": each(lambda b: np.zeros(1), "intercepts_"),
    "pruned": pruned,
    "pruned, a new optimizer": pruned_with_optimizer,
    "tuple": assign("coefs_", lambda e: tuple(e.coefs_)),
    "float16": as_dtype(np.float16),
    "longdouble": as_dtype(np.longdouble),
    "integers": as_dtype(int),
    "big-endian": as_dtype(">f8"),
    "lists": each(np.ndarray.tolist, "coefs_"),
    "matrix": each(np.matrix, "coefs_"),
    "masked": each(np.ma.masked_array, "coefs_"),
    "Fortran order": each(np.asfortranarray, "coefs_"),
    "strided": each(lambda W: np.repeat(W, 2, axis=1)[:, ::2], "coefs_"),
    "read-only": frozen,
    "tied": tied,
    "nan": lambda e: e.coefs_[0].fill(np.nan),
    "moments reversed": assign("_optimizer.ms", lambda e: e._optimizer.ms[::-1]),
    "one moment short": assign("_optimizer.vs", lambda e: e._optimizer.vs[:-1]),
    "moments broadcast": assign("_optimizer.ms", lambda e: [m.reshape(-1)[:1] for m in e._optimizer.ms]),
    "no optimizer": assign("_optimizer", None),
    "fractional steps": assign("_optimizer.t", 2.5),
    "n_layers_": assign("n_layers_", 2),
    "output tanh": assign("out_activation_", "tanh"),
    "output relu": assign("out_activation_", "relu"),
    "output logistic": assign("out_activation_", "logistic"),
    "output exp": assign("out_activation_", "exp"),
    "output softmax": assign("out_activation_", "softmax"),
    "output unknown": assign("out_activation_", "swish"),
    "loss": assign("loss", "poisson"),
    "hidden_layer_sizes": assign("hidden_layer_sizes", (3,)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_user_puts_in_place_of_fitted_arrays(change, how, backend):
    X, y, _ = data()

    def action(module):
        estimator = make(module, warm_start=True, backend=backend).fit(X, y)
        CHANGES[change](estimator)
        return estimator.fit(X, y) if how == "warm_start" else estimator.partial_fit(X, y)

    assert_same(action)


@pytest.mark.parametrize("change", ["pruned", "float16", "intercepts as rows", "strided", "read-only"])
def test_lbfgs_from_such_arrays(change):
    X, y, _ = data()

    def action(module):
        estimator = make(module, warm_start=True, solver="lbfgs").fit(X, y)
        CHANGES[change](estimator)
        return estimator.fit(X, y)

    assert_same(action, 1e-6)


def test_an_optimizer_of_ours_with_other_shapes_is_refused():
    X, y, _ = data()
    estimator = make(ours, optimizer="adamw").partial_fit(X, y)
    pruned(estimator)
    with pytest.raises(ValueError, match=r"state of the optimizer .* only bpgpu can train with optimizer"):
        estimator.partial_fit(X, y)


# Methods, functions and tables


def backprop(cls):
    class Frozen(cls):  # the first layer does not move
        def _backprop(self, *arguments):
            loss, dW, db = super()._backprop(*arguments)
            dW[0][:] = 0
            return loss, dW, db

    return Frozen


def in_place(cls):
    class InPlace(cls):  # relies on the arrays that scikit-learn has made for it
        def _compute_loss_grad(self, layer, sw_sum, activations, deltas, coef_grads, intercept_grads):
            np.matmul(activations[layer].T, deltas[layer], out=coef_grads[layer])
            coef_grads[layer] /= sw_sum
            intercept_grads[layer][:] = deltas[layer].mean(axis=0)

    return InPlace


def forward(cls):
    class Scaled(cls):
        def _forward_pass(self, activations):
            activations = super()._forward_pass(activations)
            activations[-1] *= 0.5
            return activations

    return Scaled


def unpack(cls):
    class Positive(cls):
        def _unpack(self, packed):
            super()._unpack(np.abs(packed))

    return Positive


def lbfgs_loss(cls):
    class L1(cls):
        def _loss_grad_lbfgs(self, packed, *arguments):
            loss, gradient = super()._loss_grad_lbfgs(packed, *arguments)
            return loss + 0.1 * sum(np.abs(W).sum() for W in self.coefs_), gradient + 0.1 * np.sign(packed)

    return L1


def after_an_epoch(cls):
    class Clipped(cls):
        def _update_no_improvement_count(self, *arguments):
            super()._update_no_improvement_count(*arguments)
            for W in self.coefs_:
                np.clip(W, -0.2, 0.2, out=W)

    return Clipped


def alpha(cls):
    class Relative(cls):
        @property
        def alpha(self):  # read in every step
            return 0.1 * np.abs(self.coefs_[0]).max() if hasattr(self, "coefs_") else 0.1

        @alpha.setter
        def alpha(self, value):
            pass

    return Relative


SUBCLASSES = [backprop, in_place, forward, after_an_epoch, alpha]


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("kind", ["MLPRegressor", "MLPClassifier"])
@pytest.mark.parametrize("subclass", [*SUBCLASSES, unpack, lbfgs_loss], ids=lambda subclass: subclass.__name__)
def test_a_subclass_with_a_training_method_of_its_own(subclass, kind, solver):
    X, y, labels = data()
    target = labels if kind == "MLPClassifier" else y
    assert_same(lambda module: make(module, kind, subclass, solver=solver, alpha=0.1).fit(X, target), 1e-7)


def test_what_is_done_and_why_is_said(caplog):
    X, y, _ = data()
    with caplog.at_level("INFO", "bpgpu"):
        estimator = make(ours, base=backprop).fit(X, y)
    assert_in_scikit_learn(estimator, "Frozen._backprop is not scikit-learn's own")
    assert "runs on scikit-learn" in caplog.text and "Frozen._backprop" in caplog.text


@pytest.mark.parametrize("name", ["_backprop", "_forward_pass", "_compute_loss_grad", "_update_no_improvement_count"])
def test_a_method_of_the_object(name):
    X, y, _ = data()
    calls = []

    def action(module):
        estimator = make(module)

        def method(self, *arguments):
            calls.append(module)
            return getattr(BASE, name)(self, *arguments)

        setattr(estimator, name, types.MethodType(method, estimator))
        return estimator.fit(X, y)

    assert_same(action)
    assert calls.count(ours) == calls.count(neural_network) > 0


PATCHES = {
    "_backprop": (BASE, "_backprop"),
    "_forward_pass": (BASE, "_forward_pass"),
    "_compute_loss_grad": (BASE, "_compute_loss_grad"),
    "_update_no_improvement_count": (BASE, "_update_no_improvement_count"),
    "_fit_stochastic": (BASE, "_fit_stochastic"),
    "update_params": (optimizers.BaseOptimizer, "update_params"),
    "_get_updates": (optimizers.AdamOptimizer, "_get_updates"),
    "optimizer": (perceptron, "AdamOptimizer"),
    "gen_batches": (perceptron, "gen_batches"),
    "shuffle": (perceptron, "shuffle"),
    "_safe_indexing": (perceptron, "_safe_indexing"),
    "safe_sparse_dot": (perceptron, "safe_sparse_dot"),
    "train_test_split": (perceptron, "train_test_split"),
    "_init_coef": (BASE, "_init_coef"),
    "_initialize": (BASE, "_initialize"),
}
LBFGS_PATCHES = {
    "_unpack": (BASE, "_unpack"),
    "_loss_grad_lbfgs": (BASE, "_loss_grad_lbfgs"),
    "_backprop": (BASE, "_backprop"),
    "_fit_lbfgs": (BASE, "_fit_lbfgs"),
    "_pack": (perceptron, "_pack"),
}


def calls_of(owner, name, action):
    """Count the calls of what is patched, while scikit-learn trains and while bpgpu does."""
    counts = []
    for module in (neural_network, ours):
        with mock.patch.object(owner, name, autospec=True, side_effect=getattr(owner, name)) as patched:
            action(module)
        counts.append(patched.call_count)
    return counts


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_of_scikit_learn_is_called_as_often(patch):
    X, y, _ = data()
    theirs, mine = calls_of(
        *PATCHES[patch], lambda module: make(module, early_stopping=patch == "train_test_split").fit(X, y)
    )
    assert mine == theirs > 0


@pytest.mark.parametrize("patch", LBFGS_PATCHES)
def test_a_patch_for_lbfgs_is_called_as_often(patch):
    X, y, _ = data()
    theirs, mine = calls_of(*LBFGS_PATCHES[patch], lambda module: make(module, solver="lbfgs").fit(X, y))
    assert mine == pytest.approx(theirs, abs=2) and mine > 0


TABLES = {
    "hidden activation": ("ACTIVATIONS", "relu", lambda Z: np.maximum(Z, 0.1 * Z, out=Z)),
    "derivative": ("DERIVATIVES", "relu", lambda Z, delta: np.multiply(delta, np.where(Z > 0, 1, 0.1), out=delta)),
    "output": ("ACTIVATIONS", "identity", lambda Z: np.multiply(Z, 2, out=Z)),
    "loss": ("LOSS_FUNCTIONS", "squared_error", lambda y, a, weight=None: float(np.abs(y - a).mean())),
    "another row of the table": ("ACTIVATIONS", "relu", perceptron.ACTIVATIONS["tanh"]),
}


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("change", TABLES)
def test_a_changed_table(change, solver):
    X, y, _ = data()
    table, key, function = TABLES[change]
    with mock.patch.dict(getattr(perceptron, table), {key: function}):
        assert_same(lambda module: make(module, solver=solver).fit(X, y), 1e-7)
        assert_in_scikit_learn(make(ours).fit(X, y), f"{table}['{key}']")


def test_a_table_in_place_of_the_table():
    X, y, _ = data()
    tables = {**perceptron.ACTIVATIONS, "relu": perceptron.ACTIVATIONS["tanh"]}
    with mock.patch.object(perceptron, "ACTIVATIONS", tables):
        assert_same(lambda module: make(module).fit(X, y))


def test_an_activation_of_the_programs_own():
    """It gets a row in both tables, and the class a constraint that lets it through."""
    X, y, _ = data()

    def leaky(Z):
        np.maximum(Z, 0.01 * Z, out=Z)

    def slope(Z, delta):
        delta[Z < 0] *= 0.01

    def subclass(cls):
        allowed = {**cls._parameter_constraints, "activation": [StrOptions({"leaky"})]}
        return type("Leaky", (cls,), {"_parameter_constraints": allowed})

    with (
        mock.patch.dict(perceptron.ACTIVATIONS, leaky=leaky),
        mock.patch.dict(perceptron.DERIVATIVES, leaky=slope),
    ):
        assert_same(lambda module: make(module, base=subclass, activation="leaky").fit(X, y))


def test_tables_that_nobody_uses_may_change():
    X, y, _ = data()
    with mock.patch.dict(perceptron.ACTIVATIONS, tanh=len, other=len):
        assert make(ours).fit(X, y).fit_report_.backend != "scikit-learn"


class AdamW(optimizers.AdamOptimizer):
    def _get_updates(self, grads):
        return [u - 0.05 * p for u, p in zip(super()._get_updates(grads), self.parameters, strict=True)]

    def update_params(self, params, grads):
        self.parameters = params
        super().update_params(params, grads)


class Clip(optimizers.SGDOptimizer):
    def _get_updates(self, grads):
        return super()._get_updates([np.clip(g, -0.001, 0.001) for g in grads])


class Sign(optimizers.BaseOptimizer):
    def __init__(self, params, rate):
        super().__init__(rate)

    def _get_updates(self, grads):
        return [-self.learning_rate * np.sign(g) for g in grads]


@pytest.mark.parametrize("kind", [AdamW, Clip, Sign])
def test_an_optimizer_of_the_programs_own(kind):
    X, y, _ = data()

    def action(module):
        estimator = make(module).partial_fit(X, y)
        estimator._optimizer = kind(estimator.coefs_ + estimator.intercepts_, 0.01)
        for _ in range(3):
            estimator.partial_fit(X, y)
        return estimator

    assert_same(action)
    assert_in_scikit_learn(action(ours), f"the optimizer is a {kind.__name__}")


def test_an_optimizer_with_a_method_of_its_own():
    X, y, _ = data()

    def action(module):
        estimator = make(module).partial_fit(X, y)
        optimizer = estimator._optimizer
        optimizer._get_updates = lambda grads: [-0.1 * g for g in grads]
        return estimator.partial_fit(X, y)

    assert_same(action)


def test_the_programs_own_optimizer_class():
    X, y, _ = data()
    with mock.patch.object(perceptron, "AdamOptimizer", AdamW):
        assert_same(lambda module: make(module).fit(X, y))


def test_a_subclass_that_leaves_training_alone_trains_on_a_backend():
    X, y, _ = data()

    class Rounded(ours.MLPRegressor):
        def predict(self, X):
            return super().predict(X).round()

        def _score(self, *arguments, **named):
            return super()._score(*arguments, **named)

    assert make(ours, base=lambda cls: Rounded, early_stopping=True).fit(X, y).fit_report_.backend != "scikit-learn"


def test_what_only_bpgpu_can_do_and_an_override():
    X, y, _ = data()
    with pytest.raises(ValueError, match=r"Frozen\._backprop is not .* only bpgpu can train with dropout"):
        make(ours, base=backprop, dropout=0.1).fit(X, y)
    with mock.patch.object(BASE, "_fit_stochastic", autospec=True), pytest.raises(ValueError, match="with dropout"):
        make(ours, dropout=0.1).fit(X, y)
    clipped = make(ours, base=after_an_epoch, activation="gelu").fit(X, y)  # it is called anyway
    assert max(np.abs(W).max() for W in clipped.coefs_) <= 0.2


# Targets


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sums_to_one", [True, False])
def test_soft_targets_of_a_classifier(sums_to_one, backend):
    X, _, labels = data()
    soft = np.random.default_rng(1).dirichlet([1, 1, 1], len(X)) * (1 if sums_to_one else 1.5)

    def subclass(cls):
        class Soft(cls):
            def _validate_input(self, X, y, *arguments, **named):
                return super()._validate_input(X, y, *arguments, **named)[0], soft

        return Soft

    def action(module):
        return make(module, "MLPClassifier", subclass, learning_rate_init=0.05, backend=backend).fit(X, labels)

    assert_same(action)
    assert (action(ours).fit_report_.backend == "scikit-learn") is not sums_to_one


@pytest.mark.parametrize("output", ["softmax", "logistic", "tanh", "relu", "exp"])
def test_an_output_of_the_users_choice(output):
    X, _, _ = data()
    Y = np.random.default_rng(1).dirichlet([1, 1, 1], len(X))

    def action(module):
        estimator = make(module, learning_rate_init=0.05).partial_fit(X, Y)
        estimator.out_activation_ = output
        for _ in range(20):
            estimator.partial_fit(X, Y)
        return estimator

    assert_same(action)


def test_softmax_over_several_labels():
    X, _, _ = data()
    Y = (X[:, :3] > 0).astype(int)

    def action(module):
        estimator = make(module, "MLPClassifier").partial_fit(X, Y, classes=[0, 1, 2])
        estimator.out_activation_ = "softmax"
        return estimator.partial_fit(X, Y)

    assert_same(action)


# The loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("task", ["classes", "binary", "labels"])
def test_the_log_loss_is_scikit_learns_where_a_sample_is_very_wrong(task, solver, backend):
    """Of raw data: probabilities of 0 and 1, which scikit-learn clips, and a line search that goes by it."""
    X, y = load_wine(return_X_y=True)
    y = {"classes": y, "binary": y > 0, "labels": np.c_[y > 0, y > 1, y == 1].astype(int)}[task]
    options = {"solver": solver, "max_iter": 20, "random_state": 1, "batch_size": 32, "learning_rate_init": 1e-4}
    mine, theirs = (
        make(module, "MLPClassifier", hidden_layer_sizes=(20,), backend=backend, **options).fit(X, y)
        for module in (ours, neural_network)
    )
    assert mine.fit_report_.backend == backend
    assert mine.n_iter_ == theirs.n_iter_
    assert mine.loss_ == pytest.approx(theirs.loss_, rel=1e-6)
    if solver != "lbfgs":
        np.testing.assert_allclose(mine.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    assert (mine.predict(X) == theirs.predict(X)).all()


def test_float32_clips_at_its_own_epsilon():
    X, y = load_wine(return_X_y=True)
    options = {
        "hidden_layer_sizes": (20,),
        "solver": "sgd",
        "learning_rate_init": 1e-5,
        "max_iter": 1,
        "batch_size": 178,
    }
    for target in (y, y > 0):
        mine, theirs = (
            make(module, "MLPClassifier", **options).fit(X.astype(np.float32), target)
            for module in (ours, neural_network)
        )
        assert mine.loss_ == pytest.approx(theirs.loss_, rel=1e-5)
        assert theirs.loss_ > 5  # of which so many samples at 15.9 are a part


def test_a_network_of_several_labels_keeps_the_costs_of_bpgpu():
    X, _, _ = data()
    net = bpgpu.MLP.from_sklearn(make(ours, "MLPClassifier").fit(X, (X[:, :3] > 0).astype(int)))
    assert net.architecture.cost.name == "binary_cross_entropy"
    assert net.architecture.activations[-1].name == "sigmoid"


# Names of ours in subclasses


def weighted(cls):
    class Weighted(cls):
        """Written for scikit-learn, with parameters of its own that have our names."""

        def __init__(self, class_weight=None, backend="tensorflow", n_threads=-1, dropout="none", random_state=0):
            self.backend, self.n_threads = backend, n_threads
            super().__init__(hidden_layer_sizes=(5,), max_iter=4, random_state=random_state)
            self.class_weight, self.dropout = class_weight, dropout

        def fit(self, X, y):
            return super().fit(X, y, sample_weight=compute_sample_weight(self.class_weight, y))

    return Weighted


def test_parameters_of_a_subclass_that_have_our_names():
    X, _, labels = data()
    mine, theirs = (
        clone(weighted(module.MLPClassifier)(class_weight="balanced")).fit(X, labels)
        for module in (ours, neural_network)
    )
    np.testing.assert_allclose(mine.coefs_[0], theirs.coefs_[0], rtol=1e-12)
    assert mine.get_params() == theirs.get_params()
    assert (mine.backend, mine.n_threads, mine.dropout) == ("tensorflow", -1, "none")
    mine.set_params(class_weight={0: 1, 1: 5, 2: 1}).fit(X, labels)
    theirs.set_params(class_weight={0: 1, 1: 5, 2: 1}).fit(X, labels)
    np.testing.assert_allclose(mine.coefs_[0], theirs.coefs_[0], rtol=1e-12)
    assert pickle.loads(pickle.dumps(make(ours, dropout=0.25))).dropout == 0.25


def test_attributes_of_a_class_that_have_our_names():
    X, y, _ = data()

    class Mine(ours.MLPRegressor):
        dtype = "mine"
        scoring = property(lambda self: "mine")

        def optimizer(self):
            return "mine"

    estimator = make(ours, base=lambda cls: Mine, early_stopping=True, dropout=0.25).fit(X, y)
    assert (estimator.dtype, estimator.scoring, estimator.optimizer()) == ("mine", "mine", "mine")
    assert estimator.dropout == 0.25 and hasattr(estimator, "_bpgpu_dropout_seed")  # this one is still ours


def test_a_regressor_with_the_class_weight_of_classifiers():
    X, y, _ = data()
    mine, plain = make(ours), make(ours)
    mine.class_weight, mine.label_smoothing = "balanced", 0.3
    assert (mine.fit(X, y).coefs_[0] == plain.fit(X, y).coefs_[0]).all()


def test_a_subclass_that_passes_our_parameters_on_has_them():
    X, _, labels = data()

    class Mine(ours.MLPClassifier):
        def __init__(self, dropout=0.2, class_weight=None, activation="gelu", **others):
            super().__init__((5,), activation, dropout=dropout, class_weight=class_weight, max_iter=4, **others)

    estimator = Mine(backend="numpy", random_state=0).fit(X, labels)
    assert hasattr(estimator, "_bpgpu_dropout_seed") and estimator.fit_report_.backend == "numpy"
    before = estimator.coefs_[0].copy()
    estimator.set_params(class_weight="balanced").fit(X, labels)
    assert not np.allclose(estimator.coefs_[0], before)
    with pytest.raises(ValueError, match="'dropout' parameter of Mine"):
        Mine(dropout=2).fit(X, labels)


def test_pickles_of_such_a_class_that_scikit_learn_made(monkeypatch):
    """The same name is another class where bpgpu's estimators are in the place of scikit-learn's."""
    X, _, labels = data()
    module = types.ModuleType("of_a_user")
    monkeypatch.setitem(sys.modules, "of_a_user", module)

    def named(cls):
        module.Weighted = weighted(cls)
        module.Weighted.__module__, module.Weighted.__qualname__ = "of_a_user", "Weighted"
        return module.Weighted

    theirs = named(neural_network.MLPClassifier)(class_weight="balanced", backend="torch").fit(X, labels)
    text = pickle.dumps(theirs)
    named(ours.MLPClassifier)
    mine = pickle.loads(text)
    assert isinstance(mine, ours.MLPClassifier) and mine.backend == "torch"
    assert (mine.predict(X) == theirs.predict(X)).all()
    for estimator in (mine, theirs):
        estimator.partial_fit(X, labels)
        estimator.fit(X, labels)
    np.testing.assert_allclose(mine.coefs_[0], theirs.coefs_[0], rtol=1e-12)
    again = pickle.loads(pickle.dumps(mine))
    assert getattr(again, TAKEN) == getattr(mine, TAKEN)
    assert (again.fit(X, labels).coefs_[0] == mine.coefs_[0]).all()


@pytest.mark.parametrize("own", [{}, {"dtype": "mine"}], ids=str)
def test_models_that_scikit_learn_made_train_on_as_ours(own, monkeypatch, tmp_path):
    """Also of a subclass without an ``__init__``, in whose pickles our parameters are missing too."""
    X, _, labels = data()
    module = types.ModuleType("of_a_user")
    monkeypatch.setitem(sys.modules, "of_a_user", module)
    for cls in (neural_network.MLPClassifier, ours.MLPClassifier):
        module.Mine = type("Mine", (cls,), {"__module__": "of_a_user", **own})
        if cls is neural_network.MLPClassifier:
            joblib.dump(make(module, "Mine").fit(X, labels), tmp_path / "model")
    mine = joblib.load(tmp_path / "model")
    assert isinstance(mine, ours.MLPClassifier) and mine.backend == "auto"
    for estimator in (mine, copy.deepcopy(mine), clone(mine)):
        assert estimator.set_params(dropout=0.5).get_params()["dropout"] == 0.5
        assert hasattr(estimator.fit(X, labels), "_bpgpu_dropout_seed")
        assert estimator.dtype == own.get("dtype")


# Names of a subclass


def attributes_set(module, kind, y, **options):
    """Return the names of all that a fit sets in its estimator, also what it deletes again."""
    names = set()

    def recording(cls):
        return type(cls.__name__, (cls,), {"__setattr__": lambda self, name, value: _record(self, name, value, names)})

    estimator = make(module, kind, base=recording, max_iter=20, **options)
    for _ in range(2):
        estimator.fit(data()[0], y)
    return names | set(vars(estimator)) | set(dir(type(estimator)))


def _record(self, name, value, names):
    names.add(name)
    object.__setattr__(self, name, value)


@pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
def test_all_names_that_our_classes_add_are_public_or_have_our_prefix(kind):
    """A program's subclass may use any other name, as it may with scikit-learn's."""
    y = data()[2] if kind == "MLPClassifier" else data()[1]
    theirs = attributes_set(neural_network, kind, y, early_stopping=True, warm_start=True)
    theirs |= attributes_set(neural_network, kind, y, solver="lbfgs")
    theirs |= set(dir(CallbackSupportMixin)) | {"_skl_callbacks"}  # scikit-learn's too
    theirs.add("__slotnames__")  # which pickling leaves in a class
    more = {"class_weight": "balanced"} if kind == "MLPClassifier" else {}
    mine = attributes_set(
        ours, kind, y, early_stopping=True, warm_start="resume", dropout=0.1, optimizer="adamw", **more
    )
    mine |= attributes_set(ours, kind, y, solver="lbfgs", **more)
    added = mine - theirs
    assert {name for name in added if name.startswith("_") and not name.startswith("_bpgpu_")} == set()
    public = {name for name in added if not name.startswith("_")}
    documented = {name for name in public if getattr(getattr(ours, kind), name, None).__doc__}
    parameters = inspect.signature(getattr(ours, kind)).parameters.keys()
    assert public - documented - parameters == {"validation_loss_curve_"}
    assert documented - parameters == {"fit_report_", "hidden_activations", "input_gradients", *CONVERSIONS}


CONVERSIONS = ("to_sklearn", "from_sklearn", "to_onnx")
ONCE_OURS = (
    *("_where", "_begin", "_train", "_split", "_new_optimizer", "_rows_of_a_batch", "_epoch_ends", "_keep_report"),
    *(
        "_checked_validation",
        "_take_the_best_epoch",
        "_go_on_from_the_last_epoch",
        "_checked_input",
        "_added",
        "_order",
    ),
    *(
        "_refuse_what_is_only_here",
        "_given_validation",
        "_report",
        "_before",
        "_by_class",
        "_objective",
        "_constructor",
    ),
    *("_dropout_seed", "_split_state", "_last_epoch"),
)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "lbfgs"},
        {"early_stopping": True, "warm_start": "resume", "activation": "gelu"},
        {"dropout": 0.2, "optimizer": "adamw", "class_weight": "balanced"},
    ],
    ids=str,
)
def test_a_subclass_may_take_names_that_are_natural_to_take(options):
    X, _, y = data()

    def refuse(*arguments):
        raise AssertionError("the method of a program's own has been called")

    def with_own_names(cls):
        return type("Mine", (cls,), dict.fromkeys(ONCE_OURS, refuse))

    fits = [make(ours, "MLPClassifier", base=base, **options) for base in (None, with_own_names)]
    for _ in range(2):
        plain, mine = (estimator.fit(X, y) for estimator in fits)
    np.testing.assert_array_equal(mine.coefs_[0], plain.coefs_[0])
    np.testing.assert_array_equal(mine.hidden_activations(X)[0], plain.hidden_activations(X)[0])
    again = pickle.loads(pickle.dumps(plain)).fit(X, y)
    np.testing.assert_array_equal(again.coefs_[0], plain.fit(X, y).coefs_[0])


@pytest.mark.parametrize(("before", "after"), [(100, None), (100, 3), (3, 100), (2, None), (1, 2)])
@pytest.mark.parametrize("how", ["warm", "partial_fit"])
def test_lbfgs_with_targets_of_another_width_is_refused(before, after, how):
    """scikit-learn gives SciPy a gradient of another length than the parameters, and memory is overwritten."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(33, 9))
    first, second = rng.normal(size=(33, before)), rng.normal(size=33 if after is None else (33, after))
    model = ours.MLPRegressor(hidden_layer_sizes=(6,), solver="lbfgs", max_iter=3, warm_start=True, random_state=0)
    model.fit(X, first.ravel() if before == 1 else first)
    with pytest.raises(ValueError, match=rf"^y must have {before} columns, .* got {after or 1};"):
        (model.fit if how == "warm" else model.partial_fit)(X, second)


@pytest.mark.parametrize("t", [2**63, 2**70])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_an_optimizer_with_a_strange_count_trains_as_in_scikit_learn(solver, t):
    X, y, _ = data()
    results = []
    for module in (neural_network, ours):
        model = make(module, "MLPRegressor", solver=solver).partial_fit(X, y)
        model._optimizer.t = t
        results.append(model.partial_fit(X, y).coefs_[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)
