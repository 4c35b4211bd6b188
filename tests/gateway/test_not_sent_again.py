"""A kept connection that closes, and a pause before a retry: what is asked again, and what not."""

import asyncio
from typing import Any

import pytest

from sgl_router.gateway import exchange
from sgl_router.gateway.attempt import IDLE_CLOSE_SECS
from sgl_router.gateway.upload import REPLAY_BYTES
from tests.gateway.inside import Clock, client_connection
from tests.gateway.support import (
    POST,
    EngineSocket,
    Placements,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
    within,
)

LATER: dict[str, Any] = {"retry_initial_backoff_ms": 60_000, "retry_max_backoff_ms": 60_000}


class Closes:
    """An engine that answers the first request, and closes on each after it when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.close = asyncio.Event()

    async def __call__(self, socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond(b"first"))
        while await socket.request() is not None:
            self.asked += 1
            await within(self.close.wait())
            socket.writer.transport.abort()
            return


@pytest.mark.parametrize(
    ("after", "again"), [(IDLE_CLOSE_SECS * 0.9, True), (IDLE_CLOSE_SECS * 1.1, False)]
)
async def test_a_kept_connection_that_closes_late_was_at_work(after: float, again: bool) -> None:
    """What the engine has had for long it may have generated: it is not asked for that again."""
    engine, placements = Closes(), Placements()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, placements=placements) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        assert (await client.post()).body == b"first"
        await client.send(POST)
        await until(lambda: engine.asked)
        clock.now += after
        engine.close.set()
        answer = await client.response()
        assert (answer.status, one.connections) == ((200, 2) if again else (502, 1))
        if not again:
            assert answer.error_code == "call_upstream_connect_error"
    assert len(placements.done) == 2


async def test_a_kept_connection_that_closes_on_what_was_not_kept() -> None:
    """The request fails with an answer, though the connection was about to be closed anyway."""

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond(b"first"))
        await socket.reader.readexactly(REPLAY_BYTES + 2)
        socket.writer.transport.abort()

    size = REPLAY_BYTES + 500_000
    async with (
        ScriptedEngine(script) as one,
        ScriptedEngine(answering(respond(b"first"))) as two,
        running(one.url, two.url) as server,
        connected(server) as client,
    ):
        Clock(server)  # it stands still: however slow the machine is, the connection closes soon
        assert (await client.post()).body == b"first"
        assert (await client.post()).body == b"first"
        answer = await client.post(body=b"x" * size)
        assert (answer.status, answer.error_code) == (502, "call_upstream_connect_error")
        assert (one.connections, two.connections) == (1, 1)


async def test_a_client_is_held_back_while_its_retry_is_put_off() -> None:
    """Else all of a body would gather in the meantime, however large."""

    async def busy(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"\r\n\r\n")
        await socket.send(respond(b"busy", 429))
        await socket.reader.read()

    size = 64 * 1024 * 1024
    async with (
        ScriptedEngine(busy) as one,
        ScriptedEngine(busy) as two,
        running(one.url, two.url, **LATER) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\nx" % size)
        await until(lambda: one.connections and not any(w.load for w in server.registry))
        client.writer.write(b"x" * exchange.WAITING_BYTES)
        await until(lambda: client_connection(server).reading.held)
