"""What the methods of a backend are called with, checked on all backends alike: shapes, and indices of rows.

`MLP` has checked what a user passes to it; these checks are for those who call a backend themselves. NumPy would
broadcast what does not fit, and compiled code read and write beyond it.
"""

import math
from itertools import combinations
from typing import Any

import numpy as np

from bpgpu import checks
from bpgpu.backends.data import Batch, Data
from bpgpu.backends.plan import Plan
from bpgpu.frozen import freeze, is_frozen
from bpgpu.interop import is_sparse, on_host
from bpgpu.model.activations import Activation
from bpgpu.model.costs import Cost
from bpgpu.model.optimizers import Optimizer
from bpgpu.sparse import check, compressed_rows, is_checked

Array = Any
Expected = tuple[str, Array, tuple[int, ...]]
OPTIONAL = frozenset({"b", "z", "W", "mask", "out_z", "out_b", "data.weight"})


def _shape(name: str, array: Array) -> tuple[int, ...]:
    """Return the shape of an array, which must be one."""
    shape: tuple[int, ...] | None = getattr(array, "shape", None)
    if shape is None:
        raise TypeError(f"{name} must be an array of the backend, got {type(array).__name__}")
    return shape


def _matrix(name: str, array: Array) -> tuple[int, ...]:
    """Return the shape of an array, which must have two dimensions."""
    shape = _shape(name, array)
    if len(shape) != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {shape}")
    return shape


def _is_a(kind: type, name: str, value: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be an object of bpgpu.{kind.__name__}, got {value!r:.60}")


def _fit(*expected: Expected) -> None:
    """Raise unless the arrays have the shapes beside them; some may be None."""
    for name, array, shape in expected:
        if not (array is None and name in OPTIONAL) and _shape(name, array) != shape:
            raise ValueError(f"{name} must have shape {shape}, to fit the other arguments, got {array.shape}")


def _apart(name: str, out: Array, *others: Array) -> None:
    """Raise if an array that is written shares memory with another one, or with itself; any may be None."""
    if out is not None and _overlaps_itself(out):
        raise ValueError(f"{name} must be an array of its own, and some of its entries share memory; pass a copy")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(f"{name} must be writeable, and is read-only; pass a copy")
    for other in others:
        if out is not None and other is not None and _overlap(out, other):
            raise ValueError(f"{name} must be an array of its own, and shares memory with another argument")


def _overlaps_itself(array: Array) -> bool:
    """Return whether two entries of an array may lie in one place, as in one made by broadcasting."""
    strides = getattr(array, "strides", None)
    if strides is None or 0 in array.shape:
        return False
    reach = array.dtype.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def _overlap(x: Array, y: Array) -> bool:
    if x is y:
        return True
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y) and np.shares_memory(x, y)  # the first looks at where they end, and is fast
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return False
    (x_first, x_end), (y_first, y_end) = _extent(x), _extent(y)
    return x_first < y_end and y_first < x_end


def _extent(array: Array) -> tuple[int, int]:
    """Return where an array on a GPU begins and ends, the same place twice if it is empty."""
    described = getattr(array, "__cuda_array_interface__", None)
    if described is None or 0 in array.shape:
        return 0, 0
    first = described["data"][0]
    strides, itemsize = described.get("strides"), array.dtype.itemsize
    if strides is None:
        return first, first + math.prod(array.shape) * itemsize
    reach = [(size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)]
    return first + sum(min(r, 0) for r in reach), first + sum(max(r, 0) for r in reach) + itemsize


# The three steps, and those between them


def forward(
    a_prev: Array, W: Array, b: Array | None, activation: Activation, out: Array, out_z: Array | None = None
) -> None:
    """Check the arrays of `Backend.forward`."""
    _is_a(Activation, "activation", activation)
    (rows, m), n = _matrix("a_prev", a_prev), _matrix("W", W)[1]
    _fit(("W", W, (m, n)), ("b", b, (n,)), ("out", out, (rows, n)), ("out_z", out_z, (rows, n)))
    if is_sparse(a_prev):
        check("a_prev", a_prev)
        a_prev = a_prev.data
    _apart("out", out, a_prev, W, b, out_z)
    _apart("out_z", out_z, a_prev, W, b)


