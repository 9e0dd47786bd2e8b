"""The benchmarks themselves, run with a small budget, and the report of what they save."""

import io
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bpgpu
from benchmarks import conftest, epoch, measure, report, test_steps
from benchmarks.cases import GPU, STEPS, StepCase, group_name
from bpgpu.backends.cuda.cupy_backend import CupyBackend
from bpgpu.backends.numpy_backend import NumpyBackend
from tests.simgpu import cupy as simulated
from tests.simgpu import device

ROOT = Path(__file__).parents[2]
FLOAT32 = np.dtype("float32")
# No GPU and one thread, whatever this machine has: with the threads of other tests BLAS would wait for processors.
# And no word of pytest-xdist, which would turn pytest-benchmark off.
WITHOUT_GPU = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
WITHOUT_GPU |= {"CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1"}


def run(*arguments):
    """Run Python in the root of the repository: (exit code, stdout and stderr)."""
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "cwd": ROOT, "env": WITHOUT_GPU}
    done = subprocess.run([sys.executable, *map(str, arguments)], timeout=120, **options)
    return done.returncode, done.stdout + done.stderr


def node(step, transfers, backend, shape="32x32"):
    where = "transfers" if transfers else "resident"
    shape = shape if STEPS[step].has_batch else "32x1"
    return f"test_step[{step}-{where}-{backend}-float32-{shape}]"


