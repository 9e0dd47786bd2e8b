"""The plan of a training run: every workspace that it needs, counted before it is allocated."""

import math
from typing import Any

from bpgpu import checks
from bpgpu.backends.data import Batch, Data
from bpgpu.backends.memory import Memory
from bpgpu.kernels.rules import Rule
from bpgpu.model.architecture import Architecture
from bpgpu.model.optimizers import Optimizer


class Room(Memory):
    """A device's memory that knows what training takes of it.

    Attributes
    ----------
    device : str
        What it is, for people.
    takes_sparse : bool
        Whether the first layer takes CSR arrays of SciPy as they are. Otherwise each batch of them is made dense.
    name, xp
        As of `Memory`.
    """

    device: str
    takes_sparse: bool = True

    def workspace_nbytes(self, plan: "Plan") -> int:
        """Return the bytes that training allocates on the device besides what the plan itself owns and the data."""
        return 0


class Plan:
    """Every workspace that training an architecture in batches needs on a backend, allocated once.

    Parameters
    ----------
    architecture : Architecture
    batch_size : int
        B, the rows of a full batch.
    backend : Room
        A `Backend`, as a rule.
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
        backend: Room,
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
    def compiled(self) -> Rule | None:
        """The optimizer as the kernels take it; None without one, or if it is written in Python."""
        return None if self.rule is None else self.rule.compiled

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
            If the backend does not have that much memory free; nothing has been allocated then.
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
