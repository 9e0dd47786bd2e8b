"""The CUDA C++ kernels as source: put together with their formulas and working type, and what arguments they take.

The files in ``cuda/`` need no headers: NVRTC compiles them for a GPU, and any C++17 compiler that gets a definition
of the few CUDA words they use runs them on a CPU.
"""

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np

from bpgpu.kernels import formulas as compiler
from bpgpu.kernels import rules

# file: the formulas that its kernels call.
FORMULAS: dict[str, tuple[str, ...]] = {
    "forward.cu": ("sigma",),
    "output.cu": ("sigma", "cost_value", "cost_delta"),
    "output_softmax.cu": ("cost_value", "cost_gradient"),
    "hidden.cu": ("sigma_prime",),
    "gather.cu": (),
    "gradient.cu": (),
    "norm.cu": (),
    "update.cu": ("rule",),
    "dropout.cu": (),
    "gemm.cu": ("sigma", "sigma_prime"),
}
# formula: its arguments. That of an optimizer, "rule", is the text of a `bpgpu.kernels.rules.Rule`.
NAMES: dict[str, tuple[str, ...]] = {
    "sigma": ("z",),
    "sigma_prime": ("z", "a"),
    "cost_value": ("z", "a", "y"),
    "cost_delta": ("z", "a", "y"),
    "cost_gradient": ("z", "a", "y"),
}
_SHARED = ("common.cuh", "philox.cuh")
_WORKING_TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)')


def _text(file: str) -> str:
    return resources.files("bpgpu.kernels.cuda").joinpath(file).read_text(encoding="utf-8")


def module_source(file: str, dtype: np.dtype[Any], formulas: Mapping[str, str]) -> str:
    """Return the source of a module: the kernels of one file for one dtype.

    Parameters
    ----------
    file : str
        A key of `FORMULAS`.
    dtype : numpy.dtype
        float32 or float64: the working type T.
    formulas : mapping of str to str
        An expression for each name in ``FORMULAS[file]``, in the arguments that `NAMES` has for it; the text of a
        `bpgpu.kernels.rules.Rule` for "rule".

    Returns
    -------
    str
        CUDA C++ without includes; compilers name the lines of the files it was made of.

    Raises
    ------
    KeyError
        If the file or dtype is unknown, or a formula is missing or not called by the file.
    FormulaError
        If the compiler refuses an expression.
    """
    if set(formulas) != set(FORMULAS[file]):
        raise KeyError(f"{file} takes the formulas {FORMULAS[file]}, got {tuple(formulas)}")
    return "".join(
        [
            f"typedef {_WORKING_TYPES[np.dtype(dtype)]} T;\n",
            *(_function(name, formulas[name]) for name in FORMULAS[file]),
            *(f'#line 1 "{part}"\n{_text(part)}' for part in (*_SHARED, file)),
        ]
    )


def _function(name: str, formula: str) -> str:
    return rules.cuda_source(formula) if name == "rule" else compiler.cuda_source(formula, name, NAMES[name])


def _arguments(declaration: str) -> tuple[str, ...]:
    return tuple(re.sub(r"\s*\w+$", "", argument.strip()) for argument in declaration.split(","))


def _parse_abi() -> dict[str, tuple[str, tuple[str, ...]]]:
    folder = resources.files("bpgpu.kernels.cuda")
    files = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".cu"))
    return {name: (file, _arguments(found)) for file in files for name, found in _KERNEL.findall(_text(file))}


# kernel: (file, C++ types of its arguments), read from the declarations themselves.
ABI: dict[str, tuple[str, tuple[str, ...]]] = _parse_abi()
