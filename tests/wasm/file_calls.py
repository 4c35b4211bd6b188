"""The calls of a guest with files, made without a guest."""

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgl_router.wasm.private_folder import PrivateFolder
from sgl_router.wasm.wasi import Memory, do_nothing
from sgl_router.wasm.wasi_files import FilesHost
from sgl_router.wasm.wasi_values import ERRNOS

TOP = 3
OUT = 0  # where calls put what they return
DATA_AT, PATHS_AT, SIZE = 4096, 65_536, 4 << 20
CREATE, DIRECTORY, EXCLUSIVE, TRUNCATE = 1, 2, 4, 8
READ, WRITE = 1 << 1, 1 << 6
FOLLOW = 1
NO = {name: ERRNOS[getattr(errno, f"E{name}")] for name in (
    "ACCES", "BADF", "EXIST", "FAULT", "ILSEQ", "INVAL", "ISDIR", "LOOP", "MFILE", "NAMETOOLONG",
    "NOENT", "NOSPC", "NOTDIR", "NOTEMPTY", "NOTSUP", "NXIO", "OVERFLOW", "PERM",
)}  # fmt: skip


class OutOfBounds(Exception):
    """What a call names is not in the memory."""


class PlainMemory(Memory):
    """Of no guest."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, at: int, size: int) -> bytes:
        at &= 0xFFFFFFFF
        self.check(at, size)
        return bytes(self.data[at : at + size])

    def write(self, at: int, data: bytes) -> None:
        at &= 0xFFFFFFFF
        self.check(at, len(data))
        self.data[at : at + len(data)] = data

    def check(self, at: int, size: int) -> None:
        if size < 0 or at + size > len(self.data):
            raise OutOfBounds


class Guest:
    """Makes calls, and keeps what they return.

    Attributes:
        folder: what the directory of the guest is on the host.
    """

    def __init__(self, host: FilesHost) -> None:
        self.host = host
        self.folder = host.folder.path
        self.memory = PlainMemory()
        self._functions = host._functions()
        self.next_decision()

    def next_decision(self, now_ms: int = 0) -> None:
        self.host.begin(now_ms, 0, do_nothing)

    def call(self, name: str, *args: int | str | bytes) -> int:
        """The errno; a text or bytes are put into memory, their place and size are given."""
        given: list[int] = []
        at = PATHS_AT
        for arg in args:
            if isinstance(arg, int):
                given.append(arg)
                continue
            data = arg.encode() if isinstance(arg, str) else arg
            self.memory.write(at, data)
            given += [at, len(data)]
            at += len(data)
        return self._functions[name](self.memory, *given) or 0

    def number(self, form: str = "<I") -> int:
        """What the last call has returned."""
        found: int = struct.unpack_from(form, self.memory.data, OUT)[0]
        return found

    def open(
        self, path: str | bytes, how: int = 0, rights: int = READ | WRITE, fd: int = TOP
    ) -> int:
        """The errno, links followed; the descriptor is `number()`."""
        return self.call("path_open", fd, FOLLOW, path, how, rights, 0, 0, OUT)

    def opened(self, path: str, how: int = 0, rights: int = READ | WRITE, fd: int = TOP) -> int:
        """The descriptor."""
        assert self.open(path, how, rights, fd) == 0
        return self.number()

    def write(self, fd: int, data: bytes, at: int | None = None) -> int:
        """The errno."""
        self.memory.write(PATHS_AT, data)
        self.memory.write(DATA_AT, struct.pack("<II", PATHS_AT, len(data)))
        if at is None:
            return self.call("fd_write", fd, DATA_AT, 1, OUT)
        return self.call("fd_pwrite", fd, DATA_AT, 1, at, OUT)

    def read(self, fd: int, size: int = 65_536) -> bytes:
        self.memory.write(DATA_AT, struct.pack("<II", PATHS_AT, size))
        assert self.call("fd_read", fd, DATA_AT, 1, OUT) == 0
        return self.memory.read(PATHS_AT, self.number())


@contextmanager
def guest_in(parent: Path) -> Iterator[Guest]:
    """A guest whose directory is in that one, and is removed in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(parent))
        host = FilesHost("plugin", PrivateFolder("plugin"))
    host.new_instance()
    try:
        yield Guest(host)
    finally:
        host.close()
