"""What the control plane asks of engines: several at once, and what comes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import orjson
from fastapi import APIRouter, Request, Response

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import CHANGE, described
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import (
    ErrorBody,
    Flushed,
    FlushFailure,
    Loads,
    PartlyFlushed,
    WorkerLoad,
)
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import EngineError, RequestError

_T = TypeVar("_T")

MAX_AT_ONCE = 64
"""Workers asked at a time: each takes a connection, which requests need too."""

LOADS_TIMEOUT_SECS = 5.0
FLUSH_TIMEOUT_SECS = 30.0
"""An engine flushes when no request runs on it, or refuses to."""


async def ask_each(
    workers: Iterable[Worker], ask: Callable[[Worker], Awaitable[_T]]
) -> list[_T | EngineError]:
    """What each worker answers, or why it does not, in their order."""
    slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(worker: Worker) -> _T | EngineError:
        async with slots:
            try:
                return await ask(worker)
            except EngineError as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(worker)) for worker in workers]
    return [task.result() for task in tasks]


def authorization(worker: Worker, request: Request | None = None) -> bytes:
    """The header line for the worker's own key, else for what the client has shown, if it may."""
    shown = None if request is None else request.headers.get("authorization")
    if worker.api_key is not None:
        shown = f"Bearer {worker.api_key}"
    return b"" if shown is None else b"Authorization: %b\r\n" % shown.encode("latin-1")


class Engines:
    """`/flush_cache` and `/get_loads`."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def add_routes(self, router: APIRouter) -> None:
        router.post(
            "/flush_cache",
            response_model=Flushed,
            responses={
                206: {"model": PartlyFlushed, "description": "Some engines did not"},
                **CHANGE,
                **described(502, ErrorBody, "No engine did"),
            },
        )(self.flush_cache)
        router.get("/get_loads", response_model=Loads)(self.get_loads)

    async def flush_cache(self) -> Response:
        """Have all engines drop their prefix caches (SGLang's `/flush_cache`)."""
        workers = list(self._control.registry)
        answers = await ask_each(workers, self._flush)
        successful: list[str] = []
        failed: list[FlushFailure] = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, EngineError):
                failed.append(FlushFailure(worker.url, str(answer)))
            else:
                successful.append(worker.url)
        done, total = len(successful), len(workers)
        if failed and not done:
            shown = "; ".join(failure.error for failure in failed)[:1000]
            raise RequestError(502, "call_upstream_error", f"no cache was flushed: {shown}")
        if failed:
            message = f"Cache flush: {done} succeeded, {len(failed)} failed"
            partly = PartlyFlushed(
                "partial_success", message, done, total, total, successful, failed
            )
            return json_reply(partly, 206)
        message = f"Successfully flushed cache on all {total} workers"
        if not workers:
            message = "There are no workers whose cache could be flushed"
        return json_reply(Flushed("success", message, done, total, total))

    async def get_loads(self) -> Response:
        """Each worker's load: tokens by its engine, and requests by this router."""
        workers = list(self._control.registry)
        answers = await ask_each(workers, self._tokens)
        return json_reply(
            Loads(
                [
                    WorkerLoad(
                        worker.url, -1 if isinstance(answer, EngineError) else answer, worker.load
                    )
                    for worker, answer in zip(workers, answers, strict=True)
                ]
            )
        )

    async def _flush(self, worker: Worker) -> None:
        path = "/flush_cache"
        status, _, _ = await self._control.fetch(
            worker, path, FLUSH_TIMEOUT_SECS, authorization(worker), method=b"POST"
        )
        if not 200 <= status < 300:
            raise EngineError(f"{worker.url}{path} answered {status}")
        self._control.cache_flushed(worker)

    async def _tokens(self, worker: Worker) -> int:
        path = "/get_load"
        if worker.health is Health.DOWN:
            raise EngineError(f"{worker.url} is down")
        status, body, _ = await self._control.fetch(
            worker, path, LOADS_TIMEOUT_SECS, authorization(worker)
        )
        tokens = _tokens_in(body) if status == 200 else None
        if tokens is None:
            raise EngineError(f"{worker.url}{path} answered {status}, not a load")
        return tokens


def _tokens_in(body: bytes) -> int | None:
    """The tokens on an SGLang engine: the sum over its data-parallel ranks."""
    try:
        ranks = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(ranks, list) or not ranks:
        return None
    counts = [rank.get("num_tokens") if isinstance(rank, dict) else None for rank in ranks]
    numbers = [count for count in counts if type(count) is int and count >= 0]
    return sum(numbers) if len(numbers) == len(ranks) else None
