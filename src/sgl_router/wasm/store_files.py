"""Folders and files that nobody else may touch: of the store of uploaded plugins.

Folders are passed on as descriptors, so that what was checked is what is used. A file is opened
without following a link and without waiting for a FIFO's other end.
"""

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from sgl_router.wasm.stored import StoreError

TEMPORARY = ".tmp-"
"""Begins the name of a file that is being written."""

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LOCK_PAUSE_SECS = 0.01


def make_folder(path: Path) -> None:
    """A folder, and those above it that are missing, for its owner only."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_folder(path.parent)
        path.mkdir(0o700, exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def open_folder(path: Path, top: int | None = None) -> int:
    """A descriptor of a folder that only this user writes to; raises StoreError of any other.

    Where `top` is given, the descriptor of the folder above it, `path` may not be a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if top is None:
        fd = os.open(path, flags)
    else:
        fd = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=top)
    try:
        _check_owner(path, os.fstat(fd))
    except (StoreError, OSError):
        os.close(fd)
        raise
    return fd


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path} belongs to user {found.st_uid}, and the router runs as user "
            f"{os.geteuid()}: it runs no plugins that somebody else keeps; give it another folder"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others could put plugins there "
            f"that the router would run; chmod 700 {path}"
        )


def lock_folder(folder: int, path: Path, wait_secs: float) -> int:
    """A descriptor of its file `lock`, which is locked until it is closed, by death too.

    Raises StoreError where somebody else has held it for `wait_secs`.
    """
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | _SAFELY, 0o600, dir_fd=folder)
    try:
        _lock(fd, path / "lock", wait_secs)
    except (StoreError, OSError):
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path, wait_secs: float) -> None:
    deadline = time.monotonic() + wait_secs
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{path} has been held by another writer for {wait_secs:g} s; try again"
                ) from error
        time.sleep(_LOCK_PAUSE_SECS)


def names_in(folder: int) -> list[str]:
    """What is in it, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def read_file(folder: int, name: str, limit: int) -> bytes:
    """A regular file; raises OSError (FileNotFoundError), and StoreError where it is another."""
    try:
        fd = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
        raise StoreError("it is not a regular file") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError("it is not a regular file")
        content = file.read(min(status.st_size, limit) + 1)  # all of that is allocated
    if len(content) > limit:
        raise StoreError(f"it has more than {limit:,} bytes")
    return content


def write_file(folder: int, name: str, content: bytes) -> None:
    """Make or replace a file, all of it or nothing; on the disk when this returns."""
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=folder)
    try:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):  # it is swept later
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def age_secs(folder: int, entry: str) -> float:
    """Since it was last written to, by the clock of this machine."""
    return time.time() - os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime
