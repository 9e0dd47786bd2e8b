"""The parity matrix: every backend × activation × cost × rule × dtype × shape against extended precision."""

import importlib.util
import itertools
from pathlib import Path

import pytest

from bpgpu.backends import REGISTRY
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.model.optimizers import OPTIMIZERS
from bpgpu.proof.accuracy_cases import CASES, OPTIMIZER_CASES
from bpgpu.testing import CHECKS
from tests import parity
from tests.simgpu import device

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=parity.PARAMETERS)
def way(request):
    """An entry of the matrix and one way of its backend, installed once for all of their tests."""
    entry, name = request.param
    with entry.ways() as ways:
        yield entry, ways[name]


# Gradients are in test_gradcheck.py, and in those of the simulated devices.
@pytest.mark.parametrize("check", [check for check in CHECKS if not check.name.startswith("gradients")], ids=str)
def test_every_backend_passes_the_checks_that_anyones_must(way, check):
    entry, backend = way
    check(backend, largest=entry.largest, crossed=entry.crossed)


# That the matrix is whole


def test_every_backend_of_this_version_is_in_the_matrix():
    present = {name for name, (module, _, _) in REGISTRY.items() if importlib.util.find_spec(module)}
    assert {entry.backend for entry in parity.MATRIX} == present


def test_the_cases_have_every_activation_cost_and_rule():
    cases = [(case.operation, *case.names) for case in CASES]
    assert set(itertools.product(["output"], ACTIVATIONS, COSTS)) <= set(cases)
    assert set(itertools.product(["forward", "hidden"], ACTIVATIONS)) <= set(cases)
    assert set(itertools.product(["update", "training"], OPTIMIZER_CASES)) <= set(cases)
    assert {type(rule) for rule in OPTIMIZER_CASES.values()} == set(OPTIMIZERS.values())


def test_nothing_of_the_matrix_is_skipped_where_it_is_required(monkeypatch):
    monkeypatch.setattr(device, "available", lambda: False)
    simulated = [entry for entry in parity.MATRIX if entry.simulator]
    assert simulated
    for entry in simulated:
        assert entry.marks(frozenset({"simgpu"})) == entry.marks(frozenset({entry.backend})) == []
        assert entry.marks(frozenset({"numpy"})) != []
    assert all(entry.marks(frozenset()) == [] for entry in parity.MATRIX if not entry.simulator)
