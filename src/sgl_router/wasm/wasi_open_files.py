"""What a plugin has open: WASI's calls on its descriptors, and on what is in its files."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from sgl_router.wasm.private_folder import PrivateFolder, Quota
from sgl_router.wasm.wasi import CHARACTER_DEVICE, STDIO, Memory, WasiHost
from sgl_router.wasm.wasi_values import gathered, kind_of, put_status, refusal, scatter

GUEST_FOLDER = b"/tmp"  # the one directory that a guest sees
MAX_DESCRIPTORS = 32
"""Open at a time, the first directory included: each is one of the router's, as is a connection."""

FIRST: Final = 3  # the descriptor of the directory that is open from the start
APPEND = 1  # of a descriptor's flags
RIGHT_TO_READ, RIGHT_TO_WRITE = 1 << 1, 1 << 6
ALL_RIGHTS = (1 << 28) - 1  # but on sockets
_ACCESS_TIME, _ACCESS_NOW, _MODIFIED_TIME, _MODIFIED_NOW = 1, 2, 4, 8


class OpenFile:
    """A file or directory that a guest has open; `listing` is what `fd_readdir` goes through."""

    __slots__ = ("depth", "fd", "listing", "rights")

    def __init__(self, fd: int, rights: int, depth: int | None = None) -> None:
        """`depth` below the top, of a directory only."""
        self.fd, self.rights, self.depth = fd, rights, depth
        self.listing: list[tuple[bytes, int, int]] = []  # name, inode, kind


