"""Tables: which files are read and how, what makes a target, and standardisation that folding leaves exact."""

import gzip
import lzma
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu.cli import csv_files
from bpgpu.cli.columns import Inputs
from bpgpu.cli.scaling import Standardisation
from bpgpu.cli.tables import Table, read_table
from bpgpu.cli.targets import Target

ROWS = pd.DataFrame({"x": np.arange(60.0), "c": 0.1, "y": np.arange(60) % 2})


def frame_of(path, **options):
    return read_table(str(path), **options).frame


def text_of(*names):
    """Say which columns of a CSV file are read as text."""
    return lambda columns: set(names)


def damaged(content, *places):
    """Return the bytes with some of them inverted."""
    content = bytearray(content)
    for place in places:
        content[place] ^= 0xFF
    return bytes(content)


def write_damaged_files(folder):
    text = ROWS.to_csv(index=False).encode()
    (folder / "bad.csv.gz").write_bytes(damaged(gzip.compress(text), 20, 30))
    (folder / "half.csv.gz").write_bytes(gzip.compress(text)[:50])
    (folder / "bad.csv.xz").write_bytes(damaged(lzma.compress(text), 40))
    (folder / "bad.csv.zip").write_bytes(b"PK no")
    (folder / "bad.csv.bz2").write_bytes(b"BZh no")
    (folder / "bad.npy").write_bytes(b"\x93NUMPY no")
    (folder / "pickle.npy").write_bytes(pickle.dumps([1]))
    (folder / "latin.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    (folder / "ragged.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    ROWS.to_parquet(folder / "bad.parquet")
    whole = (folder / "bad.parquet").read_bytes()
    (folder / "bad.parquet").write_bytes(damaged(whole, *range(100, 200)))
    (folder / "half.parquet").write_bytes(whole[:500])
    np.savez(folder / "lengths.npz", X=np.ones((4, 2)), y=np.ones(3))
    np.savez(folder / "number.npz", X=1.0)


DAMAGED = ["bad.csv.gz", "half.csv.gz", "bad.csv.xz", "bad.csv.zip", "bad.csv.bz2", "bad.npy", "pickle.npy"]
DAMAGED += ["latin.csv", "ragged.csv", "half.parquet", "lengths.npz", "number.npz"]


@pytest.mark.parametrize("name", DAMAGED)
def test_whatever_is_wrong_with_a_file_its_error_is_one_sentence_that_names_it(tmp_path, name):
    write_damaged_files(tmp_path)
    path = str(tmp_path / name)
    with pytest.raises(ValueError, match=r"cannot be read as a table: .") as caught:
        read_table(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_any_exception_of_a_reader_names_the_file(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(csv_files.pd, "read_csv", fail)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv: cannot be read as a table: AssertionError$"):
        read_table(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.csv.zip", "T.CSV.GZ"])
def test_csv_is_read_compressed_or_not(tmp_path, name):
    ROWS.to_csv(tmp_path / name, index=False)
    pd.testing.assert_frame_equal(frame_of(tmp_path / name), ROWS)


def test_the_last_suffix_says_what_a_file_is(tmp_path):
    ROWS.to_parquet(tmp_path / "data.csv.parquet")
    pd.testing.assert_frame_equal(frame_of(tmp_path / "data.csv.parquet"), ROWS)
    for name in ("data.csv.txt", "data.csv.gz.gz", "data.gz", "data", "data.csvx"):
        (tmp_path / name).write_text("x,y\n1,2\n")
        with pytest.raises(ValueError, match=f"{name}: .* must end in .csv"):
            read_table(str(tmp_path / name))


def test_an_array_file_is_read_by_its_content(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.eye(3), y=np.arange(3))
    shutil.copy(tmp_path / "a.npz", tmp_path / "a.npy")
    assert list(frame_of(tmp_path / "a.npy")) == ["x0", "x1", "x2", "y"]
    np.save(tmp_path / "m.npy", np.eye(3))
    shutil.copy(tmp_path / "m.npy", tmp_path / "m.npz")
    assert list(frame_of(tmp_path / "m.npz")) == ["x0", "x1", "x2"]


def test_column_names_become_text(tmp_path):
    ROWS.set_axis([0, 1, 2], axis=1).to_parquet(tmp_path / "t.parquet")
    assert list(frame_of(tmp_path / "t.parquet")) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["wide.csv", "wide.csv.gz"])
def test_the_first_lines_may_be_of_any_length(tmp_path, name):
    names = [f"column{i:05}" for i in range(30_000)]
    for sep in ",;":
        lines = [sep.join(names), *[sep.join("1" for _ in names)] * 3]
        content = ("\n".join(lines) + "\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        assert list(frame_of(tmp_path / name)) == names


def test_an_entry_may_be_of_any_length(tmp_path):
    pd.DataFrame({"x": [1, 2], "note": ["a," * 100_000, "?" * 300_000], "y": [0, 1]}).to_csv(tmp_path / "long.csv")
    table = read_table(str(tmp_path / "long.csv"))
    assert len(table.frame["note"][1]) == 300_000
    assert table.place(1, "y") == ("line 3", "1")


def test_labels_of_a_long_csv_are_all_text_or_all_numbers(tmp_path):
    """Pandas guesses the type of each piece of a large file, which would make 1 and "1" two classes."""
    kinds = np.array(["1"] * 400_000 + ["one"])
    pd.DataFrame({"x": 0, "y": kinds}).to_csv(tmp_path / "long.csv", index=False)
    table = read_table(str(tmp_path / "long.csv"), text=text_of("y"))
    assert Target.find(table, "y", "classification").classes == ["1", "one"]


def test_inputs_say_what_stands_in_the_way():
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [1e300, 1.0], "c": ["x", "y"]})
    table, rows = Table(frame, "t.csv"), np.arange(2)
    with pytest.raises(ValueError, match=r"t.csv: these columns have missing or infinite entries: 'a'; 'a' has 1, "):
        Inputs(["a", "b"]).check(table, np.dtype(np.float64), "fill them")
    with pytest.raises(ValueError, match=r"t.csv: these columns have entries too large for float32: 'b'; .*float64"):
        Inputs(["b"]).check(table, np.dtype(np.float32), "")
    with pytest.raises(ValueError, match=r"t.csv: these columns are not numeric: 'c'; 'c' holds 'x' in row 0"):
        Inputs.find(table, ["b", "c"], [], rows)
    assert Inputs(["b"]).check(table, np.dtype(np.float64), "") == []
    np.testing.assert_array_equal(np.vstack(list(Inputs(["b"]).convert(table, rows))), [[1e300], [1]])


# Targets


@pytest.mark.parametrize("task", ["auto", "classification", "regression"])
@pytest.mark.parametrize(
    ("values", "named"),
    [
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), "Timestamp"),
        (pd.to_timedelta([1, 2], unit="s"), "Timedelta"),
        (pd.Series([b"a", b"b"]), "bytes"),
        (pd.Series(["a", 1], dtype=object), "int, str"),
        (pd.Series([[1], [2]]), "list"),
        (pd.Series([1j, 2j]), "complex"),
    ],
)
def test_targets_that_a_model_file_cannot_hold_are_refused(values, named, task):
    with pytest.raises(ValueError, match=f"t: the target 'y' must hold text or numbers, got {named}; "):
        Target.find(Table(pd.DataFrame({"x": [1, 2], "y": values}), "t"), "y", task)


