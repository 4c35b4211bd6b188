"""The private directory of a plugin with files: who removes it, and where paths in it lead."""

import ctypes
import fcntl
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.wasm.private_folder import Place, PrivateFolder
from tests.conftest import leave_out

MAKES_ONE = """
from sgl_router.wasm.private_folder import PrivateFolder
print(PrivateFolder("plugin").path, flush=True)
input()
"""
REMOVES_ONE = """
import os, tempfile
from sgl_router.wasm.private_folder import PrivateFolder
if os.geteuid() == 0:  # who minds no mode
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
tempfile.tempdir = tempfile.mkdtemp()
folder = PrivateFolder("plugin")
for mode in (0o000, 0o200, 0o444, 0o555):
    os.makedirs(folder.path / f"{mode}" / "inner" / "inmost")
    (folder.path / f"{mode}" / "inner" / "file").touch()
    (folder.path / f"{mode}" / "inner").chmod(mode)
    (folder.path / f"{mode}").chmod(mode)
folder.path.chmod(0)
folder.remove()
os.rmdir(tempfile.tempdir)
print("gone")
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where directories are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_router(parent: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that has made a directory, and the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKES_ONE],
        env={**os.environ, "TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_it_is_private_and_its_name_says_whose(parent: Path) -> None:
    folder = PrivateFolder("my-plugin")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.path.parent == parent
    assert folder.path.name.startswith("sgl-router-files-my-plugin-")
    folder.remove()
    assert list(parent.iterdir()) == []


def test_what_a_killed_router_left_behind_is_removed(parent: Path) -> None:
    with another_router(parent) as (process, left):
        (left / "file").touch()
        PrivateFolder("other").remove()
        assert (left / "file").exists(), "its owner lives"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (left / "file").exists()
        PrivateFolder("other").remove()
        assert not left.exists()


def test_a_router_that_ends_leaves_the_directories_of_others(parent: Path) -> None:
    ours, other = PrivateFolder("plugin"), PrivateFolder("plugin")
    ours.remove()
    assert list(parent.iterdir()) == [other.path]
    other.remove()


@pytest.mark.parametrize(
    "name",
    [
        "sgl-router-files-plugin",
        "sgl-router-files-plugin-abcdefgh.bak",
        "sgl-router-files-plugin-ABCDEFGH",
        "sgl-router-files--x",
        "x-sgl-router-files-plugin-abcdefgh",
        "sgl-router-tests-abcdefgh",
    ],
)
def test_what_has_another_name_is_nobodys(parent: Path, name: str) -> None:
    (parent / name).mkdir()
    PrivateFolder("plugin").remove()
    assert (parent / name).exists()


def test_what_is_no_directory_is_left_alone(parent: Path) -> None:
    elsewhere = parent / "elsewhere"
    (elsewhere / "sub").mkdir(parents=True)
    (parent / "sgl-router-files-plugin-aaaaaaaa").symlink_to(elsewhere)
    (parent / "sgl-router-files-plugin-bbbbbbbb").write_text("text")
    (parent / "sgl-router-files-plugin-cccccccc").symlink_to("nowhere")
    PrivateFolder("plugin").remove()
    assert len(list(parent.iterdir())) == 4
    assert (elsewhere / "sub").exists()


def test_what_is_somebody_elses_is_left_alone(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = parent / "sgl-router-files-plugin-aaaaaaaa"
    theirs.mkdir(0o700)
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr("os.geteuid", lambda: somebody_else)
    PrivateFolder("plugin").remove()
    assert theirs.exists()
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(parent))
    PrivateFolder("plugin").remove()
    assert not theirs.exists(), "it was left alone for its owner only"


def test_one_that_is_taken_while_it_is_made_is_given_up(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another router may take it for a leftover before it is locked."""
    taken = parent / "sgl-router-files-plugin-aaaaaaaa"
    taken.mkdir(0o700)
    lock = os.open(taken, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    gone, good = parent / "gone", parent / "sgl-router-files-plugin-cccccccc"
    good.mkdir(0o700)
    made = iter([str(taken), str(gone), str(good)])
    monkeypatch.setattr("sgl_router.wasm.private_folder._remove_leftovers", lambda _parent: None)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: next(made))
    folder = PrivateFolder("plugin")
    assert folder.path == good
    folder.remove()
    os.close(lock)
    assert taken.exists()


def test_one_that_cannot_be_made_says_why(parent: Path) -> None:
    shutil.rmtree(parent)
    with pytest.raises(FileNotFoundError, match=parent.name):
        PrivateFolder("plugin")


# ---- removed


def test_modes_are_no_obstacle() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", REMOVES_ONE], capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "gone", ran.stderr


def test_nothing_is_removed_through_links(parent: Path) -> None:
    (parent / "theirs" / "sub").mkdir(parents=True)
    folder = PrivateFolder("plugin")
    (folder.path / "sub").mkdir()
    for place in (folder.path, folder.path / "sub"):
        (place / "link").symlink_to(parent / "theirs")
        (place / "up").symlink_to("../..")
        os.mkfifo(place / "fifo")
    folder.remove()
    assert (parent / "theirs" / "sub").exists()
    assert not folder.path.exists()


def test_what_cannot_be_removed_is_a_line_in_the_log(
    parent: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PrivateFolder("plugin")
    (folder.path / "sub").mkdir()

    def busy(*_: object, **__: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", busy)  # as of what is mounted there
        folder.remove()
    assert (folder.path / "sub").exists()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder.path) in record.getMessage()
    assert "busy" in record.getMessage()


def test_one_that_is_gone_already_is_no_trouble(
    parent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = PrivateFolder("plugin")
    shutil.rmtree(folder.path)
    folder.remove()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert list(parent.iterdir()) == []


# ---- where paths lead


class OpenHow(ctypes.Structure):
    """`struct open_how`: openat2(2)."""

    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


OPENAT2, RESOLVE_BENEATH = 437, 0x08


def kernel_finds(top: int, path: bytes, *, follow: bool) -> int | None:
    """The inode that the kernel finds beneath a directory, or None."""
    how = OpenHow(os.O_PATH | (0 if follow else os.O_NOFOLLOW), 0, RESOLVE_BENEATH)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(OPENAT2, top, path, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def we_find(top: int, path: bytes, *, follow: bool) -> int | None:
    try:
        with Place(top, 0, path, follow=follow) as place:
            found = place.stat()
    except OSError:
        return None
    if found is None or (follow and stat.S_ISLNK(found.st_mode)):
        return None
    return found.st_ino


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A directory with links of all kinds."""
    top = tmp_path_factory.mktemp("outer") / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "file").touch()
    (top / "a" / "file").touch()
    links = {
        "in": "a",
        "deep": "a/b",
        "up": "..",
        "out": "/etc",
        "self": "self",
        "ring": "a/back",
        "a/back": "../ring",
        "a/home": "..",
        "a/b/near": "../file",
        "a/b/far": "../../../top/file",
        "to-file": "a/b/near",
        "dangling": "nothing",
    }
    for name, target in links.items():
        (top / name).symlink_to(target)
    fd = os.open(top, os.O_RDONLY)
    if kernel_finds(fd, b"a", follow=True) is None:
        leave_out("this kernel has no openat2, or does not allow it")
    yield fd
    os.close(fd)


NAMES = ("a", "b", "file", "in", "deep", "up", "out", "self", "ring", "back", "home", "near", "far")
ELEMENTS = (*NAMES, "to-file", "dangling", "nothing", ".", "..")


@given(
    elements=st.lists(st.sampled_from([*ELEMENTS, ""]), min_size=1, max_size=8),
    follow=st.booleans(),
)
def test_a_path_leads_where_the_kernel_says(
    maze: int, elements: list[str], *, follow: bool
) -> None:
    path = "/".join(elements).encode()
    if path.endswith(b"/") and not follow:
        path = path.rstrip(b"/") or b"."  # the kernel then follows all the same
    assert we_find(maze, path, follow=follow) == kernel_finds(maze, path, follow=follow), path


@given(elements=st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=12))
def test_nothing_stays_open(maze: int, elements: list[str]) -> None:
    next_fd = os.dup(maze)
    os.close(next_fd)
    we_find(maze, "/".join(elements).encode(), follow=True)
    again = os.dup(maze)
    os.close(again)
    assert again == next_fd, "the lowest that is free is the same"
