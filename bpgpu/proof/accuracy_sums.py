"""Long sums of numbers with the same sign, where the roundings of a plain sum are alike and add up.

Gradients and cost of one layer, with all rows in one batch, as whole training computes them.
"""

from collections.abc import Iterator

import numpy as np

from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.interop import is_sparse
from bpgpu.model.activations import IDENTITY
from bpgpu.model.architecture import Architecture
from bpgpu.model.costs import COSTS
from bpgpu.proof.bench import Bench, Host, Measurement

ROWS = (300, 1000, 10_000, 100_000, 1_000_000)
INPUTS, OUTPUTS = 4, 3


def _values(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> Host:
    if kind == "constant":
        return np.full(shape, 0.1)
    return rng.random(shape) if kind == "uniform" else (rng.random(shape) < 0.3) * 1.0


def one_sided(bench: Bench, kind: str) -> Iterator[Measurement]:
    """Yield the errors of gradients and cost on "constant", "uniform" or "0/1" data, for each number of rows."""
    from scipy.sparse import csr_array

    dtype = np.dtype(bench.dtype)
    net = Architecture((INPUTS, OUTPUTS), (IDENTITY,), COSTS["half_squared_error"], True, 0.0, 0.0, dtype, 0)
    for B in ROWS:
        if bench.largest < B * INPUTS * OUTPUTS:
            return
        rng = np.random.default_rng([7, B])
        X, y = (_values(kind, rng, (B, n)).astype(dtype) for n in (INPUTS, OUTPUTS))
        # With all parameters 0, delta is -y / B, and the cost is the mean of half the squares of the rows.
        delta, squares = -y.astype(np.longdouble) / B, y.astype(np.longdouble) ** 2
        truth = X.astype(np.longdouble).T @ delta, delta.sum(axis=0), squares.sum() / (2 * B)
        for x in (X, csr_array(X)) if bench.backend.takes_sparse else (X,):
            given = Data(x if is_sparse(x) else bench.backend.asarray(x, dtype), bench.backend.asarray(y, dtype))
            plan = Plan(net, B, bench.backend, nonzeros=given.nonzeros).allocate()
            parameters = bench.backend.asarray(np.zeros(net.n_parameters), dtype)
            C = bench.backend.gradients(plan, given, parameters)
            found = *(bench.backend.to_numpy(x[0]) for x in (plan.dW, plan.db)), C
            case = f"{kind}, {B} rows" + (", sparse" if is_sparse(x) else "")
            for operation, got, exact in zip(("weight gradient", "bias gradient", "loss"), found, truth, strict=True):
                yield bench.compare(operation, case, got, exact, n=B)
