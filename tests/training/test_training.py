"""Training: the loop against plain NumPy, weights of samples, dropout, masks, callbacks, and how training ends."""

import re
import signal

import numpy as np
import pytest

import bpgpu
from bpgpu.kernels import rules
from bpgpu.kernels.philox import keep_mask

OPTIMIZERS = ["sgd", bpgpu.SGD(0.1, momentum=0.9, nesterov=True), "rmsprop", "adam", bpgpu.AdamW(weight_decay=0.1)]


def with_plain_numpy(net, X, y, epochs, batch_size, *, weight=None, l2=0.0, rate=lambda step: 0.1, shuffle=True):
    """Train a 3-5-2 tanh, identity network with half the squared error by gradient descent, all written out.

    Returns its parameters, those of the last step first, and the mean cost of each epoch.
    """
    (W1, W2), (b1, b2) = [[array.copy() for array in arrays] for arrays in (net.weights, net.biases)]
    weight = np.ones(len(X)) if weight is None else weight
    losses, steps = [], 0
    for epoch in range(net.epoch, net.epoch + epochs):
        order = np.arange(len(X))
        if shuffle:
            order = np.random.default_rng([net.architecture.seed, 1, epoch]).permutation(len(X))
        cost_sum = 0.0
        for start in range(0, len(X), batch_size):
            rows = order[start : start + batch_size]
            x, t, w, m = X[rows], y[rows], weight[rows], len(rows)
            share = w / w.sum() if w.any() else w
            a = np.tanh(x @ W1 + b1)
            out = a @ W2 + b2
            C = (share * 0.5 * ((out - t) ** 2).sum(axis=1)).sum() + l2 / (2 * m) * ((W1**2).sum() + (W2**2).sum())
            delta2 = (out - t) * share[:, None]
            delta1 = delta2 @ W2.T * (1 - a**2)
            eta = rate(steps)
            W2, b2 = W2 - eta * (a.T @ delta2 + l2 / m * W2), b2 - eta * delta2.sum(axis=0)
            W1, b1 = W1 - eta * (x.T @ delta1 + l2 / m * W1), b1 - eta * delta1.sum(axis=0)
            cost_sum += w.sum() * C
            steps += 1
        losses.append(cost_sum / weight.sum())
    return np.concatenate([W1.ravel(), W2.ravel(), b1, b2]), losses


def same(net, other):
    return np.array_equal(net.parameters, other.parameters)


# The loop


@pytest.mark.parametrize("batch_size", [1, 7, 10, 20, 1000], ids="batch={}".format)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("l2", [0.0, 0.3], ids="l2={}".format)
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_loop_by_hand(make_net, data, batch_size, weighted, l2, shuffle):
    X, y = data(20)
    weight = np.random.default_rng(3).uniform(0.1, 3.0, 20) if weighted else None
    net = make_net(l2=l2)
    expected, losses = with_plain_numpy(net, X, y, 2, batch_size, weight=weight, l2=l2, shuffle=shuffle)
    history = net.fit(
        X, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=batch_size, sample_weight=weight, shuffle=shuffle
    )
    np.testing.assert_allclose(net.parameters, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert net.epoch == 2


def test_batch_larger_than_the_data_is_all_of_them(make_net, data):
    X, y = data(20)
    nets = make_net(), make_net()
    for net, batch_size in zip(nets, (20, 10**9), strict=True):
        net.fit(X, y, epochs=3, batch_size=batch_size)
    assert same(*nets)


def test_shuffling_goes_on_with_the_epoch(make_net, data):
    X, y = data(20)
    net = make_net()
    for _ in range(3):
        expected, _ = with_plain_numpy(net, X, y, 1, 6)
        net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=1, batch_size=6)
        np.testing.assert_allclose(net.parameters, expected, rtol=1e-11, atol=1e-13)


def test_history(make_net, data):
    X, y = data(20)
    net = make_net(dropout=0.5)
    Xv, yv, wv = X[:9] + 0.1, y[:9], np.arange(9.0)
    validated = []

    class Record(bpgpu.Callback):
        def on_epoch_end(self, training):
            validated.append(net.loss(Xv, yv, wv))

    history = net.fit(
        X, y, optimizer=bpgpu.SGD(0.2), epochs=3, batch_size=8, validation_data=(Xv, yv, wv), callbacks=[Record()]
    )
    assert isinstance(history, bpgpu.History)
    assert len(history.loss) == 3
    assert history.validation_loss == validated
    assert history.learning_rate == [0.2] * 3
    assert len(history.seconds) == 3
    assert min(history.seconds) > 0
    assert history.stop_reason == "finished 3 epochs"
    again = make_net(dropout=0.5).fit(X, y, optimizer=bpgpu.SGD(0.2), epochs=1, batch_size=8)
    assert (again.validation_loss, again.loss) == ([], history.loss[:1])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_validation_loss_and_early_stopping_are_those_of_rows_however_often_repeated(backend):
    """The penalty, lambda / 2m, depends on how many there are; so it is not in the validation loss."""
    rng = np.random.default_rng(1)
    X, X_val = rng.normal(size=(200, 10)), rng.normal(size=(20, 10))
    y, y_val = (((x[:, 0] * x[:, 1] + 0.3 * rng.normal(size=len(x))) > 0).astype(int) for x in (X, X_val))
    found = []
    for times in (1, 50):
        options = {"l2": 0.5, "seed": 0, "dtype": "float64", "backend": backend}
        net = bpgpu.MLP([10, 30, 2], ["tanh", "softmax"], "cross_entropy", **options)
        stopping = bpgpu.EarlyStopping(patience=8)
        validation = np.repeat(X_val, times, axis=0), np.repeat(y_val, times)
        history = net.fit(X, y, optimizer=bpgpu.Adam(0.01), epochs=60, validation_data=validation, callbacks=[stopping])
        assert min(history.validation_loss) == net.loss(*validation, penalty=False)
        found.append((stopping.best_epoch, len(history.loss), history.validation_loss))
    assert found[0][:2] == found[1][:2]
    assert found[0][1] < 60
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-12)


