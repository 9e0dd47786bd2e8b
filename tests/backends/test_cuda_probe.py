"""Detection of CuPy: every cause has its own sentence and its own fix; on a scripted CuPy, and on the real one."""

import importlib.util
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bpgpu.backends.cuda import probe as cuda_probe
from bpgpu.errors import BackendUnavailableError

CUDA13, CUDA12 = 'pip install "bpgpu[cuda13]"', 'pip install "bpgpu[cuda12]"'
EXCHANGE = f"pip uninstall cupy-cuda13x, then {CUDA12}"


class CUDARuntimeError(RuntimeError):
    def __init__(self, status, text):
        self.status = status
        super().__init__(text)


def raising(error):
    def function(*arguments, **keywords):
        raise error

    return function


def fill(grid, block, arguments):
    arguments[0][...] = np.arange(block[0])


def working_cupy(**runtime):
    """Return a stand-in for CuPy on a machine where all is well, with functions of its runtime replaced."""
    working = {
        "driverGetVersion": lambda: 13000,
        "runtimeGetVersion": lambda: 13020,
        "getDeviceCount": lambda: 1,
        "getDevice": lambda: 0,
        "getDeviceProperties": lambda device: {"name": b"NVIDIA L4", "major": 8, "minor": 9},
        "CUDARuntimeError": CUDARuntimeError,
    }
    return SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(runtime=SimpleNamespace(**(working | runtime))),
        empty=np.empty,
        matmul=np.matmul,
        asnumpy=np.array,
        RawModule=lambda code: SimpleNamespace(get_function=lambda name: fill),
    )


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a stand-in where `import cupy` finds it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda module: monkeypatch.setitem(sys.modules, "cupy", module)


def reason():
    with pytest.raises(BackendUnavailableError) as caught:
        cuda_probe.probe()
    assert caught.value.backend == "cupy"
    return caught.value.reason


def test_a_working_device(install):
    cupy = working_cupy()
    install(cupy)
    assert cuda_probe.probe() is cupy
    assert cuda_probe.device_name(cupy) == "NVIDIA L4"


def test_not_installed(install):
    install(None)  # what `import` takes for a module that is not there
    assert reason() == f"CuPy is not installed; {CUDA13}, or {CUDA12} if the NVIDIA driver is older than 580"


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"), ImportError("bad ELF"), OSError(8)]
)
def test_import_fails(monkeypatch, error):
    monkeypatch.setattr(cuda_probe.importlib, "import_module", raising(error))
    with pytest.raises(BackendUnavailableError) as caught:
        cuda_probe.probe()
    assert caught.value.__cause__ is error
    assert f"CuPy is installed but cannot be imported ({type(error).__name__}: {error})" in caught.value.reason
    assert CUDA13 in caught.value.reason


def test_import_error_inside_advice(monkeypatch):
    """CuPy wraps what went wrong in a box of advice; the sentence gives what went wrong."""
    advice = ImportError("\n=====\nFailed to import CuPy.\n")
    advice.__cause__ = ImportError("libfoo.so: cannot open shared object file")
    monkeypatch.setattr(cuda_probe.importlib, "import_module", raising(advice))
    assert "(ImportError: libfoo.so: cannot open shared object file)" in reason()


def test_no_driver(install):
    install(working_cupy(driverGetVersion=lambda: 0))
    assert reason() == "there is no NVIDIA driver; install one: https://www.nvidia.com/drivers"


@pytest.mark.parametrize(
    ("driver", "built", "fix"),
    [
        (12040, 13020, f"update the NVIDIA driver, or take CuPy for CUDA 12: {EXCHANGE}"),
        (11080, 13020, "update the NVIDIA driver"),
        (11080, 12090, "update the NVIDIA driver"),
        (12000, 12090, "update the NVIDIA driver"),
        (13000, 13020, "update the NVIDIA driver"),
    ],
)
def test_driver_too_old(install, driver, built, fix):
    too_old = raising(CUDARuntimeError(35, "cudaErrorInsufficientDriver"))
    install(working_cupy(driverGetVersion=lambda: driver, runtimeGetVersion=lambda: built, getDeviceCount=too_old))
    supported, needed = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, built))
    assert reason() == (
        f"the NVIDIA driver supports CUDA {supported} and is too old for CuPy 14.2.0, which is built for CUDA "
        f"{needed}; {fix}"
    )


@pytest.mark.parametrize("count", [lambda: 0, raising(CUDARuntimeError(100, "cudaErrorNoDevice"))])
@pytest.mark.parametrize("visible", [None, "", "3"])
def test_no_device(install, monkeypatch, count, visible):
    install(working_cupy(getDeviceCount=count))
    if visible is None:
        expected = "the NVIDIA driver is there but shows no GPU; see whether nvidia-smi lists one"
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        setting = f"CUDA_VISIBLE_DEVICES is {visible!r}; unset CUDA_VISIBLE_DEVICES"
        expected = f"the NVIDIA driver is there but shows no GPU, and {setting}"
    assert reason() == expected


def test_unusable_device(install):
    mismatch = CUDARuntimeError(803, "cudaErrorSystemDriverMismatch: unsupported display driver")
    install(working_cupy(getDeviceCount=raising(mismatch)))
    assert reason().startswith("no usable NVIDIA GPU (CUDARuntimeError: cudaErrorSystemDriverMismatch: unsupported")


