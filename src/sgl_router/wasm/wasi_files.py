"""WASI's calls on files, on one private directory, within a quota.

wasmtime's own would do as far as the sandbox goes. But a guest could fill the disk with them; they
wait for whoever else opens a FIFO, and no deadline ends a system call; and with them each store has
an executor of its own. These come to the same where a plugin means well (WASI preview 1 and its
rights), and differ in what a plugin has no use for:

- only regular files and directories are opened: never a FIFO, a socket or a device;
- a file with a second name is not opened, and none is made: one name may be outside;
- nothing is synchronised with the disk: the directory does not outlive the router.
"""

import errno
import itertools
import os
import stat
import struct
from functools import partial

from sgl_router.wasm.private_folder import MAX_DEPTH, MAX_FILES, Place
from sgl_router.wasm.wasi import STDIO, Memory, WasiFunction
from sgl_router.wasm.wasi_open_files import (
    ALL_RIGHTS,
    APPEND,
    FIRST,
    MAX_DESCRIPTORS,
    RIGHT_TO_READ,
    RIGHT_TO_WRITE,
    OpenFile,
    OpenFiles,
)
from sgl_router.wasm.wasi_values import answer, kind_of, put_status, refusal, text

_CREATE, _IS_DIRECTORY, _EXCLUSIVE, _TRUNCATE = 1, 2, 4, 8
_FILE_RIGHTS = sum(1 << bit for bit in (0, 2, 3, 4, 5, 7, 8, 21, 22, 23, 27))  # and those two


class FilesHost(OpenFiles):
    """A plugin's WASI calls, those on files included."""

    def _functions(self) -> dict[str, WasiFunction]:
        stdio = super()._functions()
        either: dict[str, WasiFunction] = {
            "fd_write": self._write,
            "fd_read": self._read,
            "fd_close": self._close,
            "fd_seek": self._seek,
            "fd_fdstat_get": self._fdstat_get,
            "fd_fdstat_set_flags": self._fdstat_set_flags,
            "fd_prestat_get": self._prestat_get,
            "fd_prestat_dir_name": self._prestat_dir_name,
        }
        files: dict[str, WasiFunction] = {
            "fd_advise": self._advise,
            "fd_allocate": self._allocate,
            "fd_datasync": self._synchronise,
            "fd_fdstat_set_rights": self._fdstat_set_rights,
            "fd_filestat_get": self._filestat_get,
            "fd_filestat_set_size": self._set_size,
            "fd_filestat_set_times": self._set_times,
            "fd_pread": self._read_at,
            "fd_pwrite": self._write_at,
            "fd_readdir": self._readdir,
            "fd_renumber": self._renumber,
            "fd_sync": self._synchronise,
            "fd_tell": lambda m, fd, out: self._seek(m, fd, 0, os.SEEK_CUR, out),
            "path_create_directory": self._create_directory,
            "path_filestat_get": self._path_filestat_get,
            "path_filestat_set_times": self._path_set_times,
            "path_link": self._refuse,
            "path_open": self._path_open,
            "path_readlink": self._readlink,
            "path_remove_directory": self._remove_directory,
            "path_rename": self._rename,
            "path_symlink": self._symlink,
            "path_unlink_file": self._unlink,
        }
        both = {name: partial(_by_descriptor, stdio[name], file) for name, file in either.items()}
        return stdio | {name: partial(answer, file) for name, file in (both | files).items()}

    def _place(self, memory: Memory, fd: int, at: int, size: int, *, follow: bool = False) -> Place:
        """Where the guest's path leads, from an open directory."""
        start = self._any(fd)
        if start.depth is None:
            raise refusal(errno.ENOTDIR)
        return Place(start.fd, start.depth, text(memory, at, size), follow=follow)

    def _path_open(self, memory: Memory, fd: int, *args: int) -> None:
        lookup, path, size, how, rights, _inherited, flags, out = args
        memory.write(out, bytes(4))  # a fault before anything is done
        if len(self._open) >= MAX_DESCRIPTORS:
            raise refusal(errno.EMFILE)
        with self._place(memory, fd, path, size, follow=bool(lookup & 1)) as place:
            opened = self._opened(place, how, rights, flags)
        number = next(number for number in itertools.count(FIRST) if number not in self._open)
        self._open[number] = opened
        memory.write(out, struct.pack("<I", number))

    def _opened(self, place: Place, how: int, rights: int, flags: int) -> OpenFile:
        reads, writes = bool(rights & RIGHT_TO_READ), bool(rights & RIGHT_TO_WRITE)
        access = os.O_RDWR if reads and writes else os.O_WRONLY if writes else os.O_RDONLY
        access |= os.O_APPEND if flags & APPEND else 0
        if how & _TRUNCATE and not writes:
            raise refusal(errno.EINVAL)
        directory_wanted = place.must_be_directory or how & _IS_DIRECTORY
        found = place.stat()
        if found is None:
            if not how & _CREATE:
                raise refusal(errno.ENOENT)
            if directory_wanted:
                raise refusal(errno.EINVAL)
            with self._quota.room(entries=1):
                fd = _open(place, access | os.O_CREAT | os.O_EXCL)
        else:
            if how & _CREATE and how & _EXCLUSIVE:
                raise refusal(errno.EEXIST)
            if stat.S_ISDIR(found.st_mode):
                if writes or how & _CREATE:
                    raise refusal(errno.EISDIR)
                depth = place.depth + (place.name != b".")
                return OpenFile(_open(place, os.O_DIRECTORY), ALL_RIGHTS, depth)
            if directory_wanted:
                raise refusal(errno.ENOTDIR)
            _check_file(found)
            fd = _open(place, access)
        opened = OpenFile(fd, _FILE_RIGHTS | rights & (RIGHT_TO_READ | RIGHT_TO_WRITE))
        try:
            _check_file(os.fstat(fd))  # what is there may have been replaced
            if how & _TRUNCATE:
                os.ftruncate(fd, 0)
                self._quota.removed()
        except OSError:
            os.close(fd)
            raise
        return opened

    def _refuse(self, *_: object) -> None:
        raise refusal(errno.EPERM)

    def _create_directory(self, memory: Memory, fd: int, path: int, size: int) -> None:
        with self._place(memory, fd, path, size) as place:
            if place.depth >= MAX_DEPTH:
                raise refusal(errno.ENAMETOOLONG)
            with self._quota.room(entries=1):
                os.mkdir(place.name, 0o700, dir_fd=place.directory)

    def _symlink(self, memory: Memory, target: int, target_size: int, *args: int) -> None:
        fd, path, size = args
        leads_to = text(memory, target, target_size)
        if leads_to.startswith(b"/"):
            raise refusal(errno.EPERM)
        with (
            self._place(memory, fd, path, size) as place,
            self._quota.room(entries=1, size=len(leads_to)),
        ):
            os.symlink(leads_to, place.name, dir_fd=place.directory)

    def _readlink(self, memory: Memory, fd: int, *args: int) -> None:
        path, size, at, room, out = args
        with self._place(memory, fd, path, size) as place:
            leads_to = os.readlink(place.name, dir_fd=place.directory)
        shown = leads_to[: room & 0xFFFFFFFF]
        memory.write(at, shown)
        memory.write(out, struct.pack("<I", len(shown)))

    def _unlink(self, memory: Memory, fd: int, path: int, size: int) -> None:
        with self._place(memory, fd, path, size) as place:
            os.unlink(place.name, dir_fd=place.directory)
        self._quota.removed()

    def _remove_directory(self, memory: Memory, fd: int, path: int, size: int) -> None:
        with self._place(memory, fd, path, size) as place:
            os.rmdir(place.name, dir_fd=place.directory)
        self._quota.removed()

    def _rename(self, memory: Memory, fd: int, *args: int) -> None:
        path, size, to_fd, to_path, to_size = args
        with (
            self._place(memory, fd, path, size) as old,
            self._place(memory, to_fd, to_path, to_size) as new,
        ):
            os.rename(old.name, new.name, src_dir_fd=old.directory, dst_dir_fd=new.directory)
        self._quota.removed()

    def _path_filestat_get(self, memory: Memory, fd: int, *args: int) -> None:
        lookup, path, size, out = args
        with self._place(memory, fd, path, size, follow=bool(lookup & 1)) as place:
            put_status(memory, out, place.existing())

    def _path_set_times(self, memory: Memory, fd: int, *args: int) -> None:
        lookup, path, size, accessed, modified, how = args
        with self._place(memory, fd, path, size, follow=bool(lookup & 1)) as place:
            found = place.existing()
            if not stat.S_ISDIR(found.st_mode):
                _check_file(found)
            times = self._times(found, accessed, modified, how)
            os.utime(place.name, ns=times, dir_fd=place.directory, follow_symlinks=False)

    def _readdir(self, memory: Memory, fd: int, *args: int) -> None:
        """As much as fits, the last entry cut; a cookie is the number of entries before."""
        at, size, cookie, out = args
        found = self._any(fd)
        if found.depth is None:
            raise refusal(errno.ENOTDIR)
        if cookie == 0:
            found.listing = _listing(found.fd)
        if cookie < 0:
            raise refusal(errno.EINVAL)
        room = size & 0xFFFFFFFF
        shown = bytearray()
        for number, (name, inode, kind) in enumerate(found.listing[cookie:], start=cookie + 1):
            if len(shown) >= room:
                break
            shown += struct.pack("<QQIBxxx", number, inode, len(name), kind) + name
        memory.write(at, bytes(shown[:room]))
        memory.write(out, struct.pack("<I", min(len(shown), room)))


