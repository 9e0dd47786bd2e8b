"""How many threads the BLAS libraries of this process have: held down while epochs run, and put back after them."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bpgpu import forks


@dataclass(eq=False)
class _Hold:
    """One piece of work that wants BLAS at few threads."""

    limit: int
    thread: int = field(default_factory=threading.get_ident)


class BlasThreads:
    """The threads of all BLAS libraries in this process: there is one object of this kind, see `blas_threads`.

    Holds of several Python threads overlap in any order, and the libraries know one number for all of them. So the
    lowest limit counts while there is one, and the last hold to end puts back what was before the first.
    """

    def __init__(self) -> None:
        self._libraries: list[Any] = []
        self._before: list[int] = []
        self._holds: list[_Hold] = []
        self._lock = threading.Lock()
        self._forked = False  # whether the libraries are still at what threads of the parent held them at
        self.find()

    def find(self) -> None:
        """Look for libraries that have been loaded; it takes longer than a short epoch."""
        from threadpoolctl import ThreadpoolController

        # A sequential one sets no limit, and threadpoolctl does not know macOS's own.
        found = ThreadpoolController().select(user_api="blas").lib_controllers
        found = [library for library in found if getattr(library, "threading_layer", "") != "sequential"]
        with self._lock:
            self._settle()
            if self._holds:
                before = dict(zip((library.filepath for library in self._libraries), self._before, strict=True))
                self._before = [before.get(library.filepath, library.num_threads) for library in found]
            self._libraries = found
            if self._holds:
                self._apply()

    def now(self) -> list[int]:
        """Return how many threads each library has."""
        with self._lock:
            return self._now()

    def _now(self) -> list[int]:
        self._settle()
        return [library.num_threads for library in self._libraries]

    def outside(self) -> list[int]:
        """Return how many threads each library has outside of all holds: what the user, or a variable, has set."""
        with self._lock:
            return self._before if self._holds else self._now()

    @contextmanager
    def at_most(self, limit: int) -> Iterator[None]:
        """Hold every library at so many threads, where it would take more."""
        hold = _Hold(limit)
        with self._lock:
            if not self._holds:
                self._before = self._now()
            self._holds.append(hold)
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                others = [other for other in self._holds if other is not hold]
                self._apply(others)
                self._holds = others

    def _apply(self, holds: list[_Hold] | None = None) -> None:
        """Set the libraries to what these holds, by default those that there are, leave them."""
        limits = [hold.limit for hold in (self._holds if holds is None else holds)]
        with forks.in_blas():
            for library, before in zip(self._libraries, self._before, strict=True):
                # From 3.8 on, threadpoolctl does nothing in all threads but one; here they agree among themselves.
                set_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
                set_threads(min([before, *limits]))

    def after_fork(self) -> None:
        """Forget, in a child process, what other threads held: they are not there, and will not let it go.

        Their lock may be closed for ever, and so may be those of the libraries, which are therefore left alone until
        they are used: `_settle` then sets them to what the holds of this thread leave them.
        """
        self._lock = threading.Lock()
        kept = [hold for hold in self._holds if hold.thread == threading.get_ident()]
        self._forked = self._forked or len(kept) < len(self._holds)
        self._holds = kept

    def _settle(self) -> None:
        """Take the libraries, if this is the first use of them in a child process, out of the parent's holds."""
        if self._forked:
            self._apply()
            self._forked = False


_made: list[BlasThreads] = []


def blas_threads() -> BlasThreads:
    """Return the object of this process: each of several would put back what another had set."""
    if not _made:
        with forks.whole:
            if not _made:
                _made.append(BlasThreads())
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=_made[0].after_fork)
    return _made[0]
