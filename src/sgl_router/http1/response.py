"""Responses: parsed from engines, encoded for clients."""

import re
from http import HTTPStatus

from sgl_router.errors import ProtocolError
from sgl_router.http1.body import ChunkedBody, EndlessBody, LengthBody
from sgl_router.http1.framing import FRAMING, take_apart
from sgl_router.http1.grammar import ANY_RESPONSE, STATUS_LINE, USUAL_RESPONSE
from sgl_router.http1.head import END, SMALL_HEAD_BYTES, End, Head, within_limits, without
from sgl_router.http1.lines import Lines

MAX_INTERIM_ANSWERS = 32
"""Informational answers before the answer; engines send one or none."""

_WHOSE = "the engine's answer"


class ResponseHead(Head):
    """A response's head.

    Attributes:
        status: three digits.
        reason: as it came; may be empty.
        until_close: whether the body ends where the connection does (RFC 9112, section 6.3).
        no_body: whether there is no body, whatever the headers say.
    """

    status: int
    reason: bytes
    until_close: bool = False
    no_body: bool = False


Body = LengthBody | ChunkedBody | EndlessBody
ResponseEvent = ResponseHead | bytes | End | ProtocolError


class ResponseParser:
    """Turns an engine's bytes into events. Informational responses are passed over."""

    __slots__ = (
        "_body",
        "_closed",
        "_fresh",
        "_interim",
        "_lines",
        "_pieces",
        "_to_head_request",
    )

    def __init__(self, *, to_head_request: bool = False) -> None:
        """`to_head_request`: the answer has no body, and nothing may be fed after it."""
        self._fresh = True  # the next byte is the first one of a head
        self._closed = False  # the last answer was to be the last
        self._pieces = 0  # of an answer that has ended
        self._to_head_request = to_head_request
        self._body: Body | None = None
        self._lines: Lines | None = None  # a head that has come in part
        self._interim = 0

    @property
    def pieces(self) -> int:
        """Of the last answer's body so far: its chunks where it is chunked, else reads."""
        return self._pieces if self._body is None else self._body.pieces

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """What `data` completes; a ProtocolError comes last, and nothing may be fed after it.

        What `data` holds of the body's content is one event, however many chunks it came in.
        """
        if self._body is not None:
            content, end, wrong = self._body.read(data, 0)
            if end < 0 and wrong is None:
                return [content] if content else []
            return self._last(None, content, data, end, wrong)
        head = None
        pos = 0
        if self._fresh and (match := USUAL_RESPONSE.match(data)) is not None:
            pos = match.end()
            if pos < SMALL_HEAD_BYTES or within_limits(data, 0, pos):
                head = _usual_head(match)
                if head is not None and head.status == 200 and head.keep_alive:
                    length = head.content_length
                    if length and pos + length == len(data) and not self._to_head_request:
                        self._pieces = 1  # one answer and no more, as most are
                        return [head, data[pos:], END]
        try:
            if head is None:
                head, pos = self._gather_head(data, 0)
            while head is not None:
                if head.status >= 200:
                    return self._begin(head, data, pos)
                self._pass_over(head.status)
                head, pos = self._gather_head(data, pos)
        except ProtocolError as error:
            return [error]
        return []

    def feed_eof(self) -> list[ResponseEvent]:
        """What the end of the connection completes: a body that lasts until then, or nothing."""
        if isinstance(self._body, EndlessBody):
            self._pieces = self._body.pieces
            self._body = None
            return [END]
        return [ProtocolError("the engine closed the connection before its answer's end")]

    def _begin(self, head: ResponseHead, data: bytes, pos: int) -> list[ResponseEvent]:
        """The answer that `head` begins, as far as `data` has it."""
        self._interim = self._pieces = 0
        self._closed = not head.keep_alive
        self._fresh = head.keep_alive
        length = head.content_length
        if self._to_head_request:  # what comes with it nobody has asked for, but it may come
            head.no_body = True
            head.keep_alive = False
            return [head, END]
        if head.status in (204, 304):
            head.no_body = True
            return self._last(head, b"", data, pos, None)
        if length is not None:
            end = pos + length
            if end <= len(data):
                self._pieces = 1 if length else 0
                return self._last(head, data[pos:end], data, end, None)
            self._body = LengthBody(length)
        elif head.chunked:
            self._body = ChunkedBody(_WHOSE)
        else:
            head.until_close = True
            head.keep_alive = False
            self._body = EndlessBody()
        if pos == len(data):
            return [head]
        content, end, wrong = self._body.read(data, pos)
        if end < 0 and wrong is None:
            return [head, content] if content else [head]
        return self._last(head, content, data, end, wrong)

    def _last(
        self,
        head: ResponseHead | None,
        content: bytes,
        data: bytes,
        end: int,
        wrong: ProtocolError | None,
    ) -> list[ResponseEvent]:
        """The last events of an answer, which ends at `end` of `data` or with what is wrong."""
        events: list[ResponseEvent] = [] if head is None else [head]
        if content:
            events.append(content)
        if wrong is not None:
            events.append(wrong)
            return events
        if self._body is not None:
            self._pieces = self._body.pieces
            self._body = None
        events.append(END)
        if end < len(data):
            # No request can have asked for it; left in the parser, it would begin the answer of
            # the next exchange.
            events.append(ProtocolError("bytes follow the end of the engine's answer"))
        return events

    def _pass_over(self, status: int) -> None:
        """An informational answer, which nobody but a neighbour is told of (RFC 9110, 15.2)."""
        if status == 101:
            raise ProtocolError("the engine switched protocols unasked")
        self._interim += 1
        if self._interim > MAX_INTERIM_ANSWERS:
            raise ProtocolError(f"the engine sent more than {MAX_INTERIM_ANSWERS} interim answers")

    def _gather_head(self, data: bytes, pos: int) -> tuple[ResponseHead | None, int]:
        """A head that comes in pieces or is not a usual one, and where it ends in `data`; None
        and where `data` ends if it is not complete."""
        lines = self._lines
        if lines is None:
            if pos == len(data):
                return None, pos
            if self._closed:
                raise ProtocolError("bytes follow an answer that closes the connection")
            match = ANY_RESPONSE.match(data, pos)
            if match is not None and within_limits(data, pos, match.end()):
                return _unusual_head(match), match.end()
            self._fresh = False
            lines = self._lines = Lines(f"the head of {_WHOSE}", check_status_line, b"HTTP/1.")
        end = lines.feed(data, pos)
        if end < 0:
            return None, len(data)
        self._lines = None
        match = ANY_RESPONSE.match(bytes(lines.block))
        assert match is not None, "its lines have been checked"
        return _unusual_head(match), end


