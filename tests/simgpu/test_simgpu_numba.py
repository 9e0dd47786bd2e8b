"""The simulator of Numba-CUDA: what it runs, and that it finds a seeded bug of every kind."""

import importlib
import inspect
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core.errors import NumbaPerformanceWarning

from tests.simgpu import numba_device, numba_runner, numba_sim
from tests.simgpu.conformance import differences
from tests.simgpu.numba_sim import ORDERS, SimulatorError, cuda, launch
from tests.simgpu.state import counters, settings

F32 = np.float32
pytestmark = pytest.mark.filterwarnings("ignore:Grid size")  # of setting elements, as on a GPU


def zeros(n=64):
    return np.zeros(n, F32)


def run(body, *arguments, grid=2, block=32, orders=ORDERS):
    """Run a kernel in all orders; return the last argument, which must not depend on them."""
    results = []
    for order in orders:
        copies = [argument.copy() if isinstance(argument, np.ndarray) else argument for argument in arguments]
        launch(cuda.jit(body), grid, block, copies, order=order)
        results.append(copies[-1].tobytes())
    assert len(set(results)) == 1
    return copies[-1]


def test_grid_stride():
    def kernel(out):
        for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
            out[i] += i

    assert run(kernel, zeros(100)).tolist() == list(range(100))


def test_shared_memory_and_barriers():
    def kernel(out):
        shared = cuda.shared.array(32, F32)
        thread = cuda.threadIdx.x
        shared[thread] = thread
        cuda.syncthreads()
        out[cuda.grid(1)] = shared[31 - thread]

    assert run(kernel, zeros()).tolist() == [*range(31, -1, -1)] * 2


def test_three_dimensions():
    def kernel(out):
        i, j = cuda.grid(2)
        if i < out.shape[0] and j < out.shape[1]:
            out[i, j] = 10 * cuda.blockIdx.z + cuda.threadIdx.z + len(out) + cuda.gridsize(2)[1]

    assert (run(kernel, np.zeros((5, 3), F32), grid=(3, 2), block=(2, 2)) == 9).all()


def test_atomics():
    def kernel(out):
        cuda.atomic.add(out, 0, 1)
        cuda.atomic.max(out, 1, cuda.grid(1))
        cuda.atomic.min(out, 2, -cuda.grid(1))

    assert run(kernel, np.zeros(3, np.int32)).tolist() == [64, 63, -63]


def test_local_memory():
    def kernel(out):
        local = cuda.local.array((2, 2), F32)
        local[1, 0] = cuda.grid(1)
        cuda.syncthreads()
        out[cuda.grid(1)] = local[1, 0]

    assert run(kernel, zeros()).tolist() == list(range(64))


def test_one_factory_makes_functions_with_shared_memory_of_their_own():
    def make(value):
        @cuda.jit(device=True)
        def through_shared():
            shared = cuda.shared.array(32, F32)
            shared[cuda.threadIdx.x] = value
            return shared[cuda.threadIdx.x]

        return through_shared

    one, two = make(1), make(2)

    def kernel(out):
        a, b = one(), two()
        out[cuda.grid(1)] = 10 * a + b + one()

    assert set(run(kernel, zeros()).tolist()) == {13}


# Seeded bugs


def past_the_end(out):
    out[cuda.grid(1) + 1] = F32(1)


def before_the_beginning(out):
    out[cuda.grid(1) - 1] = F32(1)


def no_barrier(out):
    shared = cuda.shared.array(32, F32)
    shared[cuda.threadIdx.x] = F32(0)
    cuda.syncthreads()
    shared[cuda.threadIdx.x] = F32(1)
    out[cuda.grid(1)] = shared[31 - cuda.threadIdx.x]


def overwritten_too_early(out):
    shared = cuda.shared.array(1, F32)
    for i in range(2):
        if cuda.threadIdx.x == i:
            shared[0] = F32(i)
        cuda.syncthreads()
        out[cuda.grid(1)] += shared[0]


def all_write_one_element(out):
    out[0] = F32(1)


def plain_increment(out):
    out[0] += F32(1)


def blocks_meet(out):
    out[cuda.threadIdx.x] = F32(1)


