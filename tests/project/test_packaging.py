"""What is installed: the package list, the data, and `kernels/` as bpgpu.kernels."""

import importlib.metadata
import itertools
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bpgpu
from bpgpu.data import load_digits

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_every_package_is_listed():
    packages = {path.parent for path in [*ROOT.glob("bpgpu/**/__init__.py"), *ROOT.glob("kernels/**/__init__.py")]}
    names = {".".join(path.relative_to(ROOT).parts).replace("kernels", "bpgpu.kernels", 1) for path in packages}
    assert sorted(names) == PROJECT["tool"]["setuptools"]["packages"]


def test_kernels_are_installed_under_bpgpu_and_import_nothing_from_it():
    assert files("bpgpu.kernels").joinpath("formulas.py").is_file()
    for source in (ROOT / "kernels").glob("**/*.py"):
        text = source.read_text(encoding="utf-8")
        assert "import bpgpu" not in text
        assert "from bpgpu" not in text.replace("from bpgpu.kernels", "")


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version("bpgpu") == bpgpu.__version__
    assert files("bpgpu").joinpath("py.typed").is_file()


def test_public_names_exist_and_are_documented():
    for name in bpgpu.__all__:
        assert name == "__version__" or getattr(bpgpu, name).__doc__


def test_the_digits_are_whole():
    X, y = load_digits()
    assert (X.shape, y.shape) == ((1797, 64), (1797,))
    assert (X.min(), X.max(), X.sum()) == (0, 16, 561718)
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


# An install of next year: constraints.txt


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in pinned}


def needed(requirements, extra="", known=None):
    """Return the requirements of installed distributions, and theirs, that count on this machine."""
    known = {} if known is None else known
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            name = canonicalize_name(requirement.name)
            for wanted in {"", *requirement.extras}:
                if (name, wanted) not in known:
                    known[name, wanted] = requirement
                    try:
                        needed(importlib.metadata.requires(name) or (), wanted, known)
                    except importlib.metadata.PackageNotFoundError:
                        del known[name, wanted]  # of an extra that is not installed here
    return known


def has_other_version(name, requirement):
    """Return whether a package is installed here in another version than the one that is pinned."""
    try:
        return not requirement.specifier.contains(importlib.metadata.version(name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pytest and others bring more")
def test_the_constraints_name_all_that_an_install_brings():
    pinned = constraints()
    if other := [name for name, requirement in pinned.items() if has_other_version(name, requirement)]:
        pytest.skip(f"{', '.join(other)}: not installed with constraints.txt, and other versions bring other packages")
    reached = {name for name, _ in needed(["bpgpu[dev]"])} - {"bpgpu", "setuptools"}
    assert {"numpy", "scipy", "numba", "llvmlite", "safetensors", "threadpoolctl", "scikit-learn"} <= reached
    assert not reached - pinned.keys(), "add them to constraints.txt, as its first lines say"


@pytest.mark.parametrize("name", constraints())
def test_a_constraint_is_one_version_that_the_project_allows(name):
    (pin,) = constraints()[name].specifier
    assert pin.operator == "=="
    for requirement in map(Requirement, itertools.chain(PROJECT["project"]["dependencies"], *EXTRAS.values())):
        if canonicalize_name(requirement.name) == name:
            assert requirement.specifier.contains(pin.version, prereleases=True), requirement


# The oldest install that is promised to work: constraints-lowest.txt


def lower_bounds(extra):
    """Return the lower bounds of the project and of an extra, and of the extras that it names, as constraints."""
    bounds = set()
    for requirement in map(Requirement, PROJECT["project"]["dependencies"] + EXTRAS[extra]):
        if requirement.name == "bpgpu":
            bounds |= {bound for inner in requirement.extras for bound in lower_bounds(inner)}
            continue
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert len(lowest) == 1, f"{requirement} has no lower bound, so that nobody knows what it needs"
        bounds.add(f"{requirement.name}=={lowest[0]}")
    return bounds


def test_the_lowest_constraints_are_the_lower_bounds():
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(lower_bounds("test"))
