"""The dispatcher: who decides, what is counted, who learns the end."""

import gc
import weakref

import pytest

from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health
from sgl_router.errors import DecisionError, RequestError
from tests.core.dispatching import DONE, Bench, Scripted, failing


def test_a_load_is_taken_and_given_back() -> None:
    bench = Bench(Scripted("p", 1))
    first, second = bench.dispatch(), bench.dispatch()
    assert (first.worker, bench.loads()) == (bench.workers[1], [0, 2])
    bench.dispatcher.complete(first, DONE)
    assert bench.loads() == [0, 1]
    assert (first.open, second.open) == (False, True)
    bench.dispatcher.complete(second, DONE)
    assert bench.loads() == [0, 0]


def test_completing_twice_is_a_bug_and_changes_nothing() -> None:
    policy = Scripted("p")
    bench = Bench(policy)
    decision, _other = bench.dispatch(), bench.dispatch()
    bench.dispatcher.complete(decision, DONE)
    with pytest.raises(AssertionError):
        bench.dispatcher.complete(decision, DONE)
    assert bench.loads() == [1, 0]
    assert len(policy.told) == len(bench.completed) == 1


def test_the_end_is_told_to_the_policy_and_to_the_listener() -> None:
    policy = Scripted("p")
    bench = Bench(policy)
    decision = bench.dispatch()
    assert (policy.told, bench.completed) == ([], [])
    bench.dispatcher.complete(decision, DONE)
    assert policy.told == [DONE]
    assert bench.completed == [(decision, DONE)]


def test_without_a_listener() -> None:
    bench = Bench(Scripted("p"))
    bench.dispatcher.on_complete = None
    bench.dispatcher.complete(bench.dispatch(), DONE)
    assert bench.loads() == [0, 0]


def test_the_fallback_decides_where_the_policy_fails() -> None:
    policy, fallback = failing(), Scripted("fallback", 1)
    bench = Bench(policy, fallback)
    decision = bench.dispatch()
    assert decision.worker is bench.workers[1]
    assert decision.failure is policy.does
    assert decision.failure is not None and decision.failure.kind == "trap"
    assert bench.loads() == [0, 1]
    assert policy.asked == fallback.asked == [(1001, 1_700_000_000_001)]


def test_the_outcome_of_a_failed_decision_goes_to_the_policy_that_decided() -> None:
    policy, fallback = failing(), Scripted("fallback", 1)
    bench = Bench(policy, fallback)
    bench.dispatcher.complete(bench.dispatch(), DONE)
    assert (policy.told, fallback.told) == ([], [DONE])
    assert bench.loads() == [0, 0]


def test_the_fallback_is_not_asked_where_the_policy_decides() -> None:
    fallback = Scripted("fallback", 1)
    decision = Bench(Scripted("p"), fallback).dispatch()
    assert decision.failure is None
    assert fallback.asked == []


@pytest.mark.parametrize("policy", [Scripted("p", None), failing()], ids=["policy", "fallback"])
def test_a_policy_that_declines(policy: Scripted) -> None:
    bench = Bench(policy, Scripted("fallback", None))
    with pytest.raises(RequestError) as refused:
        bench.dispatch()
    assert (refused.value.status, refused.value.code) == (503, "no_available_workers")
    assert bench.loads() == [0, 0]


def test_nobody_is_asked_where_no_worker_is_eligible() -> None:
    policy, fallback = Scripted("p"), Scripted("fallback")
    bench = Bench(policy, fallback)
    for worker in bench.workers:
        bench.registry.set_health(worker, Health.DOWN)
    with pytest.raises(RequestError) as refused:
        bench.dispatch()
    assert (refused.value.status, refused.value.code) == (503, "no_available_workers")
    assert (policy.asked, fallback.asked) == ([], [])


def test_nobody_is_asked_where_every_worker_has_been_tried() -> None:
    policy = Scripted("p")
    bench = Bench(policy)
    request = RequestView("id", "/v1/completions")
    request.excluded = frozenset(bench.workers)
    with pytest.raises(RequestError) as refused:
        bench.dispatcher.dispatch(request)
    assert refused.value.status == 503
    assert policy.asked == []


