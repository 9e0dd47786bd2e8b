"""Sparse X: what is trained and computed is what dense X gives, in little memory, and wrong X is refused."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse

import bpgpu
from bpgpu.backends.cpu import blas as cpu_blas
from bpgpu.backends.cpu import engine as numba_backend
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan
from bpgpu.sparse import compressed_rows, is_checked
from tests.backends.test_numba_backend import DTYPES, RULES, assert_same
from tests.backends.test_numba_processes import run
from tests.simgpu import device

COLUMNS = 40
FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


def text(n=50, seed=0):
    """Return X and labels, with rows and columns that are empty, of the latter also the first and the last."""
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((n, COLUMNS)) < 0.2, rng.standard_normal((n, COLUMNS)), 0)
    X[[0, 3 % n]] = 0
    X[:, [0, 7, 8, COLUMNS - 1]] = 0
    return X, rng.integers(0, 3, n)


def network(backend, sizes=(COLUMNS, 7, 6, 3), activations=("relu", "gelu", "softmax"), **options):
    return bpgpu.MLP(sizes, activations, **{"cost": "cross_entropy", "seed": 1, "backend": backend} | options)


def assert_trains_alike(backend, X, y, dtype, options, factor=5, **training):
    """Train on sparse X on the backend, and on dense X on the reference."""
    net, reference = network(backend, dtype=dtype, **options), network("numpy", dtype=dtype, **options)
    found = net.fit(sparse.csr_array(X), y, **training)
    expected = reference.fit(X, y, **training)
    assert_same(net, reference, factor)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=4e-5 if dtype == "float32" else 1e-13)


MASKS = [np.random.default_rng(1).integers(0, 2, (COLUMNS, 7)), None, None]
EVERYTHING = {"l2": 0.3, "dropout": 0.3, "connectivity": MASKS}


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffle", "in order"])
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rule(rule, dtype, shuffle, threads):
    X, y = text()
    for options in ({}, {"l2": 0.3}, EVERYTHING):
        training = {"optimizer": rule, "epochs": 3, "batch_size": 16, "shuffle": shuffle}
        assert_trains_alike("numba", X, y, dtype, options, sample_weight=np.arange(50.0), **training)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rule_of_the_reference(rule, dtype):
    X, y = text()
    for options in ({}, EVERYTHING):
        training = {"optimizer": rule, "epochs": 3, "batch_size": 16}
        assert_trains_alike("numpy", X, y, dtype, options, sample_weight=np.arange(50.0), **training)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"sizes": (COLUMNS, 3), "activations": "softmax", "l2": 1.0},
        {"sizes": (COLUMNS, 1, 3), "activations": "softmax", "cost": "binary_cross_entropy"},
        {"sizes": (COLUMNS, 130, 65, 3), "activations": ("leaky_relu", "identity", "softmax")},
        {"activations": ("softmax", "silu", "softmax"), "dropout": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size", [1, 16, 37])
def test_options_and_batches_of_any_size(options, batch_size, threads):
    X, y = text(37)
    for backend in ("numba", "numpy"):
        for shuffle in (True, False):
            training = {"optimizer": bpgpu.SGD(0.05), "epochs": 2, "batch_size": batch_size, "shuffle": shuffle}
            assert_trains_alike(backend, X, y, "float64", options, **training)


def test_large_products(threads):
    """With layers behind the first whose products BLAS does."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((200, 300)) * (rng.random((200, 300)) < 0.1), rng.integers(0, 4, 200)
    for rule in (bpgpu.SGD(0.05), bpgpu.Adam(0.01)):
        options = {"sizes": (300, 90, 70, 4)}
        assert_trains_alike("numba", X, y, "float64", options, 100, optimizer=rule, epochs=3, batch_size=64)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_rule_of_the_users_own(backend):
    class Descent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * g

    X, y = text()
    assert_trains_alike(backend, X, y, "float64", EVERYTHING, optimizer=Descent(0.1), epochs=2, batch_size=16)


@pytest.mark.parametrize("rule", [bpgpu.SGD(0.1), bpgpu.SGD(0.1, momentum=0.9), bpgpu.Adam(0.01)], ids=str)
def test_no_entries_at_all(rule, threads):
    assert_trains_alike("numba", np.zeros((20, COLUMNS)), np.arange(20) % 3, "float64", {"l2": 0.1}, optimizer=rule)


