"""The launcher of the Numba-CUDA kernels on the simulated device: what it makes of arguments, and what it refuses."""

import importlib.util
import inspect
import subprocess
import sys
import warnings
from importlib import resources
from types import ModuleType

import numpy as np
import pytest

from bpgpu.backends.cuda.launch import Launcher as CudaLauncher
from bpgpu.backends.cuda.numba_launch import Launcher
from bpgpu.backends.cuda.steps import Steps, at_step, control_words
from bpgpu.backends.data import Dropout
from bpgpu.model.activations import ACTIVATIONS
from tests.simgpu import numba_device
from tests.simgpu.state import counters, settings

F32 = np.dtype(np.float32)


@pytest.fixture(params=[64, 256])
def launcher(monkeypatch, request):
    kernels = numba_device.install(monkeypatch, request.param)
    yield Launcher(kernels, numba_device.cuda, numba_device.cuda.stream())
    numba_device.reset()


def up(array):
    return numba_device.cuda.to_device(np.asarray(array))


def test_a_launch_goes_to_the_stream_and_can_be_repeated(launcher):
    settings.lazy = True
    cost, out = up(np.arange(100, dtype=F32)), up(np.zeros(1, F32))
    launch = launcher.bind("total", F32, (1,), (cost, 50, None, 0, out))  # pairs
    counters.reset()
    for n in (1, 2):
        launch()
        assert (counters.launches, counters.synchronisations, counters.allocations) == (n, 0, 0)
    launcher.stream.synchronize()
    assert out.copy_to_host()[0] == 4950


def test_a_null_pointer_is_one_empty_array(launcher):
    arguments = up(np.zeros(1, F32)), 1, None, 0, up(np.zeros(1, F32))
    one, two = (launcher.bind("total", F32, (1,), arguments) for _ in range(2))
    assert one.args[2][2] is two.args[2][2]
    assert one.args[2][2].size == 0


def test_steps_make_launches_of_either_language(launcher):
    """`Steps` binds through this launcher as through that of CuPy: forward with dropout, and gather at another step."""
    rng = np.random.default_rng(1)
    x, W, b = (rng.normal(size=shape).astype(F32) for shape in ((5, 3), (3, 4), (4,)))
    a, h = (up(np.zeros((5, 4), F32)) for _ in range(2))
    control = up(control_words(2, 1))
    steps = Steps(launcher, "fused")

    dropout = Dropout(0.5, 3, 1, 2, 1)
    for launch in steps.forward(up(x), up(W), up(b), ACTIVATIONS["tanh"], control, a=a, h=h, dropout=dropout):
        launch()
    np.testing.assert_allclose(a.copy_to_host(), np.tanh(x @ W + b), rtol=1e-5)
    assert set(np.unique(h.copy_to_host() != 0)) == {True, False}

    out, y, scale, weight = (up(np.zeros(shape, F32)) for shape in ((2, 3), (2, 1), (2,), (2,)))
    sizes = (2, 3, 1, 2, 0)
    arguments = (out, y, scale, weight, up(x), up(x[:, :1].copy()), None, None, None, up(np.ones(3, F32)), *sizes)
    gather = launcher.bind("gather", F32, (1,), (*arguments, control))
    at_step(gather, 1)()
    np.testing.assert_array_equal(out.copy_to_host(), x[2:4])


def test_the_same_interface_as_for_cuda_cpp():

    assert inspect.signature(Launcher.bind) == inspect.signature(CudaLauncher.bind)


def test_numba_does_not_warn_of_small_grids(launcher, monkeypatch):
    class Dispatcher:
        configure, times = None, 0

        def __getitem__(self, configuration):
            self.times += 1
            warnings.warn(f"Grid size {configuration[0]} will likely result in GPU under-utilization", stacklevel=2)
            return lambda *arguments: None

    dispatcher = Dispatcher()
    monkeypatch.setattr(launcher.kernels, "kernel", lambda *arguments: dispatcher)
    launch = launcher.bind("advance", F32, (1,), (None,))
    launch()
    launch()
    assert dispatcher.times == 1


@pytest.mark.parametrize(
    ("place", "bad", "text"),
    [
        (0, np.zeros(4, F32), "got ndarray of 1 dimensions of float32"),
        (0, np.float64, "1 dimension of float32, got DeviceNDArray of 1 dimensions of float64"),
        (0, "matrix", "got DeviceNDArray of 2 dimensions of float32"),
        (0, "strided", "C-contiguous"),
        (0, 1.0, "got float"),
        (1, None, "n must be a number, got NoneType"),
    ],
)
def test_bad_arguments(launcher, place, bad, text):
    special = {
        np.float64: lambda: up(np.zeros(4)),
        "matrix": lambda: up(np.zeros((2, 2), F32)),
        "strided": lambda: up(np.zeros(8, F32))[::2],
    }
    bad = special[bad]() if isinstance(bad, type | str) else bad
    arguments = [up(np.zeros(4, F32)), 4, None, 0, up(np.zeros(1, F32))]
    arguments[place] = bad
    with pytest.raises(TypeError, match=text):
        launcher.bind("total", F32, (1,), tuple(arguments))


def test_bad_launches(launcher):
    with pytest.raises(TypeError, match="kernel advance takes 1 arguments, got 2"):
        launcher.bind("advance", F32, (1,), (None, None))
    with pytest.raises(ValueError, match="256 threads, got 128"):
        launcher.bind("advance", F32, (1,), (None,), block=128)
    with pytest.raises(KeyError, match="column_sums_partial"):
        launcher.bind("column_sums_partial", F32, (1,), ())
    with pytest.raises(OverflowError):
        launcher.bind("total", F32, (1,), (None, 2**64, None, 0, None))


# Where Numba's CUDA comes from


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ({"numba_cuda", "numba_cuda_mlir"}, "numba.cuda"),
        ({"numba_cuda_mlir"}, "numba_cuda_mlir.cuda"),
        ({"numba_cuda"}, "numba.cuda"),
        (set(), "numba.cuda"),  # Numba's own, or an ImportError that names it
    ],
)
def test_the_shim_takes_numba_cuda_or_its_successor(installed, wanted, monkeypatch):
    modules = {name: ModuleType(name) for name in ("numba.cuda", "numba_cuda_mlir", "numba_cuda_mlir.cuda")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in installed else None)
    text = resources.files("bpgpu.kernels.numba_cuda").joinpath("library.py").read_text(encoding="utf-8")
    namespace = {}
    exec(text, namespace)
    assert namespace["cuda"] is modules[wanted]


def test_bpgpu_imports_no_numba_cuda():
    check = "import sys, bpgpu, bpgpu.backends.cuda.numba_launch; assert not {'numba.cuda', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
