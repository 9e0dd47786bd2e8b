"""Metrics of predictions, compared with a constant answer; and the weights of classes."""

import csv
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from bpgpu.checks import positive
from bpgpu.cli.columns import Matrix
from bpgpu.cli.targets import Target, Targets
from bpgpu.errors import short_repr, unknown_name

Metrics = dict[str, float | None]
# With more classes, the confusion matrix is neither shown nor in the JSON.
MAX_CONFUSION = 30
MAX_LABEL = 20  # characters of a label in it


def class_weights(goal: Targets, encoded: Matrix, given: str) -> Matrix:
    """Return the weight of each row by its class.

    Raises
    ------
    ValueError
        If `given` is neither "balanced", as in scikit-learn, nor a line of CSV like ``no=1,yes=5``, where classes that
        are not named weigh 1.
    """
    if not goal.classification or len(goal.each) > 1:
        holds = "holds numbers" if not goal.classification else f"is one of {len(goal.each)} targets"
        raise ValueError(f"--class-weight needs one target of classes, but {goal.names[0]!r} {holds}; leave it out")
    classes = goal.each[0].classes
    counts = np.bincount(encoded, minlength=len(classes))
    if given == "balanced":
        each = len(encoded) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return each[encoded]
    labels = {str(label): code for code, label in enumerate(classes)}
    found: dict[str, float] = {}
    for entry in _entries(given):
        label, equals, weight = entry.rpartition("=")
        if not equals:
            example = io.StringIO()
            csv.writer(example, lineterminator="").writerow([f"{classes[0]}=1", f"{classes[1]}=5"])
            raise ValueError(f"--class-weight must be 'balanced' or like {example.getvalue()}, got {short_repr(given)}")
        if label not in labels:
            raise unknown_name("a label of --class-weight", label, labels)
        if label in found:
            raise ValueError(f"--class-weight must name each label once, got {short_repr(label)} twice")
        found[label] = positive(f"the --class-weight of {label!r}", _number(weight))
    return np.array([found.get(label, 1.0) for label in labels])[encoded]


def _entries(given: str) -> list[str]:
    try:
        return next(csv.reader([given])) or [""]
    except csv.Error:
        return [given]  # it has several lines


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def constant_answers(goal: Targets, encoded: Matrix) -> list[float]:
    """Return the best constant answer on the training rows for each target: the largest class, or the mean."""
    columns = encoded.reshape(len(encoded), -1).T
    return [float(np.bincount(column).argmax() if goal.classification else column.mean()) for column in columns]


