"""Asks engines what they say of themselves, for policies that go by it.

Each worker has its own moment within the interval, so that a thousand of them are not asked at
once, and engines that do not answer have places of their own, so that they do not take those of
the others.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sgl_router.core.engine_metrics import parse_engine_metrics
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.fetch import Fetcher

_log = logging.getLogger(__name__)

AT_ONCE = 48
"""Workers asked at a time."""

FAILING_AT_ONCE = 16
"""Besides them, of those that the last time did not answer as they should."""

TIMEOUT_SECS = 2.0
"""For an answer."""

RARELY_SECS = 30.0
"""Between questions to a worker that has nothing to say, once it has been asked a few times."""

_TICKS = 100
"""Looks at who is due, in an interval: of a thousand workers, ten are asked at a time."""

_IDLE_SECS = 1.0
"""Between looks at whether anybody needs it."""

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, lie evenly in an interval, however many there are (Weyl)."""


@dataclass(slots=True)
class _Poll:
    """Attributes:
    due: when to ask next, by the event loop's clock.
    every: intervals between two questions.
    task: asks just now.
    failing: whether the last question got no answer.
    silent: whether the last answer told nothing.
    """

    due: float
    every: int = 1
    task: asyncio.Task[None] | None = None
    failing: bool = False
    silent: bool = False


class EngineMetricsPoller:
    """Keeps `Worker.metrics` of the workers that are up, while they are needed.

    Args:
        registry: the workers.
        fetcher: asks them.
        needed: whether a policy in use goes by engines' metrics.
        interval_secs: between two questions to a worker.
        endpoint: the path at which engines tell.
        now_ms: Unix time in milliseconds.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        fetcher: Fetcher,
        *,
        needed: Callable[[], bool],
        interval_secs: float = 1.0,
        endpoint: str = "/metrics",
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._registry = registry
        self._fetcher = fetcher
        self._needed = needed
        self._interval_secs = interval_secs
        self._endpoint = endpoint
        self._now_ms = now_ms
        self._polls: dict[Worker, _Poll] = {}
        self._added = 0
        self._places = {
            False: asyncio.Semaphore(AT_ONCE),
            True: asyncio.Semaphore(FAILING_AT_ONCE),
        }
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; workers may come and go from then on."""
        self._registry.on_add.append(self._add)
        self._registry.on_remove.append(self._remove)
        for worker in self._registry:
            self._add(worker)
        self._ticking = asyncio.create_task(self._tick())
        self._ticking.add_done_callback(_report)

    async def stop(self) -> None:
        """End, and whatever is being asked with it."""
        if self._ticking is None:
            return
        self._registry.on_add.remove(self._add)
        self._registry.on_remove.remove(self._remove)
        tasks = [self._ticking, *(poll.task for poll in self._polls.values() if poll.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ticking = None
        self._polls.clear()

    def _add(self, worker: Worker) -> None:
        self._added += 1
        offset = self._added * _GOLDEN % 1 * self._interval_secs
        self._polls[worker] = _Poll(asyncio.get_running_loop().time() + offset)

    def _remove(self, worker: Worker) -> None:
        poll = self._polls.pop(worker, None)
        if poll is not None and poll.task is not None:
            poll.task.cancel()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            needed = self._needed()
            if needed:
                self._ask_due(loop.time())
            interval = self._interval_secs
            await asyncio.sleep(interval / _TICKS if needed else min(interval, _IDLE_SECS))

    def _ask_due(self, now: float) -> None:
        interval = self._interval_secs
        for worker, poll in self._polls.items():
            if poll.due <= now and poll.task is None and worker.healthy:
                # Whole intervals later, so that it keeps its moment however late this one is.
                poll.due += max(poll.every, (now - poll.due) // interval + 1) * interval
                poll.task = asyncio.create_task(self._poll(worker, poll))
                poll.task.add_done_callback(_report)

    async def _poll(self, worker: Worker, poll: _Poll) -> None:
        try:
            async with self._places[poll.failing]:
                await self._ask(worker, poll)
        finally:
            poll.task = None

    async def _ask(self, worker: Worker, poll: _Poll) -> None:
        """Ask once; an answer that is none leaves what was known, which grows old."""
        sent_before = worker.unreported_tokens
        try:
            status, page = await self._fetcher.fetch(worker, self._endpoint, TIMEOUT_SECS)
            if status != 200 and not 400 <= status < 500:
                raise EngineError(f"{worker.url}{self._endpoint} answered {status}")
        except EngineError as error:
            if not poll.failing:
                _log.warning("no metrics of %r: %s", worker, error)
            poll.failing = True
            return
        poll.failing = False
        metrics = parse_engine_metrics(page, self._now_ms()) if status == 200 else None
        worker.metrics = metrics
        worker.touched()
        if metrics is None:
            self._ask_less(worker, poll, status)
            return
        # What was sent since the question may be on its way still, and in no report.
        worker.unreported_tokens -= sent_before
        poll.due -= (poll.every - 1) * self._interval_secs
        poll.every = 1
        poll.silent = False

    def _ask_less(self, worker: Worker, poll: _Poll, status: int) -> None:
        if not poll.silent:
            _log.warning(
                "%r: GET %s answered %d and tells no engine's queue; requests are placed by what "
                "this router knows (engines publish with --enable-metrics in SGLang, --metrics in "
                "llama.cpp; option --engine-metrics-endpoint)",
                worker,
                self._endpoint,
                status,
            )
        poll.silent = True
        poll.every = min(poll.every * 2, max(1, round(RARELY_SECS / self._interval_secs)))


def _report(task: asyncio.Task[None]) -> None:
    """Log a bug, which would be lost with its task."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _log.error("reading an engine's metrics failed", exc_info=error)
