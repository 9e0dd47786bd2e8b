"""`python -m bpgpu.accel`: the program that runs is the one that python would run, apart from scikit-learn's MLP."""

import importlib.util
import marshal
import os
import pickle
import py_compile
import re
import subprocess
import sys
import textwrap
import zipfile

import pytest

import bpgpu.accel

pytest.importorskip("sklearn")


def python(*arguments, cwd, check=True, stdin=None, **environment):
    """Run python; return the finished process."""
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        input=stdin,
        env=os.environ | environment,
    )
    assert not check or run.returncode == 0, run.stderr
    return run


def accel(script, tmp_path, *arguments, **environment):
    """Run the text of a script; return what it prints."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    return python("-m", "bpgpu.accel", path, *arguments, cwd=tmp_path, **environment).stdout


# The same program

SHOW = '''"""Its text."""
import os, pickle, sys

class Mine:
    pass

number: int = 1
here = os.getcwd()
print(sys.argv, sys.path[0], sys.path.count(here), __name__, __doc__, __package__, __file__, __cached__)
print(__spec__ and __spec__.name, type(__loader__), type(__builtins__), __annotations__)
print(vars(sys.modules["__main__"]) is globals(), sorted(globals()), pickle.dumps(Mine()))
'''
PROGRAMS = {
    "shows what it is": SHOW,
    "exits with a code": "import sys; sys.exit(3)",
    "exits with a message": "import sys; sys.exit('that is all')",
    "fails": "def f():\n    raise ValueError('a')\n"
    "try:\n    f()\nexcept ValueError as error:\n    raise KeyError('b') from error",
    "fails at once": "1 / 0",
    "cannot be compiled": "print(1)\nprint(2",
    "is interrupted": "raise KeyboardInterrupt",
    "has a hook of its own": "import sys, traceback\n"
    "sys.excepthook = lambda kind, error, trace: traceback.print_exception(error)\nraise ValueError('a')",
    "ends late": "import atexit, sys, threading, time\n"
    "atexit.register(lambda: print(__name__, sys.modules['__main__'].f))\n"
    "f = 1\nthreading.Thread(target=lambda: (time.sleep(0.2), print(sys.modules['__main__'].f))).start()",
}


def same(plain, tmp_path, *, options=(), stdin=None):
    """Assert that python and bpgpu.accel end, print and complain alike."""
    ways = ((), ("-m", "bpgpu.accel"))
    runs = [python(*options, *way, *plain, cwd=tmp_path, check=False, stdin=stdin) for way in ways]
    expected, got = ((run.returncode, run.stdout, run.stderr) for run in runs)
    assert got == expected
    return expected


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_runs_as_python_runs_it(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "script.py").write_text(PROGRAMS[name], encoding="utf-8")
    code, out, error = same(["folder/script.py", "-x", "--help"], tmp_path)
    assert (code, out, error) != (0, "", "")


@pytest.mark.parametrize("name", ["shows what it is", "fails"])
@pytest.mark.parametrize("form", ["module", "package", "folder", "zip", "isolated"])
def test_modules_folders_and_archives_too(form, name, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (tmp_path / "single.py").write_text(PROGRAMS[name], encoding="utf-8")
    (package / "__main__.py").write_text(PROGRAMS[name], encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        archive.writestr("__main__.py", PROGRAMS[name])
    plain = {"module": ["-m", "single"], "package": ["-m", "package"], "folder": ["package"], "zip": ["package.zip"]}
    program = [*plain.get(form, ["single.py"]), "a", "-b"]
    same(program, tmp_path, options=["-P"] if form == "isolated" else ["-B"])


@pytest.mark.parametrize("program", [["missing.py"], ["-m", "missing"], ["-m", "json.missing"]], ids=" ".join)
def test_what_is_not_there_is_said_as_python_says_it(program, tmp_path):
    code, out, error = same(program, tmp_path)
    assert code and not out and "missing" in error


NOT_TEXT = {
    "in a comment": b"x = 1\n# caf\xe9\nprint(x)\n",
    "in text": b'x = "caf\xe9"\n',
    "after a mistake": b"x = = 1\n# \xe9\n",
    "declared too late": b"x = 1\n# coding: latin-1\n# \xe9\n",
    "declared": b"#!python\n# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n",
    "declared, after a mark": b"\xef\xbb\xbf# coding: latin-1\nx = '\xe9'\n",
    "declared otherwise": b"# coding: ascii\nx = '\xe9'\n",
    "an unknown codec": b"# coding: nope\nprint(1)\n",
    "a codec of no text": b"# coding: rot13\nprint(1)\n",
}


@pytest.mark.parametrize("case", NOT_TEXT)
def test_bytes_that_are_not_text_are_refused_as_python_refuses_them(case, tmp_path):
    (tmp_path / "script.py").write_bytes(NOT_TEXT[case])
    assert same(["script.py"], tmp_path)[0] == (case != "declared")


WITHOUT_FILE = SHOW.replace("__file__, __cached__", "globals().get('__file__'), globals().get('__cached__')")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("form", ["code", "input", "compiled"])
def test_code_input_and_compiled_scripts_too(form, name, tmp_path):
    program = WITHOUT_FILE if name == "shows what it is" else PROGRAMS[name]
    script = tmp_path / "script.py"
    script.write_text(program, encoding="utf-8")
    if form == "compiled":
        if name == "cannot be compiled":
            pytest.skip("it cannot be")
        py_compile.compile(script, tmp_path / "folder" / "script.pyc", dfile="script.py")
        plain = ["folder/script.pyc", "-x", "--help"]
    else:
        plain = ["-c", program, "a", "-c"] if form == "code" else ["-", "a", "-"]
    assert same(plain, tmp_path, stdin=program if form == "input" else "never read") != (0, "", "")


def test_the_end_of_options_and_what_is_attached(tmp_path):
    (tmp_path / "-c").write_text("import sys; print(1, sys.argv)", encoding="utf-8")
    (tmp_path / "single.py").write_text("import sys; print(2, sys.argv)", encoding="utf-8")
    for plain in (["--", "-c", "--"], ["--", "single.py", "-x"], ["-cprint(3)", "-x"], ["-msingle", "-x"]):
        code, out, error = same(plain, tmp_path)
        assert (code, error) == (0, "") and out
    assert same(["--", "-", "x"], tmp_path, stdin="import sys; print(4, sys.argv)")[1] == "4 ['-', 'x']\n"
    assert same(["-", "x"], tmp_path, options=["-P"], stdin="import sys; print(sys.path)")[1]


def test_files_that_only_say_that_they_are_compiled(tmp_path):
    """And one that is, without saying so."""
    (tmp_path / "script.py").write_text("import sys; print(__file__, sys.argv)", encoding="utf-8")
    py_compile.compile(tmp_path / "script.py", tmp_path / "script", doraise=True)
    assert same(["script"], tmp_path)[0] == 0
    for content in (b"", b"print(1)", b"\0" * 40, importlib.util.MAGIC_NUMBER + b"\0" * 12 + marshal.dumps(1)):
        (tmp_path / "bad.pyc").write_bytes(content)
        found = []
        for way in ([], ["-m", "bpgpu.accel"]):  # which the interpreter's own traceback has no frames for
            run = python(*way, "bad.pyc", cwd=tmp_path, check=False)
            found.append((run.returncode, run.stdout, run.stderr.splitlines()[-1]))
        assert found[0] == found[1]
        assert found[0][0] == 1 and "in .pyc file" in found[0][2]


def test_help_and_mistakes(tmp_path):
    for option in ("-h", "--help"):
        out = python("-m", "bpgpu.accel", option, cwd=tmp_path).stdout
        assert out.startswith("usage: python -m bpgpu.accel") and "BPGPU_LOG=info" in out
    for mistake in ([], ["-m"], ["-c"], ["--"], ["--children"], ["--startup", "x"], ["--fast", "script.py"]):
        run = python("-m", "bpgpu.accel", *mistake, cwd=tmp_path, check=False)
        assert (run.returncode, run.stdout, len(run.stderr.splitlines())) == (2, "", 2)


# The estimators


@pytest.mark.parametrize("first", ["sklearn.neural_network", "bpgpu.sklearn", "sklearn.utils.estimator_checks"])
def test_every_way_of_importing_gives_ours_and_nothing_loads_before(first, tmp_path):
    script = """
    import importlib, sys

    loaded = [name for name in sys.modules if name.partition(".")[0] in ("scipy", "sklearn", "numba")]
    assert not loaded, loaded
    importlib.import_module(sys.argv[1])
    from sklearn.neural_network import BernoulliRBM, MLPClassifier, MLPRegressor
    import sklearn.neural_network as nn
    import sklearn.neural_network._multilayer_perceptron as inner
    from sklearn.utils.discovery import all_estimators
    import bpgpu.accel, bpgpu.sklearn

    for name in bpgpu.accel.ESTIMATORS:
        ours = getattr(bpgpu.sklearn, name)
        assert globals()[name] is getattr(nn, name) is getattr(inner, name) is dict(all_estimators())[name] is ours
    assert BernoulliRBM.__module__ == "sklearn.neural_network._rbm"
    assert type(nn.__loader__) is type(nn.__spec__.loader) is type(inner.__loader__)
    """
    accel(script, tmp_path, first)


def test_install_reaches_back_and_uninstall_undoes_it(tmp_path):
    script = """
    import copyreg, multiprocessing.spawn, sys
    from joblib.externals.loky.backend import spawn
    import sklearn.neural_network as nn
    import sklearn.neural_network._multilayer_perceptron as inner
    from sklearn.neural_network import MLPClassifier, MLPRegressor as R

    def state():
        return (
            MLPClassifier, R, nn.MLPClassifier, nn.MLPRegressor, inner.MLPClassifier, inner.MLPRegressor,
            spawn.get_preparation_data, multiprocessing.spawn.get_preparation_data,
            list(sys.meta_path), dict(copyreg.dispatch_table),
        )

    import bpgpu.sklearn
    before = state()
    import bpgpu.accel
    assert state() == before
    bpgpu.accel.load_ipython_extension(None)
    bpgpu.accel.install()  # once is enough
    assert MLPClassifier is nn.MLPClassifier is inner.MLPClassifier is bpgpu.sklearn.MLPClassifier
    assert R is nn.MLPRegressor is inner.MLPRegressor is bpgpu.sklearn.MLPRegressor
    assert not any(a == b for a, b in zip(state(), before))
    bpgpu.accel.unload_ipython_extension(None)
    bpgpu.accel.uninstall()
    assert state() == before
    assert issubclass(bpgpu.sklearn.MLPClassifier, MLPClassifier) and bpgpu.sklearn.MLPClassifier is not MLPClassifier
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    python(path, cwd=tmp_path)


