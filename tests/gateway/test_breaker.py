"""The circuit breaker at work: what opens it, who may probe, and what never counts."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
import pytest

from sgl_router.errors import ProtocolError
from sgl_router.server import RouterServer
from tests.gateway.inside import Clock
from tests.gateway.support import (
    POST,
    EngineSocket,
    Placements,
    Request,
    Script,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
    settle,
    until,
    within,
)

SETTINGS: dict[str, Any] = {
    "cb_failure_threshold": 3,
    "cb_success_threshold": 2,
    "cb_timeout_duration_secs": 60,
    "cb_window_duration_secs": 100,
    "disable_retries": True,
}


async def circuits(server: RouterServer) -> list[str]:
    """The breakers' states, as an operator sees them."""
    async with connected(server) as client:
        listing = orjson.loads((await client.ask(b"GET", b"/workers")).body)
    return [worker["circuit"] for worker in listing["workers"]]


class Engine:
    """Answers with the status that it is set to, when it may."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.seen: list[Request] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            self.seen.append(request)
            await within(self.may_answer.wait())
            await socket.send(respond(b"engine", self.status))


def asked(engine: Engine, times: int) -> bool:
    return len(engine.seen) == times


async def test_failures_open_it_and_good_probes_close_it() -> None:
    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for _ in range(2):
            assert (await client.post()).status == 500
        assert await circuits(server) == ["closed"]
        assert (await client.post()).status == 500
        assert await circuits(server) == ["open"]

        refused = await client.post()
        assert (refused.status, refused.error_code) == (503, "no_available_workers")
        assert (await client.ask(b"GET", b"/readiness")).status == 503
        assert len(engine.seen) == 3, "it is left alone"

        engine.status = 200
        clock.advance(59)
        assert (await client.post()).status == 503
        clock.advance(2)
        assert await circuits(server) == ["half_open"]
        engine.may_answer.clear()
        probe = asyncio.ensure_future(client.post())
        await until(lambda: len(engine.seen) == 4)
        async with connected(server) as other:
            assert (await other.post()).status == 503, "there is a probe under way"
        assert len(engine.seen) == 4
        engine.may_answer.set()
        assert (await within(probe)).status == 200
        assert await circuits(server) == ["half_open"]
        assert (await client.post()).status == 200
        assert await circuits(server) == ["closed"]
        assert (await client.ask(b"GET", b"/readiness")).status == 200


async def test_a_bad_probe_opens_it_again() -> None:
    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for _ in range(3):
            await client.post()
        clock.advance(61)
        assert (await client.post()).status == 500
        assert await circuits(server) == ["open"]
        clock.advance(59)
        assert (await client.post()).status == 503
        clock.advance(2)
        assert (await client.post()).status == 500
        assert len(engine.seen) == 5


async def test_a_probe_whose_client_leaves_leaves_room_for_another() -> None:
    """And says nothing of the engine."""
    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for _ in range(3):
            await client.post()
        clock.advance(61)
        engine.may_answer.clear()
        async with connected(server) as leaving:
            await leaving.send(POST)
            await until(lambda: len(engine.seen) == 4)
        await until(lambda: not any(worker.load for worker in server.registry))
        assert await circuits(server) == ["half_open"]
        engine.status = 200
        engine.may_answer.set()
        assert (await client.post()).status == 200
        assert (await client.post()).status == 200
        assert await circuits(server) == ["closed"]


async def test_old_failures_do_not_count() -> None:
    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for _ in range(6):
            assert (await client.post()).status == 500
            clock.advance(60)
        assert await circuits(server) == ["closed"]


async def test_the_others_get_what_an_open_one_would_have_got() -> None:
    bad, good = Engine(500), Engine()
    async with (
        ScriptedEngine(bad) as one,
        ScriptedEngine(good) as two,
        running(one.url, two.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        statuses = [(await client.post()).status for _ in range(20)]
        assert await circuits(server) == ["open", "closed"]
        assert (await client.ask(b"GET", b"/readiness")).status == 200
    assert statuses.count(500) == len(bad.seen) == 3
    assert statuses[-10:] == [200] * 10


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 429, 501, 505])
async def test_what_says_nothing_against_the_engine_never_opens_it(status: int) -> None:
    engine = Engine(status)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        for _ in range(10):
            assert (await client.post()).status == status
        assert await circuits(server) == ["closed"]


async def test_clients_that_leave_never_open_it() -> None:
    engine = Engine()
    engine.may_answer.clear()
    async with ScriptedEngine(engine) as one, running(one.url, **SETTINGS) as server:
        for count in range(1, 6):
            async with connected(server) as client:
                await client.send(POST)
                await until(partial(asked, engine, count))
        await until(lambda: not any(worker.load for worker in server.registry))
        assert await circuits(server) == ["closed"]
        engine.may_answer.set()


async def breaks_off(socket: EngineSocket) -> None:
    await socket.request()
    await socket.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")


async def closes(socket: EngineSocket) -> None:
    await socket.request()


@pytest.mark.parametrize(
    "script",
    [
        answering(respond(b"", 500)),
        answering(respond(b"", 502)),
        answering(respond(b"", 503)),
        answering(b"SSH-2.0-OpenSSH\r\n"),
        breaks_off,
        closes,
    ],
    ids=["500", "502", "503", "nonsense", "breaks off", "closes"],
)
async def test_what_opens_it(script: Script) -> None:
    async with ScriptedEngine(script) as one, running(one.url, **SETTINGS) as server:
        for _ in range(3):
            assert await circuits(server) == ["closed"]
            async with connected(server) as client:
                with suppress(ProtocolError, ConnectionError):
                    assert (await client.post()).status >= 500
        assert await circuits(server) == ["open"]


async def test_time_outs_open_it() -> None:
    engine = Engine()
    engine.may_answer.clear()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, first_byte_timeout_secs=10, **SETTINGS) as server,
        connected(server) as client,
    ):
        clock = Clock(server)
        for count in range(1, 4):
            await client.send(POST)
            await until(partial(asked, engine, count))
            clock.advance(11)
            assert (await client.response()).status == 504
        assert await circuits(server) == ["open"]
        engine.may_answer.set()


async def test_refused_connections_open_it() -> None:
    async with running(free_url(), **SETTINGS) as server, connected(server) as client:
        statuses = [(await client.post()).status for _ in range(5)]
        assert statuses == [502, 502, 502, 503, 503]
        assert await circuits(server) == ["open"]


async def test_a_request_given_to_another_worker_counts_against_the_first() -> None:
    """Though its client has not noticed."""
    settings = {**SETTINGS, "disable_retries": False, "retry_initial_backoff_ms": 1}
    async with (
        ScriptedEngine(answering(respond(b"", 503))) as bad,
        ScriptedEngine(answering(respond())) as good,
        running(bad.url, good.url, **settings) as server,
        connected(server) as client,
    ):
        assert {(await client.post()).status for _ in range(8)} == {200}
        assert await circuits(server) == ["open", "closed"]


async def test_it_can_be_switched_off() -> None:
    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, disable_circuit_breaker=True, **SETTINGS) as server,
        connected(server) as client,
    ):
        assert {(await client.post()).status for _ in range(12)} == {500}
        assert await circuits(server) == ["closed"]


async def test_late_answers_of_before_it_opened_change_nothing() -> None:
    """Only the probe speaks for an engine whose breaker is half-open."""
    engine, placements = Engine(), Placements()
    engine.may_answer.clear()
    failing = Engine(500)

    async def script(socket: EngineSocket) -> None:
        await (engine if not engine.seen else failing)(socket)

    async with (
        ScriptedEngine(script) as one,
        running(one.url, placements=placements, **SETTINGS) as server,
        connected(server) as early,
        connected(server) as client,
    ):
        clock = Clock(server)
        await early.send(POST)
        await until(lambda: engine.seen)
        for _ in range(3):
            assert (await client.post()).status == 500
        clock.advance(61)
        engine.may_answer.set()
        assert (await early.response()).status == 200
        await settle()
        assert await circuits(server) == ["half_open"]
        assert [o.engine_ok for _, o in placements.done] == [False, False, False, True]


@pytest.mark.parametrize("chunked", [False, True])
async def test_clients_that_are_slow_with_their_bodies_never_open_it(chunked: bool) -> None:
    """An engine has its own patience with a body that does not come, and closes."""

    async def impatient(socket: EngineSocket) -> None:
        while head := await socket.reader.read(65_536):
            if b"GET /v1/" not in head:
                return
            await socket.send(respond(b"served"))

    framing = (
        b"Transfer-Encoding: chunked\r\n\r\n1\r\n{"
        if chunked
        else (b"Content-Length: 100\r\n\r\n{")
    )
    async with (
        ScriptedEngine(impatient) as one,
        ScriptedEngine(impatient) as other,
        running(one.url, other.url, **{**SETTINGS, "disable_retries": False}) as server,
    ):
        for _ in range(6):
            async with connected(server) as slow:
                await slow.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\n" + framing)
                assert (await slow.response()).status == 502
        assert await circuits(server) == ["closed", "closed"]
        async with connected(server) as client:
            assert (await client.ask(b"GET", b"/v1/x")).body == b"served"


async def test_each_change_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[int]:
        records = [r for r in caplog.records if r.name == "sgl_router.server.router"]
        assert all(one.url in record.getMessage() for record in records)
        return [record.levelno for record in records]

    engine = Engine(500)
    async with (
        ScriptedEngine(engine) as one,
        running(one.url, **SETTINGS) as server,
        connected(server) as client,
    ):
        with caplog.at_level(logging.INFO):
            clock = Clock(server)
            for _ in range(2):
                await client.post()
            assert told() == []
            for _ in range(3):
                await client.post()
            assert told() == [logging.WARNING]
            engine.status = 200
            clock.advance(61)
            half_open = told()
            assert set(half_open[1:]) <= {logging.INFO}
            assert (await client.post()).status == 200
            assert told() == half_open
            for _ in range(4):
                assert (await client.post()).status == 200
            assert told() == [*half_open, logging.INFO]
