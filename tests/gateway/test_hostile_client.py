"""Clients that try to have an engine read another request than the router has read.

An engine gets requests that can be read in one way only, or none; what a client hides in one is
never read as the next.
"""

from collections.abc import AsyncIterator

import pytest

from tests.gateway.hostile import (
    HIDDEN,
    NEXT,
    Recorder,
    Stage,
    answers,
    exchange,
    framed,
    ids,
    read_to_end,
    requests_in,
    staged,
)
from tests.gateway.support import connected

either = pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])


@pytest.fixture(scope="module", params=["round_robin", "cache_aware"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """One policy has the body passed on as it arrives, the other reads it first."""
    async with staged(policy=request.param) as made:
        yield made


# ---- bodies that are refused

BAD_CHUNKS = [
    *(b"\r\nhello\r\n", b"+5\r\nhello\r\n", b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n"),
    *(b" 5\r\nhello\r\n", b"5 5\r\nhello\r\n", b"5,5\r\nhello\r\n", b"g\r\nhello\r\n"),
    *(b"\xb5\r\nhello\r\n", b"5\x00\r\nhello\r\n", b"5\nhello\r\n", b"5\rhello\r\n"),
    *(b"5\r\rhello\r\n", b";x\r\nhello\r\n", b"5;x\nhello\r\n", b"5;\x00\r\nhello\r\n"),
    *(b'5;x="\nhello\r\n', b'5;x="\r\nhello"\r\n', b"10000000000000005\r\nhello\r\n"),
    *(b"fffffffffffffffb\r\nhello\r\n", b"5\r\nhello!\r\n", b"5\r\nhello", b"5\r\nhello\n"),
    *(b"5\r\nhello\r", b"5\r\nhello\r\n\r\n", b"4\r\nhello\r\n", b"5;" + b"x" * 17_000 + b"\r\n"),
]
BAD_ENDS = [
    *(b"0\n\n", b"0\r\n\n", b"0\r\n\r\r\n", b"0\r\nX: y\n\r\n", b"0\r\nX y\r\n\r\n"),
    *(b"0\r\nX: y\r\n z\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n"),
    *(b"0\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 300 + b"\r\n"),
]
BAD_BODIES = [bad + b"0\r\n\r\n" for bad in BAD_CHUNKS] + [
    b"5\r\nhello\r\n" + bad for bad in BAD_ENDS
]


@either
@pytest.mark.parametrize("body", BAD_BODIES, ids=ids(BAD_BODIES))
async def test_a_body_that_could_be_read_in_two_ways(
    stage: Stage, body: bytes, bytewise: bool
) -> None:
    """The engine may have begun on the request by then; it never gets all of it."""
    data = framed(b"Transfer-Encoding: chunked", body=body)
    slowly = bytewise and len(body) < 1000  # others are about how much it is
    seen, engine = await exchange(stage, data, bytewise=slowly)
    assert engine.requests == []
    assert all(raw.startswith(b"POST /v1/x HTTP/1.1\r\n") for raw in engine.connections if raw)
    assert not any(b"hidden" in raw or b"next" in raw for raw in engine.connections)
    assert len(seen) == 1 and 400 <= seen[0].status <= 431
    assert seen[0].get(b"connection") == [b"close"]


# ---- what is odd, and has one meaning

ODD = [
    (framed(b"Content-Length: 5", body=b"hello"), [b"hello", b""]),
    (framed(b"Content-Length:\t5 \t", body=b"hello"), [b"hello", b""]),
    (framed(b"Content-Length: 00000005", body=b"hello"), [b"hello", b""]),
    (framed(b"Content-Length: %d" % len(HIDDEN), body=b""), [HIDDEN]),
    (framed(b"Content-Length: 0", body=b""), [b"", b""]),
    (framed(b"X: y", body=b""), [b"", b""]),
    (framed(b"TRANSFER-encoding: CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n"), [b"hello", b""]),
    (
        framed(
            b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
        ),
        [HIDDEN, b""],
    ),
    (
        framed(
            b"Transfer-Encoding: chunked",
            body=b'005;x="\\"";y\r\nhello\r\n0\r\n\r\n',
        ),
        [b"hello", b""],
    ),
    (
        framed(
            b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n000\r\nX-Admin: 1\r\nY: z\r\n\r\n"
        ),
        [b"hello", b""],
    ),
    (framed(b"Connection: Content-Length", b"Content-Length: 5", body=b"hello"), [b"hello", b""]),
    (
        framed(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked"),
        [b"", b""],
    ),
    (
        framed(b"Connection: Host, X-Admin", b"X-Admin: 1", b"Content-Length: 0", body=b""),
        [b"", b""],
    ),
    (framed(b"Transfer_Encoding: chunked", b"Content_Length: 99", body=b""), [b"", b""]),
    (framed(b"X-Transfer-Encoding: chunked", b"Xontent-Length: 9", body=b""), [b"", b""]),
    (framed(b"X: Content-Length: 9", b"Y: Transfer-Encoding: chunked", body=b""), [b"", b""]),
    (framed(b"Expect: 100-Continue", b"Content-Length: 5", body=b"hello"), [b"hello", b""]),
    (
        framed(b"Expect: 100-continue", b"expect: 100-continue", b"Transfer-Encoding: chunked"),
        [b"", b""],
    ),
    (b"\r\n\r\n" + framed(b"Content-Length: 5", body=b"hello"), [b"hello", b""]),
    (
        framed(
            b"Upgrade: h2c, websocket",
            b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Content-Length: 5",
            body=b"hello",
        ),
        [b"hello", b""],
    ),
    (
        framed(b"Keep-Alive: x", b"Proxy-Connection: x", b"TE: trailers", b"Trailer: X", body=b""),
        [b"", b""],
    ),
]


@either
@pytest.mark.parametrize(("data", "bodies"), ODD, ids=ids([data[19:] for data, _ in ODD]))
async def test_an_odd_request_has_one_meaning(
    stage: Stage, data: bytes, bodies: list[bytes], bytewise: bool
) -> None:
    """The engine gets as many requests as there are, of these bodies, and no hop-by-hop header."""
    seen, engine = await exchange(stage, data, bytewise=bytewise)
    requests = engine.requests
    paths = [*(b"/v1/x", b"/v1/hidden")[: len(bodies)], b"/v1/next"]
    assert [request.path for request in requests] == paths
    assert [request.body for request in requests] == [*bodies, b""]
    assert [answer.body.split()[1] for answer in seen] == paths
    for request in requests:
        assert not {name.lower() for name, _ in request.headers} & {
            *(b"connection", b"expect", b"upgrade", b"http2-settings", b"keep-alive", b"te"),
            *(b"proxy-connection", b"trailer"),
        }
        assert request.get(b"host") == [stage.engine.url.removeprefix("http://").encode()]


@pytest.mark.parametrize(
    "target", [b"http://r/v1/x?a=b", b"HTTP://other:80/v1/x", b"https://r/v1/x"]
)
async def test_an_absolute_target_becomes_a_path(stage: Stage, target: bytes) -> None:
    seen, engine = await exchange(stage, b"GET %b HTTP/1.1\r\nHost: else\r\n\r\n" % target)
    path = b"/" + target.split(b"/", 3)[3]
    assert [request.path for request in engine.requests] == [path, b"/v1/next"]
    assert [answer.status for answer in seen] == [200, 200]


@either
@pytest.mark.parametrize("keep", [False, True], ids=["close", "keep-alive"])
async def test_http_1_0(stage: Stage, keep: bool, bytewise: bool) -> None:
    connection = b"Connection: keep-alive\r\n" if keep else b""
    data = b"POST /v1/x HTTP/1.0\r\n%bContent-Length: 5\r\n\r\nhello" % connection
    seen, engine = await exchange(stage, data, bytewise=bytewise)
    paths = [b"/v1/x", b"/v1/next"] if keep else [b"/v1/x"]
    assert [request.path for request in engine.requests] == paths
    assert [answer.body.split()[1] for answer in seen] == paths
    assert engine.requests[0].body == b"hello"


async def test_what_follows_a_request_that_closes_is_not_read(stage: Stage) -> None:
    data = b"GET /v1/x HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"
    seen, engine = await exchange(stage, data + HIDDEN)
    assert [request.path for request in engine.requests] == [b"/v1/x"]
    assert [answer.status for answer in seen] == [200]


# ---- one after the other


async def test_a_thousand_requests_at_once(stage: Stage) -> None:
    """Each is answered, in their order, and each reaches the engine once."""
    engine = Recorder()
    stage.plays(engine)
    paths = [b"/v1/%d" % number for number in range(1000)]
    framings = [
        b"POST %b HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\n\r\nhello",
        b"POST %b HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"GET %b HTTP/1.1\r\nHost: r\r\n\r\n",
    ]
    data = b"".join(framings[number % 3] % path for number, path in enumerate(paths))
    async with connected(stage.server) as client:
        client.writer.write(data + NEXT)
        got, _ = await read_to_end(client)
    assert [seen.body.split()[1] for seen in answers(got)] == [*paths, b"/v1/next"]
    assert sorted(request.path for request in engine.requests) == sorted([*paths, b"/v1/next"])


async def test_a_fault_behind_requests_is_answered_in_its_turn(stage: Stage) -> None:
    good = b"".join(b"GET /v1/%d HTTP/1.1\r\nHost: r\r\n\r\n" % number for number in range(50))
    seen, engine = await exchange(stage, good + framed(b"Content-Length: x"))
    assert [answer.status for answer in seen] == [200] * 50 + [400]
    assert len(engine.requests) == 50


def test_the_strict_reader_itself() -> None:
    """It fails where it should: else what engines get would show nothing."""
    good = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\n\r\nhello"
    assert [read.body for read in requests_in(good * 2)[0]] == [b"hello"] * 2
    assert requests_in(good[:-1]) == ([], good[:-1])
    for bad in (
        good.replace(b"\r\nC", b"\nC"),
        good.replace(b": 5", b": 5\r\nContent-Length: 5"),
        good.replace(b": 5", b": 5\r\nTransfer-Encoding: chunked"),
        good.replace(b": 5", b":\r\n 5"),
        good.replace(b": r", b": r\x00"),
        good.replace(b"h: 5", b"h : 5"),
        good.replace(b"Content-Length: 5", b"Transfer-Encoding: Chunked"),
        good.replace(b"Host: r\r\n", b""),
    ):
        with pytest.raises(AssertionError):
            requests_in(bad)
