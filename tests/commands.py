"""Running the commands of documents and workflows as a reader or a runner would, shortened where they take minutes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="the commands are written for a POSIX shell")

# What is added to commands that take minutes.
SHORTER = {
    "pytest benchmarks": "--budget 20 -p no:cacheprovider -k 'test_step and 32x32 and float32 and numpy "
    "or test_fit and 150 or test_epoch and 2-4-3-1'",
    "python -m benchmarks.peers": "--rounds 1 --seconds 0.01 --rows 2-4-3-1 --peers bpgpu,numpy",
    "bpgpu accuracy": "--backend numpy",
}


def workplace(folder):
    """Put into a folder what commands take from a clone of the repository."""
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def run(command, folder, shorter=SHORTER, **variables):
    """Run a command in a folder; fail with what it wrote if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    added = [text for start, text in shorter.items() if command.startswith(start) and text not in command]
    options = {"shell": True, "capture_output": True, "text": True, "encoding": "utf-8", "timeout": 300}
    done = subprocess.run(" ".join([command, *added]), cwd=folder, env=environment | variables, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
