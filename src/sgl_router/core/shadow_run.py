"""A candidate policy that decides beside the policy in use, on a share of the traffic.

What it decides is counted (`shadow.py`) and never followed. It decides elsewhere, so that however
long it takes, no request waits for it; where it cannot keep up, it is not asked.
"""

from functools import partial
from typing import Protocol

from sgl_router.core.policy import Choice, PendingChoice
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.shadow import ShadowPlacement, ShadowReport, ShadowTally, in_sample
from sgl_router.core.worker import Role, Worker
from sgl_router.errors import DecisionError

MAX_WAITING = 64
"""Decisions of the candidate that wait; those on top are skipped."""


class Candidate(Protocol):
    """A policy that can decide aside."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str | None: ...
    @property
    def needs(self) -> frozenset[str]: ...

    def choose_aside(
        self, workers: WorkerView, request: RequestView, most: int
    ) -> PendingChoice | None:
        """A choice that is made elsewhere; None where as many as `most` wait for it already.

        Raises DecisionError.
        """


class Observed(Protocol):
    """A decision; see `Decision`."""

    worker: Worker
    shadow: ShadowPlacement | None


class ShadowRun:
    """See the module.

    Args:
        candidate: the policy that is tried.
        role: of the workers that it is tried for.
        share: of the decisions, 0 to 1, drawn by the requests' entropy.
        since_ms: when it began, in Unix milliseconds.

    Attributes:
        over: whether it has ended; decisions that were asked for before may come after.
    """

    def __init__(self, candidate: Candidate, role: Role, share: float, since_ms: int) -> None:
        self.candidate = candidate
        self.role: Role = role
        self.share = share
        self.since_ms = since_ms
        self.over = False
        self._tally = ShadowTally()

    def observe(self, workers: WorkerView, request: RequestView, decision: Observed) -> None:
        """A decision was taken; perhaps the candidate is asked too."""
        if self.over or not in_sample(request.entropy, self.share):
            return
        decision.shadow = placement = self._tally.asked(decision.worker)
        try:
            pending = self.candidate.choose_aside(workers, request, MAX_WAITING)
        except DecisionError as error:
            placement.failed(error.kind)
            return
        if pending is None:
            placement.skipped()
        else:
            pending.then = partial(_answered, placement, workers, pending)

    def report(self, policy: str) -> ShadowReport:
        """What has been counted; `policy` is the name of the one in use."""
        return self._tally.report(
            plugin=self.candidate.name,
            version=self.candidate.version or "",
            role=self.role,
            share=self.share,
            since_ms=self.since_ms,
            policy=policy,
        )


def _answered(
    placement: ShadowPlacement, workers: WorkerView, pending: PendingChoice, choice: Choice
) -> None:
    if isinstance(choice, DecisionError):
        placement.failed(choice.kind)
    else:
        worker = None if choice is None else workers[choice]
        placement.decided(worker, pending.elapsed_ns)
