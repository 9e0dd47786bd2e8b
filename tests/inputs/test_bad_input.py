"""Bad arguments: one error that names the argument, says what was expected and what came, and changes nothing.

And the opposite: anything that holds numbers in the right shape is as good as a contiguous array of floats.
The numbers of optimizers and schedules are in test_optimizers.py.
"""

import math
import os
from collections import UserList
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

import bpgpu

N = 4  # samples
GOOD_X = np.linspace(-1, 1, 3 * N).reshape(N, 3)
NETS = {  # name: (sizes, output activation, cost, good targets)
    "classes": ((3, 5, 3), "softmax", "cross_entropy", np.array([0, 2, 1, 0])),
    "yes-no": ((3, 5, 1), "sigmoid", "binary_cross_entropy", np.array([0.0, 1.0, 1.0, 0.0])),
    "numbers": ((3, 5, 2), "identity", "half_squared_error", np.linspace(-2, 2, 2 * N).reshape(N, 2)),
}


@pytest.fixture
def net_of(make_net):
    def make(kind="numbers", **options):
        sizes, output, cost, _ = NETS[kind]
        net = make_net(sizes, ("tanh", output), cost, **{"dtype": "float32"} | options)
        net.epoch = 3
        return net

    return make


def state(net, arrays):
    masks = [None if mask is None else mask.tobytes() for mask in net.masks]
    contents = [array.tobytes() for array in arrays if isinstance(array, np.ndarray)]
    return net.parameters.tobytes(), net.epoch, net.architecture, net.metadata.copy(), masks, contents


@contextmanager
def unchanged(net, error, message, *arrays):
    """Expect this error with this message, and that neither the network nor the arrays have changed."""
    before = state(net, arrays)
    with pytest.raises(error, match=message) as caught:
        yield
    assert caught.type in (ValueError, TypeError), "a subclass would say less"
    assert state(net, arrays) == before


def call(net, method, X, y, **options):
    if method in ("forward", "predict"):
        return getattr(net, method)(X)
    return getattr(net, method)(X, y, **options)


def with_entry(value, array=GOOD_X):
    changed = np.array(array, dtype=np.result_type(array, type(value)))
    changed.flat[5] = value
    return changed


# Samples

BAD_X = {
    "one dimension": (GOOD_X[0], ValueError, r"X must have shape \(samples, 3\), got 1 dimensions; .* X\[None, :\]"),
    "three dimensions": (GOOD_X[None], ValueError, r"X must have shape \(samples, 3\), got 3 dimensions"),
    "a number": (1.5, ValueError, r"X must have shape \(samples, 3\), got 0 dimensions"),
    "no rows": (GOOD_X[:0], ValueError, r"X must have at least one row, got shape \(0, 3\)"),
    "two columns": (GOOD_X[:, :2], ValueError, r"X must have 3 columns, .*got shape \(4, 2\)"),
    "transposed": (GOOD_X.T, ValueError, r"X must have 3 columns, .*got shape \(3, 4\)"),
    "no columns": (GOOD_X[:, :0], ValueError, r"X must have 3 columns, .*got shape \(4, 0\)"),
    "text": (GOOD_X.astype(str), TypeError, "X must hold numbers, got dtype <U"),
    "bytes": (GOOD_X.astype("S8"), TypeError, r"X must hold numbers, got dtype \|S8"),
    "objects": (GOOD_X.astype(object), TypeError, "X must hold numbers, got dtype object"),
    "None": (None, TypeError, "X must hold numbers, got dtype object"),
    "mixed list": ([[1, 2, "a"]] * N, TypeError, "X must hold numbers, got dtype <U"),
    "complex": (GOOD_X + 0j, TypeError, "X must hold numbers, got dtype complex128"),
    "dates": (GOOD_X.astype(int).astype("M8[s]"), TypeError, r"X must hold numbers, got dtype datetime64\[s\]"),
    "ragged": ([[1, 2, 3], [1, 2]], ValueError, "X must be a rectangular array of numbers"),
    "NaN": (with_entry(np.nan), ValueError, r"X must be finite in float32, got nan at index \(1, 2\)"),
    "infinity": (with_entry(np.inf), ValueError, r"X must be finite in float32, got inf at index \(1, 2\)"),
    "-infinity": (with_entry(-np.inf).tolist(), ValueError, r"X must be finite in float32, got -inf at index \(1, 2\)"),
    "too large": (with_entry(1e39), ValueError, r"X must be finite in float32, got 1e\+39 at index \(1, 2\)"),
}


@pytest.mark.parametrize("method", ["forward", "predict", "loss", "backprop", "fit", "validation"])
@pytest.mark.parametrize(("X", "error", "message"), BAD_X.values(), ids=BAD_X)
def test_bad_samples(net_of, method, X, error, message):
    net, y = net_of(), NETS["numbers"][-1]
    with unchanged(net, error, "^validation " + message if method == "validation" else "^" + message, X, y):
        if method == "validation":
            net.fit(GOOD_X, y, validation_data=(X, y))
        else:
            call(net, method, X, y)


def test_values_too_large_for_float32_are_fine_in_float64(net_of):
    net = net_of(dtype="float64")
    assert np.isfinite(net.predict(with_entry(1e39))).all()


# Targets