def test_a_scikit_learn_that_is_not_supported_is_left_alone(tmp_path):
    script = """
    import sys
    sys.modules["bpgpu.sklearn"] = None  # its import fails
    from sklearn.neural_network import MLPClassifier
    print(MLPClassifier.__module__)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    run = python("-m", "bpgpu.accel", path, cwd=tmp_path)
    assert run.stdout == "sklearn.neural_network._multilayer_perceptron\n"
    assert run.stderr.startswith("scikit-learn's MLP is not replaced: import of bpgpu.sklearn halted")


# Pickles

TRAIN = """
import pickle, warnings
import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
warnings.simplefilter("ignore")
X = np.random.default_rng(0).normal(size=(30, 4))
models = [
    MLPClassifier(5, max_iter=3, random_state=0).fit(X, X[:, 0] > 0),
    MLPRegressor(hidden_layer_sizes=5, solver="sgd", max_iter=3, random_state=0).fit(X, X[:, 1]),
]
expected = [model.predict(X) for model in models]
"""
LOAD = """
import pickle, warnings
from pathlib import Path
import numpy as np
warnings.simplefilter("ignore")
models, expected, X = pickle.loads(Path("models").read_bytes())
for model, y in zip(models, expected):
    np.testing.assert_allclose(model.predict(X), y)
    model.partial_fit(X, y)
    model.fit(X, y)
    assert str(model.get_params())