def test_loss_with_and_without_the_penalty(make_net, data):
    X, y = data(20)
    net, plain = make_net(l2=0.3), make_net()
    squares = sum(float((W**2).sum()) for W in net.weights)
    assert net.loss(X, y, penalty=False) == plain.loss(X, y)
    assert net.loss(X, y) == pytest.approx(plain.loss(X, y) + 0.3 / (2 * 20) * squares, rel=1e-14)
    history = net.fit(X, y, optimizer=bpgpu.SGD(1e-30), epochs=1, batch_size=5, validation_data=(X, y))
    assert history.validation_loss == [plain.loss(X, y)]
    assert history.loss == [pytest.approx(plain.loss(X, y) + 0.3 / (2 * 5) * squares, rel=1e-14)]
    with pytest.raises(TypeError, match=r"^penalty must be True or False, got 0"):
        net.loss(X, y, penalty=0)


def test_validation_does_not_touch_the_training(make_net, data):
    X, y = data(20)
    nets = make_net(dropout=0.3), make_net(dropout=0.3)
    nets[0].fit(X, y, epochs=3, batch_size=8)
    nets[1].fit(X, y, epochs=3, batch_size=8, validation_data=[X[:5], y[:5]])
    assert same(*nets)


def test_loss_and_predict_of_more_rows_than_they_take_at_a_time(make_net, data):
    X, y = data(9000)
    net = make_net(l2=0.3)
    weight = np.random.default_rng(0).uniform(0, 2, 9000)
    weight[:4500] = 0  # a first piece without any weight
    (W1, W2), (b1, b2) = net.weights, net.biases
    out = np.tanh(X @ W1 + b1) @ W2 + b2
    np.testing.assert_allclose(net.predict(X), out, rtol=1e-12, atol=1e-14)
    penalty = 0.3 / (2 * 9000) * ((W1**2).sum() + (W2**2).sum())
    for w in (None, weight):
        cost = np.average(0.5 * ((out - y) ** 2).sum(axis=1), weights=w)
        assert net.loss(X, y, w) == pytest.approx(cost + penalty, rel=1e-12)


# Labels and sample weights


@pytest.mark.parametrize(
    ("output", "cost"),
    [("softmax", "cross_entropy"), ("sigmoid", "binary_cross_entropy"), ("identity", "mean_squared_error")],
)
def test_integer_labels_equal_one_hot(make_net, data, output, cost):
    X, _ = data(30)
    labels = np.random.default_rng(2).integers(0, 4, 30)
    one_hot = np.array([[float(k == label) for k in range(4)] for label in labels])
    nets = [make_net((3, 5, 4), ("relu", output), cost, dropout=0.2) for _ in range(2)]
    histories = [net.fit(X, y, epochs=3, batch_size=8) for net, y in zip(nets, (labels, one_hot), strict=True)]
    assert same(*nets)
    assert histories[0].loss == histories[1].loss
    assert nets[0].loss(X, labels) == nets[0].loss(X, one_hot)


def test_targets_of_a_single_output_may_have_one_dimension(make_net, data):
    X, y = data()
    nets = make_net((3, 5, 1)), make_net((3, 5, 1))
    nets[0].fit(X, y[:, 0], epochs=2, batch_size=8)
    nets[1].fit(X, y[:, :1], epochs=2, batch_size=8)
    assert same(*nets)


def test_integer_weights_equal_repeated_samples(make_net, data):
    X, y = data(6)
    counts = np.array([1, 3, 0, 2, 1, 5])
    net = make_net()
    C, gradients = net.backprop(X, y, counts)
    C_repeated, repeated = net.backprop(X.repeat(counts, axis=0), y.repeat(counts, axis=0))
    assert pytest.approx(C_repeated, rel=1e-13) == C
    assert net.loss(X, y, counts) == pytest.approx(C_repeated, rel=1e-13)
    for pair, other in zip(gradients, repeated, strict=True):
        for g, g_repeated in zip(pair, other, strict=True):
            np.testing.assert_allclose(g, g_repeated, rtol=1e-11, atol=1e-14)


