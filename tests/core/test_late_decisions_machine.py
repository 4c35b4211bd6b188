"""Whatever happens while decisions are under way: loads are those of what was placed."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from sgl_router.core.breaker import BreakerSettings
from sgl_router.core.decision import Decision, PendingDecision
from sgl_router.core.policy import Choice
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, RequestError
from sgl_router.policies.builtin import PowerOfTwo
from tests.core.dispatching import Bench
from tests.core.test_late_decisions import Deliberating, Deliberation


class LateDecisions(RuleBasedStateMachine):
    waiting = Bundle("waiting")
    placed = Bundle("placed")

    @initialize(count=st.integers(0, 4))
    def start(self, count: int) -> None:
        self.policy = Deliberating()
        self.bench = Bench(self.policy, PowerOfTwo(), count, BreakerSettings(2, 2, 5, 20))
        self.open: list[Decision] = []
        self.added = 0

    @rule(target=waiting)
    def begin(self) -> PendingDecision | None:
        request = RequestView("id", "/v1/completions")
        try:
            pending = self.bench.dispatcher.begin(request)
        except RequestError:
            assert not any(worker.available for worker in self.bench.registry)
            return None
        assert isinstance(pending, PendingDecision)
        return pending

    @rule(
        target=placed,
        pending=consumes(waiting),
        choice=st.integers(0, 4) | st.none() | st.just("fails"),
    )
    def settle(self, pending: PendingDecision | None, choice: int | str | None) -> Decision | None:
        if pending is None:
            return None
        deliberation = pending._choice
        assert isinstance(deliberation, Deliberation)
        shown = deliberation.workers
        made: Choice = DecisionError("p", "trap", "it did") if choice == "fails" else None
        if isinstance(choice, int):
            made = shown.eligible[choice % len(shown.eligible)]
        may_take = [worker for worker in self.bench.registry if worker.available]
        told: list[Decision | RequestError] = []
        pending.then = told.append
        deliberation.settle(made)
        deliberation.settle(made)  # told once, however often it is made
        (decision,) = told
        if isinstance(decision, RequestError):
            assert made is None or not may_take
            return None
        assert decision.worker in may_take
        if isinstance(made, int) and shown[made] in may_take:
            assert decision.worker is shown[made]
        self.open.append(decision)
        return decision

    @rule(pending=consumes(waiting), choice=st.integers(0, 4))
    def give_up(self, pending: PendingDecision | None, choice: int) -> None:
        if pending is not None:
            deliberation = pending._choice
            pending.give_up()
            deliberation.settle(choice)

    @rule(decision=consumes(placed), engine_ok=st.sampled_from([True, False, None]))
    def complete(self, decision: Decision | None, engine_ok: bool | None) -> None:
        if decision is not None:
            self.open.remove(decision)
            self.bench.complete(decision, engine_ok)

    @rule(health=st.sampled_from(Health))
    def add(self, health: Health) -> None:
        self.added += 1
        self.bench.registry.add(Worker(f"http://added-{self.added}", health))

    @rule(index=st.integers(0, 9), health=st.sampled_from([*Health, None]))
    def change(self, index: int, health: Health | None) -> None:
        workers = list(self.bench.registry)
        if workers and health is not None:
            self.bench.registry.set_health(workers[index % len(workers)], health)
        elif workers and not workers[index % len(workers)].load:
            self.bench.registry.remove(workers[index % len(workers)])

    @invariant()
    def loads_are_those_of_what_was_placed(self) -> None:
        for worker in {*self.bench.registry, *(decision.worker for decision in self.open)}:
            its = [decision for decision in self.open if decision.worker is worker]
            assert worker.load == len(its)
            assert worker.probing is any(decision.probe for decision in its)


LateDecisions.TestCase.settings = settings(deadline=None, stateful_step_count=50)
TestLateDecisions = LateDecisions.TestCase
