"""Do the tests of the fused GEMMs find faults? Each row seeds one into the source; the check must fail."""

from importlib import resources

import numpy as np
import pytest

from tests.kernels.gemm_cases import Case, check, source
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="needs g++ on Linux, to run kernels on the CPU")

# The fewest launches that find every row below: ragged and aligned, one slab to three, with all that an epilogue does.
# This sigma' is not finite where z is 0, as it reads past the end of a row.
ACTIVATION = "sigmoid(z); 1 / z"
CASES = [
    Case("gemm_forward", (66, 36, 68), activation=ACTIVATION, rate=0.5),
    Case("gemm_forward", (5, 38, 70), activation=ACTIVATION, rate=0.5),
    Case("gemm_hidden", (66, 72, 36), activation=ACTIVATION, rate=0.5),
    Case("gemm_hidden", (5, 71, 38), activation=ACTIVATION),
    Case("gemm_gradient", (36, 66, 70), activation=ACTIVATION, decay=0.5),
    Case("gemm_gradient", (33, 5, 130), activation=ACTIVATION, decay=0.5),
    Case("gemm_gradient", (130, 3, 2), activation=ACTIVATION),  # of three blocks of terms
]

# name: (file, text that is in it once, what stands there instead)
MUTANTS = {
    "dropped barrier: slabs are read before they are written": (
        "gemm.cu",
        "                __syncthreads();\n                // Asked for now",
        "                // Asked for now",
    ),
    "dropped barrier: the next tile overwrites the last slab": (
        "gemm.cu",
        "            __syncthreads();  // the tile before this one",
        "            // the tile before this one",
    ),
    "dropped barrier: the sums of columns overwrite the last slab": (
        "gemm.cu",
        "                __syncthreads();\n                b_slab[0].write",
        "                b_slab[0].write",
    ),
    "dropped barrier: the sums of columns are read before they are written": (
        "gemm.cu",
        "b_total);\n                __syncthreads();\n",
        "b_total);\n",
    ),
    "stale slab: one pair for all": ("gemm.cu", "k0 += DEPTH, stage ^= 1", "k0 += DEPTH"),
    "stale slab: the same terms again": ("gemm.cu", "b.fetch(column0, k0 + DEPTH)", "b.fetch(column0, k0)"),
    "the tail of the sum is missing": ("gemm.cu", "k0 < terms;", "k0 + DEPTH <= terms;"),
    "one row too many is read": ("gemm.cu", "if (row >= rows) return", "if (row > rows) return"),
    "one row too many is written": ("gemm.cu", "if (row < rows && column", "if (row <= rows && column"),
    "rows past the end are written": ("gemm.cu", "if (row < rows && column < columns)", "if (column < columns)"),
    "swapped index: down for across": ("gemm.cu", "b_slab[stage].read(k, across)", "b_slab[stage].read(k, down)"),
    "swapped index: a slab transposed": (
        "gemm.cu",
        "slab.element(thread / TILE * 4 + k, thread % TILE)",
        "slab.element(thread % TILE % DEPTH, thread / TILE * 4 + k)",
    ),
    "wrong stride of an operand": ("gemm.cu", "(long long)row * columns, column", "(long long)row * rows, column"),
    "wrong stride of a result": ("gemm.cu", "start = (long long)row * m;", "start = (long long)row * (m + m % 4);"),
    "the sums of columns lack a term": ("gemm.cu", "k < DEPTH; ++k) total", "k < DEPTH - 1; ++k) total"),
    "the sum of a block is added to that of the next": ("gemm.cu", "    sum = {};\n", ""),
    "blocks after the first are lost": ("gemm.cu", "total.x[k] += sum.x[k]", "total.x[k] = sum.x[k]"),
    "the sums of columns by the wrong blocks": ("gemm.cu", "column_sums && y == 0", "column_sums && y == 1"),
    "z is kept after sigma": (
        "gemm.cu",
        "        if (z) store(z + start, column, n, v);\n        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);\n",
        "        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);\n        if (z) store(z + start, column, n, v);\n",
    ),
    "a is kept after dropout": (
        "gemm.cu",
        "        store(a + start, column, n, v);\n",
        "        v = drop(v, start + column, n, dropout);\n        store(a + start, column, n, v);\n",
    ),
    "the mask comes before the penalty": (
        "gemm.cu",
        "v.x[k] += decay * weight.x[k];",
        "v.x[k] = v.x[k] * (mask ? load(mask + start, column, n).x[k] : T(1)) + decay * weight.x[k];\n"
        "            return store(dW + start, column, n, v);",
    ),
    "random words of the wrong elements": ("gemm.cu", "if (n % 4 == 0) return", "if (n % 2 == 0) return"),
    "no dropout on the way back": ("gemm.cu", "        v = drop(v, start + column, m, dropout);\n", ""),
    "the latch sees what is past the end of a row": (
        "gemm.cu",
        "(column + k >= m || is_finite(v.x[k]))",
        "is_finite(v.x[k])",
    ),
    "wrong vector condition: past the end of a row": (
        "common.cuh",
        "if (aligned(p) && i + 4 <= size) return",
        "if (aligned(p) && i < size) return",
    ),
    "wrong vector condition: two of four elements": (
        "common.cuh",
        "if (aligned(p) && i + 4 <= size) {",
        "if (aligned(p) && i + 2 <= size) {",
    ),
}


def seeded(file, original, replacement):
    """Return the module with a fault in it."""
    text = resources.files("bpgpu.kernels").joinpath("cuda", file).read_text(encoding="utf-8")
    assert text.count(original) == 1
    whole = source("float32", ACTIVATION)
    assert whole.count(text) == 1
    return whole.replace(text, text.replace(original, replacement))


def check_all(module):
    for case in CASES:
        check(module, case, ("forward", "reverse"))


def test_the_source_as_it_is_passes():
    check_all(device.compile_module(source("float32", ACTIVATION)))


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_found(name):
    module = device.compile_module(seeded(*MUTANTS[name]))  # a fault that does not compile would prove nothing
    with pytest.raises((AssertionError, device.SimulatorError)), np.errstate(all="ignore"):
        check_all(module)
