"""Earlier names of modules, which still work and say where the contents are now."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Earlier name: where its contents are.
MOVED = {
    "bpgpu.activations": ("bpgpu.model.activations",),
    "bpgpu.callbacks": ("bpgpu.training.callbacks",),
    "bpgpu.costs": ("bpgpu.model.costs",),
    "bpgpu.gradcheck": ("bpgpu.proof.gradcheck",),
    "bpgpu.optimizers": ("bpgpu.model.optimizers",),
    "bpgpu.plan": ("bpgpu.backends.plan", "bpgpu.backends.data", "bpgpu.model.architecture"),
    "bpgpu.backends.cupy_backend": ("bpgpu.backends.cuda.cupy_backend",),
    "bpgpu.backends.numba_backend": ("bpgpu.backends.cpu.engine",),
    "bpgpu.backends.numba_cuda_backend": ("bpgpu.backends.cuda.numba_backend",),
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules by their earlier names, after all other finders have failed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        places = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(places)}; the earlier name will be removed",
            DeprecationWarning,
            stacklevel=2,
        )

        def find(name: str) -> Any:
            for place in map(importlib.import_module, places):
                if hasattr(place, name):
                    return getattr(place, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = find


def install() -> None:
    """Let the earlier names be found."""
    sys.meta_path.append(_Moved())
