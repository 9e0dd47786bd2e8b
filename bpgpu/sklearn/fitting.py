"""The fits of scikit-learn's estimators, with a backend in the place of their inner loops."""

import functools
import logging
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils import shuffle
from sklearn.utils._param_validation import Interval, StrOptions

from bpgpu.backends import REGISTRY, get_backend, why_auto
from bpgpu.backends.base import Backend
from bpgpu.backends.cpu_threads import at_most
from bpgpu.backends.numpy_backend import blas_libraries
from bpgpu.errors import NonFiniteError
from bpgpu.plan import Plan
from bpgpu.sklearn.report import FitReport
from bpgpu.sklearn.steps import BackendSteps, Objective, ReferenceSteps

log = logging.getLogger("bpgpu")


@functools.cache
def automatic() -> tuple[Backend, str]:
    """Return the backend that "auto" stands for, and why; to try those that are not there takes time."""
    return get_backend("auto"), why_auto()


def blas_threads() -> int:
    """Return how many threads BLAS has."""
    return max((library.num_threads for library in blas_libraries().lib_controllers), default=1)


@contextmanager
def limited(n_threads: int | None) -> Iterator[None]:
    """Hold BLAS and the compiled engine at `n_threads`, where they would take more."""
    if n_threads is None:
        yield
        return
    with at_most(n_threads), blas_libraries().limit(limits=min(n_threads, blas_threads())):
        yield


