"""The cost of one training step on the GPU: launches, bytes and FLOPs, counted from shapes; nothing is run.

There are two ways to make a step: with cuBLAS, in 5L + 2 launches for L layers, and with the fused GEMM, in 3L + 2 (two
fewer with cuBLAS if there are no biases, two more with either if the norm of the gradients is clipped). The minimum is
what a machine that kept everything but data, parameters and optimizer state on the chip would move and compute.

Each launch counts as reading every operand once and writing every result once, so tiles that are read again come from a
cache, and each call to cuBLAS counts as one launch. FLOPs are those of the matrix products, 2 for each multiply-add;
the fused GEMM also computes the parts of its tiles outside the product, which are counted separately.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from bpgpu.backends.cuda.launch import blocks
from bpgpu.backends.cuda.steps import TILE, row_chunks

TILE_DEPTH = 16  # of the fused GEMM
INDEX = 4  # bytes of a label and of an entry of the permutation


@dataclass(frozen=True)
class Step:
    """The shapes of a step.

    Parameters
    ----------
    sizes : tuple of int
        n_0 ... n_L.
    batch : int
        B, the rows.
    n_state : int
        Arrays of optimizer state, each as long as the parameters.
    itemsize : int
        Bytes of a number.
    bias, clip : bool
        Whether there are biases, and whether the norm of the gradients is clipped.
    """

    sizes: tuple[int, ...]
    batch: int
    n_state: int
    itemsize: int = 4
    bias: bool = True
    clip: bool = False

    @property
    def parameters(self) -> int:
        return sum(m * n + (n if self.bias else 0) for m, n in pairwise(self.sizes))


@dataclass(frozen=True)
class Launch:
    """One kernel: numbers read and written, other bytes, FLOPs, and FLOPs with the padding of its tiles."""

    kernel: str
    layer: int | None = None
    read: int = 0
    written: int = 0
    extra_bytes: int = 0
    flops: int = 0
    tile_flops: int = 0


def _product(kernel: str, layer: int, rows: int, depth: int, columns: int, *, fused: bool, read: int = 0) -> Launch:
    """Return the launch of a product (rows x depth) (depth x columns) that also reads `read` numbers."""
    flops = 2 * rows * depth * columns

    def padded(size: int, tile: int) -> int:
        return -(-size // tile) * tile

    tiled = 2 * padded(rows, TILE) * padded(columns, TILE) * padded(depth, TILE_DEPTH) if fused else flops
    operands = rows * depth + depth * columns + read
    return Launch(kernel, layer, operands, rows * columns, flops=flops, tile_flops=tiled)


def launches(step: Step, *, fused: bool) -> list[Launch]:
    """Return the launches of a step in order, with the fused GEMM or with cuBLAS; hidden layers keep no z."""
    n, B, L = step.sizes, step.batch, len(step.sizes) - 1
    b = [0, *(n[1:] if step.bias else [0] * L)]
    P, state = step.parameters, step.n_state
    # Labels become one-hot rows; each row has two more numbers, its weight and its share of the cost.
    found = [Launch("gather", None, B * n[0], B * (n[0] + n[L] + 2), extra_bytes=2 * B * INDEX)]
    for l in range(1, L + 1):
        name = "gemm_forward" if fused else "cublas"
        found.append(_product(name, l, B, n[l - 1], n[l], fused=fused, read=b[l] if fused else 0))
        if l < L and not fused:
            found.append(Launch("bias_sigma", l, B * n[l] + b[l], B * n[l]))
    bias = 0 if fused else b[L]
    found.append(Launch("output_delta", L, 2 * B * n[L] + 2 * B + bias, 3 * B * n[L] + B))
    for l in range(L - 1, 0, -1):
        name = "gemm_hidden" if fused else "cublas"
        found.append(_product(name, l, B, n[l + 1], n[l], fused=fused, read=B * n[l] if fused else 0))
        if not fused:
            found.append(Launch("hidden_delta", l, 2 * B * n[l], B * n[l]))
    for l in range(1, L + 1):
        product = _product("gemm_gradient" if fused else "cublas", l, n[l - 1], B, n[l], fused=fused)
        written = product.written + (b[l] if fused else 0)
        found.append(Launch(**(vars(product) | {"written": written})))
    if step.bias and not fused:
        partial_sums = row_chunks(B) * sum(n[1:])
        found.append(Launch("column_sums_partial", None, B * sum(n[1:]), partial_sums))
        found.append(Launch("column_sums_final", None, partial_sums, sum(n[1:])))
    if step.clip:
        partial_norms = 2 * blocks(P)
        found += [Launch("norm_partial", None, P, partial_norms), Launch("norm_final", None, partial_norms, 1)]
    found.append(Launch("update", None, P * (2 + state), P * (1 + state)))
    return found


def totals(step: Step, found: list[Launch]) -> dict[str, int]:
    """Add up launches."""
    return {
        "launches": len(found),
        "bytes": sum((one.read + one.written) * step.itemsize + one.extra_bytes for one in found),
        "flops": sum(one.flops for one in found),
        "tile_flops": sum(one.tile_flops for one in found),
    }


def minimum(step: Step) -> dict[str, int]:
    """Return the bytes of reading the batch and reading and writing parameters and state, and the FLOPs of products."""
    n, B = step.sizes, step.batch
    numbers = B * n[0] + 2 * step.parameters * (1 + step.n_state)
    products = 3 * sum(m * k for m, k in pairwise(n)) - n[0] * n[1]  # no delta for the input
    flops = 2 * B * products
    return {
        "launches": 1,
        "bytes": numbers * step.itemsize + 2 * B * INDEX,
        "flops": flops,
        "tile_flops": flops,
    }


def report(step: Step) -> dict[str, dict[str, Any]]:
    """Return the launches of both ways, and the totals of both ways and of the minimum."""
    ways = {"cublas": launches(step, fused=False), "fused": launches(step, fused=True)}
    return {
        "launches": {way: [asdict(launch) for launch in found] for way, found in ways.items()},
        "totals": {way: totals(step, found) for way, found in ways.items()} | {"minimum": minimum(step)},
    }
