"""Activations, costs and optimizers as data, and the compiler that turns an expression into code for every backend.

A formula is written once, as an expression in ``z`` (weighted input), ``a`` (activation) and ``y`` (target); those of
optimizers, which `bpgpu.kernels.rules` puts together, in ``p`` (parameter), ``g`` (gradient) and the rule's own names.
`numpy_function`, `numba_source` and `cuda_source` emit it for NumPy, Numba and CUDA C++; `traced_function` computes it
with objects that record their operations, of which an ONNX graph is made. Nothing of an expression is ever evaluated
as Python: the compiler walks its syntax tree, emits what is on the whitelist below and refuses everything else.
Literals are emitted as ``T(...)``, T being the working type, so that float64 cannot creep into float32 arithmetic.

All formulas of the tables are finite in float32 and float64 for every finite z up to 1e4 in size, and they
propagate NaN.
"""

import ast
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class FormulaError(ValueError):
    """A formula that the compiler refuses, or whose derivative is wrong."""


# name: (value, derivative). The derivative is written in a where it can be, so that z need not be kept.
ACTIVATIONS: dict[str, tuple[str, str]] = {
    "identity": ("z", "1"),
    # exp of a negative number only: 1 / (1 + exp(-z)) would overflow at z = -89 in float32.
    "sigmoid": ("where(z < 0, exp(-abs(z)), 1) / (1 + exp(-abs(z)))", "a * (1 - a)"),
    "tanh": ("tanh(z)", "1 - a * a"),
    # "z < 0", not "z > 0", lets a NaN through instead of hiding it.
    "relu": ("where(z < 0, 0, z)", "where(a > 0, 1, 0)"),
    "leaky_relu": ("where(z < 0, 0.01 * z, z)", "where(a > 0, 1, 0.01)"),
    "elu": ("where(z < 0, expm1(min(z, 0)), z)", "where(a < 0, a + 1, 1)"),
    "softplus": ("max(z, 0) + log1p(exp(-abs(z)))", "-expm1(-a)"),
    # 0.7071... is 1/sqrt(2), 0.3989... is 1/sqrt(2 pi): Hendrycks and Gimpel 2016, exact form.
    "gelu": (
        "0.5 * z * erfc(-0.7071067811865476 * z)",
        "0.5 * erfc(-0.7071067811865476 * z) + 0.3989422804014327 * z * exp(-0.5 * z * z)",
    ),
    "silu": ("z * sigmoid(z)", "sigmoid(z) * (1 + z * sigmoid(-z))"),
}

# Other names in use for rows of the tables.
ACTIVATION_ALIASES = {"linear": "identity", "logistic": "sigmoid", "swish": "silu"}

# name: (value, gradient, reduction over the outputs of a sample); the gradient is d value / d a of one output.
# Outside the domain of a logarithm its argument is held at 1e-30, so value and gradient stay finite.
COSTS: dict[str, tuple[str, str, str]] = {
    "half_squared_error": ("0.5 * (y - a) ** 2", "a - y", "sum"),
    "squared_error": ("(y - a) ** 2", "2 * (a - y)", "sum"),
    "mean_squared_error": ("(y - a) ** 2", "2 * (a - y)", "mean"),
    "binary_cross_entropy": (
        # log1p, for 1 - a would round a small a away; the number is log(1e-30).
        "-(y * log(max(a, 1e-30)) + (1 - y) * max(log1p(-min(a, 1)), -69.07755278982137))",
        "where(1 - a > 1e-30, (1 - y) / max(1 - a, 1e-30), 0) - where(a > 1e-30, y / max(a, 1e-30), 0)",
        "sum",
    ),
    "cross_entropy": ("-y * log(max(a, 1e-30))", "where(a > 1e-30, -y / max(a, 1e-30), 0)", "sum"),
}

