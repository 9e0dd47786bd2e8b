"""One launch of a fused GEMM on the simulated GPU, and what it must give: in float64, with bounds of its rounding."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.kernels import formulas, philox
from bpgpu.kernels.cuda import source as cuda_kernels
from tests.simgpu import device

_DROPOUT = ("threshold", "keep", "key0", "key1", "layer", "ctl")
ARGUMENTS = {
    "gemm_forward": ("a_prev", "W", "b", "a", "h", "z", "rows", "m", "n", *_DROPOUT),
    "gemm_hidden": ("delta", "W", "a", "z", "out", "rows", "m", "n", *_DROPOUT),
    "gemm_gradient": ("a_prev", "delta", "W", "mask", "dW", "db", "rows", "m", "n", "decay"),
}
RESULTS = {"gemm_forward": ("a", "h", "z"), "gemm_hidden": ("out",), "gemm_gradient": ("dW", "db")}
KERNELS = tuple(ARGUMENTS)
TILE = 64
SEED, EPOCH, STEP, LAYER = 0x0123456789ABCDEF, 3, 5, 2
# Elements around every array: NaN around inputs, a number that must stay around results. More than a tile of rows, so
# that a kernel with a fault in it does not bring down the process.
GUARD = 1 << 14
SENTINEL = -77.0


@dataclass(frozen=True)
class Case:
    """What is launched: `absent` are the null pointers, `shift` the elements of all arrays off a 16-byte boundary."""

    kernel: str
    shape: tuple[int, int, int]  # rows, m, n
    dtype: str = "float32"
    activation: str = "sigmoid"
    rate: float = 0.0
    decay: float = 0.0
    absent: tuple[str, ...] = ()
    shift: int = 0


def source(dtype: str, activation: str) -> str:
    """Return the module for an activation: a name of the table, or "value; derivative"."""
    value, derivative = formulas.ACTIVATIONS.get(activation) or activation.split("; ")
    return cuda_kernels.module_source("gemm.cu", np.dtype(dtype), {"sigma": value, "sigma_prime": derivative})


def _guarded(values: np.ndarray[Any, Any], around: float, shift: int) -> np.ndarray[Any, Any]:
    """Return `values` in the middle of a larger array, `shift` elements after a boundary of 16 bytes."""
    whole = np.full(values.size + 2 * GUARD + 8, around, dtype=values.dtype)
    start = GUARD + (-(whole.ctypes.data // whole.itemsize) - GUARD) % (16 // whole.itemsize) + shift
    inside = whole[start : start + values.size].reshape(values.shape)
    inside[...] = values
    return inside


class Launch:
    """The arguments of a case, ready to run."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rows, m, n = case.shape
        T = np.dtype(case.dtype).type
        rng = np.random.default_rng([rows, m, n, KERNELS.index(case.kernel)])
        side = m if case.kernel == "gemm_hidden" else n
        shapes = {"a_prev": (rows, m), "delta": (rows, n), "W": (m, n), "b": (n,), "z": (rows, side), "mask": (m, n)}
        values = {name: rng.normal(size=shape).astype(T) for name, shape in shapes.items()}
        values["mask"] = (values["mask"] > 0).astype(T)
        with np.errstate(all="ignore"):
            values["a"] = np.broadcast_to(self.formula(0)(values["z"], None, None), (rows, side)).astype(T)
        results = {"a": (rows, n), "h": (rows, n), "z": (rows, n), "out": (rows, m), "dW": (m, n), "db": (n,)}
        self.arrays: dict[str, Any] = {}
        for name in ARGUMENTS[case.kernel]:
            if name in case.absent:
                self.arrays[name] = None
            elif name in RESULTS[case.kernel]:
                self.arrays[name] = _guarded(np.full(results[name], np.nan, T), SENTINEL, case.shift)
            elif name in values:
                self.arrays[name] = _guarded(values[name], math.nan, case.shift)
        self.ctl = np.zeros(8, dtype=np.int32)
        self.ctl[1], self.ctl[5] = STEP, EPOCH
        self.scalars = {
            "rows": np.int32(rows),
            "m": np.int32(m),
            "n": np.int32(n),
            "threshold": np.uint32(round(case.rate * 2**32)),
            "keep": T(1 / (1 - case.rate)),
            "key0": np.uint32(SEED & 0xFFFFFFFF),
            "key1": np.uint32(SEED >> 32),
            "layer": np.uint32(LAYER),
            "decay": T(case.decay),
        }

    def formula(self, which: int) -> Any:
        """Return sigma (0) or sigma' (1), in float64."""
        value = (formulas.ACTIVATIONS.get(self.case.activation) or self.case.activation.split("; "))[which]
        return formulas.numpy_function(value, np.dtype(np.float64))

    def kept(self, shape: tuple[int, int]) -> Any:
        """Return which elements the reference's dropout keeps."""
        return philox.keep_mask(shape, self.case.rate, seed=SEED, epoch=EPOCH, step=STEP, layer=LAYER)

    def run(self, module: device.Module, order: str = "forward", grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """Run on results poisoned with NaN; return copies of them, and check that nothing beside them changed."""
        rows, m, n = self.case.shape
        down, across = {"gemm_forward": (rows, n), "gemm_hidden": (rows, m), "gemm_gradient": (m, n)}[self.case.kernel]
        names = [name for name in RESULTS[self.case.kernel] if self.arrays[name] is not None]
        for name in names:
            self.arrays[name][...] = np.nan
        given = {**self.arrays, **self.scalars, "ctl": self.ctl}
        arguments = tuple(given[name] for name in ARGUMENTS[self.case.kernel])
        grid = grid or (max(1, -(-across // TILE)), max(1, -(-down // TILE)))
        module.get_function(self.case.kernel)(grid, (256,), arguments, order=order)
        for name in names:
            whole = self.arrays[name].base
            outside = np.count_nonzero(whole == SENTINEL)
            assert outside == whole.size - self.arrays[name].size, f"{self.case}: written out of the bounds of {name}"
        return {name: self.arrays[name].copy() for name in names}

    def expected(self) -> dict[str, tuple[Any, Any]]:
        """Return for each result its value in float64, and how far rounding may take the kernel from it.

        A sum of K products is off by K eps times the sum of their magnitudes at most, with a little for what follows.
        """
        case = self.case
        rows, m, n = case.shape
        eps = float(np.finfo(case.dtype).eps)
        x = {name: array.astype(np.float64) for name, array in self.arrays.items() if array is not None}
        if case.kernel == "gemm_gradient":
            decay, mask = float(self.scalars["decay"]), x.get("mask", 1.0)
            penalty = decay * x["W"] if decay and "W" in x else np.zeros((m, n))
            dW = (x["a_prev"].T @ x["delta"] + penalty) * mask
            size = np.abs(x["a_prev"]).T @ np.abs(x["delta"]) + np.abs(penalty)
            sums = x["delta"].sum(axis=0), eps * rows * np.abs(x["delta"]).sum(axis=0)
            return {"dW": (dW, eps * (rows + 2) * size * mask), "db": sums}
        side = m if case.kernel == "gemm_hidden" else n
        factor = self.kept((rows, side)) * float(self.scalars["keep"])
        if case.kernel == "gemm_hidden":
            slope = self.formula(1)(x.get("z"), x["a"], None)
            size = np.abs(x["delta"]) @ np.abs(x["W"]).T * factor
            return {"out": (x["delta"] @ x["W"].T * factor * slope, eps * (n + 16) * size * (1 + np.abs(slope)))}
        z = x["a_prev"] @ x["W"] + x.get("b", 0.0)
        z_error = eps * (m + 1) * (np.abs(x["a_prev"]) @ np.abs(x["W"]) + np.abs(x.get("b", 0.0)))
        a = self.formula(0)(z, None, None)
        a_error = 2 * z_error + 8 * eps * (1 + np.abs(a))  # no slope of the table exceeds 2
        return {"z": (z, z_error), "a": (a, a_error), "h": (factor * a, factor * a_error)}


def check(module: device.Module, case: Case, orders: tuple[str, ...] = device.ORDERS) -> None:
    """Raise AssertionError unless a case is right in every order of threads, to the same bits, on any grid."""
    launch = Launch(case)
    expected = launch.expected()
    first = launch.run(module, orders[0])
    for name, got in first.items():
        value, bound = expected[name]
        wrong = np.count_nonzero(~(np.abs(got - value) <= bound))
        assert wrong == 0, f"{case}: {wrong} of {got.size} elements of {name} are wrong"
    for order, grid in [*((order, None) for order in orders[1:]), (orders[-1], (1, 1))]:
        for name, again in launch.run(module, order, grid).items():
            assert again.tobytes() == first[name].tobytes(), (
                f"{case}: {name} depends on the order ({order}, grid {grid})"
            )
    assert launch.ctl[0] == 0, f"{case}: the latch closed without a fault"
