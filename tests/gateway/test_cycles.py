"""What a request leaves behind is freed with it: the collector runs seldom, if ever."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
import pytest

from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.disaggregated import DisaggregatedExchange, PrefillLeg
from sgl_router.gateway.own import OwnAnswer
from tests.gateway.pairs import ENGINES, decoding, pairs, send
from tests.gateway.support import (
    Script,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    settle,
)

REQUESTS = 10
LARGE = "p" * 10_000


@contextmanager
def uncollected() -> Iterator[None]:
    """What is in a cycle stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def freed(*types: type) -> bool:
    """Whether nothing of these types is left, once what goes on has come to its end."""
    for _ in range(20):
        await settle()
        if not any(type(thing) in types for thing in gc.get_objects()):
            return True
    return False


@ENGINES
@pytest.mark.parametrize(
    "prefill",
    [
        answering(respond(orjson.dumps({"kv_transfer_params": {"x": "y"}, "pad": LARGE}))),
        answering(respond(b"no JSON " + LARGE.encode())),
        answering(respond(LARGE.encode(), 400)),
        answering(b"nonsense\r\n\r\n"),
    ],
    ids=["good", "no JSON", "400", "nonsense"],
)
async def test_a_prefill_answer_is_freed_with_its_request(pd_engine: str, prefill: Script) -> None:
    async with pairs(
        [prefill], [decoding()], pd_engine=pd_engine, disable_circuit_breaker=True
    ) as (_, client):
        with uncollected():
            for _ in range(REQUESTS):
                await send(client)
                await client.response()
            assert await freed(PrefillLeg, DisaggregatedExchange, Attempt)


async def test_a_refused_method_is_freed_with_its_request() -> None:
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url) as server,
        connected(server) as client,
    ):
        with uncollected():
            for _ in range(REQUESTS):
                assert (await client.ask(b"GET", b"/generate")).status == 405
            assert await freed(OwnAnswer)