def check_status_line(line: bytes) -> None:
    """Raises ProtocolError for a first line that begins no answer."""
    if not STATUS_LINE.fullmatch(line):
        raise ProtocolError(f"{line[:60]!r} is not a status line: HTTP/1.1 200 OK")


def _usual_head(match: re.Match[bytes]) -> ResponseHead | None:
    """The head that matched, or None where it must be taken apart."""
    status, reason, lines, length, left_out, more, length2 = match.groups()
    head = ResponseHead()
    head.status = int(status)
    head.reason = reason or b""
    head.raw = match[0]
    head.lines = lines
    if length is not None:
        head.content_length = int(length)
    if left_out is not None and not head.take_left_out(left_out, more, length2):
        return None
    return head


def _unusual_head(match: re.Match[bytes]) -> ResponseHead:
    """Any head that matched, taken apart line by line. Raises ProtocolError."""
    version, status, reason, block = match.groups()
    head = ResponseHead()
    head.status = int(status)
    head.reason = reason or b""
    head.raw = match[0]
    if head.status >= 200:  # nothing is done with an informational one
        take_apart(head, block, http10=version == b"1.0")
    return head


# What is said of the connection where it is not the default of the client's version (RFC 9112,
# section 9.3), by `to_http10, keep_alive`.
_CONNECTION = {
    (False, True): b"",
    (False, False): b"Connection: close\r\n",
    (True, True): b"Connection: keep-alive\r\n",
    (True, False): b"Connection: close\r\n",
}


def encode_response_head(
    head: ResponseHead, *, to_http10: bool, keep_alive: bool, added: bytes = b""
) -> tuple[bytes, bool]:
    """The head as it is sent to a client, and whether the body must be sent in chunks.

    A body of unknown length is chunked for HTTP/1.1 clients and ends with the connection for
    HTTP/1.0 ones; for those `keep_alive` must be False. `added` are whole header lines.
    """
    lines = head.lines
    chunked = (head.chunked or head.until_close) and not to_http10
    if head.status == 204:  # must not be framed (RFC 9110, section 8.6; RFC 9112, section 6.1)
        lines = without(lines, FRAMING)
        chunked = False
    coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
    connection = _CONNECTION[to_http10, keep_alive]
    encoded = b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n" % (
        *(head.status, head.reason, lines, added, coding, connection),
    )
    return encoded, chunked and not head.no_body


def encode_response(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    keep_alive: bool = True,
    added: bytes = b"",
    with_body: bool = True,
    to_http10: bool = False,
) -> bytes:
    """A whole response of the router's own; `with_body=False` answers a HEAD request.

    `added` are whole header lines.
    """
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
        *(status, HTTPStatus(status).phrase.encode("ascii"), content_type, len(body), added),
        _CONNECTION[to_http10, keep_alive],
        body if with_body else b"",
    )