def test_infinite_targets_count_as_missing():
    with pytest.raises(
        ValueError, match="the target 'y' has 1 missing or infinite entries, the first 'inf' in row 1; correct"
    ):
        Target.find(Table(pd.DataFrame({"x": [1, 2, 3], "y": [1.0, np.inf, 2.0]}), "t"), "y", "auto")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (pd.Series(["b", "a", "b"]), ["a", "b"]),
        (pd.Series(["b", "a", "b"]).astype("category"), ["a", "b"]),
        (pd.Series([3, 1, 3]).astype("category"), [1, 3]),
        (pd.array([3, 1, 3], dtype="Int64"), [1, 3]),
        (pd.array([True, False, True], dtype="boolean"), [False, True]),
        ([2.0, 1.0, 2.0], [1.0, 2.0]),
        (np.array([0.2, 0.1, 0.2], dtype="f4"), [float(np.float32(0.1)), float(np.float32(0.2))]),
    ],
)
def test_classes_are_sorted_and_encode_and_decode_are_inverse(values, classes):
    table = Table(pd.DataFrame({"x": 0, "y": values}), "t")
    goal = Target.find(table, "y", "classification")
    assert goal.classes == classes
    assert {type(label) for label in goal.classes} <= {bool, int, float, str}
    codes = goal.encode(table)
    np.testing.assert_array_equal(codes, [1, 0, 1])
    np.testing.assert_array_equal(goal.decode(codes[:, None]), table.frame["y"].to_numpy())


