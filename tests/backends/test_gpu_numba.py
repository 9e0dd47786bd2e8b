"""The Numba-CUDA backend on a real NVIDIA GPU: ``pytest -m gpu``. Skipped where there is none."""

import gc

import numpy as np
import pytest

import bpgpu
from bpgpu.proof import accuracy
from bpgpu.proof.bench import DTYPES, Bench
from tests.backends.test_cupy_backend import assert_same, data, pair, parameters

pytestmark = pytest.mark.gpu


@pytest.fixture
def backend():
    """Return the backend."""
    from bpgpu.backends.cuda.numba_backend import NumbaCudaBackend

    try:
        return NumbaCudaBackend()
    except bpgpu.BackendUnavailableError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.reason}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_as_small_as_promised(backend, dtype):
    """The parity matrix, see test_parity.py."""
    assert accuracy.broken_promises({"numba-cuda": {dtype: accuracy.measure(Bench(backend, dtype))}}) == []


def test_the_same_training_gives_the_same_bytes(backend):
    X, y = data(40)
    found = []
    for _ in range(2):
        net = pair(backend, (5, 4, 3), ("tanh", "softmax"), l2=0.1, dropout=0.2)[0]
        history = net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=0.5), epochs=2, batch_size=16)
        found.append((parameters(net).tobytes(), history.loss))
    assert found[0] == found[1]


def test_fits_leave_no_memory_behind(backend):
    X, y = data(40)
    free = []
    for fits in (1, 3):
        for _ in range(fits):
            net = pair(backend, (5, 4, 3), ("relu", "softmax"))[0]
            net.fit(X, y, epochs=1, batch_size=20)
        del net
        gc.collect()
        free.append(backend.free_memory())
    assert free[1] >= free[0]


def test_training_goes_on_after_numbers_that_are_not_finite(backend):
    X, y = data(16)
    nets = pair(backend, (5, 4, 3), ("relu", "identity"), "squared_error", dtype="float64")
    for net in nets:
        with pytest.raises(bpgpu.NonFiniteError):
            net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e6), epochs=99, batch_size=8)
        net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e-4), epochs=1, batch_size=8)
    assert_same(*nets)


@pytest.mark.parametrize("name", ["cupy", "torch", "jax.numpy"])
def test_arrays_of_other_libraries(backend, name):
    library = pytest.importorskip(name)
    X, _ = data(8)
    net = pair(backend, (5, 4, 3), ("tanh", "softmax"))[0]
    given = library.asarray(X.astype(np.float32))
    given = given.cuda() if name == "torch" else given
    out = net.predict(given)
    assert type(out) is type(given)
    assert getattr(out, "device", None) == getattr(given, "device", None)
    host = out.cpu() if name == "torch" else out.get() if name == "cupy" else out
    np.testing.assert_array_equal(np.asarray(host), net.predict(X))
