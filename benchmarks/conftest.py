"""The cases, their order, and the time that they may take."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import bpgpu
from benchmarks import measure
from benchmarks.cases import GPU, STEPS, StepCase, cases

BYTE = 10  # FLOPs that one byte counts for in the order of the cases
BUDGET = pytest.StashKey["Budget"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget",
        type=float,
        default=180.0,
        help="seconds for the benchmarks, shared equally among the backends; inf for the full grid (default: 180)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("numprocesses", None):
        config.option.dist = "no"  # the tests' --dist=worksteal does nothing here, but turns pytest-benchmark off
    config.stash[BUDGET] = Budget(config.getoption("--budget"))


class Budget:
    """Seconds for each backend; the cheapest cases come first, and one that would exceed the rest is skipped."""

    def __init__(self, seconds: float) -> None:
        if not seconds >= 0:
            raise pytest.UsageError(f"--budget must be a number of seconds, 0 or more, or inf, got {seconds}")
        self.seconds = seconds
        self.backends = bpgpu.backends()
        self.share = seconds / sum(info.available for info in self.backends)
        self.used = Counter[str]()
        self.skipped = Counter[str]()

    @contextmanager
    def spend(self, case: StepCase) -> Iterator[None]:
        """Count the time of a case, or skip it."""
        start = time.perf_counter()
        try:
            if self.used[case.backend] + measure.estimate(case) > self.share:
                self.skipped[case.backend] += 1
                pytest.skip(f"{case.backend}: over the time budget of {self.seconds:g} s; more with --budget SECONDS")
            yield
        finally:
            self.used[case.backend] += time.perf_counter() - start


@pytest.fixture(scope="session")
def budget(request: pytest.FixtureRequest) -> Budget:
    return request.config.stash[BUDGET]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test all cases of all backends that run here, and one skipped case for each other backend."""
    if "case" not in metafunc.fixturenames:
        return
    params = []
    for info in metafunc.config.stash[BUDGET].backends:
        marks = [pytest.mark.gpu] if info.name in GPU else []
        for step in STEPS:
            for transfers in (False, True):
                grid = cases(step, info.name, transfers)
                if not info.available:
                    grid = grid[:1]
                    marks = [*marks[:1], pytest.mark.skip(reason=f"{info.name}: {info.reason}")]
                params += [pytest.param(case, id=str(case), marks=marks) for case in grid]
    metafunc.parametrize("case", params)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def price(item: Any) -> float:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        return case.flops + BYTE * case.bytes if isinstance(case, StepCase) else math.inf

    items.sort(key=price)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Save which cases were not timed, and why."""
    budget = config.stash[BUDGET]
    output_json["bpgpu"] = {
        "version": bpgpu.__version__,
        "budget_seconds": budget.seconds if math.isfinite(budget.seconds) else None,
        "cases_over_budget": dict(budget.skipped),
        "backends_not_usable": {info.name: info.reason for info in budget.backends if not info.available},
    }
