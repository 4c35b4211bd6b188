"""Answers as engines send them."""

import pytest

from sgl_router.errors import ProtocolError
from sgl_router.http1.body import MAX_EXTENSION_BYTES
from sgl_router.http1.head import END, LAST_CHUNK, MAX_HEAD_BYTES, MAX_HEADERS, chunk
from sgl_router.http1.response import MAX_INTERIM_ANSWERS, ResponseHead, ResponseParser
from tests.http1.feeding import feed, one_response, responses, single_bytes

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_a_body_of_known_length() -> None:
    head, body = one_response(
        b"HTTP/1.1 429 Too Many Requests\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert (head.status, head.reason) == (429, b"Too Many Requests")
    assert head.headers == [(b"X-Two", b"1"), (b"x-two", b"2"), (b"Content-Length", b"5")]
    assert (head.content_length, head.chunked, head.until_close) == (5, False, False)
    assert (head.keep_alive, head.no_body, body) == (True, False, b"hello")


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 299 A b  c", 299, b"A b  c"),
        (b"HTTP/1.1 999 \xe4", 999, b"\xe4"),
    ],
)
def test_status_lines(line: bytes, status: int, reason: bytes) -> None:
    head, _ = one_response(line + b"\r\nContent-Length: 0\r\n\r\n")
    assert (head.status, head.reason) == (status, reason)


def test_chunks_and_trailers() -> None:
    head, body = one_response(CHUNKED + b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n")
    assert (head.chunked, head.until_close, body) == (True, False, b"hello")
    assert head.headers == [(b"Transfer-Encoding", b"chunked")]


def test_each_piece_is_told_as_it_comes() -> None:
    parser = ResponseParser()
    (head,) = parser.feed(CHUNKED)
    assert isinstance(head, ResponseHead)
    assert parser.feed(b"5\r\nhello") == [b"hello"]
    assert parser.feed(b"\r\n2\r\nyo\r\n0\r\n") == [b"yo"]
    assert parser.feed(b"\r\n") == [END]


def test_many_chunks_in_one_read_are_one_event() -> None:
    parser = ResponseParser()
    data = CHUNKED + b"".join(chunk(b"%d" % i) for i in range(10_000))
    whole = b"".join(b"%d" % i for i in range(10_000))
    assert parser.feed(data)[1:] == [whole]
    assert parser.feed(b"1\r\na\r\n2\r\nb") == [b"ab"]
    assert parser.feed(b"c\r\n" + LAST_CHUNK) == [b"c", END]


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        (CHUNKED, [0]),
        (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n", [2, 3, 5]),
        (CHUNKED.replace(b"200", b"201") + b"2\r\nab\r\n" * 99, [99, 100, 102]),
        (OK[:-3], [1, 2]),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", [1, 2, 3]),
    ],
)
def test_pieces_of_a_body_are_counted(data: bytes, pieces: list[int]) -> None:
    """Chunks where it is chunked, however they were cut; else what came at once."""
    chunked = data.startswith((CHUNKED, CHUNKED.replace(b"200", b"201")))
    more = [b"3\r\nabc\r\n", b"1\r\na\r\n1\r\nb\r\n"] if chunked else [b"l", b"l"]
    parser = ResponseParser()
    parser.feed(data)
    seen = [parser.pieces]
    for piece in more[: len(pieces) - 1]:
        parser.feed(piece)
        seen.append(parser.pieces)
    assert seen == pieces


@pytest.mark.parametrize(
    ("answer", "whole", "bytewise"),
    [
        (OK, 1, 5),
        (CHUNKED + b"2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n", 2, 2),
        (EMPTY, 0, 0),
        (b"HTTP/1.1 204 N\r\n\r\n", 0, 0),
        (b"HTTP/1.1 500 N\r\nContent-Length: 3\r\n\r\nabc", 1, 3),
    ],
)
def test_pieces_are_known_at_the_end_of_an_answer(answer: bytes, whole: int, bytewise: int) -> None:
    parser = ResponseParser()
    for pieces, count in (([answer], whole), (single_bytes(answer), bytewise)):
        assert feed(parser, pieces)[-1] is END
        assert parser.pieces == count


