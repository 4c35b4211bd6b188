"""Requests: parsed from clients, encoded for engines."""

import re

from sgl_router.errors import ProtocolError
from sgl_router.http1.body import ChunkedBody, LengthBody
from sgl_router.http1.framing import FRAMING, Special, is_host, take_apart
from sgl_router.http1.grammar import (
    ABSOLUTE_FORM,
    ANY_REQUEST,
    DOT_SEGMENT,
    ORIGIN_FORM,
    REQUEST_LINE,
    USUAL_REQUEST,
    any_of,
)
from sgl_router.http1.head import END, SMALL_HEAD_BYTES, End, Head, within_limits, without
from sgl_router.http1.lines import Lines

MAX_EMPTY_LINES = 4
"""Before a request, where some clients send one (RFC 9112, section 2.2)."""

ASKED = frozenset(
    {
        b"authorization",
        b"request-id",
        b"via",
        b"x-correlation-id",
        b"x-request-id",
        b"x-smg-routing-key",
        b"x-smg-target-worker",
        b"x-trace-id",
    }
)
"""Names that are asked for with every request, and seldom there: one search tells so of them all.
Of any other name `get` knows as well; it only takes a search of its own."""

_ASKED_LINE = re.compile(rb"\n(%b):[ \t]*+([^\r\n]*+)" % any_of(ASKED))


class RequestHead(Head):
    """A request's head.

    Attributes:
        method: a token in upper case.
        target: path and query, also where the client sent a whole URL.
        path: the target's path, without the query.
        http10: whether the client speaks HTTP/1.0, and so cannot read chunks.
        expects_continue: whether the client waits for `100 Continue` with its body.
    """

    method: bytes
    target: bytes
    path: str
    http10 = False
    expects_continue = False
    _asked: dict[bytes, bytes] | None = None

    def get(self, name: bytes) -> bytes | None:
        """A header's value, by its lower-case name; of several the first."""
        return self.asked.get(name) if name in ASKED else super().get(name)

    @property
    def asked(self) -> dict[bytes, bytes]:
        """Of the headers that are asked for with every request, those that are there."""
        asked = self._asked
        if asked is None:
            asked = self._asked = {}
            for name, value in _ASKED_LINE.findall(self.raw):
                asked.setdefault(name.lower(), value.rstrip(b" \t"))
        return asked


RequestEvent = RequestHead | bytes | End | ProtocolError


