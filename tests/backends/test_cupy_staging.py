"""Data that do not fit on the device: the same training, batch by batch, through two page-locked buffers."""

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.cuda import staging as cuda_memory
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
WIDE = 300  # columns of X: the data take far more room than the network
SAMPLES = 150
BATCH = 16  # ten steps, the last of six rows
ROOM = 114_000  # bytes: for the network and two batches, not for the data


def data(targets="labels"):
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((SAMPLES, WIDE)), rng.integers(0, 3, SAMPLES)
    return X, labels if targets == "labels" else np.eye(3)[labels]


def network(backend, **options):
    return bpgpu.MLP([WIDE, 7, 3], ["tanh", "softmax"], "cross_entropy", backend=backend, **options)


def train(gpu, net, targets="labels", *, room=None, weighted=True, **options):
    """Train; with `room`, on a device that has only that much left. Return parameters, losses and what it took."""
    X, y = data(targets)
    weight = np.random.default_rng(1).uniform(0.5, 2, SAMPLES) if weighted else None
    if room is not None:
        gpu.settings.capacity = gpu.get_default_memory_pool().used_bytes() + room
        gpu.get_default_memory_pool().free_all_blocks()
    options = {"optimizer": bpgpu.Adam(0.01), "epochs": 3, "batch_size": BATCH} | options
    try:
        history = net.fit(X, y, sample_weight=weight, **options)
    finally:
        gpu.settings.capacity = 2**30
    return net.backend.to_numpy(net.parameters).tobytes(), history.loss


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("targets", ["labels", "one-hot"])
@pytest.mark.parametrize(
    "options", [{"gemm": "cublas"}, {"gemm": "fused"}, {"graph": True}], ids=lambda options: "-".join(options)
)
def test_training_is_the_same_to_the_bit(gpu, backend, options, targets, lazy):
    gpu.settings.lazy = lazy
    results = [
        train(gpu, network(backend(**options), dropout=0.2, l2=0.1), targets, room=room, shuffle=shuffle)
        for shuffle in (True, False)
        for room in (None, ROOM)
    ]
    assert results[0] == results[1]
    assert results[2] == results[3]
    assert results[0] != results[2]


@pytest.mark.parametrize("broken", ["host waits for copy", "copy waits for batch", "batch waits for copy"])
def test_every_wait_is_needed(gpu, backend, monkeypatch, broken):
    """Without one of the three, a device that is late trains on other rows."""
    gpu.settings.lazy = True
    expected = train(gpu, network(backend()))

    def bring(self, slot, rows, whole=cuda_memory.Staging.bring):
        copied, used = slot.copied, slot.used
        if broken == "copy waits for batch":
            slot.used = gpu.cuda.Event(disable_timing=True)  # never recorded
        whole(self, slot, rows)
        slot.copied, slot.used = copied, used

    monkeypatch.setattr(cuda_memory.Staging, "bring", bring)
    if broken == "host waits for copy":
        monkeypatch.setattr(gpu.cuda.Event, "synchronize", lambda self: None)
    if broken == "batch waits for copy":
        wait = gpu.cuda.Stream.wait_event
        monkeypatch.setattr(
            gpu.cuda.Stream, "wait_event", lambda self, event: wait(self, event) if self.is_non_blocking else None
        )
    try:
        found = train(gpu, network(backend()), room=ROOM)
    except bpgpu.NonFiniteError:
        return
    assert found != expected


