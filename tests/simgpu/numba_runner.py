"""The Numba-CUDA kernels on the simulator, and for the checks of the CUDA C++ kernels, which call them as CuPy does."""

import importlib
import sys
import types
from collections.abc import Mapping
from importlib import resources
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.simgpu import numba_sim

MODULES = (
    "device",
    "gemm",
    "output",
    "rows",
    "update",
    "kernels",
)
PACKAGE = "bpgpu.kernels.numba_cuda"
SHIM = f"{PACKAGE}.library"


def source(module: str) -> str:
    """Return the text of one of `MODULES`."""
    return resources.files(PACKAGE).joinpath(f"{module}.py").read_text(encoding="utf-8")


def load(changed: Mapping[str, str] | None = None, threads: int = 256, shim: Any = None) -> Any:
    """Return `bpgpu.kernels.numba_cuda.kernels` as it is on the simulator, or with another `cuda` and `math`.

    Parameters
    ----------
    changed : mapping of str to str
        Other texts for some of `MODULES`.
    threads : int
        Of a block; 64 are so much quicker, with tiles of 32 x 32 for 64 x 64 in the products.
    shim : module
        With `cuda` and `math`.
    """
    importlib.import_module(PACKAGE)
    texts = {name: source(name) for name in MODULES} | dict(changed or {})
    parts = texts["device"]
    assert parts.count("\nTHREADS = 256 ") == 1
    texts["device"] = parts.replace("\nTHREADS = 256 ", f"\nTHREADS = {threads} ")
    made = {name: types.ModuleType(f"{PACKAGE}.{name}") for name in MODULES}
    found: dict[str, Any] = {SHIM: shim or SimpleNamespace(cuda=numba_sim.cuda, math=numba_sim.math)}
    found |= {module.__name__: module for module in made.values()}
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        for name in MODULES:
            exec(compile(texts[name], f"{name}.py", "exec"), vars(made[name]))
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
    return made["kernels"]


class Module:
    """Kernels of one dtype; those of `combined` have the name of a case behind theirs, as name__case."""

    def __init__(self, kernels: Any, dtype: Any, cases: dict[str, dict[str, str]]) -> None:
        self.kernels, self.dtype, self.cases = kernels, np.dtype(dtype), cases

    def get_function(self, name: str) -> "Function":
        name, _, case = name.partition("__")
        return Function(self.kernels, name, self.kernels.kernel(name, self.dtype, self.cases.get(case, {})), self.dtype)


class Function:
    """A kernel, to be called as ``kernel(grid, block, arguments, order=...)`` with None for a null pointer."""

    def __init__(self, kernels: Any, name: str, kernel: Any, dtype: Any) -> None:
        self.kinds, self.kernel, self.dtype, self.threads = kernels.arguments(name), kernel, dtype, kernels.THREADS

    def __call__(self, grid: Any, block: Any, arguments: Any, order: str = "forward", seed: int = 0) -> None:
        block = (self.threads,) if block == (256,) else block
        taken = [self._taken(*pair) for pair in zip(self.kinds.values(), arguments, strict=True)]
        numba_sim.launch(self.kernel, grid, block, taken, order=order, seed=seed)

    def _taken(self, kind: Any, value: Any) -> Any:
        if value is None:
            return np.empty((0,) * kind.ndim, kind.dtype or self.dtype)
        if isinstance(value, np.ndarray) and value.ndim > kind.ndim == 1:
            return value.reshape(-1)
        return value


# On one warp and off it, on one block and off it; three columns that one thread works on.
SHAPES = [(1, 1), (1, 31), (9, 33), (3, 65), (17, 3)]


def _variants(shapes: Any) -> Any:
    """Shapes and grids; what may be null given and not."""
    for k, shape in enumerate(shapes):
        yield shape, (1, 2, 4)[k % 3], True, 0
    yield shapes[-1], 2, False, 0


def use(monkeypatch: Any, kernels: Any, checks: Any) -> None:
    """Let `checks`, the module of tests of the CUDA C++ kernels, run these kernels, on shapes that Python can bear."""
    monkeypatch.setattr(checks, "module", lambda file, dtype, **formulas: Module(kernels, dtype, {"": formulas}))
    monkeypatch.setattr(checks, "combined", lambda file, dtype, cases: Module(kernels, dtype, cases))
    monkeypatch.setattr(
        checks, "variants", lambda shapes=checks.SHAPES: _variants([s for s in SHAPES if s[1] >= shapes[0][1]])
    )
    for name in ("forward_module", "hidden_module", "output_module", "softmax_module"):
        made = getattr(checks, name)
        monkeypatch.setattr(checks, name, getattr(made, "__wrapped__", made))  # whose results are not kept
