"""The stand-in for CuPy on trial: order of work, graphs, raw kernels, and exchange with other libraries."""

import numpy as np
import pytest

from tests.simgpu import device

if not device.available():
    pytest.skip("kernels are simulated on Linux with g++ only", allow_module_level=True)

from tests.simgpu import cuda
from tests.simgpu import cupy as module

KERNEL = 'extern "C" __global__ void add_to(float* x, float by, int n) { if (threadIdx.x < n) x[threadIdx.x] += by; }'


@pytest.fixture
def cp(monkeypatch):
    yield module.install(monkeypatch)
    cuda._reset()


def add_to(cp):
    return cp.RawModule(code=KERNEL).get_function("add_to")


# Streams

LAZY_AND_NOT = pytest.mark.parametrize("lazy", [False, True])


def test_current_stream(cp):
    null, a, b = cp.cuda.get_current_stream(), cp.cuda.Stream(non_blocking=True), cp.cuda.Stream()
    assert null.ptr == 0 and null == cp.cuda.Stream.null and len({null.ptr, a.ptr, b.ptr}) == 3
    with a:
        assert cp.cuda.get_current_stream() is a
        with b:
            assert cp.cuda.get_current_stream() is b
        assert cp.cuda.get_current_stream() is a
    assert cp.cuda.get_current_stream() is null
    b.use()
    assert cp.cuda.get_current_stream() is b


@LAZY_AND_NOT
@pytest.mark.parametrize("waits", [False, True])
def test_a_stream_sees_the_work_of_another_only_after_waiting(cp, lazy, waits):
    cp.settings.lazy = lazy
    writer, reader = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with writer:
        x = cp.ones(3)
        event = writer.record()
        x += 1
    with reader:
        if waits:
            reader.wait_event(event)
        seen = x.get()
    assert np.isnan(seen).all() if lazy and not waits else (seen == (1 if lazy else 2)).all()
    writer.synchronize()
    assert (x.get(stream=reader) == 2).all() and event.done and writer.done


def test_a_copy_that_does_not_wait_is_there_only_after_waiting(cp):
    cp.settings.lazy = True
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        host = cp.ones(3).get(blocking=False)
        assert np.isnan(host).all()
        stream.synchronize()
    assert (host == 1).all()


@LAZY_AND_NOT
def test_pinned_memory_overwritten_too_early(cp, lazy):
    cp.settings.lazy = lazy
    pinned = np.frombuffer(cp.cuda.alloc_pinned_memory(24), np.float64, 3)
    pageable = np.empty(3)
    with cp.cuda.Stream(non_blocking=True):
        x, y = cp.empty(3), cp.empty(3)
        for host, target in ((pinned, x), (pageable, y)):
            host[:] = 1
            target.set(host)
            host[:] = 2
        assert (x.get() == (2 if lazy else 1)).all()
        assert (y.get() == 1).all()  # the driver has read it before `set` returns


def test_the_default_stream_waits_for_blocking_streams_only(cp):
    cp.settings.lazy = True
    for non_blocking in (False, True):
        with cp.cuda.Stream(non_blocking=non_blocking):
            x = cp.ones(3)
        assert np.isnan(x.get()).all() == non_blocking


def test_events_measure_time(cp):
    start, stop = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    stop.record()
    assert cp.cuda.get_elapsed_time(start, stop) >= 0
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        cp.cuda.get_elapsed_time(start, cp.cuda.Event(disable_timing=True))


# Graphs


@LAZY_AND_NOT
def test_captured_kernels_run_when_the_graph_is_launched(cp, lazy):
    cp.settings.lazy = lazy
    stream, kernel = cp.cuda.Stream(non_blocking=True), add_to(cp)
    with stream:
        x = cp.zeros(3, np.float32)
        stream.begin_capture()
        assert stream.is_capturing()
        for by in (1, 10):
            kernel((1,), (32,), (x, np.float32(by), np.int32(3)))
        graph = stream.end_capture()
        assert not stream.is_capturing()
        assert (x.get() == 0).all()
        cp.counters.reset()
        graph.launch()
        graph.launch(stream=stream)
        assert (cp.counters.graph_launches, cp.counters.launches) == (2, 0)
        assert (x.get() == 22).all()


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda cp, s, x: cp.matmul(x, x, out=x), NotImplementedError, "calling cuBLAS API during stream capture"),
        (lambda cp, s, x: x.get(), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: x.get(blocking=False), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: float(x[0, 0]), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: cp.asarray(np.zeros(3)), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: s.synchronize(), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: cp.cuda.Device().synchronize(), RuntimeError, "StreamCaptureUnsupported"),
        (lambda cp, s, x: s.record(), NotImplementedError, "not simulated"),
        (lambda cp, s, x: s.begin_capture(), RuntimeError, "InvalidValue"),
    ],
)
def test_what_a_capturing_stream_refuses(cp, work, error, message):
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        x = cp.zeros((2, 2))
        stream.begin_capture()
        with pytest.raises(error, match=message):
            work(cp, stream, x)


def test_graphs_come_from_capture_only(cp):
    with pytest.raises(NotImplementedError, match="via stream capture"):
        cp.cuda.Graph()
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cp.cuda.Stream.null.begin_capture()
    with pytest.raises(RuntimeError, match="InvalidValue"):
        cp.cuda.Stream().end_capture()


