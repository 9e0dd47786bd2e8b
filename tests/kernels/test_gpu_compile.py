"""The compile gate: every GPU kernel, compiled for seven architectures with every formula, and what a step costs.

The command `python -m benchmarks.gpu_static` does the work, so this is also its test. After a change to a kernel its
`--write` updates the committed table, tests/gpu_static.json; a review sees what the change did to the registers.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_sources, numba_static
from bpgpu.backends.cuda import launch as cuda_launch
from bpgpu.kernels import rules
from bpgpu.kernels.cuda import source as cuda_kernels
from bpgpu.kernels.formulas import RULES
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from tests.simgpu import numba_runner

ROOT = Path(__file__).parents[2]
ARCHITECTURES = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
VECTOR_LOADS = {"gather", "bias_sigma", "hidden_delta", "dropout", "gemm_forward", "gemm_hidden", "gemm_gradient"}
REQUIRED = "gpu-static" in os.environ.get("BPGPU_REQUIRE_BACKENDS", "").split(",")


def run(*arguments):
    """Run Python at the top of the source tree."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def tools():
    """Skip, visibly, where nothing compiles for a GPU; fail there if BPGPU_REQUIRE_BACKENDS names gpu-static."""
    process = run("-c", "from benchmarks.gpu_static import compiler; print(compiler())")
    if process.returncode != 0:
        reason = f"the compile gate cannot run: {process.stderr.strip().splitlines()[-1]}"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    return process.stdout.strip()


