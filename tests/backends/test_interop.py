"""Arrays of other libraries go in, and results of the same kind come out, in the order of the streams."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import bpgpu
from bpgpu.interop import on_gpu, same_kind
from tests.simgpu import device, numba_device

simulates = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")


@pytest.fixture
def library(monkeypatch):
    """Another library: its arrays have DLPack, and it makes them from it."""
    module = ModuleType("otherlib")

    class Tensor:
        def __init__(self, inside):
            self.inside = inside

        def __dlpack__(self, **options):
            return self.inside.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.inside.__dlpack_device__()

    Tensor.__module__ = "otherlib.arrays"
    module.Tensor, module.from_dlpack = Tensor, lambda array: Tensor(array)
    monkeypatch.setitem(sys.modules, "otherlib", module)
    return module


def samples(n=40):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 5)).astype(np.float32), rng.integers(0, 3, n), rng.uniform(0.5, 2, n)


def network(backend, **options):
    return bpgpu.MLP([5, 7, 3], ["tanh", "softmax"], "cross_entropy", backend=backend, **options)


# On the CPU


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda torch, x: x.requires_grad_(), "requires grad"),
        (lambda torch, x: torch.imag(torch.conj(torch.complex(x, x))), "negative bit"),
        (lambda torch, x: torch.conj(torch.complex(x, x)), "conjugate bit"),
        (lambda torch, x: x.bfloat16(), "BFloat16"),
        (lambda torch, x: x.to_sparse(), "Sparse layout"),
        (lambda torch, x: x.to("meta"), "meta"),
    ],
    ids=["requires_grad", "negative", "conjugate", "bfloat16", "sparse", "meta"],
)
def test_tensors_of_torch_that_numpy_cannot_read_are_refused_by_name(change, reason):
    torch = pytest.importorskip("torch")
    X, y = torch.ones(4, 5), torch.ones(4, 3)
    net = network("numpy")
    np.testing.assert_array_equal(net.predict(X), net.predict(X.numpy()))
    for name, arguments in (
        ("X", {"X": change(torch, X.clone())}),
        ("y", {"y": change(torch, y.clone())}),
        ("sample_weight", {"sample_weight": change(torch, torch.ones(4))}),
    ):
        message = rf"^{name} must be an array that NumPy can read, got torch.Tensor \([^.]*{reason}[^.]*\); convert it"
        with pytest.raises(TypeError, match=message):
            net.fit(**({"X": X, "y": y} | arguments), epochs=1)
    assert net.epoch == 0


class Unreadable:
    """A tensor of torch, for where there is none: its errors are these."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")

    def __dlpack_device__(self):
        raise ValueError("Unknown device type meta for Dlpack")


def test_an_array_that_numpy_cannot_read_is_refused_by_name():
    message = (
        r"^X must be an array that NumPy can read, got tests.Unreadable \(Can't .* requires grad\); convert it to a d"
    )
    with pytest.raises(TypeError, match=message):
        network("numpy").predict(Unreadable())


class Tensor:
    """An array of a library with the array API: on the CPU, and NumPy can read it."""

    def __init__(self, inside):
        self.inside = inside

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.inside, dtype)

    def __dlpack__(self, **options):
        return self.inside.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.inside.__dlpack_device__()

    def __array_namespace__(self, api_version=None):
        return SimpleNamespace(from_dlpack=Tensor)


def test_results_are_of_the_librarys_kind_on_the_cpu():
    X, y, weight = samples()
    net = network("numpy")
    out = net.predict(Tensor(X))
    assert type(out) is Tensor
    np.testing.assert_array_equal(out.inside, net.predict(X))
    assert [type(a) for a in net.forward(Tensor(X))] == [Tensor] * 3
    assert net.loss(Tensor(X), Tensor(y), Tensor(weight)) == net.loss(X, y, weight)


@pytest.mark.parametrize("kind", [list, np.asarray, lambda X: X.tolist()], ids=["rows", "NumPy", "lists"])
def test_what_has_no_dlpack_gives_numpy(kind):
    X, _, _ = samples()
    assert type(network("numpy").predict(kind(X))) is np.ndarray


def test_a_library_that_makes_nothing_from_dlpack_gets_the_result_as_it_is():
    result = np.ones(3)
    like = SimpleNamespace(__dlpack__=None, __array_namespace__=lambda: SimpleNamespace())
    assert same_kind(result, like) is result


