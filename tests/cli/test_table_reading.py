"""What strangers' tables look like: each is read as it is meant, or refused with the entry, the line and the option."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu.cli.columns import Inputs, Rows
from bpgpu.cli.reading import Reading
from bpgpu.cli.tables import Table, read_table
from bpgpu.cli.targets import Targets

rng = np.random.default_rng(0)
N = 120
A, B = rng.normal(size=(2, N)).round(3)
K = (A + B > 0).astype(int)
ROWS = pd.DataFrame({"a": A, "b": B, "y": np.array(["no", "yes"])[K]})
FAST = ["--epochs", "1", "--backend", "numpy"]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file into the folder of `run`: text, or a table of a, b and what is given."""

    def to(name, *lines, **options):
        if lines:
            (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            ROWS.assign(**options.pop("columns", {})).to_csv(tmp_path / name, index=False, **options)
        return name

    return to


def lines_of(*columns):
    """Return the lines of a CSV file with the columns a, b and others, whose entries are text."""
    return [",".join(map(str, row)) for row in zip(A, B, *columns, strict=True)]


def trained(run, *arguments, out="m.safetensors"):
    """Train, and return the metadata of the model and what was printed."""
    code, printed, err = run("train", *arguments, *FAST, "--out", out)
    assert (code, err) == (0, "")
    return bpgpu.MLP.load(out).metadata, printed


def predictions(run, *arguments, model="m.safetensors"):
    code, _, err = run("predict", model, *arguments, "--out", "p.csv", "--backend", "numpy")
    assert code == 0, err
    return pd.read_csv("p.csv", dtype=str, keep_default_na=False), err


# Dialects, found where they are certain, and said


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("t.csv", {"sep": ";"}, "--sep ';'"),
        ("t.csv", {"sep": "\t"}, "--sep tab"),
        ("t.csv", {"sep": "|"}, "--sep '|'"),
        ("t.csv.gz", {"sep": ";", "decimal": ","}, "--sep ';' --decimal ','"),
        ("t.csv", {"encoding": "utf-16"}, "--encoding utf-16"),
        ("t.csv", {"encoding": "utf-8-sig"}, None),
        ("t.tsv", {"sep": "\t"}, None),
        ("t.csv", {}, None),
    ],
)
def test_a_dialect_is_found_and_said(run, write, name, options, said):
    about, printed = trained(run, write(name, **options))
    assert (about["columns"], about["target"], about["classes"]) == (["a", "b"], "y", ["no", "yes"])
    assert (f"note     {name} is read with {said}\n" in printed) == (said is not None)
    assert ("is read with" in printed) == (said is not None)
    pd.testing.assert_frame_equal(read_table(name).frame, ROWS)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ({"sep": " "}, ["--sep", "space"]),
        ({"sep": "\t"}, ["--sep", "tab"]),
        ({"encoding": "cp1252", "columns": {"größe": A}}, ["--encoding", "cp1252"]),
        ({"sep": ";", "decimal": ","}, ["--sep", ";", "--decimal", ","]),
        ({"header": False}, ["--no-header"]),
    ],
)
def test_a_dialect_can_be_said(run, write, written, given):
    columns = ["x0", "x1"] if written == {"header": False} else ["a", "b"]
    drop = [] if "columns" not in written else ["--drop", "größe", "--target", "y"]
    about, _ = trained(run, write("t.csv", **written), *given, *drop)
    assert about["columns"] == columns
    assert about["rows"] == N
    assert predictions(run, "t.csv", *given)[0].shape == (N, 2)


@pytest.mark.parametrize("header", ["a;b;y", None])
def test_excels_line_of_the_separator_is_neither_header_nor_data(run, write, header):
    lines = [line.replace(",", ";") for line in lines_of(K)]
    write("t.csv", "sep=;", *([header] if header else []), *lines)
    about, printed = trained(run, "t.csv", *([] if header else ["--no-header"]))
    assert (len(about["columns"]), about["rows"]) == (2, N)
    assert "note     t.csv is read with --sep ';'" in printed
    write("t.csv", "sep=;", "a;b;y", *lines[:3], "?;1;1", *lines[3:])
    assert "the first '?' in line 6" in run("train", "t.csv", *FAST)[2]
    write("t.csv", "sep=;", "a;b;y", *lines[:3], "1;1;1;1", *lines[3:])
    assert "line 6 has 4 entries" in run("train", "t.csv", *FAST)[2]


