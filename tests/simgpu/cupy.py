"""A strict stand-in for CuPy 14 that runs the real CUDA C++ kernels on the CPU.

    from tests.simgpu import cupy

    def test_something(monkeypatch):
        fake = cupy.install(monkeypatch)      # `import cupy` gives it from here on
        ...
        assert fake.counters.synchronisations == 1

It has only names and keyword arguments that CuPy has (`test_simgpu_cupy.py` compares them with the real one),
never converts to or mixes with NumPy arrays, fills fresh memory with NaN, and counts what costs time. What CuPy would
do but no code here should rely on, it refuses.
"""

import ctypes
import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.simgpu import cuda, device
from tests.simgpu.arrays import Host, elementwise, launch, ndarray, operand, wrap
from tests.simgpu.state import counters, forget_backends, settings

__version__ = "14.2.0"
# What the module that `install` makes has.
NAMES = {
    "": (
        "ndarray empty zeros ones full arange asarray ascontiguousarray asnumpy from_dlpack "
        "add subtract multiply divide maximum minimum power sign abs absolute sqrt square exp log tanh isfinite isnan "
        "sum where matmul ufunc RawModule get_default_memory_pool _core __version__"
    ),
    "cuda": (
        "Stream Event Graph Device MemoryPool MemoryPointer PinnedMemoryPointer alloc_pinned_memory "
        "get_current_stream get_elapsed_time is_available memory runtime"
    ),
}


def install(monkeypatch: Any) -> Any:
    """Reset the device and make `import cupy` give it for the time of a test; return the module.

    It has nothing that CuPy has not, but for `counters` and `settings`.
    """
    gc.collect()  # what earlier tests have left on the device
    cuda._reset()
    settings.reset()
    counters.reset()
    _compute_types.update(dict.fromkeys(_compute_types, COMPUTE_TYPE_DEFAULT))
    forget_backends(monkeypatch)  # none of this device may outlive the test
    fake, fake_cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    for module, source, names in ((fake, sys.modules[__name__], NAMES[""]), (fake_cuda, cuda, NAMES["cuda"])):
        for name in names.split():
            setattr(module, name, getattr(source, name))
    fake.cuda, fake.counters, fake.settings = fake_cuda, counters, settings  # type: ignore[attr-defined]
    submodules = {".cuda": fake_cuda, ".cuda.runtime": cuda.runtime, ".cuda.memory": cuda.memory}
    for name, module in ({"": fake} | submodules).items():
        monkeypatch.setitem(sys.modules, f"cupy{name}", module)
    return fake


# Making arrays


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    _only_c(order)
    return ndarray(shape, dtype)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    array = empty(shape, np.result_type(fill_value) if dtype is None else dtype, order)
    array.fill(fill_value)
    return array


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    host = np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype=dtype)
    array = ndarray(host.shape, host.dtype)
    launch(lambda: np.copyto(array._host, host))
    return array


def asarray(a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None) -> ndarray:
    """Return a device array: what is one already, what another library has on the device, or a copy from the host."""
    _only_c(order or "C")
    if hasattr(a, "__cuda_array_interface__") and not isinstance(a, ndarray):
        a = _from_interface(a.__cuda_array_interface__, a)
    if isinstance(a, ndarray):
        return a.astype(a.dtype if dtype is None else dtype, copy=bool(copy))
    host = np.ascontiguousarray(a, dtype=dtype).reshape(np.shape(a))
    array = ndarray(host.shape, host.dtype)
    array.set(host)
    return array


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    array = asarray(a, dtype)
    return array if array.flags.c_contiguous else array.copy()


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Host | None = None, *, blocking: bool = True) -> Host:
    _only_c(order)
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a)


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """Return another library's array on its memory, once the current stream may use it."""
    if device is not None or copy:
        raise NotImplementedError("device and copy are not simulated")
    if tuple(array.__dlpack_device__()) != (2, 0):
        raise BufferError(f"the array is not in this device's memory but in that of {array.__dlpack_device__()}")
    capsule = array.__dlpack__(stream=cuda.get_current_stream().ptr or 1)
    host = np.from_dlpack(_OnHost(capsule))
    return _on_memory(host.ctypes.data, host.shape, host.dtype, host.strides, (array, host))


class _OnHost:
    """A capsule whose memory is in truth the host's."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule


def _from_interface(interface: dict[str, Any], owner: Any) -> ndarray:
    """Return an array on foreign memory; CuPy waits for the exporter's stream on the host."""
    if interface.get("stream"):
        cuda._stream_at(0 if interface["stream"] in (1, 2) else interface["stream"])._wait_on_host()
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    strides = interface.get("strides") or np.empty(shape, dtype).strides
    return _on_memory(interface["data"][0], shape, dtype, strides, owner)


def _on_memory(
    address: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], owner: Any
) -> ndarray:
    if 0 in shape:
        return ndarray(shape, dtype)
    last = int(np.dot(np.array(shape) - 1, strides))
    memory = (ctypes.c_ubyte * (last + dtype.itemsize)).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]  # alive as long as any view
    return wrap(np.ndarray(shape, dtype, memory, strides=strides))


def _only_c(order: str) -> None:
    if order not in ("C", "K"):
        raise NotImplementedError(f"order {order!r} is not simulated")


# Computing


class ufunc:  # noqa: N801  (CuPy's name)
    """An elementwise function: one launch."""

    _of_numpy: np.ufunc

    @property
    def nin(self) -> int:
        return self._of_numpy.nin

    def __call__(self, *args: Any, out: Any = None, casting: str = "same_kind", dtype: Any = None) -> ndarray:
        if len(args) != self.nin:
            raise TypeError(f"{self._of_numpy.__name__} takes {self.nin} arrays, got {len(args)}")
        return elementwise(self._of_numpy, args, out, casting=casting, dtype=dtype)


