"""The workflows, which run on no machine of ours: every command in them that can run here does."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.commands import ROOT, posix, run, workplace
from tests.conftest import SIMULATED

GITHUB = ROOT / ".github"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHECK, CI_RUN, README = (
    (ROOT / file).read_text(encoding="utf-8").splitlines() for file in (".ci/check", ".ci/run", "README.md")
)

# How commands begin that are run here, in this order.
RUN = (
    "pytest tests/project/test_required.py",
    "pytest benchmarks",
    "python -m benchmarks.report",
    "baseline=",
    "mkdir empty && cd empty && bpgpu train digits && bpgpu info",
    "bpgpu info",
)
# How the others begin, and why they are not run.
NOT_RUN = {
    "pip install": "it changes the environment; what it names is looked up here",
    "python3 -m venv": "the same",
    "pip wheel": "it fetches setuptools",
    "bash .ci/check": "a line of .ci/run",
    "pytest -n auto": "a line of README and .ci/run; what it adds is looked up here",
    "pytest -m gpu": "these tests need a GPU; tests/simgpu/test_simgpu_suite.py runs them on a simulated one",
    "bpgpu hardware-report": "it needs a GPU; tests/proof/test_hardware_report.py runs it on a simulated one",
}


def jobs(file):
    return yaml.safe_load((GITHUB / "workflows" / file).read_text(encoding="utf-8"))["jobs"]


def commands_of(steps):
    """Return the commands of steps, without the folder of an environment."""
    return [step["run"].strip().replace(".venv/bin/", "") for step in steps if "run" in step]


JOBS = {f"{file}, {name}": job for file in ("ci.yml", "gpu.yml") for name, job in jobs(file).items()}
COMMANDS = [command for job in JOBS.values() for command in commands_of(job["steps"])]
for _path in GITHUB.glob("actions/*/action.yml"):
    COMMANDS += commands_of(yaml.safe_load(_path.read_text(encoding="utf-8"))["runs"]["steps"])


def beginning(start):
    """Return the commands that begin so, each once."""
    return list(dict.fromkeys(command for command in COMMANDS if command.startswith(start)))


def test_every_workflow_is_looked_at():
    assert sorted(path.name for path in (GITHUB / "workflows").iterdir()) == ["ci.yml", "gpu.yml"]


def test_every_command_is_run_or_has_a_reason_why_not():
    starts = [*RUN, *NOT_RUN]
    for command in COMMANDS:
        assert any(command.startswith(start) for start in starts), f"a new command, for RUN or NOT_RUN: {command}"
    for start in starts:
        assert beginning(start), f"no workflow has it any more: {start}"


@posix
def test_commands_run(tmp_path):
    """In one folder: what one command writes the next reads."""
    workplace(tmp_path)
    shorter = {"pytest benchmarks": "-p no:cacheprovider -k 'test_step and 32x32 and float32 and numpy'"}
    of_one_budget = dict.fromkeys(
        re.sub(r"--budget \d+", "--budget 2", each) for start in RUN for each in beginning(start)
    )
    for command in of_one_budget:
        run(command, ROOT if "tests/" in command else tmp_path, shorter)
    (script,) = beginning("baseline=")
    baseline = tmp_path / script.splitlines()[0].removeprefix("baseline=")
    baseline.parent.mkdir()
    shutil.copy(tmp_path / "benchmarks.json", baseline)
    run(script, tmp_path)


def test_installs_name_extras_and_constraints_that_there_are():
    found = beginning("pip install") + beginning("python3 -m venv")
    for command in found:
        (extras,) = re.findall(r"\[([^]]+)\]", command)
        assert (
            set(extras.replace("$GPU_EXTRA", "cuda13").split(","))
            <= PYPROJECT["project"]["optional-dependencies"].keys()
        )
        for file in re.findall(r"-c (\S+)", command):
            assert (ROOT / file).is_file()
    assert all("-c constraints-lowest.txt" in command for command in commands_of(jobs("ci.yml")["lowest"]["steps"])[:1])


def test_what_is_not_run_is_run_by_ci_run():
    assert "bash .ci/check" in CI_RUN
    (test,) = (line for line in README if line.endswith("&& pytest -n auto"))
    assert test in CI_RUN


@pytest.mark.parametrize("command", beginning("pytest -n auto"))
def test_what_is_added_to_the_tests_command_exists(command):
    _, _, _, *added = shlex.split(command)
    while added:
        word = added.pop(0)
        if word == "-m":
            (marker,) = set(added.pop(0).split()) - {"not"}
            assert any(line.startswith(f"{marker}:") for line in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"])
        elif word != "--ignore":
            assert (ROOT / word).is_file(), word


def test_the_simulated_gpu_and_the_compile_gate_run_once():
    default = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))["env"]
    required = {
        name: {**default, **job.get("env", {})}["BPGPU_REQUIRE_BACKENDS"] for name, job in jobs("ci.yml").items()
    }
    assert [name for name, names in required.items() if "simgpu" in names.split(",")] == ["tests"]
    assert [name for name, names in required.items() if "gpu-static" in names.split(",")] == ["compile-gate"]
    assert any("BPGPU_REQUIRE_BACKENDS=numba,numpy,simgpu,gpu-static" in line for line in CI_RUN)
    for name, job in jobs("ci.yml").items():
        for command in commands_of(job["steps"]):
            if command.startswith("pytest -n auto") and name not in ("tests", "compile-gate"):
                assert command == 'pytest -n auto -m "not simulated"', name


def test_the_marker_of_simulations():
    for start in SIMULATED:
        assert list((ROOT / "tests").glob(f"*/{start}*.py")), start
    files = ["tests/backends/test_cuda_probe.py", "tests/backends/test_gpu_step.py", "tests/project/test_workflows.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-m",
        "simulated",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^(tests/\w+\.py)::", found, re.MULTILINE)) == {"tests/backends/test_gpu_step.py"}


def test_the_actions_and_templates_are_all_checked():
    words = [word for line in CHECK if line.startswith("check-jsonschema") for word in line.split()[3:]]
    checked = {path for word in words for path in ROOT.glob(word)}
    assert checked == set(GITHUB.rglob("*.yml"))
    assert "zizmor --offline .github" in CHECK


def test_actions_are_pinned_to_one_hash_each():
    used = {}
    for path in GITHUB.rglob("*.yml"):
        for action, version in re.findall(r"uses: ([^$\s]+)@(.*)", path.read_text(encoding="utf-8")):
            used.setdefault(action, set()).add(version)
            assert re.fullmatch(r"[0-9a-f]{40} # v\d+\.\d+\.\d+", version), path
    assert used.keys() >= {"actions/checkout", "actions/setup-python"}
    assert all(len(versions) == 1 for versions in used.values()), used
