"""What reaches compiled code or a kernel is checked, also of those who call a backend themselves."""

import ast
import copy
import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import bpgpu
from bpgpu.backends.addresses import Addresses
from bpgpu.backends.base import Backend
from bpgpu.backends.data import Data, Dropout
from bpgpu.backends.plan import Plan
from bpgpu.model.activations import get_activation
from bpgpu.model.costs import get_cost
from tests.simgpu import device

B, M, N, K = 8, 4, 3, 2  # rows, and neurons of three layers
F4, F8 = np.dtype(np.float32), np.dtype(np.float64)
CPU = ["numpy", "numba"]
GPU = ["cupy, auto", "cupy, cublas", "numba-cuda"]
ON_GPU = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")


@pytest.fixture(params=[*CPU, *(pytest.param(name, marks=ON_GPU) for name in GPU)])
def backend(request, monkeypatch) -> Backend:
    name, _, gemm = request.param.partition(", ")
    if name in CPU:
        return bpgpu.get_backend(name)
    module = {"cupy": "cupy", "numba-cuda": "numba_device"}[name]
    importlib.import_module(f"tests.simgpu.{module}").install(monkeypatch)
    if name == "cupy":
        return importlib.import_module("bpgpu.backends.cuda.cupy_backend").CupyBackend(gemm=gemm)
    return importlib.import_module("bpgpu.backends.cuda.numba_backend").NumbaCudaBackend()


def full(*shape):
    return np.full(shape, 0.5, np.float32)


# name of a step: (its arrays, of which the last ones are written; its other arguments)
STEPS = {
    "forward": (
        {"a_prev": full(B, M), "W": full(M, N), "b": full(N), "out": full(B, N), "out_z": full(B, N)},
        {"activation": get_activation("gelu")},
    ),
    "hidden_delta": (
        {"delta": full(B, K), "W": full(N, K), "a": full(B, N), "z": full(B, N), "out": full(B, N)},
        {"activation": get_activation("gelu")},
    ),
    "output_delta": (
        {
            "z": full(B, N),
            "y": full(B, N),
            "scale": full(B),
            "out_a": full(B, N),
            "out_delta": full(B, N),
            "out_cost": full(B),
        },
        {"activation": get_activation("sigmoid"), "cost": get_cost("squared_error")},
    ),
    "weight_gradient": (
        {
            "a_prev": full(B, M),
            "delta": full(B, N),
            "W": full(M, N),
            "mask": full(M, N),
            "out_W": full(M, N),
            "out_b": full(N),
        },
        {"decay": 0.1},
    ),
    "dropout": ({"x": full(B, N), "out": full(B, N)}, {"dropout": Dropout(0.5, 0, 0, 0, 1)}),
    "update": (
        {"parameters": full(B), "gradients": full(B), "m": full(B), "v": full(B)},
        {"rule": bpgpu.Adam(), "t": 1, "learning_rate": 0.1, "n_weights": 3},
    ),
}


def call(backend, step, arrays, **changes):
    """Call a step with these arrays, and return them as they are then on the host."""
    others = STEPS[step][1] | changes
    here = {name: backend.asarray(array, array.dtype) for name, array in arrays.items()}
    given = dict(here)
    if step == "update":
        given["state"] = [given.pop("m"), given.pop("v")]
    getattr(backend, step)(**given, **others)
    return {name: backend.to_numpy(array) for name, array in here.items()}


def changed_shapes(array):
    """Return arrays that NumPy would broadcast, or a kernel read or write beyond."""
    shapes = {(1,) * array.ndim, (*array.shape, 1), array.shape[1:]}
    for axis, size in enumerate(array.shape):
        for other in (1, size - 1, size + 1):
            shapes.add((*array.shape[:axis], other, *array.shape[axis + 1 :]))
    return [full(*shape) for shape in sorted(shapes - {array.shape}) if shape]


