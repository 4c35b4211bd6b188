"""Clients that are slow, go away in the middle, or are many: none of them costs for ever."""

import asyncio
import gc
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket

import orjson
import pytest

from sgl_router.core.worker import Health
from sgl_router.gateway import gateway
from sgl_router.gateway.downstream import ClientConnection
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.upstream import EngineConnection
from sgl_router.http1.request import RequestHead
from sgl_router.server import RouterServer
from tests.conftest import leave_out
from tests.gateway.hostile import (
    POST,
    Stage,
    alive,
    answers,
    clients,
    inside,
    read_to_end,
    reset,
    saying,
    send,
    staged,
    until,
)
from tests.gateway.support import EngineSocket, answering, connected, respond, within

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPLOAD = (
    b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are looked at often."""
    monkeypatch.setattr(gateway, "SWEEP_SECS", 0.01)


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as made:
        yield made


async def nothing_left(stage: Stage) -> None:
    """No connection, request or load is left of those clients that have gone."""
    await until(lambda: not clients(stage.server) and not inside(stage.server).requests)
    assert [worker.load for worker in stage.server.registry] == [0]


# ---- clients that do not come to an end


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", b"GET /health HTTP/1.1\r\nHost: r\r\nX: "])
async def test_a_head_that_trickles(sent: bytes) -> None:
    """However often another byte of it comes."""
    async with staged(client_head_timeout_secs=0.05) as stage, connected(stage.server) as client:
        await client.send(sent)
        trickling = asyncio.ensure_future(_trickle(client.writer)) if len(sent) > 2 else None
        data, _ = await read_to_end(client)
        if trickling is not None:
            trickling.cancel()
        assert [seen.status for seen in answers(data)] == ([408] if sent[:1] == b"G" else [])
        assert stage.engine.connections == 0


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await send(writer, b"x")
        await asyncio.sleep(0.001)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("policy", ["round_robin", "cache_aware"])
@pytest.mark.parametrize("path", [b"/v1/x", b"/workers"])
async def test_a_body_that_stands_still(policy: str, path: bytes) -> None:
    async with staged(policy=policy, client_body_timeout_secs=0.05) as stage:
        async with connected(stage.server) as client:
            await client.send(UPLOAD.replace(b"/v1/x", path) % 9 + b"{")
            data, _ = await read_to_end(client)
        (seen,) = answers(data)
        assert (seen.status, orjson.loads(seen.body)["error"]["code"]) == (408, "request_timeout")
        await nothing_left(stage)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", [b"/nowhere", b"/v1/x"], ids=["router", "engine"])
async def test_a_body_that_never_comes_though_it_is_answered(path: bytes) -> None:
    """The connection is kept for the rest of the body, but not for ever."""

    async def early(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"\r\n\r\n")
        await socket.send(respond(b"early"))
        await socket.reader.read()

    async with staged(client_body_timeout_secs=0.05, max_payload_size=100) as stage:
        stage.plays(early)
        async with connected(stage.server) as client:
            await client.send(UPLOAD.replace(b"/v1/x", path) % (101 if path == b"/nowhere" else 9))
            data, _ = await read_to_end(client)
        assert [seen.complete for seen in answers(data)] == [True]
        await nothing_left(stage)


# ---- clients that do not read


@asynccontextmanager
async def deaf(server: RouterServer) -> AsyncIterator[socket]:
    """A connection with next to no room for what the router sends."""
    loop = asyncio.get_running_loop()
    with socket() as sock:
        sock.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        yield sock


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes next to nothing of what is sent to a client."""
    made = ClientConnection.connection_made

    def with_little_room(self: ClientConnection, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(ClientConnection, "connection_made", with_little_room)


LARGE = respond(b"x" * 200_000)
UNREAD = {
    "kept": (POST, LARGE),
    "closed": (POST.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n"), LARGE),
    "http/1.0": (POST.replace(b"1.1", b"1.0"), LARGE),
    "pipelined": (POST * 3, LARGE),
    "nonsense next": (POST + b"nonsense\r\n\r\n", LARGE),
    "part of a head next": (POST + b"GET /v1/x HTTP", LARGE),
    "goes on": (POST, LARGE[:-1]),
    "events": (
        POST,
        CHUNKED.replace(b"\r\nT", b"\r\nContent-Type: text/event-stream\r\nT")
        + b"30d40\r\n%b\r\n" % (b"x" * 200_000),
    ),
}


@pytest.mark.usefixtures("quick", "little_room")
@pytest.mark.parametrize("case", UNREAD)
async def test_a_client_that_takes_nothing_of_its_answer_is_let_go(case: str) -> None:
    """Also where the engine has done its part, and where the connection is closing already."""
    request, answer = UNREAD[case]
    async with staged(stream_idle_timeout_secs=0.1) as stage:
        stage.plays(answering(answer))
        async with deaf(stage.server) as client:
            await asyncio.get_running_loop().sock_sendall(client, request)
            await until(lambda: stage.engine.connections == 1)
            await nothing_left(stage)


@pytest.mark.usefixtures("quick", "little_room")
async def test_a_client_that_reads_slowly_gets_all_of_its_answer() -> None:
    """What counts is that something is taken, not how much."""
    loop = asyncio.get_running_loop()
    async with staged(stream_idle_timeout_secs=0.3) as stage:
        stage.plays(answering(LARGE))
        async with deaf(stage.server) as client:
            await loop.sock_sendall(client, UNREAD["closed"][0])
            got = b""
            while data := await within(loop.sock_recv(client, 3000)):
                got += data
                await asyncio.sleep(0.005)
    (seen,) = answers(got)
    assert seen.complete and len(seen.body) == 200_000


# ---- clients that go


@pytest.mark.parametrize("gone", ["half-closed", "reset", "closed"])
async def test_a_client_that_goes_at_any_byte_of_its_request(stage: Stage, gone: str) -> None:
    """Half-closed counts as gone: nothing tells the two apart while an engine works."""
    done = asyncio.Event()

    async def never_answers(socket: EngineSocket) -> None:
        await socket.reader.read()
        await done.wait()

    stage.plays(never_answers)
    request = UPLOAD % 4 + b"{}  "
    for cut in range(len(request) + 1):
        async with connected(stage.server) as client:
            await send(client.writer, request[:cut])
            await until(lambda: len(clients(stage.server)) == 1)
            if gone == "reset":
                reset(client.writer)
            elif gone == "half-closed":
                client.writer.write_eof()
            else:
                client.writer.close()
            await nothing_left(stage)
    done.set()


async def test_a_client_that_goes_at_any_byte_of_its_answer(stage: Stage) -> None:
    body = b"".join(b"1\r\n%c\r\n" % code for code in b"an answer that goes on")
    gone = asyncio.Event()

    async def goes_on(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(CHUNKED + body)
        assert await socket.reader.read() == b"", "the engine learns that nobody listens"
        gone.set()

    stage.plays(goes_on)
    for count in range(0, len(CHUNKED + body), 3):
        gone.clear()
        async with connected(stage.server) as client:
            await client.send(POST)
            await within(client.reader.readexactly(count))
            await until(lambda: not clients(stage.server) or bool(inside(stage.server).requests))
            reset(client.writer)
        await within(gone.wait())
        await nothing_left(stage)


@pytest.mark.parametrize("queued", [1, 7])
async def test_clients_that_go_as_their_turn_comes(queued: int) -> None:
    """A place in the admission is not lost with one who was just about to get it."""
    async with staged(max_concurrent_requests=1, queue_size=queued) as stage:
        admission = inside(stage.server).admission
        assert admission is not None
        for leaving in range(queued + 1):
            finish = asyncio.Event()
            stage.plays(_answering_when(finish))
            async with connected(stage.server) as first:
                await first.send(POST)
                with ExitStack() as stack:
                    waiting = [stack.enter_context(closing(socket())) for _ in range(queued)]
                    for sock in waiting:
                        sock.connect(("127.0.0.1", stage.server.port))
                        sock.sendall(POST)
                    await until(lambda: len(inside(stage.server).requests) == queued + 1)
                    finish.set()
                    for sock in waiting[:leaving]:
                        sock.close()
                    assert (await first.response()).status == 200
            await nothing_left(stage)
        async with connected(stage.server) as client:
            assert (await client.post()).status == 200


def _answering_when(event: asyncio.Event):  # type: ignore[no-untyped-def]
    async def script(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            await event.wait()
            await socket.send(respond())

    return script


async def test_a_turn_that_comes_when_no_worker_is_left() -> None:
    """A client that was held back with its body, and is refused, is not held back any more."""
    size = 600_000
    async with staged(max_concurrent_requests=1) as stage:
        finish = asyncio.Event()
        stage.plays(_answering_when(finish))
        (worker,) = stage.server.registry
        async with connected(stage.server) as first, connected(stage.server) as second:
            await first.send(POST)
            await until(lambda: stage.engine.connections == 1)
            sending = asyncio.ensure_future(second.send(UPLOAD % size + b"x" * size))
            await until(lambda: any(client.reading.held for client in clients(stage.server)))
            stage.server.registry.set_health(worker, Health.DOWN)
            finish.set()
            assert (await second.response()).status == 503
            await within(sending)
            assert (await second.ask(b"GET", b"/health")).status == 200


# ---- clients that are many

MANY = 2_000


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for both ends of many connections."""
    needed = 2 * MANY + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        leave_out(f"{needed} descriptors are needed, {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/x HTTP/1.1\r\nHost: r\r\n", POST], ids=["silent", "half a head", "used"]
)
async def test_idle_connections_cost_a_few_objects_each(stage: Stage, sent: bytes) -> None:
    """And nothing is left of a request that was on one of them, nor of them when they go."""
    stage.plays(answering(respond()))
    await nothing_left(stage)
    gc.collect()
    before = Counter(type(thing).__name__ for thing in gc.get_objects())
    with ExitStack() as stack:
        for number in range(MANY):
            sock = stack.enter_context(socket())
            sock.connect(("127.0.0.1", stage.server.port))
            sock.sendall(sent)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(clients(stage.server)) == MANY)
        await until(lambda: not inside(stage.server).requests)
        inside(stage.server).pool.close_idle(float("inf"))
        await until(lambda: alive(EngineConnection) == 0)
        assert alive(ClientConnection) == MANY
        assert alive(RequestHead, Exchange) == 0
        grown = Counter(type(thing).__name__ for thing in gc.get_objects()) - before
        assert grown.total() <= 16 * MANY, f"of both ends: {grown.most_common(20)}"
    await until(lambda: not clients(stage.server))
    assert alive(ClientConnection) == 0


async def test_many_clients_that_ask_at_once_and_go(stage: Stage) -> None:
    """Some before, some within their answers; every engine connection goes with its client."""
    stage.plays(saying(CHUNKED + b"1\r\nx\r\n", end="wait"))
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(_ask_and_go(stage, number % 3))
    await nothing_left(stage)
    await until(lambda: alive(EngineConnection, ClientConnection, Exchange) == 0)


async def _ask_and_go(stage: Stage, when: int) -> None:
    async with connected(stage.server) as client:
        await client.send(POST if when else POST[:-1])
        if when == 2:
            await within(client.reader.readuntil(b"x\r\n"))
        reset(client.writer)