def _by_descriptor(
    stdio: WasiFunction, file: WasiFunction, memory: Memory, fd: int, *rest: int
) -> int | None:
    return (stdio if fd in STDIO else file)(memory, fd, *rest)


def _open(place: Place, how: int) -> int:
    """Never waits: a FIFO that has taken the place of a file is opened at once, and refused."""
    flags = how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(place.name, flags, 0o600, dir_fd=place.directory)


def _check_file(found: os.stat_result) -> None:
    """Raises OSError but for a regular file that has one name."""
    if stat.S_ISLNK(found.st_mode):
        raise refusal(errno.ELOOP)
    if not stat.S_ISREG(found.st_mode):
        raise refusal(errno.ENOTSUP)
    if found.st_nlink > 1:
        raise refusal(errno.EPERM)


def _listing(directory: int) -> list[tuple[bytes, int, int]]:
    """Raises OSError: EOVERFLOW where others have put more there than a plugin may have."""
    own = os.fstat(directory).st_ino  # also for `..`, which is not shown
    found = [(b".", own, kind_of(stat.S_IFDIR)), (b"..", own, kind_of(stat.S_IFDIR))]
    with os.scandir(directory) as entries:
        for entry in itertools.islice(entries, MAX_FILES + 1):
            mode = entry.stat(follow_symlinks=False).st_mode
            found.append((os.fsencode(entry.name), entry.inode(), kind_of(mode)))
    if len(found) - 2 > MAX_FILES:
        raise refusal(errno.EOVERFLOW)
    return found
