"""The compiled CPU epoch: parity with the reference, faults, threads, the same bits every time, its cache."""

import copy
import ctypes
import functools
import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.cpu import blas as cpu_blas
from bpgpu.backends.cpu import engine as numba_backend
from bpgpu.backends.cpu import threads as cpu_threads
from bpgpu.backends.plan import Plan
from bpgpu.kernels.cpu import phases as kernels
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS

RULES = [
    bpgpu.SGD(0.1),
    bpgpu.SGD(0.1, clip_norm=0.05),
    bpgpu.SGD(0.1, momentum=0.9),
    bpgpu.SGD(0.1, momentum=0.9, nesterov=True),
    bpgpu.RMSprop(0.01),
    bpgpu.Adam(0.01),
    bpgpu.AdamW(0.01, clip_norm=0.1),
]
# Of parameters of size 1, after a few epochs of reductions of length 50 or less; some 300 eps.
TOLERANCE = {"float32": 4e-5, "float64": 1e-13}
DTYPES = list(TOLERANCE)


def data(n=50, inputs=5, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)), rng.integers(0, outputs, n)


def pair(sizes=(5, 7, 6, 3), activations=("relu", "gelu", "softmax"), cost="cross_entropy", **options):
    """Return the same network on the backend and on the reference."""
    return [bpgpu.MLP(sizes, activations, cost, backend=b, **{"seed": 1, **options}) for b in ("numba", "numpy")]


