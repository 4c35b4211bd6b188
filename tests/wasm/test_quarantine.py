"""Quarantine: its rules one by one, the poisoned prompt, clocks that are set."""

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.wasm.quarantine import (
    FAILURES_IN_ROW,
    FIRST_OPEN_MS,
    FORGET_MS,
    MAX_OPEN_MS,
    RATE_FAILURES,
    RATE_WINDOW,
    Quarantine,
)

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
POISON = 666


def unasked() -> int | None:
    raise AssertionError("a content is not asked for where it does not matter")


class Bench:
    """A quarantine, asked as a policy does, and a clock that is set."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.now = NOW_MS
        self.changes = 0

    def admits(self, content: int | None = None) -> bool:
        return self.quarantine.asked or self.quarantine.admits(self.now, lambda: content)

    def decide(self, ok: bool, content: int | None = None) -> bool:
        """One request from end to end; returns whether the plugin was asked."""
        probe = not self.quarantine.asked
        if not self.admits(content):
            return False
        if ok:
            self.changes += self.quarantine.succeeded(self.now, probe=probe)
        else:
            self.changes += self.quarantine.failed(self.now, content, "trap: it", probe=probe)
        return True

    def fail(self, contents: Sequence[int | None]) -> None:
        for content in contents:
            assert self.decide(False, content), "the plugin is asked"

    def state(self) -> str:
        return self.quarantine.status(self.now).state

    def left_ms(self) -> int:
        return self.quarantine.status(self.now).left_ms

    def wait_out(self) -> None:
        self.now += self.left_ms()


def opened(contents: Sequence[int | None] = (None,) * FAILURES_IN_ROW) -> Bench:
    bench = Bench()
    bench.fail(contents)
    assert bench.state() == "open"
    return bench


def test_failures_in_a_row_open_it() -> None:
    bench = Bench()
    bench.fail([None] * (FAILURES_IN_ROW - 1))
    assert (bench.state(), bench.quarantine.asked, bench.changes) == ("closed", True, 0)
    bench.fail([None])
    status = bench.quarantine.status(bench.now)
    assert (status.state, bench.quarantine.asked, bench.changes) == ("open", False, 1)
    assert (status.failures_in_row, status.times, status.left_ms) == (5, 1, FIRST_OPEN_MS)
    assert status.reason is not None
    assert status.reason.endswith("trap: it")


def test_a_success_between_begins_the_row_anew() -> None:
    bench = Bench()
    for _ in range(3):
        bench.fail([None] * (FAILURES_IN_ROW - 1))
        assert bench.decide(True)
    assert bench.quarantine.status(bench.now).failures_in_row == 0
    assert bench.state() == "closed"


def test_a_good_probe_closes_it_with_nothing_left() -> None:
    bench = opened()
    assert not bench.decide(True)
    bench.now += FIRST_OPEN_MS - 1
    assert not bench.decide(True)
    bench.now += 1
    assert bench.decide(True)
    assert (bench.state(), bench.quarantine.asked, bench.changes) == ("closed", True, 2)
    bench.fail([None] * (FAILURES_IN_ROW - 1))
    assert bench.state() == "closed"
    status = bench.quarantine.status(bench.now)
    assert (status.failures_in_row, status.times, status.left_ms) == (4, 1, 0)


def test_each_failure_after_waiting_doubles_it_up_to_a_minute() -> None:
    bench = opened()
    lengths = [bench.left_ms()]
    for _ in range(7):
        bench.wait_out()
        assert bench.decide(False)
        lengths.append(bench.left_ms())
    assert lengths == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    assert lengths[-1] == MAX_OPEN_MS
    status = bench.quarantine.status(bench.now)
    assert (status.times, status.failures_in_row, bench.changes) == (1, 12, 8)


@pytest.mark.parametrize(
    ("calm_ms", "length_ms"),
    [(0, 2 * FIRST_OPEN_MS), (FORGET_MS - 1, 2 * FIRST_OPEN_MS), (FORGET_MS, FIRST_OPEN_MS)],
)
@pytest.mark.parametrize("ok_at_the_end", [True, False])
def test_the_doubling_is_forgotten_after_a_calm_minute(
    calm_ms: int, length_ms: int, ok_at_the_end: bool
) -> None:
    bench = opened()
    bench.wait_out()
    assert bench.decide(True)
    bench.now += calm_ms
    if ok_at_the_end:
        assert bench.decide(True)
    bench.fail([None] * FAILURES_IN_ROW)
    assert bench.left_ms() == length_ms


def test_one_probe_at_a_time() -> None:
    bench = opened()
    bench.wait_out()
    assert bench.quarantine.admits(bench.now, unasked)
    assert bench.state() == "half_open"
    bench.now += DAY_MS
    assert not bench.quarantine.admits(bench.now, unasked)
    assert bench.quarantine.succeeded(bench.now, probe=True)
    assert bench.quarantine.admits(bench.now, unasked)


def test_a_probe_that_is_given_up_makes_room() -> None:
    bench = opened()
    bench.wait_out()
    for _ in range(3):
        assert bench.admits()
        assert not bench.admits()
        bench.quarantine.abandoned()
    assert (bench.state(), bench.left_ms()) == ("open", 0)
    assert bench.decide(True)
    assert bench.state() == "closed"


def test_a_probe_that_is_given_up_before_its_time_leaves_the_time_as_it_was() -> None:
    bench = opened([POISON] * FAILURES_IN_ROW)
    bench.now += 400
    assert bench.admits(1)
    bench.quarantine.abandoned()
    assert bench.left_ms() == FIRST_OPEN_MS - 400
    assert not bench.admits(POISON)


def test_a_probe_has_one_end() -> None:
    quarantine = Quarantine()
    with pytest.raises(AssertionError):
        quarantine.abandoned()
    with pytest.raises(AssertionError):
        quarantine.succeeded(NOW_MS, probe=True)
    with pytest.raises(AssertionError):
        quarantine.failed(NOW_MS, None, "trap", probe=True)


@pytest.mark.parametrize("half_open", [False, True])
def test_what_began_before_changes_nothing_during_a_quarantine(half_open: bool) -> None:
    bench = opened([POISON] * FAILURES_IN_ROW)
    if half_open:
        assert bench.admits(1)
    before = bench.quarantine.status(bench.now)
    for content in range(10):
        assert not bench.quarantine.failed(bench.now, content, "timeout")
        assert not bench.quarantine.succeeded(bench.now)
    assert bench.quarantine.status(bench.now) == before
    if not half_open:
        assert not bench.admits(POISON)
        assert bench.admits(2), "late failures make nothing suspect"


@pytest.mark.parametrize(
    ("every", "caught"),
    [(1, True), (2, True), (4, True), (5, False), (10, False), (1_000, False)],
)
@pytest.mark.parametrize("reads_body", [True, False])
def test_by_rate(every: int, caught: bool, reads_body: bool) -> None:
    """Every so many calls fail, whatever is asked."""
    bench = Bench()
    for call in range(1, 3_001):
        asked = bench.decide(call % every != 0, call if reads_body else None)
        if not asked:
            break
    assert (bench.state() == "open") is caught
    assert (bench.quarantine.times > 0) is caught


def test_the_rate_is_of_the_last_decisions_only() -> None:
    bench = Bench()
    contents = count()
    for _ in range(RATE_FAILURES - 1):
        bench.fail([next(contents)])
        assert bench.decide(True)
    for _ in range(RATE_WINDOW):
        assert bench.decide(True)
    for _ in range(RATE_FAILURES - 1):
        bench.fail([next(contents)])
        assert bench.decide(True)
    assert bench.state() == "closed"
    bench.fail([next(contents)])
    assert bench.state() == "open"


def test_one_content_counts_once_in_the_rate() -> None:
    bench = Bench()
    for number in range(1_000):
        assert bench.decide(False, POISON)
        assert bench.decide(True, number)
    assert (bench.state(), bench.quarantine.times) == ("closed", 0)


def test_what_is_opened_by_rate_lets_nothing_through_before_its_time() -> None:
    bench = Bench()
    for number in range(RATE_FAILURES - 2):
        bench.fail([POISON, number])
        assert bench.decide(True)
    bench.fail([POISON] * (FAILURES_IN_ROW - 1))
    bench.fail([RATE_FAILURES])  # five in a row of two contents, too
    assert bench.state() == "open"
    assert not bench.quarantine.admits(bench.now, unasked)


@pytest.mark.parametrize(
    ("contents", "content", "admitted"),
    [
        ([POISON] * 5, 1, True),
        ([POISON] * 5, POISON, False),
        ([POISON] * 5, None, False),
        ([1, 2, 3, 4, 4], 5, True),
        ([1, 2, 3, 4, 4], 3, False),
        ([1, 2, 3, 4, 5], 6, False),
        ([None] * 5, 6, False),
        ([None, 1, 1, 1, 1], 6, True),
        ([None, None, None, 1, 2], 6, False),
    ],
)
def test_what_is_unlike_what_failed_is_tried_at_once(
    contents: list[int | None], content: int | None, admitted: bool
) -> None:
    assert opened(contents).admits(content) is admitted


def test_when_enough_of_them_fail_it_is_the_plugin() -> None:
    bench = opened([POISON] * FAILURES_IN_ROW)
    for content in range(FAILURES_IN_ROW - 1):
        bench.now += 1
        assert bench.decide(False, content)
        assert bench.left_ms() == FIRST_OPEN_MS, "which begins anew, no longer than before"
    assert not bench.quarantine.admits(bench.now, unasked)
    bench.wait_out()
    assert bench.quarantine.admits(bench.now, unasked)


def test_suspicion_ends_with_the_quarantine() -> None:
    bench = opened([1, 2, 3, 4, 5])
    bench.wait_out()
    assert bench.decide(True)
    bench.fail([POISON] * FAILURES_IN_ROW)
    assert not bench.admits(POISON)
    assert bench.admits(1)


STEPS = st.tuples(
    st.sampled_from(["poison", "good", "begin poison", "begin good", "end", "give up"]),
    st.integers(1, 2 * FAILURES_IN_ROW),
    st.just(0) | st.integers(0, 3_000) | st.integers(-DAY_MS, DAY_MS),
)


@given(st.lists(STEPS, max_size=60))
@settings(deadline=None)
def test_one_poisoned_prompt_switches_nothing_off(steps: list[tuple[str, int, int]]) -> None:
    """Each good request is let through, also where others overlap, unless a probe is under way."""
    bench, fresh = Bench(), count(POISON + 1)
    running: list[tuple[bool, int]] = []  # whether a probe, and its content

    def begin(content: int) -> bool:
        probe = not bench.quarantine.asked
        admitted = bench.admits(content)
        if admitted:
            running.append((probe, content))
        elif content != POISON:
            assert any(probe for probe, _ in running), "a good request is let through"
        return admitted

    def end(probe: bool, content: int) -> None:
        if content == POISON:
            bench.quarantine.failed(bench.now, content, "trap", probe=probe)
        else:
            bench.quarantine.succeeded(bench.now, probe=probe)

    for step, times, passes_ms in steps:
        bench.now += passes_ms
        for _ in range(times):
            if step == "give up" and running:
                if running.pop()[0]:
                    bench.quarantine.abandoned()
            elif step == "end" and running:
                end(*running.pop(0))
            elif step not in ("give up", "end"):
                admitted = begin(POISON if step.endswith("poison") else next(fresh))
                if admitted and not step.startswith("begin"):
                    end(*running.pop())


@given(st.integers(1, 8), st.lists(st.integers(-DAY_MS, DAY_MS), max_size=10))
@settings(deadline=None)
def test_a_clock_that_is_set_back_makes_no_quarantine_longer(
    openings: int, jumps: list[int]
) -> None:
    bench = opened()
    for _ in range(openings - 1):
        bench.wait_out()
        assert bench.decide(False)
    length = bench.left_ms()
    for jump in jumps:
        bench.now += jump
        assert 0 <= bench.left_ms() <= length
        if bench.admits():
            return
    bench.now += length
    assert bench.left_ms() == 0
    assert bench.admits()


def test_a_clock_that_is_set_back_makes_nothing_remembered_for_longer() -> None:
    bench = opened()
    bench.wait_out()
    assert bench.decide(True)
    bench.now -= DAY_MS
    assert bench.decide(True)  # sees the other time
    bench.now += FORGET_MS
    bench.fail([None] * FAILURES_IN_ROW)
    assert bench.left_ms() == FIRST_OPEN_MS


@pytest.mark.parametrize("distinct", [True, False])
def test_its_memory_is_bounded(distinct: bool) -> None:
    bench = Bench()
    for number in range(5_000):
        bench.now += 7
        bench.decide(number % 5 == 0, number if distinct else POISON)
        quarantine = bench.quarantine
        assert len(quarantine._failures) <= RATE_WINDOW
        assert len(quarantine._suspects) <= FAILURES_IN_ROW
    probe = not bench.quarantine.asked
    bench.now += MAX_OPEN_MS
    for _ in range(FAILURES_IN_ROW):
        if bench.quarantine.asked or bench.admits():
            bench.quarantine.failed(bench.now, None, "x" * 10**6, probe=probe)
    reason = bench.quarantine.status(bench.now).reason
    assert reason is not None
    assert "x" * 100 in reason
    assert len(reason) < 1_000