@pytest.mark.parametrize("step", STEPS)
def test_steps_take_what_fits(backend, step):
    arrays, _ = STEPS[step]
    found, expected = (call(each, step, copy.deepcopy(arrays)) for each in (backend, bpgpu.get_backend("numpy")))
    for name in arrays:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_steps_refuse_shapes_that_do_not_fit(backend, step):
    arrays = STEPS[step][0]
    for name, array in arrays.items():
        for wrong in changed_shapes(array):
            with pytest.raises(ValueError, match=r"must (have|be) .*got"):
                call(backend, step, copy.deepcopy(arrays) | {name: wrong})
                pytest.fail(f"{name} of shape {wrong.shape} was taken")


@pytest.mark.parametrize("step", ["forward", "hidden_delta", "output_delta"])
def test_names_in_the_place_of_objects_are_refused(backend, step):
    with pytest.raises(TypeError, match=r"activation must be an object of bpgpu.Activation, got 'relu'"):
        call(backend, step, STEPS[step][0], activation="relu")


def test_a_derivative_that_needs_z_gets_it(backend):
    arrays = {name: array for name, array in STEPS["hidden_delta"][0].items() if name != "z"}
    with pytest.raises(ValueError, match=r"z must be given, because the derivative of 'gelu' is computed from it"):
        call(backend, "hidden_delta", arrays)


def test_an_output_that_is_an_input_is_refused(backend):
    square = backend.asarray(full(B, B), F4)
    sigma = get_activation("tanh")
    with pytest.raises(ValueError, match="out must be an array of its own"):
        backend.forward(square, backend.asarray(full(B, B), F4), None, sigma, out=square)
    with pytest.raises(ValueError, match="out must be an array of its own"):
        backend.hidden_delta(
            backend.asarray(full(B, B), F4), backend.asarray(full(B, B), F4), square, sigma, out=square
        )


# Of each step: what is written, and what it may be given for that is not its own.
SHARED = {
    "forward": {"out": ["a_prev", "W", "out_z"], "out_z": ["a_prev", "W"]},
    "hidden_delta": {"out": ["delta", "W", "a", "z"]},
    "output_delta": {"out_a": ["z", "y", "out_delta"], "out_delta": ["z", "y"], "out_cost": ["scale"]},
    "weight_gradient": {"out_W": ["a_prev", "delta", "W", "mask"]},
    "update": {"m": ["v", "gradients"], "parameters": ["gradients", "v"]},
}


@pytest.mark.parametrize("step", SHARED)
def test_an_output_that_is_a_view_of_another_argument_is_refused(backend, step):
    for name, others in SHARED[step].items():
        for other in others:
            arrays, further = STEPS[step]
            here = {key: backend.asarray(full(*[B] * array.ndim), F4) for key, array in arrays.items()}
            here[name] = here[other][:]
            given = here | further
            if step == "update":
                given["state"] = [given.pop("m"), given.pop("v")]
            with pytest.raises(ValueError, match=f"{name} must be an array of its own|two of them share memory"):
                getattr(backend, step)(**given)


def test_parts_side_by_side_of_one_array_are_arrays_of_their_own(backend):
    whole = backend.asarray(full(2 * B, B), F4)
    backend.forward(whole[:B], backend.asarray(full(B, B), F4), None, get_activation("tanh"), out=whole[B:])
    if backend.name in CPU:
        wide = full(B, 2 * B)
        backend.forward(wide[:, :B], full(B, B), None, get_activation("tanh"), out=wide[:, B:])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"t": 0}, "t must be at least 1, got 0"),
        ({"t": 10**400}, "t must be at most 9223372036854775807, got an integer of 1329 bits"),
        ({"t": 1.5}, "t must be an integer of at least 1, got 1.5"),
        ({"n_weights": 9}, "n_weights must be at most 8, got 9"),
        ({"n_weights": -1}, "n_weights must be at least 0, got -1"),
        ({"n_weights": 1.5}, "n_weights must be an integer of at least 0, got 1.5"),
        ({"learning_rate": np.nan}, "learning_rate must be a finite number, 0 or more, got nan"),
        ({"learning_rate": 10**400}, "learning_rate must be a finite number, 0 or more, got inf"),
        ({"learning_rate": -0.1}, "learning_rate must be a finite number, 0 or more, got -0.1"),
        ({"learning_rate": "0.1"}, "learning_rate must be a finite number, 0 or more, got '0.1'"),
        ({"rule": bpgpu.SGD()}, "state must hold 0 arrays for SGD, got 2"),
    ],
    ids=str,
)
def test_updates_that_would_be_nonsense_are_refused(backend, change, error):
    with pytest.raises((ValueError, TypeError), match=f"^{error}"):
        call(backend, "update", STEPS["update"][0], **change)


