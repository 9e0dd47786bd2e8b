"""Activations: the rows of the formula table as objects, and the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from bpgpu.errors import FormulaError, lookup, short_repr
from bpgpu.kernels import formulas
from bpgpu.model import formula_checks

# Points at which the derivative of a user's activation must match finite differences closely.
_POINTS = (
    np.concatenate([np.linspace(-6.0, 6.0, 241), [-30.0, -15.0, -9.0, 9.0, 15.0, 30.0]]) + formula_checks.OFF_KINKS
)
T = TypeVar("T")
FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Activation:
    """An activation function, given by expressions that run on every backend.

    Parameters
    ----------
    name : str
    value : str
        sigma(z), an expression in ``z``.
    derivative : str
        sigma'(z), an expression in ``a`` (the value), in ``z``, or in both. In ``a`` alone, it saves the memory for z.

    Raises
    ------
    FormulaError
        If an expression holds anything but numbers, ``z`` (and ``a``), operators and the functions of
        `bpgpu.kernels.formulas`; or if, for z up to 1e4 in size, the derivative disagrees with finite differences of
        the value, or one of them is not finite in float32 or float64 where the true result is.

    Examples
    --------
    >>> bpgpu.Activation("swish", value="z * sigmoid(z)", derivative="sigmoid(z) * (1 + z * sigmoid(-z))")
    """

    name: str
    value: str
    derivative: str

    def __post_init__(self) -> None:
        formula_checks.name("an activation", self.name)
        formulas.names_used(self.value, ("z",))
        formulas.names_used(self.derivative, ("z", "a"))
        value = formulas.numpy_function(self.value, FLOAT64)
        derivative = formulas.numpy_function(self.derivative, FLOAT64)

        def sigma(z: Any) -> Any:
            return value(z, None, None)

        def slope(z: Any) -> Any:
            return derivative(z, sigma(z), None)

        steps = ("a", "value", self.value), ("slope", "derivative", self.derivative)
        formula_checks.numbers_everywhere(f"activation {self.name!r}", steps, z=formula_checks.POINTS)
        wrong = formula_checks.first_wrong_derivative(sigma, slope, _POINTS)
        wrong = wrong or formula_checks.wrong_derivative_far_out(sigma, slope)
        if wrong is not None:
            z, given, difference = wrong
            raise FormulaError(
                f"activation {self.name!r}: at z = {z:.6g} the derivative {self.derivative!r} gives {given:.9g}, but "
                f"finite differences of the value {self.value!r} give {difference:.9g}"
            )

    @property
    def rowwise(self) -> bool:
        """True for softmax, where each output depends on every z of its row."""
        return self == SOFTMAX

    @property
    def derivative_needs_z(self) -> bool:
        """True if sigma' cannot be computed from the activation alone, so that z must be kept."""
        return not self.rowwise and "z" in formulas.names_used(self.derivative)


def unchecked(kind: type[T], **fields: Any) -> T:
    """Return a row of the table without the checks of its constructor; the tests make them instead of every import."""
    row = object.__new__(kind)
    for name, text in fields.items():
        object.__setattr__(row, name, text)
    return row


# Softmax is the only row-wise activation, built into every backend. These formulas are for the reader: g = dC/da, sums
# over the row.
SOFTMAX = unchecked(Activation, name="softmax", value="exp(z) / sum(exp(z))", derivative="a * (g - sum(g * a))")
ACTIVATIONS = {
    name: unchecked(Activation, name=name, value=value, derivative=derivative)
    for name, (value, derivative) in formulas.ACTIVATIONS.items()
} | {"softmax": SOFTMAX}
IDENTITY = ACTIVATIONS["identity"]
_BY_NAME = ACTIVATIONS | {alias: ACTIVATIONS[name] for alias, name in formulas.ACTIVATION_ALIASES.items()}


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation of this name, or the object itself.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if isinstance(activation, Activation):
        return activation
    return lookup("activation", activation, _BY_NAME)


def layer_activations(
    activations: str | Activation | Sequence[str | Activation], layers: int
) -> tuple[Activation, ...]:
    """Return the activations of all layers, given one for each or one for all.

    Raises
    ------
    ValueError
        If their number is wrong or a name is unknown.
    TypeError
        If it is not a sequence.
    """
    if isinstance(activations, str | Activation):
        return (get_activation(activations),) * layers
    if not isinstance(activations, Sequence):
        raise TypeError(
            f"activations must be a name, an Activation, or a sequence of them, got {short_repr(activations)}"
        )
    if len(activations) != layers:
        raise ValueError(f"activations must name one for each of {layers} layers, got {len(activations)}")
    return tuple(get_activation(activation) for activation in activations)
