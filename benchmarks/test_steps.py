"""Every step of backpropagation, the update and a whole epoch, on every backend: ``pytest benchmarks``.

Each result is checked against float64 before it is timed, and every timed call waits for the device.
"""

import pytest

import bpgpu
from benchmarks.cases import STEPS, group_name
from benchmarks.measure import measure


def test_step(benchmark, case, budget):
    benchmark.group = group_name(case.step, case.transfers)
    with budget.spend(case):
        backend = bpgpu.get_backend(case.backend)
        try:
            run, check = STEPS[case.step].prepare(backend, case.width, case.batch, case.dtype, transfers=case.transfers)
            run()
        except MemoryError as error:
            pytest.skip(f"{case.backend}: out of memory: {error}")
        check()
        measure(benchmark, case, run)
