"""Training by CUDA graphs on the simulated GPU: to the bit what the same kernels give launched one by one."""

import itertools

import numpy as np
import pytest

import bpgpu
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
RULES = [
    bpgpu.SGD(0.1),
    bpgpu.SGD(0.1, momentum=0.9),
    bpgpu.SGD(0.1, momentum=0.9, nesterov=True),
    bpgpu.RMSprop(0.01),
    bpgpu.Adam(0.01),
    bpgpu.AdamW(0.01),
]
MISH = bpgpu.Activation(
    "mish", "z * tanh(softplus(z))", "tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)"
)
LOG_COSH = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", "mean")


@pytest.fixture
def captures(gpu, monkeypatch):
    """Return a list that grows by each capture's stream."""
    begun, begin = [], gpu.cuda.Stream.begin_capture

    def counted(stream, mode=None):
        begin(stream, mode)
        begun.append(stream)

    monkeypatch.setattr(gpu.cuda.Stream, "begin_capture", counted)
    return begun


def data(n=50, inputs=5, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)), rng.integers(0, outputs, n)


def network(
    backend, sizes=(5, 7, 6, 3), activations=("relu", "gelu", "softmax"), cost="cross_entropy", **options
) -> bpgpu.MLP:
    return bpgpu.MLP(sizes, activations, cost, backend=backend, **options)


def parameters(net):
    return net.backend.to_numpy(net.parameters)


def trained(net, X, y, **options):
    """Return all that training leaves."""
    history = net.fit(X, y, **{"epochs": 3, "batch_size": 16} | options)
    return parameters(net).tobytes(), history.loss, history.validation_loss


def assert_alike(backend, X, y, *, options, **fit):
    """Hold graphs against the same kernels one by one, to the bit, and against the reference."""
    plain, graphs, reference = (network(b, **options) for b in (backend(gemm="fused"), backend(graph=True), "numpy"))
    assert trained(graphs, X, y, **fit) == trained(plain, X, y, **fit)
    trained(reference, X, y, **fit)
    tolerance = 2e-4 if reference.architecture.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(parameters(graphs), reference.parameters, rtol=tolerance, atol=tolerance)


# The same numbers


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}{rule.n_state}")
@pytest.mark.parametrize(
    ("dtype", "clip_norm", "dropout"), itertools.product(["float32", "float64"], [None, 0.1], [0, 0.3])
)
def test_every_rule(backend, rule, dtype, clip_norm, dropout):
    X, y = data()
    rule = type(rule)(**vars(rule) | {"clip_norm": clip_norm})
    masks = [np.random.default_rng(1).integers(0, 2, (5, 7)), None, None]
    options = {"dtype": dtype, "l2": 0.3, "connectivity": masks, "dropout": dropout}
    weights = np.arange(50.0)
    assert_alike(backend, X, y, options=options, optimizer=rule, validation_data=(X, y), sample_weight=weights)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"activations": ("softmax", "silu", "softmax"), "dropout": 0.2},
        {"activations": ("gelu", "softmax", "softmax")},
        {"activations": ("tanh", "sigmoid", "sigmoid"), "cost": "binary_cross_entropy"},
        {"activations": (MISH, MISH, "identity"), "cost": LOG_COSH},
        {"sizes": (5, 3), "activations": "softmax", "l2": 1.0},
        {"sizes": (5, 130, 3), "activations": ("leaky_relu", "softmax")},
    ],
    ids=str,
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_options(backend, options, shuffle):
    X, y = data(37)
    assert_alike(backend, X, y, options={"dtype": "float64"} | options, shuffle=shuffle)


