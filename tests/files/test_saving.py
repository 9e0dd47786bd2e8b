"""Model files: round trips, atomic writing, and files that are damaged, foreign or hostile."""

import dataclasses
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

import bpgpu

CUBE = bpgpu.Activation("cube", value="z ** 3", derivative="3 * z ** 2")
LOG_COSH = bpgpu.Cost("log_cosh", "abs(a - y) + log1p(exp(-2 * abs(a - y)))", "tanh(a - y)", reduction="mean")
# A user's formula under a name of the table: the file must keep the formula.
OWN_RELU = bpgpu.Activation("relu", value="where(z < 0, 0.5 * z, z)", derivative="where(z < 0, 0.5, 1)")
MASKS = [np.tri(3, 5), None]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def load(path):
    return bpgpu.MLP.load(path, backend="numpy")


# Round trips


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32"},
        {"bias": False},
        {"connectivity": MASKS},
        {"bias": False, "connectivity": MASKS, "dtype": "float32"},
        {"activations": (CUBE, OWN_RELU), "cost": LOG_COSH},
        {"activations": ("gelu", "softmax"), "cost": "cross_entropy"},
        {"l2": 0.1 + 1e-17, "dropout": 1 / 3, "seed": 2**64 - 1},
        {"sizes": (3, 2), "activations": "linear"},
        {"sizes": (3, 1, 4, 2), "activations": "swish"},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_round_trip(make_net, data, path, options):
    X, y = data()
    net = make_net(**options)
    net.fit(X, y, epochs=2)
    net.metadata = {"classes": ["a", "ü", 3], "nested": {"x": [1.5, None, True]}}
    net.save(path)
    loaded = load(path)
    assert loaded.architecture == net.architecture
    assert loaded.parameters.tobytes() == net.parameters.tobytes()
    assert loaded.parameters.dtype == net.parameters.dtype
    for mask, original in zip(loaded.masks, net.masks, strict=True):
        assert mask is original is None or np.array_equal(mask, original)
    assert loaded.epoch == 2
    assert loaded.metadata == net.metadata
    assert loaded.predict(X).tobytes() == net.predict(X).tobytes()
    for model in (net, loaded):
        model.fit(X, y, epochs=1)
    assert loaded.parameters.tobytes() == net.parameters.tobytes()


def test_a_drawn_seed_is_kept(make_net, path):
    net = make_net(seed=None)
    net.save(path)
    assert load(path).architecture.seed == net.architecture.seed


@pytest.mark.parametrize("bias", [True, False])
def test_tensors_have_documented_names(make_net, path, bias):
    net = make_net((3, 5, 4, 2), "tanh", bias=bias, connectivity=[None, np.eye(5, 4), None])
    net.save(str(path))
    tensors = safetensors.numpy.load_file(path)
    expected = {f"W.{l}": W for l, W in enumerate(net.weights, start=1)} | {"mask.2": np.eye(5, 4)}
    if bias:
        expected |= {f"b.{l}": b for l, b in enumerate(net.biases, start=1)}
    assert set(tensors) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(tensors[name], array)
        assert tensors[name].dtype == np.float64


def test_a_file_may_be_overwritten_by_the_network_it_gave(make_net, data, path):
    X, y = data()
    make_net().save(path)
    net = load(path)
    net.fit(X, y, epochs=1)
    net.save(path)
    assert np.array_equal(load(path).parameters, net.parameters)


# Writing


def fail(*args, **kwargs):
    raise OSError("no space left on device")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [True, False], ids=["over a file", "new file"])
