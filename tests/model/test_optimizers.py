"""Update rules against scalar loops written from the publications, gradient clipping, schedules, their errors."""

import dataclasses
import math
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import bpgpu
from bpgpu.kernels import formulas

# Each parameter p descends its own parabola: g(p) = curvature * (p - lowest). The first N_WEIGHTS are weights.
START = [0.5, -1.0, 2.0, 0.0, -0.25]
CURVATURE = [1.0, 3.0, 0.1, 2.0, 0.7]
LOWEST = [0.0, 0.5, -2.0, 1.0, 1e-3]
N_WEIGHTS, STEPS = 3, 6


def descend(rule, *, dtype=np.float64, steps=STEPS):
    """Take steps with bpgpu on all parameters at once."""
    backend = bpgpu.get_backend("numpy")
    p, state = np.array(START, dtype), [np.zeros(len(START), dtype) for _ in range(rule.n_state)]
    for t in range(1, steps + 1):
        g = (np.array(CURVATURE) * (p - np.array(LOWEST))).astype(dtype)
        backend.update(rule, p, g, state, t=t, learning_rate=rule.rate(t - 1), n_weights=N_WEIGHTS)
    return p


def sgd(p, grad, decays, eta):
    for _ in range(STEPS):
        p = p - eta * grad(p)
    return p


def momentum(p, grad, decays, eta, mu):
    """Polyak 1964, as in Sutskever et al. 2013, equations 1 and 2."""
    v = 0.0
    for _ in range(STEPS):
        v = mu * v - eta * grad(p)
        p = p + v
    return p


def nesterov(p, grad, decays, eta, mu):
    """Sutskever et al. 2013, equations 3 and 4; bpgpu keeps the look-ahead point p + mu v as its parameters."""
    v = 0.0
    for _ in range(STEPS):
        v = mu * v - eta * grad(p + mu * v)
        p = p + v
    return p + mu * v


def rmsprop(p, grad, decays, eta, rho, epsilon):
    mean_square = 0.0
    for _ in range(STEPS):
        g = grad(p)
        mean_square = rho * mean_square + (1 - rho) * g**2
        p = p - eta * g / (math.sqrt(mean_square) + epsilon)
    return p


def adam(p, grad, decays, eta, beta1, beta2, epsilon, weight_decay=0.0, *, hat=False):
    """Kingma and Ba 2015, algorithm 1 and the end of section 2; Loshchilov and Hutter 2019, algorithm 2, line 12."""
    m = v = 0.0
    for t in range(1, STEPS + 1):
        g = grad(p)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
        if hat:
            step = math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + epsilon)
        p = p - eta * step - (eta * weight_decay * p if decays else 0.0)
    return p


RULES = [
    (bpgpu.SGD(0.1), sgd, (0.1,)),
    (bpgpu.SGD(0.1, momentum=0.8), momentum, (0.1, 0.8)),
    (bpgpu.SGD(0.1, momentum=0.8, nesterov=True), nesterov, (0.1, 0.8)),
    (bpgpu.RMSprop(0.03), rmsprop, (0.03, 0.9, 1e-8)),
    (bpgpu.RMSprop(0.03, rho=0.5, epsilon=0.1), rmsprop, (0.03, 0.5, 0.1)),
    (bpgpu.Adam(), adam, (1e-3, 0.9, 0.999, 1e-8)),
    (bpgpu.Adam(0.05, beta1=0.7, beta2=0.9, epsilon=0.2), adam, (0.05, 0.7, 0.9, 0.2)),
    (bpgpu.Adam(0.05, epsilon=0.2, epsilon_hat=True), partial(adam, hat=True), (0.05, 0.9, 0.999, 0.2)),
    (bpgpu.AdamW(), adam, (1e-3, 0.9, 0.999, 1e-8, 1e-2)),
    (bpgpu.AdamW(0.05, weight_decay=0.6), adam, (0.05, 0.9, 0.999, 1e-8, 0.6)),
    (bpgpu.AdamW(0.05, weight_decay=0.0), adam, (0.05, 0.9, 0.999, 1e-8)),
]


