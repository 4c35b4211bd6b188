"""Connections to workers that are kept for the next request."""

import asyncio
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM

from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.upstream import EngineConnection

IDLE_SECS = 4.0
"""Shorter than the 5 s after which uvicorn, under SGLang and vLLM, closes an idle connection."""

LOCAL_ERRORS = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""What connecting fails with where it is this machine that has nothing left."""

CONNECT_SECS = 5.0
"""For a connection to be accepted; a host that is gone must not hold a request for longer."""


class ConnectionPool:
    """Keep-alive connections, the most recently used one first.

    The number of connections is not bounded here: each carries one request in flight.
    """

    def __init__(self) -> None:
        self._idle: dict[Worker, list[EngineConnection]] = {}

    def take(self, worker: Worker) -> EngineConnection | None:
        """An idle connection to the worker, or None where one must be dialled."""
        idle = self._idle.get(worker)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    def put(self, connection: EngineConnection, now: float) -> None:
        """Keep a connection whose exchange has ended cleanly."""
        connection.end(now)
        self._idle.setdefault(connection.worker, []).append(connection)

    async def dial(self, worker: Worker) -> EngineConnection:
        """Raises EngineError where the worker cannot be reached."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECS):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(worker, self._forget), worker.host, worker.port
                )
        except TimeoutError as error:
            raise EngineError(f"no connection to {worker.url} in {CONNECT_SECS:g} s") from error
        except OSError as error:
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

    def _forget(self, connection: EngineConnection) -> None:
        idle = self._idle.get(connection.worker, [])
        if connection in idle:
            idle.remove(connection)
