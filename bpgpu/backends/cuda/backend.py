"""What the GPU backends share: the steps of the contract and whole epochs, as launches of kernels.

The kernels exist in two languages, CUDA C++ and Numba-CUDA, under the same names with the same arguments. A backend
brings its library's memory (`device.Memory`) and launcher; `steps` says which kernels make a step of the
contract. Here they are run one by one, as a loop of the user's own calls them, and `epoch` strings them together
for a whole epoch. All work goes to the backend's own stream.
"""

import functools
import logging
from typing import Any

import numpy as np

from bpgpu.backends import contract
from bpgpu.backends.base import Backend
from bpgpu.backends.cuda import epoch as cuda_epoch
from bpgpu.backends.cuda.device import Device, Memory
from bpgpu.backends.cuda.launch import Launch, blocks
from bpgpu.backends.cuda.steps import Steps, control_words, row_chunks
from bpgpu.backends.data import Batch, Data, Dropout
from bpgpu.backends.plan import Plan
from bpgpu.interop import dense, is_sparse, on_host
from bpgpu.model.activations import Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import Optimizer

Array = Any
INT32 = np.dtype(np.int32)
MIB = 2**20
log = logging.getLogger("bpgpu")


class CudaBackend(Device, Backend):
    """A backend on an NVIDIA GPU."""

    takes_sparse = False

    def _start(self, memory: Memory, steps: Steps) -> None:
        """Take the device into use."""
        self.memory, self.steps = memory, steps
        self._control = self.asarray(control_words(), INT32)
        _say_once_that_no_hardware_has_run_this()

    def _run(self, launches: list[Launch]) -> None:
        with self.memory.current():
            for launch in launches:
                launch()

    def _at_step(self, step: int, epoch: int = 0) -> Array:
        """Return fresh control words for a single call, set to a step and epoch; dropout reads them from there."""
        self.memory.upload(self._control, control_words(step, epoch))
        return self._control

    # Memory

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self.memory.empty(shape, dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return array if on_host(array) else self.memory.download(array)

    def synchronize(self) -> None:
        self.memory.stream.synchronize()

    def workspace_nbytes(self, plan: Plan) -> int:
        return cuda_epoch.workspace_nbytes(plan)

    def prepare(self, plan: Plan, data: Data, parameters: Array) -> None:
        if plan.compiled is not None:
            with self.memory.current():
                cuda_epoch.Epoch.of(plan, self, parameters, contract.samples(plan, data))

    def place(self, data: Data, plan: Plan) -> Data:
        data = contract.samples(plan, data)
        if not on_host(data.X):
            return self._on_device(data)
        if plan.rule is None:  # a forward pass: the labels and weights of a batch, and the squares of the weights
            net = plan.architecture
            around = staged = 64 * plan.batch_size + net.dtype.itemsize * net.n_weights
        else:
            around = cuda_epoch.workspace_nbytes(plan) + cuda_epoch.epoch_nbytes(plan, len(data))
            staged = cuda_epoch.staging_nbytes(plan, data) + around
        free = self.free_memory()
        assert free is not None
        if is_sparse(data.X):
            what = f"of sparse data one batch at a time is made dense for {self.device}"
        elif data.nbytes + around <= free:
            return self._on_device(data)
        else:
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
        self._run(self.steps.forward(a_prev, W, b, activation, self._control, a=out, z=out_z))

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
            z, None, y, scale, activation, cost, self._control, a=out_a, delta=out_delta, row_cost=out_cost
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
        control = self._control if dropout is None else self._at_step(dropout.step, dropout.epoch)
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
        launches = self.steps.weight_gradient(a_prev, delta, W, mask, decay, out=out_W, out_b=out_b)
        if out_b is not None and not self.steps.fused(len(delta), out_W):
            partial_sums = self.empty((row_chunks(len(delta)) * delta.shape[1],), delta.dtype)
            with self.memory.current():  # which gets a table of addresses
                launches += self.steps.column_sums([(delta, out_b)], partial_sums)
        self._run(launches)

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
        compiled = rule.compiled if isinstance(rule, Optimizer) else None
        if compiled is None:  # a rule that has `apply` runs as it is written, in the library's operations
            with self.memory.current():
                super().update(
                    rule, parameters, gradients, state, t=t, learning_rate=learning_rate, n_weights=n_weights
                )
            return
        contract.update(rule, parameters, gradients, state, t, learning_rate, n_weights)
        dtype = parameters.dtype
        schedule, inverse_weight = compiled.schedule([learning_rate], t, dtype), np.ones(1, dtype)
        clip, norm = None, list[Launch]()
        limit = rule.norm_limit(dtype)
        if limit is not None:
            clip = self.empty((1,), dtype)
            norms = self.empty((2 * blocks(gradients.size),), dtype)
            norm = self.steps.clip(gradients, parameters, None, 0, 0.0, limit, norms=norms, out=clip)
        update = self.steps.update(
            compiled,
            parameters,
            gradients,
            state,
            None,
            n_weights,
            0.0,
            clip,
            self.asarray(schedule, dtype),
            self.asarray(inverse_weight, dtype),
            None,
            self._at_step(0),
        )
        self._run([*norm, *update])

    # Whole steps

    def load_batch(self, batch: Batch, data: Data, rows: np.ndarray[Any, Any] | slice) -> float:
        contract.batch(batch, data, rows)
        order = None
        if on_host(data.X):
            data = self._from_host(batch, data.rows(rows))
        elif isinstance(rows, slice):
            data = self._on_device(data.rows(rows))
        else:
            order = self.asarray(rows, INT32)
        total = float(len(batch.scale))
        if data.weight is not None:
            weight = self.to_numpy(data.weight)
            total = float((weight if order is None else weight[rows]).sum(dtype=np.float64))
        batch.weight = total
        inverse_weight = self.asarray(cuda_epoch.inverse(np.array([total])), data.X.dtype)
        unused = self.empty((len(batch.scale),), data.X.dtype)
        self._run([self.steps.gather(batch, unused, data, order, inverse_weight, 0, self._at_step(0))])
        return total

    def _from_host(self, batch: Batch, data: Data) -> Data:
        """Copy the rows of a batch to where they are wanted; only labels and weights take room besides."""
        X, y = batch.a[0], batch.y
        self.memory.upload(X, np.ascontiguousarray(dense(data.X)))
        if data.y.ndim == 2:
            self.memory.upload(y, np.ascontiguousarray(self.to_numpy(data.y)))
        else:
            y = self.asarray(data.y, INT32)
        return Data(X, y, None if data.weight is None else self.asarray(data.weight, X.dtype))

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
        if plan.compiled is None or (plan.architecture.by_weight and data.weight is not None):
            return super().run_epoch(
                plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch
            )
        data = contract.epoch(plan, data, order, parameters, learning_rates, epoch)
        with self.memory.current():
            return cuda_epoch.Epoch.of(plan, self, parameters, data).run(order, learning_rates, epoch)


@functools.cache
def _say_once_that_no_hardware_has_run_this() -> None:
    log.warning(
        "bpgpu: the GPU kernels are compiled for seven architectures and simulated in CI, but this version has not "
        "been run on hardware yet"
    )
