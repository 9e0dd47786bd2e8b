"""skl2onnx and hummingbird convert our estimators as they convert scikit-learn's."""

import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, and those of short fits

from sklearn import neural_network as plain  # noqa: E402
from sklearn.ensemble import BaggingClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from bpgpu import sklearn as ours  # noqa: E402
from bpgpu.sklearn import converters  # noqa: E402

rng = np.random.default_rng(0)
X = rng.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
OPTIONS = {"hidden_layer_sizes": (5, 4), "max_iter": 5, "random_state": 0}


def classifier(library, **options):
    return library.MLPClassifier(**OPTIONS | options)


CASES = {
    "binary": lambda m: classifier(m).fit(X, Y),
    "bool": lambda m: classifier(m).fit(X, Y > 0),
    "several": lambda m: classifier(m, activation="tanh").fit(X, Y + (X[:, 1] > 0)),
    "text": lambda m: classifier(m, activation="logistic").fit(X, np.array(["a", "b"])[Y]),
    "labels": lambda m: classifier(m).fit(X, (X[:, :3] > 0).astype(int)),
    "number": lambda m: m.MLPRegressor(**OPTIONS, activation="identity").fit(X, X[:, 0]),
    "pipeline": lambda m: make_pipeline(StandardScaler(), classifier(m)).fit(X, Y),
    "ensemble": lambda m: BaggingClassifier(classifier(m), n_estimators=2, random_state=0).fit(X, Y),
}


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_skl2onnx_gives_the_same_file(case, zipmap):
    skl2onnx, onnxruntime = pytest.importorskip("skl2onnx"), pytest.importorskip("onnxruntime")
    outputs = []
    for library in (plain, ours):
        model = CASES[case](library)
        options = {} if zipmap or case == "number" else {"options": {"zipmap": False}}
        file = skl2onnx.to_onnx(model, X[:1], **options)
        run = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append((file.graph.output, [node.op_type for node in file.graph.node], run.run(None, {"X": X})))
    assert outputs[0][:2] == outputs[1][:2]
    for theirs, mine in zip(outputs[0][2], outputs[1][2], strict=True):
        if isinstance(theirs, list):  # a dict for each row
            theirs, mine = ([list(row.values()) for row in rows] for rows in (theirs, mine))
        same = np.testing.assert_array_equal if np.asarray(theirs).dtype.kind in "OUi" else np.testing.assert_allclose
        same(mine, theirs) if same is np.testing.assert_array_equal else same(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["binary", "several", "number", "pipeline"])
def test_hummingbird_gives_the_same_predictions(case):
    hummingbird = pytest.importorskip("hummingbird.ml")
    pytest.importorskip("torch")
    expected, got = (hummingbird.convert(CASES[case](m), "torch", X[:1]).predict(X) for m in (plain, ours))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("activation", [["tanh", "tanh"], "sigmoid", ("relu",) * 2])
def test_other_ways_to_name_scikit_learns_activations(activation):
    skl2onnx, onnxruntime = pytest.importorskip("skl2onnx"), pytest.importorskip("onnxruntime")
    model = classifier(ours, activation=activation).fit(X, Y)
    file = skl2onnx.to_onnx(model, X[:1], options={"zipmap": False})
    labels, probabilities = onnxruntime.InferenceSession(file.SerializeToString()).run(None, {"X": X})
    np.testing.assert_allclose(probabilities, model.predict_proba(X), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(labels, model.predict(X))
    assert model.activation == activation


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (lambda: classifier(ours, activation="gelu").fit(X, Y), "one of scikit-learn's, got gelu"),
        (lambda: classifier(ours, activation=["relu", "tanh"]).fit(X, Y), "one of scikit-learn's, got relu, tanh"),
        (lambda: ours.MLPRegressor("poisson", **OPTIONS).fit(X, Y), "loss='poisson'"),
        (lambda: ours.MLPRegressor(**OPTIONS).fit(X, X[:, :2]), "a regression with several targets"),
        (lambda: classifier(ours).fit(X, (X[:, :2] > 0).astype(int)), "several labels per row"),
    ],
)
def test_what_skl2onnx_would_get_wrong_is_refused(model, what):
    """Which it does with scikit-learn's own, as of 1.20."""
    skl2onnx = pytest.importorskip("skl2onnx")
    with pytest.raises(ValueError, match=f"skl2onnx does not convert .*{what}.*to_onnx"):
        skl2onnx.to_onnx(model(), X[:1])


def test_what_hummingbird_would_get_wrong_is_refused():
    labels = classifier(ours).fit(X, (X[:, :3] > 0).astype(int))
    with pytest.raises(ValueError, match="hummingbird does not convert several labels"):
        converters._with_sklearns_activation(labels, "hummingbird")
    several = ours.MLPRegressor(**OPTIONS).fit(X, X[:, :2])
    assert converters._with_sklearns_activation(several, "hummingbird").activation == "relu"


ORDERS = {
    "bpgpu first": "import bpgpu.sklearn; assert 'skl2onnx' not in sys.modules; import skl2onnx",
    "skl2onnx first": "import skl2onnx, bpgpu.sklearn",
    "under accel": "import bpgpu.accel; bpgpu.accel.install(); import skl2onnx, sklearn.neural_network",
    "under accel, skl2onnx first": "import skl2onnx, bpgpu.accel; bpgpu.accel.install()",
}


@pytest.mark.parametrize("order", ORDERS)
def test_in_whatever_order_they_are_imported(order, tmp_path):
    pytest.importorskip("skl2onnx")
    script = f"""
    import sys, warnings
    warnings.simplefilter("ignore")
    {ORDERS[order]}
    import numpy as np
    from bpgpu.sklearn import MLPClassifier
    X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    print(len(skl2onnx.to_onnx(MLPClassifier(3, max_iter=2).fit(X, X[:, 0] > 0), X[:1]).graph.output))
    """
    assert python(script, tmp_path).stdout == "2\n"


def python(script, folder):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
    )
    assert run.returncode == 0, run.stderr
    return run


def test_a_library_that_has_changed_is_left_alone(tmp_path):
    """Its import does not fail, and it is said why our estimators are not converted."""
    (tmp_path / "skl2onnx.py").write_text("known = 1\n", encoding="utf-8")
    run = python("import bpgpu.sklearn, skl2onnx; print(skl2onnx.known)", tmp_path)
    assert run.stdout == "1\n" and run.stderr.startswith("skl2onnx does not convert bpgpu's estimators: ")


def test_the_reason_is_logged(caplog):
    def fail(module):
        raise KeyError("registry")

    with caplog.at_level(logging.WARNING, "bpgpu"):
        converters._if_possible(fail)(sys)
    assert "sys does not convert bpgpu's estimators: KeyError: 'registry'" in caplog.text
