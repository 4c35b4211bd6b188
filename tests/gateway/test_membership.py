"""Workers that come and go while requests are served."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
import pytest

from sgl_router.core.worker import Health
from sgl_router.server import RouterServer
from tests.gateway.inside import context_of
from tests.gateway.support import (
    POST,
    Client,
    EngineSocket,
    Request,
    Response,
    Script,
    ScriptedEngine,
    answering,
    connected,
    deaf_url,
    respond,
    running,
    settle,
    until,
    within,
)

JSON = b"Content-Type: application/json\r\n"


async def add(client: Client, url: str) -> Response:
    return await client.ask(b"POST", b"/workers", orjson.dumps({"url": url}), JSON)


async def listed(client: Client) -> dict[str, dict[str, Any]]:
    workers = orjson.loads((await client.ask(b"GET", b"/workers")).body)["workers"]
    return {worker["url"]: worker for worker in workers}


async def delete(client: Client, url: str) -> Response:
    worker = (await listed(client))[url]
    return await client.ask(b"DELETE", b"/workers/" + worker["id"].encode())


class Streaming:
    """An engine whose answers end when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.end = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self, socket: EngineSocket) -> None:
        with suppress(ConnectionError):
            while await socket.request() is not None:
                self.asked += 1
                await socket.send(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"
                )
                await within(self.end.wait())
                await socket.send(b"4\r\nrest\r\n0\r\n\r\n")
        self.closed.set()


async def test_a_worker_that_is_added_has_its_share() -> None:
    seen: list[Request] = []
    async with (
        ScriptedEngine(answering(respond(b"first"))) as first,
        ScriptedEngine(answering(respond(b"second"), seen)) as second,
        running(first.url) as server,
        connected(server) as client,
    ):
        assert {(await client.post()).body for _ in range(4)} == {b"first"}
        answer = await add(client, second.url)
        assert answer.status == 202
        assert [(await client.post()).body for _ in range(4)].count(b"second") == 2
        assert (await add(client, second.url)).status == 409
    assert len(seen) == 2


async def test_a_worker_that_is_added_is_checked_before_it_is_used() -> None:
    up = asyncio.Event()

    async def script(socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            paths.append(request.head.path)
            await socket.send(respond(status=200 if up.is_set() else 503))

    paths: list[str] = []
    async with (
        ScriptedEngine(script) as engine,
        running(
            disable_health_check=False,
            worker_startup_check_interval=0.01,
            health_check_interval_secs=0.01,
        ) as server,
        connected(server) as client,
    ):
        assert (await add(client, engine.url)).status == 202
        assert (await client.post()).status == 503
        await until(lambda: len(paths) > 5)
        assert set(paths) == {"/health"}
        up.set()
        await until(lambda: all(worker.healthy for worker in server.registry))
        assert (await client.post()).status == 200
        assert (await delete(client, engine.url)).status == 202
        await settle()
        paths.clear()
        await asyncio.sleep(0.05)
        assert paths == [], "nobody asks how it is any more"


async def test_a_worker_that_is_removed_finishes_what_it_has() -> None:
    leaving, staying = Streaming(), Streaming()
    staying.end.set()
    async with (
        ScriptedEngine(leaving) as one,
        ScriptedEngine(staying) as two,
        running(one.url, two.url, policy="power_of_two") as server,
        connected(server) as busy,
        connected(server) as client,
    ):
        await busy.send(POST.replace(b"\r\n\r\n", b"\r\nx-smg-target-worker: 0\r\n\r\n"))
        await within(busy.reader.readuntil(b"part\r\n"))
        assert (await delete(client, one.url)).status == 202
        there = await listed(client)
        assert (there[one.url]["status"], there[one.url]["load"]) == ("draining", 1)
        assert (await add(client, one.url)).status == 409
        for hint in (b"", b"x-smg-target-worker: 0\r\n"):
            answer = await client.ask(b"POST", b"/v1/x", b"{}", hint)
            assert answer.body == b"partrest"
        assert (leaving.asked, staying.asked) == (1, 2)
        leaving.end.set()
        assert await within(busy.reader.readuntil(b"0\r\n\r\n")) == b"4\r\nrest\r\n0\r\n\r\n"
        assert set(await listed(client)) == {two.url}
        await within(leaving.closed.wait())
        assert (await add(client, one.url)).status == 202


async def test_an_idle_worker_is_gone_at_once() -> None:
    """And what was kept for it is closed."""
    engine = Streaming()
    engine.end.set()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url) as server,
        connected(server) as client,
    ):
        assert (await client.post()).status == 200
        assert (await delete(client, one.url)).status == 202
        assert await listed(client) == {}
        await within(engine.closed.wait())
        assert context_of(server).pool.idle == 0
        answer = await client.post()
        assert (answer.status, answer.error_code) == (503, "no_available_workers")
        assert (await client.ask(b"GET", b"/readiness")).status == 503


