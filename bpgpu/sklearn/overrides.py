"""Whether backends compute the same as a fit: scikit-learn's own training, of a network as scikit-learn makes it.

A backend replaces methods, functions and tables of scikit-learn. If a program has replaced them too, or has given the
estimator arrays that scikit-learn would not, scikit-learn itself trains: the program gets the result, or the error,
that it expects.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from numbers import Integral
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import sklearn.utils
from sklearn.neural_network import _base, _stochastic_optimizers
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from bpgpu.checks import MAX_STEPS
from bpgpu.sklearn import networks

Array = np.ndarray[Any, Any]

# Where the code lies that backends replace: files or folders.
METHODS_IN = (perceptron.__file__, str(Path(__file__).parent))
OPTIMIZERS_IN = (_stochastic_optimizers.__file__,)
TABLES_IN = (_base.__file__,)
UTILITIES_IN = (str(Path(sklearn.utils.__file__).parent),)

STEP = ("_forward_pass", "_compute_loss_grad", "_backprop")
METHODS = {"lbfgs": (*STEP, "_unpack", "_loss_grad_lbfgs")}
AFTER_AN_EPOCH = "_update_no_improvement_count"  # an override may change the network
UTILITIES = ("safe_sparse_dot", "gen_batches", "_safe_indexing", "_pack")
# Attributes that a backend reads once but scikit-learn reads in every step, so a property could change in between.
READ = ("coefs_", "intercepts_", "n_layers_", "out_activation_", "activation", "alpha", "loss")
PAIRS = {("identity", "squared_error"), ("exp", "poisson"), ("softmax", "log_loss"), ("logistic", "log_loss")}
LOSSES = {
    "squared_error": "squared_loss",
    "poisson": "poisson_loss",
}  # the other functions have the names of their losses


def of_the_loop() -> str:
    """Return why scikit-learn's own loop over the epochs must run, or an empty string."""
    function = vars(perceptron.BaseMultilayerPerceptron)["_fit_stochastic"]
    return "" if _is_original(function, "_fit_stochastic", METHODS_IN) else _not_original("_fit_stochastic")


def obstacle(estimator: Any, X: Any, y: Any, layer_units: Sequence[int]) -> str:
    """Return the first reason why scikit-learn must take the steps, or an empty string.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Initialised, with its optimizer unless the solver is L-BFGS.
    X : array, shape (n, n_0), or sparse
    y : array, shape (n, outputs), or sparse
    layer_units : sequence of int
        The sizes of the layers according to the estimator's parameters, X and y.
    """
    return next(_obstacles(estimator, X, y, layer_units), "")


def shuffled(order: Array, random_state: Any) -> Array:
    """Return the next order, as from sklearn.utils.shuffle, which spends more time on checks than on shuffling."""
    if not _is_original(perceptron.shuffle, "shuffle", UTILITIES_IN):
        return np.asarray(perceptron.shuffle(order, random_state=random_state))
    places = np.arange(len(order), dtype=np.int32)
    random_state.shuffle(places)
    return order[places]


def _obstacles(estimator: Any, X: Any, y: Any, layer_units: Sequence[int]) -> Iterator[str]:
    lbfgs = estimator.solver == "lbfgs"
    names = METHODS.get(estimator.solver, STEP)
    if not (lbfgs or networks.untrainable_in_sklearn(estimator)):
        names = (*names, AFTER_AN_EPOCH)
    for name in _replaced(estimator, names, METHODS_IN):
        yield _not_original(f"{type(estimator).__name__}.{name}")
    if lbfgs and not _is_original(perceptron.BaseMultilayerPerceptron._loss_grad_lbfgs, "_loss_grad_lbfgs", METHODS_IN):
        yield _not_original("_loss_grad_lbfgs")
    for name in READ:
        if hasattr(type(estimator), name):
            yield f"{type(estimator).__name__}.{name} is an attribute of the class"
    for name in UTILITIES:
        if not _is_original(getattr(perceptron, name), name, UTILITIES_IN if name != "_pack" else METHODS_IN):
            yield _not_original(name)
    yield from _replaced_formulas(estimator)
    if (estimator.out_activation_, estimator.loss) not in PAIRS and not (
        estimator.out_activation_ == "identity" and networks.is_own_loss(estimator)
    ):
        yield f"the loss {estimator.loss!r} does not go with the output {estimator.out_activation_!r}"
    yield from _strange_network(estimator, X, y, layer_units, exactly=lbfgs)
    if estimator.out_activation_ == "softmax" and not networks.are_distributions(y):
        yield "targets of softmax do not sum to 1"
    if not lbfgs:
        yield from _strange_optimizer(estimator)


