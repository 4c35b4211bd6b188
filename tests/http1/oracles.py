"""The same messages as two other parsers read them: llhttp through httptools, and h11.

Both are what engines are served by (uvicorn takes either), so that what they agree on is what an
engine would do.
"""

from typing import NamedTuple

import h11
import httptools

from sgl_router.http1.head import END
from sgl_router.http1.request import RequestHead, RequestParser
from sgl_router.http1.response import ResponseHead, ResponseParser
from tests.http1.feeding import body_of, feed


class Request(NamedTuple):
    method: bytes
    target: bytes
    body: bytes


class Response(NamedTuple):
    status: int
    reason: bytes
    body: bytes


class _Collector:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.body = b""
        self.ended = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended += 1


def request_by_httptools(data: bytes) -> Request | None:
    """The request that `data` is, exactly; None where it is refused, cut or more than one."""
    seen = _Collector()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if seen.ended != 1 or parser.get_http_version() not in ("1.0", "1.1"):
        return None
    return Request(parser.get_method(), seen.target, seen.body)


def request_by_h11(data: bytes) -> Request | None:
    """As `request_by_httptools`."""
    connection = h11.Connection(h11.SERVER)
    method = target = None
    body = b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, target = event.method, event.target
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    if connection.trailing_data[0]:
        return None
    assert method is not None and target is not None
    return Request(method, target, body)


def request_by_the_router(data: bytes) -> tuple[RequestHead, Request] | None:
    """As `request_by_httptools`, and the head."""
    parser = RequestParser()
    events = feed(parser, [data])
    if parser.mid_message or events.count(END) != 1 or events[-1] is not END:
        return None
    head = events[0]
    assert isinstance(head, RequestHead), "a request begins with its head"
    return head, Request(head.method, head.target, body_of(events[1:-1]))


def response_by_httptools(data: bytes) -> Response | None:
    """The answer that `data` is, exactly, also where it lasts until the end of the connection."""
    seen = _Collector()
    parser = httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(data)
        keeps = parser.should_keep_alive()
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if not (seen.ended == 1 or (seen.ended == 0 and not keeps and parser.get_status_code())):
        return None
    return Response(parser.get_status_code(), seen.reason, seen.body)


def response_by_h11(data: bytes) -> Response | None:
    """As `response_by_httptools`."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "r")]))
    connection.send(h11.EndOfMessage())
    status, reason, body = 0, b"", b""
    try:
        connection.receive_data(data)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status, reason = event.status_code, event.reason
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None
    return None if connection.trailing_data[0] else Response(status, bytes(reason), body)


def response_by_the_router(data: bytes) -> tuple[ResponseHead, Response] | None:
    """As `response_by_httptools`, and the head."""
    parser = ResponseParser()
    events = feed(parser, [data])
    if END not in events:
        events += parser.feed_eof()
    if not events or not isinstance(events[0], ResponseHead) or events[-1] is not END:
        return None
    head = events[0]
    return head, Response(head.status, head.reason, body_of(events[1:-1]))
