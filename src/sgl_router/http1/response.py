"""Responses: parsed from engines, encoded for clients."""

from http import HTTPStatus

import httptools

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, MAX_HEAD_BYTES, End, Head, HeaderBlock, head_size


class ResponseHead(Head):
    """A response's head.

    Attributes:
        status: three digits.
        reason: as it came; may be empty.
        until_close: whether the body ends where the connection does (RFC 9112, section 6.3).
        no_body: whether there is no body, whatever the headers say.
    """

    __slots__ = ("no_body", "reason", "status", "until_close")

    def __init__(
        self, status: int, reason: bytes, block: HeaderBlock, *, keep_alive: bool, no_body: bool
    ) -> None:
        super().__init__(block, keep_alive=keep_alive)
        self.status = status
        self.reason = reason
        self.no_body = no_body
        self.until_close = not (no_body or self.chunked or self.content_length is not None)


_CONTENT_LENGTH = frozenset({b"content-length"})

ResponseEvent = ResponseHead | bytes | End | ProtocolError


class ResponseParser:
    """Turns an engine's bytes into events. Informational responses are passed over."""

    def __init__(self, *, to_head_request: bool = False) -> None:
        """`to_head_request`: the answer has no body, and nothing may be fed after it."""
        self._block = HeaderBlock()
        self.on_header = self._block.add  # called by httptools, as are the other callbacks
        self._parser = httptools.HttpResponseParser(self)
        self._events: list[ResponseEvent] = []
        self._to_head_request = to_head_request
        self._reason = b""
        self._head: ResponseHead | None = None
        self._silent_bytes = 0
        self._head_may_have = 0
        self._informational = False

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """What `data` completes; a ProtocolError comes last, and nothing may be fed after it."""
        events: list[ResponseEvent] = []
        self._events = events
        self._head_may_have = self._silent_bytes + len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            events.append(ProtocolError("the engine switched protocols unasked"))
        except httptools.HttpParserError as error:
            context = error.__context__
            events.append(
                context
                if isinstance(context, ProtocolError)
                else ProtocolError(f"the engine's answer is not HTTP/1.1: {error}")
            )
        # What makes no event is kept by the parser: a head, a trailer, a chunk extension.
        self._silent_bytes = 0 if events else self._silent_bytes + len(data)
        if self._silent_bytes > MAX_HEAD_BYTES:
            events.append(_head_too_large())
        if self._to_head_request and END in events:
            del events[events.index(END) + 1 :]
        return events

    def feed_eof(self) -> list[ResponseEvent]:
        """What the end of the connection completes: a body that lasts until then, or nothing."""
        head = self._head
        if head is not None and head.until_close:
            self._head = None
            return [END]
        return [ProtocolError("the engine closed the connection before its answer's end")]

    def on_message_begin(self) -> None:
        if self._events and self._events[-1] is END:
            # It came with the end of the answer before it, so that no request can have asked
            # for it; left in the parser, it would begin the next exchange's answer.
            raise ProtocolError("bytes follow the end of the engine's answer")
        self._reason = b""
        self._block.clear()
        self._head = None

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_headers_complete(self) -> None:
        parser = self._parser
        block = self._block
        status = parser.get_status_code()
        if self._head_may_have > MAX_HEAD_BYTES and head_size(block.headers) > MAX_HEAD_BYTES:
            raise _head_too_large()
        if status < 100:
            raise ProtocolError(f"{status:03} is not a status")
        self._informational = status < 200
        if self._informational:
            return
        block.closed = True
        self._head = ResponseHead(
            status,
            self._reason,
            block,
            keep_alive=parser.should_keep_alive(),
            no_body=self._to_head_request or status in (204, 304),
        )
        self._events.append(self._head)
        if self._to_head_request:
            self._events.append(END)

    def on_body(self, body: bytes) -> None:
        self._events.append(body)

    def on_message_complete(self) -> None:
        self._head = None
        if not self._informational:
            self._events.append(END)


def _head_too_large() -> ProtocolError:
    return ProtocolError(
        f"the engine's answer has a head, or trailers, of more than {MAX_HEAD_BYTES:,} bytes"
    )


def encode_response_head(
    head: ResponseHead, *, to_http10: bool, keep_alive: bool, extra: list[tuple[bytes, bytes]]
) -> tuple[bytes, bool]:
    """The head as it is sent to a client, and whether the body must be sent in chunks.

    A body of unknown length is chunked for HTTP/1.1 clients and ends with the connection for
    HTTP/1.0 ones; for those `keep_alive` must be False.
    """
    # 204 must not be framed (RFC 9110, section 8.6; RFC 9112, section 6.1).
    framed = head.status != 204
    lines = [
        b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason),
        head.end_to_end() if framed else head.end_to_end(besides=_CONTENT_LENGTH),
    ]
    lines.extend([b"%b: %b\r\n" % pair for pair in extra])
    chunked = framed and (head.chunked or head.until_close) and not to_http10
    if chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if not keep_alive:
        lines.append(b"Connection: close\r\n")
    elif to_http10:
        lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines), chunked and not head.no_body


def encode_response(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    keep_alive: bool = True,
    extra: list[tuple[bytes, bytes]] | None = None,
    with_body: bool = True,
) -> bytes:
    """A whole response of the router's own; `with_body=False` answers a HEAD request."""
    lines = [
        b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode("ascii")),
        b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type, len(body)),
    ]
    lines.extend([b"%b: %b\r\n" % pair for pair in extra or []])
    if not keep_alive:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    if with_body:
        lines.append(body)
    return b"".join(lines)
