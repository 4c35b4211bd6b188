"""Shadow runs: the laws of the tally in any order of events, its bounds, and its sample."""

from collections.abc import Callable
from dataclasses import asdict
from math import ceil, sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import TypeAdapter

from sgl_router.core.shadow import (
    ShadowPlacement,
    ShadowReport,
    ShadowTally,
    ShadowWorker,
    in_sample,
)
from sgl_router.core.worker import Worker
from sgl_router.errors import FailureKind
from sgl_router.policies.builtin import PowerOfTwo
from tests.policies.pools import request_of, view_of

WORKERS = [Worker(f"http://engine-{i}:8000") for i in range(5)]
KINDS: list[FailureKind] = ["trap", "timeout", "bad_output"]


def report_of(tally: ShadowTally) -> ShadowReport:
    return tally.report(
        plugin="candidate",
        version="2",
        role="regular",
        share=0.5,
        since_ms=1_700_000_000_000,
        policy="power_of_two",
    )


def figures_of(tally: ShadowTally) -> dict[str, ShadowWorker]:
    return {worker.url: worker for worker in report_of(tally).workers}


class Seen:
    """One observed request, as the naive reading remembers it."""

    def __init__(self, placement: ShadowPlacement, actual: Worker) -> None:
        self.placement = placement
        self.actual = actual
        self.answer: Worker | str | None = None  # a worker, a failure's kind, or one of the others
        self.ended = False
        self.was_in_flight = False

    def in_flight_on(self, worker: Worker) -> bool:
        return self.was_in_flight and not self.ended and self.answer is worker


class ShadowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tally = ShadowTally()
        self.seen: list[Seen] = []
        self.peaks = dict.fromkeys(WORKERS, 0)

    def unanswered(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.answer is None]

    def running(self) -> list[Seen]:
        return [seen for seen in self.seen if not seen.ended]

    @rule(worker=st.sampled_from(WORKERS))
    def ask(self, worker: Worker) -> None:
        self.seen.append(Seen(self.tally.asked(worker), worker))

    @precondition(lambda self: self.unanswered())
    @rule(place=st.integers(0, 99), worker=st.sampled_from(WORKERS))
    def decide(self, place: int, worker: Worker) -> None:
        unanswered = self.unanswered()
        seen = unanswered[place % len(unanswered)]
        seen.placement.decided(worker, 1_000)
        seen.answer, seen.was_in_flight = worker, not seen.ended
        load = sum(each.in_flight_on(worker) for each in self.seen)
        self.peaks[worker] = max(self.peaks[worker], load)

    @precondition(lambda self: self.unanswered())
    @rule(place=st.integers(0, 99), answer=st.sampled_from([*KINDS, "skipped", "declined"]))
    def answer_otherwise(self, place: int, answer: str) -> None:
        unanswered = self.unanswered()
        seen = unanswered[place % len(unanswered)]
        seen.answer = answer
        if answer == "skipped":
            seen.placement.skipped()
        elif answer == "declined":
            seen.placement.decided(None, 1_000)
        else:
            seen.placement.failed(next(kind for kind in KINDS if kind == answer))

    @precondition(lambda self: self.running())
    @rule(place=st.integers(0, 99))
    def end(self, place: int) -> None:
        running = self.running()
        seen = running[place % len(running)]
        seen.placement.ended()
        seen.ended = True

    @invariant()
    def totals_are_those_of_what_was_seen(self) -> None:
        report, answers = report_of(self.tally), [seen.answer for seen in self.seen]
        chosen = [answer for answer in answers if isinstance(answer, Worker)]
        assert report.observed == len(self.seen)
        assert report.declined == answers.count("declined")
        assert report.decided == len(chosen) + report.declined
        assert report.skipped == answers.count("skipped")
        assert report.failures == {kind: answers.count(kind) for kind in KINDS if kind in answers}
        assert report.agreed == sum(seen.answer is seen.actual for seen in self.seen)
        assert report.agreement == (report.agreed / report.decided if report.decided else None)
        assert (report.decision_us is None) is (report.decided == 0)

    @invariant()
    def workers_have_what_was_placed(self) -> None:
        figures = figures_of(self.tally)
        assert sum(worker.requests for worker in figures.values()) == len(self.seen)
        for worker in WORKERS:
            requests = sum(seen.actual is worker for seen in self.seen)
            would_be = sum(seen.answer is worker for seen in self.seen)
            assert (worker.url in figures) is bool(requests or would_be)
            if worker.url in figures:
                shown = figures[worker.url]
                assert (shown.requests, shown.would_be_requests) == (requests, would_be)
                assert shown.would_be_load == sum(seen.in_flight_on(worker) for seen in self.seen)
                assert shown.would_be_peak_load == self.peaks[worker]

    @invariant()
    def shares_are_of_the_whole(self) -> None:
        report = report_of(self.tally)
        some = [worker.would_be_share for worker in report.workers if worker.would_be_requests]
        if report.observed:
            assert sum(worker.share for worker in report.workers) == pytest.approx(1)
        if some:
            assert sum(some) == pytest.approx(1)

    def teardown(self) -> None:
        for seen in self.running():
            seen.placement.ended()
        assert not any(worker.would_be_load for worker in figures_of(self.tally).values())


