"""Decisions that come later, for requests whose two halves are served by two engines."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from sgl_router.core.decision import PendingDecision
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.disaggregated import DisaggregatedExchange, PrefillLeg
from sgl_router.gateway.retries import Retries
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.server import RouterServer
from tests.core.test_late_decisions import Deliberating, Deliberation
from tests.gateway.inside import Clock, context_of
from tests.gateway.pairs import (
    ENGINES,
    Silent,
    busy,
    decoding,
    judged,
    pairs,
    prefilling,
    send,
)
from tests.gateway.support import (
    Client,
    Placements,
    Request,
    Script,
    answering,
    connected,
    respond,
    settle,
    until,
    within,
)
from tests.gateway.test_cycles import freed, uncollected
from tests.gateway.test_late_decisions import asked


class Halves:
    """A router whose policies for prefill and decode engines take their time."""

    def __init__(self, server: RouterServer, client: Client) -> None:
        self.server, self.client = server, client
        self.prefill, self.decode = Deliberating(), Deliberating()
        dispatcher = context_of(server).dispatcher
        dispatcher.use(self.prefill, RoundRobin(), "prefill")
        dispatcher.use(self.decode, RoundRobin(), "decode")

    def loads(self) -> dict[str, int]:
        loads = {"prefill": 0, "decode": 0}
        for worker in self.server.registry:
            loads[worker.role] += worker.load
        return loads


@asynccontextmanager
async def halves(
    prefill: Sequence[Script | str], decode: Sequence[Script | str], **settings: Any
) -> AsyncIterator[Halves]:
    async with pairs(prefill, decode, **settings) as (server, client):
        yield Halves(server, client)


def received(requests: list[Request], count: int) -> bool:
    return len(requests) == count


@ENGINES
async def test_each_half_is_placed_when_its_decision_comes(pd_engine: str) -> None:
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    placements = Placements()
    async with halves(
        [prefilling(to_prefill)], [decoding(to_decode)], pd_engine=pd_engine, placements=placements
    ) as router:
        for count in (1, 2):
            await send(router.client)
            first = await asked(router.prefill, count)
            await settle()
            assert len(router.decode.asked) == len(to_prefill) == count - 1
            assert router.loads() == {"prefill": 0, "decode": 0}
            first.settle(0)
            second = await asked(router.decode, count)
            await until(partial(received, to_prefill, count))
            await settle()
            assert (len(to_decode), router.loads()["decode"]) == (count - 1, 0)
            second.settle(0)
            assert (await router.client.response()).body == b"decoded"
    assert judged(placements) == {"prefill": [True, True], "decode": [True, True]}
    sent = [orjson.loads(request.body) for request in (*to_prefill, *to_decode)]
    if pd_engine == "sglang":
        assert len({body["bootstrap_room"] for body in sent}) == 2, "one for each pair"
    else:
        assert sent[-1]["kv_transfer_params"] == {"remote_engine_id": "e"}


@ENGINES
@pytest.mark.parametrize("half", ["prefill", "decode"])
async def test_one_half_may_be_decided_at_once(pd_engine: str, half: str) -> None:
    async with halves([prefilling()], [decoding()], pd_engine=pd_engine) as router:
        dispatcher = context_of(router.server).dispatcher
        dispatcher.use(RoundRobin(), RoundRobin(), "prefill" if half == "prefill" else "decode")
        await send(router.client)
        (await asked(router.decode if half == "prefill" else router.prefill)).settle(0)
        assert (await router.client.response()).body == b"decoded"


async def waiting_for(router: Halves, half: str) -> Deliberation:
    """The decision for this half, which has not come."""
    first = await asked(router.prefill)
    if half == "prefill":
        return first
    first.settle(0)
    return await asked(router.decode)


@ENGINES
@pytest.mark.parametrize("half", ["prefill", "decode"])
@pytest.mark.parametrize("ends", ["leaves", "is timed out"])
async def test_a_half_is_not_started_after_the_end(pd_engine: str, half: str, ends: str) -> None:
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    placements = Placements()
    async with halves(
        [prefilling(to_prefill)], [decoding(to_decode)], pd_engine=pd_engine, placements=placements
    ) as router:
        clock = Clock(router.server)
        async with connected(router.server) as client:
            await send(client)
            choice = await waiting_for(router, half)
            await until(lambda: half == "prefill" or placements.done)
            if ends == "is timed out":
                clock.advance(10_000)
                assert (await client.response()).status == 504
        await until(lambda: not context_of(router.server).requests)
        assert choice.given_up
        choice.settle(0)
        await settle()
        assert len(to_prefill) == (half == "decode")
        assert to_decode == []
        assert router.loads() == {"prefill": 0, "decode": 0}
    assert judged(placements)["decode"] == []


@ENGINES
@pytest.mark.parametrize("half", ["prefill", "decode"])
async def test_a_half_may_be_declined(pd_engine: str, half: str) -> None:
    placements = Placements()
    async with halves(
        [prefilling()], [decoding()], pd_engine=pd_engine, placements=placements
    ) as router:
        await send(router.client)
        (await waiting_for(router, half)).settle(None)
        answer = await router.client.response()
        assert (answer.status, answer.error_code) == (503, "no_available_workers")
        assert router.loads() == {"prefill": 0, "decode": 0}
    assert len(placements.done) == (half == "decode")


async def test_a_prefill_engine_is_stopped_where_no_decode_engine_is_chosen() -> None:
    silent = Silent()
    async with halves([silent], [decoding()], pd_engine="sglang") as router:
        await send(router.client)
        choice = await waiting_for(router, "decode")
        await within(silent.asked.wait())
        choice.settle(None)
        assert (await router.client.response()).status == 503
        await within(silent.closed.wait())


async def test_a_prefill_engine_may_fail_before_its_peer_is_chosen() -> None:
    """Then both are chosen anew; the first choice of a decode engine is no longer waited for."""
    silent = Silent()
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    async with halves(
        [silent, prefilling(to_prefill)], [decoding(to_decode)], pd_engine="sglang"
    ) as router:
        failing, good = (w.url for w in router.server.registry if w.role == "prefill")
        await send(router.client)
        (await asked(router.prefill)).take(failing)
        first = await asked(router.decode)
        await within(silent.asked.wait())
        silent.die()
        again = await asked(router.prefill, 2)
        assert first.given_up
        first.settle(0)
        await settle()
        assert (to_decode, router.loads()["decode"]) == ([], 0)
        again.take(good)
        (await asked(router.decode, 2)).settle(0)
        assert (await router.client.response()).body == b"decoded"
    assert len(to_decode) == 1
    rooms = {orjson.loads(request.body)["bootstrap_room"] for request in to_prefill + to_decode}
    assert len(rooms) == 1


@ENGINES
@pytest.mark.parametrize("status", [429, 503])
async def test_a_prefill_engine_may_be_busy(pd_engine: str, status: int) -> None:
    to_decode: list[Request] = []
    async with halves(
        [busy(status), prefilling()], [decoding(to_decode)], pd_engine=pd_engine
    ) as router:
        full, good = (w.url for w in router.server.registry if w.role == "prefill")
        await send(router.client)
        (await asked(router.prefill)).take(full)
        (await asked(router.prefill, 2)).take(good)
        (await asked(router.decode, 2 if pd_engine == "sglang" else 1)).settle(0)
        assert (await router.client.response()).body == b"decoded"
        for choice in router.decode.asked[:-1]:
            assert choice.given_up
            choice.settle(0)
    assert len(to_decode) == 1


@ENGINES
async def test_what_a_prefill_engine_refuses_is_passed_on(pd_engine: str) -> None:
    async with halves(
        [answering(respond(b"no such model", 400))], [decoding()], pd_engine=pd_engine
    ) as router:
        await send(router.client)
        (await asked(router.prefill)).settle(0)
        answer = await router.client.response()
        assert (answer.status, answer.body) == (400, b"no such model")
        assert all(choice.given_up for choice in router.decode.asked)
        assert len(router.decode.asked) == (pd_engine == "sglang")


@ENGINES
async def test_a_decode_engine_may_be_busy(pd_engine: str) -> None:
    """Both halves are placed anew, each when its decision comes."""
    async with halves([prefilling()] * 2, [busy(503), decoding()], pd_engine=pd_engine) as router:
        full, good = (w.url for w in router.server.registry if w.role == "decode")
        await send(router.client)
        (await asked(router.prefill)).settle(0)
        (await asked(router.decode)).take(full)
        (await asked(router.prefill, 2)).settle(1)
        (await asked(router.decode, 2)).take(good)
        assert (await router.client.response()).body == b"decoded"


async def test_a_prefill_engine_is_not_blamed_while_its_peer_is_being_chosen() -> None:
    silent, placements = Silent(), Placements()
    async with halves(
        [silent],
        [decoding()],
        pd_engine="sglang",
        placements=placements,
        first_byte_timeout_secs=30,
        request_timeout_secs=300,
    ) as router:
        clock = Clock(router.server)
        await send(router.client)
        choice = await waiting_for(router, "decode")
        await within(silent.asked.wait())
        clock.advance(100)
        assert context_of(router.server).requests, "it cannot answer without its peer"
        clock.advance(300)
        answer = await router.client.response()
        assert answer.status == 504
        assert b"--request-timeout-secs" in answer.body
        assert choice.given_up
    assert judged(placements) == {"prefill": [None], "decode": []}


async def test_after_a_pause_a_prefill_engine_has_its_time_like_any() -> None:
    """The pause is over when its decision comes, however soon that is."""
    silent, waiting, placements = Silent(), Silent(), Placements()
    async with pairs(
        [busy(503), silent],
        [answering(b""), waiting],
        pd_engine="sglang",
        placements=placements,
        first_byte_timeout_secs=30,
    ) as (server, client):
        clock = Clock(server)
        await send(client)
        await within(silent.asked.wait())
        await within(waiting.asked.wait())
        clock.advance(31)
        answer = await client.response()
        assert answer.status == 504
        assert b"--first-byte-timeout-secs" in answer.body
    assert judged(placements) == {"prefill": [False, False], "decode": [None, None]}


@ENGINES
@pytest.mark.parametrize("half", ["prefill", "decode"])
@pytest.mark.parametrize("ends", ["chosen", "declined", "left"])
async def test_it_is_freed_with_its_request(pd_engine: str, half: str, ends: str) -> None:
    async with halves(
        [prefilling()], [decoding()], pd_engine=pd_engine, disable_circuit_breaker=True
    ) as router:
        with uncollected():
            for _ in range(5):
                async with connected(router.server) as client:
                    await send(client)
                    choice = await waiting_for(router, half)
                    if ends == "declined":
                        choice.settle(None)
                        assert (await client.response()).status == 503
                    elif ends == "chosen":
                        choice.settle(0)
                        if half == "prefill":
                            (await asked(router.decode)).settle(0)
                        assert (await client.response()).status == 200
                await until(lambda: not context_of(router.server).requests)
                router.prefill.asked.clear()
                router.decode.asked.clear()
                del choice
            assert await freed(DisaggregatedExchange, PrefillLeg, Attempt, Retries, PendingDecision)
