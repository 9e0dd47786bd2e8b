"""Backpropagation on an NVIDIA GPU through Numba-CUDA: kernels in Python, with neither CuPy nor cuBLAS."""

import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from bpgpu.backends import sums
from bpgpu.backends.cuda.backend import CudaBackend
from bpgpu.backends.cuda.numba_launch import Launcher
from bpgpu.backends.cuda.steps import Steps
from bpgpu.backends.numpy_backend import NumpyBackend
from bpgpu.errors import BackendUnavailableError
from bpgpu.interop import dense, on_gpu, same_kind
from bpgpu.model.activations import IDENTITY
from bpgpu.model.optimizers import Optimizer

Array = Any
_DRIVER = "there is no NVIDIA driver; install one: https://www.nvidia.com/drivers"
_INSTALL = 'pip install "bpgpu[cuda13]", or "bpgpu[cuda12]" if the NVIDIA driver is older than 580'


class NumbaMemory:
    """The device's memory through Numba; see `bpgpu.backends.cuda.device.Memory`."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        # Numba's streams are blocking ones: in order with whatever runs on the default stream.
        self.stream = cuda.stream()

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()  # arrays know their stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        try:
            return self.cuda.device_array(shape, dtype=dtype, stream=self.stream)
        except Exception as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            what = f"an array of shape {shape} takes {nbytes / 2**20:.1f} MiB, which the device has not"
            raise MemoryError(f"{what}; take fewer rows at a time") from error

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.cuda.pinned_array(nbytes, dtype=np.uint8)
        return array

    def upload(self, target: Array, source: np.ndarray[Any, Any], stream: Any = None) -> None:
        if target.size:
            target.copy_to_device(source, stream=stream or self.stream)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        if not array.size:
            return np.empty(array.shape, array.dtype)
        host: np.ndarray[Any, Any] = array.copy_to_host(
            stream=self.stream
        )  # to memory that is not page-locked: it waits
        return host

    def new_stream(self) -> Any:
        return self.cuda.stream()

    def new_event(self) -> Any:
        return self.cuda.event(timing=False)

    def wait(self, stream: Any, event: Any) -> None:
        event.wait(stream)


class NumbaCudaBackend(CudaBackend):
    """The GPU backend with no C++ and no CuPy: to read, to learn from, to try a kernel in.

    Its arrays are Numba's device arrays, which have no arithmetic: a loop of one's own changes the weights through
    `update`. A launch costs the host several times what it costs `CupyBackend`.

    Raises
    ------
    BackendUnavailableError
        If Numba, a driver, a device or the compiler is missing; with the fix.
    """

    name = "numba-cuda"

    def __init__(self) -> None:
        self.cuda, kernels = _import()
        memory = NumbaMemory(self.cuda)
        self.device = _device_name(self.cuda)
        self._start(memory, Steps(Launcher(kernels, self.cuda, memory.stream), "fused"))
        self._prove()

    def _prove(self) -> None:
        """Multiply two matrices by the kernel that training uses; products of small whole numbers are exact."""
        a, W = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
        try:
            out = self.empty((4, 4), a.dtype)
            self.forward(self.asarray(a, a.dtype), self.asarray(W, a.dtype), None, IDENTITY, out=out)
            found = self.to_numpy(out)
        except Exception as error:
            raise _unavailable(
                f"{self.device} is there, but its kernels cannot be compiled or run ({_text(error)}); {_INSTALL}"
            ) from error
        if not np.array_equal(found, a @ W):
            raise _unavailable(f"{self.device} multiplies wrongly; update the NVIDIA driver, and test the GPU's memory")

    # Memory

    def asarray(self, array: Any, dtype: np.dtype[Any]) -> Array:
        if on_gpu(array):
            array = self.adopt("array", array)
            if not array.is_c_contiguous():
                strided, array = array, self.memory.empty(array.shape, array.dtype)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of Numba, that the copy of few elements leaves a GPU idle
                    array[:] = strided
            if array.dtype == dtype:
                return array
            array = self.memory.download(array)
        host = np.ascontiguousarray(dense(array), dtype=dtype)
        target = self.memory.empty(host.shape, dtype)
        self.memory.upload(target, host)
        return target

    def free_memory(self) -> int | None:
        context = self.cuda.current_context()
        context.deallocations.clear()  # Numba gives memory back by and by
        return int(context.get_memory_info().free)

    def adopt(self, name: str, value: Any) -> Any:
        if not on_gpu(value) or hasattr(value, "copy_to_host"):
            return value
        if hasattr(value, "__cuda_array_interface__"):
            return self.cuda.as_cuda_array(value)  # waits for the stream that the array names
        return self.cuda.as_cuda_array(_Interface(value, self.memory.stream))

    def hand_back(self, array: Array, like: Any) -> Any:
        if not on_gpu(like):
            return same_kind(self.to_numpy(array), like)
        public = array.bind(0)  # whose copies wait for the host, as those of any other do
        return public if hasattr(like, "copy_to_host") else same_kind(public, like)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        self.cuda.synchronize()  # Numba has no current stream, so nothing says on which the caller works
        try:
            yield
        finally:
            self.synchronize()

    def assign(self, target: Array, value: Array | float) -> None:
        # Not by item: Numba would compile a kernel for it, and warn of its small grid.
        if not hasattr(value, "copy_to_host"):
            self.memory.upload(target, np.full(target.shape, value, target.dtype))
        elif target.size:
            target.copy_to_device(value, stream=self.memory.stream)

    def dot(self, x: Array, y: Array) -> float:
        return sums.dot(np, self.to_numpy(x), self.to_numpy(y))

    def all_finite(self, array: Array) -> bool:
        return bool(np.isfinite(self.to_numpy(array)).all())

    def update(
        self,
        rule: Optimizer,
        parameters: Array,
        gradients: Array,
        state: list[Array],
        *,
        t: int,
        learning_rate: float,
        n_weights: int,
    ) -> None:
        if not isinstance(rule, Optimizer) or rule.compiled is not None:
            super().update(rule, parameters, gradients, state, t=t, learning_rate=learning_rate, n_weights=n_weights)
            return
        # `apply` is written in NumPy's operations, which Numba's device arrays lack.
        arrays = [parameters, gradients, *state]
        p, g, *s = hosts = [self.to_numpy(array) for array in arrays]
        NumpyBackend().update(rule, p, g, s, t=t, learning_rate=learning_rate, n_weights=n_weights)
        for array, host in zip(arrays, hosts, strict=True):
            self.memory.upload(array, host)


class _Interface:
    """``__cuda_array_interface__`` for an array that has only DLPack."""

    def __init__(self, array: Any, stream: Any) -> None:
        memory = importlib.import_module("cuda.core.utils").StridedMemoryView.from_dlpack(array, stream_ptr=int(stream))
        self._keeps = memory
        itemsize = memory.dtype.itemsize
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": tuple(memory.shape),
            "typestr": memory.dtype.str,
            "data": (memory.ptr, memory.readonly),
            "strides": memory.strides and tuple(stride * itemsize for stride in memory.strides),
            "stream": None,
        }


def _import() -> tuple[Any, Any]:
    """Return Numba's CUDA, with a device that is in use, and the kernels."""
    try:
        kernels = importlib.import_module("bpgpu.kernels.numba_cuda.kernels")
        cuda = importlib.import_module("bpgpu.kernels.numba_cuda.library").cuda
    except Exception as error:
        raise _unavailable(f"Numba's CUDA cannot be imported ({_text(error)}); {_INSTALL}") from error
    try:
        cuda.current_context()
    except Exception as error:
        if "driver library cannot be found" in str(error):
            raise _unavailable(_DRIVER) from error
        raise _unavailable(f"no usable NVIDIA GPU ({_text(error)}); look at the output of nvidia-smi") from error
    return cuda, kernels


def _device_name(cuda: Any) -> str:
    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else str(name)


def _text(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" :")]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


def _unavailable(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError("numba-cuda", reason)
