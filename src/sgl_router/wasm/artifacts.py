"""Compiled plugins on disk, so that a module is compiled once and not at every start.

An artifact is native code: whoever can write one runs as the router. So the folder must belong to
the router's user and nobody else may write to it, and each file begins with an HMAC over its name
and its content (RFC 2104, with SHA-256), under a key that only this user can read. A file that does
not pass counts as absent and is removed.

The cache only saves time. Whatever is wrong with it is a line in the log, never a failure.
"""

import contextlib
import errno
import hashlib
import hmac
import logging
import mmap
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

DEFAULT_MAX_BYTES = 512 * 1024 * 1024
_KEY = "key"
_KEY_BYTES = 32
_MAC_BYTES = 32
_SUFFIX = ".artifact"
_UNFINISHED = "tmp-"
_UNFINISHED_SECS = 3600  # far longer than it takes to write one: its writer is gone

_READ_BYTES = 256 * 1024
"""At a time: other threads run between, which they do not while all of an artifact is copied."""

_KEY_PATTERN = re.compile(r"[0-9a-f]{64}\Z")
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # nothing, a symbolic link, a socket

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """The folder is not to be trusted; the message says why and what to do."""


def default_cache_folder() -> Path | None:
    """Where compiled plugins are kept, or None where this user has no home.

    A service's own folder (CacheDirectory= in systemd.exec(5)) wins, then $XDG_CACHE_HOME, then
    ~/.cache. A path that is not absolute counts as not set (XDG Base Directory Specification).
    """
    service = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if Path(service).is_absolute():
        return Path(service, "compiled")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no $HOME, and the user is not in the system's list
            return None
    return base / "sgl-router" / "compiled" if base.is_absolute() else None


