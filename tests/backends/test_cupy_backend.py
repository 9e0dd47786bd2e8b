"""The CuPy backend on the simulated GPU, beyond the parity matrix: networks, budgets of launches, faults."""

import itertools

import numpy as np
import pytest

import bpgpu
from bpgpu.data import load_digits
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from bpgpu.proof import gradcheck
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
GEMMS = ["cublas", "fused"]
TOLERANCE = {"float32": 2e-4, "float64": 1e-11}  # of parameters of size 1, after three epochs


def data(n=50, inputs=5, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)), rng.integers(0, outputs, n)


def pair(backend, sizes=(5, 7, 6, 3), activations=("relu", "gelu", "softmax"), cost="cross_entropy", **options):
    """Return the same network on the backend and on the reference."""
    return [bpgpu.MLP(sizes, activations, cost, backend=b, **options) for b in (backend, "numpy")]


def parameters(net):
    return net.backend.to_numpy(net.parameters)


def assert_same(net, reference):
    tolerance = TOLERANCE[reference.architecture.dtype.name]
    np.testing.assert_allclose(parameters(net), reference.parameters, rtol=tolerance, atol=tolerance)


# The same as the reference


def test_gradients_of_every_activation_and_cost(backend, differences_once):
    """The cases of the gradient check, with the reference's differences: penalty, masks, dropout, sample weights.

    An oracle besides the parity matrix, which has float32 too.
    """
    chosen = {gemm: backend(gemm=gemm) for gemm in ("cublas", "fused")}
    for case in gradcheck.CASES:
        if case.depth == 2 and (case.outputs == 3 or case.cost == "cross_entropy"):
            for gemm, each in chosen.items():
                report = gradcheck.check_case(case, each, "float64")
                assert report.checked >= 3 * report.kinks, (gemm, case)


def test_user_formulas_run_as_kernels(backend):
    mish = bpgpu.Activation(
        "mish", "z * tanh(softplus(z))", "tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)"
    )
    cost = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", "mean")
    X, y = data()
    nets = pair(backend(), activations=(mish, mish, "identity"), cost=cost, dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=2)
    assert_same(*nets)


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("cost", ["binary_cross_entropy", "cross_entropy"])
def test_softmax_whose_output_is_rounded_to_one(backend, cost, outputs):
    """Also of one output, which is always 1."""
    found = []
    for each in (backend(), bpgpu.get_backend("numpy")):
        double = np.dtype("float64")
        z, y = np.zeros((3, outputs)), np.zeros((3, outputs))
        z[:, 0], y[:, -1] = [0, 40, 200], 0.75
        arrays = [each.empty(shape, double) for shape in (z.shape, z.shape, (3,))]
        inputs = (each.asarray(x, double) for x in (z, y, np.ones(3)))
        names = dict(zip(("out_a", "out_delta", "out_cost"), arrays, strict=True))
        each.output_delta(*inputs, ACTIVATIONS["softmax"], COSTS[cost], **names)
        found.append([each.to_numpy(array) for array in arrays])
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13)


def test_a_rule_of_the_users_own_runs_step_by_step(backend):
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    X, y = data()
    nets = pair(backend(), dtype="float64")
    for net in nets:
        net.fit(X, y, optimizer=SignDescent(0.01), epochs=2, batch_size=16)
    assert_same(*nets)


def test_a_loop_of_the_users_own(backend):
    X, y = data()
    nets = pair(backend(), dtype="float64", l2=0.1)
    for step, net in itertools.product(range(5), nets):
        _, gradients = net.backprop(X, y, step=step)
        for W, b, (dW, db) in zip(net.weights, net.biases, gradients, strict=True):
            W -= 0.1 * dW
            b -= 0.1 * db
    assert_same(*nets)


def test_saving_and_early_stopping(backend, tmp_path):
    X, y = data()
    nets = pair(backend(), dtype="float64")
    for net in nets:
        stopping = bpgpu.EarlyStopping(2)
        net.fit(X, y, optimizer=bpgpu.Adam(0.05), epochs=30, validation_data=(X[:9], y[::-1][:9]), callbacks=[stopping])
        net.save(tmp_path / f"{net.backend.name}.safetensors")
    assert_same(*nets)
    loaded = bpgpu.MLP.load(tmp_path / "cupy.safetensors", backend="numpy")
    np.testing.assert_array_equal(loaded.parameters, parameters(nets[0]))


def test_digits_reach_the_references_accuracy(backend):
    X, y = load_digits()
    X = X / 16
    nets = pair(backend(), (64, 32, 10), ("relu", "softmax"))
    accuracies = []
    for net in nets:
        net.fit(X[300:], y[300:], optimizer=bpgpu.Adam(5e-3), epochs=6, batch_size=128)
        accuracies.append(np.mean(net.predict(X[:300]).argmax(axis=1) == y[:300]))
    assert accuracies[1] > 0.88
    assert abs(accuracies[0] - accuracies[1]) <= 0.01


@pytest.mark.parametrize("gemm", GEMMS)
def test_the_order_of_threads_changes_no_bit(gpu, backend, gemm):
    X, y = data()
    results = []
    for order in ("forward", "reverse", "shuffled"):
        gpu.settings.order = order
        net = pair(backend(gemm=gemm), l2=0.1, dropout=0.2)[0]
        history = net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=0.5), epochs=2, batch_size=16)
        results.append((parameters(net).tobytes(), history.loss))
    assert results[0] == results[1] == results[2]


def test_work_that_runs_only_when_waited_for_gives_the_same(gpu, backend):
    X, y = data()
    results = []
    for lazy in (False, True):
        gpu.settings.lazy = lazy
        net = pair(backend())[0]
        net.fit(X, y, epochs=3, batch_size=16, validation_data=(X, y))
        results.append(parameters(net).tobytes())
    assert results[0] == results[1]