def _ufunc(of_numpy: np.ufunc) -> ufunc:
    made = ufunc()
    made._of_numpy = of_numpy
    return made


add, subtract, multiply, divide = _ufunc(np.add), _ufunc(np.subtract), _ufunc(np.multiply), _ufunc(np.divide)
maximum, minimum, power, sign = _ufunc(np.maximum), _ufunc(np.minimum), _ufunc(np.power), _ufunc(np.sign)
abs = absolute = _ufunc(np.absolute)
sqrt, square, exp, log, tanh = (_ufunc(f) for f in (np.sqrt, np.square, np.exp, np.log, np.tanh))
isfinite, isnan = _ufunc(np.isfinite), _ufunc(np.isnan)


def sum(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _device(a).sum(axis, dtype, out, keepdims)


def where(condition: Any, x: Any, y: Any) -> ndarray:
    hosts = [operand(value) for value in (condition, x, y)]
    shape = np.broadcast_shapes(*(np.shape(host) for host in hosts))
    array = ndarray(shape, np.result_type(*hosts[1:]))
    launch(lambda: np.copyto(array._host, np.where(*hosts)))
    return array


def matmul(a: ndarray, b: ndarray, *, out: ndarray | None = None) -> ndarray:
    """Multiply through cuBLAS: free of copies only if a and b are C- or F-contiguous and out is C-contiguous."""
    a, b = _device(a), _device(b)
    if cuda.get_current_stream().is_capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    dtype = np.result_type(a.dtype, b.dtype)
    shape = _product_shape(a.shape, b.shape)
    direct = out is not None and _direct(_device(out), dtype, a, b)
    if out is not None and out.shape != shape:
        raise ValueError(f"Output array has an invalid size: {out.shape}, wanted {shape}")
    if out is not None and not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"cannot cast the product, {dtype}, to {out.dtype}")
    operands = [_contiguous(a), _contiguous(b)]
    counters.log.append("cublas")
    product = out if direct and out is not None else ndarray(shape, dtype)
    tf32 = dtype == np.float32 and _compute_types["float32"] == COMPUTE_TYPE_TF32
    rounded = _to_tf32 if tf32 else np.asarray
    launch(lambda: np.copyto(product._host, np.matmul(*(rounded(x._host) for x in operands))))
    if out is None or direct:
        return product
    counters.hidden_copies += 1
    out[...] = product
    return out


COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 7
_compute_types = dict.fromkeys(("float32", "float64"), COMPUTE_TYPE_DEFAULT)
_core = SimpleNamespace(
    get_compute_type=lambda dtype: _compute_types[np.dtype(dtype).name],
    set_compute_type=lambda dtype, compute_type: _compute_types.update({np.dtype(dtype).name: compute_type}),
    _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32=COMPUTE_TYPE_TF32),
)


def _to_tf32(x: Host) -> Host:
    """Round to 10 bits of mantissa, half away from 0."""
    bits = np.ascontiguousarray(x).view(np.uint32) + np.uint32(1 << 12)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _product_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(a) <= 2 or not 1 <= len(b) <= 2:
        raise NotImplementedError("only products of vectors and matrices are simulated")
    if a[-1] != b[0]:
        raise ValueError(f"matmul: dimension mismatch, {a} @ {b}")
    return a[:-1] + b[1:]


def _direct(out: ndarray, dtype: np.dtype[Any], *operands: ndarray) -> bool:
    overlaps = any(np.may_share_memory(out._host, x._host) for x in operands)
    return bool(out.flags.c_contiguous) and out.dtype == dtype and not overlaps


def _contiguous(a: ndarray) -> ndarray:
    if a.flags.c_contiguous or a.flags.f_contiguous:
        return a
    counters.hidden_copies += 1
    return a.copy()


def _device(a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Unsupported type {type(a)}")
    return a


ndarray.__matmul__ = lambda self, other: matmul(self, other)  # type: ignore[attr-defined]


# Kernels


class RawModule:
    """CUDA C++, compiled by g++ when the first function is asked for."""

    def __init__(self, code: str | None = None, *, options: tuple[str, ...] = ()) -> None:
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError("code must be a str and options a tuple")
        self.code, self.options = code, options

    def get_function(self, name: str) -> "_Function":
        return _Function(device.compile_module(self.code).get_function(name))


class _Function:
    def __init__(self, kernel: device.Kernel) -> None:
        self._kernel = kernel

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        kernel = self._kernel
        if not all(isinstance(x, tuple) for x in (grid, block, args)):
            raise TypeError("grid, block and args must be tuples")
        if len(args) != len(kernel.types):
            raise TypeError(f"{kernel.name} takes {len(kernel.types)} arguments, got {len(args)}")
        values = tuple(_argument(kernel.name, *pair) for pair in zip(kernel.types, args, strict=True))
        run = kernel.bind(grid, block, values, shared_mem=shared_mem, order=settings.order, seed=settings.seed)
        counters.log.append(kernel.name)
        launch(run)


def _argument(name: str, declared: str, value: Any) -> Any:
    """Return an argument as CuPy passes it: an int as long long, a float as double, an array as its pointer."""
    if isinstance(value, ndarray):
        return value._host
    if declared.endswith("*"):
        if isinstance(value, np.uint64) and value == 0:
            return None
        raise TypeError(f"{name}: {declared} wants a device array or np.uint64(0), got {value!r}")
    if type(value) is int:
        return np.int64(value)
    return np.float64(value) if type(value) is float else value


# Memory


def get_default_memory_pool() -> cuda.MemoryPool:
    return cuda._pool