@simulates
def test_gpu_arrays_are_refused_by_a_backend_on_the_cpu(gpu):
    X, y, _ = samples()
    net = network("numpy")
    for call, name in ((lambda: net.predict(gpu.asarray(X)), "X"), (lambda: net.loss(X, gpu.asarray(y)), "y")):
        with pytest.raises(TypeError, match=rf"^{name} is a \w+ array on a GPU, and the backend 'numpy' works on the"):
            call()


# On the device


@simulates
def test_arrays_on_the_device_are_used_where_they_lie(gpu, backend):
    X, y, weight = samples()
    on_device = [gpu.asarray(array) for array in (X, y.astype(np.int32), weight)]
    nets = [network(backend()) for _ in range(2)]
    histories = [
        net.fit(a, b, sample_weight=w, epochs=2, batch_size=16, validation_data=(a, b, w))
        for net, (a, b, w) in zip(nets, [(X, y, weight), on_device], strict=True)
    ]
    assert histories[0].loss == histories[1].loss
    assert histories[0].validation_loss == histories[1].validation_loss
    before = gpu.counters.bytes_h2d, gpu.counters.bytes_d2h
    out = nets[1].predict(on_device[0])
    assert type(out) is gpu.ndarray
    assert gpu.counters.bytes_h2d == before[0]
    assert gpu.counters.bytes_d2h - before[1] <= 8, "only whether X is finite comes down"
    np.testing.assert_array_equal(out.get(), nets[0].predict(X))
    assert [type(a) for a in nets[1].forward(on_device[0])] == [gpu.ndarray] * 3
    assert nets[1].loss(*on_device) == nets[0].loss(X, y, weight)


@simulates
def test_mixed_kinds_and_other_dtypes_are_brought_together(gpu, backend):
    X, y, weight = samples()
    net = network(backend())
    expected = net.loss(X, y, weight)
    for a, b, w in (
        (gpu.asarray(X), y, weight),
        (X, gpu.asarray(y), gpu.asarray(weight)),
        (gpu.asarray(X.astype(np.float64)), gpu.asarray(np.eye(3)[y]), weight),
        (gpu.asarray(np.asfortranarray(X).T.copy()).T, y, weight),
    ):
        assert net.loss(a, b, w) == expected


@simulates
@pytest.mark.parametrize("interface", ["dlpack", "cuda_array_interface"])
def test_arrays_of_another_library_on_the_device(gpu, backend, library, interface):
    X, y, _ = samples()
    net = network(backend())
    inside = gpu.asarray(X)
    if interface == "dlpack":
        foreign = library.Tensor(inside)
    else:
        foreign = SimpleNamespace(__cuda_array_interface__=inside.__cuda_array_interface__)
    assert on_gpu(foreign)
    out = net.predict(foreign)
    if interface == "dlpack":
        assert type(out) is library.Tensor
        out = out.inside
    assert type(out) is gpu.ndarray
    np.testing.assert_array_equal(out.get(), net.predict(X))
    assert net.loss(foreign, y) == net.loss(X, y)
    net.fit(foreign, y, epochs=1)


@simulates
@pytest.mark.parametrize("interface", ["CuPy", "dlpack"])
def test_streams_are_ordered_both_ways(gpu, backend, library, interface):
    """On a device that is late: X is filled on the caller's stream just before, the result is read there just after."""
    X, y, _ = samples()
    net = network(backend())
    expected, cost = net.predict(X), net.loss(X, y)
    _, gradients = net.backprop(X, y)
    dW = gradients[0][0].get()
    gpu.settings.lazy = True
    with gpu.cuda.Stream(non_blocking=True) as stream:
        late = gpu.empty(X.shape, dtype=np.float32)
        late.set(X)
        given = late if interface == "CuPy" else library.Tensor(late)
        out = net.predict(given)
        out = out if interface == "CuPy" else out.inside
        np.testing.assert_array_equal((out * 1.0).get(), expected)
        net.parameters[...] = net.parameters * 1.0  # the caller's stream writes, ours reads
        assert net.loss(given, y) == cost
        _, gradients = net.backprop(given, y)
        np.testing.assert_array_equal((gradients[0][0] * 1.0).get(), dW)
        assert gpu.cuda.get_current_stream() == stream


