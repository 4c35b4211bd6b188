"""One proxied request, from its first byte to the last of its answer.

    head ──▶ (wait for admission) ──▶ (collect the body, where the policy reads it)
                                                    │
                                                    ▼
        ┌── another worker ──▶ (back off) ──▶ dispatch ──▶ (wait) ──▶ connection ──▶ send
        │                                                                             │
        └── refused, closed without a byte, 429 or 503 ◀──────────────────────────────┤
                                                                                      ▼
                                                      answer, piece by piece ──▶ finish

An `Attempt` is one placement; the load that it counts is given back in `_give_back` only.
"""

import logging
from collections.abc import Callable
from functools import cached_property, partial

from sgl_router.core.decision import Decision, PendingDecision
from sgl_router.core.request import RequestView
from sgl_router.core.retry import RETRYABLE_STATUSES
from sgl_router.core.worker import Role, Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.answer import Answer
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.deadlines import Deadlines
from sgl_router.gateway.flow import Hold, ReadGate
from sgl_router.gateway.forwarding import head_for, speaks_for_engine, take_hints
from sgl_router.gateway.handler import ClientSide, RequestHandler
from sgl_router.gateway.replies import payload_too_large, refuse, request_id_of
from sgl_router.gateway.retries import Retries
from sgl_router.gateway.upload import Upload
from sgl_router.http1.head import END, LAST_CHUNK
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import ResponseEvent, ResponseHead

_log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 1024
"""The client is held back when this much of a body waits for a decision or a connection."""


