"""Tables for the command line: reading files, encoding labels, splitting, and standardisation folded into a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from bpgpu.data import load_digits
from bpgpu.network import MLP

Task = Literal["classification", "regression"]
# A column of whole numbers with at most this many different values is taken for classes.
MAX_INTEGER_CLASSES = 20


def read_table(source: str) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    source : str
        "digits" for the data that ship with bpgpu, or a path: .csv (also compressed), .parquet, .npy (a matrix) or
        .npz (arrays X and y). Columns without names are called x0, x1 ...; y is called y.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is of another kind, empty or damaged.
    """
    if source == "digits":
        X, y = load_digits()
        return _named_columns(X, [f"pixel_{i // 8}_{i % 8}" for i in range(64)]).assign(digit=y)
    path = Path(source)
    path.open("rb").close()  # a missing file is an OSError that names it
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        if ".csv" in suffixes[-2:]:
            table = pd.read_csv(path)
        elif suffixes[-1:] == [".parquet"]:
            table = pd.read_parquet(path)
        elif suffixes[-1:] == [".npy"]:
            table = _named_columns(np.load(path, allow_pickle=False))
        elif suffixes[-1:] == [".npz"]:
            with np.load(path, allow_pickle=False) as arrays:
                table = _named_columns(arrays["X"])
                if "y" in arrays:
                    table["y"] = arrays["y"]
        else:
            raise ValueError("its name must end in .csv, .parquet, .npy or .npz")
    except (ValueError, KeyError, EOFError, BadZipFile) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{source}: cannot be read as a table: {' '.join(str(error).split())}") from error
    if table.empty:
        raise ValueError(f"{source}: must have at least one row and one column, got {table.shape}")
    return table


def _named_columns(matrix: np.ndarray[Any, Any], names: list[str] | None = None) -> pd.DataFrame:
    if matrix.ndim == 0:
        raise ValueError("expected an array of one row a sample, got a single number")
    rows = matrix.reshape(len(matrix), -1)
    return pd.DataFrame(rows, columns=names or [f"x{i}" for i in range(rows.shape[1])])


