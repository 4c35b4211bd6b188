"""What the router answers itself."""

from collections.abc import Awaitable, Callable

import orjson
import pytest

from sgl_router.core.worker import Health
from sgl_router.gateway.context import Message
from sgl_router.gateway.own import MAX_BODY_BYTES, MAX_UPLOAD_BYTES
from tests.gateway.inside import context_of
from tests.gateway.support import (
    EngineSocket,
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


def models(*ids: str) -> bytes:
    return respond(orjson.dumps({"object": "list", "data": [{"id": i, "n": 1} for i in ids]}))


@pytest.mark.parametrize("path", [b"/health", b"/liveness"])
async def test_the_process_is_alive(path: bytes) -> None:
    async with running() as server, connected(server) as client:
        response = await client.ask(b"GET", path)
        assert (response.status, response.body) == (200, b"OK")
        assert (await client.ask(b"HEAD", path)).status == 200


async def test_readiness_follows_health() -> None:
    async with running(free_url(), free_url()) as server, connected(server) as client:
        ready = await client.ask(b"GET", b"/readiness")
        for worker in server.registry:
            server.registry.set_health(worker, Health.DOWN)
        not_ready = await client.ask(b"GET", b"/readiness")
    assert ready.status == 200
    assert orjson.loads(ready.body) == {"status": "ready", "healthy_workers": 2, "total_workers": 2}
    assert not_ready.status == 503
    assert orjson.loads(not_ready.body) == {
        "status": "not ready",
        "reason": "insufficient healthy workers",
    }


async def test_workers_are_listed() -> None:
    url = free_url()
    async with running(url) as server, connected(server) as client:
        listing = orjson.loads((await client.ask(b"GET", b"/workers")).body)
    (worker,) = listing["workers"]
    assert listing["total"] == 1
    assert (worker["url"], worker["status"], worker["is_healthy"], worker["load"]) == (
        url,
        "ready",
        True,
        0,
    )


async def test_models_are_the_union_over_workers() -> None:
    async def breaks(socket: EngineSocket) -> None:
        await socket.request()

    async with (
        ScriptedEngine(answering(models("a", "b"))) as one,
        ScriptedEngine(answering(models("b", "c"))) as two,
        ScriptedEngine(answering(respond(b"[]"))) as odd,
        ScriptedEngine(breaks) as broken,
        running(one.url, two.url, odd.url, broken.url) as server,
        connected(server) as client,
    ):
        response = await client.ask(b"GET", b"/v1/models")
    assert response.status == 200
    assert [model["id"] for model in orjson.loads(response.body)["data"]] == ["a", "b", "c"]


async def test_models_of_no_worker() -> None:
    async with running(free_url()) as server, connected(server) as client:
        assert (await client.ask(b"GET", b"/v1/models")).status == 502
        for worker in server.registry:
            server.registry.set_health(worker, Health.DOWN)
        assert (await client.ask(b"GET", b"/v1/models")).status == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        (b"GET", b"/nothing", 404, "unknown_url"),
        (b"POST", b"/nothing", 404, "unknown_url"),
        (b"GET", b"/", 404, "unknown_url"),
        (b"GET", b"/v1/chat/completions", 405, "method_not_allowed"),
        (b"GET", b"/generate", 405, "method_not_allowed"),
        (b"POST", b"/health", 405, "method_not_allowed"),
    ],
)
async def test_what_there_is_not(method: bytes, path: bytes, status: int, code: str) -> None:
    async with running(free_url()) as server, connected(server) as client:
        for _ in range(2):  # the connection is kept, with or without a body
            body = b"{}" if method == b"POST" else b""
            response = await client.ask(method, path, body)
            assert (response.status, orjson.loads(response.body)["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"POST", b"/generate"),
        (b"POST", b"/v1/embeddings"),
        (b"GET", b"/v1/responses/resp_1"),
        (b"DELETE", b"/v1/anything/else"),
    ],
)
async def test_what_is_passed_on(method: bytes, path: bytes) -> None:
    async with (
        ScriptedEngine(answering(respond(b"engine"))) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        assert (await client.ask(method, path)).body == b"engine"


async def measuring(
    _scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Answers how many bytes the body has."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message["body"]), message["more_body"]
    size = b"%d" % count
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": size})


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        (b"PUT", b"/plugins/mine", MAX_UPLOAD_BYTES),
        (b"PUT", b"/plugins/mine?settings=%7B%7D", MAX_UPLOAD_BYTES),
        (b"POST", b"/plugins/mine", MAX_BODY_BYTES),
        (b"PUT", b"/plugins/mine/reload", MAX_BODY_BYTES),
        (b"PUT", b"/plugins/", MAX_BODY_BYTES),
        (b"PUT", b"/plugins", MAX_BODY_BYTES),
        (b"PUT", b"/policy?/plugins/mine", MAX_BODY_BYTES),
        (b"PUT", b"/x/plugins/mine", MAX_BODY_BYTES),
        (b"POST", b"/workers", MAX_BODY_BYTES),
    ],
)
async def test_how_large_a_body_may_be(
    method: bytes, path: bytes, limit: int, chunked: bool
) -> None:
    """A module is larger than anything else that the router answers itself."""

    def request(size: int) -> bytes:
        head = b"%b %b HTTP/1.1\r\nHost: r\r\n" % (method, path)
        if not chunked:
            return head + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks

    async with running(free_url()) as server, connected(server) as client:
        context_of(server).app = measuring
        await client.send(request(limit))
        assert (await client.response()).body == b"%d" % limit
        client.writer.write(request(limit + 1))
        refused = await client.response()
    assert (refused.status, refused.error_code) == (413, "request_body_too_large")
    assert f"{limit:,}" in orjson.loads(refused.body)["error"]["message"]


