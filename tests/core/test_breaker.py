"""Breakers: the table, the window, the probes, and a state machine against a naive reading."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sgl_router.core.breaker import BreakerSettings, BreakerTable
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Circuit, Health, Worker

SETTINGS = BreakerSettings(failures=3, successes=2, open_secs=10, window_secs=60)


class Bench:
    """One worker, placed upon as the dispatcher does, and a clock that is set."""

    def __init__(self, settings: BreakerSettings = SETTINGS) -> None:
        self.registry = WorkerRegistry()
        self.worker = Worker("http://engine:8000", Health.UP)
        self.registry.add(self.worker)
        self.table = BreakerTable(self.registry, settings)
        self.changes: list[Circuit] = []
        self.table.on_change = lambda worker: self.changes.append(worker.circuit)
        self.now = 1000.0

    def place(self) -> bool:
        """Begin a request; returns whether it is a probe."""
        assert self.eligible(), "a view shows the worker"
        probe = self.worker.circuit is not Circuit.CLOSED
        if probe:
            self.registry.set_circuit(self.worker, self.worker.circuit, probing=True)
        return probe

    def end(self, ok: bool | None, probe: bool = False) -> None:
        self.worker.ended += 1
        self.table.settle(self.worker, ok, self.now, probe=probe)

    def probe(self, ok: bool | None) -> None:
        assert self.place(), "the worker is half-open"
        self.end(ok, probe=True)

    def fail(self, times: int, every: float = 0.0) -> None:
        for _ in range(times):
            self.end(False)
            self.now += every

    def wait(self, secs: float) -> None:
        self.now += secs
        self.table.expire(self.now)

    def eligible(self) -> bool:
        return self.registry.view().eligible == (0,)

    def circuit(self) -> Circuit:
        return self.worker.circuit

    def remembered(self) -> bool:
        return self.worker in self.table._records


def half_open() -> Bench:
    bench = Bench()
    bench.fail(3)
    bench.wait(10)
    assert bench.circuit() is Circuit.HALF_OPEN
    return bench


def test_the_defaults() -> None:
    assert BreakerSettings() == BreakerSettings(
        failures=10, successes=3, open_secs=60.0, window_secs=120.0
    )


def test_so_many_failures_open_it_and_the_next_decision_sees_it() -> None:
    bench = Bench()
    bench.fail(2)
    assert (bench.circuit(), bench.eligible()) == (Circuit.CLOSED, True)
    bench.fail(1)
    assert (bench.circuit(), bench.eligible()) == (Circuit.OPEN, False)
    assert bench.changes == [Circuit.OPEN]


def test_failures_need_not_be_in_a_row() -> None:
    bench = Bench()
    for ok in (False, True, None, False, True, False):
        bench.end(ok)
    assert bench.circuit() is Circuit.OPEN


@pytest.mark.parametrize(
    ("every", "circuit"), [(29.9, Circuit.OPEN), (30.0, Circuit.OPEN), (30.1, Circuit.CLOSED)]
)
def test_only_failures_within_the_window_count(every: float, circuit: Circuit) -> None:
    bench = Bench()  # the third comes twice that after the first; the window is 60 s
    bench.fail(3, every)
    assert bench.circuit() is circuit


def test_good_answers_and_answers_that_say_nothing_open_nothing() -> None:
    bench = Bench()
    for ok in (True, None) * 10:
        bench.end(ok)
    assert (bench.circuit(), bench.remembered(), bench.changes) == (Circuit.CLOSED, False, [])


def test_it_is_open_for_its_time() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(9.9)
    assert (bench.circuit(), bench.eligible()) == (Circuit.OPEN, False)
    bench.wait(0.2)
    assert (bench.circuit(), bench.eligible()) == (Circuit.HALF_OPEN, True)
    assert bench.changes == [Circuit.OPEN, Circuit.HALF_OPEN]


def test_failures_that_come_late_do_not_keep_it_open_for_longer() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(9)
    bench.fail(5)
    bench.wait(1)
    assert bench.circuit() is Circuit.HALF_OPEN


def test_a_half_open_worker_has_one_probe_at_a_time() -> None:
    bench = half_open()
    assert bench.place()
    assert not bench.eligible()
    bench.end(True, probe=True)
    assert bench.eligible()


def test_good_probes_in_a_row_close_it() -> None:
    bench = half_open()
    bench.probe(True)
    assert (bench.circuit(), bench.remembered()) == (Circuit.HALF_OPEN, True)
    bench.probe(True)
    assert (bench.circuit(), bench.remembered()) == (Circuit.CLOSED, False)
    assert not bench.place()
    assert bench.changes == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]


def test_a_bad_probe_opens_it_again_and_the_good_ones_before_are_forgotten() -> None:
    bench = half_open()
    bench.probe(True)
    bench.probe(False)
    assert (bench.circuit(), bench.eligible()) == (Circuit.OPEN, False)
    bench.wait(9.9)
    assert bench.circuit() is Circuit.OPEN
    bench.wait(0.1)
    bench.probe(True)
    assert bench.circuit() is Circuit.HALF_OPEN
    bench.probe(True)
    assert bench.circuit() is Circuit.CLOSED


def test_a_probe_that_says_nothing_lets_the_next_one_come_and_counts_for_nothing() -> None:
    bench = half_open()
    for _ in range(5):
        bench.probe(None)
        assert (bench.circuit(), bench.eligible()) == (Circuit.HALF_OPEN, True)
    bench.probe(True)
    bench.probe(None)
    bench.probe(True)
    assert bench.circuit() is Circuit.CLOSED


@pytest.mark.parametrize("ok", [True, False, None])
@pytest.mark.parametrize("probing", [True, False])
def test_a_request_of_before_decides_nothing_and_lets_no_second_probe_in(
    ok: bool | None, probing: bool
) -> None:
    bench = half_open()
    if probing:
        bench.place()
    for _ in range(5):
        bench.end(ok)
    assert (bench.circuit(), bench.worker.probing) == (Circuit.HALF_OPEN, probing)
    assert bench.eligible() is not probing


def test_closed_again_it_has_forgotten_the_failures_that_opened_it() -> None:
    bench = half_open()
    bench.probe(True)
    bench.probe(True)
    bench.fail(2)
    assert bench.circuit() is Circuit.CLOSED
    bench.fail(1)
    assert bench.circuit() is Circuit.OPEN


def test_a_worker_is_failing_until_its_last_failure_is_out_of_the_window() -> None:
    bench = Bench()
    bench.fail(1)
    bench.wait(30)
    bench.fail(1)
    failing = []
    for secs in (60, 0.1):
        bench.wait(secs)
        failing.append(bench.remembered())
    bench.fail(1)
    assert [*failing, bench.remembered()] == [True, False, True]


@pytest.mark.parametrize(("between", "circuit"), [(1, Circuit.OPEN), (2, Circuit.CLOSED)])
def test_failures_that_are_few_among_many_open_nothing(between: int, circuit: Circuit) -> None:
    bench = Bench()
    for _ in range(20):
        bench.fail(1)
        for _ in range(between):
            bench.end(True)
    assert bench.circuit() is circuit


def test_a_busy_worker_that_breaks_is_taken_out() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.end(True)
    bench.fail(3)
    assert bench.circuit() is Circuit.OPEN


def test_failures_of_before_do_not_delay_it() -> None:
    """A busy worker that has failed now and then all along is out with its third in a row."""
    bench = Bench()
    for _ in range(10):
        bench.fail(1)
        for _ in range(100):
            bench.end(True)
    assert bench.circuit() is Circuit.CLOSED
    bench.fail(3)
    assert bench.circuit() is Circuit.OPEN


def test_workers_do_not_share_failures() -> None:
    bench = Bench()
    other = Worker("http://other:8000", Health.UP)
    bench.registry.add(other)
    for worker in (bench.worker, other, bench.worker, other):
        bench.table.settle(worker, False, bench.now)
    assert (bench.circuit(), other.circuit) == (Circuit.CLOSED, Circuit.CLOSED)
    bench.table.settle(other, False, bench.now)
    assert (bench.circuit(), other.circuit) == (Circuit.CLOSED, Circuit.OPEN)


def test_a_removed_worker_is_forgotten_and_not_remembered_by_its_last_requests() -> None:
    bench = Bench()
    bench.fail(2)
    bench.registry.remove(bench.worker)
    assert not bench.remembered()
    bench.fail(5)
    assert (bench.circuit(), bench.remembered(), bench.changes) == (Circuit.CLOSED, False, [])
    again = Worker(bench.worker.url, Health.UP)
    bench.registry.add(again)
    bench.fail(5)  # of the worker that is gone
    assert again.circuit is Circuit.CLOSED


def test_a_worker_removed_while_its_breaker_is_open_is_not_half_opened() -> None:
    bench = Bench()
    bench.fail(3)
    bench.registry.remove(bench.worker)
    bench.wait(100)
    assert bench.changes == [Circuit.OPEN]


def test_health_and_breaker_are_two_things() -> None:
    bench = half_open()
    bench.registry.set_health(bench.worker, Health.DOWN)
    assert not bench.eligible()
    bench.registry.set_health(bench.worker, Health.UP)
    assert (bench.circuit(), bench.eligible()) == (Circuit.HALF_OPEN, True)


class BreakerMachine(RuleBasedStateMachine):
    """The reference keeps every failure for ever and looks back."""

    @initialize(
        failures=st.integers(1, 4),
        successes=st.integers(1, 3),
        open_secs=st.integers(1, 5),
        window_secs=st.integers(1, 8),
    )
    def start(self, failures: int, successes: int, open_secs: int, window_secs: int) -> None:
        self.settings = BreakerSettings(failures, successes, open_secs, window_secs)
        self.bench = Bench(self.settings)
        self.expected = Circuit.CLOSED
        self.since = self.bench.now
        self.failed: list[tuple[float, int]] = []  # since it was closed: when, the how-many-th end
        self.ended = 0
        self.good = 0  # probes in a row
        self.open: list[bool] = []  # requests under way: whether each is a probe

    def become(self, circuit: Circuit) -> None:
        self.expected, self.since, self.good, self.failed = circuit, self.bench.now, 0, []

    @rule()
    def place(self) -> None:
        if self.bench.eligible():
            self.open.append(self.bench.place())

    @rule(which=st.integers(0, 99), ok=st.sampled_from([True, False, None]))
    def end(self, which: int, ok: bool | None) -> None:
        if not self.open:
            return
        probe = self.open.pop(which % len(self.open))
        self.bench.end(ok, probe)
        self.ended += 1
        if probe and ok is False:
            self.become(Circuit.OPEN)
        elif probe and ok:
            self.good += 1
            if self.good == self.settings.successes:
                self.become(Circuit.CLOSED)
        elif ok is False and self.expected is Circuit.CLOSED:
            self.failed.append((self.bench.now, self.ended))
            needed = self.settings.failures
            last = self.recent()[-needed:]
            if len(last) == needed and 2 * needed > self.ended - last[0][1]:
                self.become(Circuit.OPEN)

    def recent(self) -> list[tuple[float, int]]:
        oldest = self.bench.now - self.settings.window_secs
        return [failure for failure in self.failed if failure[0] >= oldest]

    @rule(secs=st.integers(1, 4))
    def wait(self, secs: int) -> None:
        self.bench.wait(secs)
        if self.expected is Circuit.OPEN and self.bench.now >= self.since + self.settings.open_secs:
            self.become(Circuit.HALF_OPEN)

    @invariant()
    def agrees(self) -> None:
        assert self.bench.circuit() is self.expected
        assert self.open.count(True) <= 1
        assert self.bench.worker.probing is (True in self.open)
        assert self.bench.eligible() is (
            self.expected is Circuit.CLOSED
            or (self.expected is Circuit.HALF_OPEN and True not in self.open)
        )
        if self.recent() or self.expected is not Circuit.CLOSED:
            assert self.bench.remembered()


BreakerMachine.TestCase.settings = settings(deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
