"""Pairs of engines of which one declines, hangs or dies.

What the client gets, who is blamed, and that nothing stays counted.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import orjson
import pytest

from sgl_router.errors import ProtocolError
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.server import RouterServer
from tests.gateway.inside import Clock
from tests.gateway.support import (
    Client,
    EngineSocket,
    Placements,
    Request,
    Script,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
    until,
    within,
)

BODY = b'{"text": "hello", "stream": true}'
PREFILLED = orjson.dumps({"kv_transfer_params": {"remote_engine_id": "e"}})
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n"
)
BUSY = b"Retry-After: 7\r\n"
ENGINES = pytest.mark.parametrize("pd_engine", ["sglang", "vllm"])


@asynccontextmanager
async def pairs(
    prefill: Sequence[Script | str], decode: Sequence[Script | str], **settings: Any
) -> AsyncIterator[tuple[RouterServer, Client]]:
    """A router in front of engines that follow these scripts, or are at these URLs."""
    async with AsyncExitStack() as stack:
        urls: list[list[str]] = [[], []]
        for half, scripts in zip(urls, (prefill, decode), strict=True):
            for given in scripts:
                if isinstance(given, str):
                    half.append(given)
                else:
                    half.append((await stack.enter_async_context(ScriptedEngine(given))).url)
        settings = {"retry_initial_backoff_ms": 1, "retry_max_backoff_ms": 1, **settings}
        server = await stack.enter_async_context(
            running(
                pd_disaggregation=True,
                prefill=tuple(urls[0]),
                decode=tuple(urls[1]),
                **settings,
            )
        )
        yield server, await stack.enter_async_context(connected(server))


def prefilling(seen: list[Request] | None = None) -> Script:
    return answering(respond(PREFILLED), seen)


def decoding(seen: list[Request] | None = None) -> Script:
    return answering(respond(b"decoded"), seen)


def busy(status: int, seen: list[Request] | None = None) -> Script:
    return answering(respond(b"busy", status, BUSY), seen)


class Silent:
    """Takes requests and says nothing, until the test says something for it."""

    def __init__(self, begin: bytes = b"") -> None:
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self._begin = begin
        self._writer: asyncio.StreamWriter | None = None

    async def __call__(self, socket: EngineSocket) -> None:
        self._writer = socket.writer
        await socket.request()
        await socket.send(self._begin)
        self.asked.set()
        with suppress(ConnectionResetError):
            await socket.reader.read()
        self.closed.set()

    def say(self, data: bytes) -> None:
        assert self._writer is not None, "it has been asked"
        self._writer.write(data)

    def die(self) -> None:
        assert self._writer is not None, "it has been asked"
        self._writer.close()


async def send(client: Client, body: bytes = BODY) -> None:
    await client.send(
        b"POST /generate HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def judged(placements: Placements) -> dict[str, list[bool | None]]:
    """What the outcomes said of prefill and of decode engines."""
    said: dict[str, list[bool | None]] = {"prefill": [], "decode": []}
    for decision, outcome in placements.done:
        said[decision.worker.role].append(outcome.engine_ok)
    return said


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
