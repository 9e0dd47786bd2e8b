"""Checks of plain arguments. Each error is one sentence: the argument, what was expected, what came, the fix."""

import errno
import inspect
import math
import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ma  # now: NumPy 2.0 would import it on first use, and a fork of the process could cut that in two

from bpgpu.errors import short_repr

MAX_COUNT = 2**32 - 1  # of epochs and steps: dropout counts them in 32 bits
MAX_SIZE = 2**31 - 1  # of a layer: BLAS counts rows and columns in 32 bits
MAX_STEPS = 2**63 - 1  # of a schedule, whose steps become floats
Matrix = np.ndarray[Any, Any]


def path(name: str, value: Any) -> Path:
    """Return `value` as a path, which need not exist.

    Raises
    ------
    TypeError
        If it is not a path.
    ValueError
        If it contains a null character, which no file name can.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {short_repr(value)}")
    found = Path(value)
    if "\0" in str(found):
        raise ValueError(f"{name} must not contain null characters, got {short_repr(str(found))}; give another name")
    return found


def file_name(name: str, value: Any) -> Path:
    """Return what `path` does; use it if the file is opened only after long work.

    Raises
    ------
    TypeError, ValueError
        As `path`; also ``ValueError`` if it is longer than the file system allows.
    """
    found = path(name, value)
    try:
        os.lstat(found)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(
                f"{name} must be a name that the file system allows, got {short_repr(str(found))}: {error.strerror}; "
                "give a shorter one"
            ) from None
    return found


def numeric(name: str, value: Any) -> Matrix:
    """Return `value` as an array of bool, integers or floats.

    Raises
    ------
    TypeError
        If it is text, objects or complex numbers.
    ValueError
        If its rows differ in length.
    """
    if ma.is_masked(value):
        raise ValueError(f"{name} must have no masked entries; fill or drop them")
    of_pandas = hasattr(value, "to_numpy") and hasattr(value, "isna")
    kinds = getattr(value, "dtypes" if value.ndim == 2 else "dtype", None) if of_pandas else None
    columns = [] if kinds is None else list(np.ravel(kinds))
    if columns and all(getattr(column, "kind", "") in tuple("buif") for column in columns):
        value = _of_pandas(value, columns)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    except (TypeError, RuntimeError) as error:  # of another library, such as torch, that refuses
        kind, reason = type(value), str(error).partition("\n")[0].partition(". ")[0]
        raise TypeError(
            f"{name} must be an array that NumPy can read, got {kind.__module__.partition('.')[0]}.{kind.__name__} "
            f"({reason:.150}); convert it to a dense NumPy array first"
        ) from None
    if array.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must hold numbers, got dtype {array.dtype}; encode text as numbers and make sparse arrays dense"
        )
    return array


def _of_pandas(value: Any, columns: list[Any]) -> Matrix:
    """Return the numbers of a pandas object in a dtype that holds all columns, NaN where one is missing.

    NumPy itself would return objects for columns of several kinds, and for pandas' own dtypes, which wrap NumPy's.
    """
    dtype = np.result_type(*(getattr(d, "numpy_dtype", getattr(d, "subtype", d)) for d in columns))
    if not np.any(value.isna()):
        array: Matrix = value.to_numpy(dtype=dtype)
    else:
        array = value.to_numpy(dtype=np.result_type(dtype, np.float16), na_value=np.nan)
    return array


def finite(
    name: str, array: Matrix, dtype: np.dtype[Any], place: Callable[[int], tuple[int, ...]] | None = None
) -> Matrix:
    """Return `array` in `dtype`, C-contiguous and aligned; `place` gives an element's index in the argument.

    Raises
    ------
    ValueError
        If it holds NaN or infinity, or a number too large for `dtype`.
    """
    with np.errstate(over="ignore"):
        converted = np.require(array, dtype, ("C", "A", "E"))
    good = np.isfinite(converted)
    if not good.all():
        first = int(np.argmin(good))
        where = np.unravel_index(first, good.shape)
        index = tuple(map(int, where)) if place is None else place(first)
        raise ValueError(
            f"{name} must be finite in {dtype}, got {array[where]} at index {index}; remove or replace such entries"
        )
    return converted


def flag(name: str, value: Any) -> bool:
    """Return `value`, or raise ``TypeError`` if it is not True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {short_repr(value)}")
    return bool(value)


