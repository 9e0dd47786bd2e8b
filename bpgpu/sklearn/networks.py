"""What a scikit-learn estimator is to bpgpu: its network, with scikit-learn's losses as costs, and its rule."""

from typing import Any

import numpy as np

from bpgpu.activations import IDENTITY, SOFTMAX, Activation, get_activation, unchecked
from bpgpu.costs import BINARY_CROSS_ENTROPY, COSTS, CROSS_ENTROPY, Cost
from bpgpu.optimizers import SGD, Adam, Optimizer
from bpgpu.plan import Architecture

# The derivatives of this activation and this cost are those of the pair, dC/dz = a - y; each alone is none.
EXP = unchecked(Activation, name="exp", value="exp(z)", derivative="1")
POISSON = unchecked(
    Cost, name="poisson", value="where(y == 0, 0, y * log(y / a)) - y + a", gradient="a - y", reduction="sum"
)


def squared_error(outputs: int) -> Cost:
    """Return scikit-learn's: it descends along the sum over the outputs, and reports their mean.

    So its value and its gradient disagree by the number of outputs.
    """
    if outputs == 1:
        return COSTS["half_squared_error"]
    value = f"{0.5 / outputs!r} * (y - a) ** 2"
    return unchecked(Cost, name=f"mean_of_{outputs}", value=value, gradient="a - y", reduction="sum")


def architecture(estimator: Any, sizes: list[int], dtype: np.dtype[Any]) -> Architecture:
    """Return the network of an estimator that scikit-learn has initialised."""
    output, cost = {
        "softmax": (SOFTMAX, CROSS_ENTROPY),
        "logistic": (get_activation("sigmoid"), BINARY_CROSS_ENTROPY),
        "identity": (IDENTITY, squared_error(sizes[-1])),
        "exp": (EXP, POISSON),
    }[estimator.out_activation_]
    hidden = (get_activation(estimator.activation),) * (len(sizes) - 2)
    return Architecture(
        sizes=tuple(map(int, sizes)),
        activations=(*hidden, output),
        cost=cost,
        bias=True,
        l2=float(estimator.alpha),
        dropout=0.0,
        dtype=dtype,
        seed=0,
        by_weight=True,
    )


def targets(estimator: Any, y: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return targets as the backends take them: labels of classes that exclude each other, floats else."""
    if estimator.out_activation_ == "softmax":
        return np.ascontiguousarray(y.argmax(axis=1), np.int32)
    return np.ascontiguousarray(y, dtype)


def rule(optimizer: Any) -> Optimizer:
    """Return the rule of scikit-learn's optimizer object.

    Its numbers have been checked there, and may be what is refused here, such as a momentum of 1.
    """
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
