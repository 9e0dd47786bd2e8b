"""Arrays of indices that have been checked and that nobody can write to since, so that no call checks them again."""

import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# By id, the arrays that own the memory, and below what their entries are. That an array is read-only proves nothing:
# anyone can set that flag.
_ours: dict[int, tuple[weakref.ref[Array], int]] = {}
POINTERS = -1  # in the place of a bound: the entries are an `indptr`


def freeze(array: Array, bound: int) -> Array:
    """Let nobody write to an int32 array that is ours alone, whose entries are 0 ... `bound` - 1; return it."""
    owner = array if array.base is None else array.base
    array.flags.writeable = False
    if isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        key = id(owner)
        _ours[key] = weakref.ref(owner, lambda _: _ours.pop(key, None)), bound
    return array


def is_frozen(array: Any, bound: int) -> bool:
    """Return whether this is an array of `freeze`, or part of one, with this bound or a lower one."""
    if not isinstance(array, np.ndarray):
        return False
    owner = array if array.base is None else array.base
    entry = _ours.get(id(owner))
    return (
        entry is not None
        and entry[0]() is owner
        and not (array.flags.writeable or owner.flags.writeable)
        and array.dtype == np.int32
        and array.ndim == 1
        and (entry[1] == bound if POINTERS in (bound, entry[1]) else entry[1] <= bound)
    )