def test_samples_of_weight_zero_have_no_influence(make_net, data):
    X, y = data(20)
    weight = np.arange(20) % 3
    other_X, other_y = X.copy(), y.copy()
    other_X[weight == 0], other_y[weight == 0] = 50.0, -50.0
    nets = make_net(l2=0.1), make_net(l2=0.1)
    histories = [
        net.fit(*samples, epochs=3, batch_size=4, sample_weight=weight)
        for net, samples in zip(nets, ((X, y), (other_X, other_y)), strict=True)
    ]
    assert same(*nets)
    assert histories[0].loss == histories[1].loss
    assert nets[0].loss(X, y, weight) == nets[0].loss(other_X, other_y, weight)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_batches_of_weight_zero_only(make_net, data, l2):
    X, y = data(12)
    weight = np.array([0.0] * 4 + [1.0, 2.0, 0.0, 3.0] + [0.0] * 4)
    net = make_net(l2=l2)
    expected, losses = with_plain_numpy(net, X, y, 2, 4, weight=weight, l2=l2, shuffle=False)
    history = net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=4, sample_weight=weight, shuffle=False)
    np.testing.assert_allclose(net.parameters, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e38])
def test_only_the_ratios_of_sample_weights_matter(make_net, data, scale):
    X, y = data(20)
    weight = np.linspace(1, 3, 20)
    nets = make_net(dtype="float32"), make_net(dtype="float32")
    histories = [
        net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=8, sample_weight=w)
        for net, w in zip(nets, (weight, weight * scale), strict=True)
    ]
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=1e-5)
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-4, atol=1e-6)


# The same bits


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_seed_same_bits(make_net, data, optimizer, dtype):
    X, y = data(50)
    nets = [make_net(dtype=dtype, dropout=0.3, seed=seed) for seed in (1, 1, 2)]
    losses = [net.fit(X, y, optimizer=optimizer, epochs=2, batch_size=16).loss for net in nets]
    assert same(nets[0], nets[1])
    assert losses[0] == losses[1]
    assert not same(nets[0], nets[2])


def test_training_in_two_parts_with_a_file_between(make_net, data, tmp_path):
    X, y = data(50)
    options = {"dropout": 0.3, "l2": 0.1, "dtype": "float32"}
    whole, part = make_net(**options), make_net(**options)
    arguments = {"optimizer": bpgpu.SGD(0.2), "batch_size": 16, "validation_data": (X, y)}
    history = whole.fit(X, y, epochs=5, **arguments)
    first = part.fit(X, y, epochs=3, **arguments)
    part.save(tmp_path / "net.safetensors")
    loaded = bpgpu.MLP.load(tmp_path / "net.safetensors", backend="numpy")
    second = loaded.fit(X, y, epochs=2, **arguments)
    assert same(loaded, whole)
    assert loaded.epoch == whole.epoch == 5
    assert first.loss + second.loss == history.loss
    assert first.validation_loss + second.validation_loss == history.validation_loss


# Dropout and connectivity


@pytest.mark.parametrize("rate", [0.25, 0.8])
def test_dropout_drops_what_philox_says(make_net, data, rate):
    X, y = data(6)
    net = make_net((3, 8, 7, 2), ("tanh", "sigmoid", "identity"), dropout=rate, seed=2**40 + 5)
    net.epoch = 3
    (W1, W2, W3), (b1, b2, b3) = net.weights, net.biases
    kept = [keep_mask((6, n), rate, seed=2**40 + 5, epoch=3, step=11, layer=l) for l, n in ((1, 8), (2, 7))]
    a1 = np.tanh(X @ W1 + b1)
    h1 = a1 * kept[0] / (1 - rate)
    a2 = 1 / (1 + np.exp(-(h1 @ W2 + b2)))
    h2 = a2 * kept[1] / (1 - rate)
    out = h2 @ W3 + b3
    delta3 = (out - y) / 6
    delta2 = delta3 @ W3.T * kept[1] / (1 - rate) * a2 * (1 - a2)
    delta1 = delta2 @ W2.T * kept[0] / (1 - rate) * (1 - a1**2)
    C, gradients = net.backprop(X, y, step=11)
    assert pytest.approx(0.5 * ((out - y) ** 2).sum() / 6, rel=1e-13) == C
    for (dW, db), h, delta in zip(gradients, (X, h1, h2), (delta1, delta2, delta3), strict=True):
        np.testing.assert_allclose(dW, h.T @ delta, rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(db, delta.sum(axis=0), rtol=1e-11, atol=1e-14)


def test_dropout_counts_epochs_and_steps_of_fit(make_net, data):
    X, y = data(10)
    net, hand = make_net(dropout=0.5), make_net(dropout=0.5)
    net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=3, batch_size=4, shuffle=False)
    for epoch in range(3):
        hand.epoch = epoch
        for step, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            _, gradients = hand.backprop(X[rows], y[rows], step=step)
            for W, b, (dW, db) in zip(hand.weights, hand.biases, gradients, strict=True):
                W -= 0.1 * dW
                b -= 0.1 * db
    np.testing.assert_allclose(net.parameters, hand.parameters, rtol=1e-13, atol=1e-15)


