"""Formulas as compiled functions with a fixed C signature, which the CPU epoch calls through their addresses.

Numba caches only what stands in a file, so the source made from a formula is written to a cache folder, under a name
made from its content: a formula is compiled once in the life of that folder. Each function loops over some rows.
"""

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name
from numba.core import config
from numba.misc import appdirs

from bpgpu.kernels import formulas

_HEAD = '''"""Made by bpgpu from a formula, for Numba {numba} on {cpu}."""
import math

import numpy as np
from numba import carray, cfunc, njit, types

T = np.{dtype}
P, N = types.CPointer(types.{dtype}), types.int64
SUMS = {{"reassoc", "nsz", "contract"}}  # a sum in any order, fixed once compiled; NaN and infinity stay what they are


'''

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
        c = T(0)
        for j in range(n):
            c += value(z_[i, j], a_[i, j], y_[i, j])
            x = slope(z_[i, j], a_[i, j], y_[i, j]) * (f * scale_[i])
            delta_[i, j] = x
            s += math.fabs(x)
        out_[i] = f * c
    carray(total, 1)[0] = s
"""


def _function(name: str, expression: str) -> str:
    source: str = formulas.numba_source(expression, name)
    return f'@njit(fastmath={{"contract"}}, error_model="numpy")\n{source}'


@functools.cache
def _cache_folder() -> Path:
    """Return the folder for generated source, by Numba's rules: NUMBA_CACHE_DIR, beside this file, the user's cache."""
    given: str = vars(config)["CACHE_DIR"]
    beside, user = Path(__file__).parent / "__pycache__", Path(vars(appdirs)["user_cache_dir"]("numba", False))
    for folder in [Path(given)] if given else [beside, user]:
        try:
            (folder / "bpgpu").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / "bpgpu"):
                return folder / "bpgpu"
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="bpgpu"))


def _path(source: str) -> Path:
    return _cache_folder() / f"formula_{hashlib.sha256(source.encode()).hexdigest()[:20]}.py"


@functools.cache
def _module(source: str) -> Any:
    """Import a source from the cache folder; compiling or loading its functions happens here."""
    path = _path(source)
    if not path.exists() or path.read_text(encoding="utf-8") != source:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            file.write(source)
        os.replace(file.name, path)  # noqa: PTH105  # other processes see the whole file or none
    spec = importlib.util.spec_from_file_location(f"bpgpu_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Numba's cache looks for it
    spec.loader.exec_module(module)
    return module


def _head(dtype: np.dtype[Any]) -> str:
    return _HEAD.format(dtype=dtype.name, numba=version("numba"), cpu=get_host_cpu_name())


def _activation_source(value: str, derivative: str, dtype: np.dtype[Any]) -> str:
    return _head(dtype) + _function("value", value) + _ACTIVATE + _function("slope", derivative) + _DERIVE


def _cost_source(value: str, gradient: str, dtype: np.dtype[Any]) -> str:
    return _head(dtype) + _function("value", value) + _function("slope", gradient) + _COST


def activation(value: str, derivative: str, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the addresses of `activate` and `derive` of an elementwise activation; 0 for the derivative 1."""
    module = _module(_activation_source(value, derivative, dtype))
    return module.activate.address, 0 if derivative == "1" else module.derive.address


def cost(value: str, gradient: str, dtype: np.dtype[Any]) -> int:
    """Return the address of `cost` of a cost and its gradient dC/da, or of a pair and its dC/dz."""
    address: int = _module(_cost_source(value, gradient, dtype)).cost.address
    return address


def _table(dtype: np.dtype[Any]) -> list[str]:
    rows = [_activation_source(value, slope, dtype) for value, slope in formulas.ACTIVATIONS.values()]
    costs = [_cost_source(value, slope, dtype) for value, slope, _ in formulas.COSTS.values()]
    return [*rows, *costs, *(_cost_source(value, slope, dtype) for value, slope in formulas.PAIRS.values())]


def table_is_cached(dtype: np.dtype[Any]) -> bool:
    """Return whether every row of the formula table was compiled before, by this Numba for this processor."""
    return all(_path(source).exists() for source in _table(dtype))


def compile_table(dtype: np.dtype[Any]) -> None:
    """Compile every row of the formula table, or find it in the cache."""
    for source in _table(dtype):
        _module(source)