def function(name: str, value: Any, arguments: Sequence[str], hint: str = "") -> Any:
    """Return `value`, or raise ``TypeError`` if it is not a function that takes these arguments by position."""
    expected = f"{name} must be a function of {' and '.join(arguments)}"
    if not callable(value) or isinstance(value, type):  # calling a class would only make an object
        raise TypeError(f"{expected}, got {short_repr(value)}{hint}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a function in C may have no signature
        return value
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{expected}, got {short_repr(value)}: {error}{hint}") from None
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
        raise TypeError(f"{name} must be an integer of at least {minimum}, got {short_repr(value)}")
    whole = int(value)
    if whole < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {short_repr(whole)}")
    if whole > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {short_repr(whole)}")
    return whole


def positive(name: str, value: Any, where: str = "") -> float:
    """Return `value`, or raise if it is not a finite number above 0."""
    return _in_range(name, value, lambda x: x > 0 and math.isfinite(x), "a finite number above 0", where)


def not_negative(name: str, value: Any) -> float:
    """Return `value`, or raise if it is not a finite number, 0 or more."""
    return _in_range(name, value, lambda x: x >= 0 and math.isfinite(x), "a finite number, 0 or more")


def held(name: str, value: float, dtype: np.dtype[Any], *, above_0: bool = False) -> float:
    """Return a number of 0 or more; raise ValueError if it is infinite in `dtype`, or 0 there despite `above_0`."""
    limits = np.finfo(dtype)
    if value > float(limits.max):
        raise ValueError(f"{name} must be at most {limits.max:.2g}, the largest number of {dtype}, got {value}")
    with np.errstate(under="ignore"):
        if above_0 and dtype.type(value) == 0:
            raise ValueError(f"{name} must be at least {limits.tiny:.2g}, got {value}, which is 0 in {dtype}")
    return value


def fraction(name: str, value: Any) -> float:
    """Return `value`, or raise if it is not a number in [0, 1)."""
    return _in_range(name, value, lambda x: 0 <= x < 1, "a number in [0, 1)")


def _in_range(name: str, value: Any, good: Callable[[float], bool], expected: str, where: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}, got {short_repr(value)}{where}")
    try:
        number = float(value)
    except OverflowError:
        number = value = math.inf
    if not good(number):
        raise ValueError(f"{name} must be {expected}, got {short_repr(value)}{where}")
    return number


def layer_sizes(sizes: Any) -> tuple[int, ...]:
    """Return the sizes of the layers, input first: two or more integers of at least 1.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(sizes, str) or not isinstance(sizes, Sequence | np.ndarray) or getattr(sizes, "shape", None) == ():
        raise TypeError(f"sizes must be a sequence of integers, input layer first, got {short_repr(sizes)}")
    if len(sizes) < 2:
        raise ValueError(
            f"sizes must name at least two layers, the input and the output, got {short_repr(list(sizes))}"
        )
    return tuple(integer(f"sizes[{l}]", size, 1, MAX_SIZE) for l, size in enumerate(sizes))


def within_memory(what: str, nbytes: int) -> None:
    """Raise ``MemoryError`` if something takes more bytes than the machine's whole memory."""
    try:
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        return
    if nbytes > has:
        raise MemoryError(f"{what} would take {nbytes / 2**30:,.1f} GiB, but this machine has {has / 2**30:,.1f} GiB")


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
        raise ValueError(f"dtype must be 'float32' or 'float64', got {short_repr(dtype)}")
    return resolved
