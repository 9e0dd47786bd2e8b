"""Whether CuPy can train here, found out by trying: a kernel is compiled, two matrices are multiplied.

That CuPy imports proves nothing, and neither does a device: CuPy's wheels hold neither NVRTC nor cuBLAS, so the first
kernel or the first product may be what fails. Each cause has its own sentence, with what mends it.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from bpgpu.errors import BackendUnavailableError

# Fills a matrix with 0, 1, 2 ...: products of small whole numbers are exact, in TF32 too.
_KERNEL = 'extern "C" __global__ void bpgpu_probe(float* x) { x[threadIdx.x] = threadIdx.x; }'
_SIDE = 4
_NO_DEVICE, _INSUFFICIENT_DRIVER = 100, 35  # values of cudaError_t
# The oldest GPU that a major version of CUDA compiles for: compute capability times ten.
_OLDEST_GPU = {12: 50, 13: 75}


def probe() -> Any:
    """Return the module cupy, proved on the current device.

    Raises
    ------
    BackendUnavailableError
        With the cause and the command that mends it.
    """
    cupy = _import()
    _check_device(cupy)
    device = device_name(cupy)
    with _reporting(f"{device} cannot be used", "look at the output of nvidia-smi: the GPU may be full or in use"):
        x = cupy.empty(2 * _SIDE**2, np.float32)
        product = cupy.empty((_SIDE, _SIDE), np.float32)
    install = _install(_cuda(cupy) // 1000)
    with _reporting(f"{device} is there, but NVRTC, which compiles the kernels, does not work", install):
        kernel = cupy.RawModule(code=_KERNEL).get_function("bpgpu_probe")
        kernel((1,), (x.size,), (x,))
    a, b = (part.reshape(_SIDE, _SIDE) for part in (x[: _SIDE**2], x[_SIDE**2 :]))
    with _reporting(f"{device} is there, but cuBLAS, which multiplies matrices, does not work", install):
        cupy.matmul(a, b, out=product)
        found = cupy.asnumpy(product)
    a, b = np.arange(x.size, dtype=np.float32).reshape(2, _SIDE, _SIDE)
    if not np.array_equal(found, a @ b):
        raise _unavailable(
            f"{device} multiplies wrongly: {found[0].tolist()} instead of {(a @ b)[0].tolist()} in the first row of a "
            "product; update the NVIDIA driver, and test the GPU's memory"
        )
    return cupy


def device_name(cupy: Any) -> str:
    """Return the name of the current device, such as "NVIDIA H100 80GB HBM3"."""
    name = _properties(cupy)["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _import() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":  # CuPy is there, and something that it imports is not
            raise _import_failed(error) from error
        raise _unavailable(
            f"CuPy is not installed; {_command(13)}, or {_command(12)} if the NVIDIA driver is older than 580"
        ) from error
    except Exception as error:
        raise _import_failed(error) from error


def _check_device(cupy: Any) -> None:
    """Look for a driver, new enough, with a device that this CUDA compiles for."""
    runtime, built = cupy.cuda.runtime, _cuda(cupy)
    driver = runtime.driverGetVersion()
    if driver == 0:
        raise _unavailable("there is no NVIDIA driver; install one: https://www.nvidia.com/drivers")
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status == _INSUFFICIENT_DRIVER:
            raise _driver_too_old(cupy, driver) from error
        if error.status != _NO_DEVICE:
            raise _unavailable(f"no usable NVIDIA GPU ({_text(error)}); look at the output of nvidia-smi") from error
        count = 0
    if count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = "see whether nvidia-smi lists one" if visible is None else "unset CUDA_VISIBLE_DEVICES"
        setting = "" if visible is None else f", and CUDA_VISIBLE_DEVICES is {visible!r}"
        raise _unavailable(f"the NVIDIA driver is there but shows no GPU{setting}; {fix}")
    properties = _properties(cupy)
    capability = 10 * properties["major"] + properties["minor"]
    oldest = _OLDEST_GPU.get(built // 1000, 0)
    if capability < oldest:
        fix = _exchange(built // 1000, 12) if capability >= _OLDEST_GPU[12] else "use another GPU"
        raise _unavailable(
            f"{device_name(cupy)} has compute capability {capability / 10}, and CUDA {built // 1000} compiles for "
            f"{oldest / 10} and newer; {fix}"
        )


def _driver_too_old(cupy: Any, driver: int) -> BackendUnavailableError:
    built = _cuda(cupy)
    fix = "update the NVIDIA driver"
    if driver // 1000 == 12 < built // 1000:
        fix += f", or take CuPy for CUDA 12: {_exchange(built // 1000, 12)}"
    return _unavailable(
        f"the NVIDIA driver supports CUDA {_version(driver)} and is too old for CuPy {cupy.__version__}, which is "
        f"built for CUDA {_version(built)}; {fix}"
    )


def _properties(cupy: Any) -> Any:
    runtime = cupy.cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())


def _cuda(cupy: Any) -> int:
    """Return the version of CUDA that CuPy is built for: 13020 is 13.2."""
    return int(cupy.cuda.runtime.runtimeGetVersion())


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _command(cuda_major: int) -> str:
    return f'pip install "bpgpu[cuda{cuda_major}]"'


def _install(cuda_major: int) -> str:
    return f"install what is missing: {_command(cuda_major)}"


def _exchange(present: int, wanted: int) -> str:
    # Both wheels install the same files, so the one must go first.
    return f"pip uninstall cupy-cuda{present}x, then {_command(wanted)}"


def _text(error: BaseException) -> str:
    """Return class and first line of the first error in a chain; CuPy wraps it in advice and lists of folders."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _import_failed(error: Exception) -> BackendUnavailableError:
    fix = f"remove every cupy package that pip list shows, then {_command(13)}"
    return _unavailable(f"CuPy is installed but cannot be imported ({_text(error)}); {fix}")


@contextlib.contextmanager
def _reporting(sentence: str, fix: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _unavailable(f"{sentence} ({_text(error)}); {fix}") from error


def _unavailable(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError("cupy", reason)
