"""Requests that end engines: each takes two of them at most, whatever connections were kept."""

from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.gateway.hostile import reset
from tests.gateway.inside import Clock
from tests.gateway.support import (
    EngineSocket,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
)

ENGINES = 6
POISON = b'{"text": "poison"}'
GOOD = b'{"text": "hello"}'
ANSWER = respond(b'{"kv_transfer_params": {"block": 1}}')


class Mortal:
    """An engine that a certain request ends: it closes on it, and accepts nothing any more."""

    def __init__(self, *, abrupt: bool) -> None:
        self.engine = ScriptedEngine(self._serve)
        self.alive = True
        self._abrupt = abrupt

    async def _serve(self, socket: EngineSocket) -> None:
        while (request := await socket.request()) is not None:
            if b"poison" in request.body:
                self.alive = False
                assert self.engine._server is not None
                self.engine._server.close()
                if self._abrupt:
                    reset(socket.writer)
                return
            await socket.send(ANSWER)


async def crashes(stack: AsyncExitStack, *, kept: bool, abrupt: bool, prefill: bool) -> int:
    """How many of the engines one such request takes."""
    mortals = [Mortal(abrupt=abrupt) for _ in range(ENGINES)]
    urls = [(await stack.enter_async_context(mortal.engine)).url for mortal in mortals]
    settings: dict[str, Any] = {}
    if prefill:
        other = await stack.enter_async_context(ScriptedEngine(answering(ANSWER)))
        settings = {"pd_disaggregation": True, "prefill": tuple(urls), "decode": (other.url,)}
        settings["pd_engine"] = "vllm"
        urls = []
    server = await stack.enter_async_context(running(*urls, **settings))
    client = await stack.enter_async_context(connected(server))
    if kept:
        for _ in range(ENGINES):
            assert (await client.post(b"/generate", GOOD)).status == 200
    assert (await client.post(b"/generate", POISON)).status == 502
    taken = sum(not mortal.alive for mortal in mortals)
    for _ in range(ENGINES):
        assert (await client.post(b"/generate", GOOD)).status == 200
    return taken


@pytest.mark.parametrize("prefill", [False, True], ids=["regular", "prefill"])
@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("kept", [False, True], ids=["new connections", "kept connections"])
async def test_a_request_that_ends_engines(kept: bool, abrupt: bool, prefill: bool) -> None:
    """Connections that were kept are closed at times just as they are used; not as often."""
    async with AsyncExitStack() as stack:
        assert await crashes(stack, kept=kept, abrupt=abrupt, prefill=prefill) == 2


@pytest.mark.parametrize("prefill", [False, True], ids=["regular", "prefill"])
async def test_a_request_on_which_engines_close_is_begun_three_times_at_most(prefill: bool) -> None:
    """They live on, and connections to all of them were kept: only the first is asked again."""
    begun = 0

    async def closes(socket: EngineSocket) -> None:
        nonlocal begun
        while (request := await socket.request()) is not None:
            if b"poison" in request.body:
                begun += 1
                return
            await socket.send(ANSWER)

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(closes)) for _ in range(ENGINES)]
        urls = [engine.url for engine in engines]
        settings: dict[str, Any] = {}
        if prefill:
            other = await stack.enter_async_context(ScriptedEngine(answering(ANSWER)))
            settings = {"pd_disaggregation": True, "prefill": tuple(urls), "decode": (other.url,)}
            settings["pd_engine"] = "vllm"
            urls = []
        server = await stack.enter_async_context(running(*urls, **settings))
        client = await stack.enter_async_context(connected(server))
        Clock(server)  # it stands still: however slow the machine is, connections close soon
        for _ in range(ENGINES):
            assert (await client.post(b"/generate", GOOD)).status == 200
        assert (await client.post(b"/generate", POISON)).status == 502
        assert begun == 3


@pytest.mark.parametrize("prefill", [False, True], ids=["regular", "prefill"])
async def test_what_an_engine_declines_the_second_time_it_may_have_begun_the_first(
    prefill: bool,
) -> None:
    """It has closed on a kept connection, and is asked again: so one more engine, and no more."""
    first, begun = "", []

    async def closes(socket: EngineSocket) -> None:
        nonlocal first
        while (request := await socket.request()) is not None:
            if b"poison" not in request.body:
                await socket.send(ANSWER)
                continue
            engine = str(socket.writer.get_extra_info("sockname"))
            begun.append(engine)
            if engine != first:
                first = first or engine
                return
            await socket.send(respond(b"busy", 503))

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(closes)) for _ in range(ENGINES)]
        urls = [engine.url for engine in engines]
        settings: dict[str, Any] = {"retry_initial_backoff_ms": 1}
        if prefill:
            other = await stack.enter_async_context(ScriptedEngine(answering(ANSWER)))
            settings |= {"pd_disaggregation": True, "prefill": tuple(urls), "decode": (other.url,)}
            settings["pd_engine"] = "vllm"
            urls = []
        server = await stack.enter_async_context(running(*urls, **settings))
        client = await stack.enter_async_context(connected(server))
        Clock(server)  # it stands still: however slow the machine is, connections close soon
        for _ in range(ENGINES):
            assert (await client.post(b"/generate", GOOD)).status == 200
        assert (await client.post(b"/generate", POISON)).status == 502
        assert begun[:2] == [first] * 2
        assert len(begun) == 3
