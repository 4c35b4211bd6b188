"""The two ways of reading a head agree, and no pattern takes more than linear time."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.errors import ProtocolError
from sgl_router.http1.grammar import HOP_BY_HOP
from sgl_router.http1.head import MAX_HEAD_BYTES, Head
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import ResponseParser
from tests.http1.feeding import COMPARED, Event, feed, refused_request, requests, responses

LINES = st.sampled_from(
    [
        *[
            b"Content-Length: 5",
            b"content-length:\t07 ",
            b"Content-Length: 0",
            b"Content-Length: x",
        ],
        *[b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked\t", b"Transfer-Encoding: br"],
        *[b"Connection: keep-alive", b"connection:CLOSE ", b"Connection: a", b"Connection:\tclose"],
        *[
            b"X: y",
            b"A: b",
            b"Cost: 1",
            b"Contents: 2",
            b"Host-A: 3",
            b"Tex: 4",
            b"Content-Type: t",
        ],
        *[b"Keep-Alive: 1", b"Upgrade: h2c", b"Proxy-Authorization: p", b"Trailer: X", b"Expect:"],
        *[b"Host: again", b"X : y", b"X: \x00", b" X: y", b"nothing"],
    ]
)
STARTS = [
    *[
        b"POST /v1/a?b HTTP/1.1",
        b"GET /a.b HTTP/1.1",
        b"GET /a/../b HTTP/1.1",
        b"CONNECT / HTTP/1.1",
    ],
    *[b"get / HTTP/1.1", b"GET / HTTP/1.0", b"GET / HTTP/1.2", b"GET /# HTTP/1.1"],
]


def told_of_head(events: Sequence[Event]) -> object:
    """What the first event says, without what came but is not passed on."""
    (first, *_) = events
    if isinstance(first, ProtocolError):
        return first.status
    assert isinstance(first, Head)
    names = (*COMPARED[type(first)], "content_length", "chunked", "keep_alive", "lines")
    return {name: getattr(first, name) for name in names}


@settings(deadline=None, max_examples=500)
@given(
    start=st.sampled_from(STARTS),
    host=st.sampled_from([b"Host: r", b"hOST:r:80\t", b"Host: a/b", b"Host: [::1]"]),
    lines=st.lists(LINES, max_size=5),
    first=st.booleans(),
)
def test_a_usual_request_head_says_what_it_says_taken_apart(
    start: bytes, host: bytes, lines: list[bytes], first: bool
) -> None:
    """A line that is not passed on makes it an unusual one, and changes nothing else."""
    usual = b"\r\n".join([start, host, *lines, b"", b""])
    unusual = b"\r\n".join(
        [start, b"TE: t", host, *lines, b"", b""]
        if first
        else [start, host, *lines, b"TE: t", b"", b""]
    )
    assert told_of_head(requests(usual)) == told_of_head(requests(unusual))


@settings(deadline=None, max_examples=500)
@given(
    start=st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.1 204", b"HTTP/1.1 500 ", b"HTTP/1.1 20 N"]
    ),
    lines=st.lists(LINES, max_size=5),
)
def test_a_usual_head_of_an_answer_says_what_it_says_taken_apart(
    start: bytes, lines: list[bytes]
) -> None:
    usual = b"\r\n".join([start, *lines, b"", b""])
    unusual = b"\r\n".join([start, b"TE: t", *lines, b"", b""])
    assert told_of_head(responses(usual)) == told_of_head(responses(unusual))


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP - {b"host"}))
@pytest.mark.parametrize("spell", [bytes.lower, bytes.upper, bytes.title])
def test_every_name_between_two_neighbours_is_known_whatever_its_case(
    name: bytes, spell: type[bytes]
) -> None:
    value = b"chunked" if name == b"transfer-encoding" else b""
    line = b"%b: %b\r\n" % (spell(name), value)
    (head, *_) = feed(RequestParser(), [b"GET / HTTP/1.1\r\nHost: r\r\n%bX: y\r\n\r\n" % line])
    assert isinstance(head, RequestHead) and head.lines == b"X: y\r\n"
    (answer, *_) = feed(ResponseParser(), [b"HTTP/1.1 200 OK\r\n%bX: y\r\n\r\n" % line])
    assert isinstance(answer, Head) and answer.lines == b"X: y\r\n"


SIZE = MAX_HEAD_BYTES - 100
HEAD = b"GET / HTTP/1.1\r\nHost: r\r\n"


def many(piece: bytes) -> bytes:
    return piece * (SIZE // len(piece))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + many(b"a:\r\n") + b"\x00", 431),
        (HEAD + many(b"Content-Length: 5\r\n") + b"\r\n", 431),
        (HEAD + many(b"Connection: close\r\n") + b"\r\n", 431),
        (HEAD + b"Content-Length: 5\r\n" + b"a: b\r\n" * 200 + b"Connection: close\r\n\x00", 400),
        (HEAD + b"Content-Length:" + many(b" ") + b"x\r\n\r\n", 400),
        (HEAD + b"X:" + many(b" ") + b"\x00", 400),
        (HEAD + many(b"a") + b"\x00", 400),
        (HEAD + b"Connection: " + many(b", ") + b"\x00", 400),
        (HEAD + b"Transfer-Encoding: " + many(b"chunked,") + b"\r\n\r\n", 400),
        (HEAD + b"Expect: " + many(b", ") + b"x\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost:" + many(b" ") + b"/\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: " + many(b"a") + b"/\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: " + many(b"%41") + b"/\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: [" + many(b":") + b"]\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: r" + many(b":1") + b"\r\n\r\n", 400),
        (b"GET /" + many(b".%") + b" HTTP/1.2\r\n\r\n", 505),
        (b"GET " + many(b"/...") + b"/.. HTTP/1.1\r\n\r\n", 400),
        (b"GET " + many(b"%2f%2e%2e%2") + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /?" + many(b"?") + b"# HTTP/1.1\r\n\r\n", 400),
        (b"GET http://" + many(b"a") + b"\\ HTTP/1.1\r\n\r\n", 400),
        (many(b"G"), None),
        (many(b"G "), None),
        (b"\r\n" + HEAD + many(b"b"), None),
    ],
)
def test_heads_that_are_made_to_be_read_more_than_once(data: bytes, status: int | None) -> None:
    """With a pattern that tries a second way through them, these would take minutes or years."""
    if status is None:
        assert requests(data) == []
    else:
        assert refused_request(data) == status


@pytest.mark.parametrize(
    "extensions",
    [
        *[b";a=b", b";a", b" ", b"; ", b" ;a = b ", b';a="b"', b'";', b";a=" + b'"' + b"\\\\" * 40],
        *[b'="\\"', b";a" + b" " * 20, b"\\", b";"],
    ],
)
@pytest.mark.parametrize("end", [b"\x00", b"(", b'"', b"="])
def test_extensions_that_are_made_to_be_read_more_than_once(extensions: bytes, end: bytes) -> None:
    size = b"1" + b";a" + extensions * (16_000 // len(extensions)) + end + b"\r\nx\r\n"
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size
    head, error = feed(RequestParser(), [data])
    assert isinstance(head, RequestHead)
    assert isinstance(error, ProtocolError) and error.status == 400


@pytest.mark.parametrize(
    "message",
    [
        HEAD + b"\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n",
    ],
    ids=["usual", "unusual", "trailers", "extensions"],
)
def test_many_requests_in_one_read_are_each_read_once(message: bytes) -> None:
    """If each were to look at all that follows it, this would take minutes."""
    count = 1_000_000 // len(message)
    parser = RequestParser()
    events = parser.feed(message * count)
    assert sum(isinstance(event, RequestHead) for event in events) == count
    assert not isinstance(events[-1], ProtocolError)
