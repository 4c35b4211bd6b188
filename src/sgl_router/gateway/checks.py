"""Active health checks: one task for each worker."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from sgl_router.core.health import HealthTable
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Role, Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.fetch import Fetcher

_log = logging.getLogger(__name__)

DOUBT_SECS = 0.1
"""Between checks of a worker of which the last observation was bad: one that is dead is to be out
within half a second, with three failures needed."""

CONFIRMED_FOR_SECS = 0.5
"""How long the last good check of a worker speaks for it, when readiness is asked for."""

CONFIRM_SECS = 0.5
"""For the checks that a question for readiness makes; with the time above, readiness is taken back
within a second, whether engines refuse connections or only do not answer any more."""

WAVES = (4, 16, 64, 256)
"""Workers asked then, one wave after the other: mostly the first one answers, and where many hang,
one that does not is among the later ones."""


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How workers are checked (defaults: sglang-router's, but for the start-up interval).

    Attributes:
        endpoint: path that tells an engine's health.
        interval_secs: between checks of a healthy worker.
        timeout_secs: for one check.
        recovery_interval_secs: between checks of a worker that is not up.
        startup_timeout_secs: after which a worker that has never been up is an error in the log.
        roles: of which there must be a worker each, or requests are not served.
    """

    endpoint: str = "/health"
    interval_secs: float = 60.0
    timeout_secs: float = 5.0
    recovery_interval_secs: float = 1.0
    startup_timeout_secs: float = 1800.0
    roles: frozenset[Role] = frozenset({"regular"})


class HealthChecks:
    """Asks each worker again and again, and tells the table what it answered.

    Attributes:
        table: what it tells.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        table: HealthTable,
        settings: CheckSettings,
        fetcher: Fetcher,
    ) -> None:
        self._registry = registry
        self.table = table
        self._settings = settings
        self._fetcher = fetcher
        self._doubts: dict[Worker, asyncio.Event] = {}
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._confirmed_at: dict[Role, float] = {}
        self._confirming: dict[Role, asyncio.Task[bool]] = {}

    def start(self) -> None:
        self.table.on_change = self.suspect
        self._registry.on_add.append(self._add)
        self._registry.on_remove.append(self._remove)
        for worker in self._registry:
            self._add(worker)

    async def stop(self) -> None:
        tasks = [*self._tasks.values(), *self._confirming.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def suspect(self, worker: Worker) -> None:
        """Check the worker at once: something speaks for a change."""
        doubt = self._doubts.get(worker)
        if doubt is not None:
            doubt.set()

    async def confirm(self) -> bool:
        """Whether of each role that is needed an available worker answered a check a moment ago,
        or does now.

        True too where there are more workers than can be asked in the time.
        """
        roles = self._settings.roles
        if not roles <= self._registry.available_roles:
            return False
        return all(await asyncio.gather(*map(self._confirm, roles)))

    async def _confirm(self, role: Role) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() - self._confirmed_at.get(role, float("-inf")) < CONFIRMED_FOR_SECS:
            return True
        # All who ask at a time share one round of checks: anybody may ask.
        asking = self._confirming.get(role)
        if asking is None:
            asking = self._confirming[role] = asyncio.create_task(self._ask(role))
            asking.add_done_callback(lambda _: self._confirming.pop(role))
        return await asyncio.shield(asking)

    async def _ask(self, role: Role) -> bool:
        loop = asyncio.get_running_loop()
        workers = [w for w in self._registry if w.available and w.role == role]
        waiting, checks = workers, set[asyncio.Task[bool]]()
        try:
            for size in WAVES:
                wave, waiting = waiting[:size], waiting[size:]
                checks |= {asyncio.create_task(self._check(worker)) for worker in wave}
                until = loop.time() + CONFIRM_SECS / len(WAVES)
                while checks and (left := until - loop.time()) > 0:
                    done, checks = await asyncio.wait(
                        checks, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    if any(check.result() for check in done):
                        return True
        finally:
            for check in checks:
                check.cancel()
        for worker in workers:
            self.suspect(worker)
        return bool(waiting)

    def _add(self, worker: Worker) -> None:
        self._doubts[worker] = asyncio.Event()
        self._tasks[worker] = asyncio.create_task(self._watch(worker))

    def _remove(self, worker: Worker) -> None:
        self._doubts.pop(worker, None)
        task = self._tasks.pop(worker, None)
        if task is not None:
            task.cancel()

    async def _watch(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        doubt = self._doubts[worker]
        has_been_up = False
        late_at = loop.time() + self._settings.startup_timeout_secs
        while True:
            await self._check(worker)
            doubt.clear()
            has_been_up = has_been_up or worker.healthy
            if not has_been_up and loop.time() >= late_at:
                late_at = float("inf")
                _log.error("%r has not come up (option --worker-startup-timeout-secs)", worker)
            # Requests may find out in between that a worker is down: it is then asked at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause(worker)):
                    await doubt.wait()
                    await asyncio.sleep(0)  # several may doubt it at once

    def _pause(self, worker: Worker) -> float:
        settings = self._settings
        if worker.streak and worker.health is not Health.UNKNOWN:
            return min(DOUBT_SECS, settings.interval_secs)  # one more like it may change its state
        if worker.healthy:
            return settings.interval_secs
        return min(settings.interval_secs, settings.recovery_interval_secs)

    async def _check(self, worker: Worker) -> bool:
        """Whether the worker answered well."""
        path = self._settings.endpoint
        try:
            status, _ = await self._fetcher.fetch(worker, path, self._settings.timeout_secs)
            ok, why = 200 <= status < 300, f"GET {path} answered {status}"
        except EngineError as error:
            if error.local:
                _log.warning("%s", error)
                return False
            ok, why = False, str(error)
        if self.table.observe(worker, ok):
            _log.log(logging.INFO if ok else logging.WARNING, "%r: %s", worker, why)
        if not ok:
            self.suspect(worker)
        elif worker.available:
            self._confirmed_at[worker.role] = asyncio.get_running_loop().time()
        return ok
