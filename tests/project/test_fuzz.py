"""Random calls in sequence, with what strangers hand over: no crash, no undocumented error, no silent difference.

``pytest tests/project/test_fuzz.py --fuzz-calls 100000 -s`` makes so many calls; ``--fuzz-seed`` makes others.
"""

import warnings

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.estimators import Estimators
from tests.fuzz.networks import Networks

STEPS = 25


@pytest.mark.parametrize("machine", [Networks, Estimators], ids=lambda machine: machine.__name__)
def test_random_calls_in_sequence(machine, request, tmp_path, capsys):
    calls, seed = request.config.getoption("--fuzz-calls"), request.config.getoption("--fuzz-seed")
    settings = hypothesis.settings(
        max_examples=max(1, calls // STEPS),
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    fuzzed = hypothesis.seed(seed)(type(machine.__name__, (machine,), {"folder": tmp_path, "calls": 0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both sides warn of what they are given; the values and the errors count here
        run_state_machine_as_test(fuzzed, settings=settings)
    with capsys.disabled():
        if calls > 10_000:
            print(f"\n{machine.__name__}: {fuzzed.calls} calls with the seed {seed}")
    assert fuzzed.calls > calls / 4
