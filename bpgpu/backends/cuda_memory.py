"""Memory by which host and device talk: one buffer cut into arrays on both sides, and batches staged through two.

Data that do not fit on the device stay on the host. While one batch is worked on, the next is gathered into page-locked
memory and copied on a stream of its own; two buffers on either side take turns.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpgpu.plan import Data

Array = Any
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # name: (shape, dtype)
ALIGN = 256  # bytes: each part of a buffer starts where vector loads may
NUMBER_OF_SLOTS = 2


def nbytes_of(shapes: Shapes) -> int:
    """Return the bytes of a buffer for these arrays."""
    return sum(-(-_size(shape, dtype) // ALIGN) * ALIGN for shape, dtype in shapes.values())


def _size(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)


class Mirror:
    """Arrays in one buffer on the device and, in the same places, in page-locked memory: a copy of all is one copy.

    Attributes
    ----------
    buffer : array of uint8
        On the device; the arrays lie in it one behind the other, each aligned.
    staging : NumPy array of uint8
        Its image on the host, 0 at first.
    device, host : dict of arrays
    """

    def __init__(self, cupy: Any, shapes: Shapes) -> None:
        nbytes = nbytes_of(shapes)
        self.buffer = cupy.empty((nbytes,), dtype=np.uint8)
        # From page-locked memory a copy does not make the host wait.
        self.staging = np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), dtype=np.uint8, count=nbytes)
        self.staging[...] = 0
        self.device = _cut(self.buffer, shapes)
        self.host = _cut(self.staging, shapes)

    def upload(self, stream: Any = None) -> None:
        """Copy the host's side to the device's, on a stream or the current one."""
        self.buffer.set(self.staging, stream=stream)


def _cut(buffer: Array, shapes: Shapes) -> dict[str, Array]:
    arrays, start = {}, 0
    for name, (shape, dtype) in shapes.items():
        size = _size(shape, dtype)
        arrays[name] = buffer[start : start + size].view(dtype).reshape(shape)
        start += -(-size // ALIGN) * ALIGN
    return arrays


class Slot:
    """Room for one batch on both sides, and how far work with it has come."""

    def __init__(self, cupy: Any, shapes: Shapes) -> None:
        self.mirror = Mirror(cupy, shapes)
        self.data = Data(**self.mirror.device)
        self.copied, self.used = (cupy.cuda.Event(disable_timing=True) for _ in range(2))


class Staging:
    """Brings batches of data in host memory to the device, while the one before is worked on.

    Parameters
    ----------
    cupy : module
    data : Data
        Of NumPy arrays.
    batch_size : int
    """

    def __init__(self, cupy: Any, data: Data, batch_size: int) -> None:
        shapes = batch_shapes(data, batch_size)
        self.cupy, self.host_data = cupy, data
        self.copies = cupy.cuda.Stream(non_blocking=True)
        self.slots = [Slot(cupy, shapes) for _ in range(NUMBER_OF_SLOTS)]

    def bring(self, slot: Slot, rows: np.ndarray[Any, Any]) -> None:
        """Copy these rows to a slot; what is given to the current stream after this call finds them there."""
        slot.copied.synchronize()  # the host may write: the last copy out of its side is done
        for name, target in slot.mirror.host.items():
            np.take(getattr(self.host_data, name), rows, axis=0, out=target[: len(rows)], mode="clip")
        self.copies.wait_event(slot.used)  # the device's side may be written: the last batch was read
        slot.mirror.upload(self.copies)
        slot.copied.record(self.copies)
        self.cupy.cuda.get_current_stream().wait_event(slot.copied)

    def release(self, slot: Slot) -> None:
        """Say that what has been given to the current stream is all that reads the slot."""
        slot.used.record(self.cupy.cuda.get_current_stream())


def batch_shapes(data: Data, batch_size: int) -> Shapes:
    """Return what a batch of the data takes."""
    arrays = {name: array for name, array in vars(data).items() if array is not None}
    return {name: ((batch_size, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
