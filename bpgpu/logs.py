"""BPGPU_LOG: the level of what the logger "bpgpu" writes to standard error."""

import logging
import os

LEVELS = ("debug", "info", "warning", "error")


def configure() -> None:
    """Let the logger write to standard error, from the level that the environment variable BPGPU_LOG names.

    A program that sets up logging itself, for the root or for "bpgpu", decides where the lines go.
    """
    wanted = os.environ.get("BPGPU_LOG", "").lower()
    if not wanted:
        return
    logger, handler = logging.getLogger("bpgpu"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    handler.addFilter(lambda record: not logging.root.handlers and logger.handlers == [handler])
    logger.addHandler(handler)
    if wanted in LEVELS:
        logger.setLevel(wanted.upper())
    else:
        logger.warning("BPGPU_LOG must be one of %s, got %r", ", ".join(LEVELS), wanted)
