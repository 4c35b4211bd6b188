"""A file is replaced, in whatever way, or half written: what is told of it, and how often."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.server import watch
from tests.gateway.support import until, within
from tests.server.watching import NEVER, QUICK, by_rename, failing_watch, watching


def keeping_its_times(path: Path, data: bytes) -> None:
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def anew(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def flip(link: Path, target: str) -> None:
    beside = link.with_name("..data_tmp")
    beside.symlink_to(target)
    beside.rename(link)


def config_map(folder: Path, data: bytes) -> None:
    """As the kubelet does it: a folder for each version, and one link that is flipped."""
    version = folder / f"..{data.decode()}"
    version.mkdir(parents=True)
    (version / "p.wasm").write_bytes(data)
    link, old = folder / "..data", None
    if link.is_symlink():
        old = folder / link.readlink()
    flip(link, version.name)
    if old is not None:
        shutil.rmtree(old)


def other_folder(path: Path, data: bytes) -> None:
    beside = path.parent.with_name("beside")
    beside.mkdir()
    (beside / path.name).write_bytes(data)
    path.parent.rename(path.parent.with_name(f"before {data.decode()}"))
    beside.rename(path.parent)


@pytest.mark.parametrize(
    "replace", [by_rename, Path.write_bytes, keeping_its_times, anew], ids=lambda f: f.__name__
)
async def test_a_file_is_replaced(
    tmp_path: Path, by: dict[str, Any], replace: Callable[[Path, bytes], object]
) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    async with watching(path, b"one", **by) as heard:
        for number, data in enumerate([b"two", b"six", b"one"], 1):
            replace(path, data)
            await heard.count(number)
    assert heard.all == [b"two", b"six", b"one"]


async def test_a_config_map_is_updated(tmp_path: Path, by: dict[str, Any]) -> None:
    config_map(tmp_path, b"one")
    (tmp_path / "p.wasm").symlink_to("..data/p.wasm")
    async with watching(tmp_path / "p.wasm", b"one", **by) as heard:
        for number, data in enumerate([b"two", b"three", b"four"], 1):
            config_map(tmp_path, data)
            await heard.count(number)
    assert heard.all == [b"two", b"three", b"four"]


async def test_a_link_elsewhere_on_the_way_is_flipped(tmp_path: Path, by: dict[str, Any]) -> None:
    for name in ("one", "two"):
        (tmp_path / "versions" / name / "sub").mkdir(parents=True)
        (tmp_path / "versions" / name / "sub/p.wasm").write_bytes(name.encode())
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "current").symlink_to("../versions/one")
    (tmp_path / "plugins").symlink_to(tmp_path / "far" / "current")
    path = tmp_path / "plugins/sub/../sub/p.wasm"
    async with watching(path, b"one", **by) as heard:
        flip(tmp_path / "far" / "current", "../versions/two")
        await heard.count(1)
        (tmp_path / "versions/two/sub/p.wasm").write_bytes(b"in the other folder")
        await heard.count(2)
    assert heard.all == [b"two", b"in the other folder"]


async def test_hints_come_from_where_the_links_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def recording(*paths: str, **options: Any) -> Iterator[object]:
        asked.append({str(Path(path).relative_to(tmp_path)) for path in paths})
        return watchfiles.watch(*paths, **options)

    monkeypatch.setattr(watch, "watch", recording)
    config_map(tmp_path, b"one")
    (tmp_path / "p.wasm").symlink_to("..data/p.wasm")
    async with watching(tmp_path / "p.wasm", b"one", **QUICK, look_secs=NEVER) as heard:
        config_map(tmp_path, b"two")
        await heard.count(1)
        await until(lambda: asked[-1] == {".", "..two"}, lambda: asked)
    assert asked[0] == {".", "..one"}


async def test_a_look_sees_more_than_size_and_time_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "watch", failing_watch)
    monkeypatch.setattr(watch, "RACY_NS", 0)
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    async with watching(path, b"one", **QUICK, look_secs=0.02) as heard:
        before = path.stat()
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # its steps may be milliseconds
            keeping_its_times(path, b"two")
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        await heard.count(1)
    assert heard.all == [b"two"]


async def test_its_folder_is_replaced(tmp_path: Path, by: dict[str, Any]) -> None:
    path = tmp_path / "plugins/p.wasm"
    path.parent.mkdir()
    path.write_bytes(b"one")
    async with watching(path, b"one", **by) as heard:
        other_folder(path, b"two")
        await heard.until(lambda: b"two" in heard.all)
        path.write_bytes(b"in the other folder")
        await heard.until(lambda: b"in the other folder" in heard.all)


async def test_a_folder_is_missing_at_first(
    tmp_path: Path, by: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with watching("plugins/p.wasm", b"one", **by) as heard:
        await heard.count(1)
        (tmp_path / "plugins").mkdir()
        (tmp_path / "plugins/p.wasm").write_bytes(b"one")
        await heard.count(2)
    assert heard.all == ["the file cannot be read: No such file or directory", ""]


async def test_a_half_file_is_not_told(tmp_path: Path, by: dict[str, Any]) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    rest = [b"second", b" third", b" fourth"]

    def write_on(data: bytes) -> None:
        if data.startswith(b"first") and rest:
            with path.open("ab") as file:
                file.write(rest.pop(0))

    async with watching(path, b"one", **by) as heard:
        heard.after_read = write_on
        path.write_bytes(b"first ")
        await heard.count(1)
    assert heard.all == [b"first second third fourth"]


async def test_the_same_content_is_not_told(tmp_path: Path, by: dict[str, Any]) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    async with watching(path, b"one", **by) as heard:
        for touch in (path.touch, lambda: by_rename(path, b"one"), lambda: path.chmod(0o600)):
            await heard.another_read(touch)
        path.write_bytes(b"two")
        await heard.count(1)
    assert heard.all == [b"two"]


async def test_what_is_put_back_while_it_settles_is_not_told(
    tmp_path: Path, by: dict[str, Any]
) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    put_back = asyncio.Event()
    loop = asyncio.get_running_loop()

    def restore(data: bytes) -> None:
        if data == b"two":
            by_rename(path, b"one")
        elif path.read_bytes() == b"one":
            loop.call_soon_threadsafe(put_back.set)

    async with watching(path, b"one", **by) as heard:
        by_rename(path, b"two")
        heard.after_read = restore
        await within(put_back.wait())
        heard.after_read = lambda _data: None
        by_rename(path, b"three")
        await heard.count(1)
    assert heard.all == [b"three"]


async def test_many_changes_are_one(tmp_path: Path, by: dict[str, Any]) -> None:
    path = tmp_path / "p.wasm"
    path.write_bytes(b"one")
    go_on = asyncio.Event()
    async with watching(path, b"one", **by) as heard:
        heard.during_change = go_on.wait
        by_rename(path, b"two")
        await heard.count(1)
        tasks = len(asyncio.all_tasks())
        for number in range(100):
            by_rename(path, f"changed {number}".encode())
            await asyncio.sleep(0.001)  # so that it is hinted at many times
            assert len(asyncio.all_tasks()) <= tasks + 1, "a look's, at most"
        go_on.set()
        await heard.count(2)
        await heard.until(lambda: not heard.at_work)
    assert heard.all == [b"two", b"changed 99"]
    assert heard.most_at_work == 1


@settings(max_examples=20)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["rename", "in place", "delete", "touch", "folder"]),
            st.sampled_from([b"one", b"two", b"three"]),
            st.integers(0, 30),
        ),
        max_size=12,
    )
)
async def test_the_last_content_is_told_last(steps: list[tuple[str, bytes, int]]) -> None:
    """Whatever happens: only what was written whole, nothing twice in a row, the newest at last."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.wasm"
        path.write_bytes(b"one")
        async with watching(path, b"one", **QUICK, look_secs=0.05) as heard:
            for action, data, pause_ms in steps:
                if path.is_dir():
                    path.rmdir()
                if action == "rename":
                    by_rename(path, data)
                elif action == "in place":
                    path.write_bytes(data)
                elif action == "touch":
                    path.touch()
                else:
                    path.unlink(missing_ok=True)
                    if action == "folder":
                        path.mkdir()
                await asyncio.sleep(pause_ms / 1000)
            if path.is_dir():
                path.rmdir()
            by_rename(path, b"last")
            await heard.until(lambda: heard.all[-1:] == [b"last"])
        contents = [told for told in heard.all if isinstance(told, bytes)]
        problems = [told for told in heard.all if isinstance(told, str)]
        assert all(a != b for a, b in zip([b"one", *contents], contents, strict=False))
        # An empty file stands still too, where a touch follows a deletion.
        assert set(contents) <= {b"one", b"two", b"three", b"last", b""}
        assert all(a != b for a, b in zip(["", *problems], problems, strict=False))
        assert not problems or problems[-1] == "", "none is left at the end"
        assert heard.most_at_work <= 1
