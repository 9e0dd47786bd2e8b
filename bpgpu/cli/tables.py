"""Tables for the command line: reading files, encoding labels, splitting, and standardisation folded into a network."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bpgpu.data import load_digits
from bpgpu.network import MLP

Task = Literal["classification", "regression"]
# A column of whole numbers with at most this many different values is taken for classes.
MAX_INTEGER_CLASSES = 20
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")  # what may follow .csv
FLOAT64 = np.dtype(np.float64)


def read_table(source: str, text_column: str | None = None) -> pd.DataFrame:
    """Read a table.

    Parameters
    ----------
    source : str
        "digits" for the data that ship with bpgpu, or a path: .csv (also compressed), .parquet, .npy (a matrix) or
        .npz (arrays X and y). Columns without names are called x0, x1 ...; y is called y.
    text_column : str, optional
        A column of a .csv file that is text, also if all of it looks like numbers.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is of another kind, empty or damaged.
    """
    if source == "digits":
        X, y = load_digits()
        return _named_columns(X, [f"pixel_{i // 8}_{i % 8}" for i in range(64)]).assign(digit=y)
    path = Path(source)
    path.open("rb").close()  # a missing file is an OSError that names it
    try:
        table = _read(path, text_column)
    except Exception as error:  # a damaged file can raise anything: the readers and decompressors are many
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source}: cannot be read as a table: {reason}") from error
    if table.empty:
        raise ValueError(f"{source}: must have at least one row and one column, got {table.shape}")
    table.columns = table.columns.map(str)
    return table


def _read(path: Path, text_column: str | None) -> pd.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = [suffix for suffix in suffixes[-2:-1] if suffix == ".csv"]
    match suffixes[-1:]:
        case [".csv"]:  # whole, for pieces would each be given a type of their own
            return pd.read_csv(path, low_memory=False, dtype=None if text_column is None else {text_column: str})
        case [".parquet"]:
            return pd.read_parquet(path)
        case [".npy" | ".npz"]:
            return _read_arrays(path)
    raise ValueError("its name must end in .csv, .parquet, .npy or .npz")


def _read_arrays(path: Path) -> pd.DataFrame:
    loaded = np.load(path, allow_pickle=False)  # which of the two it is, its content says
    if isinstance(loaded, np.ndarray):
        return _named_columns(loaded)
    with loaded:
        table = _named_columns(loaded["X"])
        return table.assign(y=loaded["y"]) if "y" in loaded else table


def _named_columns(matrix: np.ndarray[Any, Any], names: list[str] | None = None) -> pd.DataFrame:
    if matrix.ndim == 0:
        raise ValueError("expected an array of one row a sample, got a single number")
    rows = matrix.reshape(len(matrix), -1)
    return pd.DataFrame(rows, columns=names or [f"x{i}" for i in range(rows.shape[1])])


def features(
    table: pd.DataFrame, columns: list[str], source: str, dtype: np.dtype[Any] = FLOAT64
) -> np.ndarray[Any, Any]:
    """Return the named columns as a float64 matrix of shape (rows, columns).

    Raises
    ------
    ValueError
        If a column is missing, not numeric, or has entries that are missing or too large for `dtype`, that of the
        network; all such columns are named.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{source}: the model needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    chosen = table[columns]
    text = [column for column in columns if chosen[column].dtype.kind not in "buif"]
    if text:
        raise ValueError(
            f"{source}: these columns are not numeric: {', '.join(text)}; encode them as numbers or leave them out"
        )
    matrix: np.ndarray[Any, Any] = chosen.to_numpy(dtype=np.float64, na_value=np.nan)
    _refuse(f"{source}: these columns have missing or infinite entries", matrix, columns, "fill or drop them")
    with np.errstate(over="ignore"):
        cast = matrix.astype(dtype)
    fix = "use --dtype float64 in training, or divide such columns by a constant"
    _refuse(f"{source}: these columns have entries too large for {dtype.name}", cast, columns, fix)
    return matrix