@pytest.mark.parametrize(("rule", "published", "numbers"), RULES, ids=[str(row[0]) for row in RULES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6)])
def test_rule(rule, published, numbers, dtype, tolerance):
    expected = [
        published(p, lambda x, c=c, low=low: c * (x - low), i < N_WEIGHTS, *numbers)
        for i, (p, c, low) in enumerate(zip(START, CURVATURE, LOWEST, strict=True))
    ]
    p = descend(rule, dtype=dtype)
    assert p.dtype == dtype
    np.testing.assert_allclose(p, expected, rtol=tolerance, atol=tolerance)


# Bugs in the rows of the table: each must fail the test above, or one of tests/kernels/test_sums.py.
WRONG = [
    ("sgd", "p", "- eta", "+ eta"),
    ("momentum", "v", "-eta * g", "eta * g"),
    ("momentum", "p", "p + v", "p + momentum * v"),
    ("nesterov", "p", "-eta * g + momentum * v", "v"),
    ("rmsprop", "p", "(sqrt(v) + epsilon)", "sqrt(v + epsilon)"),
    ("rmsprop", "v", "(1 - rho) * g * g", "g * g"),
    ("adam", "p", "beta1 ** t", "beta1"),
    ("adam", "p", "1 - beta2 ** t", "1 - beta1 ** t"),
    ("adam", "m", "beta1, ", "beta2, "),
    ("adam", "v", "g * g", "g"),
    ("adam_hat", "p", "sqrt(1 - beta2 ** t)", "1"),
    ("adamw", "p", "weight_decay * is_weight", "weight_decay"),
    ("adamw", "p", "* is_weight * p", "* is_weight * m"),
]


@pytest.mark.parametrize(("name", "of", "right", "wrong"), WRONG)
def test_a_bug_in_a_row_is_caught(name, of, right, wrong, monkeypatch):
    row = formulas.RULES[name]
    tried = [case for case in RULES if case[0].formulas == row]
    assert right in row[of]
    monkeypatch.setitem(formulas.RULES, name, row | {of: row[of].replace(right, wrong)})
    failed = 0
    for case in tried:
        try:
            test_rule(*case, np.float64, 1e-13)
        except AssertionError:
            failed += 1
    assert failed


def test_state_that_is_read_before_it_is_new_is_the_old_one(monkeypatch):
    """The order of a row counts: with p above v, momentum takes the velocity of the step before."""
    monkeypatch.setitem(formulas.RULES, "momentum", dict(reversed(formulas.RULES["momentum"].items())))
    p = descend(bpgpu.SGD(0.1, momentum=0.8), steps=1)
    assert p.tolist() == START
    assert not np.array_equal(descend(bpgpu.SGD(0.1, momentum=0.8), steps=2), START)


def test_adamw_decays_weights_and_no_biases():
    g = np.zeros(5)
    rule, p = bpgpu.AdamW(0.1, weight_decay=0.5), np.array(START)
    bpgpu.get_backend("numpy").update(rule, p, g, [g.copy(), g.copy()], t=1, learning_rate=0.1, n_weights=N_WEIGHTS)
    np.testing.assert_allclose(p[:N_WEIGHTS], 0.95 * np.array(START[:N_WEIGHTS]), rtol=1e-15)
    assert p[N_WEIGHTS:].tolist() == START[N_WEIGHTS:]


