"""A fitted estimator, scikit-learn's or ours, as a network that continues with the same gradients."""

from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from bpgpu.backends.base import Backend
from bpgpu.model.activations import Activation, get_activation
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, Cost
from bpgpu.sklearn import networks

# Poisson's loss with derivatives that are correct separately; those in `networks` are correct only as a pair.
EXP = Activation("exp", value="exp(z)", derivative="a")
POISSON = Cost("poisson", value=networks.POISSON.value, gradient="where(y == 0, 1, 1 - y / a)")


def from_estimator(kind: Any, estimator: Any, backend: str | Backend) -> Any:
    """Return the network of a fitted estimator, as a `kind` of `Network` that continues with the same gradients.

    Its metadata is what ``bpgpu train`` writes, if the estimator predicts one label or number per row.
    """
    if not isinstance(estimator, neural_network.MLPClassifier | neural_network.MLPRegressor):
        raise TypeError(f"estimator must be an MLPClassifier or MLPRegressor, got {type(estimator).__name__}")
    check_is_fitted(estimator)
    found = networks.architecture(estimator, np.result_type(*estimator.coefs_, *estimator.intercepts_))
    # Costs for one output: value and gradient agree, and scikit-learn descends the sum over the outputs.
    costs = {
        "identity": lambda: networks.cost(estimator, 1),
        "exp": lambda: POISSON,
        "logistic": lambda: BINARY_CROSS_ENTROPY,
    }
    separate = {networks.EXP: EXP, networks.LOGISTIC: get_activation("logistic")}
    net = kind(
        found.sizes,
        [separate.get(activation, activation) for activation in found.activations],
        costs.get(estimator.out_activation_, lambda: found.cost)(),
        l2=found.l2,
        dropout=found.dropout,
        dtype=found.dtype,
        seed=found.seed,
        backend=backend,
        init=list(zip(estimator.coefs_, estimator.intercepts_, strict=True)),
    )
    net.metadata = _table_metadata(estimator, found.sizes)
    return net


def _table_metadata(estimator: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return what ``bpgpu train`` writes about a table, if the estimator predicts one label or one number per row."""
    classes = np.asarray(estimator.classes_).tolist() if is_classifier(estimator) else []
    if is_multilabel(estimator) or len(classes) == 1 or (sizes[-1] > 1 and not classes):
        return {}
    columns = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(sizes[0])])
    task = "classification" if classes else "regression"
    return {"columns": list(columns), "target": "y", "task": task, "classes": classes}


def is_multilabel(estimator: Any) -> bool:
    """Return whether every output is a separate yes-or-no answer."""
    return is_classifier(estimator) and bool(estimator._label_binarizer.y_type_.startswith("multilabel"))