def test_entries_stored_as_0_are_entries(threads):
    X, y = text()
    X = sparse.csr_array(X)
    X.data[::3] = 0
    nets = [network("numba", dtype="float64"), network("numpy", dtype="float64")]
    for net, given in zip(nets, (X, X.toarray()), strict=True):
        net.fit(given, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=16)
    assert_same(*nets)


# What is computed


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_predict_loss_and_backprop(backend, dtype):
    X, y = text()
    net = network(backend, dtype=dtype, **EVERYTHING)
    given = sparse.csr_array(X)
    weight = np.random.default_rng(4).uniform(0.5, 2, 50)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-13, "atol": 1e-14}
    a = net.forward(given)
    assert sparse.issparse(a[0]) and a[0].format == "csr" and a[0].dtype == dtype
    a[0] = a[0].toarray()
    for found, expected in zip(a, net.forward(X), strict=True):
        np.testing.assert_allclose(found, expected, **tolerance)
    np.testing.assert_allclose(net.predict(given), net.predict(X), **tolerance)
    np.testing.assert_allclose(net.loss(given, y, weight), net.loss(X, y, weight), **tolerance)
    (C, gradients), (expected_C, expected) = net.backprop(given, y, weight), net.backprop(X, y, weight)
    np.testing.assert_allclose(C, expected_C, **tolerance)
    for found, wanted in zip(sum(gradients, ()), sum(expected, ()), strict=True):
        np.testing.assert_allclose(found, wanted, **tolerance)
    bpgpu.check_gradients(net, given, y, weight)


def test_predictions_of_many_rows_in_parts(monkeypatch):
    X, y = text(50)
    net = network("numba", dtype="float64")
    expected = net.predict(X), net.loss(X, y)
    monkeypatch.setattr("bpgpu.network.CHUNK", 16)
    np.testing.assert_allclose(net.predict(sparse.csr_array(X)), expected[0], rtol=1e-13)
    np.testing.assert_allclose(net.loss(sparse.csr_array(X), y), expected[1], rtol=1e-13)


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form, kind):
    X, y = text()
    given = getattr(sparse, f"{form}_{kind}")(X)
    net, reference = network("numba"), network("numba")
    for each, data in ((net, given), (reference, sparse.csr_array(X))):
        each.fit(data, y, epochs=2, validation_data=(data, y))
    np.testing.assert_array_equal(net.parameters, reference.parameters)
    np.testing.assert_array_equal(net.predict(given), net.predict(sparse.csr_array(X)))
    assert given.format == form


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_every_dtype(dtype, index):
    X, y = text()
    given = sparse.csr_array((3 * X).astype(dtype))
    given.indices, given.indptr = given.indices.astype(index), given.indptr.astype(index)
    nets = network("numba", dtype="float64"), network("numpy", dtype="float64")
    for net, data in zip(nets, (given, given.toarray()), strict=True):
        net.fit(data, y, epochs=2, batch_size=16)
    assert_same(*nets)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix])
def test_rows_out_of_order_and_with_duplicates_are_read_and_not_changed(kind, threads):
    indptr, indices = np.array([0, 4, 4, 7]), np.array([5, 1, 5, 0, 9, 9, 9])
    values = np.array([1.0, 2, 3, 4, 5, 6, -11])
    given = kind((values.copy(), indices.copy(), indptr.copy()), shape=(3, COLUMNS))
    X = np.zeros((3, COLUMNS))
    X[0, [0, 1, 5]] = 4, 2, 4
    nets = network("numba", dtype="float64"), network("numpy", dtype="float64")
    for net, data in zip(nets, (given, X), strict=True):
        net.fit(data, [0, 1, 2], optimizer=bpgpu.SGD(0.1), epochs=3)
    assert_same(*nets)
    for array, before in ((given.indptr, indptr), (given.indices, indices), (given.data, values)):
        np.testing.assert_array_equal(array, before)


def test_values_that_need_no_change_are_not_copied_and_indices_are_nobodys_to_change():
    X, _ = text()
    for dtype in DTYPES:
        for given in (sparse.csr_array(X, dtype=dtype), sparse.csr_matrix(X, dtype=dtype)):
            a = network("numba", dtype=dtype).forward(given)[0]
            assert np.shares_memory(a.data, given.data)
            for array, theirs in ((a.indices, given.indices), (a.indptr, given.indptr)):
                assert not np.shares_memory(array, theirs)
                assert not array.flags.writeable and theirs.flags.writeable
            assert is_checked(a)


