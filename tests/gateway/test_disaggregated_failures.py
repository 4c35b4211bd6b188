"""Pairs of engines of which one declines, hangs or dies.

What the client gets, who is blamed, and that nothing stays counted.
"""

import asyncio

import orjson
import pytest

from tests.gateway.inside import Clock
from tests.gateway.pairs import (
    BODY,
    ENGINES,
    PREFILLED,
    STREAM,
    Silent,
    busy,
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
    answering,
    respond,
    until,
    within,
)

# ---- one half declines


@ENGINES
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("half", ["prefill", "decode"])
async def test_a_half_that_declines_is_another_engines(
    pd_engine: str, status: int, half: str
) -> None:
    """Both halves begin anew, in a room of their own."""
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    declines = busy(status)
    prefill = [prefilling(to_prefill), declines if half == "prefill" else prefilling(to_prefill)]
    decode = [decoding(to_decode), declines if half == "decode" else decoding(to_decode)]
    async with pairs(prefill, decode, pd_engine=pd_engine) as (server, client):
        for _ in range(6):
            answer = await client.post(b"/generate", BODY)
            assert (answer.status, answer.body) == (200, b"decoded")
            assert answer.get(b"retry-after") == []
        assert all(worker.load == 0 for worker in server.registry)
    if pd_engine == "sglang":
        rooms = [orjson.loads(request.body)["bootstrap_room"] for request in to_decode]
        met = {orjson.loads(request.body)["bootstrap_room"] for request in to_prefill}
        assert len(set(rooms)) == len(rooms)
        assert set(rooms[-1:]) <= met


@ENGINES
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("half", ["prefill", "decode"])
async def test_where_no_other_is_left_its_answer_is_passed_on(
    pd_engine: str, status: int, half: str
) -> None:
    waits = Silent()
    prefill = busy(status) if half == "prefill" else prefilling()
    decode = busy(status) if half == "decode" else waits
    async with pairs([prefill], [decode], pd_engine=pd_engine) as (_, client):
        answer = await client.post(b"/generate", BODY)
    assert (answer.status, answer.body) == (status, b"busy")
    assert answer.get(b"retry-after") == [b"7"]


@ENGINES
async def test_retries_have_an_end(pd_engine: str) -> None:
    seen: list[Request] = []
    prefill = [busy(429, seen) for _ in range(5)]
    async with pairs(prefill, [decoding()], pd_engine=pd_engine, retry_max_retries=2) as (
        _,
        client,
    ):
        assert (await client.post(b"/generate", BODY)).status == 429
    assert len(seen) == 3


async def test_a_prefill_engine_is_stopped_while_the_pair_waits() -> None:
    """Its decode engine has declined: there is nobody whom it could meet."""
    prefill = Silent()
    settings = {"retry_initial_backoff_ms": 60_000, "retry_max_backoff_ms": 60_000}
    async with pairs([prefill], [busy(429), busy(429)], **settings) as (server, client):
        await send(client)
        await within(prefill.closed.wait())
        assert all(worker.load == 0 for worker in server.registry)


# ---- one half dies


