"""Names of files that no file can have, and files that are none: refused where they enter, before any work."""

import os
import subprocess
import sys

import numpy as np
import pytest

import bpgpu

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and the names of POSIX")
LONG, NULL = "x" * 300, "a\0b"
X, Y = np.ones((4, 1)), np.ones((4, 1))


def net():
    return bpgpu.MLP([1, 1], "identity", "half_squared_error", backend="numpy")


@pytest.mark.parametrize(
    "use",
    [lambda path: net().save(path), bpgpu.MLP.load, bpgpu.Checkpoint, lambda path: net().to_onnx(path)],
    ids=["save", "load", "Checkpoint", "to_onnx"],
)
def test_names_that_no_file_can_have(tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        use(NULL)
    assert str(error.value) == "path must not contain null characters, got 'a\\x00b'; give another name"
    assert not list(tmp_path.iterdir())


@POSIX
def test_a_checkpoint_whose_name_is_too_long_is_not_made():
    with pytest.raises(ValueError, match="path must be a name that the file system allows, got 'xxx") as error:
        bpgpu.Checkpoint(LONG)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("use", [lambda path: net().save(path), bpgpu.MLP.load, bpgpu.Checkpoint])
def test_what_is_no_path(use):
    with pytest.raises(TypeError, match="path must be a path, got 5"):
        use(5)


@POSIX
def test_a_checkpoint_is_checked_again_when_its_folder_is_there(tmp_path):
    kept, trained = bpgpu.Checkpoint(tmp_path / "folder" / LONG), net()
    before = trained.parameters.copy()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="path must be a name that the file system allows"):
        trained.fit(X, Y, epochs=1, callbacks=[kept])
    np.testing.assert_array_equal(trained.parameters, before)


COMMANDS = {
    "DATA": ["train", "{}"],
    "--validation": ["train", "t.csv", "--validation", "{}"],
    "--out": ["train", "t.csv", "--out", "{}"],
    "--plot": ["train", "t.csv", "--plot", "{}"],
    "MODEL": ["predict", "{}", "t.csv"],
    "OUT": ["export", "m.safetensors", "{}"],
}


@pytest.fixture
def files(tmp_path):
    """Write a table and a model of it."""
    (tmp_path / "t.csv").write_text("x,y\n" + "1,2\n3,4.5\n" * 9)
    model = net()
    model.metadata = {"columns": ["x"], "target": "y", "task": "regression", "classes": []}
    model.save(tmp_path / "m.safetensors")
    return tmp_path


@pytest.mark.parametrize("option", COMMANDS)
@pytest.mark.parametrize("name", [NULL, pytest.param(LONG, marks=POSIX)], ids=["null", "long"])
def test_the_command_line_refuses_such_names_by_their_option(run, files, option, name):
    before = sorted(files.iterdir())
    code, out, err = run(*(part.format(name) for part in COMMANDS[option]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith((f"bpgpu: {option} must ", f"bpgpu: Invalid value for '{option.lower()}': "))
    assert "null" in err or "File name too long" in err
    assert len(err) < 250
    assert sorted(files.iterdir()) == before


@POSIX
@pytest.mark.parametrize("option", ["DATA", "--validation", "MODEL"])
def test_a_pipe_is_not_waited_for(files, option):
    os.mkfifo(files / "pipe.csv")
    command = [part.format("pipe.csv") for part in COMMANDS[option]]
    run = subprocess.run(
        [sys.executable, "-m", "bpgpu", *command], cwd=files, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(
        f"bpgpu: {option} must name a file, got the pipe or device pipe.csv; write its content to a file"
    )


@POSIX
def test_a_model_is_not_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    program = (
        f"import bpgpu\ntry: bpgpu.MLP.load({str(tmp_path / 'pipe')!r})\nexcept bpgpu.ModelFileError as e: print(e)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "pipe is a pipe or a device; write the model to a file" in run.stdout


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/t.csv", "must name a file, got the address https://example.org/t.csv; download it, and"),
        ("s3://bucket/t.parquet", "must name a file, got the address s3://bucket/t.parquet"),
        ("-", "must name a file, got -; write standard input to a file, and name that"),
        ("", "must name a file, got ''; name the table"),
    ],
)
@pytest.mark.parametrize("option", ["DATA", "--validation"])
def test_tables_that_are_no_files(run, files, option, source, message):
    code, out, err = run(*(part.format(source) for part in COMMANDS[option]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bpgpu: {option} {message}")


@POSIX
def test_a_file_may_be_called_like_standard_input(run, files):
    (files / "t.csv").rename(files / "-")
    assert "its name must end in .csv" in run("train", "-")[2]


@POSIX
def test_a_name_leaves_room_for_that_of_a_model_that_diverged(run, files):
    limit = os.pathconf(files, "PC_NAME_MAX")
    code, out, err = run("train", "t.csv", "--epochs", "1", "--out", "m" * (limit - 12) + ".safetensors")
    assert (code, out, err.startswith("bpgpu: --out must be a name that the file system allows")) == (2, "", True)
    assert run("train", "t.csv", "--epochs", "1", "--out", "m" * (limit - 21) + ".safetensors")[0] == 0
