"""The steps of backpropagation, one by one and together, on every backend that runs here: ``pytest benchmarks``.

Each result is checked against float64 before it is timed, and every timed call waits for the device.
"""

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import bpgpu
from bpgpu.activations import get_activation

USABLE = [info.name for info in bpgpu.backends() if info.available]
# (n_{l-1}, n_l, B)
SHAPES = [(64, 32, 32), (512, 512, 128), (2048, 2048, 1024)]
RELU = get_activation("relu")


@pytest.fixture(params=USABLE)
def backend(request):
    return bpgpu.get_backend(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def layer(request, backend, dtype):
    """One layer on the device: a_prev, W, b, delta."""
    m, n, B = request.param
    rng = np.random.default_rng(0)
    shapes = {"a_prev": (B, m), "W": (m, n), "b": (n,), "delta": (B, n)}
    return {name: backend.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def measure(benchmark, backend, step, flops, arrays, out, expected):
    """Check a step against float64, then time it with its synchronisation."""
    step()
    reduction = max(array.shape[0] for array in arrays)
    tolerance = 10 * np.finfo(out.dtype).eps * reduction
    np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())

    def timed():
        step()
        backend.synchronize()

    benchmark.extra_info.update(
        backend=backend.name,
        device=backend.device,
        dtype=out.dtype.name,
        shapes=[list(array.shape) for array in arrays],
        blas=[f"{pool['internal_api']} {pool['version']}" for pool in threadpool_info() if pool["user_api"] == "blas"],
        threads=max((pool["num_threads"] for pool in threadpool_info()), default=1),
        flops=flops,
        bytes=sum(array.nbytes for array in [*arrays, out]),
    )
    benchmark.pedantic(timed, warmup_rounds=3, rounds=20, iterations=1)
    benchmark.extra_info["flops_per_second"] = flops / benchmark.stats.stats.median


@pytest.mark.benchmark(group="forward")
def test_forward(benchmark, backend, layer):
    a_prev, W, b, delta = layer.values()
    out = backend.empty(delta.shape, delta.dtype)
    expected = np.maximum(np.float64(backend.to_numpy(a_prev)) @ backend.to_numpy(W) + backend.to_numpy(b), 0)
    flops = 2 * a_prev.shape[0] * W.size
    measure(
        benchmark, backend, lambda: backend.forward(a_prev, W, b, RELU, out=out), flops, [a_prev, W, b], out, expected
    )


@pytest.mark.benchmark(group="hidden_delta")
def test_hidden_delta(benchmark, backend, layer):
    a_prev, W, _, delta = layer.values()
    out = backend.empty(a_prev.shape, a_prev.dtype)
    expected = (np.float64(backend.to_numpy(delta)) @ backend.to_numpy(W).T) * (backend.to_numpy(a_prev) > 0)
    flops = 2 * delta.shape[0] * W.size

    def step():
        backend.hidden_delta(delta, W, a_prev, RELU, out=out)

    measure(benchmark, backend, step, flops, [delta, W, a_prev], out, expected)


@pytest.mark.benchmark(group="weight_gradient")
def test_weight_gradient(benchmark, backend, layer):
    a_prev, W, b, delta = layer.values()
    out, out_b = backend.empty(W.shape, W.dtype), backend.empty(b.shape, b.dtype)
    expected = np.float64(backend.to_numpy(a_prev)).T @ backend.to_numpy(delta)
    flops = 2 * delta.shape[0] * W.size

    def step():
        backend.weight_gradient(a_prev, delta, out_W=out, out_b=out_b)

    measure(benchmark, backend, step, flops, [a_prev, delta], out, expected)


@pytest.mark.benchmark(group="epoch")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epoch(benchmark, backend, dtype, optimizer):
    """Ten epochs of 64-100-10 on 1,000 rows, batch 200, through `fit`."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((1000, 64)), rng.integers(0, 10, 1000)
    net = bpgpu.MLP([64, 100, 10], ["relu", "softmax"], "cross_entropy", dtype=dtype, backend=backend)
    assert net.fit(X, y, optimizer=optimizer, epochs=50, batch_size=200).loss[-1] < net.loss(X, rng.permutation(y))
    benchmark.extra_info.update(backend=backend.name, device=backend.device, dtype=dtype.name)
    benchmark.pedantic(
        net.fit, (X, y), {"optimizer": optimizer, "epochs": 10, "batch_size": 200}, warmup_rounds=1, rounds=5
    )
