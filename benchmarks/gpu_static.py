"""The compiler's facts about every GPU kernel, and what a training step moves, on any machine, with or without a GPU.

    python -m benchmarks.gpu_static                   a table of all kernels, and of a step of 784-512-10
    python -m benchmarks.gpu_static --json            the same as JSON, one row for each compiled kernel
    python -m benchmarks.gpu_static --write           update the table that tests/kernels/test_gpu_compile.py reads
    python -m benchmarks.gpu_static --step-only --sizes 784,512,10 --batch 128 --optimizer adam

Every kernel is compiled by NVRTC with every formula of the tables, in float32 and float64: with all formulas for the
oldest and the newest architecture, and with the longest ones for the five between. A file is compiled once for all
formulas, and a kernel that calls none is in it once (`benchmarks.gpu_sources`): that is 140 compilations, where one for
each formula would be 456. SASS is read only where it is examined: for all float32 kernels with all formulas on the
oldest architecture, because float64 instructions come from the source and not from the architecture; and for the files
with kernels that must load 128 bits at a time, in both dtypes on all architectures.

The Numba-CUDA kernels, whose names here begin with "numba_cuda.", are compiled by `benchmarks.numba_static`: another
181 cubins, another half minute on two processors.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_step, numba_static
from benchmarks.gpu_sources import combined
from bpgpu.files.writing import atomic_file
from bpgpu.kernels import rules
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.kernels.formulas import RULES
from bpgpu.model.activations import ACTIVATIONS, SOFTMAX
from bpgpu.model.costs import COSTS, output_formulas

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ALL_FORMULAS_ON = ("sm_75", "sm_120")
LONGEST = ("gelu", "binary_cross_entropy", "adamw")
# The kernels that must load 128 bits at a time.
VECTOR_LOADS = ("gather", "bias_sigma", "hidden_delta", "dropout", "gemm_forward", "gemm_hidden", "gemm_gradient")
KERNELS = Path(cuda_kernels.__file__).parents[1]
TABLE = Path(__file__).parents[1] / "tests" / "gpu_static.json"
COLUMNS = ("registers", "shared", "spills", "loads_128")
WORKERS = 2
TOOLS_MISSING = 3  # exit status

# ptxas -v has a block for each kernel.
_ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", re.DOTALL)
_SECTION = re.compile(r"^\.text\.(\w+):(.*?)(?=^\.text\.|\Z)", re.DOTALL | re.MULTILINE)
_FLOAT64 = re.compile(r"\b(?:D(?:ADD|MUL|FMA|MMA|SETP|MNMX|SET)|[IF]2[IF]\.\S*F64|F2F\.\S*64|MUFU\.\S*64)\S*")
_LOAD_128 = re.compile(r"\bLDG\.E\.(?:\w+\.)*128\b")


@dataclass(frozen=True)
class Job:
    """One compilation: all kernels of a file, those that call formulas with each of some sets of them."""

    file: str
    dtype: str
    arch: str
    source: str
    kernels: dict[str, tuple[str, str]]  # name in the source: kernel, and its formulas' names, for people
    disassemble: bool


@dataclass(frozen=True)
class Row:
    """The facts about one compiled kernel; the last two are None if its SASS was not read."""

    kernel: str
    file: str
    formulas: str
    dtype: str
    arch: str
    registers: int
    shared: int  # bytes
    stack: int  # bytes of local memory
    spills: int  # bytes
    warnings: list[str]
    float64: list[str] | None  # instructions
    loads_128: int | None


def instances(file: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the formulas that a file's kernels are compiled with, by the names of the rows they are from."""
    wanted = cuda_kernels.FORMULAS[file]
    if "rule" in wanted:
        return {(name,): {"rule": rules.text_of_row(name)} for name in RULES}
    elementwise = [sigma for sigma in ACTIVATIONS.values() if not sigma.rowwise]
    activations = elementwise if {"sigma", "sigma_prime", "cost_delta"} & set(wanted) else [None]
    costs = [*COSTS.values()] if {"cost_value", "cost_gradient"} & set(wanted) else [None]
    found = {}
    for sigma in activations:
        for cost in costs:
            table = {}
            if sigma is not None:
                table |= {"sigma": sigma.value, "sigma_prime": sigma.derivative}
            if cost is not None:
                table["cost_value"], table["cost_gradient"] = output_formulas(SOFTMAX, cost)
            if sigma is not None and cost is not None:
                table["cost_value"], table["cost_delta"] = output_formulas(sigma, cost)
            names = tuple(row.name for row in (sigma, cost) if row is not None)
            found[names] = {name: table[name] for name in wanted}
    return found


