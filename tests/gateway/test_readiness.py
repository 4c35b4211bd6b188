"""Readiness tells the truth about engines, also when nobody sends requests."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sgl_router.core.worker import Health, Role, Worker
from sgl_router.gateway import checks
from sgl_router.server import RouterServer
from tests.gateway.inside import context_of
from tests.gateway.support import (
    PATIENCE_SECS,
    EngineSocket,
    ScriptedEngine,
    connected,
    demo_engine,
    free_url,
    respond,
    running,
    settle,
    until,
    within,
)

SELDOM: dict[str, Any] = {
    "disable_health_check": False,
    "health_check_interval_secs": 3600,
    "worker_startup_check_interval": 0.01,
}
"""Nothing here waits for the next regular check."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Each question for readiness has engines asked, which may take their time to answer."""
    monkeypatch.setattr(checks, "CONFIRMED_FOR_SECS", 0)
    monkeypatch.setattr(checks, "CONFIRM_SECS", PATIENCE_SECS)
    return monkeypatch


class Fleet:
    """Engines on one port, each under its own prefix, of which some hang and none may be there."""

    def __init__(self, count: int) -> None:
        self.hanging: set[int] = set()
        self.asked: list[int] = []
        self._count = count
        self._server = ScriptedEngine(self._script)

    async def __aenter__(self) -> "Fleet":
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    async def stop(self) -> None:
        await self._server.stop()

    @property
    def urls(self) -> Sequence[str]:
        return [f"{self._server.url}/{number}" for number in range(self._count)]

    async def _script(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            number = int(request.head.path.split("/")[1])
            self.asked.append(number)
            if number in self.hanging:
                await socket.reader.read()
                return
            await socket.send(respond(b"well"))


async def readiness(server: RouterServer) -> tuple[int, dict[str, Any]]:
    async with connected(server) as client:
        answer = await client.ask(b"GET", b"/readiness")
    return answer.status, orjson.loads(answer.body)


async def all_up(server: RouterServer) -> None:
    await until(lambda: all(worker.healthy for worker in server.registry))


def test_readiness_is_taken_back_within_a_second() -> None:
    """The sum of what an answer relies on, and of what it takes to find out."""
    assert checks.CONFIRMED_FOR_SECS + checks.CONFIRM_SECS <= 1.0


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize("hang", [True, False], ids=["hung", "refusing"])
async def test_every_engine_is_dead(count: int, hang: bool, patient: pytest.MonkeyPatch) -> None:
    """No request was sent, no connection is kept, and the next regular check is far away."""
    async with Fleet(count) as fleet, running(*fleet.urls, **SELDOM) as server:
        await all_up(server)
        ready = {"status": "ready", "healthy_workers": count, "total_workers": count}
        assert await readiness(server) == (200, ready)
        if hang:
            patient.setattr(checks, "CONFIRM_SECS", 0.1)
            fleet.hanging.update(range(count))
        else:
            await fleet.stop()
        not_ready = {"status": "not ready", "reason": "insufficient healthy workers"}
        assert await readiness(server) == (503, not_ready)


async def test_one_that_answers_among_many_that_hang_is_found(
    patient: pytest.MonkeyPatch,
) -> None:
    waves = (*checks.WAVES, *[1] * 200)  # of a tenth of a second
    patient.setattr(checks, "WAVES", waves)
    async with Fleet(100) as fleet, running(*fleet.urls, **SELDOM) as server:
        await all_up(server)
        fleet.hanging.update(range(80))
        assert (await readiness(server))[0] == 200


async def test_where_not_all_can_be_asked_some_may_be_well(patient: pytest.MonkeyPatch) -> None:
    patient.setattr(checks, "CONFIRM_SECS", 0.1)
    patient.setattr(checks, "WAVES", (1, 1))
    async with Fleet(3) as fleet, running(*fleet.urls, **SELDOM) as server:
        await all_up(server)
        fleet.asked.clear()
        fleet.hanging.update(range(3))
        assert (await readiness(server))[0] == 200
        assert sorted(fleet.asked[:2]) == [0, 1], "then those in doubt, by their own checks"
        fleet.hanging.clear()


async def test_a_recent_check_is_enough_for_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for readiness all the time does not have engines asked all the time."""
    monkeypatch.setattr(checks, "CONFIRMED_FOR_SECS", 3600)
    async with Fleet(3) as fleet, running(*fleet.urls, **SELDOM) as server:
        await all_up(server)
        fleet.asked.clear()
        assert {(await readiness(server))[0] for _ in range(5)} == {200}
        assert fleet.asked == []


@pytest.mark.parametrize("count", [1, 3])
async def test_a_kept_connection_that_is_closed_is_looked_into(count: int) -> None:
    """Nobody asks for anything: the engines' deaths are noticed all the same."""
    async with Fleet(count) as fleet, running(*fleet.urls, **SELDOM) as server:
        await all_up(server)
        for _ in range(count):
            async with connected(server) as client:
                assert (await client.post()).status == 200
        assert context_of(server).pool.idle == count
        await fleet.stop()
        await until(lambda: {worker.health for worker in server.registry} == {Health.DOWN})
        assert (await readiness(server))[0] == 503


async def test_one_refused_connection_is_looked_into() -> None:
    """The engine is asked at once and again, and has no more requests when it does not answer."""
    async with demo_engine() as engine, running(engine.url, **SELDOM) as server:
        await all_up(server)
        port = int(engine.url.rpartition(":")[2])
        engine.stop()
        async with connected(server) as client:
            assert (await client.post()).status == 502
            await until(lambda: {worker.health for worker in server.registry} == {Health.DOWN})
            assert (await client.post()).status == 503
            assert (await readiness(server))[0] == 503
            await engine.start(port)
            await all_up(server)
            assert (await client.post()).status == 200
            assert (await readiness(server))[0] == 200


@pytest.mark.usefixtures("patient")
async def test_one_that_is_back_is_enough() -> None:
    async with (
        demo_engine() as engine,
        running(free_url(), free_url(), engine.url, **SELDOM) as server,
    ):
        port = int(engine.url.rpartition(":")[2])
        await until(lambda: any(worker.healthy for worker in server.registry))
        assert (await readiness(server))[0] == 200
        engine.stop()
        assert (await readiness(server))[0] == 503
        await until(lambda: not any(worker.healthy for worker in server.registry))
        await engine.start(port)
        await until(lambda: any(worker.healthy for worker in server.registry))
        ready = {"status": "ready", "healthy_workers": 1, "total_workers": 3}
        assert await readiness(server) == (200, ready)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_disaggregated_pool_needs_both_halves(
    role: str, patient: pytest.MonkeyPatch
) -> None:
    async with (
        Fleet(2) as prefill,
        Fleet(2) as decode,
        running(
            pd_disaggregation=True,
            prefill=tuple(prefill.urls),
            decode=tuple(decode.urls),
            **SELDOM,
        ) as server,
    ):
        await all_up(server)
        assert (await readiness(server))[0] == 200
        patient.setattr(checks, "CONFIRM_SECS", 0.1)
        (prefill if role == "prefill" else decode).hanging.update((0, 1))
        assert (await readiness(server))[0] == 503


async def test_a_check_of_an_engine_that_gets_no_requests_speaks_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is well but is left alone by its breaker does not stand in for one that hangs."""
    monkeypatch.setattr(checks, "CONFIRMED_FOR_SECS", 3600)

    async def fails(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            checked = request.head.path == "/health"
            checks_seen.append(checked)
            await socket.send(respond(status=200 if checked else 500))

    checks_seen: list[bool] = []
    settings = {**SELDOM, "health_check_interval_secs": 0.01, "health_failure_threshold": 1000}
    async with (
        Fleet(1) as fleet,
        ScriptedEngine(fails) as failing,
        running(*fleet.urls, failing.url, cb_failure_threshold=1, **settings) as server,
        connected(server) as client,
    ):
        await all_up(server)
        while (await client.post()).status != 500:
            pass
        fleet.hanging.add(0)
        monkeypatch.setattr(checks, "CONFIRMED_FOR_SECS", 0.2)
        monkeypatch.setattr(checks, "CONFIRM_SECS", 0.05)
        checks_seen.clear()
        await until(lambda: len(checks_seen) > 50)
        assert (await readiness(server))[0] == 503


@pytest.mark.parametrize("urls", [0, 2])
async def test_engines_that_were_never_up(urls: int) -> None:
    async with running(*(free_url() for _ in range(urls)), **SELDOM) as server:
        assert (await readiness(server))[0] == 503


async def test_without_checks_readiness_counts_workers() -> None:
    """Nothing takes them out then; what nobody checks is taken for well."""
    async with running(free_url()) as server:
        assert (await readiness(server))[0] == 200


@pytest.mark.usefixtures("patient")
async def test_questions_that_come_together_share_their_checks() -> None:
    """Anybody may ask, and as often as they like."""
    asked, may_answer = 0, asyncio.Event()
    may_answer.set()

    async def script(socket: EngineSocket) -> None:
        nonlocal asked
        while await socket.request() is not None:
            asked += 1
            await within(may_answer.wait())
            await socket.send(respond(b"well"))

    async with ScriptedEngine(script) as engine, running(engine.url, **SELDOM) as server:
        await all_up(server)
        asked = 0
        may_answer.clear()
        questions = [asyncio.ensure_future(readiness(server)) for _ in range(30)]
        await until(lambda: len(context_of(server).requests) == len(questions))
        await settle()
        may_answer.set()
        answers = await within(asyncio.gather(*questions))
        assert {status for status, _ in answers} == {200}
        assert asked == 1


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "not checked"])
@pytest.mark.parametrize("disaggregated", [True, False], ids=["disaggregated", "whole"])
async def test_workers_that_no_request_is_given_to_do_not_count(
    disaggregated: bool, checked: bool
) -> None:
    halves: list[Role] = ["prefill", "decode"]
    wrong: list[Role] = ["regular"] if disaggregated else halves
    right: list[Role] = halves if disaggregated else ["regular"]
    settings: dict[str, Any] = SELDOM if checked else {}
    if disaggregated:
        settings = {
            **settings, "pd_disaggregation": True, "prefill": (free_url(),), "decode": (free_url(),)
        }  # fmt: skip
    health = Health.UNKNOWN if checked else Health.UP
    async with Fleet(4) as fleet, running(**settings) as server, connected(server) as client:
        for worker in list(server.registry):
            server.registry.remove(worker)
        urls = iter(fleet.urls)
        for roles, status in ((wrong, 503), (right, 200)):
            for role in roles:
                server.registry.add(Worker(next(urls), health, role=role))
            await all_up(server)
            assert (await readiness(server))[0] == status
            if status == 503:
                assert (await client.post(body=b'{"prompt": "a"}')).status == status
