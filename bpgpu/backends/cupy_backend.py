"""Backpropagation on an NVIDIA GPU through CuPy: cuBLAS or our own fused GEMM, and CUDA C++ kernels for the rest.

All work goes to the backend's own stream. `cuda_steps` says which kernels make a step of the contract; here they are
run one by one, as a loop of the user's own calls them, and `cuda_epoch` strings them together for a whole epoch.
"""

import functools
import logging
from typing import Any

import numpy as np

from bpgpu.activations import Activation
from bpgpu.backends import cuda_epoch, cuda_probe
from bpgpu.backends.base import Backend
from bpgpu.backends.cuda_launch import Launch, Launcher
from bpgpu.backends.cuda_steps import RULES, Gemm, Steps, control_words, rule_kernel
from bpgpu.costs import Cost
from bpgpu.optimizers import Optimizer
from bpgpu.plan import Batch, Dropout, Plan

Array = Any
INT32 = np.dtype(np.int32)
log = logging.getLogger("bpgpu")


class CupyBackend(Backend):
    """The production GPU backend.

    Parameters
    ----------
    gemm : {"auto", "cublas", "fused"}
        Which matrix product: cuBLAS, our own with bias, sigma and sigma' inside it, or by the size of the product.
    graph : bool
        Capture the step of a full batch once, as a CUDA graph, and replay it: one call from the host for all of its
        kernels, with the same result to the bit. Takes the fused GEMM for every product, as CuPy cannot capture
        cuBLAS; a rule of the user's own runs without graphs. Off by default, for no hardware has run it yet.

    Raises
    ------
    ValueError
        If graphs are to be made of cuBLAS.
    BackendUnavailableError
        If CuPy, a driver, a device, NVRTC or cuBLAS is missing; with the fix.
    """

    name = "cupy"

    def __init__(self, *, gemm: Gemm = "auto", graph: bool = False) -> None:
        if graph and gemm == "cublas":
            raise ValueError("graph=True needs the fused GEMM, for CuPy cannot capture cuBLAS; drop gemm='cublas'")
        self.xp = cuda_probe.probe()
        self.device = cuda_probe.device_name(self.xp)
        # A blocking stream: whatever a user runs on CuPy's default stream comes after our work and before the next.
        self.stream = self.xp.cuda.Stream()
        self.control = self.asarray(control_words(), INT32)
        self.steps = Steps(self.xp, Launcher(self.xp), "fused" if graph else gemm)
        # Not blocking, or whatever runs on the default stream during a capture would break it.
        self.capture = self.xp.cuda.Stream(non_blocking=True) if graph else None
        _say_once_that_no_hardware_has_run_this()

    # Memory

    def asarray(self, array: Any, dtype: np.dtype[Any]) -> Array:
        with self.stream:
            if not isinstance(array, self.xp.ndarray):
                array = self.xp.asarray(np.ascontiguousarray(array, dtype=dtype))
            return self.xp.ascontiguousarray(array, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        if isinstance(array, np.ndarray):
            return array
        with self.stream:
            host: np.ndarray[Any, Any] = self.xp.asnumpy(array)
        return host

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        with self.stream:
            return self.xp.empty(shape, dtype=dtype)

    def free_memory(self) -> int | None:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def synchronize(self) -> None:
        self.stream.synchronize()

    def _run(self, launches: list[Launch]) -> None:
        with self.stream:
            for launch in launches:
                launch()

    def _at_step(self, step: int, epoch: int = 0) -> Array:
        """Return the control words for a single call, set to a step and epoch; dropout reads them from there."""
        self.control.set(control_words(step, epoch), stream=self.stream)
        return self.control

    # The steps of the contract

    def forward(
        self,
        a_prev: Array,
        W: Array,
        b: Array | None,
        activation: Activation,
        *,
        out: Array,
        out_z: Array | None = None,
    ) -> None:
        self._run(self.steps.forward(a_prev, W, b, activation, self.control, a=out, z=out_z))

    def dropout(self, x: Array, dropout: Dropout, *, out: Array) -> None:
        self._run(self.steps.dropout(x, dropout, self._at_step(dropout.step, dropout.epoch), out=out))

    def output_delta(
        self,
        z: Array,
        y: Array,
        scale: Array,
        activation: Activation,
        cost: Cost,
        *,
        out_a: Array,
        out_delta: Array,
        out_cost: Array,
    ) -> None:
        launches = self.steps.output(
            z, None, y, scale, activation, cost, self.control, a=out_a, delta=out_delta, row_cost=out_cost
        )
        self._run(launches)

    def hidden_delta(
        self,
        delta: Array,
        W: Array,
        a: Array,
        activation: Activation,
        *,
        out: Array,
        z: Array | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        control = self.control if dropout is None else self._at_step(dropout.step, dropout.epoch)
        self._run(self.steps.hidden(delta, W, a, z, activation, dropout, control, out=out))

    def weight_gradient(
        self,
        a_prev: Array,
        delta: Array,
        *,
        out_W: Array,
        out_b: Array | None = None,
        W: Array | None = None,
        decay: float = 0.0,
        mask: Array | None = None,
    ) -> None:
        sums = [] if out_b is None else self.steps.column_sums([(delta, out_b)])
        self._run([*self.steps.weight_gradient(a_prev, delta, W, mask, decay, out=out_W), *sums])

    def update(
        self,
        rule: Optimizer,
        parameters: Array,
        gradients: Array,
        state: list[Array],
        *,
        t: int,
        learning_rate: float,
        n_weights: int,
    ) -> None:
        if type(rule) not in RULES:  # a rule of the user's own runs as it is written, in CuPy's operations
            with self.stream:
                super().update(
                    rule, parameters, gradients, state, t=t, learning_rate=learning_rate, n_weights=n_weights
                )
            return
        dtype = parameters.dtype
        schedule = self.asarray(rule_kernel(rule).schedule(np.array([learning_rate]), t, np.ones(1)), dtype)
        clip, norm = None, list[Launch]()
        if rule.clip_norm is not None:
            clip = self.empty((1,), dtype)
            norm = self.steps.clip(gradients, parameters, None, 0, 0.0, rule.clip_norm, out=clip)
        update = self.steps.update(
            rule, parameters, gradients, state, None, n_weights, 0.0, clip, schedule, None, self._at_step(0)
        )
        self._run([*norm, *update])

    # Whole steps

    def load_batch(self, batch: Batch, X: Array, y: Array, weight: Array | None, rows: Array | slice) -> float:
        count, dtype = len(batch.scale), X.dtype
        order = None
        if isinstance(rows, slice):
            X, y = X[rows], y[rows]
            weight = None if weight is None else weight[rows]
        else:
            order = self.asarray(rows, INT32)
        total = float(count)
        if weight is not None:
            host = self.to_numpy(weight if order is None else weight[order])
            total = float(host.sum(dtype=np.float64))
        schedule = self.asarray(np.array([0, 0, 0, 1 / total if total else 0]), dtype)
        unused = self.empty((count,), dtype)
        self._run([self.steps.gather(batch, unused, X, y, weight, order, schedule, count, self.control)])
        return total

    def penalty(self, weights: Array, decay: float) -> float:
        if not decay:
            return 0.0
        with self.stream:
            return decay / 2 * float((weights * weights).sum())

    def run_epoch(
        self,
        plan: Plan,
        X: Array,
        y: Array,
        order: np.ndarray[Any, Any] | None,
        *,
        parameters: Array,
        sample_weight: Array | None,
        learning_rates: list[float],
        epoch: int,
    ) -> float:
        if type(plan.rule) not in RULES:
            return super().run_epoch(
                plan,
                X,
                y,
                order,
                parameters=parameters,
                sample_weight=sample_weight,
                learning_rates=learning_rates,
                epoch=epoch,
            )
        with self.stream:
            prepared = cuda_epoch.Epoch.of(plan, self.steps, parameters, X, y, sample_weight, self.capture)
            return prepared.run(order, learning_rates, epoch)

    def _all_finite(self, array: Array) -> bool:
        with self.stream:
            return bool(self.xp.isfinite(array).all())


@functools.cache
def _say_once_that_no_hardware_has_run_this() -> None:
    log.warning(
        "bpgpu: the GPU kernels are compiled for seven architectures and simulated in CI, but this version has not "
        "been run on hardware yet"
    )
