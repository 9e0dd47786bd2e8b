"""Compiled code that is kept: never stale, found wherever a folder can be written, not needed where none can."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bpgpu import cli
from bpgpu.backends import numba_backend
from bpgpu.kernels import numba_cpu_cache as cache

ROOT = Path(__file__).parents[1]
DTYPE = np.dtype(np.float32)

# A fit of a network in float32, with what Numba did: what it read from the cache, what it compiled.
FIT = """
import os
import numpy as np
import bpgpu
from numba.core.event import install_recorder
from bpgpu.backends import numba_backend
from bpgpu.kernels import numba_cpu_cache as cache
from bpgpu.kernels import numba_cpu_formulas
if "ONLY_WHAT_IS_USED" in os.environ:
    numba_cpu_formulas.table = lambda dtype: []
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
    target, ignore = folder / "bpgpu", shutil.ignore_patterns("*.tmp*")  # which other tests may be writing
    shutil.copytree(cache.folder(), target, ignore=ignore)
    elsewhere = Path(numba_backend.compiled_epoch(DTYPE)._cache.cache_path)
    shutil.copytree(elsewhere, target / "__pycache__", ignore=ignore, dirs_exist_ok=True)


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
    trained, expected, hits, compiled, _ = fit(installed, ONLY_WHAT_IS_USED="1")[0]
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
    assert said == "compiling CPU kernels for float32: about 15 s; no cache folder can be written to\n"


def run_alone(code, **environment):
    """Run code in a new process; return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_new_process_compiles_nothing_whatever_it_trains():
    """Shape, depth, batch size, activation, cost, rule, data and options, each of another kind than before."""
    numba_backend.compiled_epoch(DTYPE)
    code = """
import warnings
import numpy as np
import bpgpu
from numba.core.event import install_recorder
from bpgpu.activations import ACTIVATIONS
from bpgpu.costs import COSTS
from bpgpu.optimizers import OPTIMIZERS
warnings.simplefilter("ignore")
X = np.random.default_rng(0).uniform(0.1, 0.9, (40, 5))
cases = [((5, 3), "tanh", "squared_error", "sgd", 7), ((5, 4, 4, 2, 1), "tanh", "squared_error", "sgd", 1)]
cases += [((5, 4, 2), name, "squared_error", "sgd", 40) for name in ACTIVATIONS]
cases += [((5, 4, 2), last, cost, "sgd", 40) for cost in COSTS for last in ("softmax", "sigmoid", "identity")]
cases += [((5, 4, 2), "tanh", "squared_error", rule, 40) for rule in OPTIMIZERS]
kinds = [{}, {"sample_weight": np.ones(40)}, {"shuffle": False}]
with install_recorder("numba:compile") as recorder:
    for sizes, names, cost, rule, batch_size in cases:
        for kind in kinds:
            net = bpgpu.MLP(sizes, names, cost, backend="numba", dropout=0.1, l2=0.1)
            net.fit(X, X[:, : sizes[-1]], optimizer=rule, epochs=1, batch_size=batch_size, **kind)
    net = bpgpu.MLP((5, 3), "softmax", "cross_entropy", backend="numba", bias=False, connectivity=[np.eye(5, 3)])
    net.fit(X, np.arange(40) % 3, optimizer=bpgpu.Adam(clip_norm=1.0), epochs=1)
assert not recorder.buffer, recorder.buffer
print(len(cases))
"""
    assert int(run_alone(code)) > 30


def test_nothing_but_fit_compiles(tmp_path):
    code = """
import itertools
import numpy as np
import bpgpu
from numba.core.event import install_recorder
from bpgpu import cli
from bpgpu.gradcheck import check_table

class SignDescent(bpgpu.Optimizer):
    def apply(self, p, g, state, *, t, eta, n_weights, xp):
        p -= eta * xp.sign(g)

X = np.random.default_rng(0).uniform(0.1, 0.9, (40, 5))
with install_recorder("numba:compile") as recorder:
    net = bpgpu.MLP((5, 4, 2), "tanh", "squared_error", backend="numba")
    net.predict(X), net.loss(X, X[:, :2]), net.backprop(X, X[:, :2])
    bpgpu.check_gradients(net, X, X[:, :2])
    net.fit(X, X[:, :2], optimizer=SignDescent(0.1), epochs=2)
    list(itertools.islice(check_table(net.backend, "float32"), 9))
    net.save("model.safetensors")
    bpgpu.MLP.load("model.safetensors", backend="numba").predict(X)
    assert cli.run(["info"]) == 0
assert not recorder.buffer, recorder.buffer
"""
    run_alone(f"import os; os.chdir({str(tmp_path)!r}){code}", NUMBA_CACHE_DIR=str(tmp_path / "empty"))
    assert not list(tmp_path.glob("empty/**/*.nbc"))


def test_warmup_says_what_it_did_and_where(monkeypatch, tmp_path, capsys):
    """With a short list in place of the kernels, which other tests compile."""
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    monkeypatch.setattr(numba_backend, "kernel_sources", lambda dtype: [f"value = {dtype.itemsize}", "other = 1"])
    assert cli.run(["warmup"]) == 0
    first, second, where = capsys.readouterr().out.splitlines()
    assert first.startswith("float32  compiled in ") and second.startswith("float64  compiled in ")
    assert where == f"cache    {tmp_path}"
    assert cli.run(["warmup"]) == 0
    assert capsys.readouterr().out == f"float32  already compiled\nfloat64  already compiled\n{where}\n"
    monkeypatch.setattr(cache, "folder", lambda: None)
    assert cli.run(["warmup"]) == 2
    assert "no cache folder can be written to; set NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_an_interrupted_compilation_is_finished_later(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    with pytest.raises(ZeroDivisionError):
        cache.keep(["first = 1", "1 / 0"])
    assert not cache.are_kept(["first = 1", "1 / 0"])
    cache.keep(["first = 1"])
    assert cache.are_kept(["first = 1"]) and not cache.are_kept(["first = 2"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock")
def test_processes_that_start_at_once_compile_once(tmp_path):
    """A source that is loaded writes a line; the second process waits and finds it done."""
    source = f"""
import time
with open({str(tmp_path / "log")!r}, "a") as file:
    file.write("loaded ")
time.sleep(3)
"""
    code = f"""
import time
from pathlib import Path
from bpgpu.kernels import numba_cpu_cache as cache
cache.folder = lambda: Path({str(tmp_path)!r})
time.sleep(max(0, {time.time() + 2} - time.time()))
cache.keep([{source!r}])
"""
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "loaded "
