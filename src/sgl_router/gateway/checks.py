"""Active health checks: one task for each worker."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sgl_router.core.health import HealthTable
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.fetch import fetch

_log = logging.getLogger(__name__)

RECOVERY_SECS = 1.0
"""Between checks of a worker that is not up: a check costs little, waiting for one a lot."""


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How workers are checked (defaults: sglang-router's)."""

    endpoint: str = "/health"
    interval_secs: float = 60.0
    timeout_secs: float = 5.0


class HealthChecks:
    """Asks each worker again and again, and tells the table what it answered.

    Args:
        sleep: how to wait between checks; `asyncio.sleep` but in tests.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        table: HealthTable,
        settings: CheckSettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._registry = registry
        self._table = table
        self._settings = settings
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(worker)) for worker in self._registry]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _watch(self, worker: Worker) -> None:
        while True:
            await self._check(worker)
            interval = self._settings.interval_secs
            await self._sleep(interval if worker.healthy else min(interval, RECOVERY_SECS))

    async def _check(self, worker: Worker) -> None:
        path = self._settings.endpoint
        try:
            status, _ = await fetch(worker, path, self._settings.timeout_secs)
            ok, why = 200 <= status < 300, f"GET {path} answered {status}"
        except EngineError as error:
            ok, why = False, str(error)
        if self._table.observe(worker, ok):
            _log.log(logging.INFO if ok else logging.WARNING, "%r: %s", worker, why)
