"""The cap: who has a place, who waits for one, and who is turned away."""

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from sgl_router.core.worker import Health
from sgl_router.gateway.exchange import WAITING_BYTES, Exchange
from sgl_router.server import RouterServer
from tests.gateway.inside import Clock, admission, context_of
from tests.gateway.support import (
    POST,
    EngineSocket,
    ScriptedEngine,
    connected,
    free_url,
    running,
    settle,
    until,
    within,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(name: str) -> bytes:
    return POST.replace(b"/v1/x", b"/v1/" + name.encode())


class Turns:
    """An engine that begins an answer at once, and ends it when it is told to."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.bodies: dict[str, bytes] = {}
        self.running = 0
        self.most = 0
        self._ends: dict[str, asyncio.Event] = {}

    def end(self, name: str) -> None:
        self._ends.setdefault(name, asyncio.Event()).set()

    async def __call__(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            name = request.head.path.removeprefix("/v1/")
            self.order.append(name)
            self.bodies[name] = request.body
            self.running += 1
            self.most = max(self.most, self.running)
            await socket.send(CHUNKED + b"5\r\nfirst\r\n")
            leaving = asyncio.ensure_future(socket.reader.read(1))
            ending = asyncio.ensure_future(self._ends.setdefault(name, asyncio.Event()).wait())
            await asyncio.wait({leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
            self.running -= 1
            left = leaving.done()
            leaving.cancel()
            ending.cancel()
            await asyncio.gather(leaving, ending, return_exceptions=True)
            if left:
                return
            await socket.send(b"4\r\nlast\r\n0\r\n\r\n")


async def test_a_place_is_held_until_the_stream_has_ended() -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1) as server,
        connected(server) as one,
        connected(server) as two,
    ):
        await one.send(request("one"))
        await within(one.reader.readuntil(b"first\r\n"))
        await two.send(request("two"))
        await until(lambda: admission(server) == (1, 1))
        await settle()
        assert turns.order == ["one"], "it streams still"
        async with connected(server) as other:
            own = await other.ask(b"GET", b"/workers")
            assert own.status == 200, "the router's own answers need no place"
        turns.end("one")
        turns.end("two")
        assert (await two.response()).body == b"firstlast"
        assert turns.most == 1
        await until(lambda: admission(server) == (0, 0))


def entered(server: RouterServer, count: int) -> bool:
    return sum(admission(server)) == count


async def test_turns_come_in_the_order_of_arrival() -> None:
    turns = Turns()
    names = ["a", "b", "c", "d", "e"]
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=2) as server,
        connected(server) as a,
        connected(server) as b,
        connected(server) as c,
        connected(server) as d,
        connected(server) as e,
    ):
        for number, (name, client) in enumerate(zip(names, (a, b, c, d, e), strict=True), start=1):
            await client.send(request(name))
            await until(partial(entered, server, number))
        for name in names:
            await until(partial(turns.order.__contains__, name))
            turns.end(name)
        for client in (a, b, c, d, e):
            assert (await client.response()).body == b"firstlast"
    assert turns.order == names
    assert turns.most == 2


async def test_who_comes_when_the_queue_is_full_is_told_to_come_again() -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1, queue_size=1) as server,
        connected(server) as one,
        connected(server) as two,
        connected(server) as three,
    ):
        await one.send(request("one"))
        await two.send(request("two"))
        await until(lambda: admission(server) == (1, 1))
        refused = await three.post()
        assert (refused.status, refused.error_code) == (429, "admission_queue_full")
        assert int(refused.get(b"retry-after")[0]) >= 1
        assert len(refused.get(b"x-request-id")) == 1
        turns.end("one")
        turns.end("two")
        assert (await two.response()).status == 200
        assert (await one.response()).status == 200
        turns.end("three")
        await three.send(request("three"))
        assert (await three.response()).status == 200, "its connection is kept"


async def test_without_a_queue_nobody_waits() -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1, queue_size=0) as server,
        connected(server) as one,
        connected(server) as two,
    ):
        await one.send(request("one"))
        await within(one.reader.readuntil(b"first\r\n"))
        assert (await two.post()).status == 429


async def test_nobody_waits_for_ever() -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1, queue_timeout_secs=10) as server,
        connected(server) as one,
        connected(server) as two,
        connected(server) as three,
    ):
        clock = Clock(server)
        await one.send(request("one"))
        await within(one.reader.readuntil(b"first\r\n"))
        await two.send(request("two"))
        await until(lambda: admission(server) == (1, 1))
        clock.advance(6)
        await three.send(request("three"))
        await until(lambda: admission(server) == (1, 2))
        clock.advance(6)
        answer = await two.response()
        assert (answer.status, answer.error_code) == (503, "admission_queue_timeout")
        assert int(answer.get(b"retry-after")[0]) >= 1
        assert admission(server) == (1, 1), "the other one has come later"
        turns.end("one")
        turns.end("three")
        assert (await three.response()).status == 200
    assert turns.order == ["one", "three"]


async def test_who_leaves_the_queue_makes_room_in_it() -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1, queue_size=1) as server,
        connected(server) as one,
        connected(server) as three,
    ):
        await one.send(request("one"))
        async with connected(server) as two:
            await two.send(request("two"))
            await until(lambda: admission(server) == (1, 1))
            assert (await three.post()).status == 429
        await until(lambda: admission(server) == (1, 0))
        await three.send(request("three"))
        await until(lambda: admission(server) == (1, 1))
        turns.end("one")
        turns.end("three")
        assert (await three.response()).status == 200
    assert turns.order == ["one", "three"]


@pytest.mark.parametrize("streams", [True, False], ids=["in its stream", "in its body"])
async def test_who_leaves_gives_the_place_to_the_next(streams: bool) -> None:
    turns = Turns()
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1) as server,
        connected(server) as two,
    ):
        async with connected(server) as one:
            await one.send(request("one") if streams else request("one")[:-1])
            await until(lambda: admission(server) == (1, 0))
            if streams:
                await within(one.reader.readuntil(b"first\r\n"))
            await two.send(request("two"))
            await until(lambda: admission(server) == (1, 1))
        turns.end("two")
        assert (await two.response()).status == 200
    assert turns.order == (["one", "two"] if streams else ["two"])


@pytest.mark.parametrize(
    ("more", "status"),
    [({}, 503), ({"max_payload_size": 1}, 413), ({"api_key": "k"}, 401)],
    ids=["no worker", "too large", "no key"],
)
async def test_a_request_that_fails_keeps_no_place(more: dict[str, Any], status: int) -> None:
    async with (
        running(max_concurrent_requests=1, queue_size=0, **more) as server,
        connected(server) as client,
    ):
        for _ in range(3):
            assert (await client.post()).status == status
            assert admission(server) == (0, 0)


async def test_an_unreachable_worker_costs_no_place() -> None:
    async with (
        running(free_url(), max_concurrent_requests=1, queue_size=0) as server,
        connected(server) as client,
    ):
        for _ in range(3):
            assert (await client.post()).status == 502
            assert admission(server) == (0, 0)


async def test_many_that_wait_may_fail_one_after_the_other() -> None:
    """Each makes room for the next, which fails in its turn: that ends, however many they are."""
    waiting = 400
    engine = Turns()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, max_concurrent_requests=1, queue_size=waiting) as server,
        connected(server) as first,
    ):
        await first.send(request("first"))
        await until(lambda: admission(server) == (1, 0))
        async with AsyncExitStack() as stack:
            others = [await stack.enter_async_context(connected(server)) for _ in range(waiting)]
            for client in others:
                await client.send(POST)
            await until(lambda: admission(server) == (1, waiting))
            (worker,) = server.registry
            server.registry.set_health(worker, Health.DOWN)
            engine.end("first")
            assert (await first.response()).body == b"firstlast"
            for client in others:
                assert (await client.response()).error_code == "no_available_workers"
        assert admission(server) == (0, 0)


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware"])
async def test_a_body_that_comes_before_its_turn_is_kept_for_it(policy: str) -> None:
    """As far as there is room for it; then the client is held back, whoever will read the body."""
    turns = Turns()
    size = 4 * 1024 * 1024
    async with (
        ScriptedEngine(turns) as engine,
        running(engine.url, max_concurrent_requests=1, policy=policy) as server,
        connected(server) as one,
        connected(server) as two,
    ):
        await one.send(request("one"))
        await within(one.reader.readuntil(b"first\r\n"))
        head = b"POST /v1/two HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size
        sending = asyncio.ensure_future(two.send(head + b"x" * size))
        await until(lambda: admission(server) == (1, 1))
        (waiting,) = (
            r for r in context_of(server).requests if isinstance(r, Exchange) and r._queued
        )
        upload = waiting._upload
        await until(lambda: waiting._client.reading.held or upload.received == size)
        assert upload.received < 4 * WAITING_BYTES
        turns.end("one")
        turns.end("two")
        await within(sending)
        assert (await two.response()).body == b"firstlast"
    assert turns.bodies["two"] == b"x" * size


async def test_the_cap_holds_whatever_clients_do() -> None:
    """They come, leave at any moment, and are served; in the end all places are free."""
    chance = random.Random(7)
    most = 0

    async def script(socket: EngineSocket) -> None:
        nonlocal most
        while await socket.request() is not None:
            most = max(most, sum(worker.load for worker in server.registry))
            await socket.send(CHUNKED + b"1\r\na\r\n")
            await asyncio.sleep(chance.random() / 100)
            await socket.send(b"1\r\nb\r\n0\r\n\r\n")

    async def client_loop() -> None:
        for _ in range(12):
            async with connected(server) as client:
                answer = asyncio.ensure_future(client.post())
                if chance.random() < 0.4:
                    await asyncio.sleep(chance.random() / 50)
                    answer.cancel()
                    await asyncio.gather(answer, return_exceptions=True)
                else:
                    statuses.append((await answer).status)

    statuses: list[int] = []
    async with (
        ScriptedEngine(script) as engine,
        ScriptedEngine(script) as other,
        running(engine.url, other.url, max_concurrent_requests=3, queue_size=8) as server,
    ):
        await within(asyncio.gather(*(client_loop() for _ in range(16))))
        await until(lambda: admission(server) == (0, 0))
    assert set(statuses) == {200, 429}
    assert most == 3