ShadowMachine.TestCase.settings = settings(deadline=None, stateful_step_count=60)
TestShadowMachine = ShadowMachine.TestCase


def answered(placement: ShadowPlacement) -> list[Callable[[], None]]:
    return [
        lambda: placement.decided(WORKERS[0], 1),
        lambda: placement.decided(None, 1),
        lambda: placement.failed("trap"),
        placement.skipped,
    ]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_decision_is_answered_once(first: int, second: int) -> None:
    answers = answered(ShadowTally().asked(WORKERS[0]))
    answers[first]()
    with pytest.raises(AssertionError):
        answers[second]()


def test_a_request_ends_once() -> None:
    placement = ShadowTally().asked(WORKERS[0])
    placement.ended()
    with pytest.raises(AssertionError):
        placement.ended()


def test_a_worker_that_comes_back_under_its_url_is_the_same() -> None:
    tally = ShadowTally()
    tally.asked(Worker("http://engine:8000")).decided(Worker("http://engine:8000"), 1)
    tally.asked(Worker("http://engine:8000"))
    assert report_of(tally).agreed == 1
    assert [worker.requests for worker in report_of(tally).workers] == [2]


def test_room_is_made_by_those_that_have_nothing_in_flight() -> None:
    tally = ShadowTally(max_workers=8)
    kept = Worker("http://kept:1")
    placement = tally.asked(kept)
    placement.decided(kept, 1)
    for port in range(1, 101):
        tally.asked(Worker(f"http://gone:{port}"))
        assert len(report_of(tally).workers) <= 8
    figures = figures_of(tally)
    assert figures[kept.url].would_be_load == 1
    assert set(figures) > {f"http://gone:{port}" for port in range(94, 101)}
    assert report_of(tally).observed == 101


def test_of_those_with_nothing_in_flight_the_longest_unseen_go_first() -> None:
    tally = ShadowTally(max_workers=8)
    often = Worker("http://often:1")
    tally.asked(often)
    for port in range(1, 101):
        tally.asked(Worker(f"http://gone:{port}"))
        tally.asked(often)
    assert figures_of(tally)[often.url].requests == 101


def test_a_peak_outlasts_what_made_it() -> None:
    tally = ShadowTally()
    placements = [tally.asked(WORKERS[0]) for _ in range(3)]
    for placement in placements:
        placement.decided(WORKERS[1], 1)
    for placement in placements:
        placement.ended()
    tally.asked(WORKERS[0]).decided(WORKERS[1], 1)
    shown = figures_of(tally)[WORKERS[1].url]
    assert (shown.would_be_load, shown.would_be_peak_load) == (1, 3)


def test_what_ends_on_a_worker_that_was_dropped_does_no_harm() -> None:
    tally = ShadowTally(max_workers=2)
    placements = []
    for port in range(1, 11):
        worker = Worker(f"http://engine:{port}")
        placements.append(tally.asked(worker))
        placements[-1].decided(worker, 1)
    again = Worker("http://engine:1")
    placements.append(tally.asked(again))
    placements[-1].decided(again, 1)
    assert figures_of(tally)[again.url].would_be_load == 1
    for placement in placements[:-1]:
        placement.ended()
    assert figures_of(tally)[again.url].would_be_load == 1
    placements[-1].ended()
    assert {worker.would_be_load for worker in report_of(tally).workers} == {0}


