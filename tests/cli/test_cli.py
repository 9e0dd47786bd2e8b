"""The command line, run as a user runs it: output, files, errors of one line, Ctrl-C."""

import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu import __main__
from bpgpu.cli import machine, output, plots, preparing, scaling
from bpgpu.data import load_digits
from bpgpu.proof import gradcheck

FIELDS = ["backend", "device", "dtype", "parameters", "epochs", "stop_reason", "train_loss", "validation_loss"]
FIELDS += ["metric", "test_metric", "metrics", "baseline", "confusion_matrix", "seconds", "samples_per_second", "model"]


def last_json(out):
    return json.loads(out.splitlines()[-1])


def test_train_digits_is_the_main_job(run):
    code, out, err = run("train", "digits", "--json")
    assert code == 0
    result = last_json(out)
    assert list(result) == FIELDS
    assert result["test_metric"] >= 0.97
    assert result | {"metric": "accuracy", "epochs": 50, "dtype": "float32", "model": None} == result
    assert result["parameters"] == 64 * 512 + 512 + 512 * 10 + 10
    assert result["validation_loss"] < 0.2
    assert len(out.splitlines()) == 1  # everything else went to standard error
    for part in (
        "1438 rows to train on, 359 held out",
        "10 classes",
        "the fastest that runs here",
        "MiB",
        "trained  50 epochs",
    ):
        assert part in err


def test_digits_hold_out_is_the_documented_one_and_the_metric_is_true(run):
    run("train", "digits", "--epochs", "3", "--out", "m.safetensors", "--json", "--seed", "5")
    code, out, _ = run("predict", "m.safetensors", "digits", "--held-out", "--json")
    X, y = load_digits()
    held_out = np.random.default_rng([5, 3]).permutation(1797)[:359]
    accuracy = np.mean(bpgpu.MLP.load("m.safetensors").predict(X[held_out]).argmax(axis=1) == y[held_out])
    assert (code, last_json(out)["test_metric"], last_json(out)["rows"]) == (0, accuracy, 359)


def test_string_labels_come_back_with_the_reported_accuracy(run, flowers):
    code, out, err = run("train", flowers, "--target", "species", "--out", "f.safetensors", "--json")
    reported = last_json(out)["test_metric"]
    assert code == 0
    assert "3 classes" in err
    assert 0.9 < reported <= 1

    code, out, err = run("predict", "f.safetensors", flowers, "--held-out", "--out", "p.csv", "--json")
    result = last_json(out)
    assert [result[name] for name in ("rows", "metric", "test_metric", "out")] == [48, "accuracy", reported, "p.csv"]
    predicted = pd.read_csv("p.csv", index_col="row")
    truth = pd.read_csv(flowers).loc[predicted.index, "species"]
    assert np.mean(predicted["species"] == truth) == reported

    # Raw rows without labels, with the columns in another order and one too many.
    raw = pd.read_csv(flowers)[["species", "fresh", "count", "mass", "length"]].rename(columns={"species": "unused"})
    raw.to_csv("raw.csv", index=False)
    code, out, err = run("predict", "f.safetensors", "raw.csv")
    lines = out.splitlines()
    assert (code, lines[0], len(lines)) == (0, "row,species", 241)
    assert [line.split(",")[1] for line in lines[1:]][predicted.index[0]] == predicted["species"].iloc[0]
    assert "accuracy" not in err


def test_a_file_of_held_out_rows_is_measured_by_train_and_predict_alike(run, flowers):
    table = pd.read_csv(flowers)
    table[:180].to_csv("a.csv", index=False)
    table[180:].to_csv("b.csv", index=False)
    _, out, _ = run("train", "a.csv", "--validation", "b.csv", "--out", "f.safetensors", "--json", "--dtype", "float64")
    reported = last_json(out)["test_metric"]
    code, _, err = run("predict", "f.safetensors", "b.csv")
    assert code == 0
    assert f"accuracy {reported:.4f} on 60 rows" in err


