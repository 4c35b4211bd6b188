"""What the router reads and what an engine's parser reads must be the same.

Whatever llhttp and h11 both accept and read alike, the router reads so too, or it refuses it for
one of the reasons listed here. And whatever the router passes on, they read as it did.
"""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.http1.head import LAST_CHUNK, chunk
from sgl_router.http1.request import encode_request_head
from sgl_router.http1.response import encode_response_head
from tests.http1.oracles import (
    Request,
    request_by_h11,
    request_by_httptools,
    request_by_the_router,
    response_by_h11,
    response_by_httptools,
    response_by_the_router,
)

Reason = Callable[[bytes], object]

TOKEN = rb"[\w!#$%&'*+.^`|~-]+"
HOST = re.compile(rb"(?:\[::1\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d{0,5})?")
URL = re.compile(rb"(?i:https?)://(?![:/?]|\Z)%b(?:[/?]|\Z)" % HOST.pattern)
EXTENDED_SIZE = re.compile(rb"\n[0-9A-Fa-f]+([ \t;][^\r\n]*)\r\n")
EXTENSIONS = re.compile(
    rb"(?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|\"[^\"]*\"))?)*" % (TOKEN, TOKEN)
)


def target_of(data: bytes) -> bytes:
    return data.lstrip(b"\r\n").split(b" ")[1]


def values_of(data: bytes, name: bytes) -> list[bytes]:
    head = data.partition(b"\r\n\r\n")[0]
    return re.findall(rb"(?i)\n%b:[ \t]*([^\r\n]*?)[ \t]*(?=\r?\n|\Z)" % name, head + b"\r\n")


