"""The problem that `benchmarks.peers` gives every library, and how its work is checked and timed."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

Array = Any
# Network: batch, steps in an epoch, and the tolerance for the changes of the first epoch with Adam. Adam moves a
# parameter just as far if its gradient is mere rounding, as many are in wide networks, and scikit-learn's adds epsilon
# before the moments are corrected, not after. But the code that is checked is the same as in small networks.
NETWORKS = {
    "2-4-3-1": (4, 256, 5e-3),
    "64-100-10": (200, 64, 5e-3),
    "784-512-512-10": (128, 32, 0.1),
    "1024-2048-2048-1000": (1024, 2, 0.1),
}
SGD_TOLERANCE = 5e-3  # the same with SGD
RATES = {"SGD": 0.1, "Adam": 1e-3}
WARM_UP, LEAST = 2, 3  # epochs that are not counted, and the fewest that are


class WrongResult(Exception):  # noqa: N818
    """A peer did not do the work to be timed."""


class Problem:
    """The problem that every peer trains: data, initial parameters, batch and optimizer, the same in every process."""

    def __init__(self, network: str, optimizer: str) -> None:
        self.sizes = tuple(map(int, network.split("-")))
        self.batch, self.steps, adam_tolerance = NETWORKS[network]
        self.tolerance = adam_tolerance if optimizer == "Adam" else SGD_TOLERANCE
        self.optimizer, self.rate = optimizer, RATES[optimizer]
        rng, n = np.random.default_rng(0), self.steps * self.batch
        self.X = rng.standard_normal((n, self.sizes[0]), np.float32)
        self.y = rng.integers(0, max(self.sizes[-1], 2), n, np.int32)
        shapes = list(pairwise(self.sizes))
        self.W = [rng.standard_normal(shape, np.float32) * np.float32((2 / shape[0]) ** 0.5) for shape in shapes]
        self.b = [np.zeros(n, np.float32) for n in self.sizes[1:]]

    @property
    def targets(self) -> Array:
        """Class numbers, or a column of 0 and 1 for a single output."""
        return self.y if self.sizes[-1] > 1 else self.y[:, None].astype(np.float32)

    @property
    def flat(self) -> Array:
        """All parameters in one vector, W_1 ... W_L, b_1 ... b_L."""
        return flat([*self.W, *self.b])

    def batches(self, *arrays: Array) -> list[tuple[Array, ...]]:
        return [tuple(x[i : i + self.batch] for x in arrays) for i in range(0, len(self.X), self.batch)]

    def check(self, found: Array, expected: Array) -> None:
        """Raise WrongResult unless the first epoch changed each W and b as it must, by relative error in the norm.

        Parameters
        ----------
        found, expected : array
            Flat parameters after that epoch.
        """
        names = [f"{name}_{l}" for name in "Wb" for l in range(1, len(self.sizes))]
        ends = np.cumsum([x.size for x in (*self.W, *self.b)])[:-1]
        moved, due = (np.split(np.float64(x) - self.flat, ends) for x in (found, expected))
        for name, change, right in zip(names, moved, due, strict=True):
            error = np.linalg.norm(change - right) / np.linalg.norm(right)
            if not error <= self.tolerance:
                raise WrongResult(f"the first epoch changed {name} with a relative error of {error:.2g}")


def flat(arrays: Any) -> Array:
    return np.concatenate([np.asarray(x).ravel() for x in arrays])


class Peer:
    """A library that trains a problem: `epoch` does the work, `parameters` returns its result."""

    needs = "numpy"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def epoch(self) -> None:
        raise NotImplementedError

    def parameters(self) -> Array:
        raise NotImplementedError

    def check(self, expected: Array) -> None:
        """Raise WrongResult if the first epoch did not give the expected parameters."""
        self.problem.check(self.parameters(), expected)

    def measure(self, seconds: float) -> list[float]:
        """Return the seconds of each epoch, measured for `seconds`."""
        return clock(self.epoch, seconds)

    def facts(self) -> dict[str, Any]:
        return {}


class Stopwatch:
    """Takes the time from mark to mark for `seconds`; the first marks are warm-up and do not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.first, self.marks = seconds, 0, [time.perf_counter()]

    def mark(self) -> bool:
        """Record the end of an epoch; return whether that was enough."""
        now, epochs = time.perf_counter(), len(self.marks)
        self.marks.append(now)
        if not self.first and epochs >= WARM_UP and now - self.marks[0] >= self.seconds / 4:
            self.first = epochs
        return self.first > 0 and epochs >= self.first + LEAST and now - self.marks[self.first] >= self.seconds

    @property
    def times(self) -> list[float]:
        return [end - start for start, end in pairwise(self.marks[self.first :])]


def clock(work: Callable[[], None], seconds: float) -> list[float]:
    """Return the seconds of each call, measured for `seconds`."""
    watch = Stopwatch(seconds)
    work()
    while not watch.mark():
        work()
    return watch.times
