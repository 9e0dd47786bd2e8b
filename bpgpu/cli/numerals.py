"""Numbers as people write them, with thousands separators and decimal commas."""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

BLANKS = " \u00a0\u202f"  # they look alike, so any of them means all
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
POINT = re.compile(r"[+-]?\d*\.\d*")
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")


def numbers(column: "pd.Series[Any]", decimal: str, thousands: str | None) -> "pd.Series[Any]":
    """Return a text column as numbers; NaN where an entry is not one, such as 0.37 with `thousands` "."."""
    plain = column.astype(object).map(lambda entry: entry.strip() if isinstance(entry, str) else entry)
    if thousands is not None:
        marks = re.compile(f"[{BLANKS}]" if thousands in BLANKS else re.escape(thousands))
        # pandas would drop the mark wherever it stands, and so read a date as a number.
        grouped = re.compile(rf"[+-]?[1-9]\d{{0,2}}({marks.pattern}\d{{3}})+({re.escape(decimal)}\d*)?")

        def without_marks(entry: Any) -> Any:
            if not isinstance(entry, str) or not marks.search(entry):
                return entry
            return marks.sub("", entry) if grouped.fullmatch(entry) else None

        plain = plain.map(without_marks)
    if decimal != ".":
        plain = plain.map(lambda entry: entry.replace(decimal, ".") if isinstance(entry, str) else entry)
    return pd.to_numeric(plain, errors="coerce")


def is_number(entry: str) -> bool:
    """Return whether Python reads an entry as a number."""
    try:
        float(entry)
    except ValueError:
        return False
    return True


def has_decimal_commas(rows: list[list[str]]) -> bool:
    """Return whether a column holds entries like 0,5, where the comma cannot separate thousands, and none like 0.5."""
    found = False
    for _, entries in _columns(rows):
        if any(re.fullmatch(r"[+-]?\d+\.\d+", entry) for entry in entries):
            return False
        commas = [entry for entry in entries if DECIMAL_COMMA.fullmatch(entry)]
        if len(commas) + sum(entry.lstrip("+-").isdigit() for entry in entries) == len(entries):
            found |= any(len(entry.split(",")[1]) != 3 or entry.lstrip("+-").startswith("0") for entry in commas)
    return found


def thousands_points(rows: list[list[str]]) -> tuple[int, str] | None:
    """Return the position of the first column whose points look like thousands separators, and an entry of it.

    Such a column holds 980 and 1.235: every point has three digits behind it, and every number from 1000 has a point.
    """
    for i, entries in _columns(rows):
        points = [entry for entry in entries if POINT.fullmatch(entry)]
        whole = [entry for entry in entries if re.fullmatch(r"[+-]?\d{1,3}", entry)]
        grouped = len(set(points)) > 1 and all(GROUPED.fullmatch(entry) for entry in points)
        if grouped and whole and len(points) + len(whole) == len(entries):
            return i, points[0]
    return None


def _columns(rows: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-empty entries of each column."""
    for i, column in enumerate(zip(*(row for row in rows if len(row) == len(rows[0])), strict=True)):
        yield i, [entry.strip() for entry in column if entry.strip()]
