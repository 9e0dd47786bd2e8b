"""The choice of a backend.

A backend's module is imported when the backend is asked for, never before: importing bpgpu touches NumPy only, and a
GPU library that is broken breaks nobody who does not use it. Other packages register backends of theirs as entry points
of the group ``bpgpu.backends``; see `bpgpu.testing`.
"""

import functools
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from bpgpu import forks
from bpgpu.backends.base import Backend
from bpgpu.errors import BackendUnavailableError, unknown_name

# name: (module, class, command that installs what it needs), fastest first: "auto" takes the first that runs.
REGISTRY = {
    "cupy": ("bpgpu.backends.cuda.cupy_backend", "CupyBackend", 'pip install "bpgpu[cuda13]"'),
    "numba-cuda": ("bpgpu.backends.cuda.numba_backend", "NumbaCudaBackend", 'pip install "bpgpu[cuda13]"'),
    "numba": ("bpgpu.backends.cpu.engine", "NumbaBackend", "pip install numba"),
    "numpy": ("bpgpu.backends.numpy_backend", "NumpyBackend", "pip install numpy"),
}
GROUP = "bpgpu.backends"


@dataclass(frozen=True)
class BackendInfo:
    """One backend as this machine sees it.

    Attributes
    ----------
    name : str
    available : bool
    reason : str
        Why it can or cannot be used, and in the second case what to do.
    device : str or None
        What it would run on.
    """

    name: str
    available: bool
    reason: str
    device: str | None


def backends() -> list[BackendInfo]:
    """Return every backend with what stands in its way: bpgpu's, fastest first, then those of other packages."""
    return list(_infos())


def _infos() -> Iterator[BackendInfo]:
    """Yield every backend, each made only when it is asked for: to import Numba takes longer than a small training."""
    for name in names():
        try:
            backend = _construct(name)
        except BackendUnavailableError as error:
            yield BackendInfo(name, False, error.reason, None)
        else:
            yield BackendInfo(name, True, "ready", backend.device)


def names() -> Iterator[str]:
    """Yield the names of all backends; the metadata of other packages are read only if those of bpgpu do not do."""
    yield from REGISTRY
    yield from _registered()


def _registered() -> dict[str, EntryPoint]:
    """Return the backends of other packages, which cannot take the names of bpgpu's."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in ("auto", *REGISTRY)}


def get_backend(name: str | Backend = "auto") -> Backend:
    """Return a backend.

    Parameters
    ----------
    name : str or Backend
        "cupy", "numba-cuda", "numba" or "numpy"; the name of one that another package has registered; "auto" for the
        fastest of bpgpu's that runs here; or a backend, which is returned as it is.

    Raises
    ------
    BackendUnavailableError
        If the named backend cannot run here; with the cause and the command that fixes it.
    ValueError
        If the name is unknown.
    """
    if isinstance(name, Backend):
        return name
    if name == "auto":
        return _construct(next(info.name for info in _infos() if info.available))
    if not isinstance(name, str) or name not in names():
        raise unknown_name("backend", name, ["auto", *names()])
    return _construct(name)


def why_auto() -> str:
    """Return why "auto" takes the backend it takes, with what stands in the way of each faster one."""
    faster = itertools.takewhile(lambda info: not info.available, _infos())
    by_reason = itertools.groupby(faster, key=lambda info: info.reason)
    obstacles = [f"{', '.join(info.name for info in group)}: {reason}" for reason, group in by_reason]
    return "the fastest that runs here" + (f" ({'; '.join(obstacles)})" if obstacles else "")


@functools.cache
def _construct(name: str) -> Backend:
    module, attribute, fix = REGISTRY.get(name) or _origin(_registered()[name])
    if name in REGISTRY and importlib.util.find_spec(module) is None:
        raise BackendUnavailableError(name, "not part of this version of bpgpu")
    try:
        with forks.whole:
            backend = getattr(importlib.import_module(module), attribute)()
        if not isinstance(backend, Backend):
            raise TypeError(f"{module}.{attribute} does not make a bpgpu.Backend")
    except BackendUnavailableError:
        raise
    except Exception as error:
        raise BackendUnavailableError(name, f"{type(error).__name__}: {error}; try: {fix}") from error
    return backend


def _origin(entry: EntryPoint) -> tuple[str, str, str]:
    """Return the module and class of a backend of another package, and the command that installs it again."""
    return entry.module, entry.attr, f"pip install --force-reinstall {entry.dist.name if entry.dist else entry.module}"


class _Package(ModuleType):
    """The package, which is the function `backends` as well."""

    def __call__(self) -> list[BackendInfo]:
        return backends()


sys.modules[__name__].__class__ = _Package
