"""The network: its parameters, forward pass, cost and gradients. It knows no device."""

import dataclasses
import functools
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

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
from bpgpu.model.optimizers import Optimizer

if TYPE_CHECKING:
    from bpgpu.training.callbacks import Callback
    from bpgpu.training.history import History

Array = Any
P = ParamSpec("P")
R = TypeVar("R")
CHUNK = 4096  # rows that `predict` and `loss` take at a time, which bounds their memory


def _ordered(method: Callable[P, R]) -> Callable[P, R]:
    """Let a method of `MLP` come after what the caller has given to the device, and before what comes next."""

    @functools.wraps(method)
    def in_order(*args: P.args, **kwargs: P.kwargs) -> R:
        net: MLP = args[0]  # type: ignore[assignment]
        with net.backend.ordered():
            return method(*args, **kwargs)

    return in_order


class MLP:
    """A dense neural network: ``z_l = a_{l-1} W_l + b_l``, ``a_l = sigma_l(z_l)``, rows are samples.

    Parameters
    ----------
    sizes : sequence of int
        n_0 ... n_L: neurons of each layer, input first.
    activations : str, Activation, or sequence of them
        sigma_1 ... sigma_L; a single one is used for all layers. Names: identity (linear), sigmoid (logistic), tanh,
        relu, leaky_relu, elu, softplus, gelu, silu (swish), softmax.
    cost : str or Cost
        half_squared_error, squared_error, mean_squared_error, binary_cross_entropy, cross_entropy.
    bias : bool
        Whether the layers have biases.
    l2 : float
        lambda of the penalty ``(lambda / 2m) sum W^2`` over all weights, m being the samples of the batch.
    dropout : float
        Probability in [0, 1) that training drops an activation of a hidden layer; those kept are scaled by
        ``1 / (1 - dropout)``.
    connectivity : list of (array of 0 and 1, shape (n_{l-1}, n_l), or None), optional
        Where a mask is 0 there is no connection: the weight is 0 and stays 0.
    dtype : {"float32", "float64"}
    seed : int or None
        Of the initial weights, the shuffling and the dropout, in [0, 2**64); None draws one, kept in
        ``architecture.seed``.
    backend : str or Backend
        See `bpgpu.get_backend`.
    init : str or list
        Initial weights: "glorot", "he", "lecun" (each also with _uniform or _normal), "zeros"; "auto" for He's with
        relu and its relatives and Glorot's elsewhere; or given, as one pair (W, b) a layer (W alone without biases).
        Initial biases are 0 unless given.

    Attributes
    ----------
    architecture : Architecture
    backend : Backend
    parameters : array, shape (n_parameters,)
        All weights, then all biases, in one buffer.
    epoch : int
        Epochs trained so far.
    metadata : dict
        Anything JSON can hold; kept in the saved file.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.
    BackendUnavailableError
        If the named backend cannot run here.

    Examples
    --------
    >>> net = bpgpu.MLP([784, 512, 10], activations=["relu", "softmax"], cost="cross_entropy")
    """

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
                f"cost {net.cost.name!r} is defined for outputs in [0, 1], but {output.name!r} also gives others, "
                "where its gradient is 0; use sigmoid or softmax for the output layer",
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

    def __repr__(self) -> str:
        net = self.architecture
        names = [activation.name for activation in net.activations]
        return (
            f"MLP({list(net.sizes)}, activations={names}, cost={net.cost.name!r}, dtype={net.dtype.name!r}, "
            f"backend={self.backend.name!r}, parameters={net.n_parameters})"
        )

    @property
    def weights(self) -> list[Array]:
        """W_1 ... W_L, each of shape (n_{l-1}, n_l): views, so writing to them changes the network."""
        return self.architecture.views(self.parameters)[0]

    @property
    def biases(self) -> list[Array]:
        """b_1 ... b_L, each of shape (n_l,), as views; None for each layer of a network without biases."""
        return self.architecture.views(self.parameters)[1]

    @_ordered
    def forward(self, X: Array) -> list[Array]:
        """Return the activations of every layer, without dropout.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy

        Returns
        -------
        list of array, shape (n, n_l)
            a_0 ... a_L; a_0 is X in the network's dtype, the same array if it had that dtype already, and CSR if X is
            sparse and the backend takes it.

        Raises
        ------
        ValueError, TypeError
            If X is not a finite matrix with n_0 columns and at least one row.
        """
        return [self.backend.hand_back(a, X) for a in self._forward(self._input(X))]

    @_ordered
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
        checked = self._input(X)
        out = self.backend.empty((checked.shape[0], self.architecture.sizes[-1]), self.architecture.dtype)
        for rows in _chunks(checked.shape[0]):
            self.backend.assign(out[rows], self._forward(checked[rows])[-1])
        return self.backend.hand_back(out, X)

    @_ordered
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
        data = self._data(X, y, sample_weight)
        return self._loss(data, self._inference(data), penalty=penalty)

    @_ordered
    def backprop(
        self, X: Array, y: Array, sample_weight: Array | None = None, *, step: int = 0
    ) -> tuple[float, list[tuple[Array, Array | None]]]:
        """Return C and its gradients, with dropout as in training.

        Parameters
        ----------
        X, y, sample_weight
            As in `loss`: one batch.
        step : int
            With the seed and `epoch` it chooses what dropout drops; count it up in a loop of your own.

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
        data = self._data(X, y, sample_weight)
        plan = Plan(self.architecture, len(data), self.backend, masks=self.masks, nonzeros=data.nonzeros).allocate()
        batch = plan.batch(len(data))
        self.backend.load_batch(batch, self.backend.place(data, plan), slice(None))
        with np.errstate(all="ignore"):  # what is not finite shows in the result
            C = self.backend.batch_gradients(plan, batch, self.parameters, epoch=epoch, step=step)
        return C, list(zip(plan.dW, plan.db, strict=True))

    @_ordered
    def fit(
        self,
        X: Array,
        y: Array,
        *,
        optimizer: str | Optimizer = "adam",
        epochs: int = 10,
        batch_size: int = 128,
        validation_data: tuple[Any, ...] | None = None,
        sample_weight: Array | None = None,
        shuffle: bool = True,
        callbacks: "Sequence[Callback]" = (),
        progress: bool = False,
    ) -> "History":
        """Train the network.

        Ctrl-C ends training and keeps the weights of the last finished step; the history says so.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy
        y : array, shape (n, n_L), or (n,)
            As in `loss`.
        optimizer : str or Optimizer
            "sgd", "rmsprop", "adam", "adamw", or an object with its numbers, such as ``bpgpu.Adam(1e-3)``. Its state
            starts anew in every call.
        epochs : int
            At least 1.
        batch_size : int
            At least 1; more than n means n.
        validation_data : tuple (X, y) or (X, y, sample_weight), optional
            Its loss, without the penalty, is computed after each epoch.
        sample_weight : array, shape (n,), optional
        shuffle : bool
            Whether each epoch takes the samples in a new order, from ``numpy.random.default_rng([seed, 1, epoch])``.
        callbacks : sequence of Callback
        progress : bool
            Show a progress bar (needs the package rich).

        Returns
        -------
        History

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described; the network is unchanged. If a schedule gives a wrong learning rate, or
            raises, in a later epoch: the network is as the last finished epoch left it.
        NonFiniteError
            If a cost or gradient is not finite; the weights are those of the last finite epoch.
        """
        from bpgpu.training.loop import fit

        data = self._data(X, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
                raise ValueError(
                    f"validation_data must be (X, y) or (X, y, sample_weight), got {type(validation_data).__name__}"
                )
            validation = self._data(*validation_data, prefix="validation ")
        return fit(
            self,
            data,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation=validation,
            shuffle=shuffle,
            callbacks=callbacks,
            progress=progress,
        )

    @_ordered
    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        OSError
            If the file cannot be written; an older file of that name is then untouched.
        """
        from bpgpu.files.saving import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str], *, backend: str | Backend = "auto") -> Self:
        """Read a network that `save` wrote. Nothing in the file is executed.

        Parameters
        ----------
        path : path-like
        backend : str or Backend

        Raises
        ------
        ModelFileError
            If the file is damaged or something else.
        OSError
            If it cannot be read.
        """
        from bpgpu.files.saving import load

        net: Self = load(cls, path, backend)
        return net

    @classmethod
    def from_sklearn(cls, estimator: Any, *, backend: str | Backend = "auto") -> Self:
        """Build the network of a fitted scikit-learn estimator, or of one of `bpgpu.sklearn`.

        Its cost and penalty have the gradients that the estimator descends along. What `predict` gives is what the
        estimator computes from: probabilities (of the second class, if there are two) or numbers. The labels are in
        ``metadata["classes"]``, and the command line can predict with the network when it is saved.

        Parameters
        ----------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
        backend : str or Backend

        Raises
        ------
        TypeError
            If it is something else.
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        from bpgpu.sklearn.conversion import network

        net: Self = network(cls, estimator, backend)
        return net

    def to_onnx(
        self,
        path: str | PathLike[str],
        *,
        input_name: str = "X",
        output_name: str = "output",
        dtype: Any = None,
        X: Array | None = None,
    ) -> None:
        """Write the network to an ONNX file, which other programs can predict with.

        It takes any number of rows. What `save` keeps besides the weights is in the file's
        metadata, as JSON under the key ``bpgpu``. Before the file is written, onnxruntime must give the same numbers
        with it as `predict`, up to rounding. Needs the packages onnx and onnxruntime.

        Parameters
        ----------
        path : path-like
        input_name, output_name : str
        dtype : {"float32", "float64"}, optional
            Of the file's numbers; the network's own if not given.
        X : array, shape (n, n_0), optional
            Rows to check the file with; random ones, of sizes around 0.01 to 100, if not given.

        Raises
        ------
        ImportError
            If a package is missing.
        ValueError, TypeError
            If an argument is not as described, or the parameters take more than the 2 GiB of such a file.
        RuntimeError
            If onnxruntime gives other numbers; no file is written, and an older one is untouched.
        OSError
            If the file cannot be written; an older one is then untouched.
        """
        from bpgpu.files.onnx_export import export

        export(self, path, input_name=input_name, output_name=output_name, dtype=dtype, X=X)

    @classmethod
    def from_theta(
        cls,
        thetas: Sequence[Array],
        *,
        activations: str | Activation | Sequence[str | Activation] = "sigmoid",
        cost: str | Cost = "binary_cross_entropy",
        **options: Any,
    ) -> Self:
        """Build a network from matrices whose column 0 is the bias: ``Theta_l = [b_l | W_l^T]`` (note 001).

        Parameters
        ----------
        thetas : sequence of array, shape (n_l, n_{l-1} + 1)
        activations, cost, **options
            As in `MLP`; the defaults are the note's.

        Raises
        ------
        ValueError, TypeError
            If a matrix does not take the outputs of the one before, or is not a finite matrix.
        """
        if not options.get("bias", True):
            raise ValueError("bias must be True: column 0 of each Theta is the bias")
        arrays = inputs.thetas(thetas)
        sizes = [arrays[0].shape[1] - 1, *(theta.shape[0] for theta in arrays)]
        init = [(theta[:, 1:].T, theta[:, 0]) for theta in arrays]
        return cls(sizes, activations, cost, init=init, **options)

    @_ordered
    def to_theta(self) -> list[np.ndarray[Any, Any]]:
        """Return ``Theta_l = [b_l | W_l^T]`` for every layer, as new NumPy arrays of shape (n_l, n_{l-1} + 1).

        The bias column of a network without biases is 0.
        """
        thetas = []
        for W, b in zip(self.weights, self.biases, strict=True):
            column = np.zeros(W.shape[1], self.architecture.dtype) if b is None else self.backend.to_numpy(b)
            thetas.append(np.column_stack([column, self.backend.to_numpy(W).T]))
        return thetas

    def _forward(self, X: Array) -> list[Array]:
        a = [self.backend.asarray(X, self.architecture.dtype)]
        for W, b, sigma in zip(self.weights, self.biases, self.architecture.activations, strict=True):
            out = self.backend.empty((X.shape[0], W.shape[1]), self.architecture.dtype)
            with np.errstate(all="ignore"):  # what is not finite shows in the result
                self.backend.forward(a[-1], W, b, sigma, out=out)
            a.append(out)
        return a

    def _inference(self, data: Data) -> Plan:
        """Return a plan for forward passes over the data."""
        inference = dataclasses.replace(self.architecture, dropout=0.0)
        plan = Plan(inference, min(len(data), CHUNK), self.backend, nonzeros=data.nonzeros)
        return plan.within_memory().allocate()

    def _loss(self, data: Data, plan: Plan, *, penalty: bool) -> float:
        total_cost = total_weight = 0.0
        for rows in _chunks(len(data), plan.batch_size):
            batch = plan.batch(rows.stop - rows.start)
            batch_weight = self.backend.load_batch(batch, data, rows)
            with np.errstate(all="ignore"):  # the cost itself says if it is not finite
                cost = self.backend.batch_forward(plan, batch, self.parameters, epoch=0, step=0)
            total_cost += batch_weight * cost
            total_weight += batch_weight
        net = self.architecture
        decay = net.l2 / len(data) if penalty else 0.0
        return total_cost / total_weight + self.backend.penalty(self.parameters[: net.n_weights], decay)

    def _input(self, X: Array, name: str = "X") -> Array:
        """Check input, where it is, and the parameters that it meets, which a user may have replaced."""
        net = self.architecture
        net.check_parameters(self.parameters)
        return inputs.samples(name, self.backend.adopt(name, X), net.sizes[0], net.dtype, self.backend)

    def _data(self, X: Array, y: Array, sample_weight: Array | None = None, *, prefix: str = "") -> Data:
        """Check data, where they are."""
        net, backend = self.architecture, self.backend
        X = self._input(X, f"{prefix}X")
        n = X.shape[0]
        y = backend.adopt(f"{prefix}y", y)
        y = inputs.targets(f"{prefix}y", y, n, net.sizes[-1], net.cost, net.dtype, backend)
        weight = backend.adopt(f"{prefix}sample_weight", sample_weight)
        weight = inputs.sample_weights(f"{prefix}sample_weight", weight, n, net.dtype, backend)
        return Data(X, y, weight)


def _chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