def blocks_read_what_another_writes(out):
    if cuda.blockIdx.x == 0:
        out[cuda.threadIdx.x] = F32(1)
    else:
        out[cuda.grid(1)] = out[cuda.threadIdx.x]


def read_by_two_blocks_and_written(out):
    value = out[0]
    if cuda.grid(1) == 32:
        out[0] = value


def plain_beside_atomic(out):
    if cuda.threadIdx.x == 0:
        out[1] = F32(1)
    cuda.atomic.add(out, 1, F32(1))


def barrier_not_for_all(out):
    if cuda.threadIdx.x < 16:
        cuda.syncthreads()
    out[cuda.grid(1)] = F32(1)


def gone_before_the_barrier(out):
    if cuda.threadIdx.x == 31:
        return
    cuda.syncthreads()


def two_barriers(out):
    if cuda.threadIdx.x < 16:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


def more_barriers_for_some(out):
    for _ in range(1 + cuda.threadIdx.x // 31):
        cuda.syncthreads()


def shared_never_written(out):
    shared = cuda.shared.array(64, F32)
    shared[cuda.threadIdx.x] = F32(1)
    cuda.syncthreads()
    out[cuda.grid(1)] = shared[cuda.threadIdx.x + 1]


def local_never_written(out):
    out[cuda.grid(1)] = cuda.local.array(2, F32)[1]


def shared_of_the_block_before(out):
    shared = cuda.shared.array(32, F32)
    if cuda.blockIdx.x == 0:
        shared[cuda.threadIdx.x] = F32(1)
    out[cuda.grid(1)] = shared[cuda.threadIdx.x]


def too_much_shared_memory(out):
    cuda.shared.array((100, 100), F32)
    cuda.shared.array(2500, F32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        (past_the_end, "outside of out"),
        (before_the_beginning, "outside of out"),
        (no_barrier, "race: .* shared memory"),
        (overwritten_too_early, "race: .* shared memory"),
        (all_write_one_element, "race: writes out"),
        (plain_increment, "race: .* out"),
        (blocks_meet, "race: writes out.* another block"),
        (blocks_read_what_another_writes, "race: .* out.* another block"),
        (read_by_two_blocks_and_written, "race: "),
        (plain_beside_atomic, "race: "),
        (barrier_not_for_all, "divergent barrier"),
        (gone_before_the_barrier, "divergent barrier"),
        (two_barriers, "divergent barrier"),
        (more_barriers_for_some, "divergent barrier"),
        (shared_never_written, "never written"),
        (local_never_written, "never written"),
        (shared_of_the_block_before, "never written"),
        (too_much_shared_memory, "50000 bytes of shared memory"),
    ],
)
def test_bug_is_found(kernel, error, order):
    with pytest.raises(SimulatorError, match=error):
        launch(cuda.jit(kernel), 2, 32, (zeros(),), order=order)


def test_no_bug_where_a_barrier_is_between():
    def kernel(out):
        shared = cuda.shared.array(1, F32)
        for i in range(3):
            if cuda.threadIdx.x == i:
                shared[0] = F32(i)
            cuda.syncthreads()
            out[cuda.grid(1)] += shared[0]
            cuda.syncthreads()

    assert set(run(kernel, zeros()).tolist()) == {3}


def test_races_are_looked_for_only_where_wanted(monkeypatch):
    monkeypatch.setattr(cuda, "races", False)
    assert run(all_write_one_element, zeros())[0] == 1
    with pytest.raises(SimulatorError, match="divergent"):
        run(two_barriers, zeros())


@pytest.mark.parametrize(
    ("grid", "block", "error"), [(0, 32, "grid"), (1, 2048, "block"), (1, (64, 32), "more than 1024"), (1, 0, "block")]
)
def test_launches_that_no_gpu_allows(grid, block, error):
    with pytest.raises(SimulatorError, match=error):
        launch(cuda.jit(all_write_one_element), grid, block, (zeros(),))


