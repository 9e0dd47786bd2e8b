"""The whole Numba-CUDA backend on the simulated GPU: parity with the reference, budgets, memory, others' arrays."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.cuda import epoch as cuda_epoch
from bpgpu.backends.cuda import staging as cuda_memory
from bpgpu.data import load_digits
from tests.backends.test_cupy_backend import TOLERANCE, assert_same, data, pair, parameters
from tests.simgpu import numba_device
from tests.simgpu.state import counters, settings


@pytest.fixture
def backend(monkeypatch):
    """A backend on the simulated GPU."""
    numba_device.install(monkeypatch)
    from bpgpu.backends.cuda.numba_backend import NumbaCudaBackend

    return NumbaCudaBackend()


SMALL = {"sizes": (5, 4, 3), "activations": ("tanh", "softmax")}


def test_the_2_4_3_1_network_has_the_references_loss_curve(backend):
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([0, 1, 1, 0.0])
    nets = pair(backend, (2, 4, 3, 1), ("tanh", "tanh", "sigmoid"), "binary_cross_entropy", dtype="float64")
    losses = [net.fit(X, y, optimizer=bpgpu.Adam(0.05), epochs=12, batch_size=4).loss for net in nets]
    np.testing.assert_allclose(*losses, rtol=1e-10)
    assert losses[0][-1] < losses[0][0]


def test_digits_have_the_references_loss_curve(backend):
    X, y = load_digits()
    X, y = X[:96] / 16, y[:96]
    nets = pair(backend, (64, 16, 10), ("relu", "softmax"))
    histories = [net.fit(X, y, optimizer=bpgpu.Adam(0.01), epochs=2, batch_size=32) for net in nets]
    np.testing.assert_allclose(*(history.loss for history in histories), rtol=1e-5)
    assert_same(*nets)
    assert histories[0].loss[1] < histories[0].loss[0]


@pytest.mark.parametrize("rule", [bpgpu.Adam(0.01), bpgpu.RMSprop(0.01), bpgpu.AdamW(0.01, clip_norm=0.1)], ids=repr)
def test_training_is_the_references(backend, rule):
    """Penalty, dropout, masks, sample weights, a smaller last batch and validation."""
    X, y = data(14)
    masks = [np.random.default_rng(1).integers(0, 2, (5, 4)), None]
    dtype = "float32" if isinstance(rule, bpgpu.RMSprop) else "float64"
    nets = pair(backend, **SMALL, dtype=dtype, l2=0.3, dropout=0.3, connectivity=masks)
    histories = [
        net.fit(X, y, optimizer=rule, epochs=2, batch_size=8, validation_data=(X, y), sample_weight=np.arange(14.0))
        for net in nets
    ]
    assert_same(*nets)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(*(getattr(history, name) for history in histories), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"activations": ("softmax", "softmax")},
        {"activations": ("gelu", "softmax"), "cost": "binary_cross_entropy"},
        {"activations": ("elu", "sigmoid"), "cost": "binary_cross_entropy"},
        {"activations": ("softplus", "identity"), "cost": "mean_squared_error"},
        {"sizes": (5, 3), "activations": "softmax", "l2": 1.0},
    ],
    ids=str,
)
def test_options_train_alike(backend, options):
    X, y = data(11)
    nets = pair(backend, **(SMALL | options), dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=1, batch_size=8, shuffle=False)
    assert_same(*nets)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), rtol=1e-9)


def test_user_formulas_run_as_kernels(backend):
    mish = bpgpu.Activation(
        "mish", "z * tanh(softplus(z))", "tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)"
    )
    cost = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", "mean")
    X, y = data(9)
    nets = pair(backend, (5, 4, 3), (mish, "identity"), cost, dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=1)
    assert_same(*nets)


def test_a_rule_of_the_users_own_runs_step_by_step(backend):
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    X, y = data(10)
    nets = pair(backend, **SMALL, dtype="float64")
    for net in nets:
        net.fit(X, y, optimizer=SignDescent(0.01, clip_norm=0.5), epochs=1, batch_size=8)
    assert_same(*nets)


def test_a_loop_of_the_users_own_changes_weights_through_update(backend):
    X, y = data(8)
    nets = pair(backend, **SMALL, dtype="float64", l2=0.1)
    for net in nets:
        rule, flat = bpgpu.SGD(0.1), net.architecture
        for step in range(2):
            _, gradients = net.backprop(X, y, step=step)
            parts = [g for pair in (zip(*gradients, strict=True)) for g in pair]
            joined = net.backend.asarray(
                np.concatenate([net.backend.to_numpy(part).ravel() for part in parts]), flat.dtype
            )
            net.backend.update(
                rule, net.parameters, joined, [], t=step + 1, learning_rate=0.1, n_weights=flat.n_weights
            )
    assert_same(*nets)


def test_the_order_of_threads_changes_no_bit(backend):
    X, y = data(10)
    results = []
    for order in ("forward", "reverse", "shuffled"):
        settings.order = order
        net = pair(backend, **SMALL, l2=0.1, dropout=0.2)[0]
        history = net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=0.5), epochs=1, batch_size=8)
        results.append((parameters(net).tobytes(), history.loss))
    assert results[0] == results[1] == results[2]


def test_work_that_runs_only_when_waited_for_gives_the_same(backend):
    X, y = data(10)
    results = []
    for lazy in (False, True):
        settings.lazy = lazy
        net = pair(backend, **SMALL)[0]
        net.fit(X, y, epochs=2, batch_size=8, validation_data=(X, y))
        results.append(parameters(net).tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(("clip_norm", "extra"), [(None, 0), (1.0, 2)])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_epoch_costs_exactly_this(backend, layers, clip_norm, extra):
    net = pair(backend, (5, *[4] * (layers - 1), 3), [*["relu"] * (layers - 1), "softmax"], l2=0.1, dropout=0.2)[0]
    X, y = data(8)
    names = ("launches", "synchronisations", "transfers_h2d", "transfers_d2h", "allocations")
    spent = []

    class Count(bpgpu.Callback):
        def on_epoch_begin(self, training):
            self.before = [getattr(counters, name) for name in names]

        def on_epoch_end(self, training):
            spent.append([getattr(counters, name) - before for name, before in zip(names, self.before, strict=True)])

    net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=clip_norm), epochs=3, batch_size=4, callbacks=[Count()])
    around = 2  # the copy of the weights that `fit` keeps of the last finite epoch, and the sum of the epoch's costs
    # The host waits for the result alone.
    assert spent[1] == spent[2] == [2 * (3 * layers + 2 + extra) + around, 1, 1, 1, 0]


# Memory


def wide(backend, *, staged):
    """Train, if staged on a device that has room for two batches of the data but not for all."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((120, 60)).astype(np.float32), rng.integers(0, 3, 120).astype(np.int32)
    net = bpgpu.MLP([60, 2, 3], ["tanh", "softmax"], "cross_entropy", backend=backend)
    rule, held = bpgpu.SGD(0.1), bpgpu.backends.plan.Data(X, y)
    plan = bpgpu.Plan(net.architecture, 20, backend, rule)
    needed = plan.nbytes + cuda_epoch.epoch_nbytes(plan, len(X))
    room = needed + cuda_epoch.staging_nbytes(plan, held)
    assert room < needed + held.nbytes
    if staged:
        settings.capacity = numba_device._used + room
    try:
        history = net.fit(X, y, optimizer=rule, epochs=1, batch_size=20)
    finally:
        settings.capacity = 2**30
    return parameters(net).tobytes(), history.loss


