"""The rules of optimization that the kernels know, as numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bpgpu.model.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop

RULES: tuple[type[Optimizer], ...] = (SGD, RMSprop, Adam, AdamW)


@dataclass(frozen=True)
class RuleKernel:
    """How the kernels know a rule: by name, its numbers h0 ... h5 (see ``update.cu``), and which state it keeps."""

    name: str
    numbers: tuple[float, ...]
    keeps_m: bool
    keeps_v: bool
    betas: tuple[float, float] = (0.0, 0.0)
    epsilon_hat: bool = False

    def schedule(self, rates: np.ndarray[Any, Any], t: int, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a row for each step, the first being step t: eta, two bias corrections, 1 / weight of the batch."""
        table = np.zeros((len(rates), 4))
        table[:, 0], table[:, 1:3] = rates, 1
        if any(self.betas):
            steps = t + np.arange(len(rates))
            m, v = (1 / (1 - beta**steps) for beta in self.betas)
            # With epsilon_hat both corrections are of m: that of v would not reach epsilon.
            table[:, 1], table[:, 2] = (m / np.sqrt(v), 1) if self.epsilon_hat else (m, v)
        np.divide(1, weights, out=table[:, 3], where=weights > 0)
        return table


def rule_kernel(rule: Optimizer | None) -> RuleKernel:
    """Return what the kernels need to know of a rule of `RULES`, or of none."""
    match rule:
        case None:
            return RuleKernel("none", (0.0,) * 6, False, False)
        case SGD(momentum=0):
            return RuleKernel("sgd", (0.0,) * 6, False, False)
        case SGD(momentum=mu, nesterov=nesterov):
            return RuleKernel("nesterov" if nesterov else "momentum", (mu, 0.0, 0.0, 0.0, 1 - mu, 0.0), True, False)
        case RMSprop(rho=rho, epsilon=epsilon):
            return RuleKernel("rmsprop", (rho, epsilon, 0.0, 0.0, 1 - rho, 0.0), False, True)
        case Adam(beta1=beta1, beta2=beta2, epsilon=epsilon, epsilon_hat=epsilon_hat):
            decay = rule.weight_decay if isinstance(rule, AdamW) else 0.0
            numbers = (beta1, beta2, epsilon, decay, 1 - beta1, 1 - beta2)
            return RuleKernel("adamw" if decay else "adam", numbers, True, True, (beta1, beta2), epsilon_hat)
    raise TypeError(f"no kernel knows the rule {rule!r}")
