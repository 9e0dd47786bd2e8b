"""Model files whose description was changed by a stranger: each gives a network that works, or the error for bad files.

And the same validator on the way out: what would be refused when it is loaded cannot be saved.
"""

import copy
import json
import math
import os
import random
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from safetensors import safe_open

import bpgpu
from bpgpu import cli

ROWS = 24
CHANGES = int(os.environ.get("BPGPU_FUZZ_MODELS", "60"))  # of each model
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 1.5, math.nan, math.inf, 2**31, 2**32, 2**63, 10**400, -(10**400), 1e300, 1e-300),
    *("", "abc", "1", "softmax", "regression", "classification", "\ud800", "\0", "a,b", "x" * 5000),
    *(
        [],
        [None],
        ["a"],
        ["a", "a"],
        ["a", "b"],
        ["a", "b", "c"],
        [1, 2],
        [0, 1],
        [True, False],
        [1, 1.0],
        [math.nan] * 2,
    ),
    *([[]], [["a", "b"]], [{}], [1, "a"], [[1, 2], [3, 4]], list(range(300))),
    *({}, {"a": 1}, {"": []}, {"name": [1], "value": "z", "derivative": "1"}, {"name": "x", "value": "z"}),
]


def table(kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(ROWS, 2)), columns=["u", "v"])
    if kind == "categories":
        frame["kind"] = ["red", "green", None] * (ROWS // 3)
    classes = {"two": ["no", "yes"], "three": ["a", "b", "c"], "whole": [0, 1, 2]}
    frame["y"] = classes[kind] * (ROWS // len(classes[kind])) if kind in classes else rng.normal(size=ROWS)
    return frame


@pytest.fixture(scope="module", params=["two", "three", "whole", "numbers", "categories"])
def trained(request, tmp_path_factory):
    """Return a table, the arrays of a model that was trained on it, and its description."""
    folder = tmp_path_factory.mktemp("trained")
    data, model = folder / "data.csv", folder / "model.safetensors"
    table(request.param).to_csv(data, index=False)
    command = ["train", str(data), "--epochs", "1", "--hidden", "3", "--backend", "numpy", "--out", str(model)]
    assert cli.run([*command, *(["--encode", "auto"] if request.param == "categories" else [])]) == 0
    with safe_open(model, framework="numpy") as file:
        description = json.loads(file.metadata()["bpgpu"])
    return data, safetensors.numpy.load_file(model), description


def changed(description, rng):
    """Return a description with one to three places changed, and something left out or put in."""
    description = copy.deepcopy(description)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        place = description.get("metadata") if rng.random() < 0.6 else description
        while isinstance(place, dict | list) and place and rng.random() < 0.5:
            inner = [
                x for x in (place.values() if isinstance(place, dict) else place) if isinstance(x, dict | list) and x
            ]
            if not inner:
                break
            place = rng.choice(inner)
        if not isinstance(place, dict | list) or not place:
            continue
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        how = rng.random()
        if how < 0.1:
            del place[key]
        elif how < 0.2 and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif how < 0.25 and isinstance(place, dict):
            place[rng.choice(["ids", "categories", "fill", "rows", "fraction", "more"])] = copy.deepcopy(
                rng.choice(VALUES)
            )
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return description


@pytest.mark.filterwarnings("ignore:cost .* is defined for outputs")
def test_a_changed_description(trained, tmp_path, capsys):
    data, tensors, description = trained
    rng = random.Random(0)
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    refused = predicted = 0
    for number in range(CHANGES):
        text = json.dumps(description if number == 0 else changed(description, rng))
        safetensors.numpy.save_file(tensors, path, metadata={"bpgpu": text})
        try:
            net = bpgpu.MLP.load(path, backend="numpy")
        except bpgpu.ModelFileError as error:
            refused += 1
            assert str(error).startswith(f"{path} ") and len(str(error)) < len(str(path)) + 700, text
            assert refused % 10 or cli.run(["predict", str(path), str(data)]) == 2
            continue
        X = np.ones((2, net.architecture.sizes[0]))
        with np.errstate(all="ignore"):
            outputs = net.predict(X)
            net.save(again)
            loaded = bpgpu.MLP.load(again, backend="numpy")
            assert loaded.predict(X).tobytes() == outputs.tobytes()
        assert (loaded.architecture, loaded.metadata, loaded.epoch) == (net.architecture, net.metadata, net.epoch)
        capsys.readouterr()
        more = ["--probabilities"] if number % 2 else []
        code = cli.run(["predict", str(path), str(data), "--backend", "numpy", *more])
        out, err = capsys.readouterr()
        assert code in (0, 2), text
        assert all(len(line) < len(str(path)) + 1500 for line in err.splitlines()), err
        if code == 0:
            predicted += 1
            assert len(out.splitlines()) == ROWS + 1, text
        else:
            assert err.splitlines()[-1].startswith("bpgpu: ") and not out, text
        if number == 0:
            assert code == 0
    assert refused > CHANGES // 6 and predicted > CHANGES // 30


BAD = [
    ({"classes": "abc"}, "'classes'"),
    ({"classes": [None]}, "'classes'"),
    ({"classes": [["a"], ["b"]]}, "'classes'"),
    ({"columns": ""}, "'columns'"),
    ({"columns": ["u", "u"]}, "'columns'"),
    ({"columns": [1, 2]}, "'columns'"),
    ({"columns": ["u"]}, "inputs"),
    ({"target": None}, "'target'"),
    ({"task": ["regression"]}, "'task'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=str)
@pytest.mark.parametrize("trained", ["two"], indirect=True)
@pytest.mark.parametrize("command", ["predict", "export"])
def test_what_a_file_says_of_its_table(trained, change, message, command, tmp_path, capsys):
    data, tensors, description = trained
    path = tmp_path / "model.safetensors"
    description = description | {"metadata": description["metadata"] | change}
    safetensors.numpy.save_file(tensors, path, metadata={"bpgpu": json.dumps(description)})
    capsys.readouterr()
    assert cli.run([command, str(path), str(data if command == "predict" else tmp_path / "net.onnx")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"bpgpu: {path}: the file's description of its table is damaged: ") and message in err


# What goes in


ROUND = {
    "text": 'ü \ud800 \0 "',
    "numbers": [0, -1, 2**70, 1.5, -0.0, 1e-320, 1.7976931348623157e308],
    "more": [True, False, None, {}, [], {"": {"a": [[[]]]}}],
}


def test_metadata_come_back_equal(make_net, tmp_path):
    net = make_net()
    for metadata in (ROUND, {"of NumPy": [np.float64(0.1), np.str_("a")]}, OrderedDict(b=1, a=2)):
        net.metadata = metadata
        net.save(tmp_path / "net")
        loaded = bpgpu.MLP.load(tmp_path / "net", backend="numpy").metadata
        assert loaded == metadata and list(loaded) == list(metadata)
        assert json.dumps(loaded) == json.dumps(metadata), "of the same types, and signs of zero"


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def circle():
    value = {}
    value["self"] = value
    return value


UNFIT = [
    ({1: 2}, TypeError, "the keys of metadata must be text, got 1; JSON would turn it into text"),
    ({"a": [{None: 2}]}, TypeError, r"the keys of metadata\['a'\]\[0\] must be text, got None"),
    ({"a": (1, 2)}, TypeError, r"metadata\['a'\] is not JSON serializable: it is of type tuple; turn it into a list"),
    ({"a": {1, 2}}, TypeError, r"metadata\['a'\] is not JSON serializable: it is of type set"),
    ({"a": np.int64(1)}, TypeError, r"metadata\['a'\] is not JSON serializable: it is of type int64"),
    ({"a": b"x"}, TypeError, r"metadata\['a'\] is not JSON serializable: it is of type bytes"),
    ({"a": [0, math.nan]}, ValueError, r"metadata\['a'\]\[1\] must be finite, got nan, which JSON does not have"),
    ({"a": -math.inf}, ValueError, r"metadata\['a'\] must be finite, got -inf"),
    ({"a": 10**5000}, ValueError, r"metadata\['a'\] must be an integer of at most 2000 bits, got an integer of 16610"),
    ({"a": nested(200)}, ValueError, "metadata must be nested at most 100 levels deep"),
    (circle(), ValueError, "metadata must be nested at most 100 levels deep"),
    ([1], TypeError, "metadata must be a dict, got list"),
    (None, TypeError, "metadata must be a dict, got NoneType"),
]


@pytest.mark.parametrize(("metadata", "error", "message"), UNFIT, ids=[message[:50] for *_, message in UNFIT])
def test_metadata_that_would_not_come_back_are_not_saved(make_net, tmp_path, metadata, error, message):
    net = make_net()
    net.metadata = metadata
    with pytest.raises(error, match="^" + message) as caught:
        net.save(tmp_path / "net")
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


def test_metadata_larger_than_a_file_may_hold(make_net, tmp_path):
    """safetensors reads no header of more than 100 MB."""
    net = make_net()
    net.metadata = {"a": "x" * 100_000_001}
    with pytest.raises(ValueError, match=r"^metadata must be at most about 100000000 bytes of JSON, got 100000"):
        net.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net, "parameters", net.parameters.astype(np.float32)),
        lambda net: setattr(net, "parameters", net.parameters[:-1]),
        lambda net: net.weights[0].__setitem__((0, 1), 3.0),
    ],
    ids=["dtype", "length", "a weight where there is no connection"],
)
def test_parameters_that_would_not_come_back_are_not_saved(make_net, tmp_path, spoil):
    net = make_net(connectivity=[np.eye(3, 5), None])
    spoil(net)
    with pytest.raises(ValueError, match=r"^parameters must be|^weights\[0\] must be 0 wherever connectivity"):
        net.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())
