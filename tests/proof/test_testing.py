"""`bpgpu.testing`: a backend of somebody else, registered by its own package; and that every kind of check can fail."""

import importlib

import numpy as np
import pytest

import bpgpu
import bpgpu.testing
from bpgpu.backends.numpy_backend import NumpyBackend
from bpgpu.kernels import formulas
from bpgpu.proof import accuracy
from bpgpu.proof.bench import DTYPES, Bench

choice = importlib.import_module("bpgpu.backends")

TINY = '''
import numpy as np
from bpgpu import Backend

class TinyBackend(Backend):
    """The reference, which it is enough to name."""
    name, device, xp = "tiny", "somebody's CPU", np

class Broken(Backend):
    def __init__(self):
        raise OSError("no tiny device")

def not_a_backend():
    return 1
'''
ENTRY_POINTS = """
[bpgpu.backends]
tiny = tiny_backend:TinyBackend
broken = tiny_backend:Broken
absent = no_such_module:X
none = tiny_backend:not_a_backend
numpy = tiny_backend:Broken
auto = tiny_backend:Broken
"""


@pytest.fixture
def installed(tmp_path, monkeypatch, no_backend_made):
    """Install a package as pip does: its module, and its metadata beside it."""
    (tmp_path / "tiny_backend.py").write_text(TINY, encoding="utf-8")
    info = tmp_path / "tiny-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_registered_backend_is_listed_after_those_of_bpgpu(installed):
    infos = {info.name: info for info in bpgpu.backends()}
    assert list(infos) == [*choice.REGISTRY, "tiny", "broken", "absent", "none"]
    assert (infos["tiny"].available, infos["tiny"].device) == (True, "somebody's CPU")
    assert infos["broken"].reason == "OSError: no tiny device; try: pip install --force-reinstall tiny"
    assert infos["absent"].reason.startswith("ModuleNotFoundError: No module named 'no_such_module'; try: pip")
    assert "tiny_backend.not_a_backend does not make a bpgpu.Backend" in infos["none"].reason
    assert infos["numpy"].available, "nobody takes the names of bpgpu's backends"
    assert bpgpu.get_backend("auto").name in choice.REGISTRY
    with pytest.raises(bpgpu.BackendUnavailableError, match="'broken' cannot run here: OSError: no tiny device"):
        bpgpu.get_backend("broken")
    with pytest.raises(ValueError, match=r"backend.*'tinny'.*tiny"):
        bpgpu.get_backend("tinny")


def test_a_registered_backend_trains_and_is_measured(installed):
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    found = []
    for backend in ("tiny", "numpy"):
        net = bpgpu.MLP([3, 4, 2], ["tanh", "softmax"], "cross_entropy", backend=backend)
        found.append(net.fit(X, y, epochs=3).loss)
    assert found[0] == found[1]
    sklearn = pytest.importorskip("bpgpu.sklearn")
    assert sklearn.MLPClassifier(backend="tiny").partial_fit(X, y, classes=[0, 1]).fit_report_.backend == "tiny"
    ways = accuracy.make("tiny")
    benches = {dtype: Bench(ways["tiny"], dtype, 2**12, crossed=False) for dtype in DTYPES}
    errors = {"tiny": {dtype: accuracy.measure(bench) for dtype, bench in benches.items()}}
    assert accuracy.broken_promises(errors) == []
    assert "tiny" in accuracy.table(errors, "float32")


def test_check_backend_on_a_registered_backend(installed):
    said = []
    bpgpu.testing.check_backend("tiny", largest=2**12, crossed=False, say=said.append)
    assert said == [check.name for check in bpgpu.testing.CHECKS]
    assert len(set(said)) == len(said)


# That every kind of check can fail


class OtherSignature(NumpyBackend):
    def dropout(self, x, dropout, out):  # out is positional
        super().dropout(x, dropout, out=out)


class Inaccurate(NumpyBackend):
    def forward(self, a_prev, W, b, activation, *, out, out_z=None):
        super().forward(a_prev, W, b, activation, out=out, out_z=out_z)
        out *= 1 + 1e-4


class WrongGradient(NumpyBackend):
    def hidden_delta(self, delta, W, a, activation, *, out, z=None, dropout=None):
        super().hidden_delta(delta, W, a, activation, out=out, z=z, dropout=None)


class OtherBits(NumpyBackend):
    def run_epoch(self, plan, data, order, *, parameters, learning_rates, epoch):
        loss = super().run_epoch(plan, data, order, parameters=parameters, learning_rates=learning_rates, epoch=epoch)
        parameters[0] += np.random.default_rng().random() * 1e-6
        return loss


class NeverFails(NumpyBackend):
    def run_epoch(self, plan, data, order, **how):
        try:
            return super().run_epoch(plan, data, order, **how)
        except bpgpu.NonFiniteError:
            return 0.0


class Trusting(NumpyBackend):
    """Takes what does not fit, as compiled code would."""

    def forward(self, a_prev, W, b, activation, *, out, out_z=None):
        m, n = min(a_prev.shape[1], len(W)), min(W.shape[1], out.shape[1])
        z = a_prev[:, :m] @ W[:m, :n]
        z = z if b is None else z + b[:n]
        if out_z is not None:
            out_z[...] = z
        out[:, :n] = formulas.numpy_function(activation.value, z.dtype)(z, None, None) if not activation.rowwise else z


@pytest.mark.parametrize(
    ("backend", "kind", "message"),
    [
        (OtherSignature, "signatures", "dropout"),
        (Inaccurate, "accuracy", "forward, .*promised 8"),
        (WrongGradient, "gradients", "central differences give"),
        (OtherBits, "same bits", "two runs of the same fit gave different bits"),
        (NeverFails, "non-finite numbers", "weights that overflow raised no error in training"),
        (Trusting, "refusals", "forward accepts W of another height"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_kind_of_check_can_fail(backend, kind, message, monkeypatch):
    checks = [check for check in bpgpu.testing.CHECKS if check.name.startswith(kind)]
    monkeypatch.setattr(bpgpu.testing, "CHECKS", checks[:12])
    with pytest.raises(AssertionError, match=f"(?m)^{kind}.*: .*{message}"):
        bpgpu.testing.check_backend(backend(), largest=2**12, crossed=False)
    bpgpu.testing.check_backend(NumpyBackend(), largest=2**12, crossed=False)


def test_the_differences_of_signatures_are_named():
    class Sloppy(bpgpu.Backend):
        def dropout(self, x, dropout, out):  # out is positional
            pass

        def weight_gradient(self, a_prev, delta, *, out_W, out_b=None, W=None, decay=1.0, mask=None):  # other default
            pass

        def extra(self):
            pass

    found = bpgpu.testing.differences(Sloppy)
    assert [text.split("(")[0].split(" ")[0] for text in found] == ["dropout", "extra", "weight_gradient"]
