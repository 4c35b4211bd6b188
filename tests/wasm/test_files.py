"""The group `wasi:filesystem`: one private directory, and nothing outside it."""

import asyncio
import errno
import gc
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest

from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import Bench, guest, request, text_at, view, wasi

GRANTS = ["wasi:filesystem", "wasi:stdio"]
OPEN = wasi("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32")
IMPORTS = OPEN + "".join(
    [
        wasi("fd_write", "i32 i32 i32 i32"),
        wasi("fd_pread", "i32 i32 i32 i64 i32"),
        wasi("path_symlink", "i32 i32 i32 i32 i32"),
        wasi("path_rename", "i32 i32 i32 i32 i32 i32"),
    ]
)
READ_WRITE = 2 | 64
CREATE = 1

# Creates the file named by the input, writes 5 bytes, reads them back; answers three errnos
# (0, 8, 16) and the bytes that were read (128).
WRITE_AND_READ = f"""
  (i32.store (i32.const 0) (call $path_open (i32.const 3) (i32.const 0)
    (local.get $ptr) (local.get $len) (i32.const {CREATE})
    (i64.const {READ_WRITE}) (i64.const {READ_WRITE}) (i32.const 0) (i32.const 4)))
  (i32.store (i32.const 64) (i32.const 2048)) (i32.store (i32.const 68) (i32.const 5))
  (i32.store (i32.const 72) (i32.const 128)) (i32.store (i32.const 76) (i32.const 5))
  (i32.store (i32.const 8)
    (call $fd_write (i32.load (i32.const 4)) (i32.const 64) (i32.const 1) (i32.const 12)))
  (i32.store (i32.const 16) (call $fd_pread
    (i32.load (i32.const 4)) (i32.const 72) (i32.const 1) (i64.const 0) (i32.const 20)))
  (call $hex (i32.const 0) (i32.const 133))"""

# Opens what the input names, links followed, with the flags given; answers the errno.
OPENS = """
  (i32.store (i32.const 0) (call $path_open (i32.const {fd}) (i32.const 1)
    (local.get $ptr) (local.get $len) (i32.const {flags})
    (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 4)))
  (call $hex (i32.const 0) (i32.const 4))"""


def instance_of(bench: Bench, body: str) -> Instance:
    wasm = guest(imports=IMPORTS, select_worker=body, extra=text_at(2048, "hello"))
    return bench.instance(wasm, allowed_syscalls=GRANTS, max_execution_time_ms=5_000)


def opening(bench: Bench, *, flags: int = 0, rights: int = 2, fd: int = 3) -> Instance:
    return instance_of(bench, OPENS.format(fd=fd, flags=flags, rights=rights))


def answer(instance: Instance, path: str | Path) -> int:
    """What opening the path gives."""
    return int.from_bytes(
        bytes.fromhex(instance.select_worker(str(path).encode(), 0, 0).decode()), "little"
    )


def folder_of(instance: Instance) -> Path:
    """The host's folder behind the guest's /tmp."""
    files = instance._sandbox._files
    assert files is not None
    return files.folder.path


def folder_of_policy(policy: WasmPolicy) -> Path:
    files = policy.current._sandbox._files
    assert files is not None
    return files.folder.path


def test_a_guest_writes_and_reads_a_file(bench: Bench) -> None:
    instance = instance_of(bench, WRITE_AND_READ)
    data = bytes.fromhex(instance.select_worker(b"note.txt", 0, 0).decode())
    assert [data[at] for at in (0, 8, 16)] == [0, 0, 0]
    assert [data[at] for at in (12, 20)] == [5, 5]
    assert data[128:] == b"hello"
    assert (folder_of(instance) / "note.txt").read_bytes() == b"hello"


def test_the_folder_is_private(bench: Bench) -> None:
    one, other = opening(bench), opening(bench)
    assert folder_of(one) != folder_of(other)
    assert stat.S_IMODE(folder_of(one).stat().st_mode) == 0o700


