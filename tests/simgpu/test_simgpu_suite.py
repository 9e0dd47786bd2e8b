"""The tests for a real device, on the simulated one: what is never run would rot."""

import pytest

from tests.backends import test_gpu
from tests.simgpu import cupy as simulated
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
# test_cupy_backend.py and test_parity.py have the same.
LEFT_OUT = {"test_gradients_of_every_activation_and_cost", "test_errors_are_as_small_as_promised"}
globals().update({n: test for n, test in vars(test_gpu).items() if n.startswith("test_") and n not in LEFT_OUT})


@pytest.fixture
def backend(monkeypatch):
    """Return a function that makes a CuPy backend on the simulated GPU."""
    simulated.install(monkeypatch)
    from bpgpu.backends.cuda.cupy_backend import CupyBackend

    return CupyBackend
