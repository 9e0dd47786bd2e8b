"""CSV files: their format, detected where it is certain, and the checks that pandas does not make."""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd

from bpgpu.cli.numerals import DECIMAL_COMMA, has_decimal_commas, is_number, numbers, thousands_points
from bpgpu.cli.reading import SPACE, Reading, quoted

ENDINGS = (".csv", ".tsv", ".tab")
COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")  # may follow an ending
HEAD = 1 << 18  # bytes to look at before the file is read; more if the first lines are longer
SEPARATORS = (",", ";", "\t", "|")
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
EXCEL = re.compile(r'"?sep=([^\r\n])"?(\r\n|\r|\n)')  # the line from which Excel reads the separator
csv.field_size_limit(2**31 - 1)  # otherwise an entry of more than 128 KiB is an error
UNCLOSED = re.compile(r"EOF inside string starting at row (\d+)")
TOO_LONG = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


@dataclass(frozen=True)
class CsvFile:
    """A CSV file and its format.

    Attributes
    ----------
    path : Path
    sep, decimal, encoding : str
    header : bool
    names : list of str
        Names of the columns; an unnamed one is called "Unnamed: 0", by its position.
    notes : list of str
        Options that were found in the file, not given by the user.
    skip : int
        Lines before the header or the data.
    comment : str or None
        The mark that begins a comment, which is left out.
    """

    path: Path
    sep: str
    decimal: str
    encoding: str
    header: bool
    names: list[str]
    notes: list[str]
    skip: int = 0
    comment: str | None = None

    @classmethod
    def look_at(cls, path: Path, reading: Reading) -> "CsvFile":
        """Look at the first lines of a file.

        Raises
        ------
        ValueError
            If it is empty, is not text in the encoding, contradicts the options or begins with a comment, or if two
            columns have the same name.
        """
        with _open(path) as file:
            content = file.read(HEAD)
            encoding, notes = _encoding(content, reading)
            try:
                text, whole = _head(content, file, encoding)
            except UnicodeError:
                raise _not_text(path, encoding) from None
        if "\0" in text:
            raise ValueError(f"it has null bytes, so it is not text in {encoding}; for UTF-16 use --encoding utf-16")
        usual = "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes} else ","
        excel = EXCEL.match(text)
        text = text[excel.end() :] if excel else text
        text = "".join(_without_comments(io.StringIO(text, newline=""), reading.comment))
        sep = reading.sep or (excel[1] if excel else _separator(text, whole, usual))
        if reading.sep is None and sep != usual:
            notes.append(f"--sep {_sep_option(sep)}")
        rows = _rows(text, whole, sep)
        if not rows:
            raise ValueError("it is empty")
        _refuse_other_marks(text, whole, usual, rows, reading)
        marked = reading.comment is None and text.lstrip().startswith("#")
        if marked and _is_comment(rows):
            raise ValueError(
                "its first line begins with '#', like a comment; use --comment '#' to leave such lines out, or put "
                "the first entry in quotation marks if it is not a comment"
            )
        if marked and reading.header:
            notes.append(f"the names {quoted(rows[0])}")
        decimal = reading.decimal or "."
        if reading.decimal is None and reading.thousands is None and sep != "," and has_decimal_commas(rows[1:]):
            decimal = ","
            notes.append("--decimal ','")
        names = rows[0]
        if reading.header:
            names = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(names)]
            _refuse_equal(names)
        else:
            names = [f"x{i}" for i in range(len(names))]
        longer = {(len(row) - len(names), row[-1]) for row in rows[1:]}
        if longer == {(1, "")}:  # every line ends with a separator
            names = [*names, f"Unnamed: {len(names)}"]
        points = thousands_points(rows[1:] if reading.header else rows) if sep == ";" and decimal == "." else None
        if points is not None and reading.decimal is None and reading.thousands is None:
            raise ValueError(
                f"the points in its column {names[points[0]]!r}, the first in {points[1]!r}, look like thousands "
                "separators; give --thousands . --decimal , or, if they are decimal points, --decimal ."
            )
        return cls(path, sep, decimal, encoding, reading.header, names, notes, 1 if excel else 0, reading.comment)

    def read(self, reading: Reading, text: set[str]) -> pd.DataFrame:
        """Return the whole table; the columns in `text` are kept as they stand in the file.

        Raises
        ------
        ValueError
            If a line is longer or shorter than the header, or the first line is data instead of names, or the reverse.
        """
        missing: dict[str, Any] = (
            {} if reading.na is None else {"keep_default_na": False, "na_values": ["", *reading.na]}
        )
        for line, row in itertools.islice(self._lines(), 1):
            if len(row) > len(self.names):  # pandas would take the surplus for an index
                raise self._too_long(line, len(row))
        try:
            with _open(self.path) as file:
                frame = pd.read_csv(
                    file,
                    sep=self.sep,
                    decimal=self.decimal,
                    encoding=self.encoding,
                    header=0 if self.header else None,
                    names=self.names,
                    skiprows=self.skip,
                    comment=self.comment,
                    dtype={name: str for name in self.names if name in text},
                    low_memory=False,  # whole, because each piece would get a type of its own
                    **missing,
                )
        except UnicodeDecodeError:
            raise _not_text(self.path, self.encoding) from None
        except pd.errors.ParserError as error:
            found = UNCLOSED.search(str(error))
            if found is not None:
                raise ValueError(f"a quotation mark near line {int(found[1]) + 1} is not closed") from None
            found = TOO_LONG.search(str(error))
            if found is None:
                raise ValueError(str(error).removeprefix("Error tokenizing data. C error: ")) from error
            raise self._too_long(int(found[2]), int(found[3])) from None
        self._refuse_second_header(frame)
        self._compare(frame, [name for name in reading.ids if name in text and name in frame])
        for name in self.names if reading.thousands is not None else ():
            if name not in text and all(isinstance(entry, str) for entry in frame[name].dropna()):
                found = numbers(frame[name], self.decimal, reading.thousands)
                if found.notna().equals(frame[name].notna()):
                    frame[name] = found
        if self.header and _looks_like_data(self.names, frame):
            raise ValueError(
                f"its first line looks like data, not like names: {quoted(self.names)}; use --no-header if it is data, "
                "or add a line of names"
            )
        if not self.header and self._looks_like_names(frame, reading.thousands):
            raise ValueError(
                f"its first line looks like names, not like data: {quoted(list(map(str, frame.iloc[0])))}; leave "
                "--no-header out, or give the text that means missing with --na"
            )
        return frame

    def _refuse_second_header(self, frame: pd.DataFrame) -> None:
        """Raise if a line repeats the names, as in joined files."""
        names = [name for name in self.names if not name.startswith("Unnamed: ")] if self.header else []
        again: Any = None
        for name in names:
            found = frame[name].isin([name, f"\ufeff{name}"]).to_numpy()  # the second file may have a byte-order mark
            again = found if again is None else again
            if not found.any() or (found != again).any():  # if names are also entries, the first line may be data
                return
        if again is not None:
            where, _ = self.locate(int(again.argmax()), 0, "")
            raise ValueError(
                f"{where} repeats the header, as in joined files; delete that line, or give the files one by one"
            )

    def _compare(self, frame: pd.DataFrame, ids: list[str]) -> None:
        """Raise if a line is too short, which pandas would fill; restore ids such as NA, missing to pandas."""
        named = [name for name in self.names if not name.startswith("Unnamed: ")] or self.names
        width = self.names.index(named[-1]) + 1
        ids = [name for name in ids if frame[name].isna().any()]
        if not ids and frame[named[-1]].notna().all():
            return
        kept = {name: frame[name].astype(object).to_numpy(copy=True) for name in ids}
        for row, (line, entries) in enumerate(self._lines()):
            if len(entries) < width:
                raise self._other_width(
                    line, len(entries), "add the separators of its empty entries, or delete the line"
                )
            for name in ids:
                entry = entries[self.names.index(name)]
                kept[name][row] = entry or None
        for name in ids:
            frame[name] = kept[name]

    def _looks_like_names(self, frame: pd.DataFrame, thousands: str | None) -> bool:
        """Return whether the first line is not data: it has no number, but at least one column of numbers below."""
        first = frame.iloc[0].dropna()
        if not all(isinstance(entry, str) and not is_number(entry) for entry in first):
            return False
        for name in first.index:
            found = numbers(frame[name].iloc[1:].dropna().astype(str), self.decimal, thousands)
            if len(found) and found.notna().all():
                return True
        return False

    def locate(self, row: int, position: int, text: str) -> tuple[str, str]:
        """Return the place of row `row`, "line 34", and its entry at `position`; `text` if unknown."""
        try:
            line, entries = next(itertools.islice(self._lines(), row, None))
        except (csv.Error, StopIteration):
            return f"row {row}", text
        return f"line {line}", entries[position] if position < len(entries) else ""

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row of data with the number of its first line; like pandas, without blank lines."""
        with _open(self.path) as file, io.TextIOWrapper(file, self.encoding, newline="") as text:
            for _ in range(self.skip):
                text.readline()
            reader, line = _reader(_without_comments(text, self.comment), self.sep), 1 + self.skip
            skip = self.header
            for row in reader:
                start, line = line, reader.line_num + 1 + self.skip
                if len(row) < 2 and not "".join(row).strip():
                    continue
                if not skip:
                    yield start, row
                skip = False

    def _too_long(self, line: int, fields: int) -> ValueError:
        title = ", and delete the first line if it is a title" if len(self.names) == 1 else ""
        entry = f"an entry that holds {_sep_option(self.sep)}, such as a number with a decimal comma,"
        return self._other_width(line, fields, f"put {entry} in quotation marks, or use another --sep{title}")

    def _other_width(self, line: int, fields: int, fix: str) -> ValueError:
        width = "the header" if self.header else "the first line"
        entries = "1 entry" if fields == 1 else f"{fields} entries"
        return ValueError(f"line {line} has {entries}, but {width} has {len(self.names)}; {fix}")


def _sep_option(sep: str) -> str:
    """Return a separator as the user writes it."""
    return {"\t": "tab", SPACE: "space"}.get(sep, repr(sep))


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed as its last suffix says."""
    openers: dict[str, Callable[[Path], Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zip": _only_member,
        ".zst": _zstandard,
    }
    opener = openers.get(path.suffix.lower())
    return path.open("rb") if opener is None else cast(IO[bytes], opener(path))


def _only_member(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"a .zip must hold one file, got {quoted(names)}; unpack it")
    return archive.open(names[0])


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))


