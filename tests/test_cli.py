"""The command line, run as a user runs it: output, files, errors of one line, Ctrl-C."""

import json
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
from bpgpu import cli, tables
from bpgpu.data import load_digits

FIELDS = ["backend", "device", "dtype", "parameters", "epochs", "train_loss", "validation_loss", "metric"]
FIELDS += ["test_metric", "seconds", "samples_per_second", "model"]


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Return a function that runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return command


@pytest.fixture
def flowers(tmp_path):
    """A table with string labels that a small network can tell apart, on columns of very different scale."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 240)
    table = pd.DataFrame(
        {
            "length": 5 + kind + 0.4 * rng.standard_normal(240),
            "mass": 1e3 * (kind == 1) + 300 * rng.standard_normal(240),
            "count": rng.integers(0, 5, 240),
            "fresh": rng.random(240) < 0.5,
            "species": np.array(["aster", "iris", "rose"])[kind],
        }
    )
    path = tmp_path / "flowers.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def houses(tmp_path):
    """A regression on raw prices, far from zero."""
    rng = np.random.default_rng(1)
    rooms, area = rng.integers(1, 9, 300), rng.uniform(20, 200, 300)
    price = 50_000 + 20_000.0 * rooms + 1_500 * area + 5_000 * rng.standard_normal(300)
    path = tmp_path / "houses.parquet"
    pd.DataFrame({"price": price, "rooms": rooms, "area": area}).to_parquet(path)
    return path


def last_json(out):
    return json.loads(out.splitlines()[-1])


def test_train_digits_is_the_main_job(run):
    code, out, err = run("train", "digits", "--json")
    assert code == 0
    result = last_json(out)
    assert list(result) == FIELDS
    assert result["test_metric"] >= 0.97
    assert result["seconds"] < 60
    assert result | {"metric": "accuracy", "epochs": 50, "dtype": "float32", "model": None} == result
    assert result["parameters"] == 64 * 512 + 512 + 512 * 10 + 10
    assert result["validation_loss"] < 0.2
    assert len(out.splitlines()) == 1  # everything else went to standard error
    for part in ("1438 rows to train on, 359 held out", "10 classes", "the fastest that runs here", "MiB", "epoch"):
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
    assert last_json(out) == {"rows": 48, "metric": "accuracy", "test_metric": reported, "out": "p.csv"}
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
    scaling = tables.Standardisation.learn(X)
    np.testing.assert_allclose(scaling.apply(X)[:, :2].std(axis=0), 1)
    np.testing.assert_array_equal(scaling.apply(X)[:, 2], 0)
    net = bpgpu.MLP([3, 4, 1], ["tanh", "identity"], "squared_error", dtype="float64")
    before = net.predict(scaling.apply(X))
    scaling.fold_into_input(net)
    np.testing.assert_allclose(net.predict(X), before, rtol=1e-9)
    tables.Standardisation(np.array([10.0]), np.array([3.0])).fold_into_output(net)
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
        "numpy on CPU",
        "MiB",
        "trained  2 epochs",
        "accuracy",
        "m.safetensors",
    ):
        assert part in out
    assert "epoch" in err


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
    (["train", "text.csv"], "these columns are not numeric: name, when"),
    (["train", "holes.csv"], "these columns have missing or infinite entries: x"),
    (["train", "target_holes.csv"], "the target 'y' has 1 missing entries"),
    (["train", "one_class.csv"], "must have two classes at least, got only 1"),
    (["train", "one_column.csv"], "at least one column besides the target"),
    (["train", "one_row.csv", "--task", "regression"], "of 1 rows leaves a part empty"),
    (["train", "no_rows.csv"], "at least one row"),
    (["train", "words.csv", "--task", "regression"], "the target 'y' holds text"),
    (["train", "empty.csv"], "empty.csv: cannot be read as a table"),
    (["train", "binary.csv"], "binary.csv: cannot be read as a table"),
    (["train", "broken.parquet"], "broken.parquet: cannot be read as a table"),
    (["train", "broken.npz"], "broken.npz: cannot be read as a table"),
    (["train", "objects.npy"], "objects.npy: cannot be read as a table"),
    (["train", "no_X.npz"], "no_X.npz: cannot be read as a table"),
    (["train", "x.txt"], "must end in .csv, .parquet, .npy or .npz"),
    (["train", "good.csv", "--target", "z"], "--target must name a column, got 'z'; there are x, y"),
    (["train", "good.csv", "--task", "clasification"], "did you mean 'classification'?"),
    (["train", "good.csv", "--activation", "rleu"], "did you mean 'relu'?"),
    (["train", "good.csv", "--optimizer", "adm"], "did you mean 'adam'?"),
    (["train", "good.csv", "--backend", "cuppy"], "did you mean 'cupy'?"),
    (["train", "good.csv", "--hidden", "a,b"], "--hidden must be sizes with commas"),
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
    (["train", "good.csv", "--validation", "unseen.csv"], "labels that training did not see: 7"),
    (["train", "good.csv", "--dtype", "float16"], "dtype must be 'float32' or 'float64'"),
    (["train", "good.csv", "--seed", "-1"], "--seed must be at least 0"),
    (["train", "good.csv", "--out", "no/where.safetensors"], "must exist; make it with: mkdir -p"),
    (["train", "good.csv", "--plot", "no/where.png"], "must exist; make it with: mkdir -p"),
    (["train", "good.csv", "--optimizer", "sgd", "--learning-rate", "1e38"], "is not finite in epoch 2, step 1"),
    (["train", "good.csv", "--nope"], "--nope"),
    (["train"], "see bpgpu --help"),
    (["tarin"], "tarin"),
    ([], "see bpgpu --help"),
    (["predict", "none.safetensors", "good.csv"], "none.safetensors: No such file"),
    (["predict", "good.csv", "good.csv"], "good.csv is not a whole safetensors file"),
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
    if "not finite" not in message:  # that one comes up after training has begun to show itself
        assert len(err.splitlines()) == 1
        assert out == ""


def test_predict_names_missing_columns_and_unsuitable_options(run, tmp_path):
    bad_tables(tmp_path)
    run("train", "good.csv", "--epochs", "1", "--out", "m.safetensors")
    run("train", "good.csv", "--epochs", "1", "--task", "regression", "--out", "r.safetensors")
    for arguments, message in (
        (["m.safetensors", "one_column.csv"], "the model needs the columns x; missing: x"),
        (["m.safetensors", "digits"], "missing: x"),
        (["m.safetensors", "one_row.csv", "--held-out"], "--held-out needs the table of training, of 20 rows"),
        (["m.safetensors", "unseen.csv"], "labels that training did not see: 7"),
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


# Other commands


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    for part in (bpgpu.__version__, np.__version__, "blas", "numpy", "cupy", "auto: the fastest that runs here"):
        assert part in out
    code, out, _ = run("info", "--json")
    assert [entry["name"] for entry in last_json(out)["backends"]] == [info.name for info in bpgpu.backends()]


def test_gradcheck_passes_and_can_fail(run, monkeypatch):
    def some(backend, dtype):
        for case, report in real(backend, dtype):
            if case.depth == 2 and case.outputs == 1:
                yield case, report

    real = cli.check_table
    monkeypatch.setattr(cli, "check_table", some)
    code, out, _ = run("gradcheck", "--json")
    result = last_json(out)
    assert (code, result["failed"]) == (0, 0)
    assert result["checked"] > 1000
    assert result["max_error"] < 1e-5

    broken = bpgpu.get_backend("numpy")
    monkeypatch.setattr(broken, "penalty", lambda weights, decay: 0.0, raising=False)
    code, out, _ = run("gradcheck", "--backend", "numpy")
    assert code == 1
    assert "FAILED Case(activation=" in out
    assert "networks failed" in out


@pytest.mark.parametrize("command", [[], ["train"], ["predict"], ["info"], ["gradcheck"]])
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_the_model_and_exits_with_130(tmp_path):
    announce = (  # the bar shows nothing before the end where there is no terminal
        "import sys; from bpgpu import callbacks, cli; shown = callbacks.ProgressBar.on_epoch_end\n"
        "def on_epoch_end(self, training):\n"
        "    shown(self, training); print('finished', training.epoch, file=sys.stderr, flush=True)\n"
        "callbacks.ProgressBar.on_epoch_end = on_epoch_end; sys.exit(cli.run(sys.argv[1:]))"
    )
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
    assert "interrupted" in err
    assert "Traceback" not in err
    result = last_json(out)
    assert 5 <= result["epochs"] < 1_000_000
    net = bpgpu.MLP.load(tmp_path / "m.safetensors")
    assert net.epoch >= result["epochs"]
    X, y = load_digits()
    assert np.mean(net.predict(X).argmax(axis=1) == y) > 0.8
