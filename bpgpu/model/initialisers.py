"""Initial weights.

The host random stream of layer l (from 1) is ``numpy.random.default_rng([seed, 0, l])``; it is read once, row by row,
in float64 and rounded to the network's dtype, so every backend and dtype starts from the same numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpgpu.checks import finite, numeric
from bpgpu.errors import short_repr, unknown_name
from bpgpu.model.activations import ACTIVATIONS, Activation

# name: (numerator, fan, distribution): variance = numerator / fan.
INITIALISERS: dict[str, tuple[float, str, str]] = {
    "glorot_uniform": (1.0, "mean", "uniform"),  # Glorot and Bengio 2010
    "glorot_normal": (1.0, "mean", "normal"),
    "he_uniform": (2.0, "in", "uniform"),  # He et al. 2015
    "he_normal": (2.0, "in", "normal"),
    "lecun_uniform": (1.0, "in", "uniform"),  # LeCun et al. 1998
    "lecun_normal": (1.0, "in", "normal"),
    "zeros": (0.0, "in", "normal"),
}
ALIASES = {"glorot": "glorot_uniform", "he": "he_normal", "lecun": "lecun_normal"}
_SATURATING = [ACTIVATIONS[name] for name in ("identity", "sigmoid", "tanh", "softmax")]


def initial_weights(
    init: str, seed: int, sizes: tuple[int, ...], activations: Sequence[Activation]
) -> list[np.ndarray[Any, Any]]:
    """Draw the initial weights of all layers.

    Parameters
    ----------
    init : str
        A name of `INITIALISERS`, or "auto": He's for the activations that are near linear for positive z (relu and
        its relatives, and the user's own), Glorot's for the others.
    seed : int
    sizes : tuple of int
    activations : sequence of Activation

    Returns
    -------
    list of array of float64, shape (n_{l-1}, n_l)

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if init != "auto" and ALIASES.get(init, init) not in INITIALISERS:
        raise unknown_name("init", init, ["auto", *ALIASES, *INITIALISERS])
    weights = []
    for l, (m, n, activation) in enumerate(zip(sizes[:-1], sizes[1:], activations, strict=True), start=1):
        name = ("glorot" if activation in _SATURATING else "he") if init == "auto" else init
        numerator, fan, distribution = INITIALISERS[ALIASES.get(name, name)]
        deviation = math.sqrt(numerator / (m if fan == "in" else (m + n) / 2))
        rng = np.random.default_rng([seed, 0, l])
        if distribution == "uniform":
            weights.append(rng.uniform(-1.0, 1.0, (m, n)) * (deviation * math.sqrt(3)))
        else:
            weights.append(rng.standard_normal((m, n)) * deviation)
    return weights


def given_weights(
    init: Sequence[Any], sizes: tuple[int, ...], bias: bool, dtype: np.dtype[Any]
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any] | None]]:
    """Check weights from the user: a pair (W, b) for each layer, or only W without biases.

    Raises
    ------
    ValueError, TypeError
        If the number of layers or a shape is wrong, or an entry is not a finite number.
    """
    what = "a pair (W, b)" if bias else "an array W"
    if not isinstance(init, Sequence | np.ndarray):
        raise TypeError(f"init must be a name, or a list of {what} for each layer, got {short_repr(init)}")
    if len(init) != len(sizes) - 1:
        raise ValueError(f"init must hold {what} for each of {len(sizes) - 1} layers, got {len(init)}")
    weights, biases = [], []
    for l, (m, n, layer) in enumerate(zip(sizes[:-1], sizes[1:], init, strict=True)):
        if bias and not (isinstance(layer, tuple | list) and len(layer) == 2):
            raise ValueError(f"init[{l}] must be {what}, got {type(layer).__name__}")
        W, b = layer if bias else (layer, None)
        weights.append(_of_shape(f"W of init[{l}]", W, (m, n), dtype))
        biases.append(_of_shape(f"b of init[{l}]", b, (n,), dtype) if bias else None)
    return weights, biases


def _of_shape(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    array = numeric(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return finite(name, array, dtype)
