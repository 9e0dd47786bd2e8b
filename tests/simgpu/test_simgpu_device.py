"""The simulated GPU on trial: every check must fire on a seeded bug and keep silent on the right kernel."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.simgpu import device
from tests.simgpu.device import SimulatorError

pytestmark = pytest.mark.skipif(not device.available(), reason="kernels are simulated on Linux with g++ only")


def run(body, *arguments, parameters="float* x", grid=(1,), block=(64,), **options):
    """Run one kernel called k; `body` may have helpers before a line of '---'."""
    helpers, _, rest = body.rpartition("---")
    source = f'{helpers}\nextern "C" __global__ void k({parameters}) {{ {rest} }}'
    device.compile_module(source).get_function("k")(grid, block, arguments, **options)


def zeros(n=64, dtype=np.float32):
    return np.zeros(n, dtype)


# What a kernel sees


def test_indices_of_three_dimensions():
    source = """
    extern "C" __global__ void k(int* x) {
      int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
      int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
      int threads = blockDim.x * blockDim.y * blockDim.z;
      x[block * threads + thread] = block * 1000 + thread;
    }"""
    expected = (1000 * np.arange(24)[:, None] + np.arange(24)).ravel()
    for order in device.ORDERS:
        x = np.full(24 * 24, -1, np.int32)
        device.compile_module(source).get_function("k")((2, 3, 4), (4, 3, 2), (x,), order=order)
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("block", [1, 31, 64, 1024])
@pytest.mark.parametrize("order", device.ORDERS)
def test_a_barrier_makes_writes_visible(order, block):
    x = zeros(block)
    body = (
        "__shared__ float s[1024]; int i = threadIdx.x, n = blockDim.x; s[i] = i; __syncthreads(); x[i] = s[n - 1 - i];"
    )
    run(body, x, block=(block,), order=order)
    np.testing.assert_array_equal(x, np.arange(block)[::-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("__shfl_xor_sync(0xffffffffu, x[i], 5)", lambda lane: lane ^ 5),
        ("__shfl_down_sync(0xffffffffu, x[i], 7)", lambda lane: np.where(lane + 7 < 32, lane + 7, lane)),
        ("__shfl_sync(0xffffffffu, x[i], 33)", lambda lane: lane * 0 + 1),
    ],
)
def test_shuffles(call, expected, dtype):
    type_name = {np.float32: "float", np.float64: "double", np.int32: "int"}[dtype]
    values = np.random.default_rng(0).permutation(96).astype(dtype)
    i = np.arange(96)
    for order in device.ORDERS:
        x = values.copy()
        run(f"int i = threadIdx.x; x[i] = {call};", x, parameters=f"{type_name}* x", block=(96,), order=order)
        np.testing.assert_array_equal(x, values[i // 32 * 32 + expected(i % 32)])


def test_shuffles_in_a_row_do_not_mix():
    """A quick lane must not overwrite what a slow one has yet to read."""
    body = """float v = x[threadIdx.x];
    for (int m = 16; m; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
    x[threadIdx.x] = v;"""
    for order in device.ORDERS:
        x = np.arange(64, dtype=np.float32)
        run(body, x, order=order)
        np.testing.assert_array_equal(x, np.repeat([496, 1520], 32))


def test_atomics_on_int():
    body = "int i = threadIdx.x; atomicAdd(x, i); atomicMin(x + 1, i - 5); if (atomicMax(x + 2, i) < 0) x[3] = i;"
    x = np.array([0, 100, -1, -1], np.int32)
    run(body, x, parameters="int* x")
    np.testing.assert_array_equal(x, [2016, -5, 63, 0])


def test_dynamic_shared_memory():
    x = zeros()
    run(
        "extern __shared__ float s[]; int i = threadIdx.x; s[i] = i; __syncthreads(); x[i] = s[63 - i];",
        x,
        shared_mem=256,
    )
    np.testing.assert_array_equal(x, np.arange(64)[::-1])


# Orders


def test_orders_differ_and_repeat():
    body = "int i = atomicAdd(seen, 1); x[i] = blockIdx.x * blockDim.x + threadIdx.x;"

    def sequence(**options):
        x = zeros(128, np.int32)
        run(body, x, zeros(1, np.int32), parameters="int* x, int* seen", grid=(4,), block=(32,), **options)
        return list(x)

    forward = list(range(128))
    assert sequence() == forward
    assert sequence(order="reverse") == forward[::-1]
    shuffled = sequence(order="shuffled", seed=1)
    assert shuffled == sequence(order="shuffled", seed=1)
    assert shuffled != sequence(order="shuffled", seed=2)
    assert sorted(shuffled) == forward
    blocks = [i // 32 for i in shuffled[::32]]
    assert blocks != sorted(blocks) and shuffled[:32] != sorted(shuffled[:32])


def test_a_missing_barrier_shows_in_some_order():
    body = "__shared__ float s[64]; int i = threadIdx.x; s[i] = i; {barrier} x[i] = s[i ^ 1];"
    results = []
    for barrier in ("__syncthreads();", ""):
        for order in device.ORDERS:
            x = zeros()
            run(body.replace("{barrier}", barrier), x, order=order)
            results.append(np.array_equal(x, np.arange(64) ^ 1))
    assert results == [True] * 3 + [False] * 3


def test_a_race_between_blocks_shows():
    results = set()
    for order in ("forward", "reverse"):
        x = zeros(1)
        run("x[0] = blockIdx.x;", x, grid=(3,), order=order)
        results.add(float(x[0]))
    assert results == {0.0, 2.0}


# Barriers and shuffles that never meet


@pytest.mark.parametrize("order", device.ORDERS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "if (threadIdx.x < 7) return; __syncthreads();",
            r"thread \(6, 0, 0\) has left .* thread \(7, 0, 0\) waits at",
        ),
        (
            "if (threadIdx.x < 32) __syncthreads();\n else __syncthreads();",
            "divergent barrier: .* of line 2, .* of line 3",
        ),
        (
            "if (threadIdx.x != 40) __shfl_sync(0xffffffffu, 1, 0);",
            r"divergent shuffle: .*thread \(40, 0, 0\) has left",
        ),
        ("if (threadIdx.x % 2) __shfl_sync(0xffffffffu, 1, 0); else __syncthreads();", "divergent shuffle"),
        ("__shfl_sync(0xffffu, 1, 0);", "only the full mask is simulated, got 0xffff"),
        ("__shfl_xor_sync(0xffffffffu, 1, 32);", "lane 0 reads lane 32, which does not exist|lane .* does not exist"),
    ],
)
def test_divergence_is_an_error(body, message, order):
    x = zeros()
    with pytest.raises(SimulatorError, match=rf"k, block \(\d, 0, 0\): .*{message}"):
        run(body, x, grid=(2,), order=order)
    run("__syncthreads(); x[threadIdx.x] = 1;", x, order=order)  # the simulator is not left in disorder
    assert x.sum() == 64


def test_shuffle_from_a_lane_beyond_the_block():
    body = "x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 16);"
    with pytest.raises(SimulatorError, match="lane 0 reads lane 16"):
        run(body, zeros(), block=(8,))


def test_a_kernel_runs_after_one_that_failed():
    source = """
    extern "C" __global__ void bad(float* x) { if (threadIdx.x) __syncthreads(); }
    extern "C" __global__ void good(float* x) { __syncthreads(); x[threadIdx.x] = 1; }
    """
    module, x = device.compile_module(source), zeros(256)
    for _ in range(3):
        with pytest.raises(SimulatorError):
            module.get_function("bad")((1,), (256,), (x,))
        x[:] = 0
        module.get_function("good")((2,), (256,), (x,), order="shuffled")
        assert x.sum() == 256


def test_stacks_of_failed_threads_are_used_again():
    def mapped():
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")

    def fail():
        with pytest.raises(SimulatorError):
            run("if (threadIdx.x) __syncthreads();", zeros(), block=(1024,))

    fail()
    before = mapped()
    for _ in range(10):
        fail()
    assert mapped() - before < 2**26  # a block has that much in stacks


def test_kernels_from_another_thread():
    x = zeros()
    worker = threading.Thread(target=run, args=("__shared__ float s[1]; x[threadIdx.x] = s[0];", x))
    worker.start()
    worker.join()
    assert np.isnan(x).all()


# Poison


@pytest.mark.parametrize(
    "declaration",
    [
        "__shared__ float s[64];",
        "alignas(16) __shared__ float t[4][16]; float* s = &t[0][0];",
        "__shared__ __align__(16) float s[64];",
        "extern __shared__ float s[];",
        "float* s = plain();",
        "float* s = templated<64>();",
    ],
)
@pytest.mark.parametrize("order", device.ORDERS)
def test_shared_memory_begins_as_nan_in_every_block(declaration, order):
    """Also what the block before has left there, and also in the second launch."""
    body = """
    inline float* plain() { __shared__ float s[64]; return s; }
    template <int n> __device__ float* templated() { __shared__ float s[n]; return s; }
    --- DECLARATION int i = threadIdx.x; x[blockIdx.x * 64 + i] = s[i]; s[i] = 1;"""
    for _ in range(2):
        x = zeros(192)
        run(body.replace("DECLARATION", declaration), x, grid=(3,), order=order, shared_mem=256)
        assert np.isnan(x).all()


# Arguments


def call_k(*arguments):
    parameters = "float* x, const int* i, double d, unsigned u, long long n, float f"
    run("if (x) x[0] = float(d) + u + n + f + (i ? i[0] : 0);", *arguments, parameters=parameters, block=(1,))


RIGHT = {
    "x": lambda: zeros(1),
    "i": lambda: np.array([1], np.int32),
    "d": lambda: np.float64(2),
    "u": lambda: np.uint32(4),
    "n": lambda: np.int64(8),
    "f": lambda: np.float32(16),
}


def test_arguments_arrive():
    arguments = [make() for make in RIGHT.values()]
    call_k(*arguments)
    assert arguments[0][0] == 31
    call_k(arguments[0], None, *arguments[2:])
    assert arguments[0][0] == 30
    call_k(None, None, *arguments[2:])


def read_only():
    x = zeros(1)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", np.zeros(1)),
        ("x", [1.0]),
        ("x", 0),
        ("x", zeros(4)[::2]),
        ("x", np.frombuffer(bytearray(9), np.uint8)[1:5].view(np.float32)),
        ("x", read_only()),
        ("i", np.zeros(1, np.int64)),
        ("d", 2.0),
        ("d", np.float32(2)),
        ("d", None),
        ("u", np.int32(4)),
        ("u", 4),
        ("n", np.int32(8)),
        ("f", np.zeros((), np.float32)),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error(name, wrong):
    arguments = {key: make() for key, make in RIGHT.items()} | {name: wrong}
    with pytest.raises(TypeError, match=f"k, argument {list(RIGHT).index(name)}: "):
        call_k(*arguments.values())


def test_a_read_only_array_suits_a_const_pointer():
    run("x[0] = y[0];", zeros(1), read_only(), parameters="float* x, const float* y", block=(1,))


def test_wrong_number_of_arguments():
    with pytest.raises(TypeError, match="k takes 1 arguments, got 2"):
        run("x[0] = 1;", zeros(), zeros())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": (1025,)}, SimulatorError, "block"),
        ({"block": (32, 33)}, SimulatorError, "more than 1024 threads"),
        ({"block": (1, 1, 65)}, SimulatorError, "block"),
        ({"grid": (0,)}, SimulatorError, "grid"),
        ({"grid": (1, 65536)}, SimulatorError, "grid"),
        ({"grid": (1.0,)}, TypeError, "grid must be one to three ints"),
        ({"grid": ()}, TypeError, "grid"),
        ({"shared_mem": 49153}, SimulatorError, "shared memory"),
        ({"order": "sideways"}, ValueError, "order must be one of"),
    ],
)
def test_an_impossible_launch_is_an_error(options, error, message):
    with pytest.raises(error, match=message):
        run("x[0] = 1;", zeros(), **options)


# Compiling


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("void f() {}", "no kernel"),
        ("__global__ void k(float* x) {}", "no kernel"),  # its name would be mangled
        ('// extern "C" __global__ void k(float* x) {}', "no kernel"),
        ('extern "C" __global__ void k(float* x) {\n\n x = y; }', r"\.cu:3:.*y"),
        ('extern "C" __global__ void k(float* x) { x[0] = x[1] * 0.5; }', "double-promotion"),
        ('extern "C" __global__ void k(float* x) { atomicAdd(x, 1.0f); }', "deleted function"),
        ('extern "C" __global__ void k(long x) {}', "long int"),
        ('#include <cuda_runtime.h>\nextern "C" __global__ void k(long x) {}', "cuda_runtime"),
    ],
)
def test_a_wrong_source_is_an_error(source, message):
    with pytest.raises(SimulatorError, match=message):
        device.compile_module(source)


def test_unknown_function():
    with pytest.raises(SimulatorError, match=r"no kernel 'g' .*\('k',\)"):
        device.compile_module('extern "C" __global__ void k(float* x) {}').get_function("g")


def test_launch_bounds_on_either_side_and_macros_in_the_arguments():
    source = """
    #define MORE int n, const double* d
    extern "C" __global__ void __launch_bounds__(256) a(float* x, MORE) {}
    extern "C" __global__ __launch_bounds__(256, 2) void b(float* __restrict__ x, const int* const y) {}
    """
    module = device.compile_module(source)
    assert module.names == ("a", "b")
    assert module.get_function("a").types == ["float32*", "int32", "const float64*"]
    assert module.get_function("b").types == ["float32*", "const int32*"]


def test_the_second_compilation_comes_from_the_cache(monkeypatch):
    source = f'extern "C" __global__ void k(int* x) {{ x[0] = {os.getpid()}; }}'
    module = device.compile_module(source)
    monkeypatch.setattr(device.subprocess, "run", lambda *args, **kwargs: pytest.fail("compiled again"))
    assert device.compile_module(source) is module
    device._load.cache_clear()
    x = zeros(1, np.int32)
    device.compile_module(source).get_function("k")((1,), (1,), (x,))
    assert x[0] == os.getpid()
