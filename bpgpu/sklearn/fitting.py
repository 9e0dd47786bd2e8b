"""The fits of scikit-learn's estimators, with a backend instead of their inner loops."""

import copy
import functools
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import numpy as np
from scipy.sparse import issparse
from sklearn.base import _fit_context, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.utils._param_validation import validate_parameter_constraints

from bpgpu.backends import get_backend, why_auto
from bpgpu.backends.base import Backend
from bpgpu.backends.cpu.blas_threads import blas_threads
from bpgpu.backends.cpu.threads import at_most
from bpgpu.backends.plan import Plan
from bpgpu.errors import NonFiniteError, short_repr
from bpgpu.model.activations import get_activation
from bpgpu.sklearn import checks, networks, overrides, weights
from bpgpu.sklearn.habits import StateMixin, warn
from bpgpu.sklearn.listeners import CallbackSupportMixin, Listeners
from bpgpu.sklearn.parameters import constraints, value
from bpgpu.sklearn.prediction import PredictionMixin
from bpgpu.sklearn.report import FitReport
from bpgpu.sklearn.steps import BackendSteps, Objective, ReferenceSteps, in_given_arrays
from bpgpu.sklearn.validation import ValidationMixin

LARGEST_SPARSE = 2**31 - 1  # entries, rows and columns
log = logging.getLogger("bpgpu")
NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)


@functools.cache
def automatic() -> tuple[Backend, str]:
    """Return the backend that "auto" stands for, and why; cached, because trying unavailable backends takes time."""
    return get_backend("auto"), why_auto()


@contextmanager
def limited(n_threads: int | None) -> Iterator[None]:
    """Limit BLAS and the compiled engine to at most `n_threads`."""
    if n_threads is None:
        yield
        return
    with at_most(n_threads), blas_threads().at_most(n_threads):
        yield