def test_arguments_are_checked():
    total = numba_runner.load().kernel("total", np.dtype(F32), {})
    good = zeros(), np.int64(32), zeros(0), np.int32(0), zeros(1)  # 32 pairs
    launch(total, 1, 256, good)
    for place, bad in [
        (0, zeros().astype(np.float64)),
        (0, zeros().reshape(8, 8)),
        (0, zeros(128)[::2]),
        (0, [1.0]),
        (1, np.int32(64)),
        (1, 64),
        (4, F32(0)),
    ]:
        with pytest.raises(TypeError):
            launch(total, 1, 256, (*good[:place], bad, *good[place + 1 :]))
    with pytest.raises(TypeError, match="takes 5 arguments, got 4"):
        launch(total, 1, 256, good[:-1])


# Device arrays


@pytest.fixture
def device(monkeypatch):
    numba_device.install(monkeypatch)
    yield numba_device.cuda
    numba_device.reset()


def test_device_memory_begins_unwritten(device):
    array = device.device_array((4, 8), np.float32)
    with pytest.raises(SimulatorError, match="never written"):
        array.copy_to_host()
    array[:2] = 1
    assert (array[:2].copy_to_host() == 1).all()
    with pytest.raises(SimulatorError, match="never written"):
        array[1:3].copy_to_host()

    @device.jit
    def copy(x, out):
        i = numba_sim.cuda.grid(1)
        out[i] = x[i]

    flat, out = array.reshape(32), device.device_array(32, np.float32)
    with pytest.raises(SimulatorError, match=r"x\[16\] is read, but was never written"):
        copy[1, 32](flat, out)
    copy[1, 16](flat, out)
    assert (out[:16].copy_to_host() == 1).all()
    assert (out[:16].view(np.uint8).copy_to_host() == out[:16].copy_to_host().view(np.uint8)).all()
    with pytest.raises(SimulatorError, match="never written"):
        out.copy_to_host()


def test_copies_and_what_they_cost(device):
    stream = device.stream()
    host = device.pinned_array(6, np.float32)
    host[...] = range(6)
    array = device.to_device(host, stream=stream)
    assert (counters.transfers_h2d, counters.bytes_h2d, counters.synchronisations) == (1, 24, 0)
    down = device.pinned_array(6, np.float32)
    array.copy_to_host(down, stream=stream)
    stream.synchronize()
    assert down.tolist() == host.tolist()
    assert (counters.transfers_d2h, counters.synchronisations, counters.allocations) == (1, 1, 1)
    array.view(np.int32)[:3] = 7
    assert counters.launches == 1
    other = device.device_array_like(array)
    other.copy_to_device(array, stream=stream)
    assert other.copy_to_host().view(np.int32)[:3].tolist() == [7, 7, 7]
    assert counters.synchronisations == 2
    assert device.is_cuda_array(other)


def test_lazy_work_reads_pinned_memory_when_it_is_done(device):
    settings.lazy = True
    stream, host = device.stream(), device.pinned_array(1, np.float32)
    host[0] = 1
    array = device.to_device(host, stream=stream)
    host[0] = 2
    down = device.pinned_array(1, np.float32)
    array.copy_to_host(down, stream=stream)
    assert np.isnan(down[0])
    stream.synchronize()
    assert down[0] == 2
    assert array.bind(0).copy_to_host()[0] == 2


def test_launches_go_to_their_stream(device):
    settings.lazy = True
    stream = device.stream()
    array = device.to_device(zeros(), stream=stream)

    @device.jit
    def kernel(out):
        out[numba_sim.cuda.grid(1)] = F32(5)

    kernel[2, 32, stream](array)
    assert (counters.launches, counters.log) == (1, ["kernel"])
    assert (array._host != 5).all()
    device.synchronize()
    assert (array._host == 5).all()


def test_nothing_is_converted_in_silence(device):
    array = device.to_device(zeros())
    for what in (np.asarray, list, bool, np.sum, lambda x: x + 1, lambda x: x[0], lambda x: zeros() + x):
        with pytest.raises(TypeError):
            what(array)
    with pytest.raises(TypeError, match="device array is wanted"):
        array[:] = zeros()
    with pytest.raises(TypeError, match="dtype"):
        array.copy_to_device(np.zeros(64))
    with pytest.raises(ValueError, match="shape"):
        array.copy_to_device(zeros(63))
    with pytest.raises(ValueError, match="contiguous"):
        array.reshape(8, 8)[:, :2].copy_to_device(np.zeros((8, 2), F32))
    with pytest.raises(NotImplementedError):
        array.reshape(8, 8)[:, :2].reshape(16)
    with pytest.raises(TypeError):
        device.to_device([1.0])
    with pytest.raises(TypeError):
        device.jit(all_write_one_element)[1, 1]([1.0])
    with pytest.raises(AttributeError, match=r"numba\.cuda\.managed_array is not simulated"):
        _ = device.managed_array


