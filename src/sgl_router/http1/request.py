"""Requests: parsed from clients, encoded for engines."""

import httptools

from sgl_router.errors import ProtocolError
from sgl_router.http1.head import END, MAX_HEAD_BYTES, End, Head, HeaderBlock, head_size


class RequestHead(Head):
    """A request's head.

    Attributes:
        method: upper case.
        target: as it came, path and query.
        path: the target's path, without the query.
        http10: whether the client speaks HTTP/1.0, and so cannot read chunks.
        expects_continue: whether the client waits for `100 Continue` with its body.
    """

    __slots__ = ("expects_continue", "http10", "method", "path", "target")

    def __init__(
        self, method: bytes, target: bytes, block: HeaderBlock, *, http10: bool, keep_alive: bool
    ) -> None:
        super().__init__(block, keep_alive=keep_alive)
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0].decode("latin-1")
        self.http10 = http10
        expect = self.get(b"expect")
        # An HTTP/1.0 client cannot mean it (RFC 9110, section 10.1.1).
        self.expects_continue = (
            not http10 and expect is not None and expect.lower() == b"100-continue"
        )


RequestEvent = RequestHead | bytes | End | ProtocolError


class RequestParser:
    """Turns a client's bytes into events, one request after the other."""

    def __init__(self) -> None:
        self._block = HeaderBlock()
        self.on_header = self._block.add  # called by httptools, as are the other callbacks
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[RequestEvent] = []
        self._target = b""
        self._silent_bytes = 0
        self._head_may_have = 0

    def feed(self, data: bytes) -> list[RequestEvent]:
        """What `data` completes; a ProtocolError comes last, and nothing may be fed after it."""
        events: list[RequestEvent] = []
        self._events = events
        self._head_may_have = self._silent_bytes + len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            events.append(_protocol_error(error))
        # What makes no event is kept by the parser: a head, a trailer, a chunk extension.
        self._silent_bytes = 0 if events else self._silent_bytes + len(data)
        if self._silent_bytes > MAX_HEAD_BYTES:
            events.append(_head_too_large())
        return events

    def on_message_begin(self) -> None:
        self._target = b""
        self._block.clear()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_headers_complete(self) -> None:
        parser = self._parser
        block = self._block
        block.closed = True
        if (
            self._head_may_have > MAX_HEAD_BYTES
            and head_size(block.headers) + len(self._target) > MAX_HEAD_BYTES
        ):
            raise _head_too_large()
        if parser.should_upgrade():  # its body would be taken for the other protocol's bytes
            raise ProtocolError("upgrades and CONNECT are not supported", status=501)
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise ProtocolError(f"HTTP/{version} is not supported here", status=505)
        head = RequestHead(
            parser.get_method(),
            self._target,
            block,
            http10=version == "1.0",
            keep_alive=parser.should_keep_alive(),
        )
        if head.http10 and head.chunked:  # RFC 9112, section 6.1: faulty framing
            raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
        self._events.append(head)

    def on_body(self, body: bytes) -> None:
        self._events.append(body)

    def on_message_complete(self) -> None:
        self._events.append(END)


def _head_too_large() -> ProtocolError:
    return ProtocolError(
        f"the request's head, or its trailers, are larger than {MAX_HEAD_BYTES:,} bytes", status=431
    )


def _protocol_error(error: httptools.HttpParserError) -> ProtocolError:
    """What a callback of ours raised, or what the parser itself found wrong."""
    if isinstance(error.__context__, ProtocolError):
        return error.__context__
    return ProtocolError(f"the request is not HTTP/1.1: {error}")


def encode_request_head(
    head: RequestHead, authority: bytes, prefix: bytes, request_id: tuple[bytes, bytes] | None
) -> bytes:
    """The head as it is sent to an engine.

    Args:
        head: the client's.
        authority: the engine's, for `Host`.
        prefix: the path of the engine's URL.
        request_id: a header to add where the client sent none.
    """
    lines = [
        b"%b %b%b HTTP/1.1\r\nHost: %b\r\n" % (head.method, prefix, head.target, authority),
        head.end_to_end(),
        b"%b: %b\r\n" % request_id if request_id is not None else b"",
        b"Transfer-Encoding: chunked\r\n\r\n" if head.chunked else b"\r\n",
    ]
    return b"".join(lines)
