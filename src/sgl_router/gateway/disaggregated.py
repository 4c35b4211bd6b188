"""Requests whose two halves, prefill and decode, are served by two engines.

SGLang: both engines are sent the request at once and meet by themselves; the decode engine's
answer is passed on as it comes, whatever becomes of the prefill engine's. vLLM: the prefill engine
is asked first; what it answers goes into the request for the decode engine.

The decode half is the exchange itself; the prefill half is a `PrefillLeg` beside it.
"""

import logging
import secrets
from collections.abc import Callable
from functools import partial

from sgl_router.core.decision import Decision, PendingDecision
from sgl_router.core.disaggregation import (
    GENERATING,
    sglang_bootstrap,
    splice,
    vllm_decode,
    vllm_prefill,
)
from sgl_router.core.retry import RETRYABLE_STATUSES
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewayContext, GatewaySettings
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.forwarding import head_for, speaks_for_engine
from sgl_router.gateway.handler import ClientSide
from sgl_router.gateway.replies import reply
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import ResponseEvent, ResponseHead

_log = logging.getLogger(__name__)

MAX_PREFILL_ANSWER_BYTES = 16 * 1024 * 1024
"""Kept of a prefill engine's answer: vLLM's block ids, or an error for the client."""


def exchange_maker(
    settings: GatewaySettings,
) -> Callable[[GatewayContext, ClientSide, RequestHead], Exchange]:
    """What makes the exchange of each request to a gateway with these settings."""
    return Exchange if settings.pd_engine is None else _divided_or_whole


def _divided_or_whole(context: GatewayContext, client: ClientSide, head: RequestHead) -> Exchange:
    divided = head.path in GENERATING and head.method == b"POST"
    return (DisaggregatedExchange if divided else WholeExchange)(context, client, head)


class WholeExchange(Exchange):
    """A request that has no two halves: a decode engine makes the whole answer."""

    _role = "decode"


