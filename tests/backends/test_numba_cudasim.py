"""Every Numba-CUDA kernel on Numba's own simulator, in a process of its own, against the simulator of these tests.

Numba reads NUMBA_ENABLE_CUDASIM when it is imported. Its simulator finds no races, but it is another's reading of what
`numba.cuda` does.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bpgpu.backends.cuda.numba_launch import Launcher
from bpgpu.kernels import rules
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from tests.simgpu import numba_device

ROOT = Path(__file__).parents[2]
FORMULAS = {
    "sigma": ACTIVATIONS["silu"].value,
    "sigma_prime": ACTIVATIONS["sigmoid"].derivative,
    "cost_value": COSTS["squared_error"].value,
    "cost_gradient": COSTS["squared_error"].gradient,
    "cost_delta": COSTS["squared_error"].gradient,
    "rule": rules.text_of_row("adamw"),
}
ROWS, N_IN, N_OUT, COUNT = 3, 4, 5, 7
SCALARS = {
    "rows": ROWS, "m": N_IN, "n": N_OUT, "n_in": N_IN, "n_out": N_OUT, "batch_size": ROWS, "step": 1, "blocks": 2,
    "slots": 2, "count": COUNT, "n_weights": 5, "threshold": 2**31, "keep": 2, "layer": 1, "factor": 0.5, "decay": 0.1,
    "clip_norm": 0.5, "penalty_scale": 0.5, "key0": 2**32 - 1, "key1": 7,
}  # fmt: skip
SHAPES = {
    "W": (N_IN, N_OUT), "dW": (N_IN, N_OUT), "a_prev": (ROWS, N_IN), "x": (ROWS, N_IN), "X": (9, N_IN), "Y": (9, N_OUT),
    "schedule": (4, rules.count_of_numbers(FORMULAS["rule"])), "inverse_weight": (4,), "b": (N_OUT,), "db": (N_OUT,),
    "order": (9,), "labels": (0,), "sample_weight": (9,),
    "clip": (1,), "penalty": (4,), "total_cost": (2 * ROWS,), "partial": (4,), "out": (ROWS, N_OUT), "ctl": (8,),
}  # fmt: skip


def arguments(name, kinds):
    """Return small arguments for a kernel, the same in every process; positive, for some are squares."""
    rng = np.random.default_rng(1)
    special = {
        "gemm_hidden": {"a": (ROWS, N_IN), "z": (ROWS, N_IN), "out": (ROWS, N_IN)},
        "gemm_gradient": {"mask": (N_IN, N_OUT)},
        "dropout": {"x": (ROWS, N_OUT)},
        "norm_final": {},
        "total": {"cost": (2 * COUNT,), "out": (1,)},
    }
    made = []
    for argument, kind in kinds.items():
        dtype = np.dtype(kind.dtype or np.float32)
        if kind.ndim == 0:
            value = COUNT if (name, argument) == ("total", "n") else SCALARS.get(argument, 0.25)
            made.append(dtype.type(value))
            continue
        usual = (ROWS, N_OUT) if kind.ndim == 2 else (COUNT,) if "count" in kinds else (ROWS,)
        shape = special.get(name, {}).get(argument, SHAPES.get(argument, usual))
        made.append(
            rng.permutation(9).astype(dtype) if argument == "order" else rng.uniform(0.5, 2, shape).astype(dtype)
        )
        if argument == "ctl":
            made[-1] = np.array([0, 2, 9, 9, 0, 3, 0, 0], np.int32)
    return made


def run(kernels, cuda):
    """Launch every kernel as a backend does, and return its arguments afterwards, by kernel and argument."""
    found, launcher = {}, Launcher(kernels, cuda, cuda.stream())
    for name in kernels.KERNELS:
        kinds = kernels.arguments(name)
        values = [cuda.to_device(v) if isinstance(v, np.ndarray) else v.item() for v in arguments(name, kinds)]
        values = [
            None if kind.ndim and not value.size else value for kind, value in zip(kinds.values(), values, strict=True)
        ]
        grid = (1,) if name in ("norm_final", "total") else (2,)
        launcher.bind(name, np.dtype(np.float32), grid, tuple(values), formulas=FORMULAS)()
        launcher.stream.synchronize()
        pairs = (
            (argument, value) for argument, value in zip(kinds, values, strict=True) if hasattr(value, "copy_to_host")
        )
        found |= {f"{name} {argument}": value.copy_to_host() for argument, value in pairs}
    return found


SCRIPT = """
import sys
import numpy
from bpgpu.kernels.numba_cuda import kernels as numba_cuda
from tests.backends import test_numba_cudasim as t
assert "simulator" in numba_cuda.cuda.jit.__module__
launcher = t.Launcher(numba_cuda, numba_cuda.cuda, 0)
one, two = (launcher.bind("advance", numpy.dtype("float32"), (n,), (None,)).func.configured for n in (1, 2))
assert (one.grid_dim[0], two.grid_dim[0]) == (1, 2)
numpy.savez(sys.argv[1], **t.run(numba_cuda, numba_cuda.cuda))
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda, with its simulator")
def test_numba_has_the_same_results(tmp_path, monkeypatch):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "found.npz")]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = numba_device.install(monkeypatch)
    ours = run(kernels, numba_device.cuda)
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == set(ours)
        for name, value in ours.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for name in kernels.KERNELS:  # each did something
        kinds = kernels.arguments(name)
        before = dict(zip(kinds, arguments(name, kinds), strict=True))
        after = {key.split()[1]: value for key, value in ours.items() if key.split()[0] == name}
        assert any(np.any(before[argument] != value) for argument, value in after.items()), name