def test_one_array_as_both_states_is_refused(backend):
    p, g, state = (backend.asarray(full(B), F4) for _ in range(3))
    with pytest.raises(ValueError, match="two of them share memory"):
        backend.update(bpgpu.Adam(), p, g, [state, state], t=1, learning_rate=0.1, n_weights=3)


# Whole epochs of data, plans and parameters that somebody made himself


def network(backend, **options):
    options = {"activations": ["tanh", "softmax"], "cost": "cross_entropy"} | options
    return bpgpu.MLP([M, N, K], options.pop("activations"), options.pop("cost"), backend=backend, **options)


def by_hand(backend, data=None, *, batch_size=3, change=None, nonzeros=None, **arguments):
    """Train an epoch as somebody would who knows the backend only; return the parameters."""
    net = network(backend)
    plan = Plan(net.architecture, batch_size, backend, bpgpu.Adam(0.1), nonzeros=nonzeros).allocate()
    data = Data(full(B, M), np.arange(B) % K) if data is None else data
    data = backend.place(data, plan)
    if change:
        change(net, plan)
    arguments = {"parameters": net.parameters, "learning_rates": [0.1] * 3, "epoch": 0, "order": None} | arguments
    loss = backend.run_epoch(plan, data, arguments.pop("order"), **arguments)
    assert np.isfinite(loss)
    return backend.to_numpy(net.parameters)


