"""Fixtures of the tests of the CuPy backend; files about other backends have a `backend` of their own."""

import pytest

from tests.simgpu import cupy as simulated


@pytest.fixture
def gpu(monkeypatch):
    """The simulated GPU, installed as cupy."""
    return simulated.install(monkeypatch)


@pytest.fixture
def backend(gpu):
    """Return a function that makes a CuPy backend on it."""
    from bpgpu.backends.cuda.cupy_backend import CupyBackend

    return CupyBackend