def test_each_answer_is_counted_for_itself() -> None:
    """Its pieces, and the interim answers before it."""
    parser = ResponseParser()
    interim = b"HTTP/1.1 102 P\r\n\r\n" * MAX_INTERIM_ANSWERS
    for answer, pieces in ((OK, 1), (b"HTTP/1.1 204 N\r\n\r\n", 0), (OK, 1), (EMPTY, 0)):
        assert feed(parser, [interim + answer])[-1] is END
        assert parser.pieces == pieces


def test_pieces_of_a_body_that_the_connection_ends() -> None:
    parser = ResponseParser()
    feed(parser, [b"HTTP/1.1 200 OK\r\n\r\n", b"a", b"b"])
    assert (parser.feed_eof(), parser.pieces) == ([END], 2)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_body_until_the_connection_ends(version: bytes) -> None:
    data = b"HTTP/%b 200 OK\r\nServer: s\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" % version
    for pieces in ([data], single_bytes(data)):
        parser = ResponseParser()
        head, body = feed(parser, pieces)
        assert isinstance(head, ResponseHead)
        assert (head.until_close, head.keep_alive) == (True, False)
        assert body == b"HTTP/1.1 200 OK\r\n\r\n"
        assert parser.feed_eof() == [END]


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200 OK\r\nServer",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK[:-1],
        CHUNKED,
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
    ],
)
def test_a_cut_answer_is_an_error_at_the_end_of_the_connection(cut: bytes) -> None:
    for pieces in ([cut] if cut else [], single_bytes(cut)):
        parser = ResponseParser()
        assert END not in feed(parser, pieces)
        (error,) = parser.feed_eof()
        assert isinstance(error, ProtocolError)


def test_the_end_of_an_idle_connection_completes_nothing() -> None:
    parser = ResponseParser()
    assert feed(parser, [OK])[-1] is END
    (error,) = parser.feed_eof()
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize(
    "framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_statuses_without_a_body(status: int, framing: bytes) -> None:
    head, body = one_response(b"HTTP/1.1 %d R\r\n%b\r\n" % (status, framing))
    assert (head.status, head.no_body, head.until_close, body) == (status, True, False, b"")


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 199 N\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.0 100 C\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 102 P\r\n\r\n" * MAX_INTERIM_ANSWERS,
    ],
)
def test_interim_answers_are_passed_over(interim: bytes) -> None:
    head, body = one_response(interim + OK)
    assert (head.status, head.reason, body) == (200, b"OK", b"hello")
    assert head.headers == [(b"Content-Length", b"5")]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x00",
    ],
)
def test_switching_protocols_is_an_error(data: bytes) -> None:
    (error,) = responses(data)
    assert isinstance(error, ProtocolError)


def test_an_upgrade_that_is_only_offered_changes_nothing() -> None:
    head, body = one_response(
        b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert (head.keep_alive, body) == (True, b"hello")


HEADS_ONLY = [
    OK.removesuffix(b"hello"),
    CHUNKED,
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + EMPTY,
]


@pytest.mark.parametrize("data", HEADS_ONLY)
def test_answers_to_head_requests_end_with_their_head(data: bytes) -> None:
    for pieces in ([data], single_bytes(data)):
        head, end = feed(ResponseParser(to_head_request=True), pieces)
        assert isinstance(head, ResponseHead) and end is END
        assert (head.no_body, head.until_close) == (True, False)


@pytest.mark.parametrize("extra", [b"hello", OK, b"\xff", b"5\r\nhello\r\n0\r\n\r\n"])
@pytest.mark.parametrize("data", HEADS_ONLY)
def test_what_comes_with_an_answer_to_a_head_request_is_dropped(data: bytes, extra: bytes) -> None:
    head, end = feed(ResponseParser(to_head_request=True), [data + extra])
    assert isinstance(head, ResponseHead) and end is END


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (OK, True),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
        (OK.replace(b"\r\n\r\n", b"\r\nConnection: x, CLOSE\r\n\r\n"), False),
        (OK.replace(b"1.1", b"1.0"), False),
        (OK.replace(b"1.1 200 OK", b"1.0 200 OK\r\nConnection: keep-alive"), True),
    ],
)
def test_keep_alive(data: bytes, keep_alive: bool) -> None:
    assert one_response(data)[0].keep_alive is keep_alive


