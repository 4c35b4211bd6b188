"""Requests whose two halves, prefill and decode, are served by two engines.

SGLang: both engines are sent the request at once and meet by themselves; the decode engine's
answer is passed on as it comes, whatever becomes of the prefill engine's. vLLM: the prefill engine
is asked first; what it answers goes into the request for the decode engine.

The decode half is the exchange itself; the prefill half is a `PrefillLeg` beside it.
"""

import logging
import secrets

from sgl_router.core.disaggregation import sglang_bootstrap, splice, vllm_decode, vllm_prefill
from sgl_router.core.dispatch import Decision
from sgl_router.core.retry import RETRYABLE_STATUSES
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, ProtocolError, RequestError
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewayContext, GatewaySettings
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.forwarding import head_for, speaks_for_engine
from sgl_router.gateway.handler import ClientSide
from sgl_router.http1.head import END
from sgl_router.http1.request import RequestHead
from sgl_router.http1.response import ResponseEvent, ResponseHead, encode_response

_log = logging.getLogger(__name__)

MAX_PREFILL_ANSWER_BYTES = 16 * 1024 * 1024
"""Kept of a prefill engine's answer: vLLM's block ids, or an error for the client."""


def exchange_type(settings: GatewaySettings) -> type[Exchange]:
    """What carries the requests of a gateway with these settings."""
    return Exchange if settings.pd_engine is None else DisaggregatedExchange


class PrefillLeg:
    """The prefill half of one request, on one engine."""

    def __init__(
        self, context: GatewayContext, decision: Decision, exchange: "DisaggregatedExchange"
    ) -> None:
        self._exchange = exchange
        self._attempt = Attempt(context, decision, self, context.clock())
        self._message = (b"", b"")
        self._content_type = b"application/json"
        self._status: int | None = None
        self._keep_alive = False
        self._body: list[bytes] = []
        self._received = 0
        self.open = True

    @property
    def worker(self) -> Worker:
        return self._attempt.worker

    def start(self, head: bytes, body: bytes) -> None:
        """Send the request."""
        self._message = head, body
        self._attempt.start()

    def abort(self) -> None:
        """Stop it, where it has not ended; that says nothing of the engine."""
        self._close("aborted with its request", None)

    def on_connected(self, attempt: Attempt) -> None:
        head, body = self._message
        attempt.send(head, body, head_request=False)

    def on_unreachable(self, attempt: Attempt, error: EngineError) -> None:
        self._failed(str(error), engine_ok=False, again=True)

    def hold_client(self) -> None:
        """The body is complete: there is nobody to hold back."""

    def release_client(self) -> None:
        """Nobody was held back."""

    def on_response(self, events: list[ResponseEvent]) -> None:
        for event in events:
            if type(event) is bytes:
                self._received += len(event)
                if self._received <= MAX_PREFILL_ANSWER_BYTES:
                    self._body.append(event)
            elif event is END:
                self._ended(reusable=event is events[-1])
                return
            elif isinstance(event, ProtocolError):
                self._failed(f"its answer: {event}", engine_ok=False, again=False)
                return
            elif isinstance(event, ResponseHead):
                self._status = event.status
                self._keep_alive = event.keep_alive
                self._content_type = event.get(b"content-type") or self._content_type
                self._attempt.first_byte(event.status)

    def on_engine_lost(self, events: list[ResponseEvent]) -> None:
        if events == [END]:
            self._ended(reusable=False)
        elif self._attempt.closed_idle():
            self._attempt.redial()
        else:
            # The decode engine cannot have begun without it: another pair may have the request.
            again = self._status is None
            self._failed("it closed the connection", engine_ok=False, again=again)

    def _ended(self, *, reusable: bool) -> None:
        status = self._status
        assert status is not None, "an answer begins with its head"
        self._attempt.end(keep=reusable and self._keep_alive)
        ok = speaks_for_engine(status)
        if status in RETRYABLE_STATUSES:
            self._failed(f"answered {status}", engine_ok=ok, again=True)
            return
        self._close(None if status < 400 else f"answered {status}", ok)
        self._exchange.on_prefill(status, self._content_type, b"".join(self._body))

    def _failed(self, what: str, *, engine_ok: bool | None, again: bool) -> None:
        error = EngineError(f"prefill engine {self.worker.url}: {what}")
        self._close(str(error), engine_ok)
        self._exchange.on_prefill_failed(self.worker, error, again=again)

    def _close(self, error: str | None, engine_ok: bool | None) -> None:
        if self.open:
            self.open = False
            self._attempt.abort()
            self._attempt.complete(error, engine_ok, self._status, pieces=len(self._body))


