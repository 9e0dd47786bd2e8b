"""Callbacks: user code that the training loop calls."""

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any

from bpgpu import checks
from bpgpu.checks import not_negative, positive
from bpgpu.errors import short_repr, unknown_name
from bpgpu.files import saving
from bpgpu.training.history import Training

MONITORS = ("validation_loss", "loss")


class Callback:
    """Base class: override what you need. Each method gets the running `Training`."""

    def check(self, training: Training, *, has_validation: bool) -> None:
        """Raise if the callback cannot work in this fit; nothing has changed yet."""

    def on_train_begin(self, training: Training) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, training: Training) -> None:
        """Before each epoch."""

    def on_epoch_end(self, training: Training) -> None:
        """After each epoch; ``training.history`` has its numbers, ``training.stop(reason)`` ends training."""

    def on_train_end(self, training: Training) -> None:
        """After training, even if it was interrupted or failed."""


class _Monitor(Callback):
    """Remembers the best value of a loss in the history."""

    def __init__(self, monitor: str) -> None:
        if monitor not in MONITORS:
            raise unknown_name("monitor", monitor, MONITORS)
        self.monitor = monitor
        self.best = math.inf

    def check(self, training: Training, *, has_validation: bool) -> None:
        if self.monitor == "validation_loss" and not has_validation:
            raise ValueError(
                f"{type(self).__name__} monitors 'validation_loss', but fit got no validation_data; pass it, or "
                "monitor='loss'"
            )

    def on_train_begin(self, training: Training) -> None:
        self.best = math.inf

    def improved(self, training: Training, by: float = 0.0) -> bool:
        value: float = getattr(training.history, self.monitor)[-1]
        if not value < self.best - by:
            return False
        self.best = value
        return True


class EarlyStopping(_Monitor):
    """Stop when a loss no longer falls, and restore the weights of its best epoch.

    The best weights are restored whenever training ends by itself, even after the last epoch. After Ctrl-C, the weights
    of the last finished step are kept.

    Parameters
    ----------
    patience : int
        Epochs without improvement after which training stops, at least 1.
    min_delta : float
        The least decrease of the loss that counts as an improvement.
    monitor : {"validation_loss", "loss"}
    restore_best : bool

    Attributes
    ----------
    best : float
        The best value of the monitored loss.
    best_epoch : int
        Its epoch, counted from 1 in this fit.
    """

    def __init__(
        self,
        patience: int = 10,
        *,
        min_delta: float = 0.0,
        monitor: str = "validation_loss",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor)
        self.restore_best = checks.flag("restore_best", restore_best)
        self.patience = checks.integer("patience", patience, 1)
        self.min_delta = not_negative("min_delta", min_delta)
        self.best_epoch = 0

    def on_train_begin(self, training: Training) -> None:
        super().on_train_begin(training)
        self.best_epoch = 0
        self._best_parameters: Any = None

    def on_epoch_end(self, training: Training) -> None:
        if self.improved(training, self.min_delta):
            self.best_epoch = training.epoch
            if self.restore_best:
                net = training.net
                if self._best_parameters is None:
                    self._best_parameters = net.backend.empty(net.parameters.shape, net.architecture.dtype)
                net.backend.assign(self._best_parameters, net.parameters)
        elif training.epoch - self.best_epoch >= self.patience:
            training.stop(
                f"early stopping: {self.monitor} has not improved for {self.patience} epochs; best was "
                f"{self.best:.6g} in epoch {self.best_epoch}"
            )

    def on_train_end(self, training: Training) -> None:
        ended_by_itself = training.history.stop_reason not in ("", "interrupted")
        if self._best_parameters is not None and ended_by_itself:
            training.net.backend.assign(training.net.parameters, self._best_parameters)
        self._best_parameters = None


