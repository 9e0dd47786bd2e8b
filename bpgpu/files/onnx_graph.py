"""A graph of ONNX operators, built by computing with its values, so that a formula can be traced through it.

ONNX has no expm1, log1p and erfc, and onnxruntime lacks some operators in float64 on the CPU; those are composed of
others here.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bpgpu._version import __version__
from bpgpu.kernels.formulas import names_used, traced_function
from bpgpu.model.activations import ACTIVATIONS, IDENTITY, SOFTMAX, Activation

OPSET, IR_VERSION = 20, 9  # of January 2024 (onnxruntime 1.17); the first opset with Gelu
Number = Union["Value", float]

# Rows of the table that are ONNX operators whose default attributes are the table's constants, and those of them that
# onnxruntime computes in float64 on the CPU. Its Elu is left out: exp(z) - 1 loses the digits of a small z.
OPERATORS = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "softplus": "Softplus",
    "gelu": "Gelu",
}
IN_FLOAT64 = ("Sigmoid", "Tanh", "Relu")
# Functions in formulas, by NumPy's names, that are operators; `Functions` has the others.
FUNCTIONS = {
    **{name: name.capitalize() for name in ("exp", "log", "sqrt", "tanh", "sin", "abs", "where")},
    "power": "Pow",
    "maximum": "Max",
    "minimum": "Min",
}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a graph; computing with it adds operators."""

    graph: "Graph"
    name: str

    def __add__(self, other: Number) -> "Value":
        return self.graph.node("Add", self, other)

    def __sub__(self, other: Number) -> "Value":
        return self.graph.node("Sub", self, other)

    def __mul__(self, other: Number) -> "Value":
        return self.graph.node("Mul", self, other)

    def __truediv__(self, other: Number) -> "Value":
        return self.graph.node("Div", self, other)

    def __rsub__(self, other: float) -> "Value":
        return self.graph.node("Sub", other, self)

    def __rtruediv__(self, other: float) -> "Value":
        return self.graph.node("Div", other, self)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Value":
        return self.graph.node("Neg", self)

    def __abs__(self) -> "Value":
        return self.graph.node("Abs", self)

    def __lt__(self, other: Number) -> "Value":
        return self.graph.node("Less", self, other)

    def __le__(self, other: Number) -> "Value":
        return self.graph.node("LessOrEqual", self, other)

    def __gt__(self, other: Number) -> "Value":
        return self.graph.node("Greater", self, other)

    def __ge__(self, other: Number) -> "Value":
        return self.graph.node("GreaterOrEqual", self, other)

    # Equality is an operator of the graph like the others, not a truth value, so there is no hash either.
    def __eq__(self, other: Number) -> "Value":  # type: ignore[override]
        return self.graph.node("Equal", self, other)

    def __ne__(self, other: Number) -> "Value":  # type: ignore[override]
        return self.graph.node("Not", self == other)

    __hash__ = None  # type: ignore[assignment]


