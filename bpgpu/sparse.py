"""Checks of SciPy's sparse matrices; compiled code, SciPy's and ours, would follow their indices anywhere."""

import numbers
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from bpgpu.checks import finite
from bpgpu.frozen import POINTERS, freeze, is_frozen

Array = np.ndarray[Any, Any]


def compressed_rows(name: str, X: Any, dtype: np.dtype[Any]) -> Any:
    """Return a sparse matrix as a CSR array of `dtype` with int32 indices, unique and ascending in each row.

    Its `indices` and `indptr` are read-only copies, so the checks stay true while the caller's arrays change. The
    values are copied only if necessary.

    Raises
    ------
    TypeError
        If it does not hold numbers.
    ValueError
        If it is damaged, not finite, or too large for int32.
    """
    from scipy.sparse import csr_array

    check(name, X)
    if X.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers, got dtype {X.dtype}")
    if max(X.nnz, *X.shape) > np.iinfo(np.int32).max:
        raise ValueError(
            f"{name} must have fewer than 2^31 entries, rows and columns, got shape {X.shape} with {X.nnz} "
            "entries; train on parts of it"
        )
    try:
        X = (X.astype(np.float32) if X.dtype == np.float16 else X).tocsr()  # SciPy converts no float16
    except (ValueError, TypeError, OverflowError) as error:
        _need(name, False, str(error))
    values, indices, indptr = X.data, np.array(X.indices), np.array(X.indptr)
    _check_compressed(name, values, indices, indptr, X.shape)  # the copies: another thread may have changed X
    rows = csr_array((values, indices.astype(np.int32, copy=False), indptr.astype(np.int32, copy=False)), X.shape)
    if not rows.has_canonical_format:
        rows.data = np.array(values)  # because sorting in place would reorder the caller's values
        rows.sum_duplicates()

    def place(entry: int) -> tuple[int, int]:
        return int(np.searchsorted(rows.indptr, entry, side="right")) - 1, int(rows.indices[entry])

    return frozen(csr_array((finite(name, rows.data, dtype, place), rows.indices, rows.indptr), X.shape))


def frozen(X: Any) -> Any:
    """Make the index arrays of a checked CSR array that nobody else holds read-only; return it."""
    freeze(X.indices, X.shape[1])
    freeze(X.indptr, POINTERS)
    return X


def is_checked(X: Any) -> bool:
    """Return whether the index arrays of a CSR array come from `frozen`."""
    return (
        isinstance(X.data, np.ndarray)
        and X.data.ndim == 1
        and is_frozen(X.indices, X.shape[1])
        and is_frozen(X.indptr, POINTERS)
        and len(X.indptr) == X.shape[0] + 1
        and X.indptr[0] == 0
        and X.indptr[-1] == len(X.indices) == len(X.data)
    )


