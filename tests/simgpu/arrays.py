"""Simulated `cupy.ndarray`: device memory that NumPy can not touch, with every cost counted.

The memory is the host's own, as `_host`, a NumPy array that only this simulation may see. All work on it goes through
a stream (`_launch`), so that it happens late where the device is lazy.
"""

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.simgpu import cuda
from tests.simgpu.state import counters

Host = np.ndarray[Any, Any]
_SCALARS = (bool, int, float, np.generic)


class ndarray:  # noqa: N801  (CuPy's name)
    """An array in device memory."""

    _host: Host

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._host = cuda._pool._allocate(nbytes).view(dtype).reshape(shape)

    # What it is: none of this touches the device

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: wrap(self._host.T))
    device = property(lambda self: cuda.Device())

    @property
    def flags(self) -> Any:
        flags = self._host.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    @property
    def data(self) -> cuda.MemoryPointer:
        return cuda._pointer(self._host.ctypes.data)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"<simulated cupy.ndarray, shape {self.shape}, {self.dtype}>"

    def reshape(self, *shape: Any, order: str = "C") -> "ndarray":
        if order != "C":
            raise NotImplementedError("only order C is simulated")
        host = self._host.reshape(*shape)
        if np.may_share_memory(host, self._host) or not host.size:
            return wrap(host)
        return self.copy().reshape(*shape)

    def ravel(self, order: str = "C") -> "ndarray":
        return self.reshape(-1, order=order)

    def view(self, dtype: Any = None) -> "ndarray":
        return wrap(self._host.view(dtype or self.dtype))

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "ndarray":
        if isinstance(index, ndarray):
            if index.dtype.kind not in "iu":
                raise NotImplementedError("a boolean mask would synchronise; it is not simulated")
            shape = index.shape + self.shape[1:]
            return _new(shape, self.dtype, lambda out: np.take(self._host, index._host, axis=0, out=out, mode="clip"))
        return wrap(_cut(self._host, index))

    # What moves data

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        target, source = _cut(self._host, index), operand(value)
        if np.broadcast_shapes(np.shape(source), target.shape) != target.shape:
            raise ValueError(f"could not broadcast {np.shape(source)} into {target.shape}")
        launch(lambda: np.copyto(target, source, casting="unsafe"))

    def fill(self, value: Any) -> None:
        self[...] = value

    def copy(self, order: str = "C") -> "ndarray":
        return _new(self.shape, self.dtype, lambda out: np.copyto(out, self._host))

    def astype(self, dtype: Any, order: str = "K", *, copy: bool = True) -> "ndarray":
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return _new(self.shape, dtype, lambda out: np.copyto(out, self._host, casting="unsafe"))

    def get(
        self, stream: cuda.Stream | None = None, order: str = "C", out: Host | None = None, blocking: bool = True
    ) -> Host:
        stream = stream or cuda.get_current_stream()
        if stream.is_capturing():
            raise cuda.CUDARuntimeError(900)
        if out is not None and (out.dtype != self.dtype or out.shape != self.shape or not out.flags.c_contiguous):
            raise ValueError("out must be a C-contiguous NumPy array of the same shape and dtype")
        result: Host = np.empty(self.shape, self.dtype, order="C") if out is None else out
        result.reshape(-1).view(np.uint8)[:] = 0xFF  # until the copy is made
        counters.transfers_d2h += 1
        counters.bytes_d2h += self.nbytes
        stream._submit(lambda: np.copyto(result, self._host))
        if blocking:
            stream._wait_on_host()
        return result

    def set(self, arr: Host, stream: cuda.Stream | None = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._host.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        stream = stream or cuda.get_current_stream()
        pinned = cuda._is_pinned(arr)
        if stream.is_capturing() and not pinned:
            raise cuda.CUDARuntimeError(900)
        counters.transfers_h2d += 1
        counters.bytes_h2d += arr.nbytes
        source = arr if pinned else arr.copy()  # the driver stages pageable memory before it returns
        stream._submit(lambda: np.copyto(self._host, source))

    def item(self) -> Any:
        return self.get().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    # Arithmetic

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> "ndarray":
        return _reduce(np.add, self, axis, out, keepdims, dtype)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> "ndarray":
        return _reduce(np.maximum, self, axis, out, keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> "ndarray":
        return _reduce(np.logical_and, self, axis, out, keepdims, bool)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> "ndarray":
        return _reduce(np.logical_or, self, axis, out, keepdims, bool)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (None,), **options: Any) -> Any:
        """Take over from NumPy's functions and scalars, as CuPy does; NumPy arrays are refused."""
        if method != "__call__" or ufunc.nout != 1 or ufunc is np.matmul:
            raise TypeError(f"NumPy's {ufunc.__name__}.{method} of a device array is not simulated")
        return elementwise(ufunc, inputs, out[0], **options)

    # Exchange with other libraries

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = cuda.get_current_stream()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr if self.size else 0, False),
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "stream": stream.ptr or 1,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """Return a capsule, having made the consumer's stream wait for what is under way on the current one."""
        if copy or dl_device not in (None, (2, 0)):
            raise BufferError("copies and other devices are not simulated")
        if stream == 0 or (stream is not None and stream < -1):
            raise ValueError(f"DLPack has no stream {stream}")
        current = cuda.get_current_stream()
        pointer = 0 if stream in (None, 1, 2) else stream
        if stream != -1 and pointer != current.ptr:
            cuda._stream_at(pointer).wait_event(current.record())
        return self._host.__dlpack__()


