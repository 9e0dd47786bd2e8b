"""The errors of a backend's steps: the largest of each, and the promised one.

Every step gets the same inputs twice: on the backend in float32 or float64, and in the reference in NumPy's longest
floating point (64 bits of mantissa on x86, float64's own 53 on ARM Macs and with Microsoft's compiler). The error is

    largest |result - truth| / (eps · growth(n) · scale)

with the eps of the backend's dtype, n the length of the sums behind a result, and the scale of the results: for a sum,
the largest sum of the sizes of its terms, otherwise the largest result. So 1 is one rounding of the largest result.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.backends.base import Backend
from bpgpu.kernels import formulas

Host = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
EXTENDED = np.dtype(np.longdouble)

# The largest promised error of each operation, in the unit above. It leaves room for CUDA's functions, whose documented
# errors are up to four roundings larger than those of a CPU. No bit of a dropout mask may differ.
PROMISED = {
    "forward": 8,
    "output: a": 8,
    "output: delta": 32,
    "output: cost": 16,
    "hidden delta": 8,
    "weight gradient": 8,
    "bias gradient": 8,
    "update": 8,
    "optimizer state": 8,
    "dropout": 0,
    "loss": 8,
    "training: parameters": 128,
    "training: loss": 16,
}

# Rows, inputs and outputs of a layer: single, ragged, empty, and more than one tile of a GPU's product.
SHAPES = (
    (5, 3, 4),
    (1, 1, 1),
    (1, 31, 33),
    (33, 1, 31),
    (31, 33, 1),
    (0, 4, 3),
    (65, 70, 3),
    (3, 65, 66),
    (130, 67, 129),
    (65, 300, 70),
)


@dataclass(frozen=True)
class Measurement:
    """The largest error of one result.

    Attributes
    ----------
    operation : str
        A row of `PROMISED`.
    case : str
        The activation, cost or optimizer, and the shape.
    error : float
        In the unit of the module's docstring; for dropout, the number of elements that differ in any bit.
    """

    operation: str
    case: str
    error: float

    def __str__(self) -> str:
        return f"{self.operation}, {self.case}: {self.error:.3g}, promised {PROMISED[self.operation]}"

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        return self.error <= PROMISED[self.operation]


@dataclass(frozen=True)
class Bench:
    """A backend in one dtype, and how much to measure.

    Attributes
    ----------
    backend : Backend
    dtype : {"float32", "float64"}
    largest : int
        The most multiply-adds of a product; larger shapes are left out.
    crossed : bool
        Whether every case is measured on every shape; otherwise each on the first and one more, by turns, and training
        with each optimizer on one network.
    """

    backend: Backend
    dtype: str
    largest: int = 2**24
    crossed: bool = True

    def shapes(self, turn: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Yield the shapes for the case of this turn, each with a number that seeds its data."""
        fit = [(k, shape) for k, shape in enumerate(SHAPES) if math.prod(shape) <= self.largest]
        yield from fit if self.crossed else [fit[0], fit[1 + turn % (len(fit) - 1)]]

    def run(
        self, step: str, inputs: Mapping[str, Host | None], outputs: Mapping[str, tuple[int, ...]], **options: Any
    ) -> tuple[dict[str, Host], dict[str, Host]]:
        """Run a step of the contract on the backend and in extended precision; return the outputs of both.

        Raises
        ------
        RuntimeError
            If the step writes to an input.
        """
        before = {name: None if x is None else x.copy() for name, x in inputs.items()}
        both = []
        for backend, dtype in ((self.backend, np.dtype(self.dtype)), (extended, EXTENDED)):
            placed = {name: None if x is None else backend.asarray(x, dtype) for name, x in inputs.items()}
            out = {name: backend.asarray(np.full(shape, np.nan), dtype) for name, shape in outputs.items()}
            getattr(backend, step)(**placed, **options, **out)
            for name, x in before.items():
                if x is not None and not np.array_equal(backend.to_numpy(placed[name]), x):
                    raise RuntimeError(f"{step} of the backend {backend.name!r} writes to its input {name}")
            both.append({name: backend.to_numpy(x) for name, x in out.items()})
        return both[0], both[1]

    def compare(
        self, operation: str, case: str, result: Any, truth: Any, *, scale: float | None = None, n: int = 1
    ) -> Measurement:
        """Return the error of a result; infinite if the result is not finite or has another shape."""
        result, truth = np.asarray(result), np.asarray(truth)
        if result.shape != truth.shape or not np.isfinite(result).all():
            return Measurement(operation, case, math.inf)
        largest = float(np.max(np.abs(truth), initial=0.0))
        unit = float(np.finfo(self.dtype).eps) * growth(n) * (max(largest, scale or 0.0) or 1.0)
        error = float(np.max(np.abs(result.astype(EXTENDED) - truth), initial=0.0)) / unit
        return Measurement(operation, case, error)

    def random(self, rng: np.random.Generator, k: int, *shape: int) -> Host:
        """Return random numbers in the dtype, by turns contiguous, transposed and strided."""
        if k % 3 == 0:
            return rng.standard_normal(shape).astype(self.dtype)
        if k % 3 == 1:
            return rng.standard_normal(shape[::-1]).astype(self.dtype).T
        wide = rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype(self.dtype)
        return wide[..., ::2]


def growth(n: int) -> float:
    """Return the factor by which the error of a sum of n terms may exceed that of at most 64 terms."""
    return math.sqrt(max(1.0, n / 64))


class _Extended(Backend):
    """The reference in extended precision, which gives the truth."""

    name, device, xp = "extended", "CPU", np

    def _evaluate(self, formula: str, z: Any = None, a: Any = None, y: Any = None) -> Any:
        if "erf" not in formula:
            return super()._evaluate(formula, z=z, a=a, y=y)
        # SciPy has erf and erfc only up to float64: this truth is right to about one rounding of float64.
        arguments = (None if x is None else x.astype(np.float64) for x in (z, a, y))
        with np.errstate(all="ignore"):
            return formulas.numpy_function(formula, np.dtype(np.float64))(*arguments)


extended = _Extended()
