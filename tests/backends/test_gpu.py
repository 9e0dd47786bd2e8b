"""The CuPy backend on a real NVIDIA GPU: ``pytest -m gpu``. Skipped where there is none."""

import gc
import itertools

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.cuda import launch as cuda_launch
from bpgpu.backends.cuda import probe as cuda_probe
from bpgpu.backends.cuda.steps import STEP
from bpgpu.backends.data import Dropout
from bpgpu.backends.plan import Plan
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.proof import accuracy, gradcheck
from bpgpu.proof.accuracy_cases import OPTIMIZER_CASES
from bpgpu.proof.bench import DTYPES, Bench
from tests.backends import test_cupy_staging as staging
from tests.backends.test_cupy_backend import GEMMS, TOLERANCE, assert_same, data, pair, parameters


def obstacle():
    """Return what stands in the way of a GPU here, or an empty string."""
    try:
        cuda_probe.probe()
    except bpgpu.BackendUnavailableError as error:
        return error.reason
    return ""


WAYS = [*({"gemm": gemm} for gemm in GEMMS), {"graph": True}]
WHY_NOT = obstacle()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=f"needs an NVIDIA GPU: {WHY_NOT}")]


@pytest.fixture
def backend():
    """Return a function that makes a CuPy backend."""
    from bpgpu.backends.cuda.cupy_backend import CupyBackend

    return CupyBackend


# Parity


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gemm", GEMMS)
def test_gradients_of_every_activation_and_cost(backend, gemm, dtype):
    chosen = backend(gemm=gemm)
    for case in gradcheck.CASES:
        gradcheck.check_case(case, chosen, dtype)  # raises if one is wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", accuracy.ways("cupy").values(), ids=str)
def test_errors_are_as_small_as_promised(backend, way, dtype):
    """The parity matrix, see test_parity.py."""
    errors = {"cupy": {dtype: accuracy.measure(Bench(backend(**way), dtype))}}
    assert accuracy.broken_promises(errors) == []