def _encoding(content: bytes, reading: Reading) -> tuple[str, list[str]]:
    """Return the encoding, and a note if a byte-order mark decided it."""
    marked = next((encoding for mark, encoding in BOMS.items() if content.startswith(mark)), None)
    if reading.encoding is not None:
        return ("utf-8-sig" if (reading.encoding, marked) == ("utf-8", "utf-8-sig") else reading.encoding), []
    return marked or "utf-8", [f"--encoding {marked}"] if marked == "utf-16" else []


def _not_text(path: Path, encoding: str) -> ValueError:
    """Return the error for a file that is not text in this encoding, naming the first wrong line."""
    where = ""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeError as error:
                if isinstance(error, UnicodeDecodeError) and not encoding.startswith("utf-16"):
                    where = f": byte 0x{line[error.start]:02x} in line {number}"
                break
    other = "cp1252 (Windows and Excel in Western Europe)" if encoding.startswith("utf-8") else "utf-8"
    return ValueError(f"it is not text in {encoding}{where}; give its encoding, for example --encoding {other}")


def _reader(lines: Any, sep: str) -> Any:
    if sep == SPACE:
        return csv.reader((line.strip().replace("\t", " ") for line in lines), delimiter=" ", skipinitialspace=True)
    return csv.reader(lines, delimiter=sep)


