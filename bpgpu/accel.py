"""Scikit-learn's MLP trained by bpgpu, with no change to the code: ``python -m bpgpu.accel script.py``.

Once installed, ``MLPClassifier`` and ``MLPRegressor`` of ``sklearn.neural_network`` are those of `bpgpu.sklearn`.
Scikit-learn is not imported before the program itself imports it. (PYTEST_DONT_REWRITE: pytest may load this module as
a plugin after its import.)
"""

import builtins
import codecs
import copyreg
import functools
import importlib.machinery
import importlib.util
import logging
import marshal
import os
import pkgutil
import re
import runpy
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from bpgpu.imports import AfterImport

__all__ = ["install", "load_ipython_extension", "uninstall", "unload_ipython_extension"]

USAGE = """\
usage: python -m bpgpu.accel [--children] (script.py | -m module | -c code | -) [argument ...]

Run a Python program as python does, with MLPClassifier and MLPRegressor of
sklearn.neural_network replaced by those of bpgpu.sklearn.

  script.py   a script, also compiled (.pyc), or a folder or zip file with a __main__.py
  -m module   a module, such as pytest
  -c code     code
  -           code from standard input
  --children  also in every Python that the program starts, by a folder in PYTHONPATH
  --startup   print that folder, for the PYTHONPATH of programs that something else starts
  -h, --help  this text

With BPGPU_LOG=info in the environment, a line for each fit says where it ran and why."""

STARTUP = str(Path(__file__).with_name("startup"))
PLAIN = "sklearn.neural_network._multilayer_perceptron"
ESTIMATORS = ("MLPClassifier", "MLPRegressor")
# The declaration of a program's encoding, in its first or second line (PEP 263).
CODING = re.compile(rb"(?:\xef\xbb\xbf)?(?:[ \t\f]*(?:#.*)?\r?\n)?[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")

log = logging.getLogger("bpgpu")
_undo: list[Callable[[], None]] = []


def install(*, children: bool = False) -> None:
    """Replace scikit-learn's estimators with bpgpu's, now and in every later import.

    Modules that have already imported scikit-learn's classes, including `__main__`, get ours under the same names.
    Scikit-learn's stay where they cannot be reached: in models and subclasses made before, and under names inside
    functions and containers. Processes that `multiprocessing` or joblib start later are set up in the same way. A
    second call does nothing.

    Parameters
    ----------
    children : bool
        Also set up every Python that is started later, by `subprocess` too: puts the folder of a ``sitecustomize.py``
        at the front of ``PYTHONPATH`` in the environment.
    """
    if children:
        _install_by_environment()
    if _watch not in sys.meta_path:
        _watch.start()


def uninstall() -> None:
    """Undo everything that `install` changed.

    Names imported in between keep bpgpu's classes, and models made with them keep working.
    """
    if _watch in sys.meta_path:
        sys.meta_path.remove(_watch)
    while _undo:
        _undo.pop()()


def load_ipython_extension(ipython: Any) -> None:
    """Answer ``%load_ext bpgpu.accel``."""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """Answer ``%unload_ext bpgpu.accel``."""
    uninstall()


def pytest_load_initial_conftests(early_config: Any) -> None:
    """Answer ``pytest -p bpgpu.accel``, before conftest.py imports anything."""
    pytest_configure(early_config)


def pytest_configure(config: Any) -> None:
    """Answer ``pytest -p bpgpu.accel`` in the workers of xdist, and ``pytest_plugins``."""
    if _watch not in sys.meta_path:
        install()
        config.add_cleanup(uninstall)


def dask_setup(server: Any) -> None:
    """Answer ``dask worker --preload bpgpu.accel``."""
    install()


# Changes to other modules


def _put(table: MutableMapping[Any, Any], key: Any, new: Any) -> None:
    """Set an entry of a module's names or of os.environ until `uninstall`, unless others set it again later."""
    missing = object()
    old = table.get(key, missing)
    table[key] = new

    def undo() -> None:
        if (table.get(key) == new) is True:  # os.environ returns new strings
            if old is missing:
                del table[key]
            else:
                table[key] = old

    _undo.append(undo)