@pytest.mark.parametrize("gemm", ["auto", *GEMMS])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 257, 2), (33, 65, 129, 31), (300, 700, 10)], ids=str)
def test_sizes_of_every_kind_train_alike(backend, sizes, gemm):
    """More than one tile, ragged edges, and both sides of the choice of the product."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((517, sizes[0])), rng.standard_normal((517, sizes[-1]))
    activations = [*["tanh"] * (len(sizes) - 2), "identity"]
    nets = pair(backend(gemm=gemm), sizes, activations, "mean_squared_error", dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=2, batch_size=200)
    assert_same(*nets)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), rtol=1e-9, atol=1e-9)


def test_every_kernel_is_launched(backend, monkeypatch):
    """Networks whose training needs all kernels of the signature table, each held to the reference."""
    launched, bind = set(), cuda_launch.Launcher.bind

    def noting(launcher, name, *args, **options):
        launched.add(name)
        return bind(launcher, name, *args, **options)

    monkeypatch.setattr(cuda_launch.Launcher, "bind", noting)
    X, y = data()
    networks = [
        {"l2": 0.1, "dropout": 0.2},
        {"activations": ("softmax", "tanh", "sigmoid"), "cost": "binary_cross_entropy"},
        {"activations": ("relu", "relu", "softmax"), "cost": "mean_squared_error"},
        {"activations": ("relu", "relu", "softmax"), "cost": "binary_cross_entropy"},
    ]
    for gemm, (options, rule) in itertools.product(GEMMS, itertools.product(networks, OPTIMIZER_CASES.values())):
        nets = pair(backend(gemm=gemm), dtype="float64", **options)
        for net in nets:
            net.fit(X, y, optimizer=rule, epochs=1, batch_size=16)
        assert_same(*nets)
    chosen, reference = backend(), bpgpu.get_backend("numpy")
    dropped = []
    for each in (chosen, reference):
        x = each.asarray(X, np.dtype("float64"))
        out = each.empty(X.shape, np.dtype("float64"))
        each.dropout(x, Dropout(0.5, 3, 1, 2, 1), out=out)
        dropped.append(each.to_numpy(out))
    np.testing.assert_array_equal(*dropped)
    advance = chosen.steps.launcher.bind("advance", np.dtype("float64"), (1,), (chosen._at_step(4),))
    with chosen.memory.stream:
        advance()
    assert chosen.to_numpy(chosen._control)[STEP] == 5
    assert launched == set(cuda_kernels.ABI)


@pytest.mark.parametrize("rule", OPTIMIZER_CASES.values(), ids=OPTIMIZER_CASES)
@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_graphs_give_the_bytes_of_the_same_kernels_one_by_one(backend, rule, dropout, dtype):
    """Five full batches of an epoch are replayed, and the smaller sixth is not."""
    X, y = data(93)
    found = []
    for chosen in (backend(gemm="fused"), backend(graph=True)):
        net, reference = pair(chosen, (5, 70, 6, 3), dtype=dtype, l2=0.3, dropout=dropout)
        for _ in range(2):  # the second goes on from the first
            history = net.fit(X, y, optimizer=rule, epochs=3, batch_size=16, sample_weight=np.arange(93.0))
        found.append((parameters(net).tobytes(), history.loss))
    assert found[0] == found[1]
    for _ in range(2):
        reference.fit(X, y, optimizer=rule, epochs=3, batch_size=16, sample_weight=np.arange(93.0))
    assert_same(net, reference)


def test_a_graph_that_meets_a_fault_reports_it_and_the_next_training_is_right(backend):
    X, y = data(48)
    X[20] = 1e38
    messages = []
    for chosen in (backend(gemm="fused"), backend(graph=True)):
        net, reference = pair(chosen, activations="identity", cost="squared_error")
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(X, np.eye(3)[y], epochs=1, batch_size=16, shuffle=False)
        messages.append(str(caught.value))
        nets = net, reference
        net.parameters[...] = chosen.asarray(reference.parameters, net.architecture.dtype)
        for each in nets:
            each.fit(*data(48), optimizer=bpgpu.SGD(1e-3), epochs=2, batch_size=16)
        assert_same(*nets)
    assert messages[0] == messages[1]


# What only a device can show


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_same_training_gives_the_same_bytes(backend, way, dtype):
    X, y = data(200)
    found = []
    for _ in range(3):
        net = pair(backend(**way), (5, 130, 70, 3), dtype=dtype, l2=0.1, dropout=0.2)[0]
        history = net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=0.5), epochs=3, batch_size=64)
        found.append((parameters(net).tobytes(), history.loss))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_work_on_cupys_own_stream_before_and_after_is_in_order(backend, way):
    """Parameters that the user changes on CuPy's current stream, without waiting, and reads there after training."""
    X, y = data()
    chosen = backend(**way)
    cupy = chosen.xp
    nets = pair(chosen, dtype="float64")
    for net, xp in zip(nets, (cupy, np), strict=True):
        ballast = xp.ones((512, 512), dtype=np.float64)
        for _ in range(50):  # keeps the device busy while the host goes on
            ballast = xp.matmul(ballast, ballast)
            ballast /= 512.0
        net.parameters *= ballast[0, 0] + 1.0  # doubled, behind the products
        net.fit(X, y, epochs=1, batch_size=16)
        net.parameters *= 0.5
        net.fit(X, y, epochs=1, batch_size=16)
    halved = nets[0].parameters * 0.5
    np.testing.assert_array_equal(cupy.asnumpy(halved), parameters(nets[0]) * 0.5)
    assert_same(*nets)


def test_gradients_are_ready_for_cupys_own_stream(backend):
    X, y = data()
    nets = pair(backend(), dtype="float64", l2=0.1)
    for step, net in itertools.product(range(20), nets):
        _, gradients = net.backprop(X, y, step=step)
        for W, b, (dW, db) in zip(net.weights, net.biases, gradients, strict=True):
            W -= 0.1 * dW
            b -= 0.1 * db
    assert_same(*nets)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_twenty_fits_leave_no_memory_behind(backend, way):
    X, y = data(500)
    chosen, used = backend(**way), []
    for fits in (1, 20):
        for _ in range(fits):
            net = bpgpu.MLP((5, 300, 3), ("relu", "softmax"), "cross_entropy", dropout=0.2, backend=chosen)
            net.fit(X, y, optimizer=bpgpu.Adam(), epochs=1, batch_size=100)
        del net
        gc.collect()
        chosen.synchronize()
        used.append(chosen.xp.get_default_memory_pool().used_bytes())
    assert used[1] <= used[0]


