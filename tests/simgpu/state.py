"""What tests set on the simulated CuPy, and what it counts."""

import functools
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from bpgpu.backends import _construct


@dataclass
class Counters:
    """What the host made the device do since `reset`.

    `launches` counts kernels, products (of which there are `matmuls`) and every elementwise operation, reduction and
    copy on the device; `log` names raw kernels in their order, and products, "cublas". `hidden_copies` are the
    temporaries of `matmul`. Replaying a graph is one `graph_launches`, and no launches.
    """

    launches: int = 0
    graph_launches: int = 0
    synchronisations: int = 0
    transfers_h2d: int = 0
    bytes_h2d: int = 0
    transfers_d2h: int = 0
    bytes_d2h: int = 0
    allocations: int = 0
    bytes_allocated: int = 0
    pinned_allocations: int = 0
    hidden_copies: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def matmuls(self) -> int:
        return self.log.count("cublas")

    def reset(self) -> None:
        for each in fields(self):
            setattr(self, each.name, [] if each.name == "log" else 0)


@dataclass
class Settings:
    """What the simulated device is like.

    Attributes
    ----------
    order, seed
        Of threads and blocks; see `device.Kernel`.
    capacity : int
        Bytes of device memory.
    lazy : bool
        The device does nothing before it is waited for, and reads pinned host memory only then. On hardware work is
        late by chance; here always, so that a missing synchronisation or event shows as NaN or as stale numbers.
    """

    order: str = "forward"
    seed: int = 0
    capacity: int = 2**30
    lazy: bool = False

    def reset(self) -> None:
        for each in fields(self):
            setattr(self, each.name, each.default)


counters = Counters()
settings = Settings()


def forget_backends(monkeypatch: Any) -> None:
    """Make every backend anew in this test, and none of them in the next: usually each is made once in a process."""
    package = sys.modules["bpgpu.backends"]
    monkeypatch.setattr(package, "_construct", functools.cache(_construct.__wrapped__))
