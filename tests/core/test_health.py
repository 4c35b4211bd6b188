"""Health by observation: the table, and a state machine against a naive reading of it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sgl_router.core.health import HealthTable, HealthThresholds
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker


def table(
    health: Health, failures: int = 3, successes: int = 2
) -> tuple[HealthTable, WorkerRegistry, Worker]:
    registry = WorkerRegistry()
    worker = Worker("http://engine:8000", health)
    registry.add(worker)
    return HealthTable(registry, HealthThresholds(failures, successes)), registry, worker


@pytest.mark.parametrize(
    ("health", "observed", "following"),
    [
        (Health.UNKNOWN, "+", Health.UP),
        (Health.UNKNOWN, "--", Health.UNKNOWN),
        (Health.UNKNOWN, "---", Health.DOWN),
        (Health.UNKNOWN, "--+", Health.UP),
        (Health.UP, "--", Health.UP),
        (Health.UP, "---", Health.DOWN),
        (Health.UP, "--+--", Health.UP),
        (Health.UP, "--+---", Health.DOWN),
        (Health.DOWN, "+", Health.DOWN),
        (Health.DOWN, "++", Health.UP),
        (Health.DOWN, "+-+", Health.DOWN),
        (Health.DOWN, "+-++", Health.UP),
        (Health.UP, "---++", Health.UP),
        (Health.UP, "---+", Health.DOWN),
        (Health.DOWN, "++--", Health.UP),
        (Health.DRAINING, "---", Health.DRAINING),
        (Health.DRAINING, "+++", Health.DRAINING),
    ],
)
def test_table(health: Health, observed: str, following: Health) -> None:
    healths, _, worker = table(health)
    for sign in observed:
        healths.observe(worker, ok=sign == "+")
    assert worker.health is following


def test_the_defaults_are_three_failures_and_two_successes() -> None:
    assert HealthThresholds() == HealthThresholds(failures=3, successes=2)


def test_a_change_is_told_and_seen_by_the_next_decision() -> None:
    healths, registry, worker = table(Health.UP, failures=2)
    assert registry.view().eligible == (0,)
    assert not healths.observe(worker, ok=False)
    assert registry.view().eligible == (0,)
    assert healths.observe(worker, ok=False)
    assert registry.view().eligible == ()


def test_workers_do_not_share_a_streak() -> None:
    healths, registry, first = table(Health.UP)
    second = Worker("http://other:8000", Health.UP)
    registry.add(second)
    for worker in (first, second, first, second):
        healths.observe(worker, ok=False)
    assert (first.health, second.health) == (Health.UP, Health.UP)


class HealthMachine(RuleBasedStateMachine):
    """The reference keeps every observation and looks back; the table keeps a number."""

    @initialize(failures=st.integers(1, 4), successes=st.integers(1, 4))
    def start(self, failures: int, successes: int) -> None:
        self.failures, self.successes = failures, successes
        self.healths, self.registry, self.worker = table(Health.UNKNOWN, failures, successes)
        self.expected = Health.UNKNOWN
        self.history: list[bool] = []  # since the last change

    @rule(ok=st.booleans())
    def observe(self, ok: bool) -> None:
        self.history.append(ok)
        following = self.judge()
        changed = following is not self.expected
        if changed:
            self.expected, self.history = following, []
        assert self.healths.observe(self.worker, ok) is changed

    @rule(health=st.sampled_from(Health))
    def set_from_outside(self, health: Health) -> None:
        self.registry.set_health(self.worker, health)
        self.expected, self.history = health, []

    def judge(self) -> Health:
        last_failed = self.history[-self.failures :] == [False] * self.failures
        last_succeeded = self.history[-self.successes :] == [True] * self.successes
        match self.expected:
            case Health.UNKNOWN if self.history[-1]:
                return Health.UP
            case Health.UNKNOWN | Health.UP if last_failed:
                return Health.DOWN
            case Health.DOWN if last_succeeded:
                return Health.UP
        return self.expected

    @invariant()
    def agrees(self) -> None:
        assert self.worker.health is self.expected
        assert self.registry.view().eligible == ((0,) if self.expected is Health.UP else ())


HealthMachine.TestCase.settings = settings(deadline=None)
TestHealthMachine = HealthMachine.TestCase