EPOCHS = {
    "labels of 64 bits": ({"data": Data(full(B, M), np.arange(B) % K)}, None),
    "an order of 64 bits": ({"order": np.arange(B)[::-1]}, None),
    "half of the rows": ({"order": np.arange(B // 2)}, r"order must have shape \(8,\)"),
    "a row beyond the last": ({"order": np.arange(1, B + 1)}, "order must hold rows 0 ... 7 of the data, got 8"),
    "a row of -1": ({"order": np.arange(-1, B - 1)}, "order must hold rows 0 ... 7 of the data, got -1"),
    "a row of 2^32": ({"order": np.arange(B) + 2**32}, "order must hold rows 0 ... 7 of the data, got 4294967296"),
    "an order of floats": ({"order": np.arange(8.0)}, "order must be a one-dimensional NumPy array of integers"),
    "few rates": ({"learning_rates": [0.1] * 2}, "learning_rates must hold one for each of 3 steps, got 2"),
    "many rates": ({"learning_rates": [0.1] * 4}, "learning_rates must hold one for each of 3 steps, got 4"),
    "epoch -1": ({"epoch": -1}, "epoch must be at least 0, got -1"),
    "epoch 2^32": ({"epoch": 2**32}, "epoch must be at most 4294967295"),
    "few columns": ({"data": Data(full(B, M - 1), np.zeros(B, np.int32))}, "data.X must have rows, of 4 columns"),
    "no rows": ({"data": Data(full(0, M), np.zeros(0, np.int32))}, "data.X must have rows"),
    "few labels": ({"data": Data(full(B, M), np.zeros(B - 1, np.int32))}, r"data.y must have shape \(8, 2\), or"),
    "label 2": ({"data": Data(full(B, M), np.full(B, K))}, "must hold labels 0 ... 1, got 2"),
    "label -1": ({"data": Data(full(B, M), np.full(B, -1))}, "must hold labels 0 ... 1, got -1"),
    "label 10^9": ({"data": Data(full(B, M), np.full(B, 10**9))}, "must hold labels 0 ... 1, got 1000000000"),
    "labels of floats": ({"data": Data(full(B, M), full(B))}, "must hold integer labels, got float32"),
    "one column": ({"data": Data(full(B, M), full(B, 1))}, r"data.y must have shape \(8, 2\), or"),
    "100 columns": ({"data": Data(full(B, M), full(B, 100))}, r"data.y must have shape \(8, 2\), or"),
    "few weights": ({"data": Data(full(B, M), full(B, K), full(B - 1))}, r"data.weight must have shape \(8,\)"),
    "weights in a column": ({"data": Data(full(B, M), full(B, K), full(B, 1))}, r"data.weight must have shape \(8,\)"),
}


def test_an_epoch_by_hand_takes_what_fits(backend):
    for case, (arguments, error) in EPOCHS.items():
        if error is None:
            expected = by_hand(bpgpu.get_backend("numpy"), **arguments)
            np.testing.assert_allclose(by_hand(backend, **arguments), expected, rtol=1e-5, err_msg=case)


def test_an_epoch_by_hand_refuses_what_does_not_fit(backend):
    for case, (arguments, error) in EPOCHS.items():
        if error is not None:
            with pytest.raises((ValueError, TypeError), match=error):
                by_hand(backend, **arguments)
                pytest.fail(f"{case}: taken")


def test_parameters_of_another_length_are_refused(backend):
    for length in (0, 1, 22, 24, 1000):
        with pytest.raises(ValueError, match=r"parameters must have shape \(23,\)"):
            by_hand(backend, parameters=backend.asarray(full(length), F4))
        net = network(backend)
        net.parameters = backend.asarray(full(length), F4)
        for method, arguments in ((net.predict, [full(B, M)]), (net.fit, [full(B, M), full(B, K)])):
            with pytest.raises(ValueError, match=r"parameters must have shape \(23,\)"):
                method(*arguments)


@pytest.mark.parametrize("name", ["gradients", "state"])
def test_a_plan_whose_arrays_were_exchanged_is_refused(backend, name):
    def change(net, plan):
        wrong = backend.asarray(full(22), F4)
        if name == "state":
            plan.state[1] = wrong
        else:
            plan.gradients = wrong

    with pytest.raises(ValueError, match=r"must have shape \(23,\)"):
        by_hand(backend, change=change)


def test_masks_of_another_shape_are_refused(backend):
    for mask in (full(M, N - 1), full(M * N), full(1, 1)):
        net = network(backend, connectivity=[np.ones((M, N)), None])
        net.masks[0] = backend.asarray(mask, F4)
        with pytest.raises(ValueError, match=r"masks must hold .* for each of the shapes \[\(4, 3\), \(3, 2\)\]"):
            net.fit(full(B, M), full(B, K), epochs=1)


def test_masks_that_a_callback_exchanges_are_those_of_before(backend):
    """And live on: their addresses are in use."""
    net = network(backend, connectivity=[np.eye(M, N), None])

    class Exchange(bpgpu.Callback):
        def on_epoch_begin(self, training):
            net.masks[:] = [None, None]

    net.fit(full(B, M), full(B, K), epochs=3, callbacks=[Exchange()])
    W = backend.to_numpy(net.parameters)[: M * N].reshape(M, N)
    assert (W[np.eye(M, N) == 0] == 0).all()


@pytest.mark.parametrize("rows", [np.array([0, B]), np.array([0, -1]), np.array([0.0, 1.0])], ids=str)
def test_a_batch_of_rows_that_there_are_not_is_refused(backend, rows):
    net = network(backend)
    plan = Plan(net.architecture, 2, backend).allocate()
    data = backend.place(Data(full(B, M), np.zeros(B, np.int32)), plan)
    with pytest.raises((ValueError, TypeError), match="rows must"):
        backend.load_batch(plan.batch(2), data, rows)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 3), np.array([1])], ids=str)
