"""Routers whose workers lead back to themselves, and the line that tells so (RFC 9110, Via)."""

from typing import Any

import pytest

from sgl_router.core.worker import Health, Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.pool import ConnectionPool
from sgl_router.gateway.upstream import EngineConnection
from sgl_router.server import RouterServer
from tests.gateway.pairs import BODY, ENGINES, decoding, pairs, prefilling
from tests.gateway.support import (
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
)

HANDFUL = 4


class Dials:
    """Connections that routers make: none after a number that is too high in any case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        dial = ConnectionPool.dial

        async def counted(pool: ConnectionPool, worker: Worker) -> EngineConnection:
            self.count += 1
            if self.count > 10 * HANDFUL:
                raise EngineError("so many")
            return await dial(pool, worker)

        monkeypatch.setattr(ConnectionPool, "dial", counted)


def name(server: RouterServer, other: RouterServer) -> None:
    """Have `other` be a worker of the router."""
    server.registry.add(Worker(f"http://127.0.0.1:{other.port}", Health.UP))


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware"])
async def test_a_router_that_is_its_own_worker(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = Dials(monkeypatch)
    async with running(policy=policy) as server, connected(server) as client:
        name(server, server)
        for _ in range(3):
            answer = await client.post()
            assert (answer.status, answer.error_code) == (508, "loop_detected")
    assert dials.count <= HANDFUL


async def test_two_routers_that_name_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    dials = Dials(monkeypatch)
    async with running() as one, running() as other:
        name(one, other)
        name(other, one)
        async with connected(one) as client, connected(other) as elsewhere:
            for asking in (client, elsewhere) * 2:
                answer = await asking.post()
                assert (answer.status, answer.error_code) == (508, "loop_detected")
    assert dials.count <= HANDFUL


async def test_a_router_behind_another_is_no_loop() -> None:
    async with (
        ScriptedEngine(answering(respond(b"served"))) as engine,
        running(engine.url) as behind,
        running() as before,
        connected(before) as client,
    ):
        name(before, behind)
        assert (await client.post()).body == b"served"


def via(request: Request) -> list[bytes]:
    return [value for name, value in request.head.headers if name.lower() == b"via"]


@pytest.mark.parametrize("policy", ["round_robin", "cache_aware"])
@pytest.mark.parametrize("id_line", [b"", b"X-Request-Id: mine\r\n"], ids=["", "own id"])
@pytest.mark.parametrize("theirs", [[], [b"1.0 fred, 1.1 p.example.net"], [b"1.1 a", b"2 b"]])
async def test_what_is_forwarded_says_by_whom(
    theirs: list[bytes], id_line: bytes, policy: str
) -> None:
    seen: list[Request] = []
    lines = b"".join(b"Via: %b\r\n" % value for value in theirs) + id_line
    async with (
        ScriptedEngine(answering(respond(), seen)) as engine,
        running(engine.url, policy=policy) as server,
        connected(server) as client,
    ):
        for _ in range(2):
            assert (await client.ask(b"POST", b"/v1/x", b"{}", lines)).status == 200
    first, second = map(via, seen)
    assert first == second
    assert first[:-1] == theirs, "they stay, and in their order"
    version, _, pseudonym = first[-1].partition(b" ")
    assert version == b"1.1" and pseudonym


@ENGINES
async def test_both_halves_say_by_whom(pd_engine: str) -> None:
    seen: list[Request] = []
    async with pairs([prefilling(seen)], [decoding(seen)], pd_engine=pd_engine) as (_, client):
        extra: dict[str, Any] = {"extra": b"Via: 1.1 before\r\n"}
        assert (await client.ask(b"POST", b"/generate", BODY, **extra)).body == b"decoded"
    for request in seen:
        assert via(request)[0] == b"1.1 before"
        assert len(via(request)) == 2
