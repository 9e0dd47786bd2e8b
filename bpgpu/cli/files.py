"""Checks of the files that a command reads and writes, before any work."""

import os
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

from bpgpu import checks
from bpgpu.files.writing import real_target

# Endings of names that mean a kind of file to bpgpu or to other programs.
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".npy", ".npz", ".xlsx", ".json")
ARCHIVES = (".gz", ".bz2", ".xz", ".zip", ".zst", ".tar", ".7z", ".lz4")
KNOWN = (*TABLES, *ARCHIVES, ".safetensors", ".onnx", ".png", ".svg", ".pdf")
STDOUT = Path("/dev/stdout")  # not every system has it


def check_files(
    inputs: Mapping[str, Iterable[str | Path]], outputs: Mapping[str, Path | None], *, devices: bool = False
) -> None:
    """Raise if an input is not a file or is given twice, or an output cannot be written, is an input or is given twice.

    No files are left behind.

    Parameters
    ----------
    inputs : mapping
        From the user's word, such as "--validation", to the files that the command reads.
    outputs : mapping
        From the option to the file that the command writes, or None.
    devices : bool
        Whether an output may be a pipe or a device.

    Raises
    ------
    ValueError
        With the option and both names.
    """
    written = {option: path for option, path in outputs.items() if path is not None}
    for option, path in written.items():
        _check_file(option, path, devices)
    others = [(name, checks.file_name(name, path)) for name, paths in inputs.items() for path in paths]
    for name, other in others:
        if other.exists() and not other.is_file() and not other.is_dir():
            raise ValueError(
                f"{name} must name a file, got the pipe or device {other}; write its content to a file, and name that"
            )
        if same_file(STDOUT, other):
            raise ValueError(f"standard output goes to {other}, which is read as {name}; send it to another file")
    _refuse_twice(others)
    for option, path in written.items():
        for name, other in others:
            if same_file(path, other):
                raise ValueError(
                    f"{option} must name another file than {name}, which it would overwrite, got {path}"
                    + (f"; that is {other}" if str(other) != str(path) else "")
                    + "; give another name"
                )
        others.append((option, path))


def check_ending(option: str, path: str | Path | None, *good: str) -> None:
    """Raise if the name of an output has the ending of another kind of file."""
    ending = Path(path or "").suffix.lower()
    if ending in KNOWN and ending not in good:
        raise ValueError(
            f"{option} must not end in {ending}, a kind that it does not write, got {path}; "
            f"end the name in {' or '.join(good)}"
        )


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file, through links or on a system that ignores case."""
    try:
        if one.samefile(other):
            return True
    except OSError:  # one of them does not exist yet
        pass
    one, other = (Path(os.path.realpath(path)) for path in (one, other))
    try:
        return one.parent.samefile(other.parent) and _folded(one.name) == _folded(other.name)
    except OSError:
        return False


def _refuse_twice(inputs: list[tuple[str, Path]]) -> None:
    """Raise if a file is read twice: its rows would count twice, or be both trained on and held out."""
    found: dict[tuple[int, int], tuple[str, Path]] = {}
    for name, path in inputs:
        if path.is_file():
            status = path.stat()
            before, other = found.setdefault((status.st_dev, status.st_ino), (name, path))
            if other is not path:
                named = name if name == before else f"{before} and {name}"
                raise ValueError(
                    f"{named} must name each file once, got {other} and {path}, the same file; leave one out"
                )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _check_file(option: str, path: Path, devices: bool) -> None:
    """Raise if no file can be written there or replace an older one; leave nothing behind."""
    checks.file_name(option, path)
    if str(path) == "-":
        fix = "leave it out for standard output, or give a name" if devices else "give a name"
        raise ValueError(f"{option} must name a file, got -; {fix}")
    try:
        target = real_target(path)
        if isinstance(target, int):  # /dev/stdout, even if it is a file: printed text would be in it too
            if not devices:
                raise ValueError(f"{option} must name a file, got the device {path}; give another name")
            os.fstat(target)
            return
        real = Path(os.path.realpath(path))  # a link's target is replaced, not the link
        if real.is_dir():
            raise ValueError(f"{option} must name a file, got the folder {path}; add a name to it")
        if not real.parent.is_dir():
            folder = real.parent if path.is_symlink() else path.parent
            raise ValueError(f"the folder of {path} must exist; make it with: mkdir -p {folder}")
        if real.exists() and not real.is_file():
            if devices:
                return
            raise ValueError(f"{option} must name a file, got the device {path}; give another name")
        if real.is_symlink():  # links in a circle
            real.stat()
        tempfile.TemporaryFile(dir=real.parent).close()
        if real.exists():
            real.open("ab").close()
    except OSError as error:
        raise ValueError(
            f"{option} must name a file that can be written, got {path}: {error.strerror}; give another"
        ) from error


def sibling(path: Path, mark: str, number: int = 0) -> Path:
    """Return the name of another file in the same folder, NAME.mark."""
    return path.with_name(f"{path.stem}.{mark}{number or ''}{path.suffix}")


def free_name(path: Path, mark: str) -> Path:
    """Return the path if no such file exists, else the first free name of NAME.mark, NAME.mark1 ..."""
    names = (sibling(path, mark, number) for number in count())
    return path if not path.exists() else next(name for name in names if not name.exists())
