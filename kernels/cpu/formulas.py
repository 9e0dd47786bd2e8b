"""Formulas as compiled functions with a fixed C signature, which the CPU epoch calls through their addresses.

The source made from a formula is kept in a cache folder with its code. Each function loops over some rows.
"""

import ast
import functools
from typing import Any

import numpy as np

from bpgpu.kernels import formulas, rules
from bpgpu.kernels.cpu import cache

_HEAD = """import numpy as np
from numba import carray, cfunc, njit, types

from bpgpu.kernels.cpu import math
from bpgpu.kernels.cpu.addresses import vector
from bpgpu.kernels.cpu.math import select
from bpgpu.kernels.cpu.softmax import plus
from bpgpu.kernels.cpu.sums import FEW

T = np.{dtype}
P, N = types.CPointer(types.{dtype}), types.int64
SUMS = {{"reassoc", "nsz", "contract"}}  # a sum in any order, fixed once compiled; NaN and infinity stay what they are


"""

# z + b into z, sigma of it into a, which may be z; sum[0] is the sum of the magnitudes of a.
_ACTIVATE = """
@cfunc(types.void(P, P, P, N, N, P), cache=True, fastmath=SUMS, error_model="numpy")
def activate(z, b, a, rows, n, total):
    z_, b_, a_ = carray(z, (rows, n)), carray(b, n), carray(a, (rows, n))
    s = T(0)
    if z_.ctypes.data == a_.ctypes.data:
        for i in range(rows):
            for j in range(n):
                x = value(z_[i, j] + b_[j], T(0), T(0))
                z_[i, j] = x
                s += math.fabs(x)
    else:
        for i in range(rows):
            for j in range(n):
                x = z_[i, j] + b_[j]
                z_[i, j] = x
                x = value(x, T(0), T(0))
                a_[i, j] = x
                s += math.fabs(x)
    carray(total, 1)[0] = s
"""

# delta times sigma'; sum[0] is the sum of the magnitudes of delta.
_DERIVE = """
@cfunc(types.void(P, P, P, N, P), cache=True, fastmath=SUMS, error_model="numpy")
def derive(delta, z, a, size, total):
    delta_, z_, a_ = carray(delta, size), carray(z, size), carray(a, size)
    s = T(0)
    for i in range(size):
        x = delta_[i] * slope(z_[i], a_[i], T(0))
        delta_[i] = x
        s += math.fabs(x)
    carray(total, 1)[0] = s
"""

# The cost of each row, times `factor`; dC/da, or dC/dz of a pair, times `factor` and the scale of the row into delta.
_COST = """
@cfunc(types.void(P, P, P, P, P, P, N, N, P, P), cache=True, fastmath=SUMS, error_model="numpy")
def cost(z, a, y, delta, scale, out, rows, n, factor, total):
    z_, a_, y_ = carray(z, (rows, n)), carray(a, (rows, n)), carray(y, (rows, n))
    delta_, scale_, out_ = carray(delta, (rows, n)), carray(scale, rows), carray(out, rows)
    f = carray(factor, 1)[0]
    s = T(0)
    for i in range(rows):
        c, lost = T(0), T(0)
        for start in range(0, n, FEW):  # so that a long row is no long sum
            part = T(0)
            for j in range(start, min(start + FEW, n)):
                part += value(z_[i, j], a_[i, j], y_[i, j])
                x = slope(z_[i, j], a_[i, j], y_[i, j]) * (f * scale_[i])
                delta_[i, j] = x
                s += math.fabs(x)
            c, lost = plus(c, lost, part)
        out_[i] = f * c
    carray(total, 1)[0] = s
"""

