"""The network: its parameters, forward pass, cost and gradients. It knows no device."""

import copy
import dataclasses
import functools
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np

from bpgpu import checks, inputs
from bpgpu.backends import get_backend
from bpgpu.backends.base import Backend
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.model.activations import Activation
from bpgpu.model.architecture import Architecture
from bpgpu.model.costs import Cost, leaves_domain
from bpgpu.model.initialisers import given_weights, initial_weights

Array = Any
P = ParamSpec("P")
R = TypeVar("R")
CHUNK = 4096  # rows that `predict` and `loss` take at a time, which bounds their memory


def ordered(method: Callable[P, R]) -> Callable[P, R]:
    """Order a method of `Network` on the device: after the caller's earlier work there, before the later."""

    @functools.wraps(method)
    def in_order(*args: P.args, **kwargs: P.kwargs) -> R:
        net: Network = args[0]  # type: ignore[assignment]  # P cannot say that it begins with self
        with net.backend.ordered():
            return method(*args, **kwargs)

    return in_order


class Network:
    """A dense neural network without training and files; the base of `bpgpu.MLP`, which documents it."""

    def __init__(
        self,
        sizes: Sequence[int],
        activations: str | Activation | Sequence[str | Activation],
        cost: str | Cost,
        *,
        bias: bool = True,
        l2: float = 0.0,
        dropout: float = 0.0,
        connectivity: Sequence[Array | None] | None = None,
        dtype: Any = "float32",
        seed: int | None = 0,
        backend: str | Backend = "auto",
        init: str | Sequence[Any] = "auto",
    ) -> None:
        self.architecture = Architecture.checked(
            sizes,
            activations,
            cost,
            bias=bias,
            l2=l2,
            dropout=dropout,
            dtype=dtype,
            seed=secrets.randbits(64) if seed is None else seed,
        )
        net = self.architecture
        output = net.activations[-1]
        if leaves_domain(output, net.cost):
            warnings.warn(
                f"cost {net.cost.name!r} is defined for outputs in [0, 1], but {output.name!r} also gives other "
                "values, where its gradient is 0; use sigmoid or softmax for the output layer",
                stacklevel=2,
            )
        self.backend = get_backend(backend)
        masks = inputs.connectivity(connectivity, net.sizes, net.dtype)
        biases: Sequence[Array | None]
        if isinstance(init, str):
            checks.within_memory(f"the {net.n_parameters:,} initial parameters of sizes", 8 * net.n_parameters)
            weights = initial_weights(init, net.seed, net.sizes, net.activations)
            biases = [np.zeros(n) if net.bias else None for n in net.sizes[1:]]
        else:
            weights, biases = given_weights(init, net.sizes, net.bias, net.dtype)
        weights = [W if mask is None else W * mask for W, mask in zip(weights, masks, strict=True)]
        flat = np.concatenate([array.ravel() for array in [*weights, *biases] if array is not None])
        self.masks = [None if mask is None else self.backend.asarray(mask, net.dtype) for mask in masks]
        self.parameters = self.backend.asarray(flat, net.dtype)
        self.epoch = 0
        self.metadata: dict[str, Any] = {}

    @classmethod
    def of(cls, architecture: Architecture, backend: Backend, parameters: Array, epoch: int = 0) -> Self:
        """Return a network without masks on these parameters themselves, which the constructor would copy."""
        net = object.__new__(cls)
        net.architecture, net.backend, net.parameters, net.epoch = architecture, backend, parameters, epoch
        net.masks, net.metadata = [None] * len(architecture.activations), {}
        return net

    def on(self, backend: Backend | None = None, *, dtype: Any = None, parameters: Array | None = None) -> Self:
        """Return the same network on another backend, in another dtype, or with other parameters.

        Parameters
        ----------
        backend : Backend, optional
        dtype : numpy.dtype, optional
        parameters : array, shape (n_parameters,), optional
            An array of the new backend and dtype.
        """
        other = copy.copy(self)
        other.backend = backend = self.backend if backend is None else backend
        dtype = self.architecture.dtype if dtype is None else np.dtype(dtype)
        other.architecture = dataclasses.replace(self.architecture, dtype=dtype)

        def moved(array: Array) -> Array:
            return backend.asarray(self.backend.to_numpy(array), dtype)

        if backend is not self.backend or dtype != self.architecture.dtype:
            other.masks = [None if mask is None else moved(mask) for mask in self.architecture.check_masks(self.masks)]
        other.parameters = moved(self.parameters) if parameters is None else parameters
        return other

    def __repr__(self) -> str:
        net = self.architecture
        names = [activation.name for activation in net.activations]
        return (
            f"{type(self).__name__}({list(net.sizes)}, activations={names}, cost={net.cost.name!r}, "
            f"dtype={net.dtype.name!r}, backend={self.backend.name!r}, parameters={net.n_parameters})"
        )

    @property
    def weights(self) -> list[Array]:
        """W_1 ... W_L, each of shape (n_{l-1}, n_l): views, so writing to them changes the network."""
        return self.architecture.views(self.parameters)[0]

    @property
    def biases(self) -> list[Array]:
        """b_1 ... b_L, each of shape (n_l,), as views; None for each layer of a network without biases."""
        return self.architecture.views(self.parameters)[1]

    @ordered
    def forward(self, X: Array) -> list[Array]:
        """Return the activations of every layer, without dropout.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy

        Returns
        -------
        list of array, shape (n, n_l)
            a_0 ... a_L; a_0 is X in the network's dtype: the same array if it has that dtype already, and CSR if X is
            sparse and the backend takes it.

        Raises
        ------
        ValueError, TypeError
            If X is not a finite matrix with n_0 columns and at least one row.
        """
        return [self.backend.hand_back(a, X) for a in self._forward(self.checked_samples(X))]

    @ordered
    def predict(self, X: Array) -> Array:
        """Return the output of the network, without dropout.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy

        Returns
        -------
        array, shape (n, n_L)

        Raises
        ------
        ValueError, TypeError
            If X is not a finite matrix with n_0 columns and at least one row.
        """
        checked = self.checked_samples(X)
        out = self.backend.empty((checked.shape[0], self.architecture.sizes[-1]), self.architecture.dtype)
        for rows in _chunks(checked.shape[0]):
            self.backend.assign(out[rows], self._forward(checked[rows])[-1])
        return self.backend.hand_back(out, X)

    @ordered
    def loss(self, X: Array, y: Array, sample_weight: Array | None = None, *, penalty: bool = True) -> float:
        """Return C: the weighted mean of the samples' costs plus the penalty, without dropout.

        The penalty is that of X as one batch, so it depends on the number of rows. Without it, losses of different data
        are comparable with each other and with ``History.validation_loss``.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy
        y : array, shape (n, n_L), or (n,)
            Targets; of one dimension, the labels 0 ... n_L - 1, or the targets of a single output.
        sample_weight : array, shape (n,), optional
            0 or more, not all 0.
        penalty : bool
            Whether the penalty is added.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            If an array is not as described or not finite.
        """
        penalty = checks.flag("penalty", penalty)
        data = self.checked_data(X, y, sample_weight)
        return self.mean_cost(data, self.inference_plan(data), penalty=penalty)

    @ordered
    def backprop(
        self, X: Array, y: Array, sample_weight: Array | None = None, *, step: int = 0
    ) -> tuple[float, list[tuple[Array, Array | None]]]:
        """Return C and its gradients, with dropout as in training.

        Parameters
        ----------
        X, y, sample_weight
            As in `loss`: one batch.
        step : int
            With the seed and `epoch`, it determines what dropout drops; increase it in a loop of your own.

        Returns
        -------
        C : float
        gradients : list of (array, shape (n_{l-1}, n_l); array, shape (n_l,), or None)
            (dC/dW_l, dC/db_l) for l = 1 ... L.

        Raises
        ------
        ValueError, TypeError
            If an array is not as described or not finite.
        """
        step = checks.integer("step", step, 0, checks.MAX_COUNT)
        epoch = checks.integer("epoch", self.epoch, 0, checks.MAX_COUNT)
        data = self.checked_data(X, y, sample_weight)
        plan = Plan(self.architecture, len(data), self.backend, masks=self.masks, nonzeros=data.nonzeros).allocate()
        batch = plan.batch(len(data))
        self.backend.load_batch(batch, self.backend.place(data, plan), slice(None))
        with np.errstate(all="ignore"):  # non-finite numbers show in the result
            C = self.backend.batch_gradients(plan, batch, self.parameters, epoch=epoch, step=step)
        return C, list(zip(plan.dW, plan.db, strict=True))

    def _forward(self, X: Array) -> list[Array]:
        a = [self.backend.asarray(X, self.architecture.dtype)]
        for W, b, sigma in zip(self.weights, self.biases, self.architecture.activations, strict=True):
            out = self.backend.empty((X.shape[0], W.shape[1]), self.architecture.dtype)
            with np.errstate(all="ignore"):  # non-finite numbers show in the result
                self.backend.forward(a[-1], W, b, sigma, out=out)
            a.append(out)
        return a

    def inference_plan(self, data: Data) -> Plan:
        """Return a plan for forward passes over the data."""
        inference = dataclasses.replace(self.architecture, dropout=0.0)
        plan = Plan(inference, min(len(data), CHUNK), self.backend, nonzeros=data.nonzeros)
        return plan.within_memory().allocate()

    def mean_cost(self, data: Data, plan: Plan, *, penalty: bool) -> float:
        total_cost = total_weight = 0.0
        for rows in _chunks(len(data), plan.batch_size):
            batch = plan.batch(rows.stop - rows.start)
            batch_weight = self.backend.load_batch(batch, data, rows)
            with np.errstate(all="ignore"):  # a non-finite cost shows in the result
                cost = self.backend.batch_forward(plan, batch, self.parameters, epoch=0, step=0)
            total_cost += batch_weight * cost
            total_weight += batch_weight
        net = self.architecture
        decay = net.l2 / len(data) if penalty else 0.0
        return total_cost / total_weight + self.backend.penalty(self.parameters[: net.n_weights], decay)

    def checked_samples(self, X: Array, name: str = "X") -> Array:
        """Check input where it lies, and the parameters, which a user may have replaced."""
        net = self.architecture
        net.check_parameters(self.parameters)
        return inputs.samples(name, self.backend.adopt(name, X), net.sizes[0], net.dtype, self.backend)

    def checked_data(self, X: Array, y: Array, sample_weight: Array | None = None, *, prefix: str = "") -> Data:
        """Check data where they lie."""
        net, backend = self.architecture, self.backend
        X = self.checked_samples(X, f"{prefix}X")
        n = X.shape[0]
        y = backend.adopt(f"{prefix}y", y)
        y = inputs.targets(f"{prefix}y", y, n, net.sizes[-1], net.cost, net.dtype, backend)
        weight = backend.adopt(f"{prefix}sample_weight", sample_weight)
        weight = inputs.sample_weights(f"{prefix}sample_weight", weight, n, net.dtype, backend)
        return Data(X, y, weight)


def _chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