@pytest.mark.parametrize("error", [fail, interrupt])
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace"), (Path, "chmod")], ids=str)
def test_writing_is_atomic(make_net, path, monkeypatch, existing, error, owner, name):
    if existing:
        make_net().save(path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with monkeypatch.context() as patch, pytest.raises((OSError, KeyboardInterrupt)):
        patch.setattr(owner, name, error)
        make_net(seed=99).save(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_metadata_that_json_cannot_hold_leave_the_file_alone(make_net, path):
    net = make_net()
    net.save(path)
    before = path.read_bytes()
    net.metadata = {"array": np.zeros(3)}
    with pytest.raises(TypeError, match="not JSON serializable"):
        net.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_folder_that_does_not_exist(make_net, tmp_path):
    with pytest.raises(FileNotFoundError):
        make_net().save(tmp_path / "missing" / "net.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_permissions(make_net, path, umask):
    net = make_net()
    old = os.umask(umask)
    try:
        net.save(path)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        path.chmod(0o604)
        net.save(path)
        assert path.stat().st_mode & 0o777 == 0o604
        assert os.umask(umask) == umask
    finally:
        os.umask(old)


# Reading what is no model


def raises(path, message=""):
    """Expect the one error for bad files, whose message begins with the file."""
    return pytest.raises(bpgpu.ModelFileError, match=f"^{re.escape(str(path))} .*{message}")


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load(path)


def test_folder(tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        load(tmp_path)


def test_truncated(make_net, path):
    make_net().save(path)
    whole = path.read_bytes()
    lengths = {*range(0, 20), *range(20, len(whole), 13), *range(len(whole) - 9, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with raises(path, "is not a whole safetensors file"):
            load(path)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(path, seed):
    path.write_bytes(np.random.default_rng(seed).bytes(10 ** (seed + 1)))
    with raises(path, "is not a whole safetensors file"):
        load(path)


@pytest.mark.parametrize("tail", [b"\0", b"x" * 1000])
def test_something_behind_the_end(make_net, path, tail):
    make_net().save(path)
    path.write_bytes(path.read_bytes() + tail)
    with raises(path):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(path, metadata):
    safetensors.numpy.save_file({"W.1": np.ones((2, 2))}, path, metadata=metadata)
    with raises(path, "not one that bpgpu saved"):
        load(path)


class Broken:
    """A saved network, to be written again with something changed."""

    def __init__(self, net, path):
        net.save(path)
        self.path = path
        self.tensors = safetensors.numpy.load_file(path)
        with safe_open(path, framework="numpy") as file:
            self.description = json.loads(file.metadata()["bpgpu"])

    def write(self, header=None):
        header = json.dumps(self.description) if header is None else header
        safetensors.numpy.save_file(self.tensors, self.path, metadata={"bpgpu": header})


@pytest.fixture
def broken(make_net, path):
    return Broken(make_net(connectivity=MASKS), path)


def test_rewriting_alone_breaks_nothing(broken, make_net):
    broken.write()
    assert load(broken.path).architecture == make_net().architecture


KEYS = "format sizes activations cost bias l2 dropout dtype seed epoch metadata"


@pytest.mark.parametrize("key", KEYS.split())
def test_missing_key(broken, key):
    del broken.description[key]
    broken.write()
    with raises(broken.path, key):
        load(broken.path)


HOSTILE = "__import__('os').system('echo > hacked')"
WRONG = [
    *(("format", x) for x in (None, "1", [1], -1, 0, 0.5)),
    *(
        ("sizes", x)
        for x in (None, 5, "35", [3], [3, 0, 2], [3, 5.0, 2], [3, 6, 2], [3, 5, 2, 2], {"3": 5}, [3, -5, 2])
    ),
    *(("sizes", x) for x in ([10**15, 10**15], [3, 10**30, 2], [[3], [5], [2]])),
    *(("activations", x) for x in (None, "tanh", ["tanh"], ["tanh", "nope"], ["tanh", None], [["tanh"], "tanh"], 3)),
    *(("cost", x) for x in (None, "nope", 3, {}, {"name": "x"}, {"name": "x", "value": "a", "gradient": "2"})),
    *(("bias", x) for x in (False, None, "yes", 1, [])),
    *(("l2", x) for x in (None, -1, "x", "0.5", math.nan, math.inf, [0], True)),
    *(("dropout", x) for x in (None, 1, -0.1, "0.5", math.nan)),
    *(("dtype", x) for x in (None, "float16", "int32", 3, "x", ["float32"], "float32")),
    *(("seed", x) for x in (None, -1, 1.5, "1", 2**64, True)),
    *(("epoch", x) for x in (None, -1, 1.5, "1", math.inf, math.nan, True, [])),
    *(("metadata", x) for x in (None, 3, "x", [], [["a", 1]])),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}={value!r}" for key, value in WRONG])
def test_wrong_value(broken, key, value):
    broken.description[key] = value
    broken.write()
    with raises(broken.path):
        load(broken.path)


FORMULAS = [
    HOSTILE,
    "().__class__.__base__.__subclasses__()",
    "(lambda: 1)()",
    "[z for z in (1, 2)]",
    "z if z > 0 else 1",
    "z; z",
    "z\nz",
    "open('x')",
    "exec('z')",
    "np.exp(z)",
    "z.dtype",
    "9 ** 9 ** 9 ** 9 ** 9 * w",
    "(" * 1000 + "z" + ")" * 1000,
    "-" * 100_000 + "z",
    "sigmoid(" * 25 + "z" + ")" * 25,
    "",
    "\0",
    None,
    3,
    ["z"],
    "2 * z",  # whose derivative is not 1
]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: repr(formula)[:40])
@pytest.mark.parametrize("place", ["value", "derivative", "cost"])
def test_hostile_formula(broken, formula, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if place == "cost":
        broken.description["cost"] = {
            "name": "x",
            "value": "0.5 * (a - y) ** 2",
            "gradient": formula,
            "reduction": "sum",
        }
    else:
        broken.description["activations"][0] = {"name": "x", "value": "z", "derivative": "1"} | {place: formula}
    broken.write()
    with raises(broken.path):
        load(broken.path)
    assert [file.name for file in tmp_path.iterdir()] == [broken.path.name]


def test_formula_that_fails_somewhere(broken):
    row = {"name": "swish", "value": "z / (1 + exp(-z))", "derivative": "(1 + a * exp(-z)) / (1 + exp(-z))"}
    broken.description["activations"][0] = row
    broken.write()
    with raises(broken.path, "FormulaError: activation 'swish': at z = -89 in float32 the derivative"):
        load(broken.path)
    broken.description["activations"][0] = row | {"name": [1]}
    broken.write()
    with raises(broken.path, r"TypeError: the name of an activation must be text, got \[1\]"):
        load(broken.path)


def test_newer_format(broken):
    broken.description |= {"format": 2, "bpgpu": "9.9", "sizes": "as nobody knows yet"}
    broken.write()
    with raises(broken.path, "was written by bpgpu 9.9, in a newer format; update bpgpu"):
        load(broken.path)


@pytest.mark.parametrize(
    "header",
    ["", "x", "{", "[]", "3", "null", '"format"', "{}", "[" * 100_000, '{"format": 1e999}'],
    ids=lambda h: h[:20],
)
def test_header_that_is_no_description(broken, header):
    broken.write(header)
    with raises(broken.path):
        load(broken.path)


@pytest.mark.parametrize("name", ["W.1", "W.2", "b.1", "b.2"])
def test_tensor_missing_or_wrong(broken, name):
    good = broken.tensors.pop(name)
    not_finite = good.copy()
    not_finite.flat[-1] = np.nan
    for tensor in (None, good[:-1], good[None], good.ravel()[:0], not_finite):
        if tensor is not None:
            broken.tensors[name] = np.ascontiguousarray(tensor)
        broken.write()
        with raises(broken.path, re.escape(name) if tensor is None else ""):
            load(broken.path)


@pytest.mark.parametrize("mask", [np.ones((5, 3)), np.full((3, 5), 0.5), np.full((3, 5), np.nan), np.ones(15)], ids=str)
def test_wrong_mask(broken, mask):
    broken.tensors["mask.1"] = mask
    broken.write()
    with raises(broken.path):
        load(broken.path)


def test_tensor_of_a_type_that_numpy_lacks(broken):
    broken.write()
    content = broken.path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    # The same bytes called bfloat16, of which there are then four times as many.
    header["W.1"] |= {"dtype": "BF16", "shape": [3, 20]}
    text = json.dumps(header).encode()
    broken.path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with raises(broken.path):
        load(broken.path)


def test_flipped_bytes_of_the_header(make_net, data, path):
    make_net(l2=0.5, dropout=0.25, activations=(CUBE, "tanh")).save(path)
    X, _ = data()
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, 8 + size, 600):
        damaged = bytearray(content)
        damaged[position] = rng.choice([*b'"{}[],:.-0123456789eE xyz\0\xff'])
        path.write_bytes(damaged)
        try:
            net = load(path)
        except bpgpu.ModelFileError:
            refused += 1
        else:  # say a digit of l2: then it is another network, but one that works
            assert net.predict(X).shape == (20, 2)
    assert refused > 300


def test_a_wrong_backend_is_not_blamed_on_the_file(make_net, path):
    make_net().save(path)
    with pytest.raises(ValueError, match="backend must be one of") as caught:
        bpgpu.MLP.load(path, backend="numpi")
    assert caught.type is ValueError
    with pytest.raises(bpgpu.BackendUnavailableError):
        bpgpu.MLP.load(path, backend=next(info.name for info in bpgpu.backends() if not info.available))


def test_what_could_not_be_loaded_is_not_saved(make_net, path):
    net = make_net()
    net.save(path)
    before = path.read_bytes()
    net.metadata = [1]
    with pytest.raises(TypeError, match="metadata must be a dict, got list"):
        net.save(path)
    net.metadata = {}
    net.weights[0][1, 2] = np.nan
    with pytest.raises(ValueError, match="parameters must be finite"):
        net.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": "a"}, r"dropout must be a number in \[0, 1\), got 'a'"),
        ({"l2": -1.0}, "l2 must be a finite number, 0 or more, got -1.0"),
        ({"l2": math.nan}, "l2 must be a finite number, 0 or more, got nan"),
        ({"l2": 1e39, "dtype": np.dtype("float32")}, "l2 must be at most 3.4e.38, the largest number of float32"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": None}, "seed must be an integer of at least 0, got None"),
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"bias": False}, r"parameters must be a float64 array of shape \(25,\)"),
        ({"sizes": (3, 0, 2)}, r"sizes\[1\] must be at least 1, got 0"),
        ({"sizes": (3, 6, 2)}, r"parameters must be a float64 array of shape \(38,\)"),
        ({"activations": ("tanh",)}, "activations must name one for each of 2 layers, got 1"),
        ({"cost": "none"}, "cost must be one of"),
        ({"dtype": np.dtype("float16")}, "dtype must be 'float32' or 'float64'"),
        ({"dtype": np.dtype("float32")}, r"parameters must be a float32 array of shape"),
    ],
)
def test_a_changed_architecture_that_could_not_be_loaded_is_not_saved(make_net, path, changes, message):
    net = make_net()
    net.save(path)
    before = path.read_bytes()
    net.architecture = dataclasses.replace(net.architecture, **changes)
    with pytest.raises((ValueError, TypeError), match=message):
        net.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([np.full((3, 5), 0.5), None], r"connectivity\[0\] must hold only 0 and 1, got 0.5"),
        ([np.full((3, 5), np.nan), None], r"connectivity\[0\] must hold only 0 and 1, got nan"),
        ([np.ones((3, 1)), None], r"connectivity\[0\] must have shape \(3, 5\), that of the weights, got \(3, 1\)"),
        ([np.ones((5, 3)), None], r"connectivity\[0\] must have shape \(3, 5\)"),
        ([None], "connectivity must be a list with one mask or None for each of 2 layers"),
    ],
)
def test_changed_masks_that_could_not_be_loaded_are_not_saved(make_net, path, masks, message):
    net = make_net()
    net.save(path)
    before = path.read_bytes()
    net.masks = masks
    with pytest.raises(ValueError, match=message):
        net.save(path)
    assert path.read_bytes() == before


def test_numpy_scalars_in_an_architecture_are_saved(make_net, path):
    net = make_net()
    scalars = {"l2": np.float32(0.5), "dropout": np.float64(0.25), "seed": np.int64(7), "bias": np.True_}
    sizes = tuple(np.array(net.architecture.sizes))
    net.architecture = dataclasses.replace(net.architecture, sizes=sizes, **scalars)
    net.save(path)
    assert load(path).architecture == net.architecture
