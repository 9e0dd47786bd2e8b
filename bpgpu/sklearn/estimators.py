"""The estimators: scikit-learn's, with their fits on a backend of bpgpu."""

from typing import Any

from sklearn import neural_network

from bpgpu.backends.base import Backend
from bpgpu.sklearn.fitting import BackendMixin


class MLPClassifier(BackendMixin, neural_network.MLPClassifier):
    """scikit-learn's `MLPClassifier`, trained by a backend of bpgpu.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, ... max_fun
        As scikit-learn's, with its defaults.
    backend : str or Backend
        See `bpgpu.get_backend`.
    n_threads : int, optional
        Most threads that BLAS and the compiled engine may take during `fit`.
    progress : bool
        Show a progress bar (needs the package rich).

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, classes_, ...
        As scikit-learn's.
    fit_report_ : FitReport
        Where the last `fit` ran, and how fast.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  # as scikit-learn has it
        **neural_network.MLPClassifier._parameter_constraints,
        **BackendMixin._parameter_constraints,
    }

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
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
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
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
        self.backend = backend
        self.n_threads = n_threads
        self.progress = progress


class MLPRegressor(BackendMixin, neural_network.MLPRegressor):
    """scikit-learn's `MLPRegressor`, trained by a backend of bpgpu.

    Parameters
    ----------
    loss, hidden_layer_sizes, activation, solver, ... max_fun
        As scikit-learn's, with its defaults.
    backend, n_threads, progress
        As in `MLPClassifier`.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, ...
        As scikit-learn's.
    fit_report_ : FitReport
        Where the last `fit` ran, and how fast.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  # as scikit-learn has it
        **neural_network.MLPRegressor._parameter_constraints,
        **BackendMixin._parameter_constraints,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
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
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
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
        self.backend = backend
        self.n_threads = n_threads
        self.progress = progress
