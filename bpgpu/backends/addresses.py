"""Addresses for compiled code, which believes them: every one is taken here, from an array that has been checked."""

from typing import Any

import numpy as np


class Addresses:
    """Addresses of arrays, which live for as long as this object does."""

    def __init__(self) -> None:
        self._arrays: list[Any] = []

    def of(self, name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, written: bool = False) -> int:
        """Return where an array begins, 0 for None.

        Parameters
        ----------
        name : str
            For messages.
        array : NumPy array or None
        shape, dtype
            What it must have; contiguous it must be besides.
        written : bool
            Whether it is written to.

        Raises
        ------
        TypeError
            If it is not a contiguous NumPy array of `dtype`.
        ValueError
            If it has another shape, or is written to and read-only.
        """
        if array is None:
            return 0
        flags = array.flags if isinstance(array, np.ndarray) else None
        if flags is None or array.dtype != dtype or not flags.c_contiguous:
            raise TypeError(f"{name} must be a contiguous NumPy array of {dtype}, got {array!r:.60}")
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if not flags.aligned:
            raise ValueError(f"{name} must lie where a {dtype} may, at a multiple of its size; pass a copy")
        if written and not flags.writeable:
            raise ValueError(f"{name} must be writeable, as it is changed in place, and is read-only; pass a copy")
        self._arrays.append(array)
        return int(array.ctypes.data)


def device_address(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return where an array of CuPy begins, for as long as the caller keeps it; checked as in `Addresses.of`."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{name} must be a contiguous array of {dtype}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return int(array.data.ptr)
