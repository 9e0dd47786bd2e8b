"""A scikit-learn estimator in bpgpu's terms: its network, its loss as a cost, and its optimizer."""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.neural_network._stochastic_optimizers import BaseOptimizer

from bpgpu.backends import get_backend
from bpgpu.backends.data import Data
from bpgpu.kernels import formulas
from bpgpu.model.activations import IDENTITY, SOFTMAX, Activation, get_activation, layer_activations, unchecked
from bpgpu.model.architecture import Architecture
from bpgpu.model.costs import COSTS, CROSS_ENTROPY, Cost
from bpgpu.model.optimizers import SGD, Adam, Optimizer, get_optimizer
from bpgpu.sklearn import parameters
from bpgpu.sparse import compressed_rows

Array = np.ndarray[Any, Any]

# The derivatives of this activation and this cost are correct only as a pair, where dC/dz = a - y.
EXP = unchecked(Activation, name="exp", value="exp(z)", derivative="1")
POISSON = unchecked(
    Cost, name="poisson", value="where(y == 0, 0, y * log(y / a)) - y + a", gradient="a - y", reduction="sum"
)
# The same holds for the log-loss.
LOGISTIC = unchecked(Activation, name="logistic", value=get_activation("logistic").value, derivative="1")
# Regression losses of one output that scikit-learn does not have; q is the quantile, d the delta of Huber's.
LOSSES = {
    "absolute_error": ("abs(a - y)", "where(a > y, 1, where(a < y, -1, 0))"),
    "huber": (
        "where(abs(a - y) < {d}, 0.5 * (a - y) ** 2, {d} * (abs(a - y) - 0.5 * {d}))",
        "max(min(a - y, {d}), -{d})",
    ),
    "log_cosh": ("abs(a - y) + log1p(exp(-2 * abs(a - y))) - 0.6931471805599453", "tanh(a - y)"),
    "quantile": ("where(y > a, {q} * (y - a), (1 - {q}) * (a - y))", "where(y > a, -{q}, where(y < a, 1 - {q}, 0))"),
}


def cost(estimator: Any, outputs: int) -> Cost:
    """Return the cost of a regression.

    scikit-learn descends the sum over the outputs and reports their mean, so value and gradient differ by a factor of
    the number of outputs.
    """
    loss = estimator.loss
    if isinstance(loss, Cost):
        return loss
    if loss == "squared_error":
        if outputs == 1:
            return COSTS["half_squared_error"]
        value, gradient = "0.5 * (y - a) ** 2", "a - y"
    else:
        chosen = {"d": parameters.value(estimator, "huber_delta"), "q": parameters.value(estimator, "quantile")}
        numbers = {name: repr(float(number)) for name, number in chosen.items()}
        value, gradient = (formula.format(**numbers) for formula in LOSSES[loss])
    if outputs > 1:
        value = f"({value}) / {outputs}"
    return unchecked(Cost, name=loss, value=value, gradient=gradient, reduction="sum")


def hidden(estimator: Any) -> tuple[Activation, ...]:
    """Return the activations of the hidden layers."""
    return layer_activations(estimator.activation, estimator.n_layers_ - 2)


def architecture(estimator: Any, dtype: np.dtype[Any]) -> Architecture:
    """Return the network of an estimator that scikit-learn has initialised."""
    sizes = [len(estimator.coefs_[0]), *map(len, estimator.intercepts_)]
    largest = math.inf
    if estimator.out_activation_ == "identity":
        output, loss = IDENTITY, cost(estimator, sizes[-1])
    elif estimator.out_activation_ == "exp":
        output, loss = EXP, POISSON
    elif estimator.out_activation_ == "logistic":
        output, loss = LOGISTIC, log_loss(dtype)
    else:
        output, loss = SOFTMAX, CROSS_ENTROPY
        largest = -math.log(np.finfo(dtype).eps)
    return Architecture(
        sizes=tuple(sizes),
        activations=(*hidden(estimator), output),
        cost=loss,
        bias=True,
        l2=float(estimator.alpha),
        dropout=float(parameters.value(estimator, "dropout") or 0),
        dtype=dtype,
        seed=getattr(estimator, "_bpgpu_dropout_seed", 0),
        by_weight=True,
        largest_cost=largest,
    )


def log_loss(dtype: np.dtype[Any]) -> Cost:
    """Return scikit-learn's log-loss of logistic outputs, in which probabilities are at least eps.

    With softmax, where each row has one class, the same limit is a largest cost per row.
    """
    eps = repr(float(np.finfo(dtype).eps))
    value = f"-(y * log(max(a, {eps})) + (1 - y) * log(max(1 - a, {eps})))"
    return unchecked(Cost, name="log_loss", value=value, gradient="a - y", reduction="sum")


def data(estimator: Any, X: Any, y: Any, weight: Any, dtype: np.dtype[Any]) -> Data:
    """Return data that scikit-learn has checked in the form that backends take."""
    return Data(
        compressed_rows("X", X, dtype) if issparse(X) else np.ascontiguousarray(X, dtype),
        targets(estimator, y, dtype),
        None if weight is None else np.ascontiguousarray(weight, dtype),
    )


def untrainable_in_sklearn(estimator: Any) -> list[str]:
    """Return the parameters with whose values scikit-learn cannot train."""
    found = {
        "activation": not isinstance(estimator.activation, str) or estimator.activation not in perceptron.DERIVATIVES,
        "dropout": parameters.value(estimator, "dropout") > 0,
        "optimizer": parameters.value(estimator, "optimizer") is not None,
        "loss": is_own_loss(estimator),
        "label_smoothing": smoothing(estimator) > 0,
    }
    return [name for name, used in found.items() if used]


