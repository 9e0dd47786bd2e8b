"""The part of `numba.cuda` that a backend needs, on the host: device arrays that count what they cost, streams.

    numba_device.install(monkeypatch)       # now `bpgpu.kernels.numba_cuda.kernels` and its `cuda` are simulated
    cuda = numba_device.cuda                # device_array, to_device, stream, ... and what kernels use (numba_sim)

Stricter than Numba: no array becomes a NumPy array or comes from one but by `to_device`, `copy_to_device` and
`copy_to_host`; elements can not be read one by one; what is not listed here is not there. Memory from `device_array`
is poisoned, and reading it in a kernel or copying it to the host before it was written is an error.

`state.counters` counts. With `state.settings.lazy` work on a stream is done when the host waits for it, and pinned
memory is read and written only then.
"""

import contextlib
import ctypes
import importlib
import sys
import warnings
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core.errors import NumbaPerformanceWarning

from tests.simgpu import numba_runner, numba_sim
from tests.simgpu.device import SimulatorError
from tests.simgpu.state import counters, forget_backends, settings

Work = Callable[[], None]


class CudaAPIError(Exception):
    """As of the driver."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"[{code}] {text}")
        self.code = code


class Stream:
    """Work in order; with `settings.lazy` it waits for `synchronize`."""

    def __init__(self, handle: int) -> None:
        self.handle, self._work = handle, deque[Work]()
        self._submitted = self._done = 0

    def __int__(self) -> int:
        return self.handle

    def _submit(self, work: Work) -> None:
        self._work.append(work)
        self._submitted += 1
        if not settings.lazy:
            self._drain()

    def _drain(self, position: int | None = None) -> None:
        """Do all work, or that up to the one with this number."""
        while self._done < (self._submitted if position is None else position):
            self._done += 1
            self._work.popleft()()

    def synchronize(self) -> None:
        counters.synchronisations += 1
        self._drain()

    @contextlib.contextmanager
    def auto_synchronize(self) -> Any:
        yield self
        self.synchronize()


class Event:
    """A place in the work of a stream."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._position = 0

    def record(self, stream: Any = 0) -> None:
        self._stream = _on(stream)
        self._position = self._stream._submitted

    def wait(self, stream: Any = 0) -> None:
        """Let what the stream gets from now on wait."""
        source, position = self._stream, self._position
        if source is not None:
            _on(stream)._submit(lambda: source._drain(position))

    def synchronize(self) -> None:
        counters.synchronisations += 1
        if self._stream is not None:
            self._stream._drain(self._position)


def event(timing: bool = True) -> Event:
    if timing:
        raise NotImplementedError("times are not simulated")
    return Event()


_streams: list[Stream] = []
_pinned: list[np.ndarray[Any, Any]] = []
_used = 0


def _default() -> Stream:
    return _streams[0]


def _on(stream: Any) -> Stream:
    """Return the stream of an argument, of which 0 is the default; that waits for all others, and they for it."""
    if stream == 0 or stream is _default():
        for other in _streams:
            other._drain()
        return _default()
    if not isinstance(stream, Stream):
        raise TypeError(f"a stream is wanted, got {type(stream).__name__}")
    _default()._drain()
    return stream


def _do(stream: Any, work: Work) -> None:
    """Submit work; on the default stream Numba waits for it."""
    on = _on(stream)
    on._submit(work)
    if on is _default():
        counters.synchronisations += 1
        on._drain()


class _Allocation:
    """Bytes of device memory, given back when no array uses them."""

    def __init__(self, nbytes: int) -> None:
        global _used
        if _used + nbytes > settings.capacity:
            raise CudaAPIError(2, "Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")
        _used += nbytes
        counters.allocations += 1
        counters.bytes_allocated += nbytes
        self.data = np.full(nbytes, 0xFF, np.uint8)  # NaN, and -1
        self.written = np.zeros(nbytes, bool)

    def __del__(self) -> None:
        global _used
        if hasattr(self, "data") and not hasattr(self, "owner"):
            _used -= self.data.nbytes


