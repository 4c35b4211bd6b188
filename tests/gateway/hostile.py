"""What the tests with hostile peers share: a stage, and readers that forgive nothing.

The readers are not the router's own: answers are read by h11 as a client would, requests by a
reader that fails wherever two engines could read the bytes in two ways.
"""

import asyncio
import gc
import re
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import h11

from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.downstream import ClientConnection
from sgl_router.server import RouterServer
from tests.gateway.support import (
    PATIENCE_SECS,
    Client,
    EngineSocket,
    Script,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
)

MAX_HEAD = 1024 * 1024
"""Of what h11 reads: more than the router lets through."""

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"


def inside(server: RouterServer) -> GatewayContext:
    """What the requests of a router share: there is no other way to count what it holds."""
    assert server._gateway is not None, "it is started"
    return server._gateway._context


def clients(server: RouterServer) -> set[ClientConnection]:
    """The client connections that a router has open."""
    assert server._gateway is not None, "it is started"
    return server._gateway._clients.connections


# ---- the stage


@dataclass
class Stage:
    """A router in front of one engine, of which each test writes the script.

    Attributes:
        server: the router.
        engine: the engine; counts its connections.
    """

    server: RouterServer
    engine: ScriptedEngine
    _part: list[Script]

    def plays(self, script: Script) -> None:
        """The engine's part from its next connection on; no connection of before is used again."""
        inside(self.server).pool.close_idle(float("inf"))
        self._part[0] = script
        self.engine.connections = 0

    def says(self, *pieces: bytes, end: str = "fin", bytewise: bool = False) -> None:
        """The engine reads one request, sends these pieces, and ends the connection."""
        self.plays(saying(*pieces, end=end, bytewise=bytewise))


@asynccontextmanager
async def staged(**settings: Any) -> AsyncIterator[Stage]:
    """A stage whose engine answers `{}` until it is given a part.

    Nothing is left on it when it ends.
    """
    part = [answering(respond())]

    async def script(socket: EngineSocket) -> None:
        await part[0](socket)

    settings = {"disable_circuit_breaker": True, **settings}
    async with ScriptedEngine(script) as engine:
        async with running(engine.url, **settings) as server:
            yield Stage(server, engine, part)
        assert not inside(server).requests


def saying(*pieces: bytes, end: str = "fin", bytewise: bool = False) -> Script:
    """A script: read a request, send pieces, then `fin` (close), `rst` (reset) or `wait`."""

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        for piece in pieces:
            await send(socket.writer, piece, bytewise=bytewise)
        if end == "rst":
            reset(socket.writer)
        elif end == "wait":
            await socket.reader.read()

    return script


# ---- bytes


async def send(writer: asyncio.StreamWriter, data: bytes, *, bytewise: bool = False) -> None:
    """Write, and let the loop pass it on: in one piece, or byte by byte."""
    for piece in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
        if writer.is_closing():
            return


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset, as a machine that loses power and comes back does."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_to_end(client: Client) -> tuple[bytes, bool]:
    """All that comes on a connection, and whether it ended with a reset."""
    got = bytearray()
    async with asyncio.timeout(PATIENCE_SECS):
        try:
            while data := await client.reader.read(65_536):
                got += data
        except ConnectionResetError:
            return bytes(got), True
    return bytes(got), False


# ---- a client's reading


@dataclass
class Seen:
    """An answer as h11 reads it; `complete`: up to its end."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = False

    def get(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


def answers(data: bytes, *, method: bytes = b"POST", alone: bool = True) -> list[Seen]:
    """What a client makes of all that it got before the connection's orderly end.

    Informational answers are passed over. `alone`: bytes that belong to no answer are a failure.
    """
    seen: list[Seen] = []
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    _ask(connection, method)
    connection.receive_data(data)
    try:
        while not isinstance(event := connection.next_event(), h11.ConnectionClosed):
            if isinstance(event, h11.Response):
                seen.append(Seen(event.status_code, list(event.headers)))
            elif isinstance(event, h11.Data):
                seen[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                seen[-1].complete = True
                if connection.their_state is not h11.DONE or connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
                _ask(connection, method)
            elif event is h11.NEED_DATA:
                if seen and seen[-1].complete:
                    break
                connection.receive_data(b"")  # the connection's end
    except h11.RemoteProtocolError:
        assert not alone or not seen or not seen[-1].complete, "nothing follows an answer"
    assert not alone or not connection.trailing_data[0], "nothing follows the last answer"
    return seen


def _ask(connection: h11.Connection, method: bytes) -> None:
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "r")]))
    connection.send(h11.EndOfMessage())


# ---- an engine's reading


@dataclass(frozen=True)
class Read:
    """A request of which the bytes can be read in one way only."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def get(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Z-]+) (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9a-f]{1,8})\r\n")