def test_sparse_validation_data_of_dense_training_and_the_reverse():
    X, y = text()
    histories = []
    for training in (X, sparse.csr_array(X)):
        for validation in (X, sparse.csr_array(X)):
            net = network("numba", dtype="float64")
            histories.append(net.fit(training, y, epochs=3, validation_data=(validation, y)).validation_loss)
    np.testing.assert_allclose(histories, [histories[0]] * 4, rtol=1e-12)


@pytest.mark.parametrize("form", ["coo", "csr", "csc", "bsr", "dia"])
def test_float16(form):
    """SciPy converts no COO matrix of them to CSR."""
    X = sparse.csr_array(np.eye(4, COLUMNS)).asformat(form)
    X.data = X.data.astype(np.float16)
    net = network("numpy")
    np.testing.assert_array_equal(net.predict(X), net.predict(np.eye(4, COLUMNS)))


# The same bits, faults, threads


@pytest.mark.parametrize("rule", [bpgpu.SGD(0.1), bpgpu.Adam(0.01, clip_norm=1.0)], ids=str)
def test_the_same_bits_every_time(rule, threads):
    X, y = text(200)
    found = set()
    for _ in range(20):
        net = network("numba", l2=0.1, dropout=0.1)
        history = net.fit(sparse.csr_array(X), y, optimizer=rule, epochs=2, batch_size=64)
        found.add((net.parameters.tobytes(), tuple(history.loss)))
    assert len(found) == 1


@pytest.mark.parametrize("rule", [*map(bpgpu.SGD, (30.0, 1e6, 1e38)), bpgpu.RMSprop(1e16), bpgpu.Adam(1e38)], ids=str)
def test_faults_are_placed_as_by_the_reference(rule, threads):
    X, y = text(48)
    errors = []
    for backend in ("numba", "numpy"):
        net = network(backend, activations=("relu", "relu", "identity"), cost="squared_error")
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(sparse.csr_array(100 * X), np.eye(3)[y], optimizer=rule, epochs=99, batch_size=16)
        errors.append(str(caught.value))
        assert np.isfinite(net.parameters).all()
    assert errors[0] == errors[1]


def test_a_gradient_that_overflows_is_not_taken(threads):
    """Of a finite cost: only what is known of the magnitudes of X tells that it must be looked at."""
    X = sparse.csr_array(np.random.default_rng(0).uniform(0.5, 1, (48, COLUMNS)) * 1e37)
    y = np.repeat([0.0, 1e4, 0.0], 16)[:, None] * np.ones(3)
    net = network("numba", (COLUMNS, 3), "identity", cost="squared_error", init="zeros")
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError) as caught:
        net.fit(X, y, optimizer=bpgpu.SGD(1e-30), epochs=1, batch_size=16, shuffle=False)
    assert (caught.value.step, caught.value.layer, caught.value.quantity) == (2, 1, "gradient")
    np.testing.assert_array_equal(net.parameters, before)


def test_threads_follow_the_entries_and_not_the_columns(monkeypatch):
    monkeypatch.setattr(numba_backend, "allowed_threads", lambda: 64)
    monkeypatch.setattr(cpu_blas.Blas, "allowed_threads", lambda self: 64)
    net = network("numba", (2**16, 64, 8), "relu", cost="squared_error", init="zeros")
    found = [net.backend._threads(Plan(net.architecture, 256, net.backend, nonzeros=x)) for x in (1, 100, 1e4, None)]
    assert found == [1, 5, 64, 64]


def test_a_plan_for_the_other_kind_of_data_is_refused():
    X, y = text()
    net = network("numba", dtype="float64")
    given = Data(X, y.astype(np.int32)), Data(sparse.csr_array(X), y.astype(np.int32))
    for data, other in (given, given[::-1]):
        plan = Plan(net.architecture, 16, net.backend, bpgpu.SGD(0.1), nonzeros=other.nonzeros).allocate()
        with pytest.raises(ValueError, match="other kind"):
            net.backend.run_epoch(plan, data, None, parameters=net.parameters, learning_rates=[0.1] * 4, epoch=0)


