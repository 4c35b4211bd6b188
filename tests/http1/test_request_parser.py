"""Requests as clients send them: heads, bodies, one after the other."""

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, MAX_HEAD_BYTES
from sgl_router.http1.request import RequestHead, RequestParser
from tests.http1.feeding import feed, one_request, refused_request, requests, single_bytes

GET = b"GET /v1/models HTTP/1.1\r\nHost: router\r\n\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: router\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /generate HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_head_without_a_body() -> None:
    head, body = one_request(
        b"GET /v1/models?a=b HTTP/1.1\r\nHost: router\r\nX-Two: 1\r\nx-two:2\r\nEmpty:\r\n\r\n"
    )
    assert (head.method, head.target, head.path) == (b"GET", b"/v1/models?a=b", "/v1/models")
    assert head.headers == [
        (b"Host", b"router"),
        (b"X-Two", b"1"),
        (b"x-two", b"2"),
        (b"Empty", b""),
    ]
    assert (head.content_length, head.chunked) == (None, False)
    assert (head.http10, head.keep_alive, head.expects_continue) == (False, True, False)
    assert body == b""


def test_get_finds_the_first_value_whatever_its_case() -> None:
    head, _ = one_request(b"GET / HTTP/1.1\r\nX-Two: 1\r\nx-two: 2\r\n\r\n")
    assert head.get(b"x-two") == b"1"
    assert head.get(b"x-three") is None


def test_a_body_of_known_length() -> None:
    head, body = one_request(POST)
    assert (head.content_length, head.chunked, body) == (5, False, b"hello")


def test_an_empty_body() -> None:
    head, body = one_request(POST.replace(b"5\r\n\r\nhello", b"0\r\n\r\n"))
    assert (head.content_length, body) == (0, b"")


def test_any_bytes_can_be_a_body() -> None:
    every = bytes(range(256)) + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(every)
    assert one_request(head + every)[1] == every


@pytest.mark.parametrize(
    ("chunks", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
        (b"00005\r\nhello\r\n000\r\n\r\n", b"hello"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"5;name=value\r\nhello\r\n0;last\r\n\r\n", b"hello"),
        (b'5;name="quo;ted"\r\nhello\r\n0\r\n\r\n', b"hello"),
        (b"5\r\n\r\n\r\n0\r\n0\r\n\r\n", b"\r\n\r\n0"),
    ],
)
def test_chunks(chunks: bytes, body: bytes) -> None:
    head, got = one_request(CHUNKED + chunks)
    assert (head.content_length, head.chunked, got) == (None, True, body)


@pytest.mark.parametrize("spelling", [b"chunked", b"Chunked", b"CHUNKED"])
def test_the_name_of_the_encoding_has_no_case(spelling: bytes) -> None:
    head, body = one_request(CHUNKED.replace(b"chunked", spelling) + b"2\r\nhi\r\n0\r\n\r\n")
    assert (head.chunked, body) == (True, b"hi")


def test_trailers_are_dropped_and_do_not_reach_the_next_request() -> None:
    trailers = b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\nAuthorization: stolen\r\n\r\n"
    first, body, end, second, second_end = requests(CHUNKED + trailers + GET)
    assert isinstance(first, RequestHead) and isinstance(second, RequestHead)
    assert first.headers == [(b"Host", b"router"), (b"Transfer-Encoding", b"chunked")]
    assert second.headers == [(b"Host", b"router")]
    assert (body, end, second_end) == (b"hi", END, END)


def test_requests_one_after_the_other() -> None:
    events = requests(POST + CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + GET + POST)
    heads = [event for event in events if isinstance(event, RequestHead)]
    assert [head.method for head in heads] == [b"POST", b"POST", b"GET", b"POST"]
    assert [event for event in events if not isinstance(event, RequestHead)] == [
        b"hello",
        END,
        b"hi",
        END,
        END,
        b"hello",
        END,
    ]


def test_an_empty_line_before_a_request_is_ignored() -> None:
    """RFC 9112, section 2.2."""
    events = requests(b"\r\n" + GET + b"\r\n" + GET)
    assert [event is END for event in events] == [False, True, False, True]


@pytest.mark.parametrize(
    ("head", "http10", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", False, True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nConnection: x\r\nConnection: close\r\n\r\n", False, False),
        (b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", False, True),
        (b"GET / HTTP/1.0\r\n\r\n", True, False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True, True),
    ],
)
def test_version_and_connection(head: bytes, http10: bool, keep_alive: bool) -> None:
    got, _ = one_request(head)
    assert (got.http10, got.keep_alive) == (http10, keep_alive)


def test_nothing_is_read_after_close() -> None:
    head, end, error = requests(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + GET)
    assert isinstance(head, RequestHead) and end is END
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("value", "expected"), [(b"100-continue", True), (b"100-Continue", True), (b"other", False)]
)
def test_expect(value: bytes, expected: bool) -> None:
    parser = RequestParser()
    (head,) = parser.feed(b"POST / HTTP/1.1\r\nExpect: %b\r\nContent-Length: 2\r\n\r\n" % value)
    assert isinstance(head, RequestHead)
    assert head.expects_continue is expected
    assert feed(parser, [b"hi"]) == [b"hi", END]


