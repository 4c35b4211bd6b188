"""One proxied request, from its first byte to the last of its answer.

    head ──▶ (wait for admission) ──▶ (collect the body, where the policy reads it)
                                                    │
                                                    ▼
        ┌── another worker ──▶ (back off) ──▶ dispatch ──▶ connection ──▶ send
        │                                                                  │
        └── refused, closed without a byte, 429 or 503 ◀───────────────────┤
                                                                           ▼
                                           answer, piece by piece ──▶ finish

An `Attempt` is one placement; the load that it counts is given back in `_give_back` only.
"""

import asyncio
import logging
from collections.abc import Callable

from sgl_router.core.request import RequestView
from sgl_router.core.retry import RETRYABLE_STATUSES
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.answer import Answer
from sgl_router.gateway.attempt import Attempt, another_may_try, back_off
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.deadlines import Deadlines
from sgl_router.gateway.flow import Hold, ReadGate
from sgl_router.gateway.forwarding import (
    head_for,
    payload_too_large,
    speaks_for_engine,
    take_hints,
)
from sgl_router.gateway.handler import ClientSide, RequestHandler
from sgl_router.gateway.replies import error_reply, request_id_of
from sgl_router.gateway.upload import Upload
from sgl_router.http1.head import END, LAST_CHUNK
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import ResponseEvent, ResponseHead

_log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 1024
"""The client is held back when this much of a body waits for a connection."""


