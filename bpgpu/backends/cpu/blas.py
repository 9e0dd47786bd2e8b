"""The BLAS of the compiled CPU engine: which library it is, its products as addresses, and its threads."""

import ctypes
import functools
import os
import re
import sys
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from llvmlite.binding import get_host_cpu_name
from numba.extending import get_cython_function_address

from bpgpu.backends.cpu.blas_threads import blas_threads
from bpgpu.errors import BackendUnavailableError

_MKL = re.compile(r"(lib)?mkl_rt(\.\d+)?\.(so|dll)(\.\d+)?")
_SEQUENTIAL, _AUTO, _STRICT = 1, 2, 0x10000  # of mkl_service.h
_AMD = ("znver", "bdver", "btver", "amdfam")  # what LLVM calls AMD's processors


class Blas:
    """SciPy's BLAS; Intel's, if it is installed and the processor is not AMD's, where it takes half the speed.

    Chosen once in a process, and never by a measurement: two libraries round differently, and the same seed gives the
    same bits. ``BPGPU_BLAS`` ("scipy" or "mkl") overrides the choice.

    Attributes
    ----------
    name : str
        "scipy" or "mkl".
    gemm : dict of dtype to int
        The addresses of Fortran's sgemm and dgemm with 32-bit integers.

    Raises
    ------
    BackendUnavailableError
        If ``BPGPU_BLAS`` is neither, or Intel's is wanted and not installed.
    """

    def __init__(self) -> None:
        wanted = os.environ.get("BPGPU_BLAS", "")
        if wanted not in ("", "scipy", "mkl"):
            raise BackendUnavailableError("numba", f"BPGPU_BLAS must be 'scipy' or 'mkl', got {wanted!r}")
        library = None if wanted == "scipy" else mkl_library()
        if wanted == "mkl" and library is None:
            raise BackendUnavailableError(
                "numba", 'BPGPU_BLAS is mkl, which is not here; try: pip install "bpgpu[mkl]"'
            )
        if library is not None and (wanted or not get_host_cpu_name().startswith(_AMD)):
            self.name = "mkl"
            self._library = ctypes.CDLL(str(library))
            # Both count only before the first call. Sequential: its OpenMP threads would spin beside ours. Strict:
            # without it the bits depend on where an array happens to lie.
            self._library.MKL_Set_Threading_Layer(_SEQUENTIAL)
            self._library.MKL_CBWR_Set(_AUTO | _STRICT)
            suffix = "" if sys.platform == "win32" else "_"
            products = [getattr(self._library, name + suffix) for name in ("sgemm", "dgemm")]
            addresses = [ctypes.cast(product, ctypes.c_void_p).value or 0 for product in products]
        else:
            self.name = "scipy"
            addresses = [get_cython_function_address("scipy.linalg.cython_blas", name) for name in ("sgemm", "dgemm")]
        self.gemm = dict(zip(map(np.dtype, (np.float32, np.float64)), addresses, strict=True))
        self._threads = blas_threads()
        self._threads.find()  # the library that has just been loaded

    def allowed_threads(self) -> int:
        """Return how many threads BLAS has outside our epochs: what threadpoolctl, joblib or a variable has set."""
        return min(self._threads.outside(), default=sys.maxsize)

    def one_thread(self) -> AbstractContextManager[None]:
        """Hold BLAS at one thread, because it works inside threads of our own."""
        return self._threads.at_most(1)


@functools.cache
def blas() -> Blas:
    """Return the one of this process."""
    return Blas()


def mkl_library() -> Path | None:
    """Return where the package `mkl` has its library, or None without it."""
    try:
        found = [file for file in files("mkl") or () if _MKL.fullmatch(file.name)]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())).resolve() if found else None
