"""Softmax row by row, over any module with NumPy's interface."""

from collections.abc import Callable
from typing import Any

Array = Any


def exponentials(xp: Any, z: Array) -> tuple[Array, Array, Array, Array]:
    """Return z less its row's largest, exp of it, where that is 1, and the sum of the row's other exponentials.

    With that sum, ``rest``, nothing is lost where the largest output is rounded to 1: ``1 - a = rest / (1 + rest)``.
    Of several that are 1, all but one are among the others.
    """
    shifted = z - z.max(axis=1, keepdims=True)
    exp = xp.exp(shifted)
    largest = exp == 1
    others = xp.where(largest, z.dtype.type(0), exp).sum(axis=1, keepdims=True)
    return shifted, exp, largest, others + (largest.sum(axis=1, keepdims=True) - 1).astype(z.dtype)


def softmax(xp: Any, z: Array) -> Array:
    """Return softmax, row by row."""
    _, exp, _, rest = exponentials(xp, z)
    return exp / (1 + rest)


def cross_entropy(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return softmax, the terms of ``-sum_k y_k log a_k``, and their delta ``sum_k y_k (a_i - [i = k])``."""
    shifted, exp, largest, rest = exponentials(xp, z)
    a, complement = exp / (1 + rest), xp.where(largest, rest, 1 + rest - exp) / (1 + rest)
    values = -_times(xp, y, shifted - xp.log1p(rest))
    return a, values, (y.sum(axis=1, keepdims=True) - y) * a - y * complement


def binary_cross_entropy(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return softmax, the binary cross-entropies of its outputs, and their delta; two outputs or more.

    Only the largest output a_m of a row can come near 1. So 1 - a_m and what is divided by it are taken from the
    softmax r of the other outputs, ``a_i = r_i (1 - a_m)``, and nothing is lost where a_m is rounded to 1:
    ``delta_i = (a_i - y_i) - a_i sum_{k != i} (a_k - y_k) / (1 - a_k)``.
    """
    top_z = z.max(axis=1, keepdims=True)
    largest = xp.arange(z.shape[1]) == z.argmax(axis=1)[:, None]
    others = xp.where(largest, -xp.inf, z).astype(z.dtype)
    r, top = softmax(xp, others), others.max(axis=1, keepdims=True)
    rest = xp.exp(others - top).sum(axis=1, keepdims=True)
    odds = xp.exp(top - top_z) * rest  # (1 - a_m) / a_m
    log_total = xp.log1p(odds)
    a = xp.where(largest, 1, r * odds) / (1 + odds)
    log_complement = xp.where(largest, top - top_z + xp.log(rest) - log_total, xp.log1p(-xp.where(largest, 0, a)))
    values = -(_times(xp, y, z - top_z - log_total) + _times(xp, 1 - y, log_complement))
    error = xp.where(largest, (1 - y) * a - y * odds / (1 + odds), a - y)
    quotient = xp.where(largest, 0, error / xp.where(largest, 1, 1 - a)).astype(z.dtype)
    error_of_largest = xp.where(largest, error, 0).sum(axis=1, keepdims=True)
    delta = error - a * (quotient.sum(axis=1, keepdims=True) - quotient)
    return a, values, delta - xp.where(largest, 0, r * error_of_largest)


def any_cost(
    xp: Any, z: Array, y: Array, value: Callable[..., Array], gradient: Callable[..., Array]
) -> tuple[Array, Array, Array]:
    """Return softmax, costs of its outputs, and their delta ``a_i (g_i - sum_k g_k a_k)`` with ``g = dC/da``.

    Value and gradient are functions of 1 - a, a and y. For the largest output a_m of a row the delta is taken as
    ``a_m (g_m (1 - a_m) - sum_{k != m} g_k a_k)``, with the sum of the others as 1 - a_m.
    """
    a = softmax(xp, z)
    largest = xp.arange(z.shape[1]) == z.argmax(axis=1)[:, None]

    def sum_where(condition: Array, x: Array) -> Array:
        return xp.where(condition, x, x.dtype.type(0)).sum(axis=1, keepdims=True)

    complement = xp.where(largest, sum_where(~largest, a), 1 - a)
    g_a = gradient(complement, a, y) * a
    own, others = sum_where(largest, g_a), sum_where(~largest, g_a)
    delta = xp.where(largest, g_a * complement - a * others, g_a - a * (own + others))
    return a, value(complement, a, y), delta


def _times(xp: Any, y: Array, logarithm: Array) -> Array:
    """Return the product, 0 where y is 0 even if the logarithm is -inf."""
    return xp.where(y == 0, 0, y * logarithm).astype(logarithm.dtype)
