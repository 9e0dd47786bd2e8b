"""The errors of this machine's backends, and whether they are as small as promised.

`bpgpu.proof.bench` defines the unit and the promises, `bpgpu.proof.accuracy_cases` the measurements.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bpgpu.backends import backends, get_backend
from bpgpu.backends.base import Backend
from bpgpu.proof import accuracy_cases
from bpgpu.proof.accuracy_cases import CASES, Case
from bpgpu.proof.bench import DTYPES, PROMISED, Bench, Measurement

# Backends that can compute in more than one way: the options of each way, by its name in tables.
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "cupy": {"cupy, cuBLAS": {"gemm": "cublas"}, "cupy, fused": {"gemm": "fused"}}
}

Worst = dict[str, Measurement]  # by operation
Errors = dict[str, dict[str, Worst]]  # by way, then by dtype


def ways(name: str) -> dict[str, dict[str, Any]]:
    """Return the ways of a backend, with their options."""
    return WAYS.get(name, {name: {}})


def make(name: str) -> dict[str, Backend]:
    """Return a backend in all its ways, or for "all" every backend that runs here.

    Raises
    ------
    BackendUnavailableError
        If the named backend cannot run here.
    """
    if name == "all":
        found: dict[str, Backend] = {}
        for info in reversed(backends()):
            found |= make(info.name) if info.available else {}
        return found
    chosen = get_backend(name)
    return {way: type(chosen)(**options) for way, options in ways(chosen.name).items()}


def worst(measurements: Iterable[Measurement]) -> Worst:
    """Return the largest error of each operation, in the order of `PROMISED`."""
    found: Worst = {}
    for each in measurements:
        if each.operation not in found or each.error > found[each.operation].error:
            found[each.operation] = each
    return {operation: found[operation] for operation in PROMISED if operation in found}


def measure(bench: Bench, cases: Iterable[Case] = CASES) -> Worst:
    """Return the largest error of each operation over the cases."""
    return worst(measurement for case in cases for measurement in accuracy_cases.measure(bench, case))


def measure_all(name: str, say: Callable[[str], Any]) -> Errors:
    """Measure a backend, or "all" that run here, in both dtypes, and report progress to `say`."""
    errors: Errors = {}
    for way, backend in make(name).items():
        for dtype in DTYPES:
            say(f"{way}, {dtype} ...")
            errors.setdefault(way, {})[dtype] = measure(Bench(backend, dtype), CASES)
    return errors


def broken_promises(errors: Errors) -> list[str]:
    """Return a line for each error larger than promised."""
    return [
        f"{way}, {dtype}: {each}"
        for way, of_way in errors.items()
        for dtype, found in of_way.items()
        for each in found.values()
        if not each.ok
    ]


def table(errors: Errors, dtype: str) -> str:
    """Return the largest errors in a dtype, rounded up, and the promised ones as a Markdown table."""
    eps = np.finfo(dtype).eps
    rows = [[dtype, "promised", "that is", *errors], ["---"] * (3 + len(errors))]
    for operation, promised in PROMISED.items():
        cells = [str(promised), f"{promised * eps:.1e}" if promised else "no bit differs"]
        rows.append([operation, *cells, *(figure(found[dtype][operation].error) for found in errors.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def figure(error: float) -> str:
    """Return an error with one decimal, rounded up."""
    return f"{math.ceil(round(10 * error, 6)) / 10:.1f}" if math.isfinite(error) else "not finite"


def plain(errors: Errors) -> dict[str, Any]:
    """Return the errors in a form that JSON can hold, with null for one that is not finite."""
    return {
        way: {
            dtype: {
                operation: {
                    "error": each.error if math.isfinite(each.error) else None,
                    "promised": PROMISED[operation],
                    "case": each.case,
                    "ok": each.ok,
                }
                for operation, each in found.items()
            }
            for dtype, found in of_way.items()
        }
        for way, of_way in errors.items()
    }
