"""The exceptions of bpgpu, each also an instance of the built-in exception a Python user would catch.

Bad arguments raise plain ``ValueError`` and ``TypeError``.
"""

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from bpgpu.kernels.formulas import FormulaError

T = TypeVar("T")

__all__ = ["BackendUnavailableError", "FormulaError", "GradientError", "ModelFileError", "NonFiniteError"]


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here.

    Attributes
    ----------
    backend : str
    reason : str
        The cause, and what to do.
    """

    def __init__(self, backend: str, reason: str) -> None:
        self.backend, self.reason = backend, reason
        super().__init__(backend, reason)  # the arguments, so that it can be pickled

    def __str__(self) -> str:
        return f"backend {self.backend!r} cannot run here: {self.reason}; backend='auto' takes one that can"


class GradientError(AssertionError):
    """A gradient disagrees with finite differences of the cost."""


class NonFiniteError(ArithmeticError):
    """Training met an infinite or undefined number.

    Attributes
    ----------
    epoch, step, layer : int
        Where: epoch and step counted from 1, layer from 1 (the output layer is the last).
    quantity : str
        What was not finite: "activation", "weighted input", "cost", "validation cost", "gradient", "weight" or
        "optimizer state".
    """

    def __init__(self, epoch: int, step: int, layer: int, quantity: str) -> None:
        self.epoch, self.step, self.layer, self.quantity = epoch, step, layer, quantity
        super().__init__(epoch, step, layer, quantity)

    def __str__(self) -> str:
        return (
            f"the {self.quantity} of layer {self.layer} is not finite in epoch {self.epoch}, step {self.step}; the "
            "weights are those of the last finite epoch; use a smaller learning_rate, or clip_norm in the optimizer"
        )


class ModelFileError(ValueError):
    """A file is not a model that bpgpu saved, or it is damaged."""


class _ShortRepr(reprlib.Repr):
    """Cuts long values; Python refuses to print integers of thousands of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxstring, self.maxother = 3, 10, 10, 80, 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= MAX_SHOWN else f"an integer of {x.bit_length()} bits"


MAX_SHOWN = 200  # characters, and bits of an integer
_SHORT_REPR = _ShortRepr()


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, cut if it is long."""
    try:
        text = _SHORT_REPR.repr(value)
    except Exception:  # the repr of another library's object may raise anything
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def unknown_name(what: str, name: object, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is not in a table, with the nearest one that is."""
    known = list(known)
    text = name.lower() if isinstance(name, str) else ""
    near = difflib.get_close_matches(text[:MAX_SHOWN], known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{what} must be one of {', '.join(map(repr, known))}, got {short_repr(name)}{hint}")


def lookup(what: str, name: object, table: Mapping[str, T]) -> T:
    """Return the row of this name; raise ``ValueError``, with the nearest name, if there is none."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise unknown_name(what, name, table)