def test_a_comma_between_thousands_is_no_decimal_comma(tmp_path, write):
    """1,234 may be either, so nothing is guessed; 0,5 cannot be, nor can 1.5 stand beside it."""
    for entries, decimal in (
        (["1,234", "2,345"], "."),
        (["1,5", "2,345"], ","),
        (["0,123"], ","),
        (["1,5", "x"], "."),
        (["1,5", "2.5"], "."),
    ):
        write("t.csv", "a;b", *(f"{entry};1" for entry in entries))
        assert read_table(str(tmp_path / "t.csv")).decimal == decimal, entries


def test_numbers_with_marks_are_numbers_where_the_marks_are_named(run, write):
    price = [f"{1000 + 100 * a:,.0f}" for a in A]
    write("t.csv", "a,b,price", *lines_of([f'"{p}"' for p in price]))
    assert trained(run, "t.csv", "--thousands", ",")[0]["task"] == "regression"
    table = read_table("t.csv", Reading(thousands=","), lambda names: {"price"})
    np.testing.assert_array_equal(
        Targets.find(table, ["price"], "auto").encode(table), [float(p.replace(",", "")) for p in price]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sep", ";;"], "--sep must be one ASCII character, 'tab' or 'space', got ';;'"),
        (["--sep", "§"], "--sep must be one ASCII character, 'tab' or 'space', got '§'"),
        (["--sep", ","], None),
        (["--sep", ",", "--decimal", ","], "--sep and --decimal must differ"),
        (["--thousands", "."], "--thousands and the decimal mark must differ"),
        (["--thousands", "12"], "--thousands must be one mark"),
        (["--decimal", "x"], "--decimal must be '.' or ','"),
        (["--encoding", "nope"], "--encoding must name a text encoding, like cp1252, got 'nope'"),
        (["--sep", ";"], "but with --sep ',' it has 3; give the latter, or leave --sep out"),
        (["--drop", "z"], "--drop must name a column, got 'z'; there are 'a', 'b', 'y'"),
        (["--drop", "a,b"], "repeat --drop for several"),
        (["--id", "z"], "--id must name a column, got 'z'"),
        (["--encode", "z"], "--encode must name a column, got 'z'"),
        (["--target", "Y"], "--target must name a column, got 'Y'; there are 'a', 'b', 'y'; did you mean 'y'?"),
        (["--drop", "y", "--target", "y"], "--target and --drop must not name the same column, got 'y'"),
        (["--drop", "a", "--drop", "b"], "at least one column other than the target 'y'"),
        (["--target", "a", "--target", "a"], "got twice: 'a'"),
        (["--target", "a", "--target", "y"], "must be all numbers or all of two classes, got 'a': numbers"),
    ],
)
def test_options_that_do_not_suit_the_table(run, write, options, message):
    code, _, err = run("train", write("t.csv"), *FAST, *options)
    assert (code, message is None or message in err) == (0 if message is None else 2, True), err
    assert err.count("\n") == (message is not None)


# Files that say something else than they seem to


def no_header():
    return ROWS.to_csv(index=False, header=False).splitlines()


