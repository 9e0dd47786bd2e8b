"""The parameters that scikit-learn lacks, and whose they are in a subclass: ours, or its own of the same name.

A subclass that was written for scikit-learn's estimators may use any of these names for itself. So a class with an
``__init__`` of its own has our parameter only where it passes it on to ours.
"""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)
TAKEN = "_bpgpu_taken"  # attribute of an estimator: the names of ours that are not ours in it


def beside(theirs: type) -> Callable[[Kind], Kind]:
    """Decorate our estimator, beside scikit-learn's: see which of the parameters that it adds a subclass passes on."""

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
    """Set parameters of ours, in ``__init__``, where the class does not use their names for itself."""
    for name, given in values.items():
        if name not in _taken(estimator):
            setattr(estimator, name, given)


def value(estimator: Any, name: str) -> Any:
    """Return a parameter of ours, its default where the name is not ours, or None where there is no such parameter.

    Estimators of scikit-learn itself have none.
    """
    added = getattr(estimator, "_bpgpu_added", {})
    default = added.get(name)
    return default if name not in added or name in _taken(estimator) else getattr(estimator, name, default)


def constraints(estimator: Any) -> dict[str, Any]:
    """Return what scikit-learn is to check of the parameters: of names that are not ours, what others say of them."""
    ours = next(vars(cls) for cls in type(estimator).__mro__ if "_bpgpu_added" in vars(cls))["_parameter_constraints"]
    return {
        name: allowed
        for name, allowed in estimator._parameter_constraints.items()
        if not (name in _taken(estimator) and allowed is ours[name])
    }


def completed(estimator: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a pickled state with all that an estimator of ours has: scikit-learn's own lacks our parameters.

    In one of a subclass with an ``__init__`` of its own that was made without bpgpu, none of the names is ours.
    """
    kind = type(estimator)
    missing = kind._bpgpu_added.keys() - state.keys() - set(state.get(TAKEN, ()))
    if not missing:
        return state
    # Of the class, because the function of an instance is a bound method.
    taken = _of_its_classes(kind) if kind.__init__ is kind._bpgpu_constructor else set(kind._bpgpu_added)
    defaults = {name: kind._bpgpu_added[name] for name in missing - taken}
    return {**defaults, **state, **({TAKEN: tuple(sorted(taken))} if taken else {})}


def _of_its_classes(kind: Any) -> set[str]:
    """Return the names that the classes below ours, such as a stranger's subclass, have as attributes."""
    below = itertools.takewhile(lambda cls: "_bpgpu_added" not in vars(cls), kind.__mro__)
    return {name for cls in below for name in kind._bpgpu_added.keys() & vars(cls).keys()}


def _taken(estimator: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = vars(estimator).get(TAKEN, ())
    return names
