"""The command ``bpgpu``: says what is missing if the command line's packages are not installed."""

import io
import os
import signal
import sys
from types import FrameType

# The signals that end a job on a cluster or in a container, and the one that a closed terminal sends.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """Run the command line and exit with its code: 0, 2 after an error, 130 after Ctrl-C, 128 + n after signal n."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt at most twice: the first ends the training, the second ends what follows it.

        Only the first signal that ends a job counts, because the model is being saved by then.
        """
        received.append(number)
        ignored = [signal.SIGINT, *ENDING] if len(received) > 1 else ENDING if number in ENDING else []
        for other in ignored:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    try:
        code = _run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # or Ctrl-C while Python exits would print a traceback
    except KeyboardInterrupt:  # the second, while the first was being reported
        code = 130
    ending = [number for number in received if number in ENDING]
    sys.exit(128 + ending[0] if ending else code)


def _run() -> int:
    """Run the command line with outputs that can be written to; return its exit code."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # fill what the shell closed, or files would get its numbers
        pass
    os.close(spare)
    if sys.stderr is None:  # or its text would go to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal's encoding lacks are written as \\u....
            stream.reconfigure(errors="backslashreplace")
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        # With PYTHONUNBUFFERED: a raw file may accept only part of a text, and the rest would be lost.
        sys.stdout = open(  # noqa: SIM115
            sys.stdout.fileno(), "w", 1, sys.stdout.encoding, sys.stdout.errors, closefd=False
        )
    try:
        from bpgpu.cli import run

        return run(sys.argv[1:])
    except ModuleNotFoundError as error:
        print(f'bpgpu: the command line needs {error.name}: pip install "bpgpu[cli]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bpgpu: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    main()
