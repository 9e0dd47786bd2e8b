"""The compiled CPU epoch in processes of their own: how much memory a fit takes, and two workers of joblib at once."""

import os
import subprocess
import sys

import pytest


def run(code, *arguments, **environment):
    """Run code in a new process; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_a_fit_takes_its_plan_and_little_more():
    """Also the first one of a process, which loads the compiled code; the data are large, and are not copied."""
    code = """
import re
from pathlib import Path
import numpy as np
import bpgpu

def memory(of):
    return int(re.search(rf"{of}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

X = np.random.default_rng(0).random((80_000, 512), np.float32)
y = np.arange(80_000) % 10
net = bpgpu.MLP((512, 32, 10), ("relu", "softmax"), "cross_entropy", backend="numba")
rule = bpgpu.Adam()
plan = bpgpu.Plan(net.architecture, 8192, net.backend, rule).nbytes / 2**20
before, data = memory("VmRSS"), X.nbytes / 2**20
net.fit(X, y, optimizer=rule, epochs=2, batch_size=8192)
print(memory("VmHWM") - before, plan, data)
"""
    run("import bpgpu; bpgpu.MLP((1, 1), 'tanh', 'squared_error', backend='numba').fit([[1]], [1], epochs=1)")
    added, plan, data = map(float, run(code).split())
    assert added < plan + 100 < data


def test_two_workers_of_joblib_fit_at_once_to_the_same_bits(tmp_path):
    """Each waits for the other, so that they do."""
    code = """
import os, sys, time
from pathlib import Path
import joblib
import numpy as np
import bpgpu

def train(seed, meet=None):
    if meet is not None:
        (Path(meet) / str(seed)).touch()
        while len(os.listdir(meet)) < 2:
            time.sleep(0.01)
    X = np.random.default_rng(0).standard_normal((500, 64))
    net = bpgpu.MLP((64, 128, 3), ("gelu", "softmax"), "cross_entropy", backend="numba", seed=seed)
    net.fit(X, np.arange(500) % 3, epochs=20, batch_size=200)
    return os.getpid(), net.parameters.tobytes()

found = joblib.Parallel(2, backend="loky", timeout=120)(joblib.delayed(train)(seed, sys.argv[1]) for seed in range(2))
assert len({os.getpid(), *(process for process, _ in found)}) == 3
assert [bits for _, bits in found] == [train(seed)[1] for seed in range(2)]
print("same")
"""
    assert run(code, tmp_path, BPGPU_NUM_THREADS="1") == "same\n"