def test_a_plan_larger_than_free_memory_is_refused_before_anything_is_allocated(backend):
    chosen = backend()
    pool = chosen.xp.get_default_memory_pool()
    net = bpgpu.MLP((5, 7, 3), ("relu", "softmax"), "cross_entropy", backend=chosen)
    rows = chosen.free_memory() // 4  # a row has more than one float32
    before = pool.used_bytes()
    with pytest.raises(MemoryError, match=r"needs .* MiB on .* which has .* MiB free; a batch_size of \d+ fits"):
        Plan(net.architecture, rows, chosen).allocate()
    assert pool.used_bytes() == before


def test_training_goes_on_after_numbers_that_are_not_finite(backend):
    X, y = data(48)
    nets = pair(backend(), activations=("relu", "relu", "identity"), cost="squared_error", dtype="float64")
    for net in nets:
        with pytest.raises(bpgpu.NonFiniteError):
            net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e6), epochs=99, batch_size=16)
    assert np.isfinite(parameters(nets[0])).all()
    for net in nets:
        net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e-4), epochs=2, batch_size=16)
    assert_same(*nets)


# Memory and arrays of others


@pytest.mark.parametrize("targets", ["labels", "one-hot"])
@pytest.mark.parametrize("graph", [False, True], ids=["launches", "graph"])
def test_data_that_stay_on_the_host_train_alike(backend, monkeypatch, targets, graph):
    results = []
    for room in (None, staging.ROOM):
        net = staging.network(backend(gemm="fused", graph=graph), dropout=0.2)
        if room is not None:
            monkeypatch.setattr(net.backend, "free_memory", lambda: staging.ROOM)
        X, y = staging.data(targets)
        placed, place = [], net.backend.place
        monkeypatch.setattr(
            net.backend, "place", lambda *args, place=place, placed=placed: placed.append(place(*args)) or placed[-1]
        )
        history = net.fit(X, y, epochs=20, batch_size=staging.BATCH)
        assert isinstance(placed[0].X, np.ndarray) == (room is not None)
        results.append((parameters(net).tobytes(), history.loss))
    assert results[0] == results[1]


def test_streams_are_ordered_both_ways(backend):
    """X is still being made on the caller's stream; the result is read there at once."""
    X, y = data(4096)
    net = pair(backend())[0]
    cupy, expected, cost = net.backend.xp, net.predict(X), net.loss(X, y)
    with cupy.cuda.Stream(non_blocking=True):
        for _ in range(20):
            late = cupy.asarray(X, dtype=np.float32)
            for _ in range(200):
                late = late * 1.0
            out = net.predict(late)
            np.testing.assert_array_equal((out * 1.0).get(), expected)
            assert net.loss(late * 1.0, y) == cost


@pytest.mark.parametrize("name", ["torch", "jax.numpy"])
def test_arrays_of_other_libraries(backend, name):
    library = pytest.importorskip(name)
    if name == "torch" and not library.cuda.is_available():
        pytest.skip("this torch has no GPU")
    X, _ = data()
    net = pair(backend())[0]
    given = library.asarray(X.astype(np.float32))
    given = given.cuda() if name == "torch" else given
    out = net.predict(given)
    assert type(out) is type(given)
    assert out.device == given.device
    np.testing.assert_array_equal(np.asarray(out.cpu() if name == "torch" else out), net.predict(X))


def test_tf32_changes_products_only_where_it_is_allowed(backend):
    X = np.random.default_rng(0).standard_normal((512, 512))
    found = []
    for allowed in (False, True):
        net = bpgpu.MLP([512, 512], "identity", "squared_error", backend=backend(gemm="cublas", allow_tf32=allowed))
        exact = X @ net.backend.to_numpy(net.weights[0]).astype(np.float64)
        found.append(np.abs(net.predict(X) - exact).max() / np.abs(exact).max())
    assert found[0] < 1e-5
    assert found[1] < 1e-2
    if net.backend.steps.allow_tf32:  # the device has it
        assert found[1] > 10 * found[0]
