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


class Head:
    """The part before the body.

    Attributes:
        headers: name and value as they came, in order, repetitions kept.
        content_length: of the body, or None where it is not given.
        chunked: whether the body is chunked.
        keep_alive: whether the connection can be used again after the body.
    """

    __slots__ = ("chunked", "content_length", "headers", "keep_alive")

    def __init__(self, headers: Headers, *, keep_alive: bool) -> None:
        """Raises ProtocolError where the framing is ambiguous (RFC 9112, section 6.3)."""
        self.headers = headers
        self.keep_alive = keep_alive
        self.content_length: int | None = None
        self.chunked = False
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                self._set_content_length(value)
            elif lower == b"transfer-encoding":
                if value.lower() != b"chunked" or self.chunked:
                    raise ProtocolError("only the transfer encoding chunked is supported")
                self.chunked = True
        if self.chunked and self.content_length is not None:
            raise ProtocolError("both Content-Length and Transfer-Encoding are given")

    def _set_content_length(self, value: bytes) -> None:
        if self.content_length is not None:
            raise ProtocolError("Content-Length is given more than once")
        if not value.isdigit() or len(value) > 18:
            raise ProtocolError("Content-Length is not a number")
        self.content_length = int(value)

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        for key, value in self.headers:
            if len(key) == len(name) and key.lower() == name:
                return value
        return None

    def end_to_end(self) -> list[bytes]:
        """The lines of the headers that are passed on: all but those between two neighbours."""
        dropped = HOP_BY_HOP
        for name, value in self.headers:
            if (
                len(name) == len(b"connection")
                and name.lower() == b"connection"
                and value.lower() not in (b"keep-alive", b"close")
            ):
                named = {token.strip().lower() for token in value.split(b",")}
                dropped |= named - {b"content-length"}
        return [
            b"%b: %b\r\n" % (name, value)
            for name, value in self.headers
            if name.lower() not in dropped
        ]


def head_size(headers: Headers) -> int:
    """The header lines' bytes, without optional white space."""
    return sum(len(name) + len(value) for name, value in headers) + 4 * len(headers)


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, section 7.1); `data` must not be empty, that would end the body."""
    assert data, "an empty chunk is the last one"
    return b"%x\r\n%b\r\n" % (len(data), data)