# Output activations that come near a bound, where a - y and sigma' cancel: both written from z.
_NEAR_BOUNDS: dict[str, tuple[str, str]] = {
    "sigmoid": ("(1 - y) * a - y * sigmoid(-z)", "a * sigmoid(-z)"),
    # a = sigmoid(2 z) - sigmoid(-2 z), and the two add up to 1.
    "tanh": (
        "where(abs(z) < 0.5, a - y, (1 - y) * sigmoid(2 * z) - (1 + y) * sigmoid(-2 * z))",
        "4 * sigmoid(2 * z) * sigmoid(-2 * z)",
    ),
    "elu": ("where(z < -0.5, exp(min(z, 0)) - (1 + y), a - y)", "exp(min(z, 0))"),
}

# (output activation, cost): (value, delta = dC/dz), where the pair is better written from z than as
# gradient * derivative: once a is rounded to 0 or 1, that is 0/0, or 0 where it should be small. For targets 0 and 1
# all are exact to a few roundings of the result, however small it is.
PAIRS: dict[tuple[str, str], tuple[str, str]] = {
    ("sigmoid", "binary_cross_entropy"): (
        "(1 - y) * max(z, 0) - y * min(z, 0) + log1p(exp(-abs(z)))",
        "(1 - y) * a - y * sigmoid(-z)",
    ),
    ("sigmoid", "cross_entropy"): ("y * softplus(-z)", "-y * sigmoid(-z)"),
}
for _name, (_error, _slope) in _NEAR_BOUNDS.items():
    PAIRS[_name, "half_squared_error"] = f"0.5 * ({_error}) ** 2", f"({_error}) * ({_slope})"
    PAIRS[_name, "squared_error"] = f"({_error}) ** 2", f"2 * ({_error}) * ({_slope})"
    PAIRS[_name, "mean_squared_error"] = PAIRS[_name, "squared_error"]
# Behind softmax these are value and gradient dC/da, and z stands for 1 - a, which the kernels know exactly.
PAIRS["softmax", "half_squared_error"] = "0.5 * ((1 - y) * a - y * z) ** 2", "(1 - y) * a - y * z"
PAIRS["softmax", "squared_error"] = "((1 - y) * a - y * z) ** 2", "2 * ((1 - y) * a - y * z)"
PAIRS["softmax", "mean_squared_error"] = PAIRS["softmax", "squared_error"]

# name: the new values of an optimizer's state and of the parameter p, one after another: a name that stands above means
# its new value, any other its old one. State begins as 0. What is made of the rule's numbers, eta (the learning rate)
# and t (the step, from 1) alone is computed on the host in float64, once a step: 1 - 0.999 in float32 is wrong in the
# fifth digit. is_weight is 1 for weights and 0 for biases.
RULES: dict[str, dict[str, str]] = {
    "sgd": {"p": "p - eta * g"},
    "momentum": {"v": "decayed(v, momentum, -eta * g)", "p": "p + v"},
    "nesterov": {"v": "decayed(v, momentum, -eta * g)", "p": "p + (-eta * g + momentum * v)"},
    "rmsprop": {"v": "decayed(v, rho, (1 - rho) * g * g)", "p": "p - eta * g / (sqrt(v) + epsilon)"},
}
_MOMENTS = {"m": "decayed(m, beta1, (1 - beta1) * g)", "v": "decayed(v, beta2, (1 - beta2) * g * g)"}
# The mean over the root of the mean square; in the second, epsilon is added to sqrt(v).
_ADAM = "m * (1 / (1 - beta1 ** t)) / (sqrt(v * (1 / (1 - beta2 ** t))) + epsilon)"
_ADAM_HAT = "m * (sqrt(1 - beta2 ** t) / (1 - beta1 ** t)) / (sqrt(v) + epsilon)"
RULES |= {
    "adam": {**_MOMENTS, "p": f"p - eta * ({_ADAM})"},
    "adam_hat": {**_MOMENTS, "p": f"p - eta * ({_ADAM_HAT})"},
    "adamw": {**_MOMENTS, "p": f"p - eta * ({_ADAM} + weight_decay * is_weight * p)"},
    "adamw_hat": {**_MOMENTS, "p": f"p - eta * ({_ADAM_HAT} + weight_decay * is_weight * p)"},
}