def test_memory_is_finite_and_given_back(device):
    settings.capacity = device.current_context().get_memory_info().total
    settings.capacity = numba_device._used + 1000
    array = device.device_array(200, np.float32)
    with pytest.raises(numba_device.CudaAPIError, match="OUT_OF_MEMORY"):
        device.device_array(100, np.float32)
    view = array[:3]
    del array
    with pytest.raises(numba_device.CudaAPIError):
        device.device_array(100, np.float32)
    del view
    device.device_array(100, np.float32)
    assert device.current_context().get_memory_info().free == 1000


def test_installed(device, monkeypatch):
    from bpgpu.kernels.numba_cuda import kernels as numba_cuda
    from bpgpu.kernels.numba_cuda.library import cuda as found

    assert found is device
    kernel = numba_cuda.kernel("advance", np.dtype(F32), {})
    control = device.to_device(np.zeros(8, np.int32))
    kernel[1, 256, device.stream()](control)
    assert control.copy_to_host()[1] == 1


def test_setting_elements_warns_as_numba_does(device):
    array = device.device_array(4, np.float32)
    with pytest.warns(NumbaPerformanceWarning, match="Grid size"):
        array[:] = 1


def test_events_order_streams(device):
    """On a device that is late: what waits for an event finds what came before it, on the host and on a stream."""
    settings.lazy = True
    one, two = device.stream(), device.stream()
    target, later = device.device_array(4, np.float32), device.device_array(4, np.float32)
    copied = device.event(timing=False)
    target.copy_to_device(np.ones(4, np.float32), stream=one)
    copied.record(one)
    target.copy_to_device(np.zeros(4, np.float32), stream=one)  # behind the event
    copied.wait(two)
    later.copy_to_device(target, stream=two)
    np.testing.assert_array_equal(later.copy_to_host(stream=two), np.ones(4))
    np.testing.assert_array_equal(target.copy_to_host(stream=one), np.zeros(4))
    pinned = device.pinned_array(4, np.float32)
    pinned[:] = 3
    target.copy_to_device(pinned, stream=one)
    copied.record(one)
    copied.synchronize()  # from here on the host may write
    pinned[:] = 4
    np.testing.assert_array_equal(target.copy_to_host(stream=one), np.full(4, 3))


def test_arrays_of_another_library_lie_on_the_same_memory(device):
    first = device.to_device(np.arange(6, dtype=np.float32).reshape(2, 3))
    second = device.as_cuda_array(SimpleNamespace(__cuda_array_interface__=first[:, ::2].__cuda_array_interface__))
    np.testing.assert_array_equal(second.shape, (2, 2))
    first[:] = 7
    contiguous = device.device_array((2, 2), np.float32)
    contiguous[:] = second
    np.testing.assert_array_equal(contiguous.copy_to_host(), np.full((2, 2), 7))


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="the comparison needs numba-cuda; a GPU it does not need")
def test_the_real_numba_has_every_name_and_parameter():
    real = importlib.import_module("numba.cuda")
    names = (
        "device_array device_array_like to_device pinned_array stream synchronize is_available event is_cuda_array "
        "as_cuda_array get_current_device"
    )
    assert differences(numba_device, real, names.split(), "numba.cuda") == []
    driver = importlib.import_module("numba.cuda.cudadrv.driver")
    array = importlib.import_module("numba.cuda.cudadrv.devicearray").DeviceNDArray
    assert parameters_differ(numba_device.DeviceNDArray, array) == []
    assert parameters_differ(numba_device.Stream, driver.Stream) == []
    assert parameters_differ(numba_device.Event, driver.Event) == []


def parameters_differ(ours, theirs):
    """As `differences`, of the public methods of two classes, whose constructors are nobody's business."""
    methods = [n for n, value in vars(ours).items() if n[0] != "_" and inspect.isfunction(value)]
    assert methods
    return differences(ours, theirs, methods, ours.__name__)
