"""Threads of the compiled CPU engine: how many the user and the system allow, and running a piece of work on them."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from bpgpu.kernels.numba_cpu_parts import ABORT

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


def run_on_all(work: Callable[[int], None], threads: int, counter: np.ndarray[Any, Any]) -> None:
    """Run work(0) here and work(1) ... in threads of their own; return, or raise, when all have ended.

    Until work(0) begins, the others wait in their first barrier; if it never does, they are told by the counter.
    """

    def join_in(thread: int) -> None:
        if counter[0] < ABORT:  # Ctrl-C during `start` leaves a thread that may begin when all is over
            work(thread)

    others = [threading.Thread(target=join_in, args=(thread,), daemon=True) for thread in range(1, threads)]
    interrupt = None
    try:
        for other in others:
            other.start()
        work(0)
    except BaseException:  # Ctrl-C, or no more threads
        counter[0] += ABORT
        raise
    finally:
        while True:
            try:
                for other in others:
                    if other.is_alive():
                        other.join()
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
