"""Whatever happens in whatever order: a worker's load is the number of its open decisions."""

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

from sgl_router.core.dispatch import Decision, Dispatcher
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, RequestError
from sgl_router.policies.builtin import BUILTIN_POLICIES, PowerOfTwo


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
        self.ended = 0
        self.entropy = 0
        self.dispatcher = Dispatcher(
            self.registry,
            PowerOfTwo(),
            PowerOfTwo(),
            entropy=lambda: self.entropy,
            now_ms=lambda: 0,
            clock_ns=lambda: 0,
            on_complete=self.count_end,
        )
        for _ in range(count):
            self.add_worker(Health.UP)

    def count_end(self, decision: Decision, outcome: Outcome) -> None:
        self.ended += 1

    @rule(health=st.sampled_from(Health))
    def add_worker(self, health: Health) -> None:
        self.registry.add(Worker(f"http://engine-{len(self.registry)}", health))

    @rule(
        target=decisions,
        entropy=st.integers(0, 2**53 - 1),
        excluded=st.sets(st.integers(0, 4), max_size=2),
    )
    def dispatch(self, entropy: int, excluded: set[int]) -> object:
        self.entropy = entropy
        workers = list(self.registry)
        request = RequestView("id", "/v1/completions")
        request.excluded = frozenset(w for i, w in enumerate(workers) if i in excluded)
        may_take = [w for w in workers if w.healthy and w not in request.excluded]
        try:
            decision = self.dispatcher.dispatch(request)
        except RequestError as error:
            assert error.status == 503
            assert not may_take or isinstance(self.dispatcher.policy, Whimsical)
            return multiple()
        assert decision.worker in may_take
        self.open.append(decision)
        return decision

    @rule(decision=consumes(decisions), success=st.booleans())
    def complete(self, decision: Decision, success: bool) -> None:
        url, status = decision.worker.url, 200 if success else None
        self.dispatcher.complete(decision, Outcome(url, success, status, None, 1.0, 0, None))
        self.open.remove(decision)

    @rule(index=st.integers(0, 9), health=st.sampled_from(Health))
    def change_health(self, index: int, health: Health) -> None:
        workers = list(self.registry)
        self.registry.set_health(workers[index % len(workers)], health)

    @rule(policy=st.sampled_from([*BUILTIN_POLICIES, Whimsical]))
    def swap(self, policy: type[Policy]) -> None:
        self.dispatcher.use(policy(), PowerOfTwo())

    @invariant()
    def loads_are_the_open_decisions(self) -> None:
        for worker in self.registry:
            assert worker.load == sum(decision.worker is worker for decision in self.open)

    def teardown(self) -> None:
        if not hasattr(self, "dispatcher"):
            return
        before = self.ended
        for decision in self.open:
            outcome = Outcome(decision.worker.url, False, None, None, 1.0, 0, "the end")
            self.dispatcher.complete(decision, outcome)
        assert self.ended == before + len(self.open)
        assert all(worker.load == 0 for worker in self.registry)


DispatchMachine.TestCase.settings = settings(deadline=None)
TestDispatchMachine = DispatchMachine.TestCase
