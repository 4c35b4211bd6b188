"""The one place that turns a request into a placement, and a placement's end into knowledge."""

from collections.abc import Callable
from dataclasses import dataclass

from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Worker
from sgl_router.errors import DecisionError, RequestError


@dataclass(slots=True)
class Decision:
    """One request placed on one worker; its load is counted until `Dispatcher.complete`.

    Attributes:
        worker: the worker chosen.
        policy: the policy that chose it (it learns the outcome).
        failure: why the fallback policy decided instead, or None.
        entropy, now_ms: what the decision was given, so that it can be replayed.
        elapsed_ns: what the decision took, the fallback's included.
        open: whether the load is still counted.
    """

    worker: Worker
    policy: Policy
    failure: DecisionError | None
    entropy: int
    now_ms: int
    elapsed_ns: int
    open: bool = True


class Dispatcher:
    """Asks the policy, applies the fallback, counts load and learns outcomes.

    Args:
        registry: the workers.
        policy: the policy in use; `use` replaces it.
        fallback: decides where `policy` fails; must be one that cannot fail.
        entropy: returns 53 random bits.
        now_ms: returns Unix time in milliseconds.
        clock_ns: a monotonic clock, for `Decision.elapsed_ns`.
        on_complete: told of each placement that has ended; must not raise.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        policy: Policy,
        fallback: Policy,
        *,
        entropy: Callable[[], int],
        now_ms: Callable[[], int],
        clock_ns: Callable[[], int],
        on_complete: Callable[[Decision, Outcome], None] | None = None,
    ) -> None:
        self.registry = registry
        self._policy = policy
        self._fallback = fallback
        self._entropy = entropy
        self._now_ms = now_ms
        self._clock_ns = clock_ns
        self.on_complete = on_complete

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self._policy

    def use(self, policy: Policy, fallback: Policy) -> None:
        """Decide by `policy` from the next request on; requests in flight keep theirs."""
        self._policy, self._fallback = policy, fallback

    def dispatch(self, request: RequestView) -> Decision:
        """Choose a worker and count the request as in flight on it.

        Raises RequestError (503) where no worker is eligible or the policy declines.
        """
        workers = self.registry.view(request.excluded)
        if not workers.eligible:
            raise RequestError(503, "no_available_workers", self._why_none(request))
        request.entropy, request.now_ms = self._entropy(), self._now_ms()
        policy, failure = self._policy, None
        started = self._clock_ns()
        try:
            index = policy.select_worker(workers, request)
        except DecisionError as error:
            failure = error.with_traceback(None)  # its frames hold this one: a cycle
            failure.__cause__ = failure.__context__ = None  # and so do theirs
            policy = self._fallback
            index = policy.select_worker(workers, request)
        elapsed = self._clock_ns() - started
        if index is None:
            raise RequestError(
                503,
                "no_available_workers",
                f"policy {policy.name!r} chose no worker for this request",
            )
        assert workers.healthy[index], f"{policy.name} keeps the contract of select_worker"
        worker = workers[index]
        worker.load += 1
        return Decision(worker, policy, failure, request.entropy, request.now_ms, elapsed)

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        """Give the load back and pass on what was learnt; exactly once for each decision."""
        assert decision.open, "a load is given back exactly once"
        decision.open = False
        decision.worker.load -= 1
        assert decision.worker.load >= 0, "no more loads are given back than were taken"
        decision.policy.on_request_complete(outcome)
        if self.on_complete is not None:
            self.on_complete(decision, outcome)

    def _why_none(self, request: RequestView) -> str:
        total = len(self.registry)
        if request.excluded:
            return f"no worker could be reached: {len(request.excluded)} of {total} tried"
        return f"none of {total} workers is healthy"
