"""Timed steps of backpropagation, on a layer with n inputs and n outputs and a batch of B rows.

FLOPs and bytes follow from the shapes: 2 FLOPs for each multiply-add of a product, and every array once.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from bpgpu.backends.base import Backend
from bpgpu.model.activations import get_activation
from bpgpu.model.costs import CROSS_ENTROPY

ROWS = 32  # rows of a result that are checked
RELU, SOFTMAX = get_activation("relu"), get_activation("softmax")
Array = Any
Arrays = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]
# The function to time, and one that raises AssertionError unless its first run gave the right result.
Prepared = tuple[Callable[[], None], Callable[[], None]]


class Step:
    """A step on arrays, each of which is read or written once.

    ``inputs`` and ``outputs`` give their shapes, ``call`` runs it, and ``expected`` computes rows of every output in
    float64.
    """

    has_batch = True

    def inputs(self, n: int, B: int) -> Shapes:
        raise NotImplementedError

    def outputs(self, n: int, B: int) -> Shapes:
        raise NotImplementedError

    def call(self, backend: Backend, x: Arrays) -> None:
        raise NotImplementedError

    def expected(self, x: Arrays, rows: Array) -> Arrays:
        raise NotImplementedError

    def numbers(self, rng: np.random.Generator, shapes: Shapes, dtype: np.dtype[Any]) -> Arrays:
        """Return the input."""
        return {name: rng.standard_normal(shape, dtype) for name, shape in shapes.items()}

    def shapes(self, n: int, B: int) -> Shapes:
        return self.inputs(n, B) | self.outputs(n, B)

    def flops(self, n: int, B: int) -> int:
        return 2 * B * n * n

    def bytes(self, n: int, B: int, itemsize: int) -> int:
        return sum(map(prod, self.shapes(n, B).values())) * itemsize

    def prepare(self, backend: Backend, n: int, B: int, dtype: np.dtype[Any], *, transfers: bool) -> Prepared:
        """Return the call to time and its check; arrays are on the device or, with `transfers`, on the host."""
        host = self.numbers(np.random.default_rng(0), self.inputs(n, B), dtype)
        out = {name: backend.empty(shape, dtype) for name, shape in self.outputs(n, B).items()}

        def upload() -> Arrays:
            return {name: backend.asarray(array, dtype) for name, array in host.items()}

        resident = {} if transfers else upload()

        def run() -> None:
            self.call(backend, (upload() if transfers else resident) | out)
            if transfers:
                for array in out.values():
                    backend.to_numpy(array)
            backend.synchronize()

        def check() -> None:
            tolerance = 8 * np.finfo(dtype).eps * np.sqrt(max(n, B))  # for a sum of max(n, B) random terms
            for name, array in out.items():
                found = backend.to_numpy(array)
                rows = np.unique(np.linspace(0, len(found) - 1, ROWS, dtype=int))
                assert_close(found[rows], self.expected(host, rows)[name], tolerance)

        return run, check


def assert_close(found: Array, expected: Array, tolerance: float) -> None:
    """Raise AssertionError if the arrays differ by more than this part of the largest number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


class Forward(Step):
    """``a = relu(a_prev W + b)``."""

    def inputs(self, n: int, B: int) -> Shapes:
        return {"a_prev": (B, n), "W": (n, n), "b": (n,)}

    def outputs(self, n: int, B: int) -> Shapes:
        return {"a": (B, n)}

    def call(self, backend: Backend, x: Arrays) -> None:
        backend.forward(x["a_prev"], x["W"], x["b"], RELU, out=x["a"])

    def expected(self, x: Arrays, rows: Array) -> Arrays:
        return {"a": np.maximum(np.float64(x["a_prev"][rows]) @ np.float64(x["W"]) + x["b"], 0)}


class OutputDelta(Step):
    """Softmax, cross-entropy and ``delta = (a - y) scale``: no product, and about 9 FLOPs per number."""

    def inputs(self, n: int, B: int) -> Shapes:
        return {"z": (B, n), "y": (B, n), "scale": (B,)}

    def outputs(self, n: int, B: int) -> Shapes:
        return {"a": (B, n), "delta": (B, n), "cost": (B,)}

    def numbers(self, rng: np.random.Generator, shapes: Shapes, dtype: np.dtype[Any]) -> Arrays:
        B, n = shapes["z"]
        y = np.zeros((B, n), dtype)
        y[np.arange(B), rng.integers(0, n, B)] = 1
        return {"z": rng.standard_normal((B, n), dtype), "y": y, "scale": np.full(B, 1 / B, dtype)}

    def flops(self, n: int, B: int) -> int:
        return 9 * B * n  # maximum, -, exp, sum, quotient; y log a and its sum; a - y, times scale

    def call(self, backend: Backend, x: Arrays) -> None:
        out = {"out_a": x["a"], "out_delta": x["delta"], "out_cost": x["cost"]}
        backend.output_delta(x["z"], x["y"], x["scale"], SOFTMAX, CROSS_ENTROPY, **out)

    def expected(self, x: Arrays, rows: Array) -> Arrays:
        z, y = np.float64(x["z"][rows]), x["y"][rows]
        exp = np.exp(z)
        a = exp / exp.sum(axis=1, keepdims=True)
        return {"a": a, "delta": (a - y) / len(x["z"]), "cost": -(y * np.log(a)).sum(axis=1)}


class HiddenDelta(Step):
    """``delta = (delta_next W^T) * relu'(z)``."""

    def inputs(self, n: int, B: int) -> Shapes:
        return {"delta_next": (B, n), "W": (n, n), "a": (B, n)}

    def outputs(self, n: int, B: int) -> Shapes:
        return {"delta": (B, n)}

    def call(self, backend: Backend, x: Arrays) -> None:
        backend.hidden_delta(x["delta_next"], x["W"], x["a"], RELU, out=x["delta"])

    def expected(self, x: Arrays, rows: Array) -> Arrays:
        return {"delta": (np.float64(x["delta_next"][rows]) @ np.float64(x["W"]).T) * (x["a"][rows] > 0)}


class WeightGradient(Step):
    """``dW = a_prev^T delta``, ``db`` the column sums of delta."""

    def inputs(self, n: int, B: int) -> Shapes:
        return {"a_prev": (B, n), "delta": (B, n)}

    def outputs(self, n: int, B: int) -> Shapes:
        return {"dW": (n, n), "db": (n,)}

    def call(self, backend: Backend, x: Arrays) -> None:
        backend.weight_gradient(x["a_prev"], x["delta"], out_W=x["dW"], out_b=x["db"])

    def expected(self, x: Arrays, rows: Array) -> Arrays:
        delta = np.float64(x["delta"])
        return {"dW": np.float64(x["a_prev"][:, rows]).T @ delta, "db": delta[:, rows].sum(axis=0)}