# Memory


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_memory_is_that_of_the_entries(backend):
    """Dense, X would take 800 MiB in float64 and 400 in float32."""
    code = """
import re, sys
from pathlib import Path
import numpy as np
from scipy import sparse
import bpgpu

def memory(of):
    return int(re.search(rf"{of}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

rng = np.random.default_rng(0)
row, column = rng.integers(0, 2000, 100_000), rng.integers(0, 50_000, 100_000)
X = sparse.coo_array((rng.random(100_000), (row, column)), shape=(2000, 50_000)).tocsr()
y = np.arange(2000) % 10
net = bpgpu.MLP((50_000, 32, 10), ("relu", "softmax"), "cross_entropy", backend=sys.argv[1])
rule = bpgpu.Adam()
nonzeros = X.nnz / 2000
plan = bpgpu.Plan(net.architecture, 500, net.backend, rule, nonzeros=nonzeros).nbytes / 2**20
data = (X.data.nbytes + X.indices.nbytes + X.indptr.nbytes) / 2**20
before = memory("VmRSS")
net.fit(X, y, optimizer=rule, epochs=2, batch_size=500, validation_data=(X, y))
net.predict(X)
net.loss(X, y)
print(memory("VmHWM") - before, plan, data)
"""
    run("import bpgpu; bpgpu.MLP((1, 1), 'tanh', 'squared_error', backend='numba').fit([[1]], [1], epochs=1)")
    added, plan, data = map(float, run(code, backend).split())
    assert added < plan + data + 100 < 200


def test_the_plan_has_no_room_for_sparse_batches_and_counts_the_columns():
    net = network("numba")
    plans = [Plan(net.architecture, 16, net.backend, bpgpu.Adam(), nonzeros=nonzeros) for nonzeros in (None, 8.0)]
    assert plans[0].nbytes - plans[1].nbytes == 4 * 16 * COLUMNS - 8 * COLUMNS
    plan = plans[1].allocate()
    prepared = net.backend._prepare(plan)
    held = sum(value.nbytes for value in vars(prepared).values() if isinstance(value, np.ndarray))
    assert net.backend.workspace_nbytes(plan) == held
    assert plan.batch(16).a[0] is None


# What is refused


def damaged(form="csr", **changes):
    X = sparse.csr_array(np.eye(4, 3)).asformat(form)
    for name, value in changes.items():
        setattr(X, name, np.asarray(value))
    return X


def broken(form="csr", **changes):
    """Return what holds something else than arrays."""
    X = damaged(form)
    for name, value in changes.items():
        setattr(X, name, value)
    return X


def blocks(data, indptr):
    X = sparse.bsr_array((np.ones((1, 2, 1)), [0], [0, 1, 1]), shape=(4, 3))
    X.data, X.indptr = data, np.asarray(indptr)
    return X


def lists(dtype=float, **changes):
    X = sparse.lil_array(np.eye(4, 3, dtype=dtype))
    for name, value in changes.items():
        getattr(X, name)[0] = [value]
    return X


def keys(key, value=1.0, dtype=float):
    X = sparse.dok_array(np.eye(4, 3, dtype=dtype))
    X._dict[key] = value
    return X


def uneven_lists():
    X = sparse.lil_array(np.eye(4, 3))
    X.data[0] = [1.0] * 1000
    return X


def with_entry(value):
    X = sparse.csr_array(np.eye(4, 3))
    X.data[2] = value
    return X


