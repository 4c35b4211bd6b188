"""A router in front of engines for prefill and decode, and scripts for these."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import orjson
import pytest

from sgl_router.server import RouterServer
from tests.gateway.support import (
    Client,
    EngineSocket,
    Placements,
    Request,
    Script,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
)

BODY = b'{"text": "hello", "stream": true}'
PREFILLED = orjson.dumps({"kv_transfer_params": {"remote_engine_id": "e"}})
STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n"
)
BUSY = b"Retry-After: 7\r\n"
ENGINES = pytest.mark.parametrize("pd_engine", ["sglang", "vllm"])


@asynccontextmanager
async def pairs(
    prefill: Sequence[Script | str], decode: Sequence[Script | str], **settings: Any
) -> AsyncIterator[tuple[RouterServer, Client]]:
    """A router in front of engines that follow these scripts, or are at these URLs."""
    async with AsyncExitStack() as stack:
        urls: list[list[str]] = [[], []]
        for half, scripts in zip(urls, (prefill, decode), strict=True):
            for given in scripts:
                if isinstance(given, str):
                    half.append(given)
                else:
                    half.append((await stack.enter_async_context(ScriptedEngine(given))).url)
        settings = {"retry_initial_backoff_ms": 1, "retry_max_backoff_ms": 1, **settings}
        server = await stack.enter_async_context(
            running(
                pd_disaggregation=True,
                prefill=tuple(urls[0]),
                decode=tuple(urls[1]),
                **settings,
            )
        )
        yield server, await stack.enter_async_context(connected(server))


def prefilling(seen: list[Request] | None = None) -> Script:
    return answering(respond(PREFILLED), seen)


def decoding(seen: list[Request] | None = None) -> Script:
    return answering(respond(b"decoded"), seen)


def busy(status: int, seen: list[Request] | None = None) -> Script:
    return answering(respond(b"busy", status, BUSY), seen)


class Silent:
    """Takes requests and says nothing, until the test says something for it."""

    def __init__(self, begin: bytes = b"") -> None:
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self._begin = begin
        self._writer: asyncio.StreamWriter | None = None

    async def __call__(self, socket: EngineSocket) -> None:
        self._writer = socket.writer
        await socket.request()
        await socket.send(self._begin)
        self.asked.set()
        with suppress(ConnectionResetError):
            await socket.reader.read()
        self.closed.set()

    def say(self, data: bytes) -> None:
        assert self._writer is not None, "it has been asked"
        self._writer.write(data)

    def die(self) -> None:
        assert self._writer is not None, "it has been asked"
        self._writer.close()


async def send(client: Client, body: bytes = BODY) -> None:
    await client.send(
        b"POST /generate HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def judged(placements: Placements) -> dict[str, list[bool | None]]:
    """What the outcomes said of prefill and of decode engines."""
    said: dict[str, list[bool | None]] = {"prefill": [], "decode": []}
    for decision, outcome in placements.done:
        said[decision.worker.role].append(outcome.engine_ok)
    return said
