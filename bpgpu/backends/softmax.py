"""Softmax row by row, over any module with NumPy's interface."""

from typing import Any

Array = Any


def softmax(xp: Any, z: Array) -> tuple[Array, Array]:
    """Return softmax and its logarithm, through the log-sum-exp."""
    log_a = z - z.max(axis=1, keepdims=True)
    exp = xp.exp(log_a)
    total = exp.sum(axis=1, keepdims=True)
    log_a -= xp.log(total)
    return exp / total, log_a


def binary_cross_entropy(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return softmax, the binary cross-entropies of its outputs, and their delta; two outputs or more.

    Only the largest output a_m of a row can come near 1. So 1 - a_m and what is divided by it are taken from the
    softmax r of the other outputs, ``a_i = r_i (1 - a_m)``, and nothing is lost where a_m is rounded to 1:
    ``delta_i = (a_i - y_i) - a_i sum_{k != i} (a_k - y_k) / (1 - a_k)``.
    """
    a, log_a = softmax(xp, z)
    largest = xp.arange(z.shape[1]) == z.argmax(axis=1)[:, None]
    others = xp.where(largest, -xp.inf, z).astype(z.dtype)
    r, _ = softmax(xp, others)
    top = others.max(axis=1, keepdims=True)
    log_rest = xp.log(xp.exp(others - top).sum(axis=1, keepdims=True))
    # Of the largest (top + log_rest) - (z - log_a), two logarithms of sums; z and top, which may be large, first.
    log_complement = xp.where(largest, top - z + log_rest + log_a, xp.log1p(-xp.where(largest, 0, a)))
    values = -(_times(xp, y, log_a) + _times(xp, 1 - y, log_complement))
    quotient = xp.where(largest, 0, (a - y) / xp.where(largest, 1, 1 - a)).astype(z.dtype)
    error_of_largest = xp.where(largest, a - y, 0).sum(axis=1, keepdims=True)
    delta = (a - y) - a * (quotient.sum(axis=1, keepdims=True) - quotient)
    return a, values, delta - xp.where(largest, 0, r * error_of_largest)


def _times(xp: Any, y: Array, logarithm: Array) -> Array:
    """Return the product, 0 where y is 0 even if the logarithm is -inf."""
    return xp.where(y == 0, 0, y * logarithm).astype(logarithm.dtype)
