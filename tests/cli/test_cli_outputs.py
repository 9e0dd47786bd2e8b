"""What the command line writes: never over what it reads, whole or not at all, and its results come first."""

import errno
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bpgpu
from benchmarks import peers, report
from bpgpu.cli import files, outcome, output, plots
from bpgpu.cli.tables import read_table

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and links of POSIX")


@pytest.fixture
def tables(tmp_path):
    """Two small tables, a model of one of them, and every way to say another name of a file: (folder, command line)."""
    good = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40) % 2})
    for name in ("t.csv", "v.csv"):
        good.to_csv(tmp_path / name, index=False)
    net = bpgpu.MLP([1, 1], "sigmoid", "binary_cross_entropy")
    net.metadata = {"columns": ["x"], "target": "y", "task": "classification", "classes": [0, 1]}
    net.save(tmp_path / "m.safetensors")
    for name in ("t.csv", "v.csv", "m.safetensors") if sys.platform != "win32" else ():
        os.link(tmp_path / name, tmp_path / f"hard.{name}")
        (tmp_path / f"soft.{name}").symlink_to(name)
    if sys.platform != "win32":
        (tmp_path / "here").symlink_to(".")
    return tmp_path


# Every command with every pair of a file it reads or writes and one it writes; {} is another name of the first.
PAIRS = [
    (["train", "t.csv", "--out", "{}"], "t.csv", "DATA"),
    (["train", "t.csv", "--plot", "{}"], "t.csv", "DATA"),
    (["train", "t.csv", "--validation", "v.csv", "--out", "{}"], "v.csv", "--validation"),
    (["train", "t.csv", "--validation", "v.csv", "--plot", "{}"], "v.csv", "--validation"),
    (["predict", "m.safetensors", "t.csv", "--out", "{}"], "m.safetensors", "MODEL"),
    (["predict", "m.safetensors", "t.csv", "--out", "{}"], "t.csv", "DATA"),
    (["export", "m.safetensors", "{}"], "m.safetensors", "MODEL"),
]
NAMES = ["{}", "./{}", "here/{}", "hard.{}", "soft.{}", "here/soft.{}"]


@POSIX
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "read", "option"), PAIRS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_a_command_reads_is_never_its_output(run, tables, arguments, read, option, name):
    before = {path.name: path.read_bytes() for path in tables.iterdir() if path.is_file()}
    code, out, err = run(*(argument.format(name.format(read)) for argument in arguments))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"must name another file than {option}, which it would overwrite, got " in err
    assert {path.name: path.read_bytes() for path in tables.iterdir() if path.is_file()} == before


@POSIX
@pytest.mark.parametrize("other", ["s.png", "./s.png", "here/s.png", "S.png", "link.png"])
@pytest.mark.parametrize("exists", [False, True])
def test_two_outputs_are_two_files(run, tables, other, exists):
    if exists:
        (tables / "s.png").write_text("old")
    (tables / "link.png").symlink_to("s.png")
    code, out, err = run("train", "t.csv", "--out", "s.png", "--plot", other)
    assert (code, out) == (2, "")
    assert err.startswith("bpgpu: --plot must name another file than --out, ")
    assert (tables / "s.png").exists() == exists


@POSIX
def test_names_that_a_mac_takes_for_one_are_one(tmp_path):
    (tmp_path / "here").symlink_to(".")
    assert files.same_file(tmp_path / "Über.csv", tmp_path / "here" / "ÜBER.CSV")
    assert not files.same_file(tmp_path / "a.csv", tmp_path / "b.csv")
    assert not files.same_file(tmp_path / "none" / "a.csv", tmp_path / "b" / "a.csv")


def test_other_files_of_the_same_name_are_no_trouble(run, tables):
    (tables / "sub").mkdir()
    code, _, err = run("train", "t.csv", "--epochs", "1", "--out", "sub/m.safetensors", "--plot", "sub/t.png")
    assert (code, err) == (0, "")
    code, _, _ = run("predict", "sub/m.safetensors", "t.csv", "--out", "sub/t.csv")
    assert code == 0
    assert len(pd.read_csv("sub/t.csv")) == 40


@POSIX
def test_standard_output_does_not_go_into_the_table(tables):
    before = (tables / "t.csv").read_bytes()
    with (tables / "t.csv").open("ab") as table:
        command = [sys.executable, "-m", "bpgpu", "predict", "m.safetensors", "t.csv"]
        done = subprocess.run(command, cwd=tables, stdout=table, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, (tables / "t.csv").read_bytes()) == (2, before)
    assert done.stderr == "bpgpu: standard output goes to t.csv, which is read as DATA; send it to another file\n"


