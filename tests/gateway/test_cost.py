"""What a request and a chunk cost in calls of Python functions: a bound on work, not on time.

The figures of benchmarks/overhead.py follow these; a change that passes a bound here is measured
there before the bound is moved.
"""

import asyncio
import gc
import os
import sys
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, cast

import pytest

from sgl_router.gateway.connection import Outbox
from sgl_router.gateway.downstream import ClientConnection, Clients
from sgl_router.gateway.upstream import EngineConnection
from tests.gateway.support import running

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 200 + b'"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: router:30000\r\nContent-Type: application/json"
    b"\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 600\r\n\r\n" + (
    b"x" * 600
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"5f\r\n%b\r\n" % (b"data: " + b"y" * 87 + b"\n\n")


class Sink:
    """A transport that takes everything and does nothing."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> "Sink":
        return self  # as a socket

    def fileno(self) -> int:
        """Of a file on which nothing ever comes."""
        number = os.eventfd(0)
        weakref.finalize(self, os.close, number)
        return number

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Pair:
    """A client's and an engine's connection to one router, without sockets."""

    def __init__(self, outbox: Outbox, client: ClientConnection, engine: EngineConnection) -> None:
        self.outbox, self.client, self.engine = outbox, client, engine
        self.to_client, self.to_engine = Sink(), Sink()
        client.connection_made(cast(asyncio.Transport, self.to_client))
        engine.connection_made(cast(asyncio.Transport, self.to_engine))

    def unary(self) -> None:
        self.client.data_received(REQUEST)
        self.outbox.write_out()
        self.engine.data_received(ANSWER)
        self.outbox.write_out()

    def chunk(self) -> None:
        self.engine.data_received(CHUNK)
        self.outbox.write_out()


@asynccontextmanager
async def paired(policy: str) -> AsyncIterator[Pair]:
    async with running("http://127.0.0.1:1", policy=policy) as server:
        assert server._gateway is not None
        context = server._gateway._context
        (worker,) = server.registry
        pair = Pair(
            context.outbox,
            ClientConnection(context, Clients()),
            EngineConnection(context.outbox, worker, lambda _: None),
        )
        context.pool.put(pair.engine, context.clock() + 3600)
        for _ in range(3):
            pair.unary()
        yield pair
        context.pool.forget(worker)


def calls_of(action: Callable[[], None]) -> Counter[str]:
    """The Python functions called, by file and name."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "sgl_router" in frame.f_code.co_filename:
            calls[
                f"{frame.f_code.co_filename.rpartition('sgl_router/')[2]}:{frame.f_code.co_name}"
            ] += 1

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("policy", "bound"), [("round_robin", 74), ("least_connections", 86)])
async def test_calls_for_a_request(policy: str, bound: int) -> None:
    async with paired(policy) as pair:
        tasks = asyncio.all_tasks()
        pair.to_client.writes.clear()
        pair.to_engine.writes.clear()
        calls = calls_of(pair.unary)
        assert calls.total() <= bound, calls.most_common()
        assert len(pair.to_client.writes) == len(pair.to_engine.writes) == 1
        assert asyncio.all_tasks() == tasks, "a request on a kept connection has no task"


async def test_calls_for_a_chunk() -> None:
    async with paired("round_robin") as pair:
        pair.client.data_received(REQUEST)
        pair.engine.data_received(STREAM + CHUNK)
        pair.outbox.write_out()
        pair.to_client.writes.clear()
        calls = calls_of(pair.chunk)
        assert calls.total() <= 8, calls.most_common()
        assert pair.to_client.writes == [CHUNK], "one write, and the bytes as they came"
        pair.engine.data_received(b"0\r\n\r\n")


@pytest.mark.parametrize("policy", ["round_robin", "least_connections", "cache_aware"])
async def test_requests_leave_no_cycles(policy: str) -> None:
    async with paired(policy) as pair:
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                pair.unary()
            assert gc.collect() < 50, "less than an object for each request"
        finally:
            gc.enable()
