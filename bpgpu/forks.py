"""Work that a fork must not interrupt: the child would wait for locks of threads that it does not have."""

import logging  # noqa: F401  # registers its hooks before ours, so that a fork takes its lock after ours, as imports do
import os
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

# Held while modules are imported or kernels compiled, under the locks of import and LLVM: a fork waits for the end.
whole = threading.RLock()
_PATIENCE = 60.0  # seconds; then the fork goes ahead anyway, because whoever holds a lock may be waiting for it
_locks: dict[int, AbstractContextManager[Any]] = {}  # by thread that has used BLAS, held while it is there
_gate = (
    threading.RLock()
)  # held by the thread that forks; not `whole`, whose holder may wait for a thread that waits here
_forking = False
_taken: list[Any] = []  # by the thread that forks


def in_blas() -> AbstractContextManager[Any]:
    """Return the lock that a thread holds while it is in BLAS, which has locks of its own: a fork waits for all.

    Each thread has its own, so that none waits for another. It is held for one or a few steps, never while user code
    runs.
    """
    thread = threading.get_ident()
    lock = _locks.get(thread) or _locks.setdefault(thread, threading.RLock())  # before the fork asks for all of them
    if _forking:  # a thread that takes its lock again at once would never leave it to the fork
        with _gate:
            pass
    return lock


def _before() -> None:
    global _forking
    end = time.monotonic() + _PATIENCE
    if whole.acquire(timeout=_PATIENCE):
        _taken.append(whole)
        _gate.acquire()
        _taken.append(_gate)
        _forking = True
        for lock in list[Any](_locks.values()):
            if lock.acquire(timeout=max(0.0, end - time.monotonic())):
                _taken.append(lock)


def _after() -> None:
    global _forking
    with suppress(RuntimeError, IndexError):  # another thread holds them if this one gave up waiting
        while _taken:
            _taken[-1].release()
            _taken.pop()
    _forking = bool(_taken)


def _after_in_child() -> None:
    """Replace the locks that a thread of the parent held for longer than the fork waited."""
    global whole, _gate, _forking
    _after()
    _gate, _forking = threading.RLock(), False
    _taken.clear()
    _locks.clear()
    if whole.acquire(blocking=False):
        whole.release()
    else:
        whole = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
