"""The commands about this machine and its backends."""

import functools
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text

import bpgpu
from bpgpu import checks
from bpgpu.backends import why_auto
from bpgpu.cli.files import check_files
from bpgpu.cli.output import BackendOption, JsonOption, Printer, progress, to_json
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.proof.gradcheck import CASES, check_table


def info(as_json: JsonOption = False) -> None:
    """Show versions, the processor's BLAS, and every backend, with the reason if it cannot be used."""
    from importlib.metadata import version

    from threadpoolctl import threadpool_info

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    blas = ", ".join(f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads" for pool in pools)
    versions = {name: version(name) for name in ("numpy", "scipy", "numba")}
    facts: dict[str, Any] = {"bpgpu": bpgpu.__version__, "python": platform.python_version(), **versions}
    facts |= {"system": platform.platform(), "processors": os.cpu_count(), "blas": blas or "none found"}
    found = bpgpu.backends()
    if as_json:
        print(to_json(facts | {"backends": [vars(entry) for entry in found], "auto": why_auto()}))
        return
    say = Printer()
    for name, value in facts.items():
        say(f"{name:<11}{value}")
    rows = Table("backend", "usable", "device", "reason")
    for entry in found:
        rows.add_row(*map(Text, (entry.name, "yes" if entry.available else "no", entry.device or "", entry.reason)))
    say(rows)
    say(f"auto: {why_auto()}")


def warmup() -> None:
    """Compile the CPU kernels of float32 and float64 ahead of their first use, for every later process."""
    from bpgpu.backends.cpu.engine import kernel_sources
    from bpgpu.kernels.cpu import cache

    place = cache.folder()
    if place is None:
        raise ValueError(
            "no cache folder can be used; set NUMBA_CACHE_DIR to one that you can write to and nobody else can"
        )
    say = Printer()
    for dtype in ("float32", "float64"):
        sources = kernel_sources(np.dtype(dtype))
        start = time.perf_counter()
        if cache.are_kept(sources):
            say(f"{dtype}  already compiled")
        else:
            cache.keep(sources, functools.partial(progress(), description=dtype))
            say(f"{dtype}  compiled in {time.perf_counter() - start:.1f} s")
    say(f"cache    {place}")


def hardware_report(
    folder: Annotated[Path, typer.Option(help="Folder for hardware-report.json and hardware-report.md.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="A few small cases; their timings mean nothing.")] = False,
) -> int:
    """Check and time this machine's GPU; write two files to attach to an issue; exit code 1 if a part failed."""
    from bpgpu.proof import hardware_report as report

    bpgpu.get_backend("cupy")  # without a GPU there is nothing to report but this error
    checks.file_name("--folder", folder).mkdir(parents=True, exist_ok=True)
    check_files({}, {"--folder": folder / "hardware-report.json", "--folder (.md)": folder / "hardware-report.md"})
    say = Printer()
    failed = report.run(folder, say, quick=quick)["failed"]
    say(f"{folder / 'hardware-report.md'} and .json: " + (f"FAILED: {', '.join(failed)}" if failed else "all parts ok"))
    return 1 if failed else 0


def gradcheck(
    backend: BackendOption = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    as_json: JsonOption = False,
) -> int:
    """Compare backpropagation with central differences, for every activation and cost; exit code 1 if one fails."""
    chosen = bpgpu.get_backend(backend)
    dtype = checks.floating_dtype(dtype).name
    say = Printer(stderr=as_json)
    start = time.perf_counter()
    worst: dict[tuple[str, str], float] = {}
    checked, failures = 0, []
    for case, report in progress()(check_table(chosen, dtype), "networks", len(CASES)):
        pair = (case.activation, case.cost)
        if isinstance(report, bpgpu.GradientError):
            failures.append(f"{case}: {report}")
            worst[pair] = float("inf")
        else:
            checked += report.checked
            worst[pair] = max(worst.get(pair, 0.0), report.max_error)
    rows = Table("activation", title=f"largest relative error, {chosen.name}, {dtype}")
    for cost in COSTS:
        rows.add_column(cost.replace("_", " "))
    for activation in ACTIVATIONS:
        rows.add_row(activation, *(f"{worst[activation, cost]:.1e}" for cost in COSTS))
    say(rows)
    for failure in failures:
        say(f"FAILED {failure}")
    say(f"{checked} derivatives in {time.perf_counter() - start:.1f} s, {len(failures)} networks failed")
    if as_json:
        result = {"backend": chosen.name, "dtype": dtype, "checked": checked, "failed": len(failures)}
        print(to_json(result | {"max_error": max(worst.values())}))
    return 1 if failures else 0


def accuracy(
    backend: Annotated[str, typer.Option(help="all that run here, or one: cupy, numba-cuda, numba, numpy.")] = "all",
    as_json: JsonOption = False,
) -> int:
    """Measure the errors of every step against extended precision; exit code 1 if one is larger than promised.

    The unit is docs/accuracy.md's: 1 is one rounding of the largest result.
    """
    from bpgpu.proof import accuracy as measuring
    from bpgpu.proof.bench import DTYPES

    say = Printer(stderr=as_json)
    errors = measuring.measure_all(backend, say)
    for dtype in DTYPES:
        say(f"\n{measuring.table(errors, dtype)}")
    broken = measuring.broken_promises(errors)
    say("\n" + ("\n".join(f"FAILED {line}" for line in broken) or "no error is larger than promised"))
    if as_json:
        print(to_json({"backends": measuring.plain(errors), "failed": len(broken)}))
    return 1 if broken else 0