def test_an_epoch_costs_one_copy_a_step_and_no_allocation(gpu, backend):
    net, spent = network(backend()), []

    class Count(bpgpu.Callback):
        names = ("transfers_h2d", "bytes_h2d", "transfers_d2h", "synchronisations", "allocations")

        def on_epoch_begin(self, training):
            self.before = [getattr(gpu.counters, name) for name in self.names]

        def on_epoch_end(self, training):
            spent.append(
                [getattr(gpu.counters, name) - start for name, start in zip(self.names, self.before, strict=True)]
            )

    train(gpu, net, room=ROOM, callbacks=[Count()], weighted=False)
    steps = -(-SAMPLES // BATCH)
    transfers, nbytes, down, waits, allocations = spent[1]
    # The host waits once a step, for the copy two steps before, and once for the result.
    assert (transfers, down, waits, allocations) == (steps + 1, 1, steps + 1, 0)
    rows = steps * BATCH * (4 * WIDE + 4)
    assert rows <= nbytes <= 1.2 * rows
    assert spent[2] == spent[1]


def test_loss_and_validation_take_data_from_the_host(gpu, backend):
    X, y = data()
    nets = [network(which, l2=0.3) for which in (backend(), "numpy")]
    expected = nets[1].loss(X, y)
    gpu.settings.capacity = gpu.get_default_memory_pool().used_bytes() + 2 * ROOM + X.nbytes // 2
    placed = []
    monkey = nets[0].backend.place

    def place(data, plan):
        placed.append(monkey(data, plan))
        return placed[-1]

    nets[0].backend.place = place
    assert nets[0].loss(X, y) == pytest.approx(expected, rel=1e-5)
    histories = [net.fit(X, y, epochs=2, batch_size=BATCH, validation_data=(X, y)) for net in nets]
    np.testing.assert_allclose(histories[0].validation_loss, histories[1].validation_loss, rtol=1e-4)
    assert {type(data.X) for data in placed} == {np.ndarray, gpu.ndarray}, "some fitted and some did not"


@pytest.mark.parametrize("rows", [20, 45, 60, 85])
@pytest.mark.parametrize("room", [135_000, 170_000, 300_000])
def test_validation_data_leave_the_room_that_training_needs(gpu, backend, room, rows):
    X, y = data()
    net = network(backend())
    expected = network("numpy").fit(X, y, epochs=2, batch_size=BATCH, validation_data=(X[:rows], y[:rows]))
    gpu.settings.capacity = gpu.get_default_memory_pool().used_bytes() + room
    gpu.get_default_memory_pool().free_all_blocks()
    history = net.fit(X, y, epochs=2, batch_size=BATCH, validation_data=(X[:rows], y[:rows]))
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, rtol=1e-4)


def test_the_limit_of_cupys_pool_counts(gpu, backend):
    pool = gpu.get_default_memory_pool()
    chosen = backend()
    expected = train(gpu, network(chosen))
    net = network(chosen)
    pool.set_limit(pool.used_bytes() + ROOM)
    assert chosen.free_memory() == ROOM
    assert train(gpu, net) == expected, "the data stay on the host"
    pool.set_limit()
    assert chosen.free_memory() > ROOM


def test_a_rule_of_the_users_own_takes_data_from_the_host(gpu, backend):
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    results = [train(gpu, network(backend()), optimizer=SignDescent(0.01), room=room) for room in (None, ROOM)]
    assert results[0] == results[1]


def test_faults_are_placed_as_with_data_on_the_device(gpu, backend):
    errors = []
    for room in (None, ROOM):
        net = bpgpu.MLP([WIDE, 7, 3], ["relu", "identity"], "squared_error", backend=backend())
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            train(gpu, net, "one-hot", room=room, optimizer=bpgpu.SGD(30.0), epochs=20)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_the_log_says_where_the_data_stay(gpu, backend, caplog):
    with caplog.at_level("INFO", logger="bpgpu"):
        train(gpu, network(backend()), room=ROOM)
    assert "they stay on the host" in caplog.text


def test_too_little_memory_even_for_batches_names_the_figures(gpu, backend):
    net = network(backend())
    plan = bpgpu.Plan(net.architecture, 100, net.backend, bpgpu.Adam(0.01))
    before = net.backend.to_numpy(net.parameters)
    with pytest.raises(MemoryError, match=r"data take 0.2 MiB, of which .* has .* free, and .* a smaller batch_size"):
        train(gpu, net, room=plan.nbytes + 20_000, batch_size=100)
    np.testing.assert_array_equal(net.backend.to_numpy(net.parameters), before)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}], ids=["", "clip"])
def test_nbytes_is_what_training_allocates(gpu, backend, options, staged):
    """Of the plan, the data or two batches of them, the schedule and the order; but for tables of a few bytes."""
    from bpgpu.backends.cuda import epoch as cuda_epoch

    net = network(backend(), connectivity=[np.ones((WIDE, 7)), None])
    X, y = data()
    rule = bpgpu.Adam(0.01, **options)
    plan = bpgpu.Plan(net.architecture, BATCH, net.backend, rule, net.masks)
    held = bpgpu.backends.plan.Data(X.astype(np.float32), y.astype(np.int32))
    expected = plan.nbytes + cuda_epoch.epoch_nbytes(plan, SAMPLES)
    expected += cuda_epoch.staging_nbytes(plan, held) if staged else held.nbytes
    before = gpu.counters.bytes_allocated
    train(gpu, net, room=expected + 10_000 if staged else None, optimizer=rule, weighted=False)
    allocated = gpu.counters.bytes_allocated - before
    assert 0.98 * expected <= allocated <= expected + 200
