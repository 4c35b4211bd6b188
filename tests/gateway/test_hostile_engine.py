"""Engines whose answers are wrong, odd, or followed by more; each whole and byte by byte."""

from collections.abc import AsyncIterator

import orjson
import pytest

from sgl_router.gateway import gateway
from tests.gateway.hostile import (
    POST,
    Stage,
    answers,
    ids,
    inside,
    read_to_end,
    saying,
    send,
    staged,
    until,
)
from tests.gateway.support import EngineSocket, connected, respond

EVIL = b"evil"
"""Stands in what must not reach the client."""

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

either = pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[Stage]:
    """Its idle connections are not closed for their age: only a fault closes one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "IDLE_SECS", float("inf"))
        async with staged() as made:
            yield made


async def ask(stage: Stage, request: bytes = POST, method: bytes = b"POST") -> list[bytes]:
    """Send a request; what the client makes of all that comes, in a few words."""
    async with connected(stage.server) as client:
        close = request.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n")
        await client.send(close)
        data, _ = await read_to_end(client)
    return [
        b"%d %b" % (seen.status, seen.body if seen.complete else b"(cut off)")
        for seen in answers(data, method=method)
    ]


# ---- no answer at all

NO_STATUS_LINE = [
    b"\x00\xff\x00\xff\r\n\r\n",
    b"evil\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b" HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"<html>evil</html>",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16",  # TLS: unexpected message
    b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",  # HTTP/2: settings
    b"ICY 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"RTSP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"http/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/2 200\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.2 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 \r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 099 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 +20 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1  200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1\t200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 200 O\x00K\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 200 O\rK\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 200 OK\nContent-Length: 4\r\n\r\nevil",
]

_TWO_WAYS = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4",
    b"Content-Length: 4\r\nContent-Length: 4",
    b"Content-Length: 4\r\nContent-Length: 2",
    b"content-length: 4\r\nCONTENT-LENGTH: 2",
    b"Content-Length: 4, 4",
    b"Content-Length: -4",
    b"Content-Length: +4",
    b"Content-Length: 0x4",
    b"Content-Length: 4 4",
    b"Content-Length: 4.0",
    b"Content-Length:",
    b"Content-Length: \xef\xbc\x94",
    b"Content-Length: 9999999999999999999",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked;q=1",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding :chunked",
    b"Transfer-Encoding",
    b" Transfer-Encoding: chunked",
    b"X: y\nContent-Length: 4",
    b"X: y\rContent-Length: 4",
    b"X: y\r\r\nContent-Length: 4",
    b"X: y\x00\r\nContent-Length: 4",
    b"X\x00: y\r\nContent-Length: 4",
    b"X y: z\r\nContent-Length: 4",
    b": y\r\nContent-Length: 4",
    b"X: y\r\n folded\r\nContent-Length: 4",
    b"Location: /a\r\n\nContent-Length: 4",
]
FRAMED_IN_TWO_WAYS = [b"HTTP/1.1 200 OK\r\n%b\r\n\r\nevil" % lines for lines in _TWO_WAYS]

TOO_MUCH = [
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"Content-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 66_000 + b"\r\nContent-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 200 " + b"y" * 66_000,
    b"HTTP/1.1 200 OK\r\n" + b"X" * 66_000,
    b"HTTP/1.1 102 Processing\r\n\r\n" * 40,
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 33 + respond(EVIL),
    b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 300 + b"\r\n" + respond(EVIL),
]

OTHERS = [
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nevil",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + respond(EVIL),
    b"HTTP/1.1 100 Continue\r\nX : y\r\n\r\n" + respond(EVIL),
    b"HTTP/1.1 100 Continue\r\n\r\nevil" + respond(EVIL),
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
]

NO_ANSWER = NO_STATUS_LINE + FRAMED_IN_TWO_WAYS + OTHERS


@either
@pytest.mark.parametrize("said", NO_ANSWER, ids=ids(NO_ANSWER))
async def test_what_is_no_answer_is_not_passed_on(
    stage: Stage, said: bytes, bytewise: bool
) -> None:
    """The client is told so, the engine is asked once, and its connection is not used again."""
    stage.says(said, end="wait", bytewise=bytewise)
    async with connected(stage.server) as client:
        response = await client.post()
        assert response.status == 502
        error = orjson.loads(response.body)["error"]
        assert error["code"] == "call_upstream_protocol_error"
        assert error["message"].startswith(stage.engine.url)
        assert stage.engine.connections == 1
        stage.plays(saying(respond(b"good")))
        assert (await client.post()).body == b"good"


@pytest.mark.parametrize("said", TOO_MUCH, ids=ids(TOO_MUCH))
async def test_a_head_without_end_is_not_read_to_its_end(stage: Stage, said: bytes) -> None:
    stage.says(said, end="wait")
    assert [seen[:3] for seen in await ask(stage)] == [b"502"]
    assert stage.engine.connections == 1


@pytest.mark.parametrize(
    "line", [b"X: y\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", b"y"], ids=["lines", "1xx", "one"]
)
async def test_an_engine_that_never_stops_is_stopped(stage: Stage, line: bytes) -> None:
    stopped = []

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"" if line.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\nX: y")
        try:
            while True:
                await send(socket.writer, line * 100)
                if socket.writer.is_closing():
                    break
        finally:
            stopped.append(True)

    stage.plays(script)
    assert [seen[:3] for seen in await ask(stage)] == [b"502"]
    await until(lambda: bool(stopped))


# ---- bytes that could split an answer


async def test_every_byte_in_a_header(stage: Stage) -> None:
    """A byte in a value, a name or a reason comes through as it is, or nothing comes through."""
    text = {0x09, *range(0x20, 0x7F), *range(0x80, 0x100)}
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    wrong = []
    for code in range(256):
        byte = bytes([code])
        for place, good, said in (
            ("value", code in text, b"HTTP/1.1 200 OK\r\nA: b%bc\r\nContent-Length: 0\r\n\r\n"),
            ("name", code in token, b"HTTP/1.1 200 OK\r\nA%bB: c\r\nContent-Length: 0\r\n\r\n"),
            ("reason", code in text, b"HTTP/1.1 200 O%bK\r\nContent-Length: 0\r\n\r\n"),
        ):
            if byte == b":" and place == "name":
                continue  # a header `A` of the value `B: c`
            stage.says(said % byte)
            async with connected(stage.server) as client:
                await client.send(POST.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n"))
                data, _ = await read_to_end(client)
            (seen,) = answers(data.replace(b"O%bK" % byte, b"OK"))
            if seen.status != (200 if good else 502):
                wrong.append((place, byte, seen.status))
            line = {"value": b"\r\nA: b%bc\r\n", "name": b"\r\nA%bB: c\r\n", "reason": b"O%bK\r\n"}
            if good != (line[place] % byte in data):
                wrong.append((place, byte, seen.status))
    assert wrong == []


# ---- bodies that go wrong

BAD_CHUNKS = [
    b"\r\nevil\r\n0\r\n\r\n",
    b"-4\r\nevil\r\n0\r\n\r\n",
    b"+4\r\nevil\r\n0\r\n\r\n",
    b"0x4\r\nevil\r\n0\r\n\r\n",
    b" 4\r\nevil\r\n0\r\n\r\n",
    b"g\r\nevil\r\n0\r\n\r\n",
    b"4\nevil\n0\n\n",
    b"4\revil\r\n0\r\n\r\n",
    b"4\x00\r\nevil\r\n0\r\n\r\n",
    b"10000000000000004\r\nevil\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nevil\r\n0\r\n\r\n",
    b"4;x=\x00\r\nevil\r\n0\r\n\r\n",
    b"4;" + b"x" * 17_000 + b"\r\nevil\r\n0\r\n\r\n",
    b"1;" + b"x" * 9_000 + b"\r\na\r\n1;" + b"x" * 9_000 + b"\r\nb\r\n0\r\n\r\n",
]
"""Of which nothing is content but what stands before the fault."""

BAD_ENDS = [
    b"4\r\ngood!\r\n0\r\n\r\n",
    b"4\r\ngood\n0\r\n\r\n",
    b"4\r\ngood0\r\n\r\n",
    b"4\r\ngood\r\n\r\n0\r\n\r\n",
    b"4\r\ngood\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    b"4\r\ngood\r\n0\r\nX y\r\n\r\n",
    b"4\r\ngood\r\n0\r\nX: y\n\r\n",
    b"4\r\ngood\r\n0\r\nX: y\r\n z\r\n\r\n",
    b"4\r\ngood\r\n0\r\nX: \x00\r\n\r\n",
    b"4\r\ngood\r\n0\r\nContent-Length: 4\r\n\r\n",
    b"4\r\ngood\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"4\r\ngood\r\n0\r\n" + b"X: y\r\n" * 300 + b"\r\n",
]


@either
@pytest.mark.parametrize("said", BAD_CHUNKS + BAD_ENDS, ids=ids(BAD_CHUNKS + BAD_ENDS))
async def test_a_body_that_goes_wrong_is_cut_off(stage: Stage, said: bytes, bytewise: bool) -> None:
    stage.says(CHUNKED, said, end="wait", bytewise=bytewise)
    assert await ask(stage) == [b"200 (cut off)"]
    assert stage.engine.connections == 1
    stage.plays(saying(respond(b"good")))
    assert await ask(stage) == [b"200 good"]


# ---- answers that are odd, and right

ODD = {
    b"good": [
        respond(b"good"),
        b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\ngood",
        b"HTTP/1.1 200 \r\nContent-Length:4\r\n\r\ngood",
        b"HTTP/1.1 200 \xff\xfe reasons\r\nContent-Length: \t4 \t\r\n\r\ngood",
        b"HTTP/1.1 200 OK\r\ncOnTeNt-LeNgTh: 0004\r\n\r\ngood",
        b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\ngood",
        b"HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\ngood",
        b"HTTP/1.1 200 OK\r\nConnection: close, X\r\nX: 1\r\nContent-Length: 4\r\n\r\ngood",
        b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n",
        CHUNKED + b"4\r\ngood\r\n0\r\n\r\n",
        CHUNKED + b"1\r\ng\r\n1\r\no\r\n1\r\no\r\n1\r\nd\r\n0\r\n\r\n",
        CHUNKED + b"00000004\r\ngood\r\n0000\r\n\r\n",
        CHUNKED + b'4;name="va;l\\"ue"\r\ngood\r\n0;x\r\n\r\n',
        CHUNKED + b"4 ; x = y\r\ngood\r\n0\r\nX-Trailer: evil\r\nY: z\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + respond(b"good"),
        b"HTTP/1.1 103 Early Hints\r\nLink: evil\r\nContent-Length: 9\r\n\r\n" * 32
        + respond(b"good"),
        b"HTTP/1.1 199 Odd\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"
        + respond(b"good"),
        b"HTTP/1.1 200 OK\r\n\r\ngood",
        b"HTTP/1.0 200 OK\r\n\r\ngood",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n" + b"X: y\r\n" * 250 + b"\r\ngood",
        b"HTTP/1.1 200 OK\r\nX:\r\nY: \t\r\nContent-Length: 4\r\n\r\ngood",
    ],
    b"": [
        respond(b""),
        CHUNKED + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
    ],
}
ODD_ONES = [(body, said) for body, each in ODD.items() for said in each]


@either
@pytest.mark.parametrize(("body", "said"), ODD_ONES, ids=ids([said for _, said in ODD_ONES]))
async def test_an_odd_answer_is_passed_on(
    stage: Stage, body: bytes, said: bytes, bytewise: bool
) -> None:
    stage.says(said, bytewise=bytewise)
    async with connected(stage.server) as client:
        await client.send(POST.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n"))
        data, _ = await read_to_end(client)
    (seen,) = answers(data)
    assert seen.complete and seen.body == body
    assert seen.status in (200, 204, 205, 304)
    assert EVIL not in data


# ---- what comes after an answer

AFTER = [
    respond(EVIL),
    CHUNKED + b"4\r\nevil\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nevil",
    b"HTTP/1.1 2",
    b"\r\n",
    b"evil",
    b"\x00",
]
BEFORE = [
    (b"POST", respond(b"good"), b"good"),
    (b"POST", CHUNKED + b"4\r\ngood\r\n0\r\n\r\n", b"good"),
    (b"POST", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    (b"POST", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n", b""),
    (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b""),
    (b"HEAD", CHUNKED, b""),
]


@either
@pytest.mark.parametrize("after", AFTER, ids=ids(AFTER))
@pytest.mark.parametrize("before", BEFORE, ids=ids([case[1] for case in BEFORE]))
async def test_what_follows_an_answer_reaches_nobody(
    stage: Stage, before: tuple[bytes, bytes, bytes], after: bytes, bytewise: bool
) -> None:
    """Also where it comes with the answer's last byte, and where it looks like one more answer."""
    method, said, body = before
    stage.says(said + after, end="wait", bytewise=bytewise)
    async with connected(stage.server) as client:
        response = await client.ask(method, b"/v1/x")
        assert (response.status, response.body) == (int(said[9:12]), body)
        await until(lambda: inside(stage.server).pool.idle == 0)
        stage.plays(saying(respond(b"next")))
        assert (await client.ask(b"GET", b"/v1/x")).body == b"next"


@pytest.mark.parametrize("unasked", AFTER, ids=ids(AFTER))
async def test_an_answer_that_nobody_asked_for_closes_the_connection(
    stage: Stage, unasked: bytes
) -> None:
    kept = []

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond(b"good"))
        await until(lambda: inside(stage.server).pool.idle == 1)
        kept.append(True)
        await socket.send(unasked)
        assert await socket.reader.read() == b"", "it is closed, and nothing was asked on it"

    stage.plays(script)
    async with connected(stage.server) as client:
        assert (await client.post()).body == b"good"
        await until(lambda: inside(stage.server).pool.idle == 0 and bool(kept))
        stage.plays(saying(respond(b"next")))
        assert (await client.post()).body == b"next"
