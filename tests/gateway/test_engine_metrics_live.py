"""Engines' metrics over sockets: of engines that misbehave, and of a real one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.gateway.engine_metrics import EngineMetricsPoller
from sgl_router.gateway.fetch import MAX_ANSWER_BYTES, Fetcher
from tests.conftest import leave_out
from tests.engines.llama import LlamaServer, server_folder, write_model
from tests.gateway.support import (
    EngineSocket,
    Request,
    ScriptedEngine,
    connected,
    respond,
    running,
    within,
)

INTERVAL_SECS = 0.02


class Overheard(Fetcher):
    """Asks engines, and tells when each has answered."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: asyncio.Queue[None] = asyncio.Queue()

    async def fetch(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        try:
            return await super().fetch(*args, **options)
        finally:
            self._answers.put_nowait(None)

    async def answered(self) -> None:
        """The poller has read one more answer."""
        await self._answers.get()
        await asyncio.sleep(0)


class Polled:
    """A worker that is asked all the time."""

    def __init__(self, url: str) -> None:
        self._registry, self._fetcher = WorkerRegistry(), Overheard()
        self._worker = Worker(url, Health.UP, api_key="key-of-the-engine")
        self._registry.add(self._worker)
        self._poller = EngineMetricsPoller(
            self._registry, self._fetcher, needed=lambda: True, interval_secs=INTERVAL_SECS
        )

    async def __aenter__(self) -> "Polled":
        self._poller.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._poller.stop()

    async def next_counts(self) -> tuple[int, int] | None:
        """Queued and running requests after one more answer."""
        await within(self._fetcher.answered())
        metrics = self._worker.metrics
        return None if metrics is None else (metrics.queued, metrics.running)

    async def until(self, holds: Callable[[tuple[int, int] | None], bool]) -> None:
        async def wait() -> None:
            while not holds(await self.next_counts()):
                pass

        await within(wait())


@asynccontextmanager
async def answering_in_turn(*responses: bytes) -> AsyncIterator[tuple[str, list[Request]]]:
    """An engine that gives each of these answers once, and the last one from then on."""
    left, seen = list(responses), list[Request]()

    async def script(socket: EngineSocket) -> None:
        request = await socket.request()
        if request is not None:
            seen.append(request)
            await socket.send(left.pop(0) if len(left) > 1 else left[0])

    async with ScriptedEngine(script) as engine:
        yield engine.url, seen


def page(queued: int, running: int, filler: int = 0) -> bytes:
    counts = b"sglang:num_queue_reqs %d\nsglang:num_running_reqs %d\n" % (queued, running)
    return respond(counts + b"#" * filler)


async def test_pages_without_end_and_nonsense_are_failed_polls() -> None:
    endless = page(8, 8, filler=2 * MAX_ANSWER_BYTES)
    nonsense = b"220 mail.example ESMTP\r\n"
    async with (
        answering_in_turn(page(3, 12), endless, nonsense, b"", page(1, 2)) as (url, seen),
        Polled(f"{url}/prefix") as polled,
    ):
        counts = [await polled.next_counts() for _ in range(6)]
    assert counts == [*[(3, 12)] * 4, *[(1, 2)] * 2]
    assert {request.head.target for request in seen} == {b"/prefix/metrics"}
    assert {request.head.get(b"authorization") for request in seen} == {b"Bearer key-of-the-engine"}


@pytest.mark.parametrize(("policy", "polled"), [("least_load", True), ("round_robin", False)])
async def test_a_router_reads_them_for_policies_that_use_them(policy: str, polled: bool) -> None:
    asked = asyncio.Queue[bytes]()

    async def script(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            asked.put_nowait(request.head.target)
            await socket.send(page(7, 5) if request.head.target == b"/stats" else respond())

    async with (
        ScriptedEngine(script) as engine,
        running(
            engine.url,
            policy=policy,
            engine_metrics_interval_secs=INTERVAL_SECS,
            engine_metrics_endpoint="/stats",
        ) as server,
        connected(server) as client,
    ):
        for _ in range(2 if polled else 0):
            assert (
                await within(asked.get()) == b"/stats"
            )  # the second comes after the first is read
        assert (await client.post()).status == 200
        shown = (await client.ask(b"GET", b"/metrics")).body.decode()
    line = f'sgl_router_worker_engine_queued_requests{{worker="{engine.url}"}} 7.0'
    assert (line in shown.splitlines()) == polled
    assert f'sgl_router_worker_healthy{{worker="{engine.url}"}} 1.0' in shown.splitlines()
    assert f'sgl_router_decision_seconds_count{{policy="{policy}"}} 1.0' in shown.splitlines()


@pytest.fixture
def llama_with_metrics(tmp_path: Path) -> Iterator[LlamaServer]:
    """A llama.cpp server that works on one request at a time, and tells how many wait."""
    try:
        server_folder()
    except ImportError:
        leave_out("llama.cpp is not installed (pip install -e '.[test,engine]')")
    write_model(tmp_path / "tiny.gguf")
    log = tmp_path / "llama.log"
    with LlamaServer(tmp_path / "tiny.gguf", log, slots=1, flags=["--metrics"]) as engine:
        yield engine


async def test_llama_tells_what_waits_and_what_runs(llama_with_metrics: LlamaServer) -> None:
    engine = llama_with_metrics
    body = b'{"prompt": "once", "max_tokens": 1500}'
    request = b"POST /v1/completions HTTP/1.1\r\nHost: llama\r\nContent-Length: %d\r\n\r\n%b"
    async with Polled(engine.url) as polled:
        await polled.until(lambda counts: counts == (0, 0))
        writers = []
        for _ in range(4):
            _, writer = await asyncio.open_connection("127.0.0.1", engine.port)
            writer.write(request % (len(body), body))
            writers.append(writer)
        await polled.until(lambda counts: counts is not None and counts[0] > 0 and counts[1] == 1)
        for writer in writers:
            writer.transport.abort()  # its cue to stop
        await polled.until(lambda counts: counts == (0, 0))