@pytest.mark.parametrize("rights", [2, READ_WRITE])
@pytest.mark.parametrize("flags", [0, CREATE])
def test_nothing_outside_is_opened(bench: Bench, tmp_path: Path, flags: int, rights: int) -> None:
    instance = opening(bench, flags=flags, rights=rights)
    folder = folder_of(instance)
    outside = tmp_path / "secret"
    outside.write_text("secret")
    (folder / "inside").write_text("fine")
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "sub").mkdir()
    assert answer(instance, "inside") == 0
    assert answer(instance, "sub/../inside") == 0
    for path in (
        "../x",
        "..",
        "sub/../../x",
        "/etc/passwd",
        "/tmp/inside",
        outside,
        "link",
        "up/x",
        "up",
    ):
        assert answer(instance, path) != 0, path
    assert outside.read_text() == "secret"
    assert not (folder.parent / "x").exists()
    assert not instance.poisoned


def test_a_link_that_the_guest_made_leads_nowhere(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    body = f"""
      (drop (call $path_symlink (local.get $ptr) (local.get $len) (i32.const 3)
        (i32.const 2048) (i32.const 5)))
      (i32.store (i32.const 0) (call $path_open (i32.const 3) (i32.const 1)
        (i32.const 2048) (i32.const 5) (i32.const 0)
        (i64.const {READ_WRITE}) (i64.const 0) (i32.const 0) (i32.const 4)))
      (call $hex (i32.const 0) (i32.const 4))"""
    instance = instance_of(bench, body)
    assert answer(instance, tmp_path / "secret") != 0
    (folder_of(instance) / "hello").unlink(missing_ok=True)
    assert answer(instance, "../../../../../../etc/passwd") != 0


def test_only_one_directory_is_open(bench: Bench) -> None:
    for fd in (0, 1, 2, 4, 5, -1):
        assert answer(opening(bench, fd=fd, flags=CREATE), "x") != 0


def test_the_folder_goes_with_the_plugin(bench: Bench) -> None:
    instance = opening(bench, flags=CREATE)
    assert answer(instance, "x") == 0
    folder = folder_of(instance)
    assert folder.is_dir()
    del instance
    gc.collect()
    assert not folder.exists()


async def test_a_folder_stays_while_a_policy_is_held(bench: Bench) -> None:
    policy = await bench.policy(guest(), allowed_syscalls=GRANTS)
    folder = folder_of_policy(policy)
    bench.factory.unload_wasm_plugin("plugin")
    await asyncio.sleep(0)  # the event loop holds what the load gave until it goes on
    gc.collect()
    assert os.access(folder, os.W_OK)
    assert policy.select_worker(view(True), request()) == 0
    del policy
    gc.collect()
    assert not os.access(folder, os.F_OK)


async def test_a_refused_plugin_leaves_no_folder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = bench.folder / "folders"
    folders.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folders))
    with pytest.raises(PluginRefused, match="unreachable"):
        await bench.policy(guest(init="(unreachable)"), allowed_syscalls=GRANTS)
    await asyncio.sleep(0)
    gc.collect()
    assert list(folders.iterdir()) == []


async def test_a_folder_that_somebody_removed_costs_no_decision(bench: Bench) -> None:
    """Calls on files answer errnos; what a plugin decides without them stands."""
    policy = await bench.policy(guest(), allowed_syscalls=GRANTS)
    assert policy.select_worker(view(True), request()) == 0
    shutil.rmtree(folder_of_policy(policy))
    policy.current._guest.instance = None  # as after a trap
    assert policy.select_worker(view(True), request()) == 0


async def test_without_descriptors_a_decision_fails_and_the_next_is_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await bench.policy(guest(), allowed_syscalls=GRANTS)
    policy.current._guest.instance = None

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("os.dup", none_left)
        with pytest.raises(DecisionError, match="Too many open files") as caught:
            policy.select_worker(view(True), request())
    assert caught.value.kind == "trap"
    assert policy.select_worker(view(True), request()) == 0


def test_what_is_printed_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    body = """
      (i32.store (i32.const 64) (local.get $ptr)) (i32.store (i32.const 68) (local.get $len))
      (i32.store (i32.const 0)
        (call $fd_write (i32.const 2) (i32.const 64) (i32.const 1) (i32.const 8)))
      (call $hex (i32.const 0) (i32.const 4))"""
    assert answer(instance_of(bench, body), "hello\n\x1b") == 0
    assert [record.getMessage()[-6:] for record in caplog.records] == [" hello", ": \\x1b"]
