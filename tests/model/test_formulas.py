"""The formula table and its compiler: values, all three outputs, and what must be refused."""

import ctypes
import doctest
import math
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest
from scipy import special

import bpgpu
from bpgpu.kernels import formulas
from bpgpu.model.activations import ACTIVATIONS
from bpgpu.model.costs import COSTS, output_formulas

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
Z = np.array([-1e4, -200.0, -88.8, -20.0, -3.3, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.3, 20.0, 88.8, 200.0, 1e4])

# What each activation is, from its definition in other words than the table's.
DEFINITIONS = {
    "identity": lambda z: z,
    "sigmoid": special.expit,
    "tanh": lambda z: 1 - 2 * special.expit(-2 * z),
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.maximum(z, z / 100),
    "elu": lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1),
    "softplus": lambda z: np.logaddexp(0, z),
    "gelu": lambda z: z * special.ndtr(z),
    "silu": lambda z: z * special.expit(z),
}
# Every expression of the tables, with arguments for it: name -> (expression, takes probabilities).
EXPRESSIONS = {
    **{f"{name} value": value for name, (value, _) in formulas.ACTIVATIONS.items()},
    **{f"{name} derivative": derivative for name, (_, derivative) in formulas.ACTIVATIONS.items()},
    **{f"{name} value": value for name, (value, _, _) in formulas.COSTS.items()},
    **{f"{name} gradient": gradient for name, (_, gradient, _) in formulas.COSTS.items()},
    **{f"{a}+{c} value": value for (a, c), (value, _) in formulas.PAIRS.items()},
    **{f"{a}+{c} delta": delta for (a, c), (_, delta) in formulas.PAIRS.items()},
    "every function": "min(erf(z), sin(a)) + max(cos(y), sqrt(abs(z))) + pow(2, -a) + log1p(abs(y)) ** 3 "
    "+ sign(z) * sign(a - 0.5) + decayed(z, 0.9, a) + decayed(a, 0.25, y)",
}


def arguments(dtype):
    """z over its range, a in (0, 1), y in [0, 1], as one grid."""
    z = Z[np.abs(Z) < 60].astype(dtype)
    a = np.linspace(0.01, 0.99, len(z), dtype=dtype)[::-1].copy()
    y = np.linspace(0.0, 1.0, len(z), dtype=dtype)
    return z, a, y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_activation_is_its_definition_and_finite_at_1e4(name, dtype):
    activation = ACTIVATIONS[name]
    a = formulas.numpy_function(activation.value, dtype)(Z.astype(dtype), None, None)
    assert a.dtype == dtype
    tiny = 1e-30 if dtype == np.float32 else 1e-300
    np.testing.assert_allclose(
        a, DEFINITIONS[name](Z.astype(dtype).astype(np.float64)), rtol=2e-5 if tiny == 1e-30 else 1e-12, atol=tiny
    )
    slope = formulas.numpy_function(activation.derivative, dtype)(Z.astype(dtype), a, None)
    assert slope.dtype == dtype
    assert np.isfinite(slope).all()


def test_definitions_cover_the_table():
    assert set(DEFINITIONS) == set(formulas.ACTIVATIONS)


@pytest.mark.parametrize("name", formulas.ACTIVATIONS)
def test_nan_is_not_hidden(name):
    value = formulas.numpy_function(formulas.ACTIVATIONS[name][0], DTYPES[1])
    assert np.isnan(value(np.array([np.nan]), None, None)).all()


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", formulas.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_formulas_are_finite_at_1e4(activation, cost, dtype):
    z = np.repeat(Z, 3).astype(dtype)
    y = np.tile([0.0, 0.3, 1.0], len(Z)).astype(dtype)
    a = formulas.numpy_function(ACTIVATIONS[activation].value, dtype)(z, None, None)
    for formula in output_formulas(ACTIVATIONS[activation], COSTS[cost]):
        with np.errstate(all="ignore"):
            result = formulas.numpy_function(formula, dtype)(z, a, y)
        assert np.isfinite(result).all()


