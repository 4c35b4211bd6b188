"""What takes too long, on whose side, and what is said of the engine then.

The gateway's clock is the test's here, so that nothing ends early on a busy machine.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from sgl_router.gateway import gateway
from sgl_router.server import RouterServer
from tests.gateway.inside import Clock, client_connection, context_of, engine_reading, gateway_of
from tests.gateway.support import (
    POST,
    Client,
    EngineSocket,
    Placements,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    settle,
    until,
    within,
)

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'10\r\ndata: {"a": 1}\n\n\r\n'
SECS = 10
LIMITS: dict[str, Any] = {
    "client_head_timeout_secs": SECS,
    "client_body_timeout_secs": SECS,
    "keep_alive_timeout_secs": SECS,
    "first_byte_timeout_secs": SECS,
    "stream_idle_timeout_secs": SECS,
}


class Engine:
    """Takes what comes of a request, and answers when the test says so."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.closed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def __call__(self, socket: EngineSocket) -> None:
        self._writer = socket.writer
        with suppress(ConnectionResetError):
            while data := await socket.reader.read(65_536):
                self.got += data
        self.closed.set()

    def say(self, data: bytes) -> None:
        assert self._writer is not None, "it has been asked"
        self._writer.write(data)


async def open_connections(server: RouterServer, count: int) -> None:
    await until(lambda: len(gateway_of(server)._clients.connections) == count)


def assert_blamed(placements: Placements, engine_ok: bool | None, status: int | None) -> None:
    (outcome,) = (outcome for _, outcome in placements.done)
    assert (outcome.success, outcome.engine_ok, outcome.status) == (False, engine_ok, status)
    assert outcome.error is not None


# ---- heads


@pytest.mark.parametrize("before", [0, 1], ids=["the first request", "a later one"])
async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(before: int) -> None:
    """However steadily it comes."""
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for _ in range(before):
            assert (await client.post()).status == 200
        for byte in b"POST /v1/x HT":
            await client.send(bytes([byte]))
            await settle()
            clock.advance(SECS / 10)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (408, "request_timeout")
        assert len(answer.get(b"x-request-id")) == 1
        assert await client.closed()
        assert engine.connections == before


async def test_a_client_that_never_asks_is_closed_without_a_word() -> None:
    async with running(**LIMITS) as server, connected(server) as client:
        clock = Clock(server)
        await open_connections(server, 1)
        clock.advance(SECS * 0.9)
        await settle()
        await open_connections(server, 1)
        clock.advance(SECS * 0.2)
        assert await client.closed()


async def test_a_connection_is_kept_between_requests_and_not_for_ever() -> None:
    async with running(**LIMITS) as server, connected(server) as client:
        clock = Clock(server)
        for _ in range(3):
            assert (await client.ask(b"GET", b"/health")).status == 200
            clock.advance(SECS * 0.9)
        assert (await client.ask(b"GET", b"/health")).status == 200
        clock.advance(SECS)
        assert await client.closed()


# ---- bodies

UPLOAD = (
    b"POST %b HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
)


async def begin_upload(client: Client, engine: Engine) -> None:
    await client.send(UPLOAD % b"/v1/x")
    await until(lambda: engine.got.endswith(b"\r\n\r\n"))


async def send_piece(client: Client, engine: Engine, piece: bytes) -> None:
    await client.send(piece)
    await until(lambda: engine.got.endswith(piece))


async def ask(client: Client, engine: Engine) -> None:
    """Send a whole request; the engine has it."""
    await client.send(POST)
    await until(lambda: engine.got.endswith(b"{}"))


