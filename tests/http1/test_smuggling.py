"""Framing that two HTTP implementations may read differently is refused, never guessed at.

What is refused in the head makes no event but the error, so that nobody acts on the request.
"""

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import ResponseHead, ResponseParser
from tests.http1.feeding import (
    feed,
    one_request,
    one_response,
    refused_request,
    requests,
    responses,
)

CODING = b"Transfer-Encoding: chunked\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: router\r\n\r\n"

START: dict[type[RequestParser | ResponseParser], bytes] = {
    RequestParser: b"POST / HTTP/1.1\r\nHost: r\r\n",
    ResponseParser: b"HTTP/1.1 200 OK\r\n",
}


def begun(make: type[RequestParser | ResponseParser]) -> RequestParser | ResponseParser:
    """A parser that has read a head with a chunked body to follow."""
    parser = make()
    (head,) = parser.feed(START[make] + CODING)
    assert isinstance(head, RequestHead | ResponseHead)
    return parser


BAD_FRAMING = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"content-length: 5\r\nTRANSFER-ENCODING: chunked",
    b"Content-Length: 5\r\nTransfer-Encoding: identity",
    b"Content-Length: 5\r\nContent-Length: 5",
    b"Content-Length: 5\r\nX: y\r\ncontent-length: 6",
    b"Content-Length: 5, 5",
    b"Content-Length: 5 5",
    b"Content-Length: 5\t5",
    b"Content-Length: 5,",
    b"Content-Length: 5;5",
    b"Content-Length: 05\r\nContent-Length: 5",
    b"Content-Length: 5\r\nConnection: close\r\nContent-Length: 5",
    b"Content-Length: 5\r\nConnection: close\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nConnection: close\r\nTransfer-Encoding: chunked",
    b"Connection: content-length\r\nContent-Length: 5\r\nContent-Length: 5",
    b"Content-Length: +5",
    b"Content-Length: -5",
    b"Content-Length: 0x5",
    b"Content-Length: 5.0",
    b"Content-Length: 5e1",
    b"Content-Length: 5_0",
    b'Content-Length: "5"',
    b"Content-Length: \xb2",
    b"Content-Length: five",
    b"Content-Length:",
    b"Content-Length: 5\x0b",
    b"Content-Length: 9999999999999999999",
    b"Content-Length: 18446744073709551621",
    b"Content-Length : 5",
    b"Content-Length\t: 5",
    b"Content-Length\x00: 5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunkedx",
    b"Transfer-Encoding: chunked;q=1",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding:",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: chunked\x0b",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: chunked;",
    b"Transfer-Encoding: chunked chunked",
    b"Transfer-Encoding: chunk",
    b"Transfer-Encoding: 'chunked'",
    b"Transfer-Encoding: chunked, gzip, chunked",
    b"Transfer-Encoding: gzip,, chunked",
    b"Transfer-Encoding: gzip;q=1",
    b"Transfer-Encoding: chunked\xa0",
    b"Transfer-Encoding: \xe3\x80\x80chunked",
    b"Transfer-Encoding: chun\tked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding: chu\r\n nked",
]

BAD_LINES = [
    b"X: a\r\n b",
    b"X: a\r\n\tb",
    b"X: a\nY: b",
    b"X: a\rY: b",
    b"X: a\r\r",
    b"X: a\n",
    b"X: a\x00b",
    b"X: a\x01b",
    b"X: a\x7fb",
    b"X\x00: a",
    b"X\xff: a",
    b"X : a",
    b"X\t: a",
    b"X Y: a",
    b"(X): a",
    b": a",
    b"no colon",
    b" X: a",
]


OTHER_CODINGS = [
    *[b"gzip", b"identity", b"gzip, chunked", b"identity, chunked", b"gzip,chunked", b"x, y , z"],
    *[b"DEFLATE", b"gzip\t, Chunked "],
]


@pytest.mark.parametrize("coding", OTHER_CODINGS)
def test_a_coding_that_the_router_lacks(coding: bytes) -> None:
    """RFC 9112, section 6.1."""
    head = b"POST / HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: %b\r\n\r\n" % coding
    assert refused_request(head + b"0\r\n\r\n" + HIDDEN) == 501
    (error,) = responses(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % coding)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("space", [b"", b" ", b"\t", b" \t \t"])
