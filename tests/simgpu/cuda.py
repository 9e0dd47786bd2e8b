"""Simulated `cupy.cuda`: memory with a capacity, streams, events, graphs and the runtime.

A stream is a queue of functions. They run at once, or only when somebody waits if ``settings.lazy``; while a stream
captures, they are kept for the graph.
"""

import ctypes
import functools
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.simgpu.state import counters, settings

Work = Callable[[], None]

# Errors

_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS[status])


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


# Memory

_UNIT = 512  # bytes to which CuPy's pool aligns and rounds


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _UNIT) * _UNIT


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _allocate(nbytes: int, release: Callable[[int, int], None]) -> np.ndarray[Any, Any]:
    """Return poisoned memory that is given back with the last array that uses it."""
    # posix_memalign, not np.empty: aligned, and of just this size, so that AddressSanitizer sees one byte too many.
    pointer, size = ctypes.c_void_p(), max(nbytes, 1)
    if _libc().posix_memalign(ctypes.byref(pointer), ctypes.c_size_t(_UNIT), ctypes.c_size_t(size)):
        raise MemoryError("no host memory for the simulated device")
    address = pointer.value or 0
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, release, address, nbytes)
    array = np.frombuffer(memory, dtype=np.uint8)[:nbytes]
    array[:] = 0xFF  # NaN: nobody may rely on fresh memory
    return array


class MemoryPool:
    """The pool keeps what is given back, as CuPy's does; so what the driver calls free only shrinks."""

    def __init__(self) -> None:
        self._used = self._total = self._limit = 0

    def _allocate(self, nbytes: int) -> np.ndarray[Any, Any]:
        if self._used + _rounded(nbytes) > min(settings.capacity, self._limit or settings.capacity):
            raise OutOfMemoryError(nbytes, self._used)
        array = _allocate(nbytes, self._release)
        self._used += _rounded(nbytes)
        self._total = max(self._total, self._used)
        counters.allocations += 1
        counters.bytes_allocated += nbytes
        return array

    def _release(self, address: int, nbytes: int) -> None:
        _libc().free(ctypes.c_void_p(address))
        self._used -= _rounded(nbytes)

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = size or 0

    def get_limit(self) -> int:
        return self._limit

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def free_all_blocks(self) -> None:
        self._total = self._used


_pool = MemoryPool()


class MemoryPointer:
    ptr: int

    def __int__(self) -> int:
        return self.ptr


def _pointer(address: int) -> MemoryPointer:
    pointer = MemoryPointer()
    pointer.ptr = address
    return pointer


class PinnedMemoryPointer(bytearray):
    """Page-locked host memory: a copy from it is asynchronous, so it must not be overwritten too early."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof((ctypes.c_ubyte * len(self)).from_buffer(self))


_pinned: dict[int, int] = {}  # first address: length


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Return host memory; as CuPy's it may be larger than was asked for."""
    counters.pinned_allocations += 1
    memory = PinnedMemoryPointer(b"\xff" * max(_rounded(size), _UNIT))
    _pinned[memory.ptr] = len(memory)
    weakref.finalize(memory, _pinned.pop, memory.ptr)
    return memory


def _is_pinned(array: np.ndarray[Any, Any]) -> bool:
    start = array.ctypes.data
    return any(first <= start and start + array.nbytes <= first + length for first, length in _pinned.items())


# Streams


