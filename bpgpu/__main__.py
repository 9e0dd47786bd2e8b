"""The command ``bpgpu``: says what is missing if the command line's packages are not installed."""

import os
import signal
import sys
from types import FrameType

# What ends a job of a cluster or container, and what a closed terminal sends.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """Run the command line and exit with its code: 0, 2 after an error, 130 after Ctrl-C, 128 + n after signal n."""
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Do what Ctrl-C does; a second such signal changes nothing, because the model is being saved."""
        for ending in ENDING:
            signal.signal(ending, signal.SIG_IGN)
        received.append(number)
        raise KeyboardInterrupt

    for ending in ENDING:
        if signal.getsignal(ending) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(ending, interrupt)
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # what the shell closed; else files would take its place
        pass
    os.close(spare)
    if sys.stderr is None:  # or what is printed there would go to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # text that the terminal's encoding lacks is written as \\u....
            stream.reconfigure(errors="backslashreplace")
    try:
        from bpgpu.cli import run

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        print(f'bpgpu: the command line needs {error.name}: pip install "bpgpu[cli]"', file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("bpgpu: interrupted", file=sys.stderr)
        code = 130
    sys.exit(128 + received[0] if received else code)


if __name__ == "__main__":
    main()
