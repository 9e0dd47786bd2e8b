"""The functions of the CPU engine against extended precision, at the ends of their range, and vectorised."""

import re

import numba
import numpy as np
import pytest

from bpgpu.kernels.cpu import formulas as compiled
from bpgpu.kernels.cpu import math as numba_cpu_math
from bpgpu.kernels.formulas import ACTIVATIONS, COSTS, PAIRS

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


def erf_and_erfc(x):
    """Return both in extended precision for x >= 0: a series below 1.5, Laplace's continued fraction from there."""
    root_pi = np.sqrt(4 * np.arctan(np.longdouble(1)))
    small, large = np.minimum(x, np.longdouble(1.5)), np.maximum(x, np.longdouble(1.5))
    term, fraction = small, large
    series = term
    for n in range(1, 80):
        term = term * 2 * small * small / (2 * n + 1)
        series = series + term
    for k in range(200, 0, -1):
        fraction = large + k / (2 * fraction)
    erf = 2 / root_pi * np.exp(-small * small) * series
    erfc = np.exp(-large * large) / (root_pi * fraction)
    return np.where(x < 1.5, erf, 1 - erfc), np.where(x < 1.5, 1 - erf, erfc)


def exactly(name, x):
    x = x.astype(np.longdouble)
    if name == "erf":
        return np.copysign(erf_and_erfc(np.abs(x))[0], x)
    if name == "erfc":
        y = erf_and_erfc(np.abs(x))[1]
        return np.where(x < 0, 2 - y, y)
    return getattr(np, name)(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["exp", "expm1", "tanh", "log", "log1p", "erf", "erfc"])
def test_errors_are_below_two_units(name, dtype):
    """Or four: erfc is exp times a polynomial times a quotient."""
    rng, limits, units = np.random.default_rng(0), np.finfo(dtype), 4 if name == "erfc" else 2
    largest = np.log(limits.max) * 1.001
    near_zero = rng.standard_normal(20_000) * 10 ** rng.uniform(-30, 2, 20_000)
    whole = 2 ** rng.uniform(np.log2(limits.smallest_subnormal), np.log2(limits.max), 20_000)
    tail = rng.uniform(-2, 28, 40_000)  # of erfc
    sets = [rng.uniform(-largest, largest, 20_000), near_zero, near_zero + 1, near_zero - 1, whole, tail, SPECIAL]
    x = np.concatenate(sets).astype(dtype)
    found = apply(name, x)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        exact = exactly(name, x)
        expected = exact.astype(dtype)
    normal = np.isfinite(expected) & (np.abs(expected) >= limits.tiny)
    error = np.abs(found[normal] - exact[normal]) / np.abs(exact[normal])
    assert error.max() < units * limits.eps
    np.testing.assert_allclose(found[~normal], expected[~normal], rtol=0, atol=units / 2 * limits.smallest_subnormal)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", ["LOG", "ERF", "ERFC"])
def test_coefficients_are_those_of_interpolation_at_chebyshev_points(name, bits):
    coefficients = getattr(numba_cpu_math, name)[bits]
    centre, farthest = numba_cpu_math.CENTRE[bits], numba_cpu_math.FARTHEST[bits]
    low, high = {
        "LOG": (0, ((np.sqrt(2) - 1) / (np.sqrt(2) + 1)) ** 2),
        "ERF": (0, 9 / 16),
        "ERFC": (-1, (farthest - centre) / (farthest + centre)),
    }[name]
    n, pi = len(coefficients), 4 * np.arctan(np.longdouble(1))
    points = (low + high) / 2 + (high - low) / 2 * np.cos((2 * np.arange(n) + 1) * pi / (2 * n))
    if name == "LOG":
        expected = sum(2 * points**k / (2 * k + 3) for k in range(40))
    elif name == "ERF":
        expected = erf_and_erfc(np.sqrt(points))[0] / np.sqrt(points) - 1
    else:
        x = centre * (1 + points) / (1 - points)
        expected = ((1 + 2 * x) * np.exp(x * x) * erf_and_erfc(x)[1] - 1) / (1 + points)
    found = np.polyval(np.array(coefficients, np.longdouble), points)
    np.testing.assert_allclose(found, expected, rtol=0, atol={32: 2e-9, 64: 2e-16}[bits])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name",
    [
        *("sigmoid", "tanh", "elu", "softplus", "gelu", "binary_cross_entropy", "cross_entropy"),
        *(("sigmoid", "binary_cross_entropy"), ("tanh", "squared_error")),
    ],
)
def test_formulas_vectorise(name, dtype):
    """In the code that was compiled: several numbers at a time, and no call of the C library or of one of ours."""
    if name in ACTIVATIONS:
        source, functions = compiled._activation_source(*ACTIVATIONS[name], np.dtype(dtype)), ("activate", "derive")
    else:
        formulas = PAIRS[name] if name in PAIRS else COSTS[name][:2]
        source, functions = compiled._cost_source(*formulas, np.dtype(dtype)), ("cost",)
    namespace = {}
    exec(source.replace("cache=True", "cache=False"), namespace)  # of what comes from a cache Numba shows no code
    for function in functions:
        code = namespace[function].inspect_llvm()
        assert re.search(rf"fmul .*<\d+ x {'float' if dtype == 'float32' else 'double'}>", code)
        assert not re.search(r"call .*@(_ZN5bpgpu|(llvm\.)?(exp|expm1|tanh|log|log1p|erf|erfc)f?[.(])", code)
