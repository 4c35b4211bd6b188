"""Plugins that are sent to a running router: every route of the control plane, and what it does."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.inside import context_of
from tests.gateway.support import connected, free_url, settle, until, within
from tests.server.support import PATIENT, Desk, choosing, engines, plugged
from tests.wasm.guests import guest


def error(said: Any) -> str:
    code: str = said["error"]["code"]
    return code


async def test_an_upload_is_loaded_used_replaced_and_rolled_back_twice(tmp_path: Path) -> None:
    async with engines() as urls, plugged(*urls, store=tmp_path / "store") as desk:
        status, said = await desk.put("mine", choosing(0))
        assert (status, said["status"], said["self_test"]["selected_worker"]) == (201, "loaded", 0)
        assert said["plugin"]["current"]["source"] == {"kind": "upload", "path": None}
        assert said["plugin"]["in_use_as"] == []
        await desk.use("mine")
        assert [await desk.placed() for _ in range(3)] == [0, 0, 0]
        status, said = await desk.put("mine", choosing(1))
        assert (status, said["status"], said["plugin"]["in_use_as"]) == (
            200,
            "replaced",
            ["regular"],
        )
        first, second = said["plugin"]["previous"]["id"], said["plugin"]["current"]["id"]
        assert await desk.placed() == 1
        for current, previous, worker in ((first, second, 0), (second, first, 1)):
            status, said = await desk.ask("POST", "/plugins/mine/rollback")
            assert (status, said["current"]["id"], said["previous"]["id"]) == (
                200,
                current,
                previous,
            )
            assert await desk.placed() == worker
        assert (await desk.shown("mine"))["swaps"] == 3


async def test_what_is_there_already_is_unchanged() -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0))
        before = (await desk.shown("mine"))["current"]["id"]
        status, said = await desk.put("mine", choosing(0))
        assert (status, said["status"], said["plugin"]["swaps"]) == (200, "unchanged", 0)
        assert said["plugin"]["current"]["id"] == before
        status, said = await desk.put("mine", choosing(0), {"config": {"other": 1}})
        assert (status, said["status"]) == (200, "replaced"), "other settings are another version"


async def test_settings_that_are_absent_keep_their_values() -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0), {"config": {"a": 1}, "max_memory_bytes": 2_000_000})
        _, said = await desk.put("mine", choosing(1), {"fallback": "random"})
        settings = said["plugin"]["current"]["settings"]
        assert (settings["config"], settings["max_memory_bytes"]) == ({"a": 1}, 2_000_000)
        assert said["plugin"]["fallback"] == settings["fallback"] == "random"
        status, said = await desk.ask(
            "POST", "/plugins/mine/reload", {"settings": {"max_memory_bytes": 3_000_000}}
        )
        assert (status, said["status"]) == (200, "replaced")
        assert said["plugin"]["current"]["settings"] == settings | {"max_memory_bytes": 3_000_000}
        _, said = await desk.ask("POST", "/plugins/mine/reload")
        assert said["status"] == "unchanged"


async def test_who_is_refused_is_told_every_reason_and_what_was_there_goes_on() -> None:
    async with engines() as urls, plugged(*urls) as desk:
        await desk.put("mine", choosing(1))
        await desk.use("mine")
        for wasm, settings, reasons, code in (
            (b"\0asm\1\0\0\0", {}, ["select_worker", "alloc"], "decides_nothing"),
            (b"<html>", {}, ["HTML"], "not_a_module"),
            (
                choosing(0),
                {"fallback": "nobody", "max_memory_bytes": -1},
                ["nobody", "-1"],
                "setting_out_of_range",
            ),
            (choosing(0), {"unknown": 1, "strange": 2}, ["unknown", "strange"], "setting_unknown"),
            (choosing(0), {"sha256": "0" * 64}, ["0" * 64], "digest_mismatch"),
            (guest("[0]"), {}, ["tried out"], "trial_bad_output"),
            (guest(init="(unreachable)"), {}, ["trap"], "trial_trap"),
        ):
            status, said = await desk.put("mine", wasm, settings)
            assert (status, error(said)) == (400, "plugin_refused"), said
            for reason in reasons:
                assert any(reason in each for each in said["reasons"]), (reason, said)
            assert code in said["codes"]
            assert len(said["codes"]) == len(said["reasons"])
        assert await desk.placed() == 1
        shown = await desk.shown("mine")
        assert (shown["swaps"], shown["previous"], shown["stale"]) == (0, None, None)


async def test_a_refused_upload_is_not_there() -> None:
    async with plugged() as desk:
        for name in ("round_robin", "default", "a.b"):
            status, said = await desk.put(name, choosing(0))
            assert (status, error(said)) == (400, "plugin_refused")
        assert await desk.ask("GET", "/plugins") == (200, {"plugins": [], "total": 0})


async def test_what_is_pinned_is_taken_and_nothing_else() -> None:
    """Row 34: both digests are shown."""
    async with plugged() as desk:
        _, said = await desk.put("mine", choosing(0))
        digest = said["plugin"]["current"]["sha256"]
        status, said = await desk.put("mine", choosing(0), {"sha256": digest})
        assert (status, said["plugin"]["current"]["settings"]["sha256"]) == (200, digest)
        status, said = await desk.put("mine", choosing(1), {})
        assert (status, error(said)) == (400, "plugin_refused")
        assert digest in said["error"]["message"], "it goes on being pinned"
        status, said = await desk.put("mine", choosing(1), {"sha256": None})
        assert (status, said["status"]) == (200, "replaced")


async def test_what_is_in_use_is_not_unloaded() -> None:
    async with engines() as urls, plugged(*urls) as desk:
        await desk.put("mine", choosing(1))
        for use in ("policy", "shadow"):
            if use == "policy":
                await desk.use("mine")
            else:
                share = {"plugin": "mine", "share": 1}
                assert (await desk.ask("PUT", "/shadow", share))[0] == 200
            status, said = await desk.ask("DELETE", "/plugins/mine")
            assert (status, error(said)) == (409, "plugin_in_use")
            await desk.use("round_robin")
        assert (await desk.ask("DELETE", "/shadow"))[0] == 200
        assert await desk.ask("DELETE", "/plugins/mine") == (
            200,
            {"status": "unloaded", "name": "mine"},
        )
        status, said = await desk.ask("PUT", "/policy", {"policy": "mine"})
        assert (status, error(said)) == (404, "policy_not_found")
        await desk.placed()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/plugins/nobody", 404, "plugin_not_found"),
        ("POST", "/plugins/nobody/reload", 404, "plugin_not_found"),
        ("POST", "/plugins/nobody/rollback", 404, "plugin_not_found"),
        ("DELETE", "/plugins/nobody", 404, "plugin_not_found"),
        ("POST", "/plugins/mine/rollback", 409, "nothing_to_roll_back_to"),
        ("POST", "/shadow/promote", 409, "no_shadow"),
    ],
)
async def test_what_cannot_be_done(method: str, path: str, status: int, code: str) -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0))
        answer, said = await desk.ask(method, path)
        assert (answer, error(said)) == (status, code)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/policy", {"policy": "nobody"}, 404, "policy_not_found"),
        ("/policy", {"policy": "random", "role": "prefill"}, 400, "bad_request"),
        ("/shadow", {"plugin": "nobody", "share": 1}, 404, "plugin_not_found"),
        ("/shadow", {"plugin": "round_robin", "share": 1}, 404, "plugin_not_found"),
        ("/shadow", {"plugin": "mine", "share": 1}, 409, "plugin_in_use"),
        ("/shadow", {"plugin": "mine", "share": 1, "role": "decode"}, 400, "bad_request"),
    ],
)
async def test_what_cannot_be_used(path: str, body: object, status: int, code: str) -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0))
        await desk.use("mine")
        answer, said = await desk.ask("PUT", path, body)
        assert (answer, error(said)) == (status, code)
        assert [use["policy"] for use in (await desk.ask("GET", "/policy"))[1]["policies"]] == [
            "mine"
        ]
        assert await desk.shadow() is None


async def test_policies_are_switched_while_it_serves() -> None:
    async with engines() as urls, plugged(*urls) as desk:
        await desk.put("mine", choosing(1), PATIENT | {"fallback": "random"})
        for name, kind, fallback in (
            ("mine", "plugin", "random"),
            ("wasm:mine", "plugin", "random"),
            ("round_robin", "builtin", "power_of_two"),
            ("least_connections", "plugin", "power_of_two"),  # which comes with the router
        ):
            status, said = await desk.ask("PUT", "/policy", {"policy": name, "role": None})
            (use,) = said["policies"]
            assert (status, use["role"], use["kind"]) == (200, "regular", kind)
            assert (use["policy"], use["fallback"]) == (name.removeprefix("wasm:"), fallback)
            assert (use["version"] is None) == (kind == "builtin")
            assert await desk.ask("GET", "/policy") == (200, said)
            await desk.placed()
        shown = await desk.shown("least_connections")
        assert shown["current"]["source"]["kind"] == "shipped"
        assert shown["current"]["decisions"] == 1


async def test_a_fallback_that_comes_with_a_version_is_used_with_it() -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0))
        await desk.use("mine")
        await desk.put("mine", choosing(0), {"fallback": "random"})
        assert (await desk.ask("GET", "/policy"))[1]["policies"][0]["fallback"] == "random"
        await desk.ask("POST", "/plugins/mine/rollback")
        assert (await desk.ask("GET", "/policy"))[1]["policies"][0]["fallback"] == "power_of_two"


async def test_each_role_has_a_policy_of_its_own() -> None:
    """Where prefill and decode have their engines, a plugin decides about either or both."""
    engines: dict[str, Any] = {"prefill": (free_url(),), "decode": (free_url(),)}
    async with plugged(pd_disaggregation=True, **engines) as desk:
        await desk.put("mine", choosing(0))
        await desk.put("tried", choosing(1))

        async def change(method: str, path: str, **body: object) -> dict[str, str]:
            status, said = await desk.ask(method, path, body)
            assert status == 200, said
            _, said = await desk.ask("GET", "/policy")
            return {use["role"]: use["policy"] for use in said["policies"]}

        roles = {"prefill": "round_robin", "decode": "round_robin"}
        assert await change("PUT", "/policy", policy="mine", role="prefill") == roles | {
            "prefill": "mine"
        }
        assert (await desk.shown("mine"))["in_use_as"] == ["prefill"]
        await change("PUT", "/shadow", plugin="tried", share=1, role="decode")
        assert (await desk.shadow())["policy"] == "round_robin"
        assert await change("POST", "/shadow/promote") == {"prefill": "mine", "decode": "tried"}
        status, said = await desk.ask("PUT", "/policy", {"policy": "random", "role": "regular"})
        assert (status, error(said)) == (400, "bad_request")
        assert await change("PUT", "/policy", policy="tried") == dict.fromkeys(roles, "tried")
        assert sorted((await desk.shown("tried"))["in_use_as"]) == ["decode", "prefill"]
        assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200


# ---- at the same time


async def test_two_uploads_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with engines() as urls, plugged(*urls, store=tmp_path / "store") as desk:
        answers = await within(
            asyncio.gather(
                *(desk.put("mine", choosing(i % 2), {"config": {"i": i}}) for i in range(6))
            )
        )
        assert sorted(status for status, _ in answers) == [200] * 5 + [201]
        ids = {said["plugin"]["current"]["id"] for _, said in answers}
        assert len(ids) == 6, "each has been told of its own version"
        shown = await desk.shown("mine")
        assert shown["swaps"] == 5
        kept = shown["current"]["settings"]["config"]
    async with plugged(store=tmp_path / "store") as desk:
        assert (await desk.shown("mine"))["current"]["settings"]["config"] == kept


async def test_a_shipped_plugin_is_loaded_once_for_all_who_want_it() -> None:
    async with plugged() as desk:
        choice = {"policy": "weighted_random"}
        answers = await within(
            asyncio.gather(*(desk.ask("PUT", "/policy", choice) for _ in range(4)))
        )
        assert [status for status, _ in answers] == [200] * 4, answers
        assert len({said["policies"][0]["version"] for _, said in answers}) == 1


async def test_a_change_of_settings_is_not_lost_to_another() -> None:
    async with plugged() as desk:
        await desk.put("mine", choosing(0))
        changes: list[dict[str, Any]] = [{"fallback": "random"}, {"config": {"a": 1}}]
        await within(
            asyncio.gather(
                desk.put("mine", choosing(1), {"max_memory_bytes": 2_000_000}),
                *(desk.ask("POST", "/plugins/mine/reload", {"settings": each}) for each in changes),
            )
        )
        _, again = await desk.put("mine", choosing(1), {})
        assert again["status"] == "unchanged", "what was sent last is in use"
        settings = again["plugin"]["current"]["settings"]
        assert (settings["fallback"], settings["config"]) == ("random", {"a": 1})
        assert settings["max_memory_bytes"] == 2_000_000


@pytest.mark.parametrize("given", ["a file", "shipped"])
async def test_settings_of_what_was_not_uploaded_are_changed_one_after_the_other(
    tmp_path: Path, given: str
) -> None:
    path = tmp_path / "mine.wasm"
    path.write_bytes(choosing(0))
    name = "mine" if given == "a file" else "least_connections"
    async with plugged(plugin=(str(path),)) as desk:
        await desk.use(name)
        changes: list[dict[str, Any]] = [{"fallback": "random"}, {"max_request_text_bytes": 1_000}]
        answers = await within(
            asyncio.gather(
                *(
                    desk.ask("POST", f"/plugins/{name}/reload", {"settings": each})
                    for each in changes
                )
            )
        )
        assert [status for status, _ in answers] == [200, 200], answers
        settings = (await desk.shown(name))["current"]["settings"]
        assert (settings["fallback"], settings["max_request_text_bytes"]) == ("random", 1_000)


# ---- who leaves before it is done


class Gate:
    """Holds up what is built for a router, before it begins.

    Attributes:
        begun: set when something is held up.
        open: set by the test.
    """

    def __init__(self, desk: Desk, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = asyncio.Event(), asyncio.Event()
        plugins = desk.server.factory.plugins
        self._build = plugins.build
        patch.setattr(plugins, "build", self._held)

    async def _held(self, *arguments: Any) -> Any:
        self.begun.set()
        await self.open.wait()
        return await self._build(*arguments)


def put(wasm: bytes) -> bytes:
    head = b"PUT /plugins/mine HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % len(wasm)
    return head + wasm


@pytest.mark.parametrize("wasm", [choosing(1), b"no plugin"], ids=["taken", "refused"])
async def test_who_leaves_while_it_is_loaded_changes_nothing_of_what_comes_of_it(
    wasm: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with engines() as urls, plugged(*urls) as desk:
        await desk.put("mine", choosing(0))
        await desk.use("mine")
        gate = Gate(desk, monkeypatch)
        async with connected(desk) as client:
            await client.send(put(wasm))
            await within(gate.begun.wait())
        await until(lambda: not context_of(desk.server).requests)
        assert await desk.placed() == 0
        gate.open.set()
        status, said = await desk.put("other", choosing(0))
        assert status == 201, said
        if wasm == choosing(1):
            await desk.swapped("mine", 1)
            assert await desk.placed() == 1
        else:
            assert (await desk.shown("mine"))["swaps"] == 0
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_who_leaves_before_it_is_sent_has_changed_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with plugged() as desk:
        gate = Gate(desk, monkeypatch)
        async with connected(desk) as client:
            await client.send(put(choosing(0))[:-1])
            await until(lambda: context_of(desk.server).requests)
        await until(lambda: not context_of(desk.server).requests)
        await settle()
        assert not gate.begun.is_set()
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 0


async def test_a_router_that_stops_does_not_wait_for_what_nobody_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with plugged() as desk:
        gate = Gate(desk, monkeypatch)
        async with connected(desk) as client:
            await client.send(put(choosing(0)))
            await within(gate.begun.wait())
        assert await within(desk.server.stop(20))
        assert desk.server.factory.list_wasm_plugins() == []
