"""Update rules of gradient descent over flat buffers, and learning-rate schedules.

A rule knows nothing of networks: it sees the parameters, the gradients and its own state as flat arrays of one
length, of which the first `n_weights` entries are weights and the rest biases. Rules hold numbers only; the state
lives in the plan of a training run, so one rule object serves any number of networks.

A rule is given by `formulas`, which run compiled on every backend, or else by `apply` in Python. Each `apply` changes
the parameters in one last operation: an interrupt finds them before the step or after it.
"""

import math
import numbers
import sys
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import numpy as np

from bpgpu.checks import MAX_STEPS, flag, fraction, function, held, integer, not_negative, positive
from bpgpu.errors import lookup
from bpgpu.kernels import rules
from bpgpu.kernels.formulas import RULES
from bpgpu.model import formula_checks

Schedule = Callable[[int], float]
BLOCK = 2**16  # parameters that a formula computes at a time, whose intermediate results fit into a cache


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
    """What all rules share, and what a rule of your own derives from.

    A rule is a frozen dataclass whose fields are its numbers, with `formulas`, or with `apply` and `n_state` if no
    formula can say it.

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
    FormulaError
        If a formula reads a name that is not there, or gives no finite number where it should.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Lion(bpgpu.Optimizer):
    ...     beta1: float = 0.9
    ...     beta2: float = 0.99
    ...
    ...     @property
    ...     def formulas(self):
    ...         return {
    ...             "p": "p - eta * sign(beta1 * m + (1 - beta1) * g)",
    ...             "m": "decayed(m, beta2, (1 - beta2) * g)",
    ...         }
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
        if self.formulas not in RULES.values() and self.compiled is not None:  # the tests do that for the table
            formula_checks.optimizer(type(self).__name__, tuple(self.formulas.items()), self.compiled)

    @property
    def formulas(self) -> Mapping[str, str]:
        """The new values of each state and of p, computed one after another; empty for a rule that has `apply`.

        An expression is made of ``p`` (the parameter), ``g`` (its gradient), the names of the state, the rule's own
        fields that are numbers, ``eta`` (the learning rate), ``t`` (the step, from 1), ``is_weight`` (1 for weights,
        0 for biases), and the operators and functions of `bpgpu.kernels.formulas`. A name whose formula stands above
        means its new value. State begins as 0, and there are at most four.
        """
        return {}

    @property
    def compiled(self) -> rules.Rule | None:
        """What the kernels are made of; None if the rule is written as `apply`."""
        if not self.formulas or type(self).apply is not Optimizer.apply:
            return None
        named = ((each.name, getattr(self, each.name)) for each in fields(self) if each.name not in _NOT_IN_FORMULAS)
        values = tuple((name, float(value)) for name, value in named if _is_number(value))
        return rules.rule(tuple(self.formulas.items()), values)

    @property
    def n_state(self) -> int:
        """Number of flat buffers of state."""
        return max(len(self.formulas) - 1, 0)

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Raise ValueError if a number of the rule would become infinity, or 0 where it may not be, in a dtype."""
        for each in fields(self):
            if each.name not in _NOT_IN_FORMULAS and _is_number(value := getattr(self, each.name)):
                held(each.name, value, dtype, above_0=each.name == "epsilon")

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
        """Take one step, in place on `p` and `state`: that of `formulas`, unless a rule of your own overrides it.

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
        rule = self.compiled
        if rule is None:
            raise NotImplementedError(f"{type(self).__name__} has no apply() and no formulas; give it one of the two")
        T, after = p.dtype.type, xp.empty_like(p)
        step, numbers = rules.numpy_function(rule.text, p.dtype), tuple(rule.schedule([eta], t, p.dtype)[0])
        missing = [None] * (rules.MAX_STATES - len(state))
        with np.errstate(all="ignore"):  # what is not finite is found by whoever calls this
            for is_weight, first, last in ((T(1), 0, n_weights), (T(0), n_weights, p.size)):
                for start in range(first, last, BLOCK):
                    part = slice(start, min(start + BLOCK, last))
                    now = [x[part] for x in state]
                    after[part], *new = step(p[part], g[part], is_weight, *now, *missing, numbers)
                    for x, value in zip(now, new, strict=False):
                        x[...] = value
        p[...] = after


_NOT_IN_FORMULAS = ("learning_rate", "clip_norm")  # eta is the first, and g has been clipped


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


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
        _check(self, fraction, "momentum")
        _check(self, flag, "nesterov")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0, got 0; pass momentum=0.9")
        super().__post_init__()

    @property
    def formulas(self) -> Mapping[str, str]:
        return RULES["nesterov" if self.nesterov else "momentum"] if self.momentum else RULES["sgd"]


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

    def __post_init__(self) -> None:
        _check(self, fraction, "rho")
        _check(self, positive, "epsilon")
        super().__post_init__()

    @property
    def formulas(self) -> Mapping[str, str]:
        return RULES["rmsprop"]


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

    def __post_init__(self) -> None:
        _check(self, fraction, "beta1", "beta2")
        _check(self, positive, "epsilon")
        _check(self, flag, "epsilon_hat")
        super().__post_init__()

    @property
    def formulas(self) -> Mapping[str, str]:
        return RULES["adam_hat" if self.epsilon_hat else "adam"]


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
        _check(self, not_negative, "weight_decay")
        super().__post_init__()

    @property
    def formulas(self) -> Mapping[str, str]:
        return RULES["adamw_hat" if self.epsilon_hat else "adamw"]


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
