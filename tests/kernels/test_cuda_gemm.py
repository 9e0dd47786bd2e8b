"""The fused GEMMs (kernels/cuda/gemm.cu) on the simulated GPU, against float64 NumPy.

Every case runs in three orders of threads and on a grid of one block, to the same bits.
"""

import numpy as np
import pytest

from tests.kernels.gemm_cases import KERNELS, Case, Launch, check, source
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="needs g++ on Linux, to run kernels on the CPU")

# (rows, m, n): one element; around one tile of 64 and one slab of 16; leading dimensions that are multiples of 4, of 2,
# and odd; sums shorter than a slab and longer than two tiles.
SHAPES = [
    (1, 1, 1),
    (1, 130, 3),
    (5, 2, 66),
    (31, 33, 65),
    (33, 65, 31),
    (64, 64, 64),
    (65, 31, 33),
    (68, 36, 100),
    (130, 66, 34),
    (17, 129, 130),
]

# Arrays end where their elements end. An argument pair is a text of the source and what to put in its place.
SANITIZED = """
import sys
from tests.kernels import gemm_cases
from tests.simgpu import device

gemm_cases.GUARD = 0
text = gemm_cases.source("float32", "sigmoid")
if len(sys.argv) > 1:
    assert text.count(sys.argv[1]) == 1
    text = text.replace(*sys.argv[1:])
module = device.compile_module(text)
for shape in [(36, 68, 72), (33, 65, 31)]:
    for kernel in gemm_cases.KERNELS:
        for shift in (0, 1):
            case = gemm_cases.Case(kernel, shape, rate=0.5, decay=0.1, shift=shift)
            gemm_cases.check(module, case, ("forward",))
print("passed")
"""


def module(dtype, activation):
    return device.compile_module(source(dtype, activation))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_shape(dtype, kernel, shape):
    # Dropout at every second shape, decay at every one: each element has its own word and weight.
    rate = 0.3 * (SHAPES.index(shape) % 2)
    check(module(dtype, "sigmoid"), Case(kernel, shape, dtype, rate=rate, decay=0.02))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations(dtype, activation, kernel):
    check(module(dtype, activation), Case(kernel, (33, 65, 34), dtype, activation, rate=0.5, decay=0.1))


@pytest.mark.parametrize(("dtype", "shift"), [("float32", 1), ("float32", 2), ("float32", 3), ("float64", 1)])
@pytest.mark.parametrize("shape", [(36, 68, 72), (35, 66, 70)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_pointers_off_a_16_byte_boundary(dtype, shift, shape, kernel):
    check(module(dtype, "sigmoid"), Case(kernel, shape, dtype, rate=0.25, decay=0.1, shift=shift))


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("absent", [("b",), ("h",), ("z",), ("b", "h", "z")], ids=str)
def test_forward_without(absent, rate):
    check(module("float32", "sigmoid"), Case("gemm_forward", (35, 20, 66), rate=rate, absent=absent))


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_hidden_without_z(rate):
    check(module("float32", "sigmoid"), Case("gemm_hidden", (35, 66, 20), rate=rate, absent=("z",)))


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("absent", [("mask",), ("db",), ("mask", "db"), ("W",)], ids=str)
def test_gradient_without(absent, decay):
    check(module("float32", "sigmoid"), Case("gemm_gradient", (35, 20, 66), decay=decay, absent=absent))


def test_no_dropout_reads_no_step():
    launch = Launch(Case("gemm_forward", (3, 4, 5), rate=0.0))
    launch.ctl = None
    results = launch.run(module("float32", "sigmoid"))
    assert results["h"].tobytes() == results["a"].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_rows(dtype):
    gradient = Launch(Case("gemm_gradient", (0, 33, 65), dtype, decay=0.5))
    results = gradient.run(module(dtype, "sigmoid"))
    assert (results["db"] == 0).all()
    T = np.dtype(dtype).type
    np.testing.assert_array_equal(results["dW"], T(0.5) * gradient.arrays["W"] * gradient.arrays["mask"])
    for kernel in KERNELS[:2]:  # nothing to write; `run` checks that nothing is
        Launch(Case(kernel, (0, 33, 65), dtype, rate=0.5)).run(module(dtype, "sigmoid"))


def test_no_terms():
    """A layer without inputs is its bias; one without outputs sends nothing back."""
    for case in [Case("gemm_forward", (33, 0, 5)), Case("gemm_hidden", (33, 5, 0))]:
        check(module("float32", "sigmoid"), case)


@pytest.mark.parametrize(("bad", "place"), [(np.inf, (0, 0)), (np.nan, (40, 3)), (-np.inf, (64, 33))])
def test_hidden_latches_what_is_not_finite(bad, place):
    launch = Launch(Case("gemm_hidden", (65, 70, 34)))
    launch.arrays["delta"][place] = bad
    out = launch.run(module("float32", "sigmoid"))["out"]
    assert launch.ctl.tolist() == [1, *Launch(launch.case).ctl[1:]]
    np.testing.assert_array_equal(np.isfinite(out).all(axis=1), np.arange(65) != place[0])


def test_hidden_keeps_an_earlier_fault():
    launch = Launch(Case("gemm_hidden", (3, 4, 5)))
    launch.arrays["delta"][1, 1] = np.nan
    launch.ctl[0] = 2
    launch.run(module("float32", "sigmoid"))
    assert launch.ctl[0] == 2


def test_hidden_does_not_latch_what_is_past_the_end_of_a_row():
    # There z reads as 0, and 1/z would be infinite.
    check(module("float32", "log(z); 1 / z"), Case("gemm_hidden", (5, 7, 6), activation="log(z); 1 / z"))


def test_dropped_elements_carry_no_fault():
    launch = Launch(Case("gemm_hidden", (8, 12, 5), rate=0.5))
    kept = launch.kept((8, 12))
    launch.arrays["delta"][2] = np.inf
    out = launch.run(module("float32", "sigmoid"))["out"]
    assert not np.isfinite(out[2, kept[2]]).any()
    assert (out[2, ~kept[2]] == 0).all()
    assert launch.ctl[0] == 1


@pytest.mark.skipif(not device.sanitizer_available(), reason="needs g++ with AddressSanitizer")
def test_sanitized():
    """AddressSanitizer sees also a read out of bounds that comes to nothing, UBSan a misaligned one."""
    assert device.run_sanitized(SANITIZED) == "passed\n"


@pytest.mark.skipif(not device.sanitizer_available(), reason="needs g++ with AddressSanitizer")
def test_sanitized_finds_a_vector_load_off_its_boundary():
    with pytest.raises(device.SanitizerError, match="misaligned address"):
        device.run_sanitized(SANITIZED, "if (aligned(p) && i + 4 <= size) return", "if (i + 4 <= size) return")