class BackendMixin(
    StateMixin, CallbackSupportMixin, ValidationMixin, PredictionMixin, perceptron.BaseMultilayerPerceptron
):
    """Training of `MLPClassifier` and `MLPRegressor`, which replaces scikit-learn's.

    The methods override scikit-learn's internal ones, with the same arguments. Initial weights, the split for early
    stopping, the order of the samples and the schedules of learning rates come from its own code or random stream.
    """

    activation: Any
    coefs_: list[Any]
    _no_improvement_count: int
    _bpgpu_order: Any
    _random_state: Any
    _bpgpu_report: FitReport
    _bpgpu_by_class: Any = None
    _bpgpu_objective: Objective | None = None

    def _validate_params(self) -> None:
        validate_parameter_constraints(constraints(self), self.get_params(deep=False), type(self).__name__)

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Fit the model to data.

        Parameters
        ----------
        X : {array-like, sparse matrix}, shape (n_samples, n_features)
        y : array-like, shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like, shape (n_samples,), optional
        X_val, y_val, sample_weight_val : array-like, optional
            Data to validate on after each epoch, for ``validation_loss_curve_``; with ``early_stopping=True`` they
            replace the part of X that would be held out.

        Returns
        -------
        self
        """
        self._bpgpu_given_validation = checks.validation(self, X_val, y_val, sample_weight_val)
        try:
            return self._fit(X, y, sample_weight=sample_weight, incremental=False)
        finally:
            del self._bpgpu_given_validation

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Self:
        checks.options(self, incremental)
        self._bpgpu_report = FitReport()
        self._bpgpu_before = getattr(self, "_random_state", None) if self.warm_start == "resume" else None
        try:
            with limited(value(self, "n_threads")):
                super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)
            self._bpgpu_keep_report(self._bpgpu_report)
        finally:
            del self._bpgpu_report, self._bpgpu_before
            self.__dict__.pop("_bpgpu_by_class", None)
        return self

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        if not reset:
            checks.layers(self)
        checks.undamaged(X=X, y=y)
        X, y = super()._validate_input(X, y, incremental, reset)
        if is_classifier(self):
            self._bpgpu_by_class = weights.by_class(self, y)
        else:
            checks.numeric(y)
        dtype = value(self, "dtype")
        return X if dtype is None else X.astype(dtype, copy=False), y

    def _init_coef(self, fan_in: int, fan_out: int, dtype: Any) -> tuple[Any, Any]:
        """Let scikit-learn draw the next layer's weights by its own activation, the output's by the last hidden one."""
        if self.activation in perceptron.ACTIVATIONS if isinstance(self.activation, str) else False:
            return super()._init_coef(fan_in, fan_out, dtype)  # type: ignore[no-any-return]
        chosen, layers = self.activation, networks.hidden(self)
        if layers:
            layer = layers[min(len(self.coefs_), len(layers) - 1)]
            self.activation = "logistic" if layer == get_activation("logistic") else layer.name
        try:
            W, b = super()._init_coef(fan_in, fan_out, dtype)
        finally:
            self.activation = chosen
        return W, b

    def _bpgpu_choose_backend(self, X: Any, y: Any, weight: Any, layer_units: Any) -> tuple[Backend | None, str]:
        """Return the backend that trains, and why; None if scikit-learn must train."""
        chosen = value(self, "backend")
        backend, reason = automatic() if chosen == "auto" else (get_backend(chosen), "asked for by name")
        obstacle = overrides.obstacle(self, X, y, layer_units)
        if obstacle:
            pass
        elif issparse(y):
            obstacle = "y is sparse"
        elif issparse(X) and max(X.nnz, *X.shape) > LARGEST_SPARSE:
            obstacle = "X is sparse and too large for int32"
        elif issparse(X) and self.solver == "lbfgs" and not backend.takes_sparse:
            obstacle = f"X is sparse, and L-BFGS takes it as a whole, which {backend.name} would make dense"
        elif y.dtype.itemsize > X.dtype.itemsize and np.abs(y).max(initial=0) > np.finfo(X.dtype).max:
            obstacle = f"y has values that {X.dtype} cannot hold"
        elif weight is not None and (weight < 0).any():
            obstacle = "a sample weight is negative"
        if not obstacle:
            return backend, reason
        self._bpgpu_refuse_own_parameters(obstacle)
        return None, obstacle

    def _bpgpu_refuse_own_parameters(self, obstacle: str) -> None:
        if only := networks.untrainable_in_sklearn(self):
            raise ValueError(
                f"only scikit-learn can train this ({obstacle}), and only bpgpu can train with {' and '.join(only)}; "
                "change one of the two"
            )

    def _bpgpu_report_begin(self, X: Any, backend: Backend | None, reason: str, plan: Plan | None) -> None:
        """Write to the report and the log where this fit runs."""
        report = self._bpgpu_report
        report.backend = "scikit-learn" if backend is None else backend.name
        report.device = f"CPU ({platform.machine()})" if backend is None else backend.device
        report.reason, report.dtype, report.samples = reason, np.asarray(self.coefs_[0]).dtype.name, X.shape[0]
        report.threads = getattr(plan and plan.prepared, "threads", None) or max(blas_threads().now(), default=1)
        # Three products for every layer, except that nobody needs the gradient of the input.
        inputs = X.nnz // X.shape[0] if issparse(X) else X.shape[1]
        first, *others = (np.size(W) for W in self.coefs_)
        report.multiply_adds = 2 * inputs * first // X.shape[1] + 3 * sum(others)
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
        self._bpgpu_report.lap("checks")
        work = (activations, deltas, coef_grads, intercept_grads)
        sample_weight = weights.product(self._bpgpu_by_class, sample_weight, X.dtype)
        if reason := overrides.of_the_loop():
            self._bpgpu_refuse_own_parameters(reason)
            self._bpgpu_report_begin(X, None, reason, None)
            super()._fit_stochastic(X, y, sample_weight, *work, layer_units, incremental)
            return
        resumes = self._bpgpu_before is not None and hasattr(self, "_optimizer")
        if resumes:
            self._random_state = self._bpgpu_before
        if not (incremental or resumes) or not hasattr(self, "_optimizer"):
            self._optimizer = self._bpgpu_new_optimizer()
            if value(self, "dropout"):  # drawn from a copy, so that dropout does not change the order of the samples
                self._bpgpu_dropout_seed = int(copy.deepcopy(self._random_state).randint(2**31))
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        (X, y, weight), held_out = self._bpgpu_split(X, y, sample_weight, resumes)
        self._bpgpu_restore_last_epoch(resumes)
        if held_out is not None and not (self.warm_start and hasattr(self, "validation_loss_curve_")):
            self.validation_loss_curve_: list[float] = []
        if held_out is not None:  # with the targets that scores are computed from
            y_val = held_out[1]
            held_out = (*held_out, self._label_binarizer.inverse_transform(y_val) if is_classifier(self) else y_val)
        listeners = Listeners(self, X, y, held_out is not None)
        batch_size = self._bpgpu_batch_size(X.shape[0])
        backend, reason = self._bpgpu_choose_backend(X, y, weight, layer_units)
        # On a GPU, everything done here is ordered with the backend's own work.
        with nullcontext() if backend is None else backend.ordered(), in_given_arrays(self):
            steps: BackendSteps | ReferenceSteps
            if backend is None:
                steps = ReferenceSteps(self, X, y, weight, batch_size, work)
                self._bpgpu_report_begin(X, None, reason, None)
            else:
                steps = BackendSteps(self, X, y, weight, batch_size, backend)
                self._bpgpu_report_begin(X, backend, reason, steps.plan)
            self._bpgpu_train(steps, (X, y, weight, batch_size, work), held_out, listeners, resumes, incremental)
        if self.early_stopping:
            self._bpgpu_take_best_epoch()
        self._bpgpu_report.lap("validation")

    def _bpgpu_train(
        self,
        steps: BackendSteps | ReferenceSteps,
        data: tuple[Any, Any, Any, int, Any],
        held_out: tuple[Any, Any, Any, Any] | None,
        listeners: Listeners,
        resumes: bool,
        incremental: bool,
    ) -> None:
        """Train epoch by epoch until there is a reason to end."""
        n_samples = data[0].shape[0]
        order = self._bpgpu_order if resumes and len(getattr(self, "_bpgpu_order", ())) == n_samples else None
        order = np.arange(n_samples, dtype=np.int32) if order is None else order
        ended = "failed"
        try:
            listeners.begin(steps)
            self.n_iter_ = 0
            for _ in range(self.max_iter):
                listeners.epoch_begins(steps)
                if self.shuffle:
                    order = overrides.shuffled(order, self._random_state)
                taken = order if self.shuffle else None
                try:
                    self.loss_ = steps.epoch(taken)
                except NonFiniteError as error:  # scikit-learn would continue
                    if networks.untrainable_in_sklearn(self):
                        raise ValueError(f"{NON_FINITE} {error}") from error
                    log.info("%s; scikit-learn itself continues from the previous epoch", error)
                    steps.download()
                    steps = ReferenceSteps(self, *data)
                    self._bpgpu_report.backend, self._bpgpu_report.reason = "scikit-learn", str(error)
                    self.loss_ = steps.epoch(taken)
                self._bpgpu_report.lap("epochs")
                self._bpgpu_report.epochs += 1
                if self._bpgpu_epoch_ends(steps, n_samples, held_out, listeners) or incremental:
                    ended = "converged"
                    break
            else:
                ended = f"finished {self.max_iter} epochs"
                warn(
                    perceptron.BaseMultilayerPerceptron._fit_stochastic,
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                    "converged yet.",
                    ConvergenceWarning,
                )
        except KeyboardInterrupt:
            ended = "interrupted"
            warn(perceptron.BaseMultilayerPerceptron._fit_stochastic, "Training interrupted by user.")
        finally:
            listeners.end(ended)
            steps.download()
        if self.warm_start == "resume" and self.shuffle:
            self._bpgpu_order = order

    def _bpgpu_new_optimizer(self) -> Any:
        parameters = self.coefs_ + self.intercepts_
        if value(self, "optimizer") is not None:
            return networks.RuleOptimizer(parameters, networks.given_optimizer(self))
        if self.solver == "sgd":
            return perceptron.SGDOptimizer(
                parameters,
                self.learning_rate_init,
                self.learning_rate,
                self.momentum,
                self.nesterovs_momentum,
                self.power_t,
            )
        return perceptron.AdamOptimizer(parameters, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _bpgpu_batch_size(self, n_samples: int) -> Any:
        if self.batch_size == "auto":
            return min(200, n_samples)
        if not isinstance(self.batch_size, (int, np.integer)):  # partial_fit does not check parameters again
            raise TypeError(f"batch_size must be an integer or 'auto', got {short_repr(self.batch_size)}")
        if self.batch_size > n_samples:
            warn(
                perceptron.BaseMultilayerPerceptron._fit_stochastic,
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
            )
        return np.clip(self.batch_size, 1, n_samples)  # NumPy's integer makes scikit-learn's loss float64

    def _bpgpu_epoch_ends(self, steps: Any, n_samples: int, held_out: Any, listeners: Listeners) -> bool:
        """Do what scikit-learn does after an epoch, and more; return whether training should end."""
        self.n_iter_ += 1
        self.t_ += n_samples
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        validation_loss = None
        X_val, encoded, weight_val, y_val = held_out or (None,) * 4
        if held_out is not None:
            steps.download()
            with np.errstate(all="ignore"):
                a = self._forward_pass_fast(X_val, check_input=False)
                validation_loss = networks.loss(self, encoded, a, weight_val)
            self.validation_loss_curve_.append(validation_loss)
        self._update_no_improvement_count(self.early_stopping, X_val, y_val, weight_val)
        self._optimizer.iteration_ends(self.t_)
        listeners.epoch_ends(self.loss_, validation_loss)
        self._bpgpu_report.lap("validation")
        if listeners.stopped:
            return True
        if self._no_improvement_count > self.n_iter_no_change:
            what = "Validation score" if self.early_stopping else "Training loss"
            message = (
                f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
            )
            if self._optimizer.trigger_stopping(message, self.verbose):
                return True
            self._no_improvement_count = 0
        return False

    def _fit_lbfgs(  # with scikit-learn's parameters
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        activations: Any,
        deltas: Any,
        coef_grads: Any,
        intercept_grads: Any,
        layer_units: Any,
    ) -> None:
        self._bpgpu_report.lap("checks")
        checks.shapes_for_lbfgs(self, layer_units)
        sample_weight = weights.product(self._bpgpu_by_class, sample_weight, X.dtype)
        backend, reason = self._bpgpu_choose_backend(X, y, sample_weight, layer_units)
        self._bpgpu_objective = None if backend is None else Objective(self, X, y, sample_weight, backend)
        self._bpgpu_report_begin(X, backend, reason, None)
        try:
            super()._fit_lbfgs(X, y, sample_weight, activations, deltas, coef_grads, intercept_grads, layer_units)
        finally:
            del self._bpgpu_objective
            self._bpgpu_report.lap("epochs")
        self._bpgpu_report.epochs = self.n_iter_

    def _loss_grad_lbfgs(
        self,
        packed_coef_inter: Any,
        X: Any,
        y: Any,
        sample_weight: Any,
        activations: Any,
        deltas: Any,
        coef_grads: Any,
        intercept_grads: Any,
    ) -> Any:
        if self._bpgpu_objective is not None:
            return self._bpgpu_objective(packed_coef_inter)
        return super()._loss_grad_lbfgs(
            packed_coef_inter, X, y, sample_weight, activations, deltas, coef_grads, intercept_grads
        )
