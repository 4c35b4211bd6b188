"""Heads as they are passed on: what is dropped, what is kept, and how a body is framed."""

from itertools import zip_longest

import pytest

from sgl_router.http1.head import LAST_CHUNK, Headers, chunk
from sgl_router.http1.request import RequestHead, encode_request_head
from sgl_router.http1.response import ResponseHead, encode_response, encode_response_head
from tests.http1.feeding import (
    as_lines,
    header_lines,
    one_request,
    one_response,
    request_head,
    response_head,
)

ID = (b"x-request-id", b"req-1")
BETWEEN_NEIGHBOURS: Headers = [
    (b"Connection", b"keep-alive"),
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Authenticate", b"Basic"),
    (b"Proxy-Authorization", b"Basic eA=="),
    (b"Proxy-Connection", b"keep-alive"),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"AAMAAABk"),
]
PASSED_ON: Headers = [
    (b"Authorization", b"Bearer k"),
    (b"X-Two", b"1"),
    (b"accept", b"*/*"),
    (b"x-two", b"2"),
    (b"X-EMPTY", b""),
    (b"X-Odd", b"a  b\t\xe4"),
    (b"Cost", b"almost Host"),
    (b"Te-", b"almost TE"),
    (b"Connections", b"almost Connection"),
    (b"X-Content-Length", b"5"),
]


def sent_to_engine(
    head: RequestHead,
    added: Headers | None = None,
    *,
    dropped: frozenset[bytes] = frozenset(),
    content_length: int | None = None,
) -> tuple[bytes, Headers]:
    encoded = encode_request_head(
        head,
        b"engine:8000",
        b"/prefix",
        as_lines(added or []),
        dropped=dropped,
        content_length=content_length,
    )
    assert encoded.endswith(b"\r\n\r\n") and encoded.count(b"\r\n\r\n") == 1
    return encoded.partition(b"\r\n")[0], header_lines(encoded)


def sent_to_client(
    head: ResponseHead,
    *,
    to_http10: bool = False,
    keep_alive: bool = True,
    added: Headers | None = None,
) -> tuple[Headers, bool]:
    encoded, chunked = encode_response_head(
        head, to_http10=to_http10, keep_alive=keep_alive, added=as_lines(added or [])
    )
    assert encoded.startswith(b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason))
    assert encoded.endswith(b"\r\n\r\n") and encoded.count(b"\r\n\r\n") == 1
    return header_lines(encoded), chunked


def test_the_request_line_and_host_are_the_engines() -> None:
    head = request_head([(b"X", b"y")], b"GET", b"/v1/models?a=b")
    line, headers = sent_to_engine(head)
    assert line == b"GET /prefix/v1/models?a=b HTTP/1.1"
    assert headers == [(b"Host", b"engine:8000"), (b"X", b"y")]


def test_headers_keep_order_case_repetition_and_value() -> None:
    _, headers = sent_to_engine(request_head(PASSED_ON))
    assert headers[1:] == PASSED_ON
    assert (
        sent_to_client(response_head([*PASSED_ON, (b"Content-Length", b"0")]))[0][:-1] == PASSED_ON
    )


def test_what_is_between_two_neighbours_is_dropped() -> None:
    pairs = zip_longest(PASSED_ON, BETWEEN_NEIGHBOURS)
    mixed = [header for pair in pairs for header in pair if header is not None]
    mixed += BETWEEN_NEIGHBOURS
    _, headers = sent_to_engine(request_head([*mixed, (b"Expect", b"100-continue")]))
    assert headers[1:] == PASSED_ON
    answered, _ = sent_to_client(response_head(mixed, 304))
    assert answered == PASSED_ON


@pytest.mark.parametrize(
    "connection",
    [
        [b"X-Private, keep-alive"],
        [b"keep-alive,x-private"],
        [b"X-PRIVATE"],
        [b"  x-private\t, close"],
        [b",,x-private,"],
        [b"close", b"x-private"],
        [b"x-private", b"keep-alive"],
    ],
)
def test_what_connection_names_is_dropped(connection: list[bytes]) -> None:
    named = [(b"Connection", value) for value in connection]
    headers = [(b"X-Private", b"1"), *named, (b"X-Public", b"2"), (b"x-private", b"3")]
    assert sent_to_engine(request_head(headers))[1][1:] == [(b"X-Public", b"2")]
    assert sent_to_client(response_head(headers, 304))[0] == [(b"X-Public", b"2")]


