"""The report of a fit: where it ran, and how fast."""

import functools
import time
from dataclasses import dataclass, field

import numpy as np


@dataclass
class FitReport:
    """Where a fit ran, why there, and how long each phase took.

    Attributes
    ----------
    backend : str
        Name of the backend; "scikit-learn" if scikit-learn took the steps itself.
    device : str
    reason : str
        Why it ran there.
    threads : int
    dtype : str
    samples, epochs, multiply_adds : int
        Samples in an epoch; epochs; multiply-adds of the matrix products for one sample, forward and backward.
    seconds : dict of str to float
        "checks" of the input and initial weights; "prepare": memory, and compiling if it is the first time;
        "epochs"; "validation" and other work after each epoch. Together they are the whole fit.
    """

    backend: str = ""
    device: str = ""
    reason: str = ""
    threads: int = 1
    dtype: str = ""
    samples: int = 0
    epochs: int = 0
    multiply_adds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def lap(self, phase: str) -> None:
        """Add the time since the last lap, or since the report was created, to a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now

    @property
    def samples_per_second(self) -> float:
        """The speed of the epochs."""
        return self.samples * self.epochs / max(self.seconds.get("epochs", 0.0), 1e-9)

    @property
    def gemm_share(self) -> float | None:
        """The epochs' multiply-adds as a share of those that a large matrix product does in the same time on this CPU.

        The product is measured on first use, with the threads that BLAS has then. None on a GPU.
        """
        if not self.device.startswith("CPU"):
            return None
        return self.samples_per_second * self.multiply_adds / gemm_rate(self.dtype)

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in self.seconds.items())
        share = self.gemm_share
        return (
            f"{self.backend} on {self.device}: {self.reason}\n"
            f"{self.threads} thread{'s' * (self.threads != 1)}, {self.dtype}; {phases}\n"
            f"{self.samples_per_second:,.0f} samples/s"
            + (f", {share:.1%} of the multiply-adds of a large matrix product" if share is not None else "")
        )


@functools.cache
def gemm_rate(dtype: str) -> float:
    """Return the multiply-adds per second of a product of two square matrices, the best of four runs."""
    n = 768
    A, seconds = np.ones((n, n), dtype), np.inf
    for _ in range(4):
        start = time.perf_counter()
        A @ A
        seconds = min(seconds, time.perf_counter() - start)
    return n**3 / seconds
