"""Compiled code that is kept for the next process: in files whose names are made from all that it depends on.

Numba keeps a function for as long as the file where it stands has the same content, and looks into no other file. So
source is made that holds everything, or a digest of it, and written to a cache folder under a name from its content.
"""

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from llvmlite.binding import get_host_cpu_name
from numba.core import config
from numba.misc import appdirs


@functools.cache
def folder() -> Path | None:
    """Return the cache folder, by Numba's rules: NUMBA_CACHE_DIR, beside this file, the user's cache; None for none."""
    given: str = vars(config)["CACHE_DIR"]
    beside, user = Path(__file__).parent / "__pycache__", Path(vars(appdirs)["user_cache_dir"]("numba", False))
    for parent in [Path(given)] if given else [beside, user]:
        if not parent.is_absolute() and not given:  # a user without a home
            continue
        try:
            (parent / "bpgpu").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=parent / "bpgpu"):
                return (parent / "bpgpu").absolute()
        except OSError:
            continue
    return None


@functools.cache
def digest_of_kernels() -> str:
    """Return a digest of the source of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def heading(what: str) -> str:
    """Return the docstring of a source: what code is for, which every name of a file depends on."""
    made_for = f"Numba {version('numba')} on {get_host_cpu_name()}"
    return f'"""Made by bpgpu: {what}, for {made_for}, from kernels with the digest {digest_of_kernels()}."""\n'


def _name(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _write(path: Path, text: str) -> None:
    """Write a file that other processes see whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(text)
    try:
        os.replace(file.name, path)  # noqa: PTH105
    except PermissionError:  # Windows, while another process reads the same text there
        os.unlink(file.name)  # noqa: PTH108
        if not path.exists():
            raise


@functools.cache
def load(source: str) -> ModuleType:
    """Import a source from the cache folder, where Numba finds or leaves what is compiled; or without one, from memory.

    Source asks Numba with ``cache=True`` to keep a function.
    """
    place = folder()
    if place is None:
        module = ModuleType(f"bpgpu_{_name(source)}")
        module.__file__ = "<memory>"
        sys.modules[module.__name__] = module
        exec(source.replace("cache=True", "cache=False"), vars(module))
        return module
    path = place / f"{_name(source)}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != source:
        _write(path, source)
    spec = importlib.util.spec_from_file_location(f"bpgpu_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Numba looks for it
    spec.loader.exec_module(module)
    return module


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Wait while another process is in here; on Windows, and where files cannot be locked, both are."""
    with path.open("w") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _done(sources: list[str]) -> Path | None:
    """Return the file that tells that sources are compiled; None if nothing can be kept."""
    place = folder()
    return None if place is None else place / f"{_name(''.join(sources))}.done"


def are_kept(sources: list[str]) -> bool:
    """Return whether the cache has what is compiled from these sources."""
    done = _done(sources)
    return done is not None and done.exists()


def keep(sources: list[str], show: Callable[[list[str]], Iterable[str]] = iter) -> None:
    """Compile what the cache does not have of these sources, if there is a cache; `show` may show the progress."""
    done = _done(sources)
    if done is not None:
        with _one_process(done.with_suffix(".lock")):
            if not done.exists():
                for source in show(sources):
                    load(source)
                _write(done, "")
