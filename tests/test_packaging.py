"""What is installed: the package list, the data, and `kernels/` as bpgpu.kernels."""

import importlib.metadata
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np

import bpgpu
from bpgpu.data import load_digits

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


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
