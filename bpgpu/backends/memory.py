"""Where the arrays of a backend live, and how they get there: all of its contract that has no mathematics in it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from bpgpu.interop import is_sparse, on_gpu, same_kind

Array = Any  # the backend's own array type


class Memory:
    """The memory of one device, as arrays.

    Attributes
    ----------
    name : str
        The backend's.
    xp : module
        The array module.
    """

    name: str
    xp: Any

    def asarray(self, array: Any, dtype: np.dtype[Any]) -> Array:
        """Return the array on the backend's device, C-contiguous and of `dtype`; a copy only if it must be.

        A CSR array stays one, if the backend takes it.
        """
        return array if is_sparse(array) else self.xp.ascontiguousarray(array, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array as a NumPy array, or a sparse one as it is; a copy only if it must be."""
        return array if is_sparse(array) else np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return a new array with arbitrary content."""
        return self.xp.empty(shape, dtype=dtype)

    def assign(self, target: Array, value: Array | float) -> None:
        """Set every element of `target`, which is contiguous, to a number or to that of an array of its shape."""
        target[...] = value

    def all_finite(self, array: Array) -> bool:
        """Return whether no element is NaN or infinite."""
        return bool(self.xp.isfinite(array).all())

    def free_memory(self) -> int | None:
        """Return the bytes that may still be allocated, or None if the backend sets no limit of its own."""
        return None

    def adopt(self, name: str, value: Any) -> Any:
        """Return an array that lies in the device's memory as the backend's own, without a copy; others as they are.

        Raises
        ------
        TypeError
            If the argument `name` lies in the memory of a device that the backend does not use.
        """
        if on_gpu(value):
            raise TypeError(
                f"{name} is a {type(value).__module__.partition('.')[0]} array on a GPU, and the backend {self.name!r} "
                "works on the CPU; pass a NumPy array, or choose backend='cupy'"
            )
        return value

    def hand_back(self, array: Array, like: Any) -> Any:
        """Return a result as the same kind of array as the argument `like`: of NumPy unless that has DLPack."""
        return same_kind(self.to_numpy(array), like)

    def ordered(self) -> AbstractContextManager[Any]:
        """Return a context whose work comes after what the caller gave to the device, and before what comes next."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""
