"""The sanitizers of the simulated GPU on trial: one element too far is reported with its line, and nothing else is."""

import pytest

from tests.simgpu import device
from tests.simgpu.device import SimulatorError

pytestmark = pytest.mark.skipif(not device.available(), reason="kernels are simulated on Linux with g++ only")

CHECKED = """
extern "C" __global__ void global_memory(float* x, int n) {
  __syncthreads();
  if (threadIdx.x < n) x[threadIdx.x] = 1;
}
extern "C" __global__ void static_shared(float* x, int n) {
  __shared__ float s[64];
  if (threadIdx.x < n) s[threadIdx.x] = 1;
}
extern "C" __global__ void dynamic_shared(float* x, int n) {
  extern __shared__ float s[];
  if (threadIdx.x < n) s[threadIdx.x] = 1;
}
extern "C" __global__ void local_array(float* x, int n) {
  float a[64];
  __syncthreads();
  for (int i = 0; i < n; i++) a[i] = i;
  x[threadIdx.x % 64] = a[3];
}
struct alignas(16) Vec { float v[4]; };
extern "C" __global__ void vector_load(float* x, int n) {
  reinterpret_cast<Vec*>(x + n - 64)->v[0] = 1;
}
extern "C" __global__ void overflow(float* x, int n) {
  if (n == 65) x[0] = n * 0x40000000;
}
extern "C" __global__ void divergent(float* x, int n) {
  float a[64];
  for (int i = 0; i < n; i++) a[i] = x[i % 64];
  if (threadIdx.x) __syncthreads();
  x[0] = a[0];
}
"""
SCRIPT = """
import sys
import numpy as np
from tests.simgpu import device

name, n = sys.argv[2], int(sys.argv[3])
module, x = device.compile_module(sys.argv[1]), np.zeros(64, np.float32)
for order in device.ORDERS:
    try:
        module.get_function(name)((2,), (96,), (x, np.int32(n)), order=order, shared_mem=256)
    except device.SimulatorError as error:
        print(error)
print("end")
"""


def sanitized(name, n):
    return device.run_sanitized(SCRIPT, CHECKED, name, str(n))


def line_of(text):
    return 1 + CHECKED[: CHECKED.index(text)].count("\n")


needs_sanitizer = pytest.mark.skipif(not device.sanitizer_available(), reason="this g++ has no AddressSanitizer")


@needs_sanitizer
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("global_memory", "x[threadIdx.x] = 1", "heap-buffer-overflow"),
        ("static_shared", "s[threadIdx.x] = 1", "index 64 out of bounds"),
        ("dynamic_shared", 's[threadIdx.x] = 1;\n}\nextern "C" __global__ void local_array', "heap-buffer-overflow"),
        ("local_array", "a[i] = i;", "index 64 out of bounds"),
        ("vector_load", "reinterpret_cast", "misaligned address"),
        ("overflow", "0x40000000", "signed integer overflow"),
    ],
)
def test_one_element_too_far_is_reported_with_its_line(name, text, message):
    assert sanitized(name, 64) == "end\n"
    with pytest.raises(device.SanitizerError, match=message) as error:
        sanitized(name, 65)
    assert f".cu:{line_of(text)}" in str(error.value)


@needs_sanitizer
def test_stacks_of_abandoned_threads_raise_no_false_alarm():
    assert sanitized("divergent", 64).count("divergent barrier") == 3


def test_a_sanitized_module_needs_its_own_process():
    with pytest.raises(SimulatorError, match="run_sanitized"):
        device.compile_module(CHECKED, sanitize=True)