def requests_in(data: bytes) -> tuple[list[Read], bytes]:
    """The complete requests in what an engine received, and what is left of one that is not.

    Raises AssertionError for any byte that another reader could take for something else: it is the
    router's promise that an engine never has to be as strict as this.
    """
    found: list[Read] = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            return found, data
        start, *lines = head.split(b"\r\n")
        first = _REQUEST_LINE.fullmatch(start)
        assert first is not None, f"{start!r} is a request line"
        headers = []
        for line in lines:
            match = _FIELD.fullmatch(line)
            assert match is not None, f"{line!r} is a header line"
            headers.append((match[1], match[2]))
        request = Read(first[1], first[2], tuple(headers), b"")
        assert len(request.get(b"host")) == 1, "it names one host"
        body, rest = _body(request, rest)
        if body is None:
            return found, data
        found.append(Read(first[1], first[2], request.headers, body))
        data = rest
    return found, b""


def _body(request: Read, data: bytes) -> tuple[bytes | None, bytes]:
    """The request's body and what follows it; None where it is not complete."""
    lengths, codings = request.get(b"content-length"), request.get(b"transfer-encoding")
    assert len(lengths) + len(codings) <= 1, "there is one way to tell where the body ends"
    if lengths:
        assert re.fullmatch(rb"[0-9]{1,18}", lengths[0]), f"{lengths[0]!r} is a length"
        end = int(lengths[0])
        return (data[:end], data[end:]) if len(data) >= end else (None, b"")
    if not codings:
        return b"", data
    assert codings == [b"chunked"], f"{codings[0]!r} is chunked, spelt like that"
    body = b""
    while match := _CHUNK.match(data):
        end = match.end() + int(match[1], 16)
        if len(data) < end + 2:
            break
        body += data[match.end() : end]
        assert data[end : end + 2] == b"\r\n", "a chunk ends with CRLF; there are no trailers"
        data = data[end + 2 :]
        if match[1] == b"0":
            return body, data
    return None, b""


@dataclass
class Recorder:
    """An engine's part: keep every byte, and answer each request with its method and path.

    Attributes:
        connections: what came on each of them.
        requests: the complete ones, as they came.
    """

    connections: list[bytearray] = field(default_factory=list)
    requests: list[Read] = field(default_factory=list)

    async def __call__(self, socket: EngineSocket) -> None:
        raw = bytearray()
        self.connections.append(raw)
        rest = b""
        while data := await socket.reader.read(65_536):
            raw += data
            complete, rest = requests_in(rest + data)
            for request in complete:
                self.requests.append(request)
                await socket.send(respond(request.method + b" " + request.path))


HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nHost: r\r\nX-Admin: 1\r\n\r\n"
NEXT = b"GET /v1/next HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"


def framed(*lines: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    """A request with these header lines, and a hidden one behind what may be its body."""
    head = [b"POST /v1/x HTTP/1.1", b"Host: r", *lines, b"", b""]
    return b"\r\n".join(head) + body + HIDDEN


async def exchange(
    stage: Stage, data: bytes, *, bytewise: bool = False
) -> tuple[list[Seen], Recorder]:
    """Send bytes and then one more request; what the client got, and what the engine."""
    engine = Recorder()
    stage.plays(engine)
    async with connected(stage.server) as client:
        await send(client.writer, data, bytewise=bytewise)
        if not client.writer.is_closing():
            await send(client.writer, NEXT)
        got, _ = await read_to_end(client)
    await until(lambda: not inside(stage.server).requests)
    return answers(got), engine


# ---- what is left


def alive(*types: type) -> int:
    """How many objects of these types there are."""
    gc.collect()
    # Not isinstance: it asks the thing, and some things import a library when they are asked.
    return sum(issubclass(type(thing), types) for thing in gc.get_objects())


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is so that nobody tells of."""
    async with asyncio.timeout(PATIENCE_SECS):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def ids(cases: Sequence[bytes]) -> list[str]:
    """Names for cases that are bytes."""
    return [f"{number}-{case[:40]!r}" for number, case in enumerate(cases)]
