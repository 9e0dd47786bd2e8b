"""The parity matrix: which backends are measured, on this machine or on a simulated device."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bpgpu.backends.base import Backend
from bpgpu.proof import accuracy
from bpgpu.proof.bench import Bench
from tests.simgpu import device

REQUIRED = frozenset(filter(None, os.environ.get("BPGPU_REQUIRE_BACKENDS", "").split(",")))


@dataclass(frozen=True)
class Entry:
    """A backend of the matrix.

    Attributes
    ----------
    backend : str
    simulator : str
        Module whose ``install(monkeypatch)`` simulates its device; without one it runs as it is.
    largest, crossed
        How much of it is measured, see `Bench`; a slow simulation takes less. Every activation, cost and rule is
        measured in both dtypes in any case.
    """

    backend: str
    simulator: str = ""
    largest: int = 2**24
    crossed: bool = True

    def marks(self, required: frozenset[str] = REQUIRED) -> list[pytest.MarkDecorator]:
        """Return a skip where nothing simulates the device; but not where that is required: there it shall fail."""
        if not self.simulator or device.available() or required & {"simgpu", self.backend}:
            return []
        return [pytest.mark.skip(reason="the simulated GPU needs Linux and g++")]

    @contextmanager
    def ways(self) -> Iterator[dict[str, Backend]]:
        """Yield the ways of the backend, on the simulated device if it has one."""
        with pytest.MonkeyPatch.context() as patch:
            if self.simulator:
                importlib.import_module(self.simulator).install(patch)
            yield accuracy.make(self.backend)

    def bench(self, backend: Backend, dtype: str) -> Bench:
        """Return the bench of one of its ways."""
        return Bench(backend, dtype, self.largest, self.crossed)

    def label(self, way: str) -> str:
        """Return what a way is called on the page."""
        return f"{way} (simulated)" if self.simulator else way


# A backend joins with its line here; `python -m tests.write_accuracy` brings it onto the page.
MATRIX: tuple[Entry, ...] = (
    Entry("numpy"),
    Entry("numba"),
    Entry("cupy", simulator="tests.simgpu.cupy", largest=2**21),
    Entry("numba-cuda", simulator="tests.simgpu.numba_device", largest=2**14, crossed=False),
)

PARAMETERS: list[Any] = [
    pytest.param((entry, way), marks=entry.marks(), id=entry.label(way))
    for entry in MATRIX
    for way in accuracy.ways(entry.backend)
]
