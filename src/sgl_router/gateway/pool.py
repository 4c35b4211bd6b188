"""Connections to workers that are kept for the next request."""

import asyncio
import ssl
from collections.abc import Callable
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM

from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.connection import Outbox
from sgl_router.gateway.upstream import EngineConnection

IDLE_SECS = 4.0
"""Shorter than the 5 s after which uvicorn, under SGLang and vLLM, closes an idle connection."""

LOCAL_ERRORS = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""What connecting fails with where it is this machine that has nothing left."""


class ConnectionPool:
    """Keep-alive connections, the most recently used one first.

    The number of connections is not bounded here: each carries one request in flight.

    Args:
        outbox: of the connections that are made.
        connect_timeout: seconds for a connection to be made; a host that is gone must not hold a
            request for longer.
        tls: for workers with an https URL.

    Attributes:
        on_idle_lost: told of a worker that has closed a connection that nobody used: it may have
            gone.
    """

    def __init__(
        self,
        outbox: Outbox,
        connect_timeout: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._outbox = outbox
        self._connect_timeout = connect_timeout
        self._tls = tls
        self.on_idle_lost: Callable[[Worker], None] | None = None
        self._idle: dict[Worker, list[EngineConnection]] = {}

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        return sum(map(len, self._idle.values()))

    def take(self, worker: Worker) -> EngineConnection | None:
        """An idle connection to the worker, or None where one must be dialled."""
        idle = self._idle.get(worker)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
            connection.abort()
        return None

    def put(self, connection: EngineConnection, now: float) -> None:
        """Keep a connection whose exchange has ended cleanly."""
        connection.end(now)
        self._idle.setdefault(connection.worker, []).append(connection)

    async def dial(self, worker: Worker) -> EngineConnection:
        """Raises EngineError where the worker cannot be reached."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self._outbox, worker, self._on_lost),
                    worker.host,
                    worker.port,
                    ssl=self._tls if worker.tls else None,
                )
        except TimeoutError as error:
            raise EngineError(
                f"no connection to {worker.url} in {self._connect_timeout:g} s "
                "(option --connect-timeout-secs)"
            ) from error
        except OSError as error:  # among them ssl.SSLError
            raise EngineError(
                f"no connection to {worker.url}: {error}", local=error.errno in LOCAL_ERRORS
            ) from error
        return connection

    def close_idle(self, before: float) -> None:
        """Close connections that have been idle since `before` or longer."""
        for idle in self._idle.values():
            stale = 0  # the list is in the order of idle_since
            while stale < len(idle) and idle[stale].idle_since <= before:
                stale += 1
            for connection in idle[:stale]:
                connection.abort()
            del idle[:stale]

    def forget(self, worker: Worker) -> None:
        """The worker is no more: close what is kept for it."""
        for connection in self._idle.pop(worker, ()):
            connection.abort()

    def _on_lost(self, connection: EngineConnection) -> None:
        idle = self._idle.get(connection.worker, [])
        if connection in idle:
            idle.remove(connection)
            if self.on_idle_lost is not None:
                self.on_idle_lost(connection.worker)