def jobs(files: Iterable[str] = tuple(cuda_kernels.FORMULAS)) -> list[Job]:
    """Return all compilations that the module's docstring describes."""
    found = []
    for file in files:
        vectors = any(cuda_kernels.ABI[kernel][0] == file for kernel in VECTOR_LOADS)
        every = instances(file)
        longest = {names: formulas for names, formulas in every.items() if set(names) <= set(LONGEST)}
        for dtype in ("float32", "float64"):
            for arch in ARCHITECTURES:
                cases = every if arch in ALL_FORMULAS_ON else longest
                joined = {"__".join(names): formulas for names, formulas in cases.items()}
                source, kernels = combined(file, np.dtype(dtype), joined)
                named = {name: (kernel, case.replace("__", " ")) for name, (kernel, case) in kernels.items()}
                read = vectors or (dtype, arch) == ("float32", ARCHITECTURES[0])
                found.append(Job(file, dtype, arch, source, named, read))
    return found


def compile_job(job: Job) -> list[Row]:
    """Compile to a cubin and return a row for each kernel.

    Raises
    ------
    RuntimeError
        With the compiler's log, if it refuses the source.
    """
    from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    options = ProgramOptions(arch=job.arch, std="c++17", ptxas_options="-v")
    try:
        cubin = Program(job.source, "c++", options).compile("cubin", logs=log).code
    except Exception as error:
        what = f"{job.file} ({job.dtype}, {job.arch})"
        raise RuntimeError(f"{what} does not compile: {error}\n{log.getvalue()}") from error
    text = log.getvalue()
    sass = dict(_SECTION.findall(disassemble(cubin))) if job.disassemble else {}
    warnings = [line for line in text.splitlines() if "warning" in line.lower()]
    rows = []

    def counted(names: str) -> bool:
        """Whether loads count: what a formula does not need is not loaded, so some have fewer."""
        return (job.dtype, job.arch) == ("float32", ARCHITECTURES[0]) or set(names.split()) <= set(LONGEST)

    for name, block in _ENTRY.findall(text):
        kernel, names = job.kernels[name]
        code = sass[name] if job.disassemble else None
        rows.append(
            Row(
                kernel,
                job.file,
                names,
                job.dtype,
                job.arch,
                registers=max(_numbers(r"Used (\d+) registers", block)),
                shared=sum(_numbers(r"(\d+) bytes smem", block)),
                stack=max(_numbers(r"(\d+) bytes stack frame", block)),
                spills=sum(_numbers(r"(\d+) bytes spill", block)),
                warnings=warnings,
                float64=None if code is None else _FLOAT64.findall(code),
                loads_128=len(_LOAD_128.findall(code)) if code is not None and counted(names) else None,
            )
        )
    return rows


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]


def _nvdisasm() -> str:
    from cuda.pathfinder import find_nvidia_binary_utility

    program = find_nvidia_binary_utility("nvdisasm")
    if program is None:
        raise RuntimeError("nvdisasm is not installed")
    return program


def disassemble(cubin: bytes) -> str:
    """Return the SASS of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        return subprocess.run([_nvdisasm(), "-c", path], capture_output=True, text=True, check=True).stdout


def compile_all(folder: Path | None = None) -> list[Row]:
    """Compile the kernels of both languages, on two processors.

    Parameters
    ----------
    folder : Path
        Keeps the rows of each compilation, so that the next call need not repeat it.
    """
    workers = min(WORKERS, os.cpu_count() or 1)
    every = [*jobs(), *numba_static.jobs(ARCHITECTURES, ALL_FORMULAS_ON, LONGEST)]
    with ProcessPoolExecutor(workers) as pool:
        return [Row(**fields) for found in pool.map(partial(_rows, folder=folder), every) for fields in found]


def _rows(job: Job | numba_static.Job, folder: Path | None) -> list[dict[str, Any]]:
    """Return the fields of a job's rows, from the folder if it has them."""
    kept = None if folder is None else folder / f"{_digest(job)}.json"
    if kept is not None and kept.exists():
        known: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return known
    if isinstance(job, Job):
        found = [dataclasses.asdict(row) for row in compile_job(job)]
    else:
        found = numba_static.compile_job(job)
    if kept is not None:
        with atomic_file(kept) as file:
            file.write(json.dumps(found).encode())
    return found


