"""The hardware report on the simulated GPU and without any GPU."""

import itertools
import json
import sys

import pytest

from bpgpu.proof import accuracy, bench, hardware_parts, hardware_peers, hardware_report
from bpgpu.proof.bench import DTYPES
from tests.simgpu import cupy as simulated
from tests.simgpu import device, numba_device

needs_simulator = pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")


@pytest.fixture
def lines():
    return []


def written(folder):
    """Return the JSON file, which must be strict JSON, and the Markdown file."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "hardware-report.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse), (folder / "hardware-report.md").read_text(encoding="utf-8")


def rows(report, part):
    return report["parts"][part]["rows"]


@needs_simulator
def test_every_part_on_the_simulated_gpu(monkeypatch, tmp_path, lines):
    gpu = simulated.install(monkeypatch)
    name = gpu.cuda.runtime.getDeviceProperties(0)["name"]
    name = name.decode() if isinstance(name, bytes) else name
    report = hardware_report.run(tmp_path / "new", lines.append, quick=True)
    found, text = written(tmp_path / "new")
    assert found == report
    assert (report["finished"], report["failed"]) == (True, [])
    assert list(report["parts"]) == list(hardware_report.PARTS)
    facts = {row["fact"]: row["value"] for row in rows(report, "facts")}
    assert "simulated" in name.lower()
    assert facts["GPU"] == name
    assert name in text
    assert facts["CUDA runtime"] == "13.2"
    assert {"date", "bpgpu", "NumPy", "Python", "CuPy", "NVIDIA driver"} <= set(facts)
    assert len(rows(report, "gradients")) == 4
    assert {(row["way"], row["dtype"]) for row in rows(report, "parity")} == set(
        itertools.product(accuracy.ways("cupy"), DTYPES)
    )
    assert all(row["largest"] <= row["promised"] for row in rows(report, "parity"))
    assert {"forward", "training: parameters"} <= {
        row["operation"] for row in rows(report, "parity") if row["largest"] > 0
    }
    assert all(row["derivatives"] > 0 and row["largest"] <= row["tolerance"] for row in rows(report, "gradients"))
    assert [row["ok"] for row in rows(report, "rerun")] == [True] * 6
    assert [row["ok"] for row in rows(report, "graphs")] == [True] * 2
    assert gpu.counters.graph_launches > 0
    assert all(row["free bytes before"] == row["free bytes after"] > 0 for row in rows(report, "leaks"))
    timed = {row["what"]: row for row in rows(report, "timings") if "median_s" in row}
    ways = {"bpgpu cupy", "bpgpu cupy, cuBLAS", "bpgpu cupy, fused", "bpgpu cupy, graphs"}
    assert {"bpgpu numpy"} | ways <= set(timed)
    assert timed["bpgpu cupy, fused"]["device"] == name
    assert all(0 < row["least_s"] <= row["median_s"] <= row["most_s"] for row in timed.values())
    assert "its timings mean nothing" in text
    assert "facts: ok" in lines


@needs_simulator
def test_a_part_that_fails_is_written_down_and_the_rest_runs(monkeypatch, tmp_path, lines):
    def broken(quick):
        yield {"way": "cupy", "ok": False, "largest": float("nan")}
        raise RuntimeError("the driver\nhas gone")

    simulated.install(monkeypatch)
    monkeypatch.setitem(hardware_report.PARTS, "gradients", broken)
    monkeypatch.setitem(bench.PROMISED, "training: loss", -1)
    report = hardware_report.run(tmp_path, lines.append, quick=True)
    found, text = written(tmp_path)
    assert found["failed"] == report["failed"] == ["gradients", "parity"]
    assert report["parts"]["gradients"]["status"] == "failed"
    assert report["parts"]["gradients"]["problems"] == [
        "RuntimeError: the driver has gone",
        "way cupy, largest nan",
    ]
    assert rows(report, "gradients") == [{"way": "cupy", "ok": False, "largest": "nan"}]
    assert {row["operation"] for row in rows(report, "parity") if not row["ok"]} == {"training: loss"}
    assert len(report["parts"]["parity"]["problems"]) == 4
    others = ("rerun", "graphs", "leaks", "timings")
    assert {part: report["parts"][part]["status"] for part in others} == dict.fromkeys(others, "ok")
    assert "- FAILED RuntimeError: the driver has gone" in text
    assert "Failed: gradients, parity." in text


@needs_simulator
def test_a_leak_and_different_bytes_are_failures(monkeypatch, tmp_path, lines):
    gpu = simulated.install(monkeypatch)
    kept, fit = [], hardware_parts.MLP.fit

    def leaking(net, *args, **options):
        kept.append(gpu.zeros((4096,)))
        net.architecture.views(net.parameters)[0][0][...] *= 1 + 1e-3 * len(kept)
        return fit(net, *args, **options)

    monkeypatch.setattr(hardware_parts.MLP, "fit", leaking)
    parts = {part: hardware_report.PARTS[part] for part in ("rerun", "graphs", "leaks")}
    monkeypatch.setattr(hardware_report, "PARTS", parts)
    report = hardware_report.run(tmp_path, lines.append, quick=True)
    assert report["failed"] == ["rerun", "graphs", "leaks"]
    leak = rows(report, "leaks")[0]
    assert leak["free bytes before"] - leak["free bytes after"] >= hardware_parts.FITS * 4096 * 8


def test_a_crash_leaves_the_parts_before_it(monkeypatch, tmp_path, lines):
    def crash(quick):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(hardware_report, "PARTS", {"facts": hardware_parts.facts, "gradients": crash})
    with pytest.raises(KeyboardInterrupt):
        hardware_report.run(tmp_path, lines.append, quick=True)
    found, text = written(tmp_path)
    assert list(found["parts"]) == ["facts"]
    assert not found["finished"]
    assert "Not finished" in text


def test_numba_cuda_is_a_way_of_its_own(no_backend_made, monkeypatch, tmp_path, lines):
    """With CuPy missing it is the only one, and all parts but graphs run on it."""
    numba_device.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy", None)

    class Small(hardware_parts.Network):
        def data(self, n):
            return super().data(min(n, 40))  # a batch and a smaller one: this simulation is slow

    monkeypatch.setattr(hardware_parts, "NETWORKS", (Small((3, 4, 2), ("tanh", "softmax"), "cross_entropy"),))
    monkeypatch.setattr(hardware_parts, "FITS", 1)
    assert list(hardware_report.PARTS["graphs"](True)) == [{"not available": "only the backend 'cupy' has graphs"}]
    for part in ("rerun", "leaks"):
        found = list(hardware_report.PARTS[part](True))
        assert {row["way"] for row in found} == {"numba-cuda"}
        assert all(row["ok"] for row in found)


def test_without_a_gpu_every_figure_of_one_is_missing_with_the_reason(no_backend_made, monkeypatch, tmp_path, lines):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(hardware_parts.shutil, "which", lambda program: None)
    report = hardware_report.run(tmp_path, lines.append, quick=True)
    assert report["failed"] == ["gradients", "parity", "rerun", "graphs", "leaks"]
    assert all("cupy" in " ".join(report["parts"][part]["problems"]).lower() for part in report["failed"])
    facts = {row["fact"]: row["value"] for row in rows(report, "facts")}
    assert facts["GPU"].startswith("not available: BackendUnavailableError")
    assert facts["NVIDIA driver"] == "not available: there is no nvidia-smi"
    assert not any("cupy" in row["what"] for row in rows(report, "timings") if "median_s" in row)
    assert "bpgpu cupy" in {row["what"] for row in rows(report, "timings") if "not available" in row}


def test_a_framework_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(hardware_peers.importlib.util, "find_spec", lambda name: None)
    found = [epochs((2, 2), None, None, 1, 1) for epochs in hardware_peers.PEERS.values()]
    assert found == ["torch is not installed", "JAX is not installed"]
