"""The history of a fit, and the running fit as callbacks see it."""

from dataclasses import dataclass, field

from bpgpu.model.optimizers import Optimizer
from bpgpu.network import Network


@dataclass
class History:
    """The history of a call to `fit`; the lists have one entry for each finished epoch.

    Attributes
    ----------
    loss : list of float
        Mean of C over the batches of the epoch, each before its update, with dropout and the penalty: the function that
        training descends.
    validation_loss : list of float
        ``net.loss(X, y, penalty=False)`` of the validation data after the epoch. Without the penalty, which depends on
        the number of rows, it stays the same if the rows are repeated. Empty without validation data; NaN if Ctrl-C
        came in between.
    learning_rate : list of float
        The rate of the first step of the epoch.
    seconds : list of float
        Time of training, without validation and callbacks.
    stop_reason : str
        Why training ended.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stop_reason: str = ""


@dataclass
class Training:
    """A running `fit`, as callbacks see it.

    Attributes
    ----------
    net : MLP
    optimizer : Optimizer
    history : History
    epochs : int
        The number of epochs planned.
    samples : int
        Samples in an epoch.
    learning_rate : float or None
        If a callback sets it, the coming epochs use it instead of the optimizer's.
    """

    net: Network
    optimizer: Optimizer
    history: History
    epochs: int
    samples: int
    learning_rate: float | None = None
    _finished: int = field(default=0, init=False, repr=False)

    @property
    def epoch(self) -> int:
        """The number of epochs finished in this fit, whatever a callback does to the history."""
        return self._finished

    def _epoch_ends(self, loss: float, learning_rate: float, seconds: float, validation_loss: float | None) -> None:
        """Count an epoch that has changed the weights, and add it to the history."""
        self.net.epoch += 1
        self._finished += 1
        self.history.loss.append(loss)
        self.history.learning_rate.append(learning_rate)
        self.history.seconds.append(seconds)
        if validation_loss is not None:
            self.history.validation_loss.append(validation_loss)

    def stop(self, reason: str) -> None:
        """End training after this epoch; the reason goes into the history."""
        self.history.stop_reason = str(reason or "stopped by a callback")