def _load_ours(module: ModuleType) -> None:
    """Run after the import of sklearn.neural_network, possibly by bpgpu.sklearn itself."""
    try:
        import bpgpu.sklearn  # noqa: F401  # the action after its import replaces the estimators
    except ImportError as error:
        log.warning("scikit-learn's MLP is not replaced: %s", error)


def _replace_estimators(ours: ModuleType) -> None:
    """Run after the import of bpgpu.sklearn."""
    for name in ESTIMATORS:
        old, new = getattr(sys.modules[PLAIN], name), getattr(ours, name)
        if old is not new:
            for table, key in list(_names_of(old)):
                _put(table, key, new)
            _put(copyreg.dispatch_table, old, _reduce)


def _names_of(cls: type) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where loaded modules name the class, except those of bpgpu."""
    names = vars(ModuleType)["__dict__"].__get__  # lazy modules must not load because we look at them
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module_name.partition(".")[0] != "bpgpu":
            for key, value in list(names(module).items()):
                if value is cls:
                    yield names(module), key


def _reduce(estimator: Any) -> tuple[Any, ...]:
    """Pickle an object of scikit-learn's own class, whose name leads to ours while we are installed."""
    return _Plain(type(estimator)), (), estimator.__getstate__()


class _Plain:
    """Makes an object of the class; pickled as the class's name, so that unpickling does not need bpgpu."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self) -> object:
        return self.cls()

    def __reduce__(self) -> tuple[Any, ...]:
        return pkgutil.resolve_name, (f"sklearn.neural_network:{self.cls.__name__}",)


def _install_in_children(module: ModuleType) -> None:
    """Run after the import of the module that tells a new process how to start."""
    prepare = module.get_preparation_data

    @functools.wraps(prepare)
    def get_preparation_data(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {**prepare(*arguments, **options), "bpgpu.accel": _InChild()}

    _put(vars(module), "get_preparation_data", get_preparation_data)


def _install_by_environment() -> None:
    """Let Pythons that are started later find our sitecustomize.py, which only waits for sklearn."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if STARTUP not in paths:
        _put(os.environ, "PYTHONPATH", os.pathsep.join([STARTUP, *paths]))


class _InChild:
    """Installs where it is unpickled, if bpgpu can be imported there."""

    def __reduce__(self) -> tuple[Any, ...]:
        code = "try:\n import bpgpu.accel\nexcept ImportError:\n pass\nelse:\n bpgpu.accel.install()"
        return exec, (code, {})


AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "sklearn.neural_network": _load_ours,
    "bpgpu.sklearn": _replace_estimators,
    "multiprocessing.spawn": _install_in_children,
    "joblib.externals.loky.backend.spawn": _install_in_children,
    "loky.backend.spawn": _install_in_children,
}


_watch = AfterImport(AFTER_IMPORT)


# The command


def main() -> None:
    """Run the program that the command line names, as python would."""
    children = False
    given = sys.argv[1:]
    while given and given[0] == "--children":
        children, given = True, given[1:]
    if given and given[0][:2] in ("-m", "-c") and len(given[0]) > 2:  # as in -mpytest
        given[:1] = [given[0][:2], given[0][2:]]
    match given:
        case ["-h" | "--help", *_]:
            print(USAGE)
            return
        case ["--startup"]:
            print(STARTUP)
            return
        case ["-m", module, *arguments]:
            sys.argv[:] = ["-m", *arguments]
            run: Callable[[], None] = functools.partial(_run_module, module)
        case ["-c", code, *arguments]:
            sys.argv[:] = ["-c", *arguments]
            run = functools.partial(_run_text, code, "<string>")
        case ["-", *arguments] | ["--", "-", *arguments]:
            sys.argv[:] = ["-", *arguments]
            run = _run_input
        case ["--", path, *arguments]:
            sys.argv[:] = [path, *arguments]
            run = functools.partial(_run_path, path)
        case [path, *arguments] if not path.startswith("-"):
            sys.argv[:] = [path, *arguments]
            run = functools.partial(_run_path, path)
        case [option, *_] if option not in ("-m", "-c", "--"):
            sys.exit(_complain(f"unknown option {option}; python's own options go before -m bpgpu.accel"))
        case _:
            sys.exit(_complain("a script, -m module, -c code or - is needed"))
    install(children=children)
    fresh = ModuleType("__main__")  # for the program
    vars(fresh).update(__builtins__=builtins)
    if hasattr(sys.modules["__main__"], "__annotations__"):  # before Python 3.14
        vars(fresh).update(__annotations__={})
    sys.modules["__main__"] = fresh
    try:
        run()
    except BaseException as error:
        _hide_ourselves(error)
        raise