LABELS = "y of one dimension must hold the labels 0 ... 2, one for each of 3 outputs, got "
SHAPE_3 = r"y must have shape \(4, 3\), or \(4,\) of labels 0 ... 2, for 4 samples and 3 outputs; got "
BAD_Y = {
    "label K": ("classes", [0, 1, 2, 3], ValueError, LABELS + "3 in row 3"),
    "label -1": ("classes", [0, -1, 2, 1], ValueError, LABELS + "-1 in row 1"),
    "label 2**63": (
        "classes",
        np.array([0, 1, 2**63, 0], np.uint64),
        ValueError,
        LABELS + "9223372036854775808 in row 2",
    ),
    "label 0.5": ("classes", [0.5, 1, 2, 0], ValueError, LABELS + "0.5 in row 0"),
    "label NaN": ("classes", [0, 1, np.nan, 0], ValueError, LABELS + "nan in row 2"),
    "label infinity": ("classes", [0, 1, np.inf, 0], ValueError, LABELS + "inf in row 2"),
    "label 1e300": ("classes", [0, 1, 1e300, 0], ValueError, LABELS + r"1e\+300 in row 2"),
    "labels as text": ("classes", ["a", "b", "a", "c"], TypeError, "y must hold numbers, got dtype <U1"),
    "labels as objects": (
        "classes",
        np.array([0, 1, 2, 0], object),
        TypeError,
        "y must hold numbers, got dtype object",
    ),
    "None": ("classes", None, TypeError, "y must hold numbers, got dtype object"),
    "complex": ("classes", [1j, 0, 1, 2], TypeError, "y must hold numbers, got dtype complex128"),
    "too few": ("classes", [0, 1, 2], ValueError, SHAPE_3 + r"\(3,\)"),
    "too many": ("classes", [0, 1, 2, 0, 1], ValueError, SHAPE_3 + r"\(5,\)"),
    "none": ("classes", np.array([], int), ValueError, SHAPE_3 + r"\(0,\)"),
    "column of labels": ("classes", [[0], [1], [2], [0]], ValueError, SHAPE_3 + r"\(4, 1\)"),
    "a number": ("classes", 1, ValueError, SHAPE_3 + r"\(\)"),
    "three dimensions": ("classes", np.zeros((4, 3, 1)), ValueError, SHAPE_3 + r"\(4, 3, 1\)"),
    "transposed": ("numbers", np.zeros((2, 4)), ValueError, r"y must have shape \(4, 2\), .*got \(2, 4\)"),
    "too many columns": ("numbers", np.zeros((4, 3)), ValueError, r"y must have shape \(4, 2\), .*got \(4, 3\)"),
    "two columns": ("yes-no", np.zeros((4, 2)), ValueError, r"y must have shape \(4, 1\) or \(4,\), .*got \(4, 2\)"),
    "length": ("yes-no", np.zeros(3), ValueError, r"y must have shape \(4, 1\) or \(4,\), .*got \(3,\)"),
    "target 1.5": (
        "yes-no",
        [0, 1.5, 0, 1],
        ValueError,
        r"y must lie in \[0, 1\] for .*'binary_cross_entropy', got 1.5",
    ),
    "target -1": ("yes-no", [0, 1, -1, 1], ValueError, r"y must lie in \[0, 1\] for .*'binary_cross_entropy', got -1"),
    "probability -0.1": (
        "classes",
        [[0.5, 0.6, -0.1]] * 4,
        ValueError,
        r"y must lie in \[0, 1\] for the cost 'cross_entropy', got -0.1",
    ),
    "NaN": (
        "numbers",
        with_entry(np.nan, np.ones((4, 2))),
        ValueError,
        r"y must be finite in float32, got nan .*\(2, 1\)",
    ),
    "too large": (
        "numbers",
        with_entry(-1e39, np.ones((4, 2))),
        ValueError,
        r"y must be finite in float32, got -1e\+39",
    ),
    "ragged": ("numbers", [[1, 2], [1], [1, 2], [1, 2]], ValueError, "y must be a rectangular array of numbers"),
}


@pytest.mark.parametrize("method", ["loss", "backprop", "fit", "validation"])
@pytest.mark.parametrize(("kind", "y", "error", "message"), BAD_Y.values(), ids=BAD_Y)
def test_bad_targets(net_of, method, kind, y, error, message):
    net = net_of(kind)
    with unchanged(net, error, "^validation " + message if method == "validation" else "^" + message, y):
        if method == "validation":
            net.fit(GOOD_X, NETS[kind][-1], validation_data=(GOOD_X, y))
        else:
            call(net, method, GOOD_X, y)


# Sample weights

BAD_WEIGHTS = {
    "negative": ([1, -0.5, 1, 1], ValueError, r"must be 0 or more, got -0.5 in row 1"),
    "all zero": (np.zeros(N), ValueError, "must not all be 0"),
    "too few": (np.ones(3), ValueError, r"must have shape \(4,\), one number for each sample, got \(3,\)"),
    "a number": (2.0, ValueError, r"must have shape \(4,\), .*got \(\)"),
    "a column": (np.ones((N, 1)), ValueError, r"must have shape \(4,\), .*got \(4, 1\)"),
    "NaN": ([1, 1, np.nan, 1], ValueError, r"must be finite in float64, got nan at index \(2,\)"),
    "infinite": ([1, 1, 1, np.inf], ValueError, r"must be finite in float64, got inf at index \(3,\)"),
    "text": (["a"] * N, TypeError, "must hold numbers, got dtype <U1"),
    "balanced": ("balanced", TypeError, "must hold numbers, got dtype <U8"),
}


@pytest.mark.parametrize("method", ["loss", "backprop", "fit", "validation"])
@pytest.mark.parametrize(("weight", "error", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_sample_weights(net_of, method, weight, error, message):
    net, y = net_of(), NETS["numbers"][-1]
    prefix = "^validation sample_weight " if method == "validation" else "^sample_weight "
    with unchanged(net, error, prefix + message, weight):
        if method == "validation":
            net.fit(GOOD_X, y, validation_data=(GOOD_X, y, weight))
        else:
            call(net, method, GOOD_X, y, sample_weight=weight)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-1074, -1000, -200, -149, 130, 1000])