def _digest(job: Job | numba_static.Job) -> str:
    """Return a digest of all that a job's rows depend on: its source, the compilers, and what reads their output."""
    texts = [compiler(), repr(job), *(Path(file).read_text("utf-8") for file in (__file__, numba_static.__file__))]
    if isinstance(job, numba_static.Job):
        texts += [path.read_text("utf-8") for path in sorted(KERNELS.glob("**/*.py"))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


@cache
def compiler() -> str:
    """Return the versions of NVRTC, Numba-CUDA and NVVM, on which the table depends.

    Raises
    ------
    ImportError, RuntimeError
        If a compiler or the disassembler is missing.
    """
    import cuda.core  # noqa: F401
    from cuda.bindings import nvrtc

    _nvdisasm()
    _, major, minor = nvrtc.nvrtcVersion()
    return f"NVRTC {major}.{minor}, {numba_static.compiler()}"


def table(rows: list[Row]) -> dict[str, dict[str, list[int | None]]]:
    """Return the committed part: `COLUMNS` by kernel, dtype and architecture, the worst over the formulas."""
    found: dict[str, dict[str, list[int | None]]] = {}
    by_name = sorted(rows, key=lambda row: (row.kernel, row.dtype, ARCHITECTURES.index(row.arch)))
    for (kernel, dtype, arch), group in groupby(by_name, key=lambda row: (row.kernel, row.dtype, row.arch)):
        same = list(group)
        loads = [row.loads_128 for row in same if row.loads_128 is not None]
        found.setdefault(f"{kernel} {dtype}", {})[arch] = [
            max(row.registers for row in same),
            max(row.shared for row in same),
            max(row.spills for row in same),
            min(loads, default=None),
        ]
    return found


def write_table(rows: list[Row], path: Path = TABLE) -> None:
    """Write the committed table, one line for each kernel and dtype."""
    lines = [f"    {json.dumps(kernel)}: {json.dumps(archs)}" for kernel, archs in table(rows).items()]
    head = f'{{\n  "compiler": {json.dumps(compiler())},\n  "columns": {json.dumps(COLUMNS)},\n'
    body = '  "kernels": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    with atomic_file(path) as file:
        file.write((head + body).encode())


def show_kernels(rows: list[Row]) -> None:
    """Print a line for each kernel and dtype."""
    from rich.table import Table

    grid = Table(title=f"registers by architecture, the most over all formulas ({compiler()})")
    for column in ("kernel", "dtype", *ARCHITECTURES, "shared B", "spills B", "f64 in SASS", "128-bit loads"):
        grid.add_column(column, justify="left" if column in ("kernel", "dtype") else "right")
    for name, archs in table(rows).items():
        kernel, dtype = name.split()
        known = [row for row in rows if (row.kernel, row.dtype) == (kernel, dtype)]
        double = sum(len(row.float64 or []) for row in known) if dtype == "float32" else "-"
        grid.add_row(
            kernel,
            dtype,
            *(str(archs[arch][0]) if arch in archs else "-" for arch in ARCHITECTURES),
            str(max(row.shared for row in known)),
            str(max(row.spills for row in known)),
            str(double),
            str(min((row.loads_128 for row in known if row.loads_128 is not None), default="-")),
        )
    _print(grid)


def show_step(step: gpu_step.Step, title: str) -> None:
    """Print launches, bytes and FLOPs of a step against the minimum."""
    from rich.table import Table

    found = gpu_step.report(step)["totals"]
    grid = Table(title=title)
    columns = ("", "launches", "MB moved", "of minimum", "MFLOP", "of minimum", "with tiles' padding")
    for column in columns:
        grid.add_column(column, justify="right" if column else "left")
    for name, numbers in found.items():
        least = found["minimum"]
        grid.add_row(
            name,
            str(numbers["launches"]),
            f"{numbers['bytes'] / 1e6:.3f}",
            f"{numbers['bytes'] / least['bytes']:.2f}",
            f"{numbers['flops'] / 1e6:.3f}",
            f"{numbers['flops'] / least['flops']:.2f}",
            f"{numbers['tile_flops'] / least['flops']:.2f}",
        )
    _print(grid)


def _print(grid: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log or a pipe has no width
    console.print(grid)


def main() -> None:
    """Run the command line."""
    n_state = {name: len(formulas) - 1 for name, formulas in RULES.items()}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_static", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="784,512,10", help="n_0,...,n_L")
    parser.add_argument("--batch", type=int, default=128, help="rows of a batch")
    parser.add_argument("--optimizer", choices=n_state, default="adam")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the step")
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--clip", action="store_true", help="clip the norm of the gradients")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help=f"update tests/{TABLE.name}")
    parser.add_argument("--step-only", action="store_true", help="compile nothing")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the results between runs")
    arguments = parser.parse_args()
    sizes = tuple(int(size) for size in arguments.sizes.split(","))
    if len(sizes) < 2 or min(*sizes, arguments.batch) < 1:
        parser.error("--sizes needs at least two numbers, and all of them and --batch must be at least 1")
    step = gpu_step.Step(
        sizes,
        arguments.batch,
        n_state[arguments.optimizer],
        np.dtype(arguments.dtype).itemsize,
        not arguments.no_bias,
        arguments.clip,
    )
    rows = []
    if not arguments.step_only:
        try:
            compiler()
        except (ImportError, RuntimeError) as error:
            cause = str(error).partition("\n")[0]
            print(f'{cause}; pip install "bpgpu[gpu-static]", or add --step-only', file=sys.stderr)
            sys.exit(TOOLS_MISSING)
        rows = compile_all(arguments.cache)
    if arguments.write and rows:
        write_table(rows)
    if arguments.json:
        compiled = {"compiler": compiler(), "rows": [*map(dataclasses.asdict, rows)]} if rows else {}
        print(json.dumps(compiled | {"step": dataclasses.asdict(step), **gpu_step.report(step)}))
        return
    if rows:
        show_kernels(rows)
    show_step(step, f"one step of {'-'.join(map(str, sizes))}, batch {arguments.batch}, {arguments.optimizer}")


if __name__ == "__main__":
    main()
