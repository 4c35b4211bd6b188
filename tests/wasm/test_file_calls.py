"""WASI's calls on files, as a guest makes them and what they return."""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.wasm.grants import GROUPS, WASI_MODULE
from sgl_router.wasm.private_folder import MAX_FILES, MAX_FILES_BYTES
from sgl_router.wasm.wasi_types import WASI_TYPES
from sgl_router.wasm.wasi_values import MAX_IO_BYTES, MAX_PATH_BYTES
from tests.wasm.file_calls import (
    CREATE,
    DATA_AT,
    DIRECTORY,
    EXCLUSIVE,
    FOLLOW,
    NO,
    OUT,
    PATHS_AT,
    READ,
    SIZE,
    TOP,
    TRUNCATE,
    WRITE,
    Guest,
    OutOfBounds,
    guest_in,
)
from tests.wasm.guests import Bench, guest, wasi

FILE_KIND, DIRECTORY_KIND, LINK_KIND = 4, 3, 7
APPEND = 1


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Guest]:
    with guest_in(tmp_path) as made:
        yield made


def status(caller: Guest) -> tuple[int, ...]:
    """Device, inode, kind, links, size and three times, as the last call returned them."""
    return struct.unpack_from("<QQB7xQQQQQ", caller.memory.data, OUT)


def names(caller: Guest, fd: int, room: int = 4096) -> list[tuple[bytes, int]]:
    """All names and kinds in a directory, read with a buffer of that size."""
    found: list[tuple[bytes, int]] = []
    cookie = 0
    while True:
        assert caller.call("fd_readdir", fd, DATA_AT, room, cookie, OUT) == 0
        used = caller.number()
        data, at = caller.memory.read(DATA_AT, used), 0
        while at + 24 <= used:
            following, _, size, kind = struct.unpack_from("<QQIB", data, at)
            if at + 24 + size > used:
                break
            found.append((data[at + 24 : at + 24 + size], kind))
            cookie, at = following, at + 24 + size
        if used < room:
            return found


def test_every_function_can_be_linked(bench: Bench) -> None:
    imports = "".join(
        wasi(name, " ".join(signature.params), f"(result {' '.join(signature.results)})")
        for name in (*GROUPS["wasi:filesystem"], *GROUPS["wasi:stdio"])
        for signature in [WASI_TYPES[f"{WASI_MODULE}.{name}"]]
    )
    granted = ["wasi:filesystem", "wasi:stdio"]
    instance = bench.instance(guest(imports=imports), allowed_syscalls=granted)
    assert instance.select_worker(b"{}", 0, 0)


def test_the_first_directory_is_found_by_its_name(caller: Guest) -> None:
    assert caller.call("fd_prestat_get", TOP, OUT) == 0
    assert caller.memory.read(OUT, 8) == struct.pack("<II", 0, 4)
    assert caller.call("fd_prestat_dir_name", TOP, OUT, 4) == 0
    assert caller.memory.read(OUT, 4) == b"/tmp"
    assert caller.call("fd_prestat_dir_name", TOP, OUT, 3) == NO["NAMETOOLONG"]
    for fd in (0, TOP + 1, -1):
        assert caller.call("fd_prestat_get", fd, OUT) == NO["BADF"]


