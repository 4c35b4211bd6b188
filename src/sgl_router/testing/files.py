"""Reads the small files of a plugin's folder."""

import os
import stat
from pathlib import Path

from sgl_router.errors import ConfigError


def read_regular(path: Path, most: int) -> bytes:
    """A file's bytes; never waits for a FIFO or a device.

    Args:
        most: bytes that it may have.

    Raises ConfigError, naming the file, where it is not a regular one or larger, and OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path} is not a regular file; expected one")
        with open(fd, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(fd)
    if len(content) > most:
        raise ConfigError(f"{path} has more than {most:,} bytes")
    return content
