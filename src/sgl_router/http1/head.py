"""What request and response heads have in common: header fields and how a body is framed."""

from collections.abc import Iterable
from enum import Enum

from sgl_router.errors import ProtocolError

Headers = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024
"""Of a whole head (aiohttp and nginx allow 8 to 32 KiB; long cookies and traces need more)."""


class End(Enum):
    """The event that ends a message."""

    END = "end"


END = End.END

# RFC 9110, section 7.6.1, and what is between two neighbours only. `Expect` is answered by the
# router itself; `Host` is the engine's.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


_CONTENT_LENGTH = b"content-length"
_LOOKED_INTO = HOP_BY_HOP | {_CONTENT_LENGTH}
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close"})


class HeaderBlock:
    """Header fields as they come in, sorted on the way: each is looked at once.

    Attributes:
        headers: name and value as they came, in order, repetitions kept.
        fields: lower-case name -> value; of several the first.
        lines: those that are passed on.
        special: lower-case name and value of those that concern the router itself.
        closed: whether what comes is dropped: trailers (RFC 9110, section 6.5.1).
    """

    __slots__ = ("closed", "fields", "headers", "lines", "special")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.clear()
        for name, value in headers:
            self.add(name, value)

    def clear(self) -> None:
        """Begin anew; what a head has taken over stays as it is."""
        self.headers: Headers = []
        self.fields: dict[bytes, bytes] = {}
        self.lines: list[bytes] = []
        self.special: list[tuple[bytes, bytes]] = []
        self.closed = False

    def add(self, name: bytes, value: bytes) -> None:
        if self.closed:
            return
        lower = name.lower()
        self.headers.append((name, value))
        self.fields.setdefault(lower, value)
        if lower in _LOOKED_INTO:
            self.special.append((lower, value))
            if lower != _CONTENT_LENGTH:
                return
        self.lines.append(b"%b: %b\r\n" % (name, value))


class Head:
    """The part before the body.

    Attributes:
        headers: name and value as they came, in order, repetitions kept.
        content_length: of the body, or None where it is not given.
        chunked: whether the body is chunked.
        keep_alive: whether the connection can be used again after the body.
    """

    __slots__ = (
        "_fields",
        "_lines",
        "_named",
        "chunked",
        "content_length",
        "headers",
        "keep_alive",
    )

    def __init__(self, block: HeaderBlock, *, keep_alive: bool) -> None:
        """Raises ProtocolError where the framing is ambiguous (RFC 9112, section 6.3)."""
        self.headers = block.headers
        self._fields = block.fields
        self._lines = block.lines
        self._named: set[bytes] | None = None
        self.keep_alive = keep_alive
        self.content_length: int | None = None
        self.chunked = False
        for name, value in block.special:
            if name == _CONTENT_LENGTH:
                self._set_content_length(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or self.chunked:
                    raise ProtocolError("only the transfer encoding chunked is supported")
                self.chunked = True
            elif name == b"connection" and value.lower() not in _PLAIN_CONNECTION:
                tokens = {token.strip().lower() for token in value.split(b",")}
                self._named = (self._named or set()) | tokens - {_CONTENT_LENGTH}
        if self.chunked and self.content_length is not None:
            raise ProtocolError("both Content-Length and Transfer-Encoding are given")

    def get(self, name: bytes) -> bytes | None:
        """A header's value, by its lower-case name; of several the first."""
        return self._fields.get(name)

    def end_to_end(self, besides: frozenset[bytes] = frozenset()) -> bytes:
        """The lines of the headers that are passed on.

        Dropped are those between two neighbours, and those that `besides` names in lower case.
        """
        if self._named is None and not besides:
            return b"".join(self._lines)
        dropped = HOP_BY_HOP | (self._named or set()) | besides
        kept = [header for header in self.headers if header[0].lower() not in dropped]
        return b"".join([b"%b: %b\r\n" % header for header in kept])

    def _set_content_length(self, value: bytes) -> None:
        if self.content_length is not None:
            raise ProtocolError("Content-Length is given more than once")
        if not value.isdigit() or len(value) > 18:
            raise ProtocolError("Content-Length is not a number")
        self.content_length = int(value)


def head_size(headers: Headers) -> int:
    """The header lines' bytes, without optional white space."""
    return sum(len(name) + len(value) for name, value in headers) + 4 * len(headers)


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, section 7.1); `data` must not be empty, that would end the body."""
    assert data, "an empty chunk is the last one"
    return b"%x\r\n%b\r\n" % (len(data), data)
