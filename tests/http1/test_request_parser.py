"""Requests as clients send them: heads, bodies, one after the other."""

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.http1.body import MAX_EXTENSION_BYTES
from sgl_router.http1.head import END, MAX_HEAD_BYTES, MAX_HEADERS
from sgl_router.http1.request import MAX_EMPTY_LINES, RequestHead, RequestParser
from tests.http1.feeding import as_lines, feed, one_request, refused_request, requests, single_bytes

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


@pytest.mark.parametrize("name", [b"X-Two", b"X-Request-ID", b"authorization", b"Te", b"HOST"])
def test_get_finds_the_first_value_whatever_its_case(name: bytes) -> None:
    """Those names that are asked for with every request, and any other."""
    first = b"%b: \t a: %b \t\r\nX-%b: no\r\nNot: %b: no\r\n" % (name, name, name, name)
    again = b"" if name == b"HOST" else b"%b: 2\r\n" % name.swapcase()
    host = b"" if name == b"HOST" else b"Host: r\r\n"
    first = first.replace(b"a: HOST", b"a")
    head, _ = one_request(b"GET /%b: HTTP/1.1\r\n%b%b%b\r\n" % (name, first, host, again))
    value = b"a" if name == b"HOST" else b"a: " + name
    assert head.get(name.lower()) == value
    assert head.get(name.lower()) == value


@pytest.mark.parametrize("name", [b"x-two", b"x-request-id", b"x-smg-routing-key", b"connection"])
def test_get_finds_nothing_where_nothing_is(name: bytes) -> None:
    around = b"Not-%b: a\r\n%b-not: b\r\nN: %b: c\r\n" % (name, name, name)
    head, _ = one_request(b"GET /%b: HTTP/1.1\r\nHost: r\r\n%b\r\n" % (name, around))
    assert head.get(name) is None


def test_a_body_of_known_length() -> None:
    head, body = one_request(POST)
    assert (head.content_length, head.chunked, body) == (5, False, b"hello")


def test_an_empty_body() -> None:
    head, body = one_request(POST.replace(b"5\r\n\r\nhello", b"0\r\n\r\n"))
    assert (head.content_length, body) == (0, b"")


def test_any_bytes_can_be_a_body() -> None:
    every = bytes(range(256)) + b"\r\n\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n" % len(every)
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
        (b"5 ; a ;\tb = c\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b'5;a="\\"\\\\;\xe4\t"\r\nhello\r\n0\r\n\r\n', b"hello"),
        (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    ],
)
def test_chunks(chunks: bytes, body: bytes) -> None:
    head, got = one_request(CHUNKED + chunks)
    assert (head.content_length, head.chunked, got) == (None, True, body)


@pytest.mark.parametrize("spelling", [b"chunked", b"Chunked", b"CHUNKED", b"chunked \t"])
def test_the_name_of_the_encoding_has_no_case(spelling: bytes) -> None:
    head, body = one_request(
        CHUNKED.replace(b" chunked", b"\t " + spelling) + b"2\r\nhi\r\n0\r\n\r\n"
    )
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


@pytest.mark.parametrize("lines", range(1, MAX_EMPTY_LINES + 1))
def test_a_few_empty_lines_before_a_request_are_ignored(lines: int) -> None:
    """RFC 9112, section 2.2."""
    empty = b"\r\n" * lines
    events = requests(empty + GET + empty + POST + empty + CHUNKED + b"0\r\n\r\n" + empty)
    assert [event is END for event in events] == [False, True, False, False, True, False, True]


