"""Update rules of gradient descent over flat buffers, and learning-rate schedules.

A rule knows nothing of networks: it sees the parameters, the gradients and its own state as flat arrays of one
length, of which the first `n_weights` entries are weights and the rest biases. Rules hold numbers only; the state
lives in the plan of a training run, so one rule object serves any number of networks.

Each `apply` changes the parameters in one last operation: an interrupt finds them before the step or after it.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from bpgpu.checks import MAX_STEPS, flag, fraction, function, held, integer, not_negative, positive
from bpgpu.errors import lookup

Schedule = Callable[[int], float]


def _check(rule: Any, check: Callable[[str, Any], Any], *names: str) -> None:
    """Check fields of a frozen dataclass; a NumPy scalar becomes Python's, which does not change an array's dtype."""
    for name in names:
        object.__setattr__(rule, name, check(name, getattr(rule, name)))


def _at_least_one(name: str, value: Any) -> int:
    return integer(name, value, 1, MAX_STEPS)


def _step(value: Any) -> int:
    return integer("step", value, 0, MAX_STEPS)


@dataclass(frozen=True)
class Optimizer:
    """What all rules share.

    Parameters
    ----------
    learning_rate : float or function
        eta, above 0; or a schedule: a function of the step, counted from 0 over the whole fit.
    clip_norm : float, optional
        If the Euclidean norm of all gradients together exceeds it, they are scaled down to it.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range, with its name, or a schedule does not take a step.
    """

    learning_rate: float | Schedule = 1e-2
    _: KW_ONLY
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if callable(self.learning_rate):
            function("learning_rate", self.learning_rate, ["the step"])
        else:
            _check(self, positive, "learning_rate")
        if self.clip_norm is not None:
            _check(self, positive, "clip_norm")

    @property
    def n_state(self) -> int:
        """Number of flat buffers of state."""
        return 0

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise ValueError if a number of the rule would become infinity, or 0 where it may not be, in a dtype."""
        for name, above_0 in (("epsilon", True), ("weight_decay", False)):
            if isinstance(value := getattr(self, name, None), float):
                held(name, value, dtype, above_0=above_0)

    def norm_limit(self, dtype: np.dtype[Any]) -> float | None:
        """Return `clip_norm` as a normal number of a dtype, which would round it to 0 or infinity outside of them."""
        limits = np.finfo(dtype)
        return None if self.clip_norm is None else min(max(self.clip_norm, float(limits.tiny)), float(limits.max))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if not callable(self.learning_rate):
            return self.learning_rate
        return positive("learning_rate", self.learning_rate(step), f" from its schedule at step {step}")

    def rates(self, first: int, steps: int) -> list[float]:
        """Return the learning rates of some steps in a row."""
        if not callable(self.learning_rate):
            return [self.learning_rate] * steps
        return [self.rate(step) for step in range(first, first + steps)]

    def apply(self, p: Any, g: Any, state: list[Any], *, t: int, eta: float, n_weights: int, xp: Any) -> None:
        """Take one step, in place on `p` and `state`.

        Parameters
        ----------
        p, g : flat array
            Parameters and gradients.
        state : list of flat array
            `n_state` of them, zero before the first step.
        t : int
            The step, counted from 1.
        eta : float
            Learning rate of this step.
        n_weights : int
            How many leading entries are weights.
        xp : module
            The array module, NumPy or one with its interface.
        """
        raise NotImplementedError(f"{type(self).__name__} has no apply()")


