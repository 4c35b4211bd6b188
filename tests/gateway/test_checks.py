"""Checks of workers: what counts as an answer, and who is looked at again."""

from collections import Counter

import pytest

from sgl_router.core.health import HealthTable, HealthThresholds
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.gateway import checks
from sgl_router.gateway.checks import CheckSettings, HealthChecks
from sgl_router.gateway.fetch import Fetcher
from tests.gateway.pairs import BODY, ENGINES, Silent, pairs
from tests.gateway.support import (
    EngineSocket,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
)


@pytest.mark.parametrize("status", [301, 404, 429, 500])
async def test_only_a_good_answer_is_one(status: int) -> None:
    async with (
        ScriptedEngine(answering(respond(status=status))) as engine,
        running(
            engine.url, disable_health_check=False, worker_startup_check_interval=0.001
        ) as server,
    ):
        await until(lambda: {worker.health for worker in server.registry} == {Health.DOWN})


async def test_one_that_hangs_when_readiness_is_asked_for_is_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The question does not wait for it; its checks go on until they say what has become of it."""
    hangs = False

    async def script(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            if hangs:
                await socket.reader.read()
                return
            await socket.send(respond())

    async with (
        ScriptedEngine(script) as engine,
        running(
            engine.url,
            disable_health_check=False,
            health_check_interval_secs=3600,
            health_check_timeout_secs=0.3,
        ) as server,
        connected(server) as client,
    ):
        await until(lambda: all(worker.healthy for worker in server.registry))
        monkeypatch.setattr(checks, "CONFIRMED_FOR_SECS", 0)
        monkeypatch.setattr(checks, "CONFIRM_SECS", 0.01)
        hangs = True
        assert (await client.ask(b"GET", b"/readiness")).status == 503
        await until(lambda: {worker.health for worker in server.registry} == {Health.DOWN})


class Answers(Fetcher):
    """Every worker answers a check with the status that it is set to.

    Attributes:
        asked: how often they were.
    """

    def __init__(self, *statuses: int) -> None:
        super().__init__()
        self.asked = 0
        self.statuses = list(statuses)

    async def fetch(self, *_: object, **__: object) -> tuple[int, bytes]:
        self.asked += 1
        return (self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]), b""


@pytest.mark.parametrize(("again", "asked"), [((200,), 2), ((200, 500, 200), 4)])
async def test_one_that_is_well_again_is_not_left_out_for_another_interval(
    again: tuple[int, ...], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good check makes the next one come soon, as a bad one does."""
    monkeypatch.setattr(checks, "DOUBT_SECS", 0.001)
    registry, answers = WorkerRegistry(), Answers(500)
    worker = Worker("http://127.0.0.1:1", Health.UP)
    registry.add(worker)
    settings = CheckSettings(interval_secs=3600, recovery_interval_secs=3600)
    health = HealthChecks(registry, HealthTable(registry, HealthThresholds()), settings, answers)
    health.start()
    try:
        await until(lambda: worker.health is Health.DOWN)
        answers.statuses, answers.asked = list(again), 0
        health.suspect(worker)
        if len(again) > 1:
            await until(lambda: answers.asked == 2)
            assert (worker.health, worker.streak) == (Health.DOWN, 0), "it is as down as before"
            health.suspect(worker)
        await until(lambda: worker.healthy)
        assert answers.asked == asked
    finally:
        await health.stop()


@ENGINES
async def test_a_prefill_engine_that_closes_on_a_request_is_looked_at(pd_engine: str) -> None:
    asked: Counter[str] = Counter()

    async def closes(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            asked[request.head.path] += 1
            if request.head.path != "/health":
                return
            await socket.send(respond())

    silent = Silent()

    async def decode(socket: EngineSocket) -> None:
        request = await socket.request()
        if request is not None and request.head.path == "/health":
            await socket.send(respond())
        else:
            await silent(socket)

    async with pairs(
        [closes],
        [decode],
        pd_engine=pd_engine,
        disable_health_check=False,
        health_check_interval_secs=3600,
    ) as (server, client):
        await until(lambda: all(worker.healthy for worker in server.registry))
        assert asked == {"/health": 1}
        answer = await client.post(b"/generate", BODY)
        assert (answer.status, answer.error_code) == (502, "call_upstream_connect_error")
        await until(lambda: asked == {"/health": 2, "/generate": 1}, lambda: asked)