UNREADABLE = {
    "longer": (
        ["a,b,y", "1,2,no", "1,2,3,no"],
        "line 3 has 4 entries, but the header has 3; put an entry that holds ',', such as a number with a decimal",
    ),
    "shifted": (["a,b,y", *(f"{i},{line}" for i, line in enumerate(lines_of(K)))], "line 2 has 4 entries"),
    "longer after a blank line": (["a,b", "", "1,2", "1,2,3"], "line 4 has 3 entries, but the header has 2"),
    "equal": (["a,a,b,y", "0,1,2,no", "3,4,5,yes"], "two or more columns have the same name: 'a'"),
    "headless": (no_header(), "its first line looks like data, not like names: '0.126', '0.788', 'yes'"),
    "headless numbers": (
        ["5,3,1", "2,4,0", "1,1,1"],
        "like data, not like names: '5', '3', '1'; use --no-header",
    ),
    "headless text": (["p,x,s", "e,x,s", "p,y,k", "p,x,s"], "its first line looks like data"),
    "headless and equal": (["0,0,1", "1,2,0"], "the same name: '0'; rename them, or use --no-header"),
    "empty": (["", ""], "it is empty"),
    "unclosed": (["a,b,y", "1,2,no", '3,"4,no'], "a quotation mark near line 3 is not closed"),
    "zeros": (["a,b", "1,\0"], "has null bytes"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_cannot_be_taken_as_they_stand(run, write, case):
    lines, message = UNREADABLE[case]
    code, out, err = run("train", write("t.csv", *lines), *FAST)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("bpgpu: t.csv: cannot be read as a table: ")
    assert message in err


@pytest.mark.parametrize(
    "header", ["0,1,2", "1990,1995,y", "900.0,902.5,y", "a,b,yes", "1,2,3", "2019,2020,2021"], ids=str
)
def test_names_that_are_numbers_are_names(run, write, header):
    about, _ = trained(run, write("t.csv", header, *lines_of(K)))
    assert about["columns"] == header.split(",")[:2]
    assert about["rows"] == N


@pytest.mark.parametrize("header", ["a,b,y", "a,b,y,"])
def test_a_separator_at_the_end_of_each_line_is_no_column(run, write, header):
    about, printed = trained(run, write("t.csv", header, *(f"{line}," for line in lines_of(K))))
    assert (about["columns"], about["target"]) == (["a", "b"], "y")
    assert "note     t.csv: lines end with a separator; the empty column is left out" in printed


@pytest.mark.parametrize("names", [True, False])
def test_the_index_that_pandas_wrote_is_no_input(run, tmp_path, names):
    """With it, a table that is sorted by its target seems to be learnt, and new rows are all wrong."""
    table = ROWS.sort_values("y", ignore_index=True)
    table.to_csv(tmp_path / "t.csv", index_label=None if names else "Unnamed: 0")
    about, printed = trained(run, "t.csv")
    assert about["columns"] == ["a", "b"]
    assert "note     t.csv: 'Unnamed: 0' numbers or names the rows, as an index does; it is not an input" in printed
    assert predictions(run, "t.csv", "--id", "Unnamed: 0")[0]["Unnamed: 0"].tolist() == [str(i) for i in range(N)]


def test_a_column_without_a_name_is_refused_if_it_is_no_index(run, write):
    code, _, err = run("train", write("t.csv", ",b,y", *("1,2,no", "1,3,yes") * 5), *FAST)
    assert (code, "the column 'Unnamed: 0' has no name; give it one, or --drop 'Unnamed: 0'" in err) == (2, True)
    assert run("train", "t.csv", *FAST, "--drop", "Unnamed: 0")[0] == 0


@pytest.mark.parametrize("last", [K, np.arange(N), np.array(["no", "yes"])[K]], ids=["numbers", "unique", "text"])
def test_a_last_column_without_a_name_is_no_target(run, write, last):
    code, _, err = run("train", write("t.csv", "a,b,", *lines_of(last)), *FAST)
    assert (code, err.count("\n")) == (2, 1)
    assert "t.csv: the last column has no name, so it is not taken as the target; write its name in" in err
    assert "'b'" not in err


def test_a_column_that_counts_the_rows_is_noted(run, write):
    _, printed = trained(run, write("t.csv", columns={"id": np.arange(1, N + 1)}), "--target", "y")
    assert "note     t.csv: 'id' only counts the rows; leave it out with --drop 'id'" in printed


def test_bytes_that_are_not_text_are_named(run, tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,y\n" + b"1,no\n" * 100_000 + "2,größe\n".encode("latin-1"))
    for options, message in (
        ([], "not text in utf-8: byte 0xf6 in line 100002; give its encoding, for example --encoding cp1252"),
        (["--encoding", "ascii"], "not text in ascii: byte 0xf6 in line 100002"),
    ):
        code, _, err = run("train", "t.csv", *FAST, *options)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    table = read_table("t.csv", Reading(encoding="latin-1"))
    assert table.frame["y"].iloc[-1] == "größe"


# Targets


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        ("?", "if it means missing, use --na '?'"),
        ("-", "if it means missing, use --na '-'"),
        ("n.d.", "if it means missing, use --na 'n.d.'"),
        ('"1,234"', "use --thousands ','"),
        ('"12,5"', "use --decimal ','"),
        ("$5", "write it as a plain number"),
        ("5%", "write it as a plain number"),
    ],
)
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("task", [[], ["--task", "regression"]])
def test_numbers_except_for_a_few_entries_are_no_classes(run, write, entry, advice, few, task):
    numbers = [entry if i == 40 else str(i % 3) if few else f"{20 + a}" for i, a in enumerate(A)]
    code, out, err = run("train", write("t.csv", "a,b,mpg", *lines_of(numbers)), *FAST, *task)
    assert (code, out, err.count("\n")) == (2, "", 1)
    plain = entry.strip('"')
    assert f"t.csv: the target 'mpg' holds numbers except for 1 of its entries, the first {plain!r} in line 42" in err
    assert advice in err
    assert ("--task classification" in err) == (not task)
    assert run("train", "t.csv", *FAST, "--task", "classification")[0] == 0


def test_rows_whose_target_is_said_to_be_missing_are_left_out(run, write):
    numbers = ["?" if i % 50 == 3 else f"{20 + a}" for i, a in enumerate(A)]
    about, printed = trained(run, write("t.csv", "a,b,mpg", *lines_of(numbers)), "--na", "?")
    assert (about["task"], about["rows"]) == ("regression", N - 3)
    assert "note     t.csv: 3 rows without a target are left out" in printed
    found, err = predictions(run, "t.csv", "--held-out", "--na", "?")
    assert not {"3", "53", "103"} & set(found["row"])
    assert "r2 " in err
    code, _, err = run("predict", "m.safetensors", "t.csv", "--held-out")
    assert (code, "--na was '?', now not given" in err) == (2, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", "1 missing or infinite entries, the first '' in line 42; leave those rows out, which --na '' does"),
        ("N/A", "the first 'N/A' in line 42; if that is a label, use --na ''"),
        ("inf", "the target 'y' must be finite, got 'inf' in line 42"),
        ("1e39", "the target 'y' has entries too large for float32, the first '1e39' in line 42"),
    ],
)
def test_targets_that_are_no_numbers_after_all(run, write, entry, message):
    numbers = [entry if i == 40 else f"{20 + a}" for i, a in enumerate(A)]
    code, _, err = run("train", write("t.csv", "a,b,y", *lines_of(numbers)), *FAST)
    assert (code, message in err, err.count("\n")) == (2, True, 1), err
    if "--na" in err:
        assert trained(run, "t.csv", "--na", entry)[0]["rows"] == N - 1


