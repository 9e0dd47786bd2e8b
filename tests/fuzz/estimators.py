"""An estimator of bpgpu beside scikit-learn's, through random calls in sequence: the same values, the same errors."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from scipy import sparse
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import bpgpu.sklearn as ours
from tests.fuzz.inputs import DAMAGED, compressed, content, matrices

TOLERANCE = 1e-6
SOLVERS: list[dict[str, Any]] = [
    {"solver": "sgd", "momentum": 0.0},
    {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
    {"solver": "sgd", "learning_rate": "adaptive"},
    {"solver": "adam", "epsilon": 0.1},
    {"solver": "lbfgs"},
]
CHANGES: list[dict[str, Any]] = [
    {"warm_start": True},
    {"warm_start": False},
    {"hidden_layer_sizes": (3,)},
    {"hidden_layer_sizes": (2, 4)},
    {"hidden_layer_sizes": ()},
    {"early_stopping": True},
    {"early_stopping": False},
    {"shuffle": False},
    {"batch_size": 3},
    {"batch_size": 10**6},
    {"alpha": 1.0},
    {"activation": "tanh"},
    # What scikit-learn refuses when it is used.
    {"alpha": -1.0},
    {"max_iter": 0},
    {"batch_size": 0.5},
    {"hidden_layer_sizes": (3, 0)},
    {"hidden_layer_sizes": "wide"},
    {"activation": "tanhh"},
    {"learning_rate_init": "fast"},
]
TASKS = ("binary", "classes", "text", "multilabel", "number", "numbers")


def is_extreme(x: Any) -> bool:
    """Return whether there are numbers in it that are far larger than most."""
    values = np.asarray(x.data if sparse.issparse(x) else x)
    return values.dtype.kind == "f" and bool((np.abs(values) > 1e6).any())


class Estimators(RuleBasedStateMachine):
    """The same calls on scikit-learn's estimator and on ours."""

    calls = 0
    folder: Path
    coarse = False

    @initialize(
        task=st.sampled_from(TASKS),
        solver=st.sampled_from(SOLVERS),
        backend=st.sampled_from(["numpy", "numba"]),
        hidden=st.lists(st.integers(1, 5), max_size=2),
        activation=st.sampled_from(["identity", "logistic", "tanh", "relu"]),
        rows=st.integers(2, 16),
        columns=st.integers(1, 5),
        entropy=st.integers(0, 2**32 - 1),
        small=st.booleans(),
    )
    def make(
        self,
        task: str,
        solver: dict[str, Any],
        backend: str,
        hidden: list[int],
        activation: str,
        rows: int,
        columns: int,
        entropy: int,
        small: bool,
    ) -> None:
        rng = np.random.default_rng(entropy)
        self.classifies = task not in ("number", "numbers")
        self.kind = "MLPClassifier" if self.classifies else "MLPRegressor"
        options = {
            "hidden_layer_sizes": tuple(hidden),
            "activation": activation,
            "max_iter": 3,
            "batch_size": 4 if small else "auto",
            "random_state": entropy % 1000,
            **solver,
        }
        self.theirs = getattr(neural_network, self.kind)(**options)
        self.mine = getattr(ours, self.kind)(backend=backend, **options)
        self.backend = backend
        self.X = rng.normal(size=(rows, columns))
        self.targets = {
            "binary": rng.integers(0, 2, rows),
            "classes": rng.integers(0, 3, rows) * 5 - 2,
            "text": np.array(["a", "b", "c"])[rng.integers(0, 3, rows)],
            "multilabel": rng.integers(0, 2, (rows, 3)),
            "number": rng.normal(size=rows),
            "numbers": rng.normal(size=(rows, 2)),
        }
        self.y = self.targets[task]
        self.weight = rng.random(rows)

    def both(self, call: Callable[[Any], Any], *given: Any, broken: bool = False) -> list[Any]:
        """Make a call on both; return the values, or None where both raised the same kind of error.

        Of a `broken` model with a parameter that is wrong besides, either error is right. Ours may also refuse what
        scikit-learn does not come to use, in no epochs.
        """
        type(self).calls += 1
        inputs = [content(value) for value in given]
        results: list[Any] = []
        for estimator in (self.mine, self.theirs):
            np.random.seed(0)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    results.append(call(estimator))
            except Exception as error:
                results.append(error)
                if "fitted network" in str(error):  # scikit-learn may have SciPy write beyond it
                    results.append(None)
                    break
        assert [content(value) for value in given] == inputs, "an argument was changed"
        mine, theirs = results
        if isinstance(theirs, Exception) or isinstance(mine, Exception):
            kinds = [type(x) if isinstance(x, Exception) else None for x in (theirs, mine)]
            # Where scikit-learn fails in the middle, with words of NumPy's, ours may name the argument before.
            fails = kinds[0] is not None or not self.theirs.max_iter
            refused = fails and (kinds[1] in (ValueError, TypeError) or (broken and kinds[1]))
            # What scikit-learn takes without a sensible result.
            refused = refused or "fitted network" in str(mine) or "must have a finite sum" in str(mine)
            assert kinds[0] is kinds[1] or refused, results
            return [None, None]
        return [theirs, mine]

    def compare(self) -> None:
        """Compare what fitting has left, then go on from scikit-learn's state, so that rounding does not add up."""
        names = ("coefs_", "intercepts_", "loss_curve_", "validation_scores_", "loss_", "n_iter_", "t_", "classes_")
        for name in names:
            x, y = getattr(self.theirs, name, None), getattr(self.mine, name, None)
            assert (x is None) == (y is None), name
            if x is None or name == "classes_":
                assert x is None or content(np.asarray(x)) == content(np.asarray(y))
                continue
            for i, (theirs, mine) in enumerate(
                zip(*((v if isinstance(v, list) else [v]) for v in (x, y)), strict=True)
            ):
                self.close(mine, theirs, f"{name}[{i}]")
        self.mine = type(self.mine).from_sklearn(self.theirs, backend=self.backend)

    def close(self, mine: Any, theirs: Any, what: str) -> None:
        theirs, mine = np.asarray(theirs), np.asarray(mine)
        assert theirs.shape == mine.shape and theirs.dtype == mine.dtype, what
        if theirs.dtype.kind != "f":
            assert (theirs == mine).all(), what
            return
        if self.coarse:
            return
        # With parameters in float32, scikit-learn computes in float64 if X is of it, and rounds the parameters.
        single = np.float32 in (theirs.dtype, np.asarray(self.theirs.coefs_[0]).dtype)
        tolerance = 2e-3 if single else TOLERANCE
        scale = max(1.0, np.abs(theirs[np.isfinite(theirs)]).max(initial=0))
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * scale, err_msg=what)

    def draw_data(self, data: Any) -> tuple[Any, Any, Any]:
        hostile = data.draw(st.integers(0, 2)) == 0
        X = data.draw(matrices(self.X, hostile=hostile, may_be_sparse=True))
        y: Any = self.y
        fate = data.draw(st.integers(0, 5))
        if fate == 0:  # of another task, often of another width
            y = self.targets[data.draw(st.sampled_from(TASKS))]
        elif fate == 1 and y.dtype.kind in "if":
            y = data.draw(matrices(y.astype(float)))
        weight = data.draw(matrices(self.weight, hostile=hostile)) if data.draw(st.booleans()) else None
        return X, y, weight

    @rule(data=st.data())
    def fit(self, data: Any) -> None:
        X, y, weight = self.draw_data(data)
        fitted = self.both(lambda estimator: estimator.fit(X, y, weight), X, y, weight)
        self.after(fitted, X, y, weight)

    @rule(data=st.data(), classes=st.booleans())
    def partial_fit(self, data: Any, classes: bool) -> None:
        X, y, weight = self.draw_data(data)
        options = {"sample_weight": weight} if weight is not None else {}
        if self.classifies and classes:
            options["classes"] = np.unique(self.y)

        def call(estimator: Any) -> Any:
            return estimator.partial_fit(X, y, **options)

        self.after(self.both(call, X, y, weight), X, y, weight)

    @rule(
        damage=st.sampled_from(sorted(DAMAGED)),
        method=st.sampled_from(["fit", "partial_fit", "predict", "predict_proba"]),
    )
    def damaged(self, damage: str, method: str) -> None:
        """Give ours a damaged matrix, which scikit-learn would believe; it may crash of it."""
        type(self).calls += 1
        X = DAMAGED[damage](compressed(self.X))
        if content(X) == content(compressed(self.X)) or not hasattr(self.mine, method):
            return
        arguments = (X, self.y) if method.endswith("fit") else (X,)
        mine = copy.deepcopy(self.mine)
        try:
            getattr(mine, method)(*arguments)
        except (ValueError, TypeError, NotFittedError):  # TypeError of a parameter that is wrong besides
            return
        raise AssertionError(f"{method} takes a matrix that is damaged: {damage}")

    def after(self, fitted: list[Any], X: Any, y: Any, weight: Any) -> None:
        # The line search of L-BFGS makes much of a rounding. They are large in float32, in which it computes if X is of
        # it, to return float64; and with entries that are far from the others.
        lbfgs = self.theirs.solver == "lbfgs"
        self.coarse = lbfgs and (getattr(X, "dtype", None) == np.float32 or any(map(is_extreme, (X, y, weight))))
        if fitted[0] is not None:
            self.compare()
        else:  # who fails half way leaves what is left of it; both start anew
            self.theirs, self.mine = clone(self.theirs), clone(self.mine)

    @rule(data=st.data(), method=st.sampled_from(["predict", "predict_proba", "predict_log_proba", "score"]))
    def use(self, data: Any, method: str) -> None:
        X = data.draw(matrices(self.X, may_be_sparse=True))
        arguments = (X, self.y) if method == "score" else (X,)
        theirs, mine = self.both(lambda estimator: getattr(estimator, method)(*arguments), X)
        if theirs is not None:
            self.close(mine, theirs, method)

    @rule(change=st.sampled_from(CHANGES))
    def set_params(self, change: dict[str, Any]) -> None:
        self.both(lambda estimator: estimator.set_params(**change) and None)

    @rule(
        how=st.sampled_from(
            ["prune rows", "scale", "float32", "Fortran", "read-only", "other width", "list", "drop layer"]
        ),
    )
    def set_coefs(self, how: str) -> None:
        """Change the fitted weights as users do."""
        if not hasattr(self.theirs, "coefs_"):
            return
        for estimator in (self.theirs, self.mine):
            W = [np.array(x) for x in estimator.coefs_]
            changes: dict[str, Callable[[], Any]] = {
                "prune rows": lambda W=W: [np.where(np.abs(x) < 0.1, 0, x) for x in W],
                "scale": lambda W=W: [0.5 * x for x in W],
                "float32": lambda W=W: [x.astype(np.float32) for x in W],
                "Fortran": lambda W=W: [np.asfortranarray(x) for x in W],
                "read-only": lambda W=W: [np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape) for x in W],
                "other width": lambda W=W: [*W[:-1], np.concatenate([W[-1], W[-1]], axis=1)],
                "list": lambda W=W: [x.tolist() for x in W],
                "drop layer": lambda W=W: W[:-1],
            }
            estimator.coefs_ = changes[how]()
        if how in ("other width", "list", "drop layer"):
            self.both(lambda estimator: estimator.predict(self.X), broken=True)
            self.both(lambda estimator: estimator.partial_fit(self.X, self.y), broken=True)
            self.theirs, self.mine = clone(self.theirs), clone(self.mine)

    @rule(how=st.sampled_from(["pickle", "deepcopy", "clone"]))
    def round_trip(self, how: str) -> None:
        type(self).calls += 1
        ways: dict[str, Callable[[Any], Any]] = {
            "pickle": lambda x: pickle.loads(pickle.dumps(x)),
            "deepcopy": copy.deepcopy,
            "clone": clone,
        }
        self.theirs, self.mine = ways[how](self.theirs), ways[how](self.mine)
