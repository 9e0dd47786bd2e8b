"""Arrays of indices that were checked and are read-only since, so that no call checks them again."""

import weakref
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# By id: the arrays that own the memory, and the bound that their entries stay below. A read-only flag alone proves
# nothing, because anyone can set it.
_ours: dict[int, tuple[weakref.ref[Array], int]] = {}
POINTERS = -1  # instead of a bound: the entries are an `indptr`


def freeze(array: Array, bound: int) -> Array:
    """Make an int32 array read-only that nobody else holds and whose entries are 0 ... `bound` - 1; return it."""
    owner = array if array.base is None else array.base
    array.flags.writeable = False
    if isinstance(owner, np.ndarray):
        owner.flags.writeable = False
        key = id(owner)
        _ours[key] = weakref.ref(owner, lambda _: _ours.pop(key, None)), bound
    return array


def is_frozen(array: Any, bound: int) -> bool:
    """Return whether an array comes from `freeze`, or is part of one that does, with this bound or a lower one."""
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
