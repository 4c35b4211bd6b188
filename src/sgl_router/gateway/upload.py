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

    received = 0
    over = False
    replayable = True
    _sent = 0
    _terminated = False

    def __init__(self, *, chunked: bool) -> None:
        """`chunked`: the engine is sent chunks, as the client sent them."""
        self._chunked = chunked
        self._pieces: list[bytes] = []

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.received += len(data)

    def whole(self) -> bytes:
        """The body in one piece; it is then kept as one."""
        pieces = self._pieces
        if len(pieces) > 1:
            self._pieces = pieces = [b"".join(pieces)]
        return pieces[0] if pieces else b""

    def take_again(self) -> bytes:
        """All that has come, framed for another engine, or the first one."""
        assert self.replayable, "what was forgotten cannot be sent again"
        self._sent = 0
        self._terminated = False
        return self.take()

    def take(self) -> bytes:
        """What the engine has not been sent yet, framed for it."""
        sent, self._sent = self._sent, len(self._pieces)
        unsent = self._pieces[sent:] if sent else self._pieces
        if self._chunked:
            unsent = [chunk(piece) for piece in unsent]
            if self.over and not self._terminated:
                self._terminated = True
                unsent.append(LAST_CHUNK)
        return unsent[0] if len(unsent) == 1 else b"".join(unsent)

    def forget_sent(self) -> None:
        """Free what was sent of a body that is too large to be kept for another try."""
        if self.received > REPLAY_BYTES:
            self.replayable = False
            del self._pieces[: self._sent]
            self._sent = 0