def test_only_the_ratios_of_sample_weights_matter(make_net, dtype, power):
    net, y, weight = make_net(dtype=dtype), NETS["numbers"][-1], np.array([1.0, 2, 0, 3])
    expected = net.loss(GOOD_X, y, weight), net.backprop(GOOD_X, y, weight)[1][0][0].tobytes()
    weight *= 2.0**power
    assert (net.loss(GOOD_X, y, weight), net.backprop(GOOD_X, y, weight)[1][0][0].tobytes()) == expected
    with np.errstate(all="raise"):
        net.fit(GOOD_X, y, sample_weight=[1e-300, 1, 0, 1], epochs=1)


# Other arguments of the methods


def label(row):
    """Name a row of the tables below by its argument and the end of its message."""
    options, _, message = row
    return f"{', '.join(options)}-{message[-30:]}"


WHOLE_NUMBERS = [
    (0, ValueError),
    (-3, ValueError),
    (1.0, TypeError),
    ("3", TypeError),
    (None, TypeError),
    (True, TypeError),
]
VALIDATION = r"validation_data must be \(X, y\) or \(X, y, sample_weight\), got "
CONSTANT = bpgpu.LearningRateSchedule(lambda epoch, history: 0.1)
BAD_FIT = [
    *(({"epochs": x}, error, f"epochs must be .*at least 1, got {x!r}") for x, error in WHOLE_NUMBERS),
    *(({"batch_size": x}, error, f"batch_size must be .*at least 1, got {x!r}") for x, error in WHOLE_NUMBERS),
    ({"epochs": math.nan}, TypeError, "epochs must be .*got nan"),
    ({"optimizer": "adamm"}, ValueError, "optimizer must be one of 'sgd', .*got 'adamm'; did you mean 'adam'\\?$"),
    ({"optimizer": None}, ValueError, "optimizer must be one of .*got None"),
    ({"optimizer": bpgpu.Adam}, ValueError, "optimizer must be one of .*got <class"),
    ({"optimizer": ["adam"]}, (ValueError, TypeError), "optimizer must be .*got"),
    ({"validation_data": GOOD_X}, ValueError, VALIDATION + "ndarray"),
    ({"validation_data": (GOOD_X,)}, ValueError, VALIDATION + "tuple"),
    ({"validation_data": (GOOD_X,) * 4}, ValueError, VALIDATION + "tuple"),
    ({"validation_data": {"X": GOOD_X, "y": GOOD_X}}, ValueError, VALIDATION + "dict"),
    ({"validation_data": 0.2}, ValueError, VALIDATION + "float"),
    (
        {"callbacks": [bpgpu.EarlyStopping()]},
        ValueError,
        "EarlyStopping monitors 'validation_loss', .*no validation_data",
    ),
    (
        {"callbacks": [bpgpu.Checkpoint("net", monitor="validation_loss")]},
        ValueError,
        "Checkpoint monitors 'validation_loss', but fit got no validation_data",
    ),
    ({"callbacks": bpgpu.EarlyStopping(monitor="loss")}, TypeError, "callbacks must be .*got"),
    ({"callbacks": [print]}, TypeError, "callbacks.* must be .*got"),
    ({"callbacks": [bpgpu.EarlyStopping]}, TypeError, "callbacks must be .*got"),
    ({"callbacks": None}, TypeError, "callbacks must be .*got None"),
    (
        {"callbacks": [bpgpu.Checkpoint(".")]},
        ValueError,
        "the path of the Checkpoint must name a file, but . is a",
    ),
    ({"callbacks": [CONSTANT, CONSTANT]}, ValueError, "callbacks must have at most one LearningRateSchedule"),
    (
        {"callbacks": [CONSTANT], "optimizer": bpgpu.SGD(bpgpu.StepDecay(0.1, 0.5, 2))},
        ValueError,
        r"LearningRateSchedule would override the optimizer's own schedule, StepDecay\(",
    ),
    *(({name: "no"}, TypeError, f"{name} must be True or False, got 'no'") for name in ("shuffle", "progress")),
    *(
        ({"optimizer": bpgpu.SGD(lambda step, x=x: x)}, ValueError, f"learning_rate must be .*{x} .*schedule at step 0")
        for x in (0, -1.0, math.nan, math.inf)
    ),
    (
        {"optimizer": bpgpu.SGD(lambda step: "x")},
        TypeError,
        "learning_rate must be .*got 'x' from its schedule at step 0",
    ),
    *(
        (
            {"callbacks": [bpgpu.LearningRateSchedule(lambda epoch, history, x=x: x)]},
            error,
            f"learning_rate must be a finite number above 0, got {x!r} from its schedule at epoch 0",
        )
        for x, error in ((0, ValueError), (-1.0, ValueError), (math.nan, ValueError), (None, TypeError))
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_FIT, ids=map(label, BAD_FIT))
def test_bad_arguments_of_fit(net_of, options, error, message):
    net = net_of()
    with unchanged(net, error, "^" + message):
        net.fit(GOOD_X, NETS["numbers"][-1], **options)


def test_schedule_that_fails_later_leaves_the_last_finished_epoch(net_of):
    y = NETS["numbers"][-1]
    net, finished = net_of(), net_of()
    finished.fit(GOOD_X, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=2)
    with pytest.raises(ValueError, match=r"learning_rate must be .*got nan from its schedule at step 5"):
        net.fit(GOOD_X, y, optimizer=bpgpu.SGD(lambda step: math.nan if step == 5 else 0.1), epochs=5, batch_size=2)
    assert (net.parameters.tobytes(), net.epoch) == (finished.parameters.tobytes(), finished.epoch)


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_bad_step_of_backprop(net_of, step, error):
    net = net_of(dropout=0.5)
    with unchanged(net, error, "^step must be .*got"):
        net.backprop(GOOD_X, NETS["numbers"][-1], step=step)


# Constructors

OWN = {"sizes": (3, 5, 2), "activations": ("tanh", "identity"), "cost": "half_squared_error", "backend": "numpy"}
W1, W2, B1, B2 = np.ones((3, 5)), np.ones((5, 2)), np.ones(5), np.ones(2)
AT_LEAST_1 = "must be .*at least 1, got "
UNKNOWN = "must be one of .*got {!r}; did you mean {!r}\\?$"
BAD_NETS = [
    # sizes
    *(({"sizes": (3, x, 2)}, ValueError, rf"sizes\[1\] {AT_LEAST_1}{x}") for x in (0, -1)),
    *(({"sizes": (3, 2, x)}, TypeError, rf"sizes\[2\] {AT_LEAST_1}") for x in (2.0, "2", None, True, math.nan)),
    *(({"sizes": x}, ValueError, r"sizes must name at least two layers, .*got ") for x in ([], [3], np.array([3]))),
    *(
        ({"sizes": x}, TypeError, "sizes must be a sequence of integers, .*got ")
        for x in (3, "352", None, {3, 5}, iter([3]))
    ),
    ({"sizes": np.array(3)}, TypeError, "sizes must be a sequence of integers, .*got "),
    ({"sizes": np.ones((2, 2), int)}, TypeError, r"sizes\[0\] must be an integer"),
    # activations
    *(
        ({"activations": ["tanh"] * n}, ValueError, f"activations must name one for each of 2 layers, got {n}")
        for n in (0, 1, 3)
    ),
    *(({"activations": x}, TypeError, "activations? must be .*got") for x in (None, 3)),
    ({"activations": ["tanh", None]}, (ValueError, TypeError), "activation must be one of .*got None"),
    ({"activations": ["tanh", ["relu"]]}, (ValueError, TypeError), "activation must be .*got"),
    # unknown names
    *(
        ({"activations": x}, ValueError, "activation " + UNKNOWN.format("rellu", "relu"))
        for x in ("rellu", ["tanh", "rellu"])
    ),
    ({"cost": "cros_entropy"}, ValueError, "cost " + UNKNOWN.format("cros_entropy", "cross_entropy")),
    ({"cost": "qqq"}, ValueError, "cost must be one of 'half_squared_error', .*, got 'qqq'$"),
    ({"cost": None}, ValueError, "cost must be one of .*got None"),
    ({"cost": ["cross_entropy"]}, (ValueError, TypeError), "cost must be .*got"),
    ({"backend": "nunpy"}, ValueError, "backend " + UNKNOWN.format("nunpy", "numpy")),
    ({"backend": None}, ValueError, "backend must be one of .*got None"),
    ({"init": "glorrot"}, ValueError, "init " + UNKNOWN.format("glorrot", "glorot")),
    # numbers
    *(
        ({"dropout": x}, ValueError, rf"dropout must be a number in \[0, 1\), got {x}")
        for x in (-0.1, 1, 1.5, math.nan)
    ),
    *(({"dropout": x}, TypeError, r"dropout must be a number in \[0, 1\), got ") for x in (None, "half", "0.5", [0.5])),
    *(({"l2": x}, ValueError, f"l2 must be a finite number, 0 or more, got {x}") for x in (-1e-9, math.nan, math.inf)),
    *(({"l2": x}, TypeError, "l2 must be a finite number, 0 or more, got ") for x in (None, "much", "0.1")),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 2**64}, ValueError, "seed must be at most 18446744073709551615, got 18446744073709551616"),
    *(({"seed": x}, TypeError, "seed must be an integer of at least 0, got ") for x in (1.0, "1", [1], True)),
    *(
        ({"dtype": x}, ValueError, "dtype must be 'float32' or 'float64', got ")
        for x in ("float16", "int32", None, "floaty", int, np.complex64, 32, "f4,f4")
    ),
    # connectivity
    *(
        ({"connectivity": x}, ValueError, "connectivity must be a list with one mask or None for each of 2 layers, got")
        for x in ([], [None], [None] * 3, W1, 1, np.ones((2, 3, 5)))
    ),
    ({"connectivity": [W1.T, None]}, ValueError, r"connectivity\[0\] must have shape \(3, 5\), .*got \(5, 3\)"),
    ({"connectivity": [None, B2]}, ValueError, r"connectivity\[1\] must have shape \(5, 2\), .*got \(2,\)"),
    *(
        ({"connectivity": [None, W2 * x]}, ValueError, rf"connectivity\[1\] must hold only 0 and 1, got {x}")
        for x in (0.5, 2.0, -1.0, math.nan)
    ),
    ({"connectivity": [W1.astype(str), None]}, TypeError, r"connectivity\[0\] must hold numbers, got dtype <U"),
    # init
    ({"init": [(W1, B1)]}, ValueError, r"init must hold a pair \(W, b\) for each of 2 layers, got 1"),
    ({"init": [W1, W2]}, ValueError, r"init\[0\] must be a pair \(W, b\), got ndarray"),
    ({"init": [(W1, B1), (W2,)]}, ValueError, r"init\[1\] must be a pair \(W, b\), got tuple"),
    ({"init": [(W1, B1), (W2.T, B2)]}, ValueError, r"W of init\[1\] must have shape \(5, 2\), got \(2, 5\)"),
    ({"init": [(W1, W1), (W2, B2)]}, ValueError, r"b of init\[0\] must have shape \(5,\), got \(3, 5\)"),
    ({"init": [(W1, None), (W2, B2)]}, TypeError, r"b of init\[0\] must hold numbers, got dtype object"),
    ({"init": [(W1 * np.nan, B1), (W2, B2)]}, ValueError, r"W of init\[0\] must be finite in float32, got nan"),
    ({"init": [(W1, B1 * 1e39), (W2, B2)]}, ValueError, r"b of init\[0\] must be finite in float32, got 1e\+39"),
    ({"init": [(W1.astype(str), B1), (W2, B2)]}, TypeError, r"W of init\[0\] must hold numbers, got dtype <U"),
    ({"init": [(W1, B1), (W2, B2)], "bias": False}, ValueError, r"W of init\[0\] must "),
    ({"init": [W1], "bias": False}, ValueError, "init must hold an array W for each of 2 layers, got 1"),
    *(({"init": x}, TypeError, "init must .*got") for x in (None, 3, 0.1)),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_NETS, ids=map(label, BAD_NETS))
