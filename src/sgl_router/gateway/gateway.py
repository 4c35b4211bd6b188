"""The gateway: listens, expires what takes too long, and drains."""

import asyncio
import logging
import ssl
from contextlib import suppress

from sgl_router.gateway.context import AsgiApp, GatewayContext
from sgl_router.gateway.downstream import ClientConnection, Clients
from sgl_router.gateway.pool import IDLE_SECS

_log = logging.getLogger(__name__)

SWEEP_SECS = 0.5
"""One timer for all deadlines; each may be late by this much."""

BACKLOG = 4096
"""Connections that wait to be accepted; the kernel caps it at net.core.somaxconn."""

LISTEN_WHILE_DRAINING_SECS = 10.0
"""New connections are still served for this long after readiness has said that none should come:
whoever asks for readiness does so every few seconds (Kubernetes: 10)."""


class Gateway:
    """Serves clients on one address or several.

    Args:
        context: what all of them share.
        clients: the connections that are open.
    """

    def __init__(self, context: GatewayContext, clients: Clients) -> None:
        self._context = context
        self._clients = clients
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def listen(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        only: AsgiApp | None = None,
    ) -> int:
        """Listen; returns the port, which is chosen by the system where `port` is 0.

        `only`: answers everything that comes on this address; nothing is for an engine.
        """
        server = await self._context.loop.create_server(
            lambda: ClientConnection(self._context, self._clients, only),
            host,
            port,
            backlog=BACKLOG,
            ssl=tls,
            # No connection of ours exists before that, so that nothing else ends it.
            ssl_handshake_timeout=None if tls is None else self._context.settings.head_timeout,
        )
        self._servers.append(server)
        if self._sweep is None:
            self._expire()
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def stop(self, grace_secs: float) -> bool:
        """Serve what is under way, and close.

        Readiness is taken back first; new connections are served as long as requests are under
        way, for `LISTEN_WHILE_DRAINING_SECS` at most. Returns False where requests had to be cut
        off after `grace_secs`.
        """
        context = self._context
        context.draining = True
        self._close_idle()
        complete = await self._drained(min(LISTEN_WHILE_DRAINING_SECS, grace_secs))
        for server in self._servers:
            server.close()
        self._close_idle()
        if not complete:
            complete = await self._drained(grace_secs - LISTEN_WHILE_DRAINING_SECS)
        for client in list(self._clients.connections):
            client.abort()
        if self._sweep is not None:
            self._sweep.cancel()
        context.pool.close_idle(before=context.clock())
        await asyncio.sleep(0)  # lets the connections that were closed say so
        return complete

    def _close_idle(self) -> None:
        for client in list(self._clients.connections):
            client.close_if_idle()

    async def _drained(self, secs: float) -> bool:
        """Whether all connections were closed in time; each closes after its last request."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(secs, 0)):
                await self._clients.empty.wait()
        return self._clients.empty.is_set()

    def _expire(self) -> None:
        """End what takes too long, and close what nobody uses."""
        context = self._context
        self._sweep = context.loop.call_later(SWEEP_SECS, self._expire)
        now = context.clock()
        context.pool.close_idle(before=now - IDLE_SECS)
        context.dispatcher.expire()
        if context.admission is not None:
            context.admission.expire(now)
        for client in list(self._clients.connections):
            client.notice_departure()
            client.check(now)
        for request in list(context.requests):
            request.check(now)
