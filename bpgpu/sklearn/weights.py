"""The weight that `class_weight` gives each sample."""

from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from bpgpu.errors import short_repr
from bpgpu.sklearn import parameters


def by_class(estimator: Any, y: Any) -> Any:
    """Return the weights of encoded targets, or None without `class_weight`.

    A class that a dict does not name weighs 1. A batch of `partial_fit` does not determine which classes there are.
    """
    class_weight = parameters.value(estimator, "class_weight")
    if class_weight is None:
        return None
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        return compute_sample_weight(class_weight, y)
    index = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(np.intp)
    classes = estimator.classes_
    weight = compute_class_weight(class_weight, classes=classes, y=classes[index])[index]
    if not weight.any():
        raise ValueError(
            f"class_weight must give some sample a weight, got 0 for each class in y: {short_repr(class_weight)}"
        )
    return weight


def product(by_class: Any, sample_weight: Any, dtype: Any) -> Any:
    """Return the product of both weights, either of which may be None; check that training in `dtype` can use it."""
    if by_class is None:
        return None if sample_weight is None else not_too_large("sample_weight", sample_weight, dtype)
    if sample_weight is None:
        weight, name = by_class, "the weights by class_weight"
    else:
        weight, name = by_class * sample_weight, "the weights by class_weight, multiplied by sample_weight,"
    with np.errstate(over="ignore", invalid="ignore"):
        all_0 = not weight.astype(dtype).any()
    if all_0:
        raise ValueError(f"{name} must not all be 0 in training in {np.dtype(dtype)}; give weights near 1")
    return not_too_large(name, weight, dtype)


def not_too_large(name: str, weight: Any, dtype: Any) -> Any:
    """Return weights; raise ``ValueError`` if the dtype cannot hold their sum, by which losses are divided."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = weight.astype(dtype).sum()
    if not np.isfinite(total):
        raise ValueError(
            f"{name} must have a finite sum in {np.dtype(dtype)}, got up to {float(np.abs(weight).max()):g} in "
            f"{len(weight)} rows; give weights near 1, because only their ratios matter"
        )
    return weight