class ArtifactCache:
    """Artifacts by key, in a folder that several processes and threads may share.

    Attributes:
        folder: made at the first `put`, with mode 0700; a symbolic link is refused.
        max_bytes: of all files together; the least recently used go when it is passed.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._told: str | None = None

    def get(self, key: str) -> memoryview | None:
        """What `put` was given for this key (64 hexadecimal digits), or None; the caller's own."""
        name = _file_name(key)
        absent = contextlib.suppress(FileNotFoundError)
        with self._telling("read"), absent, self._opened() as folder:
            artifact = self._read(folder, name)
            if artifact is None:
                _remove(folder, name)
            return artifact
        return None

    def put(self, key: str, artifact: bytes | bytearray) -> None:
        """Keep an artifact for this key (64 hexadecimal digits)."""
        name = _file_name(key)
        if len(artifact) + _MAC_BYTES > self.max_bytes:
            self._tell(
                f"an artifact of {len(artifact):,} bytes is not kept: the cache has at most "
                f"{self.max_bytes:,}"
            )
            return
        with self._telling("write to"):
            _make(self.folder)
            with self._opened() as folder:
                mac = _mac(_secret_or_new(folder), name, artifact)
                unfinished = _write(folder, mac, artifact)
                try:
                    os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    _remove(folder, unfinished)
                    raise
                self._make_room(folder, name, len(mac) + len(artifact))
            self._told = None

    def remove(self, key: str) -> None:
        """Forget an artifact that turned out not to be usable."""
        name = _file_name(key)
        absent = contextlib.suppress(FileNotFoundError)
        with self._telling("write to"), absent, self._opened() as folder:
            _remove(folder, name)

    def _read(self, folder: int, name: str) -> memoryview | None:
        """An artifact whose HMAC is right; None where the file is anything else."""
        secret = _secret(folder)
        if secret is None:
            return None
        file_bytes = _read_own(folder, name, self.max_bytes)
        if file_bytes is None:
            return None
        artifact = file_bytes[_MAC_BYTES:]
        if not hmac.compare_digest(file_bytes[:_MAC_BYTES], _mac(secret, name, artifact)):
            return None
        with self._telling("write to"), contextlib.suppress(FileNotFoundError):
            os.utime(name, dir_fd=folder, follow_symlinks=False)  # used just now
        return artifact

    def _make_room(self, folder: int, newest: str, total: int) -> None:
        """Remove what was used least recently, and what a writer left unfinished.

        `newest`, of `total` bytes, stays.
        """
        found: list[tuple[int, int, str]] = []
        overdue = time.time() - _UNFINISHED_SECS
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(_UNFINISHED) and status.st_mtime < overdue:
                        _remove(folder, entry.name)
                    elif entry.name.endswith(_SUFFIX) and entry.name != newest:
                        found.append((status.st_mtime_ns, status.st_size, entry.name))
        total += sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            if total <= self.max_bytes:
                return
            _remove(folder, name)
            total -= size

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder, by a descriptor that goes on meaning the folder that was checked.

        Raises FileNotFoundError where there is none yet, _Unusable, OSError.
        """
        try:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError as error:  # which is also what a symbolic link gives
            raise _Unusable("it is not a directory, or a symbolic link to one") from error
        try:
            status = os.fstat(fd)
            if status.st_uid != os.geteuid():
                raise _Unusable(
                    f"it belongs to user {status.st_uid}, and this process is user {os.geteuid()}"
                )
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise _Unusable(
                    f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o}, expected "
                    "0700)"
                )
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _telling(self, attempt: str) -> Iterator[None]:
        """What is wrong with the cache goes to the log and ends only what is in this block."""
        try:
            yield
        except _Unusable as error:
            self._tell(
                f"it is not used: {error}; $CACHE_DIRECTORY or $XDG_CACHE_HOME chooses another"
            )
        except OSError as error:
            self._tell(f"could not {attempt} it: {error.strerror or error}")

    def _tell(self, said: str) -> None:
        """A line in the log, unless it is what was said last."""
        if said != self._told:
            self._told = said
            _log.warning("cache of compiled plugins %s: %s", self.folder, said)


def _file_name(key: str) -> str:
    if not _KEY_PATTERN.match(key):
        raise ValueError(f"a key of the cache is 64 hexadecimal digits, not {key[:80]!r}")
    return key + _SUFFIX


def _mac(secret: bytes, name: str, artifact: bytes | bytearray | memoryview) -> bytes:
    """Over the name too, so that one artifact cannot be passed off as another."""
    made = hmac.new(secret, name.encode() + b"\0", hashlib.sha256)
    made.update(artifact)
    return made.digest()


def _secret(folder: int) -> bytes | None:
    """The key of this folder; None where there is none, or none that only we can read."""
    found = _read_own(folder, _KEY, _KEY_BYTES, refused_mode=0o077)
    return bytes(found) if found is not None and len(found) == _KEY_BYTES else None


def _secret_or_new(folder: int) -> bytes:
    """The key of this folder, made if need be. Of several makers one wins, and all use his."""
    if (found := _secret(folder)) is not None:
        return found
    made = secrets.token_bytes(_KEY_BYTES)
    unfinished = _write(folder, made)
    try:
        try:
            os.link(unfinished, _KEY, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            if (found := _secret(folder)) is not None:
                return found
            # What stands there is no key. What was kept under it is worth nothing any more.
            os.replace(unfinished, _KEY, src_dir_fd=folder, dst_dir_fd=folder)
        return made
    finally:
        _remove(folder, unfinished)


def _read_own(folder: int, name: str, most: int, *, refused_mode: int = 0o022) -> memoryview | None:
    """The content of a regular file of ours, of at most `most` bytes; None where it is not one.

    `refused_mode`: bits of its mode that must not be set.
    """
    try:
        fd = os.open(name, _READING, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    with os.fdopen(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & refused_mode or status.st_size > most:
            return None
        content, end = _room(status.st_size), 0
        while end < status.st_size and (count := file.readinto(content[end : end + _READ_BYTES])):
            end += count
    return content[:end]


def _room(size: int) -> memoryview:
    """Fresh memory; unlike a bytearray's it is not written to before, which takes 20 ms for 50 MB
    in which no other thread runs."""
    return memoryview(mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:size]


def _write(folder: int, *parts: bytes | bytearray) -> str:
    """The name of a file that has these bytes and that nobody else knows of."""
    name = _UNFINISHED + secrets.token_hex(16)
    fd = os.open(name, _WRITING, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            for part in parts:
                file.write(part)
    except OSError:
        _remove(folder, name)
        raise
    return name


def _remove(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _make(folder: Path) -> None:
    """Make a folder and those above it, for this user alone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
