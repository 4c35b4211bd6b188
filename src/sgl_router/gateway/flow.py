"""Back-pressure: reading stops while anything speaks against it."""

import asyncio


class Hold:
    """Reasons not to read from a connection, as bits (an enumeration's `|` is not free)."""

    PEER_FULL = 1  # the other side takes no more at the moment
    NO_ENGINE = 2  # a body is arriving, and there is no engine connection for it yet
    PIPELINED = 4  # the client has sent its next request before the answer to this one


class ReadGate:
    """Pauses a transport's reading while there is at least one reason to.

    Attributes:
        held: the reasons, as bits.
    """

    __slots__ = ("_transport", "held")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.held = 0

    def hold(self, reason: int) -> None:
        if not self.held and not self._transport.is_closing():
            self._transport.pause_reading()
        self.held |= reason

    def release(self, reason: int) -> None:
        if not self.held:
            return
        self.held &= ~reason
        if not self.held and not self._transport.is_closing():
            self._transport.resume_reading()
