"""One proxied request, from its first byte to the last of its answer.

    head ──▶ (collect the body, where the policy reads it) ──▶ dispatch ──▶ connection ──▶ send
                                                                  ▲                          │
                                                                  └── nothing came back ◀────┤
                                                                                             ▼
                                                            answer, chunk by chunk ──▶ finish

The load that `dispatch` counts is given back in exactly one place, `_complete`.
"""

import asyncio
import logging
from typing import Protocol

from sgl_router.core.dispatch import Decision
from sgl_router.core.policy import Outcome
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.flow import Hold, ReadGate
from sgl_router.gateway.replies import error_reply, request_id_of
from sgl_router.gateway.upload import Upload
from sgl_router.gateway.upstream import EngineConnection
from sgl_router.http1.head import END, LAST_CHUNK, chunk
from sgl_router.http1.request import RequestHead, encode_request_head
from sgl_router.http1.response import ResponseEvent, ResponseHead, encode_response_head

_log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 1024
"""The client is held back when this much of a body waits for a connection."""

IDLE_CLOSE_SECS = 0.5
"""A kept connection that is closed this soon after it was used again was about to be closed anyway;
later, the engine had the request and may have worked on it."""

MAX_ATTEMPTS = 6
"""Workers asked for one request; sglang-router's default is five retries."""


class ClientSide(Protocol):
    """What an exchange needs of the client's connection."""

    reading: ReadGate

    def write(self, data: bytes) -> None: ...
    def answered(self, *, keep_alive: bool) -> None: ...
    def cut_off(self) -> None: ...


