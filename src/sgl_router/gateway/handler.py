"""What a client's connection and the request that is on it need of each other."""

from typing import Protocol

from sgl_router.errors import ProtocolError
from sgl_router.gateway.flow import ReadGate


class ClientSide(Protocol):
    """What a request needs of its client's connection.

    Attributes:
        reading: holds back the client.
    """

    reading: ReadGate

    @property
    def peer(self) -> tuple[str, int]:
        """Its address and port."""

    def write(self, data: bytes) -> None:
        """Send it with what else this turn of the loop has to send."""

    def write_at_once(self, data: bytes) -> None:
        """Send it now, after what waits."""

    def answered(self, *, keep_alive: bool) -> None:
        """The answer is complete; what is left of the request is read and dropped."""

    def cut_off(self, *, reset: bool) -> None:
        """Close without the end of an answer, so that nobody takes it for complete.

        `reset`: the connection's orderly end would be the answer's.
        """


class RequestHandler:
    """One request, as its client's connection sees it: callbacks, of which none need be there."""

    def start(self) -> None:
        """The head is there."""

    def on_read(self, data: bytes, *, over: bool) -> None:
        """What one read from the client held of the body, and whether that is all of it."""

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more."""

    def refuse(self, error: ProtocolError) -> None:
        """The rest of the request is not HTTP."""

    @property
    def engine_reading(self) -> ReadGate | None:
        """Holds back the engine that answers, where there is one."""
        return None

    def check(self, now: float) -> None:
        """Called every half second: end what takes too long; `now` is the gateway's clock."""
