"""The one place that turns a request into a placement, and a placement's end into knowledge."""

from collections.abc import Callable
from dataclasses import dataclass

from sgl_router.core.breaker import BreakerTable
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Circuit, Health, Role, Worker
from sgl_router.errors import DecisionError, RequestError

_TTFT_SHARE = 0.1
"""Of the newest in `Worker.ttft_ms`: the last ten or so count."""

_KEPT = frozenset({"pending_tokens", "prefix_match"})


class _InUse:
    """A policy in use, and what it needs to be kept of each placement."""

    __slots__ = ("fallback", "keeps", "keeps_prefixes", "keeps_tokens", "policy")

    def __init__(self, policy: Policy, fallback: Policy) -> None:
        self.policy = policy
        self.fallback = fallback
        self.keeps_prefixes = "prefix_match" in policy.needs
        self.keeps_tokens = "pending_tokens" in policy.needs
        self.keeps = self.keeps_prefixes or self.keeps_tokens


@dataclass(slots=True)
class Decision:
    """One request placed on one worker; its load is counted until `Dispatcher.complete`.

    Attributes:
        worker: the worker chosen.
        policy: the policy that chose it (it learns the outcome).
        failure: why the fallback policy decided instead, or None.
        entropy, now_ms: what the decision was given, so that it can be replayed.
        elapsed_ns: what the decision took, the fallback's included.
        path: the request's, without the query.
        probe: whether the worker's breaker was half-open.
        pending_tokens: what is counted in the worker's until the first byte of the answer.
        open: whether the load is still counted.
    """

    worker: Worker
    policy: Policy
    failure: DecisionError | None
    entropy: int
    now_ms: int
    elapsed_ns: int
    path: str
    probe: bool = False
    pending_tokens: int = 0
    open: bool = True