class RequestParser:
    """Turns a client's bytes into events, one request after the other."""

    __slots__ = ("_body", "_closed", "_empty_lines", "_fresh", "_half_line", "_lines")

    def __init__(self) -> None:
        self._fresh = True  # the next byte is the first one of a head
        self._body: LengthBody | ChunkedBody | None = None
        self._lines: Lines | None = None  # a head that has come in part
        self._half_line = False  # the CR of an empty line before a head has come
        self._empty_lines = 0
        self._closed = False  # the last request was to be the last

    @property
    def mid_message(self) -> bool:
        """Whether a part of a head has come and the rest of it has not."""
        return self._lines is not None or self._half_line

    def feed(self, data: bytes) -> list[RequestEvent]:
        """What `data` completes; a ProtocolError comes last, and nothing may be fed after it.

        What `data` holds of a body's content is one event, however many chunks it came in.
        """
        head = None
        pos = 0
        if self._fresh and (match := USUAL_REQUEST.match(data)) is not None:
            pos = match.end()
            if pos < SMALL_HEAD_BYTES or within_limits(data, 0, pos):
                head = _usual_head(match)
                if head is not None and head.keep_alive:
                    length = head.content_length
                    if length and pos + length == len(data):  # one request and no more, as most are
                        return [head, data[pos:], END]
        events: list[RequestEvent] = []
        try:
            if head is not None:
                pos = self._begin(head, data, pos, events)
            elif data:
                pos = self._read_unusual(data, 0, events)
            while pos < len(data):
                pos = self._read(data, pos, events)
        except ProtocolError as error:
            events.append(error)
        return events

    def _read(self, data: bytes, pos: int, events: list[RequestEvent]) -> int:
        """Take up `data` at `pos`, for a head or some of a body; where to go on."""
        if self._fresh and (match := USUAL_REQUEST.match(data, pos)) is not None:
            end = match.end()
            if end - pos < SMALL_HEAD_BYTES or within_limits(data, pos, end):
                head = _usual_head(match)
                if head is not None:
                    return self._begin(head, data, end, events)
        return self._read_unusual(data, pos, events)

    def _begin(self, head: RequestHead, data: bytes, pos: int, events: list[RequestEvent]) -> int:
        """Tell of a head, which ends at `pos`, and of a body that is all there."""
        self._fresh = head.keep_alive
        self._closed = not head.keep_alive
        self._empty_lines = 0
        length = head.content_length
        if length:
            end = pos + length
            if end <= len(data):
                events += (head, data[pos:end], END)
                return end
            self._body = LengthBody(length)
        elif head.chunked:
            self._body = ChunkedBody("the request")
        else:
            events += (head, END)
            return pos
        events.append(head)
        self._fresh = False
        return pos

    def _read_unusual(self, data: bytes, pos: int, events: list[RequestEvent]) -> int:
        if self._body is not None:
            return self._read_body(self._body, data, pos, events)
        if self._closed:
            if data[pos:].strip(b"\r\n"):
                raise ProtocolError("bytes follow a request that closes the connection")
            return len(data)
        self._fresh = False
        lines = self._lines
        if lines is None:
            pos = self._skip_empty_lines(data, pos)
            if pos == len(data):
                return pos
            match = ANY_REQUEST.match(data, pos)
            if match is not None and within_limits(data, pos, match.end()):
                return self._begin(_unusual_head(match), data, match.end(), events)
            lines = self._lines = Lines("the request's head", check_request_line)
        end = lines.feed(data, pos)
        if end < 0:
            return len(data)
        self._lines = None
        match = ANY_REQUEST.match(bytes(lines.block))
        assert match is not None, "its lines have been checked"
        return self._begin(_unusual_head(match), data, end, events)

    def _read_body(
        self, body: LengthBody | ChunkedBody, data: bytes, pos: int, events: list[RequestEvent]
    ) -> int:
        content, end, wrong = body.read(data, pos)
        if content:
            events.append(content)
        if wrong is not None:
            raise wrong
        if end < 0:
            return len(data)
        self._body = None
        self._fresh = not self._closed
        events.append(END)
        return end

    def _skip_empty_lines(self, data: bytes, pos: int) -> int:
        """Where the request line begins, or where `data` ends if it has not come."""
        if self._half_line:
            self._half_line = False
            if data[pos] != 0x0A:
                raise ProtocolError("a CR without LF comes before a request")
            self._empty_lines += 1
            pos += 1
        while data.startswith(b"\r\n", pos) and self._empty_lines <= MAX_EMPTY_LINES:
            self._empty_lines += 1
            pos += 2
        if self._empty_lines > MAX_EMPTY_LINES:
            raise ProtocolError(f"more than {MAX_EMPTY_LINES} empty lines come before a request")
        if pos + 1 == len(data) and data[pos] == 0x0D:
            self._half_line = True
            return len(data)
        return pos


def check_request_line(line: bytes) -> None:
    """Raises ProtocolError for a first line that asks for nothing that the router serves."""
    match = REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError(f"{line[:60]!r} is not a request line: METHOD /path HTTP/1.1")
    _asked_for(*match.groups())


def _asked_for(
    method: bytes, target: bytes, version: bytes | None
) -> tuple[bytes, bytes, bytes | None]:
    """What `_origin_form` makes of the target. Raises ProtocolError as `check_request_line`."""
    if method != method.upper():
        raise ProtocolError(f"the method {method[:40]!r} is not in upper case; all methods are")
    if method == b"CONNECT":
        raise ProtocolError("CONNECT is not supported; this is no forward proxy", status=501)
    parts = _origin_form(target)
    if version not in (b"1.1", b"1.0"):
        shown = "0.9" if version is None else version.decode("ascii")
        raise ProtocolError(f"HTTP/{shown} is not supported here; HTTP/1.1 is", status=505)
    return parts


