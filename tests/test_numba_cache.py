"""Compiled code that is kept: never stale, found wherever a folder can be written, not needed where none can."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpgpu.backends import numba_backend
from bpgpu.kernels import numba_cpu_cache as cache

ROOT = Path(__file__).parents[1]
DTYPE = np.dtype(np.float32)

# A fit of a network in float32, with what Numba did: what it read from the cache, what it compiled.
FIT = """
import logging, sys
import numpy as np
import bpgpu
from numba.core.event import install_recorder
from bpgpu.backends import numba_backend
from bpgpu.kernels import numba_cpu_cache as cache
X = np.random.default_rng(0).standard_normal((40, 5))
with install_recorder("numba:compile") as recorder:
    net = bpgpu.MLP((5, 4, 3), "tanh", "squared_error", backend="numba", l2=40.0)
    loss = net.fit(X, X[:, :3], optimizer=bpgpu.SGD(1e-30), epochs=1, batch_size=40).loss[0]
epoch = numba_backend.compiled_epoch(np.dtype(np.float32))
print(loss, net.loss(X, X[:, :3]), len(epoch.stats.cache_hits), len(recorder.buffer), cache.folder(), sep="\\n")
"""


@pytest.fixture
def installed(tmp_path):
    """Return a copy of the package whose own cache folder has all that is compiled for float32."""
    numba_backend.compiled_epoch(DTYPE)
    package = tmp_path / "site" / "bpgpu"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bpgpu", package, ignore=ignore)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=ignore)
    fill(package / "kernels" / "__pycache__")
    return package


def fill(folder):
    """Copy the cache of this process, as Numba would leave it if it were told of no folder."""
    target = folder / "bpgpu"
    shutil.copytree(cache.folder(), target)
    elsewhere = Path(numba_backend.compiled_epoch(DTYPE)._cache.cache_path)
    shutil.copytree(elsewhere, target / "__pycache__", dirs_exist_ok=True)


def fit(package, code=FIT, **environment):
    """Run code in a new process with the copied package; return the lines that it prints, and its log."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=package.parent,
        env=kept | {"PYTHONPATH": str(package.parent)} | environment,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr


def test_a_changed_helper_is_what_runs(installed):
    """In a file that is not the epoch's, to which alone Numba looks."""
    before, said = fit(installed)
    trained, expected, hits, compiled, folder = before
    assert float(trained) == pytest.approx(float(expected), rel=1e-5)
    assert (hits, compiled, said) == ("1", "0", "")
    assert folder == str(installed / "kernels" / "__pycache__" / "bpgpu")
    helper = installed / "kernels" / "numba_cpu_softmax.py"
    text = helper.read_text(encoding="utf-8")
    changed = text.replace("        s += x[j] * y[j]\n", "        s += x[j] * y[j] * x.dtype.type(2)\n")  # the penalty
    assert changed != text
    helper.write_text(changed, encoding="utf-8")
    trained, expected, hits, compiled, _ = fit(installed)[0]
    assert float(trained) > 1.1 * float(expected)
    assert hits == "0" and compiled != "0"


def block(folder):
    """Make a folder impossible, for every user, by a file in its place."""
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is elsewhere")
def test_where_the_package_cannot_be_written_the_users_cache_is_used(installed, tmp_path):
    block(installed / "kernels" / "__pycache__")
    fill(tmp_path / "home" / "numba")
    (*_, hits, compiled, folder), said = fit(installed, XDG_CACHE_HOME=str(tmp_path / "home"))
    assert (hits, compiled, said) == ("1", "0", "")
    assert folder == str(tmp_path / "home" / "numba" / "bpgpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is elsewhere")
def test_where_no_folder_can_be_written_it_trains_all_the_same(installed, tmp_path):
    block(installed / "kernels" / "__pycache__")
    (tmp_path / "home").write_text("")
    (trained, expected, hits, compiled, folder), said = fit(installed, XDG_CACHE_HOME=str(tmp_path / "home"))
    assert float(trained) == pytest.approx(float(expected), rel=1e-5)
    assert (hits, folder) == ("0", "None") and compiled != "0"
    assert said == "compiling CPU kernels for float32: about 10 s; no cache folder can be written to\n"
