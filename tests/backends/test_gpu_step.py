"""The launches that benchmarks.gpu_step counts are those of a step: held to the log of the simulated GPU."""

import itertools

import numpy as np
import pytest

import bpgpu
from benchmarks import gpu_step
from tests.simgpu import cupy as simulated
from tests.simgpu import device

pytestmark = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
RULES = [bpgpu.SGD(0.1), bpgpu.Adam(0.01)]


@pytest.mark.parametrize("gemm", ["cublas", "fused"])
@pytest.mark.parametrize("sizes", [(3, 2), (4, 3, 2), (9, 8, 7, 2)], ids=str)
@pytest.mark.parametrize("output", ["softmax_cross_entropy", "output_delta"])
def test_a_step_launches_what_is_counted(monkeypatch, gemm, sizes, output):
    from bpgpu.backends.cuda.cupy_backend import CupyBackend

    log = simulated.install(monkeypatch).counters.log
    softmax = output == "softmax_cross_entropy"
    last, cost = ("softmax", "cross_entropy") if softmax else ("sigmoid", "binary_cross_entropy")
    backend, B = CupyBackend(gemm=gemm), 66
    X, labels = np.ones((B, sizes[0])), np.arange(B) % 2
    for bias, clip_norm, rule in itertools.product((True, False), (None, 1.0), RULES):
        rule = type(rule)(rule.learning_rate, clip_norm=clip_norm)
        activations = [*["tanh"] * (len(sizes) - 2), last]
        net = bpgpu.MLP(sizes, activations, cost, bias=bias, backend=backend)
        log.clear()
        net.fit(X, labels if softmax else np.eye(2)[labels], optimizer=rule, epochs=1, batch_size=B)
        step = gpu_step.Step(sizes, B, rule.n_state, bias=bias, clip=clip_norm is not None)
        counted = [launch.kernel for launch in gpu_step.launches(step, fused=gemm == "fused")]
        called = {"output_delta": output}
        assert log == [*(called.get(name, name) for name in counted), "total"]  # the costs, once an epoch