def _complain(message: str) -> int:
    print(f"{USAGE.partition(chr(10))[0]}\nbpgpu.accel: {message}; see --help", file=sys.stderr)
    return 2


def _run_module(name: str) -> None:
    """Run a module as the interpreter does for -m; "__main__" means that of a folder, which leaves sys.argv alone."""
    runpy._run_module_as_main(name, alter_argv=name != "__main__")  # type: ignore[attr-defined]


def _run_text(text: str | bytes, name: str, **names_of_a_file: str | None) -> None:
    """Run code that does not come from a file."""
    if not sys.flags.safe_path:
        sys.path[0] = ""
    names = vars(sys.modules["__main__"])
    names.update(__loader__=importlib.machinery.BuiltinImporter, **names_of_a_file)
    exec(_code(text, name), names)


def _run_input() -> None:
    """Run code from standard input; at a terminal, show Python's prompt."""
    if not sys.stdin.isatty():
        return _run_text(sys.stdin.buffer.read(), "<stdin>", __file__="<stdin>", __cached__=None)
    import code

    if not sys.flags.safe_path:
        sys.path[0] = ""
    code.interact(local=vars(sys.modules["__main__"]), exitmsg="")
    return None


def _run_path(path: str) -> None:
    """Run a script, or a folder or zip file with a __main__.py."""
    full = str(Path(path).absolute())
    container = pkgutil.get_importer(full) is not None
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder that -m put there
    if container:
        sys.path.insert(0, full)
        return _run_module("__main__")
    if not sys.flags.safe_path:
        sys.path.insert(0, str(Path(path).resolve().parent))
    source = importlib.machinery.SourceFileLoader("__main__", full)
    try:
        content = source.get_data(full)
    except OSError as error:
        print(f"{sys.orig_argv[0]}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        sys.exit(2)
    compiled = path.endswith(".pyc") or content[:4] == importlib.util.MAGIC_NUMBER
    loader = importlib.machinery.SourcelessFileLoader("__main__", full) if compiled else source
    names = vars(sys.modules["__main__"])
    names.update(__file__=full, __loader__=loader, __cached__=None)
    exec(_compiled(content) if compiled else _code(content, full), names)
    return None


def _code(text: str | bytes, name: str) -> CodeType:
    """Compile a program; bytes that are not text raise the interpreter's own errors for files.

    `compile` raises others, and none for comments.
    """
    coding = CODING.match(text) if isinstance(text, bytes) else None
    if isinstance(text, bytes) and coding is None and not text.startswith(codecs.BOM_UTF8):
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise SyntaxError(
                    f"Non-UTF-8 code starting with '\\x{line[error.start]:02x}' in file {name} on line {number}, "
                    "but no encoding declared; see https://peps.python.org/pep-0263/ for details"
                ) from None
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        if coding is None or error.lineno != 0:  # 0: there is no text
            raise
        known = str(error.msg).startswith("encoding problem")
        raise SyntaxError(error.msg if known else f"encoding problem: {coding[1].decode()}") from None


def _compiled(content: bytes) -> CodeType:
    """Return the code of a .pyc file, which has a header of four words."""
    if content[:4] != importlib.util.MAGIC_NUMBER:
        raise RuntimeError("Bad magic number in .pyc file")
    code = marshal.loads(content[16:])
    if not isinstance(code, CodeType):
        raise RuntimeError("Bad code object in .pyc file")
    return code


def _hide_ourselves(error: BaseException) -> None:
    """Let the interpreter show the traceback of an error from where the program begins."""
    traceback, hook = error.__traceback__, sys.excepthook
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next

    def excepthook(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        hook(kind, value.with_traceback(traceback), traceback)

    sys.excepthook = excepthook


if __name__ == "__main__":
    from bpgpu.accel import main as _main  # the module that others import, not a second copy

    _main()
