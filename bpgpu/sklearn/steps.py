"""The steps of an epoch, by a backend of bpgpu or, where no backend can, by scikit-learn itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.neural_network import _multilayer_perceptron as perceptron

from bpgpu.backends.base import Backend
from bpgpu.backends.plan import Plan
from bpgpu.errors import NonFiniteError
from bpgpu.model.architecture import Architecture
from bpgpu.sklearn import networks
from bpgpu.sklearn.habits import loss_type

Array = np.ndarray[Any, Any]


def flatten(arrays: list[Array], net: Architecture) -> tuple[Array, list[Array], list[Array]]:
    """Copy the weights and biases of all layers into one buffer; return it and its views: weights, and biases."""
    flat = np.concatenate([np.ravel(x) for x in arrays]).astype(net.dtype, copy=False)
    return flat, *net.views(flat)


@contextmanager
def in_given_arrays(estimator: Any) -> Iterator[None]:
    """Train in a backend's own buffers; at the end, copy the values to the arrays that training began with.

    scikit-learn trains those arrays in place, so users who hold a reference to one see the trained values.
    """
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    given = coefs + intercepts
    try:
        yield
    finally:
        trained = estimator.coefs_ + estimator.intercepts_
        kept = [_written(*pair) for pair in zip(given, trained, strict=True)]
        coefs[:], intercepts[:] = kept[: len(coefs)], kept[len(coefs) :]
        estimator.coefs_, estimator.intercepts_ = coefs, intercepts


def _written(given: Array, trained: Array) -> Array:
    """Return the given array with the trained values, or the trained array if the given one cannot take them."""
    if given is trained or not given.flags.writeable or not np.can_cast(trained.dtype, given.dtype, "same_kind"):
        return trained
    given[...] = trained
    return given


class BackendSteps:
    """Epochs of an estimator on a backend.

    The parameters and the state of scikit-learn's optimizer become views of flat buffers, which a backend on the CPU
    trains in place.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Initialised, with its optimizer.
    X : array, shape (n, n_0), or sparse
    y : array, shape (n, n_L)
    weight : array, shape (n,), or None
    batch_size : int
    backend : Backend

    Attributes
    ----------
    learning_rate : float or None
        If set, it replaces the optimizer's.
    """

    def __init__(self, estimator: Any, X: Any, y: Array, weight: Array | None, batch_size: int, backend: Backend):
        self.estimator, self.backend, self.optimizer = estimator, backend, estimator._optimizer
        self.learning_rate: float | None = None
        dtype = estimator.coefs_[0].dtype
        data, optimizer = networks.data(estimator, X, y, weight, dtype), networks.optimizer_of(self.optimizer)
        self.loss_type = loss_type(estimator, X, y, weight, dtype, batch_size)
        net = networks.architecture(estimator, dtype)
        self.plan = Plan(net, int(batch_size), backend, optimizer, nonzeros=data.nonzeros).allocate()
        self.steps_of_an_epoch = -(-len(data) // self.plan.batch_size)
        self._flatten()
        self.weight = data.weight
        self.may_have_no_weight = weight is not None and not weight.all()
        self.data = backend.place(data, self.plan)
        backend.prepare(self.plan, self.data, self.parameters)

    def _flatten(self) -> None:
        """Lay out parameters and state in flat buffers, on the host and on the device; the same ones on the CPU."""
        estimator, optimizer, net, backend = self.estimator, self.optimizer, self.plan.architecture, self.backend
        flat, estimator.coefs_, estimator.intercepts_ = flatten(estimator.coefs_ + estimator.intercepts_, net)
        self.host = [flat]
        if isinstance(optimizer, networks.RuleOptimizer):
            for i, arrays in enumerate(optimizer.states):
                flat, weights, biases = flatten(arrays, net)
                optimizer.states[i] = weights + biases
                self.host.append(flat)
        elif self.plan.state:  # without momentum, nothing reads the velocity
            for name in ("velocities",) if hasattr(optimizer, "velocities") else ("ms", "vs"):
                flat, weights, biases = flatten(getattr(optimizer, name), net)
                setattr(optimizer, name, weights + biases)
                self.host.append(flat)
        self.device = [backend.asarray(flat, net.dtype) for flat in self.host]
        self.parameters = self.device[0]
        self.plan.state[:] = self.device[1:]
        self.before = [self.plan.last_finite, *(backend.empty(flat.shape, net.dtype) for flat in self.host[1:])]
        self.plan.steps = getattr(optimizer, "t", 0)

    def epoch(self, order: Array | None) -> float:
        """Train one epoch and return its loss.

        Raises
        ------
        NonFiniteError
            If a number is not finite; everything is as it was before the epoch.
        """
        backend, steps = self.backend, self.plan.steps
        if self.may_have_no_weight:
            self._check_weights(order)
        for before, array in zip(self.before, self.device, strict=True):
            backend.assign(before, array)
        try:
            loss = backend.run_epoch(
                self.plan,
                self.data,
                None if order is None else order.astype(np.int32, copy=False),
                parameters=self.parameters,
                learning_rates=self._rates(),
                epoch=len(self.estimator.loss_curve_),
            )
            return self.loss_type(loss)  # type: ignore[no-any-return]
        except NonFiniteError:
            for before, array in zip(self.before, self.device, strict=True):
                backend.assign(array, before)
            self.plan.steps = steps
            raise
        finally:
            self._count()

    def _rates(self) -> list[float]:
        optimizer, steps = self.optimizer, self.steps_of_an_epoch
        if self.learning_rate is not None:
            return [self.learning_rate] * steps
        if isinstance(optimizer, networks.RuleOptimizer):
            return optimizer.rule.rates(self.plan.steps, steps)
        return [float(optimizer.learning_rate_init if hasattr(optimizer, "ms") else optimizer.learning_rate)] * steps

    def _count(self) -> None:
        """Set the optimizer's step count; scikit-learn's Adam has its corrections in its learning rate."""
        optimizer, t = self.optimizer, self.plan.steps
        if hasattr(optimizer, "t") and t:
            optimizer.t = t
            if hasattr(optimizer, "ms"):
                correction = np.sqrt(1 - optimizer.beta_2**t) / (1 - optimizer.beta_1**t)
                optimizer.learning_rate = optimizer.learning_rate_init * correction
            else:
                optimizer.learning_rate = optimizer.rule.rate(t)

    def _check_weights(self, order: Array | None) -> None:
        weight = self.weight if order is None else self.weight[order]
        if not np.add.reduceat(weight, range(0, len(weight), self.plan.batch_size)).all():
            raise ZeroDivisionError("Weights sum to zero, can't be normalized")  # NumPy's message for a batch

    def download(self) -> None:
        """Copy parameters and state to where scikit-learn reads them."""
        for host, device in zip(self.host, self.device, strict=True):
            if device is not host:
                host[...] = self.backend.to_numpy(device)


class ReferenceSteps:
    """Epochs by scikit-learn's own `_backprop` and optimizer.

    Parameters
    ----------
    estimator, X, y, weight, batch_size
        As in `BackendSteps`, of any kind that scikit-learn itself takes.
    work : list of list
        activations, deltas, coef_grads and intercept_grads, as scikit-learn's `_fit` creates them.
    """

    learning_rate: float | None = None

    def __init__(
        self, estimator: Any, X: Any, y: Any, weight: Array | None, batch_size: int, work: Sequence[list[Any]]
    ) -> None:
        self.estimator, self.X, self.y, self.weight, self.batch_size = estimator, X, y, weight, batch_size
        self.activations, self.deltas, *self.gradients = work
        self.parameters: list[Any] = []

    def epoch(self, order: Array | None) -> Any:
        """Train one epoch and return its loss, in scikit-learn's type."""
        estimator, n, loss = self.estimator, self.X.shape[0], 0.0
        if self.learning_rate is not None:  # scikit-learn's Adam computes its rate from the initial one
            estimator._optimizer.learning_rate = estimator._optimizer.learning_rate_init = self.learning_rate
        self.parameters = self.parameters or estimator.coefs_ + estimator.intercepts_
        for batch in perceptron.gen_batches(n, self.batch_size):
            rows = batch if order is None else order[batch]
            weight = None if self.weight is None else self.weight[rows]
            X = self.activations[0] = self.X[rows] if order is None else perceptron._safe_indexing(self.X, rows)
            cost, *self.gradients = estimator._backprop(
                X, self.y[rows], weight, self.activations, self.deltas, *self.gradients
            )
            loss += cost * (batch.stop - batch.start)
            estimator._optimizer.update_params(self.parameters, self.gradients[0] + self.gradients[1])
        return loss / n

    def download(self) -> None:
        """Do nothing: everything is where scikit-learn reads it."""


