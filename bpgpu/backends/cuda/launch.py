"""Launching the CUDA C++ kernels through CuPy: compiled on demand, every argument checked against the signature.

A raw kernel checks nothing: it takes a view for its base, an int for a long long. So a launch is bound once, with all
checks, and then repeated at the cost of the launch alone.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from bpgpu.kernels.cuda import source as cuda_kernels

Array = Any
BLOCK = 256
# Blocks of a grid-stride kernel at most: enough to fill any device, and the same everywhere, so that what a block
# adds up is the same everywhere.
MAX_BLOCKS = 1024
NULL = np.uint64(0)  # None would be a null pointer to the argument, not a null argument
SCALARS: dict[str, type[np.generic]] = {"int": np.int32, "unsigned": np.uint32, "long long": np.int64}
POINTEES = {"int": np.dtype(np.int32), "long long": np.dtype(np.int64)}
OPTIONS = ("-std=c++17",)

Launch = Callable[[], None]


def blocks(count: int, per_block: int = BLOCK) -> int:
    """Return the blocks of a grid-stride kernel for `count` items."""
    return max(1, min(MAX_BLOCKS, -(-count // per_block)))


class Binds(Protocol):
    """What launches the kernels of a language: all that `steps` needs of it."""

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
        """Return a function that launches a kernel with these arguments.

        Parameters
        ----------
        name : str
        dtype : numpy.dtype
            T, the working type.
        grid : tuple of int
            Blocks in x and y.
        arguments : tuple
            Device arrays, or None where there is none, and Python numbers, which become what the signature says.
        block : int
            Threads.
        formulas : dict
            The expressions that the kernel's file needs.

        Raises
        ------
        TypeError
            If the number, an array's dtype or kind, or its memory layout does not suit the signature.
        """


class Launcher:
    """The kernels of `bpgpu.kernels` on one device.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self._function = functools.cache(self._compile)

    def _compile(self, name: str, dtype: np.dtype[Any], formulas: tuple[tuple[str, str], ...]) -> Any:
        file, _ = cuda_kernels.ABI[name]
        source = cuda_kernels.module_source(file, dtype, dict(formulas))
        return self.cupy.RawModule(code=source, options=OPTIONS).get_function(name)

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
        _, types = cuda_kernels.ABI[name]
        if len(arguments) != len(types):
            raise TypeError(f"kernel {name} takes {len(types)} arguments, got {len(arguments)}")
        typed = tuple(self._typed(name, dtype, *pair) for pair in zip(types, arguments, strict=True))
        kernel = self._function(name, dtype, tuple(sorted((formulas or {}).items())))
        return functools.partial(kernel, grid, (block,), typed)

    def _typed(self, name: str, dtype: np.dtype[Any], declared: str, value: Any) -> Any:
        kind = declared.removeprefix("const ").strip()
        if not kind.endswith("*"):
            scalar: type[np.generic] = dtype.type if kind == "T" else SCALARS[kind]
            return scalar(value)
        if value is None:
            return NULL
        expected = dtype if kind == "T*" else POINTEES[kind.removesuffix("*").strip()]
        if not isinstance(value, self.cupy.ndarray) or value.dtype != expected or not value.flags.c_contiguous:
            got = f"{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
            raise TypeError(f"kernel {name}: {declared} must be a C-contiguous CuPy array of {expected}, got {got}")
        return value