class Stream:
    """A queue of work; stream 0, the legacy default stream, waits for all blocking streams first."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else _next_pointer()
        self.device_id = -1 if null else 0
        self.is_non_blocking = non_blocking
        self._pending: deque[Work] = deque()
        self._submitted = self._done = 0
        self._captured: list[Work] | None = None
        _streams.setdefault(self.ptr, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __enter__(self) -> "Stream":
        _stack.append(self)
        return self

    def __exit__(self, *args: Any) -> None:
        _stack.pop()

    def use(self) -> "Stream":
        _stack[-1] = self
        return self

    @property
    def done(self) -> bool:
        return not self._pending

    def synchronize(self) -> None:
        self._wait_on_host()

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        source, position = event._recorded
        if source is not None:
            self._submit(lambda: source._drain(position))

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._captured is not None:
            raise CUDARuntimeError(1)
        self._captured = []

    def end_capture(self) -> "Graph":
        if self._captured is None:
            raise CUDARuntimeError(1)
        work, self._captured = self._captured, None
        graph: Graph = object.__new__(Graph)
        graph._work = work
        return graph

    def is_capturing(self) -> bool:
        return self._captured is not None

    # Of the simulation

    def _submit(self, work: Work) -> None:
        if self._captured is not None:
            self._captured.append(work)
            return
        if self.ptr == 0:
            self._wait_for_blocking_streams()
        self._pending.append(work)
        self._submitted += 1
        if self.ptr == 0 or not settings.lazy:
            self._drain(self._submitted)

    def _drain(self, position: int) -> None:
        """Do the work up to the one with this number."""
        while self._done < position:
            self._done += 1
            self._pending.popleft()()

    def _wait_for_blocking_streams(self) -> None:
        for stream in list(_streams.values()):
            if not stream.is_non_blocking and stream is not self:
                if stream.is_capturing():
                    raise CUDARuntimeError(906)
                stream._drain(stream._submitted)

    def _wait_on_host(self) -> None:
        if self._captured is not None:
            raise CUDARuntimeError(900)
        counters.synchronisations += 1
        if self.ptr == 0:
            self._wait_for_blocking_streams()
        self._drain(self._submitted)


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self._timed = not disable_timing
        self._time = 0.0
        self._recorded: tuple[Stream | None, int] = (None, 0)

    @property
    def done(self) -> bool:
        stream, position = self._recorded
        return stream is None or stream._done >= position

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        if stream.is_capturing():
            raise NotImplementedError("events of a capturing stream are not simulated")
        stream._submit(self._take_time)
        self._recorded = (stream, stream._submitted)

    def synchronize(self) -> None:
        stream, position = self._recorded
        counters.synchronisations += 1
        if stream is not None:
            stream._drain(position)

    def _take_time(self) -> None:
        self._time = time.perf_counter()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return milliseconds, of the simulation and not of any device."""
    if not (start_event._timed and end_event._timed and start_event.done and end_event.done):
        raise CUDARuntimeError(400)
    return 1e3 * (end_event._time - start_event._time)


class Graph:
    """Captured work, to be launched again and again on the arrays that were captured."""

    _work: list[Work]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    def launch(self, stream: Stream | None = None) -> None:
        counters.graph_launches += 1
        (stream or get_current_stream())._submit(lambda: [work() for work in self._work] and None)

    def upload(self, stream: Stream | None = None) -> None:
        """Do nothing: there is nowhere to go."""


_streams: dict[int, Stream] = {}
_stack: list[Stream] = []


def _next_pointer() -> int:
    return 0x5000 + 16 * len(_streams)


def get_current_stream(device_id: int = -1) -> Stream:
    return _stack[-1]


def _stream_at(pointer: int) -> Stream:
    if pointer not in _streams:
        raise CUDARuntimeError(400)
    return _streams[pointer]


def _reset() -> None:
    """Forget all streams, and what the pool keeps; arrays that are alive stay so."""
    _streams.clear()
    _stack[:] = [Stream(null=True)]
    Stream.null = _stack[0]  # type: ignore[attr-defined]
    _pool.free_all_blocks()
    _pool.set_limit()


_reset()


# Device and runtime


class Device:
    id = 0
    compute_capability = "89"

    def __init__(self, device: int | None = None) -> None:
        if device not in (None, 0):
            raise CUDARuntimeError(101)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def __int__(self) -> int:
        return self.id

    def use(self) -> "Device":
        return self

    @property
    def mem_info(self) -> tuple[int, int]:
        return runtime.memGetInfo()

    def synchronize(self) -> None:
        runtime.deviceSynchronize()


def _device_synchronize() -> None:
    if any(stream.is_capturing() for stream in _streams.values()):
        raise CUDARuntimeError(900)
    counters.synchronisations += 1
    for stream in _streams.values():
        stream._drain(stream._submitted)


def _properties(device: int) -> dict[str, Any]:
    Device(device)
    return {
        "name": b"simulated GPU",
        "major": 8,
        "minor": 9,
        "totalGlobalMem": settings.capacity,
        "multiProcessorCount": 4,
        "warpSize": 32,
        "sharedMemPerBlock": 49152,
        "maxThreadsPerBlock": 1024,
    }


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    driverGetVersion=lambda: 13020,
    runtimeGetVersion=lambda: 13020,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    getDeviceProperties=_properties,
    memGetInfo=lambda: (settings.capacity - _pool._total, settings.capacity),
    deviceSynchronize=_device_synchronize,
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
)
memory = SimpleNamespace(OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool, MemoryPointer=MemoryPointer)


def is_available() -> bool:
    return True
