"""The validation data of the estimators, and the score for early stopping."""

import copy
import warnings
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.metrics import get_scorer
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)

from bpgpu.sklearn import checks, parameters, weights


class ValidationMixin(perceptron.BaseMultilayerPerceptron):
    """Validation data: those that `fit` got, or a part of X."""

    coefs_: list[Any]
    intercepts_: list[Any]
    _bpgpu_given_validation: Any
    _random_state: Any

    def _bpgpu_split(self, X: Any, y: Any, weight: Any, resumes: bool) -> tuple[Any, Any]:
        """Return (X, y, weight) for training, and the same for validation or None."""
        if getattr(self, "_bpgpu_given_validation", None) is not None:
            return (X, y, weight), self._bpgpu_checked_validation(X.dtype)
        if not self.early_stopping:
            return (X, y, weight), None
        random_state = self._random_state
        if self.warm_start == "resume":  # the same split as before
            if not (resumes and hasattr(self, "_bpgpu_split_state")):
                self._bpgpu_split_state = copy.deepcopy(random_state)
            else:
                random_state = copy.deepcopy(self._bpgpu_split_state)
        arrays = (X, y) if weight is None else (X, y, weight)
        parts = perceptron.train_test_split(
            *arrays,
            random_state=random_state,
            test_size=self.validation_fraction,
            stratify=y if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        X, X_val, y, y_val, weight, weight_val = (*parts, None, None)[:6]
        if X_val.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if weight_val is not None and not weight_val.any():
            raise ValueError(
                "sample_weight must not be 0 for all the samples that are held out; raise validation_fraction"
            )
        return (X, y, weight), (X_val, y_val, weight_val)

    def _bpgpu_checked_validation(self, dtype: Any) -> tuple[Any, Any, Any]:
        """Return X_val, y_val and sample_weight_val in the form that X, y and sample_weight have inside a fit."""
        X, y, weight = self._bpgpu_given_validation
        checks.undamaged(X_val=X)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=False)
        y = check_array(y, ensure_2d=False, dtype=None if is_classifier(self) else "numeric", input_name="y_val")
        check_consistent_length(X, y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y)
        if is_classifier(self):
            if self._label_binarizer.y_type_ != "multilabel-indicator" and len(np.setdiff1d(y, self.classes_)):
                raise ValueError(f"y_val has classes that y does not have: {np.setdiff1d(y, self.classes_)}")
            y = self._label_binarizer.transform(y).astype(bool)
        elif y.ndim == 1:
            y = y.reshape(-1, 1)
        if y.shape[1] != self.n_outputs_:
            raise ValueError(f"y_val must have {self.n_outputs_} outputs, like y, got shape {y.shape}")
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=dtype)
            weight = weights.not_too_large("sample_weight_val", weight, dtype)
        return X, y, weight

    def _bpgpu_take_best_epoch(self) -> None:
        """Set the weights of the epoch with the best score, and keep those of the last epoch for a fit that resumes."""
        if self.warm_start == "resume":
            self._bpgpu_last_epoch = self.coefs_, self.intercepts_
        self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts

    def _bpgpu_restore_last_epoch(self, resumes: bool) -> None:
        """Restore the weights that training ended with, unless others have been set since."""
        last = self.__dict__.pop("_bpgpu_last_epoch", None)
        if last and resumes and self.early_stopping:
            untouched = self.coefs_ is self._best_coefs and self.intercepts_ is self._best_intercepts
            self.coefs_, self.intercepts_ = last if untouched else (self.coefs_, self.intercepts_)

    def _score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the score for early stopping."""
        scoring = parameters.value(self, "scoring")
        if scoring is None:
            return float(super()._score(X, y, sample_weight))
        if scoring == "loss":
            return float(-self.validation_loss_curve_[-1])
        scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
        given = {} if sample_weight is None else {"sample_weight": sample_weight}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names")  # inside, X is an array
            return float(scorer(self, X, y, **given))