def _methods() -> None:
    """Give `ndarray` its operators."""
    binary = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide, "pow": np.power}
    for name, ufunc in binary.items():
        setattr(ndarray, f"__{name}__", lambda self, other, f=ufunc: elementwise(f, (self, other)))
        setattr(ndarray, f"__r{name}__", lambda self, other, f=ufunc: elementwise(f, (other, self)))
        setattr(ndarray, f"__i{name}__", lambda self, other, f=ufunc: elementwise(f, (self, other), self))
    compare = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    for name, ufunc in (compare | {"eq": np.equal, "ne": np.not_equal}).items():
        setattr(ndarray, f"__{name}__", lambda self, other, f=ufunc: elementwise(f, (self, other)))
    for name, ufunc in {"neg": np.negative, "abs": np.absolute}.items():
        setattr(ndarray, f"__{name}__", lambda self, f=ufunc: elementwise(f, (self,)))


_methods()
ndarray.__module__ = "cupy"  # by which others find the library that an array is from


# What the arrays are made of


def wrap(host: Host) -> ndarray:
    """Return an array on memory that exists."""
    array: ndarray = object.__new__(ndarray)
    array._host = host
    return array


def operand(value: Any) -> Any:
    """Return what NumPy computes with: the memory of a device array, or a scalar."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, _SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def launch(work: Callable[[], Any]) -> None:
    """Give a kernel to the current stream."""
    counters.launches += 1

    def quietly() -> None:
        with np.errstate(all="ignore"):  # a GPU has no warnings
            work()

    cuda.get_current_stream()._submit(quietly)


def _new(shape: tuple[int, ...], dtype: Any, work: Callable[[Host], Any]) -> ndarray:
    """Return a new array that a kernel fills."""
    result = ndarray(shape, dtype)
    launch(lambda: work(result._host))
    return result


def _checked(out: Any, shape: tuple[int, ...], dtype: Any, casting: str) -> ndarray:
    if not isinstance(out, ndarray):
        raise TypeError(f"Unsupported type {type(out)}")
    if out.shape != shape:
        raise ValueError(f"non-broadcastable output operand with shape {out.shape}, wanted {shape}")
    if not np.can_cast(dtype, out.dtype, casting):
        raise TypeError(f"Cannot cast output from {dtype!r} to {out.dtype!r} with casting rule '{casting}'")
    return out


def elementwise(
    ufunc: np.ufunc, inputs: tuple[Any, ...], out: Any = None, *, casting: str = "same_kind", dtype: Any = None
) -> ndarray:
    """Run one elementwise kernel, with NumPy's types and broadcasting."""
    hosts = [operand(value) for value in inputs]
    shape = np.broadcast_shapes(*(host.shape for host in hosts if isinstance(host, np.ndarray)))
    # Python's own numbers are weak: float32 array * 2.0 is float32.
    kinds = [type(host) if type(host) in (int, float) else np.result_type(host) for host in hosts]
    signature = {} if dtype is None else {"signature": (*(None,) * ufunc.nin, np.dtype(dtype))}
    found = ufunc.resolve_dtypes((*kinds, None), casting=casting, **signature)[-1]

    def work(target: Host) -> Any:
        return ufunc(*hosts, out=target, casting="unsafe", dtype=dtype)

    if out is None:
        return _new(shape, found, work)
    target = _checked(out, shape, found, casting)._host
    launch(lambda: work(target))
    return out  # type: ignore[no-any-return]


def _reduce(ufunc: np.ufunc, a: ndarray, axis: Any, out: Any, keepdims: bool, dtype: Any = None) -> ndarray:
    axes = range(a.ndim) if axis is None else [operator.index(i) for i in _as_tuple(axis)]
    reduced = {range(a.ndim)[i] for i in axes}
    shape = tuple(1 if i in reduced else n for i, n in enumerate(a.shape) if keepdims or i not in reduced)
    if dtype is None:
        dtype = ufunc.reduce(np.ones(1, a.dtype)).dtype
    axis = tuple(reduced)

    def work(target: Host) -> Any:
        return ufunc.reduce(a._host, axis=axis, dtype=dtype, keepdims=keepdims, out=target)

    if out is None:
        return _new(shape, dtype, work)
    target = _checked(out, shape, dtype, "same_kind")._host
    launch(lambda: work(target))
    return out  # type: ignore[no-any-return]


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _cut(host: Host, index: Any) -> Host:
    """Return a view, refusing an index that CuPy would first copy to the device."""
    parts = _as_tuple(index)
    for part in parts:
        if not (part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice))):
            raise TypeError(f"Unsupported index {type(part)}: only slices, ints and arrays of the device")
    view: Host = host[parts if Ellipsis in parts else (*parts, ...)]  # with an ellipsis one element is a view too
    return view
