"""Checks of what a user passes in. Each raises one sentence: the argument, what was expected, what came, the fix."""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bpgpu.costs import Cost
from bpgpu.errors import shown
from bpgpu.interop import is_sparse, on_gpu

if TYPE_CHECKING:
    from bpgpu.backends.base import Backend

MAX_COUNT = 2**32 - 1  # of epochs and steps: dropout counts them in 32 bits
MAX_SIZE = 2**31 - 1  # of a layer: BLAS counts rows and columns in 32 bits
MAX_STEPS = 2**63 - 1  # of a schedule, whose steps become floats
Matrix = np.ndarray[Any, Any]
Array = Any  # of NumPy or, where it lies on the backend's device, of the backend


def numeric(name: str, value: Any) -> Matrix:
    """Return `value` as an array of bool, integers or floats.

    Raises
    ------
    TypeError
        If it is text, objects or complex numbers.
    ValueError
        If its rows differ in length.
    """
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries; fill or drop them")
    if hasattr(value, "dtypes") and all(dtype.kind in "buif" for dtype in np.ravel(value.dtypes)):
        value = value.to_numpy(dtype=np.result_type(*(np.dtype(d.kind) for d in np.ravel(value.dtypes)), np.int8))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must hold numbers, got dtype {array.dtype}; encode text as numbers and make sparse arrays dense"
        )
    return array


def finite(
    name: str, array: Matrix, dtype: np.dtype[Any], place: Callable[[int], tuple[int, ...]] | None = None
) -> Matrix:
    """Return `array` in `dtype`, C-contiguous; `place` says at which index of the argument an element stands.

    Raises
    ------
    ValueError
        If it holds NaN or infinity, or a number too large for `dtype`.
    """
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=dtype)
    good = np.isfinite(converted)
    if not good.all():
        first = int(np.argmin(good))
        where = np.unravel_index(first, good.shape)
        index = tuple(map(int, where)) if place is None else place(first)
        raise ValueError(
            f"{name} must be finite in {dtype}, got {array[where]} at index {index}; remove or replace such entries"
        )
    return converted


def samples(name: str, X: Any, columns: int, dtype: np.dtype[Any], backend: "Backend") -> Array:
    """Return the input as an array of shape (n, columns), n at least 1, finite, of `dtype`, where it lies.

    A sparse one of SciPy becomes a CSR array; see `compressed_rows`.

    Raises
    ------
    ValueError, TypeError
    """
    array = X if on_gpu(X) or is_sparse(X) else numeric(name, X)
    if array.ndim != 2:
        fix = f"; for one sample pass {name}[None, :]" if array.ndim == 1 else "; flatten each sample to a row"
        raise ValueError(f"{name} must have shape (samples, {columns}), got {array.ndim} dimensions{fix}")
    if array.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {array.shape}")
    if array.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns, the size of the input layer, got shape {array.shape}")
    return compressed_rows(name, array, dtype) if is_sparse(array) else _finite_in_place(name, array, dtype, backend)


def compressed_rows(name: str, X: Any, dtype: np.dtype[Any]) -> Any:
    """Return a sparse matrix as a CSR array of `dtype` with int32 indices, those of a row ascending, none twice.

    What needs no change is not copied.

    Raises
    ------
    TypeError
        If it does not hold numbers.
    ValueError
        If it is damaged, not finite, or too large for int32.
    """
    from scipy.sparse import csr_array

    if X.dtype.kind not in "buif":
        raise TypeError(f"{name} must hold numbers, got dtype {X.dtype}")
    try:
        rows = csr_array(X)  # an object of its own, for what follows, on the same arrays if X is CSR
        rows.check_format(full_check=True)  # compiled code goes where the indices point
    except ValueError as error:
        raise ValueError(f"{name} is not a valid sparse matrix: {error}") from None
    if max(rows.nnz, *rows.shape) > np.iinfo(np.int32).max:
        raise ValueError(
            f"{name} must have fewer than 2^31 entries, rows and columns, got shape {rows.shape} with {rows.nnz} "
            "entries; train on parts of it"
        )
    if not rows.has_canonical_format:
        rows = rows.copy()  # sorted in place, it would be sorted under the user's hands
        rows.sum_duplicates()

    def place(entry: int) -> tuple[int, int]:
        return int(np.searchsorted(rows.indptr, entry, side="right")) - 1, int(rows.indices[entry])

    values = finite(name, rows.data, dtype, place)
    indices, indptr = (np.ascontiguousarray(array, np.int32) for array in (rows.indices, rows.indptr))
    return csr_array((values, indices, indptr), shape=rows.shape)


