"""Answers that say "not now": who is asked next, how often, and what the client gets."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from sgl_router.gateway import upload
from sgl_router.gateway.exchange import Exchange
from tests.gateway.inside import Clock, context_of
from tests.gateway.support import (
    POST,
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
    settle,
    until,
    within,
)

SOON: dict[str, Any] = {"retry_initial_backoff_ms": 1, "retry_max_backoff_ms": 1}
BUSY = b"Retry-After: 7\r\nX-Queue: full\r\n"


@pytest.mark.parametrize(("status", "engine_ok"), [(429, None), (503, False)])
async def test_a_busy_answer_goes_to_another_worker(status: int, engine_ok: bool | None) -> None:
    """As the client sent it; and says of the engine what its status says."""
    refused: list[Request] = []
    served: list[Request] = []
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond(b"busy", status, BUSY), refused)) as busy,
        ScriptedEngine(answering(respond(b"good"), served)) as good,
        running(busy.url, good.url, placements=placements, **SOON) as server,
        connected(server) as client,
    ):
        bodies = [b'{"n": %d}' % n for n in range(6)]
        for body in bodies:
            answer = await client.post(body=body)
            assert (answer.status, answer.body) == (200, b"good")
            assert answer.get(b"retry-after") == []
        assert busy.connections == 1, "its connection is kept: the answer was whole"
    assert [request.body for request in served] == bodies
    assert refused
    assert {request.body for request in refused} <= set(bodies)
    ids = [request.head.get(b"x-request-id") for request in served]
    assert set(ids) >= {request.head.get(b"x-request-id") for request in refused}
    judged = [o for _, o in placements.done if o.worker_url == busy.url]
    assert len(judged) == len(refused)
    for outcome in judged:
        assert (outcome.success, outcome.status, outcome.engine_ok) == (False, status, engine_ok)
        assert outcome.error is not None


@pytest.mark.parametrize("policy", ["power_of_two", "round_robin", "least_connections"])
async def test_no_worker_is_asked_twice(policy: str) -> None:
    """And each of the others is asked before the request fails."""
    seen: list[list[Request]] = [[], [], []]
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                ScriptedEngine(answering(respond(b"busy", 429, BUSY), requests))
            )
            for requests in seen
        ]
        server = await stack.enter_async_context(
            running(*(engine.url for engine in engines), policy=policy, **SOON)
        )
        client = await stack.enter_async_context(connected(server))
        answers = [await client.post() for _ in range(8)]
    assert {answer.status for answer in answers} == {429}
    for requests in seen:
        assert (
            len({request.head.get(b"x-request-id") for request in requests}) == len(requests) == 8
        )


async def test_the_last_answer_is_passed_on_as_it_is() -> None:
    async def waits(socket: EngineSocket) -> None:
        request = await socket.request()
        assert request is not None
        await socket.send(b"HTTP/1.1 503 Starting\r\n%bTransfer-Encoding: chunked\r\n\r\n" % BUSY)
        await socket.send(b"3\r\nnot\r\n5\r\n yet!\r\n0\r\n\r\n")
        await socket.request()

    placements = Placements()
    async with (
        ScriptedEngine(waits) as one,
        ScriptedEngine(waits) as two,
        running(one.url, two.url, placements=placements, **SOON) as server,
        connected(server) as client,
    ):
        answer = await client.post()
        ids = {worker.url: worker.id.encode() for worker in server.registry}
    assert (answer.status, answer.body) == (503, b"not yet!")
    assert answer.get(b"retry-after") == [b"7"]
    assert answer.get(b"x-queue") == [b"full"]
    last = placements.done[-1][1]
    assert answer.get(b"x-smg-routed-worker-id") == [ids[last.worker_url]]
    assert [outcome.error is None for _, outcome in placements.done] == [False, True]


@pytest.mark.parametrize("status", [400, 404, 408, 500, 501, 502, 504])
async def test_other_errors_are_passed_on_at_once(status: int) -> None:
    """After them the engine may have worked on the request, or another would say the same."""
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"sorry", status, BUSY), seen)) as one,
        ScriptedEngine(answering(respond(b"sorry", status, BUSY), seen)) as two,
        running(one.url, two.url, **SOON) as server,
        connected(server) as client,
    ):
        answer = await client.post()
    assert (answer.status, answer.body, answer.get(b"retry-after")) == (status, b"sorry", [b"7"])
    assert len(seen) == 1


@pytest.mark.parametrize("status", [429, 503, None], ids=["429", "503", "refused"])
async def test_retries_can_be_switched_off(status: int | None) -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"busy", status or 200, BUSY), seen)) as one,
        ScriptedEngine(answering(respond(b"busy", status or 200, BUSY), seen)) as two,
        running(
            *([free_url(), free_url()] if status is None else [one.url, two.url]),
            disable_retries=True,
            placements=(placements := Placements()),
        ) as server,
        connected(server) as client,
    ):
        answer = await client.post()
    assert answer.status == (status or 502)
    assert len(placements.done) == 1
    assert len(seen) == (status is not None)


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("reachable", [True, False])
async def test_so_many_retries_and_no_more(retries: int, reachable: bool) -> None:
    placements = Placements()
    async with AsyncExitStack() as stack:
        urls = [free_url() for _ in range(6)]
        if reachable:
            engines = [ScriptedEngine(answering(respond(b"busy", 503, BUSY))) for _ in range(6)]
            urls = [(await stack.enter_async_context(engine)).url for engine in engines]
        server = await stack.enter_async_context(
            running(*urls, retry_max_retries=retries, placements=placements, **SOON)
        )
        client = await stack.enter_async_context(connected(server))
        answer = await client.post()
    assert answer.status == (503 if reachable else 502)
    asked = Counter(outcome.worker_url for _, outcome in placements.done)
    assert asked.total() == len(asked) == retries + 1


async def test_a_busy_answer_that_does_not_end_is_not_waited_for() -> None:
    closed = asyncio.Event()

    async def endless(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nbecause")
        with suppress(ConnectionResetError):
            assert await socket.reader.read() == b""
        closed.set()

    async with (
        ScriptedEngine(endless) as busy,
        ScriptedEngine(answering(respond(b"good"))) as good,
        running(busy.url, good.url, **SOON) as server,
        connected(server) as client,
    ):
        while not closed.is_set():
            assert (await client.post()).body == b"good"
            await settle()


@pytest.mark.parametrize(("policy", "again"), [("round_robin", False), ("cache_aware", True)])
async def test_a_large_upload_is_sent_again_only_where_it_was_kept(
    policy: str, again: bool
) -> None:
    """A policy may have the body read first; else it is passed on, and not kept beyond 1 MiB."""
    size = upload.REPLAY_BYTES + 500_000
    engines: list[ScriptedEngine] = []

    async def first_is_busy(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            assert len(request.body) == size
            others = sum(engine.connections for engine in engines)
            await socket.send(respond(b"busy", 429, BUSY) if others == 1 else respond(b"good"))

    async with (
        ScriptedEngine(first_is_busy) as one,
        ScriptedEngine(first_is_busy) as two,
        running(one.url, two.url, policy=policy, **SOON) as server,
        connected(server) as client,
    ):
        engines += [one, two]
        answer = await client.post(body=b"x" * size)
        assert one.connections + two.connections == 1 + again
    assert (answer.status, answer.body) == ((200, b"good") if again else (429, b"busy"))
    assert answer.get(b"retry-after") == ([] if again else [b"7"])


async def test_an_upload_under_way_is_sent_again_from_its_beginning() -> None:
    """The first engine declines when it has read a part; the other one gets all of it."""
    seen: list[Request] = []
    declined = asyncio.Event()

    async def declines(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"part one")
        await socket.send(respond(b"busy", 429))
        declined.set()
        await socket.reader.read()

    async def script(socket: EngineSocket) -> None:
        await (declines(socket) if not declined.is_set() else answers(socket))

    answers = answering(respond(b"good"), seen)
    async with (
        ScriptedEngine(script) as one,
        ScriptedEngine(script) as two,
        running(one.url, two.url, **SOON) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 16\r\n\r\npart one")
        await within(declined.wait())
        await client.send(b"part two")
        assert (await client.response()).body == b"good"
        assert (await client.post()).body == b"good"
    assert seen[0].body == b"part onepart two"


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_waits_for_a_retry_may_leave_and_may_be_timed_out(leaves: bool) -> None:
    """Then nobody is asked any more."""
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"busy", 503), seen)) as one,
        ScriptedEngine(answering(respond(b"busy", 503), seen)) as two,
        running(
            one.url,
            two.url,
            retry_initial_backoff_ms=60_000,
            retry_max_backoff_ms=60_000,
        ) as server,
    ):
        clock = Clock(server)
        async with connected(server) as client:
            await client.send(POST)
            await until(lambda: seen and not any(worker.load for worker in server.registry))
            (request,) = context_of(server).requests
            assert isinstance(request, Exchange) and request.retries._pause is not None
            retry = request.retries._pause
            if not leaves:
                clock.advance(1800)
                answer = await client.response()
                assert (answer.status, answer.error_code) == (504, "call_upstream_timeout")
        await until(lambda: request not in context_of(server).requests)
        assert retry.cancelled()
        await settle()
        assert len(seen) == 1


async def test_a_worker_that_comes_in_the_meantime_is_asked() -> None:
    """What is there when the retry comes counts, not what was there when the request came."""
    seen: list[Request] = []
    added = asyncio.Event()

    async def busy(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            seen.append(request)
            await within(added.wait())
            await socket.send(respond(b"busy", 429))

    async with (
        ScriptedEngine(busy) as one,
        ScriptedEngine(answering(respond(b"good"))) as two,
        running(one.url, **SOON) as server,
        connected(server) as client,
        connected(server) as admin,
    ):
        await client.send(POST)
        await until(lambda: seen)
        body = b'{"url": "%b"}' % two.url.encode()
        answer = await admin.ask(b"POST", b"/workers", body, b"Content-Type: application/json\r\n")
        assert answer.status == 202
        added.set()
        assert (await client.response()).body == b"good"
