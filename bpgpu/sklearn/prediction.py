"""Computations with a fitted network."""

from typing import Any

import numpy as np
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.utils.validation import check_is_fitted, validate_data

from bpgpu.sklearn import checks, networks


class PredictionMixin(perceptron.BaseMultilayerPerceptron):
    """Predictions with any activation, hidden activations and input gradients."""

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Any:
        if check_input:
            checks.undamaged(X=X)
        if isinstance(self.activation, str) and self.activation in perceptron.ACTIVATIONS:
            return super()._forward_pass_fast(X, check_input=check_input)
        return networks.forward(self, self._bpgpu_checked_input(X) if check_input else X)[1][-1]

    def _bpgpu_checked_input(self, X: Any) -> Any:
        check_is_fitted(self)
        checks.undamaged(X=X)
        return validate_data(self, X, accept_sparse=["csr", "csc"], dtype=(np.float64, np.float32), reset=False)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of a classifier, the R² of a regression, as scikit-learn's estimators do.

        Parameters
        ----------
        X : {array-like, sparse matrix}, shape (n_samples, n_features)
        y : {array-like, sparse matrix}, shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like, shape (n_samples,), optional
        """
        checks.undamaged(y=y)  # the metrics do not check it
        return super().score(X, y, sample_weight)  # type: ignore[no-any-return]

    def hidden_activations(self, X: Any) -> list[np.ndarray[Any, Any]]:
        """Return the activations of the hidden layers for X.

        Parameters
        ----------
        X : {array-like, sparse matrix}, shape (n_samples, n_features)

        Returns
        -------
        list of array, shape (n_samples, n_l)
            One for each hidden layer.
        """
        return networks.forward(self, self._bpgpu_checked_input(X))[1][1:-1]

    def input_gradients(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the derivatives of the outputs (a classifier's probabilities) with respect to the inputs.

        Parameters
        ----------
        X : {array-like, sparse matrix}, shape (n_samples, n_features)

        Returns
        -------
        array, shape (n_samples, n_outputs, n_features)
            n_outputs is 1 for a regression with one target, and for a binary classifier, whose only output is the
            probability of its second class.
        """
        return networks.input_gradients(self, self._bpgpu_checked_input(X))
