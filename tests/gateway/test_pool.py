"""Connections to engines: which of the kept ones is used, and who still wants one being made."""

import asyncio

from tests.gateway.inside import context_of
from tests.gateway.support import (
    POST,
    EngineSocket,
    Placements,
    ScriptedEngine,
    connected,
    deaf_url,
    respond,
    running,
    until,
    within,
)


async def test_the_one_that_was_used_last_is_used_first() -> None:
    """So that those too many of a busy hour are idle, and are closed."""
    ends = [asyncio.Event() for _ in range(3)]

    async def script(socket: EngineSocket) -> None:
        number = engine.connections - 1
        while await socket.request() is not None:
            await within(ends[number].wait())
            await socket.send(respond(b"%d" % number))

    async with ScriptedEngine(script) as engine, running(engine.url) as server:
        pool = context_of(server).pool

        async def made_and_kept(made: int, kept: int) -> None:
            await until(lambda: (engine.connections, pool.idle) == (made, kept))

        async with connected(server) as one, connected(server) as two, connected(server) as three:
            for made, client in enumerate((one, two, three), start=1):
                await client.send(POST)
                await made_and_kept(made, 0)
            for kept, number in enumerate((0, 2, 1), start=1):
                ends[number].set()
                await made_and_kept(3, kept)
            assert (await one.response()).body == b"0"
            for _ in range(3):
                assert (await one.post()).body == b"1"


async def test_nobody_connects_for_a_client_that_has_left() -> None:
    """An engine would get a request that nobody waits for."""
    placements = Placements()
    with deaf_url() as deaf:
        # That no task is left is looked at when the router has been stopped.
        async with running(deaf, connect_timeout_secs=600, placements=placements) as server:
            async with connected(server) as client:
                await client.send(POST)
                await until(lambda: any(worker.load for worker in server.registry))
            await within(placements.more(1))
    ((_, outcome),) = placements.done
    assert (outcome.status, outcome.engine_ok, outcome.output_chunks) == (None, None, 0)


async def test_what_came_on_it_before_is_not_counted_again() -> None:
    placements, asked_again = Placements(), asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond(b"first"))
        await socket.request()
        asked_again.set()
        await socket.request()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, placements=placements) as server,
    ):
        async with connected(server) as client:
            assert (await client.post()).body == b"first"
            await client.send(POST)
            await within(asked_again.wait())
        await until(lambda: len(placements.done) == 2)
    assert [outcome.output_chunks for _, outcome in placements.done] == [1, 0]


async def test_what_is_kept_goes_with_its_worker() -> None:
    closed = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(respond(b"served"))
        assert await socket.request() is None
        closed.set()

    async with (
        ScriptedEngine(script) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        pool = context_of(server).pool
        assert (await client.post()).body == b"served"
        assert pool.idle == 1
        (worker,) = server.registry
        server.registry.remove(worker)
        assert pool.idle == 0
        await within(closed.wait())