def test_a_batch_of_more_or_fewer_rows_is_refused(backend, rows):
    net = network(backend)
    plan = Plan(net.architecture, 2, backend).allocate()
    data = backend.place(Data(full(B, M), np.zeros(B, np.int32)), plan)
    with pytest.raises(ValueError, match="rows must be as many as the batch has, 2, got"):
        backend.load_batch(plan.batch(2), data, rows)


def test_gradients_of_more_than_a_batch_are_refused(backend):
    net = network(backend)
    plan = Plan(net.architecture, 4, backend).allocate()
    data = backend.place(Data(full(B, M), np.zeros(B, np.int32)), plan)
    with pytest.raises(ValueError, match=r"rows must be as many as the batch has|must hold one for each of 2 steps"):
        backend.gradients(plan, data, net.parameters)


# Data that change while they are trained on


def csr():
    rng = np.random.default_rng(0)
    return sparse.csr_array(np.where(rng.random((B, M)) < 0.5, 1.0, 0).astype(np.float32))


def test_what_a_callback_writes_to_indices_is_not_seen(backend):
    class Damage(bpgpu.Callback):
        def __init__(self, X):
            self.X = X

        def on_epoch_begin(self, training):
            self.X.indices[:] = 2**31 - 1
            self.X.indptr[:] = 10**9

    found = []
    for callbacks in ([], [Damage]):
        X, net = csr(), network(backend)
        net.fit(X, np.arange(B) % K, epochs=3, batch_size=3, callbacks=[each(X) for each in callbacks])
        found.append(backend.to_numpy(net.parameters))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("backend", CPU)
def test_indices_and_labels_of_ones_own_data_may_change_between_epochs(backend):
    net = network(bpgpu.get_backend(backend))
    data = Data(csr(), np.arange(B, dtype=np.int32) % K)
    plan = Plan(net.architecture, 3, net.backend, bpgpu.SGD(0.1), nonzeros=data.nonzeros).allocate()
    for _ in range(2):
        net.backend.run_epoch(plan, data, None, parameters=net.parameters, learning_rates=[0.1] * 3, epoch=0)
        data.X.indices[:] = 10**9
        data.y[:] = 10**9
    assert np.isfinite(net.parameters).all()


@pytest.mark.parametrize("step", ["forward", "weight_gradient", "load_batch", "run_epoch"])
@pytest.mark.parametrize("backend", CPU)
def test_damaged_rows_are_refused_by_hand(backend, step):
    X = csr()
    X.indptr[-1] = 0
    backend = bpgpu.get_backend(backend)
    net = network(backend)
    plan = Plan(net.architecture, B, backend, bpgpu.SGD(0.1), nonzeros=1.0).allocate()
    with pytest.raises(ValueError, match="is not a valid sparse matrix: indptr must not decrease"):
        match step:
            case "forward":
                backend.forward(X, full(M, N), None, get_activation("tanh"), out=full(B, N))
            case "weight_gradient":
                backend.weight_gradient(X, full(B, N), out_W=full(M, N))
            case "load_batch":
                backend.load_batch(plan.batch(B), Data(X, full(B, K)), slice(None))
            case "run_epoch":
                by_hand(backend, Data(X, full(B, K)), nonzeros=1.0)


@pytest.mark.parametrize("step", ["forward", "weight_gradient", "load_batch", "run_epoch"])
@pytest.mark.parametrize("backend", CPU)
def test_damaged_rows_that_are_read_only_are_refused(backend, step):
    """Anyone can set the flag: it was taken for the mark of what has been checked, and the process crashed."""
    X = csr()
    X.indices[3] = M
    for array in (X.indices, X.indptr):
        array.flags.writeable = False
    backend = bpgpu.get_backend(backend)
    plan = Plan(network(backend).architecture, B, backend, bpgpu.SGD(0.1), nonzeros=1.0).allocate()
    with pytest.raises(ValueError, match="is not a valid sparse matrix: indices must be < 4, got 4"):
        match step:
            case "forward":
                backend.forward(X, full(M, N), None, get_activation("tanh"), out=full(B, N))
            case "weight_gradient":
                backend.weight_gradient(X, full(B, N), out_W=full(M, N))
            case "load_batch":
                backend.load_batch(plan.batch(B), Data(X, full(B, K)), slice(None))
            case "run_epoch":
                by_hand(backend, Data(X, full(B, K)), nonzeros=1.0)