class Exchange(RequestHandler):
    """See the module. Every method is a callback: of the client, the engine or the clock."""

    _role: Role = "regular"

    # What most requests never change stands here, once for all of them.
    _queued = False
    _entered = False
    _attempt: Attempt | None = None
    _awaited: Retries | PendingDecision | None = None  # without which no worker gets it
    _answer: Answer | None = None
    _deadlines: Deadlines | None = None

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        self._context = context
        self._client = client
        self._head = head
        self._started_at = context.clock()
        id, self._id_line, self._id_for_engine = request_id_of(head, context)
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
            context.refuse_loop(head)
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
            if (over or not self._collect) and not self._queued and self._awaited is None:
                self._or_fail(self._choose)
        elif attempt.engine is not None:
            unsent = upload.take()
            if unsent:
                attempt.engine.write(unsent)
            upload.forget_sent()
            return
        if upload.received > WAITING_BYTES and self._waits():
            self._client.reading.hold(Hold.NO_ENGINE)

    def _waits(self) -> bool:
        """Whether nobody takes the body at the moment, but somebody will."""
        if self._queued or self._collect:
            return self._queued
        return self._awaited is not None if self._attempt is None else self._attempt.engine is None

    def on_client_gone(self) -> None:
        self._context.counters.count_aborted()
        self._finish("the client closed the connection", None)

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
            self._client.reading.release(Hold.NO_ENGINE)
            if self._upload.over or not self._collect:
                self._or_fail(self._choose)

    def refuse_turn(self, error: RequestError) -> None:
        self._entered = self._queued = False
        self._fail(error)

    def runs(self, id: str) -> Worker | None:
        """The worker that has this request, where `id` is its own (SGLang: `rid` in the body)."""
        attempt, upload, rid = self._attempt, self._upload, None
        named = id.encode("utf-8", "surrogatepass")  # to parse everybody's body takes seconds
        if upload.over and upload.replayable and named in upload.whole():
            self._request.body = upload.whole()
            rid = self._request.json.get("rid")
        return attempt.worker if attempt is not None and id in (self._request.id, rid) else None

    # ---- from the decision to the engine

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
        decision = context.dispatcher.begin(request, self._role)
        if isinstance(decision, PendingDecision):
            self._await(decision, self._send_to)
        else:
            self._attempt = Attempt(context, decision, self, self._started_at)
            self._attempt.start()

    def _send_to(self, decision: Decision) -> None:
        self._attempt = Attempt(self._context, decision, self, self._started_at)
        self._attempt.start()

    def _await(self, pending: PendingDecision, step: Callable[[Decision], None]) -> None:
        """Take a step once the decision is there, unless the request ends before."""

        def told(decision: Decision | RequestError) -> None:
            self._awaited = None
            if isinstance(decision, RequestError):
                self._fail(decision)
            else:
                self._or_fail(partial(step, decision))

        self._awaited, pending.then = pending, told

    def on_connected(self, attempt: Attempt) -> None:
        """Send what is there of the request; the rest follows as it comes."""
        reading = self._client.reading
        head = head_for(attempt.worker, self._head, self._id_for_engine)
        if reading.held:  # an engine that was full and declined will not say that it has room
            reading.release(Hold.NO_ENGINE | Hold.PEER_FULL)
        attempt.send(head, self._upload.take_again())

    def on_unreachable(self, attempt: Attempt, error: EngineError) -> None:
        if attempt.redialled:  # it closed a kept connection on the request, and is gone
            self._try_once_more(attempt, error)
        else:  # what this machine lacks says nothing of the engine
            self._try_another(attempt.worker, error, engine_ok=None if error.local else False)

    # ---- another worker

    @cached_property
    def retries(self) -> Retries:
        """Made with the first worker that does not take the request."""
        return Retries(self._context, self._request, self._upload)

    def _try_another(
        self, worker: Worker, error: EngineError, *, engine_ok: bool | None, why: str = "connection"
    ) -> None:
        """Not one byte of an answer has arrived: another worker may have the request."""
        self._give_back(str(error), engine_ok)
        if self.retries.prepare(worker):
            self._context.counters.count_retry(why)
            self._or_fail(self._choose)
        else:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))

    def _try_once_more(self, attempt: Attempt, error: EngineError) -> None:
        """An engine has closed on the request: twice may be the request's own fault."""
        if self.retries.was_closed_on:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))
        else:
            self.retries.was_closed_on = True
            self._context.suspect(attempt.worker)
            # An engine need not wait for a body that does not come.
            self._try_another(attempt.worker, error, engine_ok=False if self._upload.over else None)

    def _try_later(self, status: int) -> None:
        """An engine has too much to do: another one is asked after a pause."""
        self._context.counters.count_retry(f"status_{status}")
        self._awaited = self.retries
        self.retries.pause(self._rested)

    def _rested(self) -> None:
        self._awaited = None
        self._or_fail(self._choose)

    def _overloaded(self, response: ResponseHead, *, complete: bool) -> bool:
        """Whether an answer that says "not now" is not passed on: another worker is asked."""
        attempt = self._attempt
        assert attempt is not None, "an answer comes from a worker"
        if not self.retries.prepare(attempt.worker):
            return False
        status, keep = response.status, complete and response.keep_alive and self._upload.over
        self._give_back(f"answered {status}", speaks_for_engine(status), keep=keep)
        self._try_later(status)
        return True

    # ---- the engine's side

    def on_response(self, events: list[ResponseEvent]) -> None:
        """What one read from the engine completed: one write, at once where the answer goes on."""
        out, answer = b"", self._answer
        for event in events:
            if type(event) is bytes:
                attempt = self._attempt
                assert answer is not None and attempt is not None, "its head has come"
                if attempt.first_byte_at is None:
                    attempt.first_byte_at = self._context.clock()
                    attempt.first_byte()
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

    @property
    def client_reading(self) -> ReadGate:
        return self._client.reading

    def on_engine_lost(self, error: ProtocolError | None) -> None:
        """The engine's connection is gone; a body that lasts until then is complete."""
        attempt, answer = self._attempt, self._answer
        assert attempt is not None and attempt.engine is not None, "an exchange was on it"
        self._client.reading.release(Hold.PEER_FULL)  # it will not say any more that it has room
        if error is None:
            assert answer is not None, "the end of an answer comes after its head"
            if answer.chunked:
                self._client.write(LAST_CHUNK)
            self._answered(answer, reusable=False)
        elif answer is not None or attempt.engine.heard:
            self._broken(str(error))
        elif attempt.closed_idle() and self._upload.replayable and not self.retries.was_closed_on:
            # An engine closes its kept connections when it likes, also just now: that says
            # nothing of the worker, and the request has hardly been read.
            self.retries.redial(attempt)
        else:
            attempt.engine = None
            self._try_once_more(attempt, EngineError(f"{attempt.worker.url}: {error}"))

    def _begin_answer(self, response: ResponseHead, *, complete: bool) -> Answer | None:
        """None where the answer is not passed on."""
        attempt = self._attempt
        assert attempt is not None, "an answer comes from a worker"
        attempt.status = response.status
        if response.status in RETRYABLE_STATUSES and self._overloaded(response, complete=complete):
            return None
        if attempt.worker.streak:
            self._context.observe_answer(attempt.worker)
        self._answer = Answer(self._context, self._head, response, attempt.worker, self._id_line)
        return self._answer

    def _answered(self, answer: Answer, *, reusable: bool) -> None:
        status = answer.response.status
        # Else the next answer on it could not be trusted.
        keep = reusable and answer.response.keep_alive and self._upload.over
        self._finish(None, status < 400 or speaks_for_engine(status), keep=keep)
        self._client.answered(keep_alive=answer.keep_alive)

    # ---- the clock

    def check(self, now: float) -> None:
        if self._deadlines is None:
            self._deadlines = Deadlines(self._context.settings, self._started_at, now)
        held, answering = self._client.reading.held != 0, self._answer is not None
        error = self._deadlines.missed(now, self._upload, self._whose_turn(), answering, held)
        if error is not None:  # never tried again: the engine may be generating
            self._fail(error, close=error.status == 408)

    def _whose_turn(self) -> Attempt | None:
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
        self._finish(error.message, engine_ok)
        if self._answer is not None:
            self._answer.break_off(self._client, error, self._head.path, close=close)
        else:
            refuse(self._context, self._client, self._head, error, self._id_line, close=close)

    def _finish(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        """Stop everything that is under way."""
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
        """The connection and the load, where there are such; what was awaited is no more."""
        if self._awaited is not None:
            self._awaited.give_up()
            self._awaited = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.finish(error, engine_ok, keep=keep)