@pytest.mark.parametrize("label", ["None", "NA", "null"])
def test_labels_that_pandas_takes_for_missing(run, write, label):
    write("t.csv", columns={"y": np.array([label, "Mild"])[K]})
    code, _, err = run("train", "t.csv", *FAST)
    first = f"{(K == 0).sum()} missing or infinite entries, the first {label!r} in line {2 + int((K == 0).argmax())}"
    assert (code, first in err, "use --na ''" in err) == (2, True, True)
    assert trained(run, "t.csv", "--na", "")[0]["classes"] == sorted([label, "Mild"])
    assert set(predictions(run, "t.csv", "--na", "")[0]["y"]) <= {label, "Mild"}


def test_codes_keep_their_zeros(run, write):
    write("t.csv", columns={"y": np.array(["01001", "02139"])[K], "zip": "01001"})
    about, _ = trained(run, "t.csv", "--target", "y", "--id", "zip")
    assert about["classes"] == ["01001", "02139"]
    found, err = predictions(run, "t.csv")
    assert set(found["y"]) <= {"01001", "02139"}
    assert set(found["zip"]) == {"01001"}
    assert err.startswith("accuracy")


@pytest.mark.parametrize("entries", [[f"name {i}" for i in range(N)], [f"2020-01-{i % 28 + 1} {i}" for i in range(N)]])
def test_text_that_never_repeats_is_no_label(run, write, entries):
    code, _, err = run("train", write("t.csv", columns={"y": entries}), *FAST)
    assert code == 2
    assert f"text with 120 different entries in 120 rows, the first {entries[0]!r} in line 2" in err


def test_labels_of_numbers_and_words_stay_labels(run, write):
    about, _ = trained(run, write("t.csv", columns={"y": np.array(["1", "2", "3+"])[np.arange(N) % 3]}))
    assert about["classes"] == ["1", "2", "3+"]
    assert trained(run, write("t.csv", columns={"y": K > 0}))[0]["classes"] == [False, True]


