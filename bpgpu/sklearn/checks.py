"""Checks of what only training with a backend of bpgpu has to check."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import issparse

from bpgpu.checks import MAX_SIZE
from bpgpu.errors import shown
from bpgpu.sklearn import parameters
from bpgpu.sparse import check

# What scikit-learn computes with as floats; it checks their ranges, but not that they are in the range of a float.
REALS = ("alpha", "learning_rate_init", "power_t", "tol", "epsilon")


def undamaged(**arrays: Any) -> None:
    """Raise ``ValueError`` for a sparse matrix whose indices lead out of it, before SciPy goes there."""
    for name, array in arrays.items():
        if issparse(array):
            check(name, array)


def shapes_for_lbfgs(estimator: Any, layer_units: Any) -> None:
    """Raise ``ValueError`` if weights differ from the layers: scikit-learn has SciPy write beyond them."""
    given = [*map(np.shape, estimator.coefs_), *((np.size(b),) for b in estimator.intercepts_)]
    wanted = [*pairwise(layer_units), *((n,) for n in layer_units[1:])]
    outputs = given[len(layer_units) - 2][-1:]
    if len(given) == len(wanted) and outputs not in ((), wanted[-1]):
        raise ValueError(
            f"y must have {outputs[0]} columns, the outputs of the fitted network, got {layer_units[-1]}; call fit "
            "with warm_start=False to begin anew"
        )
    if given != wanted:
        raise ValueError(
            f"coefs_ and intercepts_ of the fitted network must have the shapes {shown(wanted)}, got {shown(given)}"
        )


def numbers(estimator: Any) -> None:
    """Raise ``ValueError`` for an integer that no float can hold, or a hidden layer that no machine can.

    A hidden layer whose size is no integer is a ``TypeError``, as it is in scikit-learn, at some later place.
    """
    for name in REALS:
        value = getattr(estimator, name, 0.0)
        try:
            float(value)
        except OverflowError:
            raise ValueError(f"{name} must be at most about 1.8e308, got {shown(value)}") from None
        except (TypeError, ValueError):  # a stranger's subclass may have something else under this name
            continue
    for index, size in enumerate(_hidden(estimator)):
        if isinstance(size, bool) or not hasattr(type(size), "__index__") or np.ndim(size):
            raise TypeError(f"hidden_layer_sizes[{index}] must be an integer, got {shown(size)}")
        if size > MAX_SIZE:
            raise ValueError(f"hidden_layer_sizes[{index}] must be at most {MAX_SIZE}, got {shown(size)}")


def _hidden(estimator: Any) -> list[Any]:
    """Return the sizes of the hidden layers as scikit-learn reads them."""
    sizes = estimator.hidden_layer_sizes
    return list(sizes) if hasattr(sizes, "__len__") else [sizes]


def options(estimator: Any, incremental: bool) -> None:
    """Check that parameters that scikit-learn lacks go with the others."""
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
                raise ValueError(f"class_weight[{label!r}] must be a finite number, got {shown(weight)}")
    if incremental and class_weight == "balanced":
        raise ValueError(
            "class_weight='balanced' is not supported for partial_fit, which does not see all samples; compute "
            "the weights with sklearn.utils.class_weight.compute_class_weight and pass them as a dict"
        )


def _is_finite(weight: Any) -> bool:
    try:
        return math.isfinite(weight)
    except (TypeError, ValueError, OverflowError):  # not a number, or an integer that no float can hold
        return False


def validation(estimator: Any, X_val: Any, y_val: Any, sample_weight_val: Any) -> tuple[Any, Any, Any] | None:
    """Return what `fit` got to validate on, or None; check that it goes together."""
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val must be given together")
    if X_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val needs X_val and y_val, whose weights it is")
        return None
    if estimator.solver == "lbfgs":
        raise ValueError("X_val needs a stochastic solver: solver='lbfgs' has no epochs to validate after")
    return X_val, y_val, sample_weight_val


def layers(estimator: Any) -> None:
    """Check that training goes on with the layers that it began with: scikit-learn then fails, at a later place.

    Layers of another size are no matter to its stochastic solvers, which train the network that is there.
    """
    asked, fitted = _hidden(estimator), [np.shape(W)[-1] for W in estimator.coefs_[:-1]]
    if len(asked) != len(fitted) or (asked != fitted and estimator.solver == "lbfgs"):
        raise ValueError(
            f"hidden_layer_sizes={estimator.hidden_layer_sizes} differs from the fitted network, whose hidden layers "
            f"have {fitted} neurons; set it back, or call fit with warm_start=False to begin anew"
        )


def numeric(y: Any) -> None:
    """Check that targets of a regression are numbers: scikit-learn fails later, and bpgpu would convert them."""
    if y.dtype.kind not in "biuf":
        what = "text" if y.dtype.kind in "US" else y.dtype
        raise TypeError(f"y must be numbers, got {what}; convert it first, as in y.astype(float)")