def measure(goal: Target, outputs: Matrix, encoded: Matrix) -> Metrics:
    """Measure the outputs of a network.

    Returns
    -------
    dict
        For classification: accuracy, F1 (the mean over the classes) and the area under the ROC curve (the mean over
        the classes, each against the rest). For regression: R² and the mean absolute error. A metric that is not
        defined is None: R² if the targets do not vary, the area if the rows lack a class.
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
    with warnings.catch_warnings():
        # scikit-learn 1.7 takes many classes among few rows for a mistake.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        f1 = float(f1_score(encoded, codes, average="macro", zero_division=0.0))
    return {"accuracy": float(np.mean(codes == encoded)), "f1_macro": f1, "roc_auc": area}


def measure_constant(goal: Target, answer: float, encoded: Matrix) -> Metrics:
    """Measure a constant answer, which a network must beat."""
    if goal.outputs > 1:
        outputs = np.zeros((len(encoded), goal.outputs))
        outputs[:, int(answer)] = 1
    else:
        outputs = np.full((len(encoded), 1), answer)
    return measure(goal, outputs, encoded)


def confusion(goal: Target, outputs: Matrix, encoded: Matrix) -> Matrix | None:
    """Return how many rows of each class (rows) were predicted as each (columns); None for numbers or many classes."""
    if not 0 < len(goal.classes) <= MAX_CONFUSION:
        return None
    from sklearn.metrics import confusion_matrix

    counts: Matrix = confusion_matrix(encoded, goal.codes(outputs), labels=range(len(goal.classes)))
    return counts


@dataclass(frozen=True)
class TargetMetrics:
    """The metrics of one target, those of a constant answer (empty if there is none), and the confusion matrix."""

    goal: Target
    metrics: Metrics
    baseline: Metrics
    answer: float | None
    confusion: Matrix | None

    @classmethod
    def of(cls, goal: Target, outputs: Matrix, encoded: Matrix, answer: Any) -> "TargetMetrics":
        """Measure the outputs of a network, and the constant answer if it is valid: a model file may hold anything."""
        if type(answer) not in (int, float) or (goal.classes and answer not in range(len(goal.classes))):
            answer = None
        baseline = {} if answer is None else measure_constant(goal, answer, encoded)
        return cls(goal, measure(goal, outputs, encoded), baseline, answer, confusion(goal, outputs, encoded))

    def show(self, say: Callable[..., None], rows: str) -> None:
        """Print the metrics for people; `rows` says which rows they were measured on."""
        (first, value), *others = self.metrics.items()
        text = "not defined: the targets do not vary" if value is None else f"{value:.4f}"
        say(Text.assemble((f"{first} {text}", "bold"), f" on {rows}"))
        say("         " + ", ".join(f"{name} {'-' if one is None else f'{one:.4g}'}" for name, one in others))
        if self.answer is not None:
            least = self.baseline[first]
            constant = repr(self.goal.classes[int(self.answer)]) if self.goal.classes else f"{self.answer:.10g}"
            say(f"baseline {first} {'-' if least is None else f'{least:.4f}'} if the answer were always {constant}")
            if value is not None and least is not None and value <= least:
                say(f"note     {first} is no better than the baseline: the network tells nothing about these rows")
        if self.confusion is not None:
            say("confusion, one row for each true class, with the predicted classes in the same order")
            labels = [str(label)[:MAX_LABEL] for label in self.goal.classes]
            width, digits = max(map(len, labels)), len(str(self.confusion.max()))
            for label, counts in zip(labels, self.confusion, strict=True):
                say(f"         {label:<{width}}  " + " ".join(f"{count:>{digits}}" for count in counts))


@dataclass(frozen=True)
class Measured:
    """The metrics of all targets."""

    each: list[TargetMetrics]
    rows: int

    @classmethod
    def of(cls, goal: Targets, outputs: Matrix, encoded: Matrix, answers: Any) -> "Measured":
        """Measure the outputs of a network; `answers` holds a constant answer for each target, or is ignored."""
        answers = answers if isinstance(answers, list) and len(answers) == len(goal.each) else [None] * len(goal.each)
        parts = zip(goal.parts(outputs, encoded), answers, strict=True)
        return cls([TargetMetrics.of(*part, answer) for part, answer in parts], len(encoded))

    def for_json(self) -> dict[str, Any]:
        """Return the metrics for the JSON output; with several targets, the means and the metrics of each."""
        metrics = _mean([one.metrics for one in self.each])
        matrix = self.each[0].confusion if len(self.each) == 1 else None
        found = {
            "metric": next(iter(metrics)),
            "test_metric": next(iter(metrics.values())),
            "metrics": metrics,
            "baseline": _mean([one.baseline for one in self.each]) or None,
            "confusion_matrix": None if matrix is None else matrix.tolist(),
        }
        return found if len(self.each) == 1 else found | {"targets": {one.goal.name: one.metrics for one in self.each}}

    def show(self, say: Callable[..., None], rows: str) -> None:
        """Print the metrics for people; `rows` says which rows they were measured on."""
        for one in self.each:
            one.show(say, rows if len(self.each) == 1 else f"{rows}, {one.goal.name}")


def _mean(each: list[Metrics]) -> Metrics:
    """Return the mean of each metric over the targets, None if it is undefined for one of them."""
    found: Metrics = {}
    for name in each[0]:
        values = [one.get(name) for one in each]
        defined = [value for value in values if value is not None]
        found[name] = float(np.mean(defined)) if len(defined) == len(values) else None
    return found
