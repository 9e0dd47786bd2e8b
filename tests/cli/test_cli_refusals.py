"""What the command line refuses because nobody can mean it, and outputs and interrupts at the worst moment."""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import bpgpu

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs limits, links and signals of POSIX")


@pytest.fixture
def table(tmp_path):
    """A table with columns a, b and the target y, 40 rows, and its model: the table's path."""
    path = tmp_path / "t.csv"
    pd.DataFrame({"a": np.arange(40) * 1.5, "b": np.arange(40) % 7, "y": np.arange(40) % 2}).to_csv(path, index=False)
    net = bpgpu.MLP([2, 1], "sigmoid", "binary_cross_entropy")
    net.metadata = {"columns": ["a", "b"], "target": "y", "task": "classification", "classes": [0, 1]}
    net.save(tmp_path / "m.safetensors")
    return path


def refused(result, *parts):
    code, _, err = result
    assert code == 2, err
    assert len(err.splitlines()) == 1
    for part in parts:
        assert part in err


@POSIX
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("options", [["--probabilities"], ["--json"]], ids=" ".join)
def test_standard_output_that_is_full_is_an_error(table, unbuffered, options):
    import resource

    command = [sys.executable, "-m", "bpgpu", "predict", "m.safetensors", "t.csv", *options, "--backend", "numpy"]
    with (table.parent / "out").open("wb") as out:
        done = subprocess.run(
            command,
            cwd=table.parent,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == "bpgpu: standard output: File too large"
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("training", "predicting", "option"),
    [
        (["--thousands", "'"], [], "--thousands"),
        ([], ["--thousands", "'"], "--thousands"),
        (["--na", "x", "--na", "z"], ["--na", "x"], "--na"),
        (["--encoding", "cp1252"], [], "--encoding"),
        ([], ["--comment", "#"], "--comment"),
        (["--sep", "tab"], ["--sep", "space"], "--sep"),
    ],
)
def test_held_out_rows_are_read_as_training_read_them(run, tmp_path, training, predicting, option):
    rows = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40) % 7, "y": np.arange(40) % 2})
    rows.to_csv(tmp_path / "t.csv", index=False, sep="\t" if "--sep" in training else ",")
    model = ["--hidden", "", "--epochs", 1, "--backend", "numpy", "--out", "m.safetensors"]
    code, _, err = run("train", "t.csv", *training, *model)
    assert code == 0, err
    predict = ["predict", "m.safetensors", "t.csv", "--held-out", "--backend", "numpy"]
    assert run(*predict, *training)[0] == 0
    assert run(*predict, *training[2:], *training[:2])[0] == 0  # in whatever order
    refused(run(*predict, *predicting), "--held-out", f"{option} was ")


def test_two_readings_of_the_same_bytes_are_told_apart(run, tmp_path):
    lines = [f"{i},{i:03d};{i % 5};{i % 2}" for i in range(1, 41)]
    (tmp_path / "t.csv").write_text("a;b;y\n" + "\n".join(lines) + "\n")
    options = ["--hidden", "", "--epochs", 1, "--backend", "numpy", "--out", "m.safetensors"]
    assert run("train", "t.csv", "--thousands", ",", *options)[0] == 0
    predict = ["predict", "m.safetensors", "t.csv", "--held-out", "--backend", "numpy"]
    refused(run(*predict, "--decimal", ","), "--thousands was ','", "--decimal was not given")
    assert run(*predict, "--thousands", ",")[0] == 0


@POSIX
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["t.csv", "t.csv"], ["DATA", "t.csv"]),
        (["t.csv", "hard.csv"], ["t.csv", "hard.csv"]),
        (["*t.csv", "./t.csv"], ["t.csv"]),
        (["t.csv", "--validation", "soft.csv"], ["DATA", "--validation", "t.csv", "soft.csv"]),
        (["digits", "--validation", "digits"], ["DATA", "--validation", "digits"]),
    ],
)
def test_rows_that_train_are_not_held_out_too(run, table, arguments, names):
    os.link(table, table.parent / "hard.csv")
    (table.parent / "soft.csv").symlink_to("t.csv")
    refused(run("train", *arguments, "--epochs", 1, "--hidden", "", "--backend", "numpy"), *names)


