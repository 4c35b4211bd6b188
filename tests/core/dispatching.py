"""A dispatcher to be tried out: policies that do as they are told, and a clock that is counted."""

from sgl_router.core.breaker import BreakerSettings, BreakerTable
from sgl_router.core.decision import Decision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError

DONE = Outcome("http://engine-0", True, 200, 12.0, 80.0, 7, None)


class Scripted(Policy):
    """Does what it was made for, and remembers what it was asked and told."""

    def __init__(
        self, name: str, does: int | DecisionError | None = 0, needs: frozenset[str] = frozenset()
    ) -> None:
        self.name = name
        self.does = does
        self.needs = needs
        self.asked: list[tuple[int, int]] = []
        self.told: list[Outcome] = []

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        self.asked.append((request.entropy, request.now_ms))
        if isinstance(self.does, DecisionError):
            raise self.does
        return self.does

    def on_request_complete(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def failing() -> Scripted:
    return Scripted("failing", DecisionError("failing", "trap", "unreachable"))


class Bench:
    """A dispatcher over some workers, with a clock that moves by one at each look."""

    def __init__(
        self,
        policy: Policy,
        fallback: Policy | None = None,
        workers: int = 2,
        breakers: BreakerSettings | None = None,
    ) -> None:
        self.registry = WorkerRegistry()
        self.workers = [Worker(f"http://engine-{i}", Health.UP) for i in range(workers)]
        for worker in self.workers:
            self.registry.add(worker)
        self.completed: list[tuple[Decision, Outcome]] = []
        self.ticks = 0
        self.draws = 0
        self.dispatcher = Dispatcher(
            self.registry,
            policy,
            fallback or Scripted("fallback", 1),
            entropy=self.draw,
            now_ms=lambda: 1_700_000_000_000 + self.draws,
            clock_ns=self.tick,
            on_complete=lambda decision, outcome: self.completed.append((decision, outcome)),
            breakers=BreakerTable(self.registry, breakers) if breakers is not None else None,
        )

    def draw(self) -> int:
        self.draws += 1
        return 1000 + self.draws

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    def dispatch(self, body: bytes = b"", target: int | None = None) -> Decision:
        request = RequestView("id", "/v1/completions", body)
        request.target = target
        return self.dispatcher.dispatch(request)

    def complete(self, decision: Decision, engine_ok: bool | None = True) -> None:
        url = decision.worker.url
        outcome = Outcome(url, bool(engine_ok), 200, None, 5.0, 1, None, engine_ok)
        self.dispatcher.complete(decision, outcome)

    def loads(self) -> list[int]:
        return [worker.load for worker in self.workers]
