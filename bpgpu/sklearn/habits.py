"""Behaviour of scikit-learn, apart from results, that users rely on: its warnings, pickles and types of numbers."""

import functools
import warnings
import weakref
from typing import Any

import numpy as np
import sklearn
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.neural_network._base import LOSS_FUNCTIONS

from bpgpu.sklearn import parameters
from bpgpu.sklearn.report import FitReport


def warn(function: Any, message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn as if scikit-learn's `function` did, because users filter warnings by its module."""
    warnings.warn_explicit(
        message,
        category,
        function.__code__.co_filename,
        function.__code__.co_firstlineno,
        function.__module__,
        function.__globals__.setdefault("__warningregistry__", {}),
    )


class StateMixin(BaseEstimator):
    """An estimator whose state, which is pickled, copied and hashed, is the same as scikit-learn's."""

    @property
    def fit_report_(self) -> FitReport:
        """Where the last fit ran, and how fast; a copied or unpickled estimator does not have it."""
        try:
            return _reports[id(self)]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no fit_report_: it is not fitted, is a copy, or was unpickled",
                name="fit_report_",
                obj=self,
            ) from None

    def _bpgpu_keep_report(self, report: FitReport) -> None:
        if id(self) not in _reports:
            weakref.finalize(self, _reports.pop, id(self), None).atexit = False
        _reports[id(self)] = report

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "_sklearn_version": sklearn.__version__} if _is_ours(self) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Accept scikit-learn's state too, as `bpgpu.accel` needs: parameters that it lacks get their defaults."""
        state = dict(parameters.completed(self, state))
        version = state.pop("_sklearn_version", "pre-0.18")  # scikit-learn's own default
        if _is_ours(self) and version != sklearn.__version__:
            warning = InconsistentVersionWarning(
                estimator_name=type(self).__name__,
                current_sklearn_version=sklearn.__version__,
                original_sklearn_version=version,
            )
            warn(BaseEstimator.__setstate__, warning)
        super().__setstate__(state)


# By id. A report in the estimator's `__dict__` would be pickled with it, and its times differ between equal fits.
_reports: dict[int, FitReport] = {}


def _is_ours(estimator: Any) -> bool:
    """Return whether the class is ours: as in scikit-learn, pickles of subclasses elsewhere have no version."""
    return type(estimator).__module__.startswith("bpgpu.")


def loss_type(estimator: Any, X: Any, y: Any, weight: Any, dtype: np.dtype[Any], batch_size: Any = 1) -> Any:
    """Return the type of scikit-learn's losses with parameters of `dtype`, np.float32 or np.float64."""
    name = "binary_log_loss" if estimator.out_activation_ == "logistic" else estimator.loss
    if not isinstance(name, str) or name not in LOSS_FUNCTIONS:
        return np.float64
    kinds: Any = (
        y.dtype,
        None if weight is None else weight.dtype,
        np.result_type(X.dtype, dtype),
        0.5 * estimator.alpha * dtype.type(1),
        type(batch_size),
    )
    return _loss_type(name, y.shape[1] > 1, *kinds)


@functools.lru_cache(typed=True)
def _loss_type(name: str, several: bool, y: Any, weight: Any, output: Any, penalty: Any, rows: Any) -> Any:
    """Find the type by computing a loss, so that we need not repeat the type promotions of its formula."""
    targets, ones = np.ones((1, 1 + several), y), None if weight is None else np.ones(1, weight)
    value = LOSS_FUNCTIONS[name](targets, np.full(targets.shape, 0.5, output), ones)
    value += penalty / (1 if ones is None else ones.sum())
    return type(value * rows(1))