def test_wrong_labels_that_are_read_only_are_refused(backend):
    y = np.full(B, K, np.int32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match=r"must hold labels 0 \.\.\. 1, got 2"):
        by_hand(backend, Data(full(B, M), y))


@pytest.mark.parametrize("backend", CPU)
def test_indices_that_were_checked_for_more_columns_are_refused(backend):
    X = network(bpgpu.get_backend(backend)).forward(csr())[0]
    narrow = sparse.csr_array((X.data, X.indices, X.indptr), shape=(B, 1))
    assert narrow.indices.base is X.indices.base or narrow.indices is X.indices
    with pytest.raises(ValueError, match="is not a valid sparse matrix: indices must be < 1"):
        bpgpu.get_backend(backend).forward(narrow, full(1, N), None, get_activation("tanh"), out=full(B, N))


def test_what_was_checked_is_not_checked_again(monkeypatch):
    net = network("numpy")
    X = net.forward(csr())[0]
    monkeypatch.setattr(bpgpu.sparse, "_check_compressed", None)
    net.backend.forward(X, net.weights[0], None, get_activation("tanh"), out=full(B, N))
    with pytest.raises(TypeError):
        net.backend.forward(csr(), net.weights[0], None, get_activation("tanh"), out=full(B, N))


# Addresses


def test_every_address_is_taken_in_one_place():
    """Compiled code believes an address; so there is one function that gives them out, and it checks the array."""
    ways = {"ctypes", "__array_interface__", "__cuda_array_interface__", "data_as", "ptr", "device_ctypes_pointer"}
    ways |= {"from_address", "as_ctypes", "addressof"}
    package = Path(bpgpu.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # `ctypes` is also a module, whose name is no attribute.
            if isinstance(node, ast.Attribute) and node.attr in ways:
                found.setdefault(path.relative_to(package).as_posix(), set()).add(node.attr)
    assert found == {
        "backends/addresses.py": {"ctypes", "ptr"},
        # Not an address for a kernel: a view of an array that has only DLPack, which Numba then checks.
        "backends/cuda/numba_backend.py": {"ptr", "__cuda_array_interface__"},
    }


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "p must be a contiguous NumPy array of float32, got"),
        (np.zeros(2), TypeError, "p must be a contiguous NumPy array of float32, got"),
        (np.zeros(2, ">f4"), TypeError, "p must be a contiguous NumPy array of float32, got"),
        (np.zeros(4, F4)[::2], TypeError, "p must be a contiguous NumPy array of float32, got"),
        (np.zeros(3, F4), ValueError, r"p must have shape \(2,\), got \(3,\)"),
        (np.zeros((2, 1), F4), ValueError, r"p must have shape \(2,\), got \(2, 1\)"),
        (np.frombuffer(bytearray(9), np.uint8)[1:].view(F4), ValueError, "p must lie where a float32 may"),
        (np.frombuffer(bytes(8), F4), ValueError, "p must be writeable, .* and is read-only; pass a copy"),
    ],
    ids=["list", "float64", "big-endian", "strided", "long", "column", "between", "read-only"],
)
def test_addresses_of_what_is_not_as_it_must_be(array, error, message):
    with pytest.raises(error, match=message):
        Addresses().of("p", array, (2,), F4, written=True)


