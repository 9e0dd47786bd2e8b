"""The parts of the hardware report; each yields rows, and a row with ok=False is a failure."""

import contextlib
import datetime
import gc
import importlib
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from bpgpu._version import __version__
from bpgpu.backends import backends, get_backend
from bpgpu.backends.base import Backend
from bpgpu.errors import BackendUnavailableError, GradientError
from bpgpu.mlp import MLP
from bpgpu.model.optimizers import SGD, Adam, Optimizer
from bpgpu.proof import accuracy, gradcheck, hardware_peers
from bpgpu.proof.accuracy_cases import CASES, OPTIMIZER_CASES, Case
from bpgpu.proof.bench import DTYPES, PROMISED, Bench
from bpgpu.training.callbacks import Callback

Row = dict[str, Any]

FITS = 20  # of the leak check


@dataclass(frozen=True)
class Network:
    """A network of the report, with the arguments and data of its training."""

    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    cost: str
    l2: float = 0.0
    dropout: float = 0.0

    def make(self, backend: str | Backend, dtype: str) -> MLP:
        """Return the network on a backend, with the same parameters on every backend."""
        options = {"l2": self.l2, "dropout": self.dropout, "dtype": dtype}
        return MLP(self.sizes, self.activations, self.cost, backend=backend, **options)  # type: ignore[arg-type]

    def data(self, n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return n random samples."""
        rng = np.random.default_rng(n)
        X, classes = rng.standard_normal((n, self.sizes[0])), rng.integers(0, self.sizes[-1], n)
        return (X, classes) if self.activations[-1] == "softmax" else (X, np.eye(self.sizes[-1])[classes])

    def __str__(self) -> str:
        extra = (f"l2 {self.l2:g}" if self.l2 else "", f"dropout {self.dropout:g}" if self.dropout else "")
        return ", ".join(filter(None, ("-".join(map(str, self.sizes)), " ".join(self.activations), self.cost, *extra)))


NETWORKS = (
    Network((5, 7, 6, 3), ("relu", "gelu", "softmax"), "cross_entropy", 0.3, 0.3),
    Network((20, 70, 33, 4), ("tanh", "elu", "sigmoid"), "binary_cross_entropy"),
    Network((5, 130, 3), ("softmax", "identity"), "mean_squared_error", 0.1),
    Network((64, 300, 10), ("silu", "softmax"), "cross_entropy", 0.0, 0.5),
)
# (sizes, batches, samples), trained with SGD in float32.
TIMED = (
    ((64, 128, 10), (32, 512), 4096),
    ((784, 512, 10), (128, 2048), 8192),
    ((784, 2048, 2048, 10), (512,), 4096),
)
TIMED_QUICKLY = (((16, 8, 4), (32,), 64),)


def facts(quick: bool) -> Iterator[Row]:
    """Yield facts about this machine and its software; a fact that is not available says why."""

    def gpu() -> Any:
        return importlib.import_module("cupy").cuda.runtime

    def properties() -> Any:
        return gpu().getDeviceProperties(gpu().getDevice())

    wanted: dict[str, Callable[[], Any]] = {
        "date": lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "GPU": lambda: get_cupy().device,
        "compute capability": lambda: "{major}.{minor}".format(**properties()),
        "GPU memory, bytes": lambda: int(gpu().memGetInfo()[1]),
        "NVIDIA driver": _driver,
        "CUDA of the driver": lambda: _cuda_version(gpu().driverGetVersion()),
        "CUDA runtime": lambda: _cuda_version(gpu().runtimeGetVersion()),
        "CuPy": lambda: str(importlib.import_module("cupy").__version__),
        "bpgpu": lambda: __version__,
        "NumPy": lambda: np.__version__,
        "Numba": lambda: version("numba"),
        "Python": platform.python_version,
        "system": platform.platform,
        "processors": os.cpu_count,
    }
    for name, find in wanted.items():
        yield {"fact": name, "value": _or_reason(find)}
    for info in backends():
        yield {"fact": f"backend {info.name}", "value": info.device if info.available else f"not usable: {info.reason}"}


def gradients(quick: bool) -> Iterator[Row]:
    """Yield the gradient check, against central differences in float64 on the CPU, for every activation and cost."""
    cases = gradcheck.CASES[40:41] if quick else gradcheck.CASES
    for (way, backend), dtype in itertools.product(usable(graphs=False).items(), DTYPES):
        errors, checked, failures = [0.0], 0, list[str]()
        for case in cases:
            try:
                report = gradcheck.check_case(case, backend, dtype)
            except GradientError as error:
                failures.append(f"{case}: {error}")
            else:
                errors.append(report.max_error)
                checked += report.checked
        row = {"way": way, "dtype": dtype, "networks": len(cases), "derivatives": checked, "largest": max(errors)}
        yield row | {"tolerance": gradcheck.RTOL[dtype], "ok": not failures, "failures": failures}


def parity(quick: bool) -> Iterator[Row]:
    """Yield the largest error of every step against extended precision, and the promised one."""
    cases = [Case("forward", ("tanh",)), Case("training", ("AdamW, clipped",))] if quick else CASES
    for (way, backend), dtype in itertools.product(usable(graphs=False).items(), DTYPES):
        for operation, each in accuracy.measure(Bench(backend, dtype), cases).items():
            row: Row = {"way": way, "dtype": dtype, "operation": operation, "largest": each.error, "case": each.case}
            yield row | {"promised": PROMISED[operation], "ok": each.ok}


def rerun(quick: bool) -> Iterator[Row]:
    """Yield whether two runs of the same training give the same bytes."""
    optimizer = Adam(0.01, clip_norm=0.5)
    made = usable().items()
    for (way, backend), dtype, network in itertools.product(made, DTYPES, NETWORKS[:1] if quick else NETWORKS):
        first, second = (_trained(network, optimizer, dtype, backend) for _ in range(2))
        yield {"network": str(network), "dtype": dtype, "way": way, "ok": first == second}


def graphs(quick: bool) -> Iterator[Row]:
    """Yield whether training by graphs gives the same bytes as the same kernels launched one by one."""
    optimizers = list(OPTIMIZER_CASES.values())
    networks, optimizers = (NETWORKS[:1], optimizers[-1:]) if quick else (NETWORKS, optimizers)
    if all(backend.name != "cupy" for backend in usable().values()):
        yield {"not available": "only the backend 'cupy' has graphs"}
        return
    for dtype, network, optimizer in itertools.product(DTYPES, networks, optimizers):
        row: Row = {"network": str(network), "optimizer": repr(optimizer), "dtype": dtype}
        try:
            plain, replayed = (
                _trained(network, optimizer, dtype, get_cupy(gemm="fused", graph=graph)) for graph in (False, True)
            )
        except Exception as error:
            yield row | {"ok": False, "error": text(error)}
            continue
        yield row | {"ok": plain == replayed}


def leaks(quick: bool) -> Iterator[Row]:
    """Yield the free device memory before and after twenty fits, not counting the very first fit."""
    network = NETWORKS[0] if quick else NETWORKS[-1]
    X, y = network.data(100)
    for way, backend in usable().items():
        row: Row = {"way": way, "fits": FITS}
        for when, fits in (("before", 1), ("after", FITS)):
            for _ in range(fits):
                network.make(backend, "float32").fit(X, y, epochs=1, batch_size=32)
            gc.collect()
            backend.synchronize()
            row[f"free bytes {when}"] = backend.free_memory()
        yield row | {"ok": row["free bytes after"] >= row["free bytes before"]}


def timings(quick: bool) -> Iterator[Row]:
    """Yield the median seconds of an epoch on every backend, and on torch and JAX if they are installed."""
    made: dict[str, Backend] = {}
    for info in backends():
        if info.available:
            made[info.name] = get_backend(info.name)
        else:
            yield {"what": f"bpgpu {info.name}", "not available": info.reason}
    with contextlib.suppress(BackendUnavailableError):
        made |= usable()
    rounds = 2 if quick else 7
    for sizes, batches, n in TIMED_QUICKLY if quick else TIMED:
        network = Network(sizes, (*["relu"] * (len(sizes) - 2), "softmax"), "cross_entropy")
        for batch in batches:
            row: Row = {"network": "-".join(map(str, sizes)), "batch": batch, "samples": n, "dtype": "float32"}
            for way, backend in made.items():
                yield _timed(row | {"what": f"bpgpu {way}"}, partial(_epochs, network, backend, n, batch, rounds))
            for what, epochs in hardware_peers.PEERS.items():
                yield _timed(row | {"what": what}, partial(epochs, sizes, *network.data(n), batch, rounds))


def get_cupy(**options: Any) -> Any:
    """Return a CuPy backend with these options; without a GPU, raise BackendUnavailableError with the fix."""
    from bpgpu.backends.cuda.cupy_backend import CupyBackend

    return CupyBackend(**options)


def usable(*, graphs: bool = True) -> dict[str, Backend]:
    """Return the ways of the GPU backends that run here; if there are none, raise BackendUnavailableError."""
    found, errors = dict[str, Backend](), []
    for name in ("cupy", "numba-cuda"):
        try:
            found |= accuracy.make(name)
        except BackendUnavailableError as error:  # the facts give the reason
            errors.append(error)
    if not found:
        raise errors[0]
    if graphs and any(backend.name == "cupy" for backend in found.values()):
        found["cupy, graphs"] = get_cupy(graph=True)
    return found


class _Clock(Callback):
    """Measures epochs from an idle device to an idle device."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, training: Any) -> None:
        training.net.backend.synchronize()
        self._start = time.perf_counter()

    def on_epoch_end(self, training: Any) -> None:
        training.net.backend.synchronize()
        self.seconds.append(time.perf_counter() - self._start)


def _epochs(network: Network, backend: Backend, n: int, batch: int, rounds: int) -> tuple[str, list[float]]:
    X, y = network.data(n)
    clock = _Clock()
    network.make(backend, "float32").fit(
        X, y, optimizer=SGD(0.01), epochs=hardware_peers.WARM_UP + rounds, batch_size=batch, callbacks=[clock]
    )
    return backend.device, clock.seconds[hardware_peers.WARM_UP :]


def _timed(row: Row, epochs: Callable[[], hardware_peers.Epochs]) -> Row:
    try:
        result = epochs()
    except Exception as error:
        return row | {"ok": False, "error": text(error)}
    if isinstance(result, str):
        return row | {"not available": result}
    device, seconds = result
    figures = {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}
    return row | {"device": device} | figures | {"epochs": len(seconds), "ok": True}


def _trained(network: Network, optimizer: Optimizer, dtype: str, backend: Backend) -> tuple[bytes, list[float]]:
    """Return the parameters and losses after training on 200 samples, so that the last batch is smaller."""
    X, y = network.data(200)
    net = network.make(backend, dtype)
    history = net.fit(X, y, optimizer=optimizer, epochs=3, batch_size=32)
    return backend.to_numpy(net.parameters).tobytes(), history.loss


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not available: there is no nvidia-smi"
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return "; ".join(done.stdout.strip().splitlines())


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _or_reason(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:
        return f"not available: {text(error)}"


def text(error: BaseException) -> str:
    """Return the class and message of an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
