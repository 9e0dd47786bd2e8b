"""Launching the Numba-CUDA kernels: compiled on demand, every argument checked against the kernel's signature.

Numba takes whatever comes: it would compile a kernel anew for a float64 in a float32 kernel, and copy a NumPy array to
the device and back in every launch. So a launch is bound once, with all checks, and then repeated.
"""

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.backends.cuda.launch import BLOCK, Launch

Array = Any


@dataclass(frozen=True)
class Kernel:
    """A kernel that has its grid, block and stream; called as CuPy's kernels are, so that `at_step` knows it."""

    configured: Any

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        self.configured(*arguments)


class Launcher:
    """The kernels of `bpgpu.kernels.numba_cuda.kernels`, on one stream.

    Parameters
    ----------
    kernels : module
        `bpgpu.kernels.numba_cuda.kernels`, which loads Numba's CUDA.
    cuda : module
        Numba's CUDA.
    stream : numba stream
        On which all launches go.
    """

    def __init__(self, kernels: Any, cuda: Any, stream: Any) -> None:
        self.kernels, self.cuda, self.stream = kernels, cuda, stream
        self._null = functools.cache(self._empty)

    def _empty(self, ndim: int, dtype: np.dtype[Any]) -> Array:
        return self.cuda.device_array((0,) * ndim, dtype=dtype)

    def bind(
        self,
        name: str,
        dtype: np.dtype[Any],
        grid: tuple[int, ...],
        arguments: tuple[Any, ...],
        *,
        block: int = BLOCK,
        formulas: dict[str, str] | None = None,
    ) -> Launch:
        kinds = self.kernels.arguments(name)
        if block != BLOCK:
            raise ValueError(f"kernel {name} takes blocks of {BLOCK} threads, got {block}")
        if len(arguments) != len(kinds):
            raise TypeError(f"kernel {name} takes {len(kinds)} arguments, got {len(arguments)}")
        pairs = zip(kinds.items(), arguments, strict=True)
        typed = tuple(self._typed(f"kernel {name}: {named}", dtype, kind, value) for (named, kind), value in pairs)
        threads = (self.kernels.THREADS,)
        kernel = self._configured(self.kernels.kernel(name, dtype, formulas or {}), grid, threads)
        return functools.partial(kernel, grid, threads, typed)

    def _configured(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...]) -> Kernel:
        if not hasattr(kernel, "configure"):
            kernel = copy.copy(kernel)  # Numba's simulator keeps one configuration with a kernel
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Numba, that few blocks leave a GPU idle: so do small networks
            return Kernel(kernel[grid, block, self.stream])

    def _typed(self, what: str, dtype: np.dtype[Any], kind: Any, value: Any) -> Any:
        expected = np.dtype(kind.dtype or dtype)
        if kind.ndim == 0:
            if not isinstance(value, int | float | np.generic):
                raise TypeError(f"{what} must be a number, got {type(value).__name__}")
            return expected.type(value)
        if value is None:
            return self._null(kind.ndim, expected)
        # Not what has only __cuda_array_interface__: wrapping that in every launch would cost more than the launch.
        on_device = hasattr(value, "copy_to_host") and value.is_c_contiguous()
        if not on_device or (value.ndim, value.dtype) != (kind.ndim, expected):
            got = f"{type(value).__name__} of {getattr(value, 'ndim', 0)} dimensions of {getattr(value, 'dtype', None)}"
            dimensions = f"{kind.ndim} dimension{'s' * (kind.ndim > 1)} of {expected}"
            raise TypeError(f"{what} must be a C-contiguous device array of {dimensions}, got {got}")
        return value
