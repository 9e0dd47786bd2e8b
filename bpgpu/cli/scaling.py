"""Standardisation of columns, and how it is folded into a network."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.mlp import MLP

Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each column, float64.

    A column that is constant, up to the rounding of its mean, has deviation 1 and becomes 0; `varies` is False there.
    """

    mean: Matrix
    deviation: Matrix
    varies: Matrix | bool = True

    @classmethod
    def learn(cls, blocks: Iterable[Matrix]) -> "Standardisation":
        """Measure the columns of a matrix given in blocks of rows, which are iterated three times."""
        largest: Matrix = np.max([np.abs(block).max(axis=0) for block in blocks], axis=0)
        exponents = np.frexp(largest)[1]
        rows = sum(len(block) for block in blocks)
        # Scaling is exact, and squares neither overflow nor underflow.
        mean = sum(np.ldexp(block, -exponents).sum(axis=0) for block in blocks) / rows
        variance = sum(((np.ldexp(block, -exponents) - mean) ** 2).sum(axis=0) for block in blocks) / rows
        deviation = np.sqrt(variance)
        varies = deviation > 10 * np.finfo(np.float64).eps * rows * np.abs(mean)
        return cls(np.ldexp(mean, exponents), np.where(varies, np.ldexp(deviation, exponents), 1.0), varies)

    def apply(self, matrix: Matrix) -> Matrix:
        """Return the standardised matrix."""
        standard: Matrix = self.varies * (matrix - self.mean) / self.deviation
        return standard

    def applied(self, blocks: Iterable[Matrix], rows: int, dtype: np.dtype[Any]) -> Matrix:
        """Return the standardised matrix of `rows` rows, given in blocks, in `dtype`."""
        standard = np.empty((rows, len(self.mean)), dtype)
        row = 0
        for block in blocks:
            standard[row : row + len(block)] = self.apply(block)
            row += len(block)
        return standard

    @property
    def remoteness(self) -> float:
        """The largest ratio of mean to deviation, by which folding multiplies the rounding error of the first layer."""
        return float(np.max(self.varies * np.abs(self.mean) / self.deviation))

    def fold_into_input(self, net: MLP) -> None:
        """Change the first layer so that the network takes raw columns: ``(x - m) / s W = x (W / s) - (m / s) W``.

        A constant column, which was 0 in training, is disconnected.
        """
        flat, weights, biases = _host_parameters(net)
        weights[0] *= np.reshape(self.varies / self.deviation, (-1, 1))
        biases[0] -= self.mean @ weights[0]
        net.parameters = net.backend.asarray(flat, net.architecture.dtype)

    def fold_into_output(self, net: MLP) -> None:
        """Change the last layer, whose activation is identity, so that the network returns raw targets: ``a s + m``."""
        flat, weights, biases = _host_parameters(net)
        weights[-1] *= self.deviation
        biases[-1] *= self.deviation
        biases[-1] += self.mean
        net.parameters = net.backend.asarray(flat, net.architecture.dtype)


def in_float64(net: MLP) -> None:
    """Convert a network to float64, because its outputs may be farther from 0 than float32 can resolve."""
    net.architecture = dataclasses.replace(net.architecture, dtype=np.dtype(np.float64))
    net.parameters = net.backend.asarray(net.backend.to_numpy(net.parameters), net.architecture.dtype)


def _host_parameters(net: MLP) -> tuple[Matrix, list[Any], list[Any]]:
    """Return a float64 copy of the parameters, and its weights and biases as views."""
    flat = net.backend.to_numpy(net.parameters).astype(np.float64)
    return flat, *net.architecture.views(flat)