@pytest.mark.parametrize("framing", [b"Content-Length:%b2%b", b"Transfer-Encoding:%bchunked%b"])
@pytest.mark.parametrize("other", [b"", b"TE: x\r\n"], ids=["usual head", "unusual head"])
def test_white_space_around_a_value_means_nothing(
    framing: bytes, space: bytes, other: bytes
) -> None:
    """RFC 9112, section 5."""
    line = framing % (space, space)
    body = b"hi" if b"Length" in framing else b"2\r\nhi\r\n0\r\n\r\n"
    data = b"X: y\r\n%b%b\r\n\r\n%b" % (other, line, body)
    assert one_request(b"POST / HTTP/1.1\r\nHost: r\r\n" + data)[1] == b"hi"
    assert one_response(b"HTTP/1.1 200 OK\r\n" + data)[1] == b"hi"


@pytest.mark.parametrize("lines", BAD_FRAMING + BAD_LINES)
@pytest.mark.parametrize("first", [False, True], ids=["after Host", "first line"])
def test_a_head_that_is_refused_in_a_request(lines: bytes, first: bool) -> None:
    host = b"Host: router"
    fields = [lines, host] if first else [host, lines]
    head = b"POST /generate HTTP/1.1\r\n%b\r\n\r\n" % b"\r\n".join(fields)
    assert refused_request(head + b"0\r\n\r\n" + HIDDEN) == 400


@pytest.mark.parametrize("lines", BAD_FRAMING + BAD_LINES)
def test_a_head_that_is_refused_in_an_answer(lines: bytes) -> None:
    (error,) = responses(b"HTTP/1.1 200 OK\r\nServer: s\r\n%b\r\n\r\n0\r\n\r\n" % lines)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\nHost: router\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: router\n\n",
        b"POST / HTTP/1.1\r\nHost: router\r\n\n",
        b"POST / HTTP/1.1\r\nHost: router\n\r\n",
        b"POST / HTTP/1.1\rHost: router\r\r",
        b"POST / HTTP/1.1\r\n\rHost: router\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: router\r\n\rX\r\n",
        b"POST / HTTP/1.1\r\r\nHost: router\r\n\r\n",
        b"\nPOST / HTTP/1.1\r\nHost: router\r\n\r\n",
        b"\rPOST / HTTP/1.1\r\nHost: router\r\n\r\n",
        b"\r\r\nPOST / HTTP/1.1\r\nHost: router\r\n\r\n",
    ],
)
def test_lines_end_with_cr_lf(data: bytes) -> None:
    assert refused_request(data) == 400


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_http_1_0_has_no_chunks(connection: bytes) -> None:
    """RFC 9112, section 6.1: such a message's framing is faulty."""
    head = (
        b"POST / HTTP/1.0\r\nHost: r\r\nConnection: %b\r\nTransfer-Encoding: %%b\r\n\r\n"
        % connection
    )
    for coding in (b"chunked", b"gzip"):
        assert refused_request(head % coding + b"0\r\n\r\n") == 400


BAD_CHUNKS = [
    b"\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\t\r\nhello\r\n0\r\n\r\n",
    b"5 5\r\nhello\r\n0\r\n\r\n",
    b"5,5\r\nhello\r\n0\r\n\r\n",
    b"g\r\nhello\r\n0\r\n\r\n",
    b"\xb5\r\nhello\r\n0\r\n\r\n",
    b"5\x00\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5\r\rhello\r\n0\r\n\r\n",
    b";x\r\nhello\r\n0\r\n\r\n",
    b"5;x\nhello\r\n0\r\n\r\n",
    b"5;x\rhello\r\n0\r\n\r\n",
    b"5;x\x00\r\nhello\r\n0\r\n\r\n",
    b'5;x="\n"\r\nhello\r\n0\r\n\r\n',
    b'5;x="\r\nhello\r\n0\r\n\r\n',
    b'5;x="\\"\r\nhello\r\n0\r\n\r\n',
    b'5;x="y"z\r\nhello\r\n0\r\n\r\n',
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;x=\r\nhello\r\n0\r\n\r\n",
    b"5;=y\r\nhello\r\n0\r\n\r\n",
    b"5;x;\r\nhello\r\n0\r\n\r\n",
    b"5;x y\r\nhello\r\n0\r\n\r\n",
    b"5 x\r\nhello\r\n0\r\n\r\n",
    b"5; \r\nhello\r\n0\r\n\r\n",
    b"5\r\r\nhello\r\n0\r\n\r\n",
    b"\n5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
    b"5h\r\nhello\r\n0\r\n\r\n",
    b"8000000000000000\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    b"10000000000000000\r\nhello\r\n0\r\n\r\n",
    b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\n\n",
    b"5\r\nhello\r\n0\r\n\n",
    b"5\r\nhello\r\n0\r\rX: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\n\r\n",
    b"5\r\nhello\r\n0\r\nX y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n",
    b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\x00\r\n\r\n",
    b"5\r\nhello\r\n0\r\n: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\r\nTRANSFER-ENCODING: chunked\r\n\r\n",
]


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
def test_chunks_that_are_refused(chunks: bytes) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, *body, error = requests(head + chunks + HIDDEN)
    assert isinstance(first, RequestHead)
    assert body in ([], [b"hello"])
    assert isinstance(error, ProtocolError) and error.status == 400


