"""Inputs: which columns a network takes, and how each becomes numbers."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bpgpu.cli.numerals import BLANKS
from bpgpu.cli.reading import quoted
from bpgpu.cli.tables import Table

BLOCK = 1 << 20  # numbers that are converted at a time
AUTO = "auto"
FEW = 20  # distinct entries; more must repeat to be taken for categories without being asked
Matrix = np.ndarray[Any, Any]


def kind(column: "pd.Series[Any]") -> str:
    """Return "number", "text", or the names of the other types that a column holds."""
    if column.dtype.kind in "buif":
        return "number"
    if column.dtype.kind in "mMc":
        return str(column.dtype)
    if isinstance(column.dtype, pd.StringDtype):
        return "text"
    kinds = {type(value) for value in column.dropna().unique().tolist()} if _hashable(column) else {list}
    if kinds <= {str, bool, int, float}:
        return "text"
    return ", ".join(sorted(kind.__name__ for kind in kinds))


def _hashable(column: "pd.Series[Any]") -> bool:
    return not column.map(lambda entry: isinstance(entry, list | dict | np.ndarray)).any()


def as_text(label: Any) -> str:
    """Return a label as text, a whole number without a decimal point."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a column as text; missing entries stay missing."""
    return column.astype(object).map(as_text, na_action="ignore")