class Graph:
    """Operators and constants, each once: asking again returns the existing value.

    Parameters
    ----------
    dtype : numpy.dtype
        float32 or float64, of all numbers in the computation.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._names: set[str] = set()
        self._made: dict[Any, Value] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, columns: int) -> Value:
        """Return an input with this many columns and any number of rows."""
        value = self._value(name)
        self._inputs.append(self._described(value, self.dtype, columns))
        return value

    def output(self, name: str, value: Value, dtype: np.dtype[Any], *columns: int) -> None:
        """Make a value an output with any number of rows."""
        named = self._value(name)
        self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        self._outputs.append(self._described(named, dtype, *columns))

    def constant(self, name: str, array: Any) -> Value:
        """Return a tensor in the array's dtype."""
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return self._value(name)

    def literal(self, number: float) -> Value:
        """Return a number in the graph's dtype."""
        key = ("literal", number)
        if key not in self._made:
            self._made[key] = self.constant(f"number_{len(self._made) + 1}", self.dtype.type(number))
        return self._made[key]

    def node(self, operator: str, *inputs: Number, **attributes: Any) -> Value:
        """Return the result of an operator."""
        names = [(x if isinstance(x, Value) else self.literal(x)).name for x in inputs]
        key = (operator, *names, *sorted(attributes.items()))
        if key not in self._made:
            name = f"{operator}_{len(self._made) + 1}"
            self._made[key] = self._value(name)
            self._nodes.append(helper.make_node(operator, names, [name], name=name, **attributes))
        return self._made[key]

    def integers(self, value: Value) -> Value:
        """Return a tensor as int64."""
        return self.node("Cast", value, to=TensorProto.INT64)

    def activation(self, sigma: Activation, z: Value) -> Value:
        """Return sigma(z), by ONNX's own operator if there is one, otherwise by the formula."""
        if sigma == IDENTITY:
            return z
        if sigma == SOFTMAX:
            return self.node("Softmax", z, axis=1)
        if ACTIVATIONS.get(sigma.name) == sigma:
            if sigma.name == "silu":  # an overflow correctly gives 0; onnxruntime's Sigmoid is never that small
                return z / (1 + self.node("Exp", -z))
            operator = OPERATORS.get(sigma.name)
            if operator in IN_FLOAT64 or (operator and self.dtype == np.float32):
                return self.node(operator, z)
        a: Value = traced_function(sigma.value, Functions(self), self.literal, ("z",))(z)
        return a if names_used(sigma.value) else self.node("Expand", a, self.node("Shape", z))

    def model(self, metadata: dict[str, str]) -> bytes:
        """Return the content of a file, after ONNX's own checks."""
        graph = helper.make_graph(self._nodes, "bpgpu", self._inputs, self._outputs, self._constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bpgpu",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content

    def _value(self, name: str) -> Value:
        if not isinstance(name, str) or not name or name in self._names:
            raise ValueError(f"the name {name!r} is not text or is already used in the file; choose another")
        self._names.add(name)
        return Value(self, name)

    @staticmethod
    def _described(value: Value, dtype: np.dtype[Any], *columns: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(dtype), ["rows", *columns])


class Functions:
    """The functions that formulas take from NumPy and SciPy, for values of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        for name, operator in FUNCTIONS.items():
            setattr(self, name, functools.partial(graph.node, operator))

    def expm1(self, x: Value) -> Value:
        """Return e^x - 1: ``2 t / (1 - t)`` with t = tanh(x / 2) where e^x - 1 would lose digits."""
        t = self.graph.node("Tanh", 0.5 * x)
        return self.graph.node("Where", x < 1, 2 * t / (1 - t), self.graph.node("Exp", x) - 1)

    def log1p(self, x: Value) -> Value:
        """Return log(1 + x), as x log(u) / (u - 1): u = 1 + x loses digits of x, but the ratio hardly varies there."""
        u = 1 + x
        log_u = self.graph.node("Log", u)
        small = self.graph.node("Where", u == 1, x, x * (log_u / (u - 1)))
        return self.graph.node("Where", x < 1, small, log_u)

    def sign(self, x: Value) -> Value:
        """Return 1 or -1, and x itself if it is neither above nor below 0."""
        return self.graph.node("Where", x > 0, 1, self.graph.node("Where", x < 0, -1, x))

    def cos(self, x: Value) -> Value:
        """Return the cosine as ``1 - 2 sin(x / 2)^2``, because older versions of onnxruntime lack it in float64."""
        s = self.graph.node("Sin", 0.5 * x)
        return 1 - 2 * s * s

    def erf(self, x: Value) -> Value:
        """Return the error function; in float64, which onnxruntime lacks, by its series or as 1 - `erfc`."""
        if self.graph.dtype == np.float32:
            return self.graph.node("Erf", x)
        terms = [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(20)]
        square, series = x * x, self.graph.literal(0.0)
        for term in reversed(terms):
            series = series * square + term
        return self.graph.node("Where", abs(x) < 1, x * series, 1 - self.erfc(x))

    def erfc(self, x: Value) -> Value:
        """Return 1 - erf, even where it is tiny: e^(-x^2) times a Chebyshev series in t = 2 / (2 + |x|).

        The form of W. Press et al., Numerical Recipes, 3rd edition, section 6.2.2.
        """
        size = abs(x)
        t = 2 / (2 + size)
        s = 2 * t - 1
        b, b_before = self.graph.literal(0.0), self.graph.literal(0.0)
        first, *others = _erfc_series(self.graph.dtype)
        for c in reversed(others):  # Clenshaw's recurrence
            b, b_before = 2 * s * b - b_before + c, b
        tail = t * (s * b - b_before + first) * self.graph.node("Exp", -(x * x))
        return self.graph.node("Where", x < 0, 2 - tail, tail)


@functools.cache
def _erfc_series(dtype: np.dtype[Any]) -> list[float]:
    """Return the Chebyshev coefficients of ``e^(x^2) erfc(x) / t`` in 2 t - 1, with t = 2 / (2 + x)."""
    from scipy.special import erfcx

    n = 13 if dtype == np.float32 else 28  # the next term is below the rounding
    angles = (np.arange(n) + 0.5) * np.pi / n
    t = np.cos(angles / 2) ** 2
    series: list[float] = (2 / n * np.cos(np.outer(np.arange(n), angles)) @ (erfcx(2 / t - 2) / t)).tolist()
    return [series[0] / 2, *series[1:]]
