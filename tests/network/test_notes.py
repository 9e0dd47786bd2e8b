"""The worked network of each of the five notes, against the note's own formulas written out as scalar loops.

The functions `note_000` ... `note_004` are an implementation independent of bpgpu: `math`, lists and sums, in the
indices of their note (layers by the note's numbers, neurons from 0). Each has its note's formulas as they must read;
given the name of a slip it computes what the note prints instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

import bpgpu

Vector = list[float]
Matrix = list[Vector]
Weights = dict[int, Matrix]  # by the note's layer number
Biases = dict[int, Vector]
Layers = list[tuple[Any, Any]]  # (W_l, b_l) as bpgpu has them
SAMPLES = 6
NET = {"dtype": "float64", "backend": "numpy"}
EXACT = {"rtol": 0, "atol": 1e-12}


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def sigmoid_prime(z: float) -> float:
    return sigmoid(z) * (1 - sigmoid(z))


def phi(z: float) -> float:  # of the normal distribution
    return (1 + math.erf(z / math.sqrt(2))) / 2


# name: (value, derivative), both as functions of z
ACTIVATIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "sigmoid": (sigmoid, sigmoid_prime),
    "tanh": (math.tanh, lambda z: 1 - math.tanh(z) ** 2),
    "relu": (lambda z: max(z, 0.0), lambda z: float(z > 0)),
    "gelu": (lambda z: z * phi(z), lambda z: phi(z) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)),
}


def dot(u: Vector, v: Vector) -> float:
    return sum(s * t for s, t in zip(u, v, strict=True))


def column(W: Matrix, j: int) -> Vector:
    return [row[j] for row in W]


def squares(y: Vector, a: Vector) -> float:
    return sum((s - t) ** 2 for s, t in zip(y, a, strict=True))


def log_loss(y: Vector, a: Vector) -> float:
    return -sum(t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(y, a, strict=True))


@dataclass
class Pass:
    """What a note's formulas give for a batch: the mean cost and its gradients, and z, a, delta of each sample."""

    dw: Weights
    db: Biases
    samples: int
    cost: float = 0.0
    z: dict[int, Matrix] = field(default_factory=dict)
    a: dict[int, Matrix] = field(default_factory=dict)
    delta: dict[int, Matrix] = field(default_factory=dict)

    @classmethod
    def start(cls, W: Weights, b: Biases, X: Matrix) -> "Pass":
        zeros = {l: [[0.0] * len(row) for row in w] for l, w in W.items()}
        return cls(zeros, {l: [0.0] * len(v) for l, v in b.items()}, len(X))

    def add_w(self, l: int, rows: Vector, columns: Vector) -> None:
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                self.dw[l][i][j] += r * c / self.samples

    def add_b(self, l: int, delta: Vector) -> None:
        for i in range(len(self.db[l])):
            self.db[l][i] += delta[i] / self.samples

    def record(self, z: dict[int, Vector], a: dict[int, Vector], delta: dict[int, Vector]) -> None:
        for matrices, sample in ((self.z, z), (self.a, a), (self.delta, delta)):
            for l in sorted(sample):
                matrices.setdefault(l, []).append(sample[l])


# The five notes


def note_000(W: Weights, b: Biases, X: Matrix, Y: Matrix, slip: str = "") -> Pass:
    """w_ij^(l) leads to neuron i of layer l+1 from neuron j of layer l; layers 1 ... 4; E = (1/N) Σ ½ Σ (y - a)²."""
    p = Pass.start(W, b, X)
    for x, y in zip(X, Y, strict=True):
        z, a, delta = {}, {1: x}, {}
        for l in (1, 2, 3):
            swap = slip == "swapped" and l == 1  # the first matrix is 3 by 3: the shapes do not tell
            z[l + 1] = [dot(column(W[l], i) if swap else W[l][i], a[l]) + b_i for i, b_i in enumerate(b[l + 1])]
            a[l + 1] = [sigmoid(z_i) for z_i in z[l + 1]]
        p.cost += squares(y, a[4]) / 2 / len(X)
        dE = [a_i - y_i for a_i, y_i in zip(a[4], y, strict=True)]  # dE/da
        if slip == "dE_dz":
            dE = [dE[i] * sigmoid_prime(z_i) for i, z_i in enumerate(z[4])]
        delta[4] = [dE[i] * sigmoid_prime(z_i) for i, z_i in enumerate(z[4])]
        for l in (3, 2):
            delta[l] = [dot(column(W[l], j), delta[l + 1]) * sigmoid_prime(z_j) for j, z_j in enumerate(z[l])]
        for l in (1, 2, 3):
            p.add_w(l, delta[l + 1], a[l])
            p.add_b(l + 1, delta[3 if slip == "bias_layer" and l == 1 else l + 1])
        p.record(z, a, delta)
    return p


