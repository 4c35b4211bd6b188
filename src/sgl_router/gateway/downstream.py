"""The client's side: one connection, its requests one after the other."""

import asyncio
import logging
import select
from collections import deque
from typing import cast

from sgl_router.errors import ProtocolError, RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.flow import Hold, ReadGate
from sgl_router.gateway.local import LocalExchange, route
from sgl_router.gateway.replies import REQUEST_ID_HEADER, error_reply
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestEvent, RequestHead, RequestParser

_log = logging.getLogger(__name__)

DISCARD_BYTES = 1024 * 1024
"""How much of a body is read after its request has been answered, to keep the connection."""

LINGER_SECS = 2.0
"""How long a connection is read on after its last answer: closed with bytes unread, it would be
reset, and the client might lose the answer."""


class Clients:
    """The open client connections of one gateway.

    Attributes:
        connections: all of them.
        empty: set while there is none.
    """

    def __init__(self) -> None:
        self.connections: set[ClientConnection] = set()
        self.empty = asyncio.Event()
        self.empty.set()

    def add(self, connection: "ClientConnection") -> None:
        self.connections.add(connection)
        self.empty.clear()

    def discard(self, connection: "ClientConnection") -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()


class ClientConnection(asyncio.Protocol):
    """A connection from a client.

    Attributes:
        reading: holds back the client while its engine is slow, or while it is ahead of us.
    """

    __slots__ = (
        "_clients",
        "_context",
        "_discarded",
        "_events",
        "_exchange",
        "_full",
        "_linger",
        "_parser",
        "_processing",
        "_request_open",
        "_transport",
        "reading",
    )

    reading: ReadGate
    _transport: asyncio.Transport

    def __init__(self, context: GatewayContext, clients: Clients) -> None:
        self._context = context
        self._clients = clients
        self._parser = RequestParser()
        self._exchange: Exchange | LocalExchange | None = None
        self._request_open = False
        self._full = False
        self._linger: asyncio.TimerHandle | None = None
        self._discarded = 0
        self._events: deque[RequestEvent] = deque()
        self._processing = False

    # ---- of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has no such base class
        self.reading = ReadGate(self._transport)
        self._clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self._linger is None:
            self._events.extend(self._parser.feed(data))
            self._process()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        self._events.clear()
        if self._linger is not None:
            self._linger.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_gone()

    def pause_writing(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.pause_engine()

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.resume_engine()
        else:
            self._process()

    # ---- of the exchange

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def answered(self, *, keep_alive: bool) -> None:
        """The exchange has ended; what is left of its request is read and dropped."""
        self._exchange = None
        self._discarded = 0
        if not keep_alive or self._context.draining:
            self._close(linger=self._request_open)
        elif not self._request_open:
            self._process()

    def cut_off(self) -> None:
        """Close without the end of an answer, so that nobody takes it for complete."""
        self._exchange = None
        self._transport.abort()

    # ---- of the gateway

    def close_if_idle(self) -> None:
        """Close a connection that has no request on it."""
        if self._exchange is None:
            self._transport.close()

    def notice_departure(self) -> None:
        """Close where the client is gone; while nothing is read, nobody else would notice."""
        if self.reading.held and not self._transport.is_closing():
            departed = select.poll()
            departed.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
            if departed.poll(0):
                self._transport.abort()

    def abort(self) -> None:
        """Close whatever is under way; its engine learns of it as if the client had gone."""
        self._transport.abort()

    # ---- events

    def _process(self) -> None:
        """Act on the events that have come, up to the next request that must wait its turn."""
        if self._processing:
            return  # an exchange that was answered at once: the loop below goes on
        self._processing = True
        try:
            self._act()
        except Exception:  # noqa: BLE001 (the outermost callback of everything a client causes)
            _log.exception("a request failed")
            self._transport.abort()
        finally:
            self._processing = False

    def _act(self) -> None:
        events = self._events
        while events and self._linger is None and not self._transport.is_closing():
            if not self._request_open and (self._exchange is not None or self._full):
                self.reading.hold(Hold.PIPELINED)  # the next request waits its turn
                return
            event = events.popleft()
            if type(event) is bytes:
                self._on_body(event)
            elif isinstance(event, RequestHead):
                self._on_head(event)
            elif event is END:
                self._on_end()
            else:
                assert isinstance(event, ProtocolError)
                self._on_error(event)
            if self._exchange is not None and (not events or not self._request_open):
                self._exchange.on_read()
        self.reading.release(Hold.PIPELINED)

    def _on_head(self, head: RequestHead) -> None:
        self._request_open = True
        kind: type[Exchange] | type[LocalExchange]
        try:
            kind = Exchange if route(head) is None else LocalExchange
        except RequestError:
            kind = LocalExchange  # answers with this very error
        self._exchange = kind(self._context, self, head)
        self._exchange.start()

    def _on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_body(data)
            return
        self._discarded += len(data)
        if self._discarded > DISCARD_BYTES:
            self._close(linger=True)

    def _on_end(self) -> None:
        self._request_open = False
        if self._exchange is not None:
            self._exchange.on_body_end()

    def _on_error(self, error: ProtocolError) -> None:
        if self._exchange is not None:
            self._exchange.refuse(error)  # answers where it still can, and closes
            return
        if self._request_open:  # it has been answered already
            self._close(linger=True)
            return
        request_id = (REQUEST_ID_HEADER, self._context.new_request_id("").encode("ascii"))
        refusal = RequestError(error.status, "bad_request", str(error))
        self._transport.write(error_reply(refusal, request_id, keep_alive=False))
        self._close(linger=True)

    def _close(self, *, linger: bool) -> None:
        """Close once everything is written; `linger` where the client may still be sending."""
        if self._linger is not None or self._transport.is_closing():
            return
        self._events.clear()
        if not linger:
            self._transport.close()
            return
        self._linger = self._context.loop.call_later(LINGER_SECS, self._lingered)
        self._transport.write_eof()
        self.reading.release(Hold.PIPELINED)

    def _lingered(self) -> None:
        """Not before the client has been sent all of its answer."""
        if self._transport.get_write_buffer_size():
            self._linger = self._context.loop.call_later(LINGER_SECS, self._lingered)
        else:
            self._transport.abort()
