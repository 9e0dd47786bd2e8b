"""The picture of a training."""

import io
from pathlib import Path
from typing import IO

import bpgpu


def check_plot(path: Path) -> None:
    """Raise if Matplotlib cannot draw a picture of this kind, by drawing one."""
    try:
        draw_losses(bpgpu.History(loss=[1.0], validation_loss=[1.0]), io.BytesIO(), path.suffix[1:])
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"--plot {path} cannot be drawn: {error}") from error


def draw_losses(history: bpgpu.History, file: Path | IO[bytes], kind: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scale = "log" if any(loss > 0 for loss in history.loss + history.validation_loss) else "linear"
    axes = figure.add_subplot(xlabel="epoch", ylabel="cost", yscale=scale)
    for losses, label in ((history.loss, "training"), (history.validation_loss, "held out")):
        axes.plot(range(1, len(losses) + 1), losses, label=label)
    axes.legend()
    figure.savefig(file, format=kind, dpi=150)