@pytest.mark.parametrize(
    ("clip_norm", "gradient", "clipped"),
    [
        (1.0, [3.0, 4.0], [0.6, 0.8]),
        (5.0, [3.0, 4.0], [3.0, 4.0]),
        (10.0, [3.0, 4.0], [3.0, 4.0]),
        (1.0, [0.0, 0.0], [0.0, 0.0]),
        (1.0, [3e30, -4e30], [0.6, -0.8]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_norm(clip_norm, gradient, clipped, dtype):
    p = np.zeros(2, dtype)
    rule = bpgpu.SGD(1.0, clip_norm=clip_norm)
    bpgpu.get_backend("numpy").update(rule, p, np.array(gradient, dtype), [], t=1, learning_rate=1.0, n_weights=1)
    np.testing.assert_allclose(p, -np.array(clipped), rtol=3e-7)


def test_clip_norm_where_the_square_overflows_float64():
    p = np.zeros(2)
    rule = bpgpu.SGD(1.0, clip_norm=1.0)
    bpgpu.get_backend("numpy").update(rule, p, np.array([3e200, 4e200]), [], t=1, learning_rate=1.0, n_weights=1)
    np.testing.assert_allclose(p, [-0.6, -0.8], rtol=1e-15)


@pytest.mark.parametrize("rule", [bpgpu.RMSprop(0.1), bpgpu.Adam(0.1), bpgpu.AdamW(0.1)], ids=str)
def test_gradient_whose_square_overflows_is_not_ignored(make_net, rule):
    # With v infinite the step would be 0, and the parameter would stand still for ever without a word.
    steep = bpgpu.Cost("steep", value="1e25 * a", gradient="1e25")
    net = make_net((3, 2), "identity", steep, dtype="float32")
    before = net.parameters.copy()
    with pytest.raises(bpgpu.NonFiniteError, match="the optimizer state of layer 1 is not finite in epoch 1, step 2"):
        net.fit(np.ones((4, 3)), np.zeros((4, 2)), optimizer=rule, batch_size=2)
    np.testing.assert_array_equal(net.parameters, before)


def test_clip_norm_takes_all_layers_together(make_net, data):
    X, y = data()
    net = make_net(l2=0.1)
    gradients = np.concatenate([g.ravel() for pair in net.backprop(X, y)[1] for g in pair])
    norm = math.sqrt(sum(float(g) ** 2 for g in gradients))
    before = net.parameters.copy()
    net.fit(X, y, optimizer=bpgpu.SGD(1.0, clip_norm=norm / 4), epochs=1, batch_size=20)
    assert np.linalg.norm(net.parameters - before) == pytest.approx(norm / 4, rel=1e-12)


SCHEDULES = [
    (bpgpu.StepDecay(0.8, 0.5, every=3), {0: 0.8, 2: 0.8, 3: 0.4, 5: 0.4, 6: 0.2, 9: 0.1}),
    (bpgpu.ExponentialDecay(0.9, 0.25, every=4), {0: 0.9, 2: 0.45, 4: 0.225, 6: 0.1125, 8: 0.05625}),
    (bpgpu.CosineDecay(1.0, steps=8, final=0.2), {0: 1.0, 4: 0.6, 8: 0.2, 100: 0.2, 2: 0.6 + 0.4 / math.sqrt(2)}),
    (
        bpgpu.CosineDecay(1.0, steps=12, final=0.5, warmup=4),
        {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 8: 0.75, 12: 0.5, 13: 0.5},
    ),
]


@pytest.mark.parametrize(("schedule", "values"), SCHEDULES, ids=str)
def test_schedule_values(schedule, values):
    for step, rate in values.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-12)
        assert bpgpu.SGD(schedule).rate(step) == schedule(step)


def test_constant_rate():
    assert [bpgpu.SGD(0.3).rate(step) for step in (0, 1, 10**9)] == [0.3] * 3


@pytest.mark.parametrize(
    ("name", "rule"),
    [("sgd", bpgpu.SGD()), ("rmsprop", bpgpu.RMSprop()), ("adam", bpgpu.Adam()), ("adamw", bpgpu.AdamW())],
)
def test_name_means_default_numbers(make_net, data, name, rule):
    X, y = data()
    nets = make_net(), make_net()
    for net, optimizer in zip(nets, (name, rule), strict=True):
        net.fit(X, y, optimizer=optimizer, epochs=2, batch_size=7)
    assert np.array_equal(nets[0].parameters, nets[1].parameters)


def test_own_rule(make_net, data):
    class SignDescent(bpgpu.Optimizer):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            p -= eta * xp.sign(g)

    X, y = data()
    net = make_net()
    before, gradients = net.parameters.copy(), net.backprop(X, y)[1]
    flat = np.concatenate([*(dW.ravel() for dW, _ in gradients), *(db for _, db in gradients)])
    net.fit(X, y, optimizer=SignDescent(0.25), epochs=1, batch_size=20)
    np.testing.assert_allclose(net.parameters, before - 0.25 * np.sign(flat), rtol=1e-14)


# Rules of the user's own, as formulas


@dataclasses.dataclass(frozen=True)
class Own(bpgpu.Optimizer):
    """Takes its formulas as they come."""

    beta: float = 0.9
    text: str = ""
    given: tuple[tuple[str, str], ...] = (("m", "decayed(m, beta, (1 - beta) * g)"), ("p", "p - eta * m"))

    @property
    def formulas(self):
        return dict(self.given)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_own_formulas_are_what_apply_would_be(make_net, data, backend):
    class Python(bpgpu.Optimizer):
        n_state = 1

        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            state[0][:] = 0.9 * state[0] + (1 - 0.9) * g
            p -= eta * state[0]

    X, y = data()
    nets = make_net(backend=backend), make_net(backend="numpy")
    for net, rule in zip(nets, (Own(0.1), Python(0.1)), strict=True):
        net.fit(X, y, optimizer=rule, epochs=3, batch_size=7)
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=1e-12, atol=1e-13)


def test_apply_goes_before_formulas(make_net, data):
    class Still(bpgpu.Adam):
        def apply(self, p, g, state, *, t, eta, n_weights, xp):
            assert len(state) == 2

    X, y = data()
    for backend in ("numpy", "numba"):
        net = make_net(backend=backend)
        before = net.parameters.copy()
        net.fit(X, y, optimizer=Still(), epochs=2)
        assert np.array_equal(net.parameters, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"p": "p - eta * gradient"},
            "the name 'gradient' is not known here; a formula is made of the names p, g, .* beta",
        ),
        ({"p": "p - eta * text * g"}, "the name 'text' is not known here"),
        ({"p": "p - clip_norm * g"}, "the name 'clip_norm' is not known here"),
        ({"p": "p.real - g"}, "'p.real' is not allowed"),
        ({"p": "p - eta * decayed(g, beta)"}, r"decayed\(\) takes 3 arguments, got 2"),
        ({"m": "g"}, "the formulas of an optimizer must have one of p, got those of m"),
        ({"p": "p - eta * m", "m": "m"}, "optimizer Own: none of its formulas reads the gradient g"),
        (
            {"g": "g", "p": "p - g"},
            "'g' cannot be the name of a state of an optimizer, as it is no Python name or means",
        ),
        ({"beta": "g", "p": "p - g"}, "'beta' cannot be the name of a number of an optimizer"),
        ({"sqrt": "g", "p": "p - g"}, "'sqrt' cannot be the name of a state"),
        ({"my m": "g", "p": "p - g"}, "'my m' cannot be the name of a state"),
        ({"lambda": "g", "p": "p - g"}, "'lambda' cannot be the name of a state"),
        (
            {**dict.fromkeys("abcde", "g"), "p": "p - g"},
            "an optimizer may keep 4 numbers for each parameter, got .* a, b",
        ),
        (
            {"v": "decayed(v, beta, g * g)", "p": "p - eta * g / sqrt(v)"},
            r"optimizer Own: in step 1 in float32, with p = .*, g = -?0, v = 0 and eta = 0.01, the formula of p "
            r"'p - eta \* g / sqrt\(v\)' gives nan; keep quotients",
        ),
        ({"p": "p - eta * exp(g)"}, "float32, with p = .*, g = 1e\\+03 and .* the formula of p .* gives -inf"),
        ({"p": "p - eta * g / (1 - beta ** (t - 1))"}, "in step 1 in .* the formula of p .* gives "),
        ({"m": "log(g * g)", "p": "p - eta * m"}, "in step 1 in float32.* the formula of m 'log.*' gives -inf"),
    ],
)
def test_own_formulas_are_checked_when_the_rule_is_made(given, message):
    with pytest.raises(bpgpu.FormulaError, match=message):
        Own(given=tuple(given.items()))