@dataclass(frozen=True)
class _Function:
    """A function that formulas may call: its number of arguments and a template for each target."""

    arity: int
    numpy: str
    numba: str
    cuda: str


def _same_name(name: str) -> _Function:
    return _Function(1, f"np.{name}({{0}})", f"math.{name}({{0}})", f"{name}({{0}})")


def _extremum(numpy_name: str, comparison: str) -> _Function:
    # NumPy's maximum and minimum propagate NaN from either side; so do these.
    keeps_first = f"{{0}} {comparison} {{1}}"
    return _Function(
        2,
        f"np.{numpy_name}({{0}}, {{1}})",
        f"({{0}} if {keeps_first} or {{0}} != {{0}} else {{1}})",
        f"({keeps_first} || {{0}} != {{0}} ? {{0}} : {{1}})",
    )


FUNCTIONS: dict[str, _Function] = {
    **{name: _same_name(name) for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sin", "cos")},
    "abs": _Function(1, "np.abs({0})", "math.fabs({0})", "fabs({0})"),
    "erf": _Function(1, "special.erf({0})", "math.erf({0})", "erf({0})"),
    "erfc": _Function(1, "special.erfc({0})", "math.erfc({0})", "erfc({0})"),
    "sign": _Function(
        1,
        "np.sign({0})",
        "(T(1) if {0} > T(0) else (T(-1) if {0} < T(0) else {0}))",
        "({0} > T(0) ? T(1) : ({0} < T(0) ? T(-1) : {0}))",
    ),
    "pow": _Function(2, "np.power({0}, {1})", "math.pow({0}, {1})", "pow({0}, {1})"),
    "max": _extremum("maximum", ">="),
    "min": _extremum("minimum", "<="),
    "where": _Function(3, "np.where({0}, {1}, {2})", "({1} if {0} else {2})", "({0} ? {1} : {2})"),
}
# Functions that are expanded in place: their parameters, and what they stand for.
MACROS: dict[str, tuple[tuple[str, ...], str]] = {
    "sigmoid": (("z",), ACTIVATIONS["sigmoid"][0]),
    "softplus": (("z",), ACTIVATIONS["softplus"][0]),
    # beta x + added; but near 1, a beta rounded to float32 would have lost part of 1 - beta, so that is rounded by
    # itself. An infinite x stays what it is.
    "decayed": (
        ("x", "beta", "added"),
        "where(beta > 0.5, 1, beta) * x + (added - where(beta > 0.5, 1 - beta, 0) * where(x - x == 0, x, 0))",
    ),
}

_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_SAME_PRECEDENCE = {ast.Add: (ast.Add, ast.Sub), ast.Mult: (ast.Mult, ast.Div)}
_SAME_PRECEDENCE |= {ast.Sub: _SAME_PRECEDENCE[ast.Add], ast.Div: _SAME_PRECEDENCE[ast.Mult]}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
# Bounds for formulas that come with a model file from a stranger: templates and macros repeat their arguments, so
# without the third a short formula could fill the memory.
_MAX_LENGTH, _MAX_DEPTH, _MAX_SOURCE = 5000, 30, 50_000
_TERMS = 4  # of a sum or a product that count as a level
_SHOWN = 200  # characters of a formula in an error
_MAX_LITERAL = float(np.finfo(np.float32).max)


class _Emitter:
    """Walks the syntax tree of one expression and writes it for one target; refuses what is not on the whitelist."""

    def __init__(self, expression: str, names: tuple[str, ...], target: str) -> None:
        self.expression, self.names, self.target = expression, names, target
        self.used: set[str] = set()

    def refuse(self, what: str) -> FormulaError:
        return FormulaError(
            f"formula {cut(self.expression)!r}: {what}; a formula is made of the names {', '.join(self.names)}, "
            f"numbers, + - * / **, comparisons inside where(), and {', '.join([*FUNCTIONS, *MACROS])}"
        )

    def emit(self, node: ast.expr, bound: dict[str, str], depth: int = 0) -> str:
        if depth > _MAX_DEPTH:
            raise self.refuse(
                f"nested more than {_MAX_DEPTH} levels deep (each {_TERMS} terms of a sum or a product are a level)"
            )

        def inner(child: ast.expr, levels: int = 1) -> str:
            source = self.emit(child, bound, depth + levels)
            if len(source) > _MAX_SOURCE:
                raise self.refuse(f"it expands to more than {_MAX_SOURCE} characters")
            return source

        match node:
            case ast.Name(id=name) if name in bound:
                self.used.add(name)
                return bound[name]
            case ast.Name(id=name):
                raise self.refuse(f"the name {cut(name)!r} is not known here")
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self.literal(value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{inner(operand)})"
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return inner(operand)
            case ast.BinOp(op=ast.Pow(), left=base, right=ast.Constant(value=int(power))) if 2 <= power <= 4:
                # A product, as every target computes it to the same bits, and NumPy's power is slow.
                return f"({' * '.join([inner(base)] * power)})"
            case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
                return self.call("pow", [inner(base), inner(exponent)])
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
                rest = [(op, right)]  # without brackets inside, of which Python takes 200
                while isinstance(left, ast.BinOp) and type(left.op) in _SAME_PRECEDENCE[type(op)]:
                    rest.append((left.op, left.right))
                    left = left.left
                levels = -(-len(rest) // _TERMS)
                terms = (f" {_OPERATORS[type(op)]} {inner(term, levels)}" for op, term in reversed(rest))
                return f"({inner(left, levels)}{''.join(terms)})"
            case ast.Call(func=ast.Name(id="where"), args=[condition, chosen, other], keywords=[]):
                return self.call("where", [self.condition(condition, bound, depth + 1), inner(chosen), inner(other)])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                self.check_count(name, FUNCTIONS[name].arity, arguments)
                return self.call(name, [inner(argument) for argument in arguments])
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in MACROS:
                parameters, meaning = MACROS[name]
                self.check_count(name, len(parameters), arguments)
                sources = map(inner, arguments)
                return self.emit(parsed(meaning), dict(zip(parameters, sources, strict=True)), depth + 1)
            case ast.Compare():
                raise self.refuse("a comparison may only be the first argument of where()")
        raise self.refuse(f"{_shown(node)} is not allowed")

    def check_count(self, name: str, wanted: int, arguments: list[ast.expr]) -> None:
        if len(arguments) != wanted:
            raise self.refuse(f"{name}() takes {wanted} argument{'s' * (wanted != 1)}, got {len(arguments)}")

    def condition(self, node: ast.expr, bound: dict[str, str], depth: int) -> str:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return f"({self.emit(left, bound, depth)} {_COMPARISONS[type(op)]} {self.emit(right, bound, depth)})"
        raise self.refuse(f"the first argument of where() must be one comparison, got {_shown(node)}")

    def literal(self, value: float) -> str:
        if not abs(value) <= _MAX_LITERAL:
            raise self.refuse("a number does not fit into float32")
        return f"T({float(value)!r})"

    def call(self, name: str, arguments: list[str]) -> str:
        template: str = getattr(FUNCTIONS[name], self.target)
        return template.format(*arguments)


def _shown(node: ast.expr) -> str:
    """Return the source of a node for an error, cut; or what stands in the way, such as an integer of 4,300 digits."""
    try:
        return repr(cut(ast.unparse(node)))
    except RecursionError:
        return "an expression nested too deeply"
    except ValueError:
        return "an expression with a number too long to be written"


def cut(text: str) -> str:
    """Return a formula as errors show it, without the rest of a long one."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def parsed(expression: str) -> ast.expr:
    """Return the syntax tree of an expression; raise `FormulaError` if it is none."""
    if not isinstance(expression, str):
        raise FormulaError(f"a formula must be a string, got {type(expression).__name__}")
    if len(expression) > _MAX_LENGTH:
        raise FormulaError(f"a formula may have {_MAX_LENGTH} characters at most, got {len(expression)}")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise FormulaError(f"formula {cut(expression)!r} is not an expression: {cut(str(error))}") from None


def emitted(expression: str, names: tuple[str, ...], target: str) -> tuple[str, frozenset[str]]:
    """Return an expression as source for "numpy", "numba" or "cuda", and which of `names` it reads."""
    emitter = _Emitter(expression, names, target)
    source = emitter.emit(parsed(expression), {name: name for name in names})
    return source, frozenset(emitter.used & set(names))


def names_used(expression: str, names: tuple[str, ...] = ("z", "a", "y")) -> frozenset[str]:
    """Return which of `names` the expression reads; raise `FormulaError` if the compiler refuses it for any target."""
    for target in ("numpy", "cuda"):
        emitted(expression, names, target)
    return emitted(expression, names, "numba")[1]


@functools.cache
def numpy_function(
    expression: str, dtype: np.dtype[Any], names: tuple[str, ...] = ("z", "a", "y")
) -> Callable[..., Any]:
    """Compile an expression to a function of NumPy arrays.

    Parameters
    ----------
    expression : str
        The formula.
    dtype : numpy.dtype
        float32 or float64: the type of the arrays and of the literals.
    names : tuple of str
        The names it may use, in the order of the function's arguments.

    Returns
    -------
    function
        Takes one array per name (None for a name that the expression does not read) and returns an array of their
        common shape, or a scalar of `dtype` if it reads none.

    Raises
    ------
    FormulaError
        If the expression holds anything but whitelisted names, numbers, operators and functions.
    """
    source, _ = emitted(expression, names, "numpy")
    return _function(source, names, **numpy_globals(source, dtype))


def numpy_globals(source: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the globals of source for "numpy" that computes in a dtype; SciPy is loaded only where it is needed."""
    special = importlib.import_module("scipy.special") if "special." in source else None
    return {"np": np, "special": special, "T": dtype.type}


def traced_function(
    expression: str, functions: Any, literal: Callable[[float], Any], names: tuple[str, ...] = ("z", "a", "y")
) -> Callable[..., Any]:
    """Compile an expression to a function of objects whose operators record what is computed, such as a graph's.

    Parameters
    ----------
    expression : str
    functions : object
        Has what `FUNCTIONS` takes from NumPy and SciPy, under their names there.
    literal : function
        Makes such an object of a number.
    names : tuple of str
        As in `numpy_function`.

    Raises
    ------
    FormulaError
        As `numpy_function`.
    """
    source, _ = emitted(expression, names, "numpy")
    return _function(source, names, np=functions, special=functions, T=literal)


def _function(source: str, names: tuple[str, ...], **namespace: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = eval(f"lambda {', '.join(names)}: {source}", {"__builtins__": {}, **namespace})
    return function


def numba_source(expression: str, function: str, names: tuple[str, ...] = ("z", "a", "y")) -> str:
    """Return the source of a scalar Python function that Numba compiles; it needs `math` and `T` as globals."""
    return f"def {function}({', '.join(names)}):\n    return {emitted(expression, names, 'numba')[0]}\n"


def cuda_source(expression: str, function: str, names: tuple[str, ...] = ("z", "a", "y")) -> str:
    """Return the source of a CUDA C++ device function template over the working type T."""
    arguments = ", ".join(f"T {name}" for name in names)
    source = emitted(expression, names, "cuda")[0]
    return f"template <typename T> __device__ __forceinline__ T {function}({arguments}) {{ return {source}; }}\n"
