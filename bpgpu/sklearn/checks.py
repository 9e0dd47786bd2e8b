"""Checks that only training with a backend of bpgpu needs."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import issparse

from bpgpu.checks import MAX_SIZE
from bpgpu.errors import short_repr
from bpgpu.sklearn import parameters
from bpgpu.sparse import check

# Parameters that scikit-learn computes with as floats; it checks their ranges, but not that a float can hold them.
REALS = ("alpha", "learning_rate_init", "power_t", "tol", "epsilon")


def undamaged(**arrays: Any) -> None:
    """Raise ``ValueError`` for a sparse matrix whose indices point outside of it, before SciPy follows them."""
    for name, array in arrays.items():
        if issparse(array):
            check(name, array)


def shapes_for_lbfgs(estimator: Any, layer_units: Any) -> None:
    """Raise ``ValueError`` if weights do not fit the layers: scikit-learn would let SciPy write beyond them."""
    given = [*map(np.shape, estimator.coefs_), *((np.size(b),) for b in estimator.intercepts_)]
    wanted = [*pairwise(layer_units), *((n,) for n in layer_units[1:])]
    outputs = given[len(layer_units) - 2][-1:]
    if len(given) == len(wanted) and outputs not in ((), wanted[-1]):
        raise ValueError(
            f"y must have {outputs[0]} columns, the outputs of the fitted network, got {layer_units[-1]}; call fit "
            "with warm_start=False to start again"
        )
    if given != wanted:
        raise ValueError(
            f"coefs_ and intercepts_ of the fitted network must have the shapes {short_repr(wanted)}, got "
            f"{short_repr(given)}"
        )


def numbers(estimator: Any) -> None:
    """Raise ``ValueError`` for an integer too large for a float, or a hidden layer too large for any machine.

    A hidden layer whose size is not an integer is a ``TypeError``, as in scikit-learn, where it comes later.
    """
    for name in REALS:
        value = getattr(estimator, name, 0.0)
        try:
            float(value)
        except OverflowError:
            raise ValueError(f"{name} must be at most about 1.8e308, got {short_repr(value)}") from None
        except (TypeError, ValueError):  # a user's subclass may use this name for something else
            continue
    for index, size in enumerate(_hidden(estimator)):
        if isinstance(size, bool) or not hasattr(type(size), "__index__") or np.ndim(size):
            raise TypeError(f"hidden_layer_sizes[{index}] must be an integer, got {short_repr(size)}")
        if size > MAX_SIZE:
            raise ValueError(f"hidden_layer_sizes[{index}] must be at most {MAX_SIZE}, got {short_repr(size)}")


def _hidden(estimator: Any) -> list[Any]:
    """Return the sizes of the hidden layers as scikit-learn reads them."""
    sizes = estimator.hidden_layer_sizes
    return list(sizes) if hasattr(sizes, "__len__") else [sizes]


def options(estimator: Any, incremental: bool) -> None:
    """Check that the parameters that scikit-learn lacks are compatible with the others."""
    numbers(estimator)
    if estimator.solver == "lbfgs":
        for name, given in (
            ("dropout", parameters.value(estimator, "dropout") > 0),
            ("optimizer", parameters.value(estimator, "optimizer") is not None),
            ("callbacks", bool(parameters.value(estimator, "callbacks"))),
        ):
            if given:
                raise ValueError(f"{name} needs a stochastic solver, got solver='lbfgs'")
    class_weight = parameters.value(estimator, "class_weight")
    if isinstance(class_weight, dict):
        for label, weight in class_weight.items():
            if not _is_finite(weight):
                raise ValueError(f"class_weight[{label!r}] must be a finite number, got {short_repr(weight)}")
    if incremental and class_weight == "balanced":
        raise ValueError(
            "class_weight='balanced' is not supported for partial_fit, which does not see all samples; compute "
            "the weights with sklearn.utils.class_weight.compute_class_weight and pass them as a dict"
        )


def _is_finite(weight: Any) -> bool:
    try:
        return math.isfinite(weight)
    except (TypeError, ValueError, OverflowError):  # not a number, or an integer too large for a float
        return False


def validation(estimator: Any, X_val: Any, y_val: Any, sample_weight_val: Any) -> tuple[Any, Any, Any] | None:
    """Return the validation data that `fit` got, or None; check that they are complete."""
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val must be given together")
    if X_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val needs X_val and y_val, which it weights")
        return None
    if estimator.solver == "lbfgs":
        raise ValueError("X_val needs a stochastic solver: solver='lbfgs' has no epochs to validate after")
    return X_val, y_val, sample_weight_val


def layers(estimator: Any) -> None:
    """Check that training continues with the layers that it began with; otherwise scikit-learn would fail later.

    Its stochastic solvers ignore layers of another size and train the existing network.
    """
    asked, fitted = _hidden(estimator), [np.shape(W)[-1] for W in estimator.coefs_[:-1]]
    if len(asked) != len(fitted) or (asked != fitted and estimator.solver == "lbfgs"):
        raise ValueError(
            f"hidden_layer_sizes={estimator.hidden_layer_sizes} differs from the fitted network, whose hidden layers "
            f"have {fitted} neurons; set it back, or call fit with warm_start=False to start again"
        )


def numeric(y: Any) -> None:
    """Check that regression targets are numbers: scikit-learn would fail later, and bpgpu would convert them."""
    if y.dtype.kind not in "biuf":
        what = "text" if y.dtype.kind in "US" else y.dtype
        raise TypeError(f"y must be numbers, got {what}; convert it first, as in y.astype(float)")
