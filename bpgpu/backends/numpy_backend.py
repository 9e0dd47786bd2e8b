"""The reference backend: the base class over NumPy, with nothing overridden."""

import platform

import numpy as np

from bpgpu.backends.base import Backend


class NumpyBackend(Backend):
    """Backpropagation in NumPy on the CPU; its BLAS does the matrix products."""

    name = "numpy"
    xp = np

    def __init__(self) -> None:
        self.device = f"CPU ({platform.machine()})"
