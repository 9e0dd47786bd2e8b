"""Targets: the columns to predict, and how a network represents them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from bpgpu.cli.columns import FEW, Matrix, Rows, kind, many, remedy, texts, written_numbers
from bpgpu.cli.reading import quoted
from bpgpu.cli.tables import Table

Task = Literal["classification", "regression"]
# A column of whole numbers with at most this many distinct values is taken for classes.
MAX_INTEGER_CLASSES = FEW
# A target of numbers in which fewer than this part of the entries are words is not a column of labels.
FEW_WORDS = 0.05


@dataclass(frozen=True)
class Target:
    """A column to predict, and how a network represents it.

    Attributes
    ----------
    name : str
    task : {"classification", "regression"}
    classes : list
        The distinct labels, sorted; empty for regression.
    """

    name: str
    task: Task
    classes: list[Any]

    @classmethod
    def find(cls, table: Table, name: str, task: str) -> "Target":
        """Choose the task of a column, if it is "auto", and find the classes.

        Raises
        ------
        ValueError
            If the column has missing entries or does not fit the task.
        """
        _refuse_missing(table, name)
        column = table.frame[name]
        kinds = {type(value) for value in column.tolist()}
        if kinds == {str}:
            column = _of_text(table, name, task)
            kinds = {type(value) for value in column.tolist()}
        if not (kinds <= {str} or kinds <= {bool, int, float}):
            raise ValueError(
                f"{table.source}: the target {name!r} must hold text or numbers, got "
                f"{', '.join(sorted(kind.__name__ for kind in kinds))}; turn its entries into one of them"
            )
        numeric = kinds <= {int, float}
        if task == "auto":
            whole = kinds <= {bool, int} or (numeric and bool((column == column.round()).all()))
            few = whole and column.nunique() <= MAX_INTEGER_CLASSES
            task = "regression" if numeric and not few else "classification"
        if task == "regression":
            if kinds <= {str}:
                raise ValueError(
                    f"{table.source}: the target {name!r} holds text, the first "
                    f"{table.first(name, np.ones(len(column), bool))}; use --task classification"
                )
            return cls(name, "regression", [])
        classes = sorted(set(column.tolist()))
        if len(classes) < 2:
            raise ValueError(
                f"{table.source}: the target {name!r} must have at least two classes, got only {classes[0]!r}"
            )
        return cls(name, "classification", classes)

    @property
    def outputs(self) -> int:
        """The number of output neurons: one for regression and for two classes, otherwise one for each class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @property
    def metric(self) -> str:
        """The first of the metrics, which has a field of its own in the JSON."""
        return "accuracy" if self.classes else "r2"

    def encode(self, table: Table, dtype: np.dtype[Any] = np.dtype(np.float64)) -> Matrix:  # noqa: B008
        """Return the targets as class numbers or float64, shape (rows,).

        Raises
        ------
        ValueError
            If an entry is missing, a label is not one of the classes, or a number is too large for `dtype`.
        """
        _refuse_missing(table, self.name)
        column = table.frame[self.name]
        as_they_stand = self.classes and isinstance(self.classes[0], str)
        if column.dtype.kind == "O" and kind(column) == "text" and not as_they_stand:
            numbers = table.numbers(self.name)
            if not self.classes and numbers.isna().any():
                wrong = numbers.isna()
                raise ValueError(
                    f"{table.source}: the target {self.name!r} must hold numbers, got {table.first(self.name, wrong)}"
                )
            column = numbers.astype(object).where(numbers.notna(), column) if self.classes else numbers
        if not self.classes:
            return _finite(table, self.name, column, dtype)
        labels = texts(column).tolist() if as_they_stand else column.tolist()
        codes = {label: code for code, label in enumerate(self.classes)}
        unknown = sorted({str(label) for label in labels if label not in codes})
        if unknown:
            wrong = [label not in codes for label in labels]
            raise ValueError(
                f"{table.source}: {self.name!r} holds labels that training did not see: {quoted(unknown)}; the "
                f"first is {table.first(self.name, wrong)}"
            )
        return np.array([codes[label] for label in labels])

    def decode(self, outputs: Matrix) -> Matrix:
        """Return the predictions of a network as labels or numbers, shape (rows,)."""
        if not self.classes:
            return outputs[:, 0]
        labels: Matrix = np.array(self.classes)[self.codes(outputs)]
        return labels

    def codes(self, outputs: Matrix) -> Matrix:
        """Return the class numbers that a network predicts, shape (rows,)."""
        codes: Matrix = outputs.argmax(axis=1) if self.outputs > 1 else (outputs[:, 0] > 0.5).astype(int)
        return codes


