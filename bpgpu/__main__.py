"""The command ``bpgpu``: says what is missing if the command line's packages are not installed."""

import sys


def main() -> None:
    """Run the command line and exit with its code: 0, 2 after an error, 130 after Ctrl-C."""
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
    sys.exit(code)


if __name__ == "__main__":
    main()