print(*(type(model).__module__.partition(".")[0] for model in models), "bpgpu" in sys.modules)
"""
DUMP = "\nfrom pathlib import Path\nPath('models').write_bytes(pickle.dumps((models, expected, X)))"


def test_pickles_cross_over(tmp_path):
    """Made under accel they load without it, with bpgpu; made without it they load under accel, as ours."""
    (tmp_path / "load.py").write_text("import sys" + LOAD, encoding="utf-8")
    accel(TRAIN + DUMP, tmp_path)
    assert python("load.py", cwd=tmp_path).stdout == "bpgpu bpgpu True\n"
    python("script.py", cwd=tmp_path)
    assert python("-m", "bpgpu.accel", "load.py", cwd=tmp_path).stdout == "bpgpu bpgpu True\n"
    assert python("load.py", cwd=tmp_path).stdout == "sklearn sklearn False\n"


def test_models_made_before_can_be_pickled_and_copied(tmp_path):
    """As scikit-learn's, for a process that knows nothing of bpgpu."""
    script = """
    import copy, bpgpu.accel
    bpgpu.accel.install()
    assert type(models[0]) is not MLPClassifier
    for copied in (copy.copy(models[0]), copy.deepcopy(models[0])):
        assert type(copied) is type(models[0]) and copied.n_iter_ == 3
    """
    (tmp_path / "script.py").write_text(TRAIN + textwrap.dedent(script) + DUMP, encoding="utf-8")
    python("script.py", cwd=tmp_path)
    (tmp_path / "load.py").write_text("import sys\nsys.modules['bpgpu'] = None" + LOAD, encoding="utf-8")
    assert python("load.py", cwd=tmp_path).stdout == "sklearn sklearn True\n"