def output_delta(
    z: Array,
    y: Array,
    scale: Array,
    activation: Activation,
    cost: Cost,
    out_a: Array,
    out_delta: Array,
    out_cost: Array,
    b: Array | None = None,
    weight: Array | None = None,
) -> None:
    """Check the arrays of `Backend.output_delta`."""
    _is_a(Activation, "activation", activation)
    _is_a(Cost, "cost", cost)
    rows, n = shape = _matrix("z", z)
    _fit(
        ("y", y, shape),
        ("scale", scale, (rows,)),
        ("out_a", out_a, shape),
        ("out_delta", out_delta, shape),
        ("out_cost", out_cost, (rows,)),
        ("b", b, (n,)),
    )
    read = z, y, scale, b, weight
    _apart("out_a", out_a, *read, out_delta, out_cost)
    _apart("out_delta", out_delta, *read, out_cost)
    _apart("out_cost", out_cost, *read)
    if weight is not None and weight.shape[0] < rows:
        raise ValueError(f"weight must have {rows} numbers at least, got {weight.shape}")


def hidden_delta(delta: Array, W: Array, a: Array, z: Array | None, activation: Activation, out: Array) -> None:
    """Check the arrays of `Backend.hidden_delta`."""
    _is_a(Activation, "activation", activation)
    (rows, n), m = _matrix("delta", delta), _matrix("W", W)[0]
    _fit(("W", W, (m, n)), ("a", a, (rows, m)), ("z", z, (rows, m)), ("out", out, (rows, m)))
    _apart("out", out, delta, W, a, z)
    if activation.derivative_needs_z and z is None:
        raise ValueError(f"z must be given, because the derivative of {activation.name!r} is computed from it")


def dropout(x: Array, out: Array) -> None:
    """Check the arrays of `Backend.dropout`."""
    _fit(("out", out, _matrix("x", x)))


def weight_gradient(
    a_prev: Array, delta: Array, W: Array | None, mask: Array | None, out_W: Array, out_b: Array | None
) -> None:
    """Check the arrays of `Backend.weight_gradient`."""
    (rows, m), n = _matrix("a_prev", a_prev), _matrix("delta", delta)[1]
    _fit(
        ("delta", delta, (rows, n)),
        ("W", W, (m, n)),
        ("mask", mask, (m, n)),
        ("out_W", out_W, (m, n)),
        ("out_b", out_b, (n,)),
    )
    if is_sparse(a_prev):
        check("a_prev", a_prev)
        a_prev = a_prev.data
    _apart("out_W", out_W, a_prev, delta, W, mask, out_b)
    _apart("out_b", out_b, a_prev, delta, W, mask)


def flat(*arrays: tuple[str, Array]) -> None:
    """Raise unless all are vectors of one length."""
    (name, first), *others = arrays
    shape = _shape(name, first)
    if len(shape) != 1:
        raise ValueError(f"{name} must have one dimension, got shape {shape}")
    _fit(*((name, array, shape) for name, array in others))


def update(
    rule: Optimizer,
    parameters: Array,
    gradients: Array,
    state: list[Array],
    t: int,
    learning_rate: float,
    n_weights: int,
) -> None:
    """Check the arguments of `Backend.update`."""
    _is_a(Optimizer, "rule", rule)
    if len(state) != rule.n_state:
        raise ValueError(f"state must hold {rule.n_state} arrays for {type(rule).__name__}, got {len(state)}")
    flat(("parameters", parameters), ("gradients", gradients), *(("state", array) for array in state))
    for name, array in (("parameters", parameters), *(("state", array) for array in state)):
        _apart(name, array)
    if any(_overlap(*pair) for pair in combinations((parameters, gradients, *state), 2)):
        raise ValueError("parameters, gradients and state must be arrays of their own, and two of them share memory")
    checks.integer("t", t, 1, checks.MAX_STEPS)
    checks.integer("n_weights", n_weights, 0, parameters.shape[0])
    checks.not_negative("learning_rate", learning_rate)


# Data