def test_labels_of_text_are_found_again_where_a_file_has_only_their_numbers(tmp_path):
    goal = Target("y", "classification", ["1", "2", "3+"])
    part = pd.DataFrame({"x": [0.0, 0.0], "y": [2, 1]})
    part.to_csv(tmp_path / "part.csv", index=False)
    part.to_parquet(tmp_path / "part.parquet")
    part.astype({"y": float}).to_parquet(tmp_path / "floats.parquet")
    for name in ("part.csv", "part.parquet", "floats.parquet"):
        table = read_table(str(tmp_path / name), text=text_of("y"))
        np.testing.assert_array_equal(goal.encode(table), [1, 0])
    # Text is compared as it stands in the file: 1.0 and 01 are other labels than 1.
    (tmp_path / "other.csv").write_text("x,y\n0,1\n0,1.0\n0,01\n")
    with pytest.raises(ValueError, match=r"did not see: '01', '1\.0'; the first is '1\.0' in line 3$"):
        goal.encode(read_table(str(tmp_path / "other.csv"), text=text_of("y")))


def test_missing_labels_are_told_from_unknown_ones(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n0,1\n0,\n")
    goal = Target("y", "classification", ["1", "2"])
    with pytest.raises(ValueError, match=r"t\.csv: the target 'y' has 1 missing or infinite entries"):
        goal.encode(read_table(str(tmp_path / "t.csv"), text=text_of("y")))


# Standardisation


@pytest.mark.parametrize("value", [0.1, -0.1, 1e-200, 1e8, -1e30, 1e300, 0.0, 7.0])
@pytest.mark.parametrize("rows", [3, 50, 1000])
def test_a_constant_column_is_one_whatever_its_rounding(value, rows):
    scaling = Standardisation.learn([np.full((rows, 1), value)])
    assert scaling.deviation == 1
    assert scaling.remoteness == 0


def test_columns_of_every_size_get_deviation_one():
    columns = np.random.default_rng(0).standard_normal((200, 1)) * [1e-300, 1e-160, 1.0, 1e160, 1e300] + [0, 0, 1, 0, 0]
    scaling = Standardisation.learn([columns])
    np.testing.assert_allclose(scaling.apply(columns).std(axis=0), 1)
    np.testing.assert_allclose(scaling.apply(columns).mean(axis=0), 0, atol=1e-12)
    nearly = 1 + 1e-11 * np.random.default_rng(0).standard_normal((50, 1))  # a column, though a remote one
    assert Standardisation.learn([nearly]).deviation < 1e-10


@pytest.mark.parametrize("constant", [0.1, 1e8, -1e30])
def test_folding_cuts_constant_columns_off(constant):
    """A network of float32 could not hold what b loses to such a column; it tells nothing, so it may go."""
    X = np.random.default_rng(0).standard_normal((50, 3))
    X[:, 1] = constant
    net = bpgpu.MLP([3, 4, 1], ["tanh", "identity"], "squared_error")
    scaling = Standardisation.learn([X])
    before = net.predict(scaling.apply(X))
    scaling.fold_into_input(net)
    np.testing.assert_allclose(net.predict(X), before, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(net.weights[0][1], 0)
