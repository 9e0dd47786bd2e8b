"""Callbacks in a fit: bpgpu's, and those of scikit-learn 1.9's protocol."""

import time
from typing import Any

from bpgpu.backends import get_backend
from bpgpu.mlp import MLP
from bpgpu.sklearn import networks, parameters
from bpgpu.sklearn.steps import BackendSteps, ReferenceSteps, flatten
from bpgpu.training.callbacks import Callback, ProgressBar, checked
from bpgpu.training.history import History, Training

__all__ = ["CallbackSupportMixin", "Listeners"]

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Empty, because this scikit-learn has no callbacks."""


class Listeners:
    """The callbacks of one fit.

    Attributes
    ----------
    training : Training
        The fit as bpgpu's callbacks see it; its network has the parameters in training.
    stopped : str
        Why a callback has ended training, if one has.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, has_validation: bool) -> None:
        self.estimator, self.X, self.y = estimator, X, y
        given = parameters.value(estimator, "callbacks")
        self.bpgpus: list[Callback] = [*checked(() if given is None else given)]
        if parameters.value(estimator, "progress"):
            self.bpgpus.append(ProgressBar())
        self.stopped = ""
        self.root: Any = None
        self.has_validation = has_validation

    def begin(self, steps: BackendSteps | ReferenceSteps) -> None:
        """Before the first epoch."""
        estimator = self.estimator
        if self.bpgpus:
            net = _network_in_training(estimator, steps)
            optimizer = networks.optimizer_of(estimator._optimizer)
            training = Training(net, optimizer, History(), estimator.max_iter, self.X.shape[0])
            for callback in self.bpgpus:
                callback.check(training, has_validation=self.has_validation)
            self.training = training
            for callback in self.bpgpus:
                callback.on_train_begin(self.training)
        if hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx"):
            self.root = estimator._init_callback_context(max_subtasks=estimator.max_iter)
            self.root.call_on_fit_task_begin(estimator=estimator, X=self.X, y=self.y)

    def epoch_begins(self, steps: BackendSteps | ReferenceSteps) -> None:
        """Before each epoch."""
        if self.bpgpus:
            for callback in self.bpgpus:
                callback.on_epoch_begin(self.training)
            steps.learning_rate = self.training.learning_rate
            self.since = time.perf_counter()
        if self.root is not None:
            self.task = self.root.subcontext(task_name="epoch")
            self.task.call_on_fit_task_begin(estimator=self.estimator, X=self.X, y=self.y)

    def epoch_ends(self, loss: float, validation_loss: float | None) -> None:
        """After each epoch."""
        estimator = self.estimator
        if self.bpgpus:
            training, history = self.training, self.training.history
            rate = training.learning_rate or estimator._optimizer.learning_rate
            training._epoch_ends(float(loss), rate, time.perf_counter() - self.since, validation_loss)
            for callback in self.bpgpus:
                callback.on_epoch_end(training)
            self.stopped = self.stopped or history.stop_reason
        if self.root is not None and self.task.call_on_fit_task_end(
            estimator=estimator, X=self.X, y=self.y, reconstruction_attributes=self._copies
        ):
            self.stopped = self.stopped or "a callback has ended training"

    def _copies(self) -> dict[str, Any]:
        return {name: [x.copy() for x in getattr(self.estimator, name)] for name in ("coefs_", "intercepts_")}

    def end(self, reason: str) -> None:
        """After training, however it ended."""
        if self.bpgpus and hasattr(self, "training"):
            self.training.history.stop_reason = self.stopped or reason
            for callback in self.bpgpus:
                callback.on_train_end(self.training)
        if self.root is not None and reason != "failed":
            self.root.call_on_fit_task_end(
                estimator=self.estimator, X=self.X, y=self.y, reconstruction_attributes=self._copies
            )


def _network_in_training(estimator: Any, steps: BackendSteps | ReferenceSteps) -> MLP:
    """Return a network whose parameters are those in training."""
    if isinstance(steps, BackendSteps):
        return MLP.of(steps.plan.architecture, steps.backend, steps.parameters, len(estimator.loss_curve_))
    net = networks.architecture(estimator, estimator.coefs_[0].dtype)
    flat, estimator.coefs_, estimator.intercepts_ = flatten(estimator.coefs_ + estimator.intercepts_, net)
    return MLP.of(net, get_backend("numpy"), flat, len(estimator.loss_curve_))
