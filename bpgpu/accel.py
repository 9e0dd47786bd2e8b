"""Scikit-learn's MLP trained by bpgpu, with no change to the code: ``python -m bpgpu.accel script.py``.

Once installed, ``MLPClassifier`` and ``MLPRegressor`` of ``sklearn.neural_network`` are those of `bpgpu.sklearn`.
Nothing of scikit-learn is imported before the program itself does so.
"""

import builtins
import copyreg
import functools
import importlib.abc
import importlib.machinery
import logging
import pkgutil
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["install", "load_ipython_extension", "uninstall", "unload_ipython_extension"]

USAGE = """\
usage: python -m bpgpu.accel [-h] (script.py | -m module) [argument ...]

Run a Python program as python does, with MLPClassifier and MLPRegressor of
sklearn.neural_network replaced by those of bpgpu.sklearn.

  script.py   a script, or a folder or zip file with a __main__.py
  -m module   a module, such as pytest
  -h, --help  this text

With BPGPU_LOG=info in the environment a line for each fit says where it ran, and why."""

PLAIN = "sklearn.neural_network._multilayer_perceptron"
ESTIMATORS = ("MLPClassifier", "MLPRegressor")

log = logging.getLogger("bpgpu")
_undo: list[Callable[[], None]] = []


def install() -> None:
    """Put bpgpu's estimators in the place of scikit-learn's, now and in every later import.

    Modules that have imported scikit-learn's classes already, `__main__` among them, get ours under the same
    names. What cannot be reached stays scikit-learn's: models and subclasses made before, and names inside functions
    and containers. Processes that `multiprocessing` or joblib start later are set up in the same way. A second call
    does nothing.
    """
    if _finder in sys.meta_path:
        return
    sys.meta_path.insert(0, _finder)
    for name, action in AFTER_IMPORT.items():
        if name in sys.modules:
            action(sys.modules[name])


def uninstall() -> None:
    """Put back everything that `install` changed.

    What was imported in between keeps bpgpu's classes, and models that they made work on.
    """
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _undo:
        _undo.pop()()


def load_ipython_extension(ipython: Any) -> None:
    """Answer ``%load_ext bpgpu.accel``."""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """Answer ``%unload_ext bpgpu.accel``."""
    uninstall()


# What is changed in other modules


def _put(table: dict[Any, Any], key: Any, new: Any) -> None:
    """Write to a table, such as the names of a module, until `uninstall`; what others write later is left alone."""
    missing = object()
    old = table.get(key, missing)
    table[key] = new

    def undo() -> None:
        if table.get(key) is new:
            if old is missing:
                del table[key]
            else:
                table[key] = old

    _undo.append(undo)


def _load_ours(module: ModuleType) -> None:
    """Act after the import of sklearn.neural_network, which may be bpgpu.sklearn's own."""
    try:
        import bpgpu.sklearn  # noqa: F401  # what comes after its import replaces the estimators
    except ImportError as error:
        log.warning("scikit-learn's MLP is left as it is: %s", error)


def _replace_estimators(ours: ModuleType) -> None:
    """Act after the import of bpgpu.sklearn."""
    for name in ESTIMATORS:
        old, new = getattr(sys.modules[PLAIN], name), getattr(ours, name)
        if old is not new:
            for table, key in list(_names_of(old)):
                _put(table, key, new)
            _put(copyreg.dispatch_table, old, _reduce)


def _names_of(cls: type) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where loaded modules name the class, bpgpu's own apart."""
    names = vars(ModuleType)["__dict__"].__get__  # modules that load when they are looked at are not to do so
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and module_name.partition(".")[0] != "bpgpu":
            for key, value in list(names(module).items()):
                if value is cls:
                    yield names(module), key


def _reduce(estimator: Any) -> tuple[Any, ...]:
    """Pickle an object of scikit-learn's own class, whose name leads to ours at present."""
    return _Plain(type(estimator)), (), estimator.__getstate__()


class _Plain:
    """Makes an object of the class; in a pickle, the class by its name, for which nobody needs bpgpu."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def __call__(self) -> object:
        return self.cls()

    def __reduce__(self) -> tuple[Any, ...]:
        return pkgutil.resolve_name, (f"sklearn.neural_network:{self.cls.__name__}",)


def _install_in_children(module: ModuleType) -> None:
    """Act after the import of the module that tells a new process how to begin."""
    prepare = module.get_preparation_data

    @functools.wraps(prepare)
    def get_preparation_data(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {**prepare(*arguments, **options), "bpgpu.accel": _InChild()}

    _put(vars(module), "get_preparation_data", get_preparation_data)


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


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of AFTER_IMPORT as the other finders do, and sees to what comes after their import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in AFTER_IMPORT:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, AFTER_IMPORT[name])
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads as another loader does, leaves the module to that one, and acts on what was loaded."""

    def __init__(self, loader: importlib.abc.Loader, action: Callable[[ModuleType], None]) -> None:
        self.loader, self.action = loader, action

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.action(module)


_finder = _Finder()


# The command


def main() -> None:
    """Run the program that the command line names, as python would."""
    match sys.argv[1:]:
        case ["-h" | "--help", *_]:
            print(USAGE)
            return
        case ["-m", module, *arguments]:
            sys.argv[:] = ["-m", *arguments]
            run = functools.partial(_run_module, module)
        case [path, *arguments] if not path.startswith("-"):
            sys.argv[:] = [path, *arguments]
            run = functools.partial(_run_path, path)
        case [option, *_] if option != "-m":
            sys.exit(_complain(f"unknown option {option}"))
        case _:
            sys.exit(_complain("a script or -m module is needed"))
    install()
    fresh = ModuleType("__main__")  # the program's own
    vars(fresh).update(__builtins__=builtins)
    if hasattr(sys.modules["__main__"], "__annotations__"):  # as Python before 3.14 has it
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
    """Run a module as the interpreter does for -m; "__main__" is that of a folder, which leaves sys.argv alone."""
    runpy._run_module_as_main(name, alter_argv=name != "__main__")  # type: ignore[attr-defined]


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
    loader = importlib.machinery.SourceFileLoader("__main__", full)
    try:
        source = loader.get_data(full)
    except OSError as error:
        print(f"{sys.orig_argv[0]}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        sys.exit(2)
    names = vars(sys.modules["__main__"])
    names.update(__file__=full, __loader__=loader, __cached__=None)
    exec(compile(source, full, "exec", dont_inherit=True), names)
    return None


def _hide_ourselves(error: BaseException) -> None:
    """Show the traceback of an error from where the program begins, when the interpreter comes to show it."""
    shown, hook = error.__traceback__, sys.excepthook
    while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
        shown = shown.tb_next

    def excepthook(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        hook(kind, value.with_traceback(shown), shown)

    sys.excepthook = excepthook


if __name__ == "__main__":
    from bpgpu.accel import main as _main  # the module that others import, not a second copy of it

    _main()
