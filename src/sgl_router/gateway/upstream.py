"""The engine's side: one connection to a worker, one exchange on it at a time."""

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

from sgl_router.core.worker import Worker
from sgl_router.errors import ProtocolError
from sgl_router.gateway.connection import LARGE_BYTES, Connection, Outbox
from sgl_router.gateway.flow import Hold, ReadGate
from sgl_router.http1.response import ResponseEvent, ResponseParser


class ResponseReceiver(Protocol):
    """What an engine connection tells of the exchange that is on it."""

    @property
    def client_reading(self) -> ReadGate | None:
        """Holds back the client who sends the body, where there is one."""

    def on_response(self, events: list[ResponseEvent]) -> None:
        """Events of the answer, as many as one read completed."""

    def on_engine_lost(self, error: ProtocolError | None) -> None:
        """The connection is closed; None where the answer is complete with that."""


class EngineConnection(Connection):
    """A connection to one worker.

    Attributes:
        worker: whose it is.
        reused: whether it has carried an exchange before the one that is on it now.
        heard: whether a byte has come since the exchange that is on it began.
        idle_since: when its last exchange ended, in seconds of the gateway's clock.
    """

    __slots__ = (
        "_on_lost",
        "_parser",
        "_receiver",
        "_unread",
        "heard",
        "idle_since",
        "reused",
        "worker",
    )

    def __init__(
        self, outbox: Outbox, worker: Worker, on_lost: Callable[["EngineConnection"], None]
    ) -> None:
        super().__init__(outbox)
        self.worker = worker
        self.reused = False
        self.heard = False
        self.idle_since = 0.0
        self._on_lost = on_lost
        self._parser = ResponseParser()
        self._receiver: ResponseReceiver | None = None

    def send(self, receiver: ResponseReceiver, head: bytes, body: bytes) -> None:
        """Put an exchange on this connection: write a head, and what is there of its body."""
        assert self._receiver is None, "one exchange at a time"
        self._receiver = receiver
        self.heard = False
        if head.startswith(b"HEAD "):
            self._parser = ResponseParser(to_head_request=True)
        if len(body) < LARGE_BYTES:
            self.write(head + body)
        else:  # to copy it would cost more
            self.write(head)
            self.write(body)

    def end(self, now: float) -> None:
        """Take the exchange off; the connection can have another one."""
        self._receiver = None
        self.reused = True
        self.idle_since = now
        if self.reading.held:
            self.reading.release(Hold.PEER_FULL)

    def abort(self) -> None:
        """Close at once: the engine's cue to stop generating. The exchange is not told."""
        self._receiver = None
        super().abort()

    @property
    def usable(self) -> bool:
        """Whether nothing has come since its last exchange, neither bytes nor its end, though the
        loop may not have read them: they would be taken for the next exchange's answer."""
        return not self._transport.is_closing() and not self._unread.poll(0)

    @property
    def pieces(self) -> int:
        """Pieces of its answer's body that have come."""
        return self._parser.pieces

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._unread = select.poll()
        self._unread.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.abort()  # an engine that speaks unasked is not to be trusted
        else:
            self.heard = True
            receiver.on_response(self._parser.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_lost(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if exc is not None:  # this ends nothing, not even a body that lasts until the connection's
            receiver.on_engine_lost(ProtocolError(f"the engine closed the connection: {exc}"))
        else:
            (event,) = self._parser.feed_eof()
            receiver.on_engine_lost(event if isinstance(event, ProtocolError) else None)

    def pause_writing(self) -> None:
        client = self._receiver.client_reading if self._receiver is not None else None
        if client is not None:
            client.hold(Hold.PEER_FULL)

    def resume_writing(self) -> None:
        client = self._receiver.client_reading if self._receiver is not None else None
        if client is not None:
            client.release(Hold.PEER_FULL)
