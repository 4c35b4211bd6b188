"""What all requests of one gateway share."""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.health import HealthTable
from sgl_router.core.retry import RetrySettings
from sgl_router.core.worker import Worker
from sgl_router.errors import RequestError
from sgl_router.gateway.admission import AdmissionGate
from sgl_router.gateway.connection import Outbox
from sgl_router.gateway.handler import RequestHandler
from sgl_router.gateway.pool import ConnectionPool
from sgl_router.http1.request import ASKED, RequestHead

_log = logging.getLogger(__name__)

EXPOSED_HEADERS = ("location", "retry-after", "x-request-id", "x-smg-routed-worker-id")
"""What a page of another origin may read of an answer, besides what any page may."""

_EXPOSE_LINE = b"Access-Control-Expose-Headers: %b\r\n" % ", ".join(EXPOSED_HEADERS).encode("ascii")

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]
"""An ASGI 3 application."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Limits of the data plane; times in seconds, None: no limit.

    Attributes:
        max_payload_bytes: of a request's body.
        request_timeout: from a request's head to the end of its answer.
        first_byte_timeout: from the request's dispatch to the head of the engine's answer.
        stream_idle_timeout: between two pieces of an answer, or of what the client takes of it.
        head_timeout: for a client to send a head.
        body_timeout: between two pieces of a request's body.
        keep_alive_timeout: for a client's connection without a request.
        request_id_headers: lower case; the first one present is the request's id.
        retry: whether and when other workers are tried.
        pd_engine: which protocol the two halves of a disaggregated request speak; None: requests
            are not disaggregated.
        api_key: what clients of the data plane must show; None: nothing.
        cors_origins: whose pages may read answers; `*` for all.
    """

    max_payload_bytes: int
    request_timeout: float
    first_byte_timeout: float | None
    stream_idle_timeout: float | None
    head_timeout: float
    body_timeout: float
    keep_alive_timeout: float
    request_id_headers: Sequence[bytes]
    retry: RetrySettings
    pd_engine: str | None = None
    api_key: bytes | None = field(default=None, repr=False)
    cors_origins: frozenset[bytes] = frozenset()


class Counters(Protocol):
    """What the gateway counts besides placements, which the dispatcher tells of."""

    def count_error(self, code: str) -> None:
        """A request was answered by the router itself, with an error."""

    def count_retry(self, reason: str) -> None:
        """A request is given to another worker."""

    def count_aborted(self) -> None:
        """A client left before its answer was complete."""


@dataclass(slots=True)
class GatewayContext:
    """See the module.

    Attributes:
        dispatcher: decides.
        health: learns of engines that cannot be reached; None where every worker counts as healthy.
        suspect: told of a worker that may have gone, to be checked at once.
        outbox: what is written to connections, of either side.
        pool: connections to engines.
        admission: how many requests may be under way; None: any number.
        settings: limits.
        counters: for the metrics.
        loop: the event loop.
        requests: all that are under way.
        new_id: an id for a request that has none, by path.
        app: answers what is not for an engine; set before anybody listens.
        clock: monotonic seconds; uvloop's own are whole milliseconds, too coarse for the time to
            first token.
        draining: whether the router is about to stop: connections are not kept any more.
        unusual_ids: whether a request's id may stand in a header that heads are not searched for.
    """

    dispatcher: Dispatcher
    health: HealthTable | None
    suspect: Callable[[Worker], None]
    outbox: Outbox
    pool: ConnectionPool
    admission: AdmissionGate | None
    settings: GatewaySettings
    counters: Counters
    loop: asyncio.AbstractEventLoop
    new_id: Callable[[str], str]
    app: AsgiApp = field(init=False)
    clock: Callable[[], float] = time.perf_counter
    requests: set[RequestHandler] = field(default_factory=set)
    draining: bool = False
    unusual_ids: bool = field(init=False)
    via_line: bytes = field(init=False)
    _pseudonym: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._pseudonym = b"sgl-router-" + os.urandom(8).hex().encode("ascii")
        self.unusual_ids = not ASKED.issuperset(self.settings.request_id_headers)

        self.via_line = b"Via: 1.1 %b\r\n" % self._pseudonym

    def refuse_loop(self, head: RequestHead) -> None:
        """Raises RequestError (508) where this router has forwarded the request before."""
        if head.get(b"via") is not None and self._pseudonym in head.raw:
            raise RequestError(
                508,
                "loop_detected",
                "this router has forwarded the request before: a worker's URL leads back to it "
                "(option --worker-urls)",
            )

    def observe_failure(self, worker: Worker, why: str) -> None:
        """Count a connection that failed for the worker's health."""
        if self.health is not None:
            if self.health.observe(worker, False):
                _log.warning("%r: %s", worker, why)
            self.suspect(worker)

    def observe_answer(self, worker: Worker) -> None:
        """A worker that answers ends a row of failures, though it is not checked for that."""
        if worker.healthy and self.health is not None:
            self.health.observe(worker, True)

    def authorize(self, head: RequestHead) -> None:
        """Raises RequestError (401) where the client does not show the data plane's key."""
        key = self.settings.api_key
        if key is None:
            return
        scheme, _, shown = (head.get(b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            shown = head.get(b"x-api-key") or b""
        if not hmac.compare_digest(shown.strip(), key):
            raise RequestError(
                401, "invalid_api_key", "the API key is missing or wrong (Authorization: Bearer …)"
            )

    def cors(self, head: RequestHead) -> bytes:
        """The header lines that let a page of another origin read the answer.

        Where they depend on the origin, `Vary` says so on every answer, lest a cache gives one
        page what was meant for another (Fetch standard, CORS protocol and HTTP caches).
        """
        origins = self.settings.cors_origins
        if not origins:
            return b""
        if b"*" in origins:
            return b"Access-Control-Allow-Origin: *\r\n" + _EXPOSE_LINE
        origin = head.get(b"origin")
        if origin is None or origin not in origins:
            return b"Vary: Origin\r\n"
        return b"Vary: Origin\r\nAccess-Control-Allow-Origin: %b\r\n%b" % (origin, _EXPOSE_LINE)