HUGE = node("hidden_delta", False, "numpy", "4096x65536")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A real run of the smallest case of every group, of the largest, and of what needs a GPU: (JSON, JUnit's XML)."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files = folder / "saved.json", folder / "junit.xml"
    nodes = [HUGE, *(node(*chosen) for chosen in product(STEPS, (False, True), ("numpy", *GPU)))]
    command = ["-m", "pytest", *(f"benchmarks/test_steps.py::{name}" for name in nodes), "--budget", "20", "-q"]
    code, text = run(*command, "-p", "no:cacheprovider", f"--benchmark-json={files[0]}", f"--junitxml={files[1]}")
    assert code == 0, text
    return files


@pytest.fixture
def outcomes(saved):
    """Why each case was skipped; None if it was not."""
    found = {}
    for case in ElementTree.parse(saved[1]).getroot().iter("testcase"):
        skipped = case.find("skipped")
        found[case.get("name")] = None if skipped is None else skipped.get("message")
    return found


@pytest.fixture
def entries(saved):
    return json.loads(saved[0].read_text(encoding="utf-8"))["benchmarks"]


# The run


def test_every_group_has_cases_of_every_backend():
    code, text = run("-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider")
    assert code == 0, text
    for step, where, info in product(STEPS, ("resident", "transfers"), bpgpu.backends()):
        assert f"test_step[{step}-{where}-{info.name}-" in text


def test_every_group_is_timed(entries):
    groups = {entry["group"] for entry in entries}
    assert groups == {group_name(step, transfers) for step, transfers in product(STEPS, (False, True))}


def test_a_gpu_case_without_a_gpu_is_skipped_with_the_reason(outcomes):
    code, text = run("-c", "import bpgpu\nfor b in bpgpu.backends(): print(b.name, b.reason, sep=': ')")
    assert code == 0, text
    reasons = {line.partition(":")[0]: line for line in text.splitlines()}
    for name in GPU:
        for step, transfers in product(STEPS, (False, True)):
            assert outcomes[node(step, transfers, name)] == reasons[name]


def test_what_does_not_fit_the_budget_is_skipped_with_the_reason(outcomes, saved):
    assert outcomes[HUGE] == "numpy: over the time budget of 20 s; more with --budget SECONDS"
    facts = json.loads(saved[0].read_text(encoding="utf-8"))["bpgpu"]
    assert facts["cases_over_budget"] == {"numpy": 1}
    assert outcomes[node("hidden_delta", False, "numpy")] is None


def test_figures_follow_from_time_shapes_and_ceilings(entries):
    for entry in entries:
        info, seconds = entry["extra_info"], entry["stats"]["median"]
        assert info["flops_per_second"] == pytest.approx(info["flops"] / seconds)
        assert info["bytes_per_second"] == pytest.approx(info["bytes"] / seconds)
        by_bytes = info["ceiling_bytes_per_second"] * info["flops"] / info["bytes"]
        attainable = min(info["ceiling_flops_per_second"], by_bytes)
        assert info["share_of_attainable"] == pytest.approx(info["flops_per_second"] / attainable)
        assert info["clocks"] or info["why_no_clocks"]
        assert info["device"].startswith("CPU")


def test_flops_and_bytes_of_a_layer_by_hand():
    def case(step):
        return StepCase(step, "numpy", FLOAT32, False, 64, 256)

    assert [case(step).flops for step in ("forward", "hidden_delta", "weight_gradient")] == [2 * 256 * 64 * 64] * 3
    assert case("forward").bytes == 4 * (256 * 64 + 64 * 64 + 64 + 256 * 64)
    assert case("update_adam").bytes == 4 * 7 * (64 * 64 + 64)
    # Eight batches; forward and gradient of both layers, and the error of the hidden one.
    assert case("epoch").flops == 8 * 2 * 256 * (2 * 64 * 64 + 3 * 64 * 10)


# Its checks can fail


@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_wrong_result_is_not_timed(step, transfers, monkeypatch):
    """Each method of the backend in turn gives a result that is a little off in one number."""
    backend = NumpyBackend()
    method, written = {
        "forward": ("forward", "out"),
        "output_delta": ("output_delta", "out_delta"),
        "hidden_delta": ("hidden_delta", "out"),
        "weight_gradient": ("weight_gradient", "out_b"),
        "update_sgd": ("update", 1),
        "update_adam": ("update", 1),
        "epoch": ("weight_gradient", "out_W"),
    }[step]
    right = getattr(backend, method)

    def wrong(*args, **options):
        right(*args, **options)
        array = args[written] if isinstance(written, int) else options[written]
        array.flat[-1] += 0.05 * (np.abs(array).max() if step != "epoch" else 1)

    def prepare():
        return STEPS[step].prepare(backend, 32, 64, FLOAT32, transfers=transfers)

    timed, check = prepare()
    timed()
    check()
    monkeypatch.setattr(backend, method, wrong)
    timed, check = prepare()
    timed()
    with pytest.raises(AssertionError):
        check()


@pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
def test_every_step_is_right_on_the_simulated_gpu(monkeypatch):
    simulated.install(monkeypatch)
    monkeypatch.setattr(epoch, "SAMPLES", 64)
    backend = CupyBackend()
    for step, transfers in product(STEPS, (False, True)):
        timed, check = STEPS[step].prepare(backend, 4, 32, FLOAT32, transfers=transfers)
        timed()
        check()
        timed()


def test_each_timed_call_waits_for_the_device(monkeypatch):
    backend = NumpyBackend()
    waits = []
    monkeypatch.setattr(backend, "synchronize", lambda: waits.append(0))
    for step, transfers in product(STEPS, (False, True)):
        timed, _ = STEPS[step].prepare(backend, 32, 32, FLOAT32, transfers=transfers)
        waits.clear()
        timed()
        assert waits, step


def test_transfers_upload_the_input_and_fetch_the_result_in_every_call(monkeypatch):
    backend = NumpyBackend()
    moved = {"asarray": 0, "to_numpy": 0}

    def count(name):
        right = getattr(backend, name)

        def counting(array, *args):
            moved[name] += array.nbytes
            return right(array, *args)

        monkeypatch.setattr(backend, name, counting)

    for name in moved:
        count(name)
    for step, transfers in product(STEPS, (False, True)):
        timed, _ = STEPS[step].prepare(backend, 32, 32, FLOAT32, transfers=transfers)
        for name in moved:
            moved[name] = 0
        timed()
        assert all(bool(nbytes) == transfers for nbytes in moved.values()), (step, transfers)


def test_what_does_not_fit_into_memory_is_skipped_with_the_reason(monkeypatch):
    def too_large(*args, **options):
        raise MemoryError("needs 1 TiB")

    monkeypatch.setattr(STEPS["forward"], "prepare", too_large)
    budget = conftest.Budget(math.inf)
    monkeypatch.setattr(measure, "estimate", lambda case: 0.0)
    case = StepCase("forward", "numpy", FLOAT32, False, 32, 32)
    with pytest.raises(pytest.skip.Exception, match="numpy: out of memory: needs 1 TiB"):
        test_steps.test_step(SimpleNamespace(), case, budget)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_budget_that_is_none_is_refused(seconds):
    with pytest.raises(pytest.UsageError, match="--budget must be a number of seconds, 0 or more, or inf, got"):
        conftest.Budget(seconds)


def test_clocks_that_cannot_be_known_say_why(monkeypatch):
    measure.clocks.cache_clear()
    monkeypatch.setattr(measure.shutil, "which", lambda program: None)
    assert measure.clocks("cupy") == {"clocks": None, "why_no_clocks": "there is no nvidia-smi"}
    measure.clocks.cache_clear()


# The report


def test_the_report_has_a_table_of_every_group_and_a_picture(saved, entries, tmp_path):
    code, text = run("-m", "benchmarks.report", saved[0], "--out", tmp_path / "out")
    assert code == 0, text
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "benchmarks.md").read_text(encoding="utf-8")
    for entry in entries:
        section = page.split(f"## {entry['group']}\n")[1].split("## ")[0]
        info, milliseconds = entry["extra_info"], entry["stats"]["median"] * 1e3
        speed = info[report.unit(info["step"])[0]] / 1e9
        assert f"| float32 | 32 | {info['batch']} | {milliseconds:.3g} | {speed:.3g} |" in section
    assert "- cupy did not run: " in page
    assert "over the time budget of 20 s" in page