def _decay(x: Any, beta: float, added: Any, xp: Any) -> None:
    """Make ``beta x + added`` of x in place; near 1, beta rounded to float32 would have lost part of 1 - beta."""
    if beta > 0.5:
        x += added - (1 - beta) * xp.minimum(x, np.finfo(x.dtype).max)  # an infinite x stays what it is
    else:
        x *= beta
        x += added


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: ``p <- p + v``, with ``v <- mu v - eta g``.

    Parameters
    ----------
    learning_rate, clip_norm
        See `Optimizer`.
    momentum : float
        mu, in [0, 1).
    nesterov : bool
        Nesterov's look-ahead, ``p <- p + mu v - eta g`` with the new v (Sutskever et al. 2013).
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, fraction, "momentum")
        _check(self, flag, "nesterov")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0; pass momentum=0.9")

    @property
    def n_state(self) -> int:
        return 1 if self.momentum else 0

    def apply(self, p: Any, g: Any, state: list[Any], *, t: int, eta: float, n_weights: int, xp: Any) -> None:
        change = -eta * g
        if self.momentum:
            (v,) = state
            _decay(v, self.momentum, change, xp)
            change = change + self.momentum * v if self.nesterov else v
        p += change


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop: ``v <- rho v + (1 - rho) g^2``, ``p <- p - eta g / (sqrt(v) + epsilon)`` (Hinton 2012, lecture 6e).

    Parameters
    ----------
    learning_rate, clip_norm
        See `Optimizer`.
    rho : float
        Decay of the mean square, in [0, 1).
    epsilon : float
        Above 0.
    """

    learning_rate: float | Schedule = 1e-3
    rho: float = 0.9
    epsilon: float = 1e-8

    @property
    def n_state(self) -> int:
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, fraction, "rho")
        _check(self, positive, "epsilon")

    def apply(self, p: Any, g: Any, state: list[Any], *, t: int, eta: float, n_weights: int, xp: Any) -> None:
        (v,) = state
        _decay(v, self.rho, (1 - self.rho) * g * g, xp)
        p -= eta * g / (xp.sqrt(v) + self.epsilon)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1).

    ``m <- beta1 m + (1 - beta1) g``, ``v <- beta2 v + (1 - beta2) g^2``,
    ``p <- p - eta m_hat / (sqrt(v_hat) + epsilon)`` with ``m_hat = m / (1 - beta1^t)``, ``v_hat = v / (1 - beta2^t)``.

    Parameters
    ----------
    learning_rate, clip_norm
        See `Optimizer`.
    beta1, beta2 : float
        Decay of the two moments, in [0, 1).
    epsilon : float
        Above 0.
    epsilon_hat : bool
        Whether epsilon is added to sqrt(v), as in the paper's faster order of computation (the end of its section 2)
        and in scikit-learn: ``p <- p - eta m_hat sqrt(1 - beta2^t) / (sqrt(v) + epsilon)``.
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epsilon_hat: bool = field(default=False, kw_only=True)

    @property
    def n_state(self) -> int:
        return 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, fraction, "beta1", "beta2")
        _check(self, positive, "epsilon")
        _check(self, flag, "epsilon_hat")

    def apply(self, p: Any, g: Any, state: list[Any], *, t: int, eta: float, n_weights: int, xp: Any) -> None:
        p -= eta * self._direction(g, state, t, xp)

    def _direction(self, g: Any, state: list[Any], t: int, xp: Any) -> Any:
        m, v = state
        _decay(m, self.beta1, (1 - self.beta1) * g, xp)
        _decay(v, self.beta2, (1 - self.beta2) * g * g, xp)
        m_hat = m / (1 - self.beta1**t)
        if self.epsilon_hat:
            return m_hat * math.sqrt(1 - self.beta2**t) / (xp.sqrt(v) + self.epsilon)
        return m_hat / (xp.sqrt(v / (1 - self.beta2**t)) + self.epsilon)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): also ``W <- W - eta weight_decay W``.

    Biases do not decay, as they are not penalised anywhere in bpgpu.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, epsilon_hat, clip_norm
        See `Adam`.
    weight_decay : float
        0 or more.
    """

    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, not_negative, "weight_decay")

    def apply(self, p: Any, g: Any, state: list[Any], *, t: int, eta: float, n_weights: int, xp: Any) -> None:
        direction = self._direction(g, state, t, xp)
        direction[:n_weights] += self.weight_decay * p[:n_weights]
        p -= eta * direction


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}


def get_optimizer(optimizer: str | Optimizer) -> Optimizer:
    """Return the rule of this name with its default numbers, or the object itself.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    return lookup("optimizer", optimizer, OPTIMIZERS)()


@dataclass(frozen=True)
class _Decay:
    initial: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        _check(self, positive, "initial", "factor")
        _check(self, _at_least_one, "every")
        if self.factor > 1:
            raise ValueError(f"factor must be at most 1, got {self.factor}")

    def _after(self, decays: float) -> float:
        return float(max(self.initial * self.factor**decays, sys.float_info.min))  # never 0


class StepDecay(_Decay):
    """``initial * factor ** (step // every)``: a learning rate that falls in stairs."""

    def __call__(self, step: int) -> float:
        return self._after(_step(step) // self.every)


class ExponentialDecay(_Decay):
    """``initial * factor ** (step / every)``: a learning rate that falls by `factor` every `every` steps."""

    def __call__(self, step: int) -> float:
        return self._after(_step(step) / self.every)


@dataclass(frozen=True)
class CosineDecay:
    """Linear warm-up to `initial` in `warmup` steps, then half a cosine down to `final` at step `steps`.

    Loshchilov and Hutter 2017, without restarts.

    Parameters
    ----------
    initial : float
        Above 0.
    steps : int
        At least 1; the warm-up is part of them.
    final : float
        Above 0, at most `initial`.
    warmup : int
        0 or more, less than `steps`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not as described.
    """

    initial: float
    steps: int
    final: float = 1e-6
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(self, positive, "initial", "final")
        _check(self, _at_least_one, "steps")
        _check(self, lambda name, value: integer(name, value, 0, MAX_STEPS), "warmup")
        if self.final > self.initial:
            raise ValueError(
                f"final must be at most initial, {self.initial:g}, got {self.final:g}; pass "
                f"final={self.initial / 100:g} or a larger initial"
            )
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be less than steps, {self.steps}, of which it is a part, got {self.warmup}")

    def __call__(self, step: int) -> float:
        if _step(step) < self.warmup:
            return self.initial * (step + 1) / self.warmup
        part = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * part)) / 2
