"""A GPU for Numba-CUDA kernels without a GPU: the Python of a kernel, run with a greenlet for each thread.

    from tests.simgpu import numba_runner, numba_sim

    kernels = numba_runner.load()  # bpgpu.kernels.numba_cuda.kernels, on the simulator in place of numba.cuda
    kernel = kernels.kernel("total", np.dtype("float32"), {})
    numba_sim.launch(kernel, 1, 256, (cost, np.int64(cost.size), ...), order="reverse")

It is deterministic, runs blocks and threads in three orders, and raises `SimulatorError` for what a GPU leaves to
chance or does wrong in silence: an index outside of an array (also a negative one), a race on global or shared memory,
a barrier that not all threads of a block reach, reading what was never written, and a launch that no GPU allows.
Arithmetic has NumPy's types, not Numba's: that no float64 creeps in is for the compiler to show. A plain read beside
an atomic operation is no race here: a GPU reads a word whole, and what depends on its value shows in the orders.
"""

import inspect
import math as python_math
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from scipy import special

from tests.simgpu.device import MAX_BLOCK, MAX_GRID, MAX_SHARED, MAX_THREADS, ORDERS, SimulatorError, _sizes
from tests.simgpu.state import settings

__all__ = ["ORDERS", "Kernel", "SimulatorError", "cuda", "launch", "math"]


# A stamp says who touched an element, and when: the epoch, which every barrier and every block begins anew, and the
# thread in its block. MANY stands for several threads.
_BITS = 11
_MANY = 2**_BITS - 1


# Memory


class Array:
    """What a kernel sees of an array in global or shared memory."""

    def __init__(self, sim: "Simulator", name: str, data: Any, written: Any, shape: tuple[int, ...], dtype: Any):
        self._sim, self._name, self._data, self._written = sim, name, data, written
        self.shape, self.ndim, self.dtype = shape, len(shape), dtype
        self.size = int(np.prod(shape))
        self._columns = shape[-1]
        self._type = dtype.type
        self._signed = dtype.kind == "i"
        self._writers: dict[int, int] = {}
        self._readers: dict[int, int] = {}
        self._atomics: dict[int, int] = {}
        self._read_by_others: set[int] = set()  # in blocks before this one

    def __len__(self) -> int:
        return self.shape[0]

    def _place(self, index: Any) -> int:
        if self.ndim == 1:
            if 0 <= index < self.size:
                return index
        else:
            i, j = index
            if 0 <= i < self.shape[0] and 0 <= j < self._columns:
                return i * self._columns + j
        raise self._sim.error(f"index {index} is outside of {self._name} of shape {self.shape}")

    def __getitem__(self, index: Any) -> Any:
        at = self._place(index)
        if self._sim.races:
            self._read(at)
        if self._written is not None and not self._written[at]:
            raise self._sim.error(f"{self._name}[{index}] is read, but was never written")
        value = self._data[at]
        return int(value) if self._signed else value

    def __setitem__(self, index: Any, value: Any) -> None:
        at = self._place(index)
        if self._sim.races:
            self._write(at)
        if self._written is not None:
            self._written[at] = True
        self._data[at] = value if value.__class__ is self._type else self._type(value)

    # A stamp clashes with another thread's in the same epoch, and with any of an earlier block.

    def _clashes(self, stamp: int) -> bool:
        sim = self._sim
        return stamp != sim.stamp and (stamp >> _BITS == sim.epoch or stamp >> _BITS < sim.first_epoch)

    def _read(self, at: int) -> None:
        stamp = self._sim.stamp
        writer = self._writers.get(at)
        if writer is not None and writer != stamp and self._clashes(writer):
            raise self._race(at, "reads", "written", writer)
        reader = self._readers.get(at)
        if reader is None:
            self._readers[at] = stamp
        elif reader != stamp:
            if reader >> _BITS == stamp >> _BITS:
                self._readers[at] = stamp | _MANY
            else:
                if reader >> _BITS < self._sim.first_epoch:
                    self._read_by_others.add(at)
                self._readers[at] = stamp

    def _write(self, at: int) -> None:
        stamp = self._sim.stamp
        for what, stamps in (
            ("written", self._writers),
            ("read", self._readers),
            ("atomically changed", self._atomics),
        ):
            other = stamps.get(at)
            if other is not None and other != stamp and self._clashes(other):
                raise self._race(at, "writes", what, other)
        if at in self._read_by_others:
            raise self._race(at, "writes", "read", 0)
        self._writers[at] = stamp

    def _change(self, index: Any, operation: Callable[[Any, Any], Any], value: Any) -> Any:
        at = self._place(index)
        sim = self._sim
        if sim.races:
            writer = self._writers.get(at)
            if writer is not None and self._clashes(writer):
                raise self._race(at, "atomically changes", "written", writer)
            other = self._atomics.get(at)
            same_epoch = other is not None and other != sim.stamp and other >> _BITS == sim.epoch
            self._atomics[at] = sim.stamp | _MANY if same_epoch else sim.stamp
        if self._written is not None and not self._written[at]:
            raise sim.error(f"{self._name}[{index}] is changed, but was never written")
        old = self._data[at]
        self._data[at] = operation(old, value)
        return old

    def _race(self, at: int, does: str, was: str, other: int) -> SimulatorError:
        where = at if self.ndim == 1 else divmod(at, self._columns)
        epoch, thread = other >> _BITS, other & _MANY
        block = "another block" if epoch < self._sim.first_epoch else "this block"
        who = "several threads" if thread == _MANY else f"thread {thread}"
        return self._sim.error(f"race: {does} {self._name}[{where}], {was} by {who} of {block} with no barrier between")


