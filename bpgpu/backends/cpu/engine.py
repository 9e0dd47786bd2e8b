"""Backpropagation on the CPU in compiled code: a whole epoch is one call, run by every thread on its share."""

import ctypes
import functools
import logging
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bpgpu import forks
from bpgpu.backends import contract
from bpgpu.backends.addresses import Addresses
from bpgpu.backends.base import Backend
from bpgpu.backends.cpu.blas import blas
from bpgpu.backends.cpu.threads import allowed_threads, helpers
from bpgpu.backends.data import Data
from bpgpu.backends.memory import Array
from bpgpu.backends.non_finite import first_fault, first_layer
from bpgpu.backends.plan import Plan
from bpgpu.checks import MAX_SIZE
from bpgpu.errors import NonFiniteError
from bpgpu.interop import is_sparse
from bpgpu.kernels import rules
from bpgpu.kernels.cpu import cache
from bpgpu.kernels.cpu import columns as k
from bpgpu.kernels.cpu import epoch as kernels
from bpgpu.kernels.cpu import formulas as compiled
from bpgpu.kernels.cpu.phases import LINE, TAKEN
from bpgpu.kernels.philox import threshold
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, output_formulas

# Multiply-adds of a step that are worth a thread of their own. Measured on two processors: a step of 2^21 takes 0.7 to
# 0.85 times as long on both as on one, and one of 2^19 as long.
GRAIN = 2**20
_log = logging.getLogger("bpgpu")
INT32 = np.dtype(np.int32)
DESCENT = rules.text_of_row("sgd")
CHUNK = 2**30  # multiply-adds in one compiled call, after which Ctrl-C is heard


@dataclass
class Prepared:
    """What stays the same from one epoch of a plan to the next; see the tables of `bpgpu.kernels.cpu.epoch`."""

    epoch: Callable[..., None]
    rule: rules.Rule | None
    threads: int
    data: np.ndarray[Any, Any]
    layers: np.ndarray[Any, Any]
    network: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]
    sums: np.ndarray[Any, Any]
    shares: np.ndarray[Any, Any]
    slabs: np.ndarray[Any, Any]
    shared: np.ndarray[Any, Any]
    shared_address: int
    result: np.ndarray[Any, Any]
    zeros: np.ndarray[Any, Any]
    columns: np.ndarray[Any, Any]
    addresses: Addresses  # keeps alive what the tables point to

    def run(self, thread: int, first: int = 0, last: int = 0) -> None:
        """Train steps first ... last as thread 0, or help it as another."""
        self.epoch(
            thread,
            first,
            last,
            self.data,
            self.layers,
            self.network,
            self.numbers,
            self.sums,
            self.shares,
            self.slabs,
            self.shared_address,
            self.result,
        )