def _head(content: bytes, file: IO[bytes], encoding: str) -> tuple[str, bool]:
    """Return the beginning of a file, at least two lines, and whether that is the whole file."""
    while True:
        more = file.read(len(content))
        text = codecs.getincrementaldecoder(encoding)().decode(content, not more)
        if not more or len(_rows(text, False, ",")) > 1:
            return text, not more
        content += more


def _rows(text: str, whole: bool, sep: str) -> list[list[str]]:
    """Return the first rows, without blank lines; without the last, which may be cut, if the text is not whole."""
    try:
        rows = [row for row in _reader(io.StringIO(text, newline=""), sep) if len(row) > 1 or "".join(row).strip()]
    except csv.Error:
        return []
    return rows if whole or len(rows) < 2 else rows[:-1]


def _separator(text: str, whole: bool, usual: str) -> str:
    """Return the separator: the usual one, unless only one other gives all lines as many entries as the header."""
    good = []
    for sep in SEPARATORS:
        widths = {len(row) for row in _rows(text, whole, sep)}
        if len(widths) == 1 and widths != {1}:
            good.append(sep)
    return good[0] if len(good) == 1 and usual not in good else usual


def _without_comments(lines: Iterable[str], mark: str | None) -> Iterable[str]:
    """Return the lines as pandas sees them; a line that is all comment becomes blank, so that line numbers stay."""
    if mark is None:
        return lines
    kept = re.compile(rf'(?:[^"{re.escape(mark)}]+|"[^"]*"?)*')
    cut = ((line, cast(re.Match[str], kept.match(line))[0]) for line in lines)
    return (line if line == before else f"{before}\n" for line, before in cut)


