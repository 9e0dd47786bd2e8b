"""Work that must not be cut in two by a fork of the process: its child would wait for locks of threads it lacks."""

import logging  # noqa: F401  # its hooks come before ours, so that a fork takes its lock after ours, as imports do
import os
import threading

# Held while modules are imported or kernels compiled, by import's locks and LLVM's: a fork waits until that is done.
whole = threading.RLock()
_PATIENCE = 60.0  # seconds; then it goes on as if we were not there, because whoever holds the lock may wait for it
_taken = False


def _before() -> None:
    global _taken
    _taken = whole.acquire(timeout=_PATIENCE)


def _after() -> None:
    if _taken:
        whole.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
