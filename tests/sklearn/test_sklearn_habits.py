"""What programs rely on beside scikit-learn's results: types, warnings, pickles, references, signatures, output."""

import copy
import inspect
import itertools
import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
from scipy.sparse import csr_matrix

sklearn = pytest.importorskip("sklearn")

from sklearn import neural_network as plain  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning, InconsistentVersionWarning  # noqa: E402
from sklearn.utils.class_weight import compute_sample_weight  # noqa: E402

from bpgpu import sklearn as ours  # noqa: E402
from bpgpu.training.callbacks import Callback  # noqa: E402

LIBRARIES = (plain, ours)
rng = np.random.default_rng(0)
X = rng.normal(size=(60, 4))
Y = {
    "binary": X[:, 0] > 0,
    "classes": (X[:, 0] > 0).astype(int) + (X[:, 1] > 1),
    "labels": np.c_[X[:, 0] > 0, X[:, 1] > 0].astype(int),
    "number": X[:, 0],
    "numbers": X[:, :2] * 3,
    "counts": rng.poisson(2, 60),
    "float32": X[:, 0].astype(np.float32),
}
CLASSIFIED = ("binary", "classes", "labels")


def make(library, target, **options):
    kind = library.MLPClassifier if target in CLASSIFIED else library.MLPRegressor
    return kind(**{"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0} | options)


@pytest.fixture(autouse=True)
def no_warnings():
    """What is warned of is another test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# The types of what a fit leaves


def described(value):
    """Return the types in a value, with the dtypes and shapes of its arrays."""
    if isinstance(value, np.ndarray):
        return "array", value.dtype.name, value.shape, value.flags.writeable, value.flags.c_contiguous
    if isinstance(value, list | tuple):
        return type(value).__name__, len(value), [described(item) for item in value]
    return type(value)


OPTIONS = [
    {"solver": "sgd"},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 10, "n_iter_no_change": 1, "max_iter": 9},
    {"solver": "adam", "alpha": np.float64(0.1)},
    {"solver": "adam", "early_stopping": True},
    {"solver": "adam", "shuffle": False, "batch_size": 7},
    {"solver": "lbfgs"},
]


@pytest.mark.parametrize("how", ["fit", "warm", "partial_fit"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attributes_have_the_types_that_scikit_learn_gives_them(options, how):
    if how == "partial_fit" and (options.get("early_stopping") or options["solver"] == "lbfgs"):
        pytest.skip("scikit-learn has none")
    for target, y in Y.items():
        poisson = {"loss": "poisson"} if target == "counts" else {}
        for dtype in (np.float32, np.float64):
            for weight in (None, np.ones(60, np.float32), np.ones(60)):
                found = []
                for library in LIBRARIES:
                    model = make(library, target, **options, **poisson)
                    inputs = csr_matrix(X.astype(dtype)) if weight is None else X.astype(dtype)
                    if how == "partial_fit":
                        classes = {"classes": np.unique(y) if y.ndim == 1 else [0, 1]} if target in CLASSIFIED else {}
                        model.partial_fit(inputs, y, weight, **classes).partial_fit(inputs, y, weight)
                    else:
                        model.set_params(warm_start=how == "warm").fit(inputs, y, weight).fit(inputs, y, weight)
                    found.append({k: described(v) for k, v in vars(model).items() if k not in model.get_params()})
                expected, got = found
                got.pop("validation_loss_curve_", None)
                for one in (expected, got):
                    if options["solver"] == "lbfgs":  # how often it came by is not a type
                        one.pop("n_iter_")
                assert got == expected, (target, dtype, weight is None or weight.dtype)


@pytest.mark.parametrize("how", ["warm", "partial_fit"])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_losses_have_scikit_learns_type_where_training_goes_on_in_another_dtype(solver, how):
    """The parameters stay in the dtype of the first X, the outputs are in the wider of both."""
    if (solver, how) == ("lbfgs", "partial_fit"):
        pytest.skip("scikit-learn has none")
    for dtypes in itertools.product((np.float32, np.float64), repeat=3):
        first, second, y = dtypes
        found = []
        for library in LIBRARIES:
            model = make(library, "number", solver=solver, warm_start=how == "warm")
            train = model.partial_fit if how == "partial_fit" else model.fit
            train(X.astype(first), Y["number"].astype(y))
            train(X.astype(second), Y["number"].astype(y))
            curve = getattr(model, "loss_curve_", None)  # L-BFGS has none
            found.append((described(model.loss_), described(curve), model.coefs_[0].dtype))
        assert found[0] == found[1], dtypes


def test_the_optimizer_has_the_types_of_scikit_learns():
    for options in OPTIONS[:5]:
        expected, got = (vars(make(m, "number", **options).fit(X, Y["number"])._optimizer) for m in LIBRARIES)
        assert {k: described(v) for k, v in got.items()} == {k: described(v) for k, v in expected.items()}


# State: pickles, copies, hashes


@pytest.mark.parametrize("options", [*OPTIONS, {"dropout": 0.5}, {"warm_start": "resume"}], ids=str)
def test_equal_fits_are_equal_to_the_byte(options):
    first, second = (make(ours, "classes", **options).fit(X, Y["classes"]) for _ in range(2))
    assert first.fit_report_.samples and first.fit_report_ is not second.fit_report_
    assert pickle.dumps(first) == pickle.dumps(second)
    assert joblib.hash(first) == joblib.hash(second)
    second.fit(X, Y["classes"])
    assert second.fit_report_.epochs


def test_the_report_is_no_part_of_the_state():
    model, reference = (make(m, "number").fit(X, Y["number"]) for m in (ours, plain))
    added = model.get_params().keys() - reference.get_params().keys()
    assert model.__getstate__().keys() - added == reference.__getstate__().keys()
    assert vars(model).keys() - added == vars(reference).keys()
    for other in (clone(model), copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not hasattr(other, "fit_report_")
        with pytest.raises(AttributeError, match="MLPRegressor has no fit_report_"):
            other.fit_report_  # noqa: B018
    other = copy.deepcopy(model)
    other.partial_fit(X, Y["number"])
    assert (other.fit_report_.epochs, model.fit_report_.epochs) == (1, 3)


def test_reports_go_with_their_estimators():
    from bpgpu.sklearn import habits

    before = set(habits._reports)
    model = make(ours, "number").fit(X, Y["number"])
    assert set(habits._reports) - before == {id(model)}
    del model
    assert not set(habits._reports) - before


class Elsewhere(ours.MLPClassifier):
    """As a user derives one."""

    def __eq__(self, other):  # and therefore no hash
        return self is other


def test_pickles_say_which_scikit_learn_made_them(monkeypatch):
    model = make(ours, "binary").fit(X, Y["binary"])
    made, derived = pickle.dumps(model), Elsewhere(max_iter=2).fit(X, Y["binary"])
    assert model.__getstate__()["_sklearn_version"] == sklearn.__version__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(made)
        copy.deepcopy(again)
        derived = pickle.loads(pickle.dumps(derived))
    assert "_sklearn_version" not in vars(again) | derived.__getstate__()
    monkeypatch.setattr(sklearn, "__version__", "0.0.1")
    other = pickle.dumps(model)
    monkeypatch.undo()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pickle.loads(other)
    warning = caught[0].message
    assert isinstance(warning, InconsistentVersionWarning) and len(caught) == 1
    assert (warning.estimator_name, warning.original_sklearn_version) == ("MLPClassifier", "0.0.1")
    assert caught[0].filename == sklearn.base.__file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="sklearn")
        pickle.loads(other)


def test_the_state_of_scikit_learns_own_estimators_is_taken():
    reference = make(plain, "number").fit(X, Y["number"])
    model, state = ours.MLPRegressor.__new__(ours.MLPRegressor), reference.__getstate__()
    model.__setstate__(state)
    assert "_sklearn_version" in state and "_sklearn_version" not in vars(model)  # the caller's is left alone
    with pytest.warns(InconsistentVersionWarning, match=r"from version pre-0\.18"):
        ours.MLPRegressor.__new__(ours.MLPRegressor).__setstate__(vars(reference))


# Warnings


def interrupted(library):
    """Return an estimator whose training is interrupted from within."""

    class Interrupted(library.MLPRegressor):
        def _update_no_improvement_count(self, *arguments):
            raise KeyboardInterrupt

    return Interrupted(max_iter=2)


@pytest.mark.parametrize(
    "make_one",
    [
        lambda library: make(library, "number"),
        lambda library: make(library, "number", solver="lbfgs"),
        lambda library: make(library, "number", batch_size=1000),
        lambda library: make(library, "number", early_stopping=True),
        interrupted,
    ],
)
def test_warnings_come_from_where_scikit_learn_raises_them(make_one):
    found = []
    for library in LIBRARIES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_one(library).fit(X, Y["number"][:, None])
        found.append(
            [(w.category, w.filename, re.sub(r"\d+ iteration\(s\)|STOP.*", "", str(w.message))) for w in caught]
        )
    assert found[0] == found[1] and found[1]
    for module in ("sklearn", "sklearn.neural_network", r"sklearn\..*_multilayer_perceptron$"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module=module)
            make_one(ours).fit(X, Y["number"])
    with warnings.catch_warnings(), pytest.raises(ConvergenceWarning):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=ConvergenceWarning, module="sklearn")
        make(ours, "number").fit(X, Y["number"])


def test_a_warning_is_shown_as_often_as_scikit_learns():
    """By default once for a line of a module, as long as nobody changes the filters."""
    shown = []
    for library in LIBRARIES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for alpha in (0.1, 0.2, 0.3):
                make(library, "number", alpha=alpha, batch_size=100).fit(X, Y["number"])
        shown.append([w.category for w in caught])
    assert shown[0] == shown[1]


# References


@pytest.mark.parametrize("options", [{}, {"solver": "sgd"}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("backend", ["numba", "numpy", "weights that only scikit-learn takes"])
def test_a_reference_to_the_weights_sees_training(backend, options):
    """As in scikit-learn, which trains them in place."""
    weight, y = None if backend in ("numba", "numpy") else -np.ones(60), Y["number"]
    seen = []
    for library in LIBRARIES:
        where = {"backend": backend} if library is ours and weight is None else {}
        model = make(library, "number", **options, **where).fit(X, y)
        held, lists = [*model.coefs_, *model.intercepts_], (model.coefs_, model.intercepts_)
        before, best = [x.copy() for x in held], model._best_coefs
        assert (best is model.coefs_) == ("early_stopping" in options)
        for _ in range(2):
            train = model.set_params(warm_start=True).fit if "early_stopping" in options else model.partial_fit
            train(X, y, weight)
        if "early_stopping" not in options:  # which takes other arrays, the best
            assert lists[0] is model.coefs_ and lists[1] is model.intercepts_
            assert all(a is b for a, b in zip(held, model.coefs_ + model.intercepts_, strict=True))
        assert not any((a == b).all() for a, b in zip(held, before, strict=True))
        seen.append([*held, *best, *model.coefs_])
    for expected, got in zip(*seen, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)


def test_what_fails_leaves_the_arrays_in_place():
    class Fail(Callback):
        def on_epoch_end(self, training):
            raise RuntimeError("enough")

    model = make(ours, "number").fit(X, Y["number"])
    held = model.coefs_[0]
    with pytest.raises(RuntimeError, match="enough"):
        model.set_params(callbacks=[Fail()]).partial_fit(X, Y["number"])
    assert held is model.coefs_[0] and np.isfinite(held).all()


def test_a_fitted_model_holds_no_more_than_its_weights():
    model = make(ours, "number").fit(X, Y["number"])
    assert all(x.base is None for x in model.coefs_ + model.intercepts_)


# Weights


def test_class_weight_of_classes_that_a_batch_lacks():
    order = np.argsort(Y["classes"], kind="stable")
    for class_weight in ({2: 5}, {1: 2, 2: 5}, {0: 1, 1: 2, 2: 5}, {0: 2, 1: 2, 2: 2, 7: 3}):
        mine, reference = make(ours, "classes", class_weight=class_weight), make(plain, "classes")
        for start in range(0, 60, 10):
            rows = order[start : start + 10]
            weight = np.array([class_weight.get(label, 1.0) for label in Y["classes"][rows]])
            mine.partial_fit(X[rows], Y["classes"][rows], classes=[0, 1, 2])
            reference.partial_fit(X[rows], Y["classes"][rows], weight, classes=[0, 1, 2])
        np.testing.assert_allclose(mine.coefs_[0], reference.coefs_[0], rtol=1e-8)


def test_class_weight_of_text_in_batches():
    y = np.array(["a", "b", "c"], dtype=object)[Y["classes"]]
    mine, reference = make(ours, "classes", class_weight={"c": 3}), make(plain, "classes")
    for rows in (slice(0, 5), slice(5, 60)):
        mine.partial_fit(X[rows], y[rows], classes=["a", "b", "c"])
        reference.partial_fit(X[rows], y[rows], np.where(y[rows] == "c", 3.0, 1.0), classes=["a", "b", "c"])
    np.testing.assert_allclose(mine.coefs_[0], reference.coefs_[0], rtol=1e-8)
    with pytest.raises(ValueError, match="has classes not in"):
        mine.partial_fit(X[:1], ["d"])


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_class_weights_multiply_sample_weights(solver):
    weight = np.linspace(0.5, 1, 60)
    for target in CLASSIFIED:
        by_class = compute_sample_weight("balanced", Y[target])
        mine = make(ours, target, solver=solver, class_weight="balanced").fit(X, Y[target], weight)
        reference = make(plain, target, solver=solver).fit(X, Y[target], weight * by_class)
        np.testing.assert_allclose(mine.coefs_[0], reference.coefs_[0], rtol=1e-6)
        assert not hasattr(mine, "_bpgpu_by_class") or mine._bpgpu_by_class is None


def test_mistakes_in_class_weight():
    with pytest.raises(ValueError, match="not in class_weight"):
        make(ours, "classes", class_weight={0: 1, 7: 3}).fit(X, Y["classes"])
    with pytest.raises(ValueError, match="multi-output"):
        make(ours, "labels", class_weight={0: 1, 1: 3}).fit(X, Y["labels"])


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("label", ["classes", "binary"])
@pytest.mark.parametrize(
    "weight", [np.nan, np.inf, -np.inf, None, "x", 1j, pytest.param(10**400, id="10**400"), 0, 1e308]
)
def test_class_weights_that_nothing_can_learn_from(weight, label, solver):
    labels = Y[label].tolist()
    given = dict.fromkeys(set(labels), weight) if weight in (0, 1e308) else {labels[0]: weight}
    model = make(ours, label, solver=solver, class_weight=given)
    with pytest.raises(ValueError, match="class_weight"):
        model.fit(X, labels)
    if weight not in (0, 1e308):
        assert not hasattr(model, "coefs_") and not hasattr(model, "classes_")


@pytest.mark.parametrize("weight", [1e30, 1e-30])
def test_class_weights_whose_products_with_sample_weights_float32_cannot_hold(weight):
    given = dict.fromkeys(Y["binary"].tolist(), weight)
    model = make(ours, "binary", dtype="float32", class_weight=given).fit(X, Y["binary"])
    with pytest.raises(ValueError, match=r"class_weight, multiplied by sample_weight,.*float32"):
        model.fit(X, Y["binary"], np.full(len(X), weight))


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(
    "weight", [np.ones(1), [1.0], np.ones(59), np.ones((60, 1)), np.full(60, np.nan), np.array(["a"] * 60)], ids=str
)
def test_sample_weights_that_scikit_learn_refuses(weight, class_weight):
    with pytest.raises(ValueError) as expected:
        make(plain, "binary").fit(X, Y["binary"], weight)
    with pytest.raises(ValueError) as got:
        make(ours, "binary", class_weight=class_weight).fit(X, Y["binary"], weight)
    assert str(got.value).replace("bpgpu", "") == str(expected.value)
    make(ours, "binary", class_weight=class_weight).fit(X, Y["binary"], 2.0)  # one number is for all


# Output and signatures


@pytest.mark.parametrize("verbose", [True, 1, 2, 10])
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_verbose_prints_what_scikit_learn_prints(options, verbose, capsys):
    printed = []
    for library in LIBRARIES:
        make(library, "classes", **options, verbose=verbose).fit(X, Y["classes"])
        printed.append(capsys.readouterr())
    assert printed[0].out and printed[1] == printed[0]


@pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
def test_methods_have_scikit_learns_parameters(kind):
    """Those with an underscore too, which subclasses override and call."""
    compared = 0
    for name, method in inspect.getmembers(getattr(plain, kind), inspect.isfunction):
        if name == "__init__" or name.startswith("set_") or name == "__setstate__":
            continue
        expected, got = (
            [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
            for function in (method, getattr(getattr(ours, kind), name))
        )
        assert got[: len(expected)] == expected, name
        assert all(kind == inspect.Parameter.KEYWORD_ONLY for _, kind, _ in got[len(expected) :]), name
        compared += 1
    assert compared > 20


def test_fit_calls_the_inner_fit_as_scikit_learn_does():
    y, calls = Y["binary"], []
    for library in LIBRARIES:

        class Watched(library.MLPClassifier):
            def _fit(self, X, y, sample_weight, incremental):
                calls.append((sample_weight is None, incremental))
                return super()._fit(X, y, sample_weight, incremental)

        Watched(3, max_iter=2).fit(X, y).partial_fit(X, y)
    assert calls == [(True, False), (True, True)] * 2
    for arguments, options in (((None, True), {}), ((), {"incremental": True}), ((2.0,), {}), ((), {})):
        mine, reference = (make(m, "number")._fit(X, Y["number"], *arguments, **options) for m in (ours, plain))
        assert mine.n_iter_ == reference.n_iter_
        np.testing.assert_allclose(mine.loss_, reference.loss_)


# Going on with another configuration


@pytest.mark.parametrize("how", ["warm", "partial_fit"])
def test_hidden_layer_sizes_that_change(how):
    """scikit-learn trains the layers that are there, or fails where their number has changed."""
    y = Y["number"]
    for first, then in (((7,), (3,)), ((7,), 7), ((7, 6), [3, 12]), ((), ())):
        models = [make(m, "number", hidden_layer_sizes=first, warm_start=how == "warm").fit(X, y) for m in LIBRARIES]
        for model in models:
            model.set_params(hidden_layer_sizes=then)
            model.fit(X, y) if how == "warm" else model.partial_fit(X, y)
        np.testing.assert_allclose(models[1].coefs_[0], models[0].coefs_[0], rtol=1e-8)
    for first, then in (((7,), (7, 7)), ((7, 7), (7,)), ((), (7,)), ((7,), ())):
        for library in LIBRARIES:
            model = make(library, "number", hidden_layer_sizes=first, warm_start=how == "warm").fit(X, y)
            before, model.hidden_layer_sizes = model.coefs_[0].copy(), then
            with pytest.raises((ValueError, TypeError, IndexError)) as error:
                model.fit(X, y) if how == "warm" else model.partial_fit(X, y)
        assert error.type is ValueError and "hidden_layer_sizes" in str(error.value)
        np.testing.assert_array_equal(model.coefs_[0], before)
    with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0"):
        model.set_params(hidden_layer_sizes=(0,), warm_start=True).fit(X, y)


def test_hidden_layer_sizes_that_change_under_lbfgs():
    model = make(ours, "number", solver="lbfgs", warm_start=True).fit(X, Y["number"])
    for then in ((3,), (12,), (5, 5)):
        with pytest.raises(ValueError, match="hidden_layer_sizes"):
            model.set_params(hidden_layer_sizes=then).fit(X, Y["number"])
    model.set_params(warm_start=False).fit(X, Y["number"])
    assert len(model.coefs_) == 3


@pytest.mark.parametrize(
    ("solver", "how"), [("adam", "fit"), ("adam", "warm"), ("adam", "partial_fit"), ("lbfgs", "fit"), ("lbfgs", "warm")]
)
def test_hidden_layer_sizes_of_a_wrong_type_have_scikit_learns_error(solver, how):
    wrong = [(3.0,), (7.5,), [True], True, [None], [[7]], [7, "a"], np.array([7.0]), np.array([[3, 4]])]
    for sizes in wrong:
        for library in LIBRARIES:
            model = make(library, "number", hidden_layer_sizes=(7,), solver=solver, warm_start=how == "warm")
            if how != "fit":
                model.fit(X, Y["number"])
            model.hidden_layer_sizes = sizes
            if how == "partial_fit" and solver == "lbfgs":
                continue
            with pytest.raises(TypeError) as error:
                model.partial_fit(X, Y["number"]) if how == "partial_fit" else model.fit(X, Y["number"])
        assert re.fullmatch(r"hidden_layer_sizes\[\d\] must be an integer, got .*", str(error.value))
    for sizes in ({7}, {7: "a key"}):  # scikit-learn takes whatever has one entry after the other
        model = make(ours, "number", hidden_layer_sizes=sizes, solver=solver, warm_start=True)
        assert model.fit(X, Y["number"]).fit(X, Y["number"]).coefs_[0].shape == (4, 7)


# Sample weights


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("target", ["classes", "number"])
def test_sample_weights_whose_sum_overflows_are_refused_by_name(target, solver):
    """They trained nothing, and the loss was 0."""
    for dtype, weight in ((np.float64, 1e308), (np.float32, 1e38), (np.float32, 1e300)):
        given = np.full(60, weight)
        message = rf"^sample_weight must have a finite sum in {np.dtype(dtype)}, got up to .* in 60 rows; give"
        with pytest.raises(ValueError, match=message):
            make(ours, target, solver=solver).fit(X.astype(dtype), Y[target], sample_weight=given)
    model = make(ours, target, solver=solver).fit(X, Y[target], sample_weight=np.full(60, 1e300))
    np.testing.assert_allclose(model.loss_, make(ours, target, solver=solver).fit(X, Y[target]).loss_, rtol=1e-3)
    if solver != "lbfgs":
        validation = {"X_val": X, "y_val": Y[target], "sample_weight_val": np.full(60, 1e308)}
        with pytest.raises(ValueError, match=r"^sample_weight_val must have a finite sum in float64"):
            make(ours, target, solver=solver).fit(X, Y[target], **validation)


# Targets


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_targets_of_a_regression_are_taken_and_refused_as_by_scikit_learn(solver):
    y = np.round(X[:, 0] * 9)
    taken = ["int8", "uint8", bool, "float16", "longdouble", ">f8", object]
    texts = y.astype(str)
    for given in [*(np.abs(y).astype(dtype) for dtype in taken), texts.astype(object)]:
        mine, reference = (make(m, "number", solver=solver).fit(X, given) for m in (ours, plain))
        np.testing.assert_allclose(mine.loss_, reference.loss_, rtol=1e-3)
    refused = [texts, texts.astype("S"), texts.tolist(), np.c_[texts, texts], y.astype("M8[s]"), y.astype("m8[s]")]
    for given in refused:
        for library in LIBRARIES:
            model = make(library, "number", solver=solver)
            with pytest.raises(TypeError) as error:
                model.fit(X, given)
        assert "y must be numbers" in str(error.value) and not hasattr(model, "coefs_")
    for library in LIBRARIES:
        with pytest.raises(ValueError, match="Complex"):
            make(library, "number", solver=solver).fit(X, y + 0j)


def test_held_out_samples_need_a_weight():
    """scikit-learn says so too, when it computes the score."""
    weight = np.zeros(len(X))
    weight[[2, 9]] = 1
    for library in LIBRARIES:
        with pytest.raises((ValueError, ZeroDivisionError)) as error:
            make(library, "binary", early_stopping=True, solver="sgd").fit(X, Y["binary"], weight)
    assert re.match("^sample_weight must not be 0 for all the samples", str(error.value)), error.value


def test_partial_fit_refuses_a_batch_size_that_became_no_integer():
    """scikit-learn checks no parameter again in `partial_fit`, and fails when it slices."""
    for library in LIBRARIES:
        model = make(library, "number", solver="sgd").partial_fit(X, Y["number"])
        coefs = [W.copy() for W in model.coefs_]
        with pytest.raises(TypeError):
            model.set_params(batch_size=0.5).partial_fit(X, Y["number"])
        np.testing.assert_array_equal(model.coefs_[0], coefs[0])


@pytest.mark.filterwarnings("ignore")  # of an optimizer that has not converged
@pytest.mark.parametrize("what", ["coefs_", "intercepts_"])
def test_lbfgs_refuses_weights_of_other_shapes(what):
    """Scikit-learn lets SciPy write beyond the arrays that it has made for the layers."""
    model = make(ours, "number", solver="lbfgs", warm_start=True).fit(X, Y["number"])
    getattr(model, what)[0] = getattr(model, what)[0][:-1]
    with pytest.raises(ValueError, match="coefs_ and intercepts_ of the fitted network must have the shapes"):
        model.fit(X, Y["number"])


@pytest.mark.filterwarnings("ignore")  # of an optimizer that has not converged, and of overflow
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_targets_that_float32_does_not_hold(solver):
    """X is float32 and y stays float64, so scikit-learn's loss is finite where 1e39 in float32 is not."""
    y = Y["number"].astype(float)
    y[0] = 1e39
    losses = []
    for library in LIBRARIES:
        model = make(library, "number", solver=solver, max_iter=1)
        losses.append(model.fit(X.astype(np.float32), y).loss_)
    assert np.isfinite(losses).all() and losses[0] == pytest.approx(losses[1], rel=1e-6)
