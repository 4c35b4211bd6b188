"""Engines that die within an answer: nobody may take it for complete."""

import asyncio
import gzip
import json
import struct
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import openai
import orjson
import pytest

from sgl_router.errors import ProtocolError
from tests.gateway.support import (
    EngineSocket,
    Placements,
    Response,
    Script,
    ScriptedEngine,
    connected,
    respond,
    running,
    settle,
    within,
)

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
EVENT = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
HALF = b'data: {"id": "1", "choi'

Death = Callable[[EngineSocket], Awaitable[None]]


async def ends(socket: EngineSocket) -> None:
    socket.writer.close()


async def resets(socket: EngineSocket) -> None:
    linger = struct.pack("ii", 1, 0)
    socket.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
    socket.writer.transport.abort()


async def talks_nonsense(socket: EngineSocket) -> None:
    await socket.send(b"nonsense\r\n")
    assert await socket.request() is None, "it is not asked again"


DEATHS = pytest.mark.parametrize("death", [ends, resets, talks_nonsense])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def dying(head: bytes, pieces: list[bytes], death: Death) -> Script:
    """A script that dies within its first answer, after these pieces; then it is well."""
    answers = 0

    async def script(socket: EngineSocket) -> None:
        nonlocal answers
        while await socket.request() is not None:
            answers += 1
            if answers > 1:
                await socket.send(respond(b"well"))
                continue
            await socket.send(head)
            for piece in pieces:
                await socket.send(piece)
                await settle()  # a reset takes away what was not read
            await death(socket)
            return

    return script


def events(body: bytes) -> list[bytes]:
    assert body.endswith(b"\n\n")
    return [event for event in body.split(b"\n\n") if event]


def data_of(event: bytes) -> dict[str, Any]:
    (line,) = [line for line in event.splitlines() if line.startswith(b"data: ")]
    data: dict[str, Any] = orjson.loads(line.removeprefix(b"data: "))
    return data


@DEATHS
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    "pieces",
    [[], [EVENT], [EVENT, EVENT + HALF], [EVENT[:-1], b"\n"], [EVENT[:-1]]],
    ids=["before", "between", "within", "between, in pieces", "within, before the last line feed"],
)
async def test_a_stream_of_events_ends_with_one_that_says_so(
    death: Death, version: bytes, pieces: list[bytes]
) -> None:
    placements = Placements()
    script = dying(STREAM % CHUNKED, [chunk(piece) for piece in pieces], death)
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/chat/completions HTTP/%b\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}" % version
        )
        answer = await client.response()
        if version == b"1.1":  # the answer has ended, so that the next one can follow
            assert (await client.post()).body == b"well"
        else:
            assert await client.closed()
    assert answer.status == 200
    assert answer.body.startswith(b"".join(pieces)), "what came is passed on"
    assert b"[DONE]" not in answer.body
    error = data_of(events(answer.body)[-1])["error"]
    assert set(error) == {"type", "code", "message", "param"}
    assert (error["type"], error["code"]) == ("server_error", "call_upstream_protocol_error")
    outcome = placements.done[0][1]
    assert (outcome.success, outcome.status, outcome.engine_ok) == (False, 200, False)
    assert outcome.error is not None


async def test_the_messages_api_has_its_own_form_of_an_error() -> None:
    script = dying(STREAM % CHUNKED, [chunk(b"event: ping\ndata: {}\n\n")], ends)
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        answer = await client.post(b"/v1/messages")
    last = events(answer.body)[-1]
    assert last.startswith(b"event: error\n")
    data = data_of(last)
    assert data["type"] == "error"
    assert isinstance(data["error"]["message"], str)


async def broken_answer(head: bytes, body: bytes, death: Death, version: bytes = b"1.1") -> None:
    """Ask for an answer that breaks off; the client must notice by itself."""
    placements = Placements()
    async with (
        ScriptedEngine(dying(head, [body], death)) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/%b\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}" % version)
        with pytest.raises((ProtocolError, ConnectionError)):
            await client.response()
        assert await client.closed()
    (outcome,) = (outcome for _, outcome in placements.done)
    assert (outcome.success, outcome.status, outcome.engine_ok) == (False, 200, False)


@DEATHS
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    "more",
    [
        b"Content-Type: application/json\r\n",
        b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
    ],
    ids=["no events", "encoded events"],
)
async def test_where_no_event_can_be_added_the_answer_is_cut(
    death: Death, version: bytes, more: bytes
) -> None:
    """Also for an HTTP/1.0 client, to whom the connection's end would be the answer's."""
    body = chunk(gzip.compress(EVENT) if b"gzip" in more else b'{"choices": [')
    await broken_answer(b"HTTP/1.1 200 OK\r\n%b%b\r\n" % (more, CHUNKED), body, death, version)


@pytest.mark.parametrize("death", [ends, resets])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_of_known_length_is_cut(death: Death, version: bytes) -> None:
    """A shorter one would be noticed, an event in its place might not."""
    await broken_answer(STREAM % b"Content-Length: 1000\r\n", EVENT, death, version)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_until_the_connections_end_that_is_reset(version: bytes) -> None:
    await broken_answer(b"HTTP/1.0 200 OK\r\n\r\n", b"half of it", resets, version)


async def streamed(pieces: list[bytes], death: Death, placements: Placements) -> Response:
    async with (
        ScriptedEngine(dying(STREAM % b"", pieces, death)) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        return await client.post()


async def test_events_until_the_connections_end() -> None:
    """What ends with a FIN is complete, for nothing says that it is not; a reset says so."""
    placements = Placements()
    whole = await streamed([EVENT], ends, placements)
    broken = await streamed([EVENT], resets, placements)
    assert whole.body == EVENT
    assert broken.body.startswith(EVENT)
    error = data_of(events(broken.body)[-1])["error"]
    assert "Connection reset by peer" in error["message"], "what happened is told"
    assert [outcome.engine_ok for _, outcome in placements.done] == [True, False]


@DEATHS
@pytest.mark.parametrize("within_event", [False, True])
async def test_the_openai_client_raises(death: Death, within_event: bool) -> None:
    script = dying(STREAM % CHUNKED, [chunk(EVENT), chunk(HALF if within_event else EVENT)], death)
    contents: list[str | None] = []
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        expected = json.JSONDecodeError if within_event else openai.APIError
        with pytest.raises(expected) as raised:
            async for part in stream:
                contents.append(part.choices[0].delta.content)
        await stream.close()
    assert contents == ["Hi"] * (1 if within_event else 2)
    if isinstance(raised.value, openai.APIError):
        assert raised.value.code == "call_upstream_protocol_error"


async def test_a_client_of_a_broken_stream_is_told_at_once() -> None:
    """Not when its next request comes, and not when a time-out is over."""
    die = asyncio.Event()

    async def waits(socket: EngineSocket) -> None:
        await within(die.wait())
        socket.writer.close()

    async with (
        ScriptedEngine(dying(STREAM % CHUNKED, [chunk(EVENT)], waits)) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
        await within(client.reader.readuntil(EVENT))
        die.set()
        rest = await within(client.reader.readuntil(b"0\r\n\r\n"))
    assert b'"error"' in rest
