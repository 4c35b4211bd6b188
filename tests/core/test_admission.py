"""Admission: the cap, the queue, and a state machine against two lists."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sgl_router.core.admission import Admission


def full(max_concurrent: int = 2, queue_size: int = 2, timeout: float = 60) -> Admission[str]:
    """Nobody more is admitted at once."""
    admission = Admission[str](max_concurrent, queue_size, timeout)
    for i in range(max_concurrent):
        assert admission.enter(f"running {i}", 0.0) == "admitted"
    return admission


def test_admitted_then_queued_then_refused() -> None:
    admission = Admission[str](2, 1, 60)
    assert [admission.enter(ticket, 0.0) for ticket in "abcd"] == [
        "admitted",
        "admitted",
        "queued",
        "refused",
    ]
    assert (admission.running, admission.waiting) == (2, 1)


def test_without_a_queue_nobody_waits() -> None:
    assert full(1, 0).enter("late", 0.0) == "refused"


def test_a_place_goes_to_who_has_waited_longest() -> None:
    admission = full(1, 3)
    for ticket in "abc":
        admission.enter(ticket, 0.0)
    assert [admission.leave() for _ in range(4)] == ["a", "b", "c", None]
    assert (admission.running, admission.waiting) == (0, 0)


def test_a_place_that_is_given_back_is_free() -> None:
    admission = full(1, 0)
    assert admission.leave() is None
    assert admission.enter("next", 0.0) == "admitted"


def test_who_withdraws_is_passed_over() -> None:
    admission = full(1, 3)
    for ticket in "abc":
        admission.enter(ticket, 0.0)
    assert admission.withdraw("b")
    assert not admission.withdraw("b")
    assert [admission.leave() for _ in range(3)] == ["a", "c", None]


def test_who_was_given_a_place_cannot_withdraw_but_must_leave() -> None:
    admission = full(1, 1)
    admission.enter("a", 0.0)
    assert admission.leave() == "a"
    assert not admission.withdraw("a")
    assert admission.running == 1
    assert admission.leave() is None
    assert admission.running == 0


def test_who_withdraws_makes_room_in_the_queue() -> None:
    admission = full(1, 1)
    admission.enter("a", 0.0)
    assert admission.enter("b", 0.0) == "refused"
    admission.withdraw("a")
    assert admission.enter("b", 0.0) == "queued"


def test_who_waits_too_long_is_told_once() -> None:
    admission = full(1, 3, timeout=10)
    admission.enter("a", 0.0)
    admission.enter("b", 5.0)
    admission.enter("c", 5.5)
    assert admission.expired(9.9) == []
    assert admission.expired(10.0) == ["a"]
    assert admission.expired(15.2) == ["b"]
    assert admission.expired(15.3) == []
    assert (admission.running, admission.waiting) == (1, 1)
    assert admission.leave() == "c"


def test_a_ticket_may_come_back_after_it_has_left() -> None:
    admission = full(1, 1)
    admission.enter("a", 0.0)
    admission.withdraw("a")
    assert admission.enter("a", 1.0) == "queued"


def test_more_cannot_leave_than_came() -> None:
    with pytest.raises(AssertionError):
        Admission[str](1, 1, 60).leave()


class AdmissionMachine(RuleBasedStateMachine):
    @initialize(cap=st.integers(1, 4), queue=st.integers(0, 4), timeout=st.integers(0, 5))
    def start(self, cap: int, queue: int, timeout: int) -> None:
        self.cap, self.queue, self.timeout = cap, queue, timeout
        self.admission = Admission[int](cap, queue, timeout)
        self.now = 0.0
        self.tickets = 0
        self.running: set[int] = set()
        self.waiting: list[tuple[int, float]] = []

    @rule()
    def enter(self) -> None:
        self.tickets += 1
        verdict = self.admission.enter(self.tickets, self.now)
        if len(self.running) < self.cap:
            assert verdict == "admitted"
            self.running.add(self.tickets)
        elif len(self.waiting) < self.queue:
            assert verdict == "queued"
            self.waiting.append((self.tickets, self.now))
        else:
            assert verdict == "refused"

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        if not self.running:
            return
        self.running.remove(sorted(self.running)[which % len(self.running)])
        following = self.admission.leave()
        if self.waiting:
            assert following == self.waiting.pop(0)[0]
            self.running.add(following)
        else:
            assert following is None

    @rule(which=st.integers(0, 99))
    def withdraw(self, which: int) -> None:
        if self.waiting:
            ticket, _ = self.waiting.pop(which % len(self.waiting))
            assert self.admission.withdraw(ticket)

    @rule()
    def withdraw_without_waiting(self) -> None:
        assert not self.admission.withdraw(self.tickets + 1)
        assert not any(self.admission.withdraw(ticket) for ticket in self.running)

    @rule(secs=st.integers(0, 3))
    def wait(self, secs: int) -> None:
        self.now += secs
        over = [ticket for ticket, since in self.waiting if since + self.timeout <= self.now]
        assert self.admission.expired(self.now) == over
        self.waiting = [one for one in self.waiting if one[0] not in over]

    @invariant()
    def counts(self) -> None:
        assert self.admission.running == len(self.running) <= self.cap
        assert self.admission.waiting == len(self.waiting) <= self.queue

    def teardown(self) -> None:
        if hasattr(self, "admission"):
            for _ in range(len(self.running) + len(self.waiting)):
                self.admission.leave()
            assert (self.admission.running, self.admission.waiting) == (0, 0)


AdmissionMachine.TestCase.settings = settings(deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase
