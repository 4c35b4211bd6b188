"""Plugins with files that mean ill, and hosts that do: row 39."""

import asyncio
import errno
import os
import shutil
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_router.core.policy import Choice, PendingChoice
from sgl_router.errors import DecisionError
from sgl_router.wasm import wasi_files
from sgl_router.wasm.offload import MAX_WAITING
from sgl_router.wasm.private_folder import MAX_FILES_BYTES, Place
from sgl_router.wasm.wasi_values import refusal
from tests.hostile.file_attempts import ATTEMPTS, SECRET, hostile_in, tree
from tests.wasm.file_calls import (
    CREATE,
    DATA_AT,
    NO,
    OUT,
    READ,
    TOP,
    TRUNCATE,
    WRITE,
    Guest,
)
from tests.wasm.guests import Bench, guest, request, text_at, view, wasi


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Guest]:
    with hostile_in(tmp_path) as made:
        yield made


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("..", id="39-dots"),
        pytest.param("../secret", id="39-dots-file"),
        pytest.param("../theirs/sub", id="39-dots-directory"),
        pytest.param("../unheard-of", id="39-dots-nothing"),
        pytest.param("sub/../../secret", id="39-dots-after"),
        pytest.param("./sub/..//../secret", id="39-dots-and-slashes"),
        pytest.param("{outer}/secret", id="39-absolute"),
        pytest.param("{folder}/mine", id="39-absolute-own"),
        pytest.param("/tmp/mine", id="39-absolute-as-the-guest-sees-it"),
        pytest.param("//", id="39-root"),
        pytest.param("up/secret", id="39-through-hosts-link-up"),
        pytest.param("out/secret", id="39-through-hosts-link-out"),
        pytest.param("out/sub/../secret", id="39-through-hosts-link-and-dots"),
        pytest.param("sub/up-up/secret", id="39-through-guests-link"),
        pytest.param("mine/../../secret", id="39-dots-after-a-file"),
    ],
)
def test_nothing_outside_is_touched(hostile: Guest, attempt: str, path: str) -> None:
    folder, outer = hostile.folder, hostile.folder.parent
    (folder / "up").symlink_to("..")
    (folder / "out").symlink_to(outer / "theirs")
    assert hostile.call("path_symlink", "../..", TOP, "sub/up-up") == 0
    before = tree(outer, without=folder)
    assert ATTEMPTS[attempt](hostile, path.format(outer=outer, folder=folder)) != 0
    assert tree(outer, without=folder) == before
    assert (folder / "mine").read_text() == "mine"
    assert not (folder / "theirs").exists()


@pytest.mark.parametrize("attempt", ["read", "write", "create", "truncate", "list", "status"])
@pytest.mark.parametrize(
    "target",
    [
        pytest.param("{outer}/secret", id="39-host-link-to-a-file"),
        pytest.param("../secret", id="39-host-link-up"),
        pytest.param("{outer}/unheard-of", id="39-host-link-to-nothing"),
        pytest.param("/dev/zero", id="39-host-link-to-a-device"),
        pytest.param("/proc/self/fd/0", id="39-host-link-to-a-descriptor"),
        pytest.param("link", id="39-host-link-to-itself"),
        pytest.param("link/x", id="39-host-link-through-itself"),
    ],
)
def test_a_link_of_the_hosts_leads_nowhere(hostile: Guest, attempt: str, target: str) -> None:
    folder, outer = hostile.folder, hostile.folder.parent
    (folder / "link").symlink_to(target.format(outer=outer))
    before = tree(outer, without=folder)
    assert ATTEMPTS[attempt](hostile, "link") != 0
    assert tree(outer, without=folder) == before


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/etc/passwd", id="39-guest-link-absolute"),
        pytest.param("/tmp/mine", id="39-guest-link-absolute-own"),
    ],
)
def test_a_guest_makes_no_absolute_link(hostile: Guest, target: str) -> None:
    assert hostile.call("path_symlink", target, TOP, "link") == NO["PERM"]
    assert not (hostile.folder / "link").is_symlink()