class BackendMixin(BaseMultilayerPerceptron):
    """What `MLPClassifier` and `MLPRegressor` put in the place of scikit-learn's training.

    The methods are scikit-learn's inner seams, with its arguments. Initial weights, the split for early stopping,
    the order of the samples and the schedules of learning rates are its own code or its own random stream.
    """

    _no_improvement_count: int
    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  # as scikit-learn has it
        "backend": [StrOptions({"auto", *REGISTRY}), Backend],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
        "progress": ["boolean"],
    }

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Self:
        self._report = FitReport()
        try:
            with limited(self.n_threads):
                super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)
            self.fit_report_ = self._report
        finally:
            del self._report
        if self.verbose and self.verbose is not True and self.verbose >= 2:
            print(self.fit_report_)
        return self

    def _where(self, X: Any, y: Any, weight: Any) -> tuple[Backend | None, str]:
        """Return the backend that trains, and why; None where scikit-learn has to."""
        backend, reason = automatic() if self.backend == "auto" else (get_backend(self.backend), "asked for by name")
        if issparse(X) or issparse(y):
            return None, "X or y is sparse"
        if len({array.dtype for array in self.coefs_ + self.intercepts_}) > 1:
            return None, "the weights are not all of one dtype"
        if weight is not None and (weight < 0).any():
            return None, "a sample weight is negative"
        return backend, reason

    def _begin(self, X: Any, backend: Backend | None, reason: str, plan: Plan | None) -> None:
        """Enter in the report, and in the log, where this fit runs."""
        report = self._report
        report.backend = "scikit-learn" if backend is None else backend.name
        report.device = f"CPU ({platform.machine()})" if backend is None else backend.device
        report.reason, report.dtype, report.samples = reason, self.coefs_[0].dtype.name, X.shape[0]
        report.threads = getattr(plan and plan.prepared, "threads", None) or blas_threads()
        # Every product three times, but for the error of the input, which nobody asks for.
        report.multiply_adds = 3 * sum(W.size for W in self.coefs_) - self.coefs_[0].size
        report.lap("prepare")
        log.info("%s.fit runs on %s (%s): %s", type(self).__name__, report.backend, report.device, reason)

    def _fit_stochastic(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        activations: Any,
        deltas: Any,
        coef_grads: Any,
        intercept_grads: Any,
        layer_units: Any,
        incremental: bool,
    ) -> None:
        self._report.lap("checks")
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = self._new_optimizer()
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        (X, y, weight), held_out = self._split(X, y, sample_weight)
        n_samples = X.shape[0]
        batch_size = self._rows_of_a_batch(n_samples)
        backend, reason = self._where(X, y, weight)
        steps: BackendSteps | ReferenceSteps
        if backend is None:
            steps = ReferenceSteps(self, X, y, weight, batch_size)
            self._begin(X, None, reason, None)
        else:
            steps = BackendSteps(self, X, y, weight, batch_size, backend)
            self._begin(X, backend, reason, steps.plan)
        order = np.arange(n_samples)
        try:
            self.n_iter_ = 0
            for _ in range(self.max_iter):
                if self.shuffle:
                    order = shuffle(order, random_state=self._random_state)
                taken = order if self.shuffle else None
                try:
                    self.loss_ = steps.epoch(taken)
                except NonFiniteError as error:  # scikit-learn trains on
                    log.info("%s; scikit-learn itself goes on from the epoch before", error)
                    steps.download()
                    steps = ReferenceSteps(self, X, y, weight, batch_size)
                    self._report.backend, self._report.reason = "scikit-learn", str(error)
                    self.loss_ = steps.epoch(taken)
                self._report.lap("epochs")
                self._report.epochs += 1
                if self._epoch_ends(steps, n_samples, held_out) or incremental:
                    break
            else:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                    "converged yet.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        finally:
            steps.download()
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
        self._report.lap("validation")

    def _new_optimizer(self) -> SGDOptimizer | AdamOptimizer:
        parameters = self.coefs_ + self.intercepts_
        if self.solver == "sgd":
            return SGDOptimizer(
                parameters,
                self.learning_rate_init,
                self.learning_rate,
                self.momentum,
                self.nesterovs_momentum,
                self.power_t,
            )
        return AdamOptimizer(parameters, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _split(self, X: Any, y: Any, weight: Any) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
        """Return (X, y, weight) to train on and those held out for early stopping; nothing is held out without it."""
        if not self.early_stopping:
            return (X, y, weight), (None, None, None)
        arrays = (X, y) if weight is None else (X, y, weight)
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        X, X_val, y, y_val, weight, weight_val = (*parts, None, None)[:6]
        if X_val.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            y_val = self._label_binarizer.inverse_transform(y_val)
        return (X, y, weight), (X_val, y_val, weight_val)

    def _rows_of_a_batch(self, n_samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, n_samples)
        if self.batch_size > n_samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=2
            )
        return int(np.clip(self.batch_size, 1, n_samples))

    def _epoch_ends(self, steps: BackendSteps | ReferenceSteps, n_samples: int, held_out: tuple[Any, Any, Any]) -> bool:
        """Do what scikit-learn does after an epoch; return whether training ends."""
        self.n_iter_ += 1
        self.t_ += n_samples
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        if self.early_stopping:
            steps.download()
        self._update_no_improvement_count(self.early_stopping, *held_out)
        self._optimizer.iteration_ends(self.t_)
        self._report.lap("validation")
        if self._no_improvement_count > self.n_iter_no_change:
            what = "Validation score" if self.early_stopping else "Training loss"
            message = (
                f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
            )
            if self._optimizer.trigger_stopping(message, self.verbose):
                return True
            self._no_improvement_count = 0
        return False

    def _fit_lbfgs(self, X: Any, y: Any, sample_weight: Any, *work: Any) -> None:
        self._report.lap("checks")
        backend, reason = self._where(X, y, sample_weight)
        self._objective = None if backend is None else Objective(self, X, y, sample_weight, backend)
        self._begin(X, backend, reason, None)
        try:
            super()._fit_lbfgs(X, y, sample_weight, *work)
        finally:
            del self._objective
            self._report.lap("epochs")
        self._report.epochs = self.n_iter_

    def _loss_grad_lbfgs(self, packed_coef_inter: Any, *arguments: Any) -> tuple[float, Any]:
        if self._objective is None:
            loss, gradient = super()._loss_grad_lbfgs(packed_coef_inter, *arguments)
        else:
            loss, gradient = self._objective(packed_coef_inter)
        return loss, gradient
