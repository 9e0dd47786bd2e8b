"""Estimators as others know them: as scikit-learn's own, as a `bpgpu.MLP`, and as ONNX files."""

import copy
import inspect
import warnings
from os import PathLike
from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from bpgpu.backends.base import Backend
from bpgpu.files import onnx_export
from bpgpu.model.activations import Activation, get_activation
from bpgpu.model.costs import BINARY_CROSS_ENTROPY, Cost
from bpgpu.network import MLP
from bpgpu.sklearn import networks, parameters

# What says where a fit runs, who watches it, or something of a loss: to scikit-learn's training it makes no difference.
UNIMPORTANT = {"backend", "n_threads", "progress", "callbacks", "quantile", "huber_delta"}
# What a fit leaves behind that scikit-learn's does not.
OWN = {
    "validation_loss_curve_",
    "_bpgpu_order",
    "_bpgpu_dropout_seed",
    "_bpgpu_split_state",
    "_bpgpu_last_epoch",
    "_skl_callbacks",
    parameters.TAKEN,
}
SKLEARNS = {get_activation(name): name for name in ("identity", "logistic", "tanh", "relu")}
# Poisson's loss with derivatives that hold for each alone; the ones of `networks` hold for the pair.
EXP = Activation("exp", value="exp(z)", derivative="a")
POISSON = Cost("poisson", value=networks.POISSON.value, gradient="where(y == 0, 1, 1 - y / a)")


class ConversionMixin:
    """What `MLPClassifier` and `MLPRegressor` can be turned into and made from."""

    def to_sklearn(self: Any) -> Any:
        """Return a copy as scikit-learn's own estimator: parameters and all that fitting has left.

        It predicts the same to the bit, and goes on from the same state with ``partial_fit`` and ``warm_start``. What
        says where a fit runs and who watches it (``backend``, ``callbacks`` and the like) stays behind, and so do
        ``fit_report_`` and ``validation_loss_curve_``.

        Raises
        ------
        ValueError
            If scikit-learn lacks a parameter that is not at its default, or what it is set to.
        """
        plain = _sklearns_kind(self)()
        added = {*self._bpgpu_added, *inspect.signature(type(self)).parameters} - plain.get_params().keys()
        for name, default in sorted(self._bpgpu_added.items()):
            given = parameters.value(self, name)
            if name not in UNIMPORTANT and given is not default and given != default:
                raise ValueError(
                    f"to_sklearn: scikit-learn has no parameter {name}, which is {given!r} here; if only the fitted "
                    f"weights matter, call set_params({name}={default!r}) first"
                )
        vars(plain).update(copy.deepcopy({name: x for name, x in vars(self).items() if name not in added | OWN}))
        if isinstance(getattr(plain, "_optimizer", None), networks.RuleOptimizer):
            del plain._optimizer  # of a parameter that has been set back since
        given = [self.activation] if isinstance(self.activation, str | Activation) else self.activation
        hidden = {get_activation(activation) for activation in given}
        if len(hidden) == 1:
            plain.activation = SKLEARNS.get(hidden.pop(), plain.activation)
        plain._validate_params()
        return plain

    @classmethod
    def from_sklearn(cls, estimator: Any, **changes: Any) -> Any:
        """Return a copy of scikit-learn's estimator of this kind, fitted or not.

        Parameters
        ----------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
            The one that this class derives from.
        **changes
            To be set in the copy, such as ``backend``.

        Raises
        ------
        TypeError
            If it is something else.
        ValueError
            If there is no such parameter.
        """
        new: Any = cls()
        kind = _sklearns_kind(new)
        if not isinstance(estimator, kind):
            raise TypeError(f"estimator must be scikit-learn's {kind.__name__}, got {type(estimator).__name__}")
        vars(new).update(copy.deepcopy(vars(estimator)))
        return new.set_params(**changes)

    def to_onnx(
        self: Any, path: str | PathLike[str], *, input_name: str = "X", dtype: Any = None, X: Any = None
    ) -> None:
        """Write the fitted estimator to an ONNX file, with the outputs that skl2onnx gives such a file.

        A classifier's are ``label`` (int64 or text, shape (n,), or (n, K) of 0 and 1 with several labels a row) and
        ``probabilities`` (n, K); a regressor's is ``variable`` (n, K). Otherwise as `bpgpu.MLP.to_onnx`.

        Parameters
        ----------
        path : path-like
        input_name : str
        dtype : {"float32", "float64"}, optional
            Of the file's numbers; that of the fit if not given.
        X : array, shape (n, n_features), optional
            Rows to check the file with.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If it is not fitted.
        ImportError, ValueError, TypeError, RuntimeError, OSError
            As `bpgpu.MLP.to_onnx`.
        """
        net, labels = MLP.from_sklearn(self, backend="numpy"), None
        if is_classifier(self):
            multilabel = _is_multilabel(self)

            def decode(probabilities: Any) -> Any:
                one = not multilabel and len(self.classes_) <= 2
                return self._label_binarizer.inverse_transform(probabilities[:, 1] if one else probabilities)

            labels = onnx_export.Labels(np.asarray(self.classes_).tolist(), decode, multilabel)

        def predict(rows: Any) -> Any:
            with warnings.catch_warnings():  # the rows have no names
                warnings.simplefilter("ignore", UserWarning)
                return self.predict_proba(rows) if labels else self.predict(rows).reshape(len(rows), -1)

        onnx_export.export(
            net,
            path,
            input_name=input_name,
            output_name="probabilities" if labels else "variable",
            dtype=dtype,
            X=X,
            predict=predict,
            labels=labels,
        )


