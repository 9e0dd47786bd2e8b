"""Initial weights: their distribution, which one "auto" takes, and where the numbers come from."""

import math

import numpy as np
import pytest

import bpgpu

M, N = 300, 500  # fan-in and fan-out: different, so that a mix-up shows
CUBE = bpgpu.Activation("cube", value="z ** 3", derivative="3 * z ** 2")

# variance, as in the papers
VARIANCE = {
    "glorot": 2 / (M + N),
    "glorot_uniform": 2 / (M + N),
    "glorot_normal": 2 / (M + N),
    "he": 2 / M,
    "he_uniform": 2 / M,
    "he_normal": 2 / M,
    "lecun": 1 / M,
    "lecun_uniform": 1 / M,
    "lecun_normal": 1 / M,
}
UNIFORM = ("glorot", "glorot_uniform", "he_uniform", "lecun_uniform")


@pytest.fixture
def initial(make_net):
    def make(init, sizes=(M, N), activations="tanh", **options):
        return make_net(sizes, activations, init=init, **options)

    return make


@pytest.mark.parametrize(("init", "variance"), VARIANCE.items())
def test_distribution(initial, init, variance):
    net = initial(init)
    W = net.weights[0]
    assert abs(W.mean()) < 5 * math.sqrt(variance / W.size)
    assert W.var() == pytest.approx(variance, rel=0.02)
    bound = math.sqrt(3 * variance)
    if init in UNIFORM:
        assert 0.999 * bound < np.abs(W).max() <= bound
    else:
        assert np.abs(W).max() > 2 * bound
        assert np.mean(np.abs(W) < math.sqrt(variance)) == pytest.approx(0.6827, abs=0.01)
    assert not net.biases[0].any()


def test_zeros(initial):
    assert not initial("zeros").parameters.any()


@pytest.mark.parametrize(
    ("activation", "name"),
    [(name, "glorot") for name in ("identity", "linear", "sigmoid", "logistic", "tanh", "softmax")]
    + [(name, "he") for name in ("relu", "leaky_relu", "elu", "softplus", "gelu", "silu", "swish", CUBE)],
    ids=str,
)
def test_auto(initial, activation, name):
    assert np.array_equal(initial("auto", activations=activation).parameters, initial(name).parameters)


def test_auto_chooses_layer_by_layer(initial):
    options = {"sizes": (30, 40, 50), "activations": ("relu", "softmax")}
    auto, he, glorot = (initial(init, **options).weights for init in ("auto", "he", "glorot"))
    assert np.array_equal(auto[0], he[0])
    assert np.array_equal(auto[1], glorot[1])


def test_documented_random_stream(initial):
    net = initial("he", sizes=(4, 6, 3), seed=11)
    for l, (m, n) in enumerate([(4, 6), (6, 3)], start=1):
        draws = np.random.default_rng([11, 0, l]).standard_normal(m * n)
        np.testing.assert_allclose(net.weights[l - 1].ravel(), draws * math.sqrt(2 / m), rtol=1e-14)
    net = initial("glorot", sizes=(4, 6), seed=12)
    draws = np.random.default_rng([12, 0, 1]).random(24)
    np.testing.assert_allclose(net.weights[0].ravel(), (2 * draws - 1) * math.sqrt(6 / 10), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform"])
def test_float32_is_the_rounded_float64_draw(initial, init):
    exact, rounded = initial(init).parameters, initial(init, dtype="float32").parameters
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, exact.astype(np.float32))


def test_seeds(initial):
    nets = [initial("he", sizes=(5, 5, 5), seed=seed) for seed in (3, 3, 4, 2**64 - 1)]
    assert np.array_equal(nets[0].parameters, nets[1].parameters)
    matrices = [W for net in nets[1:] for W in net.weights]
    assert len({W.tobytes() for W in matrices}) == 6  # other seeds and other layers get other numbers


def test_seed_none_draws_a_seed_that_can_be_used_again(initial):
    first, second = initial("he", seed=None), initial("he", seed=None)
    assert first.architecture.seed != second.architecture.seed
    assert not np.array_equal(first.parameters, second.parameters)
    assert np.array_equal(initial("he", seed=first.architecture.seed).parameters, first.parameters)


@pytest.mark.parametrize("bias", [True, False])
def test_given_weights(initial, bias):
    W = [np.arange(6.0).reshape(3, 2), np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])[:, ::-1]]
    b = [np.array([7, 8]), [9.0, 10.0, 11.0]]
    before = [array.copy() for array in W]
    net = initial(list(zip(W, b, strict=True)) if bias else W, sizes=(3, 2, 3), bias=bias)
    for given, own in zip(W, net.weights, strict=True):
        assert np.array_equal(given, own)
    if bias:
        assert [own.tolist() for own in net.biases] == [[7, 8], [9, 10, 11]]
    else:
        assert net.biases == [None, None]
    net.parameters[...] = -1
    assert all(np.array_equal(given, copy) for given, copy in zip(W, before, strict=True))