def rows_of(name: str, rows: Any, n: int) -> None:
    """Raise unless these are indices of n rows, none of them counted from the end."""
    if not (isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype.kind in "iu"):
        raise TypeError(f"{name} must be a one-dimensional NumPy array of integers, got {rows!r:.60}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < n):
        wrong = rows[(rows < 0) | (rows >= n)][0]
        raise ValueError(f"{name} must hold rows 0 ... {n - 1} of the data, got {wrong}")


def batch(batch: Batch, data: Data, rows: Any) -> None:
    """Check the arguments of `Backend.load_batch`."""
    n, B, K = len(data), len(batch.scale), batch.y.shape[1]
    count = len(range(n)[rows]) if isinstance(rows, slice) else len(rows)
    if count != B:
        raise ValueError(f"rows must be as many as the batch has, {B}, got {count}")
    if not isinstance(rows, slice):
        rows_of("rows", rows, n)
    _fit_data(data, None if batch.a[0] is None else batch.a[0].shape[1], K)
    if is_sparse(data.X):
        check("data.X", data.X)
    if data.y.ndim == 1:
        _labels(data.y, K)


def samples(plan: Plan, data: Data) -> Data:
    """Return the data of a plan, checked; the plan remembers them.

    What compiled code takes for indices, labels and those of a sparse X, is copied, unless it is such a copy already.
    """
    given, accepted = plan.accepted
    if given is data and accepted is not None:
        return accepted
    net = plan.architecture
    _fit_data(data, net.sizes[0], net.sizes[-1])
    if plan.backend.takes_sparse and is_sparse(data.X) != (plan.nonzeros is not None):
        raise ValueError("the plan was made for data of the other kind, sparse or dense; give it data.nonzeros")
    X, y = data.X, data.y
    if is_sparse(X) and not (X.format == "csr" and is_checked(X) and X.dtype == net.dtype):
        X = compressed_rows("data.X", X, net.dtype)
    if y.ndim == 1:
        y = _labels(y, net.sizes[-1])
    plan.accepted = data, data if X is data.X and y is data.y else Data(X, y, data.weight)
    return plan.accepted[1]


def _fit_data(data: Data, inputs: int | None, outputs: int) -> None:
    n, columns = _matrix("data.X", data.X)
    if n == 0 or inputs not in (None, columns):
        raise ValueError(f"data.X must have rows, of {inputs} columns, got shape {data.X.shape}")
    y = _shape("data.y", data.y)
    if y not in ((n,), (n, outputs)):
        raise ValueError(f"data.y must have shape ({n}, {outputs}), or ({n},) of integer labels, got {y}")
    _fit(("data.weight", data.weight, (n,)))


def _labels(y: Array, outputs: int) -> Array:
    """Return labels, checked, as int32 that nobody can write to; as they are if they lie on a device, or have been."""
    if y.dtype.kind not in "iu":
        raise TypeError(f"data.y of one dimension must hold integer labels, got {y.dtype}; pass numbers in columns")
    if not on_host(y) or is_frozen(y, outputs):
        return y
    labels = np.array(y)
    if len(labels) and not (labels.min() >= 0 and labels.max() < outputs):
        wrong = labels[(labels < 0) | (labels >= outputs)][0]
        raise ValueError(f"data.y of one dimension must hold labels 0 ... {outputs - 1}, got {wrong}")
    return freeze(labels.astype(np.int32, copy=False), outputs)


def epoch(plan: Plan, data: Data, order: Any, parameters: Array, learning_rates: list[float], epoch: int) -> Data:
    """Check the arguments of `Backend.run_epoch`, and return the data that are to be trained on."""
    accepted, net = samples(plan, data), plan.architecture
    n, steps = len(data), -(-len(data) // plan.batch_size)
    net.check_parameters(parameters)
    if order is not None:
        rows_of("order", order, n)
        _fit(("order", order, (n,)))
    if len(learning_rates) != steps:
        raise ValueError(f"learning_rates must hold one for each of {steps} steps, got {len(learning_rates)}")
    checks.integer("epoch", epoch, 0, checks.MAX_COUNT)
    return accepted