@pytest.fixture(scope="session")
def rows(tools, tmp_path_factory, pytestconfig):
    """Compile once in a run of the tests: the process that comes first does, on two processors, and others wait.

    What has not changed since the last run is taken from pytest's cache.
    """
    import fcntl  # there is none on Windows, nor are there tools

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of this run, and of no other run
    path = folder / "gpu_static.json"
    with (folder / "gpu_static.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            kept = getattr(pytestconfig, "cache", None)  # there is none with -p no:cacheprovider
            options = ["--cache", kept.mkdir("gpu_static")] if kept else []
            process = run("-m", "benchmarks.gpu_static", "--json", *options)
            path.write_text(json.dumps([process.returncode, process.stdout, process.stderr]), encoding="utf-8")
    status, output, errors = json.loads(path.read_text(encoding="utf-8"))
    assert status == 0, errors
    report = json.loads(output)
    assert report["compiler"] == tools
    return report["rows"]


@pytest.fixture(scope="module")
def committed():
    return json.loads((ROOT / "tests" / "gpu_static.json").read_text(encoding="utf-8"))


def names(rows):
    return sorted({f"{row['kernel']} ({row['formulas']}, {row['dtype']}, {row['arch']})" for row in rows})


def worst(rows):
    """Return the committed part of the rows: kernel and dtype, then architecture, then its numbers."""
    found = {}
    for row in rows:
        known = found.setdefault(f"{row['kernel']} {row['dtype']}", {}).setdefault(row["arch"], {})
        for column in ("registers", "shared", "spills"):
            known[column] = max(row[column], known.get(column, 0))
        if row["loads_128"] is not None:
            known["loads_128"] = min(row["loads_128"], known.get("loads_128", row["loads_128"]))
    return found


def differences(rows, committed):
    """Return where compiled kernels are worse than the committed table, or not in it, or it names others."""
    found = worst(rows)
    listed = {
        kernel: {arch: dict(zip(committed["columns"], numbers, strict=True)) for arch, numbers in archs.items()}
        for kernel, archs in committed["kernels"].items()
    }
    wrong = [f"{kernel}: not in the table" for kernel in found.keys() - listed.keys()]
    wrong += [f"{kernel}: in the table, but not compiled" for kernel in listed.keys() - found.keys()]
    for kernel in found.keys() & listed.keys():
        if found[kernel].keys() != listed[kernel].keys():
            wrong.append(f"{kernel}: other architectures than in the table")
            continue
        for arch, known in found[kernel].items():
            allowed = listed[kernel][arch]
            bad = {column for column in ("shared", "spills") if known[column] != allowed[column]}
            bad |= {"registers"} if known["registers"] > allowed["registers"] else set()
            bad |= {"loads_128"} if known.get("loads_128", 0) < (allowed["loads_128"] or 0) else set()
            wrong += [f"{kernel} {arch}: {one} {known.get(one)}, in the table {allowed[one]}" for one in sorted(bad)]
    return sorted(wrong)


def test_everything_is_compiled(rows):
    compiled = {(row["kernel"], row["dtype"], row["arch"]) for row in rows if row["file"] != numba_static.FILE}
    assert compiled == {
        (kernel, dtype, arch)
        for kernel in cuda_kernels.ABI
        for dtype in ("float32", "float64")
        for arch in ARCHITECTURES
    }
    elementwise = {name for name, sigma in ACTIVATIONS.items() if not sigma.rowwise}
    expected = {
        "output_delta": {f"{sigma} {cost}" for sigma in elementwise for cost in COSTS},
        "softmax_cost": set(COSTS),
        "update": set(RULES),
        **dict.fromkeys(("bias_sigma", "hidden_delta", "gemm_forward", "gemm_hidden"), elementwise),
    }
    for kernel in cuda_kernels.ABI:
        for dtype in ("float32", "float64"):
            for arch in ("sm_75", "sm_120"):
                found = [r["formulas"] for r in rows if (r["kernel"], r["dtype"], r["arch"]) == (kernel, dtype, arch)]
                assert sorted(found) == sorted(expected.get(kernel, {""}))


def test_a_kernel_is_compiled_with_every_formula_that_it_calls(monkeypatch):
    """Also through a function; one that calls none is in the source once, where no formula is declared yet."""
    text = cuda_kernels._text
    plain = text("forward.cu")
    through = plain.replace("exp(a[start + j] - largest)", "twice(a[start + j] - largest)")
    assert through != plain
    through = f"__device__ __forceinline__ T twice(T z) {{ return T(2) * sigma(z); }}\n\n{through}"
    for changed, softmax in ((plain, {"bias_softmax"}), (through, {"bias_softmax__one", "bias_softmax__two"})):
        monkeypatch.setattr(
            cuda_kernels, "_text", lambda file, own=changed: own if file == "forward.cu" else text(file)
        )
        cases = {"one": {"sigma": "tanh(z)"}, "two": {"sigma": "z"}}
        source, kernels = gpu_sources.combined("forward.cu", np.dtype(np.float32), cases)
        assert set(kernels) == {"bias_sigma__one", "bias_sigma__two"} | softmax
        first = source.index("T sigma(T z)")
        assert ("void bias_softmax(" in source[:first]) == (softmax == {"bias_softmax"})
        assert source.count("void bias_softmax") == len(softmax) and source.count("void bias_sigma") == 2


def test_every_numba_cuda_kernel_is_compiled(rows):
    """In float32 for all architectures, and with every activation and cost; in float64 for two."""
    ours = [row for row in rows if row["file"] == numba_static.FILE]
    kernels = {f"{numba_static.FILE}.{name}" for name in numba_runner.load().KERNELS}
    compiled = {(row["kernel"], row["dtype"], row["arch"]) for row in ours}
    types = [("float32", arch) for arch in ARCHITECTURES] + [("float64", arch) for arch in ("sm_75", "sm_120")]
    assert compiled == {(kernel, *rest) for kernel in kernels for rest in types}
    formulas = {}
    for row in ours:
        formulas.setdefault(row["kernel"].removeprefix(f"{numba_static.FILE}."), set()).add(row["formulas"])
    activations = sum(not sigma.rowwise for sigma in ACTIVATIONS.values())
    assert len(formulas["gemm_forward"]) == len(formulas["gemm_hidden"]) == activations
    costs = len({(cost.value, cost.gradient) for cost in COSTS.values()})  # which differ but in their reduction
    assert len(formulas["softmax_cost"]) == costs
    assert len(formulas["output_delta"]) == activations + costs - 1
    assert formulas["update"] == set(RULES)


def test_float64_in_a_numba_cuda_kernel_is_seen(tools):
    """A literal that is not T(...), which Numba makes a float64; the simulator can not see it."""
    text = numba_runner.source("update")
    assert text.count("gi *= factor\n") == 1
    changed = {"update": text.replace("gi *= factor\n", "gi *= 1.0 * factor\n")}
    job = numba_static.Job("update", "", {"rule": rules.text_of_row("momentum")}, "float32", ("sm_75",))
    for sources, seen in (({}, False), (changed, True)):
        shim = importlib.import_module("bpgpu.kernels.numba_cuda.library")
        (row,) = numba_static.compile_job(job, numba_runner.load(sources, shim=shim))
        assert bool(row["float64"]) == seen


def test_errors_of_numba(tools):
    job = numba_static.Job("gemm_forward", "no such", {"sigma": "a"}, "float32", ("sm_75",))
    with pytest.raises(RuntimeError, match=r"gemm_forward \(no such, float32\) does not compile: FormulaError"):
        numba_static.compile_job(job)


def test_compiled_as_the_backend_compiles():
    assert cuda_launch.OPTIONS == ("-std=c++17",), "give benchmarks/gpu_static.py the same options"


def test_no_warnings_no_spills_no_local_memory(rows):
    assert names(row for row in rows if row["warnings"]) == []
    assert names(row for row in rows if row["spills"] or row["stack"]) == []


def test_a_block_fits(rows):
    """256 threads have 255 registers at most each, 65,536 together; static shared memory is 48 KiB at most."""
    assert names(row for row in rows if row["registers"] > 255 or row["shared"] > 48 * 1024) == []


def test_no_float64_in_float32_kernels(rows):
    read = [row for row in rows if row["dtype"] == "float32" and row["float64"] is not None]
    every = {(row["kernel"], row["formulas"]) for row in rows}
    assert {(row["kernel"], row["formulas"]) for row in read} == every
    assert [f"{name}: {row['float64']}" for row in read if row["float64"] for name in names([row])] == []


def test_float64_is_seen_where_it_is(rows):
    read = [row for row in rows if row["dtype"] == "float64" and row["kernel"].startswith("gemm_")]
    assert read
    assert names(row for row in read if row["float64"] == []) == []


def doubles(source):
    """Return every literal of type double in C++ code, but in T(...), and every use of the type's name."""
    code = re.sub(r"//.*|/\*.*?\*/|\"[^\"]*\"", "", source)
    code = re.sub(r"\bT\([-+]?[\d.]+(e[-+]?\d+)?\)", "", code)
    return re.findall(r"\bdouble\b|(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?(?![\dfF])", code)


@pytest.mark.parametrize("file", cuda_kernels.FORMULAS)
def test_no_double_in_the_source(file):
    """The compiler silently narrows `1.0 - x`, so SASS shows only the doubles that it could not be rid of."""
    sigma = ACTIVATIONS["gelu"]
    longest = {"sigma": sigma.value, "sigma_prime": sigma.derivative, "rule": rules.text_of_row("adamw")}
    formulas = {name: longest.get(name, "0.5 * a") for name in cuda_kernels.FORMULAS[file]}
    assert doubles(cuda_kernels.module_source(file, np.dtype(np.float32), formulas)) == []


def test_doubles_are_found():
    assert doubles("x = 1.0 - y; // 2.0") == ["1.0"]
    assert doubles("x = .5 * y + 1e-30 + 2.; double z;") == [".5", "1e-30", "2.", "double"]
    assert doubles("x = T(-0.5) * T(1e-30) + T(1) + 0x1f + a1.x + 3 / 0xffffffffu;") == []


def test_128_bit_loads(rows):
    read = [row for row in rows if row["kernel"] in VECTOR_LOADS and row["loads_128"] is not None]
    assert {(row["kernel"], row["dtype"], row["arch"]) for row in read} == {
        (kernel, dtype, arch) for kernel in VECTOR_LOADS for dtype in ("float32", "float64") for arch in ARCHITECTURES
    }
    assert names(row for row in read if not row["loads_128"]) == []


def test_the_committed_table(rows, tools, committed):
    update = "python -m benchmarks.gpu_static --write"
    assert tools == committed["compiler"], f"the table is of another compiler; install that one, or run {update}"
    assert differences(rows, committed) == [], f"if the change is meant, run {update}"


# That the gate can fail

TYPES = "typedef float T;\nstruct alignas(16) Vec { T v[4]; };\n"
DECLARATION = 'extern "C" __global__ void __launch_bounds__(1024) '
KERNELS = {
    "fine": "const Vec q = reinterpret_cast<Vec*>(x)[64]; x[0] = q.v[0] * q.v[1] + q.v[2] * q.v[3] * T(0.1);",
    "double_literal": "x[threadIdx.x] *= 0.1;",
    "double_function": "x[threadIdx.x] = exp((double)x[threadIdx.x]);",
    "double_compare": "if (x[threadIdx.x] > 0.1) x[threadIdx.x] = T(0);",
    "local_memory": "T s[64]; for (int i = 0; i < 64; ++i) s[63 - ((int)x[i] & 63)] = x[i]; x[0] = s[(int)x[1] & 63];",
    "spills": """
        T s[96];
        for (int r = 0; r < 9; ++r) {
            #pragma unroll
            for (int i = 0; i < 96; ++i) s[i] = (r ? s[i] : T(0)) * x[i] + x[i + r];
            __syncthreads();
        }
        #pragma unroll
        for (int i = 0; i < 96; ++i) x[i] = s[95 - i];""",
}
COMPILE = """
import dataclasses, json, sys
from benchmarks.gpu_static import Job, compile_job
job = Job("seeded.cu", "float32", sys.argv[1], sys.argv[2], {name: (name, "") for name in sys.argv[3:]}, True)
print(json.dumps([dataclasses.asdict(row) for row in compile_job(job)]))
"""


def compiled(arch, kernels):
    source = TYPES + "".join(f"{DECLARATION} {name}(T* x) {{ {body} }}\n" for name, body in kernels.items())
    process = run("-c", COMPILE, arch, source, *kernels)
    assert process.returncode == 0, process.stderr
    return {row["kernel"]: row for row in json.loads(process.stdout)}


@pytest.mark.parametrize("arch", ["sm_75", "sm_120"])
def test_seeded_faults_are_seen(tools, arch):
    seeded = compiled(arch, KERNELS)
    fine = seeded["fine"]
    assert (fine["float64"], fine["spills"], fine["stack"], fine["warnings"], fine["loads_128"]) == ([], 0, 0, [], 1)
    for name in ("double_literal", "double_function", "double_compare"):
        assert seeded[name]["float64"], name
        assert seeded[name]["loads_128"] == 0, name
    assert seeded["local_memory"]["stack"] > 0
    assert seeded["spills"]["spills"] > 0


def test_warnings_and_errors_of_the_compiler(tools):
    assert compiled("sm_90", {"warning": "int unused;"})["warning"]["warnings"]
    process = run("-c", COMPILE, "sm_90", "typo")
    assert process.returncode == 1
    assert "RuntimeError: seeded.cu (float32, sm_90) does not compile" in process.stderr


def sample():
    row = {"kernel": "k", "dtype": "float32", "arch": "sm_75", "registers": 30, "shared": 64, "spills": 0}
    rows = [row | {"loads_128": 2}, row | {"registers": 32, "loads_128": None}]
    columns = ["registers", "shared", "spills", "loads_128"]
    return rows, {"columns": columns, "kernels": {"k float32": {"sm_75": [32, 64, 0, 2]}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"registers": 28}, []),
        ({"loads_128": 5}, []),
        ({"registers": 33}, ["k float32 sm_75: registers 33, in the table 32"]),
        ({"shared": 128}, ["k float32 sm_75: shared 128, in the table 64"]),
        ({"spills": 4}, ["k float32 sm_75: spills 4, in the table 0"]),
        ({"loads_128": 1}, ["k float32 sm_75: loads_128 1, in the table 2"]),
        ({"kernel": "new"}, ["new float32: not in the table"]),
        ({"arch": "sm_90"}, ["k float32: other architectures than in the table"]),
    ],
)
def test_what_differs_from_the_table(changes, expected):
    rows, committed = sample()
    assert differences([*rows, rows[0] | changes], committed) == expected


