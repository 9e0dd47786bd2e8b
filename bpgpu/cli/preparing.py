"""From tables to the data that a network trains on and predicts: columns are chosen and checked, rows are split."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpgpu.cli.columns import AUTO, Inputs, Matrix, Rows
from bpgpu.cli.reading import Reading, quoted
from bpgpu.cli.splitting import fraction_of, split, strata
from bpgpu.cli.tables import Table, read_table
from bpgpu.cli.targets import Targets, default_targets
from bpgpu.errors import short_repr
from bpgpu.mlp import MLP

TABLE_KEYS = {"columns", "target", "task", "classes"}  # metadata about the table in every model file of `train`
HELD_OUT = {"rows", "fraction", "split_seed", "table"}  # metadata about a split


@dataclass(frozen=True)
class Columns:
    """The columns that the options of ``bpgpu train`` name, None where an option is not given."""

    target: list[str] | None = None
    drop: list[str] | None = None
    ids: list[str] | None = None
    encode: list[str] | None = None

    def as_text(self, names: list[str]) -> set[str]:
        """Return the columns of a CSV file whose text matters: 01001 and 1001 are different labels."""
        # A column without a name is not a target: it is empty and left out, or refused.
        last = [name for name in names if not name.startswith("Unnamed: ")][-1:]
        return {*(self.target or last), *(self.ids or []), *(self.encode or [])}


@dataclass(frozen=True)
class Job:
    """The data for a network to learn.

    Attributes
    ----------
    goal : Targets
    inputs : Inputs
    train, test : Rows
    y_train, y_test : array
    metadata : dict
        What the model file says about the table.
    notes : list of str
    """

    goal: Targets
    inputs: Inputs
    train: Rows
    test: Rows
    y_train: Matrix
    y_test: Matrix
    metadata: dict[str, Any]
    notes: list[str]


def prepare(
    data: list[str],
    validation: str,
    seed: int,
    columns: Columns,
    task: str,
    reading: Reading,
    dtype: np.dtype[Any],
    stratify: bool,
) -> Job:
    """Read a table, choose its columns, split its rows.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read, or an option does not suit it.
    """
    fraction = fraction_of(validation)
    reading = replace(reading, ids=tuple(columns.ids or ()))
    table = read_table(data, reading, columns.as_text)
    if reading.na is not None:  # a user who names missing values expects them
        table.require("--target", columns.target or [])
        table.leave_out_missing(columns.target or default_targets(table))
    goal = Targets.find(table, columns.target or [], task)
    ids, drop, encode = list(dict.fromkeys(columns.ids or [])), columns.drop or [], columns.encode or []
    roles = {"--drop": drop, "--id": ids, "--encode": [name for name in encode if name != AUTO]}
    for option, names in roles.items():
        table.require(option, names)
    _refuse_two_roles({"--target": goal.names, **roles})
    aside = {*goal.names, *drop, *ids, *(name for name in table.aside if name not in encode)}
    names = [name for name in table.names if name not in aside]
    if not names:
        raise ValueError(f"{table.source}: must have at least one column other than the target {quoted(goal.names)}")
    unnamed = [name for name in names if name.startswith("Unnamed: ")]
    if unnamed:
        raise ValueError(
            f"{table.source}: the column {unnamed[0]!r} has no name; give it one, or --drop {unnamed[0]!r}"
        )
    left_out = [name for name in table.aside if name not in {*goal.names, *drop, *ids, *names}]
    notes = [*table.notes, *(f"{table.source}: {name!r} {table.aside[name]}; it is not an input" for name in left_out)]
    notes += _counting(table, names)
    everything = np.arange(len(table))
    if stratify and (fraction is None or not goal.classification):
        lacks = f"a part of the rows to hold out, got the file {validation}"
        lacks = lacks if fraction is None else f"classes, but {goal.names[0]!r} holds numbers"
        raise ValueError(f"--stratify needs {lacks}; leave --stratify out")
    y = goal.encode(table, dtype)
    train, test, test_table = everything, everything, table
    held_out: dict[str, Any] = {}
    if fraction is not None:
        train, test = split(len(table), fraction, seed, strata(y) if stratify else None)
        held_out = {"rows": len(table), "fraction": fraction, "split_seed": seed, "table": table.digest()}
        held_out |= {"stratified": True} if stratify else {}
        held_out |= {"reading": reading.given()} if reading.given() else {}
    for name in encode:
        if name in table.frame:
            table.frame[name] = table.settled(name)
    inputs = Inputs.find(table, names, encode, train)
    fix = "fill them with --encode NAME or --encode auto, or leave columns out with --drop NAME"
    notes += inputs.check(table, dtype, fix)
    y_test = y[test]
    if fraction is None:
        test_table = read_table(validation, reading, as_text(goal, inputs, ids))
        missing = [name for name in goal.names if name not in test_table.frame]
        if missing:
            raise ValueError(f"{validation}: must have the target column {quoted(missing)}")
        notes += [*test_table.notes, *inputs.check(test_table, dtype, fix)]
        test, y_test = np.arange(len(test_table)), goal.encode(test_table, dtype)
    metadata = inputs.describe() | goal.describe() | ({"ids": ids} if ids else {}) | held_out
    return Job(
        goal, inputs, Rows(inputs, table, train), Rows(inputs, test_table, test), y[train], y_test, metadata, notes
    )


def as_text(goal: Targets, inputs: Inputs, ids: list[str]) -> Callable[[list[str]], set[str]]:
    """Return the parameter `text` of `read_table` for the table of a trained network."""
    return lambda names: {*goal.names, *ids} - {*inputs.columns} | {*inputs.categories}


def predicted(net: MLP, rows: Rows) -> Matrix:
    """Return the predictions of a network, computed in blocks."""
    return np.concatenate([net.backend.to_numpy(net.predict(block)) for block in rows])


def _refuse_two_roles(roles: dict[str, list[str]]) -> None:
    for option, names in roles.items():
        for other, taken in roles.items():
            both = [name for name in names if name in taken and other != option]
            if both:
                raise ValueError(f"{option} and {other} must not name the same column, got {quoted(both)} twice")


def _refuse_other_options(training: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise if a table is not read with the options of training: the same bytes could mean other numbers."""
    said = [
        {option: _option_text(options.get(option)) for option in {**training, **now}} for options in (training, now)
    ]
    different = [f"{name} was {was}, now {said[1][name]}" for name, was in said[0].items() if was != said[1][name]]
    if different:
        raise ValueError(
            f"--held-out needs the table read as in training, but {', and '.join(different)}; give the same options"
        )