@pytest.mark.parametrize("lazy", [False, True])
def test_data_that_do_not_fit_train_to_the_same_bits(backend, lazy, monkeypatch):
    brought, bring = [], cuda_memory.Staging.bring
    monkeypatch.setattr(cuda_memory.Staging, "bring", lambda *args: brought.append(1) or bring(*args))
    expected = wide(backend, staged=False)
    assert not brought
    settings.lazy = lazy
    assert wide(backend, staged=True) == expected
    assert len(brought) == 6


def test_a_plan_too_large_for_the_device_is_refused(backend):
    net = pair(backend, **SMALL)[0]
    X, y = data(5000)
    settings.capacity = numba_device._used + 100_000
    with pytest.raises(MemoryError, match=r"batches of 5000 needs .* MiB on .* a batch_size of \d+ fits"):
        net.fit(X, y, batch_size=5000, epochs=1)


# Arrays of other libraries


def test_arrays_on_the_device_are_used_where_they_lie(backend):
    X, y = data(8)
    X, y = X.astype(np.float32), y.astype(np.int32)
    net = pair(backend, **SMALL)[0]
    on_device = backend.asarray(X, X.dtype), backend.asarray(y, y.dtype)
    expected, cost = net.predict(X), net.loss(X, y)
    before = counters.bytes_h2d
    out = net.predict(on_device[0])
    assert counters.bytes_h2d == before
    assert type(out) is type(on_device[0])
    np.testing.assert_array_equal(out.copy_to_host(), expected)
    assert net.loss(*on_device) == cost
    wide = backend.asarray(np.repeat(X, 2, axis=1).astype(np.float64), np.dtype(np.float64))
    np.testing.assert_array_equal(net.predict(wide[:, ::2]).copy_to_host(), expected)


def test_arrays_of_cupy_come_and_go_without_a_copy(backend, monkeypatch):
    from tests.simgpu import cupy as simulated

    gpu = simulated.install(monkeypatch)
    X, y = data(8)
    X = X.astype(np.float32)
    net = pair(backend, **SMALL)[0]
    expected, before = net.predict(X), counters.bytes_h2d
    out = net.predict(gpu.asarray(X))
    assert type(out) is gpu.ndarray
    assert counters.bytes_h2d - before == X.nbytes, "X went up once, to CuPy"
    np.testing.assert_array_equal(out.get(), expected)
    assert net.loss(gpu.asarray(X), gpu.asarray(y)) == net.loss(X, y)