@POSIX
def test_the_benchmarks_reports_keep_what_they_read(tmp_path, capsys):
    saved = tmp_path / "benchmarks.md"
    saved.write_text("saved")
    page = tmp_path / "peers.md"
    page.write_text(f"{peers.MARKERS[0]}\n{peers.MARKERS[1]}\n")
    for main, arguments in (
        (report.main, {"saved": saved, "out": tmp_path}),
        (peers.main, {"out": tmp_path, "readme": page, "rows": None, "peers": None}),
    ):
        with pytest.raises(report.typer.Exit) as ended:
            main(**arguments)
        assert ended.value.exit_code == 2
        capsys.readouterr()
    assert (saved.read_text(), page.read_text().count("\n")) == ("saved", 2)


# Whole or not at all


class DiskFull:
    """Makes the writing of some files fail like a full disk, after half of it."""

    def __init__(self, monkeypatch, *names):
        self.names = names
        for module in (outcome, output):
            monkeypatch.setattr(module, "atomic_file", self.atomic(module.atomic_file))
        save = bpgpu.MLP.save

        def full(net, path):
            if Path(path).name in names and str(Path(path).parent) in (".", ""):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            save(net, path)

        monkeypatch.setattr(bpgpu.MLP, "save", full)

    def atomic(self, real):
        from contextlib import contextmanager

        @contextmanager
        def writer(path):
            with real(path) as file:
                if Path(path).name in self.names:
                    file.write(b"half")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                yield file

        return writer


def test_a_full_disk_leaves_the_old_predictions(run, tables, monkeypatch):
    (tables / "p.csv").write_text("precious")
    DiskFull(monkeypatch, "p.csv")
    code, _, err = run("predict", "m.safetensors", "t.csv", "--out", "p.csv")
    assert (code, (tables / "p.csv").read_text()) == (2, "precious")
    assert err == "bpgpu: p.csv: No space left on device\n"
    assert not list(tables.glob("*.part")) + list(tables.glob(".*.part"))


def test_a_full_disk_leaves_the_old_picture_and_the_model_is_saved(run, tables, monkeypatch):
    (tables / "p.png").write_text("precious")
    DiskFull(monkeypatch, "p.png")
    code, out, err = run("train", "t.csv", "--epochs", "2", "--plot", "p.png", "--out", "new.safetensors", "--json")
    assert (code, (tables / "p.png").read_text()) == (2, "precious")
    assert err.endswith("bpgpu: p.png: No space left on device\n")
    assert json.loads(out)["model"] == "new.safetensors"
    assert bpgpu.MLP.load("new.safetensors").epoch == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_costs_neither_the_results_nor_the_model(run, tables, monkeypatch, as_json):
    DiskFull(monkeypatch, "new.safetensors")
    options = ["--json"] if as_json else []
    code, out, err = run("train", "t.csv", "--epochs", "2", "--out", "new.safetensors", *options)
    assert code == 2
    assert not (tables / "new.safetensors").exists()
    assert "accuracy 0." in out + err
    last = err.splitlines()[-1]
    assert last.startswith("bpgpu: new.safetensors: No space left on device; the model was saved as ")
    place = last.rpartition(" as ")[2]
    assert bpgpu.MLP.load(place).epoch == 2
    if as_json:
        assert json.loads(out)["model"] == place
        assert json.loads(out)["epochs"] == 2


@POSIX
def test_predictions_may_be_compressed_and_may_go_to_a_device(run, tables):
    for end, name in itertools.product(("", ".gz", ".BZ2", ".xz", ".zip", ".zst"), ("p.csv", "p.tsv", "P.TAB")):
        code, _, err = run("predict", "m.safetensors", "t.csv", "--out", name + end)
        assert (code, err.startswith("accuracy")) == (0, True), err
        table = read_table(name + end)
        assert (table.names, len(table), table.notes) == (["row", "y"], 40, [])
    assert zipfile.ZipFile("p.csv.zip").namelist() == ["p.csv"]
    code, _, _ = run("predict", "m.safetensors", "t.csv", "--out", os.devnull)
    assert code == 0
    assert not Path(os.devnull).is_file()


OTHER_KINDS = [
    ("predict m.safetensors t.csv --out", ".csv", {"p.parquet": ".parquet", "p.npy.gz": ".npy"}),
    ("train t.csv --epochs 1 --out", ".safetensors", {"p.CSV": ".csv", "p.csv.zst": ".zst", "m.onnx": ".onnx"}),
    ("export m.safetensors", ".onnx", {"n.safetensors": ".safetensors", "p.tsv": ".tsv", "p.png": ".png"}),
]


