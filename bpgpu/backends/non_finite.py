"""Where in a step a number came up that is not finite; searched only when one has."""

from collections.abc import Callable
from typing import Any

from bpgpu.backends.data import Batch
from bpgpu.backends.plan import Plan
from bpgpu.model.architecture import Architecture


def first_fault(plan: Plan, batch: Batch, finite: Callable[[Any], bool]) -> tuple[int, str]:
    """Follow a step on its way forward, to the cost, and back.

    Parameters
    ----------
    plan, batch : Plan, Batch
        As the step left them.
    finite : function
        Says of an array whether all of it is finite.

    Returns
    -------
    layer : int
        From 1.
    quantity : str
        As in `NonFiniteError`.
    """
    L = len(plan.architecture.activations)
    for l in range(1, L):
        if not finite(batch.a[l]):
            return l, "activation"
    if not finite(batch.z[L]):
        return L, "weighted input"
    for l in range(L, 0, -1):
        if not (finite(batch.delta[l]) and finite(plan.dW[l - 1])):
            return l, "gradient"
    return L, "cost"


def first_layer(architecture: Architecture, flat: Any, finite: Callable[[Any], bool]) -> int:
    """Return the first layer, from 1, of which a flat buffer holds a number that is not finite."""
    layers = zip(*architecture.views(flat), strict=True)
    return [all(finite(part) for part in layer if part is not None) for layer in layers].index(False) + 1
