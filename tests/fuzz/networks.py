"""A network on every CPU backend through random calls in sequence: the same values and errors, nothing changed."""

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import bpgpu
from tests.fuzz.inputs import content, matrices

BACKENDS = ("numpy", "numba")  # the reference first
DOCUMENTED = (ValueError, TypeError, bpgpu.NonFiniteError, MemoryError)
TOLERANCE = {"float32": 2e-3, "float64": 1e-7}
HIDDEN = ("identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "softplus", "gelu", "silu", "softmax")
OUTPUTS = (
    ("identity", "half_squared_error"),
    ("identity", "mean_squared_error"),
    ("tanh", "squared_error"),
    ("sigmoid", "binary_cross_entropy"),
    ("softmax", "cross_entropy"),
    ("softmax", "binary_cross_entropy"),
    ("softmax", "squared_error"),
    ("sigmoid", "half_squared_error"),
    ("sigmoid", "cross_entropy"),
)
# An adaptive rule makes a step of any size out of the last bits of a small gradient, unless epsilon is large.
OPTIMIZERS: dict[str, Any] = {
    "sgd": bpgpu.SGD(0.05),
    "momentum": bpgpu.SGD(0.02, momentum=0.9),
    "nesterov": bpgpu.SGD(0.02, momentum=0.5, nesterov=True),
    "clipped": bpgpu.SGD(0.05, clip_norm=0.1),
    "rmsprop": bpgpu.RMSprop(0.01, epsilon=0.1),
    "adam": bpgpu.Adam(0.01, epsilon=0.1),
    "adamw": bpgpu.AdamW(0.01, epsilon=0.1, weight_decay=0.1, clip_norm=1.0),
    "schedule": bpgpu.SGD(bpgpu.CosineDecay(0.05, 10)),
}
BAD_OPTIONS: list[dict[str, Any]] = [
    {"epochs": 0},
    {"epochs": 1.5},
    {"epochs": -(10**400)},
    {"batch_size": 0},
    {"batch_size": "all"},
    {"batch_size": 2**63},
    {"optimizer": "sgdd"},
    {"optimizer": 0.1},
    {"shuffle": 2},
    {"validation_data": 3},
    {"validation_data": (1, 2, 3, 4)},
    {"callbacks": [print]},
    {"callbacks": 7},
]


class Outcome:
    """What a call gave: a value, or one of the exceptions that the documentation names."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        try:
            self.value = call()
        except DOCUMENTED as error:
            self.error = error

    @property
    def kind(self) -> Any:
        """The exception's type and, but for what each backend numbers by itself, its message."""
        return None if self.error is None else (type(self.error), str(self.error))


def assert_close(x: Any, y: Any, tolerance: float, what: str) -> None:
    """Compare two results, of which an infinite or undefined one must be so in both."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape, f"{what}: {x.shape} and {y.shape}"
    scale = max(1.0, np.abs(y[np.isfinite(y)]).max(initial=0))
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale, err_msg=what)


def _architectures() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "sizes": st.lists(st.integers(1, 7), min_size=2, max_size=4),
            "hidden": st.sampled_from(HIDDEN),
            "output": st.sampled_from(OUTPUTS),
            "bias": st.booleans(),
            "l2": st.sampled_from([0.0, 0.0, 0.1, 1.0]),
            "dropout": st.sampled_from([0.0, 0.0, 0.3]),
            "masked": st.booleans(),
            "dtype": st.sampled_from(sorted(TOLERANCE)),
            "seed": st.integers(0, 2**64 - 1),
        }
    )


class Networks(RuleBasedStateMachine):
    """The same calls on one network for each CPU backend."""

    calls = 0
    folder: Path

    @initialize(chosen=_architectures(), rows=st.integers(1, 12), entropy=st.integers(0, 2**32 - 1))
    def make(self, chosen: dict[str, Any], rows: int, entropy: int) -> None:
        sizes, (output, cost) = chosen["sizes"], chosen["output"]
        rng = np.random.default_rng(entropy)
        masks = [rng.random(shape) < 0.7 for shape in pairwise(sizes)] if chosen["masked"] else None
        options = {key: chosen[key] for key in ("bias", "l2", "dropout", "dtype", "seed")}
        self.nets = [
            bpgpu.MLP(
                sizes,
                [chosen["hidden"]] * (len(sizes) - 2) + [output],
                cost,
                connectivity=masks,
                backend=backend,
                **options,
            )
            for backend in BACKENDS
        ]
        self.tolerance = TOLERANCE[chosen["dtype"]]
        self.X = rng.normal(size=(rows, sizes[0]))
        self.y = rng.random((rows, sizes[-1])) if output != "softmax" else rng.dirichlet(np.ones(sizes[-1]), rows)
        self.labels = rng.integers(0, sizes[-1], rows)
        self.weight = rng.random(rows) + 0.1

    # Every rule is one call on every backend.

    def both(self, call: Callable[[Any], Any], *given: Any, trains: bool = False) -> list[Outcome]:
        """Make a call on every network; hold the outcomes against each other, and what went in against what it was."""
        type(self).calls += 1
        inputs = [content(value) for value in given]
        before = [(np.array(net.parameters).tobytes(), net.epoch) for net in self.nets]
        outcomes = [Outcome(lambda net=net: call(net)) for net in self.nets]
        assert [content(value) for value in given] == inputs, "an argument was changed"
        for outcome, net, state in zip(outcomes, self.nets, before, strict=True):
            if not trains or type(outcome.error) in (ValueError, TypeError):
                assert (np.array(net.parameters).tobytes(), net.epoch) == state, (
                    f"the network was changed: {outcome.kind}"
                )
        assert len({outcome.kind for outcome in outcomes}) == 1, [outcome.kind for outcome in outcomes]
        return outcomes

    def same(self, outcomes: list[Outcome], what: str) -> None:
        if outcomes[0].error is None:
            assert_close(outcomes[1].value, outcomes[0].value, self.tolerance, what)

    def draw_data(self, data: Any) -> tuple[Any, Any, Any]:
        """Draw X, y and weights."""
        hostile = data.draw(st.integers(0, 2)) == 0
        X = data.draw(matrices(self.X, hostile=hostile, may_be_sparse=True, may_be_damaged=True))
        y = data.draw(matrices(self.labels.astype(float) if data.draw(st.booleans()) else self.y, hostile=hostile))
        weight = data.draw(matrices(self.weight, hostile=hostile)) if data.draw(st.booleans()) else None
        return X, y, weight

    @rule(data=st.data())
    def predict(self, data: Any) -> None:
        X = data.draw(matrices(self.X, may_be_sparse=True, may_be_damaged=True))
        self.same(self.both(lambda net: net.predict(X), X), "predict")

    @rule(data=st.data())
    def loss(self, data: Any) -> None:
        X, y, weight = self.draw_data(data)
        self.same(self.both(lambda net: net.loss(X, y, weight), X, y, weight), "loss")

    @rule(data=st.data(), step=st.sampled_from([0, 1, 2**32 - 1, -1, 2**32, 1.5, "0"]))
    def backprop(self, data: Any, step: Any) -> None:
        X, y, weight = self.draw_data(data)
        outcomes = self.both(lambda net: net.backprop(X, y, weight, step=step), X, y, weight)
        if outcomes[0].error is None:
            (C, gradients), (C_of_other, others) = outcomes[0].value, outcomes[1].value
            assert_close(C_of_other, C, self.tolerance, "cost")
            for l, (pair, other) in enumerate(zip(gradients, others, strict=True), start=1):
                for g, h in zip(pair, other, strict=True):
                    if g is not None or h is not None:
                        assert_close(h, g, self.tolerance, f"gradient of layer {l}")

    @rule(
        data=st.data(),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        epochs=st.integers(1, 3),
        batch_size=st.integers(1, 14),
        shuffle=st.booleans(),
        validates=st.booleans(),
    )
    def fit(self, data: Any, optimizer: str, epochs: int, batch_size: int, shuffle: bool, validates: bool) -> None:
        X, y, weight = self.draw_data(data)
        options: dict[str, Any] = {"optimizer": OPTIMIZERS[optimizer], "epochs": epochs, "batch_size": batch_size}
        options |= {"shuffle": shuffle, "sample_weight": weight}
        if validates:
            options["validation_data"] = self.draw_data(data)[:2]
        if data.draw(st.integers(0, 9)) == 0:
            options |= data.draw(st.sampled_from(BAD_OPTIONS))
        outcomes = self.both(lambda net: net.fit(X, y, **options), X, y, weight, trains=True)
        if outcomes[0].error is None:
            for name in ("loss", "validation_loss", "learning_rate"):
                assert_close(*(getattr(outcome.value, name) for outcome in outcomes[::-1]), self.tolerance, name)
        self.compare_and_join()

    def compare_and_join(self) -> None:
        """Compare the parameters, then give all networks those of the first, so that rounding does not add up."""
        first, *others = self.nets
        for other in others:
            assert other.epoch == first.epoch
            assert_close(other.parameters, first.parameters, self.tolerance, "parameters")
            other.parameters[...] = first.parameters

    @rule(layer=st.integers(0, 2), value=st.sampled_from([0.0, 0.5, -2.0, np.nan, 1e30]), whole=st.booleans())
    def set_weights(self, layer: int, value: float, whole: bool) -> None:
        type(self).calls += 1
        for net in self.nets:
            W = net.weights[layer % len(net.weights)]
            if np.isfinite(value) and abs(value) < 1e6 and whole:
                W[...] = value * (
                    1 if net.masks[layer % len(net.weights)] is None else net.masks[layer % len(net.weights)]
                )
            else:  # what no training should meet: look, and put it back
                kept = W.copy()
                W[0, 0] = value
                Outcome(lambda net=net: net.loss(self.X, self.y))
                Outcome(lambda net=net: net.save(self.folder / "damaged.safetensors"))
                W[...] = kept

    @rule(
        data=st.data(),
        kind=st.sampled_from(
            ["short", "long", "float16", "other dtype", "strided", "read-only", "list", "matrix", "None"]
        ),
    )
    def replace_parameters(self, data: Any, kind: str) -> None:
        """Put something else where the parameters are: it works or is refused, and nothing is written outside."""
        replacements: dict[str, Callable[[Any], Any]] = {
            "short": lambda p: p[:-1],
            "long": lambda p: np.concatenate([p, p]),
            "float16": lambda p: p.astype(np.float16),
            "other dtype": lambda p: p.astype(np.float64 if p.dtype == np.float32 else np.float32),
            "strided": lambda p: np.repeat(p, 2)[::2],
            "read-only": lambda p: np.frombuffer(p.tobytes(), p.dtype),
            "list": lambda p: p.tolist(),
            "matrix": lambda p: p[None],
            "None": lambda p: None,
        }
        method = data.draw(st.sampled_from(["fit", "predict", "loss", "backprop"]))
        type(self).calls += 1
        kept = [net.parameters for net in self.nets]
        for net in self.nets:
            given = net.parameters = replacements[kind](net.parameters)
            before = content(given)
            arguments = (self.X,) if method == "predict" else (self.X, self.y)
            try:
                getattr(net, method)(*arguments)
            except DOCUMENTED:
                assert content(given) == before
            if kind == "read-only":
                assert content(given) == before
        for net, parameters in zip(self.nets, kept, strict=True):
            net.parameters = parameters.copy()
            net.epoch = self.nets[0].epoch
            net.parameters[...] = kept[0]

    @rule(how=st.sampled_from(["save", "pickle", "copy", "deepcopy"]))
    def round_trip(self, how: str) -> None:
        """Bring the networks to a file and back, or copy them."""
        type(self).calls += 1
        back = []
        for net, backend in zip(self.nets, BACKENDS, strict=True):
            if how == "save":
                path = self.folder / "net.safetensors"
                net.save(path)
                back.append(bpgpu.MLP.load(path, backend=backend))
            else:
                ways = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy}
                back.append(ways[how](net))
            assert back[-1].parameters.tobytes() == net.parameters.tobytes()
            assert (back[-1].architecture, back[-1].epoch) == (net.architecture, net.epoch)
        self.nets = back