def test_addresses_keep_their_arrays():
    addresses = Addresses()
    place = addresses.of("p", np.arange(3.0), (3,), F8)
    np.testing.assert_array_equal(addresses._arrays[0], np.arange(3.0))
    assert place == addresses._arrays[0].ctypes.data
    assert addresses.of("none", None, (3,), F8) == 0


# Parameters and masks that a user has replaced


@pytest.mark.parametrize(
    ("replace", "error", "message"),
    [
        (lambda p: p.tolist(), TypeError, r"parameters must have shape \(23,\), got \["),
        (
            lambda p: None,
            TypeError,
            r"parameters must have shape \(23,\), got None; write into the existing array",
        ),
        (lambda p: p[:-1], ValueError, r"parameters must have shape \(23,\), got \(22,\); write into"),
        (lambda p: p[None], ValueError, r"parameters must have shape \(23,\), got \(1, 23\)"),
        (
            lambda p: p.astype(F8),
            TypeError,
            "parameters must be a contiguous and aligned array of float32, got float64; w",
        ),
        (lambda p: np.repeat(p, 2)[::2], TypeError, "parameters must be .* of float32, got float32 that is not; write"),
        (
            lambda p: np.frombuffer(b"0" + p.tobytes(), np.uint8)[1:].view(F4),
            TypeError,
            "parameters must be .* got float32 that is not",
        ),
        (lambda p: p.astype(">f4"), TypeError, "parameters must be .* of float32, got >f4"),
    ],
    ids=["list", "None", "short", "matrix", "float64", "strided", "unaligned", "big-endian"],
)
@pytest.mark.parametrize("name", CPU)
def test_replaced_parameters_are_refused_alike_everywhere(name, replace, error, message):
    net, X, y = network(name), full(B, M), full(B, K)
    net.parameters = replace(net.parameters)
    for method in (net.predict, net.forward):
        with pytest.raises(error, match=f"^{message}"):
            method(X)
    for method in (net.loss, net.backprop, net.fit, functools.partial(bpgpu.check_gradients, net)):
        with pytest.raises(error, match=f"^{message}"):
            method(X, y)
    with pytest.raises(error, match=f"^{message}"):
        by_hand(net.backend, parameters=net.parameters)
    assert net.epoch == 0


@pytest.mark.parametrize(
    "masks",
    [
        *([None], [None] * 3, [], 3, np.ones((4, 3)), [3, None]),
        *([np.ones((M, N)), None], [np.ones((M, N), bool), None], [np.ones((N, M), F4).T, None]),
    ],
    ids=["one", "three", "none", "a number", "a matrix", "numbers", "float64", "bool", "strided"],
)
@pytest.mark.parametrize("name", CPU)
def test_replaced_masks_are_refused_alike_everywhere(name, masks):
    net = network(name)
    net.masks = masks
    for method in (net.fit, net.backprop, functools.partial(bpgpu.check_gradients, net)):
        with pytest.raises(
            ValueError, match=r"^masks must hold a contig.* for each of the shapes \[\(4, 3\), \(3, 2\)\]"
        ):
            method(full(B, M), full(B, K))
    assert net.epoch == 0


def test_masks_may_be_set_to_none_at_all(tmp_path):
    net = network("numba", connectivity=[np.eye(M, N), None])
    net.masks = None
    net.fit(full(B, M), full(B, K), epochs=1)
    bpgpu.check_gradients(net, full(B, M), full(B, K))
    net.save(tmp_path / "net.safetensors")
    assert bpgpu.MLP.load(tmp_path / "net.safetensors").masks == [None, None]


# Parameters that are read-only


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("name", CPU)
def test_read_only_parameters_are_not_written_and_a_copy_is_trained(name, mapped, tmp_path):
    """joblib maps large arrays into its workers so; the map was written through, which ended the worker."""
    net, expected = network(name), network(name)
    if mapped:
        np.save(tmp_path / "p.npy", net.parameters)
        given = np.load(tmp_path / "p.npy", mmap_mode="r")
    else:
        given = net.parameters.copy()
        given.flags.writeable = False
    before = np.array(given)
    net.parameters = given
    for each in (net, expected):
        each.fit(full(B, M), np.arange(B) % K, epochs=2)
    np.testing.assert_array_equal(net.parameters, expected.parameters)
    np.testing.assert_array_equal(given, before)
    assert net.parameters.flags.writeable


