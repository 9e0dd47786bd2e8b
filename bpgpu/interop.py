"""Arrays of other libraries: where they lie, and results of the same kind."""

import sys
from typing import Any

import numpy as np

# DLPack's numbers of devices whose memory the CPU reads: its own, and page-locked.
_HOST = (1, 3)


def on_gpu(value: Any) -> bool:
    """Return whether an array lies in a GPU's memory, by DLPack or ``__cuda_array_interface__``."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] not in _HOST
    return hasattr(value, "__cuda_array_interface__")


def same_kind(result: Any, like: Any) -> Any:
    """Return `result` as an array of the library that `like` comes from, on the same memory.

    It stays as it is where that library makes no arrays of others, or `like` is no array at all.
    """
    if isinstance(like, type(result)) or not hasattr(like, "__dlpack__"):
        return result
    if hasattr(like, "__array_namespace__"):
        library = like.__array_namespace__()
    else:
        library = sys.modules[type(like).__module__.partition(".")[0]]
    # Numba's device arrays have no DLPack but __cuda_array_interface__; torch takes that in as_tensor.
    makers = ("from_dlpack",) if hasattr(result, "__dlpack__") else ("as_tensor", "asarray")
    make = next((getattr(library, name) for name in makers if hasattr(library, name)), lambda array: array)
    return make(result)
