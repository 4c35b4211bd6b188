"""What the router answers itself, and which paths it passes on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from sgl_router.core.worker import Health, Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.exchange import ClientSide
from sgl_router.gateway.fetch import fetch
from sgl_router.gateway.replies import error_reply, request_id_of
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import encode_response

_log = logging.getLogger(__name__)

MODELS_TIMEOUT_SECS = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


Handler = Callable[[GatewayContext, RequestHead], Awaitable[Reply]]


async def _ok(_context: GatewayContext, _head: RequestHead) -> Reply:
    """The router's process is alive; whether it can serve is for /readiness to say."""
    return Reply(200, b"OK", b"text/plain; charset=utf-8")


async def _readiness(context: GatewayContext, _head: RequestHead) -> Reply:
    registry = context.dispatcher.registry
    healthy = len(registry.view().eligible)
    if context.draining or not healthy:
        reason = "draining" if context.draining else "insufficient healthy workers"
        return Reply(503, orjson.dumps({"status": "not ready", "reason": reason}))
    return Reply(
        200,
        orjson.dumps(
            {"status": "ready", "healthy_workers": healthy, "total_workers": len(registry)}
        ),
    )


_STATUS_WORDS = {
    Health.UNKNOWN: "pending",
    Health.UP: "ready",
    Health.DOWN: "not_ready",
    Health.DRAINING: "draining",
}


async def _workers(context: GatewayContext, _head: RequestHead) -> Reply:
    registry = context.dispatcher.registry
    workers = [
        {
            "id": worker.id,
            "url": worker.url,
            "worker_type": "regular",
            "is_healthy": worker.healthy,
            "status": _STATUS_WORDS[worker.health],
            "load": worker.load,
        }
        for worker in registry
    ]
    stats = {"prefill_count": 0, "decode_count": 0, "regular_count": len(workers)}
    return Reply(200, orjson.dumps({"workers": workers, "total": len(workers), "stats": stats}))


async def _models(context: GatewayContext, head: RequestHead) -> Reply:
    """The union of what the healthy workers list; of several with one id, the first."""
    workers = [worker for worker in context.dispatcher.registry if worker.healthy]
    if not workers:
        raise RequestError(503, "no_available_workers", "no worker is healthy")
    key = head.get(b"authorization")
    headers = b"" if key is None else b"Authorization: %b\r\n" % key
    results = await asyncio.gather(
        *(_models_of(worker, headers) for worker in workers), return_exceptions=True
    )
    models: dict[str, object] = {}
    failures: list[str] = []
    for result in results:
        if isinstance(result, EngineError):
            failures.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            for model in result:
                models.setdefault(model["id"], model)
    if len(failures) == len(workers):
        raise RequestError(502, "call_upstream_error", "; ".join(failures)[:1000])
    return Reply(200, orjson.dumps({"object": "list", "data": list(models.values())}))


async def _models_of(worker: Worker, headers: bytes) -> list[dict[str, Any]]:
    status, body = await fetch(worker, "/v1/models", MODELS_TIMEOUT_SECS, headers)
    try:
        data = orjson.loads(body)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise EngineError(f"{worker.url}/v1/models answered {status}, not a list") from error
    if status != 200 or not isinstance(data, list):
        raise EngineError(f"{worker.url}/v1/models answered {status}, not a list")
    return [model for model in data if isinstance(model, dict) and isinstance(model.get("id"), str)]


_LOCAL: dict[str, Handler] = {
    "/health": _ok,
    "/liveness": _ok,
    "/readiness": _readiness,
    "/workers": _workers,
    "/v1/models": _models,
}
_POST_ONLY = frozenset({"/generate", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"})


def route(head: RequestHead) -> Handler | None:
    """The handler of a path that the router answers itself; None: it is passed on to a worker.

    Raises RequestError: 404 for a path that is neither, 405 for a method that it does not take.
    """
    path = head.path
    handler = _LOCAL.get(path)
    if handler is not None:
        if head.method not in (b"GET", b"HEAD"):
            raise _method_not_allowed(head, "GET")
        return handler
    if path in _POST_ONLY and head.method != b"POST":
        raise _method_not_allowed(head, "POST")
    if path in _POST_ONLY or path.startswith("/v1/"):
        return None
    raise RequestError(404, "unknown_url", f"there is nothing at {path!r:.200}")


def _method_not_allowed(head: RequestHead, allowed: str) -> RequestError:
    return RequestError(
        405,
        "method_not_allowed",
        f"{head.method.decode()} is not allowed at {head.path}; use {allowed}",
    )


class LocalExchange:
    """One request that the router answers itself; the same callbacks as a proxied one."""

    __slots__ = ("_client", "_context", "_head", "_task", "deadline")

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        self._context = context
        self._client = client
        self._head = head
        self._task: asyncio.Task[None] | None = None
        self.deadline = context.clock() + context.settings.request_timeout_secs

    def start(self) -> None:
        self._context.exchanges.add(self)
        self._task = self._context.loop.create_task(self._answer())

    def on_body(self, data: bytes) -> None:
        """Nothing here reads a body."""

    def on_body_end(self) -> None:
        """The answer does not wait for it."""

    def on_read(self) -> None:
        """Nothing is passed on."""

    def on_client_gone(self) -> None:
        self._context.exchanges.discard(self)
        if self._task is not None:
            self._task.cancel()

    def refuse(self, error: ProtocolError) -> None:
        self.on_client_gone()
        self._client.cut_off()

    def expire(self) -> None:
        self.on_client_gone()
        self._client.cut_off()

    def pause_engine(self) -> None:
        """There is none."""

    def resume_engine(self) -> None:
        """There is none."""

    async def _answer(self) -> None:
        head, context = self._head, self._context
        request_id = request_id_of(head, context, head.path).header
        keep_alive = head.keep_alive and not context.draining
        with_body = head.method != b"HEAD"
        try:
            handler = route(head)
            assert handler is not None, "the caller proxies what has no handler"
            reply = await handler(context, head)
            answer = encode_response(
                reply.status,
                reply.body,
                content_type=reply.content_type,
                keep_alive=keep_alive,
                extra=[request_id],
                with_body=with_body,
            )
        except RequestError as error:
            answer = error_reply(error, request_id, keep_alive=keep_alive, with_body=with_body)
        except Exception:  # noqa: BLE001 (the outermost callback: the client gets an answer)
            _log.exception("GET %s failed", head.path)
            failed = RequestError(500, "internal_error", "the router failed; its log says why")
            answer = error_reply(failed, request_id, keep_alive=keep_alive, with_body=with_body)
        context.exchanges.discard(self)
        self._client.write(answer)
        self._client.answered(keep_alive=keep_alive)