def test_own_numbers_may_be_of_any_kind():
    rule = Own(0.1, beta=np.float32(0.5), given=(("p", "p - eta * (beta + 1) / t * g"),))
    assert rule.compiled.numbers == ("eta", "eta * (beta + 1) / t")
    np.testing.assert_allclose(rule.compiled.schedule([0.1, 0.2], 3, np.dtype(float)), [[0.1, 0.05], [0.2, 0.075]])


def test_rules_are_equal_and_pickled_as_their_numbers_are():
    for rule in (bpgpu.SGD(0.1, momentum=0.5), bpgpu.AdamW(0.1), Own(0.1, 0.5)):
        assert rule.compiled is not None  # nothing of it may stay
        same = pickle.loads(pickle.dumps(rule))
        assert same == rule
        assert hash(same) == hash(rule)
        assert same.compiled == rule.compiled
        assert vars(same).keys() == {field.name for field in dataclasses.fields(rule)}
    assert Own(0.1, 0.5) != Own(0.1, 0.6)


ABOVE_0 = "a finite number above 0"
FRACTION = r"a number in \[0, 1\)"
BAD = [
    *((bpgpu.SGD, {"learning_rate": x}, ValueError, ABOVE_0) for x in (0, -1, 0.0, math.nan, math.inf)),
    *((bpgpu.Adam, {"learning_rate": x}, TypeError, ABOVE_0) for x in (None, "fast", [0.1, 0.2], 1j, "0.1")),
    *((bpgpu.RMSprop, {"clip_norm": x}, ValueError, ABOVE_0) for x in (0, -1, math.nan, math.inf)),
    *((bpgpu.AdamW, {"clip_norm": x}, TypeError, ABOVE_0) for x in ("x", "1.5")),
    *((bpgpu.SGD, {"momentum": x}, ValueError, FRACTION) for x in (-0.1, 1, math.nan)),
    *((bpgpu.SGD, {"momentum": x}, TypeError, FRACTION) for x in (None, "0.9")),
    *((bpgpu.RMSprop, {"rho": x}, ValueError, FRACTION) for x in (-0.1, 1)),
    *((bpgpu.RMSprop, {"epsilon": x}, ValueError, ABOVE_0) for x in (0, -1)),
    *((bpgpu.Adam, {name: x}, ValueError, FRACTION) for name in ("beta1", "beta2") for x in (-0.1, 1)),
    *((bpgpu.AdamW, {"epsilon": x}, ValueError, ABOVE_0) for x in (0, math.nan)),
    *((bpgpu.AdamW, {"weight_decay": x}, ValueError, "a finite number, 0 or more") for x in (-1, math.inf)),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "expected"), BAD, ids=[f"{kind.__name__}-{arguments}" for kind, arguments, *_ in BAD]
)
def test_bad_numbers(kind, arguments, error, expected):
    name, value = next(iter(arguments.items()))
    with pytest.raises(error, match=f"^{name} must be {expected}, got ") as caught:
        kind(**arguments)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "name", "wrong"),
    [
        (bpgpu.StepDecay(1.0, 0.5, every=2), name, x)
        for name in ("initial", "factor", "every")
        for x in (0, -1, math.nan)
    ]
    + [(bpgpu.ExponentialDecay(1.0, 0.5, every=2), name, -1) for name in ("initial", "factor", "every")]
    + [(bpgpu.CosineDecay(1.0, steps=9), name, -1) for name in ("initial", "steps", "final", "warmup")],
)
def test_bad_schedule_numbers(schedule, name, wrong):
    with pytest.raises(
        ValueError if isinstance(wrong, int) else (TypeError, ValueError), match=f"^{name} must be .*got"
    ):
        dataclasses.replace(schedule, **{name: wrong})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 1e-7, "steps": 100}, "^final must be at most initial, 1e-07, got 1e-06; pass final=1e-09 or"),
        ({"initial": 0.1, "steps": 9, "final": 0.2}, "^final must be at most initial, 0.1, got 0.2"),
        ({"initial": 1.0, "steps": 5, "warmup": 9}, "^warmup must be less than steps, 5, .*got 9"),
        ({"initial": 1.0, "steps": 5, "warmup": 5}, "^warmup must be less than steps, 5, .*got 5"),
    ],
)
def test_a_cosine_decay_that_contradicts_itself_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bpgpu.CosineDecay(**arguments)


