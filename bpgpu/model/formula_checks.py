"""Checks of a user's own formulas: a name, finite numbers wherever there are some, and the right derivative."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bpgpu.errors import FormulaError, short_repr
from bpgpu.kernels import formulas, rules

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
# Values of z and a at which formulas are tried: up to 1e4, as for the tables, dense where exp overflows, and the one
# next to 1 in float32.
POINTS = np.unique(np.concatenate([*_SIZES, *(-sizes for sizes in map(np.asarray, _SIZES)), [0, 1 - 2.0**-24]]))
OFF_KINKS = 0.00123  # added to points where derivatives are compared, because the usual kinks are at integers
_FAR = POINTS[np.abs(POINTS) >= 0.25] + OFF_KINKS
# p and g at which the formulas of an optimizer are tried, and the steps, each from the state that the last one left.
_SMALL = np.array([0, 1e-30, 1e-10, 1e-5, 1e-3, 0.1, 1, 10, 1e3])
_SIGNED = np.concatenate([-_SMALL, _SMALL])
_P, _G = (grid.ravel() for grid in np.meshgrid(_SIGNED, _SIGNED))
_STEPS = (1, 2, 3, 4, 5, 100, 10_000, 1_000_000)
_ETA = 0.01
_ENDS = (0.0, 1.0)  # of probabilities; z is also 0 if all inputs or weights are


def name(kind: str, value: Any) -> None:
    """Raise if a value is not a valid name for an activation or a cost."""
    if not isinstance(value, str):
        raise TypeError(f"the name of {kind} must be text, got {short_repr(value)}")
    if not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise ValueError(
            f"the name of {kind} must have 1 to {_LONGEST_NAME} characters, all printable, got {short_repr(value)}"
        )


def numbers_everywhere(what: str, steps: Sequence[tuple[str, str, str]], **arguments: Any) -> None:
    """Try formulas in float32 and float64, one after another, where they should give finite numbers.

    They should where they do in the next wider type and the result is not too large for the type: a logarithm of a
    negative number is skipped, but infinity divided by infinity is not. At 0 and 1, they also should if they do next to
    the point: 0 log 0 is not skipped.

    Parameters
    ----------
    what : str
        The owner of the formulas, which the error names.
    steps : sequence of (name of the result, its name in the error, expression)
    **arguments : array of float64, or a number
        Variables of the formulas, in addition to earlier results. The error gives its place by the first of them.

    Raises
    ------
    FormulaError
        With the point nearest to 0 at which a formula should give a finite number but does not.
    """
    main, points = next(iter(arguments.items()))
    nearby = arguments | {main: np.where(np.isin(points, _ENDS), points + np.where(points > 0.5, -1e-6, 1e-6), points)}
    for dtype, wider in DTYPES:
        given, near = ({key: np.asarray(value).astype(dtype) for key, value in x.items()} for x in (arguments, nearby))
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


def first_wrong_derivative(
    value: Callable[[Any], Any], derivative: Callable[[Any], Any], points: Any
) -> tuple[float, float, float] | None:
    """Compare a derivative with central differences of its value, in float64, where rounding does not matter.

    Kinks (points where the one-sided differences keep disagreeing) and points where the value is not finite are
    skipped; if that leaves less than a quarter of the points, the first skipped one counts as wrong.

    Parameters
    ----------
    value, derivative : function
        Of one float64 array.
    points : array of float64

    Returns
    -------
    (point, derivative, difference) or None
        The worst point, or None if all agree to 1e-6 relative.
    """
    step = 1e-4
    with np.errstate(all="ignore"):
        near = _values_near(value, points, step)
        given = _values(derivative, points)
        difference = (8 * (near[1] - near[-1]) - (near[2] - near[-2])) / (12 * step)
        coarse = (near[2] - near[-2]) / (4 * step)
        bend = np.abs(near[1] - 2 * near[0] + near[-1]) / step  # jump of the one-sided slopes; O(step) if smooth
        scale = 1 + np.abs(difference)
        smooth = np.isfinite(difference) & (np.abs(difference - coarse) < 1e-2 * scale) & (bend < 1e-2 * scale)
        error = np.where(smooth, np.abs(given - difference) / scale, -1.0)
    error[smooth & ~np.isfinite(given)] = math.inf
    if 4 * np.count_nonzero(smooth) < smooth.size:
        worst = int(np.argmin(smooth))
    else:
        worst = int(np.argmax(error))
        if error[worst] < 1e-6:
            return None
    return float(points[worst]), float(given[worst]), float(difference[worst])


def wrong_derivative_far_out(
    value: Callable[[Any], Any], derivative: Callable[[Any], Any], around: Any = ()
) -> tuple[float, float, float] | None:
    """Compare a derivative with differences of its value at sizes up to 1e4, where rounding matters.

    No single step is right there for all formulas: a short one drowns in rounding, a long one covers kinks and waves.
    So several are tried, and a step counts if its differences to the left and to the right agree. The derivative is
    wrong where at least two steps count and it disagrees with each by more than the differences of that step disagree.

    Parameters
    ----------
    value, derivative : function
        As in `first_wrong_derivative`.
    around : array of float64, optional
        More points.

    Returns
    -------
    (point, derivative, difference) or None
        The wrong point nearest to 0, or None.
    """
    points = np.concatenate([_FAR, around])
    sizes = np.exp2(np.floor(np.log2(np.abs(points))))
    counted, agree = np.zeros(points.shape, int), np.zeros(points.shape, bool)
    found = np.full(points.shape, np.nan)
    with np.errstate(all="ignore"):
        given = _values(derivative, points)
        for step in (2.0**-16, 2.0**-12, 2.0**-8, sizes * 2.0**-10):  # powers of 2 are added exactly
            near = _values_near(value, points, step)
            left = (3 * near[0] - 4 * near[-1] + near[-2]) / (2 * step)
            right = (4 * near[1] - 3 * near[0] - near[2]) / (2 * step)
            difference = (8 * (near[1] - near[-1]) - (near[2] - near[-2])) / (12 * step)
            coarse = (near[2] - near[-2]) / (4 * step)
            scale, apart = 1 + np.abs(difference), np.abs(left - right)
            largest = np.max(np.abs(list(near.values())), axis=0)
            rounding = 8 * np.finfo(np.float64).eps * (largest + np.abs(points * difference)) / step
            counts = np.maximum(np.maximum(apart, np.abs(difference - coarse)), rounding) < 1e-2 * scale
            counted += counts
            agree |= counts & (np.abs(given - difference) <= 1e-6 * scale + 2 * apart + rounding)
            found = np.where(counts, difference, found)
    wrong = np.flatnonzero((counted >= 2) & ~agree)
    if not len(wrong):
        return None
    at = wrong[np.argmin(np.abs(points[wrong]))]
    return float(points[at]), float(given[at]), float(found[at])


def _values_near(value: Callable[[Any], Any], points: Any, step: Any) -> dict[int, Any]:
    """Return the values at points, and one and two steps to their left and right."""
    return {k: _values(value, points + k * step) for k in (-2, -1, 0, 1, 2)}


def _values(function: Callable[[Any], Any], points: Any) -> Any:
    return np.broadcast_to(np.float64(function(points)), points.shape)


def _evaluate(expression: str, dtype: np.dtype[Any], known: dict[str, Any]) -> Any:
    if "erf" in expression and dtype == np.longdouble:  # SciPy has erf and erfc only up to float64
        dtype, known = np.dtype(np.float64), {key: value.astype(np.float64) for key, value in known.items()}
    function = formulas.numpy_function(expression, dtype)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from SciPy's functions
        values = function(*(known.get(key) for key in ("z", "a", "y")))
    return np.broadcast_to(values, np.broadcast_shapes(*(np.shape(x) for x in known.values())))


@functools.lru_cache(maxsize=256)  # a search makes an optimizer again and again
def optimizer(what: str, given: tuple[tuple[str, str], ...], rule: rules.Rule) -> None:
    """Take steps with an optimizer in float32 and float64; it must give finite numbers.

    Parameters
    ----------
    what : str
        Its name, which the error gives.
    given : tuple of (name, expression)
        Its formulas, as the user wrote them.
    rule : Rule
        What has become of them.

    Raises
    ------
    FormulaError
        With the first formula that gives something else, and where; or if none reads the gradient.
    """
    names = rules.names(rule.text)
    if not any("g" in formulas.names_used(line.expression, names) for line in rules.lines(rule.text)):
        raise FormulaError(f"optimizer {what}: none of its formulas reads the gradient g, without which nothing trains")
    for (dtype, _), is_weight in itertools.product(DTYPES, (0, 1)):
        known: dict[str, Any] = dict.fromkeys(names, np.zeros(_P.shape, dtype))
        known |= {"p": _P.astype(dtype), "is_weight": dtype.type(is_weight)}
        for count, t in enumerate(_STEPS):
            known["g"] = np.roll(_G, count).astype(dtype)
            before, (numbers,) = known.copy(), rule.schedule([_ETA], t, dtype)
            known |= {f"n{k}": number for k, number in enumerate(numbers)}
            for (name, expression), line in zip(given, rules.lines(rule.text), strict=True):
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of SciPy's functions
                    values = formulas.numpy_function(line.expression, dtype, names)(**known)
                known[line.name] = values = np.broadcast_to(values, _P.shape)
                if not np.isfinite(values).all():
                    bad = np.flatnonzero(~np.isfinite(values))
                    at = bad[np.argmin(np.abs(before["g"][bad]))]
                    state = "".join(f", {own} = {before[f's{k}'][at]:.3g}" for k, own in enumerate(rule.states))
                    raise FormulaError(
                        f"optimizer {what}: in step {t} in {dtype}, with p = {before['p'][at]:.3g}, g = "
                        f"{before['g'][at]:.3g}{state} and eta = {_ETA}, the formula of {name} "
                        f"{formulas.cut(expression)!r} gives {values[at]:.3g}; keep quotients and logarithms from 0, "
                        "as in g / (sqrt(v) + epsilon), and exp() from overflowing"
                    )
