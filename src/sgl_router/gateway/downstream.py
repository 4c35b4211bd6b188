"""The client's side: one connection, its requests one after the other."""

import asyncio
import logging
import select
import struct
from socket import SO_LINGER, SOL_SOCKET

from sgl_router.errors import ProtocolError, RequestError
from sgl_router.gateway.connection import Connection
from sgl_router.gateway.context import AsgiApp, GatewayContext
from sgl_router.gateway.deadlines import Stillness, head_too_slow
from sgl_router.gateway.disaggregated import exchange_maker
from sgl_router.gateway.flow import Hold
from sgl_router.gateway.handler import RequestHandler
from sgl_router.gateway.own import OwnAnswer
from sgl_router.gateway.replies import error_body
from sgl_router.gateway.routes import is_proxied
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestEvent, RequestHead, RequestParser
from sgl_router.http1.response import encode_response

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


class ClientConnection(Connection):
    """A connection from a client."""

    __slots__ = (
        "_acting",
        "_clients",
        "_context",
        "_discarded",
        "_exchange",
        "_full",
        "_heads",
        "_linger",
        "_make_exchange",
        "_only",
        "_parser",
        "_request_open",
        "_stillness",
        "_waiting",
    )

    def __init__(
        self, context: GatewayContext, clients: Clients, only: AsgiApp | None = None
    ) -> None:
        """`only`: answers everything that comes on this address; nothing is for an engine."""
        super().__init__(context.outbox)
        self._context = context
        self._clients = clients
        self._only = only
        self._make_exchange = exchange_maker(context.settings)
        self._parser = RequestParser()
        self._exchange: RequestHandler | None = None
        self._heads = 0
        self._stillness: Stillness | None = None
        self._request_open = False
        self._full = False
        self._linger: asyncio.TimerHandle | None = None
        self._discarded = 0
        self._waiting: list[RequestEvent] = []
        self._acting = False

    # ---- of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self._linger is None:
            events = self._parser.feed(data)
            if self._waiting:
                self._waiting += events
            else:
                self._act(events)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._clients.discard(self)
        self._waiting.clear()
        if self._linger is not None:
            self._linger.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_gone()

    def pause_writing(self) -> None:
        self._full = True
        engine = self._exchange.engine_reading if self._exchange is not None else None
        if engine is not None:
            engine.hold(Hold.PEER_FULL)

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is None:
            self._act_on_waiting()
        elif self._exchange.engine_reading is not None:
            self._exchange.engine_reading.release(Hold.PEER_FULL)

    # ---- of the exchange

    @property
    def peer(self) -> tuple[str, int]:
        """The client's address and port."""
        name = self._transport.get_extra_info("peername")
        return (name[0], name[1]) if name else ("", 0)

    def answered(self, *, keep_alive: bool) -> None:
        """The exchange has ended; what is left of its request is read and dropped."""
        self._exchange = None
        self._discarded = 0
        if not keep_alive or self._context.draining:
            self._close(linger=self._request_open)
        elif self._waiting and not self._acting:
            self._act_on_waiting()

    def cut_off(self, *, reset: bool) -> None:
        """Close without the end of an answer, so that nobody takes it for complete."""
        self._exchange = None
        self.write_out()
        if reset:
            linger = struct.pack("ii", 1, 0)  # on, for no time at all
            self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
        self.abort()

    # ---- of the gateway

    def check(self, now: float) -> None:
        """Close a connection that is not used, on which the rest of a request does not come, or
        of which the client does not take its last answer."""
        if self._exchange is not None:
            return
        settings, mid_head = self._context.settings, self._parser.mid_message
        unsent = self.unsent
        if self._stillness is None:
            self._stillness = Stillness(None, now)
        still = self._stillness.lasts((self._heads, mid_head, unsent), now)
        if unsent:
            limit = settings.stream_idle_timeout or settings.request_timeout
        elif self._linger is not None:
            return
        elif self._request_open:
            limit = settings.body_timeout
        else:
            fresh = mid_head or not self._heads
            limit = settings.head_timeout if fresh else settings.keep_alive_timeout
        if still < limit:
            return
        if unsent:
            self.abort()
        elif mid_head:
            self._refuse(head_too_slow(limit))
        else:
            self.close()

    def close_if_idle(self) -> None:
        """Close a connection that has no request on it."""
        if self._exchange is None:
            self.close()

    def notice_departure(self) -> None:
        """Close where the client is gone; while nothing is read, nobody else would notice."""
        if self.reading.held and not self._transport.is_closing():
            departed = select.poll()
            departed.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
            if departed.poll(0):
                self.abort()

    # ---- events

    def _act(self, events: list[RequestEvent]) -> None:
        """Act on events, up to the next request that must wait its turn."""
        self._acting = True
        try:
            waiting = self._tell(events)
        except Exception:  # noqa: BLE001 (the outermost callback of everything a client causes)
            _log.exception("a request failed")
            self.abort()
            return
        finally:
            self._acting = False
        if waiting:
            self._waiting = waiting
            self.reading.hold(Hold.PIPELINED)

    def _act_on_waiting(self) -> None:
        """The next request's turn, where one has come."""
        waiting, self._waiting = self._waiting, []
        self.reading.release(Hold.PIPELINED)
        if waiting:
            self._act(waiting)

    def _tell(self, events: list[RequestEvent]) -> list[RequestEvent] | None:
        """Tell the exchange what came of its request; returns what must wait."""
        body = b""
        untold = False
        for event in events:
            if type(event) is bytes:
                body, untold = event, True
            elif event is END:
                self._request_open = untold = False
                if self._exchange is not None:
                    self._exchange.on_read(body, over=True)
                body = b""
            elif type(event) is RequestHead:
                if self._unwritten:  # only then is it known whether the client takes it
                    self.write_out()
                if self._exchange is not None or self._full:
                    return events[events.index(event) :]
                if self._linger is not None or self._transport.is_closing():
                    return None
                self._begin(event)
                untold = True
            else:
                assert isinstance(event, ProtocolError)
                if untold:
                    self._on_body(body)
                if self._exchange is not None and not self._request_open:
                    return [event]  # what is wrong comes after a request that has no answer yet
                self._on_error(event)
                return None
        if untold:
            self._on_body(body)
        return None

    def _begin(self, head: RequestHead) -> None:
        self._request_open = True
        self._heads += 1
        error: RequestError | None = None
        try:
            proxied = self._only is None and is_proxied(head)
        except RequestError as refusal:
            proxied, error = False, refusal.with_traceback(None)
        exchange: RequestHandler
        if proxied:
            exchange = self._make_exchange(self._context, self, head)
        else:
            exchange = OwnAnswer(self._context, self, head, self._only or self._context.app, error)
        self._exchange = exchange
        exchange.start()

    def _on_body(self, data: bytes) -> None:
        """A part of a body, which goes on."""
        if self._exchange is not None:
            self._exchange.on_read(data, over=False)
            return
        self._discarded += len(data)
        if self._discarded > DISCARD_BYTES:
            self._close(linger=True)

    def _on_error(self, error: ProtocolError) -> None:
        if self._exchange is not None:
            self._exchange.refuse(error)  # answers where it still can, and closes
            return
        if self._linger is not None or self._transport.is_closing():
            return  # its last answer has been written
        if self._request_open:  # it has been answered already
            self._close(linger=True)
            return
        self._refuse(RequestError(error.status, "bad_request", str(error)))

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request, and close."""
        self._context.counters.count_error(error.code)
        line = b"x-request-id: %b\r\n" % self._context.new_id("").encode("ascii")
        body = error_body(error)
        self.write(encode_response(error.status, body, keep_alive=False, added=line))
        self._close(linger=True)

    def _close(self, *, linger: bool) -> None:
        """Close once everything is written; `linger` where the client may still be sending."""
        if self._linger is not None or self._transport.is_closing():
            return
        self._waiting.clear()
        if not linger:
            self.close()
            return
        self.write_out()
        self._linger = self._context.loop.call_later(LINGER_SECS, self._lingered)
        if self._transport.can_write_eof():  # not over TLS
            self._transport.write_eof()
        self.reading.release(Hold.PIPELINED)

    def _lingered(self) -> None:
        """Not before the client has been sent all of its answer."""
        if self.unsent:
            self._linger = self._context.loop.call_later(LINGER_SECS, self._lingered)
        elif self._transport.can_write_eof():
            self.abort()
        else:  # what TCP holds below TLS is not counted: to abort would lose it
            self.close()
