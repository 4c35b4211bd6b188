"""A file that cannot be read, hints that do not come, and how the watch of files ends."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sgl_router.server import watch
from sgl_router.server.watch import FileWatch
from tests.gateway.support import within
from tests.server.watching import (
    NEVER,
    QUICK,
    Heard,
    by_rename,
    failing_watch,
    read,
    watching,
)


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # a socket's path may have 108 bytes
        listener.bind(path.name)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (nothing, "No such file or directory"),
        (Path.mkdir, "it is not a regular file"),
        (a_fifo, "it is not a regular file"),
        (a_socket, "No such device or address"),
        (a_device, "it is not a regular file"),
        (a_link_to_itself, "Too many levels of symbolic links"),
    ],
)
async def test_a_problem_is_told_once(
    tmp_path: Path, by: dict[str, Any], put: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    async with watching(path, b"one", **by) as heard:
        path.unlink()
        put(path)
        await heard.until(lambda: heard.all[-1:] == [f"the file cannot be read: {why}"])
        if by["look_secs"] != NEVER:
            await heard.read_again(3)
        told = len(heard.all)
        if path.is_dir():
            path.rmdir()
        by_rename(path, b"one")
        await heard.until(lambda: heard.all[told:] == [""])
    assert len(set(heard.all)) == len(heard.all), "nothing is told twice"
    assert not [told for told in heard.all if isinstance(told, bytes)]


async def test_other_problems_and_then_other_content(tmp_path: Path) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    reasons = ["Permission denied", "Input/output error"]
    async with watching(path, b"one", **QUICK, look_secs=0.02) as heard:
        for number, reason in enumerate(reasons, 1):

            def fail(_data: bytes, reason: str = reason) -> None:
                raise OSError(5, reason)

            heard.after_read = fail
            path.touch()
            await heard.count(number)
            await heard.read_again(3)
        path.write_bytes(b"two")
        heard.after_read = lambda _data: None
        await heard.count(4)
    assert heard.all == [*(f"the file cannot be read: {why}" for why in reasons), "", b"two"]


async def test_a_change_that_is_not_taken(
    tmp_path: Path, by: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, is not told again until the content changes, and the watch goes on."""
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")

    async def refuse() -> None:
        raise RuntimeError("refused by the test")

    async with watching(path, b"one", **by) as heard:
        heard.during_change = refuse
        path.write_bytes(b"two")
        await heard.count(1)
        await heard.another_read(path.touch)
        path.write_bytes(b"one")
        await heard.count(2)
    assert heard.all == [b"two", b"one"]
    assert "refused by the test" in caplog.text


async def test_no_hints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A neighbour's name that is not UTF-8 ends watchfiles: said once, and looks go on."""
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    async with watching(path, b"one", **QUICK, look_secs=0.02) as heard:
        for number in range(3):
            (tmp_path / os.fsdecode(b"\xff%d" % number)).touch()
            by_rename(path, b"%d" % number)
            await heard.count(number + 1)
        async with asyncio.timeout(10):
            while "cannot watch folders" not in caplog.text:
                await heard.read_again()
    assert heard.all == [b"0", b"1", b"2"]
    assert sum("cannot watch folders" in record.message for record in caplog.records) == 1


async def test_watchfiles_logs_no_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would log each of them at INFO, of every file in the folder."""
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    with caplog.at_level(logging.INFO):
        async with watching(path, b"one", **QUICK, look_secs=NEVER) as heard:
            path.write_bytes(b"two")
            await heard.count(1)
    assert not caplog.records


async def test_limits_are_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    monkeypatch.setattr(watch, "watch", failing_watch)
    async with watching(path, b"one", **QUICK, look_secs=0.02) as heard:
        await heard.read_again(5)  # it has changed lately, so that each look reads it
        path.write_bytes(b"two")
        await heard.count(1)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "No space left on device" in record.message
    assert "max_user_watches" in record.message


async def test_discarded(tmp_path: Path, by: dict[str, Any]) -> None:
    heard = Heard()
    files = FileWatch(heard.change, heard.problem, heard.read, **by)
    paths = [tmp_path / "a.wasm", tmp_path / "b.wasm"]
    loop, discarded = asyncio.get_running_loop(), asyncio.Event()
    for path in paths:
        path.write_bytes(b"one")
        files.add(str(path), sha256(b"one").hexdigest())
    files.start()
    await heard.until(lambda: heard.reads >= 2)

    def discard_while_it_settles(data: bytes) -> None:
        if data == b"two":
            loop.call_soon_threadsafe(files.discard, str(paths[0]))
            loop.call_soon_threadsafe(discarded.set)

    heard.after_read = discard_while_it_settles
    by_rename(paths[0], b"two")
    await within(discarded.wait())
    by_rename(paths[1], b"three")
    await heard.count(1)
    files.add(str(paths[0]), sha256(b"one").hexdigest())
    heard.after_read = lambda _data: None
    await heard.count(2)
    await within(files.stop())
    assert heard.all == [b"three", b"two"], "what changed before it was added is seen, too"


async def test_one_files_change_does_not_hold_up_anothers(
    tmp_path: Path, by: dict[str, Any]
) -> None:
    heard = Heard()
    files = FileWatch(heard.change, heard.problem, read, **by)
    go_on = asyncio.Event()

    heard.during_change = go_on.wait
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
        files.add(str(tmp_path / name), "")
    files.start()
    await heard.count(2)
    assert heard.at_work == 2
    go_on.set()
    await heard.until(lambda: not heard.at_work)
    await within(files.stop())


@pytest.mark.parametrize("when", ["idle", "settling", "at work", "not started"])
async def test_nothing_is_left_when_it_stops(tmp_path: Path, when: str) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    heard = Heard()
    files = FileWatch(
        heard.change,
        heard.problem,
        heard.read,
        look_secs=NEVER,
        settle_secs=NEVER if when == "settling" else 0.0,
        step_ms=10,
    )
    files.add(str(path), sha256(b"one").hexdigest() if when == "idle" else "")
    if when == "at work":
        heard.during_change = asyncio.Event().wait
    if when != "not started":
        files.start()
        await heard.until(lambda: heard.all if when == "at work" else heard.reads)
    await within(files.stop())
    assert set(threading.enumerate()) <= threads
    assert asyncio.all_tasks() <= tasks | {asyncio.current_task()}


async def test_a_file_system_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "STOP_SECS", 0.01)
    asked, answer = threading.Event(), threading.Event()

    def hang(_path: str) -> bytes:
        asked.set()
        answer.wait()
        return b""

    heard = Heard()
    files = FileWatch(heard.change, heard.problem, hang, **QUICK)
    files.add(str(tmp_path / "p.wasm"), "")
    files.start()
    await asyncio.to_thread(asked.wait)
    await within(files.stop())
    answer.set()
    assert "does not answer" in caplog.text
    assert not heard.all


FORGETFUL = """
import asyncio, sys
import uvloop
from sgl_router.server.watch import FileWatch

async def main() -> None:
    read = asyncio.Event()
    loop = asyncio.get_running_loop()
    async def change(path: str, data: bytes, digest: str) -> None:
        read.set()
    files = FileWatch(change, lambda path, why: None, lambda path: b"", settle_secs=0)
    files.add(sys.argv[1], "")
    files.start()
    await read.wait()

uvloop.run(main())
"""


async def test_a_process_ends_that_did_not_stop_it(tmp_path: Path) -> None:
    """As one does that is told a second time to stop."""
    command = [sys.executable, "-c", FORGETFUL, str(tmp_path / "p.wasm")]
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, said = await within(process.communicate())
    assert (process.returncode, said) == (0, b"")
