"""The options of training, and the metrics beside those of a constant answer."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import confusion_matrix, f1_score, mean_absolute_error, r2_score, roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight

import bpgpu
from bpgpu.cli import metrics, splitting
from bpgpu.cli.targets import Target, Targets


def last_json(out):
    return json.loads(out.splitlines()[-1])


@pytest.fixture
def rare(tmp_path):
    """Two classes, one of them rare and hard to tell."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(400) < 0.1, "yes", "no")
    table = pd.DataFrame({"a": rng.standard_normal(400) + (y == "yes"), "b": rng.standard_normal(400), "y": y})
    table.to_csv(tmp_path / "rare.csv", index=False)
    return table


# Metrics


@pytest.mark.parametrize("classes", [["no", "yes"], ["a", "b", "c"], list(range(7))])
def test_metrics_of_classes_are_scikit_learns(classes):
    rng = np.random.default_rng(1)
    goal = Target("y", "classification", classes)
    encoded = rng.integers(0, len(classes), 200)
    outputs = rng.random((200, goal.outputs))
    outputs = outputs / outputs.sum(axis=1, keepdims=True) if goal.outputs > 1 else outputs
    codes = outputs.argmax(axis=1) if goal.outputs > 1 else (outputs[:, 0] > 0.5).astype(int)
    found = metrics.TargetMetrics.of(goal, outputs, encoded, 1)
    area = roc_auc_score(encoded, outputs if goal.outputs > 1 else outputs[:, 0], multi_class="ovr")
    right = {"accuracy": np.mean(codes == encoded), "f1_macro": f1_score(encoded, codes, average="macro")}
    assert found.metrics == pytest.approx(right | {"roc_auc": area})
    assert found.baseline["accuracy"] == np.mean(encoded == 1)
    assert found.baseline["roc_auc"] == 0.5
    np.testing.assert_array_equal(found.confusion, confusion_matrix(encoded, codes))


def test_metrics_of_numbers_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth, outputs = rng.standard_normal(100), rng.standard_normal((100, 1))
    found = metrics.TargetMetrics.of(Target("y", "regression", []), outputs, truth, 0.25)
    assert found.metrics == pytest.approx(
        {"r2": r2_score(truth, outputs[:, 0]), "mae": mean_absolute_error(truth, outputs[:, 0])}
    )
    constant = DummyRegressor(strategy="constant", constant=0.25).fit(outputs, truth).predict(outputs)
    assert found.baseline == pytest.approx(
        {"r2": r2_score(truth, constant), "mae": mean_absolute_error(truth, constant)}
    )
    assert found.confusion is None


def test_what_is_not_defined_is_null():
    goal = Target("y", "classification", ["a", "b", "c"])
    outputs = np.full((4, 3), 1 / 3)
    assert metrics.measure(goal, outputs, np.array([0, 1, 1, 0]))["roc_auc"] is None
    outputs[0] = np.nan
    assert metrics.measure(goal, outputs, np.array([0, 1, 2, 0]))["roc_auc"] is None
    numbers = Target("y", "regression", [])
    assert metrics.measure(numbers, np.ones((3, 1)), np.ones(3)) == {"r2": None, "mae": 0}
    many = Target("y", "classification", list(range(metrics.MAX_CONFUSION + 1)))
    assert metrics.confusion(many, np.eye(31), np.arange(31)) is None


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (["a,b", "c"], '"a,b=2",c=3'),
        (["a,b", "c"], 'c=3,"a,b"=2'),
        (["a=1,b=2", "c:d=e"], '"a=1,b=2=2",c:d=e=3'),
        (['"a", b', "two\nlines"], '"""a"", b=2","two\nlines=3"'),
    ],
)
def test_labels_with_commas_have_weights_too(labels, given):
    goal = Targets([Target("y", "classification", labels)])
    np.testing.assert_array_equal(metrics.class_weights(goal, np.array([0, 1, 1]), given), [2, 3, 3])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a,b=2", "must be 'balanced' or like \"a,b=1\",c=5, got 'a,b=2'"),
        ("", "must be 'balanced' or like \"a,b=1\",c=5, got ''"),
        ("c\n=2", "a label of --class-weight must be one of 'a,b', 'c', got 'c\\n'"),
        ("c=1,c=2", "--class-weight must name each label once, got 'c' twice"),
    ],
)
def test_class_weights_that_are_refused_say_how_to_write_the_labels(given, message):
    goal = Targets([Target("y", "classification", ["a,b", "c"])])
    with pytest.raises(ValueError) as error:
        metrics.class_weights(goal, np.array([0, 1]), given)
    assert message in str(error.value)


