"""The one place where the GPU kernels get Numba's CUDA from: numba-cuda, or its successor numba-cuda-mlir.

The simulator of the tests (``tests/simgpu/numba_sim.py``) puts its own module in the place of this one.
"""

import importlib
import importlib.util
import math
from typing import Any

__all__ = ["cuda", "math"]

_SUCCESSOR = importlib.util.find_spec("numba_cuda") is None and importlib.util.find_spec("numba_cuda_mlir") is not None

cuda: Any = importlib.import_module("numba_cuda_mlir.cuda" if _SUCCESSOR else "numba.cuda")