def test_bad_networks(options, error, message):
    with pytest.raises(error, match="^" + message) as caught:
        bpgpu.MLP(**OWN | options)
    assert caught.type in (ValueError, TypeError)


def test_cost_outside_its_domain_warns():
    with pytest.warns(UserWarning, match=r"'cross_entropy' is defined for outputs in \[0, 1\], but 'tanh' also gives"):
        bpgpu.MLP(**OWN | {"activations": "tanh", "cost": "cross_entropy"})


THETA1, THETA2 = np.ones((5, 4)), np.ones((2, 6))
BAD_THETAS = [
    ([], {}, ValueError, "thetas must hold one matrix for each layer, got none"),
    ([THETA1, THETA1], {}, ValueError, r"thetas\[1\] must have 6 columns, .*rows? of thetas\[0\], got shape \(5, 4\)"),
    ([THETA1, THETA2[:, 1:]], {}, ValueError, r"thetas\[1\] must have 6 columns, .*got shape \(2, 5\)"),
    ([THETA1[0], THETA2], {}, ValueError, r"thetas\[0\] must be a matrix .*got shape \(4,\)"),
    ([THETA1, THETA2[None]], {}, ValueError, r"thetas\[1\] must be a matrix .*got shape \(1, 2, 6\)"),
    ([THETA1[:, :1], THETA2], {}, ValueError, r"thetas\[0\] must be a matrix .*got shape \(5, 1\)"),
    ([THETA1[:0], THETA2], {}, ValueError, r"thetas\[0\] must be a matrix .*got shape \(0, 4\)"),
    ([THETA1, THETA2.astype(str)], {}, TypeError, r"thetas\[1\] must hold numbers, got dtype <U"),
    ([THETA1, None], {}, TypeError, r"thetas\[1\] must hold numbers, got dtype object"),
    ([[[1, 2], [3]]], {}, ValueError, r"thetas\[0\] must be a rectangular array"),
    ([with_entry(np.nan, THETA1), THETA2], {}, ValueError, "must be finite in float32, got nan"),
    ([THETA1, THETA2], {"bias": False}, ValueError, "bias must be True: column 0 of each Theta is the bias"),
    ([THETA1, THETA2], {"activations": ["tanh"]}, ValueError, "activations must name one for each of 2 layers, got 1"),
    (None, {}, TypeError, "thetas must .*got"),
]