def test_pairs_are_exact_where_the_chain_rule_would_lose_everything():
    z, y = np.array([[1e4, -1e4, 1e4, -1e4]]), np.array([[1.0, 0.0, 0.0, 1.0]])
    for cost, expected, delta in (
        ("binary_cross_entropy", [0, 0, 1e4, 1e4], [0, 0, 1, -1]),
        ("cross_entropy", [0, 0, 0, 1e4], [0, 0, 0, -1]),
    ):
        value, derivative = output_formulas(ACTIVATIONS["sigmoid"], COSTS[cost])
        a = special.expit(z)
        np.testing.assert_array_equal(formulas.numpy_function(value, DTYPES[1])(z, a, y)[0], expected)
        np.testing.assert_array_equal(formulas.numpy_function(derivative, DTYPES[1])(z, a, y)[0], delta)


def test_a_user_formula_with_the_name_of_a_row_is_not_taken_for_it():
    mine = bpgpu.Activation("sigmoid", value="tanh(z)", derivative="1 - a * a")
    value, _ = output_formulas(mine, COSTS["binary_cross_entropy"])
    assert value == formulas.COSTS["binary_cross_entropy"][0]


# The three outputs as text


def test_the_three_outputs_as_text():
    expression = "where(z < 0, 0.01 * z, max(a, y)) - exp(-z) ** 2"
    assert formulas.numba_source(expression, "f") == (
        "def f(z, a, y):\n"
        "    return (((T(0.01) * z) if (z < T(0.0)) else (a if a >= y or a != a else y))"
        " - (math.exp((-z)) * math.exp((-z))))\n"
    )
    assert formulas.cuda_source(expression, "f", ("z", "a", "y")) == (
        "template <typename T> __device__ __forceinline__ T f(T z, T a, T y) { return "
        "(((z < T(0.0)) ? (T(0.01) * z) : (a >= y || a != a ? a : y)) - (exp((-z)) * exp((-z)))); }\n"
    )
    source, used = formulas.emitted(expression, ("z", "a", "y"), "numpy")
    assert source == ("(np.where((z < T(0.0)), (T(0.01) * z), np.maximum(a, y)) - (np.exp((-z)) * np.exp((-z))))")
    assert used == {"z", "a", "y"}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_no_literal_escapes_the_working_type(name):
    for target in ("numba", "cuda", "numpy"):
        source = formulas.emitted(EXPRESSIONS[name], ("z", "a", "y"), target)[0]
        bare = source
        while "T(" in bare:
            start = bare.index("T(")
            bare = bare[:start] + bare[bare.index(")", start) + 1 :]
        assert not any(character.isdigit() for character in bare.replace("log1p", "").replace("expm1", ""))


def test_macros_expand_to_the_row_of_the_table():
    expanded = formulas.numba_source("sigmoid(2 * z)", "f", ("z",))
    written = formulas.numba_source(formulas.ACTIVATIONS["sigmoid"][0].replace("z", "(2 * z)"), "f", ("z",))
    assert expanded == written


# The outputs by value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_numba_agrees_with_numpy(name, dtype):
    namespace = {"math": math, "T": dtype.type}
    exec(formulas.numba_source(EXPRESSIONS[name], "f"), namespace)
    scalar = numba.njit(namespace["f"])
    values = [scalar(*row) for row in zip(*arguments(dtype), strict=True)]
    expected = formulas.numpy_function(EXPRESSIONS[name], dtype)(*arguments(dtype))
    np.testing.assert_allclose(
        values, np.broadcast_to(expected, len(values)), rtol=50 * np.finfo(dtype).eps, atol=1e-30
    )
    (signature,) = scalar.nopython_signatures
    assert str(signature.return_type) == str(dtype)


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform == "win32", reason="needs g++ to run the C++ output")
def test_cuda_source_agrees_with_numpy_when_compiled_as_cpp(tmp_path):
    lines = ["#include <math.h>", "#define __device__", "#define __forceinline__ inline"]
    for k, expression in enumerate(EXPRESSIONS.values()):
        lines.append(formulas.cuda_source(expression, f"f{k}"))
        for T in ("float", "double"):
            lines.append(
                f'extern "C" void {T}_{k}(const {T}* z, const {T}* a, const {T}* y, {T}* out, int n)'
                f" {{ for (int i = 0; i < n; ++i) out[i] = f{k}<{T}>(z[i], a[i], y[i]); }}"
            )
    source, library = tmp_path / "formulas.cpp", tmp_path / "formulas.so"
    source.write_text("\n".join(lines))
    subprocess.run(
        ["g++", "-O1", "-shared", "-fPIC", "-Wdouble-promotion", "-Werror", "-o", library, source], check=True
    )
    compiled = ctypes.CDLL(str(library))
    for k, (name, expression) in enumerate(EXPRESSIONS.items()):
        for dtype, T in zip(DTYPES, ("float", "double"), strict=True):
            z, a, y = arguments(dtype)
            out = np.empty_like(z)
            getattr(compiled, f"{T}_{k}")(*(ctypes.c_void_p(x.ctypes.data) for x in (z, a, y, out)), len(z))
            expected = np.broadcast_to(formulas.numpy_function(expression, dtype)(z, a, y), z.shape)
            np.testing.assert_allclose(out, expected, rtol=50 * np.finfo(dtype).eps, atol=1e-30, err_msg=name)


