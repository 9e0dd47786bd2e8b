"""A whole epoch on the device: one upload, the steps without synchronisation, allocation or transfer, one download."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpgpu.activations import IDENTITY
from bpgpu.backends.cuda_launch import MAX_BLOCKS, Launch
from bpgpu.backends.cuda_steps import (
    GRADIENT_FAULT,
    LATCH,
    STATE_FAULT,
    STEP,
    Steps,
    at_step,
    control_words,
    rule_kernel,
)
from bpgpu.backends.faults import first_fault, first_layer
from bpgpu.errors import NonFiniteError
from bpgpu.plan import Batch, Dropout, Plan

Array = Any
ALIGN = 256  # bytes: each part of a buffer starts where vector loads may


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


class Epoch:
    """What a plan needs on the device besides its own workspace, prepared in its first epoch and kept with it.

    One buffer holds all that goes up before an epoch: control words, the accumulators (zero), the schedule and the
    order of the samples. Its first bytes, control words and the epoch's cost, are all that comes down after it.

    With `capture`, a non-blocking stream that nothing else uses, the step of a full batch is captured there and
    replayed as a graph.
    """

    @classmethod
    def of(
        cls,
        plan: Plan,
        steps: Steps,
        parameters: Array,
        X: Array,
        y: Array,
        sample_weight: Array | None,
        capture: Any = None,
    ) -> "Epoch":
        """Return what was prepared for this plan and these arrays, or prepare it."""
        arrays = (parameters, X, y, sample_weight)
        if plan.prepared is None or any(a is not b for a, b in zip(plan.prepared.arrays, arrays, strict=True)):
            plan.prepared = cls(plan, steps, arrays, capture)
        prepared: Epoch = plan.prepared
        return prepared

    def __init__(
        self, plan: Plan, steps: Steps, arrays: tuple[Array, Array, Array, Array | None], capture: Any = None
    ) -> None:
        self.plan, self.steps, self.arrays, self.capture = plan, steps, arrays, capture
        parameters, X, _, sample_weight = arrays
        cupy, dtype = steps.cupy, parameters.dtype
        n, B = len(X), plan.batch_size
        self.n_steps = -(-n // B)
        self.host_weight = None if sample_weight is None else cupy.asnumpy(sample_weight).astype(np.float64)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "control": ((8,), np.int32),
            "result": ((1,), dtype),
            "total": ((B,), dtype),
            "slots": ((MAX_BLOCKS,), dtype),
            "schedule": ((self.n_steps, 4), dtype),
            "order": ((n,), np.int32),
        }
        self.device, self.host = {}, {}
        sizes = {
            name: -(-int(np.prod(shape)) * np.dtype(t).itemsize // ALIGN) * ALIGN for name, (shape, t) in shapes.items()
        }
        self.upload = cupy.empty((sum(sizes.values()),), dtype=np.uint8)
        self.staging = _pinned(cupy, self.upload.nbytes)
        self.staging[...] = 0
        start = 0
        for name, (shape, kind) in shapes.items():
            stop = start + int(np.prod(shape)) * np.dtype(kind).itemsize
            self.device[name] = self.upload[start:stop].view(kind).reshape(shape)
            self.host[name] = self.staging[start:stop].view(kind).reshape(shape)
            start += sizes[name]
        self.down = 2 * ALIGN  # control words and result
        self.weight = cupy.empty((B,), dtype=dtype)
        self.mask = self._flat_mask()
        self._programs: dict[tuple[int, bool], Program] = {}

    def _flat_mask(self) -> Array | None:
        masks, net = self.plan.masks, self.plan.architecture
        if all(mask is None for mask in masks):
            return None
        flat = self.steps.cupy.empty((net.n_weights,), dtype=net.dtype)
        start = 0
        for mask, m, n in zip(masks, net.sizes[:-1], net.sizes[1:], strict=True):
            flat[start : start + m * n] = 1 if mask is None else mask.reshape(-1)
            start += m * n
        return flat

    def run(self, order: np.ndarray[Any, Any] | None, learning_rates: list[float], epoch: int) -> float:
        """Train one epoch; see `Backend.run_epoch`."""
        plan = self.plan
        assert plan.rule is not None
        n, B = len(self.arrays[1]), plan.batch_size
        rows = np.arange(n) if order is None else order
        sizes = np.minimum(B, n - B * np.arange(self.n_steps))
        weights = sizes.astype(np.float64)
        if self.host_weight is not None:
            weights = np.add.reduceat(self.host_weight[rows], B * np.arange(self.n_steps))
        host = self.host
        host["control"][...] = control_words(epoch=epoch)
        host["schedule"][...] = rule_kernel(plan.rule).schedule(np.asarray(learning_rates), plan.steps + 1, weights)
        if order is not None:
            host["order"][...] = order
        self.upload.set(self.staging)
        for step in range(self.n_steps):
            self._program(int(sizes[step]), order is not None).run(step)
        self.steps.total(self.device["total"], self.device["slots"], self.device["result"])()
        down = self.upload[: self.down].get()
        control, result = down[:32].view(np.int32), down[ALIGN : ALIGN + 8].view(self.device["result"].dtype)[0]
        self._raise_fault(control, sizes, epoch)
        plan.steps += self.n_steps
        return float(result) / float(weights.sum())

    def _program(self, rows: int, ordered: bool) -> Program:
        """Return the step with this many rows, the same in every epoch."""
        key = (rows, ordered)
        if key not in self._programs:
            program = self._bind(rows, ordered)
            full = rows == self.plan.batch_size
            self._programs[key] = self._captured(program) if full and self.capture is not None else program
        return self._programs[key]

    def _captured(self, program: Program) -> Program:
        """Return the program as a graph, of a step that the device counts."""
        advance = self.steps.advance(self.device["control"], self.plan.architecture.dtype)
        with self.capture as stream:
            stream.begin_capture()
            try:
                for launch in (at_step(program.gather, -1), *program.launches, advance):
                    launch()
            finally:
                graph = stream.end_capture()
        return replace(program, graph=graph)

    def _bind(self, rows: int, ordered: bool) -> Program:
        plan, steps, device = self.plan, self.steps, self.device
        net, rule = plan.architecture, plan.rule
        assert rule is not None
        parameters, X, y, sample_weight = self.arrays
        control, schedule = device["control"], device["schedule"]
        batch = plan.batch(rows)
        order = device["order"] if ordered else None
        gather = steps.gather(batch, self.weight, X, y, sample_weight, order, schedule, plan.batch_size, control)
        launches = self._forward(batch)
        launches += self._backward(batch)
        decay = net.l2 / rows
        clip = None
        if rule.clip_norm is not None:
            clip = steps.cupy.empty((1,), dtype=net.dtype)
            arguments = (plan.gradients, parameters, self.mask, net.n_weights, decay, rule.clip_norm)
            launches += steps.clip(*arguments, out=clip)
        penalty = (decay / 2, device["slots"]) if net.l2 else None
        launches += steps.update(
            rule,
            parameters,
            plan.gradients,
            plan.state,
            self.mask,
            net.n_weights,
            decay,
            clip,
            schedule,
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
        weights, biases = net.views(self.arrays[0])
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
            weight=self.weight,
            total=device["total"],
        )

    def _backward(self, batch: Batch) -> list[Launch]:
        plan, steps = self.plan, self.steps
        net, control = plan.architecture, self.device["control"]
        L = len(net.activations)
        W, sigma = [None, *net.views(self.arrays[0])[0]], [IDENTITY, *net.activations]
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
        return launches + (steps.column_sums(left) if left else [])

    def _raise_fault(self, control: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any], epoch: int) -> None:
        """Raise what the kernels found; gated by the latch, they have repeated the faulty step and changed nothing."""
        if not control[LATCH]:
            return
        plan, step = self.plan, int(control[STEP])
        net = plan.architecture
        index = {2: control[GRADIENT_FAULT], 3: control[STATE_FAULT]}.get(int(control[LATCH]))
        if index is None:
            finite = self.steps.cupy.isfinite
            layer, quantity = first_fault(plan, plan.batch(int(sizes[step])), lambda array: bool(finite(array).all()))
        else:
            flat = np.zeros(net.n_parameters)
            flat[index] = np.nan
            layer = first_layer(net, flat, lambda part: bool(np.isfinite(part).all()))
            quantity = "gradient" if control[LATCH] == 2 else "weight"
        raise NonFiniteError(epoch + 1, step + 1, layer, quantity)


def _pinned(cupy: Any, nbytes: int) -> np.ndarray[Any, Any]:
    """Return page-locked host memory, from which a copy does not make the host wait."""
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), dtype=np.uint8, count=nbytes)