@pytest.mark.parametrize(("thetas", "options", "error", "message"), BAD_THETAS)
def test_bad_thetas(thetas, options, error, message):
    with pytest.raises(error, match=message):
        bpgpu.MLP.from_theta(thetas, **{"backend": "numpy"} | options)


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (bpgpu.EarlyStopping, {"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        (bpgpu.EarlyStopping, {"restore_best": "no"}, TypeError, "restore_best must be True or False, got 'no'"),
        (bpgpu.EarlyStopping, {"monitor": None}, ValueError, "monitor must be one of .*got None"),
        (bpgpu.Checkpoint, {"path": 3}, TypeError, "path must be a path, got 3"),
        (bpgpu.Checkpoint, {"path": "x", "monitor": ""}, ValueError, "monitor must be one of .*got ''"),
        *(
            (bpgpu.Checkpoint, {"path": path}, ValueError, "path must have no placeholder but {epoch}, .*got ")
            for path in ("net-{epoch:03d}.safetensors", "{epoch}-{val_loss:.2f}", "{loss}", "{epoch}/net")
        ),
        (
            bpgpu.LearningRateSchedule,
            {"schedule": bpgpu.StepDecay(0.3, 0.5, 2)},
            TypeError,
            "schedule must be a function of the epoch and the history, got StepDecay.*learning_rate of an optimizer",
        ),
        *(
            (bpgpu.LearningRateSchedule, {"schedule": schedule}, TypeError, "schedule must be a function of the epoch")
            for schedule in (0.1, None, lambda epoch: 0.1, bpgpu.CosineDecay)
        ),
        (bpgpu.EarlyStopping, {"patience": 2.5}, TypeError, "patience must be an integer of at least 1, got 2.5"),
        (bpgpu.EarlyStopping, {"min_delta": -1}, ValueError, "min_delta must be a finite number, 0 or more, got -1"),
        *(
            (
                kind,
                {"monitor": "val_loss"} | more,
                ValueError,
                "monitor " + UNKNOWN.format("val_loss", "validation_loss"),
            )
            for kind, more in ((bpgpu.EarlyStopping, {}), (bpgpu.Checkpoint, {"path": "x"}))
        ),
    ],
)
def test_bad_callbacks(kind, options, error, message):
    with pytest.raises(error, match="^" + message):
        kind(**options)


# What just works


