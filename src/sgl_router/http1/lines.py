"""Heads and trailers that come in pieces: each line is checked when it is complete, and once.

So what is wrong is refused before its end has come, bytes that trickle in cost no more than those
that come at once, and where they are cut makes no difference to what comes of them.
"""

from collections.abc import Callable

from sgl_router.errors import ProtocolError
from sgl_router.http1.grammar import FIELD_LINE, FIELD_NAME, MISPLACED
from sgl_router.http1.head import MAX_HEAD_BYTES, MAX_HEADERS


class Lines:
    """One block of lines, up to the empty line that ends it.

    Attributes:
        block: what has come of it.
    """

    __slots__ = ("_begins", "_check_first", "_checked", "_count", "_line", "_whose", "block")

    def __init__(
        self,
        whose: str,
        check_first: Callable[[bytes], None] | None = None,
        begins: bytes = b"",
    ) -> None:
        """`whose` it is, for error messages. `check_first` raises ProtocolError where the first
        line is not the start line of a head, which begins with `begins`; without it, that is a
        header line too."""
        self.block = bytearray()
        self._whose = whose
        self._check_first = check_first
        self._begins = begins
        self._count = 0
        self._line = 0  # where the line that is not complete begins
        self._checked = 0  # up to where that line has been looked at

    def feed(self, data: bytes, pos: int) -> int:
        """Take the block's part of `data` from `pos` on; where it ends, or -1 if it goes on.

        Raises ProtocolError for what no head can hold, and (431) for more than one may hold.
        """
        block = self.block
        room = MAX_HEAD_BYTES - len(block)
        end = data.find(b"\n\r\n", pos, pos + room) + 3
        taken = data[pos:end] if end >= 3 else data[pos : pos + room]
        block += taken
        while (newline := block.find(b"\n", self._checked)) >= 0:
            line = bytes(block[self._line : newline + 1])
            self._line = self._checked = newline + 1
            if self._ends(line):
                end = pos + len(taken) - (len(block) - newline - 1)
                del block[newline + 1 :]
                return end
        if not self._begins.startswith(block[: len(self._begins)]):
            raise ProtocolError(f"{self._whose} does not begin with {self._begins!r}")
        if misplaced := MISPLACED.search(block, max(self._line, self._checked - 1)):
            raise ProtocolError(f"{self._whose} holds {misplaced[0]!r}, which none may hold")
        self._checked = len(block)
        if len(data) - pos > room:
            raise self._too_large(f"{MAX_HEAD_BYTES:,} bytes")
        return -1

    def _ends(self, line: bytes) -> bool:
        """Check a line, and say whether it is the one that ends the block."""
        check_first, self._check_first = self._check_first, None
        if check_first is not None:
            check_first(line)
            return False
        if line == b"\r\n":
            return True
        if not FIELD_LINE.fullmatch(line):
            raise ProtocolError(f"{self._whose} has {_fault(line)}")
        self._count += 1
        if self._count > MAX_HEADERS:
            raise self._too_large(f"{MAX_HEADERS} header lines")
        return False

    def _too_large(self, limit: str) -> ProtocolError:
        return ProtocolError(f"{self._whose} has more than {limit}", status=431)


def _fault(line: bytes) -> str:
    """What is wrong with a header line. Its value is not told: it may be a secret."""
    name, colon, value = line.partition(b":")
    if line[:1] in b" \t":
        return "a folded line, which is obsolete: it begins with white space"
    if not colon:
        return f"a line without a colon, {line[:40]!r}"
    if not FIELD_NAME.fullmatch(name):
        return f"{name[:40]!r} where the name of a header is expected"
    if not value.endswith(b"\r\n"):
        return f"a header {name[:40]!r} that ends with LF; CRLF is expected"
    misplaced = MISPLACED.search(value)
    assert misplaced is not None, "nothing else can be wrong with a line"
    return f"a header {name[:40]!r} with {misplaced[0]!r} in its value"
