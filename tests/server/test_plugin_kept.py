"""What a router that starts again finds of the plugins that were sent to the one before it."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sgl_router.wasm.store import PluginStore
from tests.gateway.support import settle, until, within
from tests.server.support import PATIENT, Desk, choosing, engines, plugged
from tests.server.watching import by_rename
from tests.wasm.guests import guest

ANOTHER = choosing(0, sections={"version": b"2"})


class Shop:
    """Routers one after the other, with one store.

    Attributes:
        store: the store's folder.
        file: where the plugin `mine` stands, where it stands in a file.
    """

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.file = folder / "mine.wasm"

    @asynccontextmanager
    async def open(self, *, file: bool = False, **settings: Any) -> AsyncIterator[Desk]:
        """A router that decides by `mine`, which must be there."""
        if file:
            settings["plugin"] = (str(self.file),)
        async with (
            engines() as urls,
            plugged(*urls, store=self.store, policy="mine", **settings) as desk,
        ):
            yield desk

    async def first(self, *versions: bytes) -> None:
        """A router to which these are sent."""
        async with plugged(store=self.store) as desk:
            for wasm in versions:
                assert (await desk.put("mine", wasm))[0] in (200, 201)

    def refuse_writing(self) -> None:
        """Root may write whatever the mode, but nobody makes a file in a file."""
        self.store.parent.mkdir(exist_ok=True)
        self.store.write_bytes(b"")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


async def test_what_was_sent_last_is_found_again_and_what_was_before_it(shop: Shop) -> None:
    settings = PATIENT | {"config": {"a": [1, 2]}, "allowed_syscalls": ["wasi:clocks"]}
    async with plugged(store=shop.store) as desk:
        await desk.put("mine", choosing(0), settings)
        await desk.put("mine", choosing(1), {"fallback": "random"})
        before = await desk.shown("mine")
    async with shop.open() as desk:
        shown = await desk.shown("mine")
        assert shown["current"]["sha256"] == before["current"]["sha256"]
        assert shown["current"]["settings"] == before["current"]["settings"]
        assert (shown["current"]["source"]["kind"], shown["fallback"]) == ("upload", "random")
        assert await desk.placed() == 1
        status, said = await desk.ask("POST", "/plugins/mine/rollback")
        assert (status, said["current"]["sha256"]) == (200, before["previous"]["sha256"])
        assert said["current"]["settings"] == before["previous"]["settings"]
        assert await desk.placed() == 0
    async with shop.open() as desk:
        assert await desk.placed() == 0, "a rollback is found again too"
        for worker in (1, 0):
            assert (await desk.ask("POST", "/plugins/mine/rollback"))[0] == 200
            assert await desk.placed() == worker
        _, said = await desk.put("mine", choosing(0))
        assert said["status"] == "unchanged"


async def test_what_was_unloaded_is_not_found_again(shop: Shop) -> None:
    await shop.first(choosing(0), choosing(1))
    async with plugged(store=shop.store) as desk:
        assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200
    async with plugged(store=shop.store) as desk:
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 0


async def test_nothing_is_kept_where_that_is_said(shop: Shop) -> None:
    async with plugged(store="none") as desk:
        await desk.put("mine", choosing(0))
        await desk.put("mine", choosing(1))
        assert (await desk.ask("POST", "/plugins/mine/rollback"))[0] == 200
    async with plugged(store="none") as desk:
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 0


async def test_what_is_damaged_is_told_of_and_the_rest_is_loaded(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async with plugged(store=shop.store) as desk:
        for name, index in (("cut", 0), ("gone", 1), ("changed", 0), ("mine", 0)):
            await desk.put(name, choosing(index, sections={"of": name.encode()}))
        digest = {name: desk.policy(name).current.digest for name in ("gone", "changed")}
    (shop.store / "plugins" / "cut.json").write_bytes(b'{"vers')
    (shop.store / "modules" / f"{digest['gone']}.wasm").unlink()
    (shop.store / "modules" / f"{digest['changed']}.wasm").write_bytes(choosing(1))
    caplog.set_level(logging.ERROR, "sgl_router")
    async with plugged(store=shop.store) as desk:
        said = (await desk.ask("GET", "/plugins"))[1]["plugins"]
        assert [plugin["name"] for plugin in said] == ["mine"]
        for name in ("cut", "gone", "changed"):
            assert any(name in record.getMessage() for record in caplog.records), name
            assert (await desk.put(name, choosing(1)))[0] == 201, "sent again, it is whole"
    caplog.clear()
    async with plugged(store=shop.store) as desk:
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 4
    assert not caplog.records


async def test_what_is_not_to_be_loaded_any_more_is_told_of(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.first(choosing(0))
    PluginStore(shop.store).put("no_plugin", b"\0asm\1\0\0\0", {}, now_ms=1)
    PluginStore(shop.store).put("odd", choosing(1), {"unknown": 1}, now_ms=1)
    async with shop.open() as desk:
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 1
        for name in ("no_plugin", "odd"):
            assert f"{name} is not loaded" in caplog.text


async def test_a_store_that_cannot_be_written_refuses_and_the_version_before_goes_on(
    shop: Shop,
) -> None:
    shop.file.write_bytes(choosing(1))
    shop.refuse_writing()
    async with shop.open(file=True) as desk:
        status, said = await desk.put("mine", choosing(0))
        assert (status, said["error"]["code"]) == (500, "plugin_store_failed")
        assert str(shop.store) in said["error"]["message"]
        assert (await desk.shown("mine"))["swaps"] == 0
        assert await desk.placed() == 1
        status, said = await desk.put("other", choosing(0))
        assert (status, said["error"]["code"]) == (500, "plugin_store_failed")
        assert (await desk.ask("GET", "/plugins/other"))[0] == 404


async def test_what_cannot_be_forgotten_is_not_unloaded(shop: Shop, tmp_path: Path) -> None:
    await shop.first(choosing(1))
    async with shop.open() as desk:
        await desk.use("round_robin")
        aside = shop.store.rename(tmp_path / "aside")
        shop.refuse_writing()
        status, said = await desk.ask("DELETE", "/plugins/mine")
        assert (status, said["error"]["code"]) == (500, "plugin_store_failed")
        await desk.use("mine")
        assert await desk.placed() == 1
        await desk.use("round_robin")
        shop.store.unlink()
        aside.rename(shop.store)
        assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200


async def test_a_rollback_happens_although_it_cannot_be_kept(shop: Shop, tmp_path: Path) -> None:
    """Who returns to what has worked needs it now; the error says what a restart would find."""
    await shop.first(choosing(0))
    async with shop.open() as desk:
        await desk.put("mine", choosing(1))
        shop.store.rename(tmp_path / "aside")
        shop.refuse_writing()
        status, said = await desk.ask("POST", "/plugins/mine/rollback")
        assert (status, said["error"]["code"]) == (500, "plugin_store_failed")
        assert await desk.placed() == 0


# ---- of a plugin that stands in a file too, the newer one decides


async def test_an_upload_takes_the_place_of_a_file_until_that_changes(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.put("mine", choosing(1))
        assert await desk.placed() == 1
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 1, "the file has not changed"
        by_rename(shop.file, ANOTHER)
        await desk.swapped("mine", 2)
        assert await desk.placed() == 0
        assert (await desk.shown("mine"))["current"]["source"]["kind"] == "file"
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 0


async def test_a_file_that_changed_while_no_router_ran_is_newer(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.put("mine", choosing(1))
    by_rename(shop.file, ANOTHER)
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 0
        await desk.put("mine", choosing(1))
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 1


async def test_a_rollback_goes_from_an_upload_to_the_file_and_back(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.put("mine", choosing(1))
        for worker in (0, 1, 0, 1):
            status, said = await desk.ask("POST", "/plugins/mine/rollback")
            assert (status, await desk.placed()) == (200, worker), said
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 1
        assert (await desk.ask("POST", "/plugins/mine/rollback"))[0] == 200
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 0


async def test_a_rollback_from_a_changed_file_to_an_upload_is_found_again(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.put("mine", choosing(1))
        by_rename(shop.file, ANOTHER)
        await desk.swapped("mine", 2)
        status, said = await desk.ask("POST", "/plugins/mine/rollback")
        assert (status, await desk.placed()) == (200, 1), said
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 1


async def test_what_is_sent_after_its_file_was_unloaded_is_found_again(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.use("round_robin")
        assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200
        assert (await desk.put("mine", choosing(1)))[0] == 201
    async with shop.open(file=True) as desk:
        assert await desk.placed() == 1


async def test_a_file_that_changes_while_it_is_unloaded_is_loaded_by_nobody(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.use("round_robin")
        await desk.ask("DELETE", "/plugins/mine")
        by_rename(shop.file, ANOTHER)
        assert (await desk.put("mine", choosing(1)))[0] == 201
        await desk.use("mine")
        assert await desk.placed() in (0, 1), "whichever was seen last"


# ---- what fails from the start


def failing() -> bytes:
    """A plugin that passes its trial and fails on every request that has a body."""
    return guest(
        select_worker="(if (i32.gt_u (local.get $len) (i32.const 1200)) (then (unreachable)))"
        "(i32.const 1024)"
    )


BODY = b'{"prompt": "%b"}' % (b"x" * 2000)


async def test_an_upload_that_is_rejected_is_not_found_again(shop: Shop) -> None:
    """Row 33: the version before is, although the router had kept the new one."""
    await shop.first(choosing(1))
    async with shop.open() as desk:
        await desk.put("mine", failing())
        await desk.rejected("mine", BODY)
        shown = await desk.shown("mine")
        assert "rolled back" in shown["stale"]
        assert await desk.placed(BODY) == 1
        await kept(shop, shown["current"]["sha256"])
    async with shop.open() as desk:
        assert await desk.placed(BODY) == 1
        status, _ = await desk.ask("POST", "/plugins/mine/rollback")
        assert status == 409, "what was rejected is not returned to"


async def test_a_file_that_is_rejected_gives_its_place_back_to_the_upload(shop: Shop) -> None:
    shop.file.write_bytes(choosing(0))
    async with shop.open(file=True) as desk:
        await desk.put("mine", choosing(1))
        digest = desk.policy("mine").current.digest
        by_rename(shop.file, failing())
        await desk.swapped("mine", 2)
        await desk.rejected("mine", BODY)
        assert await desk.placed(BODY) == 1
        await kept(shop, digest, replaces=sha256(failing()).hexdigest())
    async with shop.open(file=True) as desk:
        assert await desk.placed(BODY) == 1, "the bad file is not tried again"


async def kept(shop: Shop, digest: str, replaces: str | None = None) -> None:
    """Wait until the store has this module as the current one, in place of that of a file."""
    store = PluginStore(shop.store)

    def now() -> tuple[str, str | None] | None:
        loaded = store.load("mine")
        return loaded and (loaded[0].current.sha256, loaded[0].replaces)

    await until(lambda: now() == (digest, replaces), now)


async def test_what_cannot_be_kept_of_a_rejection_is_told_of(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.first(choosing(1))
    async with shop.open() as desk:
        await desk.put("mine", failing())
        shop.store.rename(tmp_path / "aside")
        shop.refuse_writing()
        await desk.rejected("mine", BODY)
        assert await desk.placed(BODY) == 1
        await until(lambda: str(shop.store) in caplog.text, lambda: caplog.text)
    await within(settle())