STRICTER: dict[str, tuple[Reason, bytes]] = {
    "a target that is neither a path nor an http URL": (
        lambda data: not re.match(rb"/|%b" % URL.pattern, target_of(data)),
        b"OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n",
    ),
    "a target with a fragment": (
        lambda data: b"#" in target_of(data),
        b"GET /a#b HTTP/1.1\r\nHost: r\r\n\r\n",
    ),
    "a path with a backslash": (
        lambda data: b"\\" in target_of(data).partition(b"?")[0],
        b"GET /a\\..\\b HTTP/1.1\r\nHost: r\r\n\r\n",
    ),
    "a path with dot segments": (
        lambda data: re.search(
            rb"(?:/|%2f|%5c)(?:\.|%2e){1,2}(?:/|%2f|%5c|\?|\Z)", target_of(data).lower()
        ),
        b"GET /a/%2E./b HTTP/1.1\r\nHost: r\r\n\r\n",
    ),
    "a Host that is none": (
        lambda data: not all(map(HOST.fullmatch, values_of(data, b"host"))),
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    ),
    "an expectation that is not 100-continue": (
        lambda data: any(v.lower() != b"100-continue" for v in values_of(data, b"expect")),
        b"GET / HTTP/1.1\r\nHost: r\r\nExpect: more\r\n\r\n",
    ),
    "a coding in HTTP/1.0": (
        lambda data: b" HTTP/1.0\r\n" in data and values_of(data, b"transfer-encoding"),
        b"GET / HTTP/1.0\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a chunk extension that is none": (
        lambda data: not all(map(EXTENSIONS.fullmatch, EXTENDED_SIZE.findall(data))),
        b"GET / HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\r\nx\r\n0\r\n\r\n",
    ),
}
"""Why the router refuses what both others accept, whether that applies, and an example."""

STRICTER_WITH_ANSWERS: dict[str, tuple[Reason, bytes]] = {
    "DEL in the reason": (
        lambda data: b"\x7f" in data.partition(b"\r\n")[0],
        b"HTTP/1.1 200 O\x7fK\r\nContent-Length: 0\r\n\r\n",
    ),
    "a coding in HTTP/1.0": (
        lambda data: data.startswith(b"HTTP/1.0") and values_of(data, b"transfer-encoding"),
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a chunk extension that is none": (
        STRICTER["a chunk extension that is none"][0],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\r\nx\r\n0\r\n\r\n",
    ),
}


def agreed(data: bytes) -> Request | None:
    """What both others read."""
    one, other = request_by_httptools(data), request_by_h11(data)
    return one if one == other else None


def in_origin_form(target: bytes) -> bytes:
    rest = re.sub(rb"\A(?i:https?)://[^/?]+", b"", target)
    return rest if rest.startswith(b"/") else b"/" + rest


def reasons(listed: dict[str, tuple[Reason, bytes]], data: bytes) -> list[str]:
    return [reason for reason, (applies, _) in listed.items() if applies(data)]


@pytest.mark.parametrize("reason", STRICTER)
def test_each_reason_to_be_stricter_is_one(reason: str) -> None:
    data = STRICTER[reason][1]
    assert agreed(data) is not None
    assert request_by_the_router(data) is None
    assert reasons(STRICTER, data) == [reason]


@pytest.mark.parametrize("reason", STRICTER_WITH_ANSWERS)
def test_each_reason_to_be_stricter_with_answers_is_one(reason: str) -> None:
    data = STRICTER_WITH_ANSWERS[reason][1]
    assert response_by_httptools(data) == response_by_h11(data) != None  # noqa: E711
    assert response_by_the_router(data) is None
    assert reasons(STRICTER_WITH_ANSWERS, data) == [reason]


KNOWN_METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"HEAD", b"PATCH"]
"""llhttp takes no other tokens."""
METHODS = st.sampled_from(KNOWN_METHODS)
TARGETS = st.sampled_from(
    [
        *[b"/", b"/v1/models?a=b", b"/%7e/a.b", b"//a", b"/a?b?c/../d", b'/|"<>{}^`~', b"/[:]@!$"],
        *[b"http://r/a", b"http://r", b"HTTP://r:80?a", b"*", b"/a/../b", b"/a\\b", b"/a#b"],
    ]
)
LINES = st.sampled_from(
    [
        *[b"X: y", b"X:", b"x-y:  z \t", b"Accept: */*", b"X: \xe4\xff", b"X: a\tb", b"!#$%&'*: 1"],
        *[b"Connection: close", b"Connection: keep-alive", b"connection: x,close", b"TE: trailers"],
        *[b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: more", b"Trailer: X", b"Cookie: a=b"],
    ]
)
HOSTS = st.sampled_from([b"Host: r", b"Host: r:80", b"host:[::1]", b"Host:", b"Host: a b"])
CHUNKED = b"Transfer-Encoding: chunked"
FRAMINGS = st.sampled_from(
    [
        (b"", b""),
        *[(b"Content-Length: 5", b"hello"), (b"content-length:05 ", b"hello")],
        *[(b"Content-Length: 0", b""), (CHUNKED, b"0\r\n\r\n"), (b"Transfer-Encoding: gzip", b"x")],
        *[(CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"), (CHUNKED, b"5;a=b\r\nhello\r\n0\r\n\r\n")],
        (b"transfer-encoding:CHUNKED", b"1\r\nx\r\n" * 5 + b"0\r\nX: y\r\n\r\n"),
        (CHUNKED, b"05\r\nhello\r\n00\r\nX: y\r\nZ:\r\n\r\n"),
        (CHUNKED, b'A;a="b"\r\n0123456789\r\n0;c\r\n\r\n'),
        (b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"),
    ]
)


@st.composite
def messages(draw: st.DrawFn, start: bytes, host: st.SearchStrategy[bytes] | None) -> bytes:
    """A message that is right or nearly so, in up to two places of which bytes are changed."""
    framing, body = draw(FRAMINGS)
    first = [framing] if framing else []
    lines = draw(st.permutations(first + draw(st.lists(LINES, max_size=3))))
    if host is not None:
        lines = draw(st.permutations([*lines, draw(host)]))
    data = b"\r\n".join([start, *lines, b"", b""]) + body
    return draw(st.just(data) | changed(data))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"0.9", b"2.0"]))
    start = b"%b %b HTTP/%b" % (draw(METHODS), draw(TARGETS), version)
    return draw(messages(start, HOSTS))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from([b"200 OK", b"200", b"200 ", b"204 N", b"304 N", b"599 \xe4 a"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    return draw(messages(b"HTTP/%b %b" % (version, status), None))


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with up to two bytes replaced, inserted or deleted."""
    byte = st.sampled_from([bytes([n]) for n in b'\r\n\t :,;="\\/?#%.0x5aA\x00\x0b\x7f\x80\xff'])
    change = st.tuples(st.integers(0, len(data)), st.integers(0, 1), st.just(b"") | byte)

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        out = data
        for place, gone, put in changes:
            out = out[:place] + put + out[place + gone :]
        return out

    return st.lists(change, max_size=2).map(apply)


@settings(deadline=None, max_examples=500)
@given(data=requests())
def test_what_both_others_read_alike_the_router_reads_so_or_refuses_for_a_reason(
    data: bytes,
) -> None:
    theirs = agreed(data)
    ours = request_by_the_router(data)
    if theirs is not None and ours is None:
        assert reasons(STRICTER, data)
    elif theirs is not None and ours is not None:
        assert ours[1] == theirs._replace(target=in_origin_form(theirs.target))


@settings(deadline=None, max_examples=500)
@given(data=responses())
def test_an_answer_that_both_others_read_alike_the_router_reads_so_or_refuses_for_a_reason(
    data: bytes,
) -> None:
    one, other = response_by_httptools(data), response_by_h11(data)
    ours = response_by_the_router(data)
    if one is not None and one == other:
        assert reasons(STRICTER_WITH_ANSWERS, data) if ours is None else ours[1] == one


@settings(deadline=None, max_examples=500)
@given(data=requests())
def test_what_the_router_passes_on_both_others_read_as_it_did(data: bytes) -> None:
    """A request that hides another one would show here, whatever it looked like before."""
    ours = request_by_the_router(data)
    if ours is None or ours[1].method not in KNOWN_METHODS:
        return
    head, request = ours
    sent = encode_request_head(head, b"engine", b"/prefix", b"x-request-id: 1\r\n")
    if head.chunked:
        sent += (chunk(request.body) if request.body else b"") + LAST_CHUNK
    else:
        sent += request.body
    expected = request._replace(target=b"/prefix" + request.target)
    assert (request_by_httptools(sent), request_by_h11(sent)) == (expected, expected)


@settings(deadline=None, max_examples=500)
@given(data=responses())
def test_an_answer_that_the_router_passes_on_both_others_read_as_it_did(data: bytes) -> None:
    ours = response_by_the_router(data)
    if ours is None:
        return
    head, response = ours
    sent, in_chunks = encode_response_head(
        head, to_http10=False, keep_alive=head.keep_alive, added=b"x-request-id: 1\r\n"
    )
    if in_chunks:
        sent += (chunk(response.body) if response.body else b"") + LAST_CHUNK
    else:
        sent += response.body
    assert (response_by_httptools(sent), response_by_h11(sent)) == (response, response)
