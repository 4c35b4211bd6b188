"""The private directory of a plugin with files: made and removed, walked through, and counted.

A guest's path is never given to the kernel as a whole. It is walked element by element from a
descriptor, links are read and never followed by the kernel, and `..` returns to the directory that
was walked through: so a path leads to a name in a directory that is below the one it began in, or
nowhere, whatever is renamed meanwhile.

The owner of a directory holds a lock on it (flock), which ends with its process however that ends,
and which other containers see. So what a router that was killed has left behind is a directory
with such a name that can be locked, and the next one that needs a directory removes it. The lock
also keeps systemd-tmpfiles away from it (tmpfiles.d(5)).
"""

import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

_log = logging.getLogger(__name__)

MAX_FILES_BYTES = 16 * 1024 * 1024
"""Of the sizes of all files, holes included: a policy's tables fit, and where /tmp is memory, fifty
plugins cannot take more of it than a router has to spare."""

MAX_FILES = 1_000
"""Files, directories and links: as many as are counted and removed in some milliseconds."""

MAX_DEPTH = 32
"""Of directories; each level costs a descriptor while a path is walked."""

MAX_STEPS = 256
"""Elements of a path, those of the links that it leads through included."""

_PREFIX = "sgl-router-files-"
_NAME = re.compile(re.escape(_PREFIX) + r"[A-Za-z0-9_-]{1,64}-[a-z0-9_]{8}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o700
_ATTEMPTS = 10
_BATCH = 1_000  # directory entries that are held at once


def refusal(number: int) -> OSError:
    """The error of that `errno`, without the path, which is the guest's."""
    return OSError(number, os.strerror(number))


# ---- made and removed


class PrivateFolder:
    """A directory of one plugin, which nobody else may enter.

    Attributes:
        path: where it is.
        fd: it, opened; valid until it is removed.
    """

    def __init__(self, plugin: str) -> None:
        """Make one, among the system's temporary files, and remove what others left behind there.

        Raises OSError.
        """
        parent = Path(tempfile.gettempdir())
        _remove_leftovers(parent)
        for _ in range(_ATTEMPTS):
            self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{plugin}-", dir=parent))
            fd = _locked(self.path)
            if fd is not None:
                self.fd = fd
                return
        raise OSError(errno.EBUSY, "others remove it before it is locked", self.path)

    def remove(self) -> None:
        """Remove it with all that is in it; what cannot be removed is a line in the log."""
        _remove(self.path, self.fd)
        os.close(self.fd)


def _locked(path: Path) -> int | None:
    """A descriptor of the directory, locked; None where another has it, or has removed it."""
    try:
        fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.lstat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _remove_leftovers(parent: Path) -> None:
    """Remove the directories of this user's whose owner is gone."""
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
    for name in names:
        path = parent / name
        try:
            found = path.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            fd = _locked(path) if ours else None
        except OSError as error:
            _log.debug("%s is left alone: %s", path, error)
            continue
        if fd is not None:
            _log.info("removing %s, which a router left behind", path)
            _remove(path, fd)
            os.close(fd)


def _remove(path: Path, fd: int) -> None:
    try:
        os.fchmod(fd, _MODE)
        _empty(fd)
        path.rmdir()
    except FileNotFoundError:
        _log.info("%s was gone before it was removed", path)
    except OSError as error:
        _log.warning("the private directory %s cannot be removed: %s", path, error)


def _empty(top: int) -> None:
    """Remove all that is in a directory, however deep, with two descriptors."""
    while batch := _some(top):
        for name, is_directory in batch:
            if is_directory:
                _dissolve(top, name)
            else:
                os.unlink(name, dir_fd=top)


def _dissolve(top: int, name: str) -> None:
    """Remove a directory; those that are in it move to the top.

    It is renamed first, which the kernel refuses for what is mounted there: that is not entered.
    """
    gone = secrets.token_hex(16)
    os.rename(name, gone, src_dir_fd=top, dst_dir_fd=top)
    _make_writable(gone, top)
    inner = os.open(gone, _DIRECTORY, dir_fd=top)
    try:
        while batch := _some(inner):
            for entry, is_directory in batch:
                if is_directory:
                    _make_writable(entry, inner)
                    os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
                else:
                    os.unlink(entry, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(gone, dir_fd=top)


def _some(directory: int) -> list[tuple[str, bool]]:
    """Some of its entries: the name, and whether it is a directory."""
    with os.scandir(directory) as entries:
        return [
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in itertools.islice(entries, _BATCH)
        ]


def _make_writable(name: str, parent: int) -> None:
    """Of a directory; by a descriptor, as a name could have become a link."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(fd).st_mode & _MODE != _MODE:
            Path(f"/proc/self/fd/{fd}").chmod(_MODE)
    finally:
        os.close(fd)


# ---- walked through


class Place:
    """Where a path leads: a name in a directory, which need not be there. A context manager.

    Attributes:
        name: of one element; `.` where the path leads to the directory itself.
        must_be_directory: whether the path says so, by `/` or `/.` at its end.
    """

    __slots__ = ("_base_depth", "_held", "_start", "must_be_directory", "name")

    def __init__(self, start: int, depth: int, path: bytes, *, follow: bool) -> None:
        """Walk from an open directory, `depth` levels below the top.

        Raises OSError: EPERM where it leads outside, by `..`, from `/` on, or by such a link.
        """
        self._start = start
        self._base_depth = depth
        self._held: list[int] = []
        self.name = b"."
        self.must_be_directory = path.endswith((b"/", b"/."))
        try:
            self._walk(path, follow=follow)
            found = self.stat() if self.must_be_directory else None
            if found is not None and not stat.S_ISDIR(found.st_mode):
                raise refusal(errno.ENOTDIR)
        except OSError:
            self.close()
            raise

    @property
    def directory(self) -> int:
        """A descriptor of the directory; valid until the place is closed."""
        return self._held[-1] if self._held else self._start

    @property
    def depth(self) -> int:
        """Of the directory; that of the top is 0."""
        return self._base_depth + len(self._held)

    def stat(self) -> os.stat_result | None:
        """Of what is there, a link itself included; None where nothing is. Raises OSError."""
        try:
            return self.existing()
        except FileNotFoundError:
            return None

    def existing(self) -> os.stat_result:
        """As `stat`; raises OSError also where nothing is."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def close(self) -> None:
        """Let go of the directories that were walked through."""
        while self._held:
            os.close(self._held.pop())

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _walk(self, path: bytes, *, follow: bool) -> None:
        if not path:
            raise refusal(errno.ENOENT)
        left = _elements(path)
        for _ in range(MAX_STEPS):
            if not left:
                return
            element = left.pop()
            if element == b"..":
                if not self._held:
                    raise refusal(errno.EPERM)
                os.close(self._held.pop())
            elif not left and not follow:
                self.name = element
            elif (target := self._link(element)) is not None:
                left += _elements(target)
            elif left:
                self._enter(element)
            else:
                self.name = element
        if left:
            raise refusal(errno.ELOOP)

    def _link(self, name: bytes) -> bytes | None:
        """What it leads to, if it is a link."""
        try:
            return os.readlink(name, dir_fd=self.directory)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise

    def _enter(self, name: bytes) -> None:
        if self.depth >= MAX_DEPTH:
            raise refusal(errno.ENAMETOOLONG)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._held.append(os.open(name, flags, dir_fd=self.directory))


def _elements(path: bytes) -> list[bytes]:
    """The last one first. Raises OSError where the path is absolute."""
    if path.startswith(b"/"):
        raise refusal(errno.EPERM)
    return [element for element in reversed(path.split(b"/")) if element not in (b"", b".")]


# ---- counted


class Quota:
    """What a plugin may have in its directory: MAX_FILES entries, MAX_FILES_BYTES in all.

    What is added is added up, what is removed is not taken off: where the sum says that there is no
    room, the directory is counted, if anything may have been removed since the last time.
    """

    def __init__(self, top: int, unnamed: Callable[[], Iterable[int]]) -> None:
        """
        Args:
            top: a descriptor of the directory.
            unnamed: the sizes of files that are open and not in a directory any more.
        """
        self._top = top
        self._unnamed = unnamed
        self._entries = self._bytes = 0
        self._may_be_less = False

    def removed(self) -> None:
        """There may be less than was added up."""
        self._may_be_less = True

    @contextmanager
    def room(self, *, entries: int = 0, size: int = 0) -> Iterator[None]:
        """For what is about to be made, which counts unless that fails.

        Args:
            entries: how many.
            size: the bytes that come on top.

        Raises OSError: ENOSPC where there is no room for it.
        """
        if not self._fits(entries, size) and self._may_be_less:
            self._may_be_less = False
            self._count()
        if not self._fits(entries, size):
            raise refusal(errno.ENOSPC)
        self._entries += entries
        self._bytes += size
        try:
            yield
        except OSError:
            self._entries -= entries
            self._bytes -= size
            raise

    def _fits(self, entries: int, size: int) -> bool:
        """What needs no room always does: a full directory can be worked in."""
        return (not entries or self._entries + entries <= MAX_FILES) and (
            not size or self._bytes + size <= MAX_FILES_BYTES
        )

    def _count(self) -> None:
        """What cannot be counted within bounds is full."""
        self._entries = 0
        self._bytes = sum(self._unnamed())
        try:
            self._add(self._top, 0)
        except OSError as error:
            _log.debug("a private directory cannot be counted: %s", error)
            self._entries, self._bytes = MAX_FILES, MAX_FILES_BYTES

    def _add(self, directory: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise refusal(errno.ENAMETOOLONG)
        with os.scandir(directory) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > MAX_FILES:
                    raise refusal(errno.ENOSPC)
                if not entry.is_dir(follow_symlinks=False):
                    self._bytes += entry.stat(follow_symlinks=False).st_size
                    continue
                inner = os.open(entry.name, _DIRECTORY, dir_fd=directory)
                try:
                    self._add(inner, depth + 1)
                finally:
                    os.close(inner)