class Exchange(RequestHandler):
    """See the module. Every method is a callback: of the client, the engine or the clock."""

    # What most requests never change stands here, once for all of them.
    _queued = False
    _entered = False
    _attempt: Attempt | None = None
    _backoff: asyncio.TimerHandle | None = None
    _answer: Answer | None = None
    _closed_on = False
    _deadlines: Deadlines | None = None

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        self._context = context
        self._client = client
        self._head = head
        self._started_at = context.clock()
        id, self._id_line, self._id_added = request_id_of(head, context)
        self._request = RequestView(id, head.path)
        self._collect = context.dispatcher.reads_body
        self._upload = Upload(chunked=head.chunked)

    # ---- the client's side

    def start(self) -> None:
        context, head = self._context, self._head
        context.requests.add(self)
        settings = context.settings
        if head.content_length is not None and head.content_length > settings.max_payload_bytes:
            self._refuse_entry(payload_too_large(settings.max_payload_bytes))
        elif (
            head.asked
            or head.expects_continue
            or context.admission is not None
            or settings.api_key is not None
        ):
            self._enter()

    def _enter(self) -> None:
        """What most requests can do without: keys, hints, a turn, a word to go on."""
        context, head = self._context, self._head
        try:
            context.authorize(head)
            take_hints(head, self._request)
            if context.admission is not None:
                self._queued = not context.admission.enter(self, self._started_at)
                self._entered = True
        except RequestError as error:
            self._refuse_entry(error)
            return
        if head.expects_continue:
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_entry(self, error: RequestError) -> None:
        # A client that was not told to go on may leave its body out.
        self._fail(error, close=self._head.expects_continue)

    def on_read(self, data: bytes, *, over: bool) -> None:
        upload = self._upload
        if data:
            upload.add(data)
            limit = self._context.settings.max_payload_bytes
            if upload.received > limit:
                self._fail(payload_too_large(limit))
                return
        upload.over = over
        attempt = self._attempt
        if attempt is None:
            if over or not self._collect:
                self._place()
        elif attempt.engine is not None:
            unsent = upload.take()
            if unsent:
                attempt.engine.write(unsent)
            if not self._collect:
                upload.forget_sent()
            return
        if upload.received > WAITING_BYTES and not self._collect and self._waits():
            self._client.reading.hold(Hold.NO_ENGINE)

    def _waits(self) -> bool:
        """Whether nobody takes the body at the moment, but somebody will."""
        if self._attempt is not None:
            return self._attempt.engine is None
        return self._queued or self._backoff is not None

    def on_client_gone(self) -> None:
        self._context.counters.count_aborted()
        self._end("the client closed the connection", None)

    def refuse(self, error: ProtocolError) -> None:
        self._fail(RequestError(error.status, "bad_request", str(error)), close=True)

    @property
    def engine_reading(self) -> ReadGate | None:
        attempt = self._attempt
        return attempt.engine.reading if attempt is not None and attempt.engine else None

    def admit(self) -> None:
        """Its turn has come; unless it has left in the meantime."""
        if self._queued:
            self._queued = False
            if self._upload.over or not self._collect:
                self._place()

    def refuse_turn(self, error: RequestError) -> None:
        self._entered = self._queued = False
        self._fail(error)

    def runs(self, id: str) -> Worker | None:
        """The worker that has this request, where `id` is its own (SGLang: `rid` in the body)."""
        upload, rid = self._upload, None
        if upload.over and upload.replayable and b'"rid"' in upload.whole():  # few bodies have one
            self._request.body = upload.whole()
            rid = self._request.json.get("rid")
        found = self._attempt is not None and id in (self._request.id, rid)
        return self._attempt.worker if found and self._attempt else None

    # ---- from the decision to the engine

    def _place(self) -> None:
        """Choose a worker; not while it is not this request's turn."""
        if not self._queued and self._backoff is None:
            self._or_fail(self._choose)

    def _place_again(self) -> None:
        self._backoff = None
        self._place()

    def _or_fail(self, step: Callable[[], None]) -> None:
        """Take a step; what goes wrong with it is the client's answer."""
        try:
            step()
        except RequestError as error:
            self._fail(error)
        except Exception:  # noqa: BLE001 (a policy may be anybody's; the client gets an answer)
            _log.exception("request %.200s: the policy failed", self._request.id)
            self._fail(RequestError(500, "internal_error", "the router failed; its log says why"))

    def _choose(self) -> None:
        context, request = self._context, self._request
        if self._collect:
            request.body = self._upload.whole()
        decision = context.dispatcher.dispatch(request)
        self._attempt = attempt = Attempt(context, decision, self, self._started_at)
        attempt.start()

    def on_connected(self, attempt: Attempt) -> None:
        """Send what is there of the request; the rest follows as it comes."""
        head, reading = self._head, self._client.reading
        encoded = head_for(attempt.worker, head, self._id_added)
        if reading.held:  # an engine that was full and declined will not say that it has room
            reading.release(Hold.NO_ENGINE | Hold.PEER_FULL)
        attempt.send(encoded, self._upload.take_again(), head_request=head.method == b"HEAD")

    def on_unreachable(self, attempt: Attempt, error: EngineError) -> None:
        if attempt.redialled:  # it closed a kept connection on the request, and is gone
            self._try_once_more(attempt, error)
        else:
            self._try_another(attempt.worker, error)

    # ---- another worker

    def _try_another(self, worker: Worker, error: EngineError) -> None:
        """Not one byte of an answer has arrived: another worker may have the request."""
        self._give_back(str(error), False)
        if self._exclude(worker):
            self._context.counters.count_retry("connection")
            self._place()
        else:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))

    def _try_once_more(self, attempt: Attempt, error: EngineError) -> None:
        """An engine has closed on the request: twice may be the request's own fault."""
        if self._closed_on:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))
        else:
            self._closed_on = True
            self._context.suspect(attempt.worker)
            self._try_another(attempt.worker, error)

    def _exclude(self, worker: Worker) -> bool:
        return another_may_try(self._context, self._request, self._upload, worker)

    def _overloaded(self, response: ResponseHead, *, complete: bool) -> bool:
        """Whether an answer that says "not now" is not passed on: another worker is asked."""
        attempt = self._attempt
        assert attempt is not None, "an answer comes from a worker"
        if not self._exclude(attempt.worker):
            return False
        status, keep = response.status, complete and self._connection_is_whole(response)
        self._context.counters.count_retry(f"status_{status}")
        self._attempt = None
        attempt.finish(f"answered {status}", speaks_for_engine(status), status=status, keep=keep)
        self._backoff = back_off(self._context, self._request, self._place_again)
        return True

    # ---- the engine's side

    def on_response(self, events: list[ResponseEvent]) -> None:
        """What one read from the engine completed: one write, at once where the answer goes on."""
        out, answer = b"", self._answer
        for event in events:
            if type(event) is bytes:
                assert answer is not None and self._attempt is not None, "its head has come"
                if answer.first_byte_at is None:
                    answer.first_byte_at = self._context.clock()
                    self._attempt.first_byte(answer.status)
                out += answer.piece(event)
            elif type(event) is ResponseHead:
                answer = self._begin_answer(event, complete=events[-1] is END)
                if answer is None:
                    return
                out = answer.encoded_head
            elif event is END:
                assert answer is not None, "the end of an answer comes after its head"
                if answer.chunked:
                    out += LAST_CHUNK
                if out:
                    self._client.write(out)
                self._answered(answer, reusable=event is events[-1])
                return
            else:
                assert isinstance(event, ProtocolError)
                if out:
                    self._client.write(out)
                self._broken(f"its answer: {event}")
                return
        if out:
            self._client.write_at_once(out)

    def hold_client(self) -> None:
        self._client.reading.hold(Hold.PEER_FULL)

    def release_client(self) -> None:
        self._client.reading.release(Hold.PEER_FULL)

    def on_engine_lost(self, events: list[ResponseEvent]) -> None:
        """The engine's connection is gone; a body that lasts until then is complete."""
        attempt, answer = self._attempt, self._answer
        assert attempt is not None and attempt.engine is not None, "an exchange was on it"
        self._client.reading.release(Hold.PEER_FULL)  # it will not say any more that it has room
        if answer is not None and events == [END]:
            if answer.chunked:
                self._client.write(LAST_CHUNK)
            self._answered(answer, reusable=False)
            return
        error = EngineError(f"{attempt.worker.url} closed the connection before its answer's end")
        if answer is not None or attempt.engine.heard:
            self._broken("it closed the connection before its answer's end")
        elif attempt.closed_idle() and self._upload.replayable:
            # An engine closes its kept connections when it likes, also just now: that says
            # nothing of the worker, and the request has hardly been read.
            attempt.redial()
        else:
            attempt.engine = None
            self._try_once_more(attempt, error)

    def _begin_answer(self, response: ResponseHead, *, complete: bool) -> Answer | None:
        """None where the answer is not passed on."""
        attempt = self._attempt
        assert attempt is not None, "an answer comes from a worker"
        if response.status in RETRYABLE_STATUSES and self._overloaded(response, complete=complete):
            return None
        if attempt.worker.streak:
            self._context.observe_answer(attempt.worker)
        self._answer = Answer(self._context, self._head, response, attempt.worker, self._id_line)
        return self._answer

    def _answered(self, answer: Answer, *, reusable: bool) -> None:
        status = answer.status
        keep = reusable and self._connection_is_whole(answer.response)
        self._finish(None, status < 400 or speaks_for_engine(status), keep=keep)
        self._client.answered(keep_alive=answer.keep_alive)

    def _connection_is_whole(self, response: ResponseHead) -> bool:
        """Whether the next answer on it could be trusted: where one to HEAD ends cannot be told."""
        return response.keep_alive and self._upload.over and self._head.method != b"HEAD"

    # ---- the clock

    def check(self, now: float) -> None:
        if self._deadlines is None:
            self._deadlines = Deadlines(self._context.settings, self._started_at, now)
        held, answering = self._client.reading.held != 0, self._answer is not None
        error = self._deadlines.missed(now, self._upload, self._awaited(), answering, held)
        if error is not None:  # never tried again: the engine may be generating
            self._fail(error, close=error.status == 408)

    def _awaited(self) -> Attempt | None:
        """Whose engine's turn it is."""
        return self._attempt

    # ---- ends

    def _broken(self, what: str) -> None:
        """The engine broke off or answered nonsense."""
        assert self._attempt is not None, "an engine had it"
        message = f"{self._attempt.worker.url}: {what}"
        _log.warning("request %.200s: %s", self._request.id, message)
        error = RequestError(502, "call_upstream_protocol_error", message)
        self._fail(error, engine_ok=False)

    def _fail(
        self, error: RequestError, *, close: bool = False, engine_ok: bool | None = None
    ) -> None:
        """Answer with an error of the router's own."""
        self._context.counters.count_error(error.code)
        self._end(error.message, engine_ok)
        head = self._head
        if self._answer is not None:
            self._answer.break_off(self._client, error, head.path, close=close)
            return
        keep_alive = head.keep_alive and not close and not self._context.draining
        self._client.write(
            error_reply(
                error,
                self._id_line + self._context.cors(head),
                keep_alive=keep_alive,
                with_body=head.method != b"HEAD",
                to_http10=head.http10,
            )
        )
        self._client.answered(keep_alive=keep_alive)

    def _end(self, why: str, engine_ok: bool | None) -> None:
        """Stop everything that is under way."""
        if self._backoff is not None:
            self._backoff.cancel()
            self._backoff = None
        self._finish(why, engine_ok)

    def _finish(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        context, reading = self._context, self._client.reading
        context.requests.discard(self)
        if reading.held:
            reading.release(Hold.NO_ENGINE | Hold.PEER_FULL)
        self._give_back(error, engine_ok, keep=keep)
        if self._entered:
            assert context.admission is not None, "it has entered there"
            self._entered = self._queued = False
            context.admission.leave(self)

    def _give_back(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        """The connection and the load, where there are such."""
        attempt, answer, self._attempt = self._attempt, self._answer, None
        if attempt is None:
            return
        if answer is None:
            attempt.finish(error, engine_ok)
        else:
            first = answer.first_byte_at
            attempt.finish(error, engine_ok, status=answer.status, first_byte_at=first, keep=keep)