def test_probabilities_sum_to_one_and_agree_with_the_labels(run, flowers):
    table = pd.read_csv(flowers)
    table[table["species"] != "rose"].to_csv("two.csv", index=False)
    for path, classes in ((flowers, 3), ("two.csv", 2)):
        run("train", path, "--out", "f.safetensors", "--epochs", "5", "--json")
        _, _, _ = run("predict", "f.safetensors", path, "--probabilities", "--out", "p.csv")
        predicted = pd.read_csv("p.csv", index_col="row")
        probabilities = predicted.filter(like="p(")
        assert probabilities.shape[1] == classes
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
        assert (probabilities.idxmax(axis=1) == "p(" + predicted["species"] + ")").all()
        net = bpgpu.MLP.load("f.safetensors")
        assert net.architecture.sizes[-1] == (classes if classes > 2 else 1)
        assert net.architecture.activations[-1].name == ("softmax" if classes > 2 else "sigmoid")


@pytest.mark.parametrize("hidden", ["32", ""])
def test_regression_takes_and_gives_raw_numbers(run, houses, hidden):
    arguments = ["--hidden", hidden, "--epochs", "100", "--learning-rate", "0.01", "--out", "h.safetensors", "--json"]
    code, out, err = run("train", houses, "--target", "price", *arguments)
    result = last_json(out)
    assert (code, result["metric"]) == (0, "r2")
    assert "regression" in err
    assert result["test_metric"] > 0.98
    net = bpgpu.MLP.load("h.safetensors")
    table = pd.read_parquet(houses)
    predicted = net.predict(table[["rooms", "area"]])[:, 0]
    assert np.corrcoef(predicted, table["price"])[0, 1] > 0.98
    assert abs(np.mean(predicted - table["price"])) < 3_000
    _, out, _ = run("predict", "h.safetensors", houses, "--held-out", "--json")
    assert last_json(out)["test_metric"] == result["test_metric"]


def test_folding_standardisation_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 3)) * [1, 1e3, 1e-3] + [5, -2e3, 1]
    X[:, 2] = 7.0  # a constant column
    standard = scaling.Standardisation.learn([X])
    np.testing.assert_allclose(standard.apply(X)[:, :2].std(axis=0), 1)
    np.testing.assert_array_equal(standard.apply(X)[:, 2], 0)
    net = bpgpu.MLP([3, 4, 1], ["tanh", "identity"], "squared_error", dtype="float64")
    before = net.predict(standard.apply(X))
    standard.fold_into_input(net)
    np.testing.assert_allclose(net.predict(X), before, rtol=1e-9)
    scaling.Standardisation(np.array([10.0]), np.array([3.0])).fold_into_output(net)
    np.testing.assert_allclose(net.predict(X), before * 3 + 10, rtol=1e-9)


