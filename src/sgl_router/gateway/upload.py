"""A request's body between the client and an engine."""

from sgl_router.http1.head import LAST_CHUNK, chunk

REPLAY_BYTES = 1024 * 1024
"""A body that is passed on as it arrives is kept for another worker up to this size."""


class Upload:
    """What has come of a body, and how much of it the engine in use has been sent.

    Attributes:
        received: bytes that have come.
        over: whether that is all of it.
        replayable: whether it can be sent again from its beginning.
    """

    __slots__ = ("_chunked", "_pieces", "_sent", "_terminated", "over", "received", "replayable")

    def __init__(self, *, chunked: bool) -> None:
        """`chunked`: the engine is sent chunks, as the client sent them."""
        self._chunked = chunked
        self._pieces: list[bytes] = []
        self._sent = 0
        self._terminated = False
        self.received = 0
        self.over = False
        self.replayable = True

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.received += len(data)

    def whole(self) -> bytes:
        """The body in one piece; it is then kept as one."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def rewind(self) -> None:
        """Begin again, for another engine."""
        assert self.replayable, "what was forgotten cannot be sent again"
        self._sent = 0
        self._terminated = False

    def take(self) -> list[bytes]:
        """What the engine has not been sent yet, framed for it."""
        unsent = self._pieces[self._sent :]
        self._sent = len(self._pieces)
        if not self._chunked:
            return unsent
        parts = [chunk(piece) for piece in unsent]
        if self.over and not self._terminated:
            self._terminated = True
            parts.append(LAST_CHUNK)
        return parts

    def forget_sent(self) -> None:
        """Free what was sent of a body that is too large to be kept for another try."""
        if self.received > REPLAY_BYTES:
            self.replayable = False
            del self._pieces[: self._sent]
            self._sent = 0
