"""What WASI's calls on files take from a guest's memory and put there, and their errnos."""

import errno
import os
import stat
import struct
from collections.abc import Callable

from sgl_router.wasm.wasi import CHARACTER_DEVICE, IO, MAX_IO_VECTORS, Memory, WasiFunction

MAX_IO_BYTES = 1024 * 1024
"""Read or written by one call; what is more is a short read or write, as anywhere."""

MAX_PATH_BYTES = 1024

_KINDS = {
    stat.S_IFBLK: 1,
    stat.S_IFCHR: CHARACTER_DEVICE,
    stat.S_IFDIR: 3,
    stat.S_IFREG: 4,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_UNKNOWN_KIND = 0  # a FIFO, for example: WASI has no number for it

# By their places in WASI's list, the first of which is 1; the others there are of capabilities.
_ERRNO_NAMES = (
    "2BIG ACCES ADDRINUSE ADDRNOTAVAIL AFNOSUPPORT AGAIN ALREADY BADF BADMSG BUSY CANCELED CHILD "
    "CONNABORTED CONNREFUSED CONNRESET DEADLK DESTADDRREQ DOM DQUOT EXIST FAULT FBIG HOSTUNREACH "
    "IDRM ILSEQ INPROGRESS INTR INVAL IO ISCONN ISDIR LOOP MFILE MLINK MSGSIZE MULTIHOP "
    "NAMETOOLONG NETDOWN NETRESET NETUNREACH NFILE NOBUFS NODEV NOENT NOEXEC NOLCK NOLINK NOMEM "
    "NOMSG NOPROTOOPT NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTRECOVERABLE NOTSOCK NOTSUP NOTTY "
    "NXIO OVERFLOW OWNERDEAD PERM PIPE PROTO PROTONOSUPPORT PROTOTYPE RANGE ROFS SPIPE SRCH STALE "
    "TIMEDOUT TXTBSY XDEV"
)
ERRNOS = {
    getattr(errno, f"E{name}"): number
    for number, name in enumerate(_ERRNO_NAMES.split(), start=1)
    if hasattr(errno, f"E{name}")
}
"""WASI's numbers for the system's."""


def answer(function: WasiFunction, memory: Memory, *args: int) -> int | None:
    """The errno of a function that raises OSError."""
    try:
        return function(memory, *args)
    except OSError as error:
        return ERRNOS.get(error.errno or 0, IO)


def refusal(number: int) -> OSError:
    """What is raised for `answer` to give that number of the system's."""
    return OSError(number, os.strerror(number))


def kind_of(mode: int) -> int:
    """WASI's kind of a file with that mode."""
    return _KINDS.get(stat.S_IFMT(mode), _UNKNOWN_KIND)


def put_status(memory: Memory, at: int, status: os.stat_result) -> None:
    """As WASI's `filestat`."""
    memory.write(
        at,
        struct.pack(
            "<QQB7xQQQQQ",
            status.st_dev,
            status.st_ino,
            kind_of(status.st_mode),
            status.st_nlink,
            status.st_size,
            *(time & 0xFFFFFFFFFFFFFFFF for time in (status.st_atime_ns, status.st_mtime_ns)),
            status.st_ctime_ns & 0xFFFFFFFFFFFFFFFF,
        ),
    )


def text(memory: Memory, at: int, size: int) -> bytes:
    """A path. Raises OSError where it is not one."""
    if size & 0xFFFFFFFF > MAX_PATH_BYTES:
        raise refusal(errno.ENAMETOOLONG)
    path = memory.read(at, size)
    if b"\0" in path:
        raise refusal(errno.EINVAL)
    try:
        path.decode()
    except UnicodeDecodeError:
        raise refusal(errno.EILSEQ) from None
    return path


def gathered(memory: Memory, vectors: int, count: int) -> bytes:
    """What the vectors hold, up to MAX_IO_BYTES. Raises OSError where there are too many."""
    left, parts = MAX_IO_BYTES, []
    for at, size in _vectors(memory, vectors, count):
        parts.append(memory.read(at, min(size, left)))
        left -= len(parts[-1])
    return b"".join(parts)


def scatter(
    memory: Memory, vectors: int, count: int, out: int, read: Callable[[int], bytes]
) -> None:
    """Read up to MAX_IO_BYTES into the vectors, and put how many that were at `out`."""
    parts = _vectors(memory, vectors, count)
    data = read(min(sum(size for _, size in parts), MAX_IO_BYTES))
    done = 0
    for at, size in parts:
        memory.write(at, data[done : done + size])
        done += size
    memory.write(out, struct.pack("<I", len(data)))


def _vectors(memory: Memory, vectors: int, count: int) -> list[tuple[int, int]]:
    if not 0 <= count <= MAX_IO_VECTORS:
        raise refusal(errno.EINVAL)
    found = list(struct.iter_unpack("<II", memory.read(vectors, 8 * count)))
    for at, size in found:
        memory.check(at, size)
    return [(at, size) for at, size in found]
