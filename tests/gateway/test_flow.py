"""Back-pressure: a slow side holds up its own peer and nothing else, and memory stays bounded."""

import asyncio
import socket
from typing import cast

import pytest

from sgl_router.gateway import downstream
from tests.gateway.inside import client_connection, gateway_of
from tests.gateway.support import (
    POST,
    Client,
    EngineSocket,
    ScriptedEngine,
    answering,
    connected,
    deaf_url,
    respond,
    running,
    settle,
    until,
    within,
)

PIECE = b"x" * 65_536
PIECES = 1024  # 64 MiB: far above what sockets and buffers of one connection hold
HELD_BYTES = 24 * 1024 * 1024


async def _write_until_held(writer: asyncio.StreamWriter, pieces: int) -> int:
    """Write until a write does not get through for a while; returns the bytes written."""
    written = 0
    for _ in range(pieces):
        writer.write(PIECE)
        written += len(PIECE)
        try:
            async with asyncio.timeout(0.3):
                await writer.drain()
        except TimeoutError:
            break
    return written


async def test_a_slow_client_holds_back_its_engine() -> None:
    held = asyncio.get_running_loop().create_future()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        socket.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (PIECES * len(PIECE))
        )
        written = await _write_until_held(socket.writer, PIECES)
        held.set_result(written)
        for _ in range(PIECES - written // len(PIECE)):
            await socket.send(PIECE)
        await socket.request()

    async with (
        ScriptedEngine(script) as engine,
        ScriptedEngine(answering(respond(b"quick"))) as other,
        running(engine.url, other.url) as server,
        connected(server) as slow,
        connected(server) as quick,
    ):
        await slow.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
        assert await within(held) < HELD_BYTES
        assert (await quick.post()).body == b"quick"
        head = await within(slow.reader.readuntil(b"\r\n\r\n"))
        assert b"200" in head
        body = await within(slow.reader.readexactly(PIECES * len(PIECE)))
        assert body == PIECE * PIECES


async def test_a_slow_engine_holds_back_its_client() -> None:
    read_on = asyncio.Event()
    got = asyncio.get_running_loop().create_future()

    async def script(socket: EngineSocket) -> None:
        await within(read_on.wait())
        request = await socket.request()
        assert request is not None
        got.set_result(request.body)
        await socket.send(respond(b"done"))

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        size = PIECES * len(PIECE)
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size)
        written = await _write_until_held(client.writer, PIECES)
        assert written < HELD_BYTES
        read_on.set()
        for _ in range(PIECES - written // len(PIECE)):
            await client.send(PIECE)
        assert await within(got) == PIECE * PIECES
        assert (await client.response()).body == b"done"


async def test_a_client_is_held_back_while_there_is_no_connection() -> None:
    with deaf_url() as deaf:
        async with running(deaf) as server, connected(server) as client:
            size = PIECES * len(PIECE)
            await client.send(
                b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size
            )
            assert await _write_until_held(client.writer, PIECES) < HELD_BYTES


async def test_answers_that_nobody_reads_hold_back_the_next_requests() -> None:
    """A client that only sends is not read on while its answers wait."""
    urls = [f"http://127.0.0.1:{port}" for port in range(1, 200)]  # for a long list of workers
    async with running(*urls) as server, connected(server) as client:
        request = b"GET /workers HTTP/1.1\r\nHost: r\r\n\r\n" * 1000
        written = 0
        for _ in range(200):
            client.writer.write(request)
            written += len(request)
            try:
                async with asyncio.timeout(0.3):
                    await client.writer.drain()
            except TimeoutError:
                break
        assert server._gateway is not None
        (connection,) = server._gateway._clients.connections
        assert connection._transport.get_write_buffer_size() < 1024 * 1024


async def test_an_early_answer_is_not_cut_off_while_it_is_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downstream, "LINGER_SECS", 0.01)
    size = 64 * len(PIECE)

    async def script(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"part one")
        await socket.send(respond(b"x" * size))
        await socket.reader.read()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: r\r\nConnection: close\r\n"
            b"Content-Length: 16\r\n\r\npart one"
        )
        head = await within(client.reader.readuntil(b"\r\n\r\n"))
        await asyncio.sleep(0.1)  # ten times as long as the connection lingers
        assert b"200" in head
        assert await within(client.reader.readexactly(size)) == b"x" * size


async def test_a_pipelining_client_that_does_not_read_holds_back_the_next_engine() -> None:
    """Also one that is still to be connected to when the answer before fills the client's side."""
    small, large = b"y" * 50_000, PIECE * 256

    async def script(engine: EngineSocket) -> None:
        request = await engine.request()
        assert request is not None
        if request.head.path == "/v1/large":
            await engine.send(respond(large))
        else:
            await engine.send(respond(small, extra=b"Connection: close\r\n"))

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with ScriptedEngine(script) as engine, running(engine.url) as server:
            sock.connect(("127.0.0.1", server.port))
            sock.setblocking(False)
            client = Client(*await asyncio.open_connection(sock=sock))
            transport = cast(asyncio.Transport, client.writer.transport)
            try:
                transport.pause_reading()
                await until(lambda: gateway_of(server)._clients.connections)
                connection = client_connection(server)
                ours = connection._transport.get_extra_info("socket")
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                await client.send(POST * 2 + POST.replace(b"/v1/x", b"/v1/large"))
                await until(lambda: connection._full)
                for _ in range(20):
                    await settle()
                assert connection.unsent < 2_000_000
                transport.resume_reading()
                for body in (small, small, large):
                    assert (await client.response()).body == body
            finally:
                transport.abort()