def test_a_kernel_that_is_gone_from_the_source():
    _, committed = sample()
    assert differences([], committed) == ["k float32: in the table, but not compiled"]


# What a step costs; nothing is compiled


def step(sizes, *options):
    process = run("-m", "benchmarks.gpu_static", "--step-only", "--json", "--sizes", sizes, *options)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("sizes", ["3,2", "4,3,2", "9,8,7,6,5"])
def test_launches_of_a_step(sizes):
    L = sizes.count(",")
    for options, cublas, fused in [
        ([], 5 * L + 2, 3 * L + 2),
        (["--clip"], 5 * L + 4, 3 * L + 4),
        (["--no-bias"], 5 * L, 3 * L + 2),
    ]:
        totals = step(sizes, *options)["totals"]
        assert (totals["cublas"]["launches"], totals["fused"]["launches"]) == (cublas, fused)


def test_a_step_by_hand():
    """2-3-1, batch 4: 13 parameters; with Adam each is read with its gradient, m and v, and written with m and v."""
    report = step("2,3,1", "--batch", "4", "--optimizer", "adam", "--dtype", "float64")
    totals = report["totals"]
    products = 2 * 4 * (2 * 3 + 3 * 1) * 2 + 2 * 4 * 3 * 1  # forward and weight gradient; one delta
    assert {way: totals[way]["flops"] for way in totals} == dict.fromkeys(("cublas", "fused", "minimum"), products)
    assert totals["minimum"]["bytes"] == 8 * (4 * 2 + 2 * 13 * 3) + 2 * 4 * 4
    launches = {(one["kernel"], one["layer"]): one for one in report["launches"]["fused"]}
    forward = launches["gemm_forward", 1]
    assert (forward["read"], forward["written"], forward["flops"]) == (4 * 2 + 2 * 3 + 3, 4 * 3, 2 * 4 * 2 * 3)
    assert forward["tile_flops"] == 2 * 64 * 64 * 16
    hidden = launches["gemm_hidden", 1]
    assert (hidden["read"], hidden["written"], hidden["flops"]) == (4 * 1 + 3 * 1 + 4 * 3, 4 * 3, 2 * 4 * 1 * 3)
    gradient = launches["gemm_gradient", 2]
    assert (gradient["read"], gradient["written"], gradient["flops"]) == (4 * 3 + 4 * 1, 3 * 1 + 1, 2 * 4 * 3 * 1)
    update = launches["update", None]
    assert (update["read"], update["written"]) == (4 * 13, 3 * 13)


def test_bad_sizes():
    process = run("-m", "benchmarks.gpu_static", "--step-only", "--sizes", "784")
    assert process.returncode == 2
    assert "--sizes needs at least two numbers" in process.stderr
