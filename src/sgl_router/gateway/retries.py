"""What becomes of a request that a worker did not take."""

import asyncio
from collections.abc import Callable

from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.upload import Upload


class Retries:
    """Those of one request; made when it is first not taken, so that others cost nothing.

    Attributes:
        was_closed_on: whether an engine has closed its connection on the request, so that the next
            one to do so is the last. A kept connection that closes does not count while its engine
            is asked again: it may have been about to close anyway.
    """

    __slots__ = ("_context", "_pause", "_redialled", "_request", "_upload", "was_closed_on")

    def __init__(self, context: GatewayContext, request: RequestView, upload: Upload) -> None:
        self._context = context
        self._request = request
        self._upload = upload
        self._pause: asyncio.TimerHandle | None = None
        self._redialled = False
        self.was_closed_on = False

    def redial(self, attempt: Attempt) -> None:
        """Ask an engine again that has closed a kept connection on the request."""
        self._redialled = True
        attempt.redial()

    def prepare(self, worker: Worker) -> bool:
        """Have the next decision leave `worker` out; False where there may be none."""
        context, request, upload = self._context, self._request, self._upload
        attempts, excluded = request.attempt + 1, request.excluded | {worker}
        if (
            attempts > context.settings.retry.max_retries
            or not upload.replayable
            or not context.dispatcher.can_dispatch(request, excluded, worker.role)
        ):
            return False
        request.attempt, request.excluded = attempts, excluded
        self.was_closed_on |= self._redialled  # whatever it said then, it may have begun before
        if upload.over:  # the policy in use now may read it, though the one at the head did not
            request.body = upload.whole()
        return True

    def pause(self, then: Callable[[], None]) -> None:
        """Call `then` once an engine that has too much to do has been given some time."""
        context, request = self._context, self._request
        pause_ms = context.settings.retry.backoff_ms(request.attempt - 1, request.entropy)
        self._pause = context.loop.call_later(pause_ms / 1000, self._over, then)

    def give_up(self) -> None:
        """Nobody waits for the end of the pause any more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _over(self, then: Callable[[], None]) -> None:
        self._pause = None  # which knows who waits: a cycle is freed late, if ever
        then()
