"""Timed steps: the update of all parameters and a whole epoch."""

from typing import Any

import numpy as np

import bpgpu
from benchmarks import gpu_step
from benchmarks.steps import ROWS, Array, Prepared, Shapes, Step, assert_close
from bpgpu.backends.base import Backend
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.model.optimizers import SGD, Adam, Optimizer

CLASSES = 10
SAMPLES = 2048  # in an epoch, or two batches if that is more


class Update(Step):
    """One step of an optimizer over the n n + n parameters of a layer, in place; its state stays on the device.

    Parameters
    ----------
    optimizer : Optimizer
    flops : int
        For each parameter.
    """

    has_batch = False

    def __init__(self, optimizer: Optimizer, *, flops: int) -> None:
        self.optimizer, self.flops_each = optimizer, flops

    def shapes(self, n: int, B: int) -> Shapes:
        flat = (n * n + n,)
        return {"parameters": flat, "gradients": flat} | {f"state {k}": flat for k in range(self.optimizer.n_state)}

    def flops(self, n: int, B: int) -> int:
        return self.flops_each * (n * n + n)

    def bytes(self, n: int, B: int, itemsize: int) -> int:
        """All arrays are read, and all but the gradients are written."""
        return (n * n + n) * (2 * len(self.shapes(n, B)) - 1) * itemsize

    def prepare(self, backend: Backend, n: int, B: int, dtype: np.dtype[Any], *, transfers: bool) -> Prepared:
        rng = np.random.default_rng(0)
        start, gradients = rng.standard_normal((2, n * n + n), dtype)
        host = start.copy()
        optimizer, rate = self.optimizer, self.optimizer.rate(0)
        p, g = backend.asarray(start.copy(), dtype), backend.asarray(gradients, dtype)
        state = [backend.asarray(np.zeros_like(start), dtype) for _ in range(optimizer.n_state)]
        result = start

        def run() -> None:
            nonlocal result
            parameters, slopes = (
                (backend.asarray(host, dtype), backend.asarray(gradients, dtype)) if transfers else (p, g)
            )
            backend.update(optimizer, parameters, slopes, state, t=1, learning_rate=rate, n_weights=n * n)
            if transfers:
                result = backend.to_numpy(parameters)
            backend.synchronize()

        def check() -> None:
            found, g64 = result if transfers else backend.to_numpy(p), np.float64(gradients)
            # At the first step, Adam's two corrected moments are g and g^2.
            direction = g64 / (np.abs(g64) + optimizer.epsilon) if isinstance(optimizer, Adam) else g64
            assert_close(found, start - rate * direction, 8 * np.finfo(dtype).eps)

        return run, check


class Epoch(Step):
    """An epoch of n-n-10, relu and softmax with cross-entropy, by gradient descent in batches of B shuffled rows.

    FLOPs are those of the products; bytes are the fewest that the steps must move (`benchmarks.gpu_step.minimum`).
    """

    def shapes(self, n: int, B: int) -> Shapes:
        return {"X": (self._steps(B) * B, n), "y": (self._steps(B) * B,), "sizes": (n, n, CLASSES)}

    def flops(self, n: int, B: int) -> int:
        return self._steps(B) * self._minimum(n, B, 4)["flops"]

    def bytes(self, n: int, B: int, itemsize: int) -> int:
        return self._steps(B) * self._minimum(n, B, itemsize)["bytes"]

    def _steps(self, B: int) -> int:
        return max(2, SAMPLES // B)

    def _minimum(self, n: int, B: int, itemsize: int) -> dict[str, int]:
        return gpu_step.minimum(gpu_step.Step((n, n, CLASSES), B, 0, itemsize))

    def prepare(self, backend: Backend, n: int, B: int, dtype: np.dtype[Any], *, transfers: bool) -> Prepared:
        # A batch holds several copies of a few rows, so a batch of those rows alone has the same mean gradient: the
        # whole epoch is checked against a small one in float64.
        steps, rng = self._steps(B), np.random.default_rng(0)
        few = {
            "X": rng.standard_normal((steps, ROWS, n), dtype),
            "y": rng.integers(0, CLASSES, (steps, ROWS), np.int32),
        }
        X = np.tile(few["X"], (1, B // ROWS, 1)).reshape(-1, n)
        y = np.tile(few["y"], (1, B // ROWS)).reshape(-1)
        order = np.concatenate([step * B + rng.permutation(B) for step in range(steps)]).astype(np.int32)
        optimizer = SGD(0.5 / n)

        def network_and_plan(on: Backend, dtype: np.dtype[Any], batch: int) -> tuple[bpgpu.MLP, Plan]:
            net = bpgpu.MLP((n, n, CLASSES), ("relu", "softmax"), "cross_entropy", dtype=dtype, backend=on)
            return net, Plan(net.architecture, batch, on, optimizer).allocate()

        net, plan = network_and_plan(backend, dtype, B)
        start = np.array(backend.to_numpy(net.parameters), np.float64)

        def on_device() -> Data:
            return Data(backend.asarray(X, dtype), backend.asarray(y, y.dtype))

        resident = None if transfers else on_device()

        def run() -> None:
            train(net, plan, resident or on_device(), order)
            if transfers:
                backend.to_numpy(net.parameters)
            backend.synchronize()

        def check() -> None:
            reference, small = network_and_plan(bpgpu.get_backend("numpy"), np.dtype(np.float64), ROWS)
            reference.parameters[...] = start
            train(reference, small, Data(np.float64(few["X"]).reshape(-1, n), few["y"].reshape(-1)), None)
            changes = [net.backend.to_numpy(net.parameters) - start for net in (net, reference)]
            assert_close(*changes, 2e-2 if dtype == np.float32 else 1e-8)

        return run, check


def train(net: bpgpu.MLP, plan: Plan, data: Data, order: Array | None) -> None:
    """Train one epoch on data that are on the backend."""
    rates = [plan.rule.rate(0)] * -(-len(data) // plan.batch_size)
    net.backend.run_epoch(plan, data, order, parameters=net.parameters, learning_rates=rates, epoch=0)
