"""Actions to run after other packages' modules are imported, whenever that is, without importing them."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


class AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and runs actions after their import.

    Parameters
    ----------
    actions : mapping of str to function of a module
        Keys are names of modules.
    """

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self.actions = actions

    def start(self) -> None:
        """Act on the modules that are loaded now, and on the others once they are."""
        sys.meta_path.insert(0, self)
        for name, action in self.actions.items():
            module = sys.modules.get(name)
            if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
                action(module)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.actions:
            return None
        for finder in sys.meta_path:
            if not isinstance(finder, AfterImport) and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self.actions[name])
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads with another loader, leaves the module to it, and runs the action on the loaded module."""

    def __init__(self, loader: importlib.abc.Loader, action: Action) -> None:
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
