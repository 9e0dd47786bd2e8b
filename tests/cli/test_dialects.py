"""CSV files that are not written as the options, or the lack of options, say: the message says what was found."""

import numpy as np
import pandas as pd
import pytest

import bpgpu
from bpgpu.cli.reading import Reading
from bpgpu.cli.tables import read_table

rng = np.random.default_rng(0)
A, B = rng.normal(size=(2, 60)).round(2)
ROWS = pd.DataFrame({"a": A, "b": B, "y": np.where(A + B > 0, "yes", "no")})
NUMBERS = ROWS.assign(y=(A + B > 0).astype(int))
WORDS = pd.DataFrame({"k": ["u", "v", "w"] * 20, "y": ["no", "yes"] * 30})


@pytest.fixture
def train(run, tmp_path):
    """Return a function that trains on a table of this text."""

    def on(text, *options):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return run("train", "t.csv", "--epochs", "1", "--backend", "numpy", "--out", "m.safetensors", *options)

    return on


COMMENTS = {
    "narrower": "# made by me\n" + ROWS.to_csv(index=False),
    "several": "# made by me\n# in 2020\n" + ROWS.to_csv(index=False),
    "as wide as the table": "# made by me, in 2020\n" + WORDS.to_csv(index=False),
    "without a blank": "#made by me\n#in 2020\n" + WORDS.to_csv(index=False),
    "after blank lines": "\n\n# made by me\n" + ROWS.to_csv(index=False),
    "before the separator": "# made by me\n" + ROWS.to_csv(index=False, sep=";"),
}


@pytest.mark.parametrize("case", COMMENTS)
def test_comments_are_no_names(train, case):
    for options in ([], ["--no-header"]):
        code, out, err = train(COMMENTS[case], *options, "--encode", "auto")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "t.csv: cannot be read as a table: its first line begins with '#', like a comment; use --comment" in err
    code, _, err = train(COMMENTS[case], "--comment", "#", "--encode", "auto")
    assert (code, err) == (0, "")
    names = list((WORDS if "k,y" in COMMENTS[case] else ROWS).columns)
    assert [*bpgpu.MLP.load("m.safetensors").metadata["columns"], "y"] == names


@pytest.mark.parametrize("first", ["#a", '"# of a"', "#"])
def test_names_may_begin_with_the_mark_of_comments(train, first):
    code, out, err = train(ROWS.to_csv(index=False).replace("a", first, 1))
    assert (code, err) == (0, "")
    name = first.strip('"')
    assert bpgpu.MLP.load("m.safetensors").metadata["columns"] == [name, "b"]
    assert (f"note     t.csv is read with the names '{name}', 'b', 'y'" in out) == (first != '"# of a"')


def test_comments_are_left_out_wherever_they_stand(train, tmp_path):
    lines = ROWS.to_csv(index=False).splitlines()
    lines[0] += " # the names, as they are"
    lines[5] += '# why, "oh why'
    lines.insert(20, "# in between")
    text = "\n".join(["# first", *lines]) + "\n"
    assert train(text, "--comment", "#")[0] == 0
    expected = pd.read_csv(tmp_path / "t.csv", comment="#").rename(columns=str.strip)
    found = read_table("t.csv", Reading(comment="#")).frame.rename(columns=str.strip)
    pd.testing.assert_frame_equal(found, expected)
    code, _, err = train(text.replace(lines[40], "?,1,no"), "--comment", "#")
    assert (code, "'?' in line 42; if it means missing" in err) == (2, True), err


@pytest.mark.parametrize("mark", ["##", "", "a", '"', "\n", "§"])
def test_the_mark_of_comments_is_one_character(train, mark):
    code, _, err = train(ROWS.to_csv(index=False), "--comment", mark)
    assert (code, "--comment must be one mark, like '#', and differ from --sep, got" in err) == (2, True)


COMMAS = ROWS.to_csv(index=False, sep=";", decimal=",")
MISTAKES = [
    (
        ROWS.to_csv(index=False),
        ["--sep", "|"],
        "with --sep '|' its first line is one entry, but with --sep ',' it has 3",
    ),
    (ROWS.to_csv(index=False), ["--sep", "space"], "with --sep space its first line is one entry, but with --sep ','"),
    (
        ROWS.to_csv(index=False, sep="\t"),
        ["--sep", ","],
        "is one entry, but with --sep tab it has 3; give the latter, or",
    ),
    (COMMAS, ["--sep", ","], "with --sep ',' its first line is one entry, but with --sep ';' it has 3"),
    (
        ROWS.to_csv(index=False),
        ["--decimal", ","],
        f"its numbers have points, the first '{A[0]}', and none has a comma;",
    ),
    (COMMAS, ["--decimal", "."], "'0,13' in line 2; use --decimal ','; or take"),
    (ROWS.to_csv(index=False), ["--no-header"], "its first line looks like names, not like data: 'a', 'b', 'y'; leave"),
    (NUMBERS.to_csv(index=False), ["--no-header"], "its first line looks like names, not like data: 'a', 'b', 'y'"),
    (NUMBERS.to_csv(), ["--no-header"], "its first line looks like names, not like data: 'nan', 'a', 'b', 'y'"),
    (COMMAS, ["--no-header"], "its first line looks like names, not like data: 'a', 'b', 'y'; leave --no-header out"),
    ("My table\n\n" + ROWS.to_csv(index=False), [], "or use another --sep, and delete the first line if it is a title"),
]


@pytest.mark.parametrize(("text", "options", "message"), MISTAKES)
def test_options_that_the_file_contradicts(train, text, options, message):
    code, out, err = train(text, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            ROWS.assign(a=[f"{a:.2f}".replace(".", ",") for a in A]).to_csv(index=False),
            ["--decimal", ",", "--drop", "b"],
        ),
        (ROWS.assign(a=(1000 * A).astype(int)).to_csv(index=False, header=False), ["--no-header"]),
        (WORDS.to_csv(index=False, header=False), ["--no-header", "--encode", "auto"]),
        (ROWS.assign(a=["1.234", "5.678"] * 30, b=0).to_csv(index=False), ["--decimal", ",", "--thousands", "."]),
        ("?,?,yes\n" + ROWS.to_csv(index=False, header=False), ["--no-header", "--na", "?", "--encode", "auto"]),
    ],
)
def test_options_that_suit_the_file_after_all(train, text, options):
    code, _, err = train(text, *options)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("encoding", ["idna", "punycode", "undefined", "rot13", "hex", "nope", "", "a\0b"])
@pytest.mark.parametrize("command", [["train", "none.csv"], ["predict", "none.safetensors", "none.csv"]], ids=" ".join)
def test_what_is_no_encoding_of_text_is_refused_before_any_work(run, command, encoding):
    code, out, err = run(*command, "--encoding", encoding)
    assert (code, out) == (2, "")
    assert err == f"bpgpu: --encoding must name a text encoding, like cp1252, got {encoding!r}\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-7", "utf-8-sig", "cp037", "iso2022_jp", "latin-1"])
def test_encodings_of_text(tmp_path, encoding):
    ROWS.to_csv(tmp_path / "t.csv", index=False, encoding=encoding)
    found = read_table(str(tmp_path / "t.csv"), Reading.checked(encoding=encoding)).frame
    pd.testing.assert_frame_equal(found, ROWS)