@POSIX
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize(
    "command", [["train", "t.csv", "--epochs", "1", "--out"], ["export", "m.safetensors"]], ids=lambda words: words[0]
)
def test_a_model_does_not_go_to_standard_output(run, table, command, name):
    if name.startswith("/proc") and not os.path.exists(name):  # noqa: PTH110
        pytest.skip("no /proc")
    refused(
        run(*command, name),
        "OUT must" if command[0] == "export" else "--out must",
        f"got {name}" if name == "-" else name,
    )
    assert not (table.parent / "-").exists()


def test_predictions_go_to_standard_output_without_a_name(run, table):
    refused(run("predict", "m.safetensors", "t.csv", "--out", "-"), "--out must", "leave it out")
    assert not (table.parent / "-").exists()


@pytest.mark.parametrize(
    ("options", "both"),
    [
        (["--drop", "a", "--encode", "a"], ("--drop", "--encode")),
        (["--id", "a", "--encode", "a"], ("--id", "--encode")),
        (["--target", "y", "--encode", "y"], ("--target", "--encode")),
        (["--encode", "auto", "--encode", "y"], ("--target", "--encode")),
    ],
)
def test_a_column_has_one_role(run, table, options, both):
    refused(run("train", "t.csv", "--epochs", 1, "--hidden", "", "--backend", "numpy", *options), *both)


def test_an_option_may_be_repeated(run, table):
    options = ["--drop", "a", "--drop", "a", "--encode", "auto", "--encode", "b", "--encode", "b"]
    code, _, err = run("train", "t.csv", "--epochs", 1, "--hidden", "", "--backend", "numpy", *options)
    assert code == 0, err


@pytest.mark.parametrize("part", ["20%", "20 %", "0,2", "1/5", ".2,"])
def test_a_part_that_is_no_number_is_not_taken_for_a_file(run, table, part):
    refused(run("train", "t.csv", "--validation", part), "--validation must be a fraction", "0.2", part)


def test_a_file_may_be_called_like_a_part(run, table):
    table.rename(table.parent / "20%")
    code, _, err = run("train", "20%", "--validation", "20%")
    assert code == 2
    assert "fraction" not in err


@POSIX
@pytest.mark.parametrize("times", [2, 3, 6])
def test_ctrl_c_may_be_pressed_often(table, times):
    code = f"""
import os, signal, sys
import bpgpu
from bpgpu.__main__ import main

def on_epoch_end(self, training):
    os.kill(os.getpid(), signal.SIGINT)

def interrupted(net, path, save=bpgpu.MLP.save):
    for _ in range({times - 1}):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
    save(net, path)

from bpgpu.cli.outcome import KeepHistory
KeepHistory.on_epoch_end = on_epoch_end
bpgpu.MLP.save = interrupted
sys.argv = "bpgpu train t.csv --hidden= --epochs 5 --backend numpy --out n.safetensors".split()
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=table.parent,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert bpgpu.MLP.load(table.parent / "n.safetensors").epoch == 1


@pytest.mark.parametrize("command", ["info", "train"])
def test_ctrl_c_at_any_end_is_130(command):
    code = f"""
import os, signal, sys
from bpgpu import cli
from bpgpu.__main__ import main

def run(arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)

class Errors:
    def write(self, text):
        os.kill(os.getpid(), signal.SIGINT)
    def flush(self):
        pass

cli.run = run
sys.stderr = Errors() if {command == "info"} else sys.stderr
sys.argv = ["bpgpu"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("index", [False, True])
def test_files_joined_with_their_headers_are_told(run, tmp_path, mark, index):
    rows = pd.DataFrame({"a": np.arange(5) / 2, "name": list("uvuvu"), "y": [0, 1, 0, 1, 0]})
    text = rows.to_csv(index=index)
    (tmp_path / "t.csv").write_text(mark + text + mark + text, encoding="utf-8")
    refused(run("train", "t.csv", "--encode", "auto", "--epochs", 1), "t.csv", "line 7 ", "header")


def test_a_column_is_copied_once_however_often_it_is_named(run, table):
    options = ["--id", "a", "--id", "a", "--epochs", 1, "--hidden", "", "--backend", "numpy", "--out", "n.safetensors"]
    assert run("train", "t.csv", *options)[0] == 0
    for more in ([], ["--id", "a"], ["--id", "b", "--id", "b"]):
        code, out, err = run("predict", "n.safetensors", "t.csv", "--backend", "numpy", *more)
        assert code == 0, err
        assert sorted(out.splitlines()[0].split(",")) == sorted({"row", "y", "a", *more[1::2]})
