"""Tables: files of every kind become one table that can say where an entry stands."""

import glob
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bpgpu import checks
from bpgpu.cli.arrays import matrix, read_arrays
from bpgpu.cli.csv_files import COMPRESSED, ENDINGS, CsvFile
from bpgpu.cli.numerals import numbers
from bpgpu.cli.reading import SPACE, Reading, quoted
from bpgpu.data import load_digits
from bpgpu.errors import unknown_name

KINDS = "its name must end in .csv, .tsv, .parquet, .npy or .npz"
BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


@dataclass
class Table:
    """Rows of one or several files.

    Attributes
    ----------
    frame : pandas.DataFrame
        Its rows are numbered 0, 1 ...; its columns have different names, all text.
    source : str
        For messages.
    target : list of str
        The columns to predict if none are named; empty if the file does not say.
    aside : dict of str
        Columns that are inputs only if they are named, such as an index that pandas wrote, and what they are.
    notes : list of str
        What the user must know about how the files were read.
    decimal, thousands : str
        The marks in numbers of columns that were kept as text.
    parts : list of (rows, path, CsvFile or None)
        The files, in the order of their rows.
    hint : str
        Why there is no default target, if so.
    rows : array of int or None
        The row numbers in the files, if some are left out.
    """

    frame: pd.DataFrame
    source: str
    target: list[str] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decimal: str = "."
    thousands: str | None = None
    parts: list[tuple[int, Path, CsvFile | None]] = field(default_factory=list)
    hint: str = ""
    rows: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return list(self.frame.columns)

    @property
    def row_numbers(self) -> np.ndarray[Any, Any]:
        """The number of each row, counted from 0 through all files."""
        return np.arange(len(self.frame)) if self.rows is None else self.rows

    def leave_out_missing(self, names: list[str]) -> None:
        """Leave out the rows in which one of these columns is missing."""
        known = self.frame[names].notna().all(axis=1).to_numpy()
        if not known.all():
            self.rows = self.row_numbers[known]
            self.frame = self.frame[known].reset_index(drop=True)
            self.notes.append(f"{self.source}: {(~known).sum():,} rows without a target are left out")

    def require(self, option: str, names: list[str]) -> None:
        """Raise ``ValueError`` if a column that an option names does not exist."""
        for name in names:
            if name not in self.frame:
                near = unknown_name(option, name, self.names) if len(self.names) <= 8 else None
                hint = str(near).partition("; ")[2] if near else ""
                hint = f"repeat {option} for several" if set(name.split(",")) <= set(self.names) else hint
                raise ValueError(
                    f"{self.source}: {option} must name a column, got {name!r}; there are {quoted(self.names)}"
                    + (f"; {hint}" if hint else "")
                )

    def place(self, row: int, name: str) -> tuple[str, str]:
        """Return where an entry stands, such as "line 34", and its text, "" if it is missing."""
        value = self.frame[name].iloc[row]
        row = int(self.row_numbers[row])
        text, where = "" if pd.isna(value) is True else str(value), f"row {row}"
        start = 0
        for rows, path, file in self.parts:
            if start <= row < start + rows:
                where = f"row {row - start}"
                if file is not None and name in file.names:
                    where, text = file.locate(row - start, file.names.index(name), text)
                if len(self.parts) > 1:
                    where += f" of {path}"
            start += rows
        return where, text

    def first(self, name: str, wrong: Any) -> str:
        """Return the first wrong entry of a column and its place: "'?' in line 34"."""
        where, text = self.place(int(np.argmax(np.asarray(wrong))), name)
        return f"{text[:60]!r} in {where}"

    def numbers(self, name: str) -> "pd.Series[Any]":
        """Return a text column as numbers, or as booleans if all are; NaN where an entry is neither."""
        text = self.frame[name].astype(object)
        if text.dropna().isin(list(BOOLEANS)).all():
            return text.map(BOOLEANS).astype("boolean")  # which may be missing
        return numbers(text, self.decimal, self.thousands)

    def settled(self, name: str, exact: bool = False) -> "pd.Series[Any]":
        """Return a column that was read as text as numbers, if all entries are; 01001 is a code, not a number.

        With `exact`, a whole number that float64 would round is a code too.
        """
        column = self.frame[name]
        if column.dtype.kind in "buifmMc" or isinstance(column.dtype, pd.CategoricalDtype):
            return column
        found, known = self.numbers(name), column.notna()
        code = r"[+-]?(0\d+|\d{16,})" if exact and found.dtype.kind == "f" else r"[+-]?0\d+"
        text = column[known].astype(str)
        return column if found[known].isna().any() or text.str.fullmatch(code).any() else found

    def digest(self) -> str:
        """Return a hash of the files' content."""
        hashed = hashlib.sha256()
        for _, path, _ in self.parts:
            with path.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        return hashed.hexdigest()


