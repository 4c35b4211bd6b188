"""Hostile plugins in a router that serves: rows 18, 20, 21, 24 and 37.

Every request is served; the one who decides is told from what the router says of each.
"""

import asyncio

import pytest

from sgl_router.policies import shipped_plugins
from tests.gateway.support import (
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    until,
    within,
)
from tests.server.support import PATIENT, Desk, choosing, engines, held, plugged
from tests.wasm.guests import ANSWER_AT, LOOP, guest

SPUN = {"max_execution_time_ms": 30_000, "inline_budget_ms": 1}
"""Settings of a plugin that may spin for longer than any test lasts."""

POST = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b"


def body(number: int, size: int = 0) -> bytes:
    return b'{"prompt": "%d %b"}' % (number, b"x" * size)


def on_large(what: str) -> str:
    """A `select_worker` that does this where its input is large, and as usual elsewhere."""
    return f"(if (i32.gt_u (local.get $len) (i32.const 3000)) (then {what}))(i32.const {ANSWER_AT})"


async def ask(desk: Desk, *bodies: bytes) -> None:
    """Requests one after the other."""
    async with connected(desk) as client:
        for each in bodies:
            answer = await client.post(body=each)
            assert answer.status == 200, answer


@pytest.mark.parametrize("left", ["18-left", "18-drained"])
async def test_the_worker_chosen_is_there_no_more(left: str) -> None:
    """The request goes to another one, once."""
    placements = Placements()
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"0"), seen)) as stays,
        ScriptedEngine(answering(respond(b"1"))) as leaves,
        plugged(stays.url, leaves.url, placements=placements) as desk,
        connected(desk) as client,
    ):
        await desk.put("mine", choosing(1), SPUN)
        await desk.use("mine")
        policy = desk.policy("mine")
        with held(policy) as go:
            await client.send(POST % (2, b"{}"))
            await until(lambda: policy.current.waiting == 2)
            gone = next(worker for worker in desk.server.registry if worker.url == leaves.url)
            if left == "18-left":
                desk.server.registry.remove(gone)
            else:
                assert (await desk.ask("DELETE", f"/workers/{gone.id}"))[0] in (200, 202)
            go.set()
            assert (await client.response()).body == b"0"
        assert (len(seen), leaves.connections) == (1, 0)
    ((decision, outcome),) = placements.done
    assert (decision.worker.url, outcome.success) == (stays.url, True)


@pytest.mark.parametrize(
    ("each", "requests", "quarantines"),
    [
        pytest.param(2, 120, True, id="20-each-2nd"),
        pytest.param(10, 120, False, id="20-each-10th"),
        pytest.param(1_000, 1_050, False, id="20-each-1000th"),
    ],
)
async def test_a_trap_now_and_then(each: int, requests: int, quarantines: bool) -> None:
    placements = Placements()
    wasm = guest(
        select_worker=f"""
          (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
          (if (i32.eq (global.get $calls) (i32.const {each})) (then (unreachable)))
          (i32.const {ANSWER_AT})"""
    )
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        await desk.put("mine", wasm)
        await desk.use("mine")
        await ask(desk, *map(body, range(requests)))
        shown = await desk.shown("mine")
    kinds = [decision.failure and decision.failure.kind for decision, _ in placements.done]
    assert (len(kinds), all(outcome.success for _, outcome in placements.done)) == (requests, True)
    assert (shown["quarantine"]["times"] > 0, "quarantined" in kinds) == (quarantines, quarantines)
    traps = [number for number, kind in enumerate(kinds, start=1) if kind == "trap"]
    assert traps[:2] == [each, 2 * each][: len(traps)]
    if not quarantines:
        assert traps == list(range(each, requests + 1, each))


async def test_one_clients_prompt_switches_the_plugin_off_for_nobody_else() -> None:
    """Row 21: however often it is sent, and whatever comes between."""
    placements = Placements()
    bad = body(0, 4000)
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        await desk.put("mine", guest(select_worker=on_large("(unreachable)")))
        await desk.use("mine")
        for number in range(10):
            await ask(desk, *[bad] * 7, body(number), body(number))
    assert len(placements.done) == 90
    for number, (decision, outcome) in enumerate(placements.done):
        assert outcome.success
        if number % 9 < 7:
            assert decision.failure is not None, number
            assert decision.failure.kind in ("trap", "quarantined")
        else:
            assert decision.failure is None, number