def strided(array):
    return np.repeat(np.repeat(array, 2, axis=0), 3, axis=-1)[::2, ::3] if array.ndim == 2 else np.repeat(array, 2)[::2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def frame(array):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(array) if array.ndim == 2 else pandas.Series(array, index=range(100, 100 + len(array)))


KINDS = {
    "strided": strided,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "transposed": lambda array: array.T.copy().T,
    "Fortran": np.asfortranarray,
    "offset": lambda array: np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
    "read-only": read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(map(tuple, array)) if array.ndim == 2 else tuple(array),
    "UserList": lambda array: UserList(array.tolist()),
    "list of rows": list,
    "pandas": frame,
    "float16": lambda array: array.astype(np.float16),
    "float64": lambda array: array.astype(np.float64),
    "longdouble": lambda array: array.astype(np.longdouble),
    "int64": lambda array: array.astype(np.int64),
    "int8": lambda array: array.astype(np.int8),
    "uint8": lambda array: array.astype(np.uint8),
    "bool": lambda array: array.astype(bool),
}
WHOLE = ("int64", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("targets", ["matrix", "labels"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_array_gives_the_same_results(make_net, kind, targets, dtype):
    rng = np.random.default_rng(0)
    # Numbers that every kind can hold.
    X = rng.integers(0, 2, (12, 3)).astype(float) if kind in WHOLE else rng.integers(-64, 64, (12, 3)) / 32
    y = rng.integers(0, 2, (12, 2) if targets == "matrix" else 12).astype(float)
    weight = rng.integers(0, 2, 12).astype(float)
    outcomes = []
    for convert in (lambda array: array.astype(dtype), KINDS[kind]):
        given = [convert(array) for array in (X, y, weight)]
        net = make_net((3, 4, 2), ("tanh", "softmax"), "cross_entropy", dtype=dtype, dropout=0.2)
        C, gradients = net.backprop(*given)
        history = net.fit(*given[:2], sample_weight=given[2], validation_data=given, epochs=2, batch_size=5)
        outcomes.append(
            [
                *(array.tobytes() for array in (net.parameters, net.predict(given[0]), *net.forward(given[0]))),
                *(array.tobytes() for pair in gradients for array in pair),
                *(C, net.loss(*given), history.loss, history.validation_loss),
            ]
        )
        for array, original in zip(given, (X, y, weight), strict=True):
            assert np.array_equal(np.asarray(array, float), original), "an input was modified"
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kind", ["strided", "Fortran", "read-only", "list", "pandas", "int8", "bool"])
def test_any_array_may_give_masks_and_weights(make_net, kind):
    convert = KINDS[kind]
    masks = [np.tri(3, 5), np.tri(5, 2)]
    W, b = [np.tri(3, 5).T[::-1].T, np.ones((5, 2))], [np.ones(5), np.zeros(2)]
    given_masks, given = list(map(convert, masks)), [(convert(w), convert(v)) for w, v in zip(W, b, strict=True)]
    net = make_net(connectivity=given_masks, init=given)
    expected = make_net(connectivity=masks, init=list(zip(W, b, strict=True)))
    assert np.array_equal(net.parameters, expected.parameters)
    for model in (net, expected):
        model.fit(GOOD_X, GOOD_X[:, :2], epochs=2)
    assert np.array_equal(net.parameters, expected.parameters)
    for array, original in zip([*given_masks, *(w for w, _ in given)], [*masks, *W], strict=True):
        assert np.array_equal(np.asarray(array, float), original), "an input was modified"


@pytest.mark.parametrize(
    "sizes", [[3, 5, 2], (3, 5, 2), np.array([3, 5, 2]), np.array([3, 5, 2], np.uint8), UserList([3, 5, 2])]
)
def test_any_sequence_may_give_the_sizes(sizes):
    net = bpgpu.MLP(**OWN | {"sizes": sizes})
    assert net.architecture.sizes == (3, 5, 2)
    assert all(type(n) is int for n in net.architecture.sizes)


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64"), "f8", float, "double"])
def test_any_name_of_a_dtype(dtype):
    assert bpgpu.MLP(**OWN | {"dtype": dtype}).parameters.dtype == np.float64


def test_pandas_frames_of_several_kinds_of_numbers(make_net):
    mixed = pd.DataFrame({"a": [0.5, 1.5], "b": [True, False], "c": pd.array([3, 4], dtype="Int64")})
    expected = [[0.5, 1, 3], [1.5, 0, 4]]
    assert np.array_equal(make_net().predict(mixed), make_net().predict(expected))


PANDAS = {  # dtype of pandas: of NumPy
    **{kind: kind for kind in ("bool", "int8", "int32", "int64", "uint8", "uint32", "uint64", "float32", "float64")},
    **{"boolean": "bool", "Int8": "int8", "Int64": "int64", "UInt8": "uint8", "UInt64": "uint64"},
    **{"Float32": "float32", "Float64": "float64", "Sparse[int]": "int64", "Sparse[float]": "float64"},
    **{"bool[pyarrow]": "bool", "int64[pyarrow]": "int64", "uint8[pyarrow]": "uint8", "float[pyarrow]": "float32"},
    "double[pyarrow]": "float64",
}


@pytest.mark.parametrize("kind", PANDAS)
def test_numbers_of_pandas_are_those_of_numpy(make_net, kind):
    dtype = np.dtype(PANDAS[kind])
    X = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]).astype(dtype)
    if dtype.kind in "ui":
        X[0, 0] = np.iinfo(dtype).max
    elif dtype == np.float64:
        X[0, 0] = 0.1 + 1e-15
    labels, weight = np.array([0, 1, 1]).astype(dtype), np.array([1, 0, 1]).astype(dtype)
    net = make_net(dtype="float64")
    frame, series = pd.DataFrame(X).astype(kind), pd.Series(labels).astype(kind)
    assert net.predict(frame).tobytes() == net.predict(X).tobytes()
    expected = net.loss(X, labels, weight)
    assert net.loss(frame, series, pd.Series(weight).astype(kind)) == expected
    assert net.loss(frame, pd.Index(series), series.array) == net.loss(X, labels, labels)


def test_pandas_loses_no_digits(make_net):
    net = make_net((1, 1), "identity", init=[(np.ones((1, 1)), np.zeros(1))], dtype="float64")
    for number in (2**40, 1e300, 0.1, 2**63 - 1):
        assert net.predict(pd.DataFrame({"a": [number]})) == number
    mixed = pd.DataFrame({"a": [2**40, 1], "b": [True, False], "c": np.array([0.5, 1], np.float32)})
    assert np.array_equal(bpgpu.checks.numeric("X", mixed), [[2**40, 1, 0.5], [1, 0, 1]])


@pytest.mark.parametrize("kind", ["int64", "Int64", "int64[pyarrow]"])
def test_labels_of_pandas_do_not_wrap(net_of, kind):
    net = net_of("classes")
    with unchanged(net, ValueError, "y of one dimension must hold the labels 0 ... 2, .*got 4294967297 in row 1"):
        net.fit(GOOD_X, pd.Series([0, 2**32 + 1, 1, 0], dtype=kind))


@pytest.mark.parametrize("kind", ["boolean", "Int64", "UInt8", "Float32", "bool[pyarrow]", "int64[pyarrow]", "Float64"])
def test_what_pandas_misses_is_not_data(net_of, kind):
    net = net_of("classes")
    series = pd.Series([1, 0, None, 1], dtype=kind)
    with unchanged(net, ValueError, r"X must be finite in float32, got nan at index \(2, 1\)"):
        net.predict(pd.DataFrame({"a": [1, 2, 3, 4], "b": series, "c": series}))
    with unchanged(net, ValueError, "y of one dimension must hold the labels 0 ... 2, .*got nan in row 2"):
        net.fit(GOOD_X, series)
    with unchanged(net, ValueError, r"sample_weight must be finite in \w+, got nan at index \(2,\)"):
        net.fit(GOOD_X, [0, 1, 2, 0], sample_weight=series)


def test_masked_entries_are_not_data(net_of):
    net = net_of()
    hidden = np.ma.array(GOOD_X, mask=np.eye(N, 3, dtype=bool))
    with unchanged(net, ValueError, "X must have no masked entries"):
        net.predict(hidden)
    assert np.array_equal(net.predict(np.ma.array(GOOD_X)), net.predict(GOOD_X))


def test_connectivity_is_a_copy(make_net):
    mask = np.ones((3, 5), np.float32)
    net = make_net(connectivity=[mask, None], dtype="float32")
    mask[...] = 0
    assert net.masks[0].all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bias": "no"}, TypeError, "bias must be True or False, got 'no'"),
        ({"l2": 10**400}, ValueError, "l2 must be a finite number, 0 or more, got inf"),
        ({"sizes": [3, [4, 2]]}, TypeError, r"sizes\[1\] must be an integer"),
        ({"backend": ["numpy"]}, ValueError, "backend must be one of"),
        ({"dtype": "f4,(,"}, ValueError, "dtype must be 'float32' or 'float64'"),
        ({"activations": "ReLU"}, ValueError, "did you mean 'relu'"),
    ],
)
def test_more_bad_networks(options, error, message):
    with pytest.raises(error, match=message):
        bpgpu.MLP(**OWN | options)