class Objective:
    """The loss and the gradient on all data at once, for L-BFGS."""

    def __init__(self, estimator: Any, X: Any, y: Array, weight: Array | None, backend: Backend) -> None:
        self.estimator, self.X, self.y, self.weight, self.backend = estimator, X, y, weight, backend
        self.plan: Plan | None = None

    def __call__(self, packed: Array) -> tuple[float, Array]:
        """Return the loss and its gradient with respect to the flat parameters, in their dtype."""
        backend = self.backend
        if self.plan is None or self.plan.architecture.dtype != packed.dtype:
            self._prepare(packed.dtype)
        assert self.plan is not None
        with backend.ordered():
            loss = backend.gradients(self.plan, self.data, backend.asarray(packed, packed.dtype))
            return self.loss_type(loss), np.array(backend.to_numpy(self.plan.gradients))

    def _prepare(self, dtype: np.dtype[Any]) -> None:
        data = networks.data(self.estimator, self.X, self.y, self.weight, dtype)
        self.loss_type = loss_type(self.estimator, self.X, self.y, self.weight, dtype)
        net = networks.architecture(self.estimator, dtype)
        self.plan = Plan(net, len(data), self.backend, nonzeros=data.nonzeros).allocate()
        self.data = self.backend.place(data, self.plan)
