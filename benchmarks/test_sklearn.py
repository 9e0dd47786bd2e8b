"""Whole fits of bpgpu's estimators and scikit-learn's: the same data, parameters and epochs, in one run, in turns.

Each library has its own process, and a turn is several fits, of which the median counts: after scikit-learn's fit, the
threads of NumPy's BLAS look for work for another tenth of a second and occupy a processor meanwhile, and a processor
that has slept is slow at first.
Each pair is compared before it is timed. ``--benchmark-json`` saves the factor by which scikit-learn takes longer as
``scikit_learn_takes``; ``-s`` prints the rows of the table in ``docs/sklearn.md``.
"""

import functools
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import libraries
from bpgpu.data import load_digits

ROUNDS = 3
TURN = 0.5  # seconds, and at least three fits


@dataclass(frozen=True)
class Shape:
    """Samples, inputs and outputs of a problem (more than two outputs: classes; 0: the digits), and its training."""

    n: int
    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    solver: str
    max_iter: int
    dtype: str = "float64"
    batch_size: int | str = "auto"
    early_stopping: bool = False

    def __str__(self) -> str:
        data = f"{self.n:,} x {self.inputs:,}" if self.n else "digits"
        batch = [f"batch {self.batch_size}"] if self.batch_size != "auto" else []
        early = ["early stopping"] if self.early_stopping else []
        options = [self.solver, *batch, f"{self.max_iter} epoch{'s' * (self.max_iter > 1)}", *early, self.dtype]
        return f"{data}, {self.hidden}, {', '.join(options)}"


SHAPES = [
    Shape(0, 64, 10, (100,), "adam", 50),
    Shape(0, 64, 10, (100,), "adam", 50, "float32"),
    Shape(0, 64, 10, (100,), "lbfgs", 20),
    Shape(0, 64, 10, (64, 32), "adam", 20, early_stopping=True),
    Shape(150, 4, 3, (100,), "adam", 100),
    Shape(5000, 20, 2, (10,), "sgd", 20, batch_size=32),
    Shape(5000, 20, 1, (50, 50), "adam", 20),
    Shape(20000, 10, 1, (100,), "sgd", 20, batch_size=500),
    Shape(2000, 1000, 2, (100,), "adam", 10),
    Shape(10000, 100, 10, (200, 100), "adam", 5),
    Shape(20000, 784, 10, (512, 512), "adam", 1),
    Shape(20000, 784, 10, (512, 512), "adam", 1, "float32"),
]


@functools.lru_cache(1)
def data(shape: Shape) -> tuple[Any, Any]:
    """Return X and y."""
    if not shape.n:
        X, y = load_digits()
        return (X / 16).astype(shape.dtype), y
    rng = np.random.default_rng(0)
    X = rng.standard_normal((shape.n, shape.inputs)).astype(shape.dtype)
    scores = X[:, :8] @ rng.standard_normal((min(8, shape.inputs), max(shape.outputs, 1)))
    return X, scores[:, 0] if shape.outputs == 1 else scores.argmax(axis=1)


def fits_of(library: str, shape: Shape) -> dict[str, Any]:
    """Return the time of a fit, how it ended, and where it ran."""
    if library == "bpgpu":
        from bpgpu import sklearn as module
    else:
        from sklearn import neural_network as module
    from sklearn.exceptions import ConvergenceWarning

    kind = module.MLPRegressor if shape.outputs == 1 else module.MLPClassifier
    options = {name: getattr(shape, name) for name in ("solver", "max_iter", "batch_size", "early_stopping")}
    model = kind(hidden_layer_sizes=shape.hidden, random_state=0, tol=0.0, n_iter_no_change=10**6, **options)
    X, y = data(shape)
    seconds: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        while len(seconds) < 3 or sum(seconds) < TURN:
            start = time.perf_counter()
            model.fit(X, y)
            seconds.append(time.perf_counter() - start)
    report = getattr(model, "fit_report_", None)
    where = {} if report is None else {"backend": report.backend, "fit_threads": report.threads}
    return {"seconds": median(seconds), "epochs": model.n_iter_, "loss": model.loss_, **where}


@pytest.fixture(scope="module")
def fits():
    """Return a function for each library that fits a shape in that library's process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as ours, ProcessPoolExecutor(1, context) as theirs:
        yield [
            lambda shape, process=process, library=library: process.submit(fits_of, library, shape).result()
            for process, library in ((ours, "bpgpu"), (theirs, "sklearn"))
        ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fit(benchmark, fits, shape):
    ours, theirs = fits
    mine, reference = ours(shape), theirs(shape)
    assert mine["epochs"] == reference["epochs"]
    assert mine["loss"] == pytest.approx(reference["loss"], rel=0.02)
    seconds: list[tuple[float, float]] = []

    def in_turns() -> None:
        seconds.append((ours(shape)["seconds"], theirs(shape)["seconds"]))

    benchmark.group = "whole fits"
    benchmark.pedantic(in_turns, rounds=ROUNDS, iterations=1)
    ours_take, theirs_take = (median(column) for column in zip(*seconds, strict=True))
    times = theirs_take / ours_take
    benchmark.extra_info.update(shape=str(shape), bpgpu_seconds=ours_take, scikit_learn_seconds=theirs_take)
    benchmark.extra_info.update(scikit_learn_takes=times, **libraries())
    benchmark.extra_info.update(backend=mine["backend"], fit_threads=mine["fit_threads"])
    print(f"\n| {shape} | {ours_take * 1e3:.0f} | {theirs_take * 1e3:.0f} | {times:.1f} |")