def note_001(W: Weights, b: Biases, X: Matrix, Y: Matrix, slip: str = "", *, penalty: float) -> Pass:
    """W is Theta_{j,i}^(l), to j of layer l+1 from i of layer l, with a_0 = 1; layers 1 ... 4; D = (1/m) Delta."""
    p, m = Pass.start(W, b, X), len(X)
    for x, y in zip(X, Y, strict=True):
        z, a, delta = {}, {1: [1.0, *x]}, {}
        for l in (1, 2, 3):
            S = len(W[l]) if slip == "sum_bound" else len(a[l]) - 1  # S_{l+1} as printed; S_l
            z[l + 1] = [dot(theta_j[: S + 1], a[l][: S + 1]) for theta_j in W[l]]  # c = 0 ... S
            if slip == "wrong_theta" and l == 1:
                z[2][0] = dot(W[2][0], a[1])
            a[l + 1] = [1.0, *(sigmoid(z_j) for z_j in z[l + 1])]
        p.cost += log_loss(y, a[4][1:]) / m
        delta[4] = [a[4][k + 1] - y_k for k, y_k in enumerate(y)]
        for l in (3, 2):
            inputs = range(1, len(a[l]))
            delta[l] = [dot(column(W[l], i), delta[l + 1]) * a[l][i] * (1 - a[l][i]) for i in inputs]
        for l in (1, 2, 3):
            p.add_w(l, delta[l + 1], a[l])
        p.record(z, {l: a_l[1:] for l, a_l in a.items()}, delta)
    for l in (1, 2, 3):
        for j, theta_j in enumerate(W[l]):
            p.cost += penalty / (2 * m) * dot(theta_j[1:], theta_j[1:])
            for i in range(0 if slip == "bias_penalised" else 1, len(theta_j)):
                p.dw[l][j][i] += penalty / m * theta_j[i]
    return p


def note_002(W: Weights, b: Biases, X: Matrix, Y: Matrix, slip: str = "", *, h: str) -> Pass:
    """w_ij^(l): neuron i of layer l, its j-th input; layers 0 ... 3 of 2, 4, 3, 1 neurons, each written out."""
    p = Pass.start(W, b, X)
    h_value, h_prime = ACTIVATIONS[h]
    for x, y in zip(X, Y, strict=True):
        z1 = [W[1][i][0] * x[0] + W[1][i][1] * x[1] + b[1][i] for i in range(4)]
        a1 = [h_value(z) for z in z1]
        z2 = [sum(W[2][i][j] * a1[j] for j in range(4)) + b[2][i] for i in range(3)]
        a2 = [h_value(z) for z in z2]
        z3 = [W[3][0][0] * a2[0] + W[3][0][1] * a2[1] + W[3][0][2] * a2[2] + b[3][0]]
        a3 = [sigmoid(z3[0])]
        p.cost += log_loss(y, a3) / len(X)
        d3 = [a3[0] - y[0]]
        d2 = [d3[0] * W[3][0][k] * h_prime(z2[k]) for k in range(3)]
        sums = [sum(d2[k] * W[2][k][i] for k in range(3)) for i in range(4)]
        if slip == "sum_index":  # delta_i inside the sum over k; for i = 3 layer 2 has no such neuron
            sums[:3] = [sum(d2[i] * W[2][k][i] for k in range(3)) for i in range(3)]
        d1 = [sums[i] * (1.0 if slip == "no_slope" else h_prime(z1[i])) for i in range(4)]
        for l, delta, inputs in ((1, d1, x), (2, d2, a1), (3, d3, a2)):
            p.add_w(l, delta, inputs)
            p.add_b(l, delta)
        p.record({1: z1, 2: z2, 3: z3}, {0: x, 1: a1, 2: a2, 3: a3}, {1: d1, 2: d2, 3: d3})
    return p