def test_dropout_keeps_the_expectation_and_leaves_inference_alone(make_net, data):
    X, y = data(10)
    net, plain = make_net(dropout=0.4, activations="identity"), make_net(activations="identity")
    assert net.loss(X, y) == plain.loss(X, y)
    assert np.array_equal(net.predict(X), plain.predict(X))
    # The gradient at the output bias is linear in the activations, so that its mean over many masks is that without.
    mean = np.mean([net.backprop(X, y, step=step)[1][-1][1] for step in range(4000)], axis=0)
    np.testing.assert_allclose(mean, plain.backprop(X, y)[1][-1][1], atol=0.03)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_masked_weights_stay_zero(make_net, data, optimizer):
    X, y = data(20)
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, (3, 5)), None, rng.integers(0, 2, (4, 2)).astype(bool)]
    net = make_net((3, 5, 4, 2), ("tanh", "relu", "identity"), connectivity=masks, l2=0.1, dropout=0.2)
    for mask, W, (dW, _) in zip(masks, net.weights, net.backprop(X, y)[1], strict=True):
        if mask is not None:
            assert 0 < np.count_nonzero(mask) < mask.size
            assert not W[mask == 0].any()
            assert not dW[mask == 0].any()
    before = net.parameters.copy()
    net.fit(X, y, optimizer=optimizer, epochs=5, batch_size=6)
    for mask, W, old in zip(masks, net.weights, net.architecture.views(before)[0], strict=True):
        connected = np.ones(W.shape, bool) if mask is None else np.asarray(mask) == 1
        assert not W[~connected].any()
        assert (old != W)[connected].mean() > 0.8


def test_mask_leaves_the_other_gradients_alone(make_net, data):
    X, y = data(20)
    mask = np.random.default_rng(1).integers(0, 2, (3, 5))
    masked = make_net(connectivity=[mask, None], l2=0.1)
    plain = make_net(l2=0.1, init=list(zip(masked.weights, masked.biases, strict=True)))
    (dW1, db1), (dW2, db2) = plain.backprop(X, y)[1]
    for (dW, db), expected in zip(masked.backprop(X, y)[1], ((dW1 * mask, db1), (dW2, db2)), strict=True):
        assert np.array_equal(dW, expected[0])
        assert np.array_equal(db, expected[1])


# Learning rates


@pytest.mark.parametrize(
    ("rate", "seen"),
    [
        (bpgpu.StepDecay(0.2, 0.5, every=4), [0.2, 0.1, 0.05]),
        (bpgpu.StepDecay(0.2, 0.5, every=3), [0.2, 0.1, 0.05]),
        (lambda step: 0.3 / (1 + step), [0.3, 0.3 / 5, 0.3 / 9]),
    ],
    ids=["every epoch", "within epochs", "function"],
)
def test_schedule_by_step(make_net, data, rate, seen):
    X, y = data(20)
    net = make_net()
    expected, _ = with_plain_numpy(net, X, y, 3, 5, rate=rate)
    history = net.fit(X, y, optimizer=bpgpu.SGD(rate), epochs=3, batch_size=5)
    np.testing.assert_allclose(net.parameters, expected, rtol=1e-11, atol=1e-13)
    assert history.learning_rate == pytest.approx(seen, rel=1e-14)


