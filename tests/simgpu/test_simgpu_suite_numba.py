"""The tests of Numba-CUDA for a real device, on the simulated one."""

import pytest

from tests.backends import test_gpu_numba
from tests.simgpu import numba_device

# test_parity.py has the one, and the libraries of the other have stand-ins in test_numba_cuda_backend.py.
LEFT_OUT = {"test_errors_are_as_small_as_promised", "test_arrays_of_other_libraries"}
globals().update({n: test for n, test in vars(test_gpu_numba).items() if n.startswith("test_") and n not in LEFT_OUT})


@pytest.fixture
def backend(monkeypatch):
    """Return the backend on the simulated GPU."""
    numba_device.install(monkeypatch)
    from bpgpu.backends.cuda.numba_backend import NumbaCudaBackend

    return NumbaCudaBackend()
