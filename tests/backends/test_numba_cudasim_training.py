"""Training on Numba's own simulator, end to end, in a process of its own: the reference's loss curves."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import bpgpu
from bpgpu.data import load_digits

ROOT = Path(__file__).parents[2]
RULE = bpgpu.Adam(0.05, clip_norm=1.0)


def curves(backend):
    """Train the networks of this test; return the losses of every epoch and outputs at the end, by network."""
    X, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0.0])
    xor = bpgpu.MLP([2, 4, 3, 1], ["tanh", "gelu", "sigmoid"], "binary_cross_entropy", dtype="float64", backend=backend)
    history = xor.fit(X, y, optimizer=bpgpu.SGD(0.5), epochs=2, batch_size=4)
    found = {"2-4-3-1": [history.loss, xor.predict(X).tolist()]}
    digits, labels = load_digits()
    net = bpgpu.MLP([64, 16, 10], ["relu", "softmax"], "cross_entropy", dropout=0.2, l2=0.1, backend=backend)
    history = net.fit(digits[:8] / 16, labels[:8], optimizer=RULE, epochs=2, batch_size=8)
    return found | {"digits": [history.loss, net.predict(digits[:8] / 16).tolist()]}


SCRIPT = """
import json, sys, types
from bpgpu.kernels.numba_cuda import library as shim
from tests.simgpu import numba_runner
cuda = shim.cuda
assert "simulator" in cuda.jit.__module__
# What this simulator lacks of a device, and says wrongly.
type(cuda.get_current_device()).name = b"Numba's simulator"
memory = types.SimpleNamespace(free=2**30, total=2**30)
context = type(cuda.current_context())
context.get_memory_info = lambda self: memory
context.deallocations = types.SimpleNamespace(clear=lambda: None)
# It has a thread of the system for every thread of a block.
sys.modules["bpgpu.kernels.numba_cuda.kernels"] = numba_runner.load(threads=64, shim=shim)
from tests.backends import test_numba_cudasim_training as t
print(json.dumps(t.curves("numba-cuda")))
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda, with its simulator")
def test_the_loss_curves_are_the_references():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), curves("numpy")
    for name, tolerance in (("2-4-3-1", 1e-10), ("digits", 1e-4)):
        for ours, reference in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance / 10)
        assert found[name][0][-1] < found[name][0][0]
