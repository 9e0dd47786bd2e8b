"""Data that ships with bpgpu; ``digits.txt`` beside it names source and licence."""

import gzip
from importlib.resources import files
from typing import Any

import numpy as np


def load_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the UCI handwritten digits.

    Returns
    -------
    X : array of float64, shape (1797, 64)
        Grey levels 0 ... 16 of 8x8 pixels, row by row.
    y : array of int64, shape (1797,)
        The digits 0 ... 9.
    """
    text = gzip.decompress(files(__name__).joinpath("digits.csv.gz").read_bytes()).decode()
    table = np.loadtxt(text.splitlines(), delimiter=",", skiprows=1, dtype=np.int64)
    return table[:, :-1].astype(np.float64), table[:, -1]