def test_many_empty_lines_are_not() -> None:
    assert refused_request(b"\r\n" * (MAX_EMPTY_LINES + 1) + GET) == 400
    first, end, error = requests(GET + b"\r\n" * (MAX_EMPTY_LINES + 1) + GET)
    assert isinstance(first, RequestHead) and end is END
    assert isinstance(error, ProtocolError) and error.status == 400


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"close"], False),
        (b"1.1", [b"keep-alive, Close"], False),
        (b"1.1", [b"x", b"close"], False),
        (b"1.1", [b"keep-alive", b"close"], False),
        (b"1.1", [b"keep-alive"], True),
        (b"1.1", [b"closed"], True),
        (b"1.1", [b"CLOSE "], False),
        (b"1.0", [], False),
        (b"1.0", [b"Keep-Alive"], True),
        (b"1.0", [b"x"], False),
        (b"1.0", [b"x,\tkeep-alive"], True),
        (b"1.0", [b"keep-alive, close"], False),
    ],
)
def test_version_and_connection(version: bytes, connection: list[bytes], keep_alive: bool) -> None:
    lines = as_lines([(b"Host", b"r"), *[(b"Connection", value) for value in connection]])
    head, _ = one_request(b"GET / HTTP/%b\r\n%b\r\n" % (version, lines))
    assert (head.http10, head.keep_alive) == (version == b"1.0", keep_alive)


CLOSING = GET.replace(b"Host", b"Connection: close\r\nHost")


@pytest.mark.parametrize("after", [GET, b"x", b"\r\nx", b"\n\x00"])
def test_nothing_is_read_after_close(after: bytes) -> None:
    head, end, error = requests(CLOSING + after)
    assert isinstance(head, RequestHead) and end is END
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("connection", [b"close", b"x, close"])
@pytest.mark.parametrize("request_bytes", [GET, POST, CHUNKED + b"1\r\nx\r\n0\r\n\r\n"])
def test_nothing_is_read_after_close_in_another_piece_either(
    request_bytes: bytes, connection: bytes
) -> None:
    data = request_bytes.replace(b"\r\n\r\n", b"\r\nConnection: %b\r\n\r\n" % connection, 1)
    for pieces in ([data], [data[:-1], data[-1:]], single_bytes(data)):
        parser = RequestParser()
        assert feed(parser, pieces)[-1] is END
        assert feed(parser, [b"\r\n"]) == []
        (error,) = feed(parser, [GET])
        assert isinstance(error, ProtocolError)


def test_an_empty_line_after_close_is_no_request() -> None:
    """Some clients send one after a body."""
    assert [event is END for event in requests(CLOSING + b"\r\n" * 9)] == [False, True]


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue", b"100-continue, 100-continue"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_expect(value: bytes, version: bytes) -> None:
    """An HTTP/1.0 client cannot mean it (RFC 9110, section 10.1.1)."""
    parser = RequestParser()
    lines = b"Host: r\r\nExpect: %b\r\nContent-Length: 2\r\n\r\n" % value
    (head,) = parser.feed(b"POST / HTTP/%b\r\n%b" % (version, lines))
    assert isinstance(head, RequestHead)
    assert head.expects_continue is (version == b"1.1")
    assert feed(parser, [b"hi"]) == [b"hi", END]


@pytest.mark.parametrize("value", [b"other", b"100-continue, other", b"100-continue;q=1"])
def test_what_else_is_expected_is_refused(value: bytes) -> None:
    data = POST.replace(b"Host", b"Expect: %b\r\nHost" % value)
    assert refused_request(data) == 417


def test_the_head_is_told_before_the_body_is_there() -> None:
    parser = RequestParser()
    (head,) = parser.feed(POST.removesuffix(b"hello"))
    assert isinstance(head, RequestHead)
    assert parser.feed(b"he") == [b"he"]
    assert parser.feed(b"llo") == [b"llo", END]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"hello\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET / HTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage(data: bytes) -> None:
    assert refused_request(data) == 400


def padded(size: int) -> bytes:
    """A request whose header lines have so many bytes."""
    return b"GET / HTTP/1.1\r\nHost: r\r\nX: " + b"a" * (size - 14) + b"\r\n\r\n"


def test_a_head_just_within_the_limit() -> None:
    data = padded(MAX_HEAD_BYTES - 18)
    assert len(data) == MAX_HEAD_BYTES
    head, _ = one_request(data)
    assert head.get(b"x") == b"a" * (MAX_HEAD_BYTES - 32)
    assert refused_request(padded(MAX_HEAD_BYTES - 17)) == 431
    first, end, error = requests(GET + padded(MAX_HEAD_BYTES - 17))
    assert isinstance(first, RequestHead) and end is END
    assert isinstance(error, ProtocolError) and error.status == 431


