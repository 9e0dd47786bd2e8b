"""Work that must not be cut in two by a fork of the process: its child would wait for locks of threads it lacks."""

import logging  # noqa: F401  # its hooks come before ours, so that a fork takes its lock after ours, as imports do
import os
import threading
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

# Held while modules are imported or kernels compiled, by import's locks and LLVM's: a fork waits until that is done.
whole = threading.RLock()
_PATIENCE = 60.0  # seconds; then it goes on as if we were not there, because whoever holds a lock may wait for it
_locks: dict[int, AbstractContextManager[Any]] = {}  # of each thread that has been in BLAS, held while it is
_gate = threading.RLock()  # held by the thread that forks; not `whole`, whose holder may wait for whoever waits here
_forking = False
_taken: list[Any] = []  # by the thread that forks


def in_blas() -> AbstractContextManager[Any]:
    """Return what a thread holds while it is in BLAS, which has locks of its own: a fork waits until none is.

    Each thread has its own lock, so that none waits for another. It is held for a step or a few, never while something
    of the user's runs.
    """
    thread = threading.get_ident()
    lock = _locks.get(thread) or _locks.setdefault(thread, threading.RLock())  # before the fork asks for all of them
    if _forking:  # a thread that takes its lock again at once would never let the fork have it
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
    with suppress(RuntimeError, IndexError):  # they are another thread's, if this one had no patience left
        while _taken:
            _taken[-1].release()
            _taken.pop()
    _forking = bool(_taken)


def _after_in_child() -> None:
    """Leave no lock closed that a thread of the parent has held for longer than the fork had patience."""
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