def assert_same(net, reference, factor=1):
    tolerance = factor * TOLERANCE[reference.architecture.dtype.name]
    np.testing.assert_allclose(net.parameters, reference.parameters, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_cost(activation, cost, outputs, dtype):
    """In the hidden layer and in the output layer, with all that training can add."""
    rng = np.random.default_rng(3)
    X, weight = rng.standard_normal((37, 4)), rng.uniform(0.5, 2, 37)
    y = rng.dirichlet(np.ones(3), 37) if outputs == 3 else rng.uniform(0.1, 0.9, (37, 1))
    mask = rng.integers(0, 2, (4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pairs that leave the domain of the cost are trained too
        nets = pair((4, 5, outputs), activation, cost, dtype=dtype, l2=0.1, dropout=0.25, connectivity=[mask, None])
    histories = [
        net.fit(X, y, optimizer=bpgpu.SGD(1e-3), epochs=2, batch_size=16, sample_weight=weight) for net in nets
    ]
    # A cost that divides by a, where a is near its limit, has gradients that are large and inexact by themselves.
    assert_same(*nets, factor=100)
    np.testing.assert_allclose(histories[0].loss, histories[1].loss, rtol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_rule(rule, dtype, threads):
    X, y = data()
    masks = [np.random.default_rng(1).integers(0, 2, (5, 7)), None, None]
    for options in ({}, {"l2": 0.3, "dropout": 0.3, "connectivity": masks}):
        nets = pair(dtype=dtype, **options)
        histories = [
            net.fit(X, y, optimizer=rule, epochs=3, batch_size=16, sample_weight=np.arange(50.0)) for net in nets
        ]
        assert_same(*nets, factor=5)
        np.testing.assert_allclose(histories[0].loss, histories[1].loss, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"l2": 0.5},
        {"activations": ("softmax", "silu", "softmax"), "dropout": 0.2},
        {"activations": ("tanh", "sigmoid", "sigmoid"), "cost": "binary_cross_entropy"},
        {"activations": ("elu", "softplus", "identity"), "cost": "mean_squared_error"},
        {"sizes": (5, 3), "activations": "softmax", "l2": 1.0},
        {"sizes": (5, 1, 3), "activations": "softmax", "cost": "binary_cross_entropy"},
        {"sizes": (5, 130, 65, 3), "activations": ("leaky_relu", "identity", "softmax")},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_options_train_alike(options, dtype, threads):
    X, y = data(37)
    for shuffle in (True, False):
        nets = pair(dtype=dtype, **options)
        for net in nets:
            net.fit(X, y, optimizer=bpgpu.SGD(0.05), epochs=2, batch_size=16, shuffle=shuffle)
        assert_same(*nets)


@pytest.mark.parametrize("batch_size", [1, 2, 37])
def test_batches_of_any_size(batch_size, threads):
    X, y = data(37)
    nets = pair(dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=1, batch_size=batch_size)
    assert_same(*nets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.3, 1e-12])
def test_dropout_drops_the_same_elements(rate, dtype, threads):
    """Also where rows of a thread begin inside a block of four random words."""
    X, y = data(31)
    nets = pair((5, 7, 5, 3), dropout=rate, dtype=dtype, seed=2**63 + 5)
    for net in nets:
        net.epoch = 2**31
        net.fit(X, y, optimizer=bpgpu.SGD(0.1), epochs=2, batch_size=15)
    assert_same(*nets)


def test_user_formulas(threads):
    mish = bpgpu.Activation(
        "mish", "z * tanh(softplus(z))", "tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)"
    )
    cost = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", "mean")
    X, y = data()
    for last in ("identity", "softmax", mish):
        nets = pair(activations=(mish, mish, last), cost=cost, dtype="float64")
        for net in nets:
            net.fit(X, y, epochs=2)
        assert_same(*nets, factor=10)


def test_a_rule_of_the_users_own():
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    X, y = data()
    nets = pair(dtype="float64")
    for net in nets:
        net.fit(X, y, optimizer=SignDescent(0.01), epochs=2, batch_size=16)
    np.testing.assert_array_equal(nets[0].parameters, nets[1].parameters)


def test_large_and_certain_outputs(threads):
    """Products that BLAS does on several rows of a thread, and outputs that are rounded to 1."""
    X, y = data(100, 40, 10)
    for cost in ("cross_entropy", "binary_cross_entropy"):
        nets = pair((40, 90, 10), ("relu", "softmax"), cost, dtype="float64")
        for net in nets:
            net.parameters[:] *= 30
            net.fit(X, y, optimizer=bpgpu.SGD(1e-3), epochs=2, batch_size=64)
        assert_same(*nets, factor=100)


# What goes wrong


@pytest.mark.parametrize(
    "rule",
    [
        *map(bpgpu.SGD, (30.0, 1e6, 1e38)),
        bpgpu.SGD(1e6, momentum=0.5),
        *map(bpgpu.RMSprop, (1e16, 1e38)),
        bpgpu.Adam(1e38),
    ],
    ids=str,
)
def test_faults_are_placed_as_by_the_reference(rule, threads):
    X, y = data(48)
    X *= 100
    nets = pair(activations=("relu", "relu", "identity"), cost="squared_error")
    errors = []
    for net in nets:
        with pytest.raises(bpgpu.NonFiniteError) as caught:
            net.fit(X, np.eye(3)[y], optimizer=rule, epochs=99, batch_size=16)
        errors.append(str(caught.value))
        assert np.isfinite(net.parameters).all()
    assert errors[0] == errors[1]


@pytest.mark.parametrize("rule", [bpgpu.SGD(1e-30), bpgpu.Adam(1e-3), bpgpu.SGD(1e-30, clip_norm=1.0)], ids=str)
@pytest.mark.parametrize("target", [0.0, 1e4])
def test_a_gradient_that_overflows_is_not_taken(target, rule, threads):
    """Of a finite cost; without `fit`, which goes back: parameters and steps are those before the fault."""
    X = np.random.default_rng(0).uniform(0.5, 1, (48, 5)) * 1e37
    found = []
    for net in pair((5, 3), "identity", "squared_error"):
        net.parameters[:15] *= 1e-37
        plan = Plan(net.architecture, 16, net.backend, rule).allocate()
        given = net.checked_data(X, np.repeat([0.0, target, 0.0], 16)[:, None] * np.ones(3))  # only the second batch's
        try:
            net.backend.run_epoch(plan, given, None, parameters=net.parameters, learning_rates=[1e-38] * 3, epoch=0)
            found.append("none")
        except bpgpu.NonFiniteError as error:
            found.append((error.layer, error.quantity, error.step))
        assert np.isfinite(net.parameters).all()
        found.append(plan.steps)
    assert found[:2] == found[2:]
    if target and not rule.n_state:
        assert found[:2] == [(1, "gradient", 2), 1]


@pytest.mark.parametrize("change", [lambda p: p.astype(np.float64), lambda p: np.repeat(p, 2)[::2]])
def test_parameters_that_could_not_be_trained_in_place_are_refused(change):
    net, _ = pair()
    plan = Plan(net.architecture, 16, net.backend, bpgpu.SGD(0.1)).allocate()
    given = net.checked_data(*data(16))
    parameters = change(net.parameters)
    before = parameters.copy()
    with pytest.raises(TypeError, match=r"^parameters must be a contiguous and aligned array of float32, got float"):
        net.backend.run_epoch(plan, given, None, parameters=parameters, learning_rates=[0.1], epoch=0)
    np.testing.assert_array_equal(parameters, before)


# Threads


@pytest.mark.parametrize("rule", [bpgpu.SGD(0.1), bpgpu.Adam(0.01, clip_norm=1.0)], ids=str)
def test_the_same_bits_every_time(rule, threads):
    X, y = data(200, 20, 4)
    found = set()
    for _ in range(20):
        net = pair((20, 33, 4), ("gelu", "softmax"), dropout=0.1, l2=0.1)[0]
        history = net.fit(X, y, optimizer=rule, epochs=2, batch_size=64)
        found.add((net.parameters.tobytes(), tuple(history.loss)))
    assert len(found) == 1


def test_epochs_side_by_side_and_blas_as_before(threads):
    from threadpoolctl import threadpool_info, threadpool_limits

    X, y = data(200, 20, 4)

    def train(results, i):
        net = pair((20, 33, 4), ("gelu", "softmax"))[0]
        net.fit(X, y, epochs=20, batch_size=64)
        results[i] = net.parameters.tobytes()

    pair()  # loads BLAS
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        results = {}
        workers = [threading.Thread(target=train, args=(results, i)) for i in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(set(results.values())) == 1 and len(results) == 3
        with pytest.raises(bpgpu.NonFiniteError):
            pair((20, 33, 4), ("gelu", "identity"), "squared_error")[0].fit(
                X, np.eye(4)[y], optimizer=bpgpu.SGD(1e30), epochs=9
            )
        assert threadpool_info() == before


def test_blas_on_one_thread_also_if_the_reference_trained_first():
    """SciPy's BLAS, which the epoch calls, is loaded with the backend only."""
    code = """
import bpgpu, numpy as np
from bpgpu.backends import numba_backend
from threadpoolctl import threadpool_info
X = np.zeros((8, 2))
bpgpu.MLP((2, 1), "tanh", "squared_error", backend="numpy").fit(X, X[:, :1], epochs=1)
with bpgpu.get_backend("numba")._blas.one_thread():
    found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
assert set(found) == {1}, found
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_copies_of_a_backend_hold_blas_together():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads_of_blas():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    net = pair()[0]
    first, second = (each.backend._blas.one_thread() for each in (net, copy.deepcopy(net)))
    with threadpool_limits(2, user_api="blas"):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads_of_blas() == {1}
        second.__exit__(None, None, None)
        assert threads_of_blas() == {2}


@pytest.mark.parametrize("helping", ["nobody", "one, of two", "late", "too many"])
@pytest.mark.parametrize("rule", [bpgpu.SGD(0.1, clip_norm=0.05), bpgpu.Adam(0.01)], ids=str)
def test_who_helps_changes_no_bit(monkeypatch, rule, helping):
    """Three parts are always three parts, also if one thread does them all."""
    monkeypatch.setattr(numba_backend.NumbaBackend, "_threads", lambda self, plan: 3)
    X, y = data(200, 20, 4)
    call = cpu_threads.Helpers.call

    def called(helpers, work, threads, shared):
        if helping == "late":
            threading.Timer(0.002, call, (helpers, work, threads, shared)).start()
        elif helping != "nobody":
            call(helpers, work, {"one, of two": 2, "too many": 9}[helping], shared)

    def train():
        net = pair((20, 33, 4), ("gelu", "softmax"), dropout=0.1, l2=0.1)[0]
        return net.fit(X, y, optimizer=rule, epochs=30, batch_size=64).loss, net.parameters.tobytes()

    expected = train()
    monkeypatch.setattr(cpu_threads.Helpers, "call", called)
    for _ in range(5):
        assert train() == expected


@pytest.fixture
def run_epoch(monkeypatch):
    """Return a function that trains an epoch in three parts, and the parameters it changes."""
    monkeypatch.setattr(numba_backend.NumbaBackend, "_threads", lambda self, plan: 3)
    monkeypatch.setattr(numba_backend, "helpers", functools.cache(cpu_threads.Helpers))
    X, y = data()
    net, _ = pair()
    plan = Plan(net.architecture, 25, net.backend, bpgpu.SGD(0.1)).allocate()
    samples = bpgpu.backends.plan.Data(X.astype(np.float32), y.astype(np.int32))
    arguments = {"parameters": net.parameters, "learning_rates": [0.1, 0.1], "epoch": 0}
    return lambda: net.backend.run_epoch(plan, samples, None, **arguments), net.parameters, plan


@pytest.mark.parametrize("allowed", [0, 1])
def test_without_a_thread_that_cannot_be_started(monkeypatch, run_epoch, allowed):
    run, parameters, plan = run_epoch
    before, start, started = parameters.copy(), threading.Thread.start, []
    run()
    expected = parameters.copy()
    parameters[:], plan.prepared = before, None

    def refuse(thread):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    numba_backend.helpers.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    run()
    assert len(started) == allowed
    np.testing.assert_array_equal(parameters, expected)


def test_ctrl_c_while_a_thread_starts(monkeypatch, run_epoch):
    run, parameters, _ = run_epoch
    before, start = parameters.copy(), threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    np.testing.assert_array_equal(parameters, before)
    monkeypatch.setattr(threading.Thread, "start", start)
    run()
    assert not np.array_equal(parameters, before)


def test_a_helper_stays_through_an_epoch_and_leaves_after_it(run_epoch):
    run, parameters, plan = run_epoch
    for _ in range(20):
        run()
    prepared, after, shared = plan.prepared, parameters.copy(), plan.prepared.shared
    deadline = time.monotonic() + 60
    while shared[kernels.LEFT] < shared[kernels.CALLED]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    left = shared[kernels.LEFT]
    shared[kernels.ON] = 1
    helper = threading.Thread(target=prepared.run, args=(1,), daemon=True)
    helper.start()
    helper.join(0.1)  # a phase may take as long
    assert helper.is_alive()
    shared[kernels.ON] = 0
    helper.join(60)
    assert shared[kernels.LEFT] == left + 1
    np.testing.assert_array_equal(parameters, after)


def threads_of(batch_size=10**6):
    """Return on how many threads a network would be trained that could keep very many busy."""
    net = bpgpu.MLP((1000, 1000), "identity", "squared_error", backend="numba")
    return net.backend._threads(Plan(net.architecture, batch_size, net.backend))


def test_threads_follow_the_size_of_a_step(monkeypatch):
    monkeypatch.setattr(numba_backend, "allowed_threads", lambda: 64)
    monkeypatch.setattr(cpu_blas.Blas, "allowed_threads", lambda self: 64)
    net = bpgpu.MLP((64, 100, 10), ("relu", "softmax"), "cross_entropy", backend="numba")
    found = {B: net.backend._threads(Plan(net.architecture, B, net.backend)) for B in (1, 94, 95, 200, 400, 10**4)}
    assert found == {1: 1, 94: 1, 95: 2, 200: 4, 400: 8, 10**4: 64}
    assert threads_of(batch_size=3) == 3  # a thread has a row at least


def test_threads_follow_the_users_limits(monkeypatch):
    from threadpoolctl import threadpool_limits

    monkeypatch.setattr(cpu_threads, "processors", lambda: 3)
    with threadpool_limits(16):
        assert threads_of() == 3
        for name in ("BPGPU_NUM_THREADS", "NUMBA_NUM_THREADS"):
            monkeypatch.setenv(name, "2")
            assert threads_of() == 2
            for wrong in ("0", "-1", "two"):
                monkeypatch.setenv(name, wrong)
                with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got '{wrong}'"):
                    threads_of()
            monkeypatch.delenv(name)
        with threadpool_limits(1, user_api="blas"):
            assert threads_of() == 1
            with bpgpu.get_backend("numba")._blas.one_thread():
                assert threads_of() == 1
        with bpgpu.get_backend("numba")._blas.one_thread():  # our own limit does not count
            assert threads_of() == 3


def test_processors_of_a_container(monkeypatch, tmp_path):
    here = cpu_threads.processors()
    assert here >= 1
    monkeypatch.setattr(cpu_threads.os, "sched_getaffinity", lambda pid: range(8), raising=False)
    for text, expected in (("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1), ("", 8)):
        path = tmp_path / "cpu.max"
        path.write_text(text)
        monkeypatch.setattr(cpu_threads, "CPU_MAX", path)
        assert cpu_threads.processors() == expected
    monkeypatch.setattr(cpu_threads, "CPU_MAX", tmp_path / "none")
    assert cpu_threads.processors() == 8


# BLAS


class Library:
    """In place of Intel's; it is never called here."""

    sgemm_ = dgemm_ = sgemm = dgemm = ctypes.CFUNCTYPE(None)(lambda: None)
    MKL_Set_Threading_Layer = MKL_CBWR_Set = int


@pytest.mark.parametrize(
    ("wanted", "installed", "processor", "chosen"),
    [
        ("", False, "skylake-avx512", "scipy"),
        ("", True, "skylake-avx512", "mkl"),
        ("", True, "znver5", "scipy"),
        ("mkl", True, "znver5", "mkl"),
        ("scipy", True, "skylake-avx512", "scipy"),
    ],
)
def test_the_choice_of_a_blas(monkeypatch, wanted, installed, processor, chosen):
    monkeypatch.setenv("BPGPU_BLAS", wanted)
    monkeypatch.setattr(cpu_blas, "mkl_library", lambda: "libmkl_rt.so.3" if installed else None)
    load = ctypes.CDLL  # which threadpoolctl calls too

    def loaded(path, mode=ctypes.DEFAULT_MODE):
        return Library() if path == "libmkl_rt.so.3" else load(path, mode)

    monkeypatch.setattr(cpu_blas.ctypes, "CDLL", loaded)
    monkeypatch.setattr(cpu_blas, "get_host_cpu_name", lambda: processor)
    blas = cpu_blas.Blas()
    assert blas.name == chosen
    assert (blas.gemm[np.dtype("float32")] == ctypes.cast(Library.sgemm_, ctypes.c_void_p).value) == (chosen == "mkl")


def test_a_blas_that_is_not_there(monkeypatch):
    monkeypatch.setattr(cpu_blas, "mkl_library", lambda: None)
    for wanted, message in (("mkl", r'try: pip install "bpgpu\[mkl\]"'), ("atlas", "'scipy' or 'mkl', got 'atlas'")):
        monkeypatch.setenv("BPGPU_BLAS", wanted)
        with pytest.raises(bpgpu.BackendUnavailableError, match=message):
            cpu_blas.Blas()


def test_where_intels_library_lies(monkeypatch, tmp_path):
    for name in ("libmkl_rt.so.3", "libmkl_core.so.3", "mkl_rt.3.dll"):
        (tmp_path / name).touch()

        def listed(package, name=name):
            path = importlib.metadata.PackagePath(name)
            path.dist = importlib.metadata.PathDistribution(tmp_path / "mkl.dist-info")
            return [path]

        monkeypatch.setattr(cpu_blas, "files", listed)
        assert cpu_blas.mkl_library() == (None if "core" in name else tmp_path / name)
    monkeypatch.undo()
    installed = any(found.metadata["Name"] == "mkl" for found in importlib.metadata.distributions())
    assert (cpu_blas.mkl_library() is None) == (not installed)


def train_after_fork(queue):
    X, y = data(200, 20, 4)
    net = pair((20, 33, 4), ("gelu", "softmax"))[0]
    net.fit(X, y, epochs=2, batch_size=64)
    queue.put((net.parameters.tobytes(), cpu_threads.helpers()._count))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_forks_after_training(threads):
    """The child trains to the same bits, with helpers of its own, for those of its parent are not there."""
    queue = multiprocessing.get_context("fork").SimpleQueue()
    train_after_fork(queue)
    child = multiprocessing.get_context("fork").Process(target=train_after_fork, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    (expected, _), (found, helpers) = queue.get(), queue.get()
    assert found == expected
    assert helpers == threads - 1


def test_an_epoch_in_several_compiled_calls(monkeypatch):
    """Between them Ctrl-C would be heard."""
    X, y = data(200)
    monkeypatch.setattr(numba_backend, "CHUNK", 1)
    nets = pair(dtype="float64")
    for net in nets:
        net.fit(X, y, epochs=2, batch_size=16)
    assert_same(*nets)


# Memory and start


def test_the_plan_counts_what_the_backend_adds():
    X, y = data()
    net = pair()[0]
    backend, found = net.backend, []
    original = backend._prepare
    try:
        backend._prepare = lambda plan: found.append((plan, original(plan))) or found[-1][1]
        net.fit(X, y, epochs=1)
    finally:
        del backend._prepare
    ((plan, prepared),) = found
    held = sum(value.nbytes for value in vars(prepared).values() if isinstance(value, np.ndarray))
    assert backend.workspace_nbytes(plan) == held


def test_a_sum_of_many_terms_trains_in_compiled_code():
    value = " + ".join(f"z / {k}" for k in range(1, 101))
    line = bpgpu.Activation("line", value=value, derivative=" + ".join(f"1 / {k}" for k in range(1, 101)))
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    found = []
    for backend in ("numba", "numpy"):
        net = bpgpu.MLP([3, 4, 1], [line, "identity"], "half_squared_error", dtype="float64", backend=backend)
        found.append(net.fit(X, y, optimizer=bpgpu.SGD(1e-3), epochs=2, batch_size=7).loss)
    np.testing.assert_allclose(*found, rtol=1e-12)