def features(table: pd.DataFrame, columns: list[str], source: str) -> np.ndarray[Any, Any]:
    """Return the named columns as a float64 matrix of shape (rows, columns).

    Raises
    ------
    ValueError
        If a column is missing, not numeric, or has missing entries; all such columns are named.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{source}: the model needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    chosen = table[columns]
    text = [str(column) for column in columns if chosen[column].dtype.kind not in "buif"]
    if text:
        raise ValueError(
            f"{source}: these columns are not numeric: {', '.join(text)}; encode them as numbers or leave them out"
        )
    matrix: np.ndarray[Any, Any] = chosen.to_numpy(dtype=np.float64)
    bad = [str(column) for column, good in zip(columns, np.isfinite(matrix).all(axis=0), strict=True) if not good]
    if bad:
        raise ValueError(
            f"{source}: these columns have missing or infinite entries: {', '.join(bad)}; fill or drop them"
        )
    return matrix


@dataclass(frozen=True)
class Target:
    """The column to be predicted, and how a network sees it.

    Attributes
    ----------
    name : str
    task : {"classification", "regression"}
    classes : list
        The different labels, sorted; empty for regression.
    """

    name: str
    task: Task
    classes: list[Any]

    @classmethod
    def find(cls, table: pd.DataFrame, name: str | None, task: str, source: str) -> "Target":
        """Choose the target column (the last one if not named) and the task.

        Raises
        ------
        ValueError
            If there is no such column, it has missing entries, or it does not suit the task.
        """
        name = str(table.columns[-1]) if name is None else name
        if name not in table:
            raise ValueError(
                f"{source}: --target must name a column, got {name!r}; there are {', '.join(table.columns)}"
            )
        if len(table.columns) < 2:
            raise ValueError(f"{source}: must have at least one column besides the target {name!r}")
        column = table[name]
        if column.isna().any():
            raise ValueError(
                f"{source}: the target {name!r} has {int(column.isna().sum())} missing entries; drop those rows"
            )
        kind = column.dtype.kind
        if task == "auto":
            whole = kind in "bui" or (kind == "f" and bool((column == column.round()).all()))
            few = whole and column.nunique() <= MAX_INTEGER_CLASSES
            task = "regression" if kind in "uif" and not few else "classification"
        if task == "regression":
            if kind not in "buif":
                raise ValueError(f"{source}: the target {name!r} holds text; use --task classification")
            return cls(name, "regression", [])
        classes = [value.item() if isinstance(value, np.generic) else value for value in np.unique(column.to_numpy())]
        if len(classes) < 2:
            raise ValueError(f"{source}: the target {name!r} must have two classes at least, got only {classes[0]!r}")
        return cls(name, "classification", classes)

    @property
    def outputs(self) -> int:
        """Neurons of the output layer: one for regression and for two classes, else one a class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def metric(self) -> str:
        """What `score` computes."""
        return "accuracy" if self.classes else "r2"

    def encode(self, table: pd.DataFrame, source: str) -> np.ndarray[Any, Any]:
        """Return the targets as class numbers or float64, shape (rows,).

        Raises
        ------
        ValueError
            If a label is not one of the classes, or an entry is not a number.
        """
        column = table[self.name].to_numpy()
        if not self.classes:
            return features(table, [self.name], source)[:, 0]
        codes = {label: code for code, label in enumerate(self.classes)}
        unknown = sorted({str(label) for label in column if label not in codes})
        if unknown:
            raise ValueError(f"{source}: {self.name!r} holds labels that training did not see: {', '.join(unknown)}")
        return np.array([codes[label] for label in column])

    def decode(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the predictions of a network as labels or numbers, shape (rows,)."""
        if not self.classes:
            return outputs[:, 0]
        codes = outputs.argmax(axis=1) if self.outputs > 1 else (outputs[:, 0] > 0.5).astype(int)
        labels: np.ndarray[Any, Any] = np.array(self.classes)[codes]
        return labels

    def score(self, outputs: np.ndarray[Any, Any], encoded: np.ndarray[Any, Any]) -> float | None:
        """Return accuracy, or R²; None if the targets do not vary, so that there is no R²."""
        if self.classes:
            return float(np.mean(self.decode(outputs) == np.array(self.classes)[encoded]))
        spread = float(np.sum((encoded - encoded.mean()) ** 2))
        return 1 - float(np.sum((encoded - outputs[:, 0]) ** 2)) / spread if spread else None


def split(rows: int, fraction: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the row numbers of the training part and of the held-out part.

    The host random stream is ``numpy.random.default_rng([seed, 3]).permutation(rows)``; its first rows are held out.

    Raises
    ------
    ValueError
        If one part would be empty.
    """
    held_out = round(rows * fraction)
    if not 0 < held_out < rows:
        raise ValueError(
            f"--validation {fraction:g} of {rows} rows leaves a part empty; give another fraction or a file"
        )
    order = np.random.default_rng([seed, 3]).permutation(rows)
    return order[held_out:], order[:held_out]


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each column, float64; a constant column has deviation 1."""

    mean: np.ndarray[Any, Any]
    deviation: np.ndarray[Any, Any]

    @classmethod
    def learn(cls, matrix: np.ndarray[Any, Any]) -> "Standardisation":
        """Measure the columns of a matrix."""
        deviation = matrix.std(axis=0)
        return cls(matrix.mean(axis=0), np.where(deviation > 0, deviation, 1.0))

    def apply(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the standardised matrix."""
        standard: np.ndarray[Any, Any] = (matrix - self.mean) / self.deviation
        return standard

    @property
    def remoteness(self) -> float:
        """Largest ratio of mean to deviation: by so much does folding multiply the rounding of the first layer."""
        return float(np.max(np.abs(self.mean) / self.deviation))

    def fold_into_input(self, net: MLP) -> None:
        """Change the first layer so that the network takes raw columns: ``(x - m) / s W = x (W / s) - (m / s) W``."""
        W, b = net.weights[0], net.biases[0]
        scaled = np.asarray(W, dtype=np.float64) / self.deviation[:, None]
        b[...] = b - self.mean @ scaled
        W[...] = scaled

    def fold_into_output(self, net: MLP) -> None:
        """Change the last layer, an identity one, so that the network gives raw targets: ``a s + m``."""
        net.weights[-1][...] *= self.deviation
        net.biases[-1][...] = net.biases[-1] * self.deviation + self.mean
