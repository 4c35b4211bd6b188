"""The one place that turns a request into a placement, and a placement's end into knowledge."""

from collections.abc import Callable

from sgl_router.core.breaker import BreakerTable
from sgl_router.core.decision import Decision, InUse, PendingDecision, Question
from sgl_router.core.policy import Choice, Outcome, PendingChoice, Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.shadow_run import ShadowRun
from sgl_router.core.worker import Circuit, Health, Role, Worker
from sgl_router.errors import DecisionError, RequestError

_TTFT_SHARE = 0.1
"""Of the newest in `Worker.ttft_ms`: the last ten or so count."""

_KEPT = frozenset({"pending_tokens", "prefix_match"})


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
        self._in_use: dict[Role, InUse] = {}
        self.needs: frozenset[str] = frozenset()
        self.use(policy, fallback)

    @property
    def reads_body(self) -> bool:
        """Whether a decision needs the request's whole body."""
        return "body" in self.needs or bool(self.registry.models)

    def use(self, policy: Policy, fallback: Policy, role: Role = "regular") -> None:
        """Decide by `policy` from the next request on; requests in flight keep theirs.

        Also told where what a policy in use needs has changed.
        """
        before = self._in_use.get(role)
        shadow = None if before is None else before.shadow
        self._in_use[role] = InUse(policy, fallback, shadow)
        self._find_needs()

    def compare(self, shadow: ShadowRun | None, role: Role) -> None:
        """Have another policy decide beside the one in use for `role`, or do not any more."""
        used = self._in_use[role]
        self._in_use[role] = InUse(used.policy, used.fallback, shadow)
        self._find_needs()

    def policies(self) -> dict[Role, tuple[Policy, Policy]]:
        """The policy in use and its fallback, for each role that has one of its own."""
        return {role: (used.policy, used.fallback) for role, used in self._in_use.items()}

    def _find_needs(self) -> None:
        needs = frozenset[str]().union(*(used.needs for used in self._in_use.values()))
        if needs & _KEPT:
            needs |= {"body"}
        self.needs = needs

    def dispatch(self, request: RequestView, role: Role = "regular") -> Decision:
        """Choose a worker and count the request as in flight on it.

        Raises RequestError: 503 where no worker is eligible or the policy declines, 404 where none
        serves the model.
        """
        question = self._ask(request, role)
        used, workers, _, _ = question
        choice: Choice
        try:
            choice = self._wanted(workers, request)
            if choice is None:
                choice = used.policy.select_worker(workers, request)
        except DecisionError as error:
            choice = error
        return self._place(request, question, choice)

    def begin(self, request: RequestView, role: Role = "regular") -> Decision | PendingDecision:
        """As `dispatch`, but where the policy takes long, the decision comes later."""
        question = self._ask(request, role)
        used, workers, _, _ = question
        choice: Choice | PendingChoice
        try:
            choice = self._wanted(workers, request)
            if choice is None:
                choice = used.policy.choose(workers, request)
        except DecisionError as error:
            choice = error
        if isinstance(choice, PendingChoice):
            return PendingDecision(self, request, role, question, choice)
        return self._place(request, question, choice)

    def _ask(self, request: RequestView, role: Role) -> Question:
        """What the policy is asked. Raises RequestError where nobody may be chosen."""
        workers = self._eligible(request, role)
        used = self._in_use.get(role) or self._in_use["regular"]
        request.entropy = self._entropy()
        request.now_ms = self._now_ms()
        if used.keeps_prefixes:
            request.prefix = self._prefixes.match(workers.pool, request.text or "")
        return used, workers, used.policy.version, self._clock_ns()

    def _eligible(self, request: RequestView, role: Role) -> WorkerView:
        """Raises RequestError where no worker may be chosen."""
        registry = self.registry
        model = request.model if registry.models else None
        workers = registry.view(request.excluded, role, model)
        if not workers.eligible:
            raise self._none_eligible(request, workers, model)
        return workers

    def _wanted(self, workers: WorkerView, request: RequestView) -> int | None:
        """The worker that the client asks for itself, where it may be picked."""
        target = request.target
        if target is not None and 0 <= target < len(workers) and workers.healthy[target]:
            return target
        return None

    def place_late(
        self, request: RequestView, role: Role, question: Question, choice: Choice
    ) -> Decision:
        """Place a request by a choice among the workers as they were a while ago.

        A worker that has left or must not be picked any more is replaced by the fallback policy's
        choice. Raises RequestError as `dispatch`.
        """
        used, before, version, at_ns = question
        workers = self._eligible(request, role)
        if type(choice) is not int:
            return self._place(request, (used, workers, version, at_ns), choice)
        chosen = before[choice]
        index = next((i for i in workers.eligible if workers[i] is chosen), None)
        policy = used.policy
        if index is None:
            policy = used.fallback
            index = policy.select_worker(workers, request)
        return self._place(request, (used, workers, version, at_ns), index, policy)

    def _place(
        self,
        request: RequestView,
        question: Question,
        choice: Choice,
        policy: Policy | None = None,
    ) -> Decision:
        """Count the request on the worker chosen, by the fallback policy where that failed.

        Raises RequestError where no worker should take it.
        """
        used, workers, version, at_ns = question
        policy, failure = policy or used.policy, None
        if isinstance(choice, DecisionError):
            failure = choice.with_traceback(None)  # its frames hold this one: a cycle
            failure.__cause__ = failure.__context__ = None  # and so do theirs
            policy = used.fallback
            choice = policy.select_worker(workers, request)
        elapsed = self._clock_ns() - at_ns
        if choice is None:
            raise RequestError(
                503,
                "no_available_workers",
                f"policy {policy.name!r} chose no worker for this request",
            )
        assert workers.healthy[choice], f"{policy.name} keeps the contract of select_worker"
        worker = workers[choice]
        decision = Decision(
            worker,
            policy,
            version,
            failure,
            request.entropy,
            request.now_ms,
            elapsed,
            request.path,
        )
        if used.shadow is not None:  # sees the workers as the policy in use has seen them
            used.shadow.observe(workers, request, decision)
        worker.load += 1
        if worker.circuit is not Circuit.CLOSED:
            decision.probe = True
            self.registry.set_circuit(worker, worker.circuit, probing=True)
        if used.keeps:
            self._keep(used, workers, request, decision)
        if worker.watched_by:
            worker.touched()
        return decision

    def _keep(
        self, used: InUse, workers: WorkerView, request: RequestView, decision: Decision
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
        if worker.watched_by:
            worker.touched()
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
        if worker.watched_by:
            worker.touched()
        if self._breakers is not None and (outcome.engine_ok is False or decision.probe):
            now = self._clock_ns() / 1e9
            self._breakers.settle(worker, outcome.engine_ok, now, probe=decision.probe)
        if self.on_complete is not None:  # told first: with a worker goes what is counted for it
            self.on_complete(decision, outcome)
        if not worker.load and worker.health is Health.DRAINING:
            self.registry.remove(worker)
        decision.policy.on_request_complete(outcome)
        if decision.shadow is not None:
            decision.shadow.ended()

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