def test_each_connection_header_names_its_own() -> None:
    headers = [
        (b"A", b"1"),
        (b"B", b"2"),
        (b"C", b"3"),
        (b"Connection", b"a"),
        (b"connection", b"b"),
    ]
    assert sent_to_engine(request_head(headers))[1][1:] == [(b"C", b"3")]


@pytest.mark.parametrize("named", [b"Content-Length", b"Transfer-Encoding", b"Host"])
def test_connection_cannot_unframe_a_message(named: bytes) -> None:
    connection = (b"Connection", named)
    assert sent_to_engine(request_head([connection, (b"Content-Length", b"5")]))[1] == [
        (b"Host", b"engine:8000"),
        (b"Content-Length", b"5"),
    ]
    assert sent_to_engine(request_head([connection, (b"Transfer-Encoding", b"chunked")]))[1] == [
        (b"Host", b"engine:8000"),
        (b"Transfer-Encoding", b"chunked"),
    ]
    assert sent_to_client(response_head([connection, (b"Content-Length", b"5")]))[0] == [
        (b"Content-Length", b"5")
    ]


def test_lines_are_added_as_they_are() -> None:
    head = request_head([(b"X", b"y")])
    assert sent_to_engine(head, [ID, (b"A", b"b")])[1][1:] == [(b"X", b"y"), ID, (b"A", b"b")]
    own = (b"X-Request-ID", b"mine")
    assert sent_to_engine(request_head([own]))[1][1:] == [own]


def test_headers_that_the_caller_drops() -> None:
    headers = [(b"Authorization", b"Bearer k"), (b"X", b"y"), (b"AUTHORIZATION", b"again")]
    dropped = frozenset({b"authorization", b"x-absent"})
    assert sent_to_engine(request_head(headers), dropped=dropped)[1][1:] == [(b"X", b"y")]


@pytest.mark.parametrize(
    "framing",
    [[], [(b"Content-Length", b"5")], [(b"Transfer-Encoding", b"chunked")]],
    ids=["none", "length", "chunked"],
)
@pytest.mark.parametrize("dropped", [frozenset[bytes](), frozenset({b"b"})])
def test_a_body_of_another_size_is_framed_anew(framing: Headers, dropped: frozenset[bytes]) -> None:
    head = request_head([(b"A", b"1"), *framing, (b"B", b"2")])
    _, headers = sent_to_engine(head, [ID], dropped=dropped, content_length=123)
    kept = [(b"A", b"1")] if dropped else [(b"A", b"1"), (b"B", b"2")]
    assert headers[1:] == [*kept, ID, (b"Content-Length", b"123")]


@pytest.mark.parametrize("name", [b"content-length", b"transfer-encoding"])
def test_the_framing_cannot_be_dropped_without_another(name: bytes) -> None:
    with pytest.raises(AssertionError):
        sent_to_engine(request_head([(b"Content-Length", b"5")]), dropped=frozenset({name}))


def test_a_request_without_a_body_gets_no_framing() -> None:
    assert sent_to_engine(request_head([], b"GET"))[1] == [(b"Host", b"engine:8000")]


def test_framing_of_a_body_whose_length_is_known() -> None:
    headers, chunked = sent_to_client(response_head([(b"content-length", b"5")]))
    assert (headers, chunked) == ([(b"content-length", b"5")], False)


@pytest.mark.parametrize(
    "headers", [[(b"Transfer-Encoding", b"chunked")], []], ids=["chunked", "until close"]
)
def test_framing_of_a_body_whose_length_is_not_known(headers: Headers) -> None:
    to_http11 = sent_to_client(response_head(headers))
    assert to_http11 == ([(b"Transfer-Encoding", b"chunked")], True)
    to_http10 = sent_to_client(response_head(headers), to_http10=True, keep_alive=False)
    assert to_http10 == ([(b"Connection", b"close")], False)


