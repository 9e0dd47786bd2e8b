"""NumPy's files as tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]


def read_arrays(path: Path) -> tuple[pd.DataFrame, list[str], list[str], str]:
    """Return the table in a .npy or .npz file, its targets, notes, and, if there is no target, the reason.

    Raises
    ------
    ValueError
        If its arrays cannot be columns.
    """
    loaded = np.load(path, allow_pickle=False)  # the content tells which of the two it is
    target, notes, hint = [], [], ""
    if isinstance(loaded, np.ndarray):
        _refuse_shape(loaded, "it")
        frame = matrix(loaded)
    else:
        with loaded:
            arrays = "it holds " + (_shapes(loaded) or "no arrays")
            if "X" not in loaded:
                raise ValueError(f"a .npz needs an array X of rows, and y of targets; {arrays}; rename them")
            X = _plain(loaded, "X")
            frame = matrix(X)
            if "y" in loaded:
                y = _plain(loaded, "y")
                if y.ndim == 0 or len(y) != len(frame):
                    raise ValueError(f"X and y must have the same number of rows; {arrays}")
                _refuse_shape(y, "y")
                y = y.reshape(len(y), -1)
                if (
                    y.shape[1] > 1
                    and y.dtype.kind in "buif"
                    and np.isin(y, (0, 1)).all()
                    and (y.sum(axis=1) == 1).all()
                ):
                    notes = [f"{path}: y has one 1 in each row, so it is read as the classes 0 to {y.shape[1] - 1}"]
                    y = y.argmax(axis=1)[:, None]
                target = ["y"] if y.shape[1] == 1 else [f"y{i}" for i in range(y.shape[1])]
                for name, column in zip(target, _native(y).T, strict=True):
                    frame[name] = column
            else:
                hint = f"; {arrays}: add y, the targets, or name a column of X with --target"
    return frame, target, notes, hint


def _plain(archive: Any, name: str) -> Array:
    """Return an array of an archive; reading one of Python objects could run code from the file."""
    try:
        array: Array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        kind = "float" if name == "X" else "str"
        raise ValueError(f"its array {name} holds Python objects; save it as {name}.astype({kind})") from None
    return array


def _shapes(archive: Any) -> str:
    """Describe the arrays of an archive, reading only their headers."""
    found = []
    for name in archive.files:
        with archive.zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            found.append(f"{name} {shape} {dtype}")
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _native(array: Array) -> Array:
    """Return an array in this machine's byte order, without a copy if it already is."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def matrix(array: Array, names: list[str] | None = None) -> pd.DataFrame:
    """Return a table on the memory of a matrix; each entry along the first axis, such as an image, becomes one row."""
    if array.ndim == 0:
        raise ValueError("expected an array with one row per sample, got a single number")
    if array.dtype.names is not None:
        return pd.DataFrame({str(name): _native(array[name]) for name in array.dtype.names})
    rows = _native(array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0))
    return pd.DataFrame(rows, columns=names or [f"x{i}" for i in range(rows.shape[1])], copy=False)


def _refuse_shape(array: Array, said: str) -> None:
    """Raise if an array has more axes than rows and columns, because it is unclear which entries are targets."""
    if array.ndim > 2:
        raise ValueError(
            f"{said} must have one or two dimensions, got the shape {array.shape}; "
            "reshape it to one row per sample, as in array.reshape(len(array), -1)"
        )
    if said == "y" and array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"y must have at least one column, got the shape {array.shape}; leave it out or fill it")
