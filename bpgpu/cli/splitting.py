"""Which rows are held out."""

import contextlib
import re
from pathlib import Path

import numpy as np

from bpgpu.cli.columns import Matrix


def split(rows: int, fraction: float, seed: int, strata: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Return the row numbers of the training part and of the held-out part.

    The first rows of ``numpy.random.default_rng([seed, 3]).permutation(rows)`` are held out. With `strata`, the class
    numbers of the rows, the k-th of a class's n rows in that order is moved to ``(k - 1/2) / n``, so that the held-out
    part has each class in its proportion.

    Raises
    ------
    ValueError
        If one part would be empty.
    """
    held_out = round(rows * fraction)
    if not 0 < held_out < rows:
        raise ValueError(
            f"--validation {fraction:g} of {rows} rows leaves a part empty; give another fraction or a file"
        )
    order = np.random.default_rng([seed, 3]).permutation(rows)
    if strata is not None:
        of_class, sizes = strata[order], np.bincount(strata)
        by_class = np.argsort(of_class, kind="stable")
        place = np.empty(rows)
        place[by_class] = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = order[np.argsort((place + 0.5) / sizes[of_class], kind="stable")]
    return order[held_out:], order[:held_out]


def fraction_of(validation: str) -> float | None:
    """Return the part of the rows to hold out, or None if `validation` names a file.

    Raises
    ------
    ValueError
        If it is a number outside (0, 1), or looks like a number, such as 20%, and no file has that name.
    """
    fraction = None
    with contextlib.suppress(ValueError):
        fraction = float(validation)
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"--validation must be a fraction in (0, 1) or a file, got {validation}")
    if fraction is None and re.fullmatch(r"[\d.,/ ]*\d[.,/ ]*%?", validation) and not Path(validation).exists():
        raise ValueError(
            f"--validation must be a fraction in (0, 1) or a file, got {validation}; write a fraction as in 0.2"
        )
    return fraction


def strata(encoded: Matrix) -> Matrix:
    """Return the class number of each row; with several targets, that of their combination."""
    numbers: Matrix = np.unique(encoded.reshape(len(encoded), -1), axis=0, return_inverse=True)[1]
    return numbers.ravel()
