"""Backpropagation on an NVIDIA GPU through CuPy: cuBLAS or our own fused GEMM, and CUDA C++ kernels for the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bpgpu.backends import sums
from bpgpu.backends.cuda import probe as cuda_probe
from bpgpu.backends.cuda.backend import CudaBackend
from bpgpu.backends.cuda.launch import Launcher
from bpgpu.backends.cuda.steps import Gemm, Steps
from bpgpu.interop import dense, on_gpu, same_kind

Array = Any


class CupyMemory:
    """The device's memory through CuPy; see `bpgpu.backends.cuda.device.Memory`."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        # A blocking stream: whatever a user runs on CuPy's default stream comes after our work and before the next.
        self.stream = cupy.cuda.Stream()

    def current(self) -> Any:
        return self.stream

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self.stream:
            return self.cupy.empty(shape, dtype=dtype)

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(nbytes), dtype=np.uint8, count=nbytes)

    def upload(self, target: Array, source: np.ndarray[Any, Any], stream: Any = None) -> None:
        target.set(source, stream=stream or self.stream)

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        with self.stream:
            host: np.ndarray[Any, Any] = self.cupy.asnumpy(array)
        return host

    def new_stream(self) -> Any:
        return self.cupy.cuda.Stream(non_blocking=True)

    def new_event(self) -> Any:
        return self.cupy.cuda.Event(disable_timing=True)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)


class CupyBackend(CudaBackend):
    """The production GPU backend.

    Parameters
    ----------
    gemm : {"auto", "cublas", "fused"}
        Which matrix product: cuBLAS, our own with bias, sigma and sigma' inside it, or by the size of the product.
    allow_tf32 : bool
        Let cuBLAS round the factors of float32 products to TF32 (10 bits of mantissa) for speed, on devices that can.
    graph : bool
        Capture the step of a full batch once, as a CUDA graph, and replay it: one call from the host for all of its
        kernels, with the same result to the bit. Takes the fused GEMM for every product, as CuPy cannot capture
        cuBLAS; an optimizer that is written as `apply` runs without graphs. Off by default, because no hardware has run
        it yet.

    Raises
    ------
    ValueError
        If graphs are to be made of cuBLAS.
    BackendUnavailableError
        If CuPy, a driver, a device, NVRTC or cuBLAS is missing; with the fix.
    """

    name = "cupy"

    def __init__(self, *, gemm: Gemm = "auto", allow_tf32: bool = False, graph: bool = False) -> None:
        if graph and gemm == "cublas":
            raise ValueError("graph=True needs the fused GEMM, for CuPy cannot capture cuBLAS; drop gemm='cublas'")
        self.xp = cuda_probe.probe()
        self.device = cuda_probe.device_name(self.xp)
        runtime = self.xp.cuda.runtime
        allow_tf32 = allow_tf32 and runtime.getDeviceProperties(runtime.getDevice())["major"] >= 8
        steps = Steps(Launcher(self.xp), "fused" if graph else gemm, self.xp, allow_tf32)
        # Not blocking, or whatever runs on the default stream during a capture would break it.
        self.capture = self.xp.cuda.Stream(non_blocking=True) if graph else None
        self._foreign = False
        self._start(CupyMemory(self.xp), steps)

    # Memory

    def asarray(self, array: Any, dtype: np.dtype[Any]) -> Array:
        with self.memory.stream:
            if on_gpu(array):
                return self.xp.ascontiguousarray(self.adopt("array", array), dtype=dtype)
            return self.xp.asarray(np.ascontiguousarray(dense(array), dtype=dtype))

    def free_memory(self) -> int | None:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        pool = self.xp.get_default_memory_pool()
        available = int(free) + int(pool.free_bytes())
        limit = int(pool.get_limit())  # 0 if there is none
        return min(available, limit - int(pool.used_bytes())) if limit else available

    def adopt(self, name: str, value: Any) -> Any:
        if not on_gpu(value) or isinstance(value, self.xp.ndarray):
            return value
        self._foreign = True
        with self.memory.stream:  # what the array's library has under way comes before what this stream does next
            return self.xp.from_dlpack(value) if hasattr(value, "__dlpack__") else self.xp.asarray(value)

    def hand_back(self, array: Array, like: Any) -> Any:
        return same_kind(array if on_gpu(like) else self.to_numpy(array), like)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        caller = self.xp.cuda.get_current_stream()
        if caller == self.memory.stream:
            yield
            return
        self.memory.stream.wait_event(caller.record())
        try:
            with self.memory.stream:
                yield
        finally:
            caller.wait_event(self.memory.stream.record())
            if self._foreign:  # another library may use its memory again as soon as this returns
                self._foreign = False
                self.memory.stream.synchronize()

    def assign(self, target: Array, value: Array | float) -> None:
        with self.memory.current():
            target[...] = value

    def dot(self, x: Array, y: Array) -> float:
        with self.memory.current():
            return sums.dot(self.xp, x, y)

    def all_finite(self, array: Array) -> bool:
        with self.memory.current():
            return bool(self.xp.isfinite(array).all())