# Budgets


def counts(counters):
    names = ("launches", "synchronisations", "transfers_h2d", "transfers_d2h", "allocations", "hidden_copies")
    return {name: getattr(counters, name) for name in names}


@pytest.mark.parametrize(("clip_norm", "extra"), [(None, 0), (1.0, 2)])
@pytest.mark.parametrize("dropout", [0, 0.2])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("gemm", "per_step"), [("cublas", lambda L: 5 * L + 2), ("fused", lambda L: 3 * L + 2)])
def test_an_epoch_costs_exactly_this(gpu, backend, gemm, per_step, layers, dropout, clip_norm, extra):
    """Launches by the number of layers; one upload, download and synchronisation; no allocation, no hidden copy."""
    activations = [*["relu"] * (layers - 1), "softmax"]
    net = pair(backend(gemm=gemm), (5, *[7] * (layers - 1), 3), activations, l2=0.1, dropout=dropout)[0]
    X, y = data(64)
    spent = []

    class Count(bpgpu.Callback):
        def on_epoch_begin(self, training):
            self.before = counts(gpu.counters)

        def on_epoch_end(self, training):
            spent.append({name: value - self.before[name] for name, value in counts(gpu.counters).items()})

    net.fit(X, y, optimizer=bpgpu.Adam(clip_norm=clip_norm), epochs=3, batch_size=16, callbacks=[Count()])
    around = 2  # the copy of the weights that `fit` keeps of the last finite epoch, and the sum of the epoch's costs
    expected = {"launches": 4 * (per_step(layers) + extra) + around, "synchronisations": 1, "transfers_h2d": 1}
    expected |= {"transfers_d2h": 1, "allocations": 0, "hidden_copies": 0}
    assert spent[1] == spent[2] == expected


# What goes wrong


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("rate", [30.0, 1e6])
def test_numbers_that_are_not_finite_are_placed_as_by_the_reference(backend, gemm, rate):
    X, y = data(48)
    nets = pair(backend(gemm=gemm), activations=("relu", "relu", "identity"), cost="squared_error")
    errors = []
    for net in nets:
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(rate), epochs=99, batch_size=16)
        errors.append((caught.value.epoch, caught.value.step))
    assert errors[0] == errors[1]
    assert np.isfinite(parameters(nets[0])).all()
    assert nets[0].epoch == nets[1].epoch


def test_a_weight_that_overflows_is_found_in_its_own_step(backend):
    """The reference, which looks at the weights once an epoch, names the step after."""
    X, y = data(48)
    net = pair(backend(), activations=("relu", "relu", "identity"), cost="squared_error")[0]
    before = parameters(net)
    with pytest.raises(bpgpu.NonFiniteError, match=r"the weight of layer \d is not finite in epoch 1, step 1;"):
        net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e38), epochs=3, batch_size=16)
    np.testing.assert_array_equal(parameters(net), before)


def test_a_batch_after_numbers_that_are_not_finite_is_as_any(backend):
    """The latch that they close is opened for the next call."""
    X, y = data()
    nets = pair(backend(), activations=("relu", "relu", "identity"), cost="squared_error")
    for net in nets:
        before = net.backend.to_numpy(net.parameters).copy()
        net.parameters[...] = 1e38
        assert not np.isfinite(net.loss(X, np.eye(3)[y]))
        net.parameters[...] = net.backend.asarray(before, np.dtype(np.float32))
    losses = [net.loss(2 * X, np.eye(3)[y]) for net in nets]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_plan_too_large_for_the_device_names_both_figures_and_a_batch_that_fits(gpu, backend):
    net = pair(backend())[0]
    X, y = data(5000)
    gpu.settings.capacity = gpu.get_default_memory_pool().used_bytes() + 400_000
    with pytest.raises(
        MemoryError, match=r"batches of 5000 needs .* MiB on .* which has .* MiB free; a batch_size of \d+ fits"
    ) as caught:
        net.fit(X, y, batch_size=5000, epochs=1)
    fits = int(str(caught.value).split("batch_size of ")[1].split()[0])
    net.fit(X[:fits], y[:fits], batch_size=fits // 2, epochs=1)


def test_the_first_use_says_that_no_hardware_has_run_this(backend, caplog):
    from bpgpu.backends.cuda import backend as cuda_backend

    cuda_backend._say_once_that_no_hardware_has_run_this.cache_clear()
    with caplog.at_level("WARNING", logger="bpgpu"):
        backend()
        backend()
    assert [record.message for record in caplog.records if "run on hardware" in record.message] != []
    assert len(caplog.records) == 1


def test_launches_are_checked_before_a_raw_kernel_gets_them(gpu, backend):
    launcher = backend().steps.launcher
    x = gpu.zeros((4, 6), dtype=np.float32)
    control = gpu.zeros((8,), dtype=np.int32)
    drop = (0, 1.0, 0, 0, 0)
    launcher.bind("dropout", x.dtype, (1,), (x, x, 4, 6, *drop, control))()
    for arguments, message in (
        ((x, x, 4, 6, *drop), "takes 10 arguments, got 9"),
        ((x, x.T, 4, 6, *drop, control), "C-contiguous CuPy array of float32"),
        ((x, x.astype(np.float64), 4, 6, *drop, control), "C-contiguous CuPy array of float32, got ndarray of float64"),
        ((x, np.zeros((4, 6), np.float32), 4, 6, *drop, control), "must be a C-contiguous CuPy array"),
    ):
        with pytest.raises(TypeError, match=message):
            launcher.bind("dropout", x.dtype, (1,), arguments)
