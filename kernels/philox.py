"""Philox4x32-10, the counter-based random generator behind dropout.

A random word is a function of a counter and a key alone, so any backend computes the same bits for any element, in
any order, and no mask is ever stored. Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
SC 2011.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int], rounds: int = 10) -> NDArray[np.uint32]:
    """Return the random words of a block of counters.

    Parameters
    ----------
    counter : array of uint32, shape (4, n)
    key : pair of int
        Two 32-bit words.
    rounds : int

    Returns
    -------
    array of uint32, shape (4, n)
    """
    c0, c1, c2, c3 = counter.astype(np.uint64)
    for round_ in range(rounds):
        k0, k1 = (np.uint64((k + round_ * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def threshold(rate: float) -> int:
    """Return the word below which an element is dropped, for a rate in [0, 1)."""
    return min(round(rate * 2**32), 2**32 - 1)


def keep_mask(
    shape: tuple[int, int], rate: float, *, seed: int, epoch: int, step: int, layer: int
) -> NDArray[np.bool_]:
    """Return which elements of a layer's activations dropout keeps.

    Element i (row-major) uses word ``i % 4`` of the block with counter ``(i // 4, step, epoch, layer)`` and the two
    halves of `seed` as key, and is dropped if the word is below ``min(round(rate * 2**32), 2**32 - 1)``.

    Parameters
    ----------
    shape : pair of int
        (rows, columns) of the batch at this layer.
    rate : float
        Probability that an element is dropped, in [0, 1).
    seed : int
        64 bits.
    epoch, step, layer : int
        Counted from 0 over the life of the network, from 0 in the epoch, and from 1; 32 bits each.

    Returns
    -------
    array of bool, shape `shape`
    """
    size = shape[0] * shape[1]
    counter: NDArray[Any] = np.empty((4, -(-size // 4)), dtype=np.uint32)
    counter[0] = np.arange(counter.shape[1])
    counter[1:] = np.array([[step], [epoch], [layer]], dtype=np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    keep: NDArray[np.bool_] = words.T.reshape(-1)[:size] >= np.uint32(threshold(rate))
    return keep.reshape(shape)
