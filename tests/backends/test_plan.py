"""Memory: the flat buffer, and a plan that owns everything a training run needs."""

import copy
import pickle

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.numpy_backend import NumpyBackend
from bpgpu.backends.plan import Plan


class Counting(NumpyBackend):
    """Counts the bytes that go through `empty`, and refuses it inside an epoch."""

    def __init__(self):
        super().__init__()
        self.allocated, self.in_epoch = 0, False

    def empty(self, shape, dtype):
        assert not self.in_epoch, "allocation inside an epoch"
        array = super().empty(shape, dtype)
        array.fill(np.nan)  # whoever reads before writing will show it
        self.allocated += array.nbytes
        return array

    def run_epoch(self, *arguments, **options):
        self.in_epoch = True
        try:
            return super().run_epoch(*arguments, **options)
        finally:
            self.in_epoch = False


NETWORKS = {
    "plain": {"activations": ["relu", "softmax"], "cost": "cross_entropy"},
    "keeps z": {"activations": ["gelu", "softmax"], "cost": "cross_entropy"},
    "dropout": {"activations": ["relu", "softmax"], "cost": "cross_entropy", "dropout": 0.5},
    "no bias": {"activations": ["tanh", "identity"], "cost": "squared_error", "bias": False, "dtype": "float64"},
}
OPTIMIZERS = [bpgpu.SGD(0.1), bpgpu.SGD(0.1, momentum=0.9), bpgpu.RMSprop(), bpgpu.AdamW()]


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=lambda rule: f"{type(rule).__name__}{rule.n_state}")
@pytest.mark.parametrize("name", NETWORKS)
def test_nbytes_is_what_is_allocated_and_known_before(name, rule):
    backend = Counting()
    net = bpgpu.MLP([5, 7, 3], **NETWORKS[name], backend=backend)
    plan = bpgpu.Plan(net.architecture, 11, backend, rule)
    assert backend.allocated == 0
    expected = plan.nbytes
    plan.allocate()
    assert backend.allocated == expected


def test_nbytes_by_hand():
    net = bpgpu.MLP([5, 7, 3], ["gelu", "softmax"], "cross_entropy", dropout=0.1, backend="numpy")
    B, parameters = 11, 5 * 7 + 7 + 7 * 3 + 3
    rows = (
        5 + 7 + 3 + (7 + 3) + 7 + (7 + 3) + 3 + 1 + 1
    )  # a, z of both layers, h of the hidden one, delta, y, scale, cost; gradients, m, v and the last finite parameters
    assert bpgpu.Plan(net.architecture, B, net.backend, bpgpu.Adam()).nbytes == 4 * (B * rows + 4 * parameters)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_allocated_inside_an_epoch_and_nothing_read_before_it_is_written(name):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((25, 5)), rng.integers(0, 3, 25)
    parameters = []
    for backend in (Counting(), NumpyBackend()):
        net = bpgpu.MLP([5, 7, 3], **NETWORKS[name], backend=backend)
        history = net.fit(X, y, epochs=3, batch_size=10, validation_data=(X, y), sample_weight=rng.random(25) * 0 + 1)
        assert np.isfinite(history.loss).all()
        parameters.append(net.parameters)
    np.testing.assert_array_equal(*parameters)


def test_the_flat_buffer_is_weights_then_biases_and_its_views_write_through():
    net = bpgpu.MLP([2, 3, 1], "tanh", "squared_error", dtype="float64")
    (W1, W2), (b1, b2) = net.weights, net.biases
    np.testing.assert_array_equal(net.parameters, np.concatenate([W1.ravel(), W2.ravel(), b1, b2]))
    for value, array in enumerate((W1, W2, b1, b2), start=1):
        assert np.shares_memory(array, net.parameters)
        array[...] = value
    np.testing.assert_array_equal(net.parameters, [1] * 6 + [2] * 3 + [3] * 3 + [4])
    assert net.architecture.n_weights == 9
    assert bpgpu.MLP([2, 3, 1], "tanh", "squared_error", bias=False).biases == [None, None]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_whole_and_their_own(duplicate):
    net = bpgpu.MLP([2, 3, 1], "tanh", "squared_error", connectivity=[np.eye(2, 3), None])
    other = duplicate(net)
    X = np.random.default_rng(0).standard_normal((4, 2))
    np.testing.assert_array_equal(other.predict(X), net.predict(X))
    other.weights[0][...] = 0
    assert other.predict(X).any() or not np.array_equal(other.predict(X), net.predict(X))
    assert net.weights[0].any()
    other.fit(X, X[:, 0], epochs=1)
    assert repr(other) == repr(net)


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [
        (10**400, ValueError, "at most 2147483647, got an integer of 1329 bits"),
        (2**31, ValueError, "at most 2147483647, got 2147483648"),
        (0, ValueError, "at least 1, got 0"),
        (2.0, TypeError, "an integer of at least 1, got 2.0"),
    ],
)
def test_batches_of_no_size_are_refused(batch_size, error, message):
    net = bpgpu.MLP([2, 3, 1], "tanh", "squared_error")
    with pytest.raises(error, match=f"^batch_size must be {message}$"):
        Plan(net.architecture, batch_size, net.backend)