async def test_a_body_that_stops_coming() -> None:
    """It may come as slowly as it likes; when it stops, that is the client's fault."""
    engine, placements = Engine(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        ScriptedEngine(engine) as two,
        running(one.url, two.url, placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await begin_upload(client, engine)
        for n in range(10):
            clock.advance(SECS * 0.9)
            await send_piece(client, engine, b"%d" % n)
        clock.advance(SECS)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (408, "request_timeout")
        assert await client.closed()
        await within(engine.closed.wait())
        assert one.connections + two.connections == 1, "it is not sent to another one"
    assert_blamed(placements, None, None)


@pytest.mark.parametrize("path", [b"/v1/x", b"/workers"])
async def test_a_body_that_is_collected_stops_coming(path: bytes) -> None:
    """For a policy that reads it, or for the router itself."""
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, policy="cache_aware", placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await client.send(UPLOAD % path + b"{")
        await until(lambda: context_of(server).requests)
        clock.advance(SECS)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (408, "request_timeout")
        assert await client.closed()
        assert engine.connections == 0
    assert placements.done == []


async def test_a_client_that_is_held_back_is_not_blamed() -> None:
    """An engine that does not read keeps its client from sending, for as long as it likes."""
    reads, got = asyncio.Event(), asyncio.Event()
    size = 64 * 1024 * 1024

    async def deaf(socket: EngineSocket) -> None:
        got.set()
        await within(reads.wait())
        request = await socket.request()
        assert request is not None
        await socket.send(respond(b"%d" % len(request.body)))

    async with (
        ScriptedEngine(deaf) as engine,
        running(engine.url, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size)
        sending = asyncio.ensure_future(client.send(b"x" * size))
        await within(got.wait())
        await until(lambda: client_connection(server).reading.held)
        clock.advance(SECS * 5)
        reads.set()
        await until(lambda: not client_connection(server).reading.held)
        clock.advance(0)
        await within(sending)
        answer = await client.response()
    assert (answer.status, answer.body) == (200, b"%d" % size)


# ---- the engine's answer


async def test_an_engine_that_does_not_begin_its_answer() -> None:
    """The request is not given to another one: it may be under way."""
    engine, placements = Engine(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        ScriptedEngine(engine) as two,
        running(one.url, two.url, placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await ask(client, engine)
        clock.advance(SECS * 0.9)
        await settle()
        assert not placements.done
        clock.advance(SECS * 0.2)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (504, "call_upstream_timeout")
        await within(engine.closed.wait())
        assert one.connections + two.connections == 1
        assert (await client.ask(b"GET", b"/health")).status == 200, "the connection goes on"
    assert_blamed(placements, False, None)


async def test_the_wait_for_an_answer_begins_when_the_request_is_complete() -> None:
    """A client that takes its time with the body takes none of the engine's."""
    engine, placements = Engine(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await begin_upload(client, engine)
        for piece in (b"0123456789", b"9876543210"):
            clock.advance(SECS * 0.9)
            await send_piece(client, engine, piece)
        clock.advance(SECS * 0.9)
        engine.say(respond(b"done"))
        assert (await client.response()).body == b"done"
    assert [outcome.engine_ok for _, outcome in placements.done] == [True]


@pytest.mark.parametrize("events", [True, False])
async def test_an_answer_that_stops_coming(events: bool) -> None:
    engine, placements = Engine(), Placements()
    head = EVENTS if events else EVENTS.replace(b"event-stream", b"plain")
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await ask(client, engine)
        engine.say(head)
        await within(client.reader.readuntil(b"\r\n\r\n"))
        for _ in range(5):
            clock.advance(SECS * 0.9)
            engine.say(EVENT)
            assert await within(client.reader.readexactly(len(EVENT))) == EVENT
        clock.advance(SECS)
        if events:
            rest = await within(client.reader.readuntil(b"0\r\n\r\n"))
            assert b"call_upstream_timeout" in rest
            assert b"[DONE]" not in rest
        else:
            assert await client.closed()
        await within(engine.closed.wait())
    assert_blamed(placements, False, 200)


async def test_a_client_that_does_not_take_its_answer() -> None:
    """Its engine is let go, and is not blamed; in the end the client is let go too."""
    engine, placements = Engine(), Placements()
    size = 64 * 1024 * 1024
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, placements=placements, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await ask(client, engine)
        engine.say(EVENTS + b"%x\r\n%b\r\n" % (size, b"x" * size))
        await until(lambda: engine_reading(server).held)
        clock.advance(SECS * 0.9)
        await settle()
        assert not placements.done
        clock.advance(SECS * 0.2)
        await within(engine.closed.wait())
        assert_blamed(placements, None, 200)
        for _ in range(3):
            clock.advance(SECS)
        await open_connections(server, 0)


# ---- the whole request


@pytest.mark.parametrize("answering", [True, False])
async def test_a_request_that_lasts_too_long(answering: bool) -> None:
    """However much there is of its answer."""
    engine, placements = Engine(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        ScriptedEngine(engine) as two,
        running(one.url, two.url, placements=placements, request_timeout_secs=SECS * 3) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await ask(client, engine)
        if answering:
            engine.say(EVENTS + EVENT)
            await within(client.reader.readuntil(EVENT))
        clock.advance(SECS)
        if answering:
            engine.say(EVENT)
            await within(client.reader.readuntil(EVENT))
        clock.advance(SECS * 2)
        if answering:
            assert b"call_upstream_timeout" in await within(client.reader.readuntil(b"0\r\n\r\n"))
        else:
            answer = await client.response()
            assert (answer.status, answer.error_code) == (504, "call_upstream_timeout")
        await within(engine.closed.wait())
        assert one.connections + two.connections == 1
    assert_blamed(placements, False, 200 if answering else None)


async def test_a_request_whose_body_lasts_too_long_says_nothing_of_the_engine() -> None:
    engine, placements = Engine(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, placements=placements, request_timeout_secs=SECS, **LIMITS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await begin_upload(client, engine)
        clock.advance(SECS * 0.9)
        await send_piece(client, engine, b"01234")
        clock.advance(SECS * 0.2)
        answer = await client.response()
        assert answer.status in (408, 504)
    assert_blamed(placements, None, None)


@pytest.mark.parametrize("setting", ["first_byte_timeout_secs", "stream_idle_timeout_secs"])
async def test_limits_that_are_not_set_are_none(setting: str) -> None:
    engine = Engine()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **{**LIMITS, setting: None}) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        await ask(client, engine)
        if setting == "stream_idle_timeout_secs":
            engine.say(EVENTS)
            await within(client.reader.readuntil(b"\r\n\r\n"))
        clock.advance(SECS * 100)
        engine.say((b"" if setting == "stream_idle_timeout_secs" else EVENTS) + b"0\r\n\r\n")
        assert (await within(client.reader.readuntil(b"0\r\n\r\n"))).endswith(b"0\r\n\r\n")


async def test_the_gateway_looks_at_the_deadlines_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "SWEEP_SECS", 0.01)
    engine = Engine()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, first_byte_timeout_secs=0.05) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == 504
