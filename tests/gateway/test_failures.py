"""Engines and clients that fail, and limits that are met."""

import asyncio
import struct
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET

import pytest

from sgl_router.gateway import gateway, upload
from tests.gateway.support import (
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    answering,
    connected,
    deaf_url,
    free_url,
    respond,
    running,
    until,
    within,
)

POLICIES = ["round_robin", "cache_aware", "least_connections"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_refused_connection_goes_to_another_worker(policy: str) -> None:
    placements = Placements()
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"here"), seen)) as engine,
        running(free_url(), engine.url, policy=policy, placements=placements) as server,
        connected(server) as client,
    ):
        for _ in range(6):
            hint = b"x-smg-target-worker: 0\r\n"
            answer = await client.ask(b"POST", b"/v1/x", b'{"n": 1}', hint)
            assert answer.body == b"here"
    assert [request.body for request in seen] == [b'{"n": 1}'] * 6
    refused = [outcome for _, outcome in placements.done if outcome.error is not None]
    served = [outcome for _, outcome in placements.done if outcome.error is None]
    assert len(served) == 6
    assert all(outcome.success for outcome in served)
    assert len(refused) == 6
    assert not any(outcome.success for outcome in refused)


async def test_every_worker_refuses() -> None:
    async with running(free_url(), free_url()) as server, connected(server) as client:
        response = await client.post()
        assert (response.status, response.error_code) == (502, "call_upstream_connect_error")
        assert len(response.get(b"x-request-id")) == 1


async def test_a_reset_before_any_answer_goes_to_another_worker() -> None:
    async def resets(socket: EngineSocket) -> None:
        await socket.request()
        socket.writer.transport.abort()

    async with (
        ScriptedEngine(resets) as bad,
        ScriptedEngine(answering(respond(b"good"))) as good,
        running(bad.url, good.url) as server,
        connected(server) as client,
    ):
        assert (await client.post()).body == b"good"


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_request_of_which_an_answer_has_begun_is_not_sent_again(start: bytes) -> None:
    async def breaks_off(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(start)

    async with (
        ScriptedEngine(breaks_off) as bad,
        ScriptedEngine(answering(respond())) as good,
        running(bad.url, good.url) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == 502
        assert (bad.connections, good.connections) == (1, 0)


async def test_a_client_that_leaves_after_its_next_request_is_noticed() -> None:
    """Though nothing is read from it meanwhile."""
    closed, got = asyncio.Event(), asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        got.set()
        with suppress(ConnectionResetError):
            assert await socket.reader.read() == b""
        closed.set()

    request = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"
    async with ScriptedEngine(script) as engine, running(engine.url) as server:
        async with connected(server) as client:
            await client.send(request * 2)
            await within(got.wait())
        await within(closed.wait())


async def test_a_request_that_crashes_engines_reaches_two_of_them() -> None:
    """And takes none of them from the others."""
    crashes = 0

    async def script(socket: EngineSocket) -> None:
        nonlocal crashes
        while (request := await socket.request()) is not None:
            if request.body == b"poison":
                crashes += 1
                return
            await socket.send(respond(b"ok"))

    async with (
        ScriptedEngine(script) as one,
        ScriptedEngine(script) as two,
        ScriptedEngine(script) as three,
        running(one.url, two.url, three.url, disable_health_check=False) as server,
        connected(server) as client,
    ):
        await until(lambda: len(server.registry.view().eligible) == 3)
        for _ in range(4):
            response = await client.post(body=b"poison")
            assert (response.status, response.error_code) == (
                502,
                "call_upstream_connect_error",
            )
        assert crashes == 8
        assert (await client.post()).body == b"ok"
        assert len(server.registry.view().eligible) == 3


async def test_a_stale_connection_is_dialled_again_at_the_same_worker() -> None:
    """An engine may close a kept connection just as a request is sent on it."""
    second_came = 0

    async def closes_when_used_again(socket: EngineSocket) -> None:
        nonlocal second_came
        await socket.request()
        await socket.send(respond(b"%d" % engine.connections))
        if await socket.request() is not None:
            second_came += 1
        socket.writer.transport.abort()

    placements = Placements()
    async with (
        ScriptedEngine(closes_when_used_again) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        assert (await client.post()).body == b"1"
        assert (await client.post()).body == b"2"
    assert second_came == 1
    assert [outcome.error for _, outcome in placements.done] == [None, None]


async def test_connections_that_were_idle_for_long_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "IDLE_SECS", 0.0)
    monkeypatch.setattr(gateway, "SWEEP_SECS", 0.01)
    closed = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond())
        assert await socket.request() is None
        closed.set()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.post()
        await within(closed.wait())


@pytest.mark.parametrize("answered", [False, True], ids=["before the answer", "within the answer"])
async def test_a_client_that_leaves_stops_its_engine(answered: bool) -> None:
    closed = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        if answered:
            await socket.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst")
        got.set()
        with suppress(ConnectionResetError):
            assert await socket.reader.read() == b""
        closed.set()

    got = asyncio.Event()
    placements = Placements()
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, placements=placements) as server,
    ):
        async with connected(server) as client:
            await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
            await within(got.wait())
            if answered:
                await within(client.reader.readuntil(b"first"))
        await within(closed.wait())
    assert [outcome.success for _, outcome in placements.done] == [False]