# What is refused

HOSTILE = [
    "__import__('os').system('true')",
    "z.__class__",
    "z[0]",
    "[z for z in (1, 2)]",
    "(lambda: z)()",
    "exec(z)",
    "eval(z)",
    "print(z)",
    "open(z)",
    "T(z)",
    "np.exp(z)",
    "special",
    "exp",
    "exp(z, z)",
    "exp(x=z)",
    "exp(*z)",
    "exp()",
    "x",
    "'z'",
    "b'z'",
    "f'{z}'",
    "True",
    "None",
    "...",
    "1j",
    "1e999",
    "1e39",
    "z < 0",
    "where(z, 1, 2)",
    "where(0 < z < 1, 1, 2)",
    "where(z < 0 and z < 1, 1, 2)",
    "where(z is 0, 1, 2)",
    "1 if z < 0 else 2",
    "z and a",
    "not z",
    "~z",
    "z // 2",
    "z % 2",
    "z @ a",
    "z | a",
    "z << 2",
    "(z := 1)",
    "z, a",
    "{z}",
    "{z: a}",
    "await z",
    "(yield)",
    "z; a",
    "z = 1",
    "import os",
    "",
    " ",
    "z\0",
    "(" * 300 + "z" + ")" * 300,
    "-" * 400 + "z",
    "z" + " + z" * 200,
    "z" * 6000,
]


@pytest.mark.filterwarnings("ignore:.*is.*literal:SyntaxWarning")
@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: repr(text[:30]))
@pytest.mark.parametrize("compiler", ["numpy", "numba", "cuda", "traced"])
def test_hostile_expressions_are_refused(expression, compiler):
    with pytest.raises(bpgpu.FormulaError):
        match compiler:
            case "numpy":
                formulas.numpy_function(expression, DTYPES[1])
            case "numba":
                formulas.numba_source(expression, "f")
            case "cuda":
                formulas.cuda_source(expression, "f")
            case "traced":
                formulas.traced_function(expression, None, None)


@pytest.mark.parametrize("nested", ["sigmoid({})", "max({}, z)", "{} ** 4"])
def test_formulas_cannot_blow_up(nested):
    expression = "z"
    while len(expression) < 4000 and expression.count("(") < 25:
        expression = nested.format(f"({expression})")
    with pytest.raises(bpgpu.FormulaError, match="expands to more than 50000 characters"):
        formulas.numba_source(expression, "f")


@pytest.mark.parametrize("value", [3, None, b"z", ["z"]])
def test_a_formula_is_a_string(value):
    with pytest.raises(bpgpu.FormulaError, match="must be a string"):
        bpgpu.Activation("mine", value=value, derivative="1")


def test_the_error_names_the_culprit_and_the_whitelist():
    with pytest.raises(
        bpgpu.FormulaError, match=r"'z\.real' is not allowed; a formula is made of the names z, numbers"
    ):
        bpgpu.Activation("mine", value="z.real", derivative="1")


# Formulas of the user's own


