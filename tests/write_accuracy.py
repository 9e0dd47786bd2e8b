"""Measure the whole parity matrix, simulated devices included, and write docs/accuracy.md.

    python -m tests.write_accuracy

Run it after a backend joins or a promise changes. The figures depend on the machine's libraries; the tests hold all
else of the page to what this writes.
"""

import platform
import textwrap
from pathlib import Path

import numpy as np

from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.proof import accuracy
from bpgpu.proof.accuracy_cases import CASES, NETWORKS, OPTIMIZER_CASES
from bpgpu.proof.bench import DTYPES, SHAPES
from tests import parity

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
TEXT = """\
# Accuracy

Written by `python -m tests.write_accuracy`; change the text there.

Every step of every backend is compared with the same step in extended precision, on the same inputs. This page gives
the largest errors allowed and the largest ones measured.

## The promise

> |result − truth| ≤ promised · eps · √max(1, n / 64) · scale

- eps is 2⁻²³ in float32 and 2⁻⁵² in float64; so 1 is one rounding of the largest result.
- n is the length of the sums behind a result: a layer's inputs or the rows of a batch, for any number of either.
- The scale of a product is the largest sum of the sizes of its terms, |x| |W| + |b|; that of a difference between
  output and target is at least its value where they are 1 apart; otherwise, the scale is the largest result. A result
  that is small compared with the others in its array has the same absolute error, not the same relative error.
- "Training: parameters" is the error of the change by two epochs of up to three steps. Longer training magnifies any
  rounding without bound: two backends that both keep the promise diverge in time.
- For dropout, the number of elements that differ in any bit is counted.

The tolerances leave room for the functions of a GPU, whose `exp`, `tanh` and `erfc` have documented errors a few
roundings larger than those of a CPU. They are still so tight that a factor of 1.0001 in float32, or float32 within
float64, is detected in every step with every activation, cost and optimizer
(`tests/proof/test_accuracy.py` plants them).

## Long sums

If the terms of a sum have the same sign, their roundings do not cancel, and if the terms are equal, all roundings are
the same: a plain sum of n such terms may be off by n / 6 roundings. So every backend computes long sums in blocks of
about √n terms, or carries their rounding errors along: gradients over the rows of a batch, dense and sparse, products
over many inputs, costs, penalties, norms, the totals of an epoch. The table below includes batches of up to 10⁶ rows of
constant, uniform and 0/1 data; on the simulated devices, up to 10⁵ (CuPy) and 10³ (Numba-CUDA).

Two cases are left to other libraries. A product of up to 256 terms, and any product for more than 16,384 results, goes
to BLAS in one piece, which adds up some hundred products one after another before it begins another sum (the engine's
product with a sparse X does the same with up to 256): if all of these are equal, the error may be up to some 25 units
instead of 8. How cuBLAS sums on a GPU has not been measured.

Constants that are small compared with 1 are kept separate from it: weights shrink by the penalty's own share, and the
state of an optimizer whose beta is near 1 moves by 1 − beta, each rounded separately; 1 − 2·10⁻⁸ would be 1 in float32.

## The largest errors seen

In the unit above, rounded up. The column "that is" is the promise times eps. Measured on {where}.

{tables}

{coverage}

## What the truth is

The truth is the reference of `bpgpu/backends/base.py` in NumPy's longest floating point: 64 bits of mantissa on x86. On
ARM Macs and on Windows that is float64 itself, so errors in float64 are differences from a float64 reference there.
`erfc`, in gelu, is SciPy's in float64 everywhere. Numbers such as learning rates and 1 / B are float64 in the truth, as
in training. Other checks show that the reference itself is right: central differences for every activation and cost
(`bpgpu gradcheck`), and sums written out (`tests/backends/test_backends.py`).

Inputs avoid values that magnify rounding in any arithmetic: with a cross-entropy behind an activation that has no exact
pair (all but sigmoid and softmax), outputs closer than 0.25 to 0 or 1. Adam and RMSprop get an epsilon of 0.01, so that
no step divides noise by noise.

## What is not known

"Simulated" means that the real kernels run thread by thread on a CPU: `exp` and `tanh` are the CPU's, there is no fused
multiply-add, and NumPy replaces cuBLAS. **No GPU has been measured yet** ([what that means](hardware.md)). TF32 is off;
if it is allowed, it breaks the promise.

Another page says which bits are the same from run to run: [same seed, same bits](guide.md#same-seed-same-bits).

## On your machine

```sh
bpgpu accuracy                  # every backend that runs here, a GPU included; exit code 1 if a promise is broken
bpgpu accuracy --backend numpy --json
```

or a part of it, from Python:

```python
import bpgpu
from bpgpu.proof.accuracy_cases import Case, measure
from bpgpu.proof.bench import Bench

bench = Bench(bpgpu.get_backend("auto"), "float32")
for each in measure(bench, Case("forward", ("tanh",))):
    print(f"{{each.operation}}, {{each.case}}: {{each.error:.2f}}", "as promised" if each.ok else "BROKEN")
```
"""


def page(errors: accuracy.Errors, where: str) -> str:
    """Return the page for errors measured somewhere."""
    coverage = (
        f"These cover {len(CASES)} cases in each dtype: {len(ACTIVATIONS)} activations, each with {len(COSTS)} costs "
        f"as an output layer, {len(OPTIMIZER_CASES)} optimizers, {len(SHAPES)} shapes (ragged, with one row, empty), "
        "contiguous, transposed and strided arrays, long sums of one-sided data, and training of "
        f"{len(NETWORKS)} networks. A slow simulation gets each case on two of the shapes, by turns. The cases are "
        "listed once, in `bpgpu/proof/accuracy_cases.py`, and `tests/proof/test_parity.py` holds every backend to the "
        "promise on every change."
    )
    tables = "\n\n".join(accuracy.table(errors, dtype) for dtype in DTYPES)
    return TEXT.format(where=where, tables=tables, coverage=textwrap.fill(coverage, 120))


def measured() -> accuracy.Errors:
    """Measure the whole matrix."""
    errors: accuracy.Errors = {}
    for entry in parity.MATRIX:
        with entry.ways() as ways:
            for way, backend in ways.items():
                benches = {dtype: entry.bench(backend, dtype) for dtype in DTYPES}
                errors[entry.label(way)] = {dtype: accuracy.measure(bench) for dtype, bench in benches.items()}
    return errors


if __name__ == "__main__":
    PAGE.write_text(page(measured(), f"{platform.system()}, {platform.machine()}, NumPy {np.__version__}"), "utf-8")