def test_a_step_beyond_the_counter_of_dropout(net_of):
    with unchanged(net_of(dropout=0.5), ValueError, "step must be at most 4294967295"):
        net_of(dropout=0.5).backprop(GOOD_X, NETS["numbers"][-1], step=2**32)


def test_a_checkpoint_without_a_folder_fails_before_training(net_of):
    net = net_of()
    with unchanged(net, ValueError, "the folder of the Checkpoint .* must exist"):
        net.fit(GOOD_X, NETS["numbers"][-1], callbacks=[bpgpu.Checkpoint("no/such/folder/net")])


# Numbers that are too large, and texts that are too long

HUGE = [2**63, 10**400, 10**5000]  # Python prints no integer of more than 4,300 digits


@pytest.mark.parametrize("size", [2**31, *HUGE], ids=["2^31", "2^63", "10^400", "10^5000"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_larger_than_blas_counts(size, place):
    sizes = [3, 5, 2]
    sizes[place] = size
    with pytest.raises(ValueError, match=rf"^sizes\[{place}\] must be at most 2147483647, got "):
        bpgpu.MLP(**OWN | {"sizes": sizes})


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the machine does not say how much memory it has")
def test_a_network_larger_than_the_machine(monkeypatch):
    from bpgpu.model import initialisers

    monkeypatch.setattr(initialisers.np.random, "default_rng", lambda seed: pytest.fail("it began to draw weights"))
    with pytest.raises(MemoryError, match=r"1,000,000,00\d,000,000,000 initial parameters of sizes would take 7,450"):
        bpgpu.MLP(**OWN | {"sizes": [10**9, 10**9], "activations": "tanh"})


@pytest.mark.parametrize("number", HUGE, ids=["2^63", "10^400", "10^5000"])
def test_numbers_without_bounds(net_of, number):
    """Each is used, or refused by name; none ends in an error of something inside."""
    y, loud = NETS["numbers"][-1], []
    makers = {
        "seed": lambda: bpgpu.MLP(**OWN | {"seed": number}),
        "dropout": lambda: bpgpu.MLP(**OWN | {"dropout": number}),
        "epochs": lambda: net_of().fit(GOOD_X, y, epochs=number),
        "batch_size": lambda: net_of().fit(GOOD_X, y, epochs=1, batch_size=number),
        "step": lambda: net_of().backprop(GOOD_X, y, step=number),
        "l2": lambda: bpgpu.MLP(**OWN | {"l2": number}),
        "learning_rate": lambda: bpgpu.Adam(number),
        "clip_norm": lambda: bpgpu.SGD(clip_norm=number),
        "weight_decay": lambda: bpgpu.AdamW(weight_decay=number),
        "beta1": lambda: bpgpu.Adam(beta1=number),
        "steps": lambda: bpgpu.CosineDecay(0.1, number)(7),
        "every": lambda: bpgpu.StepDecay(0.1, 0.5, number)(7),
        "patience": lambda: bpgpu.EarlyStopping(number),
        "tolerance": lambda: bpgpu.check_gradients(net_of(dtype="float64"), GOOD_X, y, tolerance=number),
    }
    for name, make in makers.items():
        try:
            make()
        except ValueError as error:
            loud.append(name)
            assert str(error).startswith(f"{name} must be ") and len(str(error)) < 200, error
    few = ["dropout", "epochs", "step", "beta1", "steps", "every"]
    assert set(loud) == {*few, *(makers if number > 2**1024 else few)} - {"batch_size", "patience"}


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.5, "1", None, True], ids=str)
def test_an_epoch_that_is_none(net_of, tmp_path, epoch):
    """A user may set it; what dropout cannot count is refused by all that uses it."""
    net, y = net_of(dropout=0.5), NETS["numbers"][-1]
    net.epoch = epoch
    error = ValueError if type(epoch) is int else TypeError
    for use in (
        lambda: net.fit(GOOD_X, y),
        lambda: net.backprop(GOOD_X, y),
        lambda: net.save(tmp_path / "net"),
    ):
        with unchanged(net, error, "^epoch must be "):
            use()
    assert not list(tmp_path.iterdir())