@pytest.mark.parametrize(("command", "good", "names"), OTHER_KINDS, ids=["predict", "train", "export"])
def test_nothing_is_written_under_a_name_of_another_kind(run, tables, command, good, names):
    before = sorted(tables.iterdir())
    for name, ending in names.items():
        code, out, err = run(*command.split(), name)
        assert (code, out, err.count("\n"), sorted(tables.iterdir())) == (2, "", 1, before)
        assert f" must not end in {ending}, a kind that it does not write, got " in err
        assert f"; end the name in {good}" in err


@pytest.mark.parametrize("name", ["model", "net-0.1", "net.bin"])
def test_other_names_are_taken(run, tables, name):
    assert run("train", "t.csv", "--epochs", "1", "--out", name)[0] == 0
    assert run("predict", name, "t.csv", "--out", f"{name}.txt")[0] == 0
    assert len(pd.read_csv(f"{name}.txt")) == 40


@POSIX
def test_a_link_stays_a_link(run, tables):
    (tables / "real.csv").write_text("old")
    (tables / "real.png").write_text("old")
    for name in ("real.csv", "real.png"):
        (tables / f"to.{name}").symlink_to(name)
    run("predict", "m.safetensors", "t.csv", "--out", "to.real.csv")
    run("train", "t.csv", "--epochs", "1", "--plot", "to.real.png")
    assert all((tables / f"to.{name}").is_symlink() for name in ("real.csv", "real.png"))
    assert len(pd.read_csv(tables / "real.csv")) == 40
    assert (tables / "real.png").read_bytes().startswith(b"\x89PNG")


@POSIX
@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("--out", "loop", "Too many levels of symbolic links"),
        ("--out", "x" * 300, "File name too long"),
        ("--out", "gone/m.safetensors", "must exist; make it with: mkdir -p"),
        ("--out", "nowhere", "must exist; make it with: mkdir -p"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_training(run, tables, option, name, reason):
    (tables / "loop").symlink_to("loop")
    (tables / "nowhere").symlink_to("gone/m.safetensors")
    for command in (["train", "t.csv"], ["predict", "m.safetensors", "t.csv"]):
        code, out, err = run(*command, option, name)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert reason in err


# Training that ends otherwise than it should

DIVERGES = ["--optimizer", "sgd", "--learning-rate", "30", "--hidden", "", "--epochs", "400", "--task", "regression"]


def test_what_diverged_is_kept_as_the_message_says(run, tables):
    code, out, err = run("train", "t.csv", *DIVERGES, "--out", "d.safetensors", "--json")
    result = json.loads(out)
    assert (code, result["stop_reason"], result["model"]) == (2, "diverged", "d.safetensors")
    assert "the weights are those of the last finite epoch" in err.splitlines()[-1]
    assert f"trained  {result['epochs']} epochs" in err
    net = bpgpu.MLP.load("d.safetensors")
    assert net.epoch == result["epochs"] > 0
    assert np.isfinite(net.parameters).all()


def test_what_diverged_replaces_no_model(run, tables):
    run("train", "t.csv", "--epochs", "1", "--out", "d.safetensors")
    before = (tables / "d.safetensors").read_bytes()
    for name in ("d.diverged.safetensors", "d.diverged1.safetensors"):
        code, out, _ = run("train", "t.csv", *DIVERGES, "--out", "d.safetensors", "--json")
        assert (code, json.loads(out)["model"]) == (2, name)
        assert bpgpu.MLP.load(name).epoch > 0
    assert (tables / "d.safetensors").read_bytes() == before


@POSIX
def test_a_reader_that_goes_away_does_not_cost_the_model(tables):
    command = [sys.executable, "-m", "bpgpu", "train", "t.csv", "--epochs", "2000", "--out", "new.safetensors"]
    process = subprocess.Popen(command, cwd=tables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not process.stdout.readline().startswith(b"memory"):  # the last line before training
        pass
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=300)) == (b"", 1)
    process.stderr.close()
    assert bpgpu.MLP.load(tables / "new.safetensors").epoch == 2_000


@POSIX
def test_a_reader_that_goes_away_early_does_not_cost_the_model(tables):
    """Here more is printed after that, and it was once printed between training and saving."""
    days = 2459000 + 0.02 * np.arange(40)
    pd.DataFrame({"x": np.arange(40.0), "day": days}).to_csv(tables / "days.csv", index=False)
    command = [sys.executable, "-m", "bpgpu", "train", "days.csv", "--epochs", "3", "--out", "new.safetensors"]
    command += ["--plot", "p.png", "--backend", "numpy"]
    process = subprocess.Popen(command, cwd=tables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=300)) == (b"", 1)
    process.stderr.close()
    assert bpgpu.MLP.load(tables / "new.safetensors").epoch == 3
    assert (tables / "p.png").exists()


