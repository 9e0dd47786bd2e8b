"""The examples of CONTRIBUTING.md do what it says, as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

import bpgpu
from bpgpu.kernels import formulas
from bpgpu.model import optimizers
from tests.model import test_optimizers
from tests.simgpu import cupy as simulated_cupy
from tests.simgpu import device, numba_device

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def blocks(heading):
    """Return the Python of a section, block by block."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def lion(monkeypatch):
    """The optimizer of the page, added where the page says; with the row of its test."""
    row, kind, test = blocks("An optimizer")
    monkeypatch.setitem(formulas.RULES, "lion", {})  # so that they are as before when the test is over
    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", bpgpu.SGD)
    exec(row, {"RULES": formulas.RULES})
    namespace = {**vars(optimizers)}
    exec(kind, namespace)
    rows = []
    exec(test, {**vars(test_optimizers), "RULES": rows, "Lion": namespace["Lion"]})
    return namespace["Lion"], *rows


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6)])
def test_an_optimizer_is_the_published_one(lion, dtype, tolerance):
    kind, row = lion
    assert type(row[0]) is kind
    test_optimizers.test_rule(*row, dtype, tolerance)


def test_an_optimizer_passes_the_check_of_users_formulas(lion):
    kind, _ = lion
    optimizers.formula_checks.optimizer("Lion", tuple(formulas.RULES["lion"].items()), kind().compiled)


def on(name, monkeypatch):
    """Return a backend, on a simulated GPU if it needs one."""
    if name == "cupy":
        if not device.available():
            pytest.skip("the simulated GPU needs Linux and g++")
        simulated_cupy.install(monkeypatch)
    elif name == "numba-cuda":
        numba_device.install(monkeypatch)
    return bpgpu.get_backend(name)


@pytest.mark.parametrize("name", ["numba", "cupy", "numba-cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_optimizer_trains_compiled_to_the_references_numbers(lion, name, dtype, monkeypatch):
    kind, _ = lion
    backend = on(name, monkeypatch)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((14, 5)), rng.integers(0, 3, 14)
    options = {"dtype": dtype, "l2": 0.3, "dropout": 0.3, "seed": 1}
    nets = [
        bpgpu.MLP((5, 4, 3), ("tanh", "softmax"), "cross_entropy", backend=b, **options) for b in (backend, "numpy")
    ]
    rule = kind(0.01, weight_decay=0.1)
    losses = [nets[1].fit(X, y, optimizer=rule, epochs=3, batch_size=8).loss]
    with monkeypatch.context() as patch:
        patch.setattr(bpgpu.Optimizer, "apply", None)  # that is Python
        losses.append(nets[0].fit(X, y, optimizer=rule, epochs=3, batch_size=8).loss)
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(*losses, rtol=tolerance)
    trained = backend.to_numpy(nets[0].parameters)
    np.testing.assert_allclose(trained, nets[1].parameters, rtol=tolerance, atol=tolerance)


def test_an_optimizer_is_known_by_its_name(lion):
    kind, _ = lion
    assert optimizers.get_optimizer("lion") == kind()
