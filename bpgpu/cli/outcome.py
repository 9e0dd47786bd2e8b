"""The end of training: its results, printed before anything is written, and its files."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpgpu
from bpgpu.cli.files import free_name
from bpgpu.cli.metrics import Measured
from bpgpu.cli.output import to_json
from bpgpu.cli.plots import draw_losses
from bpgpu.files.writing import atomic_file


class KeepHistory(bpgpu.Callback):
    """Keeps the history of training even if it raises."""

    history: bpgpu.History

    def on_train_begin(self, training: Any) -> None:
        self.history = training.history


@dataclass
class Outcome:
    """Training that has ended, in whatever way.

    Attributes
    ----------
    net : MLP
    history : History
    rows : int
        Rows in the training part.
    failure : ArithmeticError or None
        A NonFiniteError if training diverged; the network is then that of the last finite epoch. Otherwise the reason
        why the network is not usable.
    usable : bool
        Whether the network is finite; a non-finite one is neither measured nor saved.
    """

    net: bpgpu.MLP
    history: bpgpu.History
    rows: int
    failure: ArithmeticError | None
    usable: bool = True

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or a signal ended the training."""
        return self.history.stop_reason == "interrupted"

    @property
    def stop_reason(self) -> str:
        """Why the training ended."""
        return "diverged" if isinstance(self.failure, bpgpu.NonFiniteError) else self.history.stop_reason

    @property
    def seconds(self) -> float:
        """The duration of all epochs."""
        return sum(self.history.seconds)

    @property
    def speed(self) -> float:
        """Samples per second."""
        return len(self.history.loss) * self.rows / self.seconds if self.seconds else 0.0

    def show(self, say: Callable[..., None]) -> None:
        """Print how the training went."""
        ended = f" ({self.stop_reason})" if self.interrupted or self.stop_reason == "diverged" else ""
        say(f"trained  {len(self.history.loss)} epochs in {self.seconds:.1f} s, {self.speed:,.0f} samples/s{ended}")
        if not ended and not self.stop_reason.startswith("finished"):
            say(f"stopped  {self.stop_reason}")

    def finish(
        self,
        say: Callable[..., None],
        measure: Callable[[], Measured],
        out: Path | None,
        plot: Path | None,
        as_json: bool,
    ) -> None:
        """Print the results, save the network, draw the losses; if one fails, the others are still done.

        Raises
        ------
        ArithmeticError
            At the end, if training diverged or the network is not usable.
        """
        measured, model = None, None
        try:
            try:
                self.show(say)
                if self.usable:
                    measured = measure()
                    measured.show(say, f"the {measured.rows} held-out rows")
            finally:  # the training must not be lost because the reader of the output left
                if out is not None and self.usable:
                    model = self._keep(out)
            if self.usable:
                say(f"model    {model}" if model else "model    not kept: add --out model.safetensors")
            if plot is not None:
                with atomic_file(plot) as file:
                    draw_losses(self.history, file, plot)
        except _SavedElsewhereError as error:
            model = error.place
            raise
        finally:
            if as_json:
                print(self._json(measured, model))
        if self.failure is not None:
            raise self.failure

    def _keep(self, out: Path) -> Path:
        """Save the network; return where. A diverged one does not replace an older model."""
        wanted = out if self.failure is None else free_name(out, "diverged")
        try:
            try:
                self.net.save(wanted)
            except KeyboardInterrupt:  # try again, because an interrupt must not lose the training
                self.net.save(wanted)
                raise
        except OSError as error:  # such as a full disk: any other place is better than none
            place = Path(tempfile.mkdtemp(prefix="bpgpu-")) / wanted.name
            try:
                self.net.save(place)
            except OSError:
                raise error from None
            raise _SavedElsewhereError(error, wanted, place) from error
        return wanted

    def _json(self, measured: Measured | None, model: Path | None) -> str:
        """Return the JSON object of the command."""
        net, history = self.net, self.history
        return to_json(
            {
                "backend": net.backend.name,
                "device": net.backend.device,
                "dtype": net.architecture.dtype.name,
                "parameters": net.architecture.n_parameters,
                "epochs": len(history.loss),
                "stop_reason": self.stop_reason,
                "train_loss": history.loss[-1] if history.loss else None,
                "validation_loss": history.validation_loss[-1] if history.validation_loss else None,
                **({} if measured is None else measured.for_json()),
                "seconds": self.seconds,
                "samples_per_second": self.speed,
                "model": None if model is None else str(model),
            }
        )


class _SavedElsewhereError(OSError):
    """The model could not be saved under the name that was asked for; it is in `place`."""

    def __init__(self, error: OSError, wanted: Path, place: Path) -> None:
        super().__init__(error.errno, f"{error.strerror}; the model was saved as {place}", str(wanted))
        self.place = place
