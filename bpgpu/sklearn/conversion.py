"""Estimators in other forms: as scikit-learn's own, as a `bpgpu.MLP`, and as ONNX files."""

import copy
import inspect
import warnings
from os import PathLike
from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.base import is_classifier

from bpgpu.files import onnx_export
from bpgpu.mlp import MLP
from bpgpu.model.activations import Activation, get_activation
from bpgpu.sklearn import networks, parameters
from bpgpu.sklearn.as_network import is_multilabel

# Parameters that make no difference to scikit-learn's training: where a fit runs, who watches it, details of a loss.
IGNORED_PARAMETERS = {"backend", "n_threads", "progress", "callbacks", "quantile", "huber_delta"}
# Attributes that our fit sets and scikit-learn's does not.
ADDED_ATTRIBUTES = {
    "validation_loss_curve_",
    "_bpgpu_order",
    "_bpgpu_dropout_seed",
    "_bpgpu_split_state",
    "_bpgpu_last_epoch",
    "_skl_callbacks",
    parameters.TAKEN,
}
SKLEARNS = {get_activation(name): name for name in ("identity", "logistic", "tanh", "relu")}


class ConversionMixin:
    """Conversions of `MLPClassifier` and `MLPRegressor`, from and to other forms."""

    def to_sklearn(self: Any) -> Any:
        """Return a copy as scikit-learn's own estimator, with its parameters and everything that fitting has set.

        Its predictions are the same to the bit, and ``partial_fit`` and ``warm_start`` continue from the same state.
        Parameters that say where a fit runs and who watches it (``backend``, ``callbacks`` and the like) are left out,
        and so are ``fit_report_`` and ``validation_loss_curve_``.

        Raises
        ------
        ValueError
            If a parameter is not at its default and scikit-learn lacks it, or its value.
        """
        plain = _sklearns_kind(self)()
        added = {*self._bpgpu_added, *inspect.signature(type(self)).parameters} - plain.get_params().keys()
        for name, default in sorted(self._bpgpu_added.items()):
            given = parameters.value(self, name)
            if name not in IGNORED_PARAMETERS and given is not default and given != default:
                raise ValueError(
                    f"to_sklearn: scikit-learn has no parameter {name}, which is {given!r} here; if only the fitted "
                    f"weights matter, call set_params({name}={default!r}) first"
                )
        left_out = added | ADDED_ATTRIBUTES
        vars(plain).update(copy.deepcopy({name: x for name, x in vars(self).items() if name not in left_out}))
        if isinstance(getattr(plain, "_optimizer", None), networks.RuleOptimizer):
            del plain._optimizer  # left from a parameter that has been reset since
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
            An estimator of the class that this class derives from.
        **changes
            Parameters to set in the copy, such as ``backend``.

        Raises
        ------
        TypeError
            If it is another object.
        ValueError
            If a parameter does not exist.
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
        """Write the fitted estimator to an ONNX file, with the same outputs as from skl2onnx.

        A classifier has ``label`` (int64 or text, shape (n,), or (n, K) of 0 and 1 with several labels per row) and
        ``probabilities`` (n, K); a regressor has ``variable`` (n, K). Otherwise as `bpgpu.MLP.to_onnx`.

        Parameters
        ----------
        path : path-like
        input_name : str
        dtype : {"float32", "float64"}, optional
            Of the numbers in the file; by default that of the fit.
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
            multilabel = is_multilabel(self)

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