LOOKS_LIKE = [
    b"GET / HTTP/1.1\r\nHost: r\r\nContent-Length: 1\r\n\r\nx",
    b"GET / HTTP/1.1\r\nHost: r\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 204 OK\r\n\r\n",
    b"\r\n",
]


@pytest.mark.parametrize("looks", LOOKS_LIKE)
@pytest.mark.parametrize("make", [RequestParser, ResponseParser])
@pytest.mark.parametrize("before", [b"", b"a"])
def test_content_that_looks_like_a_message_is_content(
    make: type[RequestParser | ResponseParser], looks: bytes, before: bytes
) -> None:
    """However it is cut: a piece of it may look like all of a message."""
    size = b"%x\r\n%b" % (len(before + looks), before)
    coded = feed(begun(make), [size, looks, b"\r\n0\r\n\r\n"])
    assert coded == [before + looks, END]
    length = b"Content-Length: %d\r\n\r\n" % len(before + looks)
    head, *rest = feed(make(), [START[make] + length + before, looks])
    assert isinstance(head, RequestHead | ResponseHead)
    assert rest == [before + looks, END]


@pytest.mark.parametrize("make", [RequestParser, ResponseParser])
def test_a_value_that_looks_like_a_message_is_a_value(
    make: type[RequestParser | ResponseParser],
) -> None:
    start_line = START[make].partition(b"\r\n")[0]
    looks = START[make] + b"Content-Length: 0\r\n\r\n"
    head, end = feed(make(), [start_line + b"\r\nX: ", looks])
    assert isinstance(head, RequestHead | ResponseHead) and end is END
    assert head.get(b"x") == start_line


@pytest.mark.parametrize(
    "piece", [b"5\r\nhelloXY", b"5\r\nhello\rX", b"5\r\nhello\nX", b"5\r\nhelloX\n"]
)
@pytest.mark.parametrize("make", [RequestParser, ResponseParser])
def test_a_chunk_that_comes_alone_must_end_too(
    make: type[RequestParser | ResponseParser], piece: bytes
) -> None:
    *body, error = feed(begun(make), [piece])
    assert body == [b"hello"]
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("make", [RequestParser, ResponseParser])
def test_content_that_looks_like_a_chunk_is_content(
    make: type[RequestParser | ResponseParser],
) -> None:
    """Also where it comes alone."""
    looks = b"5\r\nhello\r\n"
    parser = begun(make)
    assert feed(parser, [b"1c\r\n", looks, b"0\r\n\r\n", looks, b"abc\r\n"]) == [
        looks + b"0\r\n\r\n" + looks + b"abc"
    ]
    assert feed(parser, [b"5\r\nhello", b"\r", b"\n" + looks]) == [b"hellohello"]
    (error,) = feed(parser, [b"0\r\n", looks])
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("chunks", BAD_CHUNKS)
def test_chunks_that_are_refused_in_an_answer(chunks: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, *body, error = responses(head + chunks)
    assert isinstance(first, ResponseHead)
    assert body in ([], [b"hello"])
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "name", [b"Transfer_Encoding", b"Transfer-Encodin", b"X-Transfer-Encoding", b"Content_Length"]
)
def test_a_name_that_only_looks_like_framing_frames_nothing(name: bytes) -> None:
    value = b"5" if b"Length" in name else b"chunked"
    events = requests(b"POST / HTTP/1.1\r\nHost: router\r\n%b: %b\r\n\r\n" % (name, value) + HIDDEN)
    assert [event is END for event in events] == [False, True, False, True]
    assert isinstance(events[2], RequestHead) and events[2].path == "/hidden"
