"""The options for reading a table, shared by the commands."""

import codecs
import io
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bpgpu.errors import short_repr

SepOption = Annotated[
    str | None,
    typer.Option(help="Separator of CSV files: 'tab', 'space' or one character. Detected if not given."),
]
DecimalOption = Annotated[str | None, typer.Option(help="Decimal mark of CSV files, '.' or ','.")]
ThousandsOption = Annotated[str | None, typer.Option(help="Thousands separator in CSV files, as in 1,234.")]
EncodingOption = Annotated[
    str | None, typer.Option(help="Encoding of CSV files: utf-8 if not given, cp1252, utf-16 ...")
]
NoHeaderOption = Annotated[
    bool, typer.Option("--no-header", help="The first line of CSV files is data; columns are called x0, x1 ...")
]
CommentOption = Annotated[
    str | None, typer.Option(help="Mark in CSV files, such as '#', after which a line is a comment and left out.")
]
NaOption = Annotated[
    list[str] | None,
    typer.Option(help="Text that means missing in CSV files; may be repeated. Replaces the usual NA, nan, None ..."),
]

DataArgument = Annotated[
    list[str],
    typer.Argument(help="'digits', or files: .csv, .tsv, .parquet, .npz or .npy; or a pattern like 'part-*.csv'."),
]
IdOption = Annotated[
    list[str] | None,
    typer.Option("--id", help="Column that is not an input but is copied to the predictions; may be repeated."),
]

SPACE = r"\s+"  # pandas' word for any run of blanks
_NAMES = {"tab": "\t", "\\t": "\t", "space": SPACE, " ": SPACE}


@dataclass(frozen=True)
class Reading:
    """The format of CSV files as the user gives it; None where the file shows it.

    Attributes
    ----------
    sep, decimal, thousands, encoding, comment : str or None
    header : bool
        Whether the first line names the columns.
    na : tuple of str or None
        Texts that mean missing, in addition to empty entries; None for pandas' own list.
    ids : tuple of str
        Columns that are copied unchanged, where NA is an entry like any other.
    """

    sep: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    header: bool = True
    na: tuple[str, ...] | None = None
    comment: str | None = None
    ids: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        sep: str | None = None,
        decimal: str | None = None,
        thousands: str | None = None,
        encoding: str | None = None,
        no_header: bool = False,
        na: list[str] | None = None,
        comment: str | None = None,
    ) -> "Reading":
        """Return the options of a command line.

        Raises
        ------
        ValueError
            If one is invalid, or two are the same mark.
        """
        sep = None if sep is None else _NAMES.get(sep, sep)
        if sep is not None and sep != SPACE and (len(sep) != 1 or sep in '"\r\n' or not sep.isascii()):
            raise ValueError(f"--sep must be one ASCII character, 'tab' or 'space', got {sep!r}")
        if decimal not in (None, ".", ","):
            raise ValueError(f"--decimal must be '.' or ',', got {decimal!r}")
        if thousands is not None and (len(thousands) != 1 or thousands.isalnum() or thousands in '"+-\r\n'):
            raise ValueError(f"--thousands must be one mark, like ',', got {thousands!r}")
        marks = [mark for mark in (sep, decimal) if mark is not None]
        if len(set(marks)) < len(marks):
            raise ValueError(f"--sep and --decimal must differ, got {sep!r} for both")
        if thousands is not None and thousands == (decimal or "."):
            raise ValueError(f"--thousands and the decimal mark must differ, got {thousands!r}; give --decimal too")
        if comment is not None and (
            len(comment) != 1 or comment.isalnum() or not comment.isascii() or comment in '"+-.\r\n' or comment == sep
        ):
            raise ValueError(f"--comment must be one mark, like '#', and differ from --sep, got {comment!r}")
        if encoding is not None:
            if not _is_of_text(encoding):
                raise ValueError(f"--encoding must name a text encoding, like cp1252, got {short_repr(encoding)}")
            encoding = codecs.lookup(encoding).name
        return cls(sep, decimal, thousands, encoding, not no_header, None if na is None else tuple(na), comment)

    def given(self) -> dict[str, Any]:
        """Return the options that the user gave, by name, in a form that JSON can hold."""
        options = {
            "--sep": self.sep,
            "--decimal": self.decimal,
            "--thousands": self.thousands,
            "--encoding": self.encoding,
            "--no-header": None if self.header else True,
            "--na": None if self.na is None else sorted(set(self.na)),
            "--comment": self.comment,
        }
        return {name: value for name, value in options.items() if value is not None}


def _is_of_text(encoding: str) -> bool:
    """Return whether a codec returns lines that were written one by one; codecs for host names do not."""
    content, line = io.BytesIO(), "a,1\n"
    try:
        with io.TextIOWrapper(content, encoding, newline="") as text:
            for _ in range(99):
                text.write(line)
                text.flush()
            text.seek(0)
            return text.read() == 99 * line
    except (LookupError, ValueError):
        return False


def quoted(names: list[str], limit: int = 8) -> str:
    """Return names in quotation marks, separated by commas; long names and long lists are cut."""
    text = ", ".join(map(short_repr, names[:limit]))
    return text if len(names) <= limit else f"{text} and {len(names) - limit:,} more"