async def test_a_plugin_that_is_too_large_is_not_asked_for() -> None:
    """A client that asks first is told before it sends a byte (RFC 9110, section 10.1.1)."""
    async with running(free_url()) as server, connected(server) as client:
        await client.send(
            b"PUT /plugins/mine HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % (MAX_UPLOAD_BYTES + 1)
        )
        response = await client.response()
    assert response.status == 413


PARTLY = 3 * 1024 * 1024
"""Of an upload that is not sent to its end: more than is discarded for a kept connection."""


def upload(size: int, *headers: bytes) -> bytes:
    """The head of an upload of so many bytes."""
    lines = b"".join(b"%b\r\n" % header for header in headers)
    return b"PUT /plugins/mine HTTP/1.1\r\nHost: r\r\n%bContent-Length: %d\r\n\r\n" % (
        lines,
        size,
    )


@pytest.mark.parametrize("sent", [0, 100, PARTLY])
async def test_an_upload_without_the_key_is_refused_before_it_is_there(sent: int) -> None:
    async with (
        running(free_url(), admin_api_key="admin-key") as server,
        connected(server) as client,
    ):
        client.writer.write(upload(MAX_UPLOAD_BYTES) + bytes(sent))
        response = await client.response()
    assert (response.status, response.error_code) == (401, "unauthorized")


async def test_what_is_refused_with_its_body_unread_keeps_the_connection() -> None:
    async with (
        running(free_url(), admin_api_key="admin-key") as server,
        connected(server) as client,
    ):
        for _ in range(2):
            client.writer.write(upload(1000) + bytes(1000))
            assert (await client.response()).status == 401


EXPECT = b"Expect: 100-continue"


async def test_who_asks_whether_to_send_is_not_told_to_where_the_key_is_missing() -> None:
    """The connection is closed: its next bytes could be the body or another request."""
    async with (
        running(free_url(), admin_api_key="admin-key") as server,
        connected(server) as client,
    ):
        await client.send(upload(1000, EXPECT))
        answer = await within(client.reader.read())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in answer


async def test_who_asks_whether_to_send_is_told_to_where_the_body_is_read() -> None:
    async with running(free_url()) as server, connected(server) as client:
        context_of(server).app = measuring
        await client.send(upload(1000, EXPECT))
        said = await within(client.reader.readuntil(b"\r\n\r\n"))
        assert said == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(bytes(1000))
        assert (await client.response()).body == b"1000"


async def test_uploads_have_a_bound_together() -> None:
    """Two of the largest fit. What does not is told to come again, before it is sent."""
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    largest = upload(MAX_UPLOAD_BYTES, EXPECT)
    async with running(free_url()) as server, connected(server) as one:
        await one.send(largest)
        assert await within(one.reader.readuntil(b"\r\n\r\n")) == go_on
        async with connected(server) as two, connected(server) as three:
            await two.send(largest)
            assert await within(two.reader.readuntil(b"\r\n\r\n")) == go_on
            await three.send(largest)
            refused = await three.response()
            assert (refused.status, refused.error_code) == (503, "too_many_uploads")
            assert [int(secs) > 0 for secs in refused.get(b"retry-after")] == [True]
        await until(lambda: len(context_of(server).requests) == 1)
        async with connected(server) as four:
            await four.send(largest)
            assert await within(four.reader.readuntil(b"\r\n\r\n")) == go_on


async def test_a_body_comes_in_pieces() -> None:
    async with running(free_url()) as server, connected(server) as client:
        context_of(server).app = measuring
        await client.send(upload(1000) + bytes(10))
        for _ in range(99):
            await settle()
            await client.send(bytes(10))
        assert (await client.response()).body == b"1000"


async def test_who_leaves_in_the_middle_of_a_body_leaves_nothing_behind() -> None:
    """`running` looks: the application that waits for the rest would be left."""
    async with running(free_url()) as server, connected(server) as client:
        context_of(server).app = measuring
        await client.send(upload(1000) + bytes(10))
        await until(lambda: len(context_of(server).requests) == 1)


async def test_a_body_that_breaks_the_framing_ends_what_reads_it() -> None:
    async with running(free_url()) as server, connected(server) as client:
        context_of(server).app = measuring
        head = b"PUT /plugins/mine HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"5\r\nhello\r\nno size\r\n")
        response = await client.response()
    assert (response.status, response.error_code) == (400, "bad_request")
