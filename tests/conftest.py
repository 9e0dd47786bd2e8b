"""Fixtures that several test files share."""

import contextlib
import functools
import os
import signal

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu.__main__ import ENDING
from bpgpu.kernels import philox
from bpgpu.proof import gradcheck
from tests.simgpu.state import forget_backends

SIMULATED = ("test_cuda_", "test_cupy_", "test_gpu_step", "test_numba_cuda", "test_simgpu_")  # names of files begin so


def pytest_addoption(parser):
    group = parser.getgroup("fuzz", "random calls (tests/project/test_fuzz.py)")
    group.addoption("--fuzz-calls", type=int, default=1000, help="how many calls each machine makes, about")
    group.addoption("--fuzz-seed", type=int, default=0, help="other calls")


def pytest_collection_modifyitems(items):
    """Mark the tests of GPU kernels, which take long and depend on no library but NumPy and g++."""
    for item in items:
        name = item.path.stem
        if name.startswith(SIMULATED) and not name.endswith("_probe"):  # what a machine without a GPU says of it
            item.add_marker("simulated")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Let two processes of a run of everything compile the CPU engine first, each for one dtype.

    Left to the tests, one would compile for 40 seconds while the other waits for the same.
    """
    mine = {"gw0": np.float32, "gw1": np.float64}.get(os.environ.get("PYTEST_XDIST_WORKER", ""))
    if mine is not None and len(session.items) > 5000:
        from bpgpu.backends.cpu import engine

        with contextlib.suppress(Exception):  # which the tests meet too
            engine.compiled_epoch(np.dtype(mine))


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let signals do what they do, also if the tests were started with them ignored: in the background, or by nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_backend_made(monkeypatch):
    """Make every backend anew in this test, and none of them in the next."""
    forget_backends(monkeypatch)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}threads")
def threads(request, monkeypatch):
    """Let the compiled CPU engine train on this many threads, whatever the size and the processors."""
    from bpgpu.backends.cpu import engine as numba_backend

    monkeypatch.setattr(numba_backend.NumbaBackend, "_threads", lambda self, plan: min(request.param, plan.batch_size))
    return request.param


@pytest.fixture
def differences_once(monkeypatch):
    """Compute the differences of a network once for all backends that are checked, and each of its dropout masks.

    They are the reference's in float64 whatever is checked, and most of the time of a gradient check.
    """
    float64_cost, known = gradcheck._float64_cost, {}

    def remembering(net, data):
        cost, parameters = float64_cost(net, data)
        arrays = [net.backend.to_numpy(x) for x in (data.X, data.y, data.weight, *net.masks) if x is not None]
        network = repr((net.architecture, net.epoch)), *(x.tobytes() for x in arrays)
        if known.get("network") != network:
            known.clear()
            known["network"] = network

        def remembered(flat):
            key = flat.tobytes()
            if key not in known:
                known[key] = cost(flat)
            return known[key]

        return remembered, parameters

    monkeypatch.setattr(gradcheck, "_float64_cost", remembering)
    monkeypatch.setattr(philox, "keep_mask", functools.lru_cache(8)(philox.keep_mask))


@pytest.fixture
def data():
    """Return a function: n samples of three inputs and two targets in [0, 1], float64."""

    def make(n=20, seed=1):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(n, 3)), rng.uniform(size=(n, 2))

    return make


@pytest.fixture
def make_net():
    """Return a function: a small float64 network for those data on the reference backend, with options changed."""

    def make(sizes=(3, 5, 2), activations=("tanh", "identity"), cost="half_squared_error", **options):
        return bpgpu.MLP(sizes, activations, cost, **{"dtype": "float64", "backend": "numpy", "seed": 7} | options)

    return make


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Return a function that runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    from bpgpu import cli

    def command(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return command


@pytest.fixture
def flowers(tmp_path):
    """A table with string labels that a small network can tell apart, on columns of very different scale."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 240)
    table = pd.DataFrame(
        {
            "length": 5 + kind + 0.4 * rng.standard_normal(240),
            "mass": 1e3 * (kind == 1) + 300 * rng.standard_normal(240),
            "count": rng.integers(0, 5, 240),
            "fresh": rng.random(240) < 0.5,
            "species": np.array(["aster", "iris", "rose"])[kind],
        }
    )
    path = tmp_path / "flowers.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def houses(tmp_path):
    """A regression on raw prices, far from zero."""
    rng = np.random.default_rng(1)
    rooms, area = rng.integers(1, 9, 300), rng.uniform(20, 200, 300)
    price = 50_000 + 20_000.0 * rooms + 1_500 * area + 5_000 * rng.standard_normal(300)
    path = tmp_path / "houses.parquet"
    pd.DataFrame({"price": price, "rooms": rooms, "area": area}).to_parquet(path)
    return path
