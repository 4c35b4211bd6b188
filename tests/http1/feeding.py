"""Bytes fed to a parser in one piece, byte by byte, or cut anywhere; the events must agree."""

from collections.abc import Callable, Iterable, Sequence

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, End, Headers
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import ResponseHead, ResponseParser

Event = RequestHead | ResponseHead | bytes | End | ProtocolError


def feed(parser: RequestParser | ResponseParser, pieces: Iterable[bytes]) -> list[Event]:
    """The events of these pieces; nothing is fed after an error. Adjacent body is joined."""
    events: list[Event] = []
    for piece in pieces:
        told = parser.feed(piece)
        bodies = [event for event in told if isinstance(event, bytes)]
        assert len(bodies) <= 1 + told.count(END), "a body is one event of one piece"
        events = joined([*events, *told])
        if events and isinstance(events[-1], ProtocolError):
            break
    return events


def joined(events: Iterable[Event]) -> list[Event]:
    """These events with adjacent body in one."""
    out: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        else:
            out.append(event)
    return out


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


COMPARED = {
    RequestHead: ("method", "target", "path", "http10", "expects_continue"),
    ResponseHead: ("status", "reason", "until_close", "no_body"),
}
COMPARED_IN_BOTH = ("content_length", "chunked", "keep_alive", "headers", "lines")


def comparable(event: Event) -> object:
    """What an event says, but for the wording of an error."""
    if isinstance(event, ProtocolError):
        return ("error", event.status)
    if isinstance(event, bytes | End):
        return event
    names = COMPARED[type(event)] + COMPARED_IN_BOTH
    return type(event), {name: getattr(event, name) for name in names}


def alike(one: Sequence[Event], other: Sequence[Event]) -> bool:
    return [comparable(event) for event in one] == [comparable(event) for event in other]


def whole_and_bytewise(
    make: Callable[[], RequestParser | ResponseParser], data: bytes
) -> list[Event]:
    """The events of `data`, the same whether it comes in one piece or byte by byte."""
    whole = feed(make(), [data])
    bytewise = feed(make(), single_bytes(data))
    assert alike(whole, bytewise), f"in one piece: {whole}; byte by byte: {bytewise}"
    return whole


def requests(data: bytes) -> list[Event]:
    """The events of a client's bytes."""
    return whole_and_bytewise(RequestParser, data)


def one_request(data: bytes) -> tuple[RequestHead, bytes]:
    """The head and the body of bytes that are exactly one request."""
    head, *body, end = requests(data)
    assert isinstance(head, RequestHead) and end is END
    return head, body_of(body)


def refused_request(data: bytes) -> int:
    """The status of the error that is all that comes of `data`."""
    (error,) = requests(data)
    assert isinstance(error, ProtocolError)
    return error.status


def responses(data: bytes) -> list[Event]:
    """The events of an engine's bytes."""
    return whole_and_bytewise(ResponseParser, data)


def one_response(data: bytes) -> tuple[ResponseHead, bytes]:
    """The head and the body of bytes that are exactly one answer."""
    head, *body, end = responses(data)
    assert isinstance(head, ResponseHead) and end is END
    return head, body_of(body)


def body_of(events: Sequence[Event]) -> bytes:
    """The body in joined events that must hold nothing else."""
    if not events:
        return b""
    (body,) = events
    assert isinstance(body, bytes)
    return body


def header_lines(head: bytes) -> Headers:
    """Name and value of each line of an encoded head, taken apart without the parser."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
    pairs = [line.partition(b":") for line in lines]
    return [(name, value.strip(b" \t")) for name, _, value in pairs]


def as_lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def request_head(
    headers: Headers, method: bytes = b"POST", target: bytes = b"/generate"
) -> RequestHead:
    """The head of a request with `Host` and these headers."""
    lines = as_lines([(b"Host", b"router"), *headers])
    head = RequestParser().feed(b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines))[0]
    assert isinstance(head, RequestHead), head
    return head


def response_head(
    headers: Headers, status: int = 200, reason: bytes = b"OK", *, to_head_request: bool = False
) -> ResponseHead:
    """The head of an answer with these headers."""
    data = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, as_lines(headers))
    head = ResponseParser(to_head_request=to_head_request).feed(data)[0]
    assert isinstance(head, ResponseHead), head
    return head