class Dispatcher:
    """Asks the policy, applies the fallback, counts load and learns outcomes.

    Args:
        registry: the workers.
        policy: the policy in use; `use` replaces it.
        fallback: decides where `policy` fails; must be one that cannot fail.
        entropy: returns 53 random bits.
        now_ms: returns Unix time in milliseconds.
        clock_ns: a monotonic clock, for `Decision.elapsed_ns` and the breakers.
        on_complete: told of each placement that has ended; must not raise.
        breakers: learn of engines that fail; None: there are none.
        prefixes: remembers who was sent what, for policies that need it.
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
        breakers: BreakerTable | None = None,
        prefixes: PrefixIndex | None = None,
    ) -> None:
        self.registry = registry
        self.on_complete = on_complete
        self._entropy = entropy
        self._now_ms = now_ms
        self._clock_ns = clock_ns
        self._breakers = breakers
        self._prefixes = prefixes if prefixes is not None else PrefixIndex()
        registry.on_remove.append(self._prefixes.forget)
        self._in_use: dict[Role, _InUse] = {}
        self.needs: frozenset[str] = frozenset()
        self.use(policy, fallback)

    @property
    def reads_body(self) -> bool:
        """Whether a decision needs the request's whole body."""
        return "body" in self.needs or bool(self.registry.models)

    def use(self, policy: Policy, fallback: Policy, role: Role = "regular") -> None:
        """Decide by `policy` from the next request on; requests in flight keep theirs."""
        self._in_use[role] = _InUse(policy, fallback)
        needs = frozenset[str]().union(*(used.policy.needs for used in self._in_use.values()))
        if needs & _KEPT:
            needs |= {"body"}
        self.needs = needs

    def dispatch(self, request: RequestView, role: Role = "regular") -> Decision:
        """Choose a worker and count the request as in flight on it.

        Raises RequestError: 503 where no worker is eligible or the policy declines, 404 where none
        serves the model.
        """
        registry = self.registry
        model = request.model if registry.models else None
        workers = registry.view(request.excluded, role, model)
        if not workers.eligible:
            raise self._none_eligible(request, workers, model)
        used = self._in_use.get(role) or self._in_use["regular"]
        policy, failure = used.policy, None
        request.entropy = self._entropy()
        request.now_ms = self._now_ms()
        if used.keeps_prefixes:
            request.prefix = self._prefixes.match(workers.pool, request.text or "")
        started = self._clock_ns()
        target = request.target
        if target is not None and 0 <= target < len(workers) and workers.healthy[target]:
            index: int | None = target
        else:
            try:
                index = policy.select_worker(workers, request)
            except DecisionError as error:
                failure = error.with_traceback(None)  # its frames hold this one: a cycle
                failure.__cause__ = failure.__context__ = None  # and so do theirs
                policy = used.fallback
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
        decision = Decision(
            worker, policy, failure, request.entropy, request.now_ms, elapsed, request.path
        )
        if worker.circuit is not Circuit.CLOSED:
            decision.probe = True
            registry.set_circuit(worker, worker.circuit, probing=True)
        if used.keeps:
            self._keep(used, workers, request, decision)
        return decision

    def _keep(
        self, used: _InUse, workers: WorkerView, request: RequestView, decision: Decision
    ) -> None:
        """Remember of a placement what the policy needs for others."""
        worker = decision.worker
        if used.keeps_prefixes:
            self._prefixes.insert(workers.pool, request.text or "", worker)
        if used.keeps_tokens:
            decision.pending_tokens = tokens = request.prompt_tokens
            worker.pending_tokens += tokens
            worker.unreported_tokens += tokens

    def can_dispatch(
        self, request: RequestView, excluded: frozenset[Worker], role: Role = "regular"
    ) -> bool:
        """Whether any worker is eligible besides those in `excluded`."""
        model = request.model if self.registry.models else None
        return bool(self.registry.view(excluded, role, model).eligible)

    def first_byte(self, decision: Decision, engine_ok: bool | None) -> None:
        """The answer has begun: the prompt has been worked through, and a probe has its result.

        A stream may last for half an hour, and the others need not wait for its end.
        """
        worker = decision.worker
        worker.pending_tokens -= decision.pending_tokens
        decision.pending_tokens = 0
        if decision.probe and self._breakers is not None and engine_ok:
            decision.probe = False
            self._breakers.settle(worker, True, self._clock_ns() / 1e9, probe=True)

    def complete(self, decision: Decision, outcome: Outcome) -> None:
        """Give the load back and pass on what was learnt; exactly once for each decision."""
        assert decision.open, "a load is given back exactly once"
        decision.open = False
        worker = decision.worker
        worker.load -= 1
        worker.ended += 1
        assert worker.load >= 0, "no more loads are given back than were taken"
        worker.pending_tokens -= decision.pending_tokens
        ttft = outcome.ttft_ms
        if ttft is not None:
            before = worker.ttft_ms
            worker.ttft_ms = ttft if before is None else before + (ttft - before) * _TTFT_SHARE
        if self._breakers is not None and (outcome.engine_ok is False or decision.probe):
            now = self._clock_ns() / 1e9
            self._breakers.settle(worker, outcome.engine_ok, now, probe=decision.probe)
        if self.on_complete is not None:  # told first: with a worker goes what is counted for it
            self.on_complete(decision, outcome)
        if not worker.load and worker.health is Health.DRAINING:
            self.registry.remove(worker)
        decision.policy.on_request_complete(outcome)

    def forget_prefixes(self, worker: Worker) -> None:
        """The worker's engine has dropped its prefix cache."""
        self._prefixes.forget(worker)

    def expire(self) -> None:
        """Let breakers that have been open long enough try again; called now and then."""
        if self._breakers is not None:
            self._breakers.expire(self._clock_ns() / 1e9)

    def _none_eligible(
        self, request: RequestView, workers: WorkerView, model: str | None
    ) -> RequestError:
        if not workers and model is not None:
            return RequestError(
                404, "model_not_found", f"no worker serves the model {model!r:.200}"
            )
        if request.excluded:
            why = f"no worker could be reached; tried: {len(request.excluded)} of {len(workers)}"
        else:
            why = f"no worker is available: each of {len(workers)} is down, or its breaker is open"
        return RequestError(503, "no_available_workers", why)
