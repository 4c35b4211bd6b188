"""What request and response heads have in common: header fields and how a body is framed."""

from enum import Enum

from sgl_router.http1.grammar import FIELD, FIELD_LINE

Headers = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024
"""Of a whole head (aiohttp and nginx allow 8 to 32 KiB; long cookies and traces need more)."""

MAX_HEADERS = 256
"""Header lines of a head, or of trailers (hyper allows 100, aiohttp 128, Apache 100)."""

SMALL_HEAD_BYTES = 4 * MAX_HEADERS
"""No head of less can have too many lines: the shortest one is `a:` and CRLF."""


class End(Enum):
    """The event that ends a message."""

    END = "end"


END = End.END


class Head:
    """The part before the body. Parsers make heads; nobody else does.

    Attributes:
        content_length: of the body, or None where it is not given.
        chunked: whether the body is chunked.
        keep_alive: whether the connection can be used again after the body.
        raw: all of it, as it came.
        lines: the header lines that are passed on: not those between two neighbours.
    """

    # Defaults stand in the class: a head that holds only what differs is made in half the time.
    content_length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    raw: bytes
    lines: bytes
    _folded: bytes | None = None

    @property
    def headers(self) -> Headers:
        """Name and value of each header as it came, in order, repetitions kept."""
        return fields(self.raw.partition(b"\r\n")[2])

    def get(self, name: bytes) -> bytes | None:
        """A header's value, by its lower-case name; of several the first."""
        folded = self._folded
        if folded is None:
            folded = self._folded = self.raw.lower()
        if name not in folded:
            return None
        line = folded.find(b"\n%b:" % name)
        if line < 0:
            return None
        start = line + len(name) + 2
        return self.raw[start : folded.index(b"\r", start)].strip(b" \t")

    def take_left_out(self, left_out: bytes, more: bytes, length: bytes | None) -> bool:
        """Set what the line `left_out` of a usual head says, and `more` lines, with this length.

        False: how the body is framed has been said already; the head must be taken apart.
        """
        chunked = left_out[:1] in b"Tt"
        if (chunked or self.content_length is not None) and length is not None:
            return False
        self.lines += more
        if chunked:
            self.chunked = True
            return self.content_length is None
        if length is not None:
            self.content_length = int(length)
        if left_out[-5:].lower() == b"close":
            self.keep_alive = False
        return True


def within_limits(data: bytes, pos: int, end: int) -> bool:
    """Whether a head that is not a small one is not too large either."""
    return end - pos <= MAX_HEAD_BYTES and data.count(b"\n", pos, end) <= MAX_HEADERS + 2


def fields(block: bytes) -> Headers:
    """Name and value of each of these lines, which must be right."""
    return [(name, value.rstrip(b" \t")) for _, name, value in FIELD.findall(block)]


def without(block: bytes, names: frozenset[bytes]) -> bytes:
    """These lines but for those of the given lower-case names."""
    lines: list[bytes] = FIELD_LINE.findall(block)
    return b"".join([line for line in lines if line.partition(b":")[0].lower() not in names])


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112, section 7.1); `data` must not be empty, that would end the body."""
    assert data, "an empty chunk is the last one"
    return b"%x\r\n%b\r\n" % (len(data), data)