def note_003(W: Weights, b: Biases, X: Matrix, Y: Matrix, slip: str = "", *, sigma: str, mean: bool) -> Pass:
    """Any L; y is the output and ŷ the target; C = Σ (y - ŷ)² or, as another C, its mean over the K outputs."""
    p, L = Pass.start(W, b, X), len(W)
    sigma_value, sigma_prime = ACTIVATIONS[sigma]
    for x, y_hat in zip(X, Y, strict=True):
        z, a, delta, K = {}, {0: x}, {}, len(y_hat) if mean else 1
        for l in range(1, L + 1):
            z[l] = [dot(W[l][i], a[l - 1]) + b_i for i, b_i in enumerate(b[l])]
            a[l] = [sigma_value(z_i) for z_i in z[l]]
        p.cost += squares(a[L], y_hat) / K / len(X)
        grad_C = [2 * (y - t) / K for y, t in zip(a[L], y_hat, strict=True)]
        delta[L] = [sigma_prime(z_i) * grad_C[i] for i, z_i in enumerate(z[L])]
        for l in range(L - 1, 0, -1):
            above, W_above = delta[l + 1], W[l + 1]
            if slip == "outside_sum":
                sums = [above[i] * sum(column(W_above, i)) for i in range(len(z[l]))]
            else:
                sums = [dot(above, column(W_above, i)) for i in range(len(z[l]))]
            delta[l] = [sigma_prime(z_i) * sums[i] for i, z_i in enumerate(z[l])]
        for l in range(1, L + 1):
            p.add_w(l, delta[l], a[l - 1])
            p.add_b(l, delta[l])
        p.record(z, a, delta)
    return p


def note_004(W: Weights, b: Biases, X: Matrix, Y: Matrix, slip: str = "") -> Pass:
    """Rows: z_j^{k+1} = Σ_i o_i^k W_ij^k; layers 0, 1, 2; no biases; L = ½ Σ (y - ŷ)², ŷ being the output."""
    p = Pass.start(W, b, X)
    for x, y in zip(X, Y, strict=True):
        z, o, delta = {}, {0: x}, {}
        for k in (0, 1):
            z[k + 1] = [dot(o[k], column(W[k], j)) for j in range(len(W[k][0]))]
            o[k + 1] = [sigmoid(z_j) for z_j in z[k + 1]]
        p.cost += squares(y, o[2]) / 2 / len(X)
        dL = [(y[j] - o[2][j] if slip == "sign" else o[2][j] - y[j]) for j in (0, 1)]  # dL/dŷ
        delta[2] = [dL[j] * (dL[j] if slip == "twice" else 1.0) * sigmoid_prime(z[2][j]) for j in (0, 1)]
        delta[1] = [dot(delta[2], W[1][i]) * sigmoid_prime(z[1][i]) for i in range(4)]
        for k in (0, 1):
            p.add_w(k, o[k], delta[k + 1])
        p.record(z, o, delta)
    return p


# Their worked networks, through the public API


def columns(W: Weights, b: Biases) -> Layers:
    """From a note that writes column vectors."""
    return [(np.transpose(w), np.array(v)) for w, v in zip(W.values(), b.values(), strict=True)]


def rows(W: Weights, b: Biases) -> Layers:
    """From a note that writes row vectors and no biases."""
    return [(np.array(w), None) for w in W.values()]


def thetas(W: Weights, b: Biases) -> Layers:
    """From Theta = [b | W^T]."""
    return [(np.array(theta)[:, 1:].T, np.array(theta)[:, 0]) for theta in W.values()]


def flat(layers: Any) -> np.ndarray:
    return np.concatenate([np.ravel(array) for layer in layers for array in layer if array is not None])


@dataclass
class Worked:
    """A note's network twice: its formulas on its own weights, and the bpgpu.MLP made of them."""

    scalar: Callable[..., Pass]
    net: bpgpu.MLP
    layout: Callable[[Weights, Biases], Layers]
    W: Weights
    b: Biases
    rate: float = 2.0  # learning rate of the training run

    def __post_init__(self) -> None:
        sizes = self.net.architecture.sizes
        self.X = np.random.default_rng(3).standard_normal((SAMPLES, sizes[0]))
        self.y = np.array([[float(x[k] == max(x)) for k in range(sizes[-1])] for x in self.X])

    def run(self, slip: str = "") -> Pass:
        return self.scalar(self.W, self.b, self.X.tolist(), self.y.tolist(), slip)

    def gradient(self, slip: str = "") -> np.ndarray:
        p = self.run(slip)
        return flat(self.layout(p.dw, p.db))

    def central_differences(self) -> np.ndarray:
        """The gradient of the scalar cost, entry by entry, from five points each."""
        p, h = Pass.start(self.W, self.b, []), 1e-3
        pairs = [(w, dw) for l in self.W for w, dw in zip(self.W[l], p.dw[l], strict=True)]
        for vector, slopes in [*pairs, *((self.b[l], p.db[l]) for l in self.b)]:
            for i, at in enumerate(list(vector)):
                f = {}
                for k in (-2, -1, 1, 2):
                    vector[i] = at + k * h
                    f[k] = self.run().cost
                vector[i] = at
                slopes[i] = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
        return flat(self.layout(p.dw, p.db))


