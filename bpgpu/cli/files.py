"""The files that the commands write: looked at before any work."""

import tempfile
from pathlib import Path


def check_file(option: str, path: Path | None) -> None:
    """Raise if the path can be seen not to be one for a file."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} must name a file, got the folder {path}; add a name to it")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of {path} must exist; make it with: mkdir -p {path.parent}")


def check_new_file(option: str, path: Path | None) -> None:
    """Raise if no file can be written there or put in the place of an older one; leave nothing behind."""
    check_file(option, path)
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} must name a file, got the device {path}; give another name")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise ValueError(
            f"{option} must name a file that can be written, got {path}: {error.strerror}; give another"
        ) from error