@pytest.mark.parametrize("name", CPU)
def test_read_only_parameters_by_hand_are_refused(name):
    net = network(name)
    net.parameters.flags.writeable = False
    before = net.parameters.copy()
    with pytest.raises(ValueError, match="read-only"):
        by_hand(net.backend, parameters=net.parameters)
    np.testing.assert_array_equal(net.parameters, before)


def test_read_only_masks_and_data_are_trained_on():
    net = network("numba", connectivity=[np.eye(M, N), None])
    X, y, weight = full(B, M), full(B, K), full(B)
    for array in (X, y, weight, net.masks[0]):
        array.flags.writeable = False
    assert np.isfinite(net.fit(X, y, sample_weight=weight, epochs=2).loss).all()


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (np.lib.stride_tricks.as_strided(np.zeros(4), (4, 4), (0, 8)), "some of its entries share memory"),
        (np.lib.stride_tricks.as_strided(np.zeros(20), (4, 4), (8, 8)), "some of its entries share memory"),
        (np.lib.stride_tricks.as_strided(np.zeros(20), (4, 4), (16, 8)), "some of its entries share memory"),
        (np.broadcast_to(np.zeros(4), (4, 4)), "some of its entries share memory"),
        (np.frombuffer(bytes(128)).reshape(4, 4), "is read-only"),
    ],
    ids=["one row", "one cell", "half a row", "broadcast", "read-only"],
)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_outputs_that_cannot_hold_their_numbers_are_refused(backend, out, reason):
    x = np.ones((4, 4))
    with pytest.raises(ValueError, match=f"^out must be .*{reason}"):
        bpgpu.get_backend(backend).forward(x, x, x[0], get_activation("sigmoid"), out=out)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x], ids=range(4))
def test_outputs_may_be_views(view):
    x, whole = np.ones((4, 4)), np.zeros((4, 8))
    bpgpu.get_backend("numpy").forward(x, x, x[0], get_activation("identity"), out=view(whole[:, ::2]))
    assert (whole[:, ::2] == 5).all() and not whole[:, 1::2].any()


@pytest.mark.parametrize("which", ["parameters", "state"])
def test_what_an_update_writes_must_be_writeable_and_its_own(which):
    for bad in (np.broadcast_to(np.ones(1), 3), np.frombuffer(bytes(24))):
        arrays = {"parameters": np.ones(3), "state": np.zeros(3)} | {which: bad}
        rule = bpgpu.SGD(0.1, momentum=0.9)
        with pytest.raises(ValueError, match=f"^{which} must be "):
            bpgpu.get_backend("numpy").update(
                rule, arrays["parameters"], np.ones(3), [arrays["state"]], t=1, learning_rate=0.1, n_weights=3
            )


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_outputs_that_are_missing_are_named(backend):
    x, backend = np.ones((4, 4)), bpgpu.get_backend(backend)
    with pytest.raises(TypeError, match=r"^out must be an array of the backend, got NoneType"):
        backend.forward(x, x, x[0], get_activation("sigmoid"), out=None)
    with pytest.raises(TypeError, match=r"^out must be an array of the backend, got NoneType"):
        backend.hidden_delta(x, x, x, get_activation("sigmoid"), out=None)
    with pytest.raises(TypeError, match=r"^out_W must be an array of the backend, got NoneType"):
        backend.weight_gradient(x, x, out_W=None, out_b=None)


def test_parameters_that_are_a_memoryview_are_refused():
    net = bpgpu.MLP([2, 1], "tanh", "mean_squared_error")
    net.parameters = memoryview(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match=r"^parameters must have shape \(3,\), got <memory"):
        net.fit(np.ones((4, 2)), np.ones((4, 1)))
