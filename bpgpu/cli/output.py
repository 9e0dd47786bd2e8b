"""What the commands share: options, and ways to print for people and programs."""

import functools
import json
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from bpgpu.cli.targets import Target, Targets

JsonOption = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON object; text goes to stderr.")
]
BackendOption = Annotated[str, typer.Option(help="auto, cupy, numba-cuda, numba or numpy.")]


def to_json(result: dict[str, Any]) -> str:
    """Return one line of JSON; infinite and undefined numbers, which JSON lacks, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()
    }
    return json.dumps(finite, allow_nan=False)


def printer(stderr: bool = False) -> Callable[..., None]:
    """Return a function that prints for people, text as it is; lines are not broken, so that they can be searched."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    return functools.partial(console.print, soft_wrap=True)


def progress() -> Callable[..., Any]:
    """Return rich's `track`, which shows a bar on a terminal and nothing elsewhere."""
    console = Console(stderr=True)
    return functools.partial(track, console=console, transient=True, disable=not console.is_terminal)


def measured(goal: Target | Targets, score: float | None) -> str:
    """Return the score with its name."""
    return f"{goal.metric} " + ("not defined: the targets do not vary" if score is None else f"{score:.4f}")