class DisaggregatedExchange(Exchange):
    """The decode half, and the exchange as the client sees it."""

    _leg: PrefillLeg | None = None
    _decode_body = b""

    def __init__(self, context: GatewayContext, client: ClientSide, head: RequestHead) -> None:
        super().__init__(context, client, head)
        self._collect = True

    def on_connected(self, attempt: Attempt) -> None:
        body = self._decode_body
        head = head_for(attempt.worker, self._head, self._id_added, len(body))
        attempt.send(head, body, head_request=False)

    def on_prefill(self, status: int, content_type: bytes, body: bytes) -> None:
        """The prefill engine has answered."""
        if status >= 400:
            if self._answer is None:
                self._pass_on(status, content_type, body)
        elif self._context.settings.pd_engine == "vllm":
            try:
                self._decode_body = vllm_decode(self._request.body, body)
            except RequestError as error:
                self._fail(error)
            else:
                super()._place()

    def on_prefill_failed(self, worker: Worker, error: EngineError, *, again: bool) -> None:
        """There will be no KV cache for the decode engine, unless it has begun to answer."""
        if self._answer is not None:
            _log.warning("request %.200s: %s", self._request.id, error)
            return
        if self._attempt is not None:
            self._attempt.abort()
        self._complete(str(error), None)
        if again and self._exclude(worker):
            self._context.counters.count_retry("prefill")
            self._place()
        else:
            self._fail(RequestError(502, "call_upstream_connect_error", str(error)))

    def _place(self) -> None:
        """Choose both engines, and send to the first of them, or to both."""
        if self._queued or self._backoff is not None:
            return
        if self._leg is not None:
            self._leg.abort()
        context, request = self._context, self._request
        request.body = self._upload.whole()
        try:
            if not request.json:
                raise RequestError(400, "invalid_json", "the request's body is not a JSON object")
            decision = context.dispatcher.dispatch(request, "prefill")
        except RequestError as error:
            self._fail(error)
            return
        self._leg = leg = PrefillLeg(context, decision, self)
        body = self._bodies(decision.worker)
        leg.start(head_for(decision.worker, self._head, self._id_added, len(body)), body)
        if context.settings.pd_engine == "sglang" and leg.open:
            super()._place()

    def _bodies(self, prefill: Worker) -> bytes:
        """What the prefill engine is sent; the decode engine's too, where it is known already."""
        request = self._request
        if self._context.settings.pd_engine == "vllm":
            return vllm_prefill(request.json)
        added = sglang_bootstrap(request.json, prefill, lambda: secrets.randbits(63))
        self._decode_body = splice(request.body, added)
        return self._decode_body

    def _decide(self) -> Decision:
        return self._context.dispatcher.dispatch(self._request, "decode")

    def _pass_on(self, status: int, content_type: bytes, body: bytes) -> None:
        """Answer what the prefill engine has answered: the decode engine will not."""
        head = self._head
        self._end(f"the prefill engine answered {status}", None)
        keep_alive = head.keep_alive and not self._context.draining
        self._client.write(
            encode_response(
                status,
                body,
                content_type=content_type,
                keep_alive=keep_alive,
                added=self._id_line + self._context.cors(head),
                to_http10=head.http10,
            )
        )
        self._client.answered(keep_alive=keep_alive)

    def _finish(self, error: str | None, engine_ok: bool | None, pieces: int) -> None:
        if self._leg is not None:
            self._leg.abort()
        super()._finish(error, engine_ok, pieces)
