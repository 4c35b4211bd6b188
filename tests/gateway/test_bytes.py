"""What passes through the router, byte by byte."""

import asyncio

import orjson
import pytest

from sgl_router.errors import ProtocolError
from tests.gateway.support import (
    Client,
    EngineSocket,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    within,
)

# cache_aware reads a body first; the others, of which the last is a plugin, do not.
POLICIES = ["round_robin", "cache_aware", "least_connections"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_request_reaches_the_engine_unchanged(policy: str) -> None:
    seen: list[Request] = []
    body = b'{ "model":"m",  "messages": [{"role":"user","content":"h\xc3\xa9"}], "x": 1.50 }'
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url, policy=policy) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/chat/completions?a=%%2F HTTP/1.1\r\nHOST: router\r\n"
            b"X-Twice: 1\r\nx-twice: 2\r\nAuthorization: Bearer key\r\n"
            b"Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\n"
            b"X-Request-ID: mine\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert (await client.response()).status == 200
    (request,) = seen
    assert request.body == body
    assert request.head.target == b"/v1/chat/completions?a=%2F"
    assert [(name, value) for name, value in request.head.headers if name != b"Via"] == [
        (b"Host", engine.url.removeprefix("http://").encode()),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
        (b"Authorization", b"Bearer key"),
        (b"X-Request-ID", b"mine"),
        (b"Content-Length", b"%d" % len(body)),
    ]


async def test_a_request_to_upgrade_is_served_as_it_is() -> None:
    """Java's HttpClient asks for HTTP/2 so with its first request (RFC 9110, section 7.8)."""
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: router\r\nContent-Length: 2\r\n"
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n{}"
        )
        assert (await client.response()).status == 200
    (request,) = seen
    assert request.body == b"{}"
    assert request.head.get(b"upgrade") is None


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_chunked_request_stays_chunked(policy: str) -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url, policy=policy) as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'4\r\n{"a"\r\n'
        )
        await client.send(b"3\r\n:1}\r\n0\r\n\r\n")
        assert (await client.response()).status == 200
    assert seen[0].body == b'{"a":1}'
    assert seen[0].head.chunked
    assert seen[0].head.content_length is None


async def test_a_response_reaches_the_client_unchanged() -> None:
    answer = (
        b"HTTP/1.1 418 I'm a teapot\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Content-Length: 6\r\n\r\n\x00\xffbody"
    )
    async with (
        ScriptedEngine(answering(answer)) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        response = await client.post()
    assert response.status == 418
    assert response.body == b"\x00\xffbody"
    assert response.headers[:3] == [
        (b"Set-Cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"Content-Length", b"6"),
    ]
    added = sorted(name for name, _ in response.headers[3:])
    assert added == [b"x-request-id", b"x-smg-routed-worker-id"]


async def test_the_request_id_is_made_forwarded_and_returned() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        made = await client.post()
        given = await client.ask(b"POST", b"/v1/completions", b"{}", b"X-Correlation-Id: c7\r\n")
    assert seen[0].head.get(b"x-request-id") == made.get(b"x-request-id")[0]
    assert made.get(b"x-request-id")[0].startswith(b"chatcmpl-")
    assert seen[1].head.get(b"x-request-id") is None
    assert given.get(b"x-request-id") == [b"c7"]


async def test_a_stream_arrives_chunk_by_chunk() -> None:
    """The engine sends its second chunk only after the client has the first."""
    first_arrived = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nfirst\r\n\r\n"
        )
        await within(first_arrived.wait())
        await socket.send(b"6\r\nsecond\r\n0\r\n\r\n")
        await socket.request()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, policy="cache_aware") as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}"
        )
        seen = await within(client.reader.readuntil(b"first\r\n"))
        first_arrived.set()
        rest = await within(client.reader.readuntil(b"0\r\n\r\n"))
    assert b"second" not in seen
    assert b"second" in rest


async def test_a_request_body_is_passed_on_as_it_arrives() -> None:
    """The engine has its first part before the client has sent its last."""
    got_first = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.reader.readuntil(b"part one")
        got_first.set()
        await socket.reader.readuntil(b"part two")
        await socket.send(respond(b"done"))

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, policy="round_robin") as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 16\r\n\r\npart one")
        await within(got_first.wait())
        await client.send(b"part two")
        assert (await client.response()).body == b"done"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            b"abc",
        ),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"abc",
        ),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_every_framing_of_an_answer(answer: bytes, body: bytes, version: bytes) -> None:
    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(answer)
        if b"\r\n\r\nabc" not in answer or b"Content-Length" in answer:
            await socket.request()  # the connection stays open

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/%b\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}" % version)
        response = await client.response()
    assert response.body == body
    if version == b"1.0":
        assert response.get(b"transfer-encoding") == []


async def test_an_answer_to_head_has_no_body() -> None:
    async with (
        ScriptedEngine(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        for _ in range(2):
            response = await client.ask(b"HEAD", b"/v1/files/1")
            assert (response.status, response.get(b"content-length")) == (200, [b"9"])


async def test_connections_are_kept_on_both_sides() -> None:
    async with (
        ScriptedEngine(answering(respond(b"1"))) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        for _ in range(5):
            assert (await client.post()).body == b"1"
        assert engine.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            await socket.send(respond(request.body))

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        request = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n%02d"
        await client.send(b"".join(request % i for i in range(20)) + b"nonsense\r\n\r\n")
        assert [(await client.response()).body for _ in range(20)] == [
            b"%02d" % i for i in range(20)
        ]
        assert (await client.response()).status == 400
        assert await client.closed()


async def test_expect_100_continue() -> None:
    async with (
        ScriptedEngine(answering(respond(b"ok"))) as engine,
        running(engine.url, policy="cache_aware") as server,
        connected(server) as client,
    ):
        await client.send(
            b"POST /v1/x HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert (
            await within(client.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        )
        await client.send(b"{}")
        assert (await client.response()).body == b"ok"


async def _refused(client: Client, request: bytes) -> int:
    await client.send(request)
    response = await client.response()
    assert orjson.loads(response.body)["error"]["message"]
    assert await client.closed()
    return response.status


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /health HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
    ],
)
async def test_what_is_not_http_is_refused(request_bytes: bytes, status: int) -> None:
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        assert await _refused(client, request_bytes) == status


async def test_an_engine_that_breaks_off_is_not_taken_for_complete() -> None:
    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        with pytest.raises((ProtocolError, ConnectionError)):
            await client.post()


async def test_an_engine_that_answers_nonsense() -> None:
    async with (
        ScriptedEngine(answering(b"SSH-2.0-OpenSSH_9.2\r\n")) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        response = await client.post()
        assert (response.status, orjson.loads(response.body)["error"]["code"]) == (
            502,
            "call_upstream_protocol_error",
        )