def draw(shapes: dict[int, Any], seed: int = 28) -> dict[int, Any]:
    return {l: np.random.default_rng([seed, l]).standard_normal(shape).tolist() for l, shape in shapes.items()}


def column_network(
    scalar: Callable[..., Pass], sizes: list[int], activations: Any, cost: str, rate: float, bias_shift: int = 0
) -> Worked:
    """Weights W^(1), W^(2), ... for column vectors; the biases that go with W^(l) are b^(l + bias_shift)."""
    W = draw({l: (sizes[l], sizes[l - 1]) for l in range(1, len(sizes))})
    b = draw({l + bias_shift: sizes[l] for l in range(1, len(sizes))}, seed=29)
    return Worked(scalar, bpgpu.MLP(sizes, activations, cost, init=columns(W, b), **NET), columns, W, b, rate)


def network_000(outputs: int) -> Worked:
    return column_network(note_000, [3, 3, 4, outputs], "sigmoid", "half_squared_error", rate=2.0, bias_shift=1)


def network_001(h: int) -> Worked:
    W = draw({1: (h, 4), 2: (3, h + 1), 3: (3, 4)})
    net = bpgpu.MLP.from_theta(list(W.values()), l2=0.02, **NET)
    return Worked(partial(note_001, penalty=0.02), net, thetas, W, {})


def network_002(h: str) -> Worked:
    return column_network(partial(note_002, h=h), [2, 4, 3, 1], [h, h, "sigmoid"], "binary_cross_entropy", rate=0.2)


def network_003(sizes: list[int], sigma: str, mean: bool = False) -> Worked:
    cost = "mean_squared_error" if mean else "squared_error"
    return column_network(partial(note_003, sigma=sigma, mean=mean), sizes, sigma, cost, rate=0.5)


def network_004() -> Worked:
    W = draw({0: (3, 4), 1: (4, 2)})
    net = bpgpu.MLP([3, 4, 2], "sigmoid", "half_squared_error", bias=False, init=list(W.values()), **NET)
    return Worked(note_004, net, rows, W, {})


WORKED: dict[str, Callable[[], Worked]] = {
    "000-two-outputs": partial(network_000, 2),
    "000-three-outputs": partial(network_000, 3),
    "001-h3": partial(network_001, 3),
    "001-h5": partial(network_001, 5),
    **{f"002-{h}": partial(network_002, h) for h in ACTIVATIONS},
    "003-one-neuron": partial(network_003, [2, 1], "sigmoid"),
    "003-L3": partial(network_003, [3, 3, 3, 3], "sigmoid"),
    "003-L5": partial(network_003, [4, 3, 5, 2, 4, 3], "tanh", mean=True),
    "004": network_004,
}
SLIPS = {
    "000-two-outputs": ["dE_dz", "bias_layer", "swapped"],
    "001-h3": ["bias_penalised", "wrong_theta"],
    "001-h5": ["sum_bound"],
    "002-tanh": ["no_slope", "sum_index"],
    "003-L3": ["outside_sum"],
    "004": ["sign", "twice"],
}


@pytest.fixture(params=WORKED)
def worked(request: pytest.FixtureRequest) -> Worked:
    return WORKED[request.param]()


def workspace(net: bpgpu.MLP, X: np.ndarray, y: np.ndarray) -> dict[str, list[np.ndarray]]:
    """z and delta of layers 1 ... L and a of layers 0 ... L, as the backend computes them."""
    plan = bpgpu.Plan(net.architecture, len(X), net.backend).allocate()
    batch = plan.batch(len(X))
    net.backend.load_batch(batch, bpgpu.backends.plan.Data(X, y), slice(None))
    net.backend.batch_gradients(plan, batch, net.parameters, epoch=0, step=0)
    z = [np.empty_like(a) for a in batch.a[1:]]  # a plan keeps only the z it needs
    for l, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        net.backend.forward(batch.a[l], W, b, net.architecture.activations[l], out=np.empty_like(z[l]), out_z=z[l])
    np.testing.assert_array_equal(batch.z[-1], z[-1])
    return {"z": z, "a": batch.a, "delta": batch.delta[1:]}


