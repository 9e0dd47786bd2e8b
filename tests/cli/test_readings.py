"""Values that a reader could take for something else without a word: each is read as it stands, or refused."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu.cli.reading import Reading
from bpgpu.cli.tables import read_table

FAST = ["--epochs", "1", "--backend", "numpy"]
N = 40


@pytest.fixture
def train(run, tmp_path):
    """Return a function that trains on lines of a CSV file."""

    def on(lines, *options):
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return run("train", "t.csv", *FAST, "--out", "m.safetensors", *options)

    return on


def column(entries):
    """Return the lines of a file with these entries, and labels."""
    return ["a;y", *(f"{entry};{'no' if i % 2 else 'yes'}" for i, entry in enumerate(entries))]


# Marks between thousands


@pytest.mark.parametrize(
    "entry", ["01.01.2020", "192.168.0.1", "0.37", "0.375", "1.01", "1.2345", "1234.567", "1,5.000"]
)
def test_a_mark_that_is_not_between_groups_of_three_digits_makes_no_number(train, entry):
    for entries in ([entry] * N, ["1.234", "1.234.567,5", "-12", *[entry] * 3] * 10):
        code, out, err = train(column(entries), "--thousands", ".", "--decimal", ",")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"'{entry}' in line {2 + entries.index(entry)}" in err
        assert "'a'" in err
        assert "use --thousands" not in err
    lines = ["b;a", *(f"{i};{entry}" for i in range(N))]
    code, _, err = train(lines, "--thousands", ".", "--decimal", ",")
    message = f"the target 'a' holds numbers except for {N} of its entries, the first '{entry}' in line 2"
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize(
    ("thousands", "decimal", "entry", "value"),
    [
        (".", ",", "1.234.567,25", 1234567.25),
        (".", ",", "-1.234", -1234.0),
        (",", ".", "+12,345.5", 12345.5),
        ("'", ".", "1'234", 1234.0),
        *((given, ",", f"1{mark}234{mark}567,5", 1234567.5) for given in " \u00a0\u202f" for mark in " \u00a0\u202f"),
    ],
)
def test_marks_between_thousands(tmp_path, thousands, decimal, entry, value):
    path = tmp_path / "t.csv"
    path.write_text(f"a;b\n{entry};1\n17;2\n;3\n", encoding="utf-8")
    reading = Reading.checked(thousands=thousands, decimal=decimal)
    table = read_table(str(path), reading)
    np.testing.assert_array_equal(table.frame["a"], [value, 17, np.nan])
    np.testing.assert_array_equal(read_table(str(path), reading, lambda _: {"a"}).numbers("a"), [value, 17, np.nan])
    assert table.frame["b"].dtype.kind == "i"


def test_truth_with_holes_is_no_number_where_a_mark_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\nTrue;1\n;2\nFalse;3\n")
    table = read_table(str(tmp_path / "t.csv"), Reading(thousands="'"))
    assert table.frame["a"].dtype == "boolean"


@pytest.mark.parametrize("mark", "\u00a0\u202f")
def test_numbers_with_blanks_say_which_option_reads_them(train, mark):
    code, _, err = train(column(["980", f"1{mark}235,5"] * N))
    assert (code, f"use --thousands {' '!r} --decimal ','" in err) == (2, True)


@pytest.mark.parametrize("target", ["a", "y"])
def test_points_that_look_like_marks_between_thousands_are_refused(train, target):
    entries = ["980", "1.235", "12.502", "17"] * 10
    lines = [f"{'b' if i == 0 else i * i % 7};{line}" for i, line in enumerate(column(entries))]
    code, out, err = train(lines, "--target", target, *(["--drop", "y"] if target == "a" else []))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'1.235'" in err
    assert "'a'" in err
    assert "give --thousands . --decimal , or, if they are decimal points, --decimal ." in err
    for options in (["--thousands", ".", "--decimal", ","], ["--decimal", "."]):
        assert train(column(entries), *options)[::2] == (0, "")


@pytest.mark.parametrize(
    "entries", [["980", "1.235", "1.5"], ["980", "1.235"] + ["7"] * 8, ["0.980", "1.235", "980"], ["1234", "1.235"]]
)
def test_points_that_are_decimal_points(train, entries):
    entries = entries * 4 if len(entries) < 10 else entries
    assert train(column(entries))[::2] == (0, "")


# Digits of Parquet


def test_integers_with_holes_keep_their_digits(run, tmp_path):
    big = 2**53 + 1
    rows = pd.DataFrame({"id": [big + i for i in range(N)], "x": range(N), "y": [0, 1] * (N // 2)}).astype("Int64")
    rows["x"] = rows["x"] * rows["x"]
    rows.loc[3, "id"] = rows.loc[5, "y"] = pd.NA
    rows.to_parquet(tmp_path / "t.parquet")
    rows.to_csv(tmp_path / "t.csv", index=False)
    found = []
    for name in ("t.parquet", "t.csv"):
        code, _, err = run("train", name, *FAST, "--id", "id", "--na", "", "--out", "m.safetensors")
        assert (code, err) == (0, "")
        assert str(bpgpu.MLP.load("m.safetensors").metadata["classes"]) == "[0, 1]"
        assert run("predict", "m.safetensors", name, "--out", "p.csv")[0] == 0
        found.append((tmp_path / "p.csv").read_text())
    assert found[0] == found[1]
    assert str(big + 1) in found[0]


def test_an_input_of_integers_with_holes_is_filled(run, tmp_path):
    rows = pd.DataFrame({"x": pd.array([*range(N - 1), None], "Int64"), "y": ["a", "b"] * (N // 2)})
    rows.to_parquet(tmp_path / "t.parquet")
    code, _, err = run("train", "t.parquet", *FAST, "--encode", "x", "--out", "m.safetensors")
    assert (code, err) == (0, "")
    assert "x" in bpgpu.MLP.load("m.safetensors").metadata["fill"]


def test_decimals_of_parquet_keep_their_digits(run, tmp_path):
    ids = [Decimal(10**37 + i) for i in range(N)]
    labels = [Decimal(10**20 + i % 2) for i in range(N)]
    rows = pd.DataFrame({"id": ids, "x": [Decimal(i * i) / 4 for i in range(N)], "y": labels})
    rows.set_index(pd.Index([f"row {i}" for i in range(N)])).to_parquet(tmp_path / "t.parquet")
    rows.to_csv(tmp_path / "t.csv", index=False)
    found = []
    for name in ("t.parquet", "t.csv"):
        options = ["--id", "id", "--task", "classification", "--out", "m.safetensors"]
        code, _, err = run("train", name, *FAST, *options)
        assert (code, err) == (0, "")
        assert bpgpu.MLP.load("m.safetensors").metadata["classes"] == [str(10**20), str(10**20 + 1)]
        assert run("predict", "m.safetensors", name, "--out", "p.csv")[0] == 0
        found.append((tmp_path / "p.csv").read_text())
    assert found[0] == found[1]
    assert str(10**37 + 1) in found[0]


@pytest.mark.parametrize(("step", "distinct", "task"), [(1, 2, "classification"), (10**20, N, "regression")])
def test_whole_numbers_beyond_every_type_are_classes_if_they_are_few(train, step, distinct, task):
    assert train(["x,y", *(f"{i * i},{10**20 + step * (i % distinct)}" for i in range(N))])[::2] == (0, "")
    about = bpgpu.MLP.load("m.safetensors").metadata
    assert (about["task"], len(about["classes"])) == (task, 2 if distinct == 2 else 0)


# Entries and lines


def test_ids_that_read_as_missing_are_copied(run, train, tmp_path):
    ids = ["NA", "nan", "", "None", "001", '"a,b"'] * 10
    lines = ["id,x,y", *(f"{name},{i * i},{'no' if i % 2 else 'yes'}" for i, name in enumerate(ids))]
    assert train(lines, "--id", "id")[::2] == (0, "")
    assert run("predict", "m.safetensors", "t.csv", "--out", "p.csv")[0] == 0
    written = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    assert written["id"].tolist() == [name.strip('"') for name in ids]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("short", "width"), [("7", 1), ("7,8", 2)])
def test_a_line_that_is_too_short_is_no_data(train, header, short, width):
    lines = [*["a,b,y"][: int(header)], *(f"{i},{i * i},{'no' if i % 2 else 'yes'}" for i in range(N))]
    lines[7:7] = ["", short]
    code, out, err = train(lines, "--encode", "auto", *([] if header else ["--no-header"]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"line 9 has {width} {'entry' if width == 1 else 'entries'}, but " in err
    assert f"{'the header' if header else 'the first line'} has 3" in err
    lines[8] = "7,,"
    assert "line 9 has" not in train(lines, "--encode", "auto", *([] if header else ["--no-header"]))[2]


def test_a_quotation_mark_that_swallows_lines_is_said(train):
    lines = ["k,b,y", *(f"{'uvw'[i % 3]},{i * i % 11},{'no' if i % 2 else 'yes'}" for i in range(N))]
    assert train(lines, "--encode", "k")[::2] == (0, "")
    lines[4] = 'u,1,"yes'
    lines[7] = 'u,1,no"'
    code, out, err = train(lines, "--encode", "k")
    assert (code, err) == (0, "")
    assert "an entry of 'y' in the row that begins in line 5 holds whole lines" in out
    lines[4], lines[7] = 'u,1,"yes\nwell, yes"', "u,1,no"
    assert "holds whole lines" not in train(lines, "--encode", "k")[1]


# Arrays


def test_arrays_of_other_shapes_are_refused(run, tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 4))
    for name, arrays, message in (
        ("t.npz", {"X": X, "y": np.zeros((60, 0))}, "y must have at least one column, got the shape (60, 0)"),
        ("t.npz", {"X": X, "y": np.zeros((60, 2, 2))}, "y must have one or two dimensions, got the shape (60, 2, 2)"),
        ("t.npy", np.zeros((20, 3, 3)), "it must have one or two dimensions, got the shape (20, 3, 3)"),
    ):
        if name == "t.npz":
            np.savez(tmp_path / name, **arrays)
        else:
            np.save(tmp_path / name, arrays)
        code, out, err = run("train", name, *FAST)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{name}: cannot be read as a table: {message}; " in err
