"""The grid of timed cases: each step of backpropagation, the update and a whole epoch on every backend."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.epoch import Epoch, Update
from benchmarks.steps import Forward, HiddenDelta, OutputDelta, WeightGradient
from bpgpu.model.optimizers import SGD, Adam

GPU = ("cupy", "numba-cuda")
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (32, 256, 2048, 16384, 65536)
DTYPES = ("float32", "float64")
STEPS = {
    "forward": Forward(),
    "output_delta": OutputDelta(),
    "hidden_delta": HiddenDelta(),
    "weight_gradient": WeightGradient(),
    "update_sgd": Update(SGD(), flops=2),  # -eta g, added
    "update_adam": Update(Adam(), flops=14),  # m 3, v 4, their corrections 2, sqrt, + epsilon, quotient, eta, -
    "epoch": Epoch(),
}


def group_name(step: str, transfers: bool) -> str:
    """Return the group of pytest-benchmark."""
    return f"{step}, with transfers" if transfers else step


@dataclass(frozen=True)
class StepCase:
    """One thing to time; with `transfers`, its input starts and its result ends in host memory."""

    step: str
    backend: str
    dtype: np.dtype[Any]
    transfers: bool
    width: int
    batch: int  # 1 for an update, which has none

    def __str__(self) -> str:
        where = "transfers" if self.transfers else "resident"
        return f"{self.step}-{where}-{self.backend}-{self.dtype}-{self.width}x{self.batch}"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return STEPS[self.step].shapes(self.width, self.batch)

    @property
    def flops(self) -> int:
        return STEPS[self.step].flops(self.width, self.batch)

    @property
    def bytes(self) -> int:
        return STEPS[self.step].bytes(self.width, self.batch, self.dtype.itemsize)


def cases(step: str, backend: str, transfers: bool) -> list[StepCase]:
    """Return every case of a step on a backend."""
    batches = BATCHES if STEPS[step].has_batch else (1,)
    grid = [(np.dtype(dtype), width, batch) for dtype in DTYPES for width in WIDTHS for batch in batches]
    return [StepCase(step, backend, dtype, transfers, width, batch) for dtype, width, batch in grid]