class PrefillLeg:
    """The prefill half of one request, on one engine.

    Attributes:
        attempt: its placement.
        open: whether it has not ended yet.
    """

    client_reading = None  # the body is complete: there is nobody to hold back

    def __init__(
        self, context: GatewayContext, decision: Decision, exchange: "DisaggregatedExchange"
    ) -> None:
        self._exchange = exchange
        self.attempt = Attempt(context, decision, self, context.clock())
        self.worker = decision.worker
        self._message = (b"", b"")
        self._head: ResponseHead | None = None
        self._body: list[bytes] = []
        self._received = 0
        self.open = True

    def start(self, head: bytes, body: bytes) -> None:
        """Send the request."""
        self._message = head, body
        self.attempt.start()

    def abort(self) -> None:
        """Stop it, where it has not ended; that says nothing of the engine."""
        self._close("aborted with its request", None)

    def on_connected(self, attempt: Attempt) -> None:
        attempt.send(*self._message)

    def on_unreachable(self, attempt: Attempt, error: EngineError) -> None:
        self._failed(str(error), again=True, closed=attempt.redialled)

    def on_response(self, events: list[ResponseEvent]) -> None:
        for event in events:
            if type(event) is bytes:
                self._received += len(event)
                if self._received > MAX_PREFILL_ANSWER_BYTES:
                    what = f"its answer is larger than {MAX_PREFILL_ANSWER_BYTES:,} bytes"
                    self._failed(what, again=False)
                    return
                self._body.append(event)
            elif event is END:
                self._ended(reusable=event is events[-1])
                return
            elif isinstance(event, ProtocolError):
                self._failed(f"its answer: {event}", again=False)
                return
            elif isinstance(event, ResponseHead):
                self._head = event
                self.attempt.status = event.status
                self.attempt.first_byte()

    def on_engine_lost(self, error: ProtocolError | None) -> None:
        if error is None:
            self._ended(reusable=False)
        elif self.attempt.closed_idle() and not self._exchange.retries.was_closed_on:
            self._exchange.retries.redial(self.attempt)
        else:
            # The decode engine cannot have begun without it: another pair may have the request.
            again = self._head is None
            self._failed(str(error), again=again, closed=True)

    def _ended(self, *, reusable: bool) -> None:
        head = self._head
        assert head is not None, "an answer begins with its head"
        status = head.status
        error = None if status < 400 else f"answered {status}"
        self._close(error, speaks_for_engine(status), keep=reusable and head.keep_alive)
        self._exchange.on_prefill(self.worker, head, b"".join(self._body))

    def _failed(self, what: str, *, again: bool, closed: bool = False) -> None:
        error = EngineError(f"prefill engine {self.worker.url}: {what}")
        self._close(str(error), False)
        self._exchange.on_prefill_failed(self.worker, error, again=again, closed=closed)

    def _close(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        if self.open:
            self.open = False
            self.attempt.finish(error, engine_ok, keep=keep)
            del self.attempt  # which knows its owner: a cycle is freed late, if ever


class DisaggregatedExchange(Exchange):
    """The decode half, and the exchange as the client sees it."""

    _leg: PrefillLeg | None = None
    _decode_body = b""

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        super().__init__(context, client, head)
        self._collect = True

    def on_connected(self, attempt: Attempt) -> None:
        body = self._decode_body
        head = head_for(attempt.worker, self._head, self._id_for_engine, len(body))
        attempt.send(head, body)

    def on_prefill(self, worker: Worker, head: ResponseHead, body: bytes) -> None:
        """The prefill engine has answered."""
        if head.status >= 400:
            if self._answer is None and not self._declined(worker, head.status):
                self._pass_on(head, body)
        elif self._context.settings.pd_engine == "vllm":
            self._or_fail(partial(self._hand_over, body))

    def _hand_over(self, prefill_answer: bytes) -> None:
        self._decode_body = vllm_decode(self._request.body, prefill_answer)
        self._choose_decode()

    def _declined(self, worker: Worker, status: int) -> bool:
        """Whether the prefill engine has too much to do, and another pair is asked later."""
        if status not in RETRYABLE_STATUSES or not self.retries.prepare(worker):
            return False
        self._give_back(f"the prefill engine answered {status}", None)
        self._try_later(status)
        return True

    def _overloaded(self, response: ResponseHead, *, complete: bool) -> bool:
        if not super()._overloaded(response, complete=complete):
            return False
        if self._leg is not None:  # there is nobody any more whom it could meet
            self._leg.abort()
        return True

    def on_prefill_failed(
        self, worker: Worker, error: EngineError, *, again: bool, closed: bool
    ) -> None:
        """There will be no KV cache for the decode engine, unless it has begun to answer.

        Args:
            worker: which engine failed.
            error: how.
            again: whether another pair may have the request.
            closed: whether the engine closed on it, which may be its own fault the second time.
        """
        if self._answer is not None:
            _log.warning("request %.200s: %s", self._request.id, error)
            return
        if closed:
            self._context.suspect(worker)
            again = again and not self.retries.was_closed_on
            self.retries.was_closed_on = True
        if again:
            self._try_another(worker, error, engine_ok=None, why="prefill")
        else:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))

    def _choose(self) -> None:
        """Choose both engines, and send to the first of them, or to both."""
        if self._leg is not None:
            self._leg.abort()
        context, request = self._context, self._request
        request.body = self._upload.whole()
        if not request.json:
            raise RequestError(
                400, "invalid_json", "the request's body is no JSON object, or an empty one"
            )
        decision = context.dispatcher.begin(request, "prefill")
        if isinstance(decision, PendingDecision):
            self._await(decision, self._prefill_on)
        else:
            self._prefill_on(decision)

    def _prefill_on(self, decision: Decision) -> None:
        context, request = self._context, self._request
        self._leg = leg = PrefillLeg(context, decision, self)
        meet = context.settings.pd_engine == "sglang"
        if meet:
            added = sglang_bootstrap(request.json, decision.worker, lambda: secrets.randbits(63))
            self._decode_body = body = splice(request.body, added)
        else:
            body = vllm_prefill(request.path, request.json)
        leg.start(head_for(decision.worker, self._head, self._id_for_engine, len(body)), body)
        if meet and leg.open:
            self._choose_decode()

    def _choose_decode(self) -> None:
        context = self._context
        decision = context.dispatcher.begin(self._request, "decode")
        if isinstance(decision, PendingDecision):
            self._await(decision, self._send_to)
        else:
            self._attempt = Attempt(context, decision, self, self._started_at)
            self._attempt.start()

    def _pass_on(self, response: ResponseHead, body: bytes) -> None:
        """Answer what the prefill engine has answered: the decode engine will not."""
        context, head, status = self._context, self._head, response.status
        self._finish(f"the prefill engine answered {status}", None)
        added = self._id_line + context.cors(head)
        retry_after = response.get(b"retry-after")
        if retry_after is not None:
            added += b"Retry-After: %b\r\n" % retry_after
        kind = response.get(b"content-type") or b"application/json"
        reply(context, self._client, head, status, body, added=added, content_type=kind)

    def _whose_turn(self) -> Attempt | None:
        """The decode engine waits for the prefill engine, until it begins its answer."""
        leg = self._leg
        if leg is None or not leg.open or self._answer:
            return self._attempt
        # A prefill engine cannot be blamed for waiting for a peer that is still being chosen.
        return leg.attempt if self._awaited is None else None

    def _finish(self, error: str | None, engine_ok: bool | None, *, keep: bool = False) -> None:
        leg, self._leg = self._leg, None  # they know each other: a cycle is freed late, if ever
        if leg is not None:
            leg.abort()
        super()._finish(error, engine_ok, keep=keep)