async def test_a_plugin_that_takes_nearly_all_its_time_decides_beside_the_loop() -> None:
    """Row 24: it is shown, and followed."""
    placements = Placements()
    slow = guest(
        '{"selected_worker": 1}',
        select_worker=f"""
          (local $n i32) (local.set $n (i32.const 30000000))
          (loop $spin
            (local.set $n (i32.sub (local.get $n) (i32.const 1)))
            (br_if $spin (local.get $n)))
          (i32.const {ANSWER_AT})""",
    )
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        await desk.put("mine", slow, SPUN)
        await desk.use("mine")
        assert (await desk.shown("mine"))["lane"] == "inline"
        await ask(desk, *map(body, range(5)))
        assert (await desk.shown("mine"))["lane"] == "offload"
    assert [decision.failure for decision, _ in placements.done] == [None] * 5
    assert {decision.worker.url for decision, _ in placements.done} == {urls[1]}


async def test_streams_flow_while_a_plugin_spins() -> None:
    """Row 24: and so do requests that another policy decides about."""
    parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await socket.send(await parts.get())

    async with (
        ScriptedEngine(stream) as engine,
        plugged(engine.url) as desk,
        connected(desk) as reader,
        connected(desk) as spinner,
    ):
        await desk.put("mine", guest(select_worker=on_large(LOOP)), SPUN)
        await desk.use("mine")
        await reader.send(POST % (2, b"{}"))
        await within(reader.reader.readuntil(b"\r\n\r\n"))
        large = body(0, 4000)
        await spinner.send(POST % (len(large), large))
        await until(lambda: desk.policy("mine").current.waiting)
        for number in range(20):
            parts.put_nowait(b"2\r\n%02d\r\n" % number)
            assert b"%02d" % number in await within(
                reader.reader.readuntil(b"\r\n%02d\r\n" % number)
            )
        assert desk.policy("mine").current.waiting, "it spins all the while"


async def test_of_fifty_plugins_one_spins() -> None:
    """Row 37: the others decide as if it were not there."""
    placements = Placements()
    async with engines() as urls, plugged(*urls, placements=placements) as desk:
        for number in range(49):
            status, said = await desk.put(
                f"plugin-{number}", choosing(number % 2, sections={"n": b"%d" % number})
            )
            assert status == 201, said
        await desk.put("spinner", guest(select_worker=on_large(LOOP)), SPUN)
        await desk.use("spinner")
        assert (await desk.ask("GET", "/plugins"))[1]["total"] == 50
        async with connected(desk) as client:
            large = body(0, 4000)
            await client.send(POST % (len(large), large))
            await until(lambda: desk.policy("spinner").current.waiting)
            for number in range(49):
                await desk.use(f"plugin-{number}")
                assert await desk.placed() == number % 2
            assert desk.policy("spinner").current.waiting
    done = [decision for decision, _ in placements.done]
    assert [decision.failure for decision in done] == [None] * 49


async def test_a_spinner_in_the_lane_does_not_hold_up_a_load() -> None:
    """Row 37: nor a plugin that comes with the router."""
    async with engines() as urls, plugged(*urls) as desk:
        await desk.put("spinner", guest(select_worker=on_large(LOOP)), SPUN)
        await desk.use("spinner")
        async with connected(desk) as client:
            large = body(0, 4000)
            await client.send(POST % (len(large), large))
            await until(lambda: desk.policy("spinner").current.waiting)
            assert (await desk.put("mine", choosing(1), PATIENT))[0] == 201
            await desk.use(next(iter(shipped_plugins())))
            await desk.placed()
            assert (await desk.ask("DELETE", "/plugins/spinner"))[0] == 200
            assert (await desk.put("spinner", choosing(0)))[0] == 201
