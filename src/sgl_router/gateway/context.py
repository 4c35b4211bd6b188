"""What all exchanges of one gateway share."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.health import HealthTable
from sgl_router.core.worker import Worker
from sgl_router.gateway.pool import ConnectionPool


class Expiring(Protocol):
    """An exchange that is under way."""

    deadline: float

    def expire(self) -> None:
        """Its time is up."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Limits of the data plane.

    Attributes:
        max_payload_bytes: of a request's body.
        request_timeout_secs: from a request's head to the end of its answer.
        request_id_headers: lower case; the first one present is the request's id.
    """

    max_payload_bytes: int
    request_timeout_secs: float
    request_id_headers: Sequence[bytes]


@dataclass(slots=True)
class GatewayContext:
    """Attributes:
    dispatcher: decides.
    health: learns of engines that cannot be reached; None where every worker counts as healthy.
    pool: connections to engines.
    settings: limits.
    new_request_id: an id for a request that has none, by path.
    loop: the event loop.
    exchanges: all that are under way.
    clock: monotonic seconds; uvloop's own are whole milliseconds, too coarse for first-token times.
    draining: whether the router is about to stop: connections are not kept any more.
    """

    dispatcher: Dispatcher
    health: HealthTable | None
    pool: ConnectionPool
    settings: GatewaySettings
    new_request_id: Callable[[str], str]
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float] = time.perf_counter
    exchanges: set[Expiring] = field(default_factory=set)
    draining: bool = False

    def observe(self, worker: Worker, *, ok: bool) -> bool:
        """Count an observation for the worker's health; True where it changed that."""
        return self.health is not None and self.health.observe(worker, ok)

    def observe_answer(self, worker: Worker) -> None:
        """A worker that answers ends a row of failures, though it is not checked for that."""
        if worker.streak and worker.healthy:
            self.observe(worker, ok=True)
