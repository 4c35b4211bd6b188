"""Which workers are asked for their engines' metrics, when, and what becomes of the answers.

Time is made up: an hour of it goes by as soon as everybody waits for it.
"""

import asyncio
import logging
import selectors
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.engine_metrics import (
    AT_ONCE,
    FAILING_AT_ONCE,
    RARELY_SECS,
    EngineMetricsPoller,
)
from sgl_router.gateway.fetch import Fetcher

PAGE = b"vllm:num_requests_waiting 3\nvllm:num_requests_running 12\nvllm:kv_cache_usage_perc 0.25\n"
NOW_MS = 1_700_000_000_000

Answer = Callable[[Worker], Awaitable[tuple[int, bytes]]]


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: the clock jumps to where the wait would have ended."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits, and nothing will ever happen"
            self.now += max(timeout, 0)
        return ready


class MadeUpTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def in_made_up_time(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=MadeUpTime) as runner:
        runner.run(main)


async def publishes(_worker: Worker) -> tuple[int, bytes]:
    await asyncio.sleep(0.003)
    return 200, PAGE


async def hangs(_worker: Worker) -> tuple[int, bytes]:
    await asyncio.sleep(2.0)
    raise EngineError("no answer within 2 s")


class Engines(Fetcher):
    """Answers for all engines, and remembers when which was asked."""

    def __init__(self, answer: Answer = publishes) -> None:
        super().__init__()
        self.answer = answer
        self.asked: defaultdict[Worker, list[float]] = defaultdict(list)
        self.calls: list[tuple[str, float]] = []
        self.busy: Counter[Worker] = Counter()
        self.most_at_once = 0

    async def fetch(
        self,
        worker: Worker,
        path: str,
        timeout_secs: float,
        headers: bytes = b"",
        *,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> tuple[int, bytes]:
        self.asked[worker].append(asyncio.get_running_loop().time())
        self.calls.append((path, timeout_secs))
        self.busy[worker] += 1
        assert self.busy[worker] == 1, "one question to a worker at a time"
        self.most_at_once = max(self.most_at_once, self.busy.total())
        try:
            return await self.answer(worker)
        finally:
            self.busy[worker] -= 1

    def times(self, worker: Worker, since: float = 0.0) -> int:
        return sum(at >= since for at in self.asked[worker])


class Bench:
    """A poller over some workers that are up."""

    def __init__(
        self, workers: int = 1, answer: Answer = publishes, *, interval_secs: float = 1.0
    ) -> None:
        self.registry = WorkerRegistry()
        self.workers = [Worker(f"http://engine-{i}", Health.UP) for i in range(workers)]
        for worker in self.workers:
            self.registry.add(worker)
        self.engines = Engines(answer)
        self.needed = True
        self.poller = EngineMetricsPoller(
            self.registry,
            self.engines,
            needed=lambda: self.needed,
            interval_secs=interval_secs,
            now_ms=lambda: NOW_MS,
        )

    @property
    def metrics(self) -> list[EngineMetrics | None]:
        return [worker.metrics for worker in self.workers]

    async def __aenter__(self) -> "Bench":
        self.poller.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.poller.stop()


def test_what_an_engine_says_is_kept() -> None:
    async def main() -> None:
        async with Bench() as bench:
            await asyncio.sleep(1.5)
            assert bench.workers[0].metrics == EngineMetrics(3, 12, 0.25, NOW_MS)
            assert set(bench.engines.calls) == {("/metrics", 2.0)}

    in_made_up_time(main())


def test_tokens_count_as_reported_once_they_were_sent_before_the_question() -> None:
    async def main() -> None:
        async def meanwhile(worker: Worker) -> tuple[int, bytes]:
            worker.unreported_tokens += 7
            return 200, PAGE

        async with Bench(answer=meanwhile) as bench:
            (worker,) = bench.workers
            worker.unreported_tokens = 100
            await asyncio.sleep(1.5)
            assert worker.unreported_tokens == 7, "sent after the question"
            await asyncio.sleep(1)
            assert worker.unreported_tokens == 7, "those are reported; others are not"

    in_made_up_time(main())


@pytest.mark.parametrize("interval_secs", [0.25, 1.0, 7.0])
def test_each_worker_is_asked_once_an_interval_and_not_all_at_once(interval_secs: float) -> None:
    async def main() -> None:
        async with Bench(workers=100, interval_secs=interval_secs) as bench:
            await asyncio.sleep(20 * interval_secs)
            asked = bench.engines.asked
            assert {len(asked[worker]) for worker in bench.workers} <= {19, 20}
            moments = Counter(at for times in asked.values() for at in times)
            assert max(moments.values()) <= 5, "spread over the interval"

    in_made_up_time(main())


def test_nobody_is_asked_while_nobody_needs_it() -> None:
    async def main() -> None:
        async with Bench(workers=10) as bench:
            bench.needed = False
            await asyncio.sleep(100)
            assert not bench.engines.asked
            bench.needed = True
            await asyncio.sleep(10)
            assert {bench.engines.times(worker) for worker in bench.workers} <= {9, 10, 11}, (
                "and what was left out is not made up for"
            )

    in_made_up_time(main())


def test_only_workers_that_are_up_are_asked() -> None:
    async def main() -> None:
        async with Bench(workers=4) as bench:
            for worker, health in zip(bench.workers, Health, strict=True):
                bench.registry.set_health(worker, health)
            await asyncio.sleep(5)
            assert {worker.health for worker in bench.engines.asked} == {Health.UP}
            down = next(worker for worker in bench.workers if worker.health is Health.DOWN)
            bench.registry.set_health(down, Health.UP)
            await asyncio.sleep(2)
            assert down.metrics is not None

    in_made_up_time(main())


def test_workers_come_and_go() -> None:
    async def main() -> None:
        async with Bench(workers=1, answer=hangs) as bench:
            (gone,) = bench.workers
            await asyncio.sleep(0.9)
            assert bench.engines.busy[gone]
            bench.registry.remove(gone)
            await asyncio.sleep(0)
            assert not bench.engines.busy[gone], "it is not asked any more"
            bench.engines.answer = publishes
            added = Worker("http://another", Health.UP)
            bench.registry.add(added)
            await asyncio.sleep(5)
            assert added.metrics is not None
            assert bench.engines.times(gone) == 1

    in_made_up_time(main())


@pytest.mark.parametrize("status", [500, 503, 302, None])
def test_a_failed_poll_leaves_what_was_known(status: int | None) -> None:
    async def main() -> None:
        async def fails(_worker: Worker) -> tuple[int, bytes]:
            if status is None:
                raise EngineError("refused")
            return status, b"vllm:num_requests_waiting 9\nvllm:num_requests_running 9\n"

        async with Bench() as bench:
            (worker,) = bench.workers
            await asyncio.sleep(1.5)
            known = worker.metrics
            assert known is not None
            worker.unreported_tokens = 50
            bench.engines.answer = fails
            await asyncio.sleep(10)
            assert worker.metrics is known
            assert worker.unreported_tokens == 50
            assert bench.engines.times(worker) >= 10, "it is asked as often as before"
            bench.engines.answer = publishes
            await asyncio.sleep(1.5)
            assert worker.metrics is not known
            assert worker.unreported_tokens == 0

    in_made_up_time(main())


@pytest.mark.parametrize("answer", [(404, PAGE), (401, b""), (200, b"up 1\n"), (200, b"")])
def test_a_worker_that_says_nothing_is_asked_less_and_less(
    answer: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def says(_worker: Worker) -> tuple[int, bytes]:
            return answer

        async with Bench() as bench:
            (worker,) = bench.workers
            await asyncio.sleep(1.5)
            bench.engines.answer = says
            await asyncio.sleep(1)
            assert bench.metrics == [None]
            at = bench.engines.asked[worker]
            del at[:-1]
            await asyncio.sleep(200)
            pauses = [round(later - earlier) for earlier, later in pairwise(at)]
            assert pauses[:7] == [1, 2, 4, 8, 16, RARELY_SECS, RARELY_SECS]
            assert len(caplog.records) == 1, "said once"
            bench.engines.answer = publishes
            await asyncio.sleep(RARELY_SECS)
            assert bench.metrics == [EngineMetrics(3, 12, 0.25, NOW_MS)]
            asked = len(at)
            await asyncio.sleep(10)
            assert len(at) - asked in (10, 11), "as often as before"
            bench.engines.answer = says
            del at[:-1]
            await asyncio.sleep(20)
            pauses = [round(later - earlier) for earlier, later in pairwise(at)]
            assert pauses[:5] == [1, 1, 2, 4, 8], "from the beginning again"
            assert len(caplog.records) == 2

    with caplog.at_level(logging.WARNING):
        in_made_up_time(main())


def test_an_interval_longer_than_rarely_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def says_nothing(_worker: Worker) -> tuple[int, bytes]:
            return 404, b""

        async with Bench(answer=says_nothing, interval_secs=3 * RARELY_SECS) as bench:
            await asyncio.sleep(30 * RARELY_SECS)
            assert bench.engines.times(bench.workers[0]) in (9, 10)
            assert len(caplog.records) == 1

    with caplog.at_level(logging.WARNING):
        in_made_up_time(main())


def test_the_number_of_questions_at_a_time_is_bounded() -> None:
    async def main() -> None:
        async def slow(_worker: Worker) -> tuple[int, bytes]:
            await asyncio.sleep(60)
            return 200, PAGE

        async with Bench(workers=300, answer=slow) as bench:
            await asyncio.sleep(50)
            assert bench.engines.most_at_once == AT_ONCE

    in_made_up_time(main())


def test_engines_that_do_not_answer_do_not_delay_the_others() -> None:
    async def main() -> None:
        async def some_hang(worker: Worker) -> tuple[int, bytes]:
            return await (hangs if worker in hanging else publishes)(worker)

        async with Bench(workers=400, answer=some_hang) as bench:
            hanging, well = set(bench.workers[:200]), bench.workers[200:]
            await asyncio.sleep(30)  # each of them has failed once
            bench.engines.most_at_once = 0
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(20)
            assert {bench.engines.times(worker, began) for worker in well} <= {19, 20, 21}
            asked = sum(bench.engines.times(worker, began) for worker in hanging)
            assert FAILING_AT_ONCE * 9 <= asked <= FAILING_AT_ONCE * 11, "in places of their own"

    in_made_up_time(main())


def test_an_engine_that_answers_again_has_its_place_among_the_others() -> None:
    async def main() -> None:
        async def takes_long(_worker: Worker) -> tuple[int, bytes]:
            await asyncio.sleep(0.5)
            return 200, PAGE

        async with Bench(workers=60, answer=hangs) as bench:
            await asyncio.sleep(10)
            bench.engines.answer = takes_long
            await asyncio.sleep(10)
            bench.engines.asked.clear()
            await asyncio.sleep(10)
            # More a second than would fit into the places of those that fail.
            assert {bench.engines.times(worker) for worker in bench.workers} <= {9, 10, 11}

    in_made_up_time(main())


def test_stopping_ends_what_is_under_way() -> None:
    async def main() -> None:
        async with Bench(workers=10, answer=hangs) as bench:
            await asyncio.sleep(0.9)
            assert bench.engines.busy.total() > 0
        assert bench.engines.busy.total() == 0
        assert bench.registry.on_add == bench.registry.on_remove == []
        asked = len(bench.engines.calls)
        await asyncio.sleep(5)
        assert len(bench.engines.calls) == asked
        await bench.poller.stop()  # once more does no harm

    in_made_up_time(main())


def test_a_bug_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def breaks(_worker: Worker) -> tuple[int, bytes]:
            raise RuntimeError("a bug")

        async with Bench(answer=breaks) as bench:
            await asyncio.sleep(2.5)
            assert {record.name for record in caplog.records} == {EngineMetricsPoller.__module__}
            assert "a bug" in caplog.text
            bench.engines.answer = publishes
            await asyncio.sleep(1.5)
            assert bench.workers[0].metrics is not None

    in_made_up_time(main())