class DeviceNDArray:
    """An array in device memory.

    Attributes
    ----------
    stream
        Of its copies, where they do not say; 0 makes them wait for the host. Views keep it, but for those of `reshape`,
        as in Numba.
    """

    __cuda_ndarray__ = True

    def __init__(self, host: Any, written: Any, allocation: _Allocation, stream: Any) -> None:
        self._host, self._written, self._allocation, self.stream = host, written, allocation, stream

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    strides = property(lambda self: self._host.strides)
    nbytes = property(lambda self: self._host.nbytes)
    alloc_size = property(lambda self: self._host.nbytes)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._host.ctypes.data, False),
            "strides": None if self.is_c_contiguous() else self.strides,
            "stream": int(self.stream) or None,
            "version": 3,
        }

    def __len__(self) -> int:
        return self._host.shape[0]

    def __repr__(self) -> str:
        return f"<simulated device array, shape {self.shape}, {self.dtype}>"

    def is_c_contiguous(self) -> bool:
        return self._host.flags.c_contiguous

    def is_f_contiguous(self) -> bool:
        return self._host.flags.f_contiguous

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a device array becomes a NumPy array by copy_to_host(), not by itself")

    __array_ufunc__ = None  # NumPy's functions and operators refuse it

    def __iter__(self) -> Any:
        raise TypeError("iterating over a device array would copy its elements one by one")

    def __bool__(self) -> bool:
        raise TypeError("the truth value of a device array is not simulated")

    # Views, which cost nothing

    def _view(self, change: Callable[[Any], Any], stream: Any) -> "DeviceNDArray":
        return DeviceNDArray(change(self._host), change(self._written), self._allocation, stream)

    def __getitem__(self, index: Any) -> "DeviceNDArray":
        parts = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(part, slice) for part in parts) or len(parts) > self.ndim:
            raise TypeError("only slices are simulated: an element would be copied to the host, one by one")
        return self._view(lambda array: array[index], self.stream)

    def reshape(self, *shape: Any) -> "DeviceNDArray":
        if not self.is_c_contiguous():
            raise NotImplementedError("operation requires copying")
        return self._view(lambda array: array.reshape(*shape), 0)

    def ravel(self, order: str = "C", stream: Any = 0) -> "DeviceNDArray":
        if order != "C" or not self.is_c_contiguous():
            raise NotImplementedError("operation requires copying")
        return self._view(lambda array: array.reshape(-1), stream or self.stream)

    def view(self, dtype: Any) -> "DeviceNDArray":
        dtype = np.dtype(dtype)
        if dtype.itemsize != self.dtype.itemsize and not self.is_c_contiguous():
            raise ValueError("To change to a dtype of a different size, the array must be C-contiguous")
        host = self._host.view(dtype)
        return DeviceNDArray(host, _flags(self._allocation, host), self._allocation, self.stream)

    def bind(self, stream: Any = 0) -> "DeviceNDArray":
        return DeviceNDArray(self._host, self._written, self._allocation, stream)

    # Copies

    def copy_to_device(self, ary: Any, stream: Any = 0) -> None:
        """Copy from a device array, or to the device from a NumPy array, of this shape and dtype."""
        stream = stream or self.stream
        if not self.is_c_contiguous():
            raise ValueError("Array contains non-contiguous buffer and cannot be transferred as a single memory region")
        if not isinstance(ary, DeviceNDArray | np.ndarray):
            raise TypeError(f"an array is wanted, got {type(ary).__name__}")
        _compatible(self, ary)
        if isinstance(ary, DeviceNDArray):
            if not ary.is_c_contiguous():
                raise ValueError("Array contains non-contiguous buffer")
            counters.launches += 1
            _do(stream, lambda: self._take(ary._host, ary._written))
        else:
            if not ary.flags.c_contiguous:
                raise TypeError("the host array must be C-contiguous: Numba would make a copy first")
            counters.transfers_h2d += 1
            counters.bytes_h2d += ary.nbytes
            source = ary if _is_pinned(ary) else ary.copy()  # the driver stages pageable memory before it returns
            _do(stream, lambda: self._take(source, True))

    def _take(self, values: Any, written: Any) -> None:
        self._host[...] = values
        self._mark(written)

    def _mark(self, written: Any) -> None:
        """Say which elements were written, byte for byte, as they may be looked at as another type."""
        shape, strides = (*self.shape, self.dtype.itemsize), (*self._host.strides, 1)
        flags = np.lib.stride_tricks.as_strided(self._written, shape, strides)
        flags[...] = np.broadcast_to(written, self.shape)[..., None]

    def copy_to_host(self, ary: Any = None, stream: Any = 0) -> Any:
        """Copy to a NumPy array of this shape and dtype, or a new one; with a stream, by and by."""
        stream = stream or self.stream
        if ary is None:
            ary = np.empty(self.shape, self.dtype)
            ary.reshape(-1).view(np.uint8)[...] = 0xFF  # until the copy is made
        if not isinstance(ary, np.ndarray):
            raise TypeError(f"a NumPy array is wanted, got {type(ary).__name__}")
        _compatible(self, ary)
        counters.transfers_d2h += 1
        counters.bytes_d2h += self.nbytes

        def copy() -> None:
            if not self._written.all():
                raise SimulatorError("copy_to_host of memory that was never written")
            ary[...] = self._host

        _do(stream, copy)
        if stream and not _is_pinned(ary):  # it is done when it returns
            stream.synchronize()
        return ary

    def __setitem__(self, index: Any, value: Any) -> None:
        self.setitem(index, value)

    def setitem(self, key: Any, value: Any, stream: Any = 0) -> None:
        """Set to a number or a device array, by a kernel of Numba's."""
        stream = stream or self.stream
        if not isinstance(value, DeviceNDArray | int | float | np.generic):
            raise TypeError(
                f"a number or a device array is wanted, got {type(value).__name__}: Numba would copy it first"
            )
        target = self[key]
        warnings.warn("Grid size 1 will likely result in GPU under-utilization", NumbaPerformanceWarning, stacklevel=2)
        counters.launches += 1
        if isinstance(value, DeviceNDArray):
            if value.dtype != target.dtype or np.broadcast_shapes(value.shape, target.shape) != target.shape:
                raise ValueError(f"can not set {target!r} to {value!r}")
            _do(stream, lambda: target._take(value._host, value._written))
        else:
            counters.transfers_h2d += 1  # the number goes up as an array of one element
            _do(stream, lambda: target._take(value, True))


