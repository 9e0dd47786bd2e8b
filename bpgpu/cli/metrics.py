"""How good predictions are, beside those of a constant answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from bpgpu.checks import positive
from bpgpu.cli.reading import quoted
from bpgpu.cli.targets import Target, Targets
from bpgpu.errors import unknown_name

Array = np.ndarray[Any, Any]
Metrics = dict[str, float | None]
# With more classes, the confusion matrix is neither shown nor in the JSON.
MAX_CONFUSION = 30


def constant_answer(goal: Target, encoded: Array) -> float:
    """Return the best constant answer to the targets of training: the number of the largest class, or their mean."""
    return float(np.bincount(encoded).argmax() if goal.classes else encoded.mean())


def constant_answers(goal: Targets, encoded: Array) -> float | list[float]:
    """Return the best constant answer; of several targets a list."""
    answers = [constant_answer(target, part) for target, _, part in goal.parts(encoded, encoded)]
    return answers if len(answers) > 1 else answers[0]


def class_weights(targets: Targets, encoded: Array, given: str) -> Array:
    """Return the weight of each row by its class.

    Raises
    ------
    ValueError
        If `given` is neither "balanced", as in scikit-learn, nor a list like ``no=1,yes=5``; others weigh 1.
    """
    goal = targets.each[0]
    if len(targets.each) > 1:
        raise ValueError(f"--class-weight needs one target, got {quoted(targets.names)}; leave it out")
    if not goal.classes:
        raise ValueError(f"--class-weight needs classes, but {goal.name!r} holds numbers; leave it out")
    counts = np.bincount(encoded, minlength=len(goal.classes))
    if given == "balanced":
        each = len(encoded) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return each[encoded]
    labels = {str(label): code for code, label in enumerate(goal.classes)}
    each = np.ones(len(labels))
    for entry in given.split(","):
        label, equals, weight = entry.rpartition("=")
        if not equals:
            raise ValueError(
                f"--class-weight must be 'balanced' or like {goal.classes[0]}=1,{goal.classes[1]}=5, got {given!r}"
            )
        if label not in labels:
            raise unknown_name("a label of --class-weight", label, labels)
        each[labels[label]] = positive(f"the --class-weight of {label!r}", _number(weight))
    return each[encoded]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def measure(goal: Target, outputs: Array, encoded: Array) -> Metrics:
    """Measure the outputs of a network.

    Returns
    -------
    dict
        Of a classification accuracy, F1 (the mean over the classes) and the area under the ROC curve (the mean over
        the classes, each against the rest); of a regression R² and the mean absolute error. None stands for what is
        not defined: R² where the targets do not vary, the area where the rows lack a class.
    """
    if not goal.classes:
        errors = encoded - outputs[:, 0]
        spread = float(np.sum((encoded - encoded.mean()) ** 2))
        r2 = 1 - float(np.sum(errors**2)) / spread if spread else None
        return {"r2": r2, "mae": float(np.abs(errors).mean())}
    from sklearn.metrics import f1_score, roc_auc_score

    codes, scores = goal.codes(outputs), outputs if goal.outputs > 1 else np.hstack([1 - outputs, outputs])
    area = None
    if len(np.unique(encoded)) == len(goal.classes) and np.isfinite(scores).all():
        area = float(np.mean([roc_auc_score(encoded == k, scores[:, k]) for k in range(len(goal.classes))]))
    f1 = float(f1_score(encoded, codes, average="macro", zero_division=0.0))
    return {"accuracy": float(np.mean(codes == encoded)), "f1_macro": f1, "roc_auc": area}


def measure_constant(goal: Target, answer: float, encoded: Array) -> Metrics:
    """Measure a constant answer: what a network must beat."""
    if goal.outputs > 1:
        outputs = np.zeros((len(encoded), goal.outputs))
        outputs[:, int(answer)] = 1
    else:
        outputs = np.full((len(encoded), 1), answer)
    return measure(goal, outputs, encoded)


def confusion(goal: Target, outputs: Array, encoded: Array) -> Array | None:
    """Return how many rows of each class (rows) were taken for each (columns); None for numbers or many classes."""
    if not 0 < len(goal.classes) <= MAX_CONFUSION:
        return None
    from sklearn.metrics import confusion_matrix

    counts: Array = confusion_matrix(encoded, goal.codes(outputs), labels=range(len(goal.classes)))
    return counts


@dataclass(frozen=True)
class Measured:
    """The metrics of predictions, and what a constant answer would reach."""

    goal: Target
    metrics: Metrics
    baseline: Metrics
    answer: float | None
    confusion: Array | None
    rows: int

    @classmethod
    def of(cls, goal: Target, outputs: Array, encoded: Array, answer: float | None) -> "Measured":
        """Measure the outputs of a network, and the constant answer if there is one."""
        baseline = {} if answer is None else measure_constant(goal, answer, encoded)
        return cls(
            goal, measure(goal, outputs, encoded), baseline, answer, confusion(goal, outputs, encoded), len(encoded)
        )

    @property
    def first(self) -> float | None:
        """The first of the metrics."""
        return self.metrics[self.goal.metric]

    def for_json(self) -> dict[str, Any]:
        """Return what the JSON says of them."""
        return {
            "metric": self.goal.metric,
            "test_metric": self.first,
            "metrics": self.metrics,
            "baseline": self.baseline or None,
            "confusion_matrix": None if self.confusion is None else self.confusion.tolist(),
        }

    def show(self, say: Callable[..., None], rows: str) -> None:
        """Print them for people; `rows` says of which rows they are."""
        first, *others = self.metrics
        value = "not defined: the targets do not vary" if self.first is None else f"{self.first:.4f}"
        say(Text.assemble((f"{first} {value}", "bold"), f" on {rows}"))
        shown = [f"{name} {'-' if self.metrics[name] is None else f'{self.metrics[name]:.4g}'}" for name in others]
        say(f"         {', '.join(shown)}")
        if self.answer is not None:
            self._show_baseline(say)
        if self.confusion is not None:
            table = Table("true / predicted", *map(str, self.goal.classes))
            for label, counts in zip(self.goal.classes, self.confusion, strict=True):
                table.add_row(str(label), *map(str, counts))
            say(table)

    def _show_baseline(self, say: Callable[..., None]) -> None:
        constant = f"the mean, {self.answer:.6g}"
        if self.goal.classes:
            constant = repr(self.goal.classes[int(self.answer or 0)])
        least = self.baseline[self.goal.metric]
        shown = "-" if least is None else f"{least:.4f}"
        say(f"baseline {self.goal.metric} {shown} if the answer were always {constant}")
        if self.first is not None and least is not None and not self.first > least:
            say(f"note     {self.goal.metric} is no better than that: the network tells nothing about these rows")


@dataclass(frozen=True)
class AllMeasured:
    """What `Measured` is, of each target of a network."""

    each: list[Measured]

    @classmethod
    def of(cls, goal: Targets, outputs: Array, encoded: Array, answers: Any) -> "AllMeasured":
        """Measure the outputs of a network; `answers` is what `constant_answers` gave, or None."""
        given = answers if isinstance(answers, list) else [answers] * len(goal.each)
        parts = zip(goal.parts(outputs, encoded), given, strict=True)
        return cls([Measured.of(*part, answer) for part, answer in parts])

    @property
    def rows(self) -> int:
        """How many rows were measured."""
        return self.each[0].rows

    def for_json(self) -> dict[str, Any]:
        """Return what the JSON says of them: of several targets the mean of the first metrics, and all of each."""
        if len(self.each) == 1:
            return self.each[0].for_json()
        firsts = [measured.first for measured in self.each]
        mean = float(np.mean([first for first in firsts if first is not None])) if None not in firsts else None
        targets = {measured.goal.name: measured.for_json() for measured in self.each}
        return {"metric": self.each[0].goal.metric, "test_metric": mean, "targets": targets}

    def show(self, say: Callable[..., None], rows: str) -> None:
        """Print them for people; `rows` says of which rows they are."""
        for measured in self.each:
            if len(self.each) > 1:
                say(f"target   {measured.goal.name}")
            measured.show(say, rows)
