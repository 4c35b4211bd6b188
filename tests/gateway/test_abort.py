"""POST /abort_request reaches the engine on which the request is, through a running router."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from sgl_router.core import request as core_request
from sgl_router.server import RouterServer
from tests.gateway.support import (
    Client,
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    connected,
    respond,
    running,
    within,
)

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST, LAST = b"data: {}\n\n", b"data: [DONE]\n\n"
PATH = b"/abort_request"
JSON = b"Content-Type: application/json\r\n"


def piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class StreamingEngine(ScriptedEngine):
    """Streams until it is told to abort what it has.

    Attributes:
        aborts: what it was told to abort, as it was told.
    """

    def __init__(self) -> None:
        super().__init__(self._talk)
        self.aborts: list[Request] = []
        self._streams: list[asyncio.Event] = []

    async def _talk(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            if request.head.path == PATH.decode():
                self.aborts.append(request)
                await socket.send(respond(b""))
                for stream in self._streams:
                    stream.set()
                continue
            aborted = asyncio.Event()
            self._streams.append(aborted)
            await socket.send(STREAM + piece(FIRST))
            await aborted.wait()
            await socket.send(piece(LAST) + b"0\r\n\r\n")


async def abort(client: Client, body: bytes) -> tuple[int, list[str]]:
    response = await client.ask(b"POST", PATH, body, JSON)
    return response.status, orjson.loads(response.body)["workers"]


async def begun(server: RouterServer, client: Client, path: bytes, body: bytes, id: bytes) -> str:
    """Send a request, and wait for its answer's first piece; returns its worker's URL."""
    head = b"POST %b HTTP/1.1\r\nHost: router\r\nContent-Length: %d\r\n%b\r\n%b"
    await client.send(head % (path, len(body), id, body))
    received = b""
    while FIRST not in received:
        received += await within(client.reader.read(65_536))
    (worker,) = (w for w in server.registry if w.id.encode() in received)
    return worker.url


@asynccontextmanager
async def three_engines() -> AsyncIterator[dict[str, StreamingEngine]]:
    one, two, three = engines = StreamingEngine(), StreamingEngine(), StreamingEngine()
    async with one, two, three:
        yield {engine.url: engine for engine in engines}


def request_id(id: bytes) -> bytes:
    return b"x-request-id: %b\r\n" % id


@pytest.mark.parametrize(
    ("path", "body", "header"),
    [
        (b"/v1/chat/completions", b'{"stream": true}', request_id(b"the-second")),
        (b"/v1/chat/completions", b"no JSON", request_id(b"the-second")),
        (b"/generate", b'{"rid": "the-second", "stream": true}', b""),
        (b"/generate", b'{"rid": "the-second"}', request_id(b"another")),
    ],
)
async def test_the_engine_of_the_request_and_no_other(
    path: bytes, body: bytes, header: bytes
) -> None:
    told = b'{"rid":  "the-second", "abort_all": false, "more": 1}'
    placements = Placements()
    async with (
        three_engines() as engines,
        running(*engines, placements=placements) as server,
        connected(server) as first,
        connected(server) as second,
        connected(server) as third,
    ):
        await begun(server, first, path, b"{}", request_id(b"the-first"))
        url = await begun(server, second, path, body, header)
        await begun(server, third, path, b'{"rid": "the-third"}', b"")
        async with connected(server) as aborting:
            assert await abort(aborting, told) == (200, [url])
        await within(second.reader.readuntil(b"0\r\n\r\n"))
        assert {u: [a.body for a in e.aborts] for u, e in engines.items()} == {
            u: [told] if u == url else [] for u in engines
        }
        assert [decision.worker.url for decision, _ in placements.done] == [url]
        assert placements.done[0][1].error is None, "the engine has ended it, and in order"


async def test_a_request_that_is_not_known_here_and_all_requests() -> None:
    async with (
        three_engines() as engines,
        running(*engines) as server,
        connected(server) as client,
        connected(server) as other,
    ):
        await begun(server, client, b"/generate", b'{"rid": "mine"}', b"")
        assert await abort(other, b'{"rid": "min"}') == (200, list(engines))
        assert await abort(other, b'{"rid": "mine", "abort_all": true}') == (200, list(engines))
        assert [len(engine.aborts) for engine in engines.values()] == [2, 2, 2]


async def test_a_request_that_is_still_being_sent_is_not_taken_for_none() -> None:
    """To look at what has come of a body must not decide what the whole of it says."""
    async with (
        three_engines() as engines,
        running(*engines, policy="cache_aware") as server,
        connected(server) as client,
        connected(server) as other,
    ):
        body = b'{"rid": "mine", "text": "a"}'
        head = b"POST /generate HTTP/1.1\r\nHost: router\r\nContent-Length: %d\r\n\r\n" % len(body)
        await client.send(head + body[:9])
        assert await abort(other, b'{"rid": "mine"}') == (200, list(engines))
        await client.send(body[9:])
        received = b""
        while FIRST not in received:
            received += await within(client.reader.read(65_536))
        status, workers = await abort(other, b'{"rid": "mine"}')
        assert (status, len(workers)) == (200, 1)


async def test_an_engine_that_cannot_be_reached() -> None:
    async with (
        three_engines() as engines,
        running(*engines) as server,
        connected(server) as client,
        connected(server) as other,
    ):
        url = await begun(server, client, b"/generate", b'{"rid": "mine"}', b"")
        listener = engines[url]._server
        assert listener is not None
        listener.close()
        response = await other.ask(b"POST", PATH, b'{"rid": "mine"}', JSON)
        assert (response.status, response.error_code) == (502, "call_upstream_error")
        assert not any(engine.aborts for engine in engines.values())


async def test_bodies_that_do_not_name_it_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To parse everybody's would take seconds, in which nobody else is served."""
    parsed = 0
    parse = core_request._json_object

    def counted(body: bytes) -> dict[str, Any]:
        nonlocal parsed
        parsed += 1
        return parse(body)

    monkeypatch.setattr(core_request, "_json_object", counted)
    async with (
        three_engines() as engines,
        running(*engines) as server,
        connected(server) as other,
        AsyncExitStack() as stack,
    ):
        for number in range(9):
            client = await stack.enter_async_context(connected(server))
            body = b'{"rid": "request-%d", "input_ids": [%b1]}' % (number, b"1, " * 10_000)
            await begun(server, client, b"/generate", body, b"")
        status, workers = await abort(other, b'{"rid": "request-4"}')
        assert (status, len(workers), parsed) == (200, 1, 1)
        assert await abort(other, b'{"rid": "another"}') == (200, list(engines))
        assert parsed == 1
