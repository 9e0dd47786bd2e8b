"""The plot of the losses."""

import io
from pathlib import Path
from typing import BinaryIO

import bpgpu


def check_plot(path: Path) -> None:
    """Draw a small plot of this kind; raise if Matplotlib cannot."""
    try:
        draw_losses(bpgpu.History(loss=[1.0], validation_loss=[1.0]), io.BytesIO(), path)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"--plot {path} cannot be drawn: {error}; end the name in .png, .svg or .pdf") from error


def draw_losses(history: bpgpu.History, file: BinaryIO, path: Path) -> None:
    """Draw the losses of all epochs into a file; the path gives its format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scale = "linear" if any(loss <= 0 for loss in history.loss + history.validation_loss) else "log"
    axes = figure.add_subplot(xlabel="epoch", ylabel="cost", yscale=scale)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for losses, label in ((history.loss, "training"), (history.validation_loss, "held out")):
        # A line needs two points; the loss of a single epoch would be invisible.
        axes.plot(range(1, len(losses) + 1), losses, label=label, marker="o" if len(losses) == 1 else None)
    axes.legend()
    figure.savefig(file, format=path.suffix[1:], dpi=150)
