"""How cases are timed, and the ceilings that their figures are compared with."""

import functools
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import bpgpu
from benchmarks.cases import GPU, StepCase
from bpgpu.model.optimizers import SGD

SECONDS = 0.15  # of timed calls for a case, but at least 3 and at most 50 calls
CALLS = (3, 50)
OVERHEAD = 1e-2  # estimated seconds of a case in addition to its calls
EFFICIENCY = 0.5  # share of the ceiling that the estimate expects
HOST_BYTES = 5e8  # estimated bytes per second at which input is drawn and results are checked


@dataclass(frozen=True)
class Ceiling:
    """The highest measured speed of a backend: FLOP/s in a large square product, bytes/s in a large addition."""

    flops: float
    bytes: float

    def attainable(self, flops: int, nbytes: int) -> float:
        """Return the roofline in FLOP/s: the speed that these FLOPs can reach if these bytes must move."""
        return min(self.flops, self.bytes * flops / nbytes)


@functools.cache
def ceiling(name: str, dtype: np.dtype[Any]) -> Ceiling:
    """Measure the ceiling of a backend.

    The product is ``a^T b`` of n x n matrices; n is doubled until it takes a tenth of a second. The addition is an SGD
    update of 64 MiB of parameters and, if arrays are NumPy's, also NumPy's own addition; the faster counts.
    """
    backend, rng = bpgpu.get_backend(name), np.random.default_rng(0)

    def least(run: Callable[[], Any]) -> float:
        def once() -> float:
            start = time.perf_counter()
            run()
            backend.synchronize()
            return time.perf_counter() - start

        return min([once() for _ in range(4)][1:])

    rates, seconds, n = [], 0.0, 256
    while seconds < 0.1 and n < 8192:
        n *= 2
        a, b = (backend.asarray(rng.standard_normal((n, n), dtype), dtype) for _ in range(2))
        out = backend.empty((n, n), dtype)
        seconds = least(lambda a=a, b=b, out=out: backend.weight_gradient(a, b, out_W=out))
        rates.append(2 * n**3 / seconds)
    P = 2**26 // dtype.itemsize
    x, y = (backend.asarray(np.full(P, value, dtype), dtype) for value in (1, 0.5))
    additions = [lambda: backend.update(SGD(), x, y, [], t=1, learning_rate=0.1, n_weights=P)]
    if isinstance(x, np.ndarray):
        additions.append(lambda: np.add(x, y, out=x))
    return Ceiling(max(rates), 3 * P * dtype.itemsize / min(map(least, additions)))


def estimate(case: StepCase) -> float:
    """Return the seconds that a case will take."""
    bound = ceiling(case.backend, case.dtype)
    call = case.flops / (EFFICIENCY * bound.attainable(case.flops, case.bytes))
    return OVERHEAD + (CALLS[0] + 2) * call + case.bytes / HOST_BYTES


def calls(run: Callable[[], None]) -> int:
    """Run once, and return the number of further calls to time."""
    start = time.perf_counter()
    run()
    least, most = CALLS
    return max(least, min(most, int(SECONDS / (time.perf_counter() - start))))


def measure(benchmark: Any, case: StepCase, run: Callable[[], None]) -> None:
    """Time a call that has been run once and checked, and record what the figure means."""
    rounds = calls(run)
    backend, bound = bpgpu.get_backend(case.backend), ceiling(case.backend, case.dtype)
    attainable = bound.attainable(case.flops, case.bytes)
    benchmark.extra_info.update(
        step=case.step,
        transfers=case.transfers,
        backend=case.backend,
        device=backend.device,
        **clocks(case.backend),
        dtype=case.dtype.name,
        width=case.width,
        batch=case.batch,
        shapes={name: list(shape) for name, shape in case.shapes.items()},
        **libraries(),
        flops=case.flops,
        bytes=case.bytes,
        ceiling_flops_per_second=bound.flops,
        ceiling_bytes_per_second=bound.bytes,
        attainable_flops_per_second=attainable,
    )
    benchmark.pedantic(run, rounds=rounds, iterations=1)
    if benchmark.enabled:
        rate = case.flops / benchmark.stats.stats.median
        benchmark.extra_info.update(
            flops_per_second=rate,
            bytes_per_second=case.bytes / benchmark.stats.stats.median,
            share_of_attainable=rate / attainable,
        )


def libraries() -> dict[str, Any]:
    """Return the BLAS libraries of this process, and the number of threads in its largest pool."""
    pools = threadpool_info()
    return {
        "blas": [f"{pool['internal_api']} {pool['version']}" for pool in pools if pool["user_api"] == "blas"],
        "threads": max((pool["num_threads"] for pool in pools), default=1),
    }


@functools.cache
def clocks(name: str) -> dict[str, Any]:
    """Return the clocks after the ceiling was measured, in ``clocks``, or None and the reason."""
    try:
        return {"clocks": _gpu_clocks() if name in GPU else _cpu_clocks()}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"clocks": None, "why_no_clocks": " ".join(str(error).split())}


def _cpu_clocks() -> dict[str, int]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    megahertz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if not megahertz:
        raise ValueError("/proc/cpuinfo gives no clocks")
    return {"mean MHz": round(sum(megahertz) / len(megahertz)), "most MHz": round(max(megahertz))}


def _gpu_clocks() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        raise OSError("there is no nvidia-smi")
    fields = ["clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"]
    command = [program, f"--query-gpu=index,{','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = [line.split(", ") for line in done.stdout.strip().splitlines()]
    return {
        f"GPU {index} {field}": value for index, *values in found for field, value in zip(fields, values, strict=True)
    }
