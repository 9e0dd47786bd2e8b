"""What stands in the way of the Numba-CUDA backend, each with its own sentence and fix."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

import bpgpu

SHIM = "bpgpu.kernels.numba_cuda.library"


def reason():
    from bpgpu.backends.cuda.numba_backend import NumbaCudaBackend

    with pytest.raises(bpgpu.BackendUnavailableError) as caught:
        NumbaCudaBackend()
    return caught.value.reason


@pytest.fixture
def driver(monkeypatch):
    """Return a function: Numba's CUDA whose context cannot be had for this reason."""

    def install(text):
        def fail():
            raise ImportError(text)

        for name, module in ((SHIM, ModuleType(SHIM)), ("bpgpu.kernels.numba_cuda.kernels", ModuleType("numba_cuda"))):
            module.cuda = SimpleNamespace(current_context=fail)
            monkeypatch.setitem(sys.modules, name, module)

    return install


def test_no_driver(driver):
    driver("Error at driver init: \n\nCUDA driver library cannot be found.\nIf you are sure\n:")
    assert reason() == "there is no NVIDIA driver; install one: https://www.nvidia.com/drivers"


def test_no_device(driver):
    driver("[100] Call to cuInit results in CUDA_ERROR_NO_DEVICE")
    assert reason() == (
        "no usable NVIDIA GPU (ImportError: [100] Call to cuInit results in CUDA_ERROR_NO_DEVICE); "
        "look at the output of nvidia-smi"
    )


def test_numba_without_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, SHIM, None)
    monkeypatch.delitem(sys.modules, "bpgpu.kernels.numba_cuda.kernels", raising=False)
    assert "Numba's CUDA cannot be imported" in reason()
    assert 'pip install "bpgpu[cuda13]"' in reason()


def test_a_compiler_that_is_missing(monkeypatch):
    from tests.simgpu import numba_device

    kernels = numba_device.install(monkeypatch)

    def fail(*arguments):
        raise RuntimeError("libnvvm.so cannot be found")

    monkeypatch.setattr(kernels, "kernel", fail)
    assert reason().startswith(
        "simulated GPU is there, but its kernels cannot be compiled or run (RuntimeError: libnvvm.so cannot be found)"
    )
