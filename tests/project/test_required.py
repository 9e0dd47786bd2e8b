"""What this machine must be able to test: `BPGPU_REQUIRE_BACKENDS` turns a skip into a failure.

A list with commas: names of backends, `simgpu` (the simulated GPU) and `gpu-static` (the compile gate).
"""

import importlib.util
import os

import pytest

import bpgpu
from tests.simgpu import device

REQUIRED = [name for name in os.environ.get("BPGPU_REQUIRE_BACKENDS", "").split(",") if name]


@pytest.mark.parametrize("name", REQUIRED or [pytest.param("", marks=pytest.mark.skip(reason="nothing is required"))])
def test_what_is_required_is_here(name):
    if name == "simgpu":
        assert device.available()
    elif name == "gpu-static":
        assert all(importlib.util.find_spec(module) for module in ("cuda", "cupy", "numba_cuda"))
    else:
        assert bpgpu.get_backend(name).name == name
