"""Compiled code that is kept: never stale, found wherever a folder can be written, not needed where none can."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core import config
from numba.misc import appdirs

from bpgpu import cli
from bpgpu.backends.cpu import engine as numba_backend
from bpgpu.kernels.cpu import cache

ROOT = Path(__file__).parents[2]
DTYPE = np.dtype(np.float32)

# A fit of a network in float32, with what Numba did: what it read from the cache, what it compiled.
FIT = """
import os
import numpy as np
import bpgpu
from numba.core.event import install_recorder
from bpgpu.backends.cpu import engine
from bpgpu.kernels.cpu import cache, formulas
if "ONLY_WHAT_IS_USED" in os.environ:
    formulas.table = lambda dtype: []
X = np.random.default_rng(0).standard_normal((40, 5))
with install_recorder("numba:compile") as recorder:
    net = bpgpu.MLP((5, 4, 3), "tanh", "squared_error", backend="numba", l2=40.0)
    loss = net.fit(X, X[:, :3], optimizer=bpgpu.SGD(1e-30), epochs=1, batch_size=40).loss[0]
epoch = engine.compiled_epoch(np.dtype(np.float32))
print(loss, net.loss(X, X[:, :3]), len(epoch.stats.cache_hits), len(recorder.buffer), cache.folder(), sep="\\n")
"""

QUICKLY = {"NUMBA_OPT": "0"}  # where it counts that it is compiled at all


@pytest.fixture
def installed(tmp_path):
    """Return a copy of the package whose own cache folder has all that is compiled for float32."""
    numba_backend.compiled_epoch(DTYPE)
    package = tmp_path / "site" / "bpgpu"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bpgpu", package, ignore=ignore)  # kernels too, through their link
    fill(package / "kernels" / "cpu" / "__pycache__")
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
    assert folder == str(installed / "kernels" / "cpu" / "__pycache__" / "bpgpu")
    helper = installed / "kernels" / "cpu" / "softmax.py"
    text = helper.read_text(encoding="utf-8")
    changed = text.replace("        s += x[j] * y[j]\n", "        s += x[j] * y[j] * x.dtype.type(2)\n")  # the penalty
    assert changed != text
    helper.write_text(changed, encoding="utf-8")
    trained, expected, hits, compiled, _ = fit(installed, ONLY_WHAT_IS_USED="1", **QUICKLY)[0]
    assert float(trained) > 1.1 * float(expected)
    assert hits == "0" and compiled != "0"


def block(folder):
    """Make a folder impossible, for every user, by a file in its place."""
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is elsewhere")
def test_where_the_package_cannot_be_written_the_users_cache_is_used(installed, tmp_path):
    block(installed / "kernels" / "cpu" / "__pycache__")
    fill(tmp_path / "home" / "numba")
    (*_, hits, compiled, folder), said = fit(installed, XDG_CACHE_HOME=str(tmp_path / "home"))
    assert (hits, compiled, said) == ("1", "0", "")
    assert folder == str(tmp_path / "home" / "numba" / "bpgpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is elsewhere")
def test_where_no_folder_can_be_written_it_trains_all_the_same(installed, tmp_path):
    block(installed / "kernels" / "cpu" / "__pycache__")
    (tmp_path / "home").write_text("")
    (trained, expected, hits, compiled, folder), said = fit(installed, XDG_CACHE_HOME=str(tmp_path / "home"), **QUICKLY)
    assert float(trained) == pytest.approx(float(expected), rel=1e-5)
    assert (hits, folder) == ("0", "None") and compiled != "0"
    assert said == "compiling CPU kernels for float32: about 15 s; no cache folder can be used (see bpgpu warmup)\n"


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
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.model.optimizers import OPTIMIZERS
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
from bpgpu.proof.gradcheck import check_table

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
    assert "no cache folder can be used; set NUMBA_CACHE_DIR" in capsys.readouterr().err


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
from types import SimpleNamespace
from bpgpu.kernels.cpu import cache
cache.folder = lambda: Path({str(tmp_path)!r})
time.sleep(max(0, {time.time() + 2} - time.time()))
cache.keep([{source!r}])
"""
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "loaded "


# A folder of strangers

posix = pytest.mark.skipif(os.name != "posix", reason="owners and permissions are POSIX's")


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Return a cache folder of this test's own, which `cache.folder` finds through NUMBA_CACHE_DIR."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "folder", cache.folder.__wrapped__)
    monkeypatch.setattr(cache, "load", cache.load.__wrapped__)
    return cache.folder()


def test_a_folder_that_is_made_is_closed_to_others(place, tmp_path):
    assert place == tmp_path / "bpgpu"
    made = [place, *(path for path in tmp_path.iterdir() if path != place)]
    assert len(made) == 2 and all(path.is_dir() for path in made)
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


