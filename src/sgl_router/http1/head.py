"""What request and response heads have in common: header fields and how a body is framed."""

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


_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close"})


class Head:
    """The part before the body.

    Attributes:
        headers: name and value as they came, in order, repetitions kept.
        content_length: of the body, or None where it is not given.
        chunked: whether the body is chunked.
        keep_alive: whether the connection can be used again after the body.
    """

    __slots__ = ("_fields", "_names", "chunked", "content_length", "headers", "keep_alive")

    def __init__(self, headers: Headers, *, keep_alive: bool) -> None:
        """Raises ProtocolError where the framing is ambiguous (RFC 9112, section 6.3)."""
        self.headers = headers
        self.keep_alive = keep_alive
        self._names = names = [name.lower() for name, _ in headers]
        # The last to be put in is the first that came.
        self._fields = fields = dict(zip(reversed(names), reversed(headers), strict=True))
        self.content_length: int | None = None
        self.chunked = b"transfer-encoding" in fields
        if b"content-length" in fields:
            self.content_length = self._only_content_length()
        if self.chunked:
            if self.content_length is not None:
                raise ProtocolError("both Content-Length and Transfer-Encoding are given")
            if [value.lower() for value in self.get_all(b"transfer-encoding")] != [b"chunked"]:
                raise ProtocolError("only the transfer encoding chunked is supported")

    def get(self, name: bytes) -> bytes | None:
        """A header's value, by its lower-case name; of several the first."""
        field = self._fields.get(name)
        return None if field is None else field[1]

    def get_all(self, name: bytes) -> list[bytes]:
        """All values of a header, by its lower-case name."""
        return [v for key, (_, v) in zip(self._names, self.headers, strict=True) if key == name]

    def end_to_end(self) -> bytes:
        """The lines of the headers that are passed on: all but those between two neighbours."""
        dropped = HOP_BY_HOP
        if b"connection" in self._fields:
            for value in self.get_all(b"connection"):
                if value.lower() not in _PLAIN_CONNECTION:
                    named = {token.strip().lower() for token in value.split(b",")}
                    dropped |= named - {b"content-length"}
        kept = [
            b": ".join(header)
            for name, header in zip(self._names, self.headers, strict=True)
            if name not in dropped
        ]
        return b"\r\n".join([*kept, b""])

    def _only_content_length(self) -> int:
        values = self.get_all(b"content-length")
        if len(values) > 1:
            raise ProtocolError("Content-Length is given more than once")
        if not values[0].isdigit() or len(values[0]) > 18:
            raise ProtocolError("Content-Length is not a number")
        return int(values[0])


def head_size(headers: Headers) -> int:
    """The header lines' bytes, without optional white space."""
    return sum(len(name) + len(value) for name, value in headers) + 4 * len(headers)


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, section 7.1); `data` must not be empty, that would end the body."""
    assert data, "an empty chunk is the last one"
    return b"%x\r\n%b\r\n" % (len(data), data)
