"""The cases of `bpgpu.proof.bench`: every step, the updates, and whole training."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.backends.data import Dropout
from bpgpu.errors import NonFiniteError
from bpgpu.kernels import formulas, philox
from bpgpu.mlp import MLP
from bpgpu.model.activations import ACTIVATIONS, Activation
from bpgpu.model.costs import COSTS, Cost
from bpgpu.model.optimizers import OPTIMIZERS, SGD, Adam, AdamW, Optimizer, RMSprop
from bpgpu.proof.accuracy_sums import one_sided
from bpgpu.proof.bench import EXTENDED, Bench, Host, Measurement, extended

# With an epsilon large enough that its place in the formula matters and no training step divides noise by noise.
OPTIMIZER_CASES: dict[str, Optimizer] = {
    "SGD": SGD(0.1),
    "SGD with momentum": SGD(0.1, momentum=0.9),
    "SGD with Nesterov's": SGD(0.1, momentum=0.9, nesterov=True),
    "SGD, clipped": SGD(0.1, clip_norm=0.2),
    "RMSprop": RMSprop(0.1, epsilon=1e-2),
    "Adam": Adam(0.1, epsilon=1e-2),
    "Adam, epsilon hat": Adam(0.1, epsilon=1e-2, epsilon_hat=True),
    "AdamW": AdamW(0.1, epsilon=1e-2, weight_decay=0.1),
    "AdamW, clipped": AdamW(0.1, epsilon=1e-2, clip_norm=0.2),
}
OPTIMIZER_CASES |= {
    kind.__name__: kind(0.1) for kind in OPTIMIZERS.values() if kind not in map(type, OPTIMIZER_CASES.values())
}
# Sizes, activations, cost and options of networks; rows and batch size. The last batches have 9, 1 and 5 rows.
NETWORKS: tuple[tuple[tuple[int, ...], tuple[str, ...], str, dict[str, Any], int, int], ...] = (
    ((5, 7, 6, 3), ("tanh", "gelu", "softmax"), "cross_entropy", {"l2": 0.3, "dropout": 0.3}, 41, 16),
    ((4, 33, 2), ("softmax", "sigmoid"), "binary_cross_entropy", {"l2": 0.1}, 33, 16),
    ((31, 65, 1), ("silu", "identity"), "mean_squared_error", {"bias": False}, 70, 65),
    ((3, 1), ("softplus",), "half_squared_error", {}, 1, 1),
)


@dataclass(frozen=True)
class Case:
    """One measurement: an operation with an activation, a cost or an optimizer."""

    operation: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join((self.operation, *self.names))


CASES = (
    *(Case("forward", (sigma,)) for sigma in ACTIVATIONS),
    *(Case("output", pair) for pair in itertools.product(ACTIVATIONS, COSTS)),
    *(Case("hidden", (sigma,)) for sigma in ACTIVATIONS),
    Case("gradient"),
    *(Case("sums", (kind,)) for kind in ("constant", "uniform", "0/1")),
    *(Case("update", (optimizer,)) for optimizer in OPTIMIZER_CASES),
    Case("dropout"),
    *(Case("training", (optimizer,)) for optimizer in OPTIMIZER_CASES),
)


def _turn(name: str) -> int:
    return [*ACTIVATIONS, *COSTS, *OPTIMIZER_CASES].index(name)


def _forward(bench: Bench, name: str) -> Iterator[Measurement]:
    sigma = ACTIVATIONS[name]
    for k, (B, m, n) in bench.shapes(_turn(name)):
        rng = np.random.default_rng([0, k])
        a_prev, W, b = (bench.random(rng, k + i, *shape) for i, shape in enumerate(((B, m), (m, n), (n,))))
        W = (W * (2 / math.sqrt(m))).astype(W.dtype)
        keeps_z = sigma.derivative_needs_z or k % 2 == 0
        outputs = {"out": (B, n)} | ({"out_z": (B, n)} if keeps_z else {})
        with_bias = {"a_prev": a_prev, "W": W, "b": b if k % 4 else None}
        result, truth = bench.run("forward", with_bias, outputs, activation=sigma)
        scale = _largest(np.abs(a_prev) @ np.abs(W) + np.abs(b))
        for each in outputs:
            yield bench.compare("forward", f"{name}, {B}x{m}x{n}", result[each], truth[each], scale=scale, n=m)


def _output(bench: Bench, name: str, cost_name: str) -> Iterator[Measurement]:
    sigma, cost = ACTIVATIONS[name], COSTS[cost_name]
    for k, (B, _, n) in bench.shapes(_turn(name) + _turn(cost_name)):
        rng = np.random.default_rng([1, k])
        z = _outputs_in_condition(sigma, cost, rng, (B, n)).astype(bench.dtype)
        y, scale = rng.standard_normal((B, n)), rng.integers(0, 5, B) / 4.0
        if cost.wants_probabilities:
            y = rng.dirichlet(np.ones(n), B) if n > 1 else rng.uniform(size=(B, n))
            y[::2] = np.eye(n)[rng.integers(0, n, len(y[::2]))]
        inputs = {"z": z, "y": y.astype(bench.dtype), "scale": scale.astype(bench.dtype)}
        outputs = {"out_a": (B, n), "out_delta": (B, n), "out_cost": (B,)}
        result, truth = bench.run("output_delta", inputs, outputs, activation=sigma, cost=cost)
        case, mean = f"{name}, {cost_name}, {B}x{n}", n if cost.reduction == "mean" else 1
        # Differences a - y may be small, so the scale is that of a and y 1 apart.
        for quantity, least in (("a", 0.0), ("delta", _largest(scale) / mean), ("cost", 1 / mean)):
            got, exact = (found[f"out_{quantity}"] for found in (result, truth))
            yield bench.compare(f"output: {quantity}", case, got, exact, scale=least, n=n)


def _outputs_in_condition(sigma: Activation, cost: Cost, rng: np.random.Generator, shape: tuple[int, int]) -> Host:
    """Return z for which the cost does not magnify the rounding of a, as a cross-entropy does where a is near 0 or 1.

    Formulas that compute value and delta from z need no such care; with softmax, some outputs are even rounded to 1.
    """
    z = 3 * rng.standard_normal(shape)
    if sigma.rowwise:
        z[1::3, 0] = 200
        return z
    if not cost.wants_probabilities or (sigma.name, cost.name) in formulas.PAIRS:
        return z
    pool = 3 * rng.standard_normal(20 * z.size + 100)
    with np.errstate(all="ignore"):
        a = formulas.numpy_function(sigma.value, np.dtype(np.float64))(pool, None, None)
    well: Host = pool[(np.abs(a) > 0.25) & (np.abs(1 - a) > 0.25)]
    return well[: z.size].reshape(shape)


def _hidden(bench: Bench, name: str) -> Iterator[Measurement]:
    sigma = ACTIVATIONS[name]
    for k, (B, m, n) in bench.shapes(_turn(name)):
        rng = np.random.default_rng([2, k])
        delta, W, z = (bench.random(rng, k + i, *shape) for i, shape in enumerate(((B, n), (m, n), (B, m))))
        a = np.full((B, m), np.nan, EXTENDED)
        extended.forward(z.astype(EXTENDED), np.eye(m, dtype=EXTENDED), None, sigma, out=a)
        inputs = {"delta": delta, "W": W, "a": a.astype(bench.dtype), "z": z if sigma.derivative_needs_z else None}
        dropout = Dropout(0.3, 2**40 + 5, 3, k, 2) if k % 2 else None
        result, truth = bench.run("hidden_delta", inputs, {"out": (B, m)}, activation=sigma, dropout=dropout)
        scale = _largest(np.abs(delta) @ np.abs(W).T)
        case = f"{name}, {B}x{n}x{m}" + (", dropout" if dropout else "")
        yield bench.compare("hidden delta", case, result["out"], truth["out"], scale=scale, n=max(m, n))


def _gradient(bench: Bench) -> Iterator[Measurement]:
    for k, (B, m, n) in dataclasses.replace(bench, crossed=True).shapes(0):
        rng = np.random.default_rng([3, k])
        a_prev, delta, W = (bench.random(rng, k + i, *shape) for i, shape in enumerate(((B, m), (B, n), (m, n))))
        mask = rng.integers(0, 2, (m, n)).astype(bench.dtype) if k % 2 else None
        decay = 0.3 if k % 3 else 0.0
        outputs: dict[str, tuple[int, ...]] = {"out_W": (m, n)} | ({"out_b": (n,)} if k % 4 != 1 else {})
        inputs = {"a_prev": a_prev, "delta": delta, "W": W, "mask": mask}
        result, truth = bench.run("weight_gradient", inputs, outputs, decay=decay)
        scale = _largest(np.abs(a_prev).T @ np.abs(delta) + decay * np.abs(W))
        case = f"{m}x{B}x{n}"
        yield bench.compare("weight gradient", case, result["out_W"], truth["out_W"], scale=scale, n=B)
        if "out_b" in outputs:
            scale = _largest(np.abs(delta).sum(axis=0))
            yield bench.compare("bias gradient", case, result["out_b"], truth["out_b"], scale=scale, n=B)


def _update(bench: Bench, name: str) -> Iterator[Measurement]:
    """Three steps on parameters as small as the steps, so that an error in a step is not lost in a parameter."""
    optimizer = OPTIMIZER_CASES[name]
    for size in (1, 31, 1025):
        rng = np.random.default_rng([4, size])
        start, gradients = 0.1 * rng.standard_normal(size), rng.standard_normal((3, size))
        found = []
        for backend, dtype in ((bench.backend, np.dtype(bench.dtype)), (extended, EXTENDED)):
            p = backend.asarray(start.astype(bench.dtype), dtype)
            state = [backend.asarray(np.zeros(size), dtype) for _ in range(optimizer.n_state)]
            for t, g in enumerate(gradients, start=1):
                g = backend.asarray(g.astype(bench.dtype), dtype)
                backend.update(optimizer, p, g, state, t=t, learning_rate=0.5**t, n_weights=size // 2)
            found.append([backend.to_numpy(x) for x in (p, *state)])
        n = 1 if optimizer.clip_norm is None else size
        for operation, result, truth in zip(("update", *["optimizer state"] * optimizer.n_state), *found, strict=True):
            yield bench.compare(operation, f"{name}, {size}", result, truth, n=n)


def _dropout(bench: Bench) -> Iterator[Measurement]:
    dtype = np.dtype(bench.dtype)
    keys = ((0.4, 2**40 + 5, 0, 7, 1), (0.1, 0, 2**31, 2**31 - 1, 2), (0.9, 2**64 - 1, 2**32 - 1, 2**32 - 1, 3))
    for shape, key in itertools.product(((1, 1), (33, 31), (5, 130)), keys):
        dropout, x = Dropout(*key), np.random.default_rng(5).standard_normal(shape).astype(dtype)
        on_device = bench.backend.asarray(x.copy(), dtype)
        bench.backend.dropout(on_device, dropout, out=on_device)
        scaled = x * dtype.type(1 / (1 - dropout.rate))
        truth = np.where(philox.keep_mask(shape, **vars(dropout)), scaled, dtype.type(0))
        differ = np.count_nonzero(bench.backend.to_numpy(on_device) != truth)
        yield Measurement("dropout", f"{shape[0]}x{shape[1]}, {dropout}", float(differ))


def _training(bench: Bench, name: str) -> Iterator[Measurement]:
    """Two epochs on each network: their costs, and how they changed the parameters."""
    turn = _turn(name)
    for network in NETWORKS if bench.crossed else [NETWORKS[turn % len(NETWORKS)]]:
        sizes, activations, cost, options, rows, batch_size = network
        rng = np.random.default_rng([6, rows])
        X, y = rng.standard_normal((rows, sizes[0])), rng.uniform(size=(rows, sizes[-1]))
        labels = rng.integers(0, sizes[-1], rows) if activations[-1] == "softmax" else y.astype(bench.dtype)
        mask = rng.integers(0, 2, sizes[:2]) if len(sizes) > 2 else None
        weight = rng.integers(1, 5, rows) / 4.0 if rows > 1 else None
        net = _network(bench, sizes, activations, cost, **options, connectivity=[mask, *[None] * (len(sizes) - 2)])
        data, start = (X.astype(bench.dtype), labels, weight), bench.backend.to_numpy(net.parameters).copy()
        nets = [net, _in_extended(net)]
        case = f"{name}, {'-'.join(map(str, sizes))}, {' '.join(activations)}, {cost}"
        n = max(*sizes, batch_size)
        yield bench.compare("loss", case, *(each.loss(*data) for each in nets), n=n)
        how: dict[str, Any] = {
            "optimizer": OPTIMIZER_CASES[name],
            "epochs": 2,
            "batch_size": batch_size,
            "shuffle": rows != 33,
        }
        try:
            histories = [each.fit(*data[:2], sample_weight=weight, validation_data=data, **how) for each in nets]
        except NonFiniteError:
            yield Measurement("training: parameters", case, math.inf)
            continue
        losses = [history.loss + history.validation_loss for history in histories]
        yield bench.compare("training: loss", case, *losses, n=n)
        # Only the change by training, so that its error is not lost in the parameters.
        changed = [each.backend.to_numpy(each.parameters).astype(EXTENDED) - start for each in nets]
        yield bench.compare("training: parameters", case, *changed, n=n)


def _network(bench: Bench, *arguments: Any, **options: Any) -> MLP:
    return MLP(*arguments, dtype=bench.dtype, seed=3, backend=bench.backend, **options)


def _in_extended(net: MLP) -> MLP:
    """Return the same network, with the same parameters, in extended precision."""
    return net.on(extended, dtype=EXTENDED)


def _largest(x: Host) -> float:
    return float(np.max(x, initial=0.0))


_MEASURE: dict[str, Callable[..., Iterator[Measurement]]] = {
    "forward": _forward,
    "output": _output,
    "hidden": _hidden,
    "gradient": _gradient,
    "sums": one_sided,
    "update": _update,
    "dropout": _dropout,
    "training": _training,
}


def measure(bench: Bench, case: Case) -> list[Measurement]:
    """Return every error of a case."""
    with np.errstate(all="ignore"):  # as training does
        return list(_MEASURE[case.operation](bench, *case.names))