def test_reading_and_writing_go_on_where_they_were(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    assert caller.write(fd, b"hello ") == 0
    assert caller.write(fd, b"world") == 0
    assert caller.call("fd_tell", fd, OUT) == 0
    assert caller.number("<Q") == 11
    assert caller.call("fd_seek", fd, -5, os.SEEK_CUR, OUT) == 0
    assert caller.number("<Q") == 6
    assert caller.read(fd) == b"world"
    assert caller.read(fd) == b""
    assert caller.call("fd_seek", fd, -1, os.SEEK_SET, OUT) == NO["INVAL"]
    assert caller.call("fd_seek", fd, 0, 3, OUT) == NO["INVAL"]


def test_several_vectors(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    caller.memory.write(PATHS_AT, b"abcdef")
    vectors = struct.pack("<6I", PATHS_AT + 3, 3, PATHS_AT, 0, PATHS_AT, 2)
    caller.memory.write(DATA_AT, vectors)
    assert caller.call("fd_write", fd, DATA_AT, 3, OUT) == 0
    assert caller.number() == 5
    assert (caller.folder / "file").read_bytes() == b"defab"
    assert caller.call("fd_pread", fd, DATA_AT, 3, 1, OUT) == 0
    assert caller.number() == 4
    assert caller.memory.read(PATHS_AT, 6) == b"bbcefa"


def test_a_large_write_is_short(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    assert caller.write(fd, b"x" * (MAX_IO_BYTES + 1)) == 0
    assert caller.number() == MAX_IO_BYTES
    assert caller.call("fd_seek", fd, 0, os.SEEK_SET, OUT) == 0
    assert len(caller.read(fd, MAX_IO_BYTES + 1)) == MAX_IO_BYTES


def test_what_is_appended_goes_to_the_end(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    assert caller.write(fd, b"hello") == 0
    assert caller.call("fd_fdstat_set_flags", fd, APPEND) == 0
    assert caller.call("fd_seek", fd, 0, os.SEEK_SET, OUT) == 0
    assert caller.write(fd, b"!") == 0
    assert (caller.folder / "file").read_bytes() == b"hello!"
    assert caller.call("fd_fdstat_get", fd, OUT) == 0
    assert struct.unpack_from("<BxH", caller.memory.data, OUT) == (FILE_KIND, APPEND)


@pytest.mark.parametrize("appends", [False, True])
def test_appending_counts(caller: Guest, *, appends: bool) -> None:
    """Wherever a descriptor that appends stands, what is written comes on top."""
    fd = caller.opened("file", CREATE)
    assert caller.call("fd_filestat_set_size", fd, MAX_FILES_BYTES) == 0
    assert caller.call("fd_fdstat_set_flags", fd, APPEND if appends else 0) == 0
    expected = NO["NOSPC"] if appends else 0
    assert caller.write(fd, b"x") == expected
    assert caller.write(fd, b"x", at=0) == expected
    assert (caller.folder / "file").stat().st_size == MAX_FILES_BYTES


@pytest.mark.parametrize(
    ("rights", "reads", "writes"),
    [(READ, 0, NO["BADF"]), (WRITE, NO["BADF"], 0), (READ | WRITE, 0, 0), (0, 8, 8)],
)
def test_rights(caller: Guest, rights: int, reads: int, writes: int) -> None:
    (caller.folder / "file").touch()
    fd = caller.opened("file", 0, rights)
    caller.memory.write(DATA_AT, struct.pack("<II", PATHS_AT, 1))
    assert caller.call("fd_read", fd, DATA_AT, 1, OUT) == reads
    assert caller.call("fd_pread", fd, DATA_AT, 1, 0, OUT) == reads
    assert caller.write(fd, b"x") == caller.write(fd, b"x", at=0) == writes
    assert caller.call("fd_filestat_set_size", fd, 0) == writes
    assert caller.call("fd_allocate", fd, 0, 10) == writes
    assert caller.call("fd_fdstat_set_rights", fd, READ | WRITE | 1 << 40, 0) == NO["PERM"]
    assert caller.call("fd_fdstat_set_rights", fd, 0, 0) == 0
    assert caller.call("fd_read", fd, DATA_AT, 1, OUT) == NO["BADF"]


@pytest.mark.parametrize(
    ("path", "how", "rights", "errno"),
    [
        ("file", CREATE | EXCLUSIVE, WRITE, "EXIST"),
        ("file", DIRECTORY, READ, "NOTDIR"),
        ("file", TRUNCATE, READ, "INVAL"),
        ("file/", 0, READ, "NOTDIR"),
        ("file/x", 0, READ, "NOTDIR"),
        ("sub", 0, WRITE, "ISDIR"),
        ("sub", CREATE, READ, "ISDIR"),
        ("nothing", 0, READ, "NOENT"),
        ("nothing/x", CREATE, READ, "NOENT"),
        ("nothing", CREATE | DIRECTORY, READ, "INVAL"),
        ("nothing/", CREATE, READ, "INVAL"),
        ("", CREATE, READ, "NOENT"),
        ("n" * 256, CREATE, READ, "NAMETOOLONG"),
        ("n/" * (MAX_PATH_BYTES // 2) + "n", CREATE, READ, "NAMETOOLONG"),
        ("n\0", CREATE, READ, "INVAL"),
        (b"\xff", CREATE, READ, "ILSEQ"),
    ],
)
def test_what_is_not_opened(
    caller: Guest, path: str | bytes, how: int, rights: int, errno: str
) -> None:
    (caller.folder / "file").write_text("text")
    (caller.folder / "sub").mkdir()
    assert caller.open(path, how, rights) == NO[errno]
    assert sorted(entry.name for entry in caller.folder.iterdir()) == ["file", "sub"]
    assert (caller.folder / "file").read_text() == "text"


def test_truncating(caller: Guest) -> None:
    (caller.folder / "file").write_text("text")
    caller.opened("file", TRUNCATE, WRITE)
    assert (caller.folder / "file").read_text() == ""


def test_directories(caller: Guest) -> None:
    assert caller.call("path_create_directory", TOP, "sub") == 0
    assert caller.call("path_create_directory", TOP, "sub") == NO["EXIST"]
    sub = caller.opened("sub", DIRECTORY, READ)
    assert caller.call("path_create_directory", sub, "inner/") == 0
    assert caller.open("../x", CREATE, fd=sub) == NO["PERM"], "not beyond where it begins"
    assert caller.call("path_remove_directory", TOP, "sub") == NO["NOTEMPTY"]
    assert caller.call("path_unlink_file", TOP, "sub") == NO["ISDIR"]
    assert caller.call("path_rename", sub, "inner", TOP, "outer") == 0
    assert caller.call("path_remove_directory", TOP, "sub") == 0
    assert [entry.name for entry in caller.folder.iterdir()] == ["outer"]


@pytest.mark.parametrize("room", [300, 301, 4096])
def test_a_directory_is_read_in_pieces(caller: Guest, room: int) -> None:
    expected = {(b".", DIRECTORY_KIND), (b"..", DIRECTORY_KIND), (b"sub", DIRECTORY_KIND)}
    (caller.folder / "sub").mkdir()
    (caller.folder / "link").symlink_to("sub")
    expected.add((b"link", LINK_KIND))
    for number in range(100):
        (caller.folder / f"{number:03}{'n' * 200}").touch()
        expected.add((f"{number:03}{'n' * 200}".encode(), FILE_KIND))
    found = names(caller, TOP, room)
    assert len(found) == len(expected)
    assert set(found) == expected
    assert names(caller, TOP, room) == found, "from the beginning again"


def test_links(caller: Guest) -> None:
    (caller.folder / "sub").mkdir()
    (caller.folder / "file").write_text("text")
    assert caller.call("path_symlink", "../file", TOP, "sub/link") == 0
    assert caller.read(caller.opened("sub/link", rights=READ)) == b"text"
    assert caller.call("path_readlink", TOP, "sub/link", DATA_AT, 4, OUT) == 0
    assert caller.memory.read(DATA_AT, caller.number()) == b"../f"
    assert caller.call("path_filestat_get", TOP, 0, "sub/link", OUT) == 0
    assert status(caller)[2] == LINK_KIND
    assert caller.call("path_filestat_get", TOP, FOLLOW, "sub/link", OUT) == 0
    assert status(caller)[2] == FILE_KIND
    assert caller.call("path_open", TOP, 0, "sub/link", 0, READ, 0, 0, OUT) == NO["LOOP"]
    assert caller.call("path_unlink_file", TOP, "sub/link") == 0
    assert (caller.folder / "file").exists()


def test_a_status(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    assert caller.write(fd, b"hello") == 0
    caller.next_decision(now_ms=7)
    assert caller.call("fd_filestat_set_times", fd, 5, 0, 1 | 8) == 0
    assert caller.call("fd_filestat_get", fd, OUT) == 0
    by_descriptor = status(caller)
    assert by_descriptor[2:7] == (FILE_KIND, 1, 5, 5, 7_000_000)
    assert caller.call("path_filestat_set_times", TOP, 0, "file", 0, 9, 4) == 0
    assert caller.call("path_filestat_get", TOP, 0, "file", OUT) == 0
    assert status(caller)[2:7] == (FILE_KIND, 1, 5, 5, 9)
    for both in (3, 12):
        assert caller.call("fd_filestat_set_times", fd, 5, 5, both) == NO["INVAL"]
    assert caller.call("fd_filestat_get", 1, OUT) == 0
    assert status(caller)[2] == 2, "a character device"


def test_descriptors(caller: Guest) -> None:
    first, second = caller.opened("first", CREATE), caller.opened("second", CREATE)
    assert (first, second) == (4, 5)
    assert caller.call("fd_renumber", second, first) == 0
    assert caller.write(first, b"x") == 0
    assert (caller.folder / "second").read_bytes() == b"x"
    assert caller.write(second, b"x") == NO["BADF"]
    assert caller.call("fd_renumber", first, second) == NO["BADF"]
    assert caller.call("fd_close", first) == 0
    assert caller.call("fd_close", first) == NO["BADF"]
    assert caller.call("fd_sync", first) == caller.call("fd_advise", first, 0, 0, 0) == NO["BADF"]
    assert caller.call("fd_close", TOP) == 0
    assert caller.open("first") == NO["BADF"]
    caller.host.new_instance()
    assert caller.open("first") == 0


def test_what_was_removed_makes_room(caller: Guest) -> None:
    fd = caller.opened("file", CREATE)
    for _ in range(3):
        assert caller.call("fd_filestat_set_size", fd, MAX_FILES_BYTES) == 0
        assert caller.call("fd_filestat_set_size", fd, 0) == 0
        assert caller.open("file", TRUNCATE) == 0


def test_what_failed_takes_no_room(caller: Guest) -> None:
    for _ in range(2 * MAX_FILES):
        assert caller.call("path_create_directory", TOP, ".") == NO["EXIST"]
        assert caller.call("path_symlink", "x", TOP, ".") == NO["EXIST"]
    assert caller.call("path_create_directory", TOP, "sub") == 0


def test_a_path_beyond_memory_does_nothing(caller: Guest) -> None:
    with pytest.raises(OutOfBounds):
        caller.call("path_create_directory", TOP, SIZE - 1, 2)
    with pytest.raises(OutOfBounds):
        caller.call("path_open", TOP, 0, "file", CREATE, READ, 0, 0, SIZE - 3)
    assert list(caller.folder.iterdir()) == []


# ---- any calls

NUMBERS = st.one_of(
    st.integers(0, 16),
    st.sampled_from([DATA_AT, PATHS_AT, SIZE - 1, SIZE, -1, 1 << 31, -(1 << 31)]),
)
LONG_NUMBERS = st.one_of(NUMBERS, st.integers(-(1 << 63), (1 << 63) - 1))
FUNCTIONS = {
    name: WASI_TYPES[f"{WASI_MODULE}.{name}"].params
    for name in (*GROUPS["wasi:filesystem"], *GROUPS["wasi:stdio"])
}
ANY_CALL = st.sampled_from(sorted(FUNCTIONS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.tuples(
            *[NUMBERS if value == "i32" else LONG_NUMBERS for value in FUNCTIONS[name]],
        ),
    )
)
PATHS = st.lists(st.sampled_from(["..", ".", "a", "b", "out", "", "f"]), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(st.tuples(PATHS, st.integers(0, 3), ANY_CALL), max_size=30),
)
def test_any_calls(
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[tuple[list[str], int, tuple[str, tuple[int, ...]]]],
) -> None:
    """Each answers an errno or faults; nothing outside changes, and the bounds hold."""
    outer = tmp_path_factory.mktemp("outer")
    (outer / "secret").write_text("secret")
    with guest_in(outer) as caller:
        (caller.folder / "out").symlink_to(outer)
        (caller.folder / "a").mkdir()
        for path, fd, (name, args) in calls:
            text = "/".join(path).encode()
            caller.memory.write(PATHS_AT, text)
            given_args = list(args)
            for at in range(len(args) - 1):  # more often a path that is there, and a descriptor
                if args[at] == PATHS_AT:
                    given_args[at + 1] = len(text)
            if fd:
                given_args[0] = fd + 2
            with suppress(OutOfBounds):
                assert 0 <= caller.call(name, *given_args) <= 76
        assert sum(1 for _ in caller.folder.rglob("*")) <= MAX_FILES + 2
        sizes = [entry.lstat().st_size for entry in caller.folder.rglob("*") if entry.is_file()]
        assert sum(sizes) <= MAX_FILES_BYTES
        assert (outer / "secret").read_text() == "secret"
        assert set(outer.iterdir()) == {outer / "secret", caller.folder}