def test_the_default_stream_must_rest_while_a_blocking_stream_captures(cp):
    cp.cuda.Stream(non_blocking=True).begin_capture()
    x = cp.zeros(3)
    cp.cuda.Stream().begin_capture()
    with pytest.raises(RuntimeError, match="StreamCaptureImplicit"):
        x.fill(1)


# Kernels


def test_a_raw_kernel_runs_in_the_order_that_is_set(cp):
    source = 'extern "C" __global__ void last(int* x) { x[0] = blockIdx.x; }'
    kernel, x = cp.RawModule(code=source, options=("-std=c++17",)).get_function("last"), cp.zeros(1, np.int32)
    found = {}
    for order in device.ORDERS[:2]:
        cp.settings.order = order
        kernel((3,), (1,), (x,))
        found[order] = int(x[0])
    assert found == {"forward": 2, "reverse": 0}
    assert cp.counters.log == ["last"] * 2


def test_arguments_are_passed_as_cupy_passes_them(cp):
    source = (
        'extern "C" __global__ void k(double* x, long long n, double d, const int* i) { x[0] = n + d + (i ? 1 : 0); }'
    )
    kernel, x = cp.RawModule(code=source).get_function("k"), cp.empty(1)
    kernel((1,), (1,), (x, 2, 0.5, np.uint64(0)))  # int is long long, float is double
    assert float(x[0]) == 2.5
    kernel((1,), (1,), (x, np.int64(2), np.float64(0.5), cp.zeros(1, np.int32)))
    assert float(x[0]) == 3.5


@pytest.mark.parametrize(
    "arguments",
    [
        lambda cp, x: (x, 1.0, np.int32(3)),  # CuPy would pass a double
        lambda cp, x: (x, np.float32(1), 3),  # and a long long
        lambda cp, x: (x, np.float32(1)),
        lambda cp, x: (x.get(), np.float32(1), np.int32(3)),
        lambda cp, x: (None, np.float32(1), np.int32(3)),
        lambda cp, x: (np.uint64(x.data.ptr), np.float32(1), np.int32(3)),
        lambda cp, x: (x[::2], np.float32(1), np.int32(3)),
        lambda cp, x: (x.astype(np.float64), np.float32(1), np.int32(3)),
        lambda cp, x: [x, np.float32(1), np.int32(3)],
    ],
)
def test_wrong_arguments_of_a_kernel(cp, arguments):
    with pytest.raises(TypeError):
        add_to(cp)((1,), (32,), arguments(cp, cp.zeros(6, np.float32)))


def test_wrong_modules(cp):
    with pytest.raises(TypeError, match="options a tuple"):
        cp.RawModule(code=KERNEL, options=["-std=c++17"])
    with pytest.raises(TypeError, match="grid, block and args must be tuples"):
        add_to(cp)(1, 32, (cp.zeros(1, np.float32), np.float32(1), np.int32(1)))


@pytest.mark.skipif(not device.sanitizer_available(), reason="this g++ has no AddressSanitizer")
def test_device_memory_ends_where_it_says():
    script = f"""
import sys, numpy as np
from tests.simgpu import cupy
kernel, x = cupy.RawModule(code={KERNEL!r}).get_function("add_to"), cupy.zeros(5, np.float32)
kernel((1,), (32,), (x, np.float32(1), np.int32(sys.argv[1])))
print(float(x.sum()))
"""
    assert device.run_sanitized(script, "5") == "5.0\n"
    with pytest.raises(device.SanitizerError, match="heap-buffer-overflow"):
        device.run_sanitized(script, "6")


# Other libraries


class Foreign:
    """Another library's array in the same device memory, on a stream of its own."""

    def __init__(self, array, stream):
        self.array, self.stream = array, stream

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        with self.stream:
            return self.array.__dlpack__(**options)

    @property
    def __cuda_array_interface__(self):
        with self.stream:
            return self.array.__cuda_array_interface__


@LAZY_AND_NOT
@pytest.mark.parametrize(("method", "synchronisations"), [("from_dlpack", 0), ("asarray", 1)])
def test_exchange_without_a_copy_and_in_the_right_order(cp, lazy, method, synchronisations):
    cp.settings.lazy = lazy
    theirs, ours = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    with theirs:
        x = cp.ones((3, 4), np.float32)
    with ours:
        cp.counters.reset()
        y = getattr(cp, method)(Foreign(x[:, 1:3], theirs))
        assert (cp.counters.allocations, cp.counters.synchronisations) == (0, synchronisations)
        assert (y.dtype, y.shape, y.strides, y.data.ptr) == (np.float32, (3, 2), (16, 4), x.data.ptr + 4)
        assert (y.get() == 1).all()
        y.fill(5)
        ours.synchronize()
    assert (x.get(stream=theirs)[:, 1:3] == 5).all()


def test_host_memory_is_not_taken_for_the_devices(cp):
    with pytest.raises(BufferError, match="not in this device's memory"):
        cp.from_dlpack(np.zeros(3))


def test_dlpack_streams(cp):
    x = cp.zeros(3)
    for stream in (None, -1, 1, 2):
        x.__dlpack__(stream=stream)
    with pytest.raises(ValueError, match="no stream 0"):
        x.__dlpack__(stream=0)
    with pytest.raises(BufferError):
        x.__dlpack__(copy=True)
