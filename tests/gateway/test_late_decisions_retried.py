"""Decisions that come later, the second and third of a request; and what they leave behind."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sgl_router.core.decision import PendingDecision
from sgl_router.core.worker import Health, Worker
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.retries import Retries
from sgl_router.server import RouterServer
from tests.core.test_late_decisions import Deliberating, Deliberation
from tests.gateway.inside import Clock, context_of
from tests.gateway.support import (
    POST,
    Client,
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
)
from tests.gateway.test_cycles import freed, uncollected
from tests.gateway.test_late_decisions import FAILURE, READS, asked, deliberating

SOON: dict[str, Any] = {"retry_initial_backoff_ms": 1, "retry_max_backoff_ms": 1}


def may_have_it(choice: Deliberation) -> set[str]:
    return {choice.workers[index].url for index in choice.workers.eligible}


async def closing(socket: EngineSocket) -> None:
    """Reads a request and says nothing."""
    await socket.request()


REFUSALS: list[Any] = [
    pytest.param(None, id="refused"),
    pytest.param(closing, id="closed"),
    pytest.param(answering(respond(b"busy", 503)), id="busy"),
]


@READS
@pytest.mark.parametrize("script", REFUSALS)
async def test_the_second_decision_may_come_late_too(
    script: Callable[[EngineSocket], Awaitable[None]] | None, reads: bool
) -> None:
    placements = Placements()
    seen: list[Request] = []
    async with (
        ScriptedEngine(script or closing) as one,
        ScriptedEngine(answering(respond(b"good"), seen)) as two,
    ):
        bad = one.url if script is not None else free_url()
        async with (
            deliberating(bad, two.url, reads=reads, placements=placements, **SOON) as (
                server,
                policy,
            ),
            connected(server) as client,
        ):
            for count in (1, 3):
                await client.send(POST)
                first = await asked(policy, count)
                assert may_have_it(first) == {bad, two.url}
                first.take(bad)
                second = await asked(policy, count + 1)
                assert may_have_it(second) == {two.url}, "it has been tried"
                assert second.request.attempt == 1
                await settle()
                assert [worker.load for worker in server.registry] == [0, 0]
                second.take(two.url)
                assert (await client.response()).body == b"good"
    assert [request.body for request in seen] == [b"{}", b"{}"]
    assert [outcome.success for _, outcome in placements.done] == [False, True] * 2


@pytest.mark.parametrize("ends", ["leaves", "is timed out", "is declined"])
@pytest.mark.parametrize("script", REFUSALS)
async def test_it_may_end_before_the_second_decision(
    script: Callable[[EngineSocket], Awaitable[None]] | None, ends: str
) -> None:
    placements = Placements()
    async with (
        ScriptedEngine(script or closing) as one,
        ScriptedEngine(answering(respond(b"good"))) as two,
    ):
        bad = one.url if script is not None else free_url()
        async with deliberating(bad, two.url, placements=placements, **SOON) as (server, policy):
            clock = Clock(server)
            async with connected(server) as client:
                await client.send(POST)
                (await asked(policy)).take(bad)
                second = await asked(policy, 2)
                if ends == "is declined":
                    second.settle(None)
                    assert (await client.response()).error_code == "no_available_workers"
                elif ends == "is timed out":
                    clock.advance(1800)
                    assert (await client.response()).status == 504
            await until(lambda: not context_of(server).requests)
            assert second.given_up is (ends != "is declined")
            second.take(two.url)
            await settle()
            assert (two.connections, len(placements.done)) == (0, 1)


async def test_the_worker_of_the_second_decision_may_have_gone() -> None:
    async with (
        ScriptedEngine(answering(respond(b"good"))) as good,
        deliberating(free_url(), free_url(), good.url) as (server, policy),
        connected(server) as client,
    ):
        one, two, _ = server.registry
        await client.send(POST)
        (await asked(policy)).take(one.url)
        second = await asked(policy, 2)
        server.registry.remove(two)
        second.take(two.url)
        assert (await client.response()).body == b"good"


async def test_no_worker_may_be_left_for_the_second_decision() -> None:
    async with (
        deliberating(free_url(), free_url()) as (server, policy),
        connected(server) as client,
    ):
        one, two = server.registry
        await client.send(POST)
        (await asked(policy)).take(one.url)
        second = await asked(policy, 2)
        server.registry.remove(two)
        second.take(two.url)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (503, "no_available_workers")
        assert b"tried: 1" in answer.body


async def test_a_body_goes_on_while_the_second_decision_is_made() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"good"), seen)) as good,
        deliberating(free_url(), good.url) as (server, policy),
        connected(server) as client,
    ):
        (bad, _) = server.registry
        await client.send(POST.replace(b"Length: 2", b"Length: 12").replace(b"{}", b"one,"))
        (await asked(policy)).take(bad.url)
        second = await asked(policy, 2)
        await client.send(b"two,")
        (exchange,) = context_of(server).requests
        assert isinstance(exchange, Exchange)
        await until(lambda: exchange._upload.received == 8)
        await settle()
        assert len(policy.asked) == 2
        second.take(good.url)
        await client.send(b"last")
        assert (await client.response()).body == b"good"
    assert [request.body for request in seen] == [b"one,two,last"]


# ---- what is left


async def chosen(policy: Deliberating, client: Client, server: RouterServer) -> None:
    policy.asked.pop().settle(1)
    assert (await client.response()).status == 200


async def declined(policy: Deliberating, client: Client, server: RouterServer) -> None:
    policy.asked.pop().settle(None)
    assert (await client.response()).status == 503


async def failed(policy: Deliberating, client: Client, server: RouterServer) -> None:
    server.registry.set_health(next(iter(server.registry)), Health.DOWN)  # the busy one
    policy.asked.pop().settle(FAILURE)
    assert (await client.response()).status == 200


async def retried(policy: Deliberating, client: Client, server: RouterServer) -> None:
    policy.asked.pop().settle(0)
    await asked(policy)
    await chosen(policy, client, server)


async def timed_out(policy: Deliberating, client: Client, server: RouterServer) -> None:
    clock = context_of(server).clock
    assert isinstance(clock, Clock)
    clock.advance(10_000)
    assert (await client.response()).status == 504
    assert policy.asked.pop().given_up


@pytest.mark.parametrize("ends", [chosen, declined, failed, retried, timed_out])
async def test_it_is_freed_with_its_request(
    ends: Callable[[Deliberating, Client, RouterServer], Awaitable[None]],
) -> None:
    async with (
        ScriptedEngine(answering(respond(b"busy", 503))) as busy,
        ScriptedEngine(answering(respond(b"good"))) as good,
        deliberating(busy.url, good.url, disable_circuit_breaker=True, **SOON) as (server, policy),
        connected(server) as client,
    ):
        Clock(server)
        with uncollected():
            for _ in range(10):
                await client.send(POST)
                await asked(policy)
                await ends(policy, client, server)
            assert await freed(Exchange, Attempt, Retries, PendingDecision)


async def test_a_request_that_goes_well_has_no_more_than_it_needs() -> None:
    """One that is not tried again, and whose decision is there at once."""
    held: list[dict[str, object]] = []

    async def script(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            held.extend(dict(vars(request)) for request in context_of(server).requests)
            await socket.send(respond())

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        for _ in range(2):
            assert (await client.post()).status == 200
    assert len(held) == 2
    for attributes in held:
        assert not {"retries", "_awaited"} & set(attributes)
        assert isinstance(attributes["_attempt"], Attempt)
        assert isinstance(attributes["_attempt"].worker, Worker)