def relative_error(gradient: np.ndarray, differences: np.ndarray) -> float:
    """The largest over the entries; 1e-3 of the largest derivative is the least denominator."""
    size = np.maximum(np.abs(gradient), np.abs(differences))
    return float(np.max(np.abs(gradient - differences) / np.maximum(size, 1e-3 * np.max(np.abs(differences)))))


def test_every_number_is_that_of_the_scalar_formulas(worked: Worked) -> None:
    expected, got = worked.run(), workspace(worked.net, worked.X, worked.y)
    for symbol, factor in (("z", 1), ("a", 1), ("delta", SAMPLES)):  # our delta holds the 1/B of the mean
        for ours, theirs in zip(got[symbol], getattr(expected, symbol).values(), strict=True):
            np.testing.assert_allclose(ours * factor, theirs, **EXACT, err_msg=symbol)
    C, gradients = worked.net.backprop(worked.X, worked.y)
    np.testing.assert_allclose([C, worked.net.loss(worked.X, worked.y)], expected.cost, **EXACT)
    np.testing.assert_allclose(flat(gradients), worked.gradient(), **EXACT)


def test_central_differences(worked: Worked) -> None:
    report = bpgpu.check_gradients(worked.net, worked.X, worked.y, tolerance=1e-7)
    assert report.max_error < 1e-7
    assert (report.checked, report.kinks) == (worked.net.parameters.size, 0)
    differences = worked.central_differences()
    assert relative_error(worked.gradient(), differences) < 1e-7
    assert relative_error(flat(worked.net.backprop(worked.X, worked.y)[1]), differences) < 1e-7


def test_one_update_is_gradient_descent(worked: Worked) -> None:
    worked.net.fit(worked.X, worked.y, optimizer=bpgpu.SGD(0.3), epochs=1, batch_size=SAMPLES)
    expected = flat(worked.layout(worked.W, worked.b)) - 0.3 * worked.gradient()
    np.testing.assert_allclose(flat(zip(worked.net.weights, worked.net.biases, strict=True)), expected, **EXACT)


def test_training_drives_the_cost_down(worked: Worked) -> None:
    before = worked.net.loss(worked.X, worked.y)
    worked.net.fit(worked.X, worked.y, optimizer=bpgpu.SGD(worked.rate), epochs=1000, batch_size=SAMPLES)
    assert worked.net.loss(worked.X, worked.y) < 0.2 * before


@pytest.mark.parametrize(("name", "slip"), [(name, slip) for name in SLIPS for slip in SLIPS[name]])
def test_slip(name: str, slip: str) -> None:
    case = WORKED[name]()
    differences = case.central_differences()
    assert relative_error(case.gradient(), differences) < 1e-7
    assert relative_error(flat(case.net.backprop(case.X, case.y)[1]), differences) < 1e-7
    assert relative_error(case.gradient(slip), differences) > 0.1


def test_001_theta_comes_back() -> None:
    case = WORKED["001-h5"]()
    for theta, given in zip(case.net.to_theta(), case.W.values(), strict=True):
        np.testing.assert_array_equal(theta, given)


def test_002_softmax_of_one_output_is_constant() -> None:
    case = WORKED["002-tanh"]()
    sizes, init = case.net.architecture.sizes, columns(case.W, case.b)
    softmax = bpgpu.MLP(sizes, ["tanh", "tanh", "softmax"], "squared_error", init=init, **NET)
    np.testing.assert_array_equal(softmax.predict(case.X), 1.0)
    assert not flat(softmax.backprop(case.X, case.y)[1]).any()
    assert np.ptp(case.net.predict(case.X)) > 0.1


def test_004_errors_are_distributed_by_the_transposed_matrix() -> None:
    W = draw({1: (4, 2)})[1]
    net = bpgpu.MLP([4, 4, 2], "identity", "half_squared_error", bias=False, init=[np.eye(4), W], **NET)
    hidden, output = workspace(net, np.eye(4), np.ones((4, 2)))["delta"]
    for e_hidden, e in zip(hidden, output, strict=True):
        np.testing.assert_allclose(e_hidden, [W[i][0] * e[0] + W[i][1] * e[1] for i in range(4)], **EXACT)
