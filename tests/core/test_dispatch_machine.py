"""Whatever happens in whatever order: a worker's counts are those of its open decisions."""

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from sgl_router.core.breaker import BreakerSettings, BreakerTable
from sgl_router.core.decision import Decision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Circuit, Health, Role, Worker
from sgl_router.errors import DecisionError, RequestError
from sgl_router.policies.builtin import BUILTIN_POLICIES, PowerOfTwo

ROLES = st.sampled_from(["regular", "regular", "prefill"])
MODELS = st.sampled_from([None, None, "llama", "qwen"])


class Whimsical(Policy):
    """Decides, declines or fails, as its entropy says."""

    name = "whimsical"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        whim, rest = request.entropy % 3, request.entropy // 3
        if whim == 0:
            raise DecisionError(self.name, "timeout", "a whim")
        if whim == 1:
            return None
        return workers.eligible[rest % len(workers.eligible)]


class DispatchMachine(RuleBasedStateMachine):
    decisions = Bundle("decisions")

    @initialize(count=st.integers(1, 5))
    def start(self, count: int) -> None:
        self.registry = WorkerRegistry()
        self.open: list[Decision] = []
        self.first_bytes: list[Decision] = []  # those of the open ones that have had theirs
        self.policies: dict[Role, Policy] = {"regular": PowerOfTwo()}
        self.added = self.ended = self.entropy = self.now = 0
        self.dispatcher = Dispatcher(
            self.registry,
            self.policies["regular"],
            PowerOfTwo(),
            entropy=lambda: self.entropy,
            now_ms=lambda: self.now * 1000,
            clock_ns=lambda: self.now * 10**9,
            on_complete=self.count_end,
            breakers=BreakerTable(self.registry, BreakerSettings(2, 2, 5, 20)),
        )
        for _ in range(count):
            self.add_worker(Health.UP, "regular", None)

    def count_end(self, decision: Decision, outcome: Outcome) -> None:
        self.ended += 1

    @rule(health=st.sampled_from(Health), role=ROLES, model=MODELS)
    def add_worker(self, health: Health, role: Role, model: str | None) -> None:
        self.added += 1
        url = f"http://engine-{self.added}"
        self.registry.add(Worker(url, health, role=role, model_id=model))

    @rule(
        target=decisions,
        entropy=st.integers(0, 2**53 - 1),
        excluded=st.sets(st.integers(0, 4), max_size=2),
        hint=st.none() | st.integers(-1, 6),
        role=ROLES,
        model=MODELS,
        text=st.text("ab", max_size=60),
    )
    def dispatch(
        self,
        *,
        entropy: int,
        excluded: set[int],
        hint: int | None,
        role: Role,
        model: str | None,
        text: str,
    ) -> object:
        self.entropy = entropy
        body = {"prompt": text} | ({"model": model} if model else {})
        request = RequestView("id", "/v1/completions", orjson.dumps(body))
        request.target = hint
        request.excluded = frozenset(w for i, w in enumerate(self.registry) if i in excluded)
        serving = [
            w
            for w in self.registry
            if w.role == role
            and (model is None or not self.registry.models or w.model_id in (None, model))
        ]
        may_take = [w for w in serving if w.available and w not in request.excluded]
        try:
            decision = self.dispatcher.dispatch(request, role)
        except RequestError as error:
            unknown = bool(model and self.registry.models and not serving)
            assert error.status == (404 if unknown else 503)
            policy = self.policies.get(role, self.policies["regular"])
            assert not may_take or isinstance(policy, Whimsical)
            return multiple()
        assert decision.worker in may_take
        if hint is not None and 0 <= hint < len(serving) and serving[hint] in may_take:
            assert decision.worker is serving[hint]
        assert decision.probe is (decision.worker.circuit is Circuit.HALF_OPEN)
        self.open.append(decision)
        return decision

    @rule(decision=decisions)
    def first_byte(self, decision: Decision) -> None:
        if decision in self.open and decision not in self.first_bytes:
            self.dispatcher.first_byte(decision, None)
            self.first_bytes.append(decision)

    @rule(decision=consumes(decisions), engine_ok=st.sampled_from([True, False, False, None]))
    def complete(self, decision: Decision, engine_ok: bool | None) -> None:
        worker, status = decision.worker, 200 if engine_ok else None
        outcome = Outcome(worker.url, bool(engine_ok), status, None, 1.0, 0, None, engine_ok)
        self.dispatcher.complete(decision, outcome)
        self.open.remove(decision)
        if worker.health is Health.DRAINING and not worker.load:
            assert worker not in self.registry

    @rule(index=st.integers(0, 9), health=st.sampled_from(Health))
    def change_health(self, index: int, health: Health) -> None:
        workers = list(self.registry)
        if workers:
            self.registry.set_health(workers[index % len(workers)], health)

    @rule(secs=st.integers(1, 4))
    def wait(self, secs: int) -> None:
        self.now += secs
        self.dispatcher.expire()

    @rule(policy=st.sampled_from([*BUILTIN_POLICIES, Whimsical]), role=ROLES)
    def swap(self, policy: type[Policy], role: Role) -> None:
        self.policies[role] = policy()
        self.dispatcher.use(self.policies[role], PowerOfTwo(), role)

    @invariant()
    def counts_are_those_of_the_open_decisions(self) -> None:
        for worker in self.registry:
            its = [decision for decision in self.open if decision.worker is worker]
            assert worker.load == len(its)
            assert worker.pending_tokens == sum(decision.pending_tokens for decision in its)
        assert not any(decision.pending_tokens for decision in self.first_bytes)

    @invariant()
    def a_worker_has_one_probe_at_most(self) -> None:
        for worker in self.registry:
            probes = [d for d in self.open if d.worker is worker and d.probe]
            assert len(probes) <= 1
            assert worker.probing is bool(probes)

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        before, placed = self.ended, {decision.worker for decision in self.open}
        for decision in self.open:
            outcome = Outcome(decision.worker.url, False, None, None, 1.0, 0, "the end", None)
            self.dispatcher.complete(decision, outcome)
        assert self.ended == before + len(self.open)
        for worker in placed | set(self.registry):
            assert (worker.load, worker.pending_tokens, worker.probing) == (0, 0, False)


DispatchMachine.TestCase.settings = settings(deadline=None, stateful_step_count=80)
TestDispatchMachine = DispatchMachine.TestCase