def test_arrays_of_torch_come_back_on_their_device(backend, monkeypatch):
    """A library whose arrays name no stream, and whose as_tensor takes the CPU if no device is named."""
    made = []

    class Tensor:
        device = "cuda:0"

        def __init__(self, inside):
            self.__cuda_array_interface__ = inside.__cuda_array_interface__ | {"version": 2}
            self.inside = inside

    library = ModuleType("torchlike")
    library.as_tensor = lambda data, dtype=None, device=None: made.append(device or "cpu") or Tensor(data)
    Tensor.__module__ = "torchlike.tensor"
    monkeypatch.setitem(sys.modules, "torchlike", library)
    X, _ = data(8)
    net = pair(backend, **SMALL)[0]
    out = net.predict(Tensor(backend.asarray(X, np.dtype(np.float32)).bind(0)))
    assert (type(out), made) == (Tensor, ["cuda:0"])
    np.testing.assert_array_equal(out.inside.copy_to_host(), net.predict(X))


def test_arrays_that_have_only_dlpack(backend, monkeypatch):
    """Their memory is found by cuda.core, with our stream for the library to wait with."""
    asked = []

    class View:
        @staticmethod
        def from_dlpack(array, *, stream_ptr):
            asked.append(stream_ptr)
            host = array.inside._host
            return SimpleNamespace(
                ptr=host.ctypes.data, shape=host.shape, dtype=host.dtype, strides=None, readonly=False
            )

    class Capsule:
        def __init__(self, inside):
            self.inside = inside

        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **options):
            raise AssertionError("cuda.core asks for it")

    monkeypatch.setitem(sys.modules, "cuda.core.utils", SimpleNamespace(StridedMemoryView=View))
    X, y = data(8)
    net = pair(backend, **SMALL)[0]
    given = Capsule(backend.asarray(X, np.dtype(np.float32)))
    assert net.loss(given, y) == net.loss(X, y)
    assert asked == [int(backend.memory.stream)]


def test_a_column_of_a_matrix_on_the_device_is_a_target(backend):
    X, _ = data(6)
    Y = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    net = bpgpu.MLP([5, 1], "identity", "squared_error", backend=backend)
    column = backend.cuda.as_cuda_array(
        SimpleNamespace(
            __cuda_array_interface__=backend.asarray(Y, Y.dtype)[:, :1].__cuda_array_interface__
            | {"shape": (6,), "strides": (8,)}
        )
    )
    assert net.loss(X, column) == net.loss(X, Y[:, 0])


def test_what_the_caller_has_given_to_a_stream_comes_first(backend):
    X, _ = data(8)
    X = X.astype(np.float32)
    net = pair(backend, **SMALL)[0]
    expected = net.predict(X)
    given, stream = backend.cuda.device_array(X.shape, X.dtype), backend.cuda.stream()
    settings.lazy = True
    given.copy_to_device(X, stream=stream)
    np.testing.assert_array_equal(net.predict(given).copy_to_host(), expected)


def test_early_stopping_brings_the_best_weights_back(backend):
    X, y = data(12)
    nets = pair(backend, **SMALL, dtype="float64")
    for net in nets:
        stopping = bpgpu.EarlyStopping(1)
        net.fit(X, y, optimizer=bpgpu.Adam(0.1), epochs=4, validation_data=(X[:4], y[::-1][:4]), callbacks=[stopping])
    assert_same(*nets)


# What goes wrong


def test_no_room_for_an_array_is_a_memory_error(backend):
    X, _ = data(2000)
    net = pair(backend, **SMALL)[0]
    settings.capacity = numba_device._used + 10_000
    with pytest.raises(MemoryError, match=r"takes 0.0 MiB, which the device has not; take fewer rows"):
        net.predict(X)


def test_no_simulated_device_outlives_its_test():
    with pytest.MonkeyPatch.context() as patch:
        numba_device.install(patch)
        assert bpgpu.get_backend("numba-cuda").device == "simulated GPU"
    assert "simulated GPU" not in [info.device for info in bpgpu.backends()]


def test_numbers_that_are_not_finite_are_placed_as_by_the_reference(backend):
    X, y = data(16)
    nets = pair(backend, (5, 4, 3), ("relu", "identity"), "squared_error")
    errors = []
    for net in nets:
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e6), epochs=99, batch_size=8)
        errors.append((caught.value.epoch, caught.value.step))
    assert errors[0] == errors[1]
    assert np.isfinite(parameters(nets[0])).all()


def test_a_device_that_multiplies_wrongly_is_refused(backend, monkeypatch):
    cls = type(backend)
    monkeypatch.setattr(
        cls, "forward", lambda self, *args, out, **options: self.memory.upload(out, np.ones((4, 4), "f"))
    )
    with pytest.raises(bpgpu.BackendUnavailableError, match="simulated GPU multiplies wrongly"):
        cls()