@pytest.mark.parametrize(
    ("value", "derivative"),
    [
        ("z * sigmoid(z)", "sigmoid(z) * (1 + z * sigmoid(-z))"),
        ("z * tanh(softplus(z))", "tanh(softplus(z)) + z * sigmoid(z) * (1 - tanh(softplus(z)) ** 2)"),
        ("max(0, z)", "where(a > 0, 1, 0)"),
        ("max(min(z, 1), -1)", "where(abs(z) < 1, 1, 0)"),
        ("sin(z)", "cos(z)"),
    ],
)
def test_good_activations_are_taken(value, derivative):
    assert bpgpu.Activation("mine", value=value, derivative=derivative).derivative_needs_z == ("z" in derivative)


@pytest.mark.parametrize(
    ("value", "derivative", "where"),
    [
        ("tanh(z)", "1 + a * a", "z = "),
        ("sigmoid(z)", "a * (1 - a) + 0.00001", "z = "),
        ("max(z, 0)", "where(a > 0, 1, 0.001)", "z = -"),
        ("where(z < 3, z, 3 * z - 6)", "1", r"z = (3\.|4\.|5\.|6\.|9\.|15|30)"),
        ("log(z)", "1 / z", "z = -30"),
        ("z * z", "where(z > 29, 0, 2 * z)", "z = 30"),
    ],
)
def test_wrong_derivatives_are_refused_with_the_place(value, derivative, where):
    if value == "log(z)":  # half of its points are usable, and there it is right
        bpgpu.Activation("mine", value=value, derivative=derivative)
        return
    with pytest.raises(bpgpu.FormulaError, match=f"activation 'mine': at {where}.*finite differences of the value"):
        bpgpu.Activation("mine", value=value, derivative=derivative)


@pytest.mark.parametrize(
    ("value", "derivative", "where"),
    [
        ("where(z < 50, z, 50)", "1", r"50\.0012 .* gives 1, but .* give 0$"),
        ("where(z > -200, z, -200)", "1", r"-209\.999 "),
        ("where(z < 5000, z, 5000)", "1", "5164"),
        ("z ** 3", "where(z > 100, 3.01 * z * z, 3 * z * z)", r"100\.001 "),
        ("tanh(z / 1000)", "0.001", "-31"),
        ("sin(30 * z)", "where(z > 70, 0, 30 * cos(30 * z))", r"70\.0012 "),
        ("exp(z)", "where(z > 31, 0, a)", r"31\.0012 "),
    ],
)
def test_derivatives_that_are_wrong_far_out_only_are_refused(value, derivative, where):
    with pytest.raises(bpgpu.FormulaError, match=f"^activation 'mine': at z = {where}"):
        bpgpu.Activation("mine", value=value, derivative=derivative)


@pytest.mark.parametrize(
    ("value", "gradient", "where"),
    [
        ("0.5 * (a - y) ** 2", "max(min(a - y, 6), -6)", r"a = 5\.00123, y = -1 "),
        ("(a - y) ** 2", "where(y > 1, 1, 2) * (a - y)", "a = .*, y = 2 "),
        ("(a - y) ** 2", "where(y > 500, 1, 2) * (a - y)", "a = .*, y = 1000 "),
        ("(a - y) ** 2", "where(y < -1, 1, 2) * (a - y)", "a = .*, y = -50 "),
        ("exp(a) - min(y, 1) * a", "exp(a) - y", "a = .*, y = 2 "),
    ],
)
def test_gradients_that_are_wrong_far_out_only_are_refused(value, gradient, where):
    with pytest.raises(bpgpu.FormulaError, match=f"^cost 'mine': at {where}"):
        bpgpu.Cost("mine", value=value, gradient=gradient)


@pytest.mark.parametrize(
    ("value", "derivative"),
    [
        ("sin(z * z)", "2 * z * cos(z * z)"),  # waves shorter than any step
        ("sin(z ** 3)", "3 * z * z * cos(z ** 3)"),
        ("exp(z * z)", "2 * z * a"),
        ("sqrt(z * z + 1) - abs(z)", "z / sqrt(1 + z * z) - where(z < 0, -1, 1)"),  # cancels
        ("(z - 1) ** 2 * (z + 3) - z ** 3", "2 * z - 5"),
        ("max(min(z, 50.00123), -50)", "where(z < -50, 0, where(z < 50.00123, 1, 0))"),  # kinks at points, and beside
        ("max(min(z, 50.0013), -50)", "where(z < -50, 0, where(z < 50.0013, 1, 0))"),
        ("where(z < 100.0013, z, 0.5 + 0.995 * z)", "where(z < 100.0013, 1, 0.995)"),
    ],
)
def test_right_derivatives_that_differences_hardly_show_are_taken(value, derivative):
    bpgpu.Activation("mine", value=value, derivative=derivative)


