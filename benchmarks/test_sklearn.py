"""Whole fits of bpgpu's estimators beside scikit-learn's: the same data, parameters and epochs, in one run, in turns.

Each pair is compared before it is timed. How many times as long scikit-learn takes is in the column of that name with
``--benchmark-json``, and printed with ``-s``.
"""

import time
import warnings
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning

from benchmarks.measure import libraries
from bpgpu import sklearn as ours
from bpgpu.data import load_digits

ROUNDS = 3


@dataclass(frozen=True)
class Shape:
    """Samples, inputs and outputs of a problem (more than two outputs: classes; 0: the digits), and what trains it."""

    n: int
    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    options: dict[str, Any]
    dtype: str = "float64"

    def __str__(self) -> str:
        options = "-".join(f"{value}" for value in self.options.values())
        return f"{self.n}x{self.inputs}-{'-'.join(map(str, self.hidden))}-{self.outputs}-{options}-{self.dtype}"

    def data(self) -> tuple[Any, Any]:
        """Return X and y."""
        if not self.n:
            X, y = load_digits()
            return (X / 16).astype(self.dtype), y
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.n, self.inputs)).astype(self.dtype)
        scores = X[:, :8] @ rng.standard_normal((min(8, self.inputs), max(self.outputs, 1)))
        return X, scores[:, 0] if self.outputs == 1 else scores.argmax(axis=1)


SGD = {"solver": "sgd", "max_iter": 20}
SHAPES = [
    Shape(0, 64, 10, (100,), {"solver": "adam", "max_iter": 50}),
    Shape(0, 64, 10, (100,), {"solver": "adam", "max_iter": 50}, "float32"),
    Shape(0, 64, 10, (100,), {"solver": "lbfgs", "max_iter": 20}),
    Shape(0, 64, 10, (64, 32), {"solver": "adam", "max_iter": 20, "early_stopping": True}),
    Shape(150, 4, 3, (100,), {"solver": "adam", "max_iter": 100}),
    Shape(5000, 20, 2, (10,), SGD | {"batch_size": 32}),
    Shape(5000, 20, 1, (50, 50), {"solver": "adam", "max_iter": 20}),
    Shape(20000, 10, 1, (100,), SGD | {"batch_size": 500}),
    Shape(2000, 1000, 2, (100,), {"solver": "adam", "max_iter": 10}),
    Shape(10000, 100, 10, (200, 100), {"solver": "adam", "max_iter": 5}),
    Shape(20000, 784, 10, (512, 512), {"solver": "adam", "max_iter": 1}),
    Shape(20000, 784, 10, (512, 512), {"solver": "adam", "max_iter": 1}, "float32"),
]


def fit(module: Any, shape: Shape, X: Any, y: Any) -> tuple[Any, float]:
    """Return a fitted estimator, and how long the fit took."""
    kind = module.MLPRegressor if shape.outputs == 1 else module.MLPClassifier
    model = kind(hidden_layer_sizes=shape.hidden, random_state=0, tol=0.0, n_iter_no_change=10**6, **shape.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = time.perf_counter()
        model.fit(X, y)
    return model, time.perf_counter() - start


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fit(benchmark, shape):
    X, y = shape.data()
    (mine, _), (theirs, _) = (fit(module, shape, X, y) for module in (ours, neural_network))
    assert mine.n_iter_ == theirs.n_iter_
    assert mine.loss_ == pytest.approx(theirs.loss_, rel=0.02)
    seconds: list[float] = []

    def scikit_learn_next() -> None:
        seconds.append(fit(neural_network, shape, X, y)[1])

    benchmark.group = "whole fits"
    benchmark.pedantic(lambda: fit(ours, shape, X, y), setup=scikit_learn_next, rounds=ROUNDS, iterations=1)
    times = median(seconds) / benchmark.stats.stats.median
    report = mine.fit_report_
    benchmark.extra_info.update(shape=str(shape), scikit_learn_seconds=median(seconds), scikit_learn_takes=times)
    benchmark.extra_info.update(backend=report.backend, fit_threads=report.threads, **libraries())
    print(f"{shape}: scikit-learn takes {times:.1f} times as long")
