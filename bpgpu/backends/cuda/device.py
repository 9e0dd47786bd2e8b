"""What an engine needs of a GPU: its memory, as a library gives it, and the launches that its steps are made of."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from bpgpu.backends.cuda.steps import Steps
from bpgpu.backends.plan import Room

Array = Any


class Memory(Protocol):
    """A device's memory, as a library gives it.

    Attributes
    ----------
    stream : stream
        The backend's own, on which everything happens that is not given another.
    """

    stream: Any

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which the library's own operations go to `stream`."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array on the device, with arbitrary content."""

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Return page-locked memory of the host, as uint8; from there a copy does not make the host wait."""

    def upload(self, target: Array, source: np.ndarray[Any, Any], stream: Any = None) -> None:
        """Copy an array to the device; only from page-locked memory does this return before it is done."""

    def download(self, array: Array) -> np.ndarray[Any, Any]:
        """Return a copy on the host, once it is there."""

    def new_stream(self) -> Any:
        """Return a stream that is in no order with any other."""

    def new_event(self) -> Any:
        """Return an event, with ``record(stream)``, and ``synchronize()``, which lets the host wait for it."""

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is given to a stream from now on come after an event."""


class Device(Room):
    """A GPU, with arrays of its library.

    Attributes
    ----------
    memory : Memory
    steps : Steps
    capture : stream or None
        On which the steps of an epoch are captured as graphs, if they are.
    """

    memory: Memory
    steps: Steps
    capture: Any = None
