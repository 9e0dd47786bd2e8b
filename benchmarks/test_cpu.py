"""Whole epochs of the networks of `benchmarks.peers` on the CPU: NumPy against Numba, with SGD and with Adam.

test_steps.py times the single steps, for these two backends too. As there, each epoch is checked against float64 before
it is timed.
"""

from itertools import product

import pytest

from benchmarks.epoch import train
from benchmarks.measure import calls, libraries
from benchmarks.peer_epochs import Bpgpu, reference
from benchmarks.peer_problem import NETWORKS, RATES, Problem
from bpgpu.backends.data import Data
from bpgpu.backends.plan import Plan


@pytest.fixture(scope="module", params=list(product(NETWORKS, RATES)), ids="-".join)
def expected(request):
    """Return a problem and the parameters after its first epoch."""
    problem = Problem(*request.param)
    return problem, reference(problem)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_epoch(benchmark, expected, backend):
    problem, right = expected
    network = "-".join(map(str, problem.sizes))
    benchmark.group = f"epoch of {network}, {problem.steps} batches of {problem.batch}, {problem.optimizer}"
    peer = Bpgpu(problem, backend)
    net = peer.net
    plan = Plan(net.architecture, problem.batch, net.backend, peer.optimizer).allocate()
    data = Data(problem.X, problem.targets)

    def run():
        train(net, plan, data, None)

    run()
    problem.check(net.parameters, right)
    benchmark.extra_info.update(network=network, batch=problem.batch, steps=problem.steps, dtype="float32")
    benchmark.extra_info.update(backend=backend, optimizer=repr(peer.optimizer), **libraries())
    benchmark.pedantic(run, rounds=calls(run), iterations=1)
