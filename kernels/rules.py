"""Optimizers as formulas: what the host computes once a step, and what a kernel computes for every parameter.

`rule` takes the formulas of an optimizer apart. The parts that read only its numbers, eta and t become `Rule.numbers`,
a row for each step, computed on the host in float64. What is left is `Rule.text`: an assignment a line, in neutral
names, so that rules which compute the same share their compiled code::

    s0 = n1 * s0 + (n2 * g - n3 * where(s0 - s0 == 0, s0, 0))
    p = p + s0

p is the parameter and g its gradient, s0 ... s3 are the rule's state and n0 ... its numbers, of which n0 is eta.
`python_source` and `cuda_source` make of the text a function of one parameter.
"""

import ast
import functools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bpgpu.kernels import formulas as compiler
from bpgpu.kernels.formulas import FUNCTIONS, MACROS, FormulaError, cut

MAX_STATES = 4
ETA = 0  # the column of eta
OF_EACH = ("p", "g", "is_weight")  # names that differ from parameter to parameter, besides the state
OF_A_STEP = ("eta", "t")
_NUMBER = re.compile(r"\bn(\d+)\b")
_STATES = tuple(f"s{k}" for k in range(MAX_STATES))
_PARAMETERS = f"p, g, is_weight, {', '.join(_STATES)}, n"


class Line(NamedTuple):
    """An assignment of a text."""

    name: str
    expression: str


@dataclass(frozen=True)
class Rule:
    """An optimizer as the kernels take it.

    Attributes
    ----------
    states : tuple of str
        Names of the state, in the order of its arrays.
    numbers : tuple of str
        What the columns of `schedule` hold: expressions in `values`, eta and t.
    values : tuple of (str, float)
        The optimizer's own numbers.
    text : str
        What is computed for each parameter; see the module.
    """

    states: tuple[str, ...]
    numbers: tuple[str, ...]
    values: tuple[tuple[str, float], ...]
    text: str

    def schedule(
        self, rates: Sequence[float] | np.ndarray[Any, Any], first: int, dtype: np.dtype[Any]
    ) -> np.ndarray[Any, Any]:
        """Return a row of numbers for each step, of which the first is step t = `first`.

        Returns
        -------
        array of `dtype`, shape (len(rates), len(numbers))
            Computed in float64.
        """
        steps = {"eta": np.asarray(rates, np.float64), "t": np.arange(first, first + len(rates), dtype=np.float64)}
        row, of_a_step = _columns(self)
        table = np.empty((len(rates), len(self.numbers)))
        with np.errstate(all="ignore"):  # what is not finite shows in the parameters
            table[:] = row
            for column, function in of_a_step:
                table[:, column] = function(**steps)
            return table.astype(dtype)


@functools.lru_cache(maxsize=256)
def _columns(rule: Rule) -> tuple[np.ndarray[Any, Any], list[tuple[int, Callable[..., Any]]]]:
    """Return the numbers that are the same in every step, and for each other column a function of eta and t."""
    values, row = dict(rule.values), np.zeros(len(rule.numbers))
    of_a_step = list[tuple[int, Callable[..., Any]]]()
    known, float64 = (*values, *OF_A_STEP), np.dtype(np.float64)
    with np.errstate(all="ignore"):
        for column, expression in enumerate(rule.numbers):
            function = functools.partial(compiler.numpy_function(expression, float64, known), **values)
            if compiler.names_used(expression, known) & set(OF_A_STEP):
                of_a_step.append((column, function))
            else:
                row[column] = function(eta=None, t=None)
    return row, of_a_step


@functools.lru_cache(maxsize=256)
def rule(formulas: tuple[tuple[str, str], ...], values: tuple[tuple[str, float], ...]) -> Rule:
    """Take the formulas of an optimizer apart.

    Parameters
    ----------
    formulas : tuple of (str, str)
        The new value of each state and of p, as in `bpgpu.kernels.formulas.RULES`.
    values : tuple of (str, float)
        The optimizer's own numbers.

    Raises
    ------
    FormulaError
        If a name is taken or cannot be one, p is not among them, or the compiler refuses an expression.
    """
    own = tuple(name for name, _ in values)
    states = tuple(name for name, _ in formulas if name != "p")
    _check_names(formulas, states, own)
    known, places = (*OF_EACH, *states, *own, *OF_A_STEP), {name: f"s{k}" for k, name in enumerate(states)}
    numbers, text = ["eta"], []
    for name, expression in formulas:
        compiler.names_used(expression, known)
        tree = _apart(_Expanded().visit(compiler.parsed(expression)), {*own, *OF_A_STEP}, numbers, places)
        text.append(f"{places.get(name, name)} = {ast.unparse(tree)}")
    return Rule(states, tuple(numbers), values, "\n".join(text))


def _check_names(formulas: tuple[tuple[str, str], ...], states: tuple[str, ...], own: tuple[str, ...]) -> None:
    if len(states) == len(formulas):
        raise FormulaError(f"the formulas of an optimizer must have one of p, got those of {', '.join(states)}")
    if len(states) > MAX_STATES:
        raise FormulaError(
            f"an optimizer may keep {MAX_STATES} numbers for each parameter, got formulas of {', '.join(states)}; "
            "write it as apply()"
        )
    taken = {*OF_EACH, *OF_A_STEP, *FUNCTIONS, *MACROS}
    for kind, names in (("state", states), ("number", own)):
        for name in names:
            if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in taken:
                raise FormulaError(
                    f"{cut(repr(name))} cannot be the name of a {kind} of an optimizer, as it is no Python name or "
                    "means something else in formulas; choose another"
                )
            taken.add(name)