def read_table(
    sources: str | list[str], reading: Reading | None = None, text: Callable[[list[str]], set[str]] | None = None
) -> Table:
    """Read a table.

    Parameters
    ----------
    sources : str or list of str
        "digits" for the data that ship with bpgpu, or paths, or patterns like ``part-*.csv``: .csv and .tsv (also
        compressed), .parquet, .npy (a matrix) or .npz (arrays X and y). Several files must have the same columns.
    reading : Reading, optional
        The format of CSV files.
    text : callable, optional
        Takes the column names of a CSV file and returns those to read as text, even if all entries look like numbers.

    Raises
    ------
    OSError
        If a file cannot be opened.
    ValueError
        If it is of another kind, empty or damaged.
    """
    reading, text = reading or Reading(), text or (lambda names: set())
    sources = [sources] if isinstance(sources, str) else sources
    if sources == ["digits"]:
        X, y = load_digits()
        frame = matrix(X, [f"pixel_{i // 8}_{i % 8}" for i in range(64)])
        frame["digit"] = y
        return Table(frame, "digits", ["digit"])
    chosen: list[set[str]] = []

    def of_the_first(names: list[str]) -> set[str]:
        """Return the same columns for all files, in whatever order they have them."""
        if not chosen:
            chosen.append(text(names))
        return chosen[0]

    tables = [_read_file(path, reading, of_the_first) for path in files_of(sources)]
    mixed = _mixed(tables)
    if mixed:  # 01001 must not be a number in one file and a code in another
        chosen[:] = [{*(chosen[0] if chosen else ()), *mixed}]
        tables = [_read_file(path, reading, of_the_first) for path in files_of(sources)]
    table = tables[0] if len(tables) == 1 else _joined(tables)
    _set_unnamed_aside(table)
    return table


def files_of(sources: str | list[str], option: str = "DATA") -> list[Path]:
    """Return the files that a table is read from; `option` is the user's word for them.

    Raises
    ------
    ValueError
        If one cannot be a file name, or is a folder.
    """
    sources = [sources] if isinstance(sources, str) else sources
    return [] if sources == ["digits"] else list(_paths(sources, option))


def _paths(sources: list[str], option: str) -> Iterator[Path]:
    """Yield the files that arguments mean; an existing file with * in its name means itself."""
    for source in sources:
        path = checks.file_name(option, source)
        if not source:
            raise ValueError(f"{option} must name a file, got {source!r}; name the table")
        if source == "-" and not path.exists():
            raise ValueError(f"{option} must name a file, got -; write standard input to a file, and name that")
        if re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE):
            raise ValueError(f"{option} must name a file, got the address {source}; download it, and name the file")
        found = [] if path.exists() or not glob.has_magic(source) else sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        if path.is_dir():
            raise ValueError(f"{source} is a folder; name its files, as in '{path / '*.csv'}'")
        yield from map(Path, found) if found else [path]


def _read_file(path: Path, reading: Reading, text: Callable[[list[str]], set[str]]) -> Table:
    path.open("rb").close()  # a missing file raises an OSError that names it
    try:
        table = _read(path, reading, text)
    except Exception as error:  # the many readers and decompressors can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a table: {reason}") from error
    for name in table.names:
        column = table.frame[name]
        if column.dtype == object and {type(entry) for entry in column.dropna().tolist()} == {bool}:
            table.frame[name] = column.astype("boolean")  # with missing entries, which bool cannot have
    if table.frame.empty:
        raise ValueError(f"{path}: must have at least one row and one column, got {table.frame.shape}")
    return table


def _read(path: Path, reading: Reading, text: Callable[[list[str]], set[str]]) -> Table:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = [suffix for suffix in suffixes[-2:-1] if suffix in ENDINGS]
    match suffixes[-1:]:
        case [".csv" | ".tsv" | ".tab"]:
            return _read_csv(path, reading, text)
        case [".parquet"]:
            return _read_parquet(path, text)
        case [".npy" | ".npz"]:
            frame, target, notes, hint = read_arrays(path)
            return Table(frame, str(path), target, {}, notes, parts=[(len(frame), path, None)], hint=hint)
    raise ValueError(KINDS)


