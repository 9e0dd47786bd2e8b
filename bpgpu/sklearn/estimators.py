"""The estimators: scikit-learn's, fitted on a backend of bpgpu."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from sklearn import neural_network
from sklearn.metrics import get_scorer_names
from sklearn.utils._param_validation import Interval, StrOptions

from bpgpu.backends import REGISTRY, names
from bpgpu.backends.base import Backend
from bpgpu.kernels.formulas import ACTIVATION_ALIASES
from bpgpu.model.activations import ACTIVATIONS, Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import OPTIMIZERS, Optimizer
from bpgpu.sklearn import parameters
from bpgpu.sklearn.conversion import ConversionMixin
from bpgpu.sklearn.fitting import BackendMixin
from bpgpu.sklearn.networks import LOSSES
from bpgpu.training.callbacks import Callback


class _BackendName(StrOptions):
    """The names of backends, those that other packages have registered included."""

    def __init__(self) -> None:
        super().__init__({"auto", *REGISTRY})

    def is_satisfied_by(self, val: Any) -> bool:
        return isinstance(val, str) and (val == "auto" or val in names())


CONSTRAINTS: dict[str, list[Any]] = {
    "activation": [StrOptions({*ACTIVATIONS, *ACTIVATION_ALIASES}), Activation, list, tuple],
    "warm_start": ["boolean", StrOptions({"resume"})],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "optimizer": [StrOptions(set(OPTIMIZERS)), Optimizer, None],
    "scoring": [StrOptions({*get_scorer_names(), "loss"}), callable, None],
    "callbacks": [list, tuple, None],
    "dtype": [StrOptions({"float32", "float64"}), None],
    "backend": [_BackendName(), Backend],
    "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    "progress": ["boolean"],
}


@parameters.added_to(neural_network.MLPClassifier)
class MLPClassifier(BackendMixin, ConversionMixin, neural_network.MLPClassifier):
    """scikit-learn's `MLPClassifier`, trained by a backend of bpgpu.

    Parameters
    ----------
    hidden_layer_sizes, solver, ... max_fun
        As scikit-learn's, with its defaults.
    activation : str, Activation, or sequence of them
        For the hidden layers, one for all or one for each: any name or object that `bpgpu.MLP` takes.
    warm_start : bool or "resume"
        "resume" also keeps the state of the optimizer and of the random stream: two fits of 10 epochs are one of 20.
        With ``early_stopping=True``, the next fit continues from the last epoch, although ``coefs_`` are of the best.
    class_weight : dict or "balanced", optional
        Weights of the classes; sample weights are multiplied by them, also in the scores of early stopping.
    label_smoothing : float
        In [0, 1): the part of a label's probability that is shared equally among all labels.
    dropout : float
        Probability in [0, 1) that training drops an activation of a hidden layer.
    optimizer : str or Optimizer, optional
        Replaces the solver's update: "adamw", "rmsprop", ... with ``learning_rate_init``, or an object with its own
        numbers, such as ``bpgpu.AdamW(bpgpu.CosineDecay(1e-3, steps=5000), clip_norm=1.0)``.
    scoring : str or function, optional
        The score for early stopping, instead of `score`: a scorer of scikit-learn, or "loss".
    callbacks : sequence of Callback, optional
        Callbacks of bpgpu. Those of scikit-learn 1.9 are passed to ``set_callbacks``.
    dtype : {"float32", "float64"}, optional
        The dtype to train in; by default that of X.
    backend : str or Backend
        See `bpgpu.get_backend`.
    n_threads : int, optional
        The most threads that BLAS and the compiled engine may use during `fit`.
    progress : bool
        Show a progress bar (needs the package rich).

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, classes_, ...
        As scikit-learn's.
    validation_loss_curve_ : list of float
        The loss of the validation data, without penalty, after each epoch, if there are any.
    fit_report_ : FitReport
        Where the last `fit` ran, and how fast.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  # as in scikit-learn
        **neural_network.MLPClassifier._parameter_constraints,
        **CONSTRAINTS,
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool | str = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: dict[Any, float] | str | None = None,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        optimizer: str | Optimizer | None = None,
        scoring: Any = None,
        callbacks: Sequence[Callback] | None = None,
        dtype: str | None = None,
        backend: str | Backend = "auto",
        n_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        parameters.keep(
            self,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            dropout=dropout,
            optimizer=optimizer,
            scoring=scoring,
            callbacks=callbacks,
            dtype=dtype,
            backend=backend,
            n_threads=n_threads,
            progress=progress,
        )


@parameters.added_to(neural_network.MLPRegressor)
class MLPRegressor(BackendMixin, ConversionMixin, neural_network.MLPRegressor):
    """scikit-learn's `MLPRegressor`, trained by a backend of bpgpu.

    Parameters
    ----------
    loss : str or Cost
        "squared_error", "poisson", "absolute_error", "huber", "log_cosh", "quantile", or a cost of your own.
    hidden_layer_sizes, solver, ... max_fun
        As scikit-learn's, with its defaults.
    activation, warm_start
        As in `MLPClassifier`.
    quantile : float
        In (0, 1): the quantile that ``loss="quantile"`` estimates.
    huber_delta : float
        The error above which ``loss="huber"`` is linear.
    dropout, optimizer, scoring, callbacks, dtype, backend, n_threads, progress
        As in `MLPClassifier`.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, ...
        As scikit-learn's.
    validation_loss_curve_, fit_report_
        As in `MLPClassifier`.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  # as in scikit-learn
        **neural_network.MLPRegressor._parameter_constraints,
        **CONSTRAINTS,
        "loss": [StrOptions({"squared_error", "poisson", *LOSSES}), Cost],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "huber_delta": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        loss: str | Cost = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool | str = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        quantile: float = 0.5,
        huber_delta: float = 1.0,
        dropout: float = 0.0,
        optimizer: str | Optimizer | None = None,
        scoring: Any = None,
        callbacks: Sequence[Callback] | None = None,
        dtype: str | None = None,
        backend: str | Backend = "auto",
        n_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(
            loss=loss,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            max_fun=max_fun,
        )
        parameters.keep(
            self,
            quantile=quantile,
            huber_delta=huber_delta,
            dropout=dropout,
            optimizer=optimizer,
            scoring=scoring,
            callbacks=callbacks,
            dtype=dtype,
            backend=backend,
            n_threads=n_threads,
            progress=progress,
        )
