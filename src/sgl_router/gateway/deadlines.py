"""What takes too long, looked at every half second: no timer for each request, nothing per byte."""

from sgl_router.errors import RequestError
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewaySettings
from sgl_router.gateway.upload import Upload


class Stillness:
    """How long something has not changed."""

    __slots__ = ("_mark", "_since")

    def __init__(self, mark: object, now: float) -> None:
        self._mark = mark
        self._since = now

    def lasts(self, mark: object, now: float) -> float:
        """Seconds for which it has been equal to `mark`."""
        if mark != self._mark:
            self._mark, self._since = mark, now
        return now - self._since


class Deadlines:
    """Those of one request; made when it is first looked at, so that quick ones cost nothing."""

    __slots__ = ("_body_until", "_settings", "_started_at", "_still")

    def __init__(self, settings: GatewaySettings, started_at: float, now: float) -> None:
        self._settings = settings
        self._started_at = started_at
        self._body_until = started_at
        self._still = Stillness(-1, now)

    def missed(
        self, now: float, upload: Upload, attempt: Attempt | None, answering: bool, held: bool
    ) -> RequestError | None:
        """What took too long, or None.

        Args:
            now: the gateway's clock.
            upload: the request's body.
            attempt: whose engine's turn it is; blamed where the client is not to blame.
            answering: whether the engine's answer has begun.
            held: whether the client is kept from sending.
        """
        error = self._missed(now, upload, attempt, answering, held)
        its_turn = upload.over or answering or held
        if error is not None and error.status == 504 and its_turn and attempt is not None:
            attempt.blame()
        return error

    def _missed(
        self, now: float, upload: Upload, attempt: Attempt | None, answering: bool, held: bool
    ) -> RequestError | None:
        settings = self._settings
        engine = attempt.engine if attempt is not None else None
        still = self._still.lasts(upload.received + (engine.pieces if engine else 0), now)
        if now - self._started_at >= settings.request_timeout:
            return _too_slow(
                "no complete answer", settings.request_timeout, "--request-timeout-secs"
            )
        idle, first = settings.stream_idle_timeout, settings.first_byte_timeout
        if answering:
            if idle is not None and still >= idle:
                what = "nothing of the answer came, or was taken,"
                return _too_slow(what, idle, "--stream-idle-timeout-secs")
        elif not upload.over:
            self._body_until = now
            if still >= settings.body_timeout and not held:
                return RequestError(
                    408,
                    "request_timeout",
                    f"nothing of the request's body came for {settings.body_timeout:g} s (option "
                    "--client-body-timeout-secs)",
                )
        elif first is not None and self._waited(attempt, now) >= first:
            return _too_slow("no answer", first, "--first-byte-timeout-secs")
        return None

    def _waited(self, attempt: Attempt | None, now: float) -> float:
        """Seconds for which an engine has had the whole request, or almost all of it."""
        return 0.0 if attempt is None else min(attempt.waited(now), now - self._body_until)


def head_too_slow(secs: float) -> RequestError:
    """A client takes too long to send a request's head."""
    return RequestError(
        408,
        "request_timeout",
        f"no complete head of a request came within {secs:g} s (option --client-head-timeout-secs)",
    )


def _too_slow(what: str, secs: float, option: str) -> RequestError:
    return RequestError(504, "call_upstream_timeout", f"{what} within {secs:g} s (option {option})")
