"""A GPU without a GPU: CUDA C++ kernels compiled by g++ and run with fibers as threads (`fiber.h`).

    from tests.simgpu import device

    module = device.compile_module(source)
    module.get_function("scale")((2,), (256,), (array, np.int32(array.size)), order="reverse")

Kernels are ``extern "C" __global__ void name(...)``. What they see of CUDA: threadIdx, blockIdx, blockDim, gridDim,
__shared__ (static, and extern with `shared_mem`), __syncthreads, __shfl_xor_sync, __shfl_down_sync and __shfl_sync with
the full mask, atomicAdd, atomicMin and atomicMax on int. Shared memory begins as NaN in every block.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RUNTIME = Path(__file__).with_name("fiber.h")
ROOT = Path(__file__).parents[2]
ORDERS = ("forward", "reverse", "shuffled")
# As on all devices this project supports; the limit of shared memory is the one that needs no opting in.
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
MAX_THREADS = 1024
MAX_SHARED = 48 * 1024
# -ffp-contract: the same bits on every CPU. double-promotion: a float64 literal in float32 arithmetic is an error.
# _FORTIFY_SOURCE, on by default in some distributions, takes a switch of stacks for an attack.
FLAGS = ["-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
FLAGS += ["-ffp-contract=off", "-Werror=double-promotion", "-Werror=return-type"]
SANITIZE_FLAGS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
SANITIZE = "BPGPU_SIMGPU_SANITIZE"  # set in the processes of run_sanitized: there every module is sanitized

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = re.compile(rf'extern\s+"C"\s+__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(')
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:alignas|__align__)\s*\(\s*\d+\s*\)\s*)?([\w\s]+?)\s+(\w+)\s*\[\s*\]\s*;"
)


class SimulatorError(Exception):
    """A kernel does what no GPU allows: a divergent barrier, a block too large, source that does not compile."""


class SanitizerError(SimulatorError):
    """AddressSanitizer or UBSan found a fault; the text is its report."""


def available() -> bool:
    """Return whether kernels can be simulated here: on Linux, where there is a g++ that links."""
    return sys.platform == "linux" and _compiler() is not None


def sanitizer_available() -> bool:
    """Return whether g++ has AddressSanitizer."""
    return available() and Path(_asan_library()).is_file()


@functools.cache
def _compiler() -> str | None:
    """Return g++ and its version, or None."""
    if shutil.which("g++") is None:
        return None
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _asan_library() -> str:
    """Return the path of the library, or a bare name where it is missing."""
    command = ["g++", "-print-file-name=libasan.so"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# Compiling


def compile_module(source: str, *, sanitize: bool = False) -> "Module":
    """Compile kernels, or take them from the cache.

    Parameters
    ----------
    source : str
        CUDA C++.
    sanitize : bool
        With AddressSanitizer and UBSan; only in a process that `run_sanitized` started.

    Raises
    ------
    SimulatorError
        If the source has no kernel or does not compile; with the compiler's messages, lines as in `source`.
    """
    sanitize = sanitize or SANITIZE in os.environ
    if sanitize and "asan" not in os.environ.get("LD_PRELOAD", ""):
        raise SimulatorError("a sanitized module can be loaded only in a process started by device.run_sanitized")
    names = tuple(dict.fromkeys(_KERNEL.findall(_COMMENT.sub(" ", source))))
    if not names:
        raise SimulatorError('no kernel in the source: none is declared extern "C" __global__ void')
    return _load(_compiled(source, names, sanitize), names)


def _compiled(source: str, names: tuple[str, ...], sanitize: bool) -> Path:
    flags = FLAGS + SANITIZE_FLAGS * sanitize
    key = "\0".join([_compiler() or "", RUNTIME.read_text(encoding="utf-8"), *flags, *names, source, _TABLE])
    library = cache_folder() / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".so")
    if library.exists():
        return library
    # Written aside and renamed, so that another process sees a whole library or none. The .cu stays: reports name it.
    with tempfile.TemporaryDirectory(dir=library.parent) as aside:
        kernels, program, built = (Path(aside, name) for name in ("k.cu", "program.cpp", "module.so"))
        kernels.write_text(source, encoding="utf-8")
        kernels.replace(library.with_suffix(".cu"))
        program.write_text(_program(source, names, library.with_suffix(".cu")), encoding="utf-8")
        command = ["g++", *flags, *_linking(), f"-I{_runtime(tuple(flags))}", str(program), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SimulatorError(f"g++ refuses the kernels:\n{done.stderr}")
        built.replace(library)
    return library


def _linking() -> list[str]:
    """Return what makes g++ link a library, by the quicker linker if there is one."""
    return ["-shared", *(["-fuse-ld=gold"] if shutil.which("ld.gold") else [])]


@functools.cache
def _runtime(flags: tuple[str, ...]) -> Path:
    """Return a folder with the runtime, compiled already for these flags: half of the time of most modules."""
    key = "\0".join([_compiler() or "", RUNTIME.read_text(encoding="utf-8"), *flags])
    folder = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            header = Path(shutil.copy(RUNTIME, aside))
            command = ["g++", *flags, "-w", "-x", "c++-header", str(header), "-o", f"{header}.gch"]
            subprocess.run(command, capture_output=True, check=True)
            try:
                Path(aside).rename(folder)
            except OSError:  # another process was quicker
                if not folder.is_dir():
                    raise
    return folder


def cache_folder() -> Path:
    """Return the folder of compiled modules: of this user alone, and kept between sessions."""
    folder = Path(tempfile.gettempdir()) / f"bpgpu-simgpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SimulatorError(f"{folder} belongs to somebody else")
    return folder


_TABLE = """
#line 1 "the table of kernels"
static const sim::Kernel sim_kernels[] = {{ {entries} }};
#define SIM_EXPORT extern "C" __attribute__((visibility("default")))
SIM_EXPORT const char* sim_types(int k) {{ return sim_kernels[k].types(); }}
SIM_EXPORT const char* sim_error() {{ return sim::error; }}
SIM_EXPORT int sim_launch(int k, const unsigned* grid, const unsigned* block, size_t shared_mem, int order,
                          unsigned long long seed, void** arguments) {{
  sim::kernel = sim_kernels[k].call;
  sim::kernel_arguments = arguments;
  return sim::launch(grid, block, shared_mem, order, seed);
}}
"""


def _program(source: str, names: tuple[str, ...], path: Path) -> str:
    """Return the translation unit: the runtime, the kernels, and the table of the kernels."""
    adapted = _DYNAMIC.sub(r"\1* \2 = (\1*)sim::dynamic_shared_memory;", source)
    entries = ", ".join(f'{{ "{name}", sim::Entry<&{name}>::types, sim::Entry<&{name}>::call }}' for name in names)
    return f'#include "{RUNTIME.name}"\n#line 1 "{path}"\n{adapted}{_TABLE.format(entries=entries)}'


# Running


@functools.cache
def _load(library: Path, names: tuple[str, ...]) -> "Module":
    return Module(library, names)


class Module:
    """Compiled kernels.

    Attributes
    ----------
    names : tuple of str
        Of the kernels.
    """

    def __init__(self, library: Path, names: tuple[str, ...]) -> None:
        self.names = names
        # PyDLL keeps the interpreter's lock: the runtime has one set of threads.
        self._library = ctypes.PyDLL(str(library))
        self._library.sim_types.restype = ctypes.c_char_p
        self._library.sim_error.restype = ctypes.c_char_p

    def get_function(self, name: str) -> "Kernel":
        if name not in self.names:
            raise SimulatorError(f'no kernel {name!r} declared extern "C" __global__ void; there are {self.names}')
        number = self.names.index(name)
        types = self._library.sim_types(number).decode().split(",")[:-1]
        return Kernel(self._library, number, name, types)


class Kernel:
    """One kernel, to be called as in CuPy.

    Attributes
    ----------
    types : list of str
        Of its arguments: "float32", "const int32*" and so on.
    """

    def __init__(self, library: Any, number: int, name: str, types: list[str]) -> None:
        self._library, self._number, self.name, self.types = library, number, name, types

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], **options: Any) -> None:
        """Run the kernel to its end; see `bind`.

        Raises
        ------
        SimulatorError
            Also if threads wait for each other for ever.
        """
        self.bind(grid, block, args, **options)()

    def bind(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        order: str = "forward",
        seed: int = 0,
    ) -> Callable[[], None]:
        """Check a launch and return it.

        Parameters
        ----------
        grid, block : tuple of int
            One to three sizes.
        args : tuple
            NumPy arrays for pointers, None for a null pointer, NumPy scalars of the exact type for the rest.
        shared_mem : int
            Bytes of dynamic shared memory.
        order : {"forward", "reverse", "shuffled"}
            In which blocks, and threads between two barriers, have their turn.
        seed : int
            Of the shuffled order.

        Raises
        ------
        TypeError
            If the number of arguments, a type or a memory layout is wrong.
        SimulatorError
            If no GPU can launch that.
        """
        sizes = self._sizes(grid, block, shared_mem)
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        if len(args) != len(self.types):
            raise TypeError(f"{self.name} takes {len(self.types)} arguments, got {len(args)}")
        values = [self._converted(i, *pair) for i, pair in enumerate(zip(self.types, args, strict=True))]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        how = (*sizes, ctypes.c_size_t(shared_mem), ORDERS.index(order), ctypes.c_ulonglong(seed), pointers)

        def run(kept: Any = (values, args)) -> None:
            if not self._library.sim_launch(self._number, *how):
                raise SimulatorError(f"{self.name}, {self._library.sim_error().decode()}")

        return run

    def _sizes(self, grid: Sequence[int], block: Sequence[int], shared_mem: int) -> list[Any]:
        grid3 = _sizes("grid", grid, MAX_GRID)
        block3 = _sizes("block", block, MAX_BLOCK)
        if block3[0] * block3[1] * block3[2] > MAX_THREADS:
            raise SimulatorError(f"{self.name}: a block of {tuple(block)} has more than {MAX_THREADS} threads")
        if not 0 <= shared_mem <= MAX_SHARED:
            raise SimulatorError(f"{self.name}: {shared_mem} bytes of shared memory; there are {MAX_SHARED}")
        return [(ctypes.c_uint * 3)(*size) for size in (grid3, block3)]

    def _converted(self, i: int, declared: str, value: Any) -> Any:
        """Return an argument as a C value, if it is just what the kernel declares."""
        if not declared.endswith("*"):
            if not isinstance(value, np.generic) or value.dtype != np.dtype(declared):
                raise TypeError(f"{self.name}, argument {i}: np.{declared} wanted, got {_described(value)}")
            return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
        if value is None:
            return ctypes.c_void_p(None)
        const, pointee = declared.startswith("const "), declared.removeprefix("const ").removesuffix("*")
        if not isinstance(value, np.ndarray) or value.dtype != np.dtype(pointee):
            raise TypeError(f"{self.name}, argument {i}: array of {pointee} wanted, got {_described(value)}")
        if not value.flags.c_contiguous or not value.flags.aligned:
            raise TypeError(f"{self.name}, argument {i}: the array must be C-contiguous and aligned")
        if not const and not value.flags.writeable:
            raise TypeError(f"{self.name}, argument {i}: the kernel may write, the array is read-only")
        return ctypes.c_void_p(value.ctypes.data)


def _described(value: Any) -> str:
    return f"{type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else repr(value)


def _sizes(what: str, sizes: Sequence[int], limits: tuple[int, int, int]) -> tuple[int, int, int]:
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"{what} must be one to three ints, got {sizes!r}")
    x, y, z = (*sizes, 1, 1)[:3]
    if not all(1 <= size <= limit for size, limit in zip((x, y, z), limits, strict=True)):
        raise SimulatorError(f"{what} {tuple(sizes)} is not between 1 and {limits}")
    return x, y, z


# Sanitizing


def run_sanitized(script: str, *arguments: str, timeout: float = 300) -> str:
    """Run Python code in a process of its own, in which every module is compiled with ASan and UBSan.

    Parameters
    ----------
    script : str
        Python code; it can import `tests.simgpu`, and has `arguments` in sys.argv[1:].
    timeout : float
        Seconds.

    Returns
    -------
    str
        What it printed.

    Raises
    ------
    SanitizerError
        If the process ended with an error; the message is all that it wrote to stderr.
    """
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0"  # Python leaks; fibers have own stacks
    environment = os.environ | {
        "LD_PRELOAD": _asan_library(),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
        "PYTHONMALLOC": "malloc",  # small Python objects too get their own red zones
        SANITIZE: "1",
    }
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=timeout
    )
    if done.returncode:
        raise SanitizerError(f"exit status {done.returncode}\n{done.stderr}")
    return done.stdout
