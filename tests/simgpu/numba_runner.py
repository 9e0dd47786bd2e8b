"""The Numba-CUDA kernels for the checks of the CUDA C++ kernels, which call them in the way of CuPy."""

from typing import Any

import numpy as np

from tests.simgpu import numba_sim


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
        self.kinds, self.kernel, self.dtype = kernels.arguments(name), kernel, dtype

    def __call__(self, grid: Any, block: Any, arguments: Any, order: str = "forward", seed: int = 0) -> None:
        taken = [self._taken(*pair) for pair in zip(self.kinds.values(), arguments, strict=True)]
        numba_sim.launch(self.kernel, grid, block, taken, order=order, seed=seed)

    def _taken(self, kind: Any, value: Any) -> Any:
        if value is None:
            return np.empty((0,) * kind.ndim, kind.dtype or self.dtype)
        if isinstance(value, np.ndarray) and value.ndim > kind.ndim == 1:
            return value.reshape(-1)
        return value


def use(monkeypatch: Any, kernels: Any, checks: Any) -> None:
    """Let `checks`, the module of tests of the CUDA C++ kernels, run these kernels, on shapes that Python can bear."""
    monkeypatch.setattr(checks, "module", lambda file, dtype, **formulas: Module(kernels, dtype, {"": formulas}))
    monkeypatch.setattr(checks, "combined", lambda file, dtype, cases: Module(kernels, dtype, cases))
    monkeypatch.setattr(checks, "SHAPES", [(1, 1), (9, 33), (1, 65), (17, 3)])
    monkeypatch.setattr(checks, "GRIDS", [1, 2, 4])
    for made in (checks.forward_module, checks.hidden_module, checks.output_module, checks.softmax_module):
        monkeypatch.setattr(checks, made.__name__, made.__wrapped__)