@POSIX
def test_closed_outputs_cost_neither_the_model_nor_the_predictions(tables):
    def shell(command):
        line = f'"{sys.executable}" -m bpgpu {command}'
        return subprocess.run(line, shell=True, cwd=tables, capture_output=True, text=True, timeout=300, check=False)

    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        done = shell(f"train t.csv --epochs 1 --backend numpy --out new.safetensors {closed}")
        assert (done.returncode, done.stderr) == (0, "")
        bpgpu.MLP.load(tables / "new.safetensors")
        (tables / "new.safetensors").unlink()
    done = shell("predict m.safetensors t.csv --backend numpy >&-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "bpgpu: standard output, where predictions go, is closed; name a file" in done.stderr
    done = shell("predict m.safetensors t.csv --backend numpy 2>&-")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 41)
    assert shell("predict m.safetensors t.csv --backend numpy --out p.csv --json >&-").returncode == 0


ANNOUNCE = """
import os, signal, sys
from bpgpu import __main__
from bpgpu.training import callbacks
def on_epoch_end(self, training):
    if training.epoch == 3:
        (SEND)
callbacks.ProgressBar.on_epoch_end = on_epoch_end
__main__.main()
"""


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_end_a_job_are_taken_as_ctrl_c(tables, name):
    number = getattr(signal, name)
    code = ANNOUNCE.replace("(SEND)", f"os.kill(os.getpid(), {int(number)})")
    command = [
        sys.executable,
        "-c",
        code,
        "train",
        "t.csv",
        "--epochs",
        "1000000",
        "--out",
        "new.safetensors",
        "--json",
    ]
    done = subprocess.run(command, cwd=tables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert json.loads(done.stdout)["stop_reason"] == "interrupted"
    assert bpgpu.MLP.load(tables / "new.safetensors").epoch >= 3


@POSIX
def test_a_second_signal_does_not_cost_the_model(tables):
    code = ANNOUNCE.replace("(SEND)", "os.kill(os.getpid(), signal.SIGHUP)").replace(
        "__main__.main()",
        """
import bpgpu
save = bpgpu.MLP.save
def slowly(net, path):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGHUP)
    save(net, path)
bpgpu.MLP.save = slowly
__main__.main()
""",
    )
    command = [sys.executable, "-c", code, "train", "t.csv", "--epochs", "1000000", "--out", "new.safetensors"]
    done = subprocess.run(command, cwd=tables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 128 + signal.SIGHUP
    assert bpgpu.MLP.load(tables / "new.safetensors").epoch >= 3


def test_an_interrupt_while_the_model_is_saved_does_not_cost_it(run, tables, monkeypatch):
    save, calls = bpgpu.MLP.save, []

    def interrupted(net, path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(net, path)

    monkeypatch.setattr(bpgpu.MLP, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("train", "t.csv", "--epochs", "2", "--out", "new.safetensors")
    assert bpgpu.MLP.load("new.safetensors").epoch == 2


@POSIX
def test_nohup_stays_in_force(tables):
    code = ANNOUNCE.replace("(SEND)", "os.kill(os.getpid(), signal.SIGHUP)")
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}"
    command = [sys.executable, "-c", code, "train", "t.csv", "--epochs", "5", "--json"]
    done = subprocess.run(command, cwd=tables, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, json.loads(done.stdout)["epochs"]) == (0, 5)


@POSIX
def test_a_closed_terminal_does_not_cost_the_model(tables):
    """The signal comes, and whatever is printed from then on fails."""
    import pty

    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tables)
        arguments = ["train", "t.csv", "--epochs", "1000000", "--out", "new.safetensors"]
        os.execv(sys.executable, [sys.executable, "-m", "bpgpu", *arguments])
    shown, end = b"", time.monotonic() + 300
    while b"samples/s" not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)
    os.close(terminal)
    assert b"samples/s" in shown
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert bpgpu.MLP.load(tables / "new.safetensors").epoch > 0


# Pictures


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.4], [0.0], [0.0, 1.0]])
def test_every_loss_is_seen(tmp_path, losses):
    """Also that of a single epoch, to which no line leads, and 0, which a logarithmic axis lacks."""
    from matplotlib.image import imread

    def coloured(history):
        path = tmp_path / "p.png"
        with path.open("wb") as file:
            plots.draw_losses(history, file, path)
        pixels = imread(path)[:, :, :3]
        return int((np.ptp(pixels, axis=2) > 0.3).sum())

    assert coloured(bpgpu.History(loss=losses, validation_loss=losses)) > coloured(bpgpu.History()) + 50
