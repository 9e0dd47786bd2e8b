"""What is asked of a formula of the user's own beyond its derivative: a name, and numbers wherever there are some."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpgpu.errors import FormulaError, shown
from bpgpu.kernels import formulas

# The types to try formulas in, each with the next wider one.
DTYPES: tuple[tuple[np.dtype[Any], np.dtype[Any]], ...] = (
    (np.dtype(np.float32), np.dtype(np.float64)),
    (np.dtype(np.float64), np.dtype(np.longdouble)),
)
_LONGEST_NAME = 100
_SIZES = [
    *([1e-30, 1e-20, 1e-10, 1e-5], np.arange(1, 129) / 4, np.arange(33, 129), np.arange(130, 760, 10)),
    *(np.arange(700.5, 750), np.geomspace(760, 1e4, 40)),
]
# z and a at which a formula is tried: up to 1e4, as those of the tables are, and close where exp overflows; and what is
# next to 1 in float32.
POINTS = np.unique(np.concatenate([*_SIZES, *(-sizes for sizes in map(np.asarray, _SIZES)), [0, 1 - 2.0**-24]]))
_ENDS = (0.0, 1.0)  # of probabilities; 0 is also what z is where all inputs or weights are


def name(kind: str, value: Any) -> None:
    """Raise if this is no name for an activation or a cost."""
    if not isinstance(value, str):
        raise TypeError(f"the name of {kind} must be text, got {shown(value)}")
    if not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise ValueError(
            f"the name of {kind} must have 1 to {_LONGEST_NAME} characters, all of them printable, got {shown(value)}"
        )


def numbers_everywhere(what: str, steps: Sequence[tuple[str, str, str]], **arguments: Any) -> None:
    """Try formulas in float32 and float64, one after another, where they should give finite numbers.

    That is where they do in the next wider type, and the result is not too large for the type: so a logarithm of a
    negative number is passed over, and infinity divided by infinity is not. At 0 and 1 they should also if they do
    beside it: 0 log 0 is not passed over.

    Parameters
    ----------
    what : str
        Whose formulas they are, for the error.
    steps : sequence of (name of the result, what it is called in the error, expression)
    **arguments : array of float64, or a number
        What the formulas read, besides results before theirs. The first is that by which the error says where.

    Raises
    ------
    FormulaError
        With the place nearest to 0 at which a formula should give a finite number and does not.
    """
    main, points = next(iter(arguments.items()))
    beside = arguments | {main: np.where(np.isin(points, _ENDS), points + np.where(points > 0.5, -1e-6, 1e-6), points)}
    for dtype, wider in DTYPES:
        given, near = ({key: np.asarray(value).astype(dtype) for key, value in x.items()} for x in (arguments, beside))
        exact, near = ({key: value.astype(wider) for key, value in x.items()} for x in (given, near))
        for result, called, expression in steps:
            tries = (dtype, given), (wider, exact), (wider, near)
            found, wanted, limit = (_evaluate(expression, kind, known) for kind, known in tries)
            given[result], exact[result], near[result] = found, wanted, limit
            wanted = np.where(np.isnan(wanted), limit, wanted)
            with np.errstate(all="ignore"):
                failed = ~np.isfinite(found) & np.isfinite(wanted) & (np.abs(wanted) <= np.finfo(dtype).max)
            if failed.any():
                places = np.flatnonzero(failed)
                at = places[np.argmin(np.abs(given[main][places]))]
                others = "".join(f", {key} = {value:g}" for key, value in arguments.items() if np.ndim(value) == 0)
                raise FormulaError(
                    f"{what}: at {main} = {given[main][at]:.6g}{others} in {dtype} the {called} "
                    f"{formulas.cut(expression)!r} gives {found[at]:.3g}, where {wanted[at]:.6g} is right; keep exp() "
                    "from overflowing, as in exp(-abs(...)), sigmoid() and softplus(), and log() and quotients from 0, "
                    "as in max(..., 1e-30)"
                )


def _evaluate(expression: str, dtype: np.dtype[Any], known: dict[str, Any]) -> Any:
    if "erf" in expression and dtype == np.longdouble:  # SciPy has erf and erfc in float64 at most
        dtype, known = np.dtype(np.float64), {key: value.astype(np.float64) for key, value in known.items()}
    function = formulas.numpy_function(expression, dtype)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SciPy's functions
        values = function(*(known.get(key) for key in ("z", "a", "y")))
    return np.broadcast_to(values, np.broadcast_shapes(*(np.shape(x) for x in known.values())))