# What kernels know under the name `cuda`


class _Dim3:
    __slots__ = ("x", "y", "z")

    def __init__(self, x: int, y: int, z: int) -> None:
        self.x, self.y, self.z = x, y, z


class _Thread:
    __slots__ = ("greenlet", "index", "number")

    def __init__(self, number: int, index: _Dim3) -> None:
        self.number, self.index, self.greenlet = number, index, None


class Simulator:
    """The module `cuda` as kernels use it.

    Attributes
    ----------
    races : bool
        Look for races; without, a kernel takes two thirds of the time.
    submit : function
        Gets stream, name and work of a launch that is written as in Numba, and sees to it that the work is done.
    """

    def __init__(self) -> None:
        self.races = True
        self.submit: Callable[[Any, str, Callable[[], None]], None] = lambda stream, name, work: work()
        self.atomic = SimpleNamespace(
            add=lambda array, index, value: array._change(index, lambda old, new: old + new, value),
            max=lambda array, index, value: array._change(index, max, value),
            min=lambda array, index, value: array._change(index, min, value),
        )
        self.shared = SimpleNamespace(array=self._shared_array)
        self.local = SimpleNamespace(array=self._local_array)

    def jit(self, function: Callable[..., Any] | None = None, *, device: bool = False) -> Any:
        """Return a kernel, or a device function: the same with a code object of its own.

        Functions that one factory makes share their code, and shared memory is known by where it is declared.
        """
        if function is None:
            return lambda function: self.jit(function, device=device)
        code = function.__code__.replace()
        own = types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
        own.__annotations__ = function.__annotations__
        self._codes.append(code)
        return own if device else Kernel(self, own)

    _codes: list[Any] = []  # kept, so that no two have the same id  # noqa: RUF012

    def grid(self, ndim: int) -> Any:
        place = [getattr(self.blockIdx, d) * getattr(self.blockDim, d) + getattr(self.threadIdx, d) for d in "xyz"]
        return place[0] if ndim == 1 else tuple(place[:ndim])

    def gridsize(self, ndim: int) -> Any:
        size = [getattr(self.gridDim, d) * getattr(self.blockDim, d) for d in "xyz"]
        return size[0] if ndim == 1 else tuple(size[:ndim])

    def _shared_array(self, shape: Any, dtype: Any) -> Array:
        frame = sys._getframe(1)
        key = (id(frame.f_code), frame.f_lasti)
        if key not in self._shared_arrays:
            array = self._new_array("shared memory", shape, dtype)
            self._shared_arrays[key] = array
            used = sum(each.size * each.dtype.itemsize for each in self._shared_arrays.values())
            if used > MAX_SHARED:
                raise self.error(f"{used} bytes of shared memory; there are {MAX_SHARED}")
        return self._shared_arrays[key]

    def _local_array(self, shape: Any, dtype: Any) -> Array:
        return self._new_array("local memory", shape, dtype)

    def _new_array(self, name: str, shape: Any, dtype: Any) -> Array:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(shape))
        return Array(self, name, [None] * size, bytearray(size), shape, np.dtype(dtype))

    def syncthreads(self) -> None:
        # Where the thread waits is the whole chain of calls, as a device function may be called in two places.
        frame = sys._getframe(1)
        place: Any = frame.f_lasti
        while frame.f_code is not self._code:
            frame = frame.f_back
            place = place, frame.f_lasti
        if self._place != place:
            self._divergent = self._place is not None
            self._place = place
        thread = self._thread
        thread.greenlet = getcurrent()
        self._waiting.append(thread)
        if self._resuming:
            self._resuming.pop().greenlet.switch()
        else:
            self._hub_switch()
        self._thread, self.threadIdx = thread, thread.index
        self.stamp = self._epoch_stamp | thread.number

    # Running

    def error(self, text: str) -> SimulatorError:
        at = f"block ({self.blockIdx.x}, {self.blockIdx.y}, {self.blockIdx.z}), thread {self._thread.number}"
        return SimulatorError(f"{self._code.co_name}, {at}: {text}")

    def run(self, function: Any, grid: _Dim3, block: _Dim3, arguments: Sequence[Any], order: str, seed: int) -> None:
        """Run all blocks, one after another."""
        self.gridDim, self.blockDim, self._code = grid, block, function.__code__
        chance = random.Random(seed)
        arrange: Callable[[list[Any]], list[Any]] = {
            "forward": lambda items: items,
            "reverse": lambda items: items[::-1],
            "shuffled": lambda items: chance.sample(items, len(items)),
        }[order]
        places = [_Dim3(x, y, z) for z in range(block.z) for y in range(block.y) for x in range(block.x)]
        threads = [_Thread(number, place) for number, place in enumerate(places)]
        blocks = [_Dim3(x, y, z) for z in range(grid.z) for y in range(grid.y) for x in range(grid.x)]
        self.epoch = 0
        for self.blockIdx in arrange(blocks):
            self._next_epoch()
            self.first_epoch, self._shared_arrays = self.epoch, {}
            self._run_block(function, arguments, arrange(threads), arrange if order == "shuffled" else list)

    def _next_epoch(self) -> None:
        self.epoch += 1
        self._epoch_stamp = self.epoch << _BITS
        self._waiting: list[_Thread] = []
        self._resuming: list[_Thread] = []  # the next one last
        self._place, self._divergent = None, False

    def _run_block(self, function: Any, arguments: Sequence[Any], threads: list[_Thread], arrange: Any) -> None:
        self._hub_switch = getcurrent().switch
        pending = deque(threads)

        def work() -> None:  # thread after thread, until one waits: then the next needs a greenlet of its own
            with np.errstate(all="ignore"):  # a greenlet has a context of its own
                while pending:
                    thread = self._thread = pending.popleft()
                    self.threadIdx = thread.index
                    self.stamp = self._epoch_stamp | thread.number
                    function(*arguments)

        while pending:
            greenlet(work).switch()
        while waiting := self._waiting:
            if len(waiting) < len(threads) or self._divergent:
                ended = len(threads) - len(waiting)
                places = "the others wait" if not self._divergent else "the others wait at several places"
                raise self.error(f"divergent barrier: {ended} threads have ended, {places}")
            self._next_epoch()
            self._resuming = arrange(waiting)[::-1]
            while self._resuming:
                self._resuming.pop().greenlet.switch()