async def test_the_last_worker_finishes_too() -> None:
    engine = Streaming()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url) as server,
        connected(server) as busy,
        connected(server) as client,
    ):
        await busy.send(POST)
        await within(busy.reader.readuntil(b"part\r\n"))
        assert (await delete(client, one.url)).status == 202
        assert (await client.post()).status == 503
        assert (await client.ask(b"GET", b"/readiness")).status == 503
        engine.end.set()
        assert await within(busy.reader.readuntil(b"0\r\n\r\n"))
        assert len(server.registry) == 0


async def test_a_worker_whose_client_leaves_is_gone_then() -> None:
    engine = Streaming()
    async with (
        ScriptedEngine(engine) as one,
        running(one.url) as server,
        connected(server) as client,
    ):
        async with connected(server) as leaving:
            await leaving.send(POST)
            await within(leaving.reader.readuntil(b"part\r\n"))
            assert (await delete(client, one.url)).status == 202
        await until(lambda: len(server.registry) == 0)
        engine.end.set()


async def test_a_worker_that_is_removed_while_it_is_connected_to() -> None:
    """What it did not get goes to another one."""
    with deaf_url() as deaf:
        async with (
            ScriptedEngine(answering(respond(b"here"))) as engine,
            running(deaf, engine.url, connect_timeout_secs=0.3) as server,
            connected(server) as waiting,
            connected(server) as client,
        ):
            await waiting.send(POST.replace(b"\r\n\r\n", b"\r\nx-smg-target-worker: 0\r\n\r\n"))
            await until(lambda: [worker.load for worker in server.registry] == [1, 0])
            assert (await delete(client, deaf)).status == 202
            assert [worker.health for worker in server.registry] == [Health.DRAINING, Health.UP]
            assert (await waiting.response()).body == b"here"
            assert set(await listed(client)) == {engine.url}


async def test_older_clients_add_and_remove_alike() -> None:
    leaving = Streaming()
    async with (
        ScriptedEngine(leaving) as engine,
        running() as server,
        connected(server) as busy,
        connected(server) as client,
    ):
        url = engine.url.encode()
        assert (await client.ask(b"POST", b"/add_worker?url=" + url)).status == 200
        await busy.send(POST)
        await within(busy.reader.readuntil(b"part\r\n"))
        assert (await client.ask(b"POST", b"/remove_worker?url=" + url)).status == 200
        assert (await client.post()).status == 503
        leaving.end.set()
        assert await within(busy.reader.readuntil(b"0\r\n\r\n"))
        assert orjson.loads((await client.ask(b"GET", b"/list_workers")).body) == {"urls": []}


async def send_until(server: RouterServer, each: Iterable[object]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    left = iter(each)

    async def client_loop() -> None:
        async with connected(server) as client:
            for _ in left:
                statuses[(await client.post()).status] += 1

    await asyncio.gather(*(client_loop() for _ in range(16)))
    return statuses


def more_than(served: Counter[str], count: int) -> bool:
    return served.total() > count


def is_gone(server: RouterServer, url: str) -> bool:
    return server.registry.get(url) is None


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware", "least_connections"])
async def test_no_request_fails_while_workers_come_and_go(policy: str) -> None:
    """One stays; three others are added and removed all the time, and asked only in between."""
    gone: set[str] = set()
    strays: list[str] = []
    served: Counter[str] = Counter()

    def script_of(index: int) -> Script:
        async def script(socket: EngineSocket) -> None:
            while await socket.request() is not None:
                url = engines[index].url
                served[url] += 1
                if url in gone:
                    strays.append(url)
                await socket.send(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
                )
                await asyncio.sleep(0)
                await socket.send(b"1\r\nb\r\n0\r\n\r\n")

        return script

    over = asyncio.Event()
    engines = [ScriptedEngine(script_of(index)) for index in range(4)]
    async with (
        engines[0],
        engines[1],
        engines[2],
        engines[3],
        running(engines[0].url, policy=policy) as server,
        connected(server) as admin,
    ):
        sending = asyncio.ensure_future(send_until(server, iter(over.is_set, True)))
        for _ in range(10):
            for engine in engines[1:]:
                gone.discard(engine.url)
                assert (await add(admin, engine.url)).status == 202
                await until(partial(more_than, served, served.total() + 5))
            for engine in engines[1:]:
                assert (await delete(admin, engine.url)).status == 202
                await until(partial(is_gone, server, engine.url))
                gone.add(engine.url)
        over.set()
        statuses = await within(sending)
    assert set(statuses) == {200}
    assert strays == []
    assert all(served[engine.url] for engine in engines), "each had its share"
