"""What training works on: the samples, the workspace of a batch of them, and what dropout drops."""

from dataclasses import dataclass
from typing import Any

from bpgpu.interop import is_sparse


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