@pytest.mark.parametrize("half", ["prefill", "decode"])
async def test_a_half_that_dies_before_its_answer_is_another_engines(half: str) -> None:
    async def dies(socket: EngineSocket) -> None:
        assert await socket.request() is not None

    async def prefills(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            prefilled.set()
            await socket.send(respond(PREFILLED))

    async def decodes(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            await within(prefilled.wait())  # it would have nothing to say before
            await socket.send(respond(b"decoded"))

    prefilled = asyncio.Event()
    prefill = [prefills, dies if half == "prefill" else prefills]
    decode = [decodes, dies if half == "decode" else decodes]
    async with pairs(prefill, decode, policy="round_robin") as (_, client):
        for _ in range(4):
            prefilled.clear()
            assert (await client.post(b"/generate", BODY)).body == b"decoded"


@ENGINES
async def test_a_decode_engine_that_dies_within_its_stream(pd_engine: str) -> None:
    decode, placements = Silent(STREAM), Placements()
    async with pairs([prefilling()], [decode], pd_engine=pd_engine, placements=placements) as (
        _,
        client,
    ):
        await send(client)
        await within(client.reader.readuntil(b"data: 1\n\n"))
        decode.die()
        rest = await within(client.reader.readuntil(b"0\r\n\r\n"))
        assert b'"error"' in rest
        assert b"[DONE]" not in rest
    assert judged(placements) == {"prefill": [True], "decode": [False]}


@pytest.mark.parametrize("failure", ["dies", "declines", "answers nonsense"])
async def test_a_stream_goes_on_whatever_becomes_of_its_prefill_engine(failure: str) -> None:
    """Once it has begun, the decode engine has all that it needs."""
    prefill, decode = Silent(), Silent(STREAM)
    async with pairs([prefill], [decode]) as (_, client):
        await send(client)
        await within(prefill.asked.wait())
        await within(client.reader.readuntil(b"data: 1\n\n"))
        if failure == "dies":
            prefill.die()
        else:
            prefill.say(respond(b"", 503) if failure == "declines" else b"nonsense\r\n\r\n")
        await until(lambda: prefill.closed.is_set() or failure == "declines")
        decode.say(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        rest = await within(client.reader.readuntil(b"0\r\n\r\n"))
        assert rest.endswith(b"data: 2\n\n\r\n0\r\n\r\n")
        assert b"error" not in rest


@pytest.mark.parametrize("answer", [b"{}", b"[", b"", b'{"kv_transfer_params": 1}'])
async def test_a_vllm_prefill_engine_that_does_not_say_where_its_blocks_are(answer: bytes) -> None:
    seen: list[Request] = []
    async with pairs([answering(respond(answer))], [decoding(seen)], pd_engine="vllm") as (
        _,
        client,
    ):
        response = await client.post(b"/generate", BODY)
    assert (response.status, response.error_code) == (502, "call_upstream_protocol_error")
    assert seen == []


@ENGINES
@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_error_of_the_prefill_engine_is_the_clients(pd_engine: str, status: int) -> None:
    decode, placements = Silent(), Placements()
    async with pairs([busy(status)], [decode], pd_engine=pd_engine, placements=placements) as (
        _,
        client,
    ):
        answer = await client.post(b"/generate", BODY)
    assert (answer.status, answer.body) == (status, b"busy")
    expected = {"prefill": [status < 500], "decode": [None] if pd_engine == "sglang" else []}
    assert judged(placements) == expected


# ---- one half hangs


@ENGINES
@pytest.mark.parametrize("limit", ["first_byte_timeout_secs", "request_timeout_secs"])
async def test_a_prefill_engine_that_hangs_is_blamed(pd_engine: str, limit: str) -> None:
    """Its decode engine is not: it waits for what does not come."""
    prefill, decode, placements = Silent(), Silent(), Placements()
    async with pairs(
        [prefill], [decode], pd_engine=pd_engine, placements=placements, **{limit: 10}
    ) as (server, client):
        clock = Clock(server)
        await send(client)
        await within(prefill.asked.wait())
        if pd_engine == "sglang":
            await within(decode.asked.wait())
        clock.advance(11)
        answer = await client.response()
        assert (answer.status, answer.error_code) == (504, "call_upstream_timeout")
        await within(prefill.closed.wait())
    expected = {"prefill": [False], "decode": [None] if pd_engine == "sglang" else []}
    assert judged(placements) == expected


@ENGINES
async def test_a_decode_engine_that_hangs_is_blamed(pd_engine: str) -> None:
    decode, placements = Silent(), Placements()
    async with pairs(
        [prefilling()], [decode], pd_engine=pd_engine, placements=placements,
        first_byte_timeout_secs=10,
    ) as (server, client):  # fmt: skip
        clock = Clock(server)
        await send(client)
        await within(decode.asked.wait())
        await until(lambda: [worker.load for worker in server.registry] == [0, 1])
        clock.advance(11)
        assert (await client.response()).status == 504
    assert judged(placements) == {"prefill": [True], "decode": [False]}
