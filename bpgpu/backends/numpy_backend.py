"""The reference backend: the base class over NumPy."""

import functools
import platform
from typing import Any

import numpy as np

from bpgpu.backends.base import Backend
from bpgpu.backends.memory import Array
from bpgpu.plan import Data, Plan

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
        with blas_libraries().limit(limits=1 if max(plan.products) < THREADED_PRODUCT else None):
            return super().run_epoch(
                plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch
            )


@functools.cache
def blas_libraries() -> Any:
    """Return what sets the threads of the BLAS libraries; to find them takes longer than a short epoch."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