class Kernel:
    """A kernel as Numba has it: ``kernel[grid, block](*arguments)``."""

    def __init__(self, sim: Simulator, function: Any) -> None:
        self.sim, self.py_func = sim, function

    def __getitem__(self, configuration: tuple[Any, ...]) -> Callable[..., None]:
        grid, block, stream = (*configuration, 0)[:3]
        return lambda *arguments: self.sim.submit(
            stream, self.py_func.__name__, lambda: launch(self, grid, block, arguments)
        )


def launch(
    kernel: Kernel,
    grid: Any,
    block: Any,
    arguments: Sequence[Any],
    *,
    order: str | None = None,
    seed: int | None = None,
) -> None:
    """Run a kernel to its end.

    Parameters
    ----------
    kernel : Kernel
    grid, block : int or tuple of int
        Blocks and threads.
    arguments : tuple
        NumPy arrays or device arrays (`numba_device`), and NumPy scalars of the declared types.
    order : {"forward", "reverse", "shuffled"}
    seed : int
        Of the shuffled order; both are those of `state.settings` if not given.

    Raises
    ------
    TypeError
        If the number of arguments, a type, the dimensions or the memory layout is wrong.
    SimulatorError
        If no GPU can launch that, or the kernel does what the module's docstring lists.
    """
    sim, function = kernel.sim, kernel.py_func
    sizes = [
        _Dim3(*_sizes(what, (value,) if isinstance(value, int) else tuple(value), limits))
        for what, value, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK))
    ]
    if sizes[1].x * sizes[1].y * sizes[1].z > MAX_THREADS:
        raise SimulatorError(f"{function.__name__}: a block of {block} has more than {MAX_THREADS} threads")
    parameters = inspect.signature(function).parameters
    if len(parameters) != len(arguments):
        raise TypeError(f"{function.__name__} takes {len(parameters)} arguments, got {len(arguments)}")
    real = _working_type(parameters.values(), arguments)
    seen: dict[Any, Array] = {}
    taken = [
        _argument(sim, p, argument, real, seen) for p, argument in zip(parameters.values(), arguments, strict=True)
    ]
    sim.run(function, *sizes, taken, order or settings.order, settings.seed if seed is None else seed)
    for argument in arguments:
        if hasattr(argument, "_written"):
            argument._mark(argument._written)