@pytest.mark.parametrize("answer", [None, "no", True, 2, -1, 0.5, float("nan"), [0]])
def test_a_model_file_may_say_anything_of_the_constant_answer(answer):
    goal = Target("y", "classification", ["a", "b"])
    found = metrics.TargetMetrics.of(goal, np.ones((2, 1)), np.array([0, 1]), answer)
    assert (found.answer, found.baseline) == (None, {})


def test_train_and_predict_report_the_same_metrics(run, rare):
    _, out, err = run("train", "rare.csv", "--out", "m.safetensors", "--epochs", "5", "--json")
    trained = last_json(out)
    assert list(trained["metrics"]) == ["accuracy", "f1_macro", "roc_auc"]
    code, out, shown = run("predict", "m.safetensors", "rare.csv", "--held-out", "--json")
    names = ["metric", "test_metric", "metrics", "baseline", "confusion_matrix"]
    assert code == 0
    assert [last_json(out)[name] for name in names] == [trained[name] for name in names]
    assert trained["test_metric"] == trained["metrics"]["accuracy"]
    assert np.sum(trained["confusion_matrix"]) == 80
    for part in ("f1_macro 0.", "roc_auc 0.", "if the answer were always 'no'"):
        assert part in err
        assert part in shown


def test_a_useless_model_shows(run, tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": rng.standard_normal(300), "y": np.where(rng.random(300) < 0.8, "no", "yes"), "z": rng.random(300)}
    )
    held_out = np.random.default_rng([0, 3]).permutation(300)[:60]
    train, test = table.drop(held_out), table.loc[held_out]
    for target, other, dummy, name in (
        ("y", "z", DummyClassifier(strategy="most_frequent"), "accuracy"),
        ("z", "y", DummyRegressor(), "r2"),
    ):
        table.drop(columns=other).to_csv("t.csv", index=False)
        _, out, err = run("train", "t.csv", "--target", target, "--epochs", "3", "--learning-rate", "1e-5", "--json")
        result = last_json(out)
        assert result["baseline"][name] == pytest.approx(
            dummy.fit(train[["x"]], train[target]).score(test[["x"]], test[target])
        )
        assert f"note     {name} is no better than the baseline" in err
    table.assign(z=table["x"]).drop(columns="y").to_csv("t.csv", index=False)
    _, out, err = run("train", "t.csv", "--epochs", "20", "--json")
    assert "note" not in err


# Options


def test_the_held_out_part_has_each_class_in_its_proportion(run, tmp_path):
    kinds = np.repeat(["a", "b", "c"], [300, 90, 10])
    rng = np.random.default_rng(0)
    pd.DataFrame({"x": rng.standard_normal(400), "y": rng.permutation(kinds)}).to_csv("t.csv", index=False)
    code, out, _ = run("train", "t.csv", "--stratify", "--out", "m.safetensors", "--epochs", "1", "--json")
    assert (code, np.sum(last_json(out)["confusion_matrix"], axis=1).tolist()) == (0, [60, 18, 2])
    trained = last_json(out)["test_metric"]
    _, out, _ = run("predict", "m.safetensors", "t.csv", "--held-out", "--json")
    assert (last_json(out)["rows"], last_json(out)["test_metric"]) == (80, trained)
    _, out, _ = run("train", "t.csv", "--epochs", "1", "--json")
    assert np.sum(last_json(out)["confusion_matrix"], axis=1).tolist() != [60, 18, 2]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_a_stratified_split_is_one(fraction):
    codes = np.random.default_rng(0).choice(4, 203, p=[0.6, 0.3, 0.09, 0.01])
    train, test = splitting.split(203, fraction, 5, codes)
    assert sorted([*train, *test]) == list(range(203))
    assert len(test) == round(203 * fraction)
    sizes, held_out = np.bincount(codes, minlength=4), np.bincount(codes[test], minlength=4)
    assert np.abs(held_out - sizes * fraction).max() <= 1.5
    assert not np.array_equal(np.sort(splitting.split(203, fraction, 6, codes)[1]), np.sort(test))