def _compatible(one: Any, other: Any) -> None:
    if one.dtype != other.dtype:
        raise TypeError(f"incompatible dtype: {one.dtype} vs. {other.dtype}")
    if one.shape != other.shape:
        raise ValueError(f"incompatible shape: {one.shape} vs. {other.shape}")


def _is_pinned(array: Any) -> bool:
    return any(np.may_share_memory(array, pinned) for pinned in _pinned)


def _flags(allocation: _Allocation, host: Any) -> Any:
    """Return the flags of the elements of an array: those of their first bytes."""
    offset = host.ctypes.data - allocation.data.ctypes.data if host.size else 0
    return np.lib.stride_tricks.as_strided(allocation.written[offset:], host.shape, host.strides)


# The functions of the module


def device_array(shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C", stream: Any = 0) -> Any:
    if strides is not None or order != "C":
        raise NotImplementedError("only arrays in C order are simulated")
    shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
    if not all(isinstance(n, int | np.integer) for n in shape):
        raise TypeError(f"shape elements must be integers, got {shape}")
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    allocation = _Allocation(nbytes)
    host = allocation.data.view(dtype).reshape(shape)
    return DeviceNDArray(host, _flags(allocation, host), allocation, stream)


def device_array_like(ary: Any, stream: Any = 0) -> Any:
    return device_array(ary.shape, ary.dtype, stream=stream)


def to_device(obj: Any, stream: Any = 0, copy: bool = True, to: Any = None) -> Any:
    if not isinstance(obj, np.ndarray) or not copy:
        raise TypeError(f"only NumPy arrays are copied to the device here, got {type(obj).__name__}")
    to = device_array_like(obj, stream=stream) if to is None else to
    to.copy_to_device(obj, stream=stream)
    return to


def pinned_array(shape: Any, dtype: Any = np.float64, strides: Any = None, order: str = "C") -> Any:
    if strides is not None or order != "C":
        raise NotImplementedError("only arrays in C order are simulated")
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    counters.pinned_allocations += 1
    _pinned.append(array)
    return array


def stream() -> Stream:
    made = Stream(0x5000 + 16 * len(_streams))
    _streams.append(made)
    return made


def synchronize() -> None:
    counters.synchronisations += 1
    for each in _streams:
        each._drain()


def is_available() -> bool:
    return True


def is_cuda_array(obj: Any) -> bool:
    return hasattr(obj, "__cuda_array_interface__")


def as_cuda_array(obj: Any, sync: bool = True) -> DeviceNDArray:
    """Return a device array on the memory of another library's, whose stream the host waits for."""
    interface = obj.__cuda_array_interface__
    if interface.get("stream") and hasattr(obj, "synchronize"):
        obj.synchronize()
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides") or np.empty(shape, dtype).strides
    extent = int(np.dot(np.array(shape) - 1, strides)) + dtype.itemsize if 0 not in shape else 0
    memory = np.frombuffer((ctypes.c_ubyte * extent).from_address(interface["data"][0]), np.uint8)
    allocation: _Allocation = object.__new__(_Allocation)
    allocation.data, allocation.written, allocation.owner = memory, np.ones(extent, bool), obj  # type: ignore[attr-defined]
    host = np.ndarray(shape, dtype, memory, strides=strides)
    return DeviceNDArray(host, _flags(allocation, host), allocation, 0)


class _Device:
    id, name, compute_capability = 0, b"simulated GPU", (8, 9)
    uuid = "GPU-00000000-0000-0000-0000-000000000000"
    MULTIPROCESSOR_COUNT, MAX_THREADS_PER_BLOCK, WARP_SIZE = 4, 1024, 32


def get_current_device() -> _Device:
    return _Device()


class _Gpus(list):  # type: ignore[type-arg]
    lst = property(lambda self: self)


def _context(devnum: Any = None) -> Any:
    return SimpleNamespace(
        device=_Device(),
        deallocations=SimpleNamespace(clear=lambda: None),
        get_memory_info=lambda: SimpleNamespace(free=settings.capacity - _used, total=settings.capacity),
    )


def reset() -> None:
    """Forget streams, pinned memory and counts; device memory that is in use stays so."""
    _streams[:] = [Stream(0)]
    _pinned.clear()
    counters.reset()
    settings.reset()


reset()


class _Module:
    """`numba.cuda`: what kernels use, as `numba_sim` has it, and the functions here."""

    def __init__(self) -> None:
        here = (device_array, device_array_like, to_device, pinned_array, stream, synchronize, is_available, event)
        for function in (*here, is_cuda_array, as_cuda_array, get_current_device):
            setattr(self, function.__name__, function)
        self.default_stream, self.current_context, self.gpus = _default, _context, _Gpus([_Device()])
        self.driver = SimpleNamespace(CudaAPIError=CudaAPIError)

    def __getattr__(self, name: str) -> Any:
        if name in ("jit", "races", "shared", "local", "atomic", "syncthreads"):
            return getattr(numba_sim.cuda, name)
        raise AttributeError(f"numba.cuda.{name} is not simulated")


cuda = _Module()


def _submit(stream: Any, name: str, work: Work) -> None:
    counters.launches += 1
    counters.log.append(name)
    _on(stream)._submit(work)


def install(monkeypatch: Any, threads: int = 64) -> Any:
    """Put the simulation in the place of Numba's CUDA, wherever bpgpu gets it from; return the kernels' module.

    With 64 `threads` in a block instead of the 256 of a real device it is three times quicker.
    """
    reset()
    forget_backends(monkeypatch)  # none of this device may outlive the test
    package = importlib.import_module("bpgpu.kernels.numba_cuda")
    shim = SimpleNamespace(cuda=cuda, math=numba_sim.math)
    kernels = numba_runner.load(threads=threads)
    monkeypatch.setattr(numba_sim.cuda, "submit", _submit)
    for name, module in (("library", shim), ("kernels", kernels)):
        monkeypatch.setitem(sys.modules, f"bpgpu.kernels.numba_cuda.{name}", module)
        monkeypatch.setattr(package, name, module, raising=False)
    return kernels
