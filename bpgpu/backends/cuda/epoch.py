"""A whole epoch on the device: one upload, the steps without synchronisation, allocation or transfer, one download."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpgpu.backends.cuda.device import Device
from bpgpu.backends.cuda.launch import MAX_BLOCKS, Launch, blocks
from bpgpu.backends.cuda.staging import ALIGN, NUMBER_OF_SLOTS, Mirror, Staging, batch_shapes, nbytes_of
from bpgpu.backends.cuda.steps import GRADIENT_FAULT, LATCH, STATE_FAULT, STEP, at_step, control_words, row_chunks
from bpgpu.backends.data import Batch, Data, Dropout
from bpgpu.backends.non_finite import first_fault, first_layer
from bpgpu.backends.plan import Plan
from bpgpu.errors import NonFiniteError
from bpgpu.interop import on_host
from bpgpu.model.activations import IDENTITY

Array = Any


@dataclass(frozen=True)
class Program:
    """A step: its launches, or a graph of them. The graph itself would not keep alive the arrays that they use."""

    gather: Launch
    launches: list[Launch]
    graph: Any = None

    def run(self, step: int) -> None:
        """Run it; a graph counts its steps on the device, from 0."""
        if self.graph is not None:
            self.graph.launch()
            return
        at_step(self.gather, step)()
        for launch in self.launches:
            launch()


def _upload_shapes(plan: Plan, n: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return what goes up before an epoch of n samples, what comes down after it first."""
    dtype, B = plan.architecture.dtype, plan.batch_size
    rule = plan.compiled
    return {
        "control": ((8,), np.int32),
        "result": ((1,), dtype),
        "total": ((2 * B,), dtype),  # pairs
        "slots": ((2 * MAX_BLOCKS,), dtype),
        "schedule": ((-(-n // B), len(rule.numbers) if rule else 0), dtype),
        "inverse_weight": ((-(-n // B),), dtype),
        "order": ((n,), np.int32),
    }


def _scratch_shapes(plan: Plan) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return what the kernels need besides the plan's own workspace."""
    net, B = plan.architecture, plan.batch_size
    clips = plan.rule is not None and plan.rule.clip_norm is not None
    shapes = {
        "weight": (B,),
        "clip": (1,) if clips else None,
        "norms": (2 * blocks(net.n_parameters),) if clips else None,
        "column_sums": (row_chunks(B) * sum(net.sizes[1:]),) if net.bias else None,
        "mask": (net.n_weights,) if any(mask is not None for mask in plan.masks) else None,
    }
    return {name: (shape, net.dtype) for name, shape in shapes.items() if shape}


def workspace_nbytes(plan: Plan) -> int:
    """Return the bytes on the device that `Epoch` needs for any number of samples."""
    return nbytes_of(_scratch_shapes(plan)) + nbytes_of(_upload_shapes(plan, 0))


def epoch_nbytes(plan: Plan, n: int) -> int:
    """Return the bytes on the device that it needs besides for n samples."""
    return nbytes_of(_upload_shapes(plan, n)) - nbytes_of(_upload_shapes(plan, 0))


def staging_nbytes(plan: Plan, data: Data) -> int:
    """Return the bytes on the device that it needs besides for batches of data in host memory."""
    return NUMBER_OF_SLOTS * nbytes_of(batch_shapes(data, plan.batch_size))


def inverse(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return 1 / weight of each batch, 0 where it has none."""
    result: np.ndarray[Any, Any] = np.divide(1, weights, out=np.zeros(weights.shape), where=weights > 0)
    return result


class Epoch:
    """What a plan needs on the device besides its own workspace, prepared in its first epoch and kept with it.

    One buffer holds all that goes up before an epoch: control words, the accumulators (zero), the schedule, the weights
    of the batches and the order of the samples. Its first bytes, control words and the epoch's cost, are all that comes
    down after it. Data in host memory go up batch by batch besides.

    If the device has a stream to capture on, which nothing else uses, the step of a full batch is captured there and
    replayed as a graph.
    """

    @classmethod
    def of(cls, plan: Plan, gpu: Device, parameters: Array, data: Data) -> "Epoch":
        """Return what was prepared for this plan and these arrays, or prepare it."""
        prepared: Epoch | None = plan.prepared
        if prepared is None or prepared.parameters is not parameters or prepared.data is not data:
            plan.prepared = prepared = cls(plan, gpu, parameters, data)
        return prepared

    def __init__(self, plan: Plan, gpu: Device, parameters: Array, data: Data) -> None:
        assert plan.compiled is not None
        self.rule = plan.compiled
        self.plan, self.gpu, self.parameters, self.data = plan, gpu, parameters, data
        self.steps, memory, n, B = gpu.steps, gpu.memory, len(data), plan.batch_size
        self.n_steps = -(-n // B)
        self.staging = Staging(memory, data, B) if on_host(data.X) else None
        self.host_weight = None if data.weight is None else gpu.to_numpy(data.weight).astype(np.float64)
        self.mirror = Mirror(memory, _upload_shapes(plan, n))
        self.device = self.mirror.device
        self.down = 2 * ALIGN  # control words and result
        self.scratch: dict[str, Array | None] = dict.fromkeys(("weight", "clip", "norms", "column_sums", "mask"))
        for name, (shape, dtype) in _scratch_shapes(plan).items():
            self.scratch[name] = memory.empty(shape, dtype)
        self._fill_mask()
        self._programs: dict[tuple[int, bool, int], Program] = {}

    def _fill_mask(self) -> None:
        flat, start = self.scratch["mask"], 0
        if flat is None:
            return
        sizes = self.plan.architecture.sizes
        for mask, m, n in zip(self.plan.masks, sizes[:-1], sizes[1:], strict=True):
            self.gpu.assign(flat[start : start + m * n], 1 if mask is None else mask.reshape(-1))
            start += m * n

    def run(self, order: np.ndarray[Any, Any] | None, learning_rates: list[float], epoch: int) -> float:
        """Train one epoch; see `Backend.run_epoch`."""
        plan = self.plan
        n, B = len(self.data), plan.batch_size
        rows = np.arange(n) if order is None else order
        sizes = np.minimum(B, n - B * np.arange(self.n_steps))
        weights = sizes.astype(np.float64)
        if self.host_weight is not None:
            weights = np.add.reduceat(self.host_weight[rows], B * np.arange(self.n_steps))
        host = self.mirror.host
        host["control"][...] = control_words(epoch=epoch)
        host["schedule"][...] = self.rule.schedule(learning_rates, plan.steps + 1, plan.architecture.dtype)
        host["inverse_weight"][...] = inverse(weights)
        if order is not None:
            host["order"][...] = order
        self.mirror.upload()
        try:
            for step in range(self.n_steps):
                self._run_step(step, rows[step * B : (step + 1) * B], order is not None)
        except BaseException:  # Ctrl-C too: no copy may be under way to memory that is given back
            if self.staging is not None:
                self.staging.copies.synchronize()
            raise
        self.steps.total(self.device["total"], self.device["slots"], self.device["result"])()
        down = self.gpu.memory.download(self.mirror.buffer[: self.down])
        control, result = down[:32].view(np.int32), down[ALIGN : ALIGN + 8].view(self.device["result"].dtype)[0]
        self._raise_fault(control, sizes, epoch)
        plan.steps += self.n_steps
        return float(result) / float(weights.sum())

    def _run_step(self, step: int, rows: np.ndarray[Any, Any], ordered: bool) -> None:
        if self.staging is None:
            self._program(len(rows), ordered).run(step)
            return
        place = step % NUMBER_OF_SLOTS
        slot = self.staging.slots[place]
        self.staging.bring(slot, rows)
        self._program(len(rows), False, place).run(step)
        self.staging.release(slot)

    def _program(self, rows: int, ordered: bool, slot: int = 0) -> Program:
        """Return the step with this many rows, the same in every epoch."""
        key = (rows, ordered, slot)
        if key not in self._programs:
            program = self._bind(rows, ordered, slot)
            full = rows == self.plan.batch_size
            self._programs[key] = self._captured(program) if full and self.gpu.capture is not None else program
        return self._programs[key]

    def _captured(self, program: Program) -> Program:
        """Return the program as a graph, of a step that the device counts."""
        advance = self.steps.advance(self.device["control"], self.plan.architecture.dtype)
        with self.gpu.capture as stream:
            stream.begin_capture()
            try:
                for launch in (at_step(program.gather, -1), *program.launches, advance):
                    launch()
            finally:
                graph = stream.end_capture()
        return replace(program, graph=graph)

    def _bind(self, rows: int, ordered: bool, slot: int) -> Program:
        plan, steps, device = self.plan, self.steps, self.device
        net, rule = plan.architecture, plan.rule
        assert rule is not None
        parameters, scratch = self.parameters, self.scratch
        control, inverse_weight = device["control"], device["inverse_weight"]
        batch = plan.batch(rows)
        order = device["order"] if ordered else None
        # Of resident data step s takes the rows from s B on, of a slot those from 0 on.
        data, stride = (self.data, plan.batch_size) if self.staging is None else (self.staging.slots[slot].data, 0)
        gather = steps.gather(batch, scratch["weight"], data, order, inverse_weight, stride, control)
        launches = self._forward(batch)
        launches += self._backward(batch)
        decay = net.l2 / rows
        clip = None
        limit = rule.norm_limit(net.dtype)
        if limit is not None:
            clip = scratch["clip"]
            arguments = (plan.gradients, parameters, scratch["mask"], net.n_weights, decay, limit)
            launches += steps.clip(*arguments, norms=scratch["norms"], out=clip)
        penalty = (decay / 2, device["slots"]) if net.l2 else None
        launches += steps.update(
            self.rule,
            parameters,
            plan.gradients,
            plan.state,
            scratch["mask"],
            net.n_weights,
            decay,
            clip,
            device["schedule"],
            inverse_weight,
            penalty,
            control,
        )
        return Program(gather, launches)

    def _dropout(self, layer: int) -> Dropout | None:
        net = self.plan.architecture
        return Dropout(net.dropout, net.seed, 0, 0, layer) if net.dropout else None  # epoch, step: in the control words

    def _forward(self, batch: Batch) -> list[Launch]:
        net, steps, device = self.plan.architecture, self.steps, self.device
        control, L = device["control"], len(net.activations)
        weights, biases = net.views(self.parameters)
        W, b, sigma = [None, *weights], [None, *biases], [IDENTITY, *net.activations]
        z, a, h = batch.z, batch.a, batch.h
        launches: list[Launch] = []
        for l in range(1, L):
            dropout = self._dropout(l)
            dropped = h[l] if dropout else None
            launches += steps.forward(
                h[l - 1],
                W[l],
                b[l],
                sigma[l],
                control,
                a=a[l],
                z=z[l],
                h=dropped,
                dropout=dropout,
            )
        launches += steps.weighted_input(h[L - 1], W[L], b[L], control, z=z[L])
        bias = steps.bias_left(h[L - 1], W[L], b[L])
        return launches + steps.output(
            z[L],
            bias,
            batch.y,
            batch.scale,
            net.activations[-1],
            net.cost,
            control,
            a=a[L],
            delta=batch.delta[L],
            row_cost=batch.cost,
            weight=self.scratch["weight"],
            total=device["total"],
        )

    def _backward(self, batch: Batch) -> list[Launch]:
        plan, steps = self.plan, self.steps
        net, control = plan.architecture, self.device["control"]
        L = len(net.activations)
        W, sigma = [None, *net.views(self.parameters)[0]], [IDENTITY, *net.activations]
        dW, db = [None, *plan.dW], [None, *plan.db]
        a, h, z, delta = batch.a, batch.h, batch.z, batch.delta
        launches: list[Launch] = []
        for l in range(L - 1, 0, -1):
            dropout = self._dropout(l)
            launches += steps.hidden(delta[l + 1], W[l + 1], a[l], z[l], sigma[l], dropout, control, out=delta[l])
        left = []
        for l in range(1, L + 1):  # penalty and mask are the update's
            launches += steps.weight_gradient(h[l - 1], delta[l], None, None, 0.0, out=dW[l], out_b=db[l])
            if net.bias and not steps.fused(len(batch.y), dW[l]):
                left.append((delta[l], db[l]))
        return launches + (steps.column_sums(left, self.scratch["column_sums"]) if left else [])

    def _raise_fault(self, control: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], epoch: int) -> None:
        """Raise what the kernels found; gated by the latch, they have repeated the faulty step and changed nothing."""
        if not control[LATCH]:
            return
        plan, step = self.plan, int(control[STEP])
        net = plan.architecture
        index = {2: control[GRADIENT_FAULT], 3: control[STATE_FAULT]}.get(int(control[LATCH]))
        if index is None:
            layer, quantity = first_fault(plan, plan.batch(int(sizes[step])), self.gpu.all_finite)
        else:
            flat = np.zeros(net.n_parameters)
            flat[index] = np.nan
            layer = first_layer(net, flat, lambda part: bool(np.isfinite(part).all()))
            quantity = "gradient" if control[LATCH] == 2 else "weight"
        raise NonFiniteError(epoch + 1, step + 1, layer, quantity)