@pytest.mark.parametrize(
    "attempt", [pytest.param("moved", id="39-guest-link-moved-to-where-it-leads-out")]
)
def test_a_link_that_is_moved_leads_nowhere(hostile: Guest, attempt: str) -> None:
    """In `sub/sub` it led to `mine`; one directory higher it would lead to the secret."""
    assert hostile.call("path_create_directory", TOP, "sub/sub") == 0
    assert hostile.call("path_symlink", "../../secret", TOP, "sub/sub/link") == 0
    (hostile.folder / "secret").write_text("own")
    fd = hostile.opened("sub/sub/link", rights=READ)
    assert hostile.read(fd) == b"own"
    assert hostile.call("path_rename", TOP, "sub/sub/link", TOP, attempt) == 0
    assert hostile.open(attempt) == NO["PERM"]


@pytest.mark.parametrize("attempt", ["read", "write", "create", "truncate", "times", "link-in"])
@pytest.mark.parametrize("name", [pytest.param("hard", id="39-host-hard-link")])
def test_a_file_that_is_also_elsewhere_is_not_opened(
    hostile: Guest, name: str, attempt: str
) -> None:
    outer = hostile.folder.parent
    os.link(outer / "secret", hostile.folder / name)
    before = tree(outer, without=hostile.folder)
    assert ATTEMPTS[attempt](hostile, name) == NO["PERM"]
    assert tree(outer, without=hostile.folder) == before
    assert hostile.call("path_unlink_file", TOP, name) == 0
    assert (outer / "secret").read_text() == SECRET


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("out", id="39-host-link-late"),
        pytest.param("up/secret", id="39-host-link-late-above"),
    ],
)
def test_a_link_that_takes_the_place_of_what_was_looked_at(
    hostile: Guest, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """There is no link when it is looked for, but when it is opened."""
    (hostile.folder / "out").symlink_to("../secret")
    (hostile.folder / "up").symlink_to("..")
    file = (hostile.folder / "mine").stat()
    monkeypatch.setattr(Place, "_link", lambda _self, _name: None)
    monkeypatch.setattr(Place, "stat", lambda _self: file)
    assert hostile.open(path, rights=READ) in (NO["LOOP"], NO["NOTDIR"])
    assert hostile.open(path, TRUNCATE, WRITE) in (NO["LOOP"], NO["NOTDIR"])
    assert (hostile.folder.parent / "secret").read_text() == SECRET


@pytest.mark.parametrize("rights", [READ, WRITE, READ | WRITE])
@pytest.mark.parametrize("how", [0, CREATE])
@pytest.mark.parametrize(
    "late", [pytest.param(False, id="39-fifo"), pytest.param(True, id="39-fifo-late")]
)
def test_a_fifo_is_refused_at_once(
    hostile: Guest, monkeypatch: pytest.MonkeyPatch, rights: int, how: int, *, late: bool
) -> None:
    """Also where it takes the place of a file after that was looked at."""
    if late:
        file = (hostile.folder / "mine").stat()
        monkeypatch.setattr(Place, "stat", lambda _self: file)
    os.mkfifo(hostile.folder / "fifo")
    assert hostile.open("fifo", how, rights) in (NO["NOTSUP"], NO["NXIO"])


@pytest.mark.parametrize("kind", [pytest.param(stat.S_IFSOCK, id="39-socket")])
def test_a_socket_is_refused(hostile: Guest, kind: int) -> None:
    os.mknod(hostile.folder / "socket", 0o600 | kind)
    assert hostile.open("socket") == NO["NOTSUP"]


# ---- the host's troubles


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        pytest.param(errno.ENOSPC, NO["NOSPC"], id="39-disk-full"),
        pytest.param(errno.EIO, 29, id="39-disk-broken"),
        pytest.param(errno.EMFILE, NO["MFILE"], id="39-router-has-no-descriptors"),
    ],
)
def test_a_disk_in_trouble_is_an_errno(
    hostile: Guest, monkeypatch: pytest.MonkeyPatch, number: int, expected: int
) -> None:
    fd = hostile.opened("mine")

    def fails(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for name in ("open", "mkdir", "write", "pwrite", "ftruncate", "symlink"):
            patch.setattr(os, name, fails)
        answers = [
            hostile.open("mine"),
            hostile.open("new", CREATE),
            hostile.write(fd, b"hello"),
            hostile.write(fd, b"hello", at=100),
            hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES - 4),
            ATTEMPTS["mkdir"](hostile, "new"),
            ATTEMPTS["symlink"](hostile, "new"),
        ]
    assert answers == [expected] * len(answers)
    assert hostile.call("fd_filestat_set_size", fd, MAX_FILES_BYTES) == 0, "nothing was counted"