WRONG = {
    "two columns": (sparse.csr_array(np.eye(4, 2)), ValueError, r"X must have 3 columns, .*got shape \(4, 2\)"),
    "no rows": (sparse.csr_array((0, 3)), ValueError, r"X must have at least one row, got shape \(0, 3\)"),
    "one dimension": (sparse.coo_array(np.ones(3)), ValueError, r"got 1 dimensions; for one sample pass X\[None, :\]"),
    "NaN": (with_entry(np.nan), ValueError, r"X must be finite in float32, got nan at index \(2, 2\)"),
    "NaN, CSC": (with_entry(np.nan).tocsc(), ValueError, r"X must be finite in float32, got nan at index \(2, 2\)"),
    "too large": (with_entry(1e39), ValueError, r"X must be finite in float32, got 1e\+39 at index \(2, 2\)"),
    "complex": (with_entry(1).astype(complex), TypeError, "X must hold numbers, got dtype complex128"),
    "column 3": (damaged(indices=[0, 1, 3]), ValueError, "X is not a valid sparse matrix: .*must be < 3"),
    "column -1": (damaged(indices=[0, 1, -1]), ValueError, "X is not a valid sparse matrix: .*must be >= 0"),
    "rows back": (
        damaged(indptr=[0, 2, 1, 3, 3]),
        ValueError,
        "X is not a valid sparse matrix: .*indptr must not decrease",
    ),
    "few rows": (damaged(indptr=[0, 1, 2]), ValueError, "X is not a valid sparse matrix: indptr must hold 5 integers"),
    "no rows at all": (damaged(indptr=[]), ValueError, "X is not a valid sparse matrix: indptr must hold 5 integers"),
    "indptr of floats": (damaged(indptr=[0.0, 1, 2, 3, 3]), ValueError, "indptr must hold 5 integers, got float64"),
    "indptr from 1": (damaged(indptr=[1, 1, 2, 3, 3]), ValueError, "indptr must begin with 0, got 1"),
    "last 0": (damaged(indptr=[0, 1, 2, 3, 0]), ValueError, "indptr must not decrease, but does after entry 3"),
    "last too large": (damaged(indptr=[0, 1, 2, 3, 9]), ValueError, "indptr must end with .* got 9 for 3 indices"),
    "last too small": (damaged(indptr=[0, 1, 2, 2, 2]), ValueError, "indptr must end with .* got 2 for 3 indices"),
    "few values": (damaged(data=[1.0]), ValueError, "got 3 for 3 indices and 1 values"),
    "many values": (damaged(data=[1.0] * 9), ValueError, "got 3 for 3 indices and 9 values"),
    "indices of floats": (damaged(indices=[0.0, 1, 2]), ValueError, "indices must be integers, got float64"),
    "CSC, last 0": (damaged("csc", indptr=[0, 1, 2, 0]), ValueError, "indptr must not decrease"),
    "CSC, row 9": (damaged("csc", indices=[0, 9, 2]), ValueError, "indices must be < 4, got 9"),
    "BSR, last 0": (damaged("bsr", indptr=[0, 1, 2, 3, 0]), ValueError, "indptr must not decrease"),
    "BSR, block 3": (damaged("bsr", indices=[0, 1, 3]), ValueError, "indices must be < 3, got 3"),
    "COO, row 9": (damaged("coo", row=[0, 9, 2]), ValueError, r"coords\[0\] must be < 4, got 9"),
    "COO, column -1": (damaged("coo", col=[0, -1, 2]), ValueError, r"coords\[1\] must be >= 0, got -1"),
    "COO, few values": (damaged("coo", data=[1.0]), ValueError, "coords and data must have the same length"),
    "DIA, many offsets": (damaged("dia", offsets=[0, 1, 2]), ValueError, "offsets must hold one integer for each row"),
    "DIA, twice": (damaged("dia", offsets=[0, 0], data=np.ones((2, 3))), ValueError, "offsets must not repeat"),
    "data in a list": (broken(data=[1.0] * 3), ValueError, "data must be a NumPy array with .* got list"),
    "indices in a list": (broken(indices=[0, 1, 2]), ValueError, "indices must be a NumPy array with .* got list"),
    "CSC, no indptr": (broken("csc", indptr=None), ValueError, "indptr must be a NumPy array with .* got NoneType"),
    "BSR, no blocks": (blocks(np.ones((0, 2, 1)), [0, 10**8, 10**8]), ValueError, "got 100000000 for 1 indices and 0"),
    "BSR, blocks of no rows": (blocks(np.ones((1, 0, 1)), [0, 1, 1]), ValueError, "blocks of 0 x 1 do not fill"),
    "BSR, large blocks": (blocks(np.ones((1, 5, 1)), [0]), ValueError, "blocks of 5 x 1 do not fill"),
    "BSR, one dimension": (
        blocks(np.ones(1), [0, 1, 1]),
        ValueError,
        r"data must .* 3 dimension\(s\), got shape \(1,\)",
    ),
    "COO, 1 array": (broken("coo", coords=(np.arange(3),)), ValueError, "coords must be 2 arrays"),
    "COO, 3 arrays": (broken("coo", coords=(np.arange(3),) * 3), ValueError, "coords must be 2 arrays"),
    "COO, a list": (
        broken("coo", coords=([0], [0])),
        ValueError,
        r"coords\[0\] must be a NumPy array with .* got list",
    ),
    "DIA, offsets of floats": (damaged("dia", offsets=[0.5]), ValueError, "one integer for each row of data"),
    "LIL, column 2^70": (lists(rows=2**70), ValueError, "X is not a valid sparse matrix: .*too large"),
    "LIL, value 2^70": (lists(int, data=2**70), ValueError, "X is not a valid sparse matrix: .*too large"),
    "LIL, text": (lists(data="one"), ValueError, "X is not a valid sparse matrix: values must fit .* float64, got str"),
    "LIL, column 1.5": (lists(rows=1.5), ValueError, "X is not a valid sparse matrix: indices must be .*, got float"),
    "LIL, an object": (lists(rows=Fraction(3, 2)), ValueError, "indices must be integers, got Fraction"),
    "LIL, 1.5 in int": (lists(int, data=1.5), ValueError, "sparse matrix: values must fit dtype int64, got float"),
    "DOK, column 1.5": (keys((0, 1.5)), ValueError, "X is not a valid sparse matrix: indices must be .*, got float"),
    "DOK, column 2^70": (keys((0, 2**70)), ValueError, "X is not a valid sparse matrix: .*too large"),
    "DOK, text": (keys((0, 1), "3"), ValueError, "sparse matrix: values must fit dtype float64, got str"),
    "DOK, 1.5 in int": (keys((0, 1), 1.5, int), ValueError, "sparse matrix: values must fit dtype int64, got float"),
    "LIL, many values": (uneven_lists(), ValueError, "rows and data must have one list for each row"),
}


