"""The GPU kernels in Numba-CUDA: the names, arguments and mathematics of the CUDA C++ kernels in ``cuda/``, in Python.

Arrays come as they are, two-dimensional where the C++ comments say rows x n; an array of size 0 stands for a null
pointer. Blocks have 256 threads; any grid is right. Importing this module imports Numba's CUDA, which needs no GPU.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bpgpu.kernels import formulas as compiler
from bpgpu.kernels import rules
from bpgpu.kernels.cuda.source import NAMES
from bpgpu.kernels.numba_cuda.device import THREADS, Kind
from bpgpu.kernels.numba_cuda.gemm import gemm_forward, gemm_gradient, gemm_hidden
from bpgpu.kernels.numba_cuda.library import cuda, math
from bpgpu.kernels.numba_cuda.output import (
    output_delta,
    softmax_binary_cross_entropy,
    softmax_cost,
    softmax_cross_entropy,
)
from bpgpu.kernels.numba_cuda.rows import advance, bias_softmax, dropout, gather, hidden_softmax
from bpgpu.kernels.numba_cuda.update import norm_final, norm_partial, total, update

__all__ = ["KERNELS", "THREADS", "Kind", "arguments", "formulas_of", "kernel", "python_function"]

# kernel: what makes it, from T and its formulas as device functions.
KERNELS: dict[str, Callable[..., Callable[..., None]]] = {
    make.__name__: make
    for make in (
        gemm_forward,
        gemm_hidden,
        gemm_gradient,
        bias_softmax,
        hidden_softmax,
        output_delta,
        softmax_cross_entropy,
        softmax_binary_cross_entropy,
        softmax_cost,
        dropout,
        gather,
        advance,
        update,
        norm_partial,
        norm_final,
        total,
    )
}


def formulas_of(name: str) -> tuple[str, ...]:
    """Return the formulas that a kernel calls."""
    _, *wanted = inspect.signature(KERNELS[name]).parameters
    return tuple(wanted)


@functools.cache
def arguments(name: str) -> dict[str, Kind]:
    """Return the arguments of a kernel and what they are."""
    function = KERNELS[name](np.float32, *(None for _ in formulas_of(name)))
    parameters = inspect.signature(function).parameters
    return {parameter: declared.annotation.__metadata__[0] for parameter, declared in parameters.items()}


def _device_function(T: Any, name: str, formula: str) -> Any:
    """Return a formula as a device function; of an optimizer its count of states, then what `rules` makes of it."""
    if name == "rule":
        numbers_at = _executed(T, rules.numbers_source(formula), "numbers_at")
        return rules.count_of_states(formula), numbers_at, _executed(T, rules.python_source(formula), name)
    return _executed(T, compiler.numba_source(formula, name, NAMES[name]), name)


def _executed(T: Any, source: str, name: str) -> Any:
    namespace: dict[str, Any] = {"math": math, "T": T}
    exec(source, namespace)
    return cuda.jit(device=True)(namespace[name])


def python_function(name: str, dtype: np.dtype[Any], formulas: Mapping[str, str]) -> Callable[..., None]:
    """Return a kernel as a Python function, for a compiler or a simulator.

    Parameters
    ----------
    name : str
        A key of `KERNELS`.
    dtype : numpy.dtype
        float32 or float64: the working type T.
    formulas : mapping of str to str
        An expression for each of ``formulas_of(name)``, the text of a `bpgpu.kernels.rules.Rule` for "rule"; others
        are left alone.

    Raises
    ------
    KeyError
        If the kernel or dtype is unknown or a formula is missing.
    FormulaError
        If the compiler refuses an expression.
    """
    T = {"float32": np.float32, "float64": np.float64}[np.dtype(dtype).name]
    return KERNELS[name](T, *(_device_function(T, wanted, formulas[wanted]) for wanted in formulas_of(name)))


@functools.cache
def _kernel(name: str, dtype: np.dtype[Any], formulas: tuple[tuple[str, str], ...]) -> Any:
    return cuda.jit(python_function(name, dtype, dict(formulas)))


def kernel(name: str, dtype: np.dtype[Any], formulas: Mapping[str, str]) -> Any:
    """Return a kernel to be launched as ``kernel[grid, block, stream](*arguments)``; see `python_function`.

    It is compiled when it is first launched, and made once for the formulas that it calls.
    """
    return _kernel(name, np.dtype(dtype), tuple((wanted, formulas[wanted]) for wanted in formulas_of(name)))