class _Expanded(ast.NodeTransformer):
    """Writes out `decayed`, so that the host can compute its part with beta."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "decayed":
            parameters, meaning = MACROS["decayed"]
            expanded: ast.expr = _Put(dict(zip(parameters, node.args, strict=True))).visit(compiler.parsed(meaning))
            return expanded
        return node


class _Put(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, expressions: Mapping[str, ast.expr]) -> None:
        self.expressions = expressions

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.expressions.get(node.id, node)


def _read(node: ast.expr) -> set[str]:
    """Return the names that an expression reads."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {*FUNCTIONS, *MACROS}


def _apart(node: ast.expr, host: set[str], numbers: list[str], places: Mapping[str, str]) -> ast.expr:
    """Return an expression in neutral names, its largest parts that read nothing but `host` being `numbers` now.

    These grow by what is new; `places` has the neutral names of the state.
    """
    read = _read(node)
    if read and read <= host and not isinstance(node, ast.Compare):
        text = ast.unparse(node)
        if text not in numbers:
            numbers.append(text)
        return ast.Name(f"n{numbers.index(text)}", ast.Load())
    match node:
        case ast.Name(id=name):
            return ast.Name(places.get(name, name), ast.Load())
        case ast.UnaryOp():
            node.operand = _apart(node.operand, host, numbers, places)
        case ast.BinOp():
            node.left = _apart(node.left, host, numbers, places)
            node.right = _apart(node.right, host, numbers, places)
        case ast.Compare():
            node.left = _apart(node.left, host, numbers, places)
            node.comparators = [_apart(part, host, numbers, places) for part in node.comparators]
        case ast.Call():
            node.args = [_apart(part, host, numbers, places) for part in node.args]
    return node


# The text as functions


def count_of_numbers(text: str) -> int:
    """Return how many numbers a text takes for each step."""
    return 1 + max((int(k) for k in _NUMBER.findall(text)), default=ETA)


def count_of_states(text: str) -> int:
    """Return how many numbers it keeps for each parameter."""
    return text.count("\n")


def names(text: str) -> tuple[str, ...]:
    """Return the names that its lines may read."""
    return (*OF_EACH, *_STATES, *(f"n{k}" for k in range(count_of_numbers(text))))


def lines(text: str) -> list[Line]:
    """Return its assignments."""
    return [Line(*line.split(" = ", 1)) for line in text.split("\n")]


def _assignments(text: str, target: str) -> list[str]:
    """Return them as source for a target of the compiler."""
    return [f"{name} = {compiler.emitted(expression, names(text), target)[0]}" for name, expression in lines(text)]


def python_source(text: str, target: str = "numba") -> str:
    """Return the source of a Python function of a parameter, for Numba, or of arrays of them, for NumPy.

    ``rule(p, g, is_weight, s0, s1, s2, s3, n)`` takes the numbers as a tuple and returns p and s0 ... s3 after the
    step; those that the rule does not have are as they were. It needs `T` and `math` or `np` as globals.
    """
    numbers = "".join(f"n{k}, " for k in range(count_of_numbers(text)))
    body = "\n    ".join([f"{numbers}= n", *_assignments(text, target), f"return p, {', '.join(_STATES)}"])
    return f"def rule({_PARAMETERS}):\n    {body}\n"


def numbers_source(text: str) -> str:
    """Return the source of a Python function that takes the numbers of a step from the schedule, as a tuple."""
    numbers = "".join(f"schedule[step, {k}], " for k in range(count_of_numbers(text)))
    return f"def numbers_at(schedule, step):\n    return ({numbers})\n"


@functools.cache
def numpy_function(text: str, dtype: np.dtype[Any]) -> Callable[..., Any]:
    """Return the function of `python_source` for arrays of a dtype."""
    source = python_source(text, "numpy")
    namespace: dict[str, Any] = {"__builtins__": {}, **compiler.numpy_globals(source, dtype)}
    exec(source, namespace)
    function: Callable[..., Any] = namespace["rule"]
    return function


def cuda_source(text: str) -> str:
    """Return the source of a CUDA C++ device function that changes a parameter and its state, and of its counts."""
    used = sorted({int(k) for k in _NUMBER.findall(text)})
    states = ", ".join(f"T& {name}" for name in _STATES)
    statements = [*(f"const T n{k} = n[{k}]" for k in used), *_assignments(text, "cuda")]
    body = "".join(f"    {statement};\n" for statement in statements)
    return (
        f"constexpr int STATES = {count_of_states(text)}, NUMBERS = {count_of_numbers(text)};\n"
        f"template <typename T> __device__ __forceinline__ void rule(T& p, T g, T is_weight, {states}, const T* n)\n"
        f"{{\n{body}}}\n"
    )


def table() -> list[str]:
    """Return the text of every row of the table."""
    return [text_of_row(name) for name in compiler.RULES]


def text_of_row(name: str) -> str:
    """Return the text of a row of the table."""
    row = compiler.RULES[name]
    read = set[str]().union(*(_read(compiler.parsed(expression)) for expression in row.values()))
    values = sorted(read - {*OF_EACH, *OF_A_STEP, *row})
    return rule(tuple(row.items()), tuple((name, 0.5) for name in values)).text
