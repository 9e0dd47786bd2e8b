"""Checks of the arrays that a user passes in, where they lie: on the host or in the memory of a backend."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bpgpu.backends.memory import Array, Memory
from bpgpu.checks import Matrix, finite, numeric
from bpgpu.errors import short_repr
from bpgpu.interop import is_sparse, on_gpu
from bpgpu.model.costs import Cost
from bpgpu.sparse import compressed_rows


def samples(name: str, X: Any, columns: int, dtype: np.dtype[Any], backend: Memory) -> Array:
    """Return the input as a finite array of `dtype` and shape (n, columns), n at least 1, where it lies.

    A sparse matrix of SciPy becomes a CSR array; see `bpgpu.sparse.compressed_rows`.

    Raises
    ------
    ValueError, TypeError
    """
    array = X if on_gpu(X) or is_sparse(X) else numeric(name, X)
    if array.ndim != 2:
        fix = f"; for one sample pass {name}[None, :]" if array.ndim == 1 else "; flatten each sample to a row"
        raise ValueError(f"{name} must have shape (samples, {columns}), got {array.ndim} dimensions{fix}")
    if array.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got shape {array.shape}")
    if array.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns, the size of the input layer, got shape {array.shape}")
    return compressed_rows(name, array, dtype) if is_sparse(array) else _finite_in_place(name, array, dtype, backend)


def _finite_in_place(name: str, array: Array, dtype: np.dtype[Any], backend: Memory) -> Array:
    """Return what `finite` does; an array on the device stays there."""
    if on_gpu(array) and array.dtype.kind in "buif":
        converted = backend.asarray(array, dtype)
        if backend.all_finite(converted):
            return converted
    return finite(name, numeric(name, backend.to_numpy(array)), dtype)


def targets(name: str, y: Any, n: int, outputs: int, cost: Cost, dtype: np.dtype[Any], backend: Memory) -> Array:
    """Return the targets as floats of shape (n, outputs), where they lie, or as integer labels of shape (n,).

    One-dimensional targets are the one column of a single output, or the labels 0 ... K-1 of K outputs.

    Raises
    ------
    ValueError, TypeError
    """
    array = y if on_gpu(y) else numeric(name, y)
    expected = f"({n}, {outputs})" + (f" or ({n},)" if outputs == 1 else f", or ({n},) of labels 0 ... {outputs - 1}")
    if array.ndim not in (1, 2) or len(array) != n or (array.ndim == 2 and array.shape[1] != outputs):
        raise ValueError(f"{name} must have shape {expected}, for {n} samples and {outputs} outputs; got {array.shape}")
    if array.ndim == 1 and outputs > 1:
        return _labels(name, numeric(name, backend.to_numpy(array)), outputs)
    if on_gpu(array) and array.dtype.kind in "buif":
        array = backend.asarray(array, array.dtype)  # contiguous, so that it can be reshaped
    targets = _finite_in_place(name, array.reshape(n, outputs), dtype, backend)
    if cost.wants_probabilities:
        values = backend.to_numpy(targets)
        if not ((values >= 0) & (values <= 1)).all():
            outside = values[(values < 0) | (values > 1)][0]
            raise ValueError(f"{name} must lie in [0, 1] for the cost {cost.name!r}, got {outside}")
    return targets


def _labels(name: str, array: Matrix, outputs: int) -> Matrix:
    what = f"{name} of one dimension must hold the labels 0 ... {outputs - 1}, one for each of {outputs} outputs"
    integral = np.isfinite(array) & (array == np.trunc(array)) if array.dtype.kind == "f" else np.ones(len(array), bool)
    good = integral & (array >= 0) & (array < outputs)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"{what}, got {array[row]} in row {row}; for {outputs} targets a sample pass shape (samples, {outputs})"
        )
    return array.astype(np.int32)


def sample_weights(name: str, weights: Any, n: int, dtype: np.dtype[Any], backend: Memory) -> Matrix | None:
    """Return the sample weights as an array of shape (n,), or None for None.

    Raises
    ------
    ValueError, TypeError
        If one is negative or not finite, all are zero, or the shape is not (n,).
    """
    if weights is None:
        return None
    array = numeric(name, backend.to_numpy(weights) if on_gpu(weights) else weights)
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one number for each sample, got {array.shape}")
    array = finite(name, array, np.result_type(array.dtype, np.float64))
    if (array < 0).any():
        row = int(np.argmax(array < 0))
        raise ValueError(f"{name} must be 0 or more, got {array[row]} in row {row}")
    if not array.any():
        raise ValueError(f"{name} must not all be 0: there would be nothing to learn from")
    # Only the ratios matter. A power of two scales without rounding, so that the sum cannot overflow. Scaling comes
    # before the conversion, because `dtype` may have a smaller range.
    with np.errstate(under="ignore"):
        scaled: Matrix = np.ldexp(array, -np.frexp(array.max())[1]).astype(dtype)
    return scaled


def connectivity(masks: Any, sizes: tuple[int, ...], dtype: np.dtype[Any]) -> list[Matrix | None]:
    """Return the connectivity masks, one of 0 and 1 or None for each layer.

    Raises
    ------
    TypeError, ValueError
    """
    shapes = list(pairwise(sizes))
    if masks is None:
        return [None] * len(shapes)
    if not isinstance(masks, Sequence) or len(masks) != len(shapes):
        raise ValueError(
            f"connectivity must be a list with one mask or None for each of {len(shapes)} layers, got "
            f"{_length_or_repr(masks)}"
        )
    checked: list[Matrix | None] = []
    for l, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
        if mask is None:
            checked.append(None)
            continue
        array = numeric(f"connectivity[{l}]", mask)
        if array.shape != shape:
            raise ValueError(f"connectivity[{l}] must have shape {shape}, that of the weights, got {array.shape}")
        if not ((array == 0) | (array == 1)).all():
            raise ValueError(f"connectivity[{l}] must hold only 0 and 1, got {array[(array != 0) & (array != 1)][0]}")
        checked.append(np.array(array, dtype=dtype, order="C"))  # a copy: the connectivity is fixed
    return checked


def thetas(matrices: Any) -> list[Matrix]:
    """Return the Theta matrices as arrays, each of shape (n_l, n_{l-1} + 1).

    Raises
    ------
    TypeError, ValueError
        If there are none, or one is not a matrix or does not take the outputs of the one before.
    """
    if not hasattr(matrices, "__len__"):
        raise TypeError(f"thetas must be a sequence of matrices, one for each layer, got {short_repr(matrices)}")
    if len(matrices) == 0:
        raise ValueError("thetas must hold one matrix for each layer, got none")
    arrays = [numeric(f"thetas[{l}]", theta) for l, theta in enumerate(matrices)]
    for l, theta in enumerate(arrays):
        if theta.ndim != 2 or theta.shape[1] < 2 or theta.shape[0] < 1:
            raise ValueError(f"thetas[{l}] must be a matrix (n_l, n_(l-1) + 1), got shape {theta.shape}")
        if l and theta.shape[1] != arrays[l - 1].shape[0] + 1:
            raise ValueError(
                f"thetas[{l}] must have {arrays[l - 1].shape[0] + 1} columns, one for the bias and one for each "
                f"row of thetas[{l - 1}], got shape {theta.shape}"
            )
    return arrays


def _length_or_repr(value: Any) -> str:
    return f"{type(value).__name__} of length {len(value)}" if hasattr(value, "__len__") else short_repr(value)