def is_own_loss(estimator: Any) -> bool:
    """Return whether scikit-learn lacks the loss."""
    return isinstance(estimator.loss, Cost) or estimator.loss in LOSSES


def are_distributions(y: Any) -> bool:
    """Return whether the targets of each row sum to 1, which softmax with cross-entropy assumes."""
    sums = y.sum(axis=1)
    return bool((sums == 1).all() if y.dtype == bool else (abs(sums - 1) <= 4 * np.finfo(sums.dtype).eps).all())


def smoothing(estimator: Any) -> float:
    """Return the part of a label's probability that is shared equally among all labels."""
    return float(parameters.value(estimator, "label_smoothing") or 0.0)


def targets(estimator: Any, y: Any, dtype: np.dtype[Any]) -> Array:
    """Return targets in the form that backends take: labels if each row is one class, otherwise floats."""
    part, softmax = smoothing(estimator), estimator.out_activation_ == "softmax"
    if part:
        y = np.asarray(y, dtype) * (1 - part) + part / (y.shape[1] if softmax else 2)
    elif softmax and y.dtype == bool:
        return np.ascontiguousarray(y.argmax(axis=1), np.int32)
    return np.ascontiguousarray(y, dtype)


def loss(estimator: Any, y: Any, a: Array, weight: Array | None) -> float:
    """Return the loss of outputs without the penalty, as scikit-learn computes its own."""
    if smoothing(estimator):
        y = targets(estimator, y, a.dtype)
    if not is_own_loss(estimator):
        binary = estimator.loss == "log_loss" and estimator.out_activation_ == "logistic"
        return float(perceptron.LOSS_FUNCTIONS["binary_log_loss" if binary else estimator.loss](y, a, weight))
    given = cost(estimator, a.shape[1])
    values = formulas.numpy_function(given.value, a.dtype)(None, a, y.astype(a.dtype))
    rows = values.mean(axis=1) if given.reduction == "mean" else values.sum(axis=1)
    return float(np.average(rows, weights=weight))


def forward(estimator: Any, X: Array) -> tuple[list[Any], list[Any]]:
    """Return z_1 ... z_L and a_0 ... a_L."""
    backend, net = get_backend("numpy"), architecture(estimator, np.result_type(X.dtype, estimator.coefs_[0]))
    z, a = list[Any](), [X]
    with np.errstate(all="ignore"):
        for W, b, sigma in zip(estimator.coefs_, estimator.intercepts_, net.activations, strict=True):
            z.append(np.empty((X.shape[0], W.shape[1]), net.dtype))
            a.append(np.empty_like(z[-1]))
            backend.forward(a[-2], W, b, sigma, out=a[-1], out_z=z[-1])
    return z, a


def input_gradients(estimator: Any, X: Array) -> Array:
    """Return d a_L / d a_0, of shape (n, n_L, n_0)."""
    backend, (z, a) = get_backend("numpy"), forward(estimator, X)
    out, output = a[-1], estimator.out_activation_
    slopes = {"identity": np.ones_like(out), "exp": out, "logistic": out * (1 - out), "softmax": out}[output]
    result = np.empty((*out.shape, X.shape[1]), out.dtype)
    for k in range(out.shape[1]):
        delta = np.zeros_like(out)
        delta[:, k] = slopes[:, k]
        if output == "softmax":
            delta -= out[:, [k]] * out
        for l in range(len(z) - 1, 0, -1):
            delta_next, delta = delta, np.empty_like(a[l])
            sigma = hidden(estimator)[l - 1]
            backend.hidden_delta(delta_next, estimator.coefs_[l], a[l], sigma, out=delta, z=z[l - 1])
        result[:, k] = delta @ estimator.coefs_[0].T
    return result


class RuleOptimizer(BaseOptimizer):
    """An optimizer of bpgpu with its state, in the place of scikit-learn's optimizer."""

    def __init__(self, parameters: list[Array], rule: Optimizer) -> None:
        super().__init__(rule.rate(0))
        self.rule, self.t = rule, 0
        self.states = [[np.zeros_like(x) for x in parameters] for _ in range(rule.n_state)]


def given_optimizer(estimator: Any) -> Optimizer:
    """Return the parameter `optimizer`; if it is a name, that optimizer at scikit-learn's learning rate."""
    chosen = parameters.value(estimator, "optimizer")
    if isinstance(chosen, Optimizer):
        return chosen
    return dataclasses.replace(get_optimizer(chosen), learning_rate=float(estimator.learning_rate_init))


def optimizer_of(optimizer: Any) -> Optimizer:
    """Return bpgpu's optimizer for an optimizer object of a fit.

    scikit-learn has checked its own optimizers' numbers, and allows some that bpgpu refuses, such as a momentum of 1.
    """
    if isinstance(optimizer, RuleOptimizer):
        return optimizer.rule
    rate = float(optimizer.learning_rate_init)
    if hasattr(optimizer, "velocities"):
        momentum = float(optimizer.momentum)
        nesterov = bool(optimizer.nesterov and momentum)
        return unchecked(SGD, learning_rate=rate, clip_norm=None, momentum=momentum, nesterov=nesterov)
    return unchecked(
        Adam,
        learning_rate=rate,
        clip_norm=None,
        beta1=float(optimizer.beta_1),
        beta2=float(optimizer.beta_2),
        epsilon=float(optimizer.epsilon),
        epsilon_hat=True,
    )