@pytest.mark.parametrize(("n", "batch_size"), [(48, 16), (49, 16), (16, 16), (9, 16), (3, 1), (5, 4)])
def test_full_and_smaller_batches(gpu, backend, n, batch_size):
    X, y = data(n)
    assert_alike(backend, X, y, options={"dtype": "float64"}, batch_size=batch_size)
    assert gpu.counters.graph_launches == 3 * (n // min(n, batch_size))


def test_targets_that_are_no_labels(backend):
    X, y = data()
    options = {"dtype": "float64", "activations": ("relu", "gelu", "identity"), "cost": "mean_squared_error"}
    assert_alike(backend, X, np.eye(3)[y], options=options)


def test_learning_rates_that_change_and_training_that_goes_on(backend):
    X, y = data()
    options = {"optimizer": bpgpu.Adam(lambda step: 0.02 / (1 + step)), "epochs": 2, "batch_size": 16}
    nets = [network(b) for b in (backend(gemm="fused"), backend(graph=True))]
    for net, sign in itertools.product(nets, (1, -1, 1)):
        net.fit(sign * X, y, **options)
    np.testing.assert_array_equal(*(parameters(net) for net in nets))


def test_no_order_of_threads_or_late_work_changes_a_bit(gpu, backend):
    X, y = data()
    results = []
    for order, lazy in itertools.product(("forward", "reverse", "shuffled"), (False, True)):
        gpu.settings.order, gpu.settings.lazy = order, lazy
        net = network(backend(graph=True), l2=0.1, dropout=0.2)
        results.append(trained(net, X, y, optimizer=bpgpu.Adam(clip_norm=0.5), validation_data=(X, y)))
    assert all(result == results[0] for result in results)


def test_a_rule_of_the_users_own_runs_without(gpu, backend):
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    assert_alike(backend, *data(), options={"dtype": "float64"}, optimizer=SignDescent(0.01))
    assert gpu.counters.graph_launches == 0


# What it costs


def counts(counters):
    names = ("launches", "graph_launches", "synchronisations", "transfers_h2d", "transfers_d2h", "allocations")
    return {name: getattr(counters, name) for name in names} | {"matmuls": counters.matmuls}


def spent_by_epoch(gpu, net, X, y, **options):
    spent = []

    class Count(bpgpu.Callback):
        def on_epoch_begin(self, training):
            self.before = counts(gpu.counters)

        def on_epoch_end(self, training):
            spent.append({name: value - self.before[name] for name, value in counts(gpu.counters).items()})

    net.fit(X, y, batch_size=16, epochs=3, callbacks=[Count()], **options)
    return spent


@pytest.mark.parametrize(("clip_norm", "extra"), [(None, 0), (1.0, 2)])
@pytest.mark.parametrize("dropout", [0, 0.2])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("rows", [64, 65])
def test_an_epoch_costs_exactly_this(gpu, backend, captures, rows, layers, dropout, clip_norm, extra):
    """One call for each full batch; launches for a smaller one, the sum of costs and the copy of the weights."""
    activations = [*["relu"] * (layers - 1), "softmax"]
    net = network(backend(graph=True), (5, *[7] * (layers - 1), 3), activations, l2=0.1, dropout=dropout)
    spent = spent_by_epoch(gpu, net, *data(rows), optimizer=bpgpu.Adam(clip_norm=clip_norm))
    tail = (3 * layers + 2 + extra) * (rows % 16 > 0)
    expected = {"graph_launches": 4, "launches": tail + 2, "synchronisations": 1, "transfers_h2d": 1}
    expected |= {"transfers_d2h": 1, "allocations": 0, "matmuls": 0}
    assert spent[1] == spent[2] == expected
    assert len(captures) == 1


def test_no_product_of_the_fused_gemm_is_left_to_cublas(gpu, backend):
    """Nor that behind a hidden softmax, which has no formula of its own for the GEMM to apply."""
    net = network(backend(gemm="fused"), activations=("softmax", "softmax", "softmax"))
    gpu.counters.reset()
    net.fit(*data(), epochs=1, batch_size=16)
    assert gpu.counters.matmuls == 0


def test_no_graphs_unless_asked_for(gpu, backend, captures):
    network(backend(gemm="fused")).fit(*data(), epochs=2, batch_size=16)
    assert (gpu.counters.graph_launches, captures) == (0, [])


# What goes wrong


def test_cublas_cannot_be_captured(backend):
    with pytest.raises(ValueError, match="graph=True needs the fused GEMM, for CuPy cannot capture cuBLAS"):
        backend(gemm="cublas", graph=True)
    assert {backend(gemm=gemm, graph=True).steps.gemm for gemm in ("auto", "fused")} == {"fused"}


@pytest.mark.parametrize("n", [48, 50])
@pytest.mark.parametrize("rate", [30.0, 1e6, 1e38])
@pytest.mark.parametrize("clip_norm", [None, 1e30])
def test_numbers_that_are_not_finite_are_placed_as_without_graphs(backend, rate, n, clip_norm):
    X, y = data(n)
    options = {"activations": ("relu", "relu", "identity"), "cost": "squared_error"}
    messages, states = [], []
    for chosen in (backend(gemm="fused"), backend(graph=True)):
        net = network(chosen, **options)
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(rate, clip_norm=clip_norm), epochs=99, batch_size=16)
        messages.append(str(caught.value))
        states.append((net.epoch, parameters(net).tobytes()))
    assert messages[0] == messages[1]
    assert states[0] == states[1]
    assert np.isfinite(parameters(net)).all()
    if rate < 1e38:  # there the reference, which looks at the weights once an epoch, names the step after
        reference = network("numpy", **options)
        with pytest.raises(bpgpu.NonFiniteError) as wanted:
            reference.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(rate, clip_norm=clip_norm), epochs=99, batch_size=16)
        assert (caught.value.epoch, caught.value.step) == (wanted.value.epoch, wanted.value.step)


@pytest.mark.parametrize("bad", [0, 20, 47, 49])
def test_a_sample_that_overflows_is_found_in_its_batch(backend, bad):
    X, y = data()
    X[bad] = 1e38
    net = network(backend(graph=True), activations="identity", cost="squared_error")
    with pytest.raises(bpgpu.NonFiniteError) as caught:
        net.fit(X, np.eye(3)[y], optimizer=bpgpu.SGD(1e-3), epochs=1, batch_size=16, shuffle=False)
    assert (caught.value.epoch, caught.value.step) == (1, bad // 16 + 1)


def test_the_default_stream_may_be_used_during_a_capture(gpu, backend, monkeypatch):
    """By another thread of the user's, say: it would break the capture of a blocking stream."""
    begin = gpu.cuda.Stream.begin_capture

    def begin_and_disturb(stream, mode=None):
        begin(stream, mode)
        with gpu.cuda.Stream.null:
            gpu.ones((3,))

    monkeypatch.setattr(gpu.cuda.Stream, "begin_capture", begin_and_disturb)
    network(backend(graph=True)).fit(*data(), epochs=1, batch_size=16)
    assert gpu.counters.graph_launches == 3


def test_a_capture_that_fails_leaves_nothing_behind(backend, monkeypatch):
    chosen = backend(graph=True)
    X, y = data()

    def fail():
        raise RuntimeError("no launch")

    with monkeypatch.context() as patch:
        patch.setattr(chosen.steps, "advance", lambda *arguments: fail)
        with pytest.raises(RuntimeError, match="no launch"):
            network(chosen).fit(X, y, batch_size=16, epochs=1)
    assert not chosen.capture.is_capturing()
    assert trained(network(chosen), X, y) == trained(network(backend(gemm="fused")), X, y)
