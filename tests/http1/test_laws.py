"""Laws of the parsers and encoders together, for any message and any bytes."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.errors import ProtocolError
from sgl_router.http1.grammar import DOT_SEGMENT, HOP_BY_HOP
from sgl_router.http1.head import END, LAST_CHUNK, Headers, chunk
from sgl_router.http1.request import RequestHead, RequestParser, encode_request_head
from sgl_router.http1.response import ResponseHead, ResponseParser, encode_response_head
from tests.http1.feeding import (
    Event,
    alike,
    as_lines,
    feed,
    header_lines,
    joined,
    one_request,
    one_response,
    request_head,
    response_head,
    single_bytes,
)

TOKEN = st.text(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1
).map(str.encode)
VALUE = st.binary(max_size=20).map(
    lambda raw: bytes(b for b in raw if b == 9 or 32 <= b != 127).strip(b" \t")
)
FRAMING = HOP_BY_HOP | {b"content-length"}
HEADERS = st.lists(
    st.tuples(TOKEN.filter(lambda name: name.lower() not in FRAMING), VALUE), max_size=8
)
TARGET = (
    st.text("abcxyz019/-._~!$&'()*+,;=:@%?", max_size=30)
    .map(lambda text: b"/" + text.encode())
    .filter(lambda target: not DOT_SEGMENT.search(target.partition(b"?")[0]))
)
METHOD = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH"])
PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def framed(pieces: list[bytes], chunked: bool) -> tuple[Headers, bytes]:
    """The framing header of a body in these pieces, and the body on the wire."""
    if chunked:
        return [(b"Transfer-Encoding", b"chunked")], b"".join(map(chunk, pieces)) + LAST_CHUNK
    body = b"".join(pieces)
    return [(b"Content-Length", b"%d" % len(body))], body


@settings(deadline=None)
@given(METHOD, TARGET, HEADERS, PIECES, st.booleans())
def test_a_request_that_is_encoded_and_parsed_is_the_same(
    method: bytes, target: bytes, headers: Headers, pieces: list[bytes], chunked: bool
) -> None:
    framing, wire = framed(pieces, chunked)
    head = request_head(headers + framing, method, target)
    got, body = one_request(encode_request_head(head, b"engine", b"") + wire)
    assert (got.method, got.target, body) == (method, target, b"".join(pieces))
    assert got.headers == [(b"Host", b"engine"), *headers, *framing]
    assert (got.chunked, got.content_length) == (head.chunked, head.content_length)


@settings(deadline=None)
@given(st.integers(200, 999).filter(lambda s: s not in (204, 304)), HEADERS, PIECES, st.booleans())
def test_an_answer_that_is_encoded_and_parsed_is_the_same(
    status: int, headers: Headers, pieces: list[bytes], chunked: bool
) -> None:
    framing, wire = framed(pieces, chunked)
    head = response_head(headers + framing, status, b"Why")
    encoded, in_chunks = encode_response_head(head, to_http10=False, keep_alive=True)
    got, body = one_response(encoded + wire)
    assert in_chunks is chunked
    assert (got.status, got.reason, body) == (status, b"Why", b"".join(pieces))
    assert got.headers == headers + framing
    assert got.keep_alive and not got.until_close


@settings(deadline=None)
@given(HEADERS, PIECES)
def test_what_a_client_sent_is_what_the_engine_gets(headers: Headers, pieces: list[bytes]) -> None:
    """Parsed, encoded, parsed, encoded again: nothing is added or lost on the second hop."""
    framing, wire = framed(pieces, chunked=True)
    lines = as_lines([*headers, (b"Host", b"router"), *framing])
    first, _ = one_request(b"POST /a HTTP/1.1\r\n" + lines + b"\r\n" + wire)
    once = encode_request_head(first, b"engine", b"")
    second, _ = one_request(once + wire)
    assert encode_request_head(second, b"engine", b"") == once
    assert header_lines(once)[1:-1] == headers


CONVERSATION = (
    b"POST /generate HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"
    b"GET /health HTTP/1.1\r\nHost: router\r\n\r\n"
    b"\r\nPOST http://router/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nworld"
    b"POST /generate HTTP/1.1\r\nHost: router\r\nConnection: close\r\n"
    b"Content-Length: 5\r\n\r\nworld\r\n"
)
ANSWER = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize(
    ("make", "data"),
    [(RequestParser, CONVERSATION), (ResponseParser, ANSWER)],
    ids=["request", "response"],
)
@settings(deadline=None)
@given(places=st.lists(st.integers(0, 1000), max_size=8))
def test_where_the_bytes_are_cut_makes_no_difference(
    make: Callable[[], RequestParser | ResponseParser], data: bytes, places: list[int]
) -> None:
    assert alike(feed(make(), cut(data, places)), feed(make(), [data]))


STARTS = [
    *[b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"GET /\r\n"],
    *[b"GET / HTTP/1.1\r\nHost: r\r\n", b"PUT http://a HTTP/1.1\r\nHost: r\r\n", b"\r\r\n"],
    *[b"GET /a/../b HTTP/1.1\r\nHost: r\r\n", b"GET / HTTP/2.0\r\n", b"\r\n\r\n\r\n"],
    *[b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 C\r\n"],
    *[b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 204 N\r\n", b"HTTP/1.1 099 N\r\n", b"\r\n", b""],
]
FIELDS = [
    *[b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: 05\r\n"],
    *[b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"X: y\r\n", b"X:\n"],
    *[b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n"],
    *[b"Host: h\r\n", b"Host: [::1]:80\r\n", b"Host: a/b\r\n", b"Expect: 100-continue\r\n"],
    *[b"Expect: more\r\n", b"Content-Length: 5 \r\n", b"transfer-encoding:\tCHUNKED \r\n"],
    *[b"TE: trailers\r\n", b"connection: X, close\r\n", b"X: y\r\n" * 300],
    *[b"Upgrade: h2c\r\n", b" folded\r\n", b"X : y\r\n", b"a" * 70_000],
]
BODIES = [
    *[b"hello", b"5\r\nhello\r\n", b"5;x=y\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n"],
    *[b"0\n\n", b"\r\n", b"\x00", b"ffffffffffffffff\r\n", b"1" * 20, b"7fffffffffffffff\r\n"],
    *[b'5 ; x = "y\\""\r\nhello\r\n', b"5;" + b"x" * 17_000, b"0\r\nContent-Length: 1\r\n\r\n"],
    b"1\r\nx\r\n" * 20,
]
MESSAGE = st.builds(
    lambda start, fields, end, body: b"".join([start, *fields, end, *body]),
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(FIELDS), max_size=3),
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b""]),
    st.lists(st.sampled_from(BODIES), max_size=3),
)
ODD_BYTES = st.binary(max_size=80) | st.lists(MESSAGE, min_size=1, max_size=3).map(b"".join)
"""Noise, and messages that are nearly right."""


def check_order(events: list[Event]) -> None:
    """Head, body, END, again and again; at most one error, and nothing after it."""
    inside = False
    for i, event in enumerate(events):
        if isinstance(event, RequestHead | ResponseHead):
            assert not inside
            inside = True
        elif isinstance(event, ProtocolError):
            assert i == len(events) - 1
        else:
            assert inside
            inside = event is not END


@pytest.mark.parametrize("make", [RequestParser, ResponseParser], ids=["request", "response"])
@settings(deadline=None, max_examples=300)
@given(data=ODD_BYTES, places=st.lists(st.integers(0, 1000), max_size=4))
def test_any_bytes_in_any_pieces_make_events_in_order(
    make: Callable[[], RequestParser | ResponseParser], data: bytes, places: list[int]
) -> None:
    whole = feed(make(), [data])
    check_order(whole)
    # What comes after an answer with its last byte is an error; what comes later is the next one.
    if make is RequestParser or END not in whole:
        assert alike(feed(make(), cut(data, places)), whole)


@settings(deadline=None, max_examples=300)
@given(data=ODD_BYTES.filter(lambda data: len(data) < 1_000))
def test_any_bytes_are_read_alike_in_one_piece_and_byte_by_byte(data: bytes) -> None:
    assert alike(feed(RequestParser(), [data]), feed(RequestParser(), single_bytes(data)))


@settings(deadline=None, max_examples=300)
@given(data=ODD_BYTES.filter(lambda data: len(data) < 1_000))
def test_any_answer_is_read_alike_in_one_piece_and_byte_by_byte(data: bytes) -> None:
    parser = ResponseParser()
    bytewise: list[Event] = []
    for byte in single_bytes(data):
        if END in bytewise:
            break
        bytewise = joined([*bytewise, *parser.feed(byte)])
        if bytewise and isinstance(bytewise[-1], ProtocolError):
            break
    whole = feed(ResponseParser(), [data])
    upto = whole.index(END) + 1 if END in whole else len(whole)
    assert alike(bytewise, whole[:upto])


@settings(deadline=None, max_examples=300)
@given(data=ODD_BYTES, head_request=st.booleans())
def test_whatever_an_engine_sends_the_end_of_its_connection_is_one_event(
    data: bytes, head_request: bool
) -> None:
    parser = ResponseParser(to_head_request=head_request)
    events = feed(parser, [data])
    if not any(isinstance(event, ProtocolError) for event in events):
        (last,) = parser.feed_eof()
        assert last is END or isinstance(last, ProtocolError)
        if events and events[-1] is END:
            assert last is not END
