"""The command line: train, predict, export, info, warmup, gradcheck, accuracy, hardware-report."""

import errno
import os
import sys
from typing import Annotated

import numpy as np
import typer

import bpgpu
from bpgpu.cli.machine import accuracy, gradcheck, hardware_report, info, warmup
from bpgpu.cli.prediction import export, predict
from bpgpu.cli.training import train

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # or [onnx] would be taken for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
GONE = (errno.EPIPE, errno.EIO)  # the reader of the output left, as `head` does, or the terminal was closed
COMPLETION = "_BPGPU_COMPLETE"  # set by the shell's completion


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bpgpu {bpgpu.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train dense neural networks by backpropagation, on the CPU or a GPU."""


for _command in (train, predict, export, info, warmup, hardware_report, gradcheck, accuracy):
    app.command()(_command)

FAILURES = (ValueError, TypeError, ArithmeticError, RuntimeError, OSError, ImportError)


def run(arguments: list[str]) -> int:
    """Run the command line; return the command's exit code, or 2 after an error of one line; Ctrl-C passes through."""
    try:
        with np.errstate(all="ignore"):  # non-finite numbers show in the results, which are checked
            code = _invoke(arguments)
        if sys.stdout is not None:  # it is None if the shell closed it, with >&-
            sys.stdout.flush()
        return code
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            _discard_unwritable_output()
            if error.errno in GONE:
                return 1
        if hasattr(error, "format_message"):  # the argument parser's own errors
            message = f"{error.format_message().rstrip('.')}; see bpgpu --help"
        elif isinstance(error, OSError) and error.errno is not None:
            message = f"{error.filename or 'standard output'}: {error.strerror}"  # files are always named
        elif isinstance(error, MemoryError):
            message = f"not enough memory: {error}; use a smaller network, batch or table"
        elif isinstance(error, FAILURES):
            message = str(error)
        else:
            raise
        print(f"bpgpu: {' '.join(message.split())}", file=sys.stderr)
        return 2


def _discard_unwritable_output() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # or the flush at exit would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _invoke(arguments: list[str]) -> int:
    """Parse the arguments and run their command. Calling `app` would do so too, but swallow Ctrl-C."""
    command = typer.main.get_command(app)
    if COMPLETION in os.environ:
        command(prog_name="bpgpu")  # answers the shell and exits
    try:
        with command.make_context("bpgpu", list(arguments) or ["--help"]) as context:
            return command.invoke(context) or 0
    except typer.Exit as end:  # --help, --version
        return end.exit_code
