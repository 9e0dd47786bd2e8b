"""Backpropagation on an NVIDIA GPU through CuPy: cuBLAS or our own fused GEMM, and CUDA C++ kernels for the rest.

All work goes to the backend's own stream. `cuda_steps` says which kernels make a step of the contract; here they are
run one by one, as a loop of the user's own calls them, and `cuda_epoch` strings them together for a whole epoch.
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bpgpu.activations import Activation
from bpgpu.backends import cuda_epoch, cuda_probe
from bpgpu.backends.base import Backend
from bpgpu.backends.cuda_launch import Launch, Launcher, blocks
from bpgpu.backends.cuda_steps import RULES, Gemm, Steps, control_words, row_chunks, rule_kernel
from bpgpu.costs import Cost
from bpgpu.interop import on_gpu, same_kind
from bpgpu.optimizers import Optimizer
from bpgpu.plan import Batch, Data, Dropout, Plan

Array = Any
INT32 = np.dtype(np.int32)
MIB = 2**20
log = logging.getLogger("bpgpu")


class CupyBackend(Backend):
    """The production GPU backend.

    Parameters
    ----------
    gemm : {"auto", "cublas", "fused"}
        Which matrix product: cuBLAS, our own with bias, sigma and sigma' inside it, or by the size of the product.
    allow_tf32 : bool
        Let cuBLAS round the factors of float32 products to TF32 (10 bits of mantissa) for speed, on devices that can.
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

    def __init__(self, *, gemm: Gemm = "auto", allow_tf32: bool = False, graph: bool = False) -> None:
        if graph and gemm == "cublas":
            raise ValueError("graph=True needs the fused GEMM, for CuPy cannot capture cuBLAS; drop gemm='cublas'")
        self.xp = cuda_probe.probe()
        self.device = cuda_probe.device_name(self.xp)
        # A blocking stream: whatever a user runs on CuPy's default stream comes after our work and before the next.
        self.stream = self.xp.cuda.Stream()
        self.control = self.asarray(control_words(), INT32)
        runtime = self.xp.cuda.runtime
        allow_tf32 = allow_tf32 and runtime.getDeviceProperties(runtime.getDevice())["major"] >= 8
        self.steps = Steps(self.xp, Launcher(self.xp), "fused" if graph else gemm, allow_tf32)
        # Not blocking, or whatever runs on the default stream during a capture would break it.
        self.capture = self.xp.cuda.Stream(non_blocking=True) if graph else None
        self._foreign = False
        _say_once_that_no_hardware_has_run_this()

    # Memory

    def asarray(self, array: Any, dtype: np.dtype[Any]) -> Array:
        with self.stream:
            if on_gpu(array):
                return self.xp.ascontiguousarray(self.adopt("array", array), dtype=dtype)
            return self.xp.asarray(np.ascontiguousarray(array, dtype=dtype))

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

    def workspace_nbytes(self, plan: Plan) -> int:
        return cuda_epoch.workspace_nbytes(plan)

    def place(self, data: Data, plan: Plan) -> Data:
        if not isinstance(data.X, np.ndarray):
            return self._on_device(data)
        free, around = self.free_memory(), cuda_epoch.epoch_nbytes(plan, len(data))
        assert free is not None
        if data.nbytes + around <= free:
            return self._on_device(data)
        staged = cuda_epoch.staging_nbytes(plan, data) + around
        what = f"the data take {data.nbytes / MIB:.1f} MiB, of which {self.device} has {free / MIB:.1f} free"
        if staged > free:
            raise MemoryError(
                f"{what}, and to copy them batch by batch still takes {staged / MIB:.1f} MiB; take a smaller batch_size"
            )
        log.info("%s: they stay on the host, and batches are copied while the ones before are worked on", what)
        y, weight = (None if array is None else self.to_numpy(array) for array in (data.y, data.weight))
        return Data(data.X, y, weight)

    def _on_device(self, data: Data) -> Data:
        arrays = (data.X, data.y, data.weight)
        return Data(*(None if array is None else self.asarray(array, array.dtype) for array in arrays))

    def adopt(self, name: str, value: Any) -> Any:
        if not on_gpu(value) or isinstance(value, self.xp.ndarray):
            return value
        self._foreign = True
        with self.stream:  # what the array's library has under way comes before what this stream does next
            return self.xp.from_dlpack(value) if hasattr(value, "__dlpack__") else self.xp.asarray(value)

    def hand_back(self, array: Array, like: Any) -> Any:
        return same_kind(array if on_gpu(like) else self.to_numpy(array), like)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        caller = self.xp.cuda.get_current_stream()
        if caller == self.stream:
            yield
            return
        self.stream.wait_event(caller.record())
        try:
            with self.stream:
                yield
        finally:
            caller.wait_event(self.stream.record())
            if self._foreign:  # another library may use its memory again as soon as this returns
                self._foreign = False
                self.stream.synchronize()

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
        sums = []
        if out_b is not None:
            partial_sums = self.empty((row_chunks(len(delta)) * delta.shape[1],), delta.dtype)
            sums = self.steps.column_sums([(delta, out_b)], partial_sums)
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
            norms = self.empty((2 * blocks(gradients.size),), dtype)
            norm = self.steps.clip(gradients, parameters, None, 0, 0.0, rule.clip_norm, norms=norms, out=clip)
        update = self.steps.update(
            rule, parameters, gradients, state, None, n_weights, 0.0, clip, schedule, None, self._at_step(0)
        )
        self._run([*norm, *update])

    # Whole steps

    def load_batch(self, batch: Batch, data: Data, rows: np.ndarray[Any, Any] | slice) -> float:
        order = None
        if isinstance(data.X, np.ndarray):
            data = self._from_host(batch, data.rows(rows))
        elif isinstance(rows, slice):
            data = self._on_device(data.rows(rows))
        else:
            order = self.asarray(rows, INT32)
        total = float(len(batch.scale))
        if data.weight is not None:
            weight = self.to_numpy(data.weight if order is None else data.weight[order])
            total = float(weight.sum(dtype=np.float64))
        schedule = self.asarray(np.array([0, 0, 0, 1 / total if total else 0]), data.X.dtype)
        unused = self.empty((len(batch.scale),), data.X.dtype)
        self._run([self.steps.gather(batch, unused, data, order, schedule, 0, self.control)])
        return total

    def _from_host(self, batch: Batch, data: Data) -> Data:
        """Copy the rows of a batch to where they are wanted; only labels and weights take room besides."""
        X, y = batch.a[0], batch.y
        X.set(np.ascontiguousarray(data.X), stream=self.stream)
        if data.y.ndim == 2:
            y.set(np.ascontiguousarray(self.to_numpy(data.y)), stream=self.stream)
        else:
            y = self.asarray(data.y, INT32)
        return Data(X, y, None if data.weight is None else self.asarray(data.weight, X.dtype))

    def penalty(self, weights: Array, decay: float) -> float:
        if not decay:
            return 0.0
        with self.stream:
            return decay / 2 * float((weights * weights).sum())

    def run_epoch(
        self,
        plan: Plan,
        data: Data,
        order: np.ndarray[Any, Any] | None,
        *,
        parameters: Array,
        learning_rates: list[float],
        epoch: int,
    ) -> float:
        if type(plan.rule) not in RULES:
            return super().run_epoch(
                plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch
            )
        with self.stream:
            prepared = cuda_epoch.Epoch.of(plan, self.steps, parameters, data, self.capture)
            return prepared.run(order, learning_rates, epoch)

    def all_finite(self, array: Array) -> bool:
        with self.stream:
            return bool(self.xp.isfinite(array).all())


@functools.cache
def _say_once_that_no_hardware_has_run_this() -> None:
    log.warning(
        "bpgpu: the GPU kernels are compiled for seven architectures and simulated in CI, but this version has not "
        "been run on hardware yet"
    )