def _refuse(what: str, matrix: np.ndarray[Any, Any], columns: list[str], fix: str) -> None:
    """Raise, with their names, if columns are not finite."""
    bad = [column for column, good in zip(columns, np.isfinite(matrix).all(axis=0), strict=True) if not good]
    if bad:
        raise ValueError(f"{what}: {', '.join(bad)}; {fix}")


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
        _refuse_missing(column, name, source)
        kinds = {type(value) for value in column.tolist()}
        if not (kinds <= {str} or kinds <= {bool, int, float}):
            raise ValueError(
                f"{source}: the target {name!r} must hold text or numbers, got "
                f"{', '.join(sorted(kind.__name__ for kind in kinds))}; turn its entries into one of them"
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
        classes = sorted(set(column.tolist()))
        if len(classes) < 2:
            raise ValueError(f"{source}: the target {name!r} must have two classes at least, got only {classes[0]!r}")
        return cls(name, "classification", classes)

    @property
    def outputs(self) -> int:
        """Neurons of the output layer: one for regression and for two classes, else one a class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def metric(self) -> str:
        """The first of the metrics, which has a field of its own in the JSON."""
        return "accuracy" if self.classes else "r2"

    @property
    def text_column(self) -> str | None:
        """The name, if the classes are text: then numbers of a file are text too, such as 1 beside "1" and "3+"."""
        return self.name if self.classes and all(isinstance(label, str) for label in self.classes) else None

    def encode(self, table: pd.DataFrame, source: str, dtype: np.dtype[Any] = FLOAT64) -> np.ndarray[Any, Any]:
        """Return the targets as class numbers or float64, shape (rows,).

        Raises
        ------
        ValueError
            If an entry is missing, a label is not one of the classes, or a number too large for `dtype`.
        """
        if not self.classes:
            return features(table, [self.name], source, dtype)[:, 0]
        column = table[self.name]
        _refuse_missing(column, self.name, source)
        labels = column.tolist()
        if self.text_column is not None:
            labels = [_as_text(label) for label in labels]
        codes = {label: code for code, label in enumerate(self.classes)}
        unknown = sorted({str(label) for label in labels if label not in codes})
        if unknown:
            raise ValueError(f"{source}: {self.name!r} holds labels that training did not see: {', '.join(unknown)}")
        return np.array([codes[label] for label in labels])

    def decode(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the predictions of a network as labels or numbers, shape (rows,)."""
        if not self.classes:
            return outputs[:, 0]
        labels: np.ndarray[Any, Any] = np.array(self.classes)[self.codes(outputs)]
        return labels

    def codes(self, outputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the numbers of the classes that a network gives, shape (rows,)."""
        codes: np.ndarray[Any, Any] = outputs.argmax(axis=1) if self.outputs > 1 else (outputs[:, 0] > 0.5).astype(int)
        return codes


def _refuse_missing(column: "pd.Series[Any]", name: str, source: str) -> None:
    missing = int((column.isna() | column.isin([np.inf, -np.inf])).sum())
    if missing:
        raise ValueError(f"{source}: the target {name!r} has {missing} missing or infinite entries; drop those rows")


def _as_text(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def split(
    rows: int, fraction: float, seed: int, strata: np.ndarray[Any, Any] | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the row numbers of the training part and of the held-out part.

    The host random stream is ``numpy.random.default_rng([seed, 3]).permutation(rows)``; its first rows are held out.
    With `strata`, the numbers of the rows' classes, the k-th of the n rows of a class in that order comes at
    ``(k - 1/2) / n``, so that the part held out has each class in its proportion.

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
    if strata is not None:
        of_class, sizes = strata[order], np.bincount(strata)
        by_class = np.argsort(of_class, kind="stable")
        place = np.empty(rows)
        place[by_class] = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = order[np.argsort((place + 0.5) / sizes[of_class], kind="stable")]
    return order[held_out:], order[:held_out]


def hold_out(
    X: Any,
    y: Any,
    columns: list[str],
    goal: Target,
    validation: str,
    seed: int,
    dtype: np.dtype[Any],
    *,
    stratify: bool = False,
) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Return X and y of the training rows, X and y of the held-out rows, and what the model file says of the split.

    Raises
    ------
    OSError, ValueError
        If `validation` is neither a fraction nor a file with the columns.
    """
    fraction = None
    with contextlib.suppress(ValueError):
        fraction = float(validation)
    if fraction is not None:
        if not 0 < fraction < 1:
            raise ValueError(f"--validation must be a fraction in (0, 1) or a file, got {validation}")
        train, test = split(len(X), fraction, seed, y if stratify else None)
        about = {"rows": len(X), "fraction": fraction, "split_seed": seed, "stratified": stratify}
        return X[train], y[train], X[test], y[test], about
    table = read_table(validation, goal.text_column)
    if goal.name not in table:
        raise ValueError(f"{validation}: must have the target column {goal.name!r}")
    return X, y, features(table, columns, validation, dtype), goal.encode(table, validation, dtype), {}


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each column, float64.

    A constant column, up to the rounding of its mean, has deviation 1 and becomes 0; `varies` is False there.
    """

    mean: np.ndarray[Any, Any]
    deviation: np.ndarray[Any, Any]
    varies: np.ndarray[Any, Any] | bool = True

    @classmethod
    def learn(cls, matrix: np.ndarray[Any, Any]) -> "Standardisation":
        """Measure the columns of a matrix."""
        exponents = np.frexp(np.abs(matrix).max(axis=0))[1]
        scaled = np.ldexp(matrix, -exponents)  # exact, and squares neither overflow nor vanish
        mean, deviation = scaled.mean(axis=0), scaled.std(axis=0)
        varies = deviation > 10 * np.finfo(np.float64).eps * len(matrix) * np.abs(mean)
        return cls(np.ldexp(mean, exponents), np.where(varies, np.ldexp(deviation, exponents), 1.0), varies)

    def apply(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the standardised matrix."""
        standard: np.ndarray[Any, Any] = self.varies * (matrix - self.mean) / self.deviation
        return standard

    @property
    def remoteness(self) -> float:
        """Largest ratio of mean to deviation: by so much does folding multiply the rounding of the first layer."""
        return float(np.max(self.varies * np.abs(self.mean) / self.deviation))

    def fold_into_input(self, net: MLP) -> None:
        """Change the first layer so that the network takes raw columns: ``(x - m) / s W = x (W / s) - (m / s) W``.

        A constant column, which was 0 in training, is cut off.
        """
        flat, weights, biases = _host_parameters(net)
        weights[0] *= np.reshape(self.varies / self.deviation, (-1, 1))
        biases[0] -= self.mean @ weights[0]
        net.parameters = net.backend.asarray(flat, net.architecture.dtype)

    def fold_into_output(self, net: MLP) -> None:
        """Change the last layer, an identity one, so that the network gives raw targets: ``a s + m``."""
        flat, weights, biases = _host_parameters(net)
        weights[-1] *= self.deviation
        biases[-1] *= self.deviation
        biases[-1] += self.mean
        net.parameters = net.backend.asarray(flat, net.architecture.dtype)


def _host_parameters(net: MLP) -> tuple[np.ndarray[Any, Any], list[Any], list[Any]]:
    """Return a float64 copy of the parameters, and its weights and biases as views."""
    flat = net.backend.to_numpy(net.parameters).astype(np.float64)
    return flat, *net.architecture.views(flat)
