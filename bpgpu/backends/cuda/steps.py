"""Which kernels make each step of backpropagation on the device.

Every method returns launches with their arguments bound and checked, so that one step can be run by itself and a whole
epoch can repeat them. `control` is the device's int32 words by which kernels and host talk (`control_words`).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from bpgpu.backends import contract
from bpgpu.backends.addresses import device_address
from bpgpu.backends.cuda.launch import MAX_BLOCKS, Binds, Launch, blocks
from bpgpu.backends.data import Batch, Data, Dropout
from bpgpu.backends.sums import MANY_TERMS, blocks_of, in_blocks
from bpgpu.kernels.philox import threshold
from bpgpu.kernels.rules import MAX_STATES, Rule
from bpgpu.model.activations import IDENTITY, Activation
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, Cost, output_formulas

Array = Any
Gemm = Literal["auto", "cublas", "fused"]

# Products of at most this many multiply-adds take the fused GEMM. A guess: no hardware has timed it.
FUSED_PRODUCTS = 2**21
TILE = 64  # rows and columns of the fused GEMM's tiles
WARP = 32
COLUMNS = 128  # of a block of the column sums
INT_MAX = 2**31 - 1
LATCH, STEP, GRADIENT_FAULT, STATE_FAULT = 0, 1, 2, 3
NO_DROPOUT = (0, 1.0, 0, 0, 0)


def control_words(step: int = 0, epoch: int = 0) -> np.ndarray[Any, Any]:
    """Return fresh control words (``common.cuh``): latch open, the step, no faults found, the epoch.

    A fault is the smallest flat index; step and epoch are 32 bits without a sign in int32.
    """
    return np.array([0, step, INT_MAX, INT_MAX, 0, epoch, 0, 0], dtype=np.uint32).view(np.int32)


# The file of the fused GEMM needs both formulas, whichever kernel of it is launched.
GEMM_FORMULAS = {"sigma": IDENTITY.value, "sigma_prime": IDENTITY.derivative}


def row_chunks(rows: int) -> int:
    """Return in how many chunks of rows the column sums begin: of the rows' square root, and of a warp's at least.

    So neither the chunks nor their number is a long sum.
    """
    return max(1, min(math.isqrt(rows), rows // WARP))


def _dropout_arguments(dropout: Dropout | None) -> tuple[Any, ...]:
    # Step and epoch are in the control words, so that a launch serves all of them.
    if dropout is None:
        return NO_DROPOUT
    key = (dropout.seed & 0xFFFFFFFF, dropout.seed >> 32)
    return (threshold(dropout.rate), 1 / (1 - dropout.rate), *key, dropout.layer)


class Steps:
    """The steps of backpropagation as launches.

    Parameters
    ----------
    launcher : Binds
    gemm : {"auto", "cublas", "fused"}
    cupy : module, optional
        For cuBLAS.
    allow_tf32 : bool
        In cuBLAS.
    """

    def __init__(self, launcher: Binds, gemm: Gemm, cupy: Any = None, allow_tf32: bool = False) -> None:
        self.launcher, self.gemm, self.cupy, self.allow_tf32 = launcher, gemm, cupy, allow_tf32

    def fused(self, rows: int, W: Array) -> bool:
        """Return whether the three products of a layer take the fused GEMM: the one place of that choice."""
        if self.gemm == "auto":
            return bool(rows * W.size <= FUSED_PRODUCTS)
        return self.gemm == "fused"

    def _fused_launch(
        self, name: str, result: Array, arguments: tuple[Any, ...], formulas: dict[str, str] | None = None
    ) -> Launch:
        grid = (max(1, -(-result.shape[1] // TILE)), max(1, -(-result.shape[0] // TILE)))
        return self.launcher.bind(name, result.dtype, grid, arguments, formulas=GEMM_FORMULAS | (formulas or {}))

    def _matmul(self, a: Array, b: Array, out: Array) -> Launch:
        """Return a cuBLAS product: no copy is made if a and b are C- or F-contiguous and out is C-contiguous."""
        product = partial(self.cupy.matmul, a, b, out=out)
        return product if a.dtype == np.float64 else partial(_in_precision, self.cupy, product, self.allow_tf32)

    def forward(
        self,
        a_prev: Array,
        W: Array,
        b: Array | None,
        activation: Activation,
        control: Array,
        *,
        a: Array,
        z: Array | None = None,
        h: Array | None = None,
        dropout: Dropout | None = None,
    ) -> list[Launch]:
        """``z = a_prev W + b``, ``a = sigma(z)``, and h, a after dropout."""
        contract.forward(a_prev, W, b, activation, a, z)
        if h is not None:
            contract.dropout(a, h)
        (rows, m), n, dtype = a_prev.shape, W.shape[1], W.dtype
        sigma = {"sigma": (IDENTITY if activation.rowwise else activation).value}
        drop = _dropout_arguments(dropout)
        if self.fused(len(a_prev), W):
            if not activation.rowwise:
                arguments = (a_prev, W, b, a, h, z, rows, m, n, *drop, control)
                return [self._fused_launch("gemm_forward", a, arguments, sigma)]
            arguments = (a_prev, W, b, a, None, None, rows, m, n, *NO_DROPOUT, control)
            product, b = self._fused_launch("gemm_forward", a, arguments, sigma), None
        else:
            product = self._matmul(a_prev, W, a)
        kernel, count = ("bias_softmax", rows * WARP) if activation.rowwise else ("bias_sigma", rows * n)
        arguments = (a, h, z, b, rows, n, *drop, control)
        return [product, self.launcher.bind(kernel, dtype, (blocks(count),), arguments, formulas=sigma)]

    def weighted_input(self, a_prev: Array, W: Array, b: Array | None, control: Array, *, z: Array) -> list[Launch]:
        """``z = a_prev W``, with b only if it comes for free; `output` takes the bias otherwise (`bias_left`)."""
        contract.forward(a_prev, W, b, IDENTITY, z)
        if self.fused(len(a_prev), W):
            return self.forward(a_prev, W, b, IDENTITY, control, a=z)
        return [self._matmul(a_prev, W, z)]

    def bias_left(self, a_prev: Array, W: Array, b: Array | None) -> Array | None:
        """Return the bias that `weighted_input` has left to `output`."""
        return None if self.fused(len(a_prev), W) else b

    def output(
        self,
        z: Array,
        b: Array | None,
        y: Array,
        scale: Array,
        activation: Activation,
        cost: Cost,
        control: Array,
        *,
        a: Array,
        delta: Array,
        row_cost: Array,
        weight: Array | None = None,
        total: Array | None = None,
    ) -> list[Launch]:
        """Activation, costs of the rows and delta of the output layer; `total` adds up the weighted costs."""
        contract.output_delta(z, y, scale, activation, cost, a, delta, row_cost, b, weight)
        rows, n = z.shape
        value, slope = output_formulas(activation, cost)
        if activation.rowwise:
            exact = cost == CROSS_ENTROPY or (cost == BINARY_CROSS_ENTROPY and n > 1)
            kernel = f"softmax_{cost.name}" if exact else "softmax_cost"
            formulas = {"cost_value": value, "cost_gradient": slope}
        else:
            kernel = "output_delta"
            formulas = {"sigma": activation.value, "cost_value": value, "cost_delta": slope}
        factor = 1 / n if cost.reduction == "mean" else 1.0
        arguments = (z, a, delta, row_cost, b, y, scale, weight, total, rows, n, factor, control)
        return [self.launcher.bind(kernel, z.dtype, (blocks(rows * WARP),), arguments, formulas=formulas)]

    def hidden(
        self,
        delta: Array,
        W: Array,
        a: Array,
        z: Array | None,
        activation: Activation,
        dropout: Dropout | None,
        control: Array,
        *,
        out: Array,
    ) -> list[Launch]:
        """``out = (delta W^T) ⊙ sigma'``, dropout in between."""
        contract.hidden_delta(delta, W, a, z, activation, out)
        (m, n), rows, dtype = W.shape, delta.shape[0], W.dtype
        drop = _dropout_arguments(dropout)
        prime = {"sigma_prime": IDENTITY.derivative if activation.rowwise else activation.derivative}
        if self.fused(rows, W):
            if not activation.rowwise:
                arguments = (delta, W, a, z, out, rows, m, n, *drop, control)
                return [self._fused_launch("gemm_hidden", out, arguments, prime)]
            product = self._fused_launch("gemm_hidden", out, (delta, W, a, None, out, rows, m, n, *NO_DROPOUT, control))
        else:
            product = self._matmul(delta, W.T, out)
        kernel, count = ("hidden_softmax", rows * WARP) if activation.rowwise else ("hidden_delta", rows * m)
        scale = self.launcher.bind(
            kernel, dtype, (blocks(count),), (out, a, z, rows, m, *drop, control), formulas=prime
        )
        return [product, scale]

    def dropout(self, x: Array, dropout: Dropout, control: Array, *, out: Array) -> list[Launch]:
        """``out = x / (1 - rate)`` where kept, else 0."""
        contract.dropout(x, out)
        rows, n = x.shape
        arguments = (out, x, rows, n, *_dropout_arguments(dropout), control)
        return [self.launcher.bind("dropout", x.dtype, (blocks(rows * n),), arguments)]

    def weight_gradient(
        self,
        a_prev: Array,
        delta: Array,
        W: Array | None,
        mask: Array | None,
        decay: float,
        *,
        out: Array,
        out_b: Array | None = None,
    ) -> list[Launch]:
        """``dW = (a_prev^T delta + decay W) ⊙ mask``; the fused GEMM also gives `out_b`, the column sums of delta."""
        contract.weight_gradient(a_prev, delta, W, mask, out, out_b)
        (rows, m), n = a_prev.shape, delta.shape[1]
        if self.fused(rows, out):
            arguments = (a_prev, delta, W, mask, out, out_b, rows, m, n, decay)
            return [self._fused_launch("gemm_gradient", out, arguments)]
        launches: list[Launch] = []
        if in_blocks(rows, out.size):
            block_sum = self.cupy.empty(out.shape, out.dtype)
            for i, block in enumerate(blocks_of(rows, MANY_TERMS // 2)):
                launches.append(self._matmul(a_prev[block].T, delta[block], block_sum if i else out))
                launches += [partial(out.__iadd__, block_sum)] if i else []
        else:
            launches.append(self._matmul(a_prev.T, delta, out))
        if decay and W is not None:
            launches.append(lambda: out.__iadd__(decay * W))
        if mask is not None:
            launches.append(lambda: out.__imul__(mask))
        return launches

    def column_sums(self, pairs: Sequence[tuple[Array, Array]], partial_sums: Array) -> list[Launch]:
        """Sum the columns of each array of the pairs into the vector beside it: all in two launches, in fixed order.

        `partial_sums` is room for `row_chunks` numbers a column.
        """
        rows, dtype = len(pairs[0][0]), pairs[0][0].dtype
        chunks = row_chunks(rows)
        widths = [delta.shape[1] for delta, _ in pairs]
        offsets = chunks * (np.cumsum(widths) - widths)
        addresses = [
            (device_address("delta", delta, (rows, n), dtype), device_address("out_b", out, (n,), dtype))
            for (delta, out), n in zip(pairs, widths, strict=True)
        ]
        table = self.cupy.asarray(np.column_stack([addresses, widths, offsets]).astype(np.int64))
        across = sum(-(-n // COLUMNS) for n in widths)
        first = (table, len(pairs), rows, chunks, partial_sums)
        second = (table, len(pairs), chunks, partial_sums)
        return [
            self.launcher.bind("column_sums_partial", dtype, (across, chunks), first, block=COLUMNS),
            self.launcher.bind("column_sums_final", dtype, (across,), second, block=COLUMNS),
        ]

    def clip(
        self,
        g: Array,
        p: Array,
        mask: Array | None,
        n_weights: int,
        decay: float,
        clip_norm: float,
        *,
        norms: Array,
        out: Array,
    ) -> list[Launch]:
        """Compute the factor that brings the norm of all gradients down to `clip_norm`, in two launches.

        `norms` is room for two numbers for each of the blocks of g.
        """
        count = blocks(g.size)
        contract.flat(("p", p), ("g", g))
        first = (g, p, mask, g.size, n_weights, decay, norms)
        return [
            self.launcher.bind("norm_partial", g.dtype, (count,), first),
            self.launcher.bind("norm_final", g.dtype, (1,), (norms, count, clip_norm, out)),
        ]

    def update(
        self,
        rule: Rule,
        p: Array,
        g: Array,
        state: list[Array],
        mask: Array | None,
        n_weights: int,
        decay: float,
        clip: Array | None,
        schedule: Array,
        inverse_weight: Array,
        penalty: tuple[float, Array] | None,
        control: Array,
    ) -> list[Launch]:
        """Penalty, mask and clipping of the gradient, and the rule, in one pass over the flat buffers.

        `schedule` has its numbers, and `inverse_weight` 1 / weight of the batch, for every step.
        """
        contract.flat(("parameters", p), ("gradients", g), *(("state", array) for array in state))
        states = [*state, *[None] * (MAX_STATES - len(state))]
        penalty_scale, slots = (0.0, None) if penalty is None else penalty
        arguments = (
            p,
            g,
            *states,
            mask,
            p.size,
            n_weights,
            decay,
            clip,
            schedule,
            inverse_weight,
            penalty_scale,
            slots,
            control,
        )
        return [self.launcher.bind("update", p.dtype, (blocks(p.size),), arguments, formulas={"rule": rule.text})]

    def gather(
        self,
        batch: Batch,
        weight_out: Array,
        data: Data,
        order: Array | None,
        inverse_weight: Array,
        stride: int,
        control: Array,
    ) -> Launch:
        """Bring the rows of step 0 into the batch; `at_step` makes the launch of another step from this one.

        Step s takes the rows, in order, from ``s * stride`` on.
        """
        rows, n_in = batch.a[0].shape
        n_out = batch.y.shape[1]
        targets = (data.y, None) if data.y.ndim == 2 else (None, data.y)
        outputs = (batch.a[0], batch.y, batch.scale, weight_out)
        sizes = (rows, n_in, n_out, stride, 0)
        arguments = (*outputs, data.X, *targets, data.weight, order, inverse_weight, *sizes, control)
        return self.launcher.bind("gather", data.X.dtype, (blocks(rows * (n_in + n_out)),), arguments)

    def advance(self, control: Array, dtype: np.dtype[Any]) -> Launch:
        """Count one step, for a `gather` of step -1: that takes the step from the control words."""
        return self.launcher.bind("advance", dtype, (1,), (control,))

    def total(self, costs: Array, slots: Array, out: Array) -> Launch:
        """Add up the costs of an epoch, which are pairs, in a fixed order."""
        return self.launcher.bind("total", costs.dtype, (1,), (costs, costs.size // 2, slots, MAX_BLOCKS, out))


def at_step(gather: Launch, step: int) -> Launch:
    """Return the launch of `Steps.gather` for a step, -1 for that of the control words: its last argument but one."""
    kernel, (grid, block, arguments) = gather.func, gather.args  # type: ignore[attr-defined]
    return partial(kernel, grid, block, (*arguments[:-2], np.int32(step), arguments[-1]))


def _in_precision(cupy: Any, product: Launch, tf32: bool) -> None:
    """Run a float32 product with or without TF32, whatever CUPY_TF32 says: CuPy keeps the choice for all products."""
    kind = "COMPUTE_TYPE_TF32" if tf32 else "COMPUTE_TYPE_DEFAULT"
    before = cupy._core.get_compute_type(np.float32)
    cupy._core.set_compute_type(np.float32, getattr(cupy._core._routines_linalg, kind))
    try:
        product()
    finally:
        cupy._core.set_compute_type(np.float32, before)