def test_several_targets(run, write):
    write("t.csv", columns={"c": 3 * A - B, "w": K, "z": (B > 0).astype(int)})
    about, printed = trained(run, "t.csv", "--target", "w", "--target", "z", "--drop", "y")
    assert (about["target"], about["classes"], about["columns"]) == (["w", "z"], [[0, 1], [0, 1]], ["a", "b", "c"])
    assert "target   w: classification, 2 classes\ntarget   z: classification, 2 classes" in printed
    found, _ = predictions(run, "t.csv", "--probabilities")
    assert list(found) == ["row", "w", "z", "p(w=0)", "p(w=1)", "p(z=0)", "p(z=1)"]
    arguments = ["--target", "c", "--target", "b", "--drop", "y", "--epochs", "60", "--out", "r.safetensors"]
    code, out, _ = run("train", "t.csv", *arguments, "--backend", "numpy", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["test_metric"] > 0.5
    table = pd.read_csv("t.csv")
    net = bpgpu.MLP.load("r.safetensors")
    predicted = net.predict(table[net.metadata["columns"]].to_numpy())
    assert np.corrcoef(predicted[:, 0], table["c"])[0, 1] > 0.9  # in the order of the options
    assert run("train", "t.csv", "--target", "y", "--target", "w", *FAST)[0] == 0
    assert bpgpu.MLP.load("m.safetensors").architecture.activations[-1].name == "sigmoid"


@pytest.mark.parametrize(("target", "label"), [("p(a)", "a"), ("row", "no")])
def test_columns_of_the_output_keep_apart(run, write, target, label):
    write("t.csv", columns={target: np.array(list("ab"))[K]})
    trained(run, "t.csv", "--target", target, "--drop", "y")
    found, _ = predictions(run, "t.csv", "--probabilities")
    assert len(set(found)) == 4
    assert set(found[target]) <= {"a", "b"}
    assert predictions(run, "t.csv", "--id", "y")[0].columns.tolist() == [
        "row number" if target == "row" else "row",
        "y",
        target,
    ]
    code, _, err = run("predict", "m.safetensors", "t.csv", "--id", target)
    assert (code, f"got twice: {target!r}" in err) == (2, True)


# Arrays and Parquet


def test_archives_say_what_they_hold(run, tmp_path):
    X = ROWS[["a", "b"]].to_numpy()
    for name, arrays, message in (
        (
            "only.npz",
            {"X": X},
            "has no targets; it holds X (120, 2) float64: add y, the targets, or name a column of X",
        ),
        ("keras.npz", {"x_train": X, "y_train": K}, "it holds x_train (120, 2) float64, y_train (120,) int64"),
        ("short.npz", {"X": X, "y": K[1:]}, "the same number of rows; it holds X (120, 2) float64, y (119,) int64"),
    ):
        np.savez(tmp_path / name, **arrays)
        code, _, err = run("train", name, *FAST)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    assert trained(run, "only.npz", "--target", "x1")[0]["columns"] == ["x0"]


@pytest.mark.parametrize(
    ("y", "target", "classes"),
    [
        (np.eye(2)[K], "y", [0, 1]),
        (K[:, None], "y", [0, 1]),
        (ROWS["y"].to_numpy().astype("U"), "y", ["no", "yes"]),
        (np.c_[A, B], ["y0", "y1"], [[], []]),
        (K.astype(">i2"), "y", [0, 1]),
    ],
)
def test_the_targets_of_an_archive(run, tmp_path, y, target, classes):
    np.savez(tmp_path / "t.npz", X=ROWS[["a", "b"]].to_numpy().astype(">f4"), y=y)
    about, printed = trained(run, "t.npz")
    assert (about["target"], about["classes"], about["columns"]) == (target, classes, ["x0", "x1"])
    assert ("y has one 1 in each row" in printed) == (y.shape == (N, 2) and target == "y")


@pytest.mark.parametrize(("name", "kind"), [("X", "float"), ("y", "str")])
def test_an_archive_of_objects_says_which_array_holds_them(run, tmp_path, name, kind):
    arrays = {"X": ROWS[["a", "b"]].to_numpy(), "y": ROWS["y"].to_numpy().astype("U")}
    np.savez(tmp_path / "t.npz", **arrays | {name: arrays[name].astype(object)})
    code, _, err = run("train", "t.npz", *FAST)
    assert (code, err.count("\n")) == (2, 1)
    assert f"its array {name} holds Python objects; save it as {name}.astype({kind})" in err


def test_any_byte_order_and_fields(run, tmp_path):
    np.save(tmp_path / "big.npy", np.c_[A, B, K].astype(">f8"))
    np.save(tmp_path / "fields.npy", ROWS.assign(y=K).to_records(index=False))
    assert trained(run, "big.npy")[0]["classes"] == [0.0, 1.0]
    assert trained(run, "fields.npy")[0]["columns"] == ["a", "b"]


def test_an_index_of_parquet_is_no_column(run, tmp_path):
    index = pd.MultiIndex.from_arrays([np.arange(N) // 10, np.arange(N) % 10], names=["day", None])
    ROWS.set_index(index).to_parquet(tmp_path / "t.parquet")
    about, printed = trained(run, "t.parquet")
    assert about["columns"] == ["a", "b"]
    assert "note     t.parquet: 'day' is an index that pandas wrote; it is not an input" in printed
    found, _ = predictions(run, "t.parquet", "--id", "day")
    assert (list(found), found["row"].tolist()) == (["row", "day", "y"], [str(i) for i in range(N)])
    assert found["day"].tolist() == [str(i // 10) for i in range(N)]


# Text and missing entries


def towns(rows=N):
    town = np.array(["Rome", "Paris", "Oslo"])[np.arange(rows) % 3].astype(object)
    town[5] = None
    return pd.DataFrame(
        {
            "town": town,
            "age": np.where(np.arange(rows) % 7 == 0, np.nan, np.arange(rows)),
            "y": np.array(["no", "yes"])[(np.arange(rows) % 3 == 0).astype(int)],
        }
    )


@pytest.mark.parametrize("encode", [["--encode", "auto"], ["--encode", "town", "--encode", "age"]])
def test_text_and_holes_become_numbers_inside_the_model(run, tmp_path, encode):
    towns().to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = run(
        "train", "t.csv", *encode, "--epochs", "40", "--backend", "numpy", "--out", "m.safetensors", "--json"
    )
    result = json.loads(out.splitlines()[-1])
    assert (code, result["test_metric"] > 0.9) == (0, True)
    net = bpgpu.MLP.load("m.safetensors")
    assert net.metadata["categories"]["town"][:3] == ["Oslo", "Paris", "Rome"]
    assert list(net.metadata["fill"]) == ["age"]
    _, out, _ = run("predict", "m.safetensors", "t.csv", "--held-out", "--json", "--out", "p.csv", "--backend", "numpy")
    assert json.loads(out.splitlines()[-1])["test_metric"] == result["test_metric"]
    new = pd.DataFrame({"age": [1.0, np.nan, 3], "town": ["Rome", "Rome", "Cairo"], "more": 1})
    new.to_csv("new.csv", index=False)
    found, err = predictions(run, "new.csv")
    assert found["y"].tolist()[:2] == ["yes", "yes"]
    assert "note: new.csv: 'town' holds entries that training did not see, in 1 rows: 'Cairo'; they count as" in err
    new.to_parquet("new.parquet")
    assert predictions(run, "new.parquet")[0].equals(found)


def test_an_exported_network_says_what_its_inputs_are(run, tmp_path):
    pytest.importorskip("onnxruntime")
    towns().to_csv(tmp_path / "t.csv", index=False)
    trained(run, "t.csv", "--encode", "auto")
    code, out, _ = run("export", "m.safetensors", "m.onnx")
    assert code == 0
    assert "X has the columns 'town=Oslo', 'town=Paris', 'town=Rome', 'age', without missing entries" in out


def test_the_numbers_that_encoding_gives():
    table = Table(towns(12), "t")
    inputs = Inputs.find(table, ["town", "age"], ["auto"], np.arange(1, 12))
    assert inputs.names == ["town=Oslo", "town=Paris", "town=Rome", "town=", "age"]
    known = [float(i) for i in range(1, 12) if i % 7]
    assert inputs.fill == {"age": np.mean(known)}
    matrix = np.vstack(list(Rows(inputs, table, np.array([0, 1, 5, 7]))))
    mean = np.mean(known)
    np.testing.assert_array_equal(matrix, [[0, 0, 1, 0, mean], [0, 1, 0, 0, 1], [0, 0, 0, 1, 5], [0, 1, 0, 0, mean]])
    unseen = Table(pd.DataFrame({"town": [None, "Cairo"], "age": [1, 2]}), "t")
    seen = Inputs(["town", "age"], {"town": ["Oslo", "Rome"]}, {})
    np.testing.assert_array_equal(np.vstack(list(Rows(seen, unseen, np.arange(2)))), [[0, 0, 1], [0, 0, 2]])
    assert Inputs.of(inputs.describe()) == inputs


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"c": "x"}, [], "these columns are not numeric: 'c'; 'c' holds 'x' in line 2; encode text with --encode NAME"),
        ({"c": ["?"] + ["1"] * (N - 1)}, [], "'c' holds numbers except for 1 of its entries, the first '?' in line 2"),
        ({"c": ["?"] + ["1"] * (N - 1)}, ["--encode", "auto"], "if it means missing, use --na '?'"),
        ({"c": ["1,5"] * N}, ["--encode", "auto"], "the first '1,5' in line 2; use --decimal ','"),
        ({"c": [f"name {i}" for i in range(N)]}, ["--encode", "auto"], "'c' has 120 different entries in 120 rows"),
        ({"c": [None] * N}, ["--encode", "auto"], "the column 'c' is empty; leave it out with --drop 'c'"),
        ({"c": [None, *range(N - 1)]}, [], "missing or infinite entries: 'c'; 'c' has 1, the first '' in line 2; fill"),
        (
            {"c": ["1e400", None, *range(N - 2)]},
            ["--encode", "c"],
            "'c' has 1, the first '1e400' in line 2; correct the",
        ),
        ({f"column {i}": "x" for i in range(30)}, [], "'column 7' and 22 more; 'column 0' holds 'x' in line 2"),
    ],
)
def test_columns_that_are_no_numbers(run, write, columns, options, message):
    write("t.csv", columns=columns)
    code, _, err = run("train", "t.csv", "--target", "y", *FAST, *options)
    assert (code, message in err, err.count("\n")) == (2, True, 1), err
    if "different entries" in message:
        assert run("train", "t.csv", "--target", "y", *FAST, "--encode", "c")[0] == 0


def test_booleans_with_holes_are_numbers(run, tmp_path):
    flags = ROWS.assign(flag=np.array([True, False, None], dtype=object)[np.arange(N) % 3])[["flag", "a", "y"]]
    flags.to_csv(tmp_path / "t.csv", index=False)
    flags.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        assert "missing or infinite entries: 'flag'" in run("train", name, *FAST)[2]
        assert trained(run, name, "--encode", "flag")[0]["fill"]["flag"] == pytest.approx(0.5, abs=0.1)


def test_the_numbers_of_the_rows_get_a_name_of_their_own(run, write):
    write("t.csv", columns={"row": "a", "row number": "b", "y": ROWS["y"]})
    trained(run, "t.csv", "--target", "y", "--id", "row", "--id", "row number")
    run("predict", "m.safetensors", "t.csv", "--out", "p.csv")
    assert list(pd.read_csv("p.csv")) == ["row number 2", "row", "row number", "y"]


def test_ids_are_no_inputs_and_are_copied_as_they_stand(run, write):
    write("t.csv", columns={"id": [f"{i:05d}" for i in range(N)]})
    about, _ = trained(run, "t.csv", "--id", "id", "--target", "y")
    assert (about["columns"], about["ids"]) == (["a", "b"], ["id"])
    found, _ = predictions(run, "t.csv", "--id", "a")
    assert list(found) == ["row", "id", "a", "y"]
    assert found["id"].tolist() == [f"{i:05d}" for i in range(N)]
    pd.read_csv("t.csv").drop(columns="id").to_csv("new.csv", index=False)
    assert list(predictions(run, "new.csv")[0]) == ["row", "y"]


@pytest.mark.parametrize(
    "change",
    [
        {"columns": []},
        {"columns": ["a", "a"]},
        {"columns": "ab"},
        {"columns": ["a"]},
        {"classes": "ab"},
        {"classes": [None]},
        {"classes": [[1], [2]]},
        {"classes": ["a", "b", "c"]},
        {"task": "guess"},
        {"target": ["y", "z"]},
        {"target": 3},
        {"categories": {"z": ["a"]}},
        {"categories": {"a": []}},
        {"categories": {"a": [1]}},
        {"categories": ["a"]},
        {"fill": {"a": "x"}},
        {"fill": {"a": float("nan")}},
        {"fill": {"a": True}},
        {"ids": "id"},
        {"reading": ["--na"]},
    ],
)
def test_a_model_that_says_nonsense_of_its_table_is_refused(run, write, change):
    net = bpgpu.MLP([2, 1], "sigmoid", "binary_cross_entropy")
    about = {"columns": ["a", "b"], "target": "y", "task": "classification", "classes": ["no", "yes"]}
    net.metadata = about
    write("t.csv")
    net.save("good.safetensors")
    assert predictions(run, "t.csv", model="good.safetensors")[0].shape == (N, 2)
    net.metadata = about | change
    try:
        net.save("bad.safetensors")
    except (ValueError, TypeError):  # what JSON cannot hold
        return
    code, _, err = run("predict", "bad.safetensors", "t.csv")
    assert (code, err.count("\n"), err.startswith("bpgpu: bad.safetensors")) == (2, 1, True), err


# Several files


def test_shards_and_patterns_are_one_table(run, tmp_path):
    ROWS[:70].to_csv(tmp_path / "part-1.csv", index=False)
    ROWS[70:][["y", "b", "a"]].to_csv(tmp_path / "part-2.csv", index=False)
    ROWS.to_csv(tmp_path / "whole.csv", index=False)
    trained(run, "whole.csv", out="w.safetensors")
    for data in (["part-*.csv"], ["part-1.csv", "part-2.csv"]):
        about, _ = trained(run, *data)
        assert about["rows"] == N
        np.testing.assert_array_equal(
            bpgpu.MLP.load("m.safetensors").parameters, bpgpu.MLP.load("w.safetensors").parameters
        )
        assert len(predictions(run, *data, "--held-out")[0]) == 24
    assert run("predict", "m.safetensors", "part-2.csv", "part-1.csv", "--held-out")[0] == 2
    ROWS.rename(columns={"a": "A"}).to_csv("part-3.csv", index=False)
    code, _, err = run("train", "part-*.csv")
    assert (code, "part-3.csv: must have the columns of part-1.csv; missing: 'a'; not there: 'A'" in err) == (2, True)
    ROWS.assign(b=np.where(ROWS.index == 4, "?", ROWS["b"])).to_csv("part-3.csv", index=False)
    _, _, err = run("train", "part-*.csv")
    assert "the column 'b' holds numbers except for 1 of its entries, the first '?' in line 6 of part-3.csv" in err
    for name, message in (("none*.csv", "none*.csv: No such file"), (".", ". is a folder; name its files")):
        code, _, err = run("train", name)
        assert (code, message in err) == (2, True)


def test_codes_that_look_like_numbers_in_one_file_alone_are_codes_in_all(run, tmp_path):
    codes = np.where(np.arange(N) < 40, np.where(K, "01001", "02139"), np.where(K, "K1A", "H2X"))
    table = pd.DataFrame({"a": A, "code": codes, "y": ROWS["y"]})
    table[:40].to_csv(tmp_path / "part-1.csv", index=False)
    table[40:].to_csv(tmp_path / "part-2.csv", index=False)
    code, out, err = run("train", "part-*.csv", "--encode", "auto", *FAST, "--out", "m.safetensors", "--json")
    assert code == 0, err
    assert bpgpu.MLP.load("m.safetensors").metadata["categories"] == {"code": ["01001", "02139", "H2X", "K1A"]}
    _, again, err = run("predict", "m.safetensors", "part-*.csv", "--held-out", "--json", "--out", "p.csv")
    assert "did not see" not in err
    assert json.loads(again)["test_metric"] == json.loads(out)["test_metric"]


def test_a_file_whose_name_is_a_pattern_is_itself(run, tmp_path):
    ROWS.to_csv(tmp_path / "t[12].csv", index=False)
    (tmp_path / "t1.csv").write_text("no")
    assert trained(run, "t[12].csv")[0]["rows"] == N


def test_held_out_rows_are_those_of_this_very_table(run, tmp_path):
    ROWS.to_csv(tmp_path / "t.csv", index=False)
    ROWS.sample(frac=1, random_state=1).to_csv(tmp_path / "other.csv", index=False)
    trained(run, "t.csv")
    assert len(predictions(run, "t.csv", "--held-out")[0]) == 24
    code, _, err = run("predict", "m.safetensors", "other.csv", "--held-out")
    assert (code, "--held-out needs exactly the training table, but the content of other.csv is different" in err) == (
        2,
        True,
    )


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_memory_is_that_of_the_table_and_what_is_trained_on(tmp_path, kind):
    """Of 80 MB of float64 a training needs half as much more in float32; nine times as much it took once."""
    X = np.random.default_rng(0).standard_normal((100_000, 100))
    y = (X[:, 0] > 0).astype(int)
    if kind == "npz":
        np.savez(tmp_path / "t.npz", X=X, y=y)
    else:
        pd.DataFrame(X).rename(columns=str).assign(y=y).to_parquet(tmp_path / "t.parquet")
    code = """
import resource, sys
from bpgpu.cli import run
options = "--epochs 1 --hidden 8 --batch-size 1000 --backend numpy".split()
small, large = (["train", name, *options] for name in sys.argv[1:])
assert run(small) == 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert run(large) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    np.savez(tmp_path / "s.npz", X=X[:2000], y=y[:2000])
    ROWS.to_parquet(tmp_path / "s.parquet")
    found = subprocess.run(
        [sys.executable, "-c", code, f"s.{kind}", f"t.{kind}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(found.stdout.splitlines()[-1]) / 1024 < 2.5 * X.nbytes / 2**20