class Checkpoint(_Monitor):
    """Save the network after every epoch, or after each epoch that is the best so far.

    Parameters
    ----------
    path : path-like
        ``{epoch}`` in its name stands for the epoch, counted from 1 over the life of the network.
    monitor : {"validation_loss", "loss"}, optional
        Save only when this loss has improved.
    """

    def __init__(self, path: str | PathLike[str], *, monitor: str | None = None) -> None:
        super().__init__("loss" if monitor is None else monitor)
        self.path = checks.file_name("path", path)
        if "{epoch}" in str(self.path.parent) or re.search(r"\{\w+[:}]", self.path.name.replace("{epoch}", "")):
            raise ValueError(
                f"path must have no placeholder but {{epoch}}, and only in the file name, got {str(path)!r}"
            )
        self.every_epoch = monitor is None

    def check(self, training: Training, *, has_validation: bool) -> None:
        if not self.every_epoch:
            super().check(training, has_validation=has_validation)
        if not self.path.parent.is_dir():
            raise ValueError(f"the folder of the Checkpoint {self.path} must exist; create it first")
        checks.file_name("path", self.path)  # again, because the folder need not have existed before
        if self.path.is_dir():
            raise ValueError(f"the path of the Checkpoint must name a file, but {self.path} is a folder")

    def on_epoch_end(self, training: Training) -> None:
        if self.improved(training) or self.every_epoch:
            net = training.net
            saving.save(net, str(self.path).replace("{epoch}", str(net.epoch)))


class LearningRateSchedule(Callback):
    """Set the learning rate of each epoch. For a rate that changes with the step, see `bpgpu.CosineDecay` and others.

    Parameters
    ----------
    schedule : function
        Takes the number of epochs finished in this fit and the history; returns the learning rate of the next epoch.

    Raises
    ------
    TypeError
        If the schedule does not take these two arguments.
    """

    def __init__(self, schedule: Callable[[int, Any], float]) -> None:
        hint = "; pass a schedule by step, such as bpgpu.StepDecay, as the learning_rate of an optimizer"
        self.schedule = checks.function("schedule", schedule, ["the epoch", "the history"], hint)

    def check(self, training: Training, *, has_validation: bool) -> None:
        if callable(training.optimizer.learning_rate):
            raise ValueError(
                "LearningRateSchedule would override the optimizer's own schedule, "
                f"{training.optimizer.learning_rate!r}; pass only one of the two"
            )

    def on_epoch_begin(self, training: Training) -> None:
        rate = self.schedule(training.epoch, training.history)
        training.learning_rate = positive("learning_rate", rate, f" from its schedule at epoch {training.epoch}")


def checked(callbacks: Any) -> Sequence[Callback]:
    """Return `callbacks`; raise if it is not a sequence of callbacks, or if one would override another."""
    if not isinstance(callbacks, Sequence) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"callbacks must be a list of bpgpu.Callback objects, got {short_repr(callbacks)}")
    if sum(isinstance(callback, LearningRateSchedule) for callback in callbacks) > 1:
        raise ValueError("callbacks must have at most one LearningRateSchedule: the last would override the others")
    return callbacks


class ProgressBar(Callback):
    """Show epochs, losses and samples per second on standard error while training; needs the package rich.

    It shows nothing if standard error is not a terminal.
    """

    def check(self, training: Training, *, has_validation: bool) -> None:
        try:
            import rich.progress  # noqa: F401  # checked here, before anything changes
        except ImportError as error:
            raise ImportError('progress needs the package rich: pip install "bpgpu[cli]"') from error

    def on_train_begin(self, training: Training) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal or console.is_jupyter),
        )
        self._task = self._progress.add_task("", total=training.epochs, numbers="")
        self._progress.start()

    def on_epoch_end(self, training: Training) -> None:
        history = training.history
        numbers = f"loss {history.loss[-1]:.4g}"
        if history.validation_loss:
            numbers += f"  validation {history.validation_loss[-1]:.4g}"
        numbers += f"  {training.samples / max(history.seconds[-1], 1e-9):,.0f} samples/s"
        with suppress(OSError):  # a closed terminal must not end the training
            self._progress.update(self._task, completed=training.epoch, numbers=numbers)

    def on_train_end(self, training: Training) -> None:
        with suppress(OSError):
            self._progress.stop()