def _sklearns_kind(estimator: Any) -> Any:
    return neural_network.MLPClassifier if is_classifier(estimator) else neural_network.MLPRegressor


def network(kind: type[MLP], estimator: Any, backend: str | Backend) -> Any:
    """Return the network of a fitted estimator, as a `kind` of `MLP` that goes on with the same gradients.

    Its metadata are those that ``bpgpu train`` writes, if the estimator predicts one label or number a row.
    """
    if not isinstance(estimator, neural_network.MLPClassifier | neural_network.MLPRegressor):
        raise TypeError(f"estimator must be an MLPClassifier or MLPRegressor, got {type(estimator).__name__}")
    check_is_fitted(estimator)
    if not isinstance(estimator, ConversionMixin):
        from bpgpu.sklearn import estimators

        own = estimators.MLPClassifier if is_classifier(estimator) else estimators.MLPRegressor
        estimator = own.from_sklearn(estimator)
    found = networks.architecture(estimator, np.result_type(*estimator.coefs_, *estimator.intercepts_))
    # Of one output: its value and its gradient agree, and the sum over the outputs is what scikit-learn descends along.
    costs = {
        "identity": lambda: networks.cost(estimator, 1),
        "exp": lambda: POISSON,
        "logistic": lambda: BINARY_CROSS_ENTROPY,
    }
    alone = {networks.EXP: EXP, networks.LOGISTIC: get_activation("logistic")}
    net = kind(
        found.sizes,
        [alone.get(activation, activation) for activation in found.activations],
        costs.get(estimator.out_activation_, lambda: found.cost)(),
        l2=found.l2,
        dropout=found.dropout,
        dtype=found.dtype,
        seed=found.seed,
        backend=backend,
        init=list(zip(estimator.coefs_, estimator.intercepts_, strict=True)),
    )
    net.metadata = _of_a_table(estimator, found.sizes)
    return net


def _of_a_table(estimator: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return what ``bpgpu train`` says of a table, if the estimator predicts one label or one number a row."""
    classes = np.asarray(estimator.classes_).tolist() if is_classifier(estimator) else []
    if _is_multilabel(estimator) or len(classes) == 1 or (sizes[-1] > 1 and not classes):
        return {}
    columns = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(sizes[0])])
    task = "classification" if classes else "regression"
    return {"columns": list(columns), "target": "y", "task": task, "classes": classes}


def _is_multilabel(estimator: Any) -> bool:
    return is_classifier(estimator) and bool(estimator._label_binarizer.y_type_.startswith("multilabel"))