def _is_comment(rows: list[list[str]]) -> bool:
    """Return whether a first line that begins with # is a comment: neither names, as in #id,x,y, nor data."""
    first, *others = rows
    alike = bool(others) and len(first) == len(others[0]) and not others[0][0].startswith("#")
    return not alike or re.match(r"\s*#+\s", first[0]) is not None


def _refuse_other_marks(text: str, whole: bool, usual: str, rows: list[list[str]], reading: Reading) -> None:
    """Raise if the file contradicts the options."""
    if reading.sep is not None and len(rows[0]) == 1:
        other = _separator(text, whole, usual)
        width = len(next(iter(_rows(text, whole, other)), []))
        if width > 1:
            raise ValueError(
                f"with --sep {_sep_option(reading.sep)} its first line is one entry, but with --sep "
                f"{_sep_option(other)} it has {width}; give the latter, or leave --sep out"
            )
    entries = [entry.strip() for row in rows[1:] for entry in row] if reading.decimal == "," else []
    points = [entry for entry in entries if re.fullmatch(r"[+-]?\d*\.\d+", entry)]
    if points and reading.thousands != "." and not any(DECIMAL_COMMA.fullmatch(entry) for entry in entries):
        raise ValueError(
            f"--decimal ',' was given, but its numbers have points, the first {points[0]!r}, and none has a comma; "
            "leave --decimal out"
        )


def _refuse_equal(names: list[str]) -> None:
    equal = [name for name, count in Counter(names).items() if count > 1]
    if equal:
        raise ValueError(f"two or more columns have the same name: {quoted(equal)}; rename them, or use --no-header")


def _looks_like_data(names: list[str], frame: pd.DataFrame) -> bool:
    """Return whether the first line is certainly not names: numbers above numbers, and text that occurs below."""
    numbers = [float(name) for name in names if is_number(name)]
    text = [name for name in names if not is_number(name) and not name.startswith("Unnamed: ")]
    if any(pd.to_numeric(frame[name], errors="coerce").notna().all() for name in text):
        return False
    if not text:  # pandas names columns 0, 1, 2 ..., and years may be names too
        return any(not a.is_integer() or b - a != 1 for a, b in itertools.pairwise(numbers))
    found = [bool((frame[name] == name).any()) for name in text]
    return any(found) if numbers else all(found)
