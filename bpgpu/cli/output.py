"""Options that the commands share, and output for people and programs."""

import functools
import itertools
import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import track

from bpgpu.cli.csv_files import COMPRESSED
from bpgpu.files.writing import atomic_file

if TYPE_CHECKING:
    import pandas as pd

JsonOption = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON object; text goes to stderr.")
]
BackendOption = Annotated[str, typer.Option(help="auto, cupy, numba-cuda, numba or numpy.")]
COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}


def to_json(result: Any) -> str:
    """Return one line of JSON; infinite and undefined numbers, which JSON does not have, become null."""
    return json.dumps(_finite(result), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(rows: "pd.DataFrame", out: Path | None) -> None:
    """Write a data frame to a file or to standard output, in UTF-8 and with the same line ends everywhere.

    The ending of the file's name chooses the separator and the compression.
    """
    if out is not None:
        ending, sep = out.suffix.lower(), "\t" if uncompressed(out).suffix.lower() in (".tsv", ".tab") else ","
        compression: Any = COMPRESSION.get(ending)
        if ending == ".zip":
            compression = {"method": "zip", "archive_name": out.stem}
        with atomic_file(out) as file, _zstandard(file) if ending == ".zst" else nullcontext(file) as stream:
            _numbered(rows).to_csv(
                stream, sep=sep, mode="wb", encoding="utf-8", compression=compression, lineterminator="\n"
            )
        return
    text = _numbered(rows).to_csv(lineterminator="\n")
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8"))


def uncompressed(path: Path) -> Path:
    """Return the name of a file without the ending of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def _zstandard(file: BinaryIO) -> Any:
    """Return a compressed file to write to, as a context; pandas would need another package."""
    import pyarrow as pa

    return pa.CompressedOutputStream(file, "zstd")


def records(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    """Return the rows in a form that JSON can hold, with null for missing entries."""
    flat = _numbered(rows).reset_index().astype(object)
    found: list[dict[str, Any]] = flat.where(flat.notna(), None).to_dict("records")
    return found


def _numbered(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the data frame with a name for its row numbers that no column has."""
    names = itertools.chain(("row", "row number"), (f"row number {count}" for count in itertools.count(2)))
    return rows.rename_axis(next(name for name in names if name not in rows))


class Printer:
    """A function that prints text for people unchanged; lines are not broken, so that they can be searched.

    Parameters
    ----------
    stderr : bool
        Whether it prints to standard error instead of standard output.
    patient : bool
        Whether work goes on when nobody reads the output any more, as after ``| head``; `failure` keeps the error.
    """

    def __init__(self, stderr: bool = False, patient: bool = False) -> None:
        self._console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
        self._patient = patient
        self.failure: OSError | None = None

    def __call__(self, what: Any) -> None:
        if self.failure is not None:
            return
        try:
            self._console.print(what, soft_wrap=True)
        except OSError as error:
            if not self._patient:
                raise
            self.failure = error


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the error to `run`; rich would exit, and close standard output because standard error broke."""
        raise


def progress() -> Callable[..., Any]:
    """Return rich's `track`, which shows a bar on a terminal and nothing elsewhere."""
    console = Console(stderr=True)
    return functools.partial(track, console=console, transient=True, disable=not console.is_terminal)