def test_more_epochs_than_can_be_counted(net_of):
    net, y = net_of(), NETS["numbers"][-1]
    net.epoch = 2**32 - 3
    with unchanged(net, ValueError, "^epochs must be at most 2, got 3: the network has trained for 4294967293, and"):
        net.fit(GOOD_X, y, epochs=3)
    net.fit(GOOD_X, y, epochs=2)
    assert net.epoch == 2**32 - 1


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_mean_of_the_costs_that_overflows(make_net, backend):
    """Each cost is finite, their sum is not; no infinite loss is entered without an error."""
    net = make_net((3, 2), "identity", "squared_error", backend=backend)
    net.epoch = 3
    before = net.parameters.copy()
    X = np.linspace(-1, 1, 1200).reshape(400, 3)
    with pytest.raises(bpgpu.NonFiniteError) as caught:
        net.fit(X, np.full((400, 2), 1e153), optimizer=bpgpu.SGD(1e-30), epochs=2, batch_size=100)
    assert (caught.value.epoch, caught.value.step, caught.value.layer, caught.value.quantity) == (4, 4, 1, "cost")
    assert np.array_equal(net.parameters, before) and net.epoch == 3


LONG = "x" * 5000


class LongName:
    def __repr__(self):
        return LONG


@pytest.mark.parametrize(
    "bad",
    [LONG, [LONG] * 50, [[[[1] * 9] * 9] * 9] * 9, dict.fromkeys(range(99), LONG), LongName()],
    ids=type,
)
@pytest.mark.parametrize(
    "use",
    [
        *(
            lambda bad, name=name: bpgpu.MLP(**OWN | {name: bad})
            for name in ("sizes", "activations", "cost", "bias", "l2", "dropout", "dtype", "seed", "backend", "init")
        ),
        *(
            lambda bad, name=name: bpgpu.MLP(**OWN).fit(GOOD_X, NETS["numbers"][-1], **{name: bad})
            for name in ("optimizer", "epochs", "batch_size", "callbacks")
        ),
        lambda bad: bpgpu.MLP(**OWN).backprop(GOOD_X, NETS["numbers"][-1], step=bad),
        lambda bad: bpgpu.EarlyStopping(monitor=bad),
        lambda bad: bpgpu.SGD(bad),
        lambda bad: bpgpu.MLP.from_theta(bad, backend="numpy"),
    ],
)
def test_messages_are_short(use, bad):
    with pytest.raises((ValueError, TypeError)) as caught:
        use(bad)
    assert len(str(caught.value)) < 450


def test_a_value_whose_repr_fails():
    class Unprintable:
        def __repr__(self):
            raise ZeroDivisionError

    with pytest.raises(TypeError, match=r"^l2 must be .*got <Unprintable instance|^l2 must be .*an object of type"):
        bpgpu.MLP(**OWN | {"l2": Unprintable()})


def test_a_schedule_of_epochs_that_fails_later_leaves_the_last_finished_epoch(net_of):
    y = NETS["numbers"][-1]
    for bad, error in ((lambda: -1.0, ValueError), (lambda: 1 / 0, ZeroDivisionError)):
        net, finished = net_of(), net_of()
        finished.fit(GOOD_X, y, optimizer=bpgpu.SGD(0.1), epochs=2)
        schedule = bpgpu.LearningRateSchedule(lambda epoch, history, bad=bad: bad() if epoch == 2 else 0.1)
        with pytest.raises(error):
            net.fit(GOOD_X, y, optimizer=bpgpu.SGD(0.1), epochs=5, callbacks=[schedule])
        assert (net.parameters.tobytes(), net.epoch) == (finished.parameters.tobytes(), finished.epoch)


@pytest.mark.parametrize(
    "options",
    [{"alpha": 10**400}, {"learning_rate_init": 10**5000}, {"tol": 10**400}, {"hidden_layer_sizes": (2**63,)}],
    ids=list,
)
def test_numbers_of_estimators_that_no_float_holds(options):
    from bpgpu.sklearn import MLPClassifier

    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}(\[0\])? must be at most .*got ") as caught:
        MLPClassifier(max_iter=2, **options).fit(GOOD_X, [0, 1, 0, 1])
    assert len(str(caught.value)) < 100
