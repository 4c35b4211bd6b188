"""Policies at work on live requests: shares, failing plugins, and a swap under load."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from sgl_router.server import RouterServer
from tests.engines.llama import LlamaServer
from tests.gateway.support import (
    EngineSocket,
    Placements,
    ScriptedEngine,
    answering,
    connected,
    demo_engine,
    respond,
    running,
    within,
)
from tests.wasm.guests import ANSWER_AT, LOOP, guest

REQUESTS = 10_000
CONCURRENCY = 32
BODY = b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}'


async def send_all(server: RouterServer, each: Iterable[object]) -> Counter[int]:
    """Send a request for `each` over `CONCURRENCY` connections; how often each status came."""
    statuses: Counter[int] = Counter()
    left = iter(each)

    async def client_loop() -> None:
        async with connected(server) as client:
            for _ in left:
                statuses[(await client.post(body=BODY)).status] += 1

    await asyncio.gather(*(client_loop() for _ in range(CONCURRENCY)))
    return statuses


def no_failed_decision(placements: Placements) -> bool:
    return all(decision.failure is None for decision, _ in placements.done)


async def shares(policy: str, engines: Sequence[LlamaServer]) -> list[float]:
    """The shares of the engines in `REQUESTS` requests, all of them successful."""
    placements = Placements()
    weights = {engine.url: weight for engine, weight in zip(engines, (1, 3), strict=True)}
    async with running(
        *weights,
        policy=policy,
        # On a busy machine a decision can be off the CPU for longer than the usual limit.
        plugin_config={
            "least_connections": {"max_execution_time_ms": 10_000},
            "weighted_random": {"max_execution_time_ms": 10_000, "config": {"weights": weights}},
        },
        placements=placements,
    ) as server:
        assert await send_all(server, range(REQUESTS)) == {200: REQUESTS}
        assert [worker.load for worker in server.registry] == [0, 0]
    assert no_failed_decision(placements)
    placed = Counter(decision.worker.url for decision, _ in placements.done)
    assert placed.total() == REQUESTS
    return [placed[url] / REQUESTS for url in weights]


async def test_least_connections_shares_evenly(llama_engines: Sequence[LlamaServer]) -> None:
    one, two = await shares("least_connections", llama_engines)
    assert abs(one - two) <= 0.05


async def test_weighted_random_shares_by_weight(llama_engines: Sequence[LlamaServer]) -> None:
    one, two = await shares("weighted_random", llama_engines)
    assert abs(one - 0.25) <= 0.03
    assert abs(two - 0.75) <= 0.03


async def test_a_plugin_that_loops_for_ever(tmp_path: Path) -> None:
    """Each request is answered all the same: the plugin is stopped, and its fallback decides."""
    module = tmp_path / "spins.wasm"
    # It behaves while it is tried out, whose input is short.
    module.write_bytes(
        guest(
            select_worker=f"(if (i32.gt_u (local.get $len) (i32.const 900)) (then {LOOP}))"
            f"(i32.const {ANSWER_AT})"
        )
    )
    placements = Placements()
    async with (
        ScriptedEngine(answering(respond(b"served"))) as engine,
        running(
            engine.url,
            policy=str(module),
            plugin_config={"spins": {"max_execution_time_ms": 20}},
            placements=placements,
        ) as server,
        connected(server) as client,
    ):
        for _ in range(5):
            response = await client.post(body=b'{"user": "%b"}' % (b"u" * 1000))
            assert (response.status, response.body) == (200, b"served")
        assert (await client.post()).body == b"served"
    failures = [decision.failure for decision, _ in placements.done]
    assert [failure and failure.kind for failure in failures] == ["timeout"] * 5 + [None]


async def test_a_swap_under_load_fails_nothing() -> None:
    placements = Placements()
    swapped = asyncio.Event()
    async with (
        demo_engine(slots=CONCURRENCY) as one,
        demo_engine(slots=CONCURRENCY) as two,
        running(one.url, two.url, policy="least_connections", placements=placements) as server,
    ):
        sending = asyncio.ensure_future(send_all(server, iter(swapped.is_set, True)))
        for policy in ("weighted_random", "random", "least_connections") * 10:
            await server.use_policy(policy)
            await within(placements.more(20))
        swapped.set()
        assert set(await within(sending)) == {200}
    used = {decision.policy.name for decision, _ in placements.done}
    assert used == {"weighted_random", "random", "least_connections"}
    assert no_failed_decision(placements)


async def test_the_same_entropy_gives_the_same_placements() -> None:
    async def placed(seed: int) -> list[str]:
        placements = Placements()
        async with (
            ScriptedEngine(answering(respond())) as one,
            ScriptedEngine(answering(respond())) as two,
            running(
                one.url,
                two.url,
                policy="random",
                placements=placements,
                entropy=partial(random.Random(seed).getrandbits, 53),
            ) as server,
            connected(server) as client,
        ):
            for _ in range(32):
                await client.post()
        order = [one.url, two.url]
        return [str(order.index(decision.worker.url)) for decision, _ in placements.done]

    assert await placed(1) == await placed(1)
    assert await placed(1) != await placed(2)


async def test_an_outcome_says_how_a_request_ended() -> None:
    placements = Placements()

    async def script(socket: EngineSocket) -> None:
        await socket.request()
        await socket.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\n")
        await within(head_came.wait())
        await socket.send(b"busy")
        await socket.request()

    head_came = asyncio.Event()
    async with (
        ScriptedEngine(script) as engine,
        running(engine.url, placements=placements) as server,
        connected(server) as client,
    ):
        await client.send(b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}")
        await within(client.reader.readuntil(b"\r\n\r\n"))
        head_came.set()
        assert await within(client.reader.readexactly(4)) == b"busy"
    ((_, outcome),) = placements.done
    assert (outcome.worker_url, outcome.status, outcome.success) == (engine.url, 503, False)
    assert outcome.ttft_ms is not None
    assert outcome.output_chunks == 1, "a head is no output"