# Other processes


def test_processes_that_are_started_take_ours_too(tmp_path):
    """Also in a module that only they import."""
    (tmp_path / "task.py").write_text(
        "from sklearn.neural_network import MLPClassifier\n\n\ndef where(_):\n    return MLPClassifier.__module__\n",
        encoding="utf-8",
    )
    script = """
    import multiprocessing, sys
    import joblib
    from task import where
    from sklearn.neural_network import MLPClassifier

    if __name__ == "__main__":
        found = {"loky": joblib.Parallel(2)(joblib.delayed(where)(i) for i in range(2))}
        for method in multiprocessing.get_all_start_methods():
            with multiprocessing.get_context(method).Pool(1) as pool:
                found[method] = pool.map(where, [1])
        assert all(name.startswith("bpgpu.sklearn") for names in found.values() for name in names), found
        print(len(found))
    """
    assert int(accel(script, tmp_path)) >= 2


def test_a_process_that_cannot_import_bpgpu_runs_without(tmp_path):
    sent = pickle.dumps(bpgpu.accel._InChild())
    for first, expected in (("", "True"), ("sys.modules['bpgpu'] = None", "False")):
        code = f"import pickle, sys\n{first}\npickle.loads({sent!r})\nprint('bpgpu.accel' in sys.modules)"
        assert python("-c", code, cwd=tmp_path).stdout == f"{expected}\n"


