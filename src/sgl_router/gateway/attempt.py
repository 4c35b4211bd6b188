"""One placement of a request on one worker: the load that it counts, and the connection."""

import asyncio
from typing import Protocol

from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.forwarding import speaks_for_engine
from sgl_router.gateway.upstream import EngineConnection, ResponseReceiver

IDLE_CLOSE_SECS = 0.5
"""A kept connection that is closed this soon after it was used again was about to be closed anyway;
later, the engine had the request and may have worked on it."""


class AttemptOwner(ResponseReceiver, Protocol):
    """Whose attempt it is; the engine's connection tells it of the answer."""

    def on_connected(self, attempt: "Attempt") -> None:
        """The request can be sent."""

    def on_unreachable(self, attempt: "Attempt", error: EngineError) -> None:
        """There is no connection to the worker that could be used; its health is looked after."""


class Attempt:
    """See the module.

    Attributes:
        worker: where the request was placed.
        engine: the connection, once there is one.
        sent_at: when the request's head was written, in seconds of the gateway's clock.
        redialled: whether a kept connection was closed on the request without a byte.
        status: the answer's, once its head has come.
        first_byte_at: when the answer's body began, in seconds of the gateway's clock, or None.
    """

    engine: EngineConnection | None = None
    sent_at = 0.0
    redialled = False
    status: int | None = None
    first_byte_at: float | None = None
    _late = False
    _dial: asyncio.Task[None] | None = None

    def __init__(
        self, context: GatewayContext, decision: Decision, owner: AttemptOwner, started_at: float
    ) -> None:
        """`started_at`: when the request came, in seconds of the gateway's clock."""
        self._context = context
        self._decision = decision
        self._owner = owner
        self._started_at = started_at
        self.worker: Worker = decision.worker

    def start(self) -> None:
        """Take a kept connection, or make one."""
        self.engine = self._context.pool.take(self.worker)
        if self.engine is not None:
            self._owner.on_connected(self)
        else:
            self.redial()

    def redial(self) -> None:
        """Make a connection, in place of one that was closed on the request or as the first."""
        if self.engine is not None:
            self.redialled = True
            self.engine = None
        self._dial = self._context.loop.create_task(self._connect())

    async def _connect(self) -> None:
        context = self._context
        try:
            self.engine = await context.pool.dial(self.worker)
        except EngineError as error:
            self._dial = None
            if not error.local:
                context.observe_failure(self.worker, str(error))
            self._owner.on_unreachable(self, error)
        else:
            self._dial = None
            if self.worker.tls or self.engine.usable:  # TLS has words of its own after a handshake
                self._owner.on_connected(self)
                return
            self.engine.abort()
            self.engine = None
            context.suspect(self.worker)
            spoke = EngineError(f"{self.worker.url} speaks before it is asked")
            self._owner.on_unreachable(self, spoke)

    def send(self, head: bytes, body: bytes) -> None:
        """Write the head, and what is there of the body."""
        assert self.engine is not None, "it is connected"
        self.sent_at = self._context.clock()
        self.engine.send(self._owner, head, body)

    def waited(self, now: float) -> float:
        """Seconds since the engine was sent the request's head."""
        return now - self.sent_at if self.engine is not None else 0.0

    def blame(self) -> None:
        """It took too long; that is its engine's fault, if it was not kept from answering."""
        self._late = self.engine is not None and not self.engine.reading.held

    def closed_idle(self) -> bool:
        """Whether a lost connection was one that the engine was about to close anyway."""
        engine = self.engine
        return (
            engine is not None
            and engine.reused
            and not engine.heard
            and self._context.clock() - self.sent_at < IDLE_CLOSE_SECS
        )

    def first_byte(self) -> None:
        """The answer has begun."""
        decision = self._decision
        if decision.pending_tokens or decision.probe:
            assert self.status is not None, "its head has come"
            self._context.dispatcher.first_byte(decision, speaks_for_engine(self.status))

    def _abort(self) -> None:
        """Close the connection, or stop making one."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self.engine is not None:
            self.engine.abort()
            self.engine = None

    def finish(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        """Give the connection and the load back, once, and tell what came of it.

        Args:
            error, engine_ok: as in `Outcome`.
            keep: whether the connection can have another request, if all of this one was taken.
        """
        context, engine, started = self._context, self.engine, self._started_at
        status, first_byte_at = self.status, self.first_byte_at
        now, pieces = context.clock(), 0
        if engine is not None:
            pieces = engine.pieces if engine.heard else 0  # else they are those of the last answer
            if keep and not engine.unsent:
                context.pool.put(engine, now)
                self.engine = None
        self._abort()
        context.dispatcher.complete(
            self._decision,
            Outcome(
                self.worker.url,
                error is None and status is not None and status < 500,
                status,
                None if first_byte_at is None else (first_byte_at - started) * 1000,
                (now - started) * 1000,
                pieces,
                error,
                False if self._late else engine_ok,
            ),
        )
