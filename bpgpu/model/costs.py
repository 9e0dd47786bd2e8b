"""Costs: the rows of the formula table as objects, the user's own, and their formulas behind an activation."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bpgpu.errors import FormulaError, lookup, unknown_name
from bpgpu.kernels import formulas
from bpgpu.model import formula_checks
from bpgpu.model.activations import ACTIVATIONS, FLOAT64, Activation, unchecked

_POINTS = np.concatenate([np.linspace(0.02, 0.98, 49), np.linspace(-4.0, 4.0, 65)]) + formula_checks.OFF_KINKS
_TARGETS = (-1.0, 0.0, 0.25, 1.0)  # for any cost; with other targets it may have no value near 0
_OTHER_TARGETS = (2.0, 10.0, -50.0, 1000.0)


@dataclass(frozen=True)
class Cost:
    """The cost of one sample as a function of its outputs ``a`` and targets ``y``.

    Parameters
    ----------
    name : str
    value : str
        Cost of one output, an expression in ``a`` and ``y``.
    gradient : str
        Its derivative with respect to ``a``, an expression in ``a`` and ``y``.
    reduction : {"sum", "mean"}
        How the outputs of a sample are combined.

    Raises
    ------
    FormulaError
        If an expression holds anything but numbers, ``a``, ``y``, operators and the functions of
        `bpgpu.kernels.formulas`; or if, for a up to 1e4 in size, the gradient disagrees with finite differences of the
        value, or one of them is not finite in float32 or float64 where the true result is.
    ValueError
        If `reduction` is neither "sum" nor "mean".

    Examples
    --------
    >>> bpgpu.Cost("log_cosh", value="abs(a - y) + log1p(exp(-2 * abs(a - y)))", gradient="tanh(a - y)")
    """

    name: str
    value: str
    gradient: str
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        formula_checks.name("a cost", self.name)
        if self.reduction not in ("sum", "mean"):
            raise unknown_name("reduction", self.reduction, ["sum", "mean"])
        formulas.names_used(self.value, ("a", "y"))
        formulas.names_used(self.gradient, ("a", "y"))
        value = formulas.numpy_function(self.value, FLOAT64)
        gradient = formulas.numpy_function(self.gradient, FLOAT64)
        for y in (*_TARGETS, *_OTHER_TARGETS):
            cost, slope = (functools.partial(_of_output, formula, np.float64(y)) for formula in (value, gradient))
            steps = ("value", "value", self.value), ("slope", "gradient", self.gradient)
            formula_checks.numbers_everywhere(f"cost {self.name!r}", steps, a=formula_checks.POINTS, y=y)
            wrong = formula_checks.first_wrong_derivative(cost, slope, _POINTS) if y in _TARGETS else None
            wrong = wrong or formula_checks.wrong_derivative_far_out(cost, slope, y + _POINTS)
            if wrong is not None:
                a, given, difference = wrong
                raise FormulaError(
                    f"cost {self.name!r}: at a = {a:.6g}, y = {y:.6g} the gradient {self.gradient!r} gives "
                    f"{given:.9g}, but finite differences of the value {self.value!r} give {difference:.9g}"
                )

    @property
    def wants_probabilities(self) -> bool:
        """True for the cross-entropies, whose targets are probabilities."""
        return self in (BINARY_CROSS_ENTROPY, CROSS_ENTROPY)


COSTS = {
    name: unchecked(Cost, name=name, value=value, gradient=gradient, reduction=reduction)
    for name, (value, gradient, reduction) in formulas.COSTS.items()
}
CROSS_ENTROPY = COSTS["cross_entropy"]
BINARY_CROSS_ENTROPY = COSTS["binary_cross_entropy"]


def _of_output(formula: Callable[..., Any], y: np.float64, a: Any) -> Any:
    return formula(None, a, y)


def get_cost(cost: str | Cost) -> Cost:
    """Return the cost of this name, or the object itself.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if isinstance(cost, Cost):
        return cost
    return lookup("cost", cost, COSTS)


def output_formulas(activation: Activation, cost: Cost) -> tuple[str, str]:
    """Return the formulas of an output layer: expressions in z, a and y for the cost and for dC/dz.

    They hold for one output of one sample, before weights and reduction. The pairs of `formulas.PAIRS` have expressions
    in z, which stay exact where a is rounded to 0 or 1; any other pair follows from the chain rule. Behind softmax, the
    second expression is dC/da, and z stands for 1 - a.
    """
    names = (activation.name, cost.name)
    if names in formulas.PAIRS and activation == ACTIVATIONS.get(names[0]) and cost == COSTS.get(names[1]):
        value, delta = formulas.PAIRS[names]
        return value, delta
    if activation.rowwise or activation.derivative == "1":
        return cost.value, cost.gradient
    return cost.value, f"({cost.gradient}) * ({activation.derivative})"


def leaves_domain(activation: Activation, cost: Cost) -> bool:
    """Return whether the activation gives values outside [0, 1], where the cross-entropies are defined."""
    if activation.rowwise or not cost.wants_probabilities:
        return False
    z = np.linspace(-10.0, 10.0, 41)
    with np.errstate(all="ignore"):
        a = formulas.numpy_function(activation.value, FLOAT64)(z, None, None)
    return bool(np.min(a) < 0 or np.max(a) > 1)
