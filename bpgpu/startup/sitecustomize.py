"""Installs bpgpu.accel in a Python whose PYTHONPATH has this folder, once it imports scikit-learn."""

import sys
from importlib.machinery import PathFinder


class _Wait:
    """Finds nothing: it waits for scikit-learn, so that a Python without it does not load bpgpu."""

    waiting = True  # it stays in sys.meta_path, which the import system is going through

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "sklearn" and self.waiting:
            self.waiting = False
            try:
                from bpgpu import accel
            except ImportError:  # another environment
                return
            accel.install()


def _next_one() -> None:
    """Run the sitecustomize.py that this one hides."""
    here = __file__[: -len("sitecustomize.py") - 1]
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if path != here])
    if spec is not None and spec.loader is not None and spec.origin != __file__:
        spec.loader.exec_module(sys.modules[__name__])


sys.meta_path.insert(0, _Wait())
_next_one()
