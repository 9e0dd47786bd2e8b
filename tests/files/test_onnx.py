"""ONNX files: the same numbers in onnxruntime as in Python, and nothing written where they are not."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from safetensors import safe_open
from scipy import special

import bpgpu
from bpgpu import cli
from bpgpu.files import onnx_export, onnx_graph
from bpgpu.kernels import formulas
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS
from tests.simgpu import cupy as simulated
from tests.simgpu import device

DTYPES = ["float32", "float64"]
MISH = bpgpu.Activation(
    "mish",
    value="z * tanh(softplus(z))",
    derivative="tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)",
)
EXP = bpgpu.Activation("exp", value="exp(z)", derivative="a")
LOG = bpgpu.Activation("log", value="log(z)", derivative="1 / z")
CONSTANT = bpgpu.Activation("two", value="2", derivative="0")
# A user's formula under a name of the table must not become the table's operator.
OWN_RELU = bpgpu.Activation("relu", value="where(z < 0, 0.5 * z, z)", derivative="where(z < 0, 0.5, 1)")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, X):
    return session(path).run(None, {"X": X})


def rows(net, n=50):
    sizes, dtype = net.architecture.sizes, net.architecture.dtype
    return np.random.default_rng(5).normal(size=(n, sizes[0])).astype(dtype) * 3


# The numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), MISH, CONSTANT, OWN_RELU], ids=lambda a: a.name)
def test_a_file_gives_the_numbers_of_predict(make_net, path, activation, dtype):
    net = make_net((3, 7, 6, 4), (activation, "tanh", activation), dtype=dtype)
    net.to_onnx(path)
    X = rows(net)
    for n in (1, 2, len(X)):
        (a,) = run(path, X[:n])
        assert a.dtype == dtype
        np.testing.assert_allclose(
            a, net.predict(X[:n]), rtol=0, atol=8 * np.finfo(dtype).eps * max(1, np.abs(a).max())
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), MISH], ids=lambda a: a.name)
def test_activations_are_right_far_from_zero_too(path, activation, dtype):
    if activation.rowwise:
        z = np.array([[-1e4, 1e4], [1e4, 1e4 - 1], [-1e4, -1e4 - 20]], dtype)
    else:
        z = np.array([[10.0**k, -(10.0**k)] for k in range(-8, 5)], dtype)
    net = bpgpu.MLP([2, 2], activation, "half_squared_error", dtype=dtype, backend="numpy", init=[(np.eye(2), [0, 0])])
    net.to_onnx(path)
    expected = net.predict(z)
    np.testing.assert_allclose(run(path, z)[0], expected, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["tanh", "elu", "gelu", "silu", "sigmoid", "softplus", "softmax"])
def test_small_outputs_are_no_error(path, activation, dtype):
    """Rounding is measured by what is usual in a network, or a file would be refused for what nobody can do better."""
    rows, bias = np.full((5, 2), -1e-6), np.full(2, -30.0 if activation in ("sigmoid", "softplus") else 0)
    init = [(np.array([[1.0, 0.5], [-0.3, 1]]), bias)]
    net = bpgpu.MLP([2, 2], activation, "half_squared_error", dtype=dtype, backend="numpy", init=init)
    net.to_onnx(path)
    net.to_onnx(path, X=rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cost", COSTS)
def test_a_file_says_all_that_a_saved_network_says(make_net, path, cost, dtype):
    net = make_net(activations=(MISH, "sigmoid"), cost=cost, l2=0.1, dropout=0.5, seed=3, dtype=dtype)
    net.metadata = {"classes": ["a", "ü", 3]}
    net.to_onnx(path)
    net.save(path.with_suffix(".safetensors"))
    with safe_open(path.with_suffix(".safetensors"), framework="numpy") as file:
        saved = file.metadata()["bpgpu"]
    assert session(path).get_modelmeta().custom_metadata_map == {"bpgpu": saved}
    assert json.loads(saved)["cost"] == cost


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"connectivity": [np.tri(3, 5), None]},
        {"sizes": (3, 2), "activations": "linear"},
        {"sizes": (1, 1), "activations": "softmax"},
        {"sizes": (3, 1, 1, 2), "activations": "softplus"},
        {"activations": (EXP, EXP)},  # overflows
        {"activations": ("tanh", LOG)},  # is undefined in places
    ],
    ids=lambda options: ",".join(options),
)
def test_networks_of_all_kinds(make_net, path, options):
    net = make_net(**options)
    net.to_onnx(path)
    np.testing.assert_allclose(run(path, rows(net))[0], net.predict(rows(net)), rtol=1e-13, atol=1e-15)


def test_the_backend_does_not_matter(make_net, path, tmp_path):
    net = make_net(backend="numba", dtype="float32")
    net.to_onnx(path)
    make_net(dtype="float32").to_onnx(tmp_path / "other.onnx")
    assert path.read_bytes() == (tmp_path / "other.onnx").read_bytes()


@pytest.mark.skipif(not device.available(), reason="the simulated GPU needs Linux and g++")
def test_a_network_on_a_gpu(make_net, path, tmp_path, monkeypatch):
    simulated.install(monkeypatch)
    make_net(backend="cupy").to_onnx(path, X=np.ones((2, 3)))
    make_net().to_onnx(tmp_path / "other.onnx")
    assert path.read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_names_and_shapes(make_net, path):
    net = make_net(dtype="float32")
    net.to_onnx(str(path), input_name="features", output_name="scores")
    (given,), (result,) = session(path).get_inputs(), session(path).get_outputs()
    assert (given.name, given.type, given.shape) == ("features", "tensor(float)", ["rows", 3])
    assert (result.name, result.type, result.shape) == ("scores", "tensor(float)", ["rows", 2])
    model = onnx.load(path)
    assert (model.producer_name, model.producer_version) == ("bpgpu", bpgpu.__version__)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert np.array_equal(tensors["W.2"], net.weights[1])
    assert np.array_equal(tensors["b.1"], net.biases[0])


@pytest.mark.parametrize(
    ("given", "result"), [("X", "X"), ("W.1", "output"), ("X", "Gemm_1"), ("", "output"), ("X", 3)]
)
def test_names_that_are_taken(make_net, path, given, result):
    with pytest.raises(ValueError, match="not text or is already used in the file; choose another"):
        make_net().to_onnx(path, input_name=given, output_name=result)
    assert not path.exists()


# Formulas


def traced(expression, dtype, z):
    graph = onnx_graph.Graph(np.dtype(dtype))
    value = formulas.traced_function(expression, onnx_graph.Functions(graph), graph.literal, ("z",))(
        graph.input("X", z.shape[1])
    )
    graph.output("output", value, graph.dtype, z.shape[1])
    content = graph.model({})
    return session(content).run(None, {"X": z})[0], onnx.load_from_string(content)


FUNCTIONS = {
    **{name: f"{name}(z)" for name in ("exp", "expm1", "tanh", "sin", "cos", "abs", "erf", "erfc", "sigmoid")},
    **{name: f"{name}(abs(z))" for name in ("log", "log1p", "sqrt")},
    "softplus": "softplus(z)",
    "sign": "sign(z) * z",
    "decayed": "decayed(z, 0.9, 2 * z) + decayed(z, 0.1, 1)",
    "pow": "pow(abs(z), 1.5) + abs(z) ** -0.5 + z * pow(z, 3)",
    "max": "max(z, 0.5) + max(-z, z * z)",
    "min": "min(1 - z, 0.5)",
    "where": "where(z < 1, 1, 2) + where(z <= 0, z, 3) + where(z > -1, 1, z) + where(z >= 2, 4, 5)"
    " + where(z == 0.5, 6, 7) + where(z != 0.5, 8, 9)",
    "operators": "-z + 2 * z - 3 / (z * z + 1) + z ** 4 - +z",
}


def test_every_function_is_tried():
    assert set(FUNCTIONS) == {*formulas.FUNCTIONS, *formulas.MACROS, "operators"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree_with_numpy(name, dtype):
    z = np.array([[0.5, *np.linspace(-8, 8, 1000), *np.logspace(-20, 0, 40), *-np.logspace(-20, 0, 40)]], dtype)
    got, _ = traced(FUNCTIONS[name], dtype, z)
    with np.errstate(all="ignore"):
        expected = formulas.numpy_function(FUNCTIONS[name], np.dtype(dtype), ("z",))(z)
    eps = np.finfo(dtype).eps
    # erfc's e^(-x^2) has x^2 roundings; sine and cosine are as good as that beside 1.
    np.testing.assert_allclose(
        got, expected, rtol=(64 if name == "erfc" else 16) * eps, atol=4 * eps if name in ("sin", "cos") else 0
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_composed_of_operators_keeps_the_digits_that_those_lose(dtype):
    eps, tiny = np.finfo(dtype).eps, np.array([[1e-20, -1e-20, 1e-9, -1e-9]], dtype)
    for expression, expected in (("expm1(z)", tiny), ("log1p(z)", tiny), ("erf(z)", tiny * 2 / np.sqrt(np.pi))):
        np.testing.assert_allclose(traced(expression, dtype, tiny)[0], expected, rtol=1e-8 + 4 * eps)
    tail = np.array([[3.0, 5.0, 8.0]], dtype)
    np.testing.assert_allclose(traced("erfc(z)", dtype, tail)[0], special.erfc(tail), rtol=64 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "where"])
def test_nan_and_infinities_are_those_of_numpy(name, dtype):
    z = np.array([[np.nan, np.inf, -np.inf, 0.0]], dtype)
    with np.errstate(all="ignore"):
        expected = formulas.numpy_function(FUNCTIONS[name], np.dtype(dtype), ("z",))(z)
    np.testing.assert_allclose(traced(FUNCTIONS[name], dtype, z)[0], expected, rtol=4 * np.finfo(dtype).eps)


def test_what_a_formula_repeats_is_computed_once():
    _, model = traced("sigmoid(exp(z)) + sigmoid(exp(z)) * exp(z)", "float64", np.ones((1, 2)))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Exp") == 2
    assert len({constant.name for constant in model.graph.initializer}) == 2  # 0 and 1


# What is refused


@pytest.fixture
def kept(make_net, path):
    """A file that must be left as it is."""
    make_net(seed=1).to_onnx(path)
    before = path.read_bytes()
    yield
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [1e-3, 1e-11, np.nan])
@pytest.mark.usefixtures("kept")
def test_a_file_with_other_numbers_is_not_kept(make_net, path, monkeypatch, error):
    predict = bpgpu.MLP.predict

    def wrong(self, X):
        a = predict(self, X)
        a[-1, 1] += error
        return a

    monkeypatch.setattr(bpgpu.MLP, "predict", wrong)
    with pytest.raises(RuntimeError, match=r"no ONNX file was written: .* gives .* as output 2, but predict "):
        make_net(activations="tanh").to_onnx(path)


@pytest.mark.usefixtures("kept")
def test_a_wrong_operator_is_found(make_net, path, monkeypatch):
    monkeypatch.setitem(onnx_graph.OPERATORS, "sigmoid", "Tanh")
    with pytest.raises(RuntimeError, match="no ONNX file was written"):
        make_net(activations="sigmoid").to_onnx(path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_command(make_net, path, monkeypatch, package):
    monkeypatch.delitem(sys.modules, "bpgpu.files.onnx_graph")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'pip install "bpgpu\\[onnx\\]" .*{package}'):
        make_net().to_onnx(path)
    assert not path.exists()


@pytest.mark.usefixtures("kept")
def test_an_operator_that_onnxruntime_lacks(make_net, path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "IN_FLOAT64", ("LeakyRelu",))
    with pytest.raises(RuntimeError, match=r"no ONNX file was written: onnxruntime cannot run it: .*LeakyRelu"):
        make_net(activations="leaky_relu").to_onnx(path)


@pytest.mark.usefixtures("kept")
def test_the_users_rows_are_what_the_file_is_checked_with(make_net, path, monkeypatch):
    net = make_net()
    seen = []
    monkeypatch.setattr(bpgpu.MLP, "predict", lambda self, X: seen.append(X) or np.zeros((len(X), 2)))
    X = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(RuntimeError):
        net.to_onnx(path, X=X.tolist())
    assert np.array_equal(seen[0], X)
    for wrong in (X[:, :2], X * np.nan):
        with pytest.raises(ValueError, match=r"^X must"):
            net.to_onnx(path, X=wrong)


@pytest.mark.usefixtures("kept")
def test_what_could_not_be_saved_is_not_exported(make_net, path):
    net = make_net()
    net.weights[0][0, 0] = np.inf
    with pytest.raises(ValueError, match="parameters must be finite"):
        net.to_onnx(path)
    net = make_net()
    net.metadata = [1]
    with pytest.raises(TypeError, match="metadata must be a dict"):
        net.to_onnx(path)


@pytest.mark.usefixtures("kept")
def test_a_network_larger_than_the_format(make_net, path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST", 100)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GiB, but the parameters take"):
        make_net().to_onnx(path)


# The command line


@pytest.fixture
def bpgpu_command(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.mark.parametrize(
    "labels",
    [["setosa", "virginica"], ["a", "b", "ü"], [3, 5], [False, True], [0, 1, 7]],
    ids=str,
)
def test_the_file_of_a_classifier_gives_its_labels(bpgpu_command, labels):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, len(labels), 200)
    table = pd.DataFrame(rng.normal(size=(200, 3)) + classes[:, None], columns=list("abc"))
    table["kind"] = [labels[k] for k in classes]
    table.to_csv("table.csv", index=False)
    assert bpgpu_command("train", "table.csv", "--out", "m.safetensors", "--epochs", 2, "--backend", "numpy")[0] == 0
    code, out, _ = bpgpu_command("export", "m.safetensors", "m.onnx")
    assert (code, out) == (0, "m.onnx: X -> label, probabilities; the same numbers as predict, by onnxruntime\n")
    assert [output.name for output in session("m.onnx").get_outputs()] == ["label", "probabilities"]
    label, probabilities = run("m.onnx", table[["a", "b", "c"]].to_numpy(np.float32))
    assert bpgpu_command("predict", "m.safetensors", "table.csv", "--probabilities", "--out", "p.csv")[0] == 0
    predictions = pd.read_csv("p.csv")
    assert label.tolist() == predictions["kind"].tolist()
    assert label.dtype == (object if isinstance(labels[0], str) else np.int64)
    columns = [f"p({name})" for name in labels]
    np.testing.assert_allclose(probabilities, predictions[columns].to_numpy(), rtol=1e-5, atol=1e-6)


def test_the_file_of_a_regression_gives_raw_numbers(bpgpu_command):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(100, 2)) * 30 + 500, columns=["a", "price"])
    table.to_csv("table.csv", index=False)
    bpgpu_command("train", "table.csv", "--out", "m.safetensors", "--epochs", 2, "--backend", "numpy")
    code, out, _ = bpgpu_command("export", "m.safetensors", "m.onnx")
    assert (code, out) == (0, "m.onnx: X -> output; the same numbers as predict, by onnxruntime\n")
    (output,) = run("m.onnx", table[["a"]].to_numpy(np.float32))
    bpgpu_command("predict", "m.safetensors", "table.csv", "--out", "p.csv")
    np.testing.assert_allclose(output[:, 0], pd.read_csv("p.csv")["price"], rtol=1e-5)


def test_a_network_that_knows_no_table_can_be_exported_too(bpgpu_command, make_net):
    make_net().save("m.safetensors")
    assert bpgpu_command("export", "m.safetensors", "m.onnx")[0] == 0
    assert run("m.onnx", np.ones((2, 3)))[0].shape == (2, 2)


def test_wrong_labels_are_found(make_net, path):
    net = make_net(activations=("tanh", "softmax"), cost="cross_entropy")
    net.metadata = {"columns": ["a", "b", "c"], "target": "y", "task": "classification", "classes": [1, 2]}
    with pytest.raises(RuntimeError, match="onnxruntime gives other labels than predict"):
        onnx_export.export(
            net,
            path,
            input_name="X",
            output_name="probabilities",
            labels=onnx_export.Labels([1, 2], lambda a: 2 - a.argmax(axis=1)),
        )
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "m.onnx"], "missing.safetensors: No such file"),
        (["net.safetensors", "nowhere/m.onnx"], "the folder of nowhere/m.onnx must exist"),
        (["net.safetensors", "."], "OUT must name a file"),
    ],
)
def test_errors_of_the_command_are_one_line(bpgpu_command, make_net, arguments, message):
    make_net().save("net.safetensors")
    code, out, err = bpgpu_command("export", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bpgpu: {message}")
