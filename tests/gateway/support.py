"""A router in this process, engines that follow a script, and a client that sees raw bytes."""

import asyncio
import ipaddress
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import orjson

from sgl_router.config import RouterConfig
from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.demo.engine import DemoEngine, EngineSpeed
from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import ResponseHead, ResponseParser
from sgl_router.server import RouterServer
from tests.gateway.inside import left

T = TypeVar("T")

PATIENCE_SECS = 20
"""An upper bound on what never takes that long; only a failing test meets it."""

POST = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"
"""A whole request."""


@dataclass
class Request:
    """One request as an engine got it."""

    head: RequestHead
    body: bytes


@dataclass
class Response:
    """One response as a client got it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def get(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def error_code(self) -> str:
        """The code of an error of the router's own."""
        error = orjson.loads(self.body)["error"]
        assert set(error) == {"type", "code", "message", "param"}
        code: str = error["code"]
        return code


class EngineSocket:
    """An engine's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._parser = RequestParser()

    async def request(self) -> Request | None:
        """The next request, or None where the connection ends first."""
        head: RequestHead | None = None
        body = bytearray()
        while True:
            data = await self.reader.read(65_536)
            if not data:
                return None
            for event in self._parser.feed(data):
                if isinstance(event, RequestHead):
                    head = event
                elif event is END:
                    assert head is not None
                    return Request(head, bytes(body))
                elif isinstance(event, ProtocolError):
                    raise event
                else:
                    body += event

    async def send(self, data: bytes) -> None:
        """Raises ConnectionError where nobody is there any more."""
        if self.writer.transport.is_closing():  # which uvloop words in its own way
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()


Script = Callable[[EngineSocket], Awaitable[None]]


class ScriptedEngine:
    """Runs a script for each connection; over TLS where it is given a context."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> "ScriptedEngine":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuse connections from now on, and close those that there are."""
        assert self._server is not None
        self._server.close()
        await settle()  # connections that were accepted just before
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.ensure_future(self._run(reader, writer)))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(EngineSocket(reader, writer))
        finally:
            writer.close()


def respond(body: bytes = b"{}", status: int = 200, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Fine\r\n%bContent-Length: %d\r\n\r\n%b" % (status, extra, len(body), body)


def answering(response: bytes, seen: list[Request] | None = None) -> Script:
    """A script that answers each request alike."""

    async def script(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            if seen is not None:
                seen.append(request)
            await socket.send(response)

    return script


@dataclass
class Placements:
    """What the router's dispatcher told of finished requests."""

    done: list[tuple[Decision, Outcome]] = field(default_factory=list)
    _waiting: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def add(self, decision: Decision, outcome: Outcome) -> None:
        self.done.append((decision, outcome))
        for count, event in self._waiting:
            if len(self.done) >= count:
                event.set()

    async def more(self, count: int) -> None:
        """Wait until so many more requests have ended."""
        event = asyncio.Event()
        self._waiting.append((len(self.done) + count, event))
        await event.wait()


@asynccontextmanager
async def running(
    *urls: str,
    placements: Placements | None = None,
    entropy: Callable[[], int] | None = None,
    **settings: Any,
) -> AsyncIterator[RouterServer]:
    """A router in front of these engines, all of them taken for healthy, on a free port.

    When it ends, nothing may be left of what it has done.
    """
    settings = {"disable_health_check": True, "policy": "round_robin", **settings}
    config = RouterConfig(host="127.0.0.1", port=0, worker_urls=urls, **settings)
    on_complete = None if placements is None else placements.add
    server = RouterServer(config, entropy=entropy, on_complete=on_complete)
    before = asyncio.all_tasks()
    try:
        await server.start()
        yield server
    finally:
        await server.stop(0)
    await until(lambda: not left(server, before), lambda: left(server, before))


@asynccontextmanager
async def demo_engine(port: int = 0, slots: int = 8) -> AsyncIterator[DemoEngine]:
    """A quick one; it may be stopped and started meanwhile."""
    engine = DemoEngine("demo", EngineSpeed(first_token_ms=1, token_ms=1, slots=slots))
    await engine.start(port)
    try:
        yield engine
    finally:
        engine.stop()


class Client:
    """A connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._rest = b""

    async def send(self, data: bytes) -> None:
        """Raises TimeoutError where the router does not read on for `PATIENCE_SECS`."""
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_SECS):
            await self.writer.drain()

    async def response(self, *, head_request: bool = False) -> Response:
        """The next response; raises ProtocolError where the connection ends within it."""
        parser = ResponseParser(to_head_request=head_request)
        head: ResponseHead | None = None
        body = bytearray()
        async with asyncio.timeout(PATIENCE_SECS):
            while True:
                data = await self._take(head, len(body))
                for event in parser.feed(data) if data else parser.feed_eof():
                    if isinstance(event, ResponseHead):
                        head = event
                    elif isinstance(event, ProtocolError):
                        raise event
                    elif event is END:
                        assert head is not None
                        return Response(head.status, head.headers, bytes(body))
                    else:
                        body += event

    async def _take(self, head: ResponseHead | None, received: int) -> bytes:
        """The next bytes, but none of the response after this one; b"" at the connection's end."""
        while True:
            rest = self._rest
            if head is None:
                count = rest.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in rest else 0
            elif head.content_length is not None:
                count = head.content_length - received
            else:
                count = len(rest) if head.until_close else 1
            if count and rest:
                self._rest = rest[count:]
                return rest[:count]
            data = await self.reader.read(65_536)
            if not data:
                return b""
            self._rest += data

    async def ask(
        self, method: bytes, path: bytes, body: bytes = b"", extra: bytes = b""
    ) -> Response:
        """Send a request and read its response."""
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        await self.send(
            b"%b %b HTTP/1.1\r\nHost: router\r\n%b%b\r\n%b" % (method, path, extra, length, body)
        )
        return await self.response(head_request=method == b"HEAD")

    async def post(self, path: bytes = b"/v1/chat/completions", body: bytes = b"{}") -> Response:
        return await self.ask(b"POST", path, body)

    async def closed(self) -> bool:
        """Whether the router closes the connection without sending anything more."""
        async with asyncio.timeout(PATIENCE_SECS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


class Listening(Protocol):
    """A router that can be connected to."""

    @property
    def port(self) -> int: ...


@asynccontextmanager
async def connected(server: Listening, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def within(awaitable: Awaitable[T]) -> T:
    """The result, or a failure of the test after `PATIENCE_SECS`."""
    async with asyncio.timeout(PATIENCE_SECS):
        return await awaitable


async def until(
    condition: Callable[[], object], state: Callable[[], object] = lambda: "not so"
) -> None:
    """Wait for what nobody tells of; a failure that says `state` after `PATIENCE_SECS`."""
    for _ in range(PATIENCE_SECS * 200):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(state())


async def settle() -> None:
    """Give what must not happen the chance to: all that has been sent is read by its receiver."""
    for _ in range(20):
        await asyncio.sleep(0)


@contextmanager
def deaf_url() -> Iterator[str]:
    """A URL whose connections are neither accepted nor refused: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            yield f"http://127.0.0.1:{port}"


def free_url() -> str:
    """A URL at which nothing listens, a different one each time.

    A port that was free a moment ago may be given to the next connection that anybody makes; this
    one is given to nobody.
    """
    host = ipaddress.IPv4Address("127.0.0.2") + random.randrange(2**23)
    return f"http://{host}:1"