@posix
@pytest.mark.parametrize("which", ["of sources", "of what is compiled"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722, 0o757])
def test_a_folder_that_others_can_write_is_not_used(place, which, mode, monkeypatch):
    monkeypatch.setattr(cache, "_is_of_one", lambda group: False)
    path = place if which == "of sources" else cache._compiled(place)
    path.chmod(mode)
    assert cache.folder() is None
    path.chmod(0o755)
    assert cache.folder() == place


@posix
@pytest.mark.parametrize("which", ["of sources", "of what is compiled"])
def test_a_folder_that_is_a_link_is_not_used(place, tmp_path, which):
    path = place if which == "of sources" else cache._compiled(place)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert cache.folder() is None


@posix
def test_a_folder_of_somebody_else_is_not_used(place, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert cache.folder() is None


@posix
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["parent", "grandparent", "above"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_on_a_way_that_others_can_change_is_not_used(monkeypatch, tmp_path, depth, mode):
    """Not even if it is closed itself: they would put their own in the place of one above it."""
    monkeypatch.setattr(cache, "_is_of_one", lambda group: False)
    way = tmp_path / "a" / "b" / "c"
    monkeypatch.setattr(config, "CACHE_DIR", str(way))
    find = cache.folder.__wrapped__
    assert find() == way / "bpgpu"
    changed = [way, *way.parents][depth]
    changed.chmod(mode)
    assert find() is None
    changed.chmod(mode | 0o1000)  # sticky, as /tmp
    assert find() == way / "bpgpu"


@posix
def test_a_folder_on_a_way_through_somebody_else_is_not_used(monkeypatch, tmp_path):
    """Whether it is theirs, or a link of theirs leads there, also from where only owners may rename."""
    real, shared = tmp_path / "real", tmp_path / "shared"
    real.mkdir()
    shared.mkdir()
    (shared / "link").symlink_to(real)
    monkeypatch.setattr(config, "CACHE_DIR", str(shared / "link"))
    find = cache.folder.__wrapped__
    assert find() == shared / "link" / "bpgpu"
    shared.chmod(0o777)
    assert find() is None
    shared.chmod(0o1777)
    assert find() == shared / "link" / "bpgpu"
    theirs, lstat = os.geteuid() + 1, Path.lstat

    def lstat_of_theirs(path):
        status = lstat(path)
        return os.stat_result((*status[:4], theirs, *status[5:])) if stat.S_ISLNK(status.st_mode) else status

    monkeypatch.setattr(Path, "lstat", lstat_of_theirs)
    assert find() is None


@posix
@pytest.mark.parametrize(
    ("name", "number", "members", "used"),
    [
        ("me", 7, [], True),
        ("me", 7, ["me"], True),
        ("me", 7, ["me", "you"], False),
        ("me", 8, [], False),
        ("staff", 7, [], False),
    ],
)
def test_a_folder_open_to_a_group_is_used_if_the_group_is_the_users_alone(
    place, tmp_path, monkeypatch, name, number, members, used
):
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me", pw_gid=7))
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_gid=number, gr_mem=members))
    for path in (tmp_path, place):
        path.chmod(0o770)
        assert (cache.folder() == place) == used
        path.chmod(0o700)


@posix
def test_the_next_folder_is_taken(monkeypatch, tmp_path):
    """Where that beside the package is open to others."""
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cpu" / "cache.py"))
    monkeypatch.setattr(appdirs, "user_cache_dir", lambda *_: str(tmp_path / "user"))
    find = cache.folder.__wrapped__
    beside = tmp_path / "cpu" / "__pycache__" / "bpgpu"
    assert find() == beside
    beside.chmod(0o777)
    assert find() == tmp_path / "user" / "bpgpu"
    (tmp_path / "user" / "bpgpu").chmod(0o777)
    assert find() is None


SOURCE = f"""{cache.heading("a test")}
from numba import njit, int64

@njit(int64(int64), cache=True)
def plus_one(x):
    return x + 1
"""


def hits(module):
    return sum(module.plus_one.stats.cache_hits.values())


def test_what_was_compared_is_what_runs(place):
    """Whatever lies there as Python's own cache."""
    first = cache.load(SOURCE)
    assert (first.plus_one(1), hits(first)) == (2, 0)
    path = place / f"{cache._name(SOURCE)}.py"
    planted = Path(importlib.util.cache_from_source(str(path)))
    planted.parent.mkdir(exist_ok=True)
    evil = compile("raise SystemExit('planted')", str(path), "exec")
    planted.write_bytes(importlib._bootstrap_external._code_to_hash_pyc(evil, b"12345678", False))
    again = cache.load(SOURCE)
    assert (again.plus_one(1), hits(again)) == (2, 1), "Numba finds what it has compiled"
    path.write_text("raise SystemExit('planted')", encoding="utf-8")
    assert cache.load(SOURCE).plus_one(1) == 2
    assert path.read_text(encoding="utf-8") == SOURCE