@pytest.mark.parametrize(
    ("value", "gradient"),
    [
        ("max(a, 1e-30) - y * log(max(a, 1e-30))", "where(a > 1e-30, 1 - y / max(a, 1e-30), 0)"),
        ("a * a - 2 * a * y + y * y", "2 * a - 2 * y"),  # cancels where y is large
        ("where(abs(a - y) < 1, a * a - 2 * a * y + y * y, 2 * abs(a - y) - 1)", "2 * max(min(a - y, 1), -1)"),
        ("max(0.9 * (y - a), 0.1 * (a - y))", "where(y > a, -0.9, 0.1)"),
        ("softplus(-a * y)", "-y * sigmoid(-a * y)"),
        ("max(0, 1 - a * y) ** 2", "-2 * y * max(0, 1 - a * y)"),
        ("-exp(-(a - y) ** 2)", "2 * (a - y) * exp(-(a - y) ** 2)"),
        (
            "sqrt(max(1 - (a - y) ** 2, 1e-9))",
            "where((a - y) ** 2 < 1, (y - a) / sqrt(max(1 - (a - y) ** 2, 1e-9)), 0)",
        ),
    ],
)
def test_right_gradients_for_large_targets_are_taken(value, gradient):
    bpgpu.Cost("mine", value=value, gradient=gradient)


def test_good_costs_are_taken():
    bpgpu.Cost("log_cosh", value="abs(a - y) + log1p(exp(-2 * abs(a - y)))", gradient="tanh(a - y)")
    bpgpu.Cost(
        "huber",
        value="where(abs(a - y) < 1, 0.5 * (a - y) ** 2, abs(a - y) - 0.5)",
        gradient="max(min(a - y, 1), -1)",
        reduction="mean",
    )


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_constant_is_a_cost_for_each_output(data, output, reduction):
    X, y = data()
    cost = bpgpu.Cost("constant", value="2", gradient="0", reduction=reduction)
    for backend in ("numpy", "numba"):
        net = bpgpu.MLP((3, 4, 2), ("tanh", output), cost, backend=backend)
        before = net.parameters.copy()
        expected = pytest.approx(4 if reduction == "sum" else 2, rel=1e-6)
        assert net.loss(X, y) == expected
        assert net.fit(X, y, epochs=2).loss == [expected, expected]
        assert np.array_equal(net.parameters, before)
        C, gradients = net.backprop(X, y)
        assert expected == C
        assert not any(np.any(array) for pair in gradients for array in pair)


@pytest.mark.parametrize("gradient", ["y - a", "(a - y) * 1.001", "where(y > 0.9, 0, a - y)", "where(a > 3, 0, a - y)"])
def test_wrong_gradients_are_refused_with_the_place(gradient):
    with pytest.raises(bpgpu.FormulaError, match=r"cost 'mine': at a = .*, y = .* the gradient"):
        bpgpu.Cost("mine", value="0.5 * (a - y) ** 2", gradient=gradient)


def test_a_cost_may_not_read_z_nor_an_activation_y():
    with pytest.raises(bpgpu.FormulaError, match="'z' is not known"):
        bpgpu.Cost("mine", value="z - y", gradient="1")
    with pytest.raises(bpgpu.FormulaError, match="'y' is not known"):
        bpgpu.Activation("mine", value="z + y", derivative="1")


@pytest.mark.parametrize("row", [*formulas.ACTIVATIONS.items()], ids=lambda row: row[0])
def test_rows_of_the_activation_table_pass_the_check_of_users_formulas(row):
    name, (value, derivative) = row
    assert bpgpu.Activation(name, value, derivative) == ACTIVATIONS[name]