def _of_text(table: Table, name: str, task: str) -> "pd.Series[Any]":
    """Return a target that was read as text: as numbers if it holds numbers, otherwise as labels.

    Raises
    ------
    ValueError
        If all but a few entries are numbers; otherwise nobody would notice that numbers became labels.
    """
    labels, numbers = texts(table.frame[name]), table.numbers(name)
    odd = numbers.isna()
    if not odd.any():
        exact = task == "classification" or numbers.nunique() <= MAX_INTEGER_CLASSES
        return numbers if task == "regression" else table.settled(name, exact)
    if task == "classification":
        return labels
    written, signs = odd & written_numbers(labels), odd & ~labels.str.contains(r"\w", regex=True)
    words = odd & ~written & ~signs
    distinct = int(labels.nunique())
    mostly = 2 * (~odd | written).sum() >= len(labels)
    lost = odd if task == "regression" else written if written.any() else signs if signs.any() else words
    few = words.sum() < FEW_WORDS * len(labels) or distinct > MAX_INTEGER_CLASSES
    if mostly and (task == "regression" or written.any() or signs.any() or few):
        entry = str(labels[lost].iloc[0])
        raise ValueError(
            f"{table.source}: the target {name!r} holds numbers except for {lost.sum():,} of its entries, the first "
            f"{table.first(name, lost)}; {remedy(entry)}"
            + ("" if task == "regression" else "; if all are labels, use --task classification")
        )
    if task == "auto" and many(distinct, len(labels)):
        raise ValueError(
            f"{table.source}: the target {name!r} is text with {distinct:,} different entries in {len(labels):,} rows, "
            f"the first {table.first(name, np.ones(len(labels), bool))}; name another column with --target, or use "
            "--task classification if these are labels"
        )
    return labels


def _refuse_missing(table: Table, name: str) -> None:
    column = table.frame[name]
    wrong = column.isna()
    if column.dtype.kind == "f":
        wrong |= np.isinf(column)
    if wrong.any():
        entry = table.place(int(np.argmax(wrong)), name)[1]
        label = "if that is a label, use --na '' so that only empty entries count as missing; else "
        fix = f"leave those rows out, which --na {entry!r} does" if column.isna().any() else "correct them"
        raise ValueError(
            f"{table.source}: the target {name!r} has {int(wrong.sum()):,} missing or infinite entries, the first "
            f"{table.first(name, wrong)}; {label if entry and column.dtype.kind != 'f' else ''}{fix}"
        )


def _finite(table: Table, name: str, column: "pd.Series[Any]", dtype: np.dtype[Any]) -> Matrix:
    """Return a target of numbers; raise if one of them is too large for `dtype`."""
    if column.dtype.kind not in "buif":
        raise ValueError(f"{table.source}: the target {name!r} must hold numbers, got {kind(column)}")
    numbers: Matrix = column.to_numpy(dtype=np.float64)
    infinite = ~np.isfinite(numbers)
    if infinite.any():
        raise ValueError(
            f"{table.source}: the target {name!r} must be finite, got {table.first(name, infinite)}; correct it"
        )
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(numbers.astype(dtype))
    if wrong.any():
        raise ValueError(
            f"{table.source}: the target {name!r} has entries too large for {dtype.name}, the first "
            f"{table.first(name, wrong)}; use --dtype float64 in training, or divide it by a constant"
        )
    return numbers