def test_a_head_with_as_many_lines_as_may_be() -> None:
    lines = b"a:\r\n" * (MAX_HEADERS - 1)
    for host in (b"Host:\r\n", b"TE: x\r\nHost:\r\n"):  # a usual head, and one that is not
        start = b"GET / HTTP/1.1\r\n" + host
        more = MAX_HEADERS - host.count(b"\n")
        head, _ = one_request(start + lines[: 4 * more] + b"\r\n")
        assert len(head.headers) == MAX_HEADERS
        assert refused_request(start + lines[: 4 * more] + b"b:\r\n\r\n") == 431


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


LINES = b"GET / HTTP/1.1\r\nHost: r\r\n"


@pytest.mark.parametrize(
    ("beginning", "more", "limit"),
    [
        (b"GET /", b"a", MAX_HEAD_BYTES),
        (LINES + b"X: ", b"a", MAX_HEAD_BYTES),
        (LINES + b"X", b"a", MAX_HEAD_BYTES),
        (LINES, b"a: b\r\n", 6 * MAX_HEADERS),
        (CHUNKED + b"0\r\nX: ", b"a", MAX_HEAD_BYTES),
        (CHUNKED + b"0\r\n", b"a: b\r\n", 6 * MAX_HEADERS),
        (CHUNKED + b"5;", b"a", MAX_EXTENSION_BYTES),
        (CHUNKED, b"1;a\r\nx\r\n", MAX_EXTENSION_BYTES),
    ],
    ids=[
        *["target", "value", "name", "lines", "trailer", "trailers", "extension", "extensions"],
    ],
)
@pytest.mark.parametrize("step", [1, 1_000])
def test_what_never_ends_is_cut_off(beginning: bytes, more: bytes, limit: int, step: int) -> None:
    """Else a client could fill the memory, or keep a connection busy for nothing."""
    parser = RequestParser()
    events = parser.feed(beginning)
    fed = 0
    while not (events and isinstance(events[-1], ProtocolError)):
        assert fed < 6 * limit, "it went on"
        events = parser.feed(more * step)
        fed += len(more) * step
    assert isinstance(events[-1], ProtocolError) and events[-1].status == 431
    assert fed > limit - len(beginning)


def test_extensions_just_within_the_limit() -> None:
    extension = b";" + b"a" * (MAX_EXTENSION_BYTES - 1)
    _, body = one_request(CHUNKED + b"1%b\r\nx\r\n0\r\n\r\n" % extension)
    assert body == b"x"
    _, error = requests(CHUNKED + b"1%ba\r\nx\r\n0\r\n\r\n" % extension)
    assert isinstance(error, ProtocolError) and error.status == 431


def test_part_of_a_head_is_told_of() -> None:
    """So that a client can be given a time for all of it."""
    parser = RequestParser()
    seen = []
    for byte in single_bytes(b"\r\n" + POST + CHUNKED + b"1;x\r\nh\r\n0\r\nA: b\r\n\r\n" + GET):
        events = parser.feed(byte)
        seen.append((parser.mid_message, any(event is END for event in events)))
    head_bytes = [data.index(b"\r\n\r\n") + 3 for data in (POST, CHUNKED, GET)]
    assert [mid for mid, _ in seen].count(True) == 1 + sum(head_bytes)
    assert [mid for mid, end in seen if end] == [False, False, False]


@pytest.mark.parametrize(
    "data", [b"", GET, POST, POST[:-1], CHUNKED, CHUNKED + b"5\r\nhe", b"\r\n"]
)
def test_between_messages_and_in_a_body_no_part_of_a_head_waits(data: bytes) -> None:
    parser = RequestParser()
    parser.feed(data)
    assert not parser.mid_message


@pytest.mark.parametrize("after", [b"", GET, GET[:20]], ids=["alone", "and another", "and a part"])
def test_a_body_larger_than_a_head_may_come_in_one_piece(after: bytes) -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)
    data = b"POST / HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
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