@pytest.mark.parametrize("name", [pytest.param("mine", id="39-folder-removed")])
def test_the_folder_is_removed_meanwhile(hostile: Guest, name: str) -> None:
    fd = hostile.opened(name)
    shutil.rmtree(hostile.folder)
    assert hostile.read(fd) == b"mine", "what is open stays"
    assert hostile.open(name) == NO["NOENT"]
    for attempt in ("create", "mkdir", "symlink"):
        assert ATTEMPTS[attempt](hostile, "more") == NO["NOENT"]
    assert hostile.call("fd_readdir", TOP, DATA_AT, 4096, 0, OUT) == 0
    hostile.host.new_instance()
    assert hostile.open(name) == NO["NOENT"]


@pytest.mark.parametrize("nanoseconds", [pytest.param(10**18, id="39-poll-oneoff-sleeps")])
def test_a_guest_with_files_does_not_sleep(bench: Bench, nanoseconds: int) -> None:
    subscription = struct.pack("<QB7xIxxxxQQH6x", 7, 0, 0, nanoseconds, 0, 0)
    wasm = guest(
        imports=wasi("poll_oneoff", "i32 i32 i32 i32")
        + wasi("path_create_directory", "i32 i32 i32"),
        extra=text_at(2048, subscription),
        select_worker="""
          (i32.store (i32.const 0) (call $poll_oneoff
            (i32.const 2048) (i32.const 8) (i32.const 1) (i32.const 4)))
          (call $hex (i32.const 0) (i32.const 16))""",
    )
    instance = bench.instance(wasm, allowed_syscalls=["wasi:filesystem", "wasi:clocks"])
    data = bytes.fromhex(instance.select_worker(b"{}", 0, 0).decode())
    assert struct.unpack_from("<IIQ", data) == (0, 1, 7)


# ---- a call of the system that blocks

OPENS = """
  (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 2048) (i32.const 4)
    (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 4)))
  (i32.const 1024)"""


@pytest.mark.parametrize("waiting", [pytest.param(MAX_WAITING, id="39-blocked-call")])
async def test_a_blocked_call_holds_up_its_own_thread_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """As on a disk that does not answer: no deadline ends a call of the system."""
    imports = wasi("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32")
    wasm = guest(imports=imports, select_worker=OPENS, extra=text_at(2048, "mine"))
    policy = await bench.policy(wasm, "blocked", allowed_syscalls=["wasi:filesystem"])
    beside = await bench.policy(guest(), "beside")
    entered, released = threading.Event(), threading.Event()

    def blocks(*_: object) -> None:
        entered.set()
        released.wait()
        raise refusal(errno.EIO)

    monkeypatch.setattr(wasi_files.FilesHost, "_opened", blocks)
    files = policy.current._sandbox._files
    assert files is not None
    (files.folder.path / "mine").touch()
    told: asyncio.Queue[Choice] = asyncio.Queue()
    for _ in range(waiting):
        choice = policy.choose(view(True), request())
        assert isinstance(choice, PendingChoice)
        choice.then = told.put_nowait
    try:
        assert await asyncio.to_thread(entered.wait, 60)
        assert beside.select_worker(view(True), request()) == 0
        assert policy.current.waiting == waiting
        with pytest.raises(DecisionError) as caught:
            policy.choose(view(True), request())
        assert caught.value.kind == "timeout"
        assert told.empty()
    finally:
        released.set()
    for _ in range(waiting):
        await told.get()
    assert policy.current.waiting == 0