def test_the_head_is_told_before_the_body_is_there() -> None:
    parser = RequestParser()
    (head,) = parser.feed(POST.removesuffix(b"hello"))
    assert isinstance(head, RequestHead)
    assert parser.feed(b"he") == [b"he"]
    assert parser.feed(b"llo") == [b"llo", END]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://other:1/v1/models?a=b", "http://other:1/v1/models"),
        (b"*", "*"),
        (b"//double/v1", "//double/v1"),
        (b"/v1/../admin", "/v1/../admin"),
        (b"/%2e%2e?x?y", "/%2e%2e"),
    ],
)
def test_a_target_is_kept_as_it_came(target: bytes, path: str) -> None:
    head, _ = one_request(b"OPTIONS %b HTTP/1.1\r\nHost: router\r\n\r\n" % target)
    assert (head.target, head.path) == (target, path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\n\r\n",
        b"GET v1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET / HTP/1.1\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage(data: bytes) -> None:
    assert refused_request(data) == 400


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
def test_other_versions(version: bytes) -> None:
    assert refused_request(b"GET / HTTP/%b\r\nHost: router\r\n\r\n" % version) == 505


def test_a_request_line_without_a_version_is_http_0_9() -> None:
    assert refused_request(b"GET /v1/models\r\n\r\n") == 505


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT engine:443 HTTP/1.1\r\nHost: engine:443\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: x, upgrade\r\nUpgrade: h2c\r\n\r\n" + GET,
        # llhttp takes the body for the other protocol's: nobody may be told of such a request.
        b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_upgrades_are_refused_before_anything_is_told(data: bytes) -> None:
    assert refused_request(data) == 501


def test_an_upgrade_that_connection_does_not_name_is_a_header_like_others() -> None:
    assert one_request(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n")[0].get(b"upgrade") == b"h2c"


def padded(size: int) -> bytes:
    """A request whose header lines have so many bytes."""
    return b"GET / HTTP/1.1\r\nX: " + b"a" * (size - 5) + b"\r\n\r\n"


def test_a_head_just_within_the_limit() -> None:
    head, _ = one_request(padded(MAX_HEAD_BYTES - 20))
    assert head.get(b"x") == b"a" * (MAX_HEAD_BYTES - 25)


@pytest.mark.parametrize(
    "data",
    [
        padded(MAX_HEAD_BYTES + 1),
        b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (MAX_HEAD_BYTES // 4 + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * MAX_HEAD_BYTES + b": b\r\n\r\n",
    ],
    ids=["value", "target", "lines", "name"],
)
def test_a_head_over_the_limit(data: bytes) -> None:
    assert refused_request(data) == 431


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\n",
        b"\r\n",
        CHUNKED + b"0\r\nX: ",
        CHUNKED + b"0\r\n",
        CHUNKED + b"5;",
        CHUNKED,
    ],
    ids=["target", "value", "lines", "empty lines", "trailer", "trailers", "extension", "size"],
)
def test_what_never_ends_is_cut_off(beginning: bytes) -> None:
    """Else a client could fill the memory, or keep a connection busy for nothing."""
    more = {b"GET / HTTP/1.1\r\n": b"a: b\r\n", b"\r\n": b"\r\n", CHUNKED: b"0"}
    more[CHUNKED + b"0\r\n"] = b"a: b\r\n"
    parser = RequestParser()
    parser.feed(beginning)
    fed = 0
    while fed < 3 * MAX_HEAD_BYTES:
        piece = more.get(beginning, b"a") * 1_000
        fed += len(piece)
        if events := parser.feed(piece):
            (error,) = events
            assert isinstance(error, ProtocolError) and error.status == 431
            assert fed > MAX_HEAD_BYTES - 100
            return
    raise AssertionError("it went on")


@pytest.mark.parametrize("after", [b"", GET, GET[:20]], ids=["alone", "and another", "and a part"])
def test_a_body_larger_than_a_head_may_come_in_one_piece(after: bytes) -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)
    data = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    events = feed(RequestParser(), [data + after])
    assert events[1:3] == [body, END]
    assert not any(isinstance(event, ProtocolError) for event in events)


def test_a_large_chunked_body_of_small_chunks() -> None:
    data = CHUNKED + b"1\r\nx\r\n" * MAX_HEAD_BYTES + b"0\r\n\r\n"
    for pieces in ([data], single_bytes(data)):
        assert feed(RequestParser(), pieces)[1:] == [b"x" * MAX_HEAD_BYTES, END]


@pytest.mark.parametrize("cut", [1, 20, len(POST) - 6, len(POST) - 1])
def test_a_cut_request_has_no_end(cut: int) -> None:
    assert END not in requests(POST[:cut])
