"""Arrays of other libraries: where they lie, whether they are sparse, and results of the same kind."""

import importlib
import sys
from typing import Any

import numpy as np

# DLPack's numbers for memory that the CPU can read: its own, and page-locked.
_HOST = (1, 3)


def on_gpu(value: Any) -> bool:
    """Return whether an array lies in a GPU's memory, by DLPack or ``__cuda_array_interface__``."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        try:
            return value.__dlpack_device__()[0] not in _HOST
        except (ValueError, RuntimeError, BufferError):  # torch's "meta" device, which has no memory at all
            return False
    return hasattr(value, "__cuda_array_interface__")


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse matrix or array of SciPy."""
    sparse = sys.modules.get("scipy.sparse")  # there are none before it is imported
    return sparse is not None and bool(sparse.issparse(value))


def on_host(array: Any) -> bool:
    """Return whether an array is NumPy's or sparse."""
    return isinstance(array, np.ndarray) or is_sparse(array)


def dense(array: Any) -> Any:
    """Return a sparse array as a NumPy array, any other unchanged."""
    return array.toarray() if is_sparse(array) else array


def same_kind(result: Any, like: Any) -> Any:
    """Return `result` as an array of the library that `like` comes from, on the same memory.

    It is returned unchanged if that library takes no arrays of others, or `like` is not an array.
    """
    if isinstance(like, type(result)) or not (hasattr(like, "__dlpack__") or on_gpu(like)):
        return result
    if hasattr(like, "copy_to_host"):  # Numba's
        return importlib.import_module("bpgpu.kernels.numba_cuda.library").cuda.as_cuda_array(result)
    if hasattr(like, "__array_namespace__"):
        library = like.__array_namespace__()
    else:
        library = sys.modules[type(like).__module__.partition(".")[0]]
    if hasattr(result, "__dlpack__"):
        return library.from_dlpack(result) if hasattr(library, "from_dlpack") else result
    # Numba's device arrays have only __cuda_array_interface__; torch's as_tensor takes that, given the device.
    if hasattr(library, "as_tensor"):
        return library.as_tensor(result, device=like.device)
    return library.asarray(result) if hasattr(library, "asarray") else result
