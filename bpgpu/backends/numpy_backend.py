"""The reference backend: the base class over NumPy."""

import platform
from contextlib import nullcontext
from typing import Any

import numpy as np

from bpgpu.backends.base import Backend
from bpgpu.backends.cpu.blas_threads import blas_threads
from bpgpu.backends.data import Data
from bpgpu.backends.memory import Array
from bpgpu.backends.plan import Plan

# Products of fewer multiply-adds than this lose more to waking BLAS's threads than they gain by them, and very much
# more where other work shares the processors.
THREADED_PRODUCT = 2**22


class NumpyBackend(Backend):
    """Backpropagation in NumPy on the CPU; its BLAS does the matrix products."""

    name = "numpy"
    xp = np

    def __init__(self) -> None:
        self.device = f"CPU ({platform.machine()})"

    def run_epoch(
        self,
        plan: Plan,
        data: Data,
        order: np.ndarray[Any, Any] | None,
        *,
        parameters: Array,
        learning_rates: list[float],
        epoch: int,
    ) -> float:
        """Train one epoch as the reference does, small products on one thread."""
        with blas_threads().at_most(1) if max(plan.products) < THREADED_PRODUCT else nullcontext():
            return super().run_epoch(
                plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch
            )