@pytest.mark.parametrize("arguments", [{"initial": 0.1, "steps": 1}, {"initial": 0.1, "steps": 9, "warmup": 8}])
def test_a_cosine_decay_never_rises_after_its_warmup_and_ends_at_its_final_rate(arguments):
    decay = bpgpu.CosineDecay(**arguments)
    rates = [decay(step) for step in range(decay.warmup, 20)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], decay(decay.steps)) == (decay.initial, pytest.approx(decay.final))


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, "at least 0, got -1"),
        (-(10**9), ValueError, "at least 0, got -1000000000"),
        (10**400, ValueError, "at most 9223372036854775807, got an integer of 1329 bits"),
        (1.5, TypeError, "an integer of at least 0, got 1.5"),
    ],
)
@pytest.mark.parametrize(
    "schedule",
    [
        bpgpu.StepDecay(1.0, 0.5, every=2),
        bpgpu.ExponentialDecay(1.0, 0.5, every=2),
        bpgpu.CosineDecay(1.0, steps=9, warmup=2),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_refuse_steps_that_there_are_not(schedule, step, error, message):
    with pytest.raises(error, match=f"^step must be {message}$"):
        schedule(step)
    assert schedule(np.int64(3)) == schedule(3)


@pytest.mark.parametrize("rule", [bpgpu.SGD, bpgpu.RMSprop, bpgpu.Adam, bpgpu.AdamW])
@pytest.mark.parametrize(
    "schedule", [lambda epoch, history: 0.1, lambda: 0.1, bpgpu.StepDecay, bpgpu.CosineDecay, lambda *, step: 0.1]
)
def test_a_schedule_that_does_not_take_the_step_is_refused_at_once(rule, schedule):
    with pytest.raises(TypeError, match=r"^learning_rate must be a function of the step, got "):
        rule(schedule)


@pytest.mark.parametrize("schedule", [lambda step, scale=0.1: scale, lambda *steps: 0.1, math.exp])
def test_a_schedule_may_take_more_than_the_step(schedule):
    assert bpgpu.SGD(schedule).rate(0) > 0


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_flags_of_rules_are_checked(value):
    with pytest.raises(TypeError, match=r"^nesterov must be True or False, got "):
        bpgpu.SGD(0.1, momentum=0.9, nesterov=value)
    with pytest.raises(TypeError, match=r"^epsilon_hat must be True or False, got "):
        bpgpu.Adam(epsilon_hat=value)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        bpgpu.SGD(0.1, nesterov=True)


def test_rule_without_apply():
    with pytest.raises(NotImplementedError, match=r"Optimizer has no apply\(\) and no formulas"):
        bpgpu.Optimizer().apply(None, None, [], t=1, eta=0.1, n_weights=1, xp=SimpleNamespace())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip_norm", [1e-30, 1e-46, 1e-320, 1e300])
def test_a_norm_that_the_dtype_does_not_hold_clips_on_every_backend(clip_norm, dtype):
    """In float32 the compiled epoch took 1e-46 for 0, which is none."""
    X, y = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2
    found = []
    for backend in ("numpy", "numba"):
        net = bpgpu.MLP([4, 3, 2], ["tanh", "softmax"], "cross_entropy", backend=backend, dtype=dtype)
        before = net.parameters.copy()
        net.fit(X, y, optimizer=bpgpu.SGD(0.1, clip_norm=clip_norm), epochs=2)
        assert np.array_equal(net.parameters[:-5], before[:-5]) == (clip_norm < 1)
        found.append(net.parameters)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (bpgpu.SGD(), {"l2": 1e39}, r"l2 must be at most 3.4e\+38, the largest number of float32, got 1e\+39"),
        (bpgpu.AdamW(weight_decay=1e39), {}, r"weight_decay must be at most 3.4e\+38"),
        (bpgpu.Adam(epsilon=1e39), {}, r"epsilon must be at most 3.4e\+38"),
        (bpgpu.RMSprop(epsilon=1e-46), {}, r"epsilon must be at least 1.2e-38, got 1e-46, which is 0 in float32"),
    ],
    ids=str,
)
def test_a_number_that_the_dtype_does_not_hold_is_refused(rule, options, message, backend):
    def plan(dtype):
        net = bpgpu.MLP([4, 2], "softmax", "cross_entropy", backend=backend, dtype=dtype, **options)
        return bpgpu.backends.plan.Plan(net.architecture, 8, net.backend, rule)

    plan("float64")
    with pytest.raises(ValueError, match=message):
        plan("float32")
