"""Plugins that fill their directory, and hosts that do: row 39, sizes and numbers."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sgl_router.wasm.private_folder import MAX_DEPTH, MAX_FILES, MAX_FILES_BYTES
from sgl_router.wasm.wasi_open_files import MAX_DESCRIPTORS
from tests.hostile.file_attempts import ATTEMPTS, hostile_in
from tests.wasm.file_calls import CREATE, DATA_AT, DIRECTORY, NO, OUT, READ, TOP, Guest, guest_in

TERABYTE = 1 << 40
MANY = 100_000


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Guest]:
    with hostile_in(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "grow",
    [
        pytest.param(lambda g, fd: g.call("fd_filestat_set_size", fd, TERABYTE), id="39-sparse"),
        pytest.param(lambda g, fd: g.call("fd_allocate", fd, 0, TERABYTE), id="39-allocate"),
        pytest.param(lambda g, fd: g.call("fd_allocate", fd, TERABYTE, 1), id="39-allocate-far"),
        pytest.param(lambda g, fd: g.write(fd, b"x", at=TERABYTE), id="39-sparse-pwrite"),
        pytest.param(
            lambda g, fd: g.call("fd_seek", fd, TERABYTE, 0, OUT) or g.write(fd, b"x"),
            id="39-sparse-write",
        ),
        pytest.param(
            lambda g, fd: g.call("fd_filestat_set_size", fd, MAX_FILES_BYTES - 3),
            id="39-one-byte-too-large",
        ),
    ],
)  # fmt: skip
def test_a_file_does_not_grow_beyond_the_quota(
    hostile: Guest, grow: Callable[[Guest, int], int]
) -> None:
    """Beside the four bytes of `mine`, once they have been seen."""
    fd = hostile.opened("large", CREATE)
    assert hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES + 1) == NO["NOSPC"]
    assert grow(hostile, fd) == NO["NOSPC"]
    assert (hostile.folder / "large").stat().st_size == 0
    assert hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES - 4) == 0
    assert hostile.write(fd, b"over what is there", at=0) == 0
    assert hostile.write(fd, b"x", at=MAX_FILES_BYTES - 4) == NO["NOSPC"]


@pytest.mark.parametrize("files", [pytest.param(MANY, id="39-1e5-small-files")])
def test_many_small_files(hostile: Guest, files: int) -> None:
    """`mine` and `sub` count too, once the directory has been counted."""
    made = 0
    for number in range(files):
        if hostile.open(f"{number:05}", CREATE) == 0:
            assert hostile.call("fd_close", hostile.number()) == 0
            made += 1
    assert MAX_FILES - 2 <= made <= MAX_FILES
    assert len(list(hostile.folder.iterdir())) <= MAX_FILES + 2
    for attempt in ("mkdir", "create", "symlink"):
        assert ATTEMPTS[attempt](hostile, "more") == NO["NOSPC"]
    assert hostile.call("path_unlink_file", TOP, "00000") == 0
    assert hostile.call("path_unlink_file", TOP, "00001") == 0
    assert hostile.call("path_unlink_file", TOP, "00002") == 0
    assert ATTEMPTS["mkdir"](hostile, "more") == 0


@pytest.mark.parametrize("size", [pytest.param(MAX_FILES_BYTES // 4, id="39-unlinked-and-open")])
def test_what_is_unlinked_and_open_counts(hostile: Guest, size: int) -> None:
    answers = []
    for number in range(MAX_DESCRIPTORS - 1):
        fd = hostile.opened(f"{number}", CREATE)
        answers.append(hostile.call("fd_filestat_set_size", fd, size))
        assert hostile.call("path_unlink_file", TOP, f"{number}") == 0
    assert answers == [0] * 4 + [NO["NOSPC"]] * (MAX_DESCRIPTORS - 5)
    assert hostile.call("fd_close", TOP + 1) == 0
    assert hostile.call("fd_filestat_set_size", TOP + 5, size) == NO["NOSPC"], "there is `mine`"
    assert hostile.call("fd_filestat_set_size", TOP + 5, size - 4) == 0


@pytest.mark.parametrize("opened", [pytest.param(10_000, id="39-1e4-descriptors")])
def test_many_descriptors(hostile: Guest, opened: int) -> None:
    answers = [hostile.open("mine") for _ in range(opened)]
    assert answers.count(0) == MAX_DESCRIPTORS - 1
    assert set(answers) == {0, NO["MFILE"]}
    assert descriptors_of(hostile.folder / "mine") == MAX_DESCRIPTORS - 1
    hostile.host.new_instance()
    assert descriptors_of(hostile.folder / "mine") == 0, "they go with the instance"


def descriptors_of(file: Path) -> int:
    """How many this process has."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found += link.readlink() == file
    return found