def test_npz_and_npy(run, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((60, 4, 4))
    np.savez(tmp_path / "images.npz", X=images, y=(images.sum(axis=(1, 2)) > 8).astype(int))
    np.save(tmp_path / "matrix.npy", images.reshape(60, 16))
    code, out, err = run("train", "images.npz", "--epochs", "2", "--out", "m.safetensors", "--json")
    assert (code, last_json(out)["metric"]) == (0, "accuracy")
    assert "16 columns" in err
    code, out, _ = run("train", "matrix.npy", "--epochs", "2", "--json", "--optimizer", "sgd", "--l2", "0.1")
    assert (code, last_json(out)["metric"]) == (0, "r2")
    code, out, _ = run("predict", "m.safetensors", "matrix.npy", "--json", "--out", "p.csv")
    assert (code, last_json(out)["test_metric"]) == (0, None)


def test_the_task_is_found_or_told(run, tmp_path):
    rows = {"x": np.arange(50.0), "few": np.arange(50) % 5, "many": np.arange(50) * 3, "real": np.arange(50) / 7}
    for target, task, metric in (
        ("few", "auto", "accuracy"),
        ("many", "auto", "r2"),
        ("real", "auto", "r2"),
        ("few", "regression", "r2"),
        ("many", "classification", "accuracy"),
    ):
        pd.DataFrame(rows).to_csv("t.csv", index=False)
        code, out, err = run("train", "t.csv", "--target", target, "--task", task, "--epochs", "1", "--json")
        assert (code, last_json(out)["metric"]) == (0, metric), err


def test_plot_is_a_picture_and_text_output_tells_all(run, flowers):
    code, out, err = run("train", flowers, "--plot", "curve.png", "--out", "m.safetensors", "--epochs", "2")
    assert code == 0
    with open("curve.png", "rb") as file:  # noqa: PTH123
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    for part in (
        "192 rows to train on, 48 held out",
        "numba on CPU",
        "MiB",
        "trained  2 epochs",
        "accuracy",
        "m.safetensors",
    ):
        assert part in out
    assert err == ""


@pytest.mark.parametrize("losses", [[], [0.0, 0.0], [0.0, 1.0]])
def test_any_losses_can_be_drawn(losses):
    picture = io.BytesIO()
    plots.draw_losses(bpgpu.History(loss=losses, validation_loss=losses), picture, Path("p.png"))
    assert picture.getvalue().startswith(b"\x89PNG")


def test_same_seed_same_model(run, flowers):
    def model(seed):
        run("train", flowers, "--epochs", "2", "--seed", seed, "--out", "m.safetensors", "--dropout", "0.1")
        return bpgpu.MLP.load("m.safetensors").parameters

    first = model(3)
    np.testing.assert_array_equal(model(3), first)
    assert not np.array_equal(model(4), first)


def test_a_column_too_far_from_zero_is_noted(run, flowers):
    table = pd.read_csv(flowers)
    table["length"] += 1e7
    table.to_csv("far.csv", index=False)
    code, out, _ = run("train", "far.csv", "--epochs", "1")
    assert code == 0
    assert "note     a column's mean is" in out
    assert "--dtype float64" in out
    _, out, _ = run("train", "far.csv", "--epochs", "1", "--dtype", "float64")
    assert "note" not in out


@pytest.mark.parametrize("constant", [0.1, 1e7])
def test_a_constant_column_does_no_harm(run, flowers, constant):
    table = pd.read_csv(flowers)
    table.insert(0, "constant", constant)
    table.to_csv("constant.csv", index=False)
    code, out, err = run("train", "constant.csv", "--json")
    assert code == 0
    assert last_json(out)["test_metric"] > 0.9
    assert "note" not in err


@pytest.mark.parametrize(("dtype", "name"), [("f4", "float32"), ("double", "float64")])
def test_a_dtype_may_be_named_as_numpy_does(run, flowers, dtype, name):
    code, out, err = run("train", flowers, "--epochs", "1", "--dtype", dtype, "--json")
    assert (code, last_json(out)["dtype"]) == (0, name)
    assert f", {name}: " in err


def test_names_and_paths_are_printed_as_they_are(run, flowers):
    odd = "[/a] [bold]b[/bold] :smile:"
    pd.read_csv(flowers).rename(columns={"species": odd}).to_csv("odd.csv", index=False)
    code, out, err = run("train", "odd.csv", "--epochs", "1", "--out", "[red]:cat:.safetensors")
    assert (code, err) == (0, "")
    assert f"target   {odd}: classification" in out
    assert "model    [red]:cat:.safetensors\n" in out


def test_what_a_backend_misses_is_printed_as_it_is(run, monkeypatch):
    reason = "pip install [a] :cat:"
    entries = [bpgpu.BackendInfo("numpy", False, "[b]", reason)]
    monkeypatch.setattr(bpgpu, "backends", lambda: entries)
    monkeypatch.setattr(machine, "why_auto", lambda: reason)
    _, out, _ = run("info")
    assert "[b]" in out
    assert out.count(reason) == 2


def test_numbers_that_json_lacks_are_null(run, houses):
    table = pd.read_parquet(houses)
    table["price"] *= 1e195  # the squares of R² overflow
    table.to_parquet("huge.parquet")
    arguments = ["--target", "price", "--dtype", "float64", "--epochs", "1", "--out", "h.safetensors", "--json"]
    code, out, err = run("train", "huge.parquet", *arguments)
    assert (code, last_json(out)["test_metric"]) == (0, None)
    assert "Warning" not in err
    code, out, err = run("predict", "h.safetensors", "huge.parquet", "--json")
    assert (code, last_json(out)["test_metric"]) == (0, None)
    assert err.startswith("r2 nan on 300 rows\n")
    assert "note" not in err
    assert json.loads(output.to_json({"a": float("inf"), "b": float("nan"), "c": 1.5})) == {
        "a": None,
        "b": None,
        "c": 1.5,
    }


def test_parquet_with_numbers_for_names(run, flowers):
    pd.read_csv(flowers).set_axis(range(5), axis=1).to_parquet("numbers.parquet")
    code, out, _ = run("train", "numbers.parquet", "--epochs", "1", "--out", "m.safetensors")
    assert code == 0
    assert "target   4: classification, 3 classes" in out
    code, _, err = run("predict", "m.safetensors", "numbers.parquet", "--out", "p.csv")
    assert (code, err.startswith("accuracy ")) == (0, True)


@pytest.fixture
def counted(tmp_path):
    """A table with the labels 1, 2 and 3+, and one with its rows of 1 and 2, which pandas takes for numbers."""
    rng = np.random.default_rng(0)
    many = rng.integers(1, 4, 200)
    table = pd.DataFrame({"x": many + 0.1 * rng.standard_normal(200), "y": np.array(["", "1", "2", "3+"])[many]})
    table.to_csv(tmp_path / "counted.csv", index=False)
    table[many < 3].to_csv(tmp_path / "small.csv", index=False)
    table[many < 3].astype({"y": int}).to_parquet(tmp_path / "small.parquet")
    return table


@pytest.mark.parametrize("part", ["small.csv", "small.parquet"])
def test_labels_that_look_like_numbers_are_those_of_training(run, counted, part):
    run("train", "counted.csv", "--out", "m.safetensors", "--json")
    code, out, err = run("predict", "m.safetensors", part, "--json", "--out", "p.csv")
    assert code == 0
    assert last_json(out)["test_metric"] > 0.9
    assert err.startswith("accuracy ")
    code, _, err = run("train", "counted.csv", "--validation", part, "--epochs", "1")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("7", "'y' holds labels that training did not see: '7'"),
        ("", "the target 'y' has 2 missing or infinite entries"),
    ],
)
def test_rows_without_a_known_label_are_predicted_all_the_same(run, counted, label, reason):
    run("train", "counted.csv", "--epochs", "1", "--out", "m.safetensors")
    counted.assign(y=counted["y"].where(counted.index > 1, label)).to_csv("new.csv", index=False)
    code, out, err = run("predict", "m.safetensors", "new.csv")
    assert (code, len(out.splitlines()), len(err.splitlines())) == (0, 201, 1)
    assert err.startswith("note: no accuracy: new.csv: ")
    assert reason in err
    code, out, err = run("predict", "m.safetensors", "new.csv", "--json", "--out", "p.csv")
    assert (code, last_json(out)["test_metric"], len(pd.read_csv("p.csv"))) == (0, None, 200)


