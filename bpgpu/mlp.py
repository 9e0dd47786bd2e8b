"""`MLP`: the network together with training, files and conversions."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import numpy as np

from bpgpu import inputs
from bpgpu.backends.base import Backend
from bpgpu.files import onnx_export, saving
from bpgpu.model.activations import Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import Optimizer
from bpgpu.network import Array, Network, ordered
from bpgpu.training import loop
from bpgpu.training.callbacks import Callback
from bpgpu.training.history import History


class MLP(Network):
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
        For the initial weights, shuffling and dropout, in [0, 2**64); None draws one, kept in ``architecture.seed``.
    backend : str or Backend
        See `bpgpu.get_backend`.
    init : str or list
        Initial weights: "glorot", "he", "lecun" (each also with _uniform or _normal), "zeros"; "auto" means He's with
        relu and its relatives and Glorot's elsewhere; a list holds one pair (W, b) for each layer (only W without
        biases). Initial biases are 0 unless given.

    Attributes
    ----------
    architecture : Architecture
    backend : Backend
    parameters : array, shape (n_parameters,)
        All weights, then all biases, in one buffer.
    epoch : int
        Epochs trained so far.
    metadata : dict
        Anything that JSON can hold; kept in the saved file.

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

    @ordered
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
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
    ) -> History:
        """Train the network.

        Ctrl-C ends training and keeps the weights of the last finished step; the history says so.

        Parameters
        ----------
        X : array, shape (n, n_0), or sparse of SciPy
        y : array, shape (n, n_L), or (n,)
            As in `loss`.
        optimizer : str or Optimizer
            "sgd", "rmsprop", "adam", "adamw", or an object with its numbers, such as ``bpgpu.Adam(1e-3)``. Every call
            starts with a new state.
        epochs : int
            At least 1.
        batch_size : int
            At least 1; more than n means n.
        validation_data : tuple (X, y) or (X, y, sample_weight), optional
            Its loss, without the penalty, is computed after each epoch.
        sample_weight : array, shape (n,), optional
        shuffle : bool
            Whether each epoch takes the samples in a new order, by ``numpy.random.default_rng([seed, 1, epoch])``.
        callbacks : sequence of Callback
        progress : bool
            Show a progress bar (needs the package rich).

        Returns
        -------
        History

        Raises
        ------
        ValueError, TypeError
            If an argument is not as described; the network is unchanged. If a schedule returns a wrong learning rate
            or raises in a later epoch; the network is as the last finished epoch left it.
        NonFiniteError
            If a cost or gradient is not finite; the weights are those of the last finite epoch.
        """
        data = self.checked_data(X, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
                raise ValueError(
                    f"validation_data must be (X, y) or (X, y, sample_weight), got {type(validation_data).__name__}"
                )
            validation = self.checked_data(*validation_data, prefix="validation ")
        return loop.fit(
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

    @ordered
    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        OSError
            If the file cannot be written; an older file of that name is left untouched.
        """
        saving.save(self, path)

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
            If the file is damaged or is not a saved network.
        OSError
            If it cannot be read.
        """
        net: Self = saving.load(cls, path, backend)
        return net

    @classmethod
    def from_sklearn(cls, estimator: Any, *, backend: str | Backend = "auto") -> Self:
        """Build the network of a fitted estimator of scikit-learn or `bpgpu.sklearn`.

        Its cost and penalty have the gradients that the estimator descends. `predict` returns the numbers that the
        estimator predicts from: probabilities (of the second class, if there are two) or values. The labels are in
        ``metadata["classes"]``, and the command line can predict with the saved network.

        Parameters
        ----------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
        backend : str or Backend

        Raises
        ------
        TypeError
            If it is another object.
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        """
        from bpgpu.sklearn import as_network  # which needs scikit-learn

        net: Self = as_network.from_estimator(cls, estimator, backend)
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
        """Write the network to an ONNX file, with which other programs can predict.

        The file's network takes any number of rows. Apart from the weights, everything that `save` keeps is in the
        file's metadata, as JSON under the key ``bpgpu``. Before the file is written, onnxruntime must return the same
        numbers from it as `predict`, up to rounding. Needs the packages onnx and onnxruntime.

        Parameters
        ----------
        path : path-like
        input_name, output_name : str
        dtype : {"float32", "float64"}, optional
            Of the numbers in the file; by default the network's own.
        X : array, shape (n, n_0), optional
            Rows to check the file with; by default random ones, of sizes around 0.01 to 100.

        Raises
        ------
        ImportError
            If a package is missing.
        ValueError, TypeError
            If an argument is not as described, or the parameters take more than the 2 GiB of such a file.
        RuntimeError
            If onnxruntime returns other numbers; no file is written, and an older one is left untouched.
        OSError
            If the file cannot be written; an older one is left untouched.
        """
        onnx_export.export(self, path, input_name=input_name, output_name=output_name, dtype=dtype, X=X)

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
            As in `MLP`; the defaults are those of the note.

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

    @ordered
    def to_theta(self) -> list[np.ndarray[Any, Any]]:
        """Return ``Theta_l = [b_l | W_l^T]`` for every layer, as new NumPy arrays of shape (n_l, n_{l-1} + 1).

        The bias column of a network without biases is 0.
        """
        thetas = []
        for W, b in zip(self.weights, self.biases, strict=True):
            column = np.zeros(W.shape[1], self.architecture.dtype) if b is None else self.backend.to_numpy(b)
            thetas.append(np.column_stack([column, self.backend.to_numpy(W).T]))
        return thetas