def _origin_form(target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Path and query, the path, and the authority where the client sent a whole URL.

    Raises ProtocolError for any other target, and for a path that an engine might read as another
    one than the router's routes have judged (RFC 3986, section 5.2.4).
    """
    authority = None
    if not target.startswith(b"/"):
        url = ABSOLUTE_FORM.fullmatch(target)
        if url is None or url[1].startswith(b":") or not is_host(url[1]):
            raise ProtocolError(f"the target {target[:60]!r} is neither a path nor an http URL")
        authority = url[1]
        target = url[2] if url[2].startswith(b"/") else b"/" + url[2]
    match = ORIGIN_FORM.fullmatch(target)
    if match is None:
        raise ProtocolError(f"the target {target[:60]!r} holds a `#`, or a `\\` in its path")
    if DOT_SEGMENT.search(match[1]):
        raise ProtocolError(f"the path {match[1][:60]!r} has a segment `.` or `..`")
    return target, match[1], authority


def _usual_head(match: re.Match[bytes]) -> RequestHead | None:
    """The head that matched, or None where it must be taken apart."""
    method, target, path, dotted, lines, length, left_out, more, length2 = match.groups()
    if dotted is not None and DOT_SEGMENT.search(path):
        return None
    head = RequestHead()
    head.method = method
    head.target = target
    head.path = path.decode()
    head.raw = match[0]
    head.lines = lines
    if length is not None:
        head.content_length = int(length)
    if left_out is not None and not head.take_left_out(left_out, more, length2):
        return None
    return head


def _unusual_head(match: re.Match[bytes]) -> RequestHead:
    """Any head that matched, taken apart line by line. Raises ProtocolError."""
    method, target, version, block = match.groups()
    head = RequestHead()
    head.method = method
    head.target, path, authority = _asked_for(method, target, version)
    head.path = path.decode()
    head.raw = match[0]
    head.http10 = version == b"1.0"
    found = take_apart(head, block, http10=head.http10)
    _check_host(found, http10=head.http10)
    if authority is not None:  # RFC 9112, section 3.2.2: it replaces what `Host` says
        others = without(block, frozenset({b"host"}))
        head.raw = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method, target, authority, others)
    if b"expect" in found:
        head.expects_continue = _expects_continue(found[b"expect"]) and not head.http10
    return head


def _check_host(found: Special, *, http10: bool) -> None:
    """RFC 9112, section 3.2. Raises ProtocolError."""
    hosts = found.get(b"host", [])
    if len(hosts) > 1:
        raise ProtocolError("Host is given more than once; it must be given once")
    if not hosts and not http10:
        raise ProtocolError("Host is missing; HTTP/1.1 requires it")
    if hosts and not is_host(hosts[0]):
        raise ProtocolError(f"Host is {hosts[0][:60]!r}, which is no host and port")


def _expects_continue(values: list[bytes]) -> bool:
    """Whether 100-continue is expected. Raises ProtocolError (417) for anything else."""
    listed = b",".join(values).split(b",")
    expected = [member for member in map(bytes.strip, listed) if member]
    for member in expected:
        if member.lower() != b"100-continue":
            raise ProtocolError(
                f"Expect is {member[:40]!r}; only `100-continue` is supported", status=417
            )
    return bool(expected)


def encode_request_head(
    head: RequestHead,
    authority: bytes,
    prefix: bytes,
    added: bytes = b"",
    *,
    dropped: frozenset[bytes] = frozenset(),
    content_length: int | None = None,
) -> bytes:
    """The head as it is sent to an engine.

    Args:
        head: the client's.
        authority: the engine's, for `Host`.
        prefix: the path of the engine's URL.
        added: whole header lines.
        dropped: lower-case names of headers that are left out; the framing ones cannot be.
        content_length: of the body that is sent instead of the client's, in bytes.
    """
    lines = head.lines
    ending = b"Transfer-Encoding: chunked\r\n\r\n" if head.chunked else b"\r\n"
    if content_length is not None:
        dropped |= FRAMING
        ending = b"Content-Length: %d\r\n\r\n" % content_length
    if dropped:
        assert content_length is not None or not dropped & FRAMING, "the message would have no end"
        lines = without(lines, dropped)
    return b"".join(
        (
            *(head.method, b" ", prefix, head.target, b" HTTP/1.1\r\nHost: ", authority, b"\r\n"),
            *(lines, added, ending),
        )
    )
