"""Memory: the flat buffer of all parameters, and the plan that owns every workspace of a training run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bpgpu import checks
from bpgpu.activations import Activation, layer_activations
from bpgpu.costs import Cost, get_cost, output_formulas
from bpgpu.errors import shown
from bpgpu.interop import is_sparse
from bpgpu.kernels.formulas import names_used
from bpgpu.optimizers import Optimizer

if TYPE_CHECKING:
    from bpgpu.backends.base import Backend

WRITE_INTO = "write into the array that is there, as in net.parameters[...] = values"


@dataclass(frozen=True)
class Architecture:
    """What a network is, apart from its numbers; no array, no device.

    ``sizes[l]`` is n_l and ``activations[l - 1]`` is sigma_l, for layers l = 1 ... L. With `by_weight`, as in
    scikit-learn, lambda is divided by the weight of a batch, and batches count in an epoch's mean by their rows;
    without, it is the other way round. The cost of a row counts as `largest_cost` at most, its gradient in full.
    """

    sizes: tuple[int, ...]
    activations: tuple[Activation, ...]
    cost: Cost
    bias: bool
    l2: float
    dropout: float
    dtype: np.dtype[Any]
    seed: int
    by_weight: bool = False
    largest_cost: float = math.inf

    @classmethod
    def checked(
        cls, sizes: Any, activations: Any, cost: Any, *, bias: Any, l2: Any, dropout: Any, dtype: Any, seed: Any
    ) -> Self:
        """Return the architecture of these arguments of `MLP`, in plain types of Python.

        Raises
        ------
        TypeError, ValueError
            If one is not as `MLP` describes.
        """
        layer_sizes = checks.layer_sizes(sizes)
        architecture = cls(
            sizes=layer_sizes,
            activations=layer_activations(activations, len(layer_sizes) - 1),
            cost=get_cost(cost),
            bias=checks.flag("bias", bias),
            l2=checks.not_negative("l2", l2),
            dropout=checks.fraction("dropout", dropout),
            dtype=checks.floating_dtype(dtype),
            seed=checks.integer("seed", seed, 0, 2**64 - 1),
        )
        checks.held("l2", architecture.l2, architecture.dtype)
        for formula in output_formulas(architecture.activations[-1], architecture.cost):
            names_used(formula)  # together they may be longer than a formula may be
        return architecture

    def decay(self, rows: int, weight: float) -> float:
        """Return lambda / m of a batch."""
        m = weight if self.by_weight else rows
        return self.l2 / m if m else 0.0

    @property
    def n_weights(self) -> int:
        """Number of weights, masked ones included."""
        return sum(m * n for m, n in pairwise(self.sizes))

    @property
    def n_parameters(self) -> int:
        """Length of the flat buffer: weights, then biases."""
        return self.n_weights + (sum(self.sizes[1:]) if self.bias else 0)

    def views(self, flat: Any) -> tuple[list[Any], list[Any]]:
        """Cut a flat buffer into views.

        The weights of all layers come first, then the biases of all layers, so that what concerns weights alone (the
        penalty, weight decay) is one contiguous piece.

        Parameters
        ----------
        flat : array, shape (n_parameters,)

        Returns
        -------
        (list of array, shape (n_{l-1}, n_l)), (list of array, shape (n_l,), or None without biases)

        Raises
        ------
        ValueError, TypeError
            If the buffer has another shape, or is no array.
        """
        if (shape := getattr(flat, "shape", None) if hasattr(flat, "reshape") else None) != (self.n_parameters,):
            kind, got = (TypeError, shown(flat)) if shape is None else (ValueError, shape)
            raise kind(f"parameters must have shape ({self.n_parameters},), got {got}; {WRITE_INTO}")
        weights, biases, start = [], [], 0
        for m, n in pairwise(self.sizes):
            weights.append(flat[start : start + m * n].reshape(m, n))
            start += m * n
        for n in self.sizes[1:]:
            biases.append(flat[start : start + n] if self.bias else None)
            start += n
        return weights, biases

    def check_parameters(self, flat: Any) -> None:
        """Raise ValueError or TypeError if these are not parameters that every backend takes as they are."""
        self.views(flat)
        if not _is_plain(flat, self.dtype):
            raise TypeError(
                f"parameters must be a contiguous and aligned array of {self.dtype}, got {flat.dtype}"
                f"{'' if flat.dtype != self.dtype else ' that is not'}; {WRITE_INTO}"
            )

    def check_masks(self, masks: Any) -> list[Any]:
        """Return the masks of all layers as a list of its own, or raise ValueError; None stands for none at all."""
        shapes = list(pairwise(self.sizes))
        given = [None] * len(shapes) if masks is None else list(masks) if isinstance(masks, Sequence) else []
        fits = [
            mask is None or (getattr(mask, "shape", None) == shape and _is_plain(mask, self.dtype))
            for mask, shape in zip(given, shapes, strict=False)
        ]
        if len(given) != len(shapes) or not all(fits):
            raise ValueError(
                f"masks must be one of each of the shapes {shapes}, a contiguous array of {self.dtype} or None, got "
                f"{shown(masks)}; give connectivity to bpgpu.MLP"
            )
        return given


def _is_plain(array: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether compiled code can take an array of the backend as it is."""
    plain = not isinstance(array, np.ndarray) or (array.flags.c_contiguous and array.flags.aligned)
    return bool(plain and array.dtype == dtype)