def test_a_search_in_workers_of_joblib(tmp_path):
    """The fits in the workers are bpgpu's, and each of them says so."""
    script = """
    import numpy as np
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPClassifier

    if __name__ == "__main__":
        X = np.random.default_rng(0).normal(size=(40, 3))
        search = GridSearchCV(MLPClassifier(4, max_iter=2), {"alpha": [0, 1]}, cv=2, n_jobs=2, error_score="raise")
        search.fit(X, X[:, 0] > 0)
        print(search.best_estimator_.fit_report_.epochs)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    run = python("-W", "ignore", "-m", "bpgpu.accel", path, cwd=tmp_path, BPGPU_LOG="info", PYTHONWARNINGS="ignore")
    assert run.stdout == "2\n"
    lines = [line for line in run.stderr.splitlines() if "MLPClassifier.fit runs on" in line]
    assert len(lines) == 5 and not any("scikit-learn" in line for line in lines), run.stderr


WHERE = "from sklearn.neural_network import MLPClassifier; print(MLPClassifier.__module__.partition('.')[0])"
PROGRAM = f"""
import os, subprocess, sys
print(subprocess.run([sys.executable, "-c", {WHERE!r}], capture_output=True, text=True, check=True).stdout.strip())
"""


def test_children_that_anything_starts(tmp_path):
    """And theirs; a Python that never imports scikit-learn loads nothing of ours."""
    assert python("-m", "bpgpu.accel", "-c", PROGRAM, cwd=tmp_path).stdout == "sklearn\n"
    assert python("-m", "bpgpu.accel", "--children", "-c", PROGRAM, cwd=tmp_path).stdout == "bpgpu\n"
    twice = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROGRAM!r}], check=True)"
    assert python("-m", "bpgpu.accel", "--children", "-c", twice, cwd=tmp_path).stdout == "bpgpu\n"
    folder = python("-m", "bpgpu.accel", "--startup", cwd=tmp_path).stdout.strip()
    paths = os.pathsep.join(path for path in (folder, os.environ.get("PYTHONPATH")) if path)
    assert python("-c", WHERE, cwd=tmp_path, PYTHONPATH=paths).stdout == "bpgpu\n"
    names = "import sys; print([name for name in sys.modules if name.partition('.')[0] in ('bpgpu', 'numpy')])"
    assert python("-c", names, cwd=tmp_path, PYTHONPATH=paths).stdout == "[]\n"


def test_a_python_without_bpgpu_runs_as_ever(tmp_path):
    """As that of another environment, which inherits the variable; and a sitecustomize.py of somebody else's runs."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['bpgpu'] = None\nprint('hidden')", "utf-8")
    paths = [bpgpu.accel.STARTUP, str(tmp_path), os.environ.get("PYTHONPATH", "")]
    run = python("-c", WHERE, cwd=tmp_path, PYTHONPATH=os.pathsep.join(paths))
    assert (run.stdout, run.stderr) == ("hidden\nsklearn\n", "")


def test_uninstall_puts_the_environment_back(monkeypatch):
    for before in (None, "", "somewhere", os.pathsep.join(["a", "b"])):
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if before is not None:
            monkeypatch.setenv("PYTHONPATH", before)
        bpgpu.accel._install_by_environment()
        bpgpu.accel._install_by_environment()  # once is enough
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [
            bpgpu.accel.STARTUP,
            *filter(None, (before or "").split(os.pathsep)),
        ]
        bpgpu.accel._undo.pop()()
        assert os.environ.get("PYTHONPATH") == before and not bpgpu.accel._undo


