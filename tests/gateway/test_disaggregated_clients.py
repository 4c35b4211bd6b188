"""What the client of a pair of engines sees and does, and that nothing stays counted."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.server import RouterServer
from tests.gateway.pairs import (
    BODY,
    ENGINES,
    PREFILLED,
    STREAM,
    Silent,
    decoding,
    judged,
    pairs,
    prefilling,
    send,
)
from tests.gateway.support import (
    EngineSocket,
    Placements,
    Request,
    connected,
    free_url,
    respond,
    until,
    within,
)

# ---- the client's side


@ENGINES
@pytest.mark.parametrize("during", ["prefill", "decode"])
async def test_a_client_that_leaves(pd_engine: str, during: str) -> None:
    prefill, decode, placements = Silent(), Silent(STREAM), Placements()
    async with pairs(
        [prefill if during == "prefill" else prefilling()],
        [decode],
        pd_engine=pd_engine,
        placements=placements,
    ) as (server, _):
        async with connected(server) as client:
            await send(client)
            engine = prefill if during == "prefill" else decode
            await within(engine.asked.wait())
        await within(engine.closed.wait())
        await until(lambda: not any(worker.load for worker in server.registry))
    assert False not in judged(placements)["prefill"] + judged(placements)["decode"]


@ENGINES
async def test_requests_follow_each_other_on_one_connection(pd_engine: str) -> None:
    """Pipelined too, and however they are framed."""
    to_decode: list[Request] = []
    async with pairs([prefilling()], [decoding(to_decode)], pd_engine=pd_engine) as (_, client):
        whole = b"POST /generate HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (
            len(BODY),
            BODY,
        )
        chunked = (
            b"POST /generate HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
        )
        await client.send((whole + chunked) * 3)
        for _ in range(6):
            answer = await client.response()
            assert (answer.status, answer.body) == (200, b"decoded")
    assert all(request.body.startswith(BODY[:-1]) for request in to_decode)
    assert all(request.head.content_length == len(request.body) for request in to_decode)


async def test_an_answer_names_its_decode_engine() -> None:
    async with pairs([prefilling()], [decoding()]) as (server, client):
        answer = await client.post(b"/generate", BODY)
        (decode,) = (worker for worker in server.registry if worker.role == "decode")
        assert answer.get(b"x-smg-routed-worker-id") == [decode.id.encode()]


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_policy_that_raises_costs_one_request_its_answer(
    role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(self: RoundRobin, workers: Any, request: Any) -> int:
        if broken and workers[0].role == role:
            raise ZeroDivisionError
        return 0

    broken = True
    monkeypatch.setattr(RoundRobin, "select_worker", select)
    async with pairs([prefilling()], [decoding()]) as (_, client):
        answer = await client.post(b"/generate", BODY)
        assert (answer.status, answer.error_code) == (500, "internal_error")
        broken = False
        assert (await client.post(b"/generate", BODY)).body == b"decoded"


# ---- all of it


@ENGINES
async def test_nothing_stays_counted_whatever_happens(pd_engine: str) -> None:
    """Engines fail in every way, clients leave at any moment; see `running`."""
    chance = random.Random(11)

    async def moody(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            mood = chance.random()
            if mood < 0.1:
                return
            if mood < 0.2:
                await socket.send(respond(b"busy", chance.choice([429, 503])))
            elif mood < 0.25:
                await socket.send(b"nonsense\r\n\r\n")
                return
            elif mood < 0.35:
                await socket.send(STREAM)
                return
            else:
                await asyncio.sleep(chance.random() / 100)
                await socket.send(respond(PREFILLED))

    async def client_loop(server: RouterServer) -> None:
        for _ in range(20):
            async with connected(server) as client:
                await send(client)
                if chance.random() < 0.3:
                    await asyncio.sleep(chance.random() / 50)
                    continue
                with suppress(ProtocolError, ConnectionError):
                    statuses.append((await client.response()).status)

    statuses: list[int] = []
    async with pairs(
        [moody, moody, free_url()],
        [moody, moody, free_url()],
        pd_engine=pd_engine,
        max_concurrent_requests=6,
        disable_circuit_breaker=True,
        policy="cache_aware",
    ) as (server, _):
        await within(asyncio.gather(*(client_loop(server) for _ in range(8))))
        await until(lambda: not any(worker.load for worker in server.registry))
    assert statuses.count(200) > 20
    assert set(statuses) <= {200, 429, 502, 503}


@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_to_head_has_no_body(status: int) -> None:
    """Neither half of it: a connection on which one is awaited would be held until a time-out."""

    async def answers(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            answer = respond(b"one and one", 200 if request.head.method == b"POST" else status)
            head, end, body = answer.partition(b"\r\n\r\n")
            await socket.send(head + end + (body if request.head.method == b"POST" else b""))

    async with pairs([answers], [answers]) as (server, client):
        for _ in range(2):
            assert (await client.ask(b"HEAD", b"/v1/thing", BODY)).status == status
            answer = await client.post(b"/generate", BODY)
            assert (answer.status, answer.body) == (200, b"one and one")
        await until(lambda: all(worker.load == 0 for worker in server.registry))