def _replaced_formulas(estimator: Any) -> Iterator[str]:
    hidden, output, loss = estimator.activation, estimator.out_activation_, estimator.loss
    if loss == "log_loss" and output == "logistic":
        loss = "binary_log_loss"
    wanted = [("ACTIVATIONS", output, f"inplace_{output}")]
    if isinstance(hidden, str) and hidden in perceptron.DERIVATIVES:  # all but softmax
        wanted += [("ACTIVATIONS", hidden, f"inplace_{hidden}")]
        wanted += [("DERIVATIVES", hidden, f"inplace_{hidden}_derivative")]
    if not networks.is_own_loss(estimator):
        wanted += [("LOSS_FUNCTIONS", loss, LOSSES.get(loss, loss))]
    for table, key, name in wanted:
        if not _is_original(getattr(perceptron, table).get(key), name, TABLES_IN):
            yield _not_original(f"{table}[{key!r}]")


def _strange_network(estimator: Any, X: Any, y: Any, layer_units: Sequence[int], exactly: bool) -> Iterator[str]:
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    layers = len(layer_units) - 1
    if not (type(coefs) is type(intercepts) is list and len(coefs) == len(intercepts) == layers):
        yield f"coefs_ and intercepts_ are not lists of {layers} arrays"
    arrays = [*coefs, *intercepts]
    if any(type(array) is not np.ndarray for array in arrays):
        yield "coefs_ or intercepts_ are not NumPy arrays"
    dtype = arrays[0].dtype
    if dtype not in (np.float32, np.float64) or any(array.dtype != dtype for array in arrays):
        yield "coefs_ and intercepts_ are not all float32 or all float64"
    sizes = [X.shape[1], *[array.size for array in intercepts]]
    shapes = [*pairwise(sizes), *[(size,) for size in sizes[1:]]]
    if [array.shape for array in arrays] != shapes or estimator.n_layers_ != len(sizes):
        yield "coefs_ and intercepts_ do not have the shapes of a network for X"
    if sizes[-1] != y.shape[1]:
        yield f"y has {y.shape[1]} columns, but the network {sizes[-1]} outputs"
    if exactly and list(layer_units) != sizes:
        yield "the layers do not have the sizes in hidden_layer_sizes"
    if not all(array.flags.writeable for array in arrays):
        yield "coefs_ or intercepts_ are read-only"
    if len({id(array) for array in arrays}) < len(arrays) or (
        any(array.base is not None for array in arrays)
        and any(np.may_share_memory(*pair) for pair in combinations(arrays, 2))
    ):
        yield "coefs_ and intercepts_ share memory"


def _strange_optimizer(estimator: Any) -> Iterator[str]:
    optimizer, parameters = estimator._optimizer, [*estimator.coefs_, *estimator.intercepts_]
    kind = type(optimizer)
    if kind is networks.RuleOptimizer:
        states = optimizer.states
    elif kind is SGDOptimizer or kind is AdamOptimizer:
        for name in _replaced(optimizer, ("update_params", "_get_updates"), OPTIMIZERS_IN):
            yield _not_original(f"{kind.__name__}.{name}")
        states = [optimizer.velocities] if kind is SGDOptimizer else [optimizer.ms, optimizer.vs]
    else:
        yield f"the optimizer is {f'a {kind.__name__} of the program' if optimizer is not None else 'None'}"
        return
    shapes = [array.shape for array in parameters]
    if any([getattr(array, "shape", None) for array in state] != shapes for state in states):
        yield "the state of the optimizer does not have the shapes of coefs_ and intercepts_"
    if kind is SGDOptimizer and hasattr(optimizer, "t"):
        yield "the optimizer has a t, which scikit-learn's does not have"
    if not (isinstance(getattr(optimizer, "t", 0), Integral) and 0 <= getattr(optimizer, "t", 0) <= MAX_STEPS // 2):
        yield "the optimizer's t is not a number of steps"


def _replaced(owner: Any, names: Iterable[str], places: tuple[str, ...]) -> Iterator[str]:
    """Yield the methods of the object that come from elsewhere."""
    own, kind = vars(owner), type(owner)
    for name in names:
        if name in own or not _is_original(getattr(kind, name), name, places):
            yield name


def _is_original(function: Any, name: str, places: tuple[str, ...]) -> bool:
    """Return whether a function has this name and its code comes from one of the files or folders."""
    return (
        type(function) is FunctionType
        and function.__name__ == name
        and function.__code__.co_filename.startswith(places)
    )


def _not_original(name: str) -> str:
    return f"{name} is not scikit-learn's own"
