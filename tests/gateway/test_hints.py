"""What clients may say of where a request should go, and what they are told of where it went."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from sgl_router.core.worker import Health
from sgl_router.server import RouterServer
from tests.gateway.support import (
    Client,
    Request,
    Response,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
)

NAMES = (b"one", b"two", b"three")


@asynccontextmanager
async def three_engines(
    seen: list[Request] | None = None, **settings: Any
) -> AsyncIterator[tuple[RouterServer, Client]]:
    """In front of engines that answer with their names."""
    scripts = [answering(respond(name), seen) for name in NAMES]
    async with (
        ScriptedEngine(scripts[0]) as one,
        ScriptedEngine(scripts[1]) as two,
        ScriptedEngine(scripts[2]) as three,
        running(one.url, two.url, three.url, **settings) as server,
        connected(server) as client,
    ):
        yield server, client


async def ask(client: Client, hint: bytes, body: bytes = b"{}") -> Response:
    return await client.ask(b"POST", b"/v1/chat/completions", body, hint + b"\r\n")


@pytest.mark.parametrize("policy", ["consistent_hashing", "manual"])
async def test_requests_of_one_key_go_to_one_worker(policy: str) -> None:
    """Whatever is in their bodies; and the header reaches the engine as it came."""
    seen: list[Request] = []
    async with three_engines(seen, policy=policy) as (_, client):
        by_key = {
            key: {
                (await ask(client, b"X-SMG-Routing-Key: %d" % key, b'{"user": "%d"}' % n)).body
                for n in range(3)
            }
            for key in range(30)
        }
    assert all(len(workers) == 1 for workers in by_key.values())
    assert len(set().union(*by_key.values())) > 1
    keys = [request.head.get(b"x-smg-routing-key") for request in seen]
    assert keys == [b"%d" % key for key in range(30) for _ in range(3)]


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware", "least_connections"])
async def test_a_client_may_name_a_worker(policy: str) -> None:
    async with three_engines(policy=policy) as (_, client):
        for index, name in enumerate(NAMES):
            for _ in range(3):
                assert (await ask(client, b"x-smg-target-worker: %d" % index)).body == name


@pytest.mark.parametrize("index", [b"3", b"999999999"])
async def test_a_worker_that_is_not_there_is_chosen_by_the_policy(index: bytes) -> None:
    async with three_engines() as (_, client):
        bodies = {(await ask(client, b"x-smg-target-worker: " + index)).body for _ in range(6)}
    assert bodies == set(NAMES)


@pytest.mark.parametrize("index", [b"-1", b"one", b"1.0", b"1 ,2", b"", b"9" * 10, b"\xb2"])
async def test_what_is_no_index_is_refused(index: bytes) -> None:
    seen: list[Request] = []
    async with three_engines(seen) as (_, client):
        answer = await ask(client, b"x-smg-target-worker: " + index)
        assert (answer.status, answer.error_code) == (400, "bad_request")
        assert (await client.post()).status == 200
    assert len(seen) == 1


async def test_a_worker_that_may_not_have_it_is_passed_over() -> None:
    async with three_engines() as (server, client):
        server.registry.set_health(next(iter(server.registry)), Health.DOWN)
        bodies = {(await ask(client, b"x-smg-target-worker: 0")).body for _ in range(6)}
    assert bodies == {b"two", b"three"}


@pytest.mark.parametrize("status", [None, 503])
async def test_a_worker_that_declines_is_not_asked_again(status: int | None) -> None:
    """Though the client has named it."""
    async with (
        ScriptedEngine(answering(respond(b"", status or 200))) as busy,
        ScriptedEngine(answering(respond(b"good"))) as good,
        running(
            free_url() if status is None else busy.url, good.url, retry_initial_backoff_ms=1
        ) as server,
        connected(server) as client,
    ):
        for _ in range(3):
            assert (await ask(client, b"x-smg-target-worker: 0")).body == b"good"


async def test_an_answer_names_its_worker() -> None:
    """By the id under which it is listed."""
    async with three_engines() as (server, client):
        listed = orjson.loads((await client.ask(b"GET", b"/workers")).body)["workers"]
        for index, name in enumerate(NAMES):
            answer = await ask(client, b"x-smg-target-worker: %d" % index)
            assert answer.body == name
            assert answer.get(b"x-smg-routed-worker-id") == [listed[index]["id"].encode()]
        path = b"/workers/" + answer.get(b"x-smg-routed-worker-id")[0]
        assert orjson.loads((await client.ask(b"GET", path)).body)["url"] == listed[2]["url"]
        for worker in server.registry:
            server.registry.set_health(worker, Health.DOWN)
        assert (await client.post()).get(b"x-smg-routed-worker-id") == [], "nobody had it"


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_every_answer_of_an_engine_names_it(status: int, version: bytes) -> None:
    async with (
        ScriptedEngine(answering(respond(b"x", status))) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/%b\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}" % version)
        answer = await client.response()
        (worker,) = server.registry
    assert answer.status == status
    assert answer.get(b"x-smg-routed-worker-id") == [worker.id.encode()]