def test_schedule_by_epoch(make_net, data):
    X, y = data(20)
    net, asked = make_net(), []

    def schedule(epoch, history):
        asked.append((epoch, len(history.loss)))
        return 0.2 / 2**epoch

    expected, _ = with_plain_numpy(net, X, y, 3, 5, rate=lambda step: 0.2 / 2 ** (step // 4))
    callbacks = [bpgpu.LearningRateSchedule(schedule)]
    history = net.fit(X, y, optimizer=bpgpu.SGD(9.0), epochs=3, batch_size=5, callbacks=callbacks)
    assert asked == [(0, 0), (1, 1), (2, 2)]
    assert history.learning_rate == [0.2, 0.1, 0.05]
    np.testing.assert_allclose(net.parameters, expected, rtol=1e-11, atol=1e-13)


# Callbacks


class Recorder(bpgpu.Callback):
    """Writes down its hooks."""

    def __init__(self, name, events, stop_at=None):
        self.name, self.events, self.stop_at = name, events, stop_at

    def check(self, training, *, has_validation):
        self.events.append((self.name, "check", has_validation))

    def on_train_begin(self, training):
        self.events.append((self.name, "train begin", training.epoch))

    def on_epoch_begin(self, training):
        self.events.append((self.name, "epoch begin", training.epoch))

    def on_epoch_end(self, training):
        assert len(training.history.loss) == len(training.history.validation_loss) == training.epoch
        self.events.append((self.name, "epoch end", training.epoch))
        if training.epoch == self.stop_at:
            training.stop("that is enough")

    def on_train_end(self, training):
        self.events.append((self.name, "train end", training.history.stop_reason))


def test_hooks_in_order(make_net, data):
    X, y = data()
    events = []
    net = make_net()
    callbacks = [Recorder("A", events, stop_at=2), Recorder("B", events)]
    history = net.fit(X, y, epochs=9, validation_data=(X, y), callbacks=callbacks)
    hooks = [
        ("check", True),
        ("train begin", 0),
        ("epoch begin", 0),
        ("epoch end", 1),
        ("epoch begin", 1),
        ("epoch end", 2),
        ("train end", "that is enough"),
    ]
    last = events[-2:]
    assert events[:-2] == [(name, *hook) for hook in hooks[:-1] for name in "AB"]
    assert last == [(name, *hooks[-1]) for name in "BA"]  # what began first ends last
    assert history.stop_reason == "that is enough"
    assert net.epoch == len(history.loss) == 2


def test_what_callbacks_see(make_net, data):
    X, y = data(20)
    net, seen, rule = make_net(), [], bpgpu.SGD(0.1)
    net.fit(X, y, epochs=1)

    class Look(bpgpu.Callback):
        def on_epoch_end(self, training):
            seen.append((training.net, training.optimizer, training.epochs, training.samples, training.epoch))

    net.fit(X, y, optimizer=rule, epochs=2, callbacks=(Look(),))
    assert seen == [(net, rule, 2, 20, 1), (net, rule, 2, 20, 2)]


def test_train_end_comes_after_an_error_too(make_net, data):
    events = []

    class Broken(bpgpu.Callback):
        def on_epoch_begin(self, training):
            raise RuntimeError("broken callback")

    with pytest.raises(RuntimeError, match="broken callback"):
        make_net().fit(*data(), callbacks=[Recorder("A", events), Broken()])
    assert events[-1] == ("A", "train end", "")


@pytest.fixture
def turning(make_net, data):
    """Return a function that makes a linear network, arguments of fit, validation data whose loss falls, then rises.

    The outputs go from 0 to y, and what validation wants lies half-way.
    """
    X, y = data(40)
    arguments = {"X": X, "y": y, "optimizer": bpgpu.SGD(0.1), "batch_size": 40}
    return lambda: (make_net((3, 2), "identity", init="zeros"), arguments, (X, y / 2))


def trajectory(net, arguments, validation, epochs):
    """Return the parameters and the validation loss after each epoch, trained by one fit per epoch."""
    parameters, losses = [], []
    for _ in range(epochs):
        net.fit(epochs=1, **arguments)
        parameters.append(net.parameters.copy())
        losses.append(net.loss(*validation))
    best = int(np.argmin(losses))
    assert 1 < best < epochs - 5
    return parameters, losses, best


@pytest.mark.parametrize("restore_best", [True, False], ids=["restore", "keep"])
@pytest.mark.parametrize(("patience", "epochs"), [(4, 200), (50, 12)], ids=["stops", "epochs run out"])
def test_early_stopping(turning, restore_best, patience, epochs):
    parameters, losses, best = trajectory(*turning(), 12)
    net, arguments, validation = turning()
    stopping = bpgpu.EarlyStopping(patience, restore_best=restore_best)
    history = net.fit(epochs=epochs, validation_data=validation, callbacks=[stopping], **arguments)
    last = min(best + patience, epochs - 1)
    assert history.validation_loss == losses[: last + 1]
    assert np.array_equal(net.parameters, parameters[best if restore_best else last])
    assert (stopping.best, stopping.best_epoch) == (losses[best], best + 1)
    if epochs == 200:
        assert history.stop_reason.startswith("early stopping: validation_loss has not improved for 4 epochs")
        assert f"in epoch {best + 1}" in history.stop_reason
    else:
        assert history.stop_reason == "finished 12 epochs"


def test_early_stopping_keeps_the_last_step_after_an_interrupt(turning):
    parameters, _, _ = trajectory(*turning(), 12)

    class Interrupt(bpgpu.Callback):
        def on_epoch_end(self, training):
            if training.epoch == 12:
                signal.raise_signal(signal.SIGINT)

    net, arguments, validation = turning()
    callbacks = [bpgpu.EarlyStopping(100), Interrupt()]
    net.fit(epochs=99, validation_data=validation, callbacks=callbacks, **arguments)
    assert np.array_equal(net.parameters, parameters[11])


def test_early_stopping_min_delta_and_monitor(make_net, data):
    X, y = data(20)
    stopping = bpgpu.EarlyStopping(3, min_delta=1e9, monitor="loss")
    net = make_net()
    for _ in range(2):  # it starts anew in each fit
        history = net.fit(X, y, epochs=50, callbacks=[stopping])
        assert (len(history.loss), stopping.best_epoch, stopping.best) == (4, 1, history.loss[0])


def test_checkpoint_every_epoch(make_net, data, tmp_path):
    X, y = data()
    net, snapshots = make_net(), []
    net.fit(X, y, epochs=2)

    class Snapshot(bpgpu.Callback):
        def on_epoch_end(self, training):
            snapshots.append(training.net.parameters.copy())

    callbacks = [Snapshot(), bpgpu.Checkpoint(tmp_path / "net-{epoch}.safetensors")]
    net.fit(X, y, optimizer=bpgpu.SGD(5.0, clip_norm=1.0), epochs=3, callbacks=callbacks)
    assert {file.name for file in tmp_path.iterdir()} == {f"net-{epoch}.safetensors" for epoch in (3, 4, 5)}
    for epoch, parameters in zip((3, 4, 5), snapshots, strict=True):
        saved = bpgpu.MLP.load(tmp_path / f"net-{epoch}.safetensors", backend="numpy")
        assert saved.epoch == epoch
        assert np.array_equal(saved.parameters, parameters)


def test_checkpoint_of_the_best_only(turning, tmp_path):
    parameters, _, best = trajectory(*turning(), 12)
    net, arguments, validation = turning()
    path = tmp_path / "best.safetensors"
    checkpoint = bpgpu.Checkpoint(str(path), monitor="validation_loss")
    net.fit(epochs=12, validation_data=validation, callbacks=[checkpoint], **arguments)
    saved = bpgpu.MLP.load(path, backend="numpy")
    assert saved.epoch == best + 1
    assert np.array_equal(saved.parameters, parameters[best])


def test_progress_bar_writes_to_a_terminal_on_standard_error(make_net, data, capsys, monkeypatch):
    X, y = data()
    net, quiet = make_net(), make_net()
    quiet.fit(X, y, epochs=3, validation_data=(X, y), progress=True)
    assert capsys.readouterr() == ("", "")  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    history = net.fit(X, y, epochs=3, validation_data=(X, y), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err)
    assert "3/3" in plain
    assert f"loss {history.loss[-1]:.4g}" in plain
    assert same(net, quiet)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_end", "on_train_end"])
def test_callbacks_that_began_are_ended_whatever_another_does(make_net, data, hook):
    X, y = data()
    events = []
    broken = bpgpu.Callback()

    def fail(training):
        raise RuntimeError("broken")

    setattr(broken, hook, fail)
    with pytest.raises(RuntimeError, match="broken"):
        make_net().fit(X, y, epochs=1, validation_data=(X, y), callbacks=[Recorder("A", events), broken])
    assert ("A", "train begin", 0) in events
    assert events[-1][:2] == ("A", "train end")


def test_a_learning_rate_that_a_callback_sets_is_checked(make_net, data):
    class Uphill(bpgpu.Callback):
        def on_epoch_begin(self, training):
            training.learning_rate = -1.0

    net = make_net()
    before = net.parameters.copy()
    with pytest.raises(ValueError, match=r"learning_rate must be a finite number above 0, got -1\.0"):
        net.fit(*data(), callbacks=[Uphill()])
    assert np.array_equal(net.parameters, before)


def test_decays_never_reach_zero():
    for decay in (bpgpu.StepDecay(0.1, 0.1, 1), bpgpu.ExponentialDecay(0.1, 0.1, 1)):
        assert 0 < decay(10**6) < 1e-300


# Ctrl-C


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("steps", [2, 4, 6])
def test_interrupt_between_steps(make_net, data, monkeypatch, optimizer, steps):
    X, y = data(40)
    net = make_net(dtype="float32")
    update = net.backend.update
    made = []

    def interrupted_update(*args, **kwargs):
        update(*args, **kwargs)
        made.append(net.parameters.copy())
        if len(made) == steps:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(net.backend, "update", interrupted_update)
        history = net.fit(X, y, optimizer=optimizer, epochs=9, batch_size=10)
    assert history.stop_reason == "interrupted"
    assert len(made) == steps
    assert np.array_equal(net.parameters, made[-1])
    assert len(history.loss) == net.epoch == (steps - 1) // 4
    assert not np.array_equal(made[-1], made[-2])


def after_steps(net, X, y, optimizer, steps):
    """Train on four batches of ten rows in order, for at most two epochs' worth of steps, in a plain loop."""
    backend, rule = net.backend, optimizer
    state = [np.zeros_like(net.parameters) for _ in range(rule.n_state)]
    for step in range(steps):
        rows = slice(10 * (step % 4), 10 * (step % 4) + 10)
        gradients = net.backprop(X[rows], y[rows])[1]
        flat = np.concatenate([*(dW.ravel() for dW, _ in gradients), *(db for _, db in gradients)])
        n_weights = net.architecture.n_weights
        backend.update(
            rule, net.parameters, flat, state, t=step + 1, learning_rate=rule.learning_rate, n_weights=n_weights
        )
    return net.parameters


def interrupting(k):
    """Return `rules.numpy_function`, but in the middle of the k-th step Ctrl-C comes."""
    made, calls = rules.numpy_function, []

    def numpy_function(text, dtype):
        def step(*arguments):
            calls.append(text)
            if len(calls) == 2 * k:  # first of the weights, then of the biases
                signal.raise_signal(signal.SIGINT)
            return made(text, dtype)(*arguments)

        return step

    return numpy_function


@pytest.mark.parametrize("optimizer", [bpgpu.RMSprop(0.05), bpgpu.Adam(0.05), bpgpu.AdamW(0.05)], ids=str)
@pytest.mark.parametrize("step", [1, 3, 7])
def test_interrupt_within_a_step(make_net, data, monkeypatch, optimizer, step):
    X, y = data(40)
    expected = after_steps(make_net(dtype="float32"), X, y, optimizer, step - 1)
    net = make_net(dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(rules, "numpy_function", interrupting(step))
        history = net.fit(X, y, optimizer=optimizer, epochs=9, batch_size=10, shuffle=False)
    assert history.stop_reason == "interrupted"
    assert np.array_equal(net.parameters, expected)
    net.fit(X, y, epochs=1)  # and training can go on


def test_interrupt_of_plain_gradient_descent_by_a_separate_run(make_net, data, monkeypatch):
    X, y = data(40)
    net = make_net(dtype="float32")
    separate = make_net(dtype="float32")
    for part in (40, 20):  # six steps: one epoch, and the first two batches of another
        separate.fit(X[:part], y[:part], optimizer=bpgpu.SGD(0.1), epochs=1, batch_size=10, shuffle=False)
    gradients, calls = net.backend.batch_gradients, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        C = gradients(*args, **kwargs)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return C

    with monkeypatch.context() as patch:
        patch.setattr(net.backend, "batch_gradients", interrupted)
        history = net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=9, batch_size=10, shuffle=False)
    assert (history.stop_reason, len(history.loss), net.epoch) == ("interrupted", 1, 1)
    assert same(net, separate)


def test_interrupt_during_validation_leaves_a_whole_history(make_net, data, monkeypatch):
    X, y = data(40)
    net = make_net()
    forward, calls = net.backend.batch_forward, []

    def interrupted(plan, *args, **kwargs):
        calls.append(plan.rule is None)
        if sum(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return forward(plan, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(net.backend, "batch_forward", interrupted)
        history = net.fit(X, y, epochs=9, batch_size=10, validation_data=(X, y))
    assert history.stop_reason == "interrupted"
    lengths = {len(x) for x in (history.loss, history.validation_loss, history.learning_rate, history.seconds)}
    assert len(lengths) == 1


# Numbers that are not finite


def divergence(X, y, rate, batch_size, seed):
    """Return epoch and step, from 1, where a linear 3-2 network in float32 first has an infinite cost or gradient."""
    W, b = bpgpu.MLP([3, 2], "identity", "half_squared_error", seed=seed, backend="numpy").weights[0].copy(), 0
    X, y, rate = np.float32(X), np.float32(y), np.float32(rate)
    with np.errstate(all="ignore"):
        for epoch in range(100):
            order = np.random.default_rng([seed, 1, epoch]).permutation(len(X))
            for step, start in enumerate(range(0, len(X), batch_size)):
                x, t = X[order[start : start + batch_size]], y[order[start : start + batch_size]]
                error = x @ W + b - t
                C = ((np.float32(0.5) * error**2).sum(axis=1) / np.float32(len(x))).sum()
                dW, db = x.T @ error / np.float32(len(x)), error.mean(axis=0)
                if not (np.isfinite(C) and np.isfinite(dW).all()):
                    return epoch + 1, step + 1
                W, b = W - rate * dW, b - rate * db
    raise AssertionError("it converged")


@pytest.mark.parametrize("rate", [30.0, 1e3, 1e7])  # in between, the validation cost is infinite before
def test_learning_rate_far_too_large(make_net, data, rate):
    X, y = data(40)
    arguments = {"optimizer": bpgpu.SGD(rate), "batch_size": 10}
    linear = {"sizes": (3, 2), "activations": "identity", "dtype": "float32"}
    epoch, step = divergence(X, y, rate, 10, seed=7)
    net, events = make_net(**linear), []
    with pytest.raises(
        bpgpu.NonFiniteError, match=f"of layer 1 is not finite in epoch {epoch}, step {step};"
    ) as caught:
        net.fit(X, y, epochs=99, validation_data=(X[:1], y[:1]), callbacks=[Recorder("", events)], **arguments)
    assert (caught.value.epoch, caught.value.step, caught.value.layer) == (epoch, step, 1)
    assert net.epoch == epoch - 1
    assert events[-1] == ("", "train end", "")
    finite = make_net(**linear)
    if epoch > 1:
        finite.fit(X, y, epochs=epoch - 1, **arguments)
    assert same(net, finite)


def test_some_rate_diverges_after_the_first_epoch(data):
    assert divergence(*data(40), 30.0, 10, seed=7)[0] > 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", bpgpu.SGD(1e-3, momentum=0.9)], ids=str)
def test_targets_far_too_large(make_net, data, optimizer):
    X, y = data()
    y[13, 1] = 1e30  # its square is above the largest float32
    net = make_net(dtype="float32")
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError, match="the cost of layer 2 is not finite in epoch 1, step 2;") as caught:
        net.fit(X, y, optimizer=optimizer, batch_size=10, shuffle=False)
    assert caught.value.quantity == "cost"
    assert np.array_equal(net.parameters, before)
    assert net.epoch == 0


def test_weights_that_overflow_in_the_last_step(make_net, data):
    X, y = data()
    net = make_net(dtype="float32")
    net.fit(X, y, epochs=1)
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError, match=r"the weight of layer \d is not finite in epoch 2, step 1;"):
        net.fit(X, 1e4 * y, optimizer=bpgpu.SGD(1e38), epochs=1)
    assert np.array_equal(net.parameters, before)
    assert net.epoch == 1


EXP = bpgpu.Activation("exponential", value="exp(z)", derivative="a")


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_own_activation_that_overflows(make_net, data, layer):
    X, y = data()
    X[5] *= 1e4
    X[6] = -X[5]
    names = [EXP if l == layer else "identity" for l in (1, 2, 3)]
    net = make_net((3, 4, 4, 2), names, dtype="float32")
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError, match=f"of layer {layer} is not finite in epoch 1, step 1;"):
        net.fit(X, y, shuffle=False)
    assert np.array_equal(net.parameters, before)


def test_own_cost_that_overflows(make_net, data):
    X, y = data()
    cost = bpgpu.Cost("exponential", value="exp(a - y)", gradient="exp(a - y)")
    net = make_net(cost=cost, dtype="float32")
    net.fit(X, y, epochs=1)
    before = net.parameters.copy()
    y[3] = -1000
    with pytest.raises(bpgpu.NonFiniteError, match="of layer 2 is not finite in epoch 2, step 1;"):
        net.fit(X, y, batch_size=20)
    assert np.array_equal(net.parameters, before)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_validation_loss_that_overflows(make_net, data, backend):
    X, y = data()
    far = y.copy()
    far[13, 1] = 1e30  # its square is above the largest float32
    net = make_net(dtype="float32", backend=backend)
    net.fit(X, y, epochs=1)
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError, match="the validation cost of layer 2 is not finite in epoch 2") as caught:
        net.fit(X, y, epochs=3, validation_data=(X, far))
    assert caught.value.quantity == "validation cost"
    assert np.array_equal(net.parameters, before)
    assert net.epoch == 1