def _finite_in_place(name: str, array: Array, dtype: np.dtype[Any], backend: "Backend") -> Array:
    """Return what `finite` does, on the device for an array that lies there."""
    if on_gpu(array) and array.dtype.kind in "buif":
        converted = backend.asarray(array, dtype)
        if backend.all_finite(converted):
            return converted
    return finite(name, numeric(name, backend.to_numpy(array)), dtype)


def targets(name: str, y: Any, n: int, outputs: int, cost: Cost, dtype: np.dtype[Any], backend: "Backend") -> Array:
    """Return the targets as floats of shape (n, outputs), where they lie, or as integer labels of shape (n,).

    One-dimensional targets are the one column of a single output, or the labels 0 ... K-1 of K outputs.

    Raises
    ------
    ValueError, TypeError
    """
    array = y if on_gpu(y) else numeric(name, y)
    expected = f"({n}, {outputs})" + (f" or ({n},)" if outputs == 1 else f", or ({n},) of labels 0 ... {outputs - 1}")
    if array.ndim not in (1, 2) or len(array) != n or (array.ndim == 2 and array.shape[1] != outputs):
        raise ValueError(f"{name} must have shape {expected}, for {n} samples and {outputs} outputs; got {array.shape}")
    if array.ndim == 1 and outputs > 1:
        return _labels(name, numeric(name, backend.to_numpy(array)), outputs)
    if on_gpu(array) and array.dtype.kind in "buif":
        array = backend.asarray(array, array.dtype)  # contiguous, so that it can be reshaped
    targets = _finite_in_place(name, array.reshape(n, outputs), dtype, backend)
    if cost.wants_probabilities:
        values = backend.to_numpy(targets)
        if not ((values >= 0) & (values <= 1)).all():
            outside = values[(values < 0) | (values > 1)][0]
            raise ValueError(f"{name} must lie in [0, 1] for the cost {cost.name!r}, got {outside}")
    return targets


def _labels(name: str, array: Matrix, outputs: int) -> Matrix:
    what = f"{name} of one dimension must hold the labels 0 ... {outputs - 1}, one for each of {outputs} outputs"
    integral = np.isfinite(array) & (array == np.trunc(array)) if array.dtype.kind == "f" else np.ones(len(array), bool)
    good = integral & (array >= 0) & (array < outputs)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"{what}, got {array[row]} in row {row}; for {outputs} targets a sample pass shape (samples, {outputs})"
        )
    return array.astype(np.int32)


def sample_weights(name: str, weights: Any, n: int, dtype: np.dtype[Any], backend: "Backend") -> Matrix | None:
    """Return the sample weights as an array of shape (n,), or None for None.

    Raises
    ------
    ValueError, TypeError
        If one is negative or not finite, all are zero, or the shape is not (n,).
    """
    if weights is None:
        return None
    array = numeric(name, backend.to_numpy(weights) if on_gpu(weights) else weights)
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one number for each sample, got {array.shape}")
    array = finite(name, array, dtype)
    if (array < 0).any():
        row = int(np.argmax(array < 0))
        raise ValueError(f"{name} must be 0 or more, got {array[row]} in row {row}")
    if not array.any():
        raise ValueError(f"{name} must not all be 0: there would be nothing to learn from")
    # Only their ratios matter; scaled by a power of two, which changes no bits of them, their sum cannot overflow.
    scaled: Matrix = np.ldexp(array, -np.frexp(array.max())[1])
    return scaled


def flag(name: str, value: Any) -> bool:
    """Return `value`, or raise ``TypeError`` if it is not True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def function(name: str, value: Any, arguments: Sequence[str], hint: str = "") -> Any:
    """Return `value`, or raise ``TypeError`` if it is not a function that takes such arguments, by position."""
    expected = f"{name} must be a function of {' and '.join(arguments)}"
    if not callable(value) or isinstance(value, type):  # a class would only make an object
        raise TypeError(f"{expected}, got {shown(value)}{hint}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of a function in C, which does not tell
        return value
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{expected}, got {shown(value)}: {error}{hint}") from None
    return value


def integer(name: str, value: Any, minimum: int, maximum: float = math.inf) -> int:
    """Return `value` as an int of at least `minimum` and at most `maximum`.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is too small or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer of at least {minimum}, got {shown(value)}")
    value = int(value)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(value)}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {shown(value)}")
    return value


def positive(name: str, value: Any, where: str = "") -> float:
    """Return `value`, or raise if it is not a finite number above 0."""
    return _in_range(name, value, lambda x: x > 0 and math.isfinite(x), "a finite number above 0", where)


