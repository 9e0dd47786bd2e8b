"""The contract of the backends, and how one is chosen."""

import importlib
import inspect
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import bpgpu
from bpgpu.backends.base import Backend
from bpgpu.backends.data import Dropout
from bpgpu.kernels import philox
from bpgpu.model.activations import ACTIVATIONS, get_activation
from bpgpu.model.costs import get_cost

# As an attribute of bpgpu, `backends` is the function that lists them.
choice = importlib.import_module("bpgpu.backends")

USABLE = [info.name for info in bpgpu.backends() if info.available]


def test_out_arguments_are_keyword_only_in_the_contract():
    for _, method in inspect.getmembers(Backend, inspect.isfunction):
        for parameter in inspect.signature(method).parameters.values():
            if parameter.name.startswith("out"):
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


# The steps, against sums written out


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=[name for name in USABLE if getattr(bpgpu.get_backend(name), "xp", None) is np])
def backend(request):
    """A backend on the CPU, which takes NumPy arrays as they are; test_parity.py has those with a device."""
    return bpgpu.get_backend(request.param)


def random(shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def close(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=2000 * np.finfo(dtype).eps, atol=200 * np.finfo(dtype).eps)
    assert actual.dtype == dtype


SHAPES = [(1, 1, 1), (1, 31, 33), (33, 1, 31), (31, 33, 1), (65, 70, 3), (0, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_sum_over_inputs(backend, dtype, shape):
    B, m, n = shape
    a_prev, W, b = random((B, m), dtype), random((m, n), dtype), random((n,), dtype)
    out, out_z = np.full((B, n), np.nan, dtype), np.full((B, n), np.nan, dtype)
    backend.forward(a_prev, W, b, get_activation("tanh"), out=out, out_z=out_z)
    z = [
        [sum(float(a_prev[r, i]) * float(W[i, j]) for i in range(m)) + float(b[j]) for j in range(n)] for r in range(B)
    ]
    z = np.array(z).reshape(B, n)
    close(out_z, z, dtype)
    close(out, np.tanh(z), dtype)
    close_without_z = np.full((B, n), np.nan, dtype)
    backend.forward(a_prev, W, None, get_activation("tanh"), out=close_without_z)
    close(close_without_z, np.tanh(z - b.astype(float)), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_delta_and_weight_gradient_are_their_sums(backend, dtype, shape):
    B, m, n = shape
    delta, W, a = random((B, n), dtype), random((m, n), dtype), np.tanh(random((B, m), dtype, 1))
    out = np.full((B, m), np.nan, dtype)
    backend.hidden_delta(delta, W, a, get_activation("tanh"), out=out)
    back = [[sum(float(delta[r, j]) * float(W[i, j]) for j in range(n)) for i in range(m)] for r in range(B)]
    close(out, np.array(back).reshape(B, m) * (1 - a.astype(float) ** 2), dtype)

    mask = (random((m, n), dtype, 2) > 0).astype(dtype)
    out_W, out_b = np.full((m, n), np.nan, dtype), np.full((n,), np.nan, dtype)
    backend.weight_gradient(a, delta, out_W=out_W, out_b=out_b, W=W, decay=0.3, mask=mask)
    outer = sum((np.outer(a[r].astype(float), delta[r].astype(float)) for r in range(B)), np.zeros((m, n)))
    close(out_W, (outer + 0.3 * W.astype(float)) * mask, dtype)
    close(out_b, sum((delta[r].astype(float) for r in range(B)), np.zeros(n)), dtype)


def test_steps_take_transposed_and_strided_inputs_and_leave_them_alone(backend, dtype):
    wide, W = random((12, 20), dtype), random((7, 6), dtype)
    a_prev, transposed = wide[::2, ::3], W.T
    before = wide.copy(), W.copy()
    out = np.empty((6, 6), dtype)
    backend.forward(a_prev[:, :6].T, transposed[:6, :6], None, get_activation("sigmoid"), out=out)
    plain = np.empty((6, 6), dtype)
    backend.forward(a_prev[:, :6].T.copy(), transposed[:6, :6].copy(), None, get_activation("sigmoid"), out=plain)
    close(out, plain, dtype)
    np.testing.assert_array_equal(wide, before[0])
    np.testing.assert_array_equal(W, before[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_delta_scales_rows_and_reports_their_costs(backend, dtype, activation):
    z, y = random((5, 3), dtype), np.eye(3, dtype=dtype)[[0, 1, 2, 0, 1]]
    for cost, per_output in (("squared_error", 1), ("mean_squared_error", 3)):
        a, delta, row_cost = (np.full(s, np.nan, dtype) for s in ((5, 3), (5, 3), (5,)))
        once = np.empty_like(delta)
        scale = np.array([0, 1, 2, 3, 0.5], dtype)
        arguments = (get_activation(activation), get_cost(cost))
        backend.output_delta(z, y, scale, *arguments, out_a=a, out_delta=delta, out_cost=row_cost)
        backend.output_delta(z, y, np.ones(5, dtype), *arguments, out_a=a, out_delta=once, out_cost=row_cost)
        close(delta, once * scale[:, None], dtype)
        close(row_cost, ((y - a) ** 2).sum(axis=1) / per_output, dtype)


@pytest.mark.parametrize("cost", ["cross_entropy", "binary_cross_entropy", "half_squared_error"])
def test_softmax_is_safe_at_1e4(backend, dtype, cost):
    z = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, 9999], [0, 0, 0]], dtype)
    y = np.eye(3, dtype=dtype)[[1, 0, 2, 1]]
    a, delta, row_cost = (np.full(s, np.nan, dtype) for s in ((4, 3), (4, 3), (4,)))
    backend.output_delta(
        z, y, np.ones(4, dtype), get_activation("softmax"), get_cost(cost), out_a=a, out_delta=delta, out_cost=row_cost
    )
    assert np.isfinite(delta).all()
    assert np.isfinite(row_cost).all()
    close(a.sum(axis=1), np.ones(4), dtype)
    if cost == "cross_entropy":
        close(row_cost, [2e4, np.log(3), 1 + np.log(2 + np.exp(-1)), np.log(3)], dtype)
        close(delta, a - y, dtype)


def test_dropout_may_work_in_place_and_keeps_its_bits(backend, dtype):
    x = np.ones((33, 31), dtype)
    key = Dropout(rate=0.4, seed=2**40 + 5, epoch=3, step=2, layer=1)
    out = np.empty_like(x)
    backend.dropout(x, key, out=out)
    assert set(np.unique(out)) == {dtype.type(0), dtype.type(1 / 0.6)}
    backend.dropout(x, key, out=x)
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_dropout_drops_is_zero_also_if_it_is_not_finite(backend, dtype, value):
    key = Dropout(rate=0.4, seed=5, epoch=1, step=2, layer=1)
    kept = philox.keep_mask((33, 31), **vars(key))
    x, out = np.full((33, 31), value, dtype), np.empty((33, 31), dtype)
    backend.dropout(x, key, out=out)
    np.testing.assert_array_equal(out, np.where(kept, x, 0))
    backend.hidden_delta(x[:, :1], np.ones((31, 1), dtype), x, get_activation("identity"), out=out, dropout=key)
    np.testing.assert_array_equal(out, np.where(kept, x, 0))


# The choice


def test_every_backend_is_listed_with_a_reason():
    infos = bpgpu.backends()
    assert [info.name for info in infos] == ["cupy", "numba-cuda", "numba", "numpy"]
    assert infos[-1].available
    assert infos[-1].device.startswith("CPU")
    for info in infos:
        assert info.reason
        assert (info.device is None) == (not info.available)


def test_auto_takes_the_first_that_runs_and_says_why():
    assert bpgpu.get_backend().name == bpgpu.get_backend("auto").name == USABLE[0]
    assert "the fastest that runs here" in choice.why_auto()
    for info in bpgpu.backends():
        if not info.available:
            assert info.name in choice.why_auto()


def test_a_backend_object_is_taken_as_it_is():
    backend = bpgpu.get_backend("numpy")
    assert bpgpu.get_backend(backend) is backend
    assert bpgpu.MLP([2, 1], "tanh", "squared_error", backend=backend).backend is backend
    assert "numpy" in repr(backend)


@pytest.fixture
def registry(no_backend_made, monkeypatch):
    """A registry of stand-ins."""
    monkeypatch.setattr(choice, "REGISTRY", dict(choice.REGISTRY))
    return choice.REGISTRY


def test_a_backend_whose_library_is_broken_keeps_the_cause_and_names_the_fix(registry, monkeypatch):
    def broken():
        raise OSError("libcublas.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", lambda module: SimpleNamespace(Broken=broken))
    registry.clear()
    registry["cupy"] = ("bpgpu.backends.base", "Broken", 'pip install "bpgpu[cuda13]"')
    with pytest.raises(
        bpgpu.BackendUnavailableError, match=r"'cupy' cannot run here: OSError: libcublas.*pip install"
    ) as caught:
        bpgpu.get_backend("cupy")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.backend == "cupy"
    (info,) = bpgpu.backends()
    assert not info.available
    assert "libcublas" in info.reason


def test_a_backend_may_refuse_in_its_own_words(registry, monkeypatch):
    def refusing():
        raise bpgpu.BackendUnavailableError("cupy", "no NVIDIA driver; install one")

    monkeypatch.setattr(importlib, "import_module", lambda module: SimpleNamespace(Refusing=refusing))
    registry["cupy"] = ("bpgpu.backends.base", "Refusing", "")
    with pytest.raises(
        bpgpu.BackendUnavailableError, match=r"cannot run here: no NVIDIA driver; install one; backend='auto'"
    ):
        bpgpu.get_backend("cupy")


def test_a_backend_that_this_version_lacks_says_so(registry):
    registry["cupy"] = ("bpgpu.backends.no_such_module", "X", "")
    with pytest.raises(
        bpgpu.BackendUnavailableError, match="not part of this version of bpgpu; backend='auto' takes one"
    ):
        bpgpu.get_backend("cupy")


def test_importing_bpgpu_loads_numpy_only():
    code = (
        "import sys, bpgpu; heavy = {'scipy', 'numba', 'cupy', 'safetensors', 'pandas', 'rich', 'typer', 'matplotlib'};"
        "found = heavy & set(sys.modules); assert not found, found; assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("gap", [1, 17, 20, 100, 4000])
def test_softmax_with_binary_cross_entropy_is_exact_where_an_output_is_rounded_to_one(backend, dtype, gap):
    """Against the same sums in integers and exponentials of negative numbers: y = (0, 1, 0), z = (gap, 0, 0)."""
    z, y = np.array([[gap, 0, 0]], dtype), np.array([[0, 1, 0]], dtype)
    a, delta, row_cost = (np.full(s, np.nan, dtype) for s in ((1, 3), (1, 3), (1,)))
    arguments = (get_activation("softmax"), get_cost("binary_cross_entropy"))
    backend.output_delta(z, y, np.ones(1, dtype), *arguments, out_a=a, out_delta=delta, out_cost=row_cost)
    t = np.exp(-float(gap))
    total = np.log1p(2 * t)  # log of the sum, less gap
    one = -(np.log(2.0) - gap - total)  # -log(1 - a_0): the other two over the sum
    two = gap + total  # -log a_1
    three = -np.log1p(-t / (1 + 2 * t))  # -log(1 - a_2)
    close(row_cost, [one + two + three], dtype)
    a0, a1 = 1 / (1 + 2 * t), t / (1 + 2 * t)
    q1, q2 = -1.0, a1 / (1 - a1)  # (a_k - y_k) / (1 - a_k)
    expected = [a0 - a0 * (q1 + q2), (a1 - 1) - 0.5 * a0 - a1 * q2, a1 - 0.5 * a0 - a1 * q1]
    close(delta, [expected], dtype)


@pytest.mark.parametrize("z", [0, 1, 1e6])
def test_softmax_with_binary_cross_entropy_of_equal_outputs_is_the_same_at_any_z(backend, dtype, z):
    y = np.array([[0, 1]], dtype)
    a, delta, row_cost = (np.full(s, np.nan, dtype) for s in ((1, 2), (1, 2), (1,)))
    arguments = np.full((1, 2), z, dtype), y, np.ones(1, dtype), get_activation("softmax")
    backend.output_delta(*arguments, get_cost("binary_cross_entropy"), out_a=a, out_delta=delta, out_cost=row_cost)
    close(row_cost, [2 * np.log(2)], dtype)
    close(delta, [[1, -1]], dtype)


@pytest.mark.parametrize("error", [bpgpu.NonFiniteError(1, 2, 3, "cost"), bpgpu.BackendUnavailableError("cupy", "why")])
def test_errors_cross_processes(error):
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))
