"""That the measurement of accuracy can fail, by errors planted in every step; the page and the command that show it."""

import json
import re

import numpy as np
import pytest

from bpgpu import backends, cli
from bpgpu.backends.numpy_backend import NumpyBackend
from bpgpu.proof import accuracy
from bpgpu.proof.accuracy_cases import CASES, measure
from bpgpu.proof.bench import DTYPES, PROMISED, Bench, Measurement
from tests import parity, write_accuracy

# The steps of the contract, the result that is spoiled in each, and the operations that must notice.
PLANTED = [
    ("forward", "out", "forward"),
    ("output_delta", "out_a", "output"),
    ("output_delta", "out_delta", "output"),
    ("output_delta", "out_cost", "output"),
    ("hidden_delta", "out", "hidden"),
    ("weight_gradient", "out_W", "gradient"),
    ("weight_gradient", "out_b", "gradient"),
    ("update", "parameters", "update"),
    ("dropout", "out", "dropout"),
    ("forward", "out", "training"),
    ("update", "parameters", "training"),
]
SPOILS = {
    "a factor of 1.0001": ("float32", lambda x: x * x.dtype.type(1.0001)),
    "float32 within float64": ("float64", lambda x: x.astype(np.float32)),
    "the last element off by a thousandth": ("float32", lambda x: np.append(x.ravel()[:-1], x.flat[-1] + 1e-3)),
}


def spoiled(step, result, spoil):
    """Return a backend that spoils one result of one step."""

    class Spoiled(NumpyBackend):
        pass

    method = getattr(NumpyBackend, step)

    def spoiling(self, *args, **options):
        method(self, *args, **options)
        target = args[1] if step == "update" else options.get(result)
        if target is not None and target.size:
            target[...] = spoil(target.copy()).reshape(target.shape)

    setattr(Spoiled, step, spoiling)
    return Spoiled()


@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize(("step", "result", "operation"), PLANTED)
def test_an_error_in_any_step_is_noticed_in_every_case(step, result, operation, kind):
    """Also by a bench that measures as little as it may."""
    dtype, spoil = SPOILS[kind]
    backend = spoiled(step, result, spoil)
    for case in CASES:
        if case.operation == operation:
            assert not all(each.ok for each in measure(Bench(backend, dtype, 2**15, crossed=False), case)), case


@pytest.mark.parametrize(("step", "name"), [("forward", "a_prev"), ("hidden_delta", "delta"), ("output_delta", "z")])
def test_a_step_that_writes_to_an_input_is_noticed(step, name):
    method = getattr(NumpyBackend, step)

    class Careless(NumpyBackend):
        pass

    def careless(self, **arguments):
        method(self, **arguments)
        arguments[name] *= 2

    setattr(Careless, step, careless)
    case = next(case for case in CASES if case.operation == step.split("_")[0])
    with pytest.raises(RuntimeError, match=f"{step} of the backend 'numpy' writes to its input {name}"):
        measure(Bench(Careless(), "float32"), case)


@pytest.mark.parametrize("result", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.ones(3), np.ones((2, 1))])
def test_a_result_that_is_not_finite_or_of_another_shape_keeps_no_promise(result):
    measurement = Bench(NumpyBackend(), "float64").compare("forward", "", result, np.ones(2))
    assert measurement.error == np.inf
    assert not measurement.ok


def test_an_error_is_counted_in_roundings_of_the_largest_result():
    bench, truth = Bench(NumpyBackend(), "float32"), np.array([0.0, -4.0])
    result = truth + np.array([2.0**-20, 0])
    assert bench.compare("forward", "", result, truth).error == 2.0**-20 / (4 * 2.0**-23) == 2
    assert bench.compare("forward", "", result, truth, scale=8).error == 1
    assert bench.compare("forward", "", result, truth, n=256).error == 1  # growth 2
    assert bench.compare("forward", "", np.zeros((0, 2)), np.zeros((0, 2))).error == 0


# The page


def test_the_committed_page_is_what_the_command_writes_but_for_the_figures():
    """With its own figures, none of them larger than promised, and all backends of the matrix."""
    committed, stale = write_accuracy.PAGE.read_text(encoding="utf-8"), "run: python -m tests.write_accuracy"
    ways = [entry.label(way) for entry in parity.MATRIX for way in accuracy.ways(entry.backend)]
    errors = {way: {dtype: {} for dtype in DTYPES} for way in ways}
    tables = re.findall(r"((?:^\|.*\|\n)+)", committed, re.MULTILINE)
    for dtype, table in zip(DTYPES, tables, strict=True):
        for line in table.splitlines()[2:]:
            operation, _, _, *figures = (cell.strip() for cell in line.strip("|").split("|"))
            assert (len(figures), operation in PROMISED) == (len(ways), True), stale
            for way, figure in zip(ways, figures, strict=True):
                errors[way][dtype][operation] = Measurement(operation, "", float(figure))
    where = re.search(r"Measured on (.*)\.\n", committed).group(1)
    assert list(errors[ways[0]][DTYPES[0]]) == list(PROMISED), stale
    assert write_accuracy.page(errors, where) == committed, stale
    assert accuracy.broken_promises(errors) == []


# The command


@pytest.fixture
def few_cases(monkeypatch):
    """One case of each operation."""
    monkeypatch.setattr(accuracy, "CASES", list({case.operation: case for case in CASES}.values()))


def test_the_command_shows_every_operation_beside_its_promise(few_cases, capfd):
    assert cli.run(["accuracy", "--backend", "numpy"]) == 0
    out = capfd.readouterr().out
    for dtype in DTYPES:
        (table,) = re.findall(rf"\| {dtype} .*\n((?:\|.*\n)+)", out)
        assert [line.split("|")[1].strip() for line in table.splitlines()[1:]] == list(PROMISED)
    assert out.endswith("no error is larger than promised\n")


def test_a_broken_promise_is_named_and_fails(few_cases, monkeypatch, capfd):
    monkeypatch.setattr(accuracy, "make", lambda name: {"odd": spoiled("update", "parameters", lambda x: x * 1.01)})
    assert cli.run(["accuracy", "--json"]) == 1
    out, err = capfd.readouterr()
    assert re.search(r"FAILED odd, float64: update, AdamW, clipped, \d+: .*, promised 8\n", err)
    result = json.loads(out)
    assert result["failed"] == err.count("FAILED") > 0
    found = result["backends"]["odd"]["float32"]
    assert list(found) == list(PROMISED)
    assert not found["update"]["ok"]
    assert found["forward"]["ok"]
    assert found["update"]["error"] > found["update"]["promised"] == PROMISED["update"]


def test_an_error_that_is_not_finite_is_null_in_json_and_named_in_the_table(few_cases, monkeypatch, capfd):
    monkeypatch.setattr(accuracy, "make", lambda name: {"odd": spoiled("hidden_delta", "out", lambda x: x * np.nan)})
    assert cli.run(["accuracy", "--json"]) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)["backends"]["odd"]["float64"]
    assert found["hidden delta"]["error"] is found["training: parameters"]["error"] is None
    assert "not finite" in err


def test_all_takes_every_backend_that_runs_here():
    names = {backend.name for backend in accuracy.make("all").values()}
    assert names == {info.name for info in backends() if info.available}
    assert accuracy.make("numpy")["numpy"].name == "numpy"
