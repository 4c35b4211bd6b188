"""Requests whose prefill and decode are served by two engines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from sgl_router.server import RouterServer
from tests.gateway.support import (
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
    within,
)

BODY = b'{"text": "hello",  "sampling_params": {"temperature": 0.10}}'


@asynccontextmanager
async def disaggregated(
    prefill: list[str], decode: list[str], **settings: Any
) -> AsyncIterator[tuple[RouterServer, Client]]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            running(
                pd_disaggregation=True,
                prefill=tuple(f"{url} 8998" for url in prefill),
                decode=tuple(decode),
                **settings,
            )
        )
        yield server, await stack.enter_async_context(connected(server))


async def test_sglang_engines_are_sent_the_request_at_once_and_meet_in_one_room() -> None:
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"prefilled"), to_prefill)) as prefill,
        ScriptedEngine(answering(respond(b"decoded"), to_decode)) as decode,
        disaggregated([prefill.url], [decode.url]) as (_, client),
    ):
        response = await client.post(b"/generate", BODY)
        assert response.body == b"decoded"
        again = await client.post(b"/generate", BODY)
        assert again.body == b"decoded"
    for ours, theirs in zip(to_prefill, to_decode, strict=True):
        assert ours.body == theirs.body
        assert ours.body.startswith(BODY[:-1]), "the client's bytes are as they were"
        added = orjson.loads(ours.body)
        assert (added["bootstrap_host"], added["bootstrap_port"]) == ("127.0.0.1", 8998)
        assert 0 <= added["bootstrap_room"] < 2**63
    rooms = {orjson.loads(request.body)["bootstrap_room"] for request in to_prefill}
    assert len(rooms) == 2
    ids = [request.head.get(b"x-request-id") for request in (*to_prefill, *to_decode)]
    assert len(set(ids)) == 2, "both halves carry the request's id"


async def test_the_decode_stream_does_not_wait_for_the_prefill_answer() -> None:
    arrived = asyncio.Event()

    async def silent(socket: EngineSocket) -> None:
        await socket.request()
        arrived.set()
        await asyncio.Event().wait()

    async with (
        ScriptedEngine(silent) as prefill,
        ScriptedEngine(answering(respond(b"decoded"))) as decode,
        disaggregated([prefill.url], [decode.url]) as (_, client),
    ):
        assert (await client.post(b"/generate", BODY)).body == b"decoded"
        await within(arrived.wait())


async def test_a_client_that_leaves_stops_both_engines() -> None:
    closed = [asyncio.Event(), asyncio.Event()]
    begun = [asyncio.Event(), asyncio.Event()]

    def generating(index: int) -> Any:
        async def script(socket: EngineSocket) -> None:
            await socket.request()
            begun[index].set()
            assert await socket.request() is None
            closed[index].set()

        return script

    async with (
        ScriptedEngine(generating(0)) as prefill,
        ScriptedEngine(generating(1)) as decode,
        disaggregated([prefill.url], [decode.url]) as (server, _),
    ):
        async with connected(server) as client:
            await client.send(
                b"POST /generate HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b"
                % (len(BODY), BODY)
            )
            for event in begun:
                await within(event.wait())
        for event in closed:
            await within(event.wait())


@pytest.mark.parametrize("dead", ["prefill", "decode"])
async def test_a_half_that_is_refused_goes_to_another_engine(dead: str) -> None:
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond(b"prefilled"))) as prefill,
        ScriptedEngine(answering(respond(b"decoded"))) as decode,
        disaggregated(
            [free_url(), prefill.url] if dead == "prefill" else [prefill.url],
            [free_url(), decode.url] if dead == "decode" else [decode.url],
            placements=placements,
        ) as (server, client),
    ):
        for _ in range(4):
            assert (await client.post(b"/generate", BODY)).body == b"decoded"
        assert all(worker.load == 0 for worker in server.registry)


async def test_an_error_of_the_prefill_engine_is_the_answer() -> None:
    async def waits(socket: EngineSocket) -> None:
        assert await socket.request() is not None
        assert await socket.request() is None

    refusal = respond(b'{"error": "too long"}', 400, b"Content-Type: application/problem\r\n")
    async with (
        ScriptedEngine(answering(refusal)) as prefill,
        ScriptedEngine(waits) as decode,
        disaggregated([prefill.url], [decode.url]) as (_, client),
    ):
        response = await client.post(b"/generate", BODY)
        assert (response.status, response.body) == (400, b'{"error": "too long"}')
        assert response.get(b"content-type") == [b"application/problem"]


async def test_no_prefill_engine_is_left() -> None:
    async with (
        ScriptedEngine(answering(respond(b"decoded"))) as decode,
        disaggregated([free_url()], [decode.url]) as (_, client),
    ):
        response = await client.post(b"/generate", BODY)
        assert response.status == 502


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"{", b'"text"'])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    async with disaggregated([free_url()], [free_url()]) as (_, client):
        response = await client.post(b"/generate", body)
        assert response.status == 400
        assert orjson.loads(response.body)["error"]["code"] == "invalid_json"


async def test_vllm_engines_are_asked_one_after_the_other() -> None:
    params = {"do_remote_prefill": True, "remote_block_ids": [4, 5], "remote_engine_id": "e"}
    to_prefill: list[Request] = []
    to_decode: list[Request] = []
    prefilled = respond(orjson.dumps({"choices": [], "kv_transfer_params": params}))
    body = b'{"model": "m", "prompt": "p",  "stream": true, "max_tokens": 50}'
    async with (
        ScriptedEngine(answering(prefilled, to_prefill)) as prefill,
        ScriptedEngine(answering(respond(b"decoded"), to_decode)) as decode,
        disaggregated([prefill.url], [decode.url], pd_engine="vllm") as (_, client),
    ):
        assert (await client.post(b"/v1/completions", body)).body == b"decoded"
    asked = orjson.loads(to_prefill[0].body)
    assert (asked["max_tokens"], asked["stream"]) == (1, False)
    assert to_decode[0].body.startswith(body[:-1])
    assert orjson.loads(to_decode[0].body)["kv_transfer_params"] == params


async def test_a_vllm_prefill_engine_without_a_connector_is_named() -> None:
    async with (
        ScriptedEngine(answering(respond(b'{"choices": []}'))) as prefill,
        ScriptedEngine(answering(respond(b"decoded"))) as decode,
        disaggregated([prefill.url], [decode.url], pd_engine="vllm") as (_, client),
    ):
        response = await client.post(b"/v1/completions", BODY)
        assert response.status == 502
        assert b"kv_transfer_params" in response.body
