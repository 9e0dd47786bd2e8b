"""Checks for a backend of your own: those that bpgpu's backends pass, to run at once or one by one in pytest.

A backend derives from `bpgpu.Backend`, the readable reference, and overrides what it does faster. Its package
registers it as an entry point; then every ``backend=`` of bpgpu takes its name:

.. code-block:: toml

    [project.entry-points."bpgpu.backends"]
    mine = "my_package.my_module:MyBackend"

These are its tests:

.. code-block:: python

    import bpgpu.testing
    import pytest

    @pytest.mark.parametrize("check", bpgpu.testing.CHECKS, ids=str)
    def test_my_backend(check):
        check("mine")
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bpgpu.backends import get_backend
from bpgpu.backends.base import Backend
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.errors import NonFiniteError
from bpgpu.mlp import MLP
from bpgpu.model.optimizers import SGD, Adam
from bpgpu.proof import gradcheck
from bpgpu.proof.accuracy_cases import CASES, measure
from bpgpu.proof.bench import DTYPES, Bench

__all__ = ["CHECKS", "Check", "check_backend"]


@dataclass(frozen=True)
class Check:
    """One thing that every backend must do.

    Attributes
    ----------
    name : str
    run : function of a backend, `largest` and `crossed`
    """

    name: str
    run: Callable[[Backend, int, bool], None]

    def __str__(self) -> str:
        return self.name

    def __call__(self, backend: Backend | str, *, largest: int = 2**24, crossed: bool = True) -> None:
        """Raise AssertionError, saying what is wrong, if the backend does not do it.

        Parameters
        ----------
        backend : Backend or str
        largest : int
            The most multiply-adds of a product; larger shapes are left out, for backends on a slow simulation.
        crossed : bool
            Whether every case is measured on every shape; otherwise each on two of them.
        """
        self.run(get_backend(backend), largest, crossed)


def check_backend(
    backend: Backend | str, *, largest: int = 2**24, crossed: bool = True, say: Callable[[str], Any] | None = None
) -> None:
    """Check that a backend does what all backends of bpgpu do.

    It checks the signatures of the methods; the accuracy of every step, of every activation, cost and optimizer, and of
    whole training, in both dtypes, against extended precision; gradients against finite differences; the same bits for
    the same seed; that arguments that do not fit are refused; that non-finite numbers are found where they arise.

    Parameters
    ----------
    backend : Backend or str
    largest, crossed
        See `Check`.
    say : function, optional
        Called with the name of each check before it runs, such as `print` or the update of a progress bar.

    Raises
    ------
    AssertionError
        If any check fails; with one line for each.
    """
    failures = []
    for check in CHECKS:
        if say is not None:
            say(check.name)
        try:
            check(backend, largest=largest, crossed=crossed)
        except AssertionError as error:
            failures.append(f"{check.name}: {error}")
    if failures:
        raise AssertionError("\n".join(failures))


def differences(backend: type, base: type = Backend) -> list[str]:
    """Return where the public methods of a backend differ from those of the base class, defaults included."""
    found = []
    public = {name: method for name, method in inspect.getmembers(backend, inspect.isfunction) if name[0] != "_"}
    for name, method in public.items():
        if not hasattr(base, name):
            found.append(f"{name} is not in the contract")
            continue
        mine, theirs = (inspect.signature(f).parameters.values() for f in (method, getattr(base, name)))
        if [(p.name, p.kind, p.default) for p in mine] != [(p.name, p.kind, p.default) for p in theirs]:
            found.append(f"{name}{inspect.signature(method)} is not {name}{inspect.signature(getattr(base, name))}")
    return found


def _signatures(backend: Backend, largest: int, crossed: bool) -> None:
    found = differences(type(backend))
    assert not found, "; ".join(found)


def _accuracy(case: Any, dtype: str) -> Callable[[Backend, int, bool], None]:
    def run(backend: Backend, largest: int, crossed: bool) -> None:
        found = measure(Bench(backend, dtype, largest, crossed), case)
        assert found, "nothing was measured; give a larger `largest`"
        wrong = [str(each) for each in found if not each.ok]
        assert not wrong, "; ".join(wrong)

    return run


def _gradients(case: gradcheck.GradientCase, dtype: str) -> Callable[[Backend, int, bool], None]:
    def run(backend: Backend, largest: int, crossed: bool) -> None:
        gradcheck.check_case(case, backend, dtype)  # whose GradientError is an AssertionError

    return run


def _network_and_data(
    backend: Backend, dtype: str, hidden: str = "tanh"
) -> tuple[MLP, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    net = MLP([5, 4, 3], [hidden, "softmax"], "cross_entropy", dropout=0.3, dtype=dtype, backend=backend)
    return net, rng.normal(size=(23, 5)), rng.integers(0, 3, 23)


def _same_bits(dtype: str) -> Callable[[Backend, int, bool], None]:
    def run(backend: Backend, largest: int, crossed: bool) -> None:
        found = []
        for _ in range(2):
            net, X, y = _network_and_data(backend, dtype)
            history = net.fit(X, y, epochs=2, batch_size=8)
            found.append((history.loss, net.backend.to_numpy(net.parameters).tobytes()))
        assert found[0] == found[1], "two runs of the same fit gave different bits"

    return run


def _non_finite(dtype: str) -> Callable[[Backend, int, bool], None]:
    def run(backend: Backend, largest: int, crossed: bool) -> None:
        net, X, y = _network_and_data(backend, dtype, "relu")
        backend.assign(net.weights[0], np.finfo(dtype).max)
        before = backend.to_numpy(net.parameters).copy()
        try:
            net.fit(np.full_like(X, 3.0), y, optimizer=SGD(1.0), epochs=1, batch_size=8)
        except NonFiniteError as error:
            assert (error.epoch, error.step) == (1, 1), f"it was found in epoch {error.epoch}, step {error.step}"
        else:
            raise AssertionError("weights that overflow raised no error in training")
        assert np.array_equal(backend.to_numpy(net.parameters), before), "the weights have changed nevertheless"

    return run


def _refusals(backend: Backend, largest: int, crossed: bool) -> None:
    """Check that direct calls, too, refuse what `MLP` refuses: compiled code would read and write beyond the arrays."""
    dtype = np.dtype(np.float32)
    net, X, y = _network_and_data(backend, "float32")
    optimizer = Adam()
    data = Data(backend.asarray(X, dtype), backend.asarray(y, np.dtype(np.int32)))
    beyond = Data(data.X, backend.asarray(y + 3, np.dtype(np.int32)))
    plan = Plan(net.architecture, 8, backend, optimizer).allocate()
    order, rates = np.arange(23, dtype=np.int32), [0.1] * 3
    good = {
        "plan": plan,
        "data": data,
        "order": order,
        "parameters": net.parameters,
        "learning_rates": rates,
        "epoch": 0,
    }
    wrong: dict[str, dict[str, Any]] = {
        "an order that points beyond the data": {"order": order + 1},
        "an order of another length": {"order": order[:-1]},
        "learning rates for other steps": {"learning_rates": rates[:-1]},
        "parameters of another length": {"parameters": net.parameters[:-1]},
        "X of another width": {"data": Data(data.X[:, :-1], data.y)},
    }
    if isinstance(beyond.y, np.ndarray):  # labels on a device are trusted, because reading them would stall it
        wrong["labels that do not exist"] = {"data": beyond}
    for what, change in wrong.items():
        _refused(f"run_epoch accepts {what}", partial(backend.run_epoch, **(good | change)))
    a, W, out = (backend.asarray(np.ones(shape), dtype) for shape in ((2, 3), (3, 4), (2, 4)))
    sigma = net.architecture.activations[0]
    for what, given in {
        "W of another height": (a, W[:-1], out),
        "out of another width": (a, W, out[:, :-1]),
        "out that is an input": (a, W[:, :3], a),
    }.items():
        _refused(f"forward accepts {what}", partial(backend.forward, *given[:2], None, sigma, out=given[2]))


def _refused(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except (ValueError, TypeError):
        return
    raise AssertionError(what)


def _checks() -> Iterable[Check]:
    yield Check("signatures", _signatures)
    yield Check("refusals", _refusals)
    for dtype in DTYPES:
        for case in CASES:
            yield Check(f"accuracy, {dtype}: {case}", _accuracy(case, dtype))
        for network in gradcheck.CASES:
            if (network.outputs, network.depth) == (3, 2):
                name = f"gradients, {dtype}: {network.activation}, {network.cost}"
                yield Check(name, _gradients(network, dtype))
        yield Check(f"same bits, {dtype}", _same_bits(dtype))
        yield Check(f"non-finite numbers, {dtype}", _non_finite(dtype))


CHECKS = tuple(_checks())