def test_class_weights_are_sample_weights(run, rare):
    goal = Targets([Target("y", "classification", ["no", "yes"])])
    codes = (rare["y"] == "yes").to_numpy().astype(int)
    np.testing.assert_allclose(metrics.class_weights(goal, codes, "balanced"), compute_sample_weight("balanced", codes))
    np.testing.assert_array_equal(metrics.class_weights(goal, codes, "yes=5"), 1 + 4 * codes)
    np.testing.assert_array_equal(metrics.class_weights(goal, codes, "no=0.5,yes=5"), 0.5 + 4.5 * codes)
    odd = Targets([Target("y", "classification", ["a=b", 1.5])])
    np.testing.assert_array_equal(metrics.class_weights(odd, np.array([0, 1]), "a=b=3"), [3, 1])
    recalls = []
    for options in ([], ["--class-weight", "balanced"]):
        _, out, _ = run("train", "rare.csv", "--epochs", "20", "--json", *options)
        recalls.append(last_json(out)["confusion_matrix"][1][1])
    assert recalls[1] > recalls[0]


def test_momentum_and_clip_norm_are_the_optimizers(run, houses, monkeypatch):
    seen = []
    fit = bpgpu.MLP.fit

    def spy(net, *arguments, **options):
        seen.append(options["optimizer"])
        return fit(net, *arguments, **options)

    monkeypatch.setattr(bpgpu.MLP, "fit", spy)
    options = ["--epochs", "1", "--target", "price", "--clip-norm", "0.5"]
    run("train", houses, "--optimizer", "sgd", "--momentum", "0.9", "--learning-rate", "0.01", *options)
    run("train", houses, *options)
    assert seen == [bpgpu.SGD(0.01, momentum=0.9, clip_norm=0.5), bpgpu.Adam(clip_norm=0.5)]