def test_answers_one_after_the_other() -> None:
    parser = ResponseParser()
    answers = [OK, CHUNKED + b"2\r\nhi\r\n0\r\nX: y\r\n\r\n", b"HTTP/1.1 204 N\r\n\r\n", EMPTY, OK]
    bodies = [[b"hello"], [b"hi"], [], [], [b"hello"]]
    for answer, body in zip(answers, bodies, strict=True):
        for pieces in ([answer], single_bytes(answer)):
            head, *rest = feed(parser, pieces)
            assert isinstance(head, ResponseHead)
            assert rest == [*body, END]


@pytest.mark.parametrize("extra", [b"!", b"HTTP/1.1 200 OK\r\n\r\n", OK, b"H", b"\r\nH", b"\r\n"])
@pytest.mark.parametrize("answer", [OK, EMPTY, CHUNKED + b"0\r\n\r\n", b"HTTP/1.1 304 N\r\n\r\n"])
def test_bytes_after_the_end_are_an_error(answer: bytes, extra: bytes) -> None:
    """They would be taken for the beginning of the answer to the next client's request."""
    *_, end, error = feed(ResponseParser(), [answer + extra])
    assert end is END
    assert isinstance(error, ProtocolError)


def test_bytes_after_an_answer_that_closes_are_an_error() -> None:
    closing = EMPTY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    head, end, error = responses(closing + OK)
    assert isinstance(head, ResponseHead) and end is END
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("answer", [OK, EMPTY, CHUNKED + b"1\r\nx\r\n0\r\n\r\n"])
@pytest.mark.parametrize("connection", [b"close", b"x, close"])
def test_bytes_after_an_answer_that_closes_in_another_piece_are_too(
    answer: bytes, connection: bytes
) -> None:
    data = answer.replace(b"\r\n", b"\r\nConnection: %b\r\n" % connection, 1)
    for pieces in ([data], [data[:-1], data[-1:]], single_bytes(data)):
        parser = ResponseParser()
        assert feed(parser, pieces)[-1] is END
        (error,) = feed(parser, [OK])
        assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1\t200 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"HTTP/1.1 200 O\x7fK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer: s\r\n\r\n",
        b"HTTP/1.1 200 OK\rServer: s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: s\n\r\n",
    ],
)
def test_garbage(data: bytes) -> None:
    (error,) = responses(data)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * (MAX_HEAD_BYTES // 4 + 1) + b"\r\n",
    ],
    ids=["value", "lines"],
)
def test_a_head_over_the_limit(data: bytes) -> None:
    (error,) = responses(data)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("beginning", "more", "limit"),
    [
        (b"HTTP/1.1 200 O", b"k", MAX_HEAD_BYTES),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a", MAX_HEAD_BYTES),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", 6 * MAX_HEADERS),
        (b"", b"HTTP/1.1 100 C\r\n\r\n", 18 * MAX_INTERIM_ANSWERS),
        (CHUNKED + b"0\r\nX: ", b"a", MAX_HEAD_BYTES),
        (CHUNKED + b"0\r\n", b"a: b\r\n", 6 * MAX_HEADERS),
        (CHUNKED + b"5;", b"a", MAX_EXTENSION_BYTES),
        (CHUNKED, b"1;a\r\nx\r\n", MAX_EXTENSION_BYTES),
    ],
    ids=[
        *["reason", "value", "lines", "interim answers"],
        *["trailer", "trailers", "extension", "extensions"],
    ],
)
@pytest.mark.parametrize("step", [1, 1_000])
def test_what_never_ends_is_cut_off(beginning: bytes, more: bytes, limit: int, step: int) -> None:
    parser = ResponseParser()
    events = parser.feed(beginning)
    fed = 0
    while not (events and isinstance(events[-1], ProtocolError)):
        assert fed < 6 * limit, "it went on"
        events = parser.feed(more * step)
        fed += len(more) * step
    assert fed > limit - len(beginning)


def test_a_body_larger_than_a_head_may_come_in_one_piece() -> None:
    body = b"x" * (2 * MAX_HEAD_BYTES)
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    assert feed(ResponseParser(), [data])[1:] == [body, END]