def _read_csv(path: Path, reading: Reading, text: Callable[[list[str]], set[str]]) -> Table:
    file = CsvFile.look_at(path, reading)
    frame = file.read(reading, text(file.names))
    notes = [f"{path} is read with {' '.join(file.notes)}"] if file.notes else []
    notes += _swallowed_lines(file, frame)
    parts: list[Any] = [(len(frame), path, file)]
    return Table(frame, str(path), [], {}, notes, file.decimal, reading.thousands, parts)


def _swallowed_lines(file: CsvFile, frame: pd.DataFrame) -> list[str]:
    """Return a note if an entry holds whole lines, as when a quotation mark is meant literally."""
    others = len(file.names) - 1
    for name in file.names if others and file.sep != SPACE else ():
        if frame[name].dtype.kind in "buif":
            continue
        for row in np.flatnonzero(frame[name].astype(str).str.contains("[\r\n]", regex=True)):
            if any(part.count(file.sep) == others for part in frame[name].iloc[row].splitlines()[1:]):
                where, _ = file.locate(int(row), 0, "")
                return [
                    f"{file.path}: an entry of {name!r} in the row that begins in {where} holds whole lines; if its "
                    "quotation mark is literal, double it and put the entry in quotation marks"
                ]
    return []


def _read_parquet(path: Path, text: Callable[[list[str]], set[str]]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20).read()  # without the whole file in memory
    equal = sorted({name for name in content.column_names if content.column_names.count(name) > 1})
    if equal:
        raise ValueError(f"two or more columns have the same name: {quoted(equal)}; rename them")
    about = content.schema.pandas_metadata or {}
    index = [name for name in about.get("index_columns", []) if isinstance(name, str) and name in content.column_names]
    as_text, whole = text([name for name in content.column_names if name not in index]), {}
    for i, column in enumerate(content.schema):
        if pa.types.is_decimal(column.type):
            kind = pa.string() if column.name in as_text else pa.float64()
            content = content.set_column(i, column.name, content.column(i).cast(kind))
        elif pa.types.is_integer(column.type) and content.column(i).null_count:  # float64 would round them
            mapped = pd.api.types.pandas_dtype(str(column.type).replace("uint", "UInt").replace("int", "Int"))
            whole[column.name] = content.column(i).to_pandas(types_mapper=lambda _, mapped=mapped: mapped)
    # Without needless copies: numbers stay in Arrow's memory, and the rest is freed along the way.
    frame = content.to_pandas(ignore_metadata=True, split_blocks=True, self_destruct=True)
    for name, entries in whole.items():
        frame[name] = entries
    aside = dict.fromkeys(index, "is an index that pandas wrote")
    return Table(frame, str(path), aside=aside, parts=[(len(frame), path, None)])


def _mixed(tables: list[Table]) -> set[str]:
    """Return the CSV columns of more than one kind (text, numbers, booleans); an empty column fits any kind."""
    kinds: dict[str, set[str]] = {}
    for table in tables if len(tables) > 1 else ():
        for name in table.names if any(file is not None for _, _, file in table.parts) else ():
            kind = table.frame[name].dtype.kind
            if kind not in "buif" or table.frame[name].notna().any():
                kinds.setdefault(name, set()).add("number" if kind in "uif" else kind if kind == "b" else "text")
    return {name for name, found in kinds.items() if len(found) > 1}


def _joined(tables: list[Table]) -> Table:
    """Return one table with the rows of several that have the same columns.

    Raises
    ------
    ValueError
        If the columns differ.
    """
    first = tables[0]
    for table in tables[1:]:
        if set(table.names) != set(first.names):
            missing, extra = ([n for n in a.names if n not in b.frame] for a, b in ((first, table), (table, first)))
            raise ValueError(
                f"{table.source}: must have the columns of {first.source}"
                + (f"; missing: {quoted(missing)}" if missing else "")
                + (f"; not there: {quoted(extra)}" if extra else "")
            )
    return Table(
        pd.concat([table.frame[first.names] for table in tables], ignore_index=True),
        f"{first.source} and {len(tables) - 1} more",
        first.target,
        first.aside,
        [note for table in tables for note in table.notes],
        next((table.decimal for table in tables if table.decimal != "."), "."),
        first.thousands,
        [part for table in tables for part in table.parts],
        first.hint,
    )


def _set_unnamed_aside(table: Table) -> None:
    """Remove unnamed columns that are empty, and set aside those that number the rows like an index of pandas."""
    for name in [name for name in table.names if name.startswith("Unnamed: ")]:
        column = table.frame[name]
        if column.isna().all():
            del table.frame[name]
            table.notes.append(f"{table.source}: lines end with a separator; the empty column is left out")
        elif column.is_unique and column.dtype.kind != "f":
            table.aside[name] = "numbers or names the rows, as an index does"
