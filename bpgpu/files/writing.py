"""Files that are written whole or not at all. Every writer in the package uses `atomic_file`."""

import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from bpgpu import checks

MAX_LINKS = 40  # as in Linux


@contextmanager
def atomic_file(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `path` when the block ends, and leaves no trace if the block raises.

    The bytes go to a temporary file in the same folder and are flushed to disk; then it is renamed over the old file.
    A symbolic link stays; its target is replaced. The owner and the permissions of an old file stay, as far as the user
    may set them. A target that cannot be replaced (a pipe, a device, ``/dev/stdout``) gets the bytes directly.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    BinaryIO
        To write to, in pieces of any size; not always seekable.

    Raises
    ------
    OSError
        If the file cannot be written, with `path` as its file name.
    TypeError, ValueError
        If `path` is not a path, or contains a null character.
    """
    temporary: Path | None = None
    named = checks.path("path", path)
    target: Path | int = named
    try:
        target = real_target(named)
        old = None if isinstance(target, int) else _status(target)
        if isinstance(target, int) or (old is not None and not stat.S_ISREG(old.st_mode)):
            with open(os.dup(target) if isinstance(target, int) else target, "wb") as file:  # noqa: PTH123
                yield file
            return
        if old is not None and not os.access(target, os.W_OK):  # a rename would not check that
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _delete_stale(target)
        handle, temporary = _create(target, private=old is not None)
        try:
            # The descriptor outlives the file object: a wrapper that closes it must not release the lock.
            with open(handle, "wb", closefd=False) as file:
                yield file
            os.fsync(handle)
            _make_like(temporary, handle, old)
            if sys.platform != "win32":
                temporary.replace(target)
        finally:
            os.close(handle)
        if sys.platform == "win32":  # where an open file cannot be renamed
            temporary.replace(target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and _is_about(error.filename, target):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _is_about(filename: object, target: Path | int) -> bool:
    """Return whether an error's file name is the target, one of its temporary files, or missing."""
    if filename is None or isinstance(target, int):
        return filename is None
    return filename == str(target) or str(filename).startswith(str(target.with_name(_prefix(target))))


def real_target(path: Path) -> Path | int:
    """Return the path behind all symbolic links, or the number if it is an open descriptor of this process."""
    for _ in range(MAX_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if path.parent in (Path("/dev/fd"), Path(f"/proc/{os.getpid()}/fd")) and path.name.isdecimal():
            return int(path.name)
        try:
            path = path.parent / path.readlink()
        except OSError:  # it is not a link; any other problem shows when it is used
            return path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file, or None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return status


def _prefix(target: Path) -> str:
    """Return the beginning of the names of a target's temporary files, which is short even if the target's is not."""
    return f".bpgpu-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _create(target: Path, *, private: bool) -> tuple[int, Path]:
    """Create a temporary file next to `target`, locked while it is open; return its descriptor and path."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.part")
        handle = os.open(path, flags, 0o600 if private else 0o666)
        with suppress(OSError):  # a file system without locks, on which `_delete_stale` deletes nothing
            _lock(handle, wait=True)
        if sys.platform == "win32" or os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # another process took it for stale before it was locked


def _make_like(path: Path, handle: int, old: os.stat_result | None) -> None:
    """Give a new file the permissions of the old one, if there is one, and its owner, if the user may."""
    new = os.fstat(handle)
    if sys.platform != "win32" and old is not None and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):
            os.fchown(handle, old.st_uid, old.st_gid)
    path.chmod((old or new).st_mode & 0o777)


def _delete_stale(target: Path) -> None:
    """Delete temporary files of `target` that nobody has locked: their process ended without deleting them."""
    if sys.platform == "win32":
        return
    for path in target.parent.glob(f"{_prefix(target)}*.part"):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                _lock(handle, wait=False)
                path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int, *, wait: bool) -> None:
    """Lock an open file; raise ``OSError`` if it cannot be locked, or without `wait` if it is locked already."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
