"""What comes of asking a policy: a decision, at once or later."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sgl_router.core.policy import Choice, PendingChoice, Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.shadow import ShadowPlacement
from sgl_router.core.shadow_run import ShadowRun
from sgl_router.core.worker import Role, Worker
from sgl_router.errors import DecisionError, RequestError

_log = logging.getLogger(__name__)


class InUse:
    """A policy in use, and what it needs to be kept of each placement."""

    __slots__ = (
        "fallback",
        "keeps",
        "keeps_prefixes",
        "keeps_tokens",
        "needs",
        "policy",
        "shadow",
    )

    def __init__(self, policy: Policy, fallback: Policy, shadow: ShadowRun | None) -> None:
        self.policy = policy
        self.fallback = fallback
        self.shadow = shadow
        self.needs = policy.needs if shadow is None else policy.needs | shadow.candidate.needs
        self.keeps_prefixes = "prefix_match" in self.needs
        self.keeps_tokens = "pending_tokens" in self.needs
        self.keeps = self.keeps_prefixes or self.keeps_tokens


@dataclass(slots=True)
class Decision:
    """One request placed on one worker; its load is counted until `Dispatcher.complete`.

    Attributes:
        worker: the worker chosen.
        policy: the policy that chose it (it learns the outcome).
        version: which version of the policy was asked, where it has versions.
        failure: why the fallback policy decided instead, or None.
        entropy, now_ms: what the decision was given, so that it can be replayed.
        elapsed_ns: what the decision took, the fallback's included.
        path: the request's, without the query.
        probe: whether the worker's breaker was half-open.
        pending_tokens: what is counted in the worker's until the first byte of the answer.
        shadow: where another policy would have placed it, where that is observed.
        open: whether the load is still counted.
    """

    worker: Worker
    policy: Policy
    version: str | None
    failure: DecisionError | None
    entropy: int
    now_ms: int
    elapsed_ns: int
    path: str
    probe: bool = False
    pending_tokens: int = 0
    shadow: ShadowPlacement | None = None
    open: bool = True


Question = tuple[InUse, WorkerView, str | None, int]
"""Of a decision: the policy, the workers as it was shown them, its version, when it was asked."""


class Placer(Protocol):
    """Who has asked; see `Dispatcher`."""

    def place_late(
        self, request: RequestView, role: Role, question: Question, choice: Choice
    ) -> Decision: ...


class PendingDecision:
    """A decision that takes its time. No load is counted before it is there.

    Attributes:
        then: told of it once, or of why there is none; set by whoever waits.
    """

    __slots__ = ("_choice", "_dispatcher", "_question", "_request", "_role", "then")

    def __init__(
        self,
        dispatcher: Placer,
        request: RequestView,
        role: Role,
        question: Question,
        choice: PendingChoice,
    ) -> None:
        self._dispatcher = dispatcher
        self._request = request
        self._role: Role = role
        self._question = question
        self._choice = choice
        self.then: Callable[[Decision | RequestError], None] | None = None
        choice.then = self._settle

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.then = None
        self._choice.give_up()

    def _settle(self, choice: Choice) -> None:
        assert self.then is not None, "somebody waits for it"
        decision: Decision | RequestError
        try:
            decision = self._dispatcher.place_late(
                self._request, self._role, self._question, choice
            )
        except RequestError as error:
            decision = error.with_traceback(None)
        except Exception:  # noqa: BLE001 (a policy may be anybody's, and somebody waits for it)
            _log.exception("a policy failed")
            decision = RequestError(500, "internal_error", "the router failed; its log says why")
        self.then(decision)
