"""BPGPU_LOG: what the logger "bpgpu" writes to standard error."""

import os
import subprocess
import sys

import pytest

SAY = "import bpgpu, logging; log = logging.getLogger('bpgpu'); log.debug('a'); log.info('b'); log.warning('c')"
BASIC = "import logging; logging.basicConfig(format='root %(message)s'); "


def said(level, code):
    """Run code in a new process; return the lines on its standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "BPGPU_LOG"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment | ({"BPGPU_LOG": level} if level else {}),
    )
    assert run.returncode == 0, run.stderr
    return run.stderr.splitlines()


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("", ["c"]),  # as Python does where nobody has set up logging
        ("debug", ["bpgpu: a", "bpgpu: b", "bpgpu: c"]),
        ("INFO", ["bpgpu: b", "bpgpu: c"]),
        ("error", []),
        ("loud", ["bpgpu: BPGPU_LOG must be one of debug, info, warning, error, got 'loud'", "bpgpu: c"]),
    ],
)
def test_the_level_decides_what_is_written(level, expected):
    assert said(level, SAY) == expected


def test_a_program_that_sets_up_logging_gets_each_line_once_and_by_its_own_handlers():
    assert said("info", BASIC + SAY) == ["root b", "root c"]
    assert said("info", "import bpgpu; " + BASIC + SAY) == ["root b", "root c"]
    own = "import bpgpu, logging; logging.getLogger('bpgpu').addHandler(logging.StreamHandler()); "
    assert said("info", own + SAY) == ["b", "c"]