def _kind(parameter: inspect.Parameter) -> Any:
    return getattr(parameter.annotation, "__metadata__", (None,))[0]


def _working_type(parameters: Any, arguments: Sequence[Any]) -> Any:
    """Return the dtype that the first argument of type T has."""
    for parameter, argument in zip(parameters, arguments, strict=True):
        kind = _kind(parameter)
        if kind is not None and kind.dtype is None:
            return getattr(argument, "dtype", None)
    return None


def _argument(sim: Simulator, parameter: inspect.Parameter, value: Any, real: Any, seen: dict[Any, Array]) -> Any:
    kind = _kind(parameter)
    if not isinstance(getattr(value, "dtype", None), np.dtype):
        raise TypeError(f"{parameter.name} must be an array or a NumPy scalar, got {type(value).__name__}")
    if kind is not None and (value.ndim, value.dtype) != (
        kind.ndim,
        real if kind.dtype is None else np.dtype(kind.dtype),
    ):
        raise TypeError(
            f"{parameter.name} must be {kind}, T being {real}; got {value.ndim} dimensions of {value.dtype}"
        )
    if isinstance(value, np.generic):
        return int(value) if value.dtype.kind == "i" else value
    host, written = (value, None) if isinstance(value, np.ndarray) else (value._host, value._written)
    if not host.flags.c_contiguous:
        raise TypeError(f"{parameter.name} must be C-contiguous")
    flat = host.reshape(-1)
    key = (flat.ctypes.data, flat.size, host.shape) if flat.size else (parameter.name,)
    if key not in seen:  # an array that is given twice has one history
        if written is not None:
            written = None if written.all() else written.reshape(-1)
        seen[key] = Array(sim, parameter.name, flat, written, host.shape, host.dtype)
    return seen[key]


cuda = Simulator()

# NumPy's functions, as they keep the type and give infinity and NaN where Python's raise.
math = SimpleNamespace(
    inf=python_math.inf,
    fabs=np.abs,
    pow=np.power,
    erf=special.erf,
    erfc=special.erfc,
    **{name: getattr(np, name) for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sin", "cos")},
)