@pytest.mark.parametrize(("reason", "kept"), [("", "stopped by a callback"), (None, "stopped by a callback"), (3, "3")])
def test_any_reason_stops(make_net, data, reason, kept):
    class Stop(bpgpu.Callback):
        def on_epoch_end(self, training):
            training.stop(reason)

    history = make_net().fit(*data(), epochs=5, callbacks=[Stop()])
    assert (len(history.loss), history.stop_reason) == (1, kept)


@pytest.mark.parametrize("epoch", [-1, "x", None, 1.5, 2**32 - 1, 2**70])
def test_a_callback_that_sets_a_wrong_epoch(make_net, data, epoch):
    class Turn(bpgpu.Callback):
        def on_epoch_end(self, training):
            training.net.epoch = epoch
            weights.append(training.net.parameters.copy())

    net, weights = make_net(), []
    with pytest.raises((TypeError, ValueError), match=r"^epoch must be "):
        net.fit(*data(), epochs=5, callbacks=[Turn()])
    assert len(weights) == 1
    assert np.array_equal(net.parameters, weights[0])


@pytest.mark.parametrize(
    "change", [lambda loss: loss.clear(), lambda loss: loss.append(1.0)], ids=["shorter", "longer"]
)
def test_epochs_are_counted_whatever_becomes_of_the_history(change):
    class Meddle(bpgpu.Callback):
        def on_epoch_end(self, training):
            change(training.history.loss)
            if training.net.epoch > 5:
                training.stop("too long")

    net = bpgpu.MLP([3, 1], "tanh", "mean_squared_error", backend="numpy")
    history = net.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=3, callbacks=[Meddle()])
    assert (history.stop_reason, net.epoch) == ("finished 3 epochs", 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_parameters_that_are_not_finite_are_refused_before_training(backend, bad):
    net = bpgpu.MLP([3, 1], "tanh", "mean_squared_error", backend=backend)
    net.parameters[2] = bad
    with pytest.raises(ValueError, match=r"^net.parameters must be finite in float32, got (nan|inf) at index \(2,\)"):
        net.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=3)
    assert net.epoch == 0
