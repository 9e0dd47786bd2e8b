"""bpgpu beside other libraries: the work of each is checked, and the report says what was measured."""

import functools
import importlib.util
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import peer_epochs, peers
from benchmarks.peer_problem import LEAST, NETWORKS, RATES, WARM_UP, Problem, Stopwatch, WrongResult, clock

SMALL = "2-4-3-1"
PAGE = "# Title\n\n<!-- peers -->\nold\n<!-- /peers -->\n\nThe rest.\n"


@functools.cache
def right(network, optimizer):
    problem = Problem(network, optimizer)
    return problem, peer_epochs.reference(problem)


def invoke(*arguments):
    result = CliRunner().invoke(peers.app, [*map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


# The check


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("network", ["2-4-3-1", "64-100-10"])
def test_the_loop_by_hand_is_right(network, optimizer):
    problem, expected = right(network, optimizer)
    peer = peer_epochs.NumPyLoop(problem)
    peer.epoch()
    peer.check(expected)


def forget_a_batch(peer):
    peer.batches.pop()


def double_the_rate(peer):
    peer.problem.rate *= 2


def leave_a_bias_alone(peer):
    gradients = peer.gradients
    peer.gradients = lambda x, y: (gradients(x, y)[0], [gradients(x, y)[1][0], *map(np.zeros_like, peer.b[1:])])


def swap_the_batches(peer):
    peer.batches.reverse()


def do_nothing(peer):
    peer.batches.clear()


def go_astray(peer):
    peer.W[0][0, 0] = np.nan


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize(
    "fault", [forget_a_batch, double_the_rate, leave_a_bias_alone, swap_the_batches, do_nothing, go_astray]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_peer_that_does_other_work_is_refused(fault, optimizer):
    expected = right("64-100-10", optimizer)[1]
    peer = peer_epochs.NumPyLoop(Problem("64-100-10", optimizer))
    fault(peer)
    peer.epoch()
    with pytest.raises(WrongResult, match=r"the first epoch changed [Wb]_[12] with a relative error of"):
        peer.check(expected)


def test_a_product_that_is_not_computed_is_refused():
    peer = peer_epochs.Products(Problem("64-100-10", "SGD"))
    # Forward and gradient of two layers, and the error of the hidden one.
    assert [(A.shape, B.shape) for A, B, _ in peer.products] == [
        ((200, 64), (64, 100)),
        ((64, 200), (200, 100)),
        ((200, 100), (100, 10)),
        ((100, 200), (200, 10)),
        ((200, 10), (10, 100)),
    ]
    peer.epoch()
    peer.check(None)
    for _, _, C in peer.products:
        kept = C[-1, -1]
        C[-1, -1] += 1
        with pytest.raises(WrongResult, match="differs from NumPy's"):
            peer.check(None)
        C[-1, -1] = kept


@pytest.mark.parametrize("peer", peer_epochs.PEERS)
def test_a_peer_checked_against_the_wrong_parameters_fails_with_its_last_line(peer, tmp_path):
    """In a process of its own, as in a run; and with the right ones it is timed."""
    needs = peer_epochs.PEERS[peer].needs
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    problem, expected = right(SMALL, "Adam")
    file = tmp_path / "expected.npy"
    np.save(file, expected)
    found = peers.run_peer(SMALL, "Adam", peer, 0, file, 1)
    assert found["seconds"] > 0 and found["epochs"] == LEAST, found
    if peer != "products":  # it trains nothing
        np.save(file, expected + 0.5 * (expected - problem.flat))
        wrong = peers.run_peer(SMALL, "Adam", peer, 0, file, 1)
        assert "WrongResult: the first epoch changed W_1 with a relative error of 0.33" in wrong["error"]


# The clock


def test_only_what_comes_after_the_warm_up_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.peer_problem.time.perf_counter", lambda: now[0])
    lasts = iter([5.0, 3.0, *[1.0] * 100])

    def work():
        now[0] += next(lasts)

    assert clock(work, 0) == [1.0] * LEAST
    assert WARM_UP == 2
    now[0], lasts = 0.0, iter([1.0] * 100)
    assert clock(work, 20) == [1.0] * 20
    assert now[0] == 25  # a quarter is warm-up


def test_the_times_of_a_stopwatch_are_between_marks(monkeypatch):
    monkeypatch.setattr("benchmarks.peer_problem.time.perf_counter", iter([0.0, 9.0, 10.0, 11.0, 13.0, 16.0]).__next__)
    watch = Stopwatch(1)
    assert [watch.mark() for _ in range(5)] == [False, False, False, False, True]
    assert watch.times == [1.0, 2.0, 3.0]


# The report


def result(peer, seconds, *, network=SMALL, optimizer="SGD", round=1, **more):
    return {"round": round, "network": network, "optimizer": optimizer, "peer": peer, "seconds": seconds, **more}


def sample():
    wide = {"network": "1024-2048-2048-1000", "optimizer": "Adam"}
    return [
        {"peer": "jax", "error": "jax is not installed"},
        *(result("bpgpu", seconds, round=i) for i, seconds in enumerate([1e-6, 9e-6, 2e-6], 1)),
        *(result("products", 1.6e-6, round=i, large_gemm_flops_per_second=i * 1e11) for i in (1, 2, 3)),
        *(result("torch", seconds, round=i) for i, seconds in enumerate([2e-4, 4e-4, 3e-4], 1)),
        *(result("sklearn", 1e-4, round=i) for i in (1, 2)),
        {"round": 3, "network": SMALL, "optimizer": "SGD", "peer": "sklearn", "error": "MemoryError"},
        *(result("bpgpu", 0.2, round=i, **wide) for i in (1, 2, 3)),
        *(result("sklearn", 0.5, round=i, **wide) for i in (1, 2, 3)),
    ]


def test_the_table_has_medians_and_ratios_and_says_what_is_missing():
    header, _, small, wide = peers.peers_table(sample()).strip().splitlines()
    assert header == (
        "| network | batch | optimizer | bpgpu | only the products | scikit-learn | torch, eager | JAX, each step "
        "| bpgpu / products | fastest library / bpgpu |"
    )
    assert small == "| 2-4-3-1 | 4 | SGD | 2 | 1.6 (0.80) | failed | 300 (150.00) | not installed | 1.25 | 150 |"
    assert wide.startswith("| 1024-2048-2048-1000 | 1024 | Adam | 200 000 | ")
    assert "| 500 000 (2.50) |" in wide
    assert wide.endswith("| - | 2.5 |")


def test_the_page_has_machine_settings_rates_and_reasons(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    pools = [result("bpgpu", 1e-6, pools=["openblas 1.2 Zen 2 threads (scipy.libs)"])]
    page = peers.markdown(peers.machine(None), sample() + pools)
    assert "OPENBLAS_CORETYPE Nehalem" in page
    assert "OMP_NUM_THREADS 3" in page
    assert f"versions: bpgpu {peers.version('bpgpu')}, numpy {np.__version__}" in page
    assert "threads: as each library chooses" in page
    assert "BLAS loaded by bpgpu: openblas 1.2 Zen 2 threads (scipy.libs)" in page
    assert "large product: 200 GFLOP/s (100 to 300)" in page
    assert page.endswith("- JAX, each step: jax is not installed\n- scikit-learn 2-4-3-1 SGD: MemoryError\n")


def test_nothing_but_failures_is_reported_too():
    failure = {"round": 1, "network": SMALL, "optimizer": "SGD", "peer": "torch", "error": "ImportError: broken"}
    assert "- torch, eager 2-4-3-1 SGD: ImportError: broken" in peers.markdown({}, [failure])


# The command


def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_epochs.Jax, "needs", "no_such_module")
    page = tmp_path / "README.md"
    page.write_text(PAGE, encoding="utf-8")
    out = tmp_path / "out"
    chosen = ("--rows", SMALL, "--peers", "numpy,jax,bpgpu,products", "--rounds", 1, "--seconds", 0.02, "--threads", 1)
    code, text = invoke(*chosen, "--out", out, "--readme", page)
    assert code == 0, text
    results = json.loads((out / "peers.json").read_text(encoding="utf-8"))["results"]
    ran = [(x["optimizer"], x["peer"]) for x in results if "round" in x]
    assert ran == [(optimizer, peer) for optimizer in RATES for peer in ("bpgpu", "products", "numpy")]
    seconds = {(x["optimizer"], x["peer"]): x["seconds"] for x in results if "round" in x}
    for optimizer in RATES:
        assert seconds[optimizer, "bpgpu"] < seconds[optimizer, "numpy"] / 3
    report = (out / "peers.md").read_text(encoding="utf-8")
    assert "- JAX, each step: no_such_module is not installed" in report
    assert "threads: 1, by --threads" in report
    assert " 1 threads (scipy.libs)" in report
    written = page.read_text(encoding="utf-8")
    assert written == PAGE.replace("old", report.strip())
    page.write_text(PAGE, encoding="utf-8")
    code, text = invoke("--saved", out / "peers.json", "--readme", page)
    assert code == 0, text
    assert page.read_text(encoding="utf-8") == written


def test_a_peer_that_fails_ends_in_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "reference", lambda problem: problem.flat + 1)
    code, text = invoke("--rows", SMALL, "--peers", "numpy", "--rounds", 1, "--seconds", 0)
    assert code == 1
    assert "- NumPy by hand 2-4-3-1 Adam: " in text
    assert "WrongResult: the first epoch changed W_1" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rows", "2-2"), f"--rows must name some of {', '.join(NETWORKS)}, got 2-2"),
        (("--peers", "bpgpu,caffe"), "got caffe"),
        (("--saved", "nowhere.json"), "No such file"),
    ],
)
def test_a_bad_argument_gets_one_sentence(arguments, said):
    code, text = invoke(*arguments)
    assert code == 2
    assert text.startswith("error: ")
    assert said in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(content, encoding="utf-8")
    code, text = invoke("--saved", path)
    assert code == 2
    assert text == f"error: {path} is not what `python -m benchmarks.peers --out` writes\n"


@pytest.mark.parametrize("page", ["", "<!-- peers -->\n", "<!-- /peers -->\n<!-- peers -->\n"])
def test_a_page_without_markers_is_left_alone(page, tmp_path):
    path, saved = tmp_path / "page.md", tmp_path / "peers.json"
    path.write_text(page, encoding="utf-8")
    saved.write_text(json.dumps({"about": {}, "results": sample()}), encoding="utf-8")
    code, text = invoke("--saved", saved, "--readme", path)
    assert code == 2
    assert "has no place for the table" in text
    assert path.read_text(encoding="utf-8") == page


def test_the_readme_has_a_place_for_the_table():
    peers.put_between_markers((peers.ROOT / "README.md").read_text(encoding="utf-8"), "a table")


def test_help_answers():
    code, text = invoke("--help")
    assert code == 0
    assert "--rounds" in text
