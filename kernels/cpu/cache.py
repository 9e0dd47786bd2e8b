"""Compiled code that is kept for the next process: in files whose names are made from all that it depends on.

Numba keeps a function for as long as the file where it stands has the same content, and looks into no other file. So
source is made that holds everything, or a digest of it, and written to a cache folder under a name from its content.
"""

import functools
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from llvmlite.binding import get_host_cpu_name
from numba.core import config
from numba.core.caching import _CacheLocator
from numba.misc import appdirs

KEPT_DIGESTS = 8  # of kernels: several environments, and several versions, may share the user's cache
KEPT_SECONDS = 30 * 24 * 3600  # since a file was last used


@functools.cache
def folder() -> Path | None:
    """Return the cache folder, by Numba's rules: NUMBA_CACHE_DIR, beside this file, the user's cache; None for none.

    What is in it is executed, so it must be the user's own and closed to others, or the next one is taken.
    """
    given: str = vars(config)["CACHE_DIR"]
    beside, user = Path(__file__).parent / "__pycache__", Path(vars(appdirs)["user_cache_dir"]("numba", False))
    for parent in [Path(given)] if given else [beside, user]:
        if not parent.is_absolute() and not given:  # a user without a home
            continue
        place = (parent / "bpgpu").absolute()
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compiled(place).mkdir(exist_ok=True, mode=0o700)
            if _is_safe(parent) and _is_own(place) and _is_own(_compiled(place)):
                tempfile.TemporaryFile(dir=place).close()
                return place
        except OSError:
            continue
    return None


def _compiled(place: Path) -> Path:
    """Return where Numba keeps what is compiled from files in a folder."""
    given: str = vars(config)["CACHE_DIR"]
    if not given:
        return place / "__pycache__"
    return Path(given, _CacheLocator.get_suitable_cache_subpath(str(place / "x.py")))  # type: ignore[no-untyped-call]


def _is_own(path: Path) -> bool:
    """Return whether a folder is no link, belongs to the user and can be written by nobody else."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return False
    return sys.platform == "win32" or (status.st_uid == os.geteuid() and _is_closed(status))


def _is_safe(path: Path) -> bool:
    """Return whether nobody else may put something in the place of what is in a folder, nor of a folder on the way."""
    if sys.platform == "win32":
        return True
    path, real = path.absolute(), path.resolve()
    way = {path, *path.parents, real, *real.parents}
    owners = {status.st_uid for folder in way for status in (folder.stat(), folder.lstat())}
    return owners <= {0, os.geteuid()} and all(_is_closed(folder.stat(), sticky=True) for folder in way)


def _is_closed(status: os.stat_result, sticky: bool = False) -> bool:
    """Return whether only its owner may write to a folder, or at least, if it is sticky, rename what is in it."""
    writers = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if sticky and status.st_mode & stat.S_ISVTX:
        return True
    return not writers or (writers == stat.S_IWGRP and _is_of_one(status.st_gid))


def _is_of_one(group: int) -> bool:
    """Return whether a group is the user's alone, as many systems make one for each and open folders to it."""
    import grp
    import pwd

    try:
        user, its = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return (its.gr_gid, its.gr_name) == (user.pw_gid, user.pw_name) and {*its.gr_mem} <= {user.pw_name}


@functools.cache
def digest_of_kernels() -> str:
    """Return a digest of the source of what is compiled here, and of the formulas."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    for path in sorted([*here.glob("*.py"), *here.parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def heading(what: str) -> str:
    """Return the docstring of a source: what code is for, which every name of a file depends on."""
    made_for = f"Numba {version('numba')} on {get_host_cpu_name()}"
    return f'"""Made by bpgpu: {what}, for {made_for}, from kernels with the digest {digest_of_kernels()}."""\n'


def _name(content: str) -> str:
    """Return the name of a file of this content, which begins with the digest that `_clean` goes by."""
    return f"{digest_of_kernels()[:12]}_{hashlib.sha256(content.encode()).hexdigest()[:20]}"


def _write(path: Path, content: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
        except BaseException:
            file.close()
            temporary.unlink()
            raise
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink()
        reading = sys.platform == "win32" and isinstance(error, PermissionError)  # another process, the same text
        if not (reading and path.is_file()):
            raise


@functools.cache
def load(source: str) -> ModuleType:
    """Import a source with the cache folder, where Numba finds or leaves what is compiled; or without one.

    Source asks Numba with ``cache=True`` to keep a function. What runs is the source itself: the file is there so that
    Numba can see of what time it is.
    """
    place = folder()
    if place is not None:
        path = place / f"{_name(source)}.py"
        for _ in range(2):
            try:
                _keep_source(path, source.encode())
                return _module(source, str(path))
            except Exception:  # what Numba has kept may be damaged, or the disk full
                with suppress(OSError):
                    _delete(path)
    return _module(source.replace("cache=True", "cache=False"), "<memory>")


def _module(source: str, path: str) -> ModuleType:
    """Return a source as a module, as if it had been imported from `path`."""
    module = ModuleType(f"bpgpu_{_name(source)}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where Numba looks for it
    exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    return module


def _keep_source(path: Path, content: bytes) -> None:
    """Let a file have this content and a new time of access, by which `_clean` goes; raise ``OSError`` if it cannot."""
    if not path.exists() or path.read_bytes() != content:
        _write(path, content)
        _clean(path.parent, path)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # Numba goes by the time of change


def _clean(place: Path, new: Path) -> None:
    """Delete what has not been used for long, and all but the digests of kernels that were used last.

    A process that still uses something of it has read it already, or else compiles in memory.
    """
    used: dict[Path, float] = {}
    for path in place.glob("*.py"):
        with suppress(OSError):
            used[path] = path.stat().st_atime
    by_digest: dict[str, float] = {}
    for path, seconds in used.items():
        digest = path.stem.partition("_")[0]
        by_digest[digest] = max(seconds, by_digest.get(digest, 0.0))
    recent = sorted(by_digest, key=by_digest.__getitem__)[-KEPT_DIGESTS:]
    now = time.time()
    for path, seconds in used.items():
        if path != new and (path.stem.partition("_")[0] not in recent or seconds < now - KEPT_SECONDS):
            with suppress(OSError):
                _delete(path)
    for pattern in ("*.done", "*.lock", "*.tmp"):
        for path in place.glob(pattern):
            with suppress(OSError):
                if path.lstat().st_mtime < now - KEPT_SECONDS:
                    path.unlink()


def _delete(path: Path) -> None:
    """Delete a source, and what Numba has compiled from it."""
    for kept in _compiled(path.parent).glob(f"{path.stem}.*"):
        kept.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Wait while another process is in here; on Windows, and where the file cannot be opened or locked, both are."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):  # a forked child may have the file open for longer
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _done(sources: list[str]) -> Path | None:
    """Return the file that tells that sources are compiled; None if nothing can be kept."""
    place = folder()
    return None if place is None else place / f"{_name(''.join(sources))}.done"


def are_kept(sources: list[str]) -> bool:
    """Return whether the cache has what is compiled from these sources."""
    done = _done(sources)
    if done is None or not done.is_file():
        return False
    with suppress(OSError):
        os.utime(done)  # it is used
    return True


def keep(sources: list[str], show: Callable[[list[str]], Iterable[str]] = iter) -> None:
    """Compile what the cache does not have of these sources, if there is a cache; `show` may show the progress."""
    done = _done(sources)
    if done is not None:
        with _one_process(done.with_suffix(".lock")):
            if not are_kept(sources):
                for source in show(sources):
                    load(source)
                with suppress(OSError):
                    _write(done, b"")
