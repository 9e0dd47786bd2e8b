"""The compiler's facts about the Numba-CUDA kernels, for `benchmarks.gpu_static`, on any machine.

Numba turns a kernel into LLVM IR, which for these kernels is the same for all architectures; for each one, NVVM turns
that into PTX, and nvJitLink the PTX into a cubin. Every kernel is compiled with the longest formulas, in float32 for
seven architectures and in float64 for the oldest and the newest; and in float32 for the oldest with every activation,
cost and optimizer.
"""

import importlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from bpgpu.kernels import rules
from bpgpu.kernels.formulas import RULES
from bpgpu.model.activations import ACTIVATIONS, SOFTMAX
from bpgpu.model.costs import COSTS, output_formulas

FILE = "numba_cuda"  # in a row, in the place of the CUDA C++ kernels' file
# A float64 instruction of PTX, which, unlike SASS, also has those that the assembler removes.
_FLOAT64 = re.compile(r"^\s*(?:@!?%p\d+\s+)?(\w[\w.]*\.f64(?:\.\w+)*)\s", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """One kernel with one set of formulas."""

    kernel: str
    formulas: str  # their names, for people
    expressions: dict[str, str]
    dtype: str
    architectures: tuple[str, ...]


def compiler() -> str:
    """Return the versions of Numba-CUDA and NVVM, on which the table depends.

    Raises
    ------
    ImportError, RuntimeError
        If a compiler is missing.
    """
    import cuda.core  # noqa: F401
    from cuda.pathfinder import load_nvidia_dynamic_lib

    for name in ("nvvm", "nvJitLink"):
        load_nvidia_dynamic_lib(name)
    minor = ".".join(version("nvidia-nvvm").split(".")[:2])
    return f"numba-cuda {version('numba-cuda')}, NVVM {minor}"


def jobs(architectures: tuple[str, ...], ends: tuple[str, ...], longest: tuple[str, str, str]) -> list[Job]:
    """Return all compilations that the module's docstring describes."""
    from bpgpu.kernels.numba_cuda import kernels as numba_cuda

    found = []
    for kernel in numba_cuda.KERNELS:
        seen = set[tuple[str, ...]]()
        for names, expressions in _formulas(numba_cuda.formulas_of(kernel), longest):
            if tuple(expressions.values()) in seen:
                continue
            if not seen:
                found.append(Job(kernel, names, expressions, "float32", architectures))
                found.append(Job(kernel, names, expressions, "float64", ends))
            else:
                found.append(Job(kernel, names, expressions, "float32", ends[:1]))
            seen.add(tuple(expressions.values()))
    return found


def _formulas(wanted: tuple[str, ...], longest: tuple[str, str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the formulas that a kernel is compiled with and their names, the longest first."""
    if "rule" in wanted:
        for name in dict.fromkeys((longest[2], *RULES)):
            yield name, {"rule": rules.text_of_row(name)}
        return
    sigma, cost = ACTIVATIONS[longest[0]], COSTS[longest[1]]
    pairs = [(sigma, cost), *((sigma, other) for other in COSTS.values())]
    pairs += [(other, cost) for other in ACTIVATIONS.values() if not other.rowwise]
    for sigma, cost in pairs:
        value, delta = output_formulas(sigma, cost)
        table = {"sigma": sigma.value, "sigma_prime": sigma.derivative, "cost_value": value, "cost_delta": delta}
        if "cost_gradient" in wanted:
            table["cost_value"], table["cost_gradient"] = output_formulas(SOFTMAX, cost)
        yield f"{sigma.name} {cost.name}" if wanted else "", {name: table[name] for name in wanted}


def compile_job(job: Job, kernels: Any = None) -> list[dict[str, Any]]:
    """Compile to cubins and return the fields of a `gpu_static.Row` for each architecture.

    Parameters
    ----------
    job : Job
    kernels : module
        Instead of `bpgpu.kernels.numba_cuda.kernels`.

    Raises
    ------
    RuntimeError
        With the compiler's message, if it refuses the kernel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _compile(job, kernels or importlib.import_module("bpgpu.kernels.numba_cuda.kernels"))
    except Exception as error:
        what = f"{job.kernel} ({job.formulas or 'no formulas'}, {job.dtype})"
        raise RuntimeError(f"{what} does not compile: {type(error).__name__}: {error}") from error


def _compile(job: Job, kernels: Any) -> list[dict[str, Any]]:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    library = _library(job, kernels)
    rows = []
    for arch in job.architectures:
        (ptx,) = library.get_asm_strs(cc=_capability(arch))
        options = LinkerOptions(arch=arch, verbose=True, ptxas_options="-v")
        linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
        linker.link("cubin")
        log = linker.get_info_log()
        numbers = {
            name: [int(number) for number in re.findall(pattern, log)]
            for name, pattern in {
                "registers": r"Used (\d+) registers",
                "shared": r"(\d+) bytes smem",
                "stack": r"(\d+) bytes stack frame",
                "spills": r"(\d+) bytes spill",
            }.items()
        }
        rows.append(
            {
                "kernel": f"{FILE}.{job.kernel}",
                "file": FILE,
                "formulas": job.formulas,
                "dtype": job.dtype,
                "arch": arch,
                "registers": max(numbers["registers"]),
                "shared": sum(numbers["shared"]),
                "stack": max(numbers["stack"]),
                "spills": sum(numbers["spills"]),
                "warnings": [line for line in log.splitlines() if "warning" in line.lower()],
                "float64": _FLOAT64.findall(ptx),
                "loads_128": None,
            }
        )
    return rows


def _capability(arch: str) -> tuple[int, int]:
    number = int(arch.removeprefix("sm_"))
    return number // 10, number % 10


def _library(job: Job, kernels: Any) -> Any:
    """Return Numba's code library of a kernel: LLVM IR, which it can turn into PTX for any architecture.

    Device functions are compiled for the current device, which does not exist here, so it is replaced. The rest is the
    core of `numba.cuda.compile`, which would start again for every architecture. Both use Numba's internals, hence the
    pinned version.
    """
    from numba import from_dtype, types, void
    from numba.cuda import compiler, dispatcher

    def numba_type(kind: Any) -> Any:
        scalar = from_dtype(np.dtype(kind.dtype or job.dtype))
        return types.Array(scalar, kind.ndim, "C") if kind.ndim else scalar

    capability = _capability(job.architectures[0])
    signature = void(*map(numba_type, kernels.arguments(job.kernel).values()))
    function = kernels.python_function(job.kernel, np.dtype(job.dtype), job.expressions)
    with mock.patch.object(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=capability)):
        library, _ = compiler._compile_pyfunc_with_fixup(function, signature, cc=capability, device=False, abi="numba")
    return library