@pytest.mark.parametrize(("major", "minor", "fix"), [(6, 1, EXCHANGE), (3, 5, "use another GPU")])
def test_gpu_too_old_for_this_cuda(install, major, minor, fix):
    properties = {"name": b"NVIDIA GTX", "major": major, "minor": minor}
    install(working_cupy(getDeviceProperties=lambda device: properties))
    assert reason() == (
        f"NVIDIA GTX has compute capability {major}.{minor}, and CUDA 13 compiles for 7.5 and newer; {fix}"
    )


@pytest.mark.parametrize(("built", "command"), [(13020, CUDA13), (12090, CUDA12)])
@pytest.mark.parametrize(
    ("broken", "error", "sentence"),
    [
        ("empty", MemoryError("out of memory"), "NVIDIA L4 cannot be used (MemoryError: out of memory)"),
        (
            "RawModule",
            RuntimeError('Failure finding "libnvrtc.so"\n  listdir(...)'),
            'NVIDIA L4 is there, but NVRTC, which compiles the kernels, does not work (RuntimeError: Failure finding "l'
            'ibnvrtc.so")',
        ),
        (
            "matmul",
            ImportError("libcublasLt.so.13"),
            "NVIDIA L4 is there, but cuBLAS, which multiplies matrices, does not work (ImportError: libcublasLt.so.13)",
        ),
    ],
)
def test_library_missing(install, built, command, broken, error, sentence):
    cupy = working_cupy(runtimeGetVersion=lambda: built)
    setattr(cupy, broken, raising(error))
    install(cupy)
    fix = "look at the output of nvidia-smi: the GPU may be full or in use"
    assert reason() == f"{sentence}; {fix if broken == 'empty' else f'install what is missing: {command}'}"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b, out: out.fill(0),
        lambda a, b, out: np.matmul(a, b.T, out=out),
        lambda a, b, out: np.matmul(b, a, out=out),
        lambda a, b, out: out.fill(np.nan),
    ],
)
def test_wrong_product(install, wrong):
    cupy = working_cupy()
    cupy.matmul = wrong
    install(cupy)
    assert "NVIDIA L4 multiplies wrongly: " in reason()
    assert "update the NVIDIA driver" in reason()


def test_a_kernel_that_does_nothing(install):
    """The matrices are the kernel's work: if it does not run, their product is wrong."""
    cupy = working_cupy()
    cupy.empty = np.zeros
    cupy.RawModule = lambda code: SimpleNamespace(get_function=lambda name: lambda *launch: None)
    install(cupy)
    assert "multiplies wrongly" in reason()


def run(source, **environment):
    """Run Python in a process of its own; return what it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", source]
    process = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_import_of_the_probe_imports_no_cupy():
    assert run("import sys, bpgpu.backends.cuda.probe; print('cupy' in sys.modules)") == "False"


# The real CuPy

REQUIRED = "cupy" in os.environ.get("BPGPU_REQUIRE_BACKENDS", "").split(",")
REAL = importlib.util.find_spec("cupy") is not None
needs_cupy = pytest.mark.skipif(not REAL, reason="CuPy is not installed")
needs_stub = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("gcc") is None, reason="the stub driver needs Linux and gcc"
)
PRINT_REASON = """
from bpgpu.backends.cuda.probe import probe
try:
    print("works:", probe())
except Exception as error:
    print(getattr(error, "reason", repr(error)))
"""
# What CUDA's runtime asks of a driver before it counts devices.
STUB_DRIVER = """
#include <string.h>
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned flags) { return INIT; }
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    if (strcmp(name, "cuDriverGetVersion") == 0) *function = (void *)cuDriverGetVersion;
    else if (strcmp(name, "cuInit") == 0) *function = (void *)cuInit;
    else *function = (void *)cuGetProcAddress;
    return 0;
}
"""


@needs_cupy
@needs_stub
@pytest.mark.parametrize(
    ("version", "init", "visible", "expected"),
    [
        (11080, 0, None, "the NVIDIA driver supports CUDA 11.8 and is too old for CuPy "),
        (13000, 100, None, "the NVIDIA driver is there but shows no GPU; see whether nvidia-smi lists one"),
        (13000, 100, "", "shows no GPU, and CUDA_VISIBLE_DEVICES is ''; unset CUDA_VISIBLE_DEVICES"),
        (13000, 999, None, "no usable NVIDIA GPU (CUDARuntimeError: cudaErrorUnknown"),
    ],
)
def test_real_cupy_on_a_stub_driver(tmp_path, version, init, visible, expected):
    (tmp_path / "driver.c").write_text(STUB_DRIVER)
    flags = ["-shared", "-fPIC", f"-DVERSION={version}", f"-DINIT={init}"]
    subprocess.run(["gcc", *flags, "driver.c", "-o", "libcuda.so.1"], cwd=tmp_path, check=True)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert expected in run(PRINT_REASON, LD_LIBRARY_PATH=str(tmp_path), **environment)


@needs_cupy
def test_real_cupy_without_a_module_that_it_imports():
    hidden = "import sys\nsys.modules['cuda.pathfinder'] = None" + PRINT_REASON
    assert run(hidden).startswith("CuPy is installed but cannot be imported (ModuleNotFoundError: ")


@needs_cupy
def test_real_cupy_on_this_machine():
    """With a GPU the probe succeeds; without one it says so, and nothing else escapes."""
    try:
        cupy = cuda_probe.probe()
    except BackendUnavailableError as error:
        assert not REQUIRED, error.reason
    else:
        assert cuda_probe.device_name(cupy)
