"""The gate before the engines: so many requests under way, so many waiting, no more."""

import asyncio
from typing import Protocol

from sgl_router.core.admission import Admission
from sgl_router.errors import RequestError


class Guest(Protocol):
    """A request that goes through the gate."""

    def __hash__(self) -> int: ...

    def admit(self) -> None:
        """Its turn has come."""

    def refuse_turn(self, error: RequestError) -> None:
        """It has waited for too long, and waits no more."""


class AdmissionGate:
    """Applies `core.admission.Admission`, and tells those who wait."""

    def __init__(self, admission: Admission[Guest], loop: asyncio.AbstractEventLoop) -> None:
        self._admission = admission
        self._loop = loop

    def enter(self, guest: Guest, now: float) -> bool:
        """Whether the request may go on at once; else it is told when its turn has come.

        Raises RequestError (429) where the queue is full.
        """
        verdict = self._admission.enter(guest, now)
        if verdict == "refused":
            raise RequestError(
                429,
                "admission_queue_full",
                "too many requests are under way and waiting (options --max-concurrent-requests "
                "and --queue-size)",
                retry_after_secs=1,
            )
        return verdict == "admitted"

    def leave(self, guest: Guest) -> None:
        """A request has ended, or leaves the queue before its turn."""
        if self._admission.withdraw(guest):
            return
        following = self._admission.leave()
        if following is not None:
            self._loop.call_soon(following.admit)  # not from within the end of another

    def expire(self, now: float) -> None:
        """End the waiting of those who have waited for too long."""
        for guest in self._admission.expired(now):
            guest.refuse_turn(
                RequestError(
                    503,
                    "admission_queue_timeout",
                    "no turn within the time (options --max-concurrent-requests and "
                    "--queue-timeout-secs)",
                    retry_after_secs=1,
                )
            )