@pytest.mark.parametrize("method", ["fit", "predict", "forward", "loss", "backprop"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_refused(case, method):
    X, error, message = WRONG[case]
    net = bpgpu.MLP((3, 2), "softmax", "cross_entropy", backend="numpy")
    y = [[0, 1, 1, 0][: X.shape[0]]] if method in ("fit", "loss", "backprop") else []
    before = net.parameters.copy()
    with pytest.raises(error, match=message):
        getattr(net, method)(X, *y)
    np.testing.assert_array_equal(net.parameters, before)


def test_too_much_for_int32():
    X = sparse.csr_array((4, 2**31))
    with pytest.raises(
        ValueError, match=r"X must have fewer than 2\^31 entries, rows and columns, got shape \(4, 2147"
    ):
        compressed_rows("X", X, np.dtype("float32"))


def test_sparse_targets_are_refused():
    net = bpgpu.MLP((3, 2), "softmax", "cross_entropy", backend="numpy")
    with pytest.raises(TypeError, match=r"y must hold numbers, .*make sparse arrays dense"):
        net.fit(np.eye(4, 3), sparse.csr_array(np.eye(4, 2)))


# On a GPU


@pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
@pytest.mark.parametrize("name", ["cupy", "numba_device"])
def test_a_gpu_gets_dense_batches(name, monkeypatch):
    """To the bit what it makes of dense data; and never more of them than a batch at a time."""
    import importlib

    importlib.import_module(f"tests.simgpu.{name}").install(monkeypatch)
    if name == "cupy":
        from bpgpu.backends.cuda.cupy_backend import CupyBackend as OnGpu
    else:
        from bpgpu.backends.cuda.numba_backend import NumbaCudaBackend as OnGpu
    X, y = text()
    largest = []
    whole = sparse.csr_array.toarray
    monkeypatch.setattr(sparse.csr_array, "toarray", lambda X, **o: largest.append(X.shape[0]) or whole(X, **o))
    nets = [network(OnGpu(), dropout=0.2, l2=0.1) for _ in range(2)]
    results = []
    for net, given in zip(nets, (X, sparse.csr_array(X)), strict=True):
        history = net.fit(given, y, epochs=2, batch_size=16, validation_data=(given, y))
        parameters = net.backend.to_numpy(net.parameters)
        C, _ = net.backprop(given, y)
        results.append((parameters, history.loss, history.validation_loss, net.predict(given), net.loss(given, y), C))
    for dense, compressed in zip(*results, strict=True):
        np.testing.assert_array_equal(dense, compressed)
    assert largest.count(16) + largest.count(2) == 8, "four batches in each of two epochs"