def damage(path, how):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "bytes":
        path.write_bytes(b"\xff\xfe\0 not UTF-8")
    elif how == "nothing":
        path.write_bytes(b"")
    else:
        path.symlink_to(path)


@posix
@pytest.mark.parametrize("how", ["folder", "bytes", "nothing", "link to itself"])
@pytest.mark.parametrize("what", ["source", "lock", "done", "index", "machine code"])
def test_damage_ends_in_no_traceback(place, what, how):
    """The function is compiled again, in memory if need be; and where the damage can go, the next process has it."""
    cache.keep([SOURCE])
    (index,), (code,) = cache._compiled(place).glob("*.nbi"), cache._compiled(place).glob("*.nbc")
    done = cache._done([SOURCE])
    source = place / f"{cache._name(SOURCE)}.py"
    files = {"source": source, "lock": done.with_suffix(".lock"), "done": done, "index": index, "machine code": code}
    if what in ("lock", "done", "source"):
        done.unlink()
    damage(files[what], how)
    cache.keep([SOURCE])
    assert cache.load(SOURCE).plus_one(1) == 2
    cache.keep([SOURCE])
    again = cache.load(SOURCE)
    assert again.plus_one(1) == 2
    assert what == "source" or how == "folder" or hits(again) == 1
    assert not list(place.glob("*.tmp"))


@posix
def test_a_lock_that_is_a_link_to_a_file_leaves_it_alone(place, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"fourteen bytes")
    cache._done([SOURCE]).with_suffix(".lock").symlink_to(precious)
    cache.keep([SOURCE])
    assert precious.read_bytes() == b"fourteen bytes"
    own = cache._done(["value = 1"]).with_suffix(".lock")
    own.write_bytes(b"not cut")
    cache.keep(["value = 1"])
    assert own.read_bytes() == b"not cut"


def test_a_full_disk_is_no_reason_to_fail(place, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    cache.keep([SOURCE])
    assert cache.load(SOURCE).plus_one(1) == 2
    assert not cache.are_kept([SOURCE])


@pytest.fixture
def digest(monkeypatch):
    """Return a function: kernels with another digest are installed from now on."""

    def install(number):
        monkeypatch.setattr(cache, "digest_of_kernels", lambda: f"{number:064x}"[::-1])

    return install


def test_old_digests_are_deleted(place, digest):
    """All but those used last, whoever used them."""
    for number in range(cache.KEPT_DIGESTS + 1):
        digest(number)
        cache.load(SOURCE)
        path = place / f"{cache._name(SOURCE)}.py"
        ns = path.stat().st_atime_ns - (100 - number) * 10**9
        os.utime(path, ns=(ns, path.stat().st_mtime_ns))
    digest(1)
    assert hits(cache.load(SOURCE)) == 1, "a later time of access makes nothing stale"
    digest(99)
    cache.load(SOURCE)
    kept = {path.stem for path in place.glob("*.py")}
    expected = set()
    for number in (99, 1, *range(3, cache.KEPT_DIGESTS + 1)):
        digest(number)
        expected.add(cache._name(SOURCE))
    assert kept == expected
    assert {path.name.partition(".")[0] for path in cache._compiled(place).iterdir()} == kept
    digest(0)
    assert cache.load(SOURCE).plus_one(1) == 2


def test_what_has_not_been_used_for_long_is_deleted(place, digest):
    cache.keep([SOURCE])
    digest(1)
    cache.keep([SOURCE])
    (place / "of a killed process.tmp").write_bytes(b"")
    for path in place.iterdir():
        if path.is_file():
            os.utime(path, (time.time() - cache.KEPT_SECONDS - 60,) * 2)
    assert cache.are_kept([SOURCE])  # which is a use
    cache.load(SOURCE)
    cache.load("value = 3")
    assert {path.stem for path in place.glob("*.py")} == {cache._name(SOURCE), cache._name("value = 3")}
    assert list(place.glob("*.done")) == [cache._done([SOURCE])]
    assert not list(place.glob("*.tmp"))


@posix
def test_processes_go_on_while_others_delete(place, tmp_path):
    """Each deletes what the other has just written."""
    code = f"""
from pathlib import Path
from types import SimpleNamespace
from bpgpu.kernels.cpu import cache
place = Path({str(place)!r})
cache.folder = lambda: place
cache.KEPT_DIGESTS = 1
for number in range(4):
    cache.digest_of_kernels = lambda: format(number, "064d")[::-1]
    cache.load.cache_clear()
    assert cache.load({SOURCE!r}).plus_one(1) == 2
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=100)[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
