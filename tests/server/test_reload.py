"""Plugins that stand in files: files that change under traffic, and settings that do.

The names of the cases begin with the numbers of the hostile ways to replace a file.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_router.errors import ConfigError, PluginRefused
from sgl_router.policies import shipped_plugins
from sgl_router.wasm.refusals import refusals
from tests.server.support import choosing, engines, plugged, traffic
from tests.server.watching import by_rename
from tests.wasm.guests import guest

Replace = Callable[[Path, bytes], None]

ZERO, ONE = choosing(0), choosing(1)
LONG_ONE = choosing(1, extra='(data (i32.const 16384) "' + "x" * 9_000 + '")')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The plugin `mine`, which chooses the first engine."""
    file = tmp_path / "mine.wasm"
    file.write_bytes(ZERO)
    return file


def in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def in_pieces(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 1000):
            file.write(data[at : at + 1000])


def by_link(path: Path, data: bytes) -> None:
    """As Kubernetes mounts a ConfigMap: the file's folder is a link, and is flipped."""
    folder = path.parent.parent / f"..data-{len(data)}"
    folder.mkdir()
    (folder / path.name).write_bytes(data)
    link = path.parent.parent / "flipped"
    link.symlink_to(folder.name)
    link.rename(path.parent)


@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(by_rename, id="26-by-rename"),
        pytest.param(in_place, id="26-in-place"),
        pytest.param(by_link, id="26-by-link"),
        pytest.param(in_pieces, id="27-in-pieces"),
    ],
)
async def test_a_changed_file_decides_after_exactly_one_reload(
    tmp_path: Path, replace: Replace
) -> None:
    folder = tmp_path / "..data-0"
    folder.mkdir()
    (folder / "mine.wasm").write_bytes(ZERO)
    (tmp_path / "plugins").symlink_to(folder.name)
    path = tmp_path / "plugins" / "mine.wasm"
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk) as sent:
        assert set(sent.engines) == {0}
        replace(path, LONG_ONE)
        await desk.swapped("mine", 1)
        swapped_at = len(sent.engines)
        await sent.more()
        await desk.looked()
        shown = await desk.shown("mine")
        assert (shown["swaps"], shown["stale"]) == (1, None)
        assert shown["current"]["source"] == {"kind": "file", "path": str(path)}
        assert set(sent.engines[swapped_at + 1 :]) == {1}
        assert shown["in_use_as"] == ["regular"]


def test_a_flipped_link_replaces_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "..data-0"
    folder.mkdir()
    (tmp_path / "plugins").symlink_to(folder.name)
    path = tmp_path / "plugins" / "mine.wasm"
    path.write_bytes(b"before")
    by_link(path, b"after")
    assert (path.read_bytes(), (folder / "mine.wasm").read_bytes()) == (b"after", b"before")


