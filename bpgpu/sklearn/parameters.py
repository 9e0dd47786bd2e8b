"""The parameters that scikit-learn lacks, and whether a name in a subclass means ours or its own.

A subclass that was written for scikit-learn's estimators may use any of these names for itself. So a class with an
``__init__`` of its own has our parameter only if it passes it on to ours.
"""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)
TAKEN = "_bpgpu_taken"  # attribute of an estimator: our names that its class uses for itself


def added_to(theirs: type) -> Callable[[Kind], Kind]:
    """Decorate our version of scikit-learn's estimator: note which of our added parameters a subclass passes on."""

    def decorate(ours: Kind) -> Kind:
        inherited, init = inspect.signature(theirs).parameters, vars(ours)["__init__"]
        added = {p.name: p.default for p in inspect.signature(ours).parameters.values() if p.name not in inherited}

        @functools.wraps(init)
        def constructor(self: Any, *positional: Any, **named: Any) -> None:
            kind = type(self)
            vars(self).pop(TAKEN, None)
            if kind is not ours:
                taken = set() if kind.__init__ is constructor else added.keys() - named.keys()
                if taken := taken | _of_its_classes(kind):
                    setattr(self, TAKEN, tuple(sorted(taken)))
            init(self, *positional, **named)

        ours.__init__ = constructor  # type: ignore[misc]
        ours._bpgpu_constructor, ours._bpgpu_added = constructor, added  # type: ignore[attr-defined]
        return ours

    return decorate


def keep(estimator: Any, **values: Any) -> None:
    """Set our parameters in ``__init__``, unless the class uses their names for itself."""
    for name, given in values.items():
        if name not in _taken(estimator):
            setattr(estimator, name, given)


def value(estimator: Any, name: str) -> Any:
    """Return one of our parameters: its default if the class uses the name for itself, None if it does not exist.

    Estimators of scikit-learn itself have none of them.
    """
    added = getattr(estimator, "_bpgpu_added", {})
    default = added.get(name)
    return default if name not in added or name in _taken(estimator) else getattr(estimator, name, default)


def constraints(estimator: Any) -> dict[str, Any]:
    """Return the constraints that scikit-learn must check, without ours for names that the class uses for itself."""
    ours = next(vars(cls) for cls in type(estimator).__mro__ if "_bpgpu_added" in vars(cls))["_parameter_constraints"]
    return {
        name: allowed
        for name, allowed in estimator._parameter_constraints.items()
        if not (name in _taken(estimator) and allowed is ours[name])
    }


def completed(estimator: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a pickled state completed with our parameters, which scikit-learn's own lacks.

    In the state of a subclass with its own ``__init__`` that was pickled without bpgpu, none of the names is ours.
    """
    kind = type(estimator)
    missing = kind._bpgpu_added.keys() - state.keys() - set(state.get(TAKEN, ()))
    if not missing:
        return state
    # Read from the class, because reading it from an instance gives a bound method.
    taken = _of_its_classes(kind) if kind.__init__ is kind._bpgpu_constructor else set(kind._bpgpu_added)
    defaults = {name: kind._bpgpu_added[name] for name in missing - taken}
    return {**defaults, **state, **({TAKEN: tuple(sorted(taken))} if taken else {})}


def _of_its_classes(kind: Any) -> set[str]:
    """Return our names that classes derived from ours, such as a user's subclass, have as attributes."""
    below = itertools.takewhile(lambda cls: "_bpgpu_added" not in vars(cls), kind.__mro__)
    return {name for cls in below for name in kind._bpgpu_added.keys() & vars(cls).keys()}


def _taken(estimator: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = vars(estimator).get(TAKEN, ())
    return names