@dataclass(frozen=True)
class Dropout:
    """Which elements of a layer's activations one step drops: a function of these numbers and the element alone.

    Attributes
    ----------
    rate : float
        Probability that an element is dropped, in [0, 1).
    seed, epoch, step, layer : int
        See `bpgpu.kernels.philox.keep_mask`.
    """

    rate: float
    seed: int
    epoch: int
    step: int
    layer: int


@dataclass(frozen=True)
class Data:
    """Samples and what is wanted of them, in the arrays of a backend or, where it takes them from there, of NumPy.

    Attributes
    ----------
    X : array, shape (n, n_0), or CSR array of SciPy
        The latter as `bpgpu.sparse.compressed_rows` returns it.
    y : array, shape (n, n_L), or (n,) of integer labels
    weight : array, shape (n,), or None
        Sample weights; without them each is 1.
    """

    X: Any
    y: Any
    weight: Any = None

    def __len__(self) -> int:
        return int(self.X.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        X = (self.X.data, self.X.indices, self.X.indptr) if is_sparse(self.X) else (self.X,)
        return sum(array.nbytes for array in (*X, self.y, self.weight) if array is not None)

    @property
    def nonzeros(self) -> float | None:
        """Entries in a row of a sparse X, on average; None if X is dense."""
        return self.X.nnz / len(self) if is_sparse(self.X) else None

    def rows(self, rows: Any) -> "Data":
        """Return some of the samples, by a slice (views, but of a sparse X) or an array of indices (copies)."""
        return Data(self.X[rows], self.y[rows], None if self.weight is None else self.weight[rows])


@dataclass
class Batch:
    """The workspace of one batch of B rows, or a view of its first rows; lists are indexed by layer, 0 ... L.

    ``a[0]`` is the input, of sparse data the CSR rows of the batch; ``h[l]`` is a_l after dropout (a_l itself without
    dropout); ``z[l]`` is None where it need not be kept.
    """

    y: Any  # (B, n_L)
    scale: Any  # (B,): weight of each row over the weight of the batch
    cost: Any  # (B,): cost of each row
    z: list[Any]
    a: list[Any]
    h: list[Any]
    delta: list[Any]
    weight: float = 0.0  # of all rows, set with the data; without sample weights their number

    def rows(self, count: int) -> "Batch":
        """Return a view of the first `count` rows."""

        def cut(arrays: list[Any]) -> list[Any]:
            return [None if array is None else array[:count] for array in arrays]

        z, a, h, delta = map(cut, (self.z, self.a, self.h, self.delta))
        return Batch(self.y[:count], self.scale[:count], self.cost[:count], z, a, h, delta)


class Plan:
    """Every workspace that training an architecture in batches needs on a backend, allocated once.

    Parameters
    ----------
    architecture : Architecture
    batch_size : int
        B, the rows of a full batch.
    backend : Backend
    rule : Optimizer, optional
        Adds its state.
    masks : list of (array or None), optional
        Connectivity of each layer, on the backend.
    nonzeros : float, optional
        `Data.nonzeros` of what is to be trained on: for sparse data, whose batches take no workspace.

    Attributes
    ----------
    steps : int
        Updates made so far.
    nonzeros : float or None
        None also if the backend makes sparse batches dense.
    gradients : array, shape (n_parameters,)
        With `dW` and `db`, its views by layer.
    state : list of array, shape (n_parameters,)
    last_finite : array, shape (n_parameters,), or None without a rule
        Parameters to go back to.
    prepared : object
        What a backend keeps with the plan from one epoch to the next.
    accepted : tuple of Data
        The data last given, and what they have become when they were checked: see `bpgpu.backends.contract.samples`.
    """

    def __init__(
        self,
        architecture: Architecture,
        batch_size: int,
        backend: "Backend",
        rule: Optimizer | None = None,
        masks: list[Any] | None = None,
        nonzeros: float | None = None,
    ) -> None:
        self.architecture, self.backend, self.rule = architecture, backend, rule
        self.batch_size = checks.integer("batch_size", batch_size, 1, checks.MAX_SIZE)
        checks.held("l2", architecture.l2, architecture.dtype)
        if rule is not None:
            rule.check_dtype(architecture.dtype)
        # A list of its own: what it holds is in use for as long as the plan, whatever becomes of the network's.
        self.masks = architecture.check_masks(masks)
        self.nonzeros = nonzeros if backend.takes_sparse else None
        self.steps = 0
        self.prepared: Any = None
        self.accepted: tuple[Data | None, Data | None] = None, None

    def _shapes(self) -> dict[str, list[tuple[int, ...] | None]]:
        net, B = self.architecture, self.batch_size
        L = len(net.activations)
        layers: list[tuple[int, ...]] = [(B, n) for n in net.sizes]
        keeps_z = [False, *(sigma.derivative_needs_z for sigma in net.activations[:-1]), True]
        return {
            "y": [layers[L]],
            "scale": [(B,)],
            "cost": [(B,)],
            "z": [shape if kept else None for shape, kept in zip(layers, keeps_z, strict=True)],
            "a": [layers[0] if self.nonzeros is None else None, *layers[1:]],
            "h": [layer if net.dropout and 0 < l < L else None for l, layer in enumerate(layers)],
            "delta": [None, *layers[1:]],
            "gradients": [(net.n_parameters,)],
            "state": [(net.n_parameters,)] * (self.rule.n_state if self.rule else 0),
            "last_finite": [(net.n_parameters,) if self.rule else None],
        }

    @property
    def products(self) -> list[float]:
        """Multiply-adds of the product of each layer with a full batch, in one direction."""
        net = self.architecture
        inputs = [net.sizes[0] if self.nonzeros is None else self.nonzeros, *net.sizes[1:-1]]
        return [self.batch_size * m * n for m, n in zip(inputs, net.sizes[1:], strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes on the device of all that training needs but the data; known before anything is allocated."""
        shapes = (shape for group in self._shapes().values() for shape in group if shape)
        numbers = sum(math.prod(shape) for shape in shapes)
        return numbers * self.architecture.dtype.itemsize + self.backend.workspace_nbytes(self)

    def allocate(self) -> "Plan":
        """Allocate everything and return the plan itself.

        Raises
        ------
        MemoryError
            If the backend has not that much memory free; before anything is allocated.
        """
        backend, dtype = self.backend, self.architecture.dtype
        available = backend.free_memory()
        if available is not None and self.nbytes > available:
            mib, fits = 2**20, self._largest_batch(available)
            raise MemoryError(
                f"training in batches of {self.batch_size} needs {self.nbytes / mib:.1f} MiB on {backend.device}, "
                f"which has {available / mib:.1f} MiB free; "
                + (f"a batch_size of {fits} fits" if fits else "no batch_size fits")
            )
        buffers: dict[str, list[Any]] = {
            name: [None if shape is None else backend.empty(shape, dtype) for shape in group]
            for name, group in self._shapes().items()
        }
        a = buffers["a"]
        h = [dropped if dropped is not None else plain for dropped, plain in zip(buffers["h"], a, strict=True)]
        self._full = Batch(
            buffers["y"][0], buffers["scale"][0], buffers["cost"][0], buffers["z"], a, h, buffers["delta"]
        )
        self.gradients = buffers["gradients"][0]
        self.dW, self.db = self.architecture.views(self.gradients)
        self.state = buffers["state"]
        self.last_finite = buffers["last_finite"][0]
        for array in self.state:
            backend.assign(array, 0)
        return self

    def within_memory(self) -> "Plan":
        """Return the plan, or one for smaller batches if this one takes more than half of the memory that is free."""
        available = self.backend.free_memory()
        if available is None or 2 * self.nbytes <= available:
            return self
        return self._for(max(1, self._largest_batch(available // 2)))

    def _for(self, batch_size: int) -> "Plan":
        return Plan(self.architecture, batch_size, self.backend, self.rule, self.masks, self.nonzeros)

    def _largest_batch(self, available: int) -> int:
        """Return how many rows fit, 0 if none do."""
        one, many = self._for(1).nbytes, self._for(1 + 2**10).nbytes
        rows = min(max(0, (available - one) * 2**10 // (many - one) + 1), checks.MAX_SIZE)
        while rows and self._for(rows).nbytes > available:  # parts are aligned, so bytes do not grow evenly
            rows -= 1
        return rows

    def batch(self, rows: int) -> Batch:
        """Return the workspace for `rows` rows, at most `batch_size`."""
        return self._full if rows == self.batch_size else self._full.rows(rows)