def without_data(wasm: bytes) -> bytes:
    """A module cut where its data section begins, so that all but its text is there."""
    at = 8
    while wasm[at] != 11:
        at, size, shift = at + 1, 0, 0
        while True:
            size |= (wasm[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if wasm[at - 1] < 0x80:
                break
        at += size
    return wasm[:at]


@pytest.mark.parametrize(
    ("half", "said"),
    [
        pytest.param(LONG_ONE[: len(LONG_ONE) // 2], "", id="27-half"),
        pytest.param(without_data(ONE), "bad_output", id="27-cut-at-a-section"),
        pytest.param(b"", "empty", id="27-empty"),
        pytest.param(guest(init="(unreachable)"), "trap", id="33-fails-init"),
        pytest.param(guest('{"selected_worker": 7}'), "out_of_range", id="33-fails-the-self-test"),
    ],
)
async def test_what_is_not_whole_never_decides(path: Path, half: bytes, said: str) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk) as sent:
        in_place(path, half)
        await desk.stale("mine", "is not used")
        shown = await desk.shown("mine")
        assert said in shown["stale"]
        assert any(f"[{code}]" in shown["stale"] for code in refusals())
        assert (shown["swaps"], shown["previous"]) == (0, None)
        await sent.more()
        assert set(sent.engines) == {0}
        tried = desk.tried
        os.utime(path, (1, 1))
        await desk.looked()
        assert desk.tried == tried, "it is not tried again until its bytes change"
        in_place(path, ONE)
        await desk.swapped("mine", 1)
        assert (await desk.shown("mine"))["stale"] is None


def removed(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_circle(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    assert not path.exists()


def too_much(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(a_folder, id="28-folder"),
        pytest.param(a_pipe, id="28-pipe"),
        pytest.param(a_socket, id="28-socket"),
        pytest.param(endless, id="28-dev-zero"),
        pytest.param(too_much, id="28-sparse"),
        pytest.param(a_circle, id="29-unreadable"),
        pytest.param(nothing, id="29-deleted"),
    ],
)
async def test_what_is_no_file_leaves_the_last_good_version(
    path: Path, put: Callable[[Path], None]
) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk) as sent:
        removed(path)
        put(path)
        await desk.stale("mine", str(path))
        await sent.more()
        shown = await desk.shown("mine")
        assert (shown["swaps"], set(sent.engines)) == (0, {0})
        removed(path)
        in_place(path, ZERO)
        await desk.stale("mine", "")
        assert (await desk.shown("mine"))["swaps"] == 0, "it is what it was"
        in_place(path, ONE)
        await desk.swapped("mine", 1)


async def test_what_is_not_used_is_not_used_when_it_can_be_read_again_either(path: Path) -> None:
    async with plugged(policy=str(path)) as desk:
        for _ in range(2):
            in_place(path, b"no plugin")
            await desk.stale("mine", "not used")
            removed(path)
            await desk.stale("mine", "cannot be read")


@pytest.mark.parametrize("how", ["30-touched", "30-copied-over", "30-read-again"])
async def test_the_same_bytes_are_no_change(path: Path, how: str) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk:
        before = (await desk.shown("mine"))["current"]
        if how == "30-touched":
            os.utime(path, (1, 1))
        elif how == "30-copied-over":
            by_rename(path, ZERO)
        else:
            status, said = await desk.ask("POST", "/plugins/mine/reload")
            assert (status, said["status"]) == (200, "unchanged")
        await desk.looked()
        shown = await desk.shown("mine")
        assert (shown["swaps"], shown["current"]) == (0, before)


@pytest.mark.parametrize("end", [ZERO, ONE], ids=["31-A-B-A", "31-A-B-A-B"])
async def test_a_hundred_changes_at_once_are_few_reloads(path: Path, end: bytes) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk) as sent:
        for number in range(100):
            by_rename(path, (ZERO, ONE)[number % 2])
        by_rename(path, end)
        digest = desk.digest(end)
        await desk.looked()
        shown = await desk.shown("mine")
        assert shown["current"]["sha256"] == digest
        assert shown["swaps"] <= 3
        await sent.more()
        assert sent.engines[-1] == (0 if end is ZERO else 1)
        assert desk.alive <= 2, "the one that decides and the one before it"


async def test_many_versions_leave_two(path: Path) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk):
        for number in range(40):
            settings = {"config": {"number": number}}
            status, said = await desk.ask("POST", "/plugins/mine/reload", {"settings": settings})
            assert (status, said["status"]) == (200, "replaced")
        assert desk.alive == 2


# ---- a version that fails its first decisions

BODY = b'{"prompt": "%b"}' % (b"x" * 4000)


async def test_what_fails_from_the_start_is_not_tried_again_until_its_bytes_change(
    path: Path,
) -> None:
    """Row 33: neither by a look at the file, nor by settings that are read again."""
    failing = guest(
        select_worker="(if (i32.gt_u (local.get $len) (i32.const 3000)) (then (unreachable)))"
        "(i32.const 1024)"
    )
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk:
        in_place(path, failing)
        await desk.swapped("mine", 1)
        await desk.rejected("mine", BODY)
        assert "rolled back" in (await desk.shown("mine"))["stale"]
        os.utime(path, (1, 1))
        await desk.looked()
        await desk.reload(plugin_config={"mine": {"fallback": "random"}})
        shown = await desk.shown("mine")
        assert shown["current"]["sha256"] == desk.digest(ZERO)
        assert shown["fallback"] == "random", "the settings are taken over all the same"
        assert await desk.placed(BODY) == 0
        in_place(path, ONE)
        await desk.swapped("mine", 4)
        assert await desk.placed(BODY) == 1


# ---- settings that are read again


async def test_changed_settings_are_another_version(path: Path) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk, traffic(desk):
        settings = {"max_execution_time_ms": 77, "config": {"a": 1}, "fallback": "random"}
        await desk.reload(plugin_config={"mine": settings})
        shown = await desk.shown("mine")
        assert shown["current"]["settings"] | settings == shown["current"]["settings"]
        (use,) = (await desk.ask("GET", "/policy"))[1]["policies"]
        assert use["fallback"] == "random"
        await desk.reload(plugin_config={"mine": settings})
        assert (await desk.shown("mine"))["swaps"] == 1, "the same settings are no change"
        await desk.reload(plugin_config=None)
        assert (await desk.shown("mine"))["fallback"] == "power_of_two"


async def test_another_policy_and_another_plugin_are_taken_over(path: Path) -> None:
    other = path.with_name("other.wasm")
    other.write_bytes(ONE)
    async with engines() as urls, plugged(*urls) as desk, traffic(desk):
        await desk.reload(plugin=(str(path), str(other)), policy="other")
        assert await desk.placed() == 1
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 2
        await desk.reload(policy="least_connections")
        assert (await desk.shown("least_connections"))["in_use_as"] == ["regular"]
        by_rename(other, ZERO)
        await desk.swapped("other", 1)


async def test_a_policy_that_was_chosen_meanwhile_stays(path: Path) -> None:
    async with engines() as urls, plugged(*urls, plugin=(str(path),)) as desk:
        await desk.use("mine")
        await desk.reload(plugin_config={"mine": {"fallback": "random"}})
        (use,) = (await desk.ask("GET", "/policy"))[1]["policies"]
        assert use["policy"] == "mine"


async def test_another_path_takes_the_place_of_the_one_before(path: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    other = tmp_path / "new" / "mine.wasm"
    other.write_bytes(ONE)
    async with engines() as urls, plugged(*urls, plugin=(str(path),)) as desk:
        await desk.use("mine")
        await desk.reload(plugin=(str(other),))
        assert await desk.placed() == 1
        assert (await desk.shown("mine"))["current"]["source"]["path"] == str(other)
        by_rename(path, choosing(0, extra="(global i32 (i32.const 1))"))
        await desk.looked()
        assert (await desk.shown("mine"))["swaps"] == 1, "nobody looks there any more"
        by_rename(other, ZERO)
        await desk.swapped("mine", 2)


async def test_settings_of_an_upload_stay(path: Path) -> None:
    async with plugged(plugin=(str(path),)) as desk:
        await desk.put("mine", ONE, {"config": {"a": 1}})
        await desk.reload(plugin_config={"mine": {"config": {"b": 1}}})
        shown = await desk.shown("mine")
        assert shown["current"]["settings"]["config"] == {"a": 1}
        assert shown["current"]["source"]["kind"] == "upload"


async def test_what_cannot_be_taken_over_is_looked_at_again_the_next_time(path: Path) -> None:
    """All that was said then, the policy too, although it is no change against what failed."""
    other = path.with_name("other.wasm")
    other.write_bytes(b"no plugin")
    async with engines() as urls, plugged(*urls, plugin=(str(path),)) as desk:
        with pytest.raises(PluginRefused):
            await desk.reload(plugin=(str(path), str(other)), policy="mine")
        (use,) = (await desk.ask("GET", "/policy"))[1]["policies"]
        assert use["policy"] == "round_robin"
        other.write_bytes(ONE)
        await desk.reload()
        assert (await desk.shown("mine"))["in_use_as"] == ["regular"]
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 2


async def test_a_policy_that_is_not_there_changes_nothing(path: Path) -> None:
    async with engines() as urls, plugged(*urls, policy=str(path)) as desk:
        with pytest.raises(ConfigError):
            await desk.reload(policy="nobody")
        with pytest.raises(ConfigError):
            await desk.reload(policy=str(path), plugin_config={"nobody": {}})
        assert await desk.placed() == 0


async def test_what_was_unloaded_is_loaded_again(path: Path) -> None:
    async with plugged(plugin=(str(path),)) as desk:
        assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200
        await desk.reload()
        assert (await desk.shown("mine"))["swaps"] == 0


async def test_a_shipped_plugin_is_one_after_its_settings_have_changed() -> None:
    assert "weighted_random" in shipped_plugins()
    async with plugged(policy="weighted_random") as desk:
        await desk.reload(plugin_config={"weighted_random": {"fallback": "random"}})
        shown = await desk.shown("weighted_random")
        assert (shown["fallback"], shown["current"]["source"]["kind"]) == ("random", "shipped")


async def test_two_plugins_stand_in_one_file(path: Path) -> None:
    both = {name: {"module_path": str(path)} for name in ("one", "two")}
    async with plugged(plugin_config=both) as desk:
        by_rename(path, ONE)
        for name in both:
            await desk.swapped(name, 1)
        await desk.looked()
        assert {desk.policy(name).swaps for name in both} == {1}
