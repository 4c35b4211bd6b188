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
        for event in parser.feed(piece):
            if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
                events[-1] += event
            else:
                events.append(event)
        if events and isinstance(events[-1], ProtocolError):
            break
    return events


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def comparable(event: Event) -> object:
    """What an event says, but for the wording of an error."""
    if isinstance(event, ProtocolError):
        return ("error", event.status)
    if isinstance(event, bytes | End):
        return event
    return type(event), {
        name: getattr(event, name)
        for kind in type(event).__mro__
        for name in getattr(kind, "__slots__", ())
    }


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
    pairs = [line.partition(b": ") for line in lines]
    return [(name, value) for name, _, value in pairs]