def written_numbers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return which entries of a text column a person would read as numbers, such as 1,234 or $5 or 12 %."""
    sign = "[$€£¥]"
    return (
        texts(column)
        .str.strip()
        .str.fullmatch(rf"[+-]?{sign}? ?[+-]?[\d.,'{BLANKS}]*\d[\d.,'{BLANKS}]* ?(%|{sign})?")
        .eq(True)
    )


def many(distinct: int, rows: int) -> bool:
    """Return whether there are too many distinct entries for categories."""
    return distinct > FEW and 2 * distinct > rows


def remedy(entry: str) -> str:
    """Return what to do about an entry that should be a number."""
    entry = entry.strip()
    if entry.startswith("#"):
        return "if it is a comment, use --comment '#'"
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", entry):
        return "use --thousands ',' (or --decimal ',' if it is a decimal comma)"
    entry = re.sub(f"[{BLANKS}]", " ", entry)
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}([. ']\d{3})+(,\d*)?", entry):
        mark = next(mark for mark in ". '" if mark in entry)
        return f"use --thousands {mark!r}" + (" --decimal ','" if "," in entry or mark == "." else "")
    if re.fullmatch(r"[+-]?\d*,\d*", entry) and len(entry) > 1:
        return "use --decimal ','"
    if re.search(r"\d", entry):
        return "write it as a plain number"
    return f"if it means missing, use --na {entry!r}; otherwise correct it"


@dataclass(frozen=True)
class Inputs:
    """The columns that a network takes, and how each becomes numbers.

    Attributes
    ----------
    columns : list of str
    categories : dict of list
        The distinct entries of each text column in training. Each becomes a 1 in a column of its own; an entry that
        training did not see becomes zeros. None is a missing entry.
    fill : dict of float
        The values that replace missing numbers: means of the training rows.
    """

    columns: list[str]
    categories: dict[str, list[str | None]] = field(default_factory=dict)
    fill: dict[str, float] = field(default_factory=dict)

    @classmethod
    def find(cls, table: Table, columns: list[str], encode: list[str], rows: Matrix) -> "Inputs":
        """Learn from the training rows of a table how columns become numbers; `encode` names those to encode or fill.

        Raises
        ------
        ValueError
            If a column is neither numeric nor to be encoded.
        """
        kinds = {name: kind(table.frame[name]) for name in columns}
        wanted = {name for name in columns if name in encode or AUTO in encode}
        text = [name for name in columns if kinds[name] == "text" and name in wanted]
        _refuse_text(table, [name for name in columns if kinds[name] != "number" and name not in text])
        for name in text:
            if name not in encode:
                _refuse_guess(table, name)
        categories: dict[str, list[str | None]] = {}
        for name in text:
            entries = texts(table.frame[name].iloc[rows])
            categories[name] = [*sorted(entries.dropna().unique().tolist()), *([None] if entries.isna().any() else [])]
        fill = {}
        for name in columns:
            if kinds[name] == "number" and name in wanted:
                known = table.frame[name].iloc[rows].dropna().to_numpy(dtype=np.float64)
                if known.size == 0:
                    raise ValueError(f"{table.source}: the column {name!r} is empty; leave it out with --drop {name!r}")
                with np.errstate(over="ignore"):
                    fill[name] = float(np.clip(np.mean(known), *(np.finfo(np.float64).min, np.finfo(np.float64).max)))
        return cls(columns, categories, fill)

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Inputs":
        """Read the metadata of a model file.

        Raises
        ------
        ValueError
            If it is not what `describe` returns.
        """
        inputs = cls(about["columns"], about.get("categories", {}), about.get("fill", {}))
        names, categories, fill = inputs.columns, inputs.categories, inputs.fill
        if not names or not _different_texts(names):
            raise ValueError(f"'columns' must be a list of different names, got {str(names)[:80]}")
        if not isinstance(categories, dict) or not all(
            name in names
            and seen
            and isinstance(seen, list)
            and _different_texts(seen[: len(seen) - (seen[-1] is None)])
            for name, seen in categories.items()
        ):
            raise ValueError(f"'categories' must list the different entries of columns, got {str(categories)[:80]}")
        if not isinstance(fill, dict) or not all(
            name in names and name not in categories and type(value) in (int, float) and math.isfinite(value)
            for name, value in fill.items()
        ):
            raise ValueError(f"'fill' must give finite numbers for columns, got {str(fill)[:80]}")
        return inputs

    def describe(self) -> dict[str, Any]:
        """Return the metadata for a model file, without empty entries."""
        extra = {"categories": self.categories, "fill": self.fill}
        return {"columns": self.columns} | {key: value for key, value in extra.items() if value}

    @property
    def names(self) -> list[str]:
        """The meaning of each network input: a column, or a column and the entry for which it is 1."""
        return [
            name if name not in self.categories else f"{name}={'' if entry is None else entry}"
            for name in self.columns
            for entry in self.categories.get(name, [None])
        ]

    def check(self, table: Table, dtype: np.dtype[Any], fix: str) -> list[str]:
        """Raise if the table cannot become numbers of `dtype`; return notes on entries that training did not see.

        Raises
        ------
        ValueError
            If columns are missing or not numeric, or have missing entries (then `fix` says what to do) or too large
            ones. The message names all columns and quotes the first entry.
        """
        missing = [name for name in self.columns if name not in table.frame]
        if missing:
            raise ValueError(
                f"{table.source}: the model needs the columns {quoted(self.columns)}; missing: {quoted(missing)}; "
                f"there are {quoted(table.names)}"
            )
        numeric = [name for name in self.columns if name not in self.categories]
        _refuse_text(table, [name for name in numeric if kind(table.frame[name]) != "number"], told=False)
        finite = np.ones(len(numeric), dtype=bool)
        for block in self._numbers(table, np.arange(len(table)), max(1, BLOCK // max(1, len(numeric)))):
            with np.errstate(over="ignore"):
                finite &= np.isfinite(block.astype(dtype)).all(axis=0)
        _refuse_holes(table, [name for name, good in zip(numeric, finite, strict=True) if not good], dtype, fix)
        return [note for name, seen in self.categories.items() for note in _unseen(table, name, seen)]

    def convert(self, table: Table, rows: Matrix) -> Iterator[Matrix]:
        """Yield the inputs of these rows, float64, some rows at a time."""
        step = max(1, BLOCK // len(self.names))
        codes = {name: _codes(table.frame[name].iloc[rows], seen) for name, seen in self.categories.items()}
        for start, numbers in zip(range(0, len(rows), step), self._numbers(table, rows, step), strict=True):
            if not codes:
                yield numbers
                continue
            block, at, number = np.zeros((len(numbers), len(self.names))), 0, 0
            for name in self.columns:
                if name in codes:
                    part = codes[name][start : start + step]
                    known = np.flatnonzero(part >= 0)
                    block[known, at + part[known]] = 1
                    at += len(self.categories[name])
                else:
                    block[:, at] = numbers[:, number]
                    at, number = at + 1, number + 1
            yield block

    def _numbers(self, table: Table, rows: Matrix, step: int) -> Iterator[Matrix]:
        """Yield the numeric columns of these rows, float64, with missing entries filled in."""
        names = [name for name in self.columns if name not in self.categories]
        filled = [i for i, name in enumerate(names) if name in self.fill]
        values = np.array([self.fill[names[i]] for i in filled])
        for start in range(0, len(rows), step):
            # Rows first, because selecting columns would copy them whole.
            part = table.frame.iloc[rows[start : start + step]][names]
            block: Matrix = part.to_numpy(dtype=np.float64, na_value=np.nan, copy=bool(filled))
            for i, value in zip(filled, values, strict=True):
                block[np.isnan(block[:, i]), i] = value
            yield block


@dataclass(frozen=True)
class Rows:
    """Rows of a table as blocks of a float64 matrix; each loop makes them again, one at a time."""

    inputs: Inputs
    table: Table
    numbers: Matrix

    def __iter__(self) -> Iterator[Matrix]:
        return self.inputs.convert(self.table, self.numbers)

    def __len__(self) -> int:
        """Return the number of rows, not of blocks."""
        return len(self.numbers)


def _different_texts(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)


def _codes(column: "pd.Series[Any]", seen: list[str | None]) -> Matrix:
    """Return the index of each entry among those seen in training, or -1."""
    known = {entry: code for code, entry in enumerate(seen)}
    found, entries = pd.factorize(texts(column))  # -1 where an entry is missing
    codes: Matrix = np.array([*(known.get(entry, -1) for entry in entries), known.get(None, -1)], dtype=np.intp)
    numbers: Matrix = codes[found]
    return numbers


def _unseen(table: Table, name: str, seen: list[str | None]) -> list[str]:
    new = _codes(table.frame[name], seen) < 0
    if not new.any():
        return []
    entries = texts(table.frame[name])[new].unique().tolist()
    names = quoted(["" if entry is None or entry != entry else entry for entry in entries], 5)
    return [
        f"{table.source}: {name!r} holds entries that training did not see, in {new.sum():,} rows: {names}; "
        "they count as none of the known ones"
    ]


def _refuse_text(table: Table, names: list[str], told: bool = True) -> None:
    """Raise because of columns that are not numeric, if there are any; `told`: options of training can help."""
    if not names:
        return
    name = names[0]
    column = table.frame[name]
    if kind(column) == "text":
        entries = texts(column)
        wrong = column.notna() & table.numbers(name).isna()
        if wrong.any() and 2 * (wrong & ~written_numbers(column)).sum() < column.notna().sum():
            help_ = remedy(str(entries[wrong].iloc[0]))
            raise ValueError(
                f"{table.source}: the column {name!r} holds numbers except for {wrong.sum():,} of its entries, the "
                f"first {table.first(name, wrong)}; {help_}"
                + (
                    f"; or take all as text with --encode {name!r}, or leave the column out with --drop {name!r}"
                    if told
                    else ""
                )
            )
        first, fix = table.first(name, column.notna()), "encode text with --encode NAME or --encode auto, or leave"
    else:
        first, fix = f"{kind(column)}, {table.first(name, column.notna())}", "turn them into numbers, or leave"
    fix = f"{fix} columns out with --drop NAME" if told else "training had numbers there"
    raise ValueError(f"{table.source}: these columns are not numeric: {quoted(names)}; {name!r} holds {first}; {fix}")


def _refuse_guess(table: Table, name: str) -> None:
    """Raise if a text column probably does not hold categories."""
    column = table.frame[name]
    if 2 * (written_numbers(column) | table.numbers(name).notna()).sum() > column.notna().sum():
        _refuse_text(table, [name])
    distinct = int(column.nunique())
    if many(distinct, len(column)):
        raise ValueError(
            f"{table.source}: the text column {name!r} has {distinct:,} different entries in {len(column):,} rows, the "
            f"first {table.first(name, column.notna())}; leave it out with --drop {name!r}, or name it with "
            f"--encode {name!r}"
        )


def _refuse_holes(table: Table, names: list[str], dtype: np.dtype[Any], fix: str) -> None:
    """Raise because of columns that are not finite in `dtype`, if there are any."""
    bad = {name: table.frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    holes = [name for name, column in bad.items() if not np.isfinite(column).all()]
    if holes:
        name = holes[0]
        wrong = ~np.isfinite(bad[name])
        if np.isinf(bad[name]).any():
            wrong, fix = np.isinf(bad[name]), "correct the infinite entries, or leave columns out with --drop NAME"
        raise ValueError(
            f"{table.source}: these columns have missing or infinite entries: {quoted(holes)}; "
            f"{name!r} has {wrong.sum():,}, the first {table.first(name, wrong)}; {fix}"
        )
    if names:
        name = names[0]
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(bad[name].astype(dtype))
        raise ValueError(
            f"{table.source}: these columns have entries too large for {dtype.name}: {quoted(names)}; the first of "
            f"{name!r} is {table.first(name, wrong)}; use --dtype float64 in training, or divide them by a constant"
        )