@pytest.mark.parametrize("row", [*formulas.COSTS.items()], ids=lambda row: row[0])
def test_rows_of_the_cost_table_pass_the_check_of_users_formulas(row):
    name, (value, gradient, reduction) = row
    assert bpgpu.Cost(name, value, gradient, reduction) == COSTS[name]


@pytest.mark.parametrize("value", ["z" + ".a" * 900, "0x" + "f" * 4000, "9" * 4400, "z" + "[0]" * 900])
def test_monsters_get_the_same_error(value):
    with pytest.raises(bpgpu.FormulaError):
        bpgpu.Activation("mine", value=value, derivative="1")


def test_constants_are_checked_like_anything_else():
    with pytest.raises(bpgpu.FormulaError, match="finite differences"):
        bpgpu.Activation("mine", value="2", derivative="1")
    with pytest.raises(bpgpu.FormulaError, match="finite differences"):
        bpgpu.Cost("mine", value="y * y", gradient="1")
    assert bpgpu.Activation("mine", value="2", derivative="0").derivative_needs_z is False


# Numbers wherever there are some


SWISH = "z / (1 + exp(-z))", "(1 + a * exp(-z)) / (1 + exp(-z))"


@pytest.mark.parametrize(
    ("value", "derivative", "where"),
    [
        (*SWISH, "z = -89 in float32 the derivative .* gives nan, where -1.96.*e-37 is right"),
        ("(exp(z) - exp(-z)) / (exp(z) + exp(-z))", "1 - a * a", "z = -?89 in float32 the value .* gives nan"),
        ("log(1 + exp(z))", "1 / (1 + exp(-z))", "z = 89 in float32 the value .* gives inf, where 89 is right"),
        ("where(z < 400, 0, 1) * exp(z) / (1 + exp(z)) * 0 + z", "1", "z = 89 in float32 the value"),
        ("where(z < 1, sin(z) / z, sin(z) / z)", "(cos(z) - a) / z", "z = 0 in float32 the value .* gives nan"),
    ],
)
def test_an_activation_that_fails_somewhere_is_refused_with_the_place(value, derivative, where):
    with pytest.raises(bpgpu.FormulaError, match=f"^activation 'mine': at {where}"):
        bpgpu.Activation("mine", value=value, derivative=derivative)


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp == np.finfo(np.float64).maxexp, reason="no wider type than float64")
def test_an_activation_that_fails_in_float64_only_is_refused():
    with pytest.raises(bpgpu.FormulaError, match=r"at z = 8\d\d.* in float64 the value .* gives nan"):
        bpgpu.Activation("mine", value="where(z < 800, z, z * exp(800) / exp(800))", derivative="1")


@pytest.mark.parametrize(
    ("value", "gradient", "where"),
    [
        ("log((exp(a - y) + exp(y - a)) / 2)", "tanh(a - y)", "a = 8.*, y = -1 in float32 the value .* gives inf"),
        ("log(1 + exp(a)) - y * a", "sigmoid(a) - y", "a = 89, y = -1 in float32 the value .* gives inf"),
        ("softplus(a) - y * a", "exp(a) / (1 + exp(a)) - y", "a = 89, y = -1 in float32 the gradient .* gives nan"),
        ("-y * log(a)", "-y / a", "a = 0, y = 0 in float32 the value .* gives nan"),
        ("-(1 - y) * log(1 - a)", "(1 - y) / (1 - a)", "a = 1, y = 1 in float32 the value .* gives nan"),
        ("-y * log(max(a, 1e-50))", "where(a > 1e-50, -y / a, 0)", "a = .*, y = .* in float32 the value .* gives"),
    ],
)
def test_a_cost_that_fails_somewhere_is_refused_with_the_place(value, gradient, where):
    with pytest.raises(bpgpu.FormulaError, match=f"^cost 'mine': at {where}"):
        bpgpu.Cost("mine", value=value, gradient=gradient)


