"""The architecture of a network: everything but its numbers, without arrays or devices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from bpgpu import checks
from bpgpu.errors import short_repr
from bpgpu.kernels.formulas import names_used
from bpgpu.model.activations import Activation, layer_activations
from bpgpu.model.costs import Cost, get_cost, output_formulas

WRITE_INTO = "write into the existing array, as in net.parameters[...] = values"


@dataclass(frozen=True)
class Architecture:
    """The architecture of a network: everything but its numbers, without arrays or devices.

    ``sizes[l]`` is n_l and ``activations[l - 1]`` is sigma_l, for layers l = 1 ... L. With `by_weight`, as in
    scikit-learn, lambda is divided by the weight of a batch, and an epoch's mean weights batches by their rows; without
    it, the other way round. The cost of a row counts as at most `largest_cost`, its gradient in full.
    """

    sizes: tuple[int, ...]
    activations: tuple[Activation, ...]
    cost: Cost
    bias: bool
    l2: float
    dropout: float
    dtype: np.dtype[Any]
    seed: int
    by_weight: bool = False
    largest_cost: float = math.inf

    @classmethod
    def checked(
        cls, sizes: Any, activations: Any, cost: Any, *, bias: Any, l2: Any, dropout: Any, dtype: Any, seed: Any
    ) -> Self:
        """Return the architecture from these arguments of `MLP`, in plain Python types.

        Raises
        ------
        TypeError, ValueError
            If one is not as `MLP` describes.
        """
        layer_sizes = checks.layer_sizes(sizes)
        architecture = cls(
            sizes=layer_sizes,
            activations=layer_activations(activations, len(layer_sizes) - 1),
            cost=get_cost(cost),
            bias=checks.flag("bias", bias),
            l2=checks.not_negative("l2", l2),
            dropout=checks.fraction("dropout", dropout),
            dtype=checks.floating_dtype(dtype),
            seed=checks.integer("seed", seed, 0, 2**64 - 1),
        )
        checks.held("l2", architecture.l2, architecture.dtype)
        for formula in output_formulas(architecture.activations[-1], architecture.cost):
            names_used(formula)  # combined, they may exceed the length limit of formulas
        return architecture

    def decay(self, rows: int, weight: float) -> float:
        """Return lambda / m for a batch."""
        m = weight if self.by_weight else rows
        return self.l2 / m if m else 0.0

    @property
    def n_weights(self) -> int:
        """Number of weights, including masked ones."""
        return sum(m * n for m, n in pairwise(self.sizes))

    @property
    def n_parameters(self) -> int:
        """Length of the flat buffer: weights, then biases."""
        return self.n_weights + (sum(self.sizes[1:]) if self.bias else 0)

    def views(self, flat: Any) -> tuple[list[Any], list[Any]]:
        """Cut a flat buffer into views.

        The weights of all layers come first, then the biases of all layers, so that operations on weights alone (the
        penalty, weight decay) work on one contiguous piece.

        Parameters
        ----------
        flat : array, shape (n_parameters,)

        Returns
        -------
        (list of array, shape (n_{l-1}, n_l)), (list of array, shape (n_l,), or None without biases)

        Raises
        ------
        ValueError, TypeError
            If the buffer has another shape, or is not an array.
        """
        if (shape := getattr(flat, "shape", None) if hasattr(flat, "reshape") else None) != (self.n_parameters,):
            kind, got = (TypeError, short_repr(flat)) if shape is None else (ValueError, shape)
            raise kind(f"parameters must have shape ({self.n_parameters},), got {got}; {WRITE_INTO}")
        weights, biases, start = [], [], 0
        for m, n in pairwise(self.sizes):
            weights.append(flat[start : start + m * n].reshape(m, n))
            start += m * n
        for n in self.sizes[1:]:
            biases.append(flat[start : start + n] if self.bias else None)
            start += n
        return weights, biases

    def check_parameters(self, flat: Any) -> None:
        """Raise ValueError or TypeError if a backend could not use these parameters unchanged."""
        self.views(flat)
        if not _is_plain(flat, self.dtype):
            raise TypeError(
                f"parameters must be a contiguous and aligned array of {self.dtype}, got {flat.dtype}"
                f"{'' if flat.dtype != self.dtype else ' that is not'}; {WRITE_INTO}"
            )

    def check_masks(self, masks: Any) -> list[Any]:
        """Return the masks of all layers as a new list, or raise ValueError; None means no masks."""
        shapes = list(pairwise(self.sizes))
        given = [None] * len(shapes) if masks is None else list(masks) if isinstance(masks, Sequence) else []
        fits = [
            mask is None or (getattr(mask, "shape", None) == shape and _is_plain(mask, self.dtype))
            for mask, shape in zip(given, shapes, strict=False)
        ]
        if len(given) != len(shapes) or not all(fits):
            raise ValueError(
                f"masks must hold a contiguous array of {self.dtype} or None for each of the shapes {shapes}, got "
                f"{short_repr(masks)}; pass connectivity to bpgpu.MLP"
            )
        return given


def _is_plain(array: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether compiled code can take a backend's array unchanged."""
    plain = not isinstance(array, np.ndarray) or (array.flags.c_contiguous and array.flags.aligned)
    return bool(plain and array.dtype == dtype)