@dataclass(frozen=True)
class Targets:
    """The targets of a network: one column of any kind, or several that all hold numbers, or all two classes."""

    each: list[Target]

    @classmethod
    def find(cls, table: Table, names: list[str], task: str) -> "Targets":
        """Choose the targets: those named, otherwise those of the file, otherwise its last column.

        Raises
        ------
        ValueError
            If a column does not exist, or a network cannot predict them together.
        """
        table.require("--target", names)
        _refuse_twice("--target", names)
        names = names or default_targets(table)
        if len(table.names) <= len(names):
            raise ValueError(
                f"{table.source}: must have at least one column other than the target {quoted(names)}; if its lines "
                "hold several entries, give --sep"
            )
        each = [Target.find(table, name, task) for name in names]
        targets = cls(each)
        if len(each) > 1 and (len({target.task for target in each}) > 1 or targets.outputs > len(each)):
            found = ", ".join(f"{t.name!r}: {f'{len(t.classes)} classes' if t.classes else 'numbers'}" for t in each)
            raise ValueError(
                f"{table.source}: several targets must be all numbers or all of two classes, got {found[:200]}; train "
                "a model for each, or use --task regression for numbers"
            )
        return targets

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Targets":
        """Read the metadata of a model file.

        Raises
        ------
        ValueError
            If it is not what `describe` returns.
        """
        names, classes, task = about["target"], about["classes"], about["task"]
        if isinstance(names, str):
            names, classes = [names], [classes]
        good = (
            isinstance(names, list)
            and isinstance(classes, list)
            and len(names) == len(classes) > 0
            and all(isinstance(name, str) for name in names)
            and len(set(names)) == len(names)
            and task in ("classification", "regression")
            and all(_are_classes(labels, task) for labels in classes)
        )
        if not good or (len(names) > 1 and any(len(labels) > 2 for labels in classes)):
            raise ValueError(
                "'target', 'task' and 'classes' must be a name, 'classification' or 'regression', and a list of "
                f"different labels, got {str((names, task, classes))[:120]}"
            )
        return cls([Target(name, task, labels) for name, labels in zip(names, classes, strict=True)])

    def describe(self) -> dict[str, Any]:
        """Return the metadata for a model file; several targets give lists of names and of classes."""
        names, classes = self.names, [target.classes for target in self.each]
        several = len(self.each) > 1
        return {
            "target": names if several else names[0],
            "task": self.each[0].task,
            "classes": classes if several else classes[0],
        }

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [target.name for target in self.each]

    @property
    def classification(self) -> bool:
        """Whether the targets are classes."""
        return self.each[0].task == "classification"

    @property
    def outputs(self) -> int:
        """The number of output neurons."""
        return sum(target.outputs for target in self.each)

    @property
    def metric(self) -> str:
        """The first of the metrics, which has a field of its own in the JSON."""
        return self.each[0].metric

    def encode(self, table: Table, dtype: np.dtype[Any] = np.dtype(np.float64)) -> Matrix:  # noqa: B008
        """Return what `Target.encode` does; for several targets, a matrix with one column each."""
        columns = [target.encode(table, dtype) for target in self.each]
        return columns[0] if len(columns) == 1 else np.column_stack(columns)

    def parts(self, outputs: Matrix, encoded: Matrix | None = None) -> Iterator[tuple[Target, Matrix, Any]]:
        """Yield each target with its columns of the outputs, and its encoded column if there is one."""
        if len(self.each) == 1:
            yield self.each[0], outputs, encoded
            return
        for i, target in enumerate(self.each):
            yield target, outputs[:, i : i + 1], None if encoded is None else encoded[:, i]

    def predictions(self, rows: Rows, outputs: Matrix, ids: list[str], probabilities: bool) -> pd.DataFrame:
        """Return the columns of the output: unchanged ids, predictions, probabilities of classes.

        Raises
        ------
        ValueError
            If two columns would have the same name.
        """
        columns: dict[str, Any] = {name: rows.table.frame[name].iloc[rows.numbers].array for name in ids}
        _refuse_twice("a column of the output", [*ids, *self.names])
        for target, part, _ in self.parts(outputs):
            columns[target.name] = target.decode(part)
        for target, part, _ in self.parts(outputs) if probabilities else ():
            both = part if target.outputs > 1 else np.hstack([1 - part, part])
            names = [f"p({label})" for label in target.classes]
            if len(self.each) > 1 or columns.keys() & set(names):
                names = [f"p({target.name}={label})" for label in target.classes]
            _refuse_twice("a column of the output", [*columns, *names])
            for name, column in zip(names, both.T, strict=True):
                columns[name] = column
        return pd.DataFrame(columns, index=rows.table.row_numbers[rows.numbers])


def default_targets(table: Table) -> list[str]:
    """Return the targets of a table for which the user named none.

    Raises
    ------
    ValueError
        If one could only be guessed.
    """
    if table.hint:
        raise ValueError(f"{table.source}: has no targets{table.hint}")
    if not table.target and len(table.names) > 1 and table.names[-1].startswith("Unnamed: "):
        raise ValueError(
            f"{table.source}: the last column has no name, so it is not taken as the target; write its name in the "
            "first line, or name the column to predict with --target"
        )
    return table.target or [[name for name in table.names if name not in table.aside or len(table.names) == 1][-1]]


def _are_classes(labels: Any, task: str) -> bool:
    if not isinstance(labels, list):
        return False
    kinds = {type(label) for label in labels}
    many = (
        len(labels) > 1
        and len(set(map(str, labels))) == len(labels)
        and (kinds <= {str} or kinds <= {bool, int, float})
    )
    return many if task == "classification" else not labels


def _refuse_twice(what: str, names: list[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"{what} must have a name of its own, got twice: {quoted(twice)}")