@pytest.mark.parametrize("levels", [pytest.param(1_000, id="39-depth-1000-by-guest")])
def test_a_guest_makes_no_deep_directories(hostile: Guest, levels: int) -> None:
    fd, made = TOP, 0
    for _ in range(levels):
        if hostile.call("path_create_directory", fd, "d"):
            break
        made += 1
        inner = hostile.opened("d", DIRECTORY, READ, fd)
        assert fd == TOP or hostile.call("fd_close", fd) == 0
        fd = inner
    assert made == MAX_DEPTH


@pytest.mark.parametrize("rounds", [pytest.param(100, id="39-depth-1000-by-renaming")])
def test_what_is_too_deep_to_count_is_full(tmp_path: Path, rounds: int) -> None:
    """Each round makes directories as deep as may be, and moves those before to their end."""
    with guest_in(tmp_path) as hostile:
        hostile.opened("file", CREATE)
        assert sum(deepen(hostile, number) for number in range(rounds)) == MAX_FILES - 1
        assert ATTEMPTS["unlink"](hostile, "file") == 0
        assert ATTEMPTS["mkdir"](hostile, "more") == NO["NOSPC"]
    assert list(tmp_path.iterdir()) == []


def deepen(hostile: Guest, number: int) -> int:
    """How many directories were made."""
    path = f"n{number}"
    for made in range(MAX_DEPTH - 1):
        if ATTEMPTS["mkdir"](hostile, path) == NO["NOSPC"]:
            return made
        end, path = path, f"{path}/d"
    before = f"n{number - 1}"
    assert hostile.call("path_rename", TOP, before, TOP, f"{end}/{before}") == 0 or not number
    return MAX_DEPTH - 1


@pytest.mark.parametrize("levels", [pytest.param(1_000, id="39-depth-1000-by-host")])
def test_a_deep_directory_of_the_hosts(tmp_path: Path, levels: int) -> None:
    with guest_in(tmp_path) as hostile:
        deep(hostile.folder, levels)
        assert hostile.open("/".join("d" * levels)) == NO["NAMETOOLONG"]
        assert hostile.open("/".join("d" * (MAX_DEPTH + 2))) == NO["NAMETOOLONG"]
        fd = hostile.opened("file", CREATE)
        assert hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES) == 0
        assert hostile.write(fd, b"x", at=MAX_FILES_BYTES) == NO["NOSPC"]
    assert list(tmp_path.iterdir()) == []


def deep(folder: Path, levels: int) -> None:
    """Directories in each other, deeper than any path reaches."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.mark.parametrize("files", [pytest.param(MANY, id="39-1e5-files-of-the-host")])
def test_many_files_of_the_hosts(tmp_path: Path, files: int) -> None:
    with guest_in(tmp_path) as hostile:
        for number in range(files):
            os.close(os.open(hostile.folder / f"{number}", os.O_CREAT | os.O_WRONLY))
        assert hostile.call("fd_readdir", TOP, DATA_AT, 4096, 0, OUT) == NO["OVERFLOW"]
        fd = hostile.opened("0")
        assert hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES + 1) == NO["NOSPC"]
        assert hostile.open("more", CREATE) == NO["NOSPC"]
    assert list(tmp_path.iterdir()) == []