def test_a_regression_without_numbers_to_compare_with_predicts_all_the_same(run, houses):
    run("train", houses, "--target", "price", "--epochs", "1", "--out", "m.safetensors")
    for price in (np.nan, "cheap"):
        pd.read_parquet(houses).assign(price=price).to_csv("new.csv", index=False)
        code, out, err = run("predict", "m.safetensors", "new.csv")
        assert (code, len(out.splitlines()), len(err.splitlines())) == (0, 301, 1)
        assert err.startswith("note: no r2: new.csv: the target 'price' ")


def test_without_a_terminal_the_bar_leaves_nothing_behind(run, tmp_path):
    bad_tables(tmp_path)
    code, _, err = run("train", "good.csv", "--optimizer", "sgd", "--learning-rate", "1e38")
    assert (code, err.count("\n"), err.startswith("bpgpu: ")) == (2, 1, True)
    code, _, err = run("train", "good.csv", "--epochs", "1")
    assert (code, err) == (0, "")


# Errors


def bad_tables(folder):
    """Write the files that the errors below are about."""
    good = pd.DataFrame({"x": np.arange(20.0), "y": np.arange(20) % 2})
    good.to_csv(folder / "good.csv", index=False)
    good.assign(name="n", when="2020-01-01")[["name", "when", "x", "y"]].to_csv(folder / "text.csv", index=False)
    good.assign(x=np.where(good["x"] > 18, np.nan, good["x"])).to_csv(folder / "holes.csv", index=False)
    good.assign(y=np.where(good["x"] > 18, np.nan, good["y"])).to_csv(folder / "target_holes.csv", index=False)
    good.assign(y=1).to_csv(folder / "one_class.csv", index=False)
    good[["y"]].to_csv(folder / "one_column.csv", index=False)
    good[:1].to_csv(folder / "one_row.csv", index=False)
    good[:0].to_csv(folder / "no_rows.csv", index=False)
    good.assign(y="a").to_csv(folder / "words.csv", index=False)
    good.assign(y=7).to_csv(folder / "unseen.csv", index=False)
    good.assign(x=1e300).to_csv(folder / "large.csv", index=False)
    good.assign(y=pd.to_datetime(good["y"], unit="D")).to_parquet(folder / "dates.parquet")
    good.to_csv(folder / "[red].csv", index=False)
    (folder / "damaged.csv.xz").write_bytes(lzma.compress(b"x,y\n1,2\n")[:-20] + bytes(20))
    (folder / "empty.csv").write_text("")
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 10)
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    (folder / "broken.npz").write_bytes(b"PK no")
    (folder / "x.txt").write_text("1 2")
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(folder / "no_X.npz", a=np.ones(3))
    bpgpu.MLP([1, 1], "sigmoid", "binary_cross_entropy").save(folder / "plain.safetensors")