class OpenFiles(WasiHost):
    """A plugin's WASI calls on descriptors; they raise OSError. `FilesHost` has the others.

    The instances of a sandbox are used one after the other: each begins with one descriptor open.
    """

    def __init__(self, plugin: str, folder: PrivateFolder) -> None:
        super().__init__(plugin)
        self.folder = folder
        self._open: dict[int, OpenFile] = {}
        self._quota = Quota(folder.fd, self._unnamed)

    def new_instance(self) -> None:
        """The next call is another instance's. Raises OSError."""
        self._close_all()
        self._open[FIRST] = OpenFile(os.dup(self.folder.fd), ALL_RIGHTS, depth=0)

    def close(self) -> None:
        """Remove the directory; there are no calls any more."""
        self._close_all()
        self.folder.remove()

    def begin(self, now_ms: int, entropy: int, stop: Callable[[], None]) -> None:
        super().begin(now_ms, entropy, stop)
        self._quota.removed()  # by somebody else, since the last decision

    def _close_all(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1].fd)

    # ---- descriptors

    def _any(self, fd: int) -> OpenFile:
        if (found := self._open.get(fd)) is None:
            raise refusal(errno.EBADF)
        return found

    def _file(self, fd: int, right: int = 0) -> OpenFile:
        found = self._any(fd)
        if found.depth is not None or found.rights & right != right:
            raise refusal(errno.EBADF)
        return found

    def _unnamed(self) -> Iterator[int]:
        for found in self._open.values():
            status = os.fstat(found.fd)
            if found.depth is None and not status.st_nlink:
                yield status.st_size

    def _close(self, _memory: Memory, fd: int) -> None:
        os.close(self._any(fd).fd)
        del self._open[fd]
        self._quota.removed()

    def _renumber(self, _memory: Memory, fd: int, to: int) -> None:
        found, before = self._any(fd), self._any(to)
        if fd != to:
            os.close(before.fd)
            self._open[to] = found
            del self._open[fd]
            self._quota.removed()

    def _prestat_get(self, memory: Memory, fd: int, out: int) -> None:
        self._first(fd)
        memory.write(out, struct.pack("<II", 0, len(GUEST_FOLDER)))

    def _prestat_dir_name(self, memory: Memory, fd: int, at: int, size: int) -> None:
        self._first(fd)
        if size & 0xFFFFFFFF < len(GUEST_FOLDER):
            raise refusal(errno.ENAMETOOLONG)
        memory.write(at, GUEST_FOLDER)

    def _first(self, fd: int) -> None:
        if fd != FIRST or self._any(fd).depth != 0:
            raise refusal(errno.EBADF)

    def _fdstat_get(self, memory: Memory, fd: int, out: int) -> None:
        found = self._any(fd)
        kind = kind_of(os.fstat(found.fd).st_mode)
        flags = APPEND if fcntl.fcntl(found.fd, fcntl.F_GETFL) & os.O_APPEND else 0
        inherited = 0 if found.depth is None else ALL_RIGHTS
        memory.write(out, struct.pack("<BxHxxxxQQ", kind, flags, found.rights, inherited))

    def _filestat_get(self, memory: Memory, fd: int, out: int) -> None:
        if fd in STDIO:
            memory.write(out, struct.pack("<16xB47x", CHARACTER_DEVICE))
        else:
            put_status(memory, out, os.fstat(self._any(fd).fd))

    def _fdstat_set_flags(self, _memory: Memory, fd: int, flags: int) -> None:
        """Not to block, and to synchronise, are no differences here."""
        append = os.O_APPEND if flags & APPEND else 0
        fcntl.fcntl(self._file(fd).fd, fcntl.F_SETFL, os.O_NONBLOCK | append)

    def _fdstat_set_rights(self, _memory: Memory, fd: int, base: int, _inherited: int) -> None:
        """They can only be given up."""
        found = self._any(fd)
        if base & ~found.rights:
            raise refusal(errno.EPERM)
        found.rights = base

    # ---- what is in files

    def _advise(self, _memory: Memory, fd: int, *_advice: int) -> None:
        self._file(fd)

    def _synchronise(self, _memory: Memory, fd: int) -> None:
        self._any(fd)

    def _read(self, memory: Memory, fd: int, vectors: int, count: int, out: int) -> None:
        found = self._file(fd, RIGHT_TO_READ)
        scatter(memory, vectors, count, out, partial(os.read, found.fd))

    def _read_at(self, memory: Memory, fd: int, *args: int) -> None:
        vectors, count, at, out = args
        found = self._file(fd, RIGHT_TO_READ)
        scatter(memory, vectors, count, out, lambda size: os.pread(found.fd, size, at))

    def _write(self, memory: Memory, fd: int, vectors: int, count: int, out: int) -> None:
        file = self._file(fd, RIGHT_TO_WRITE).fd
        data = gathered(memory, vectors, count)
        appends = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND
        at = os.fstat(file).st_size if appends else os.lseek(file, 0, os.SEEK_CUR)
        with self._quota.room(size=_growth(file, at + len(data) if data else 0)):
            written = os.write(file, data)
        memory.write(out, struct.pack("<I", written))

    def _write_at(self, memory: Memory, fd: int, *args: int) -> None:
        vectors, count, at, out = args
        file = self._file(fd, RIGHT_TO_WRITE).fd
        data = gathered(memory, vectors, count)
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_APPEND:  # pwrite(2): Linux then appends
            at = os.fstat(file).st_size
        with self._quota.room(size=_growth(file, at + len(data) if data else 0)):
            written = os.pwrite(file, data, at)
        memory.write(out, struct.pack("<I", written))

    def _seek(self, memory: Memory, fd: int, offset: int, whence: int, out: int) -> None:
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise refusal(errno.EINVAL)
        memory.write(out, struct.pack("<Q", os.lseek(self._file(fd).fd, offset, whence)))

    def _allocate(self, _memory: Memory, fd: int, at: int, size: int) -> None:
        """The bytes count from now on; blocks of the disk are not taken for them."""
        if at < 0 or size <= 0:
            raise refusal(errno.EINVAL)
        file = self._file(fd, RIGHT_TO_WRITE).fd
        with self._quota.room(size=_growth(file, at + size)):
            os.ftruncate(file, max(at + size, os.fstat(file).st_size))

    def _set_size(self, _memory: Memory, fd: int, size: int) -> None:
        file = self._file(fd, RIGHT_TO_WRITE).fd
        with self._quota.room(size=_growth(file, size)):
            os.ftruncate(file, size)
        self._quota.removed()

    def _set_times(self, _memory: Memory, fd: int, accessed: int, modified: int, how: int) -> None:
        file = self._any(fd).fd
        os.utime(file, ns=self._times(os.fstat(file), accessed, modified, how))

    def _times(
        self, before: os.stat_result, accessed: int, modified: int, how: int
    ) -> tuple[int, int]:
        """Access and modification, in nanoseconds; "now" is the decision's time."""
        if how & 3 == 3 or how & 12 == 12 or min(accessed, modified) < 0:
            raise refusal(errno.EINVAL)
        now = self._now_ns
        if not how & _ACCESS_TIME:
            accessed = now if how & _ACCESS_NOW else before.st_atime_ns
        if not how & _MODIFIED_TIME:
            modified = now if how & _MODIFIED_NOW else before.st_mtime_ns
        return accessed, modified


def _growth(file: int, end: int) -> int:
    return max(0, end - os.fstat(file).st_size)