# The step of an optimizer for `size` parameters from `start` on. `arrays` are the addresses of p, g and the state.
_UPDATE = """
@cfunc(types.void(types.CPointer(N), P, N, N, N), cache=True, fastmath={{"contract"}}, error_model="numpy")
def update(arrays, numbers, start, size, is_weight):
    at, n_, w = carray(arrays, {arrays}), carray(numbers, {numbers}), T(is_weight)
    n = ({taken})
    p = vector(at[0] + start * {itemsize}, size, n_)
    g = vector(at[1] + start * {itemsize}, size, n_)
{states}    for i in range(size):
        {results} = rule(p[i], g[i], w, {given}, n)
"""


class _Eager(ast.NodeTransformer):
    """Write ``x if c else y`` as ``select(c, x, y)``: a loop that computes something in a branch does not vectorise."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.Call:
        self.generic_visit(node)
        return ast.Call(ast.Name("select", ast.Load()), [node.test, node.body, node.orelse], [])


def _function(name: str, expression: str) -> str:
    return _inlined(formulas.numba_source(expression, name))


def _inlined(source: str) -> str:
    # By force: LLVM leaves a long one a call, and a loop with a call does not vectorise.
    tree = _Eager().visit(ast.parse(source))
    return f'@njit(fastmath={{"contract"}}, error_model="numpy", forceinline=True)\n{ast.unparse(tree)}\n'


def _head(dtype: np.dtype[Any]) -> str:
    heading: str = cache.heading("a formula")
    return heading + _HEAD.format(dtype=dtype.name)


@functools.cache  # an estimator's fit may take no longer than making these
def _activation_source(value: str, derivative: str, dtype: np.dtype[Any]) -> str:
    return _head(dtype) + _function("value", value) + _ACTIVATE + _function("slope", derivative) + _DERIVE


@functools.cache
def _cost_source(value: str, gradient: str, dtype: np.dtype[Any]) -> str:
    return _head(dtype) + _function("value", value) + _function("slope", gradient) + _COST


@functools.cache
def _rule_source(text: str, dtype: np.dtype[Any]) -> str:
    states = range(rules.count_of_states(text))
    values = {
        "arrays": 2 + len(states),
        "numbers": rules.count_of_numbers(text),
        "itemsize": dtype.itemsize,
        "taken": "".join(f"n_[{k}], " for k in range(rules.count_of_numbers(text))),
        "states": "".join(f"    s{k} = vector(at[{k + 2}] + start * {dtype.itemsize}, size, n_)\n" for k in states),
        "results": ", ".join(["p[i]", *(f"s{k}[i]" if k in states else "_" for k in range(rules.MAX_STATES))]),
        "given": ", ".join(f"s{k}[i]" if k in states else "T(0)" for k in range(rules.MAX_STATES)),
    }
    return _head(dtype) + _inlined(rules.python_source(text)) + _UPDATE.format(**values)


def rule(text: str, dtype: np.dtype[Any]) -> int:
    """Return the address of `update` of an optimizer, given as `bpgpu.kernels.rules.Rule.text`."""
    address: int = cache.load(_rule_source(text, dtype)).update.address
    return address


def activation(value: str, derivative: str, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the addresses of `activate` and `derive` of an elementwise activation; 0 for the derivative 1."""
    module = cache.load(_activation_source(value, derivative, dtype))
    return module.activate.address, 0 if derivative == "1" else module.derive.address


def cost(value: str, gradient: str, dtype: np.dtype[Any]) -> int:
    """Return the address of `cost` of a cost and its gradient dC/da, or of a pair and its dC/dz."""
    address: int = cache.load(_cost_source(value, gradient, dtype)).cost.address
    return address


def table(dtype: np.dtype[Any]) -> list[str]:
    """Return the source of every row of the formula table."""
    rows = [_activation_source(value, slope, dtype) for value, slope in formulas.ACTIVATIONS.values()]
    costs = [_cost_source(value, slope, dtype) for value, slope, _ in formulas.COSTS.values()]
    pairs = [_cost_source(value, slope, dtype) for value, slope in formulas.PAIRS.values()]
    return [*rows, *costs, *pairs, *(_rule_source(text, dtype) for text in rules.table())]