@pytest.mark.parametrize(
    ("value", "derivative"),
    [
        ("exp(z)", "a"),  # its values are too large for the type, not its formula
        ("z ** 3", "3 * z * z"),
        ("z / sqrt(1 + z * z)", "1 / sqrt(1 + z * z) ** 3"),
        ("exp(-z * z)", "-2 * z * a"),
        ("1 / (1 + exp(-z))", "a * (1 - a)"),  # 1 / infinity is 0
        ("sin(30 * z)", "30 * cos(30 * z)"),
        ("erf(z)", "1.1283791670955126 * exp(-z * z)"),
    ],
)
def test_what_is_large_or_small_by_right_is_taken(value, derivative):
    bpgpu.Activation("mine", value=value, derivative=derivative)


@pytest.mark.parametrize("documented", [bpgpu.Activation, bpgpu.Cost], ids=lambda kind: kind.__name__)
def test_the_example_of_the_docstring_is_right_everywhere(documented):
    (example,) = doctest.DocTestParser().get_examples(documented.__doc__)
    made = eval(example.source, {"bpgpu": bpgpu})
    dtype = np.dtype(np.float32)
    if documented is bpgpu.Activation:
        z = np.linspace(-1e4, 1e4, 4001, dtype=dtype)
        a = formulas.numpy_function(made.value, dtype)(z, None, None)
        slope = formulas.numpy_function(made.derivative, dtype)(z, a, None)
        np.testing.assert_allclose(a, z * special.expit(z.astype(float)), rtol=1e-6, atol=1e-38)
        exact = special.expit(z.astype(float))
        np.testing.assert_allclose(slope, exact * (1 + z * (1 - exact)), rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ([1], TypeError, r"must be text, got \[1\]"),
        (None, TypeError, "must be text, got None"),
        ("", ValueError, "must have 1 to 100 characters, all printable, got ''"),
        ("two\nlines", ValueError, "must have 1 to 100 characters, all printable, got 'two"),
        ("x" * 101, ValueError, "must have 1 to 100 characters"),
    ],
)
def test_names_are_checked(name, error, message):
    with pytest.raises(error, match=f"^the name of an activation {message}"):
        bpgpu.Activation(name, value="z", derivative="1")
    with pytest.raises(error, match=f"^the name of a cost {message}"):
        bpgpu.Cost(name, value="(a - y) ** 2", gradient="2 * (a - y)")


# Long formulas


@pytest.mark.parametrize("terms", [40, 100])
def test_a_sum_of_many_terms_is_taken_and_computed_alike(terms):
    value = " + ".join(f"sin({k} * z) / {k}" for k in range(1, terms + 1))
    derivative = " + ".join(f"cos({k} * z)" for k in range(1, terms + 1))
    sines = bpgpu.Activation("sines", value=value, derivative=derivative)
    dtype, z = np.dtype(np.float64), np.linspace(-3, 3, 7)
    expected = sum(np.sin(k * z) / k for k in range(1, terms + 1))
    np.testing.assert_array_equal(formulas.numpy_function(sines.value, dtype)(z, None, None), expected)
    assert formulas.cuda_source(value, "f", ("z",)).count("+") == terms - 1


def test_a_chain_is_computed_from_left_to_right():
    for expression in ("1 - z - 2 + 3 - z", "8 / z * 3 / 2 * z", "1 - (z - 2) - 8 / (z / 2)", "z * 2 + 3 - z / 2 * 5"):
        value = formulas.numpy_function(expression, DTYPES[1])(np.float64(3.7), None, None)
        assert value == eval(expression, {"z": 3.7})


@pytest.mark.parametrize("text", [" + ".join("z" * 130), " * ".join("z" * 130), "z" + "+z" * 2400])
def test_too_many_terms_are_refused(text):
    with pytest.raises(bpgpu.FormulaError, match=r"more than 30 levels deep \(each 4 terms of a sum|not an expr"):
        bpgpu.Activation("mine", value=text, derivative="1")


@pytest.mark.parametrize(
    "value",
    [
        "0x{} % 2",
        "z[0x{}]",
        "where(0x{}, 1, 2)",
        "-0x{}",
        "0x{}('x')",
        "z ** 0x{}",
        "z if 0x{} else 1",
        "f{}",
        "z + '{}'",
    ],
)
def test_monsters_get_a_short_error(value):
    with pytest.raises(bpgpu.FormulaError) as caught:
        bpgpu.Activation("mine", value=value.format("f" * 3700), derivative="1")
    assert len(str(caught.value)) < 1000
