"""The weight that `class_weight` gives each sample."""

from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from bpgpu.sklearn import parameters


def by_class(estimator: Any, y: Any) -> Any:
    """Return the weights of encoded targets, or None without `class_weight`.

    A class that a dict does not name weighs 1. Which classes there are is not for a batch of `partial_fit` to say.
    """
    class_weight = parameters.value(estimator, "class_weight")
    if class_weight is None:
        return None
    if estimator._label_binarizer.y_type_.startswith("multilabel"):
        return compute_sample_weight(class_weight, y)
    index = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(np.intp)
    classes = estimator.classes_
    return compute_class_weight(class_weight, classes=classes, y=classes[index])[index]


def product(by_class: Any, sample_weight: Any) -> Any:
    """Return the product of both weights, either of which may be None."""
    if by_class is None or sample_weight is None:
        return sample_weight if by_class is None else by_class
    return by_class * sample_weight