def test_early_stopping_keeps_the_best_weights(run, rare):
    options = [
        "--epochs",
        "500",
        "--learning-rate",
        "0.01",
        "--early-stopping",
        "7",
        "--out",
        "m.safetensors",
        "--plot",
        "p.svg",
    ]
    code, out, err = run("train", "rare.csv", *options, "--json")
    result = last_json(out)
    assert code == 0
    assert result["epochs"] < 500
    assert result["stop_reason"].startswith("early stopping: validation_loss has not improved for 7 epochs; best was ")
    assert f"stopped  {result['stop_reason']}" in err
    held_out = np.random.default_rng([0, 3]).permutation(400)[:80]
    X, y = rare[["a", "b"]].to_numpy()[held_out], (rare["y"] == "yes").to_numpy()[held_out]
    best = float(result["stop_reason"].split("best was ")[1].split()[0])
    assert bpgpu.MLP.load("m.safetensors").loss(X, y.astype(int)) == pytest.approx(best, rel=1e-4)
    assert result["validation_loss"] > best * 1.001  # the last epoch's, which others were better than


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--momentum", "0.9"], "--momentum needs --optimizer sgd, got adam"),
        (["--optimizer", "sgd", "--momentum", "1"], "momentum must be a number in [0, 1)"),
        (["--clip-norm", "0"], "clip_norm must be a finite number above 0"),
        (["--early-stopping", "0"], "--early-stopping must be at least 1, got 0"),
        (
            ["--stratify", "--validation", "other.csv"],
            "--stratify needs a part of the rows to hold out, got the file other.csv",
        ),
        (["--stratify", "--target", "a"], "--stratify needs classes, but 'a' holds numbers"),
        (
            ["--class-weight", "balanced", "--target", "a"],
            "--class-weight needs one target of classes, but 'a' holds numbers",
        ),
        (["--class-weight", "x"], "--class-weight must be 'balanced' or like no=1,yes=5, got 'x'"),
        (["--class-weight", "yess=3"], "did you mean 'yes'?"),
        (["--class-weight", "yes=0"], "the --class-weight of 'yes' must be a finite number above 0"),
        (["--class-weight", "yes=many"], "the --class-weight of 'yes' must be"),
    ],
)
def test_options_that_cannot_be_are_refused(run, rare, tmp_path, options, message):
    rare.drop(columns="y" if "a" in options else []).to_csv("rare.csv", index=False)
    rare.to_csv("other.csv", index=False)
    code, out, err = run("train", "rare.csv", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


# Predictions as JSON


def test_json_without_a_file_has_the_predictions(run, rare):
    run("train", "rare.csv", "--epochs", "1", "--out", "m.safetensors")
    code, out, _ = run("predict", "m.safetensors", "rare.csv", "--probabilities", "--held-out", "--json")
    result = json.loads(out)  # all of standard output
    assert code == 0
    code, out, _ = run(
        "predict", "m.safetensors", "rare.csv", "--probabilities", "--held-out", "--out", "p.csv", "--json"
    )
    assert "predictions" not in json.loads(out)
    written = pd.read_csv("p.csv")
    pd.testing.assert_frame_equal(pd.DataFrame(result["predictions"]), written, check_dtype=False)


# What every command line has


def test_version_and_short_help(run):
    assert run("--version") == (0, f"bpgpu {bpgpu.__version__}\n", "")
    for arguments in ([], ["-h"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert "Usage: bpgpu" in out
        assert out == run("--help")[1]
    assert run("train", "-h") == run("train", "--help")


def test_help_is_printed_as_it_is_written(run):
    _, out, _ = run("export", "--help")
    assert 'pip install "bpgpu[onnx]"' in " ".join(out.split())
    _, out, _ = run("train", "--help")
    assert "[128,64; for digits 512]" in " ".join(out.split())


def test_the_shell_completes_commands_and_options():
    for words, completed in (("bpgpu tr", "train"), ("bpgpu train --cl", "--class-weight")):
        environment = os.environ | {
            "_BPGPU_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        command = [sys.executable, "-m", "bpgpu"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, completed in done.stdout.split()) == (0, True), done


def test_several_targets_are_measured_one_by_one(run, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200)
    table = pd.DataFrame({"x": x, "u": x + 0.1 * rng.standard_normal(200), "v": rng.standard_normal(200)})
    table.to_csv("t.csv", index=False)
    options = ["--target", "u", "--target", "v", "--epochs", "20", "--out", "m.safetensors", "--json"]
    _, out, err = run("train", "t.csv", *options)
    result = last_json(out)
    each = [result["targets"][name] for name in "uv"]
    assert result["metrics"] == pytest.approx({name: np.mean([one[name] for one in each]) for name in ("r2", "mae")})
    assert (result["test_metric"], result["confusion_matrix"]) == (result["metrics"]["r2"], None)
    assert "held-out rows, u\n" in err
    _, out, _ = run("predict", "m.safetensors", "t.csv", "--held-out", "--json")
    assert last_json(out)["targets"] == result["targets"]
    pd.DataFrame({"x": x, "p": x > 0, "q": rng.random(200) < 0.5}).to_csv("t.csv", index=False)
    options = ["--target", "p", "--target", "q", "--stratify", "--epochs", "1", "--json"]
    code, out, _ = run("train", "t.csv", *options)
    assert (code, list(last_json(out)["targets"])) == (0, ["p", "q"])
    code, _, err = run("train", "t.csv", "--target", "p", "--target", "q", "--class-weight", "balanced")
    assert (code, "is one of 2 targets" in err) == (2, True)


def test_labels_are_printed_as_they_are(run, tmp_path):
    labels = np.array(["[/a]", "[bold]b[/bold]", ":smile:" + "x" * 100])
    kinds = np.arange(90) % 3
    rng = np.random.default_rng(0)
    pd.DataFrame({"x": kinds + 0.1 * rng.standard_normal(90), "y": labels[kinds]}).to_csv("t.csv", index=False)
    code, out, err = run("train", "t.csv", "--epochs", "200", "--stratify")
    assert (code, err) == (0, "")
    matrix = [line.strip() for line in out.partition("confusion, ")[2].splitlines()[1:4]]
    assert matrix == [":smile:xxxxxxxxxxxxx  6 0 0", "[/a]                  0 6 0", "[bold]b[/bold]        0 0 6"]