@pytest.mark.parametrize("to_http10", [False, True])
def test_connection_is_said_where_it_is_not_the_versions_default(to_http10: bool) -> None:
    known = response_head([(b"Content-Length", b"5"), (b"Connection", b"x")])
    closing, _ = sent_to_client(known, to_http10=to_http10, keep_alive=False)
    assert closing[1:] == [(b"Connection", b"close")]
    keeping, _ = sent_to_client(known, to_http10=to_http10, keep_alive=True)
    assert keeping[1:] == ([(b"Connection", b"keep-alive")] if to_http10 else [])


@pytest.mark.parametrize(
    "headers", [[(b"Transfer-Encoding", b"chunked")], [(b"Content-Length", b"5")]]
)
@pytest.mark.parametrize("status", [200, 304])
def test_an_answer_without_a_body_says_how_one_would_be_framed(
    status: int, headers: Headers
) -> None:
    """To a HEAD request, or 304 (RFC 9110, section 8.6; RFC 9112, section 6.1)."""
    assert sent_to_client(response_head(headers, status, to_head_request=True)) == (headers, False)


@pytest.mark.parametrize(
    "headers", [[(b"Transfer-Encoding", b"chunked")], [(b"content-length", b"5")], []]
)
def test_204_is_never_framed(headers: Headers) -> None:
    """A client that waited for the chunks it was promised would wait for ever."""
    around = [(b"Set-Cookie", b"a"), *headers, (b"Vary", b"b")]
    assert sent_to_client(response_head(around, 204)) == (
        [(b"Set-Cookie", b"a"), (b"Vary", b"b")],
        False,
    )


def test_added_lines_of_an_answer() -> None:
    headers, _ = sent_to_client(
        response_head([(b"Content-Length", b"0")]), added=[ID, (b"A", b"b")]
    )
    assert headers == [(b"Content-Length", b"0"), ID, (b"A", b"b")]


@pytest.mark.parametrize("keep_alive", [False, True])
def test_an_answer_of_the_routers_own(keep_alive: bool) -> None:
    encoded = encode_response(
        503,
        b"{}",
        content_type=b"text/plain",
        keep_alive=keep_alive,
        added=b"Retry-After: 1\r\n",
    )
    head, body = one_response(encoded)
    assert (head.status, head.reason, body) == (503, b"Service Unavailable", b"{}")
    assert head.keep_alive is keep_alive
    assert head.get(b"content-type") == b"text/plain"
    assert head.get(b"retry-after") == b"1"


@pytest.mark.parametrize("status", [400, 413, 417, 431, 501, 505])
def test_every_status_of_a_refusal_can_be_answered(status: int) -> None:
    assert one_response(encode_response(status, b""))[0].status == status


@pytest.mark.parametrize(
    ("keep_alive", "said"), [(True, b"keep-alive"), (False, b"close")], ids=["kept", "closed"]
)
def test_an_answer_of_the_routers_own_to_http_1_0(keep_alive: bool, said: bytes) -> None:
    """Where nothing is said, such a client takes the connection for closed."""
    head, _ = one_response(encode_response(200, b"", keep_alive=keep_alive, to_http10=True))
    assert head.get(b"connection") == said


def test_an_answer_of_the_routers_own_to_a_head_request() -> None:
    whole = encode_response(200, b"hello")
    assert encode_response(200, b"hello", with_body=False) == whole.removesuffix(b"hello")


def test_a_chunk_is_never_the_last_one() -> None:
    assert chunk(b"x" * 255) == b"ff\r\n" + b"x" * 255 + b"\r\n"
    with pytest.raises(AssertionError):
        chunk(b"")


def test_a_chunked_request_reaches_the_engine_as_it_came() -> None:
    head = request_head([(b"Transfer-Encoding", b"Chunked")])
    encoded = encode_request_head(head, b"engine:8000", b"", as_lines([ID]))
    got, body = one_request(encoded + chunk(b"he") + chunk(b"llo") + LAST_CHUNK)
    assert (got.chunked, got.content_length, body) == (True, None, b"hello")
    assert got.get(b"x-request-id") == b"req-1"
