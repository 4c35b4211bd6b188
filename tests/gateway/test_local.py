"""What the router answers itself."""

import orjson
import pytest

from sgl_router.core.worker import Health
from tests.gateway.support import (
    EngineSocket,
    ScriptedEngine,
    answering,
    connected,
    free_url,
    respond,
    running,
)


def models(*ids: str) -> bytes:
    return respond(orjson.dumps({"object": "list", "data": [{"id": i, "n": 1} for i in ids]}))


@pytest.mark.parametrize("path", [b"/health", b"/liveness"])
async def test_the_process_is_alive(path: bytes) -> None:
    async with running() as server, connected(server) as client:
        response = await client.ask(b"GET", path)
        assert (response.status, response.body) == (200, b"OK")
        assert (await client.ask(b"HEAD", path)).status == 200


async def test_readiness_follows_health() -> None:
    async with running(free_url(), free_url()) as server, connected(server) as client:
        ready = await client.ask(b"GET", b"/readiness")
        for worker in server.registry:
            server.registry.set_health(worker, Health.DOWN)
        not_ready = await client.ask(b"GET", b"/readiness")
    assert ready.status == 200
    assert orjson.loads(ready.body) == {"status": "ready", "healthy_workers": 2, "total_workers": 2}
    assert not_ready.status == 503
    assert orjson.loads(not_ready.body) == {
        "status": "not ready",
        "reason": "insufficient healthy workers",
    }


async def test_workers_are_listed() -> None:
    url = free_url()
    async with running(url) as server, connected(server) as client:
        listing = orjson.loads((await client.ask(b"GET", b"/workers")).body)
    (worker,) = listing["workers"]
    assert listing["total"] == 1
    assert (worker["url"], worker["status"], worker["is_healthy"], worker["load"]) == (
        url,
        "ready",
        True,
        0,
    )


async def test_models_are_the_union_over_workers() -> None:
    async def breaks(socket: EngineSocket) -> None:
        await socket.request()

    async with (
        ScriptedEngine(answering(models("a", "b"))) as one,
        ScriptedEngine(answering(models("b", "c"))) as two,
        ScriptedEngine(answering(respond(b"[]"))) as odd,
        ScriptedEngine(breaks) as broken,
        running(one.url, two.url, odd.url, broken.url) as server,
        connected(server) as client,
    ):
        response = await client.ask(b"GET", b"/v1/models")
    assert response.status == 200
    assert [model["id"] for model in orjson.loads(response.body)["data"]] == ["a", "b", "c"]


async def test_models_of_no_worker() -> None:
    async with running(free_url()) as server, connected(server) as client:
        assert (await client.ask(b"GET", b"/v1/models")).status == 502
        for worker in server.registry:
            server.registry.set_health(worker, Health.DOWN)
        assert (await client.ask(b"GET", b"/v1/models")).status == 503


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        (b"GET", b"/nothing", 404, "unknown_url"),
        (b"POST", b"/nothing", 404, "unknown_url"),
        (b"GET", b"/", 404, "unknown_url"),
        (b"GET", b"/v1/chat/completions", 405, "method_not_allowed"),
        (b"GET", b"/generate", 405, "method_not_allowed"),
        (b"POST", b"/health", 405, "method_not_allowed"),
    ],
)
async def test_what_there_is_not(method: bytes, path: bytes, status: int, code: str) -> None:
    async with running(free_url()) as server, connected(server) as client:
        for _ in range(2):  # the connection is kept, with or without a body
            body = b"{}" if method == b"POST" else b""
            response = await client.ask(method, path, body)
            assert (response.status, orjson.loads(response.body)["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"POST", b"/generate"),
        (b"POST", b"/v1/embeddings"),
        (b"GET", b"/v1/responses/resp_1"),
        (b"DELETE", b"/v1/anything/else"),
    ],
)
async def test_what_is_passed_on(method: bytes, path: bytes) -> None:
    async with (
        ScriptedEngine(answering(respond(b"engine"))) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        assert (await client.ask(method, path)).body == b"engine"
