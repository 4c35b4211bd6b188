"""Versions that take over under load, and versions that must not: rows 32, 33 and 34."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.wasm.version import PluginVersion
from tests.gateway.support import Client, Placements, connected, until, within
from tests.server.support import PATIENT, Desk, choosing, engines, held, plugged
from tests.wasm.guests import ANSWER_AT, guest

LASTING = {"max_execution_time_ms": 30_000, "inline_budget_ms": 100}
POST = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"
WAITING = 250
"""Decisions that wait for one version; the lane takes a few more."""


def version(number: int) -> bytes:
    return choosing(number % 2, sections={"version": b"%d" % number})


async def sent(desk: Desk, number: int) -> Any:
    """Have a version take over; what is shown of it."""
    status, said = await desk.put("mine", version(number), LASTING)
    assert status in (200, 201), said
    return said["plugin"]["current"]["id"]


async def waiting(version: PluginVersion, count: int) -> None:
    """Wait until so many decisions are in its lane, what holds it up included."""
    await until(lambda: version.waiting == count, lambda: version.waiting)


def check_versions(placements: Placements, urls: list[str], ids: list[str]) -> Counter[str | None]:
    """Each request was served where its version would have it; how many each has placed."""
    for decision, outcome in placements.done:
        assert decision.failure is None
        assert outcome.success
        assert decision.version is not None
        assert decision.worker.url == urls[ids.index(decision.version) % 2]
    return Counter(decision.version for decision, _ in placements.done)


async def test_32_a_thousand_decisions_wait_while_versions_change() -> None:
    """In the lanes of four versions; each is taken by the version that was asked for it."""
    placements = Placements()
    async with AsyncExitStack() as stack, engines() as urls:
        desk = await stack.enter_async_context(plugged(*urls, placements=placements))
        ids, clients, gates = [await sent(desk, 0)], list[Client](), []
        await desk.use("mine")
        policy = desk.policy("mine")
        for number in range(4):
            if number:
                ids.append(await sent(desk, number))
            gates.append(stack.enter_context(held(policy)))
            current = policy.current
            more = [await stack.enter_async_context(connected(desk)) for _ in range(WAITING)]
            for client in more:
                await client.send(POST)
            await waiting(current, WAITING + 1)
            clients += more
        assert not placements.done
        for go in gates:
            go.set()
        answers = await within(asyncio.gather(*(client.response() for client in clients)))
        assert {answer.status for answer in answers} == {200}
        assert check_versions(placements, urls, ids) == dict.fromkeys(ids, WAITING)
        assert (await desk.shown("mine"))["waiting"] == 0


async def test_32_a_thousand_decisions_on_the_event_loop_while_versions_change() -> None:
    placements = Placements()
    async with AsyncExitStack() as stack, engines() as urls:
        desk = await stack.enter_async_context(plugged(*urls, placements=placements))
        ids = [await sent(desk, 0)]
        await desk.use("mine")
        clients = [await stack.enter_async_context(connected(desk)) for _ in range(20)]
        changing = True

        async def ask(client: Client) -> None:
            while changing or len(placements.done) < 1000:
                assert (await client.post()).status == 200

        asking = asyncio.gather(*map(ask, clients))
        for number in range(1, 12):
            await within(placements.more(5))
            ids.append(await sent(desk, number))
        changing = False
        await within(asking)
        counted = check_versions(placements, urls, ids)
        assert counted.keys() == set(ids)
        assert counted.total() >= 1000


async def test_32_a_rollback_while_decisions_wait() -> None:
    """It returns to a version whose own decisions still wait, and which goes on taking them."""
    placements = Placements()
    async with AsyncExitStack() as stack, engines() as urls:
        desk = await stack.enter_async_context(plugged(*urls, placements=placements))
        ids = [await sent(desk, 0)]
        await desk.use("mine")
        policy = desk.policy("mine")
        clients = [await stack.enter_async_context(connected(desk)) for _ in range(6)]

        async def wait(pair: list[Client], count: int) -> None:
            for client in pair:
                await client.send(POST)
            await waiting(policy.current, count)

        first = stack.enter_context(held(policy))
        await wait(clients[:2], 3)
        ids.append(await sent(desk, 1))
        second = stack.enter_context(held(policy))
        await wait(clients[2:4], 3)
        assert (await desk.ask("POST", "/plugins/mine/rollback"))[0] == 200
        await wait(clients[4:], 5)
        first.set()
        second.set()
        answers = await within(asyncio.gather(*(client.response() for client in clients)))
        assert [answer.body for answer in answers] == [b"0", b"0", b"1", b"1", b"0", b"0"]
        assert check_versions(placements, urls, ids) == {ids[0]: 4, ids[1]: 2}


async def test_32_unloaded_while_its_decisions_wait() -> None:
    """It is in use no more; who has asked it is answered all the same."""
    async with engines() as urls, plugged(*urls) as desk, connected(desk) as client:
        await sent(desk, 1)
        await desk.use("mine")
        policy = desk.policy("mine")
        with held(policy) as go:
            await client.send(POST)
            await waiting(policy.current, 2)
            await desk.use("round_robin")
            assert (await desk.ask("DELETE", "/plugins/mine"))[0] == 200
            go.set()
            assert (await client.response()).body == b"1"


# ---- versions that must not decide

ON_LARGE = f"(if (i32.gt_u (local.get $len) (i32.const 3000)) (then {{}}))(i32.const {ANSWER_AT})"
LARGE = b'{"prompt": "%b"}' % (b"x" * 4000)

REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "33-start": (guest(extra="(func $s (unreachable)) (start $s)"), {}, "unreachable"),
    "33-init": (guest(init="(unreachable)"), {}, "unreachable"),
    "33-init-spins": (guest(init="(loop $l (br $l))"), {"max_execution_time_ms": 20}, "timeout"),
    "33-self-test": (guest("nonsense"), {}, "bad_output"),
    "34-digest": (choosing(0), {"sha256": "ab" * 32}, "ab" * 32),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_version_never_decides(case: str) -> None:
    wasm, settings, said = REFUSED[case]
    placements = Placements()
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        before = await sent(desk, 1)
        await desk.use("mine")
        status, told = await desk.put("mine", wasm, PATIENT | settings)
        assert (status, told["error"]["code"]) == (400, "plugin_refused")
        assert said in told["error"]["message"]
        if case == "34-digest":
            assert desk.digest(wasm) in told["error"]["message"], "the one that was found"
        assert await desk.placed() == 1
    assert [decision.version for decision, _ in placements.done] == [before]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("(unreachable)", id="33-traps"),
        pytest.param("(return (i32.const -1))", id="33-says-nonsense"),
        pytest.param("(loop $l (br $l))", id="33-spins"),
    ],
)
async def test_a_version_that_fails_its_first_decisions_is_gone_at_once(body: str) -> None:
    placements = Placements()
    settings = {"max_execution_time_ms": 20, "inline_budget_ms": 5}
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        before = await sent(desk, 1)
        await desk.use("mine")
        failing = guest(select_worker=ON_LARGE.format(body))
        _, said = await desk.put("mine", failing, settings)
        after = said["plugin"]["current"]["id"]
        async with connected(desk) as client:
            for _ in range(10):
                assert (await client.post(body=LARGE)).status == 200
        shown = await desk.shown("mine")
        assert (shown["current"]["id"], shown["previous"]) == (before, None)
        assert after in shown["stale"]
        assert shown["current"]["settings"]["max_execution_time_ms"] == 30_000
    versions = [decision.version for decision, _ in placements.done]
    assert versions == [after] * 3 + [before] * 7
    assert [decision.failure is None for decision, _ in placements.done] == [False] * 3 + [True] * 7


async def test_33_a_version_that_fails_while_it_is_in_flight_too() -> None:
    """Many of its decisions wait when it is found out; each falls back."""
    placements = Placements()
    async with AsyncExitStack() as stack, engines() as urls:
        desk = await stack.enter_async_context(plugged(*urls, placements=placements))
        before = await sent(desk, 1)
        await desk.use("mine")
        policy = desk.policy("mine")
        _, said = await desk.put("mine", guest(select_worker=ON_LARGE.format("(unreachable)")))
        after = said["plugin"]["current"]["id"]
        clients = [await stack.enter_async_context(connected(desk)) for _ in range(50)]
        with held(policy) as go:
            current = policy.current
            for client in clients:
                head = POST.replace(b"Length: 2\r\n\r\n{}", b"Length: %d\r\n\r\n" % len(LARGE))
                await client.send(head + LARGE)
            await waiting(current, 51)
            go.set()
            answers = await within(asyncio.gather(*(client.response() for client in clients)))
        assert {answer.status for answer in answers} == {200}
        shown = await desk.shown("mine")
        assert (shown["current"]["id"], shown["swaps"]) == (before, 2)
        assert await desk.placed(LARGE) == 1
    assert [decision.version for decision, _ in placements.done] == [after] * 50 + [before]
    assert all(decision.failure for decision, _ in placements.done[:50])


async def test_34_a_pinned_file_that_is_another_is_refused_when_the_router_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.wasm"
    path.write_bytes(choosing(0))
    pinned = Desk.digest(choosing(1))
    with pytest.raises(PluginRefused) as refused:
        async with plugged(plugin=(str(path),), plugin_config={"mine": {"sha256": pinned}}):
            pass
    assert pinned in str(refused.value)
    assert Desk.digest(choosing(0)) in str(refused.value)
    path.write_bytes(choosing(1))
    async with plugged(plugin=(str(path),), plugin_config={"mine": {"sha256": pinned}}) as desk:
        path.write_bytes(choosing(0))
        await desk.stale("mine", pinned)
        shown = await desk.shown("mine")
        assert (shown["current"]["sha256"], shown["swaps"]) == (pinned, 0)
