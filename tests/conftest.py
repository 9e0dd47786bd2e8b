"""Fixtures that several test files share."""

import signal

import numpy as np
import pytest

import bpgpu
from tests.simgpu.state import forget_backends


def pytest_addoption(parser):
    group = parser.getgroup("fuzz", "random calls (tests/test_fuzz.py)")
    group.addoption("--fuzz-calls", type=int, default=1000, help="how many calls each machine makes, about")
    group.addoption("--fuzz-seed", type=int, default=0, help="other calls")


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let SIGINT interrupt, also where the tests were started with it ignored, as in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_backend_made(monkeypatch):
    """Make every backend anew in this test, and none of them in the next."""
    forget_backends(monkeypatch)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}threads")
def threads(request, monkeypatch):
    """Let the compiled CPU engine train on this many threads, whatever the size and the processors."""
    from bpgpu.backends import numba_backend

    monkeypatch.setattr(numba_backend.NumbaBackend, "_threads", lambda self, plan: min(request.param, plan.batch_size))
    return request.param


@pytest.fixture
def data():
    """Return a function: n samples of three inputs and two targets in [0, 1], float64."""

    def make(n=20, seed=1):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(n, 3)), rng.uniform(size=(n, 2))

    return make


@pytest.fixture
def make_net():
    """Return a function: a small float64 network for those data on the reference backend, with options changed."""

    def make(sizes=(3, 5, 2), activations=("tanh", "identity"), cost="half_squared_error", **options):
        return bpgpu.MLP(sizes, activations, cost, **{"dtype": "float64", "backend": "numpy", "seed": 7} | options)

    return make