class NumbaBackend(Backend):
    """Backpropagation in fused loops that Numba compiles, and SciPy's BLAS.

    The methods of single steps are the reference's; `run_epoch` is one compiled function.
    """

    name = "numba"
    xp = np

    def __init__(self) -> None:
        library = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
        self._give_way_function = library.SwitchToThread if sys.platform == "win32" else library.sched_yield
        self._give_way = ctypes.cast(self._give_way_function, ctypes.c_void_p).value or 0
        self._blas = blas()
        self.device = f"CPU ({platform.machine()}), {self._blas.name}'s BLAS"

    def __reduce__(self) -> tuple[type["NumbaBackend"], tuple[()]]:
        """Make anew where a network is copied, or goes to another process: addresses hold in this one only."""
        return type(self), ()

    def workspace_nbytes(self, plan: Plan) -> int:
        net = plan.architecture
        L, threads = len(net.activations), self._threads(plan)
        integers = k.DATA_ENTRIES + (L + 1) * k.LAYER_COLUMNS + k.NETWORK_ENTRIES + threads * (4 * L + LINE) + TAKEN
        numbers = threads * (L + 1) * 2 + k.NUMBERS + max(net.sizes) + _lost(plan)
        return int(
            8 * (integers + (threads + 1) * k.SHARES + k.RESULTS + _columns(plan)) + net.dtype.itemsize * numbers
        )

    def _threads(self, plan: Plan) -> int:
        """Return how many threads train a plan: as many as its steps keep busy, if they are allowed."""
        busy = int(3 * sum(plan.products)) // GRAIN
        return max(1, min(busy, plan.batch_size, self._blas.allowed_threads(), allowed_threads()))

    def prepare(self, plan: Plan, data: Data, parameters: Array) -> None:
        if plan.compiled is not None:
            with forks.whole:
                plan.prepared = self._prepare(plan)

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
        if plan.compiled is None:  # an optimizer that is written in Python
            return super().run_epoch(
                plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch
            )
        return self._train(plan, data, order, parameters, learning_rates, epoch)

    def gradients(self, plan: Plan, data: Data, parameters: Array) -> float:
        try:
            return self._train(plan, data, None, parameters, [0.0], 0)
        except NonFiniteError:
            return super().gradients(plan, data, parameters)

    def _train(
        self,
        plan: Plan,
        data: Data,
        order: np.ndarray[Any, Any] | None,
        parameters: Array,
        learning_rates: list[float],
        epoch: int,
    ) -> float:
        data = contract.epoch(plan, data, order, parameters, learning_rates, epoch)
        if plan.prepared is None:
            with forks.whole:
                plan.prepared = self._prepare(plan)
        prepared: Prepared = plan.prepared
        net, rule = plan.architecture, prepared.rule
        n, B, steps = len(data), plan.batch_size, -(-len(data) // plan.batch_size)
        X, y, T, flat = data.X, data.y, net.dtype, parameters.shape
        indptr, indices, values = (X.indptr, X.indices, X.data) if is_sparse(X) else (None, None, X)
        targets, labels = (None, y) if y.ndim == 1 else (y, None)
        read: list[tuple[str, Any, tuple[int, ...], np.dtype[Any]]] = [
            ("X", values, (n, net.sizes[0]) if indices is None else indices.shape, T),
            ("X.indptr", indptr, (n + 1,), INT32),
            ("X.indices", indices, values.shape, INT32),
            ("targets", targets, (n, net.sizes[-1]), T),
            ("labels", labels, (n,), INT32),
            ("weight", data.weight, (n,), T),
            ("order", order, (n,), INT32),
        ]
        trained = [("parameters", parameters), ("gradients", plan.gradients), *(("state", x) for x in plan.state)]
        schedule = np.zeros((1, 1), T) if rule is None else rule.schedule(learning_rates, plan.steps + 1, T)
        given = Addresses()
        places = []
        for name, array, shape, dtype in read:
            places.append(
                given.of(name, None if array is None else np.require(array, dtype, ("C", "A", "E")), shape, dtype)
            )
        places.append(given.of("schedule", schedule, schedule.shape, T))
        places += [given.of(name, array, flat, T, written=True) for name, array in trained]
        prepared.data[:] = epoch, n, parameters.size, steps, *places, *[0] * (rules.MAX_STATES - len(plan.state))
        result = prepared.result
        result[:] = 0
        chunk = max(1, int(CHUNK // (3 * sum(plan.products) + net.n_weights)))
        # The limit costs as much as a dozen steps of a network whose products are too small for BLAS.
        with self._blas.one_thread() if max(plan.products) > k.SMALL_PRODUCT else nullcontext():
            for first in range(0, steps, chunk):
                helpers().call(prepared.run, prepared.threads, prepared.shared)
                with forks.in_blas():
                    prepared.run(0, first, min(first + chunk, steps))
                if result[k.FAULT]:
                    step = int(result[k.FAULT]) - 1
                    plan.steps += step - first
                    batch = plan.batch(min(B, n - step * B))
                    raise NonFiniteError(epoch + 1, step + 1, *first_fault(plan, batch, self.all_finite))
                plan.steps += min(first + chunk, steps) - first
        if not result[k.FINITE]:
            for quantity, flat in [("weight", parameters), *(("optimizer state", array) for array in plan.state)]:
                if not self.all_finite(flat):
                    raise NonFiniteError(epoch + 1, steps, first_layer(net, flat, self.all_finite), quantity)
        return float(result[k.TOTAL_COST] / result[k.TOTAL_WEIGHT])

    def _prepare(self, plan: Plan) -> Prepared:
        """Return the tables of a plan, and the addresses of its formulas, compiled if they are new."""
        net, batch, rule = plan.architecture, plan.batch(plan.batch_size), plan.compiled
        L, dtype, threads = len(net.activations), net.dtype, self._threads(plan)
        if plan.batch_size > MAX_SIZE:
            raise ValueError(
                f"batch_size must be at most {MAX_SIZE}, as BLAS counts rows in 32 bits, got {plan.batch_size}"
            )
        layers = np.zeros((L + 1, k.LAYER_COLUMNS), np.int64)
        layers[:, k.SIZE] = net.sizes
        sizes = np.array(net.sizes)
        layers[1:, k.W] = np.cumsum(sizes[:-1] * sizes[1:]) - sizes[:-1] * sizes[1:]
        layers[1:, k.B] = net.n_weights + np.cumsum(sizes[1:]) - sizes[1:] if net.bias else -1
        addresses, B = Addresses(), plan.batch_size
        for l, n in enumerate(net.sizes):
            for column, array in ((k.Z, batch.z), (k.A, batch.a), (k.H, batch.h), (k.DELTA, batch.delta)):
                if isinstance(array[l], np.ndarray):  # not None, and no sparse rows
                    layers[l, column] = addresses.of("workspace", array[l], (B, n), dtype, written=True)
        for l, (sigma, mask) in enumerate(zip(net.activations, plan.masks, strict=True), start=1):
            layers[l, k.MASK] = addresses.of(f"connectivity[{l - 1}]", mask, (net.sizes[l - 1], net.sizes[l]), dtype)
            if not sigma.rowwise:
                layers[l, [k.ACTIVATE, k.DERIVE]] = compiled.activation(sigma.value, sigma.derivative, dtype)
        sigma, cost = net.activations[-1], net.cost
        network = np.zeros(k.NETWORK_ENTRIES, np.int64)
        value, delta = output_formulas(sigma, cost)
        if not sigma.rowwise:
            if value == cost.value:  # the chain rule, its second factor by the activation's own function
                delta = cost.gradient
            else:
                layers[L, k.DERIVE] = 0
            network[[k.OUTPUT, k.COST]] = k.ELEMENTWISE, compiled.cost(value, delta, dtype)
        elif cost == BINARY_CROSS_ENTROPY and net.sizes[-1] > 1:
            network[k.OUTPUT] = k.SOFTMAX_BINARY_CROSS_ENTROPY
        elif cost == CROSS_ENTROPY:
            network[k.OUTPUT] = k.SOFTMAX_CROSS_ENTROPY
        else:
            network[[k.OUTPUT, k.COST]] = k.SOFTMAX, compiled.cost(value, delta, dtype)
        zeros = np.zeros(max(net.sizes), dtype)
        network[[k.GEMM, k.GIVE_WAY]] = self._blas.gemm[dtype], self._give_way
        network[k.ZEROS] = addresses.of("zeros", zeros, zeros.shape, dtype)
        network[k.Y] = addresses.of("workspace", batch.y, (B, net.sizes[-1]), dtype, written=True)
        for entry, array in ((k.SCALE, batch.scale), (k.ROW_COST, batch.cost)):
            network[entry] = addresses.of("workspace", array, (B,), dtype, written=True)
        network[k.BY_WEIGHT] = net.by_weight
        network[k.MASKED] = any(mask is not None for mask in plan.masks)
        network[k.THRESHOLD] = threshold(net.dropout)
        network[[k.KEY0, k.KEY1]] = net.seed & 0xFFFFFFFF, net.seed >> 32
        network[k.BATCH] = plan.batch_size
        if rule is not None:
            network[[k.RULE, k.ROW]] = compiled.rule(rule.text, dtype), len(rule.numbers) * dtype.itemsize
            network[k.DESCENT] = rule.text == DESCENT
        columns = np.zeros((2, _columns(plan)), np.int32)
        network[[k.SEEN, k.MET]] = [addresses.of("columns", x, x.shape, INT32, written=True) for x in columns]
        lost = np.zeros(_lost(plan), dtype)
        network[k.LOST] = addresses.of("lost", lost, lost.shape, dtype, written=True) if lost.size else 0
        shared = np.zeros(TAKEN + threads * LINE, np.int64)
        numbers = np.zeros(k.NUMBERS, dtype)
        numbers[k.L2], numbers[k.CLIP] = net.l2, (plan.rule and plan.rule.norm_limit(dtype)) or 0.0
        numbers[k.KEEP] = 1 / (1 - net.dropout) if net.dropout else 0.0
        numbers[k.LARGEST_COST] = net.largest_cost
        numbers[k.FACTOR] = 1 / net.sizes[-1] if cost.reduction == "mean" else 1.0
        return Prepared(
            compiled_epoch(dtype),
            rule,
            threads,
            np.zeros(k.DATA_ENTRIES, np.int64),
            layers,
            network,
            numbers,
            np.zeros((threads, L + 1, 2), dtype),
            np.zeros((threads + 1, k.SHARES)),
            slabs(layers[:, k.SIZE], layers[:, k.W], layers[:, k.B], threads),
            shared,
            addresses.of("shared", shared, shared.shape, np.dtype(np.int64), written=True),
            np.zeros(k.RESULTS),
            zeros,
            columns,
            addresses,
        )


def _columns(plan: Plan) -> int:
    """Return of how many columns of X the epoch notes which have come up in a batch."""
    return 0 if plan.nonzeros is None else plan.architecture.sizes[0]


def _lost(plan: Plan) -> int:
    """Return for how many sums of the gradient the epoch keeps what their roundings leave out: if X is sparse.

    Products with a dense X are summed in blocks.
    """
    n_in, n, *_ = plan.architecture.sizes
    return 0 if plan.nonzeros is None or plan.batch_size <= k.MANY_TERMS else n_in * n


def slabs(sizes: Any, W: Any, b: Any, threads: int) -> np.ndarray[Any, Any]:
    """Return which entries of the flat buffer each thread computes: rows of each W_l, then entries of each b_l.

    Returns
    -------
    array of int64, shape (threads, 2 L, 2)
    """
    L = len(sizes) - 1
    result = np.zeros((threads, 2 * L, 2), np.int64)
    share = np.arange(threads + 1)
    for l, (rows, columns) in enumerate(pairwise(sizes), start=1):
        for i, start, count, width in ((l - 1, W[l], rows, columns), (L + l - 1, b[l], columns, 1)):
            if start >= 0:
                cuts = start + width * (count * share // threads)
                result[:, i, 0], result[:, i, 1] = cuts[:-1], cuts[1:]
    return result


def kernel_sources(dtype: np.dtype[Any]) -> list[str]:
    """Return the sources of all that is compiled ahead for a dtype: the epoch and every row of the formula table."""
    return [kernels.epoch_source(dtype), *compiled.table(dtype)]


@functools.cache
def compiled_epoch(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return the epoch for a dtype; compile all that is compiled ahead, unless the cache has it."""
    sources = kernel_sources(dtype)
    if not cache.are_kept(sources):
        if cache.folder():
            _log.warning("compiling CPU kernels for %s, once: about 40 s", dtype.name)
        else:
            _log.warning(
                "compiling CPU kernels for %s: about 15 s; no cache folder can be used (see bpgpu warmup)", dtype.name
            )
        cache.keep(sources)
    function: Callable[..., None] = kernels.compiled_epoch(dtype)
    return function