def test_the_report_leaves_whole_networks_and_fits_out(saved, tmp_path):
    content = json.loads(saved[0].read_text(encoding="utf-8"))
    rows = len(report.load(saved[0])[1])
    one = content["benchmarks"][0]
    for info in ({"shape": "digits", "scikit_learn_takes": 3.0}, {"network": "2-4-3-1", "batch": 4}, {}):
        content["benchmarks"].append(one | {"extra_info": info})
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert len(report.load(path)[1]) == rows
    path.write_text(json.dumps(content | {"benchmarks": content["benchmarks"][-3:]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"all\.json contains no benchmark of a step"):
        report.load(path)


def test_the_report_compares_with_a_baseline(saved, tmp_path):
    older = json.loads(saved[0].read_text(encoding="utf-8"))
    del older["benchmarks"][1:]
    older["benchmarks"][0]["stats"]["median"] /= 2
    older["benchmarks"][0]["extra_info"]["device"] = "an abacus"
    path = tmp_path / "older.json"
    path.write_text(json.dumps(older), encoding="utf-8")
    report.main(saved[0], tmp_path, path)
    section = (tmp_path / "benchmarks.md").read_text(encoding="utf-8").split("## Against the baseline\n")[1]
    assert "cases 1 are in the baseline too" in section
    assert "numpy ran on an abacus then" in section
    assert section.rstrip().endswith("| 2 |")


def test_a_cpu_and_a_gpu_are_put_side_by_side(saved, tmp_path):
    """No GPU has run: the rows of one are those of NumPy under its name, at a third of the time."""
    about, runs = report.load(saved[0])
    faster = runs.assign(backend="cupy", seconds=runs["seconds"] / 3)[runs["width"] == 32]
    page = report.markdown(about, pd.concat([runs, faster]))
    header, _, row, *_ = page.split("## forward\n")[1].strip().splitlines()
    assert header.endswith("| numpy share | cupy ms | cupy GFLOP/s | cupy share | CPU time / GPU time |")
    assert row.endswith("| 3 |")
    report.draw(pd.concat([runs, faster]), report.common_batch(runs), io.BytesIO())


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"benchmarks": []}', '{"benchmarks": [{"stats": {}}]}', "\x00"], ids=repr
)
def test_a_bad_file_gets_one_sentence(content, tmp_path, capsys):
    path = tmp_path / "saved.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(report.typer.Exit) as ended:
        report.main(path, tmp_path / "out")
    error = capsys.readouterr().err
    assert ended.value.exit_code == 2
    assert error.startswith(f"error: {path} ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_batch_that_was_not_timed_is_refused(saved, tmp_path, capsys):
    with pytest.raises(report.typer.Exit):
        report.main(saved[0], tmp_path / "out", batch=33)
    assert "--batch must be one of 32, which" in capsys.readouterr().err


def test_help_answers():
    result = CliRunner().invoke(report.app, ["--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--baseline" in result.output


# The workflows


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_every_job_says_what_it_requires(workflow):
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    known = {"numpy", "numba", "cupy", "numba-cuda", "simgpu", "gpu-static"}
    for name, job in content["jobs"].items():
        required = {**content.get("env", {}), **job.get("env", {})}["BPGPU_REQUIRE_BACKENDS"]
        choices = [row["require"] for row in job["strategy"]["matrix"]["include"]] if "${{" in required else [required]
        assert all(choice and set(choice.split(",")) <= known for choice in choices), name
        assert job["timeout-minutes"] <= 120, name


def test_a_gpu_job_is_off_until_a_maintainer_switches_it_on_and_runs_no_code_of_a_fork():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text(encoding="utf-8"))["jobs"]
    assert all("self-hosted" in job["runs-on"] for job in jobs.values())
    assert all(job["if"].startswith("vars.GPU_RUNNER == 'on' && (") for job in jobs.values())
    assert all("head.repo.full_name == github.repository" in job["if"] for job in jobs.values())