def not_negative(name: str, value: Any) -> float:
    """Return `value`, or raise if it is not a finite number, 0 or more."""
    return _in_range(name, value, lambda x: x >= 0 and math.isfinite(x), "a finite number, 0 or more")


def fraction(name: str, value: Any) -> float:
    """Return `value`, or raise if it is not a number in [0, 1)."""
    return _in_range(name, value, lambda x: 0 <= x < 1, "a number in [0, 1)")


def _in_range(name: str, value: Any, good: Callable[[float], bool], expected: str, where: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}, got {shown(value)}{where}")
    try:
        number = float(value)
    except OverflowError:
        number = value = math.inf
    if not good(number):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}{where}")
    return number


def layer_sizes(sizes: Any) -> tuple[int, ...]:
    """Return the sizes of the layers, input first: two or more integers of at least 1.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(sizes, str) or not isinstance(sizes, Sequence | np.ndarray) or getattr(sizes, "shape", None) == ():
        raise TypeError(f"sizes must be a sequence of integers, input layer first, got {shown(sizes)}")
    if len(sizes) < 2:
        raise ValueError(f"sizes must name two layers at least, the input and the output, got {shown(list(sizes))}")
    return tuple(integer(f"sizes[{l}]", size, 1, MAX_SIZE) for l, size in enumerate(sizes))


def within_memory(what: str, nbytes: int) -> None:
    """Raise ``MemoryError`` if something takes more bytes than the machine has in all; say nothing where it may fit."""
    try:
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        return
    if nbytes > has:
        raise MemoryError(f"{what} would take {nbytes / 2**30:,.1f} GiB, but this machine has {has / 2**30:,.1f} GiB")


def connectivity(masks: Any, sizes: tuple[int, ...], dtype: np.dtype[Any]) -> list[Matrix | None]:
    """Return the connectivity masks, one of 0 and 1 or None for each layer.

    Raises
    ------
    TypeError, ValueError
    """
    shapes = list(pairwise(sizes))
    if masks is None:
        return [None] * len(shapes)
    if not isinstance(masks, Sequence) or len(masks) != len(shapes):
        raise ValueError(
            f"connectivity must be a list with one mask or None for each of {len(shapes)} layers, got {_short(masks)}"
        )
    checked: list[Matrix | None] = []
    for l, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        if mask is None:
            checked.append(None)
            continue
        array = numeric(f"connectivity[{l}]", mask)
        if array.shape != shape:
            raise ValueError(f"connectivity[{l}] must have shape {shape}, that of the weights, got {array.shape}")
        if not ((array == 0) | (array == 1)).all():
            raise ValueError(f"connectivity[{l}] must hold only 0 and 1, got {array[(array != 0) & (array != 1)][0]}")
        checked.append(np.array(array, dtype=dtype, order="C"))  # a copy: the connectivity is fixed
    return checked


def thetas(matrices: Any) -> list[Matrix]:
    """Return the Theta matrices as arrays, each of shape (n_l, n_{l-1} + 1).

    Raises
    ------
    TypeError, ValueError
        If there is none, or one is no matrix or does not take the outputs of the one before.
    """
    if not hasattr(matrices, "__len__"):
        raise TypeError(f"thetas must be a sequence of matrices, one for each layer, got {shown(matrices)}")
    if len(matrices) == 0:
        raise ValueError("thetas must hold one matrix for each layer, got none")
    arrays = [numeric(f"thetas[{l}]", theta) for l, theta in enumerate(matrices)]
    for l, theta in enumerate(arrays):
        if theta.ndim != 2 or theta.shape[1] < 2 or theta.shape[0] < 1:
            raise ValueError(f"thetas[{l}] must be a matrix (n_l, n_(l-1) + 1), got shape {theta.shape}")
        if l and theta.shape[1] != arrays[l - 1].shape[0] + 1:
            raise ValueError(
                f"thetas[{l}] must have {arrays[l - 1].shape[0] + 1} columns, one for the bias and one for each "
                f"row of thetas[{l - 1}], got shape {theta.shape}"
            )
    return arrays


def floating_dtype(dtype: Any) -> np.dtype[Any]:
    """Return float32 or float64 as a NumPy dtype.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    try:
        resolved: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        resolved = np.dtype(np.void)
    if dtype is None or resolved not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {shown(dtype)}")
    return resolved


def _short(value: Any) -> str:
    return f"{type(value).__name__} of length {len(value)}" if hasattr(value, "__len__") else shown(value)
