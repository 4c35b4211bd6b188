"""The gateway: listens, expires what takes too long, and drains."""

import asyncio
import logging
from contextlib import suppress

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.health import HealthTable
from sgl_router.gateway.checks import CheckSettings, HealthChecks
from sgl_router.gateway.context import GatewayContext, GatewaySettings
from sgl_router.gateway.downstream import ClientConnection, Clients
from sgl_router.gateway.pool import IDLE_SECS, ConnectionPool
from sgl_router.gateway.request_id import RequestIds

_log = logging.getLogger(__name__)

SWEEP_SECS = 0.5
"""One timer for all deadlines; each may be late by this much."""

BACKLOG = 4096
"""Connections that wait to be accepted; the kernel caps it at net.core.somaxconn."""


class Gateway:
    """Serves clients on one address.

    Args:
        dispatcher: decides where requests go.
        health: told of what health checks and connections observe; None: workers stay as they are.
        settings: limits.
        checks: how workers are checked; of no use without `health`.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        health: HealthTable | None,
        settings: GatewaySettings,
        checks: CheckSettings,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = GatewayContext(
            dispatcher, health, ConnectionPool(), settings, RequestIds().new, self._loop
        )
        self._clients = Clients()
        self._checks = None
        if health is not None:
            self._checks = HealthChecks(dispatcher.registry, health, checks)
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which is chosen by the system where `port` is 0."""
        self._server = await self._loop.create_server(
            lambda: ClientConnection(self._context, self._clients), host, port, backlog=BACKLOG
        )
        if self._checks is not None:
            self._checks.start()
        self._expire()
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self, grace_secs: float) -> bool:
        """Take no more connections, wait for the requests under way, then close.

        Returns False where some had to be cut off after `grace_secs`.
        """
        assert self._server is not None, "started before it is stopped"
        self._context.draining = True
        self._server.close()
        for client in list(self._clients.connections):
            client.close_if_idle()
        complete = await self._clients_gone(grace_secs)
        for client in list(self._clients.connections):
            client.abort()
        if self._checks is not None:
            await self._checks.stop()
        if self._sweep is not None:
            self._sweep.cancel()
        self._context.pool.close_idle(before=self._context.clock())
        await asyncio.sleep(0)  # lets the connections that were closed say so
        return complete

    async def _clients_gone(self, grace_secs: float) -> bool:
        """Whether all connections were closed in time; each closes after its last request."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_secs):
                await self._clients.empty.wait()
        return self._clients.empty.is_set()

    def _expire(self) -> None:
        """End requests whose time is up and close connections that were idle for long."""
        self._sweep = self._loop.call_later(SWEEP_SECS, self._expire)
        now = self._context.clock()
        self._context.pool.close_idle(before=now - IDLE_SECS)
        for client in list(self._clients.connections):
            client.notice_departure()
        for exchange in [e for e in self._context.exchanges if e.deadline <= now]:
            exchange.expire()