@given(st.lists(st.integers(0, 10_000) | st.integers(0, 10**12), min_size=1, max_size=200))
@settings(deadline=None)
def test_percentiles_are_as_exact_as_is_said(times_ns: list[int]) -> None:
    tally = ShadowTally()
    for elapsed_ns in times_ns:
        tally.asked(WORKERS[0]).decided(None, elapsed_ns)
    shown = report_of(tally).decision_us
    assert shown is not None
    ordered = sorted(times_ns)
    for percent, figure in ((50, shown.p50), (99, shown.p99)):
        exact = ordered[ceil(len(ordered) * percent / 100) - 1]
        assert figure * 1e3 == pytest.approx(exact, rel=1 / 32, abs=1e-6)
    assert shown.max * 1e3 == pytest.approx(ordered[-1])
    assert shown.p50 <= shown.p99 <= shown.max


def test_decisions_of_any_length_take_bounded_room() -> None:
    tally = ShadowTally()
    for exponent in range(300):
        for eighth in range(8, 16):
            elapsed_ns = min(eighth << exponent, 2**63)
            tally.asked(WORKERS[0]).decided(None, elapsed_ns + exponent)
    assert len(tally._times._counts) <= 64 * 16


def test_a_report_is_data() -> None:
    tally = ShadowTally()
    tally.asked(WORKERS[0]).decided(WORKERS[1], 1_500)
    tally.asked(WORKERS[1]).failed("timeout")
    tally.asked(WORKERS[1]).skipped()
    report, shape = report_of(tally), TypeAdapter(ShadowReport)
    assert shape.validate_json(shape.dump_json(report)) == report
    assert shape.dump_python(report) == asdict(report)
    assert set(asdict(report)) >= {"plugin", "version", "role", "share", "since_ms", "policy"}


_random = Random(21)
ENTROPIES = [_random.getrandbits(53) for _ in range(60_000)]
"""As the dispatcher draws them; from a seed, so that what follows is the same on each run."""


def by_modulus(entropy: int, share: float) -> bool:
    return entropy % 8 < share * 8


def by_magnitude(entropy: int, share: float) -> bool:
    return entropy < share * 2**53


def chooses(entropy: int) -> int:
    return PowerOfTwo().select_worker(POOL, request_of(entropy))


def by_weight(entropy: int) -> int:
    """One of ten workers of equal weight, as a draw between 0 and 1 chooses it."""
    return entropy * 10 >> 53


POOL = view_of([3, 0, 5, 5, 1, 9, 2, 7])


def surprise(
    sample: Callable[[int, float], bool], share: float, choose: Callable[[int], int]
) -> float:
    """By how many standard deviations the sample's share of any choice is off that of all."""
    chosen = [(choose(entropy), sample(entropy, share)) for entropy in ENTROPIES]
    off: list[float] = []
    for choice in {choice for choice, _ in chosen}:
        taken = [sampled for each, sampled in chosen if each == choice]
        expected = share * len(taken)
        off.append(abs(sum(taken) - expected) / sqrt(expected * (1 - share)))
    return max(off)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("choose", [chooses, by_weight])
def test_the_sample_chooses_as_all_do(choose: Callable[[int], int], share: float) -> None:
    assert surprise(in_sample, share, choose) < 4


@pytest.mark.parametrize(("sample", "choose"), [(by_modulus, chooses), (by_magnitude, by_weight)])
def test_a_sample_by_the_bits_as_they_are_would_not(
    sample: Callable[[int, float], bool], choose: Callable[[int], int]
) -> None:
    assert surprise(sample, 1 / 8, choose) > 8


@given(st.integers(0, 2**53 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_sample_holds_the_smaller_one(entropy: int, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert in_sample(entropy, small) <= in_sample(entropy, large)
    assert in_sample(entropy, 1.0)
    assert not in_sample(entropy, 0.0)
    assert in_sample(entropy, one) is in_sample(entropy, one)
