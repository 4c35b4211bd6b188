"""The end of a router process: what is under way, who comes late, and the exit status."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import orjson
import pytest

from tests.end_to_end.process import RouterProcess, launched
from tests.gateway.support import (
    POST,
    EngineSocket,
    ScriptedEngine,
    connected,
    respond,
    within,
)

PART = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"


class Engine:
    """Begins an answer, and ends it when it is told to; late requests it answers at once."""

    def __init__(self) -> None:
        self.end = asyncio.Event()

    async def __call__(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            if request.head.path == "/v1/late":
                await socket.send(respond(b"late"))
                continue
            await socket.send(PART)
            await self.end.wait()
            await socket.send(b"4\r\nrest\r\n0\r\n\r\n")


@contextmanager
def router(engine: ScriptedEngine, *arguments: str) -> Iterator[RouterProcess]:
    with launched(
        "--worker-urls", engine.url, "--disable-health-check", "--policy", "round_robin", *arguments
    ) as process:
        yield process


async def told_to_stop(process: RouterProcess, number: signal.Signals) -> None:
    process.process.send_signal(number)
    assert "stopping" in await within(process.next_line())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_is_under_way_is_finished(number: signal.Signals) -> None:
    """Readiness is taken back first; who comes all the same is served."""
    engine = Engine()
    async with ScriptedEngine(engine) as scripted:
        with router(scripted) as process:
            async with connected(process) as busy, connected(process) as idle:
                assert (await idle.ask(b"GET", b"/readiness")).status == 200
                await busy.send(POST)
                await within(busy.reader.readuntil(b"part\r\n"))
                await told_to_stop(process, number)
                assert await idle.closed()
                async with connected(process) as probe:
                    answer = await probe.ask(b"GET", b"/readiness")
                    assert answer.status == 503
                    assert orjson.loads(answer.body)["reason"] == "draining"
                async with connected(process) as late:
                    assert (await late.post(b"/v1/late")).body == b"late"
                assert process.process.poll() is None
                engine.end.set()
                assert await within(busy.reader.read()) == b"4\r\nrest\r\n0\r\n\r\n"
                assert await process.ended() == 0
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", process.port)


async def test_with_nothing_under_way_it_ends() -> None:
    async with ScriptedEngine(Engine()) as scripted:
        with router(scripted) as process:
            async with connected(process) as idle:
                assert (await idle.post(b"/v1/late")).body == b"late"
                await told_to_stop(process, signal.SIGTERM)
                assert await idle.closed()
                assert await process.ended() == 0


async def test_what_lasts_longer_than_the_grace_period_is_cut_off() -> None:
    """And the exit status says so; an answer that is cut off does not look complete."""
    async with ScriptedEngine(Engine()) as scripted:
        with router(scripted, "--shutdown-grace-period-secs", "0.1") as process:
            async with connected(process) as busy:
                await busy.send(POST)
                await within(busy.reader.readuntil(b"part\r\n"))
                await told_to_stop(process, signal.SIGTERM)
                with suppress(ConnectionResetError):
                    assert b"0\r\n\r\n" not in await within(busy.reader.read())
                assert await process.ended() == 1


async def test_a_second_signal_ends_at_once() -> None:
    async with ScriptedEngine(Engine()) as scripted:
        with router(scripted, "--shutdown-grace-period-secs", "3600") as process:
            async with connected(process) as busy:
                await busy.send(POST)
                await within(busy.reader.readuntil(b"part\r\n"))
                await told_to_stop(process, signal.SIGTERM)
                process.process.send_signal(signal.SIGINT)
                assert await process.ended() == 1


async def test_a_hang_up_ends_nothing() -> None:
    """What is under way goes on, and who comes next is served."""
    engine = Engine()
    async with ScriptedEngine(engine) as scripted:
        with router(scripted) as process:
            async with connected(process) as busy, connected(process) as idle:
                await busy.send(POST)
                await within(busy.reader.readuntil(b"part\r\n"))
                process.process.send_signal(signal.SIGHUP)
                assert "read again" in await within(process.next_line())
                assert (await idle.ask(b"GET", b"/readiness")).status == 200
                assert (await idle.post(b"/v1/late")).body == b"late"
                engine.end.set()
                assert (
                    await within(busy.reader.readuntil(b"0\r\n\r\n")) == b"4\r\nrest\r\n0\r\n\r\n"
                )
                await told_to_stop(process, signal.SIGTERM)
                assert await idle.closed()
                assert await process.ended() == 0
