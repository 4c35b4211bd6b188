"""Start, health over time, and the end: draining, and what is cut off."""

import asyncio
from typing import Any

import orjson
import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health
from sgl_router.errors import ConfigError, PluginRefused, ProtocolError
from sgl_router.gateway.checks import HealthChecks
from tests.gateway.support import (
    EngineSocket,
    ScriptedEngine,
    answering,
    connected,
    demo_engine,
    free_url,
    respond,
    running,
    until,
    within,
)


async def health_becomes(registry: WorkerRegistry, health: Health) -> None:
    """Wait until every worker has this health."""
    await until(lambda: all(worker.health is health for worker in registry))


async def test_health_checks_decide_who_gets_requests() -> None:
    status = 503

    async def script(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            healthy = request.head.path == "/up"
            await socket.send(respond(status=status if healthy else 200))

    settings: dict[str, Any] = {
        "disable_health_check": False,
        "health_check_endpoint": "/up",
        "health_check_interval_secs": 0.01,
        "worker_startup_check_interval": 0.01,
    }
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, **settings) as server,
        connected(server) as client,
    ):
        await health_becomes(server.registry, Health.DOWN)
        assert (await client.post()).status == 503
        assert (await client.ask(b"GET", b"/readiness")).status == 503
        status = 200
        await health_becomes(server.registry, Health.UP)
        assert (await client.post()).status == 200
        assert (await client.ask(b"GET", b"/readiness")).status == 200
        status = 500
        await health_becomes(server.registry, Health.DOWN)


async def test_refused_connections_count_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a worker that they took out is asked soon again, though a healthy one seldom is."""
    # A worker in doubt is asked at once; here the requests are to tell of it.
    monkeypatch.setattr(HealthChecks, "suspect", lambda _self, _worker: None)
    settings: dict[str, Any] = {
        "disable_health_check": False,
        "worker_startup_check_interval": 0.01,
    }
    async with (
        demo_engine() as engine,
        running(engine.url, **settings, health_failure_threshold=3) as server,
        connected(server) as client,
    ):
        port = int(engine.url.rpartition(":")[2])
        await health_becomes(server.registry, Health.UP)
        engine.stop()
        assert [(await client.post()).status for _ in range(2)] == [502, 502]
        await engine.start(port)
        assert (await client.post()).status == 200, "an answer ends the row of failures"
        engine.stop()
        assert [(await client.post()).status for _ in range(3)] == [502, 502, 502]
        assert [worker.health for worker in server.registry] == [Health.DOWN]
        assert (await client.post()).status == 503


async def test_without_health_checks_every_worker_counts_as_healthy() -> None:
    async with (
        demo_engine() as engine,
        running(engine.url, disable_circuit_breaker=True) as server,
        connected(server) as client,
    ):
        port = int(engine.url.rpartition(":")[2])
        engine.stop()
        assert {(await client.post()).status for _ in range(20)} == {502}
        await engine.start(port)
        assert (await client.post()).status == 200


async def test_draining_finishes_what_is_under_way() -> None:
    """Who comes meanwhile is told that nobody should, and is served."""
    go_on, got = asyncio.Event(), asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        request = await socket.request()
        assert request is not None
        if request.head.path == "/v1/late":
            await socket.send(respond(b"late"))
            return
        await socket.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        got.set()
        await within(go_on.wait())
        await socket.send(b"1\r\nb\r\n0\r\n\r\n")

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as busy,
        connected(server) as idle,
    ):
        await idle.ask(b"GET", b"/health")
        answer = asyncio.ensure_future(busy.post())
        await within(got.wait())
        stopping = asyncio.ensure_future(server.stop(60))
        assert await idle.closed(), "a connection without a request is closed at once"
        async with connected(server) as probe:
            readiness = await probe.ask(b"GET", b"/readiness")
            assert (readiness.status, orjson.loads(readiness.body)["reason"]) == (503, "draining")
            assert await probe.closed()
        async with connected(server) as late:
            told = await late.post(b"/v1/late")
            assert (told.body, told.get(b"connection")) == (b"late", [b"close"])
            assert await late.closed()
        assert not stopping.done()
        go_on.set()
        assert (await within(answer)).body == b"ab"
        assert await within(stopping) is True
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)


async def test_what_takes_longer_than_the_grace_period_is_cut_off() -> None:
    closed = asyncio.Event()

    async def hangs(socket: EngineSocket) -> None:
        await socket.request()
        got.set()
        await socket.request()
        closed.set()

    got = asyncio.Event()
    async with (
        ScriptedEngine(hangs) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        answer = asyncio.ensure_future(client.post())
        await within(got.wait())
        assert await within(server.stop(0.01)) is False
        with pytest.raises((ProtocolError, ConnectionError)):
            await answer
        await within(closed.wait())


async def test_the_policy_is_swapped_by_name() -> None:
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        for name in ("least_connections", "wasm:least_connections", "random"):
            await server.use_policy(name)
            assert (await client.post()).status == 200
        with pytest.raises(ConfigError):
            await server.use_policy("fastest")
        assert (await client.post()).status == 200


async def test_a_plugin_that_is_refused_leaves_nothing_behind() -> None:
    with pytest.raises(PluginRefused):
        async with running(free_url(), policy="/nowhere/missing.wasm"):
            raise AssertionError("it must not start")


async def test_the_router_says_what_it_is_asked_before_any_worker_is_up() -> None:
    async with (
        running(free_url(), disable_health_check=False) as server,
        connected(server) as client,
    ):
        listing = orjson.loads((await client.ask(b"GET", b"/workers")).body)
        assert listing["workers"][0]["status"] in ("pending", "not_ready")
