"""The estimators in skl2onnx and hummingbird, which know only scikit-learn's own classes.

Our classes are registered with both when they are imported, and are then converted like scikit-learn's.
"""

import copy
import functools
import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from sklearn.base import is_classifier

from bpgpu.imports import AfterImport
from bpgpu.sklearn.estimators import MLPClassifier, MLPRegressor
from bpgpu.sklearn.networks import hidden

SKLEARNS = {"identity": "identity", "sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}
log = logging.getLogger("bpgpu")


def _skl2onnx(module: ModuleType) -> None:
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from skl2onnx.operator_converters import multilayer_perceptron as theirs

    register = module.update_registered_converter
    register(
        MLPClassifier,
        "BpgpuMLPClassifier",
        calculate_linear_classifier_output_shapes,
        _converter(theirs.convert_sklearn_mlp_classifier, "skl2onnx"),
        options={"zipmap": [True, False, "columns"], "output_class_labels": [False, True], "nocl": [True, False]},
    )
    register(
        MLPRegressor,
        "BpgpuMLPRegressor",
        calculate_linear_regressor_output_shapes,
        _converter(theirs.convert_sklearn_mlp_regressor, "skl2onnx"),
    )


def _hummingbird(module: ModuleType) -> None:
    from hummingbird.ml import supported
    from hummingbird.ml.operator_converters.sklearn import mlp as theirs
    from onnxconverter_common.registration import register_converter

    for cls, convert in (
        (MLPClassifier, theirs.convert_sklearn_mlp_classifier),
        (MLPRegressor, theirs.convert_sklearn_mlp_regressor),
    ):
        supported.sklearn_api_operator_name_map[cls] = f"Bpgpu{cls.__name__}"
        register_converter(f"Bpgpu{cls.__name__}", _converter(convert, "hummingbird"), overwrite=True)


def _converter(convert: Callable[..., Any], library: str) -> Callable[..., Any]:
    """Return the library's converter for scikit-learn's class as a converter for ours."""

    @functools.wraps(convert)  # skl2onnx inspects the parameters
    def converter(*arguments: Any, **options: Any) -> Any:
        operator = inspect.signature(convert).bind(*arguments, **options).arguments["operator"]
        given, operator.raw_operator = operator.raw_operator, _with_sklearns_activation(operator.raw_operator, library)
        try:
            return convert(*arguments, **options)
        finally:
            operator.raw_operator = given

    return converter


def _with_sklearns_activation(estimator: Any, library: str) -> Any:
    """Return a copy whose activation has scikit-learn's name; refuse what the library would convert wrongly."""
    names = {SKLEARNS.get(activation.name, activation.name) for activation in hidden(estimator)} or {"identity"}
    obstacle = ""
    if len(names) > 1 or not names <= set(SKLEARNS.values()):
        obstacle = (
            f"hidden layers unless all have the same activation, one of scikit-learn's, got {', '.join(sorted(names))}"
        )
    elif estimator.out_activation_ == "exp":
        obstacle = "loss='poisson'"
    elif is_classifier(estimator) and estimator._label_binarizer.y_type_.startswith("multilabel"):
        if library == "hummingbird" or len(estimator.classes_) == 2:
            obstacle = "several labels per row"
    elif library == "skl2onnx" and not is_classifier(estimator) and estimator.n_outputs_ > 1:
        obstacle = "a regression with several targets"
    if obstacle:
        raise ValueError(f"{library} does not convert {obstacle}; write the ONNX file with the estimator's to_onnx()")
    same = copy.copy(estimator)
    same.activation = names.pop()
    return same


def _if_possible(register: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Return an action that only warns if `register` fails, as with a later version of the library."""

    def action(module: ModuleType) -> None:
        try:
            register(module)
        except Exception as error:
            log.warning("%s does not convert bpgpu's estimators: %s: %s", module.__name__, type(error).__name__, error)

    return action


registered = AfterImport({"skl2onnx": _if_possible(_skl2onnx), "hummingbird.ml": _if_possible(_hummingbird)})