async def test_a_client_that_leaves_within_its_body() -> None:
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, policy="cache_aware") as server,
    ):
        async with connected(server) as client:
            await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 9\r\n\r\n{")
        async with connected(server) as client:
            assert (await client.post()).status == 200
        assert engine.connections == 1


async def test_a_request_that_takes_too_long_is_ended_and_not_tried_again() -> None:
    closed = asyncio.Event()

    async def hangs(socket: EngineSocket) -> None:
        await socket.request()
        with suppress(ConnectionResetError):
            assert await socket.request() is None
        closed.set()

    async with (
        ScriptedEngine(hangs) as engine,
        ScriptedEngine(hangs) as other,
        running(engine.url, other.url, request_timeout_secs=0.1) as server,
        connected(server) as client,
    ):
        response = await client.post()
        assert (response.status, response.error_code) == (504, "call_upstream_timeout")
        await within(closed.wait())
        assert engine.connections + other.connections == 1


async def test_an_upload_that_is_refused_gets_its_answer() -> None:
    """The connection is read on for a while: closed with bytes unread, it would be reset."""
    size = 3 * 1024 * 1024
    async with running(free_url(), max_payload_size=1000) as server, connected(server) as client:
        client.writer.write(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size)
        client.writer.write(b"x" * size)
        response = await client.response()
        assert (response.status, response.error_code) == (413, "request_body_too_large")
        await within(client.writer.drain())


async def test_a_body_until_the_connections_end_is_not_complete_when_it_breaks() -> None:
    async def breaks(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await within(got.wait())
        linger = struct.pack("ii", 1, 0)
        socket.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
        socket.writer.transport.abort()

    got = asyncio.Event()
    placements = Placements()
    async with (
        ScriptedEngine(breaks) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
        await within(client.reader.readuntil(b"half of it"))
        got.set()
        with suppress(ConnectionResetError):
            assert b"0\r\n\r\n" not in await within(client.reader.read())
    assert [outcome.success for _, outcome in placements.done] == [False]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large(policy: str, chunked: bool) -> None:
    head = b"POST /v1/x HTTP/1.1\r\nHost: r\r\n"
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, policy=policy, max_payload_size=1000) as server,
        connected(server) as client,
    ):
        if chunked:
            await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001)
        else:
            await client.send(head + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001)
        response = await client.response()
        assert (response.status, response.error_code) == (413, "request_body_too_large")
        if not chunked:  # what is left of the body is dropped, and the connection can go on
            assert (await client.post()).status == 200


async def test_an_early_answer_ends_the_request() -> None:
    """An engine answers before it has the whole body: the client gets that answer."""

    async def script(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"part one")
        await socket.send(respond(b"enough", 413))
        await socket.reader.read()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 16\r\n\r\npart one")
        response = await client.response()
        assert (response.status, response.body) == (413, b"enough")
        await client.send(b"part two")
        health = await client.ask(b"GET", b"/health")
        assert health.status == 200


async def test_a_large_body_that_was_passed_on_is_not_sent_twice() -> None:
    """What was not kept cannot be replayed; the client learns that its request failed."""

    async def resets(socket: EngineSocket) -> None:
        await socket.reader.readexactly(upload.REPLAY_BYTES + 2)
        socket.writer.transport.abort()

    size = upload.REPLAY_BYTES + 500_000
    async with (
        ScriptedEngine(resets) as bad,
        ScriptedEngine(answering(respond())) as good,
        running(bad.url, good.url) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (size, b"x" * size)
        )
        response = await client.response()
        assert response.status == 502
        assert good.connections == 0


async def test_a_worker_that_accepts_nothing_is_given_up() -> None:
    with deaf_url() as deaf:
        async with (
            ScriptedEngine(answering(respond(b"here"))) as engine,
            running(deaf, engine.url, connect_timeout_secs=0.05) as server,
            connected(server) as client,
        ):
            assert (await client.post()).body == b"here"


async def test_no_worker_is_healthy() -> None:
    async with (
        running(free_url(), disable_health_check=False) as server,
        connected(server) as client,
    ):
        response = await client.post()
        assert (response.status, response.error_code) == (503, "no_available_workers")
