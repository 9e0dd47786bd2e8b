"""Threads of the compiled CPU engine: how many the user and the system allow, and running a piece of work on them."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from bpgpu.kernels.cpu.phases import CALLED, LEFT

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_limit: ContextVar[int | None] = ContextVar("limit", default=None)


def processors() -> int:
    """Return how many processors this process may use: those of its affinity, at most what its container has."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        return min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # not in a container, or "max": no limit
        return count


@contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Allow no more threads than these."""
    token = _limit.set(threads)
    try:
        yield
    finally:
        _limit.reset(token)


def allowed_threads() -> int:
    """Return how many threads the system, `at_most`, BPGPU_NUM_THREADS and NUMBA_NUM_THREADS allow.

    Raises
    ------
    ValueError
        If a variable is not a whole number of at least 1.
    """
    limits = [processors(), _limit.get() or sys.maxsize]
    for name in ("BPGPU_NUM_THREADS", "NUMBA_NUM_THREADS"):
        if value := os.environ.get(name):
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}: unset or correct it")
            limits.append(int(value))
    return min(limits)


class Helpers:
    """Threads that are kept from one epoch to the next, because starting one takes as long as a step."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = 0

    def call(self, work: Callable[[int], None], threads: int, shared: np.ndarray[Any, Any]) -> None:
        """Let `threads` - 1 of them run work(1) ..., but for as many as are at it still, from the epoch before.

        Who comes late, or not at all, is not waited for: see `bpgpu.kernels.cpu.phases`.
        """
        with suppress(RuntimeError):  # no more threads can be started
            while self._count < threads - 1:
                Thread(target=self._serve, daemon=True).start()
                self._count += 1
        for thread in range(1 + shared[CALLED] - shared[LEFT], threads):
            shared[CALLED] += 1
            self._calls.put(functools.partial(work, thread))

    def _serve(self) -> None:
        while True:
            self._calls.get()()


@functools.cache
def helpers() -> Helpers:
    """Return those of this process."""
    return Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.cache_clear)  # of a process's threads, its child has one
