"""Bodies: what of the bytes is content, and where it ends, for each way of telling that.

The three kinds have one verb, `read`, and one count, `pieces`, of what the sender made one piece as
far as that can be seen. `read` takes up `data` at `pos` and returns

- the content that there is, joined: that of many chunks is one object;
- where the body ends in `data`, or -1 where it goes on;
- what is wrong with what follows that content, or None; nothing may be read after it.
"""

from sgl_router.errors import ProtocolError
from sgl_router.http1.framing import FRAMING
from sgl_router.http1.grammar import CHUNK_EXTENSIONS, CHUNK_LINE_START, CHUNK_SIZE
from sgl_router.http1.head import fields
from sgl_router.http1.lines import Lines

MAX_EXTENSION_BYTES = 16 * 1024
"""Of all chunk extensions of one body, which nobody reads (Go's net/http allows as much)."""

MAX_CHUNK_BYTES = 2**63 - 1
"""What an engine's signed 64-bit integer holds."""

Part = tuple[bytes, int, ProtocolError | None]

# What of a chunked body comes next where it is not content. 0 is the CRLF that ends a chunk.
_SIZE = -1
_REST_OF_SIZE = -2
_REST_OF_END = -3
_TRAILERS = -4


class LengthBody:
    """A body of known length.

    Attributes:
        pieces: reads.
    """

    __slots__ = ("_left", "pieces")

    def __init__(self, length: int) -> None:
        assert length, "an empty body is not read"
        self._left = length
        self.pieces = 0

    def read(self, data: bytes, pos: int) -> Part:
        self.pieces += 1
        end = pos + self._left
        if end <= len(data):
            return data[pos:end], end, None
        self._left = end - len(data)
        return data[pos:], -1, None


class EndlessBody:
    """A body that ends where the connection does.

    Attributes:
        pieces: reads.
    """

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces = 0

    def read(self, data: bytes, pos: int) -> Part:
        self.pieces += 1
        return data[pos:], -1, None


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailers are dropped.

    Attributes:
        pieces: chunks of which the size has come.
    """

    __slots__ = ("_carry", "_extension_bytes", "_left", "_trailers", "_whose", "pieces")

    def __init__(self, whose: str) -> None:
        """`whose` it is, for error messages."""
        self.pieces = 0
        self._whose = whose
        self._left = _SIZE  # content of this chunk that is to come, or one of the numbers above
        self._carry = b""  # what has come of a line that is not complete
        self._extension_bytes = 0
        self._trailers: Lines | None = None

    def read(self, data: bytes, pos: int) -> Part:
        if self._left == _SIZE and (match := CHUNK_SIZE.match(data, pos)) is not None:
            start = match.end()
            end = start + int(match[1], 16)
            if end > start and end + 2 == len(data) and data.endswith(b"\r\n"):
                # A chunk that comes alone, as those of a stream do.
                self.pieces += 1
                return data[start:end], -1, None
        out: list[bytes] = []
        wrong = None
        try:
            end = self._read_on(data, pos, out)
        except ProtocolError as error:
            end, wrong = -1, error
        return out[0] if len(out) == 1 else b"".join(out), end, wrong

    def _read_on(self, data: bytes, pos: int, out: list[bytes]) -> int:
        """Add content to `out`; where the body ends, or -1. Raises ProtocolError."""
        if self._trailers is not None:
            return self._read_trailers(self._trailers, data, pos)
        carry = self._carry
        if not carry:
            return self._read_chunks(data, pos, out)
        self._carry = b""
        self._left = _SIZE if self._left == _REST_OF_SIZE else 0
        end = self._read_chunks(carry + data[pos:], 0, out)
        return end if end < 0 else end + pos - len(carry)

    def _read_chunks(self, data: bytes, pos: int, out: list[bytes]) -> int:
        size = len(data)
        left = self._left
        while pos < size:
            if left == _SIZE:
                match = CHUNK_SIZE.match(data, pos)
                if match is not None:
                    left = int(match[1], 16)
                    pos = match.end()
                else:
                    left, pos = self._read_size_line(data, pos)
                if left == 0:
                    return self._end(data, pos)
                if left < 0:
                    break
                self.pieces += 1
            if left:
                end = pos + left
                if end > size:
                    if pos < size:
                        out.append(data[pos:])
                    left = end - size
                    break
                out.append(data[pos:end])
                pos = end
            if data[pos : pos + 2] != b"\r\n":
                left = self._read_half_end(data[pos : pos + 2])
                break
            pos += 2
            left = _SIZE
        self._left = left
        return -1

    def _read_size_line(self, data: bytes, pos: int) -> tuple[int, int]:
        """A size that comes with extensions or in part: the size, and where its line ends; or
        `_REST_OF_SIZE` where that has not come."""
        newline = data.find(b"\r\n", pos)
        line = data[pos:newline] if newline >= 0 else data[pos:]
        start = CHUNK_LINE_START.match(line)
        if start is None:
            raise self._wrong(
                f"{line[:20]!r} where a chunk's size is expected, 1 to 16 hexadecimal digits"
            )
        extensions = line[start.end(1) :]
        if len(extensions.rstrip(b"\r")) > MAX_EXTENSION_BYTES - self._extension_bytes:
            raise ProtocolError(
                f"{self._whose} has chunk extensions of more than {MAX_EXTENSION_BYTES:,} bytes",
                status=431,
            )
        if newline < 0:
            self._carry = line
            return _REST_OF_SIZE, pos
        size = int(start[1], 16)
        if size > MAX_CHUNK_BYTES:
            raise self._wrong(f"a chunk of {size:,} bytes; at most {MAX_CHUNK_BYTES:,} are allowed")
        if not CHUNK_EXTENSIONS.fullmatch(extensions):
            raise self._wrong(f"{extensions[:20]!r} after a chunk's size, which is no extension")
        self._extension_bytes += len(extensions)
        return size, newline + 2

    def _read_half_end(self, end: bytes) -> int:
        """What comes next after a part of the CRLF that ends a chunk."""
        if not end:
            return 0
        if end != b"\r":
            raise self._wrong(f"{end!r} where a chunk ends; CRLF is expected")
        self._carry = end
        return _REST_OF_END

    def _end(self, data: bytes, pos: int) -> int:
        if data.startswith(b"\r\n", pos):  # nearly always there are no trailers
            return pos + 2
        self._left = _TRAILERS
        self._trailers = Lines(f"the trailers of {self._whose}")
        return self._read_trailers(self._trailers, data, pos)

    def _read_trailers(self, trailers: Lines, data: bytes, pos: int) -> int:
        end = trailers.feed(data, pos)
        if end >= 0:
            for name, _ in fields(bytes(trailers.block)):
                if name.lower() in FRAMING:  # RFC 9110, section 6.5.1
                    raise self._wrong(f"{name!r} as a trailer; it belongs into the head")
        return end

    def _wrong(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self._whose} has {what}")
