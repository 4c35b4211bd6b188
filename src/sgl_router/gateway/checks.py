"""Active health checks: one task for each worker."""

import asyncio
import logging
from contextlib import suppress
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
    """Asks each worker again and again, and tells the table what it answered."""

    def __init__(
        self, registry: WorkerRegistry, table: HealthTable, settings: CheckSettings
    ) -> None:
        self._table = table
        self._settings = settings
        self._changed = {worker: asyncio.Event() for worker in registry}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._table.on_change = lambda worker: self._changed[worker].set()
        self._tasks = [asyncio.create_task(self._watch(worker)) for worker in self._changed]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _watch(self, worker: Worker) -> None:
        changed = self._changed[worker]
        while True:
            await self._check(worker)
            changed.clear()
            interval = self._settings.interval_secs
            if not worker.healthy:
                interval = min(interval, RECOVERY_SECS)
            # Requests may find out in between that a worker is down: it is then asked at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await changed.wait()

    async def _check(self, worker: Worker) -> None:
        path = self._settings.endpoint
        try:
            status, _ = await fetch(worker, path, self._settings.timeout_secs)
            ok, why = 200 <= status < 300, f"GET {path} answered {status}"
        except EngineError as error:
            if error.local:
                _log.warning("%s", error)
                return
            ok, why = False, str(error)
        if self._table.observe(worker, ok):
            _log.log(logging.INFO if ok else logging.WARNING, "%r: %s", worker, why)