def test_an_empty_pool_is_a_503_too() -> None:
    with pytest.raises(RequestError) as refused:
        Bench(Scripted("p"), workers=0).dispatch()
    assert refused.value.status == 503


def test_a_policy_that_breaks_its_contract_is_found_out_before_a_load_is_taken() -> None:
    bench = Bench(Scripted("p", 0))
    bench.registry.set_health(bench.workers[0], Health.DOWN)
    with pytest.raises(AssertionError):
        bench.dispatch()
    assert bench.loads() == [0, 0]


def test_the_policy_sees_excluded_workers_as_unhealthy() -> None:
    class FirstEligible(Scripted):
        def select_worker(self, workers: WorkerView, request: RequestView) -> int:
            return workers.eligible[0]

    bench = Bench(FirstEligible("p"))
    request = RequestView("id", "/v1/completions")
    request.excluded = frozenset(bench.workers[:1])
    assert bench.dispatcher.dispatch(request).worker is bench.workers[1]


def test_another_exception_is_no_decision_and_takes_no_load() -> None:
    class Broken(Scripted):
        def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
            raise ZeroDivisionError

    bench = Bench(Broken("p"))
    with pytest.raises(ZeroDivisionError):
        bench.dispatch()
    assert bench.loads() == [0, 0]


def test_entropy_and_time_are_drawn_anew_for_each_decision_and_kept_with_it() -> None:
    policy = Scripted("p")
    bench = Bench(policy)
    request = RequestView("id", "/v1/completions")
    decisions = [bench.dispatcher.dispatch(request) for _ in range(3)]
    given = [(decision.entropy, decision.now_ms) for decision in decisions]
    assert given == policy.asked == [(1000 + i, 1_700_000_000_000 + i) for i in (1, 2, 3)]


def test_elapsed_is_what_the_clock_says() -> None:
    assert Bench(Scripted("p")).dispatch().elapsed_ns == 1


def test_use_replaces_policy_and_fallback_for_the_next_request() -> None:
    old, new = Scripted("old", 0), failing()
    bench = Bench(old)
    before = bench.dispatch()
    bench.dispatcher.use(new, Scripted("new fallback", 1))
    after = bench.dispatch()
    assert (before.worker, after.worker) == (bench.workers[0], bench.workers[1])
    assert (len(old.asked), len(new.asked)) == (1, 1)


def test_a_request_in_flight_ends_with_the_policy_that_placed_it() -> None:
    old, new = Scripted("old"), Scripted("new")
    bench = Bench(old)
    before = bench.dispatch()
    bench.dispatcher.use(new, Scripted("fallback"))
    after = bench.dispatch()
    late = Outcome("http://engine-0", False, None, None, 5.0, 0, "gone")
    bench.dispatcher.complete(before, late)
    bench.dispatcher.complete(after, DONE)
    assert (old.told, new.told) == ([late], [DONE])
    assert bench.loads() == [0, 0]


def test_a_load_is_given_back_though_the_worker_has_gone_down() -> None:
    bench = Bench(Scripted("p"))
    decision = bench.dispatch()
    bench.registry.set_health(decision.worker, Health.DOWN)
    bench.dispatcher.complete(decision, DONE)
    assert bench.loads() == [0, 0]


class FailsFrom(Policy):
    """Fails as policies do: by itself, or because something below it failed."""

    name = "fails"

    def __init__(self, cause: str) -> None:
        self._cause = cause

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        if self._cause == "alone":
            raise DecisionError(self.name, "trap", "by itself")
        try:
            return int("no number")
        except ValueError as error:
            if self._cause == "from":
                raise DecisionError(self.name, "trap", "from another") from error
            raise DecisionError(self.name, "trap", "while handling another") from None


@pytest.mark.parametrize("cause", ["alone", "from", "while handling"])
def test_a_failed_decision_is_freed_without_the_garbage_collector(cause: str) -> None:
    bench = Bench(FailsFrom(cause))
    gc.collect()
    gc.disable()
    try:
        decision = bench.dispatch()
        assert decision.failure is not None
        alive = weakref.ref(decision.failure)
        bench.dispatcher.on_complete = None
        bench.dispatcher.complete(decision, DONE)
        del decision
        assert alive() is None
    finally:
        gc.enable()
