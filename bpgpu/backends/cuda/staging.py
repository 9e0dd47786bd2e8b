"""Memory by which host and device talk: one buffer cut into arrays on both sides, and batches staged through two.

Data that do not fit on the device stay on the host. While one batch is worked on, the next is gathered into page-locked
memory and copied on a stream of its own; two buffers on either side take turns.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bpgpu.backends.cuda.device import Memory
from bpgpu.backends.data import Data
from bpgpu.interop import is_sparse

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

    def __init__(self, memory: Memory, shapes: Shapes) -> None:
        nbytes = nbytes_of(shapes)
        self.memory = memory
        self.buffer = memory.empty((nbytes,), np.dtype(np.uint8))
        self.staging = memory.pinned(nbytes)
        self.staging[...] = 0
        self.device = _cut(self.buffer, shapes)
        self.host = _cut(self.staging, shapes)

    def upload(self, stream: Any = None) -> None:
        """Copy the host's side to the device's."""
        self.memory.upload(self.buffer, self.staging, stream)


def _cut(buffer: Array, shapes: Shapes) -> dict[str, Array]:
    arrays, start = {}, 0
    for name, (shape, dtype) in shapes.items():
        size = _size(shape, dtype)
        arrays[name] = buffer[start : start + size].view(dtype).reshape(shape)
        start += -(-size // ALIGN) * ALIGN
    return arrays


class Slot:
    """Room for one batch on both sides, and how far work with it has come."""

    def __init__(self, memory: Memory, shapes: Shapes) -> None:
        self.mirror = Mirror(memory, shapes)
        self.data = Data(**self.mirror.device)
        self.copied, self.used = memory.new_event(), memory.new_event()


class Staging:
    """Brings batches of data in host memory to the device, while the one before is worked on.

    Parameters
    ----------
    memory : Memory
    data : Data
        Of NumPy arrays; a sparse X is made dense batch by batch.
    batch_size : int
    """

    def __init__(self, memory: Memory, data: Data, batch_size: int) -> None:
        shapes = batch_shapes(data, batch_size)
        self.memory, self.host_data = memory, data
        self.copies = memory.new_stream()
        self.slots = [Slot(memory, shapes) for _ in range(NUMBER_OF_SLOTS)]
        for slot in self.slots:
            self.release(slot)  # their memory may be that of arrays which work under way still reads

    def bring(self, slot: Slot, rows: np.ndarray[Any, Any]) -> None:
        """Copy these rows to a slot; what is given to the backend's stream after this call finds them there."""
        slot.copied.synchronize()  # the host may write: the last copy out of its side is done
        for name, target in slot.mirror.host.items():
            source, out = getattr(self.host_data, name), target[: len(rows)]
            if is_sparse(source):
                source[rows].toarray(out=out)
            else:
                np.take(source, rows, axis=0, out=out, mode="clip")
        self.memory.wait(self.copies, slot.used)  # the device's side may be written: the last batch was read
        slot.mirror.upload(self.copies)
        slot.copied.record(self.copies)
        self.memory.wait(self.memory.stream, slot.copied)

    def release(self, slot: Slot) -> None:
        """Say that what has been given to the backend's stream is all that reads the slot."""
        slot.used.record(self.memory.stream)


def batch_shapes(data: Data, batch_size: int) -> Shapes:
    """Return what a batch of the data takes."""
    arrays = {name: array for name, array in vars(data).items() if array is not None}
    return {name: ((batch_size, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