ERRORS = [
    (["train", "none.csv"], "none.csv: No such file"),
    (
        ["train", "text.csv"],
        "these columns are not numeric: 'name', 'when'; 'name' holds 'n' in line 2; encode text with --encode",
    ),
    (
        ["train", "holes.csv"],
        "these columns have missing or infinite entries: 'x'; 'x' has 1, the first '' in line 21; fill them with",
    ),
    (["train", "target_holes.csv"], "the target 'y' has 1 missing or infinite entries"),
    (["train", "one_class.csv"], "must have at least two classes, got only 1"),
    (["train", "one_column.csv"], "at least one column other than the target"),
    (["train", "one_row.csv", "--task", "regression"], "of 1 rows leaves a part empty"),
    (["train", "no_rows.csv"], "at least one row"),
    (["train", "words.csv", "--task", "regression"], "the target 'y' holds text"),
    (["train", "empty.csv"], "empty.csv: cannot be read as a table"),
    (["train", "binary.csv"], "binary.csv: cannot be read as a table"),
    (["train", "broken.parquet"], "broken.parquet: cannot be read as a table"),
    (["train", "broken.npz"], "broken.npz: cannot be read as a table"),
    (["train", "objects.npy"], "objects.npy: cannot be read as a table"),
    (["train", "no_X.npz"], "no_X.npz: cannot be read as a table"),
    (["train", "x.txt"], "must end in .csv, .tsv, .parquet, .npy or .npz"),
    (["train", "good.csv", "--target", "z"], "--target must name a column, got 'z'; there are 'x', 'y'"),
    (["train", "good.csv", "--task", "clasification"], "did you mean 'classification'?"),
    (["train", "good.csv", "--activation", "rleu"], "did you mean 'relu'?"),
    (["train", "good.csv", "--optimizer", "adm"], "did you mean 'adam'?"),
    (["train", "good.csv", "--backend", "cuppy"], "did you mean 'cupy'?"),
    (["train", "good.csv", "--hidden", "a,b"], "--hidden must be sizes separated by commas"),
    (["train", "good.csv", "--hidden", "3,0"], "sizes[2] must be at least 1, got 0"),
    (["train", "good.csv", "--learning-rate", "0"], "learning_rate must be a finite number above 0"),
    (["train", "good.csv", "--epochs", "0"], "--epochs must be at least 1, got 0"),
    (["train", "good.csv", "--epochs", "x"], "--epochs"),
    (["train", "good.csv", "--batch-size", "-1"], "--batch-size must be at least 1"),
    (["train", "good.csv", "--l2", "-1"], "l2 must be"),
    (["train", "good.csv", "--dropout", "1"], "dropout must be a number in [0, 1)"),
    (["train", "good.csv", "--validation", "1.5"], "--validation must be a fraction in (0, 1) or a file"),
    (["train", "good.csv", "--validation", "nan"], "--validation must be a fraction in (0, 1) or a file"),
    (["train", "good.csv", "--validation", "none.csv"], "none.csv: No such file"),
    (
        ["train", "good.csv", "--validation", "unseen.csv"],
        "labels that training did not see: '7'; the first is '7' in line 2",
    ),
    (["train", "good.csv", "--dtype", "float16"], "dtype must be 'float32' or 'float64'"),
    (["train", "good.csv", "--seed", "-1"], "--seed must be at least 0"),
    (["train", "good.csv", "--out", "no/where.safetensors"], "must exist; make it with: mkdir -p"),
    (["train", "good.csv", "--plot", "no/where.png"], "must exist; make it with: mkdir -p"),
    (["train", "good.csv", "--out", "."], "--out must name a file, got the folder"),
    (["train", "good.csv", "--plot", "../"], "--plot must name a file, got the folder"),
    (["train", "good.csv", "--out", os.devnull], f"--out must name a file, got the device {os.devnull}"),
    (["train", "good.csv", "--plot", "curve.foo"], "--plot curve.foo cannot be drawn: Format 'foo' is not supported"),
    (["train", "good.csv", "--plot", "curve"], "--plot curve cannot be drawn: "),
    (
        ["train", "good.csv", "--hidden", "1000000,1000000"],
        "not enough memory: the 1,000,004,000,001 initial parameters",
    ),
    (
        ["train", "large.csv"],
        "entries too large for float32: 'x'; the first of 'x' is '1e+300' in line 2; use --dtype float64",
    ),
    (
        ["train", "large.csv", "--target", "x", "--task", "regression"],
        "the target 'x' has entries too large for float32, the first '1e+300' in line 2; use --dtype float64",
    ),
    (["train", "good.csv", "--validation", "large.csv"], "entries too large for float32: 'x'; "),
    (["train", "dates.parquet"], "the target 'y' must hold text or numbers, got Timestamp"),
    (["train", "[red].csv", "--target", "[b]"], "[red].csv: --target must name a column, got '[b]'"),
    (["train", "damaged.csv.xz"], "damaged.csv.xz: cannot be read as a table: "),
    (["train", "good.csv", "--optimizer", "sgd", "--learning-rate", "1e38"], "is not finite in epoch 1, step 1"),
    (["train", "good.csv", "--nope"], "--nope"),
    (["train"], "see bpgpu --help"),
    (["tarin"], "tarin"),
    (["predict", "none.safetensors", "good.csv"], "none.safetensors: No such file"),
    (["predict", "plain.safetensors", "good.csv", "--out", "no/p.csv"], "must exist; make it with: mkdir -p no"),
    (["predict", "plain.safetensors", "good.csv", "--out", "."], "--out must name a file, got the folder"),
    (["predict", "good.csv", "words.csv"], "good.csv is not a whole safetensors file"),
    (["predict", "plain.safetensors", "good.csv"], "was not written by 'bpgpu train'"),
    (["gradcheck", "--dtype", "int8"], "dtype must be 'float32' or 'float64'"),
    (["gradcheck", "--backend", "tpu"], "backend must be one of"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), ERRORS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_errors_are_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    bad_tables(tmp_path)
    code, out, err = run(*arguments)
    last = err.splitlines()[-1]
    assert code == 2
    assert message in last
    assert last.startswith("bpgpu: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    if "not finite" not in message:  # all but that one come up before training begins
        assert out == ""


def test_predict_names_missing_columns_and_unsuitable_options(run, tmp_path):
    bad_tables(tmp_path)
    run("train", "good.csv", "--epochs", "1", "--out", "m.safetensors")
    run("train", "good.csv", "--epochs", "1", "--task", "regression", "--out", "r.safetensors")
    run("train", "good.csv", "--epochs", "1", "--validation", "one_row.csv", "--out", "f.safetensors")
    for arguments, message in (
        (["m.safetensors", "one_column.csv"], "the model needs the columns 'x'; missing: 'x'; there are 'y'"),
        (["m.safetensors", "digits"], "missing: 'x'; there are 'pixel_0_0'"),
        (["m.safetensors", "one_row.csv", "--held-out"], "--held-out needs the training table, of 20 rows"),
        (["f.safetensors", "good.csv", "--held-out"], "--held-out needs a model that held out rows of its table"),
        (["m.safetensors", "large.csv"], "large.csv: these columns have entries too large for float32: 'x'"),
        (["r.safetensors", "good.csv", "--probabilities"], "needs a classifier"),
    ):
        code, _, err = run("predict", *arguments)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


def test_a_failed_training_leaves_an_older_model_alone(run, tmp_path):
    bad_tables(tmp_path)
    run("train", "good.csv", "--epochs", "1", "--out", "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    code, _, _ = run("train", "good.csv", "--optimizer", "sgd", "--learning-rate", "1e38", "--out", "m.safetensors")
    assert code == 2
    assert (tmp_path / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["/proc/m.safetensors", "/proc/curve.png"])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_found_before_training(run, tmp_path, out):
    bad_tables(tmp_path)
    option = "--plot" if out.endswith("png") else "--out"
    code, stdout, err = run("train", "good.csv", option, out)
    assert (code, stdout, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"bpgpu: {option} must name a file that can be written, got {out}: ")


def test_looking_whether_files_can_be_written_leaves_nothing_behind(run, tmp_path):
    bad_tables(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, _ = run("train", "good.csv", "--out", "m.safetensors", "--plot", "p.png", "--learning-rate", "0")
    assert code == 2
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_predict_would_refuse_is_not_written(run, tmp_path):
    rng = np.random.default_rng(0)
    tiny = pd.DataFrame({"x": 1e-42 * rng.standard_normal(100), "y": rng.integers(0, 2, 100)})
    tiny.to_csv("tiny.csv", index=False)
    code, out, err = run("train", "tiny.csv", "--epochs", "1", "--out", "m.safetensors", "--plot", "p.png")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "too large for float32" in err
    assert "--dtype float64" in err
    assert "trained  1 epochs" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "tiny.csv"]
    code, _, err = run("train", "tiny.csv", "--epochs", "1", "--out", "m.safetensors", "--dtype", "float64")
    assert (code, err) == (0, "")
    code, _, err = run("predict", "m.safetensors", "tiny.csv")
    assert code == 0


# Other commands


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    for part in (bpgpu.__version__, np.__version__, "blas", "numpy", "cupy", "auto: the fastest that runs here"):
        assert part in out
    code, out, _ = run("info", "--json")
    assert [entry["name"] for entry in last_json(out)["backends"]] == [info.name for info in bpgpu.backends()]


def test_gradcheck_passes_and_can_fail(run, monkeypatch):
    some = [case for case in gradcheck.CASES if case.depth == 2 and case.outputs == 1]
    monkeypatch.setattr(gradcheck, "CASES", some)
    code, out, err = run("gradcheck", "--json", "--dtype", "double")
    result = last_json(out)
    assert "networks  " not in err  # the bar is for terminals
    assert result["dtype"] == "float64"
    assert (code, result["failed"]) == (0, 0)
    assert result["checked"] > 1000
    assert result["max_error"] < 1e-5

    broken = bpgpu.get_backend("numpy")
    monkeypatch.setattr(broken, "penalty", lambda weights, decay: 0.0, raising=False)
    code, out, err = run("gradcheck", "--backend", "numpy", "--json")
    assert code == 1
    assert "FAILED GradientCase(activation=" in err
    assert "networks failed" in err
    assert last_json(out)["max_error"] is None


def test_hardware_report_without_a_gpu_says_why_and_writes_nothing(run, tmp_path):
    if any(info.name == "cupy" and info.available for info in bpgpu.backends()):
        pytest.skip("this machine has a GPU; tests/proof/test_hardware_report.py covers the report")
    code, out, err = run("hardware-report")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "backend 'cupy' cannot run here" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [[], ["train"], ["predict"], ["export"], ["info"], ["gradcheck"], ["hardware-report"]]
)
def test_help_answers(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: bpgpu" in out


def test_the_installed_command_and_python_m_are_the_same():
    installed = shutil.which("bpgpu", path=Path(sys.executable).parent)
    for command in ([installed], [sys.executable, "-m", "bpgpu"]):
        found = subprocess.run([*command, "train", "none.csv"], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr == "bpgpu: none.csv: No such file or directory\n"


def test_without_the_cli_packages_the_command_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from bpgpu.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == 'bpgpu: the command line needs typer: pip install "bpgpu[cli]"\n'


def test_text_for_people_never_fails_and_predictions_are_utf_8(tmp_path):
    rows = {"x": np.arange(40.0), "目标": np.where(np.arange(40) < 20, "α", "б")}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)

    def bpgpu_command(*arguments):
        command = [sys.executable, "-m", "bpgpu", *arguments]
        environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)

    found = bpgpu_command("train", "t.csv", "--epochs", "1", "--out", "m.safetensors")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"target   \\u76ee\\u6807: classification" in found.stdout
    found = bpgpu_command("predict", "m.safetensors", "t.csv", "--probabilities")
    assert found.returncode == 0
    lines = found.stdout.decode("utf-8").split("\n")
    assert (lines[0], len(lines)) == ("row,目标,p(α),p(б)", 42)
    assert b"\r" not in found.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((200_000, 2)))
    net = bpgpu.MLP([1, 1], "identity", "squared_error")
    net.metadata = {"columns": ["x0"], "target": "t", "task": "regression", "classes": []}
    net.save(tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "bpgpu", "predict", "m.safetensors", "t.npy"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


@pytest.mark.parametrize("command", [["gradcheck"], ["info"], ["train", "digits"], ["predict", "m", "digits"]])
def test_an_interrupted_command_says_so_once(capfd, monkeypatch, command):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    for module, name in ((bpgpu, "get_backend"), (bpgpu, "backends"), (preparing, "read_table"), (bpgpu.MLP, "load")):
        monkeypatch.setattr(module, name, interrupt)
    monkeypatch.setattr(sys, "argv", ["bpgpu", *command])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert capfd.readouterr() == ("", "bpgpu: interrupted\n")


def test_ctrl_c_while_packages_load_is_no_traceback():
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from bpgpu.__main__ import main; main()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "bpgpu: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_the_model_and_exits_with_130(tmp_path):
    announce = """
import signal, sys
from bpgpu import __main__
from bpgpu.training import callbacks
def on_epoch_end(self, training):
    print("finished", training.epoch, file=sys.stderr, flush=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
callbacks.ProgressBar.on_epoch_end = on_epoch_end
__main__.main()
"""
    arguments = ["train", "digits", "--epochs", "1000000", "--out", "m.safetensors", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", announce, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "dumb"},
    )
    for line in process.stderr:
        if line == "finished 5\n":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("interrupted") == 1  # in the report
    assert "(interrupted)" in err
    assert "Traceback" not in err
    result = last_json(out)
    assert 5 <= result["epochs"] < 1_000_000
    net = bpgpu.MLP.load(tmp_path / "m.safetensors")
    assert net.epoch >= result["epochs"]
    X, y = load_digits()
    assert np.mean(net.predict(X).argmax(axis=1) == y) > 0.8


def test_targets_far_from_zero_keep_their_digits(run, tmp_path):
    """Such as Julian days: float32 has 2459000 and 2459000.25, and nothing in between."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 2))
    table = pd.DataFrame(x, columns=["a", "b"]).assign(day=2459000 + 0.02 * (x[:, 0] + x[:, 1]))
    table.to_csv(tmp_path / "days.csv", index=False)
    code, out, error = run("train", "days.csv", "--hidden", "8", "--epochs", "60", "--out", "m.safetensors", "--json")
    assert code == 0 and json.loads(out)["test_metric"] > 0.95
    assert "the model is kept in float64" in error
    code, out, error = run("predict", "m.safetensors", "days.csv", "--out", "p.csv", "--json")
    assert code == 0 and json.loads(out)["test_metric"] > 0.95
    assert np.abs(pd.read_csv(tmp_path / "p.csv")["day"] - table["day"]).max() < 0.02