def _option_text(value: Any) -> str:
    """Return the value of an option for a message."""
    if value is None or value is True:
        return "not given" if value is None else "given"
    return quoted(value) if isinstance(value, list) else short_repr(value)


def _counting(table: Table, names: list[str]) -> list[str]:
    """Return a note for each column that only counts the rows."""
    found = []
    for name in names:
        column = table.frame[name]
        if column.dtype.kind in "iu" and len(column) > 2:
            numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
            if numbers[0] in (0, 1) and bool((np.diff(numbers) == 1).all()):
                found.append(f"{table.source}: {name!r} only counts the rows; leave it out with --drop {name!r}")
    return found


@dataclass(frozen=True)
class Saved:
    """What a model file of ``bpgpu train`` says about its table."""

    model: str
    goal: Targets
    inputs: Inputs
    ids: list[str]
    split: dict[str, Any]
    stratified: bool
    reading: dict[str, Any]
    answers: Any

    @classmethod
    def of(cls, model: str, net: MLP) -> "Saved":
        """Read the metadata of a network.

        Raises
        ------
        ValueError
            If it is missing or does not fit the network.
        """
        about = net.metadata
        if not about.keys() >= TABLE_KEYS:
            raise ValueError(
                f"{model} was not written by 'bpgpu train': it does not name its columns; use it from Python"
            )
        try:
            goal, inputs = Targets.of(about), Inputs.of(about)
            ids = about.get("ids", [])
            if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
                raise ValueError(f"'ids' must be a list of names, got {str(ids)[:80]}")
            sizes = (len(inputs.names), goal.outputs)
            if sizes != (net.architecture.sizes[0], net.architecture.sizes[-1]):
                raise ValueError(f"it needs {sizes[0]} inputs and {sizes[1]} outputs, but the network has others")
            given = about.get("reading", {})
            if not isinstance(given, dict):
                raise ValueError(f"'reading' must be a dict of options, got {str(given)[:80]}")
            held_out = {key: about[key] for key in HELD_OUT & about.keys()}
            if held_out.keys() == HELD_OUT:
                split(*(held_out[key] for key in ("rows", "fraction", "split_seed")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{model}: the file's description of its table is damaged: {error}") from error
        return cls(model, goal, inputs, ids, held_out, about.get("stratified") is True, given, about.get("baseline"))

    def rows(
        self, data: list[str], reading: Reading, ids: list[str], held_out: bool, dtype: np.dtype[Any]
    ) -> tuple[Rows, list[str], list[str]]:
        """Read the rows to predict; return them, the columns to copy, and notes.

        Raises
        ------
        OSError, ValueError
            If a file cannot be read, does not fit the model, or is not the one that it was trained on.
        """
        about = self.split
        if held_out and about.keys() != HELD_OUT:
            raise ValueError(
                f"--held-out needs a model that held out rows of its table, but {self.model} used another file"
            )
        if held_out:
            _refuse_other_options(self.reading, reading.given())
        only = {*self.ids, *ids} - {*self.inputs.columns, *self.goal.names}
        reading = replace(reading, ids=tuple(only))
        table = read_table(data, reading, as_text(self.goal, self.inputs, [*self.ids, *ids]))
        table.require("--id", ids)
        ids = [*(name for name in self.ids if name in table.frame and name not in ids), *dict.fromkeys(ids)]
        if held_out and reading.na is not None:
            table.leave_out_missing([name for name in self.goal.names if name in table.frame])
        numbers = np.arange(len(table))
        if held_out:
            if about["rows"] != len(table):
                raise ValueError(
                    f"--held-out needs the training table, of {about['rows']} rows; {table.source} has {len(table)}"
                )
            if about["table"] != table.digest():
                raise ValueError(
                    f"--held-out needs exactly the training table, but the content of {table.source} is different; "
                    "without --held-out all rows are predicted"
                )
            classes = strata(self.goal.encode(table)) if self.stratified else None
            numbers = split(len(table), about["fraction"], about["split_seed"], classes)[1]
        fix = "training had no such entries: train with --encode to fill them, or leave those rows out"
        return Rows(self.inputs, table, numbers), ids, [*table.notes, *self.inputs.check(table, dtype, fix)]
