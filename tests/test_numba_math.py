"""exp, expm1 and tanh of the CPU engine against extended precision, at the ends of their range, and vectorised."""

import re

import numba
import numpy as np
import pytest

from bpgpu.kernels import numba_cpu_formulas as compiled
from bpgpu.kernels import numba_cpu_math
from bpgpu.kernels.formulas import ACTIVATIONS

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, 1e4, -1e4, 88.7, 88.8, -103.0, -104.5, 709.7, 709.8, -745.0, -746.5]


def apply(name, x):
    function = getattr(numba_cpu_math, name)

    @numba.njit(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.empty_like(x)
    loop(x, out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["exp", "expm1", "tanh"])
def test_errors_are_below_two_units(name, dtype):
    rng, limits = np.random.default_rng(0), np.finfo(dtype)
    largest = np.log(limits.max) * 1.001
    near_zero = rng.standard_normal(20_000) * 10 ** rng.uniform(-30, 2, 20_000)
    x = np.concatenate([rng.uniform(-largest, largest, 20_000), near_zero, SPECIAL]).astype(dtype)
    found = apply(name, x)
    with np.errstate(over="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
        expected = exact.astype(dtype)
    normal = np.isfinite(expected) & (np.abs(expected) >= limits.tiny)
    error = np.abs(found[normal] - exact[normal]) / np.abs(exact[normal])
    assert error.max() < 2 * limits.eps
    np.testing.assert_allclose(found[~normal], expected[~normal], rtol=0, atol=limits.smallest_subnormal)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "elu"])
def test_formulas_vectorise(name, dtype):
    """In the code that was compiled: several numbers at a time, and no call of the C library."""
    source, namespace = compiled._activation_source(*ACTIVATIONS[name], np.dtype(dtype)), {}
    exec(source.replace("cache=True", "cache=False"), namespace)  # of what comes from a cache Numba shows no code
    for function in ("activate", "derive"):
        code = namespace[function].inspect_llvm()
        assert re.search(rf"fmul .*<\d+ x {'float' if dtype == 'float32' else 'double'}>", code)
        assert not re.search(r"call .*@(llvm\.)?(exp|tanh|expm1)", code)