class Exchange:
    """See the module. Every method is a callback: of the client, the engine or the clock."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_client",
        "_closed_on",
        "_collect",
        "_context",
        "_decision",
        "_dial",
        "_engine",
        "_first_byte_at",
        "_head",
        "_keep_alive",
        "_request",
        "_request_id",
        "_response",
        "_sent_at",
        "_started_at",
        "_upload",
        "client_reading",
        "deadline",
    )

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        self._context = context
        self._client = client
        self.client_reading = client.reading
        self._head = head
        path = head.path
        self._request_id = request_id_of(head, context, path)
        self._request = RequestView(self._request_id.value, path)
        self._started_at = context.clock()
        self.deadline = self._started_at + context.settings.request_timeout_secs
        self._collect = context.dispatcher.policy.needs_body
        self._upload = Upload(chunked=head.chunked)
        self._decision: Decision | None = None
        self._dial: asyncio.Task[None] | None = None
        self._engine: EngineConnection | None = None
        self._response: ResponseHead | None = None
        self._keep_alive = False
        self._chunked = False
        self._chunks = 0
        self._first_byte_at: float | None = None
        self._closed_on = False
        self._sent_at = 0.0

    # ---- the client's side

    def start(self) -> None:
        """The head is there."""
        self._context.exchanges.add(self)
        limit = self._context.settings.max_payload_bytes
        if (self._head.content_length or 0) > limit:
            # A client that was not told to go on may leave its body out.
            self._fail(_too_large(limit), close=self._head.expects_continue)
            return
        if self._head.expects_continue:
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A piece of the request's body."""
        self._upload.add(data)
        limit = self._context.settings.max_payload_bytes
        if self._upload.received > limit:
            self._fail(_too_large(limit))

    def on_body_end(self) -> None:
        """The request is complete."""
        self._upload.over = True

    def on_read(self) -> None:
        """All that one read from the client completed has been told: act on it, with one write."""
        upload = self._upload
        if self._engine is not None:
            self._send_on(self._engine, upload.take())
            if not self._collect:
                upload.forget_sent()
        elif self._decision is None and (upload.over or not self._collect):
            if self._collect:
                self._request.body = upload.whole()
            self._place()
        if self._dial is not None and upload.received > WAITING_BYTES and not self._collect:
            self.client_reading.hold(Hold.NO_ENGINE)

    def on_client_gone(self) -> None:
        """Nobody waits for the answer any more: the engine may stop."""
        self._end("the client closed the connection")

    def refuse(self, error: ProtocolError) -> None:
        """The rest of the request is not HTTP."""
        self._fail(RequestError(error.status, "bad_request", str(error)), close=True)

    def pause_engine(self) -> None:
        if self._engine is not None:
            self._engine.reading.hold(Hold.PEER_FULL)

    def resume_engine(self) -> None:
        if self._engine is not None:
            self._engine.reading.release(Hold.PEER_FULL)

    # ---- from the decision to the engine

    def _place(self) -> None:
        try:
            self._decision = decision = self._context.dispatcher.dispatch(self._request)
        except RequestError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001 (a policy may be anybody's; the client gets an answer)
            _log.exception("request %.200s: the policy failed", self._request.id)
            self._fail(RequestError(500, "internal_error", "the router failed; its log says why"))
        else:
            engine = self._context.pool.take(decision.worker)
            if engine is not None:
                self._send(engine)
            else:
                self._dial = self._context.loop.create_task(self._connect(decision.worker))

    async def _connect(self, worker: Worker) -> None:
        try:
            engine = await self._context.pool.dial(worker)
        except EngineError as error:
            self._dial = None
            if not error.local and self._context.observe(worker, ok=False):
                _log.warning("%r: %s", worker, error)
            self._try_another(worker, error)
        else:
            self._dial = None
            self._send(engine)

    def _send(self, engine: EngineConnection) -> None:
        """Write the head, and as much of the body as is there; the rest follows as it comes."""
        self._engine = engine
        self._sent_at = self._context.clock()
        head, worker = self._head, engine.worker
        engine.begin(self, head_request=head.method == b"HEAD")
        self._upload.rewind()
        request_id = self._request_id.added
        encoded = encode_request_head(head, worker.authority, worker.prefix, request_id)
        self._send_on(engine, [encoded, *self._upload.take()])
        self.client_reading.release(Hold.NO_ENGINE)

    def _send_on(self, engine: EngineConnection, parts: list[bytes]) -> None:
        if parts:
            engine.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def _try_another(self, worker: Worker, error: EngineError) -> None:
        """Not one byte of an answer has arrived: another worker may have the request."""
        self._complete(str(error))
        self._request.attempt += 1
        if self._upload.over and self._upload.replayable:
            # The policy in use now may read it, though the one at the head did not.
            self._request.body = self._upload.whole()
        self._request.excluded |= {worker}
        left = self._context.dispatcher.registry.view(self._request.excluded).eligible
        if left and self._upload.replayable and self._request.attempt < MAX_ATTEMPTS:
            self._place()
        else:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))

    # ---- the engine's side

    def on_response(self, events: list[ResponseEvent]) -> None:
        """What one read from the engine completed; passed on with one write."""
        out: list[bytes] = []
        for i, event in enumerate(events):
            if type(event) is bytes:
                self._chunks += 1
                if self._first_byte_at is None:
                    self._first_byte_at = self._context.clock()
                out.append(chunk(event) if self._chunked else event)
            elif isinstance(event, ResponseHead):
                out.append(self._answer_head(event))
            elif event is END:
                if self._chunked:
                    out.append(LAST_CHUNK)
                self._write(out)
                self._answered(reusable=i == len(events) - 1)
                return
            else:
                assert isinstance(event, ProtocolError)
                self._write(out)
                self._broken(EngineError(f"{self._worker().url}: {event}"))
                return
        self._write(out)

    def on_engine_lost(self, events: list[ResponseEvent]) -> None:
        """The engine's connection is gone; a body that lasts until then is complete."""
        engine, self._engine = self._engine, None
        assert engine is not None and self._decision is not None, "an exchange was on it"
        self.client_reading.release(Hold.PEER_FULL)  # it will not say any more that it has room
        if events == [END]:
            if self._chunked:
                self._client.write(LAST_CHUNK)
            self._answered(reusable=False)
            return
        error = EngineError(f"{engine.worker.url} closed the connection before its answer's end")
        if self._response is not None or engine.heard:
            self._broken(error)
        elif (
            engine.reused
            and self._upload.replayable
            and self._context.clock() - self._sent_at < IDLE_CLOSE_SECS
        ):
            # An engine closes its kept connections when it likes, also just now: that says
            # nothing of the worker, and the request has hardly been read.
            self._dial = self._context.loop.create_task(self._connect(engine.worker))
        elif self._closed_on:
            # Twice may be the request's own fault: it must not go through all the workers.
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))
        else:
            self._closed_on = True
            self._try_another(engine.worker, error)

    def expire(self) -> None:
        """The time for the whole request is over. Never tried again: it may be generating."""
        secs = self._context.settings.request_timeout_secs
        self._fail(
            RequestError(
                504,
                "call_upstream_timeout",
                f"no complete answer within {secs:g} s (option --request-timeout-secs)",
            )
        )

    def _answer_head(self, response: ResponseHead) -> bytes:
        head = self._head
        self._response = response
        self._context.observe_answer(self._worker())
        ends_with_connection = head.http10 and (response.chunked or response.until_close)
        self._keep_alive = (
            head.keep_alive and not self._context.draining and not ends_with_connection
        )
        answer_id = self._request_id.header
        encoded, self._chunked = encode_response_head(
            response,
            to_http10=head.http10,
            keep_alive=self._keep_alive,
            extra=[] if response.get(answer_id[0]) is not None else [answer_id],
        )
        return encoded

    def _write(self, out: list[bytes]) -> None:
        if out:
            self._client.write(out[0] if len(out) == 1 else b"".join(out))

    def _answered(self, *, reusable: bool) -> None:
        response, engine, self._engine = self._response, self._engine, None
        assert response is not None, "the end of an answer comes after its head"
        if engine is not None:
            # A HEAD request's connection cannot be told where its answer ends, so it is not kept.
            if (
                reusable
                and response.keep_alive
                and self._upload.over
                and engine.all_sent
                and self._head.method != b"HEAD"
            ):
                self._context.pool.put(engine, self._context.clock())
            else:
                engine.abort()
        self._finish(None)
        self._client.answered(keep_alive=self._keep_alive)

    # ---- ends

    def _broken(self, error: EngineError) -> None:
        """The engine broke off or answered nonsense."""
        _log.warning("request %s: %s", self._request.id, error)
        if self._response is None:
            self._fail(RequestError(502, "call_upstream_protocol_error", str(error)))
        else:
            # A cut is the only honest end: the client must not take it for a complete answer.
            self._end(str(error))
            self._client.cut_off()

    def _fail(self, error: RequestError, *, close: bool = False) -> None:
        """Answer with an error of the router's own; where an answer has begun, cut it off."""
        begun = self._response is not None
        self._end(error.message)
        if begun:
            self._client.cut_off()
            return
        keep_alive = self._head.keep_alive and not close and not self._context.draining
        with_body = self._head.method != b"HEAD"
        self._client.write(
            error_reply(error, self._request_id.header, keep_alive=keep_alive, with_body=with_body)
        )
        self._client.answered(keep_alive=keep_alive)

    def _end(self, why: str) -> None:
        """Stop everything that is under way."""
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._engine is not None:
            self._engine.abort()
            self._engine = None
        self._finish(why)

    def _finish(self, error: str | None) -> None:
        self._context.exchanges.discard(self)
        self.client_reading.release(Hold.NO_ENGINE | Hold.PEER_FULL)
        self._complete(error)

    def _complete(self, error: str | None) -> None:
        """Give the load back, where one is counted."""
        decision, self._decision = self._decision, None
        if decision is None:
            return
        status = self._response.status if self._response is not None else None
        first = self._first_byte_at
        self._context.dispatcher.complete(
            decision,
            Outcome(
                worker_url=decision.worker.url,
                success=error is None and status is not None and status < 500,
                status=status,
                ttft_ms=None if first is None else (first - self._started_at) * 1000,
                duration_ms=(self._context.clock() - self._started_at) * 1000,
                output_chunks=self._chunks,
                error=error,
            ),
        )

    def _worker(self) -> Worker:
        assert self._decision is not None, "an answer comes from a worker"
        return self._decision.worker


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413,
        "request_body_too_large",
        f"the request's body is larger than {limit:,} bytes (option --max-payload-size)",
    )
