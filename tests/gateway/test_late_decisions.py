"""Decisions that come later: what may happen to a request that waits for one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sgl_router.core.policy import Choice
from sgl_router.core.worker import Health
from sgl_router.errors import DecisionError
from sgl_router.gateway.exchange import WAITING_BYTES, Exchange
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.server import RouterServer
from tests.core.test_late_decisions import Deliberating, Deliberation
from tests.gateway.inside import Clock, admission, client_connection, context_of
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

READS = pytest.mark.parametrize("reads", [True, False], ids=["reads bodies", "reads no bodies"])
CHUNKED = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
FAILURE = DecisionError("deliberating", "timeout", "it took too long")


@asynccontextmanager
async def deliberating(
    *urls: str, reads: bool = False, **settings: Any
) -> AsyncIterator[tuple[RouterServer, Deliberating]]:
    """A router whose policy takes its time; nothing may be left of what was asked of it."""
    policy = Deliberating(frozenset({"body"} if reads else ()))
    async with running(*urls, **settings) as server:
        context_of(server).dispatcher.use(policy, RoundRobin())
        yield server, policy


async def asked(policy: Deliberating, count: int = 1) -> Deliberation:
    """The latest choice, once so many have been asked for."""
    await until(lambda: len(policy.asked) >= count, lambda: len(policy.asked))
    assert len(policy.asked) == count
    return policy.asked[-1]


def post(name: str) -> bytes:
    return POST.replace(b"/v1/x", b"/v1/" + name.encode())


@READS
async def test_the_request_goes_where_it_is_said_later(reads: bool) -> None:
    placements = Placements()
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"one"))) as one,
        ScriptedEngine(answering(respond(b"two"), seen)) as two,
        deliberating(one.url, two.url, reads=reads, placements=placements) as (server, policy),
        connected(server) as client,
    ):
        for count in (1, 2):
            await client.send(POST)
            choice = await asked(policy, count)
            await settle()
            assert sum(worker.load for worker in server.registry) == 0
            assert len(seen) == len(placements.done) == count - 1
            choice.take(two.url)
            assert (await client.response()).body == b"two"
        assert (one.connections, two.connections) == (0, 1)
    assert [request.body for request in seen] == [b"{}", b"{}"]
    assert [outcome.success for _, outcome in placements.done] == [True, True]
    assert len(policy.told) == 2, "it learns how they have ended"


async def test_who_was_asked_first_need_not_answer_first() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"good"), seen)) as engine,
        deliberating(engine.url) as (server, policy),
        connected(server) as one,
        connected(server) as two,
    ):
        await one.send(post("one"))
        await asked(policy)
        await two.send(post("two"))
        (await asked(policy, 2)).settle(0)
        assert (await two.response()).status == 200
        policy.asked[0].settle(0)
        assert (await one.response()).status == 200
    assert [request.head.path for request in seen] == ["/v1/two", "/v1/one"]


@READS
async def test_a_policy_may_decline_late(reads: bool) -> None:
    async with (
        deliberating(free_url(), reads=reads) as (server, policy),
        connected(server) as client,
    ):
        for count in (1, 2):
            await client.send(POST)
            (await asked(policy, count)).settle(None)
            answer = await client.response()
            assert (answer.status, answer.error_code) == (503, "no_available_workers")
            assert len(answer.get(b"x-request-id")) == 1


@pytest.mark.parametrize("happens", ["fails", "leaves", "goes down"])
async def test_the_fallback_chooses_where_that_cannot_be(happens: str) -> None:
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond(b"good"))) as engine,
        deliberating(free_url(), engine.url, placements=placements) as (server, policy),
        connected(server) as client,
    ):
        gone = next(worker for worker in server.registry if worker.url != engine.url)
        await client.send(POST)
        choice = await asked(policy)
        if happens == "leaves":
            server.registry.remove(gone)
        else:
            server.registry.set_health(gone, Health.DOWN)
        if happens == "fails":
            choice.settle(FAILURE)
        else:
            choice.take(gone.url)
        assert (await client.response()).body == b"good"
    ((decision, _),) = placements.done
    assert decision.policy.name == "round_robin"
    assert decision.failure is (FAILURE if happens == "fails" else None)


@pytest.mark.parametrize("choice", [0, None, FAILURE])
async def test_no_worker_may_be_left(choice: Choice) -> None:
    async with deliberating(free_url()) as (server, policy), connected(server) as client:
        (worker,) = server.registry
        await client.send(POST)
        pending = await asked(policy)
        server.registry.remove(worker)
        pending.settle(choice)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (503, "no_available_workers")


# ---- the body


@READS
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_comes_before_during_and_after(chunked: bool, reads: bool) -> None:
    """A policy that reads it is asked when it is complete, the other one at once."""

    def part(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data

    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"good"), seen)) as engine,
        deliberating(engine.url, reads=reads) as (server, policy),
        connected(server) as client,
    ):
        head = CHUNKED if chunked else POST.replace(b"Length: 2\r\n\r\n{}", b"Length: 12\r\n\r\n")
        await client.send(head + part(b"one,"))
        await until(lambda: context_of(server).requests)
        (exchange,) = context_of(server).requests
        assert isinstance(exchange, Exchange)
        if not reads:
            await asked(policy)
        await client.send(part(b"two,"))
        await until(lambda: exchange._upload.received == 8)
        await settle()
        assert len(policy.asked) == (not reads), "asked once, whatever comes of the body"
        if not reads:
            policy.asked[0].settle(0)
        await client.send(part(b"last") + (b"0\r\n\r\n" if chunked else b""))
        if reads:
            (await asked(policy)).settle(0)
        assert (await client.response()).body == b"good"
    assert [request.body for request in seen] == [b"one,two,last"]


async def test_a_body_that_is_complete_before_the_decision_is_sent_with_it() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"good"), seen)) as engine,
        deliberating(engine.url) as (server, policy),
        connected(server) as client,
    ):
        await client.send(POST[:-1])
        choice = await asked(policy)
        await client.send(POST[-1:])
        (exchange,) = context_of(server).requests
        assert isinstance(exchange, Exchange)
        await until(lambda: exchange._upload.over)
        choice.settle(0)
        assert (await client.response()).body == b"good"
    assert [request.body for request in seen] == [b"{}"]
    assert len(policy.asked) == 1


async def test_a_client_is_held_back_until_there_is_a_decision() -> None:
    seen: list[Request] = []
    size = 4 * 1024 * 1024
    async with (
        ScriptedEngine(answering(respond(b"good"), seen)) as engine,
        deliberating(engine.url) as (server, policy),
        connected(server) as client,
    ):
        head = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size
        sending = asyncio.ensure_future(client.send(head + b"x" * size))
        choice = await asked(policy)
        reading = client_connection(server).reading
        await until(lambda: reading.held)
        (exchange,) = context_of(server).requests
        assert isinstance(exchange, Exchange)
        assert WAITING_BYTES < exchange._upload.received < 4 * WAITING_BYTES
        choice.settle(0)
        await within(sending)
        assert (await client.response()).body == b"good"
        assert not reading.held
    assert len(seen[0].body) == size


@pytest.mark.parametrize("declines", [True, False], ids=["declined", "timed out"])
async def test_a_client_that_was_held_back_is_read_on_after_an_error(declines: bool) -> None:
    size = 900 * 1024
    async with deliberating(free_url()) as (server, policy), connected(server) as client:
        clock = Clock(server)
        head = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % size
        sending = asyncio.ensure_future(client.send(head + b"x" * size))
        choice = await asked(policy)
        await until(lambda: client_connection(server).reading.held)
        if declines:
            choice.settle(None)
        else:
            clock.advance(1800)
        assert (await client.response()).status == (503 if declines else 504)
        await within(sending)
        await client.send(POST)
        (await asked(policy, 2)).settle(None)
        assert (await client.response()).status == 503, "the connection is used on"


@pytest.mark.parametrize(
    ("more", "status"),
    [(b"2\r\n{}\r\n4\r\n1234\r\n", 413), (b"nonsense\r\n", 400)],
    ids=["too large", "not HTTP"],
)
async def test_a_body_that_goes_wrong_ends_the_waiting(more: bytes, status: int) -> None:
    async with (
        deliberating(free_url(), max_payload_size=3) as (server, policy),
        connected(server) as client,
    ):
        await client.send(CHUNKED)
        choice = await asked(policy)
        await client.send(more)
        assert (await client.response()).status == status
        assert choice.given_up


# ---- the end before the decision


@READS
@pytest.mark.parametrize("choice", [0, None, FAILURE])
async def test_who_leaves_is_not_placed_any_more(choice: Choice, reads: bool) -> None:
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond())) as engine,
        deliberating(engine.url, reads=reads, placements=placements) as (server, policy),
    ):
        async with connected(server) as client:
            await client.send(POST)
            pending = await asked(policy)
        await until(lambda: pending.given_up)
        assert not context_of(server).requests
        pending.settle(choice)
        await settle()
        assert (engine.connections, placements.done) == (0, [])
        assert [worker.load for worker in server.registry] == [0]


async def test_time_goes_on_while_it_waits() -> None:
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond())) as engine,
        deliberating(engine.url, placements=placements, request_timeout_secs=60) as (
            server,
            policy,
        ),
        connected(server) as client,
    ):
        clock = Clock(server)
        await client.send(POST)
        choice = await asked(policy)
        clock.advance(59)
        assert context_of(server).requests
        clock.advance(2)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (504, "call_upstream_timeout")
        assert b"--request-timeout-secs" in answer.body
        assert choice.given_up
        choice.settle(0)
        await settle()
        assert (engine.connections, placements.done) == (0, [])
        await client.send(POST)
        (await asked(policy, 2)).settle(0)
        assert (await client.response()).status == 200, "the next one has its own time"


async def test_an_engine_has_its_time_from_when_it_has_the_request() -> None:
    limit: dict[str, Any] = {"first_byte_timeout_secs": 30}
    placements = Placements()

    async def silent(socket: EngineSocket) -> None:
        await socket.request()
        reached.set()
        await socket.request()

    reached = asyncio.Event()
    async with (
        ScriptedEngine(silent) as engine,
        deliberating(engine.url, placements=placements, **limit) as (server, policy),
        connected(server) as client,
    ):
        clock = Clock(server)
        await client.send(POST)
        choice = await asked(policy)
        clock.advance(100)
        assert not choice.given_up, "no engine has been asked for its first byte"
        choice.settle(0)
        await within(reached.wait())
        clock.advance(29)
        assert context_of(server).requests
        clock.advance(2)
        answer = await client.response()
        assert answer.status == 504
        assert b"--first-byte-timeout-secs" in answer.body
    ((_, outcome),) = placements.done
    assert outcome.engine_ok is False


async def test_a_body_that_does_not_come_ends_the_waiting() -> None:
    async with deliberating(free_url()) as (server, policy), connected(server) as client:
        clock = Clock(server)
        await client.send(POST[:-1])
        choice = await asked(policy)
        clock.advance(600)
        assert (await client.response()).status == 408
        assert choice.given_up


@pytest.mark.parametrize("in_time", [True, False])
async def test_the_router_may_stop_meanwhile(in_time: bool) -> None:
    async with (
        ScriptedEngine(answering(respond(b"good"))) as engine,
        deliberating(engine.url) as (server, policy),
        connected(server) as client,
    ):
        await client.send(POST)
        choice = await asked(policy)
        stopping = asyncio.ensure_future(server.stop(20 if in_time else 0))
        await until(lambda: context_of(server).draining)
        if in_time:
            choice.settle(0)
            assert (await client.response()).body == b"good"
        assert await within(stopping) is in_time
        assert choice.given_up is not in_time
        choice.settle(0)
        assert engine.connections == in_time


async def test_who_waits_for_a_decision_keeps_its_place() -> None:
    async with (
        ScriptedEngine(answering(respond(b"good"))) as engine,
        deliberating(engine.url, max_concurrent_requests=1) as (server, policy),
        connected(server) as two,
    ):
        async with connected(server) as one:
            await one.send(post("one"))
            first = await asked(policy)
            await two.send(post("two"))
            await until(lambda: admission(server) == (1, 1))
            await settle()
            assert len(policy.asked) == 1, "its turn has not come"
        second = await asked(policy, 2)
        assert first.given_up
        assert admission(server) == (1, 0)
        second.settle(0)
        assert (await two.response()).body == b"good"
        await until(lambda: admission(server) == (0, 0))