@simulates
def test_the_order_of_streams_is_needed(gpu, backend, monkeypatch):
    """The test above can fail: without the waits the result is read before it is there."""
    from contextlib import nullcontext

    X, _, _ = samples()
    net = network(backend())
    expected = net.predict(X)
    monkeypatch.setattr(net.backend, "ordered", nullcontext)
    gpu.settings.lazy = True
    with gpu.cuda.Stream(non_blocking=True):
        late = gpu.empty(X.shape, dtype=np.float32)
        late.set(X)
        with pytest.raises(ValueError, match="X must be finite"):
            net.predict(late)
        gpu.cuda.get_current_stream().synchronize()
        assert not np.array_equal((net.predict(late) * 1.0).get(), expected)


@simulates
def test_a_step_by_itself_on_a_stream_of_the_callers(gpu, backend):
    """What a step needs besides its arguments is made on the backend's stream, not the caller's."""
    rng = np.random.default_rng(0)
    chosen, dtype = backend(gemm="cublas"), np.dtype(np.float64)
    host = [rng.standard_normal((9, n)) for n in (5, 3)]
    a_prev, delta = (chosen.asarray(array, dtype) for array in host)
    dW, db = chosen.empty((5, 3), dtype), chosen.empty((3,), dtype)
    gpu.settings.lazy = True
    with gpu.cuda.Stream(non_blocking=True):
        chosen.weight_gradient(a_prev, delta, out_W=dW, out_b=db)
    np.testing.assert_allclose(chosen.to_numpy(db), host[1].sum(axis=0))
    np.testing.assert_allclose(chosen.to_numpy(dW), host[0].T @ host[1])


@simulates
def test_arrays_of_numba_come_back_as_numbas(gpu, backend, monkeypatch):
    numba_device.install(monkeypatch)
    X, _, _ = samples()
    net = network(backend())
    given = numba_device.cuda.to_device(X)
    out = net.predict(given)
    assert type(out) is type(given)
    np.testing.assert_array_equal(out.copy_to_host(), net.predict(X))


@simulates
def test_errors_are_those_of_numpy_arrays(gpu, backend):
    X, y, _ = samples()
    net = network(backend())
    bad = X.copy()
    bad[3, 2] = np.nan
    for a, b, message in (
        (bad, y, r"X must be finite in float32, got nan at index \(3, 2\)"),
        (X[:, :4], y, "X must have 5 columns"),
        (X[0], y, r"X must have shape \(samples, 5\), got 1 dimensions"),
        (X, y + 3, r"y of one dimension must hold the labels 0 \.\.\. 2"),
        (X, np.eye(3)[y] * 2, r"y must lie in \[0, 1\] for the cost 'cross_entropy', got 2.0"),
        (X.astype(complex), y, "X must hold numbers, got dtype complex128"),
    ):
        for kind in (np.asarray, gpu.asarray):
            with pytest.raises((ValueError, TypeError), match=message):
                net.loss(kind(a), kind(b))


@simulates
def test_a_gradient_check_takes_arrays_on_the_device(gpu, backend):
    X, y, weight = samples()
    net = network(backend(), dtype="float64")
    report = bpgpu.check_gradients(net, gpu.asarray(X.astype(np.float64)), gpu.asarray(y), weight)
    assert report.max_error < 1e-6


# TF32


@simulates
def test_tf32_is_used_only_where_it_is_allowed(gpu, backend, monkeypatch):
    X, _, _ = samples()
    core, tf32, default = gpu._core, gpu._core._routines_linalg.COMPUTE_TYPE_TF32, 1

    def predict(**options):
        found = network(backend(gemm="cublas", **options)).predict(X)
        return found.tobytes()

    exact = predict()
    assert predict(allow_tf32=True) != exact
    assert core.get_compute_type(np.float32) == default, "CuPy's own choice is left as it was"
    core.set_compute_type(np.float32, tf32)  # as CUPY_TF32=1 does
    assert predict() == exact
    assert core.get_compute_type(np.float32) == tf32
    properties = gpu.cuda.runtime.getDeviceProperties
    monkeypatch.setattr(gpu.cuda.runtime, "getDeviceProperties", lambda device: properties(device) | {"major": 7})
    assert predict(allow_tf32=True) == exact, "devices before Ampere have none"