def check(name: str, X: Any) -> None:
    """Raise ValueError if a sparse matrix would lead SciPy's compiled code out of its arrays.

    SciPy's own full check misses some, such as a CSR matrix whose `indptr` ends in 0.
    """
    if X.format == "csr" and is_checked(X):
        return
    for what, dimensions in _ARRAYS.get(X.format, {}).items():
        _check_array(name, what, getattr(X, what), dimensions)
    match X.format:
        case "csr":
            _check_compressed(name, X.data, X.indices, X.indptr, X.shape)
        case "csc":
            _check_compressed(name, X.data, X.indices, X.indptr, X.shape[::-1])
        case "bsr":
            height, width = X.data.shape[1:]
            fits = height and width and X.shape[0] % height == X.shape[1] % width == 0
            _need(name, fits, f"blocks of {height} x {width} do not fill a matrix of shape {X.shape}")
            _check_compressed(name, X.data, X.indices, X.indptr, (X.shape[0] // height, X.shape[1] // width))
        case "coo":
            fits = isinstance(X.coords, tuple) and len(X.coords) == len(X.shape)
            _need(name, fits, f"coords must be {len(X.shape)} arrays")
            for axis, (coords, size) in enumerate(zip(X.coords, X.shape, strict=True)):
                _check_array(name, f"coords[{axis}]", coords, 1)
                _need(name, len(coords) == len(X.data), "coords and data must have the same length")
                _check_range(name, f"coords[{axis}]", coords, size)
        case "dia":
            fits = X.offsets.shape == X.data.shape[:1] and X.offsets.dtype.kind in "iu"
            _need(name, fits, "offsets must hold one integer for each row of data")
            _need(name, len(np.unique(X.offsets)) == len(X.offsets), "offsets must not repeat")
        case "lil":
            lists = (isinstance(row, list) for row in (*X.rows, *X.data))
            fits = X.rows.shape == X.data.shape == X.shape[:1] and all(lists)
            fits = fits and all(map(lambda row, values: len(row) == len(values), X.rows, X.data))
            _need(name, fits, "rows and data must have one list for each row, both of the same length")
            _check_objects(name, chain.from_iterable(X.rows), chain.from_iterable(X.data), X.dtype)
        case "dok":
            keys = (key if isinstance(key, tuple) else (key,) for key in X.keys())  # noqa: SIM118  # it has no iterator
            _check_objects(name, chain.from_iterable(keys), X.values(), X.dtype)
            try:
                coo = X.tocoo()
            except (ValueError, TypeError, OverflowError) as error:
                _need(name, False, str(error))
            check(name, coo)


# The NumPy arrays of each format, and their numbers of dimensions.
_COMPRESSED = {"data": 1, "indices": 1, "indptr": 1}
_ARRAYS = {
    "csr": _COMPRESSED,
    "csc": _COMPRESSED,
    "bsr": _COMPRESSED | {"data": 3},
    "coo": {"data": 1},
    "dia": {"data": 2, "offsets": 1},
    "lil": {"rows": 1, "data": 1},
}


def _check_objects(name: str, indices: Iterable[Any], values: Iterable[Any], dtype: np.dtype[Any]) -> None:
    """Check what the formats keep in Python's lists and dicts; SciPy silently truncates it to integers."""
    number = numbers.Real if dtype.kind == "f" else numbers.Integral
    _check_types(name, "indices must be integers", indices, numbers.Integral)
    if dtype.kind in "buif":
        _check_types(name, f"values must fit dtype {dtype}", values, number)


def _check_types(name: str, what: str, objects: Iterable[Any], kind: type) -> None:
    wrong = [found.__name__ for found in set(map(type, objects)) if not issubclass(found, (kind, np.bool_))]
    _need(name, not wrong, f"{what}, got {', '.join(sorted(wrong))}")


def _check_array(name: str, what: str, array: Any, dimensions: int) -> None:
    fits = isinstance(array, np.ndarray) and array.ndim == dimensions
    got = f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    _need(name, fits, f"{what} must be a NumPy array with {dimensions} dimension(s), got {got}")


def _check_compressed(name: str, values: Array, indices: Array, indptr: Array, shape: tuple[int, int]) -> None:
    rows, columns = shape
    fits = indptr.dtype.kind in "iu" and len(indptr) == rows + 1
    _need(name, fits, f"indptr must hold {rows + 1} integers, got {indptr.dtype} of shape {indptr.shape}")
    _need(name, indptr[0] == 0, f"indptr must begin with 0, got {indptr[0]}")
    falls = indptr[1:] < indptr[:-1]
    fall = int(np.argmax(falls)) if falls.any() else None
    _need(name, fall is None, f"indptr must not decrease, but does after entry {fall}")
    _need(
        name,
        indptr[-1] == len(indices) == len(values),
        f"indptr must end with the number of indices and of values, got {indptr[-1]} for {len(indices)} indices and "
        f"{len(values)} values",
    )
    _check_range(name, "indices", indices, columns)


def _check_range(name: str, what: str, indices: Array, size: int) -> None:
    _need(name, indices.dtype.kind in "iu", f"{what} must be integers, got {indices.dtype}")
    if len(indices):
        low, high = indices.min(), indices.max()
        _need(name, low >= 0, f"{what} must be >= 0, got {low}")
        _need(name, high < size, f"{what} must be < {size}, got {high}")


def _need(name: str, fits: Any, problem: str) -> None:
    if not fits:
        raise ValueError(f"{name} is not a valid sparse matrix: {problem}; rebuild it from its entries")