NO_OTHERS = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize("way", ["-p", "pytest_plugins"])
@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "-n", "1"]], ids=["alone", "xdist"])
def test_as_a_plugin_of_pytest(way, workers, tmp_path):
    """The tests' modules and conftest.py get ours, in the workers of xdist too; afterwards all is as it was."""
    plugin = 'pytest_plugins = ["bpgpu.accel"]\n' if way == "pytest_plugins" else ""
    (tmp_path / "conftest.py").write_text(
        f"{plugin}from sklearn.neural_network import MLPClassifier as Early\n", "utf-8"
    )
    (tmp_path / "test_it.py").write_text(
        "import sys\nfrom sklearn.neural_network import MLPClassifier\n\n"
        "def test_it():\n    early = sys.modules['conftest'].Early\n"
        "    assert early is MLPClassifier and early.__module__.startswith('bpgpu')\n",
        "utf-8",
    )
    program = (
        "import sys, pytest; code = pytest.main(sys.argv[1:])\n"
        "from sklearn.neural_network import MLPClassifier\nprint('after:', MLPClassifier.__module__)\nsys.exit(code)"
    )
    options = [*(["-p", "bpgpu.accel"] if way == "-p" else []), *workers, "-q", "-W", "error", "-p", "no:cacheprovider"]
    run = python("-c", program, *options, cwd=tmp_path, **NO_OTHERS)
    assert "1 passed" in run.stdout and "after: sklearn." in run.stdout


def test_as_a_plugin_of_pytest_that_is_installed_already(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(): pass", "utf-8")
    options = ["-q", "-W", "error", "-p", "bpgpu.accel", "-p", "no:cacheprovider", "test_it.py"]
    assert "1 passed" in python("-m", "bpgpu.accel", "-m", "pytest", *options, cwd=tmp_path, **NO_OTHERS).stdout


def test_workers_of_dask(tmp_path):
    """Those of a cluster that is started before `install()`, by preloading."""
    pytest.importorskip("distributed")
    script = """
    from distributed import Client, LocalCluster

    def where():
        from sklearn.neural_network import MLPClassifier
        return MLPClassifier.__module__.partition(".")[0]

    if __name__ == "__main__":
        for preload in ([], ["bpgpu.accel"]):
            options = {"n_workers": 1, "dashboard_address": None, "preload": preload}
            with LocalCluster(**options) as cluster, Client(cluster) as client:
                print(*client.run(where).values())
                import bpgpu.accel
                client.run(bpgpu.accel.install)
                print(*client.run(where).values())
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    assert python(path, cwd=tmp_path).stdout.split() == ["sklearn", "bpgpu", "bpgpu", "bpgpu"]


def test_what_dask_calls(tmp_path):
    script = "import bpgpu.accel; bpgpu.accel.dask_setup(None)\n" + WHERE
    assert python("-c", script, cwd=tmp_path).stdout == "bpgpu\n"


# scikit-learn's own tests

EXCEPTIONS: dict[str, str] = {}  # name of a test: why it cannot pass, such as private internals that it reaches into
PLUGIN = """
import collections, logging

places = collections.Counter()

class Count(logging.Handler):
    def emit(self, record):
        places[record.getMessage().split(" runs on ")[-1].split()[0]] += " runs on " in record.getMessage()

logging.getLogger("bpgpu").addHandler(Count())

def pytest_sessionfinish(session):
    print(f"\\nplaces: {dict(places)}")
"""


def test_scikit_learns_own_tests_of_its_mlp_pass(tmp_path):
    """All but the EXCEPTIONS, and on a backend."""
    (tmp_path / "counting.py").write_text(PLUGIN, encoding="utf-8")
    tests = [
        "--pyargs",
        "sklearn.neural_network.tests.test_mlp",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-p",
        "counting",
    ]
    run = python("-m", "bpgpu.accel", "-m", "pytest", *tests, cwd=tmp_path, check=False, BPGPU_LOG="info", **NO_OTHERS)
    results = {}
    for line in run.stdout.splitlines():
        if line.startswith(("PASSED ", "FAILED ", "ERROR ", "SKIPPED ")):
            outcome, _, name = line.partition(" ")
            results.setdefault(outcome, []).append(name.rpartition("::")[2].split(" - ")[0])
    assert results.pop("PASSED", []) and len(EXCEPTIONS) <= 3
    assert results.get("FAILED", []) == list(EXCEPTIONS) and len(results) == bool(EXCEPTIONS), run.stdout
    places = eval(re.search(r"places: (.*)", run.stdout)[1])
    assert places.pop("scikit-learn", 0) < 10 < 300 < sum(places.values()), places
