"""The command ``bpgpu``: says what is missing if the command line's packages are not installed."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from bpgpu.cli import run
    except ModuleNotFoundError as error:
        print(f'bpgpu: the command line needs {error.name}: pip install "bpgpu[cli]"', file=sys.stderr)
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
