"""Decisions that come later: what holds of the workers then counts, not what was shown."""

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.breaker import BreakerSettings
from sgl_router.core.decision import Decision, PendingDecision
from sgl_router.core.policy import Choice, Outcome, PendingChoice, Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Circuit, Health, Worker
from sgl_router.errors import DecisionError, RequestError
from sgl_router.policies.builtin import BUILTIN_POLICIES
from tests.core.dispatching import DONE, Bench, Scripted, failing


class Deliberation(PendingChoice):
    """One choice of `Deliberating`'s."""

    __slots__ = ("given_up", "request", "workers")

    def __init__(self, workers: WorkerView, request: RequestView) -> None:
        super().__init__()
        self.workers = workers
        self.request = request
        self.given_up = False

    def give_up(self) -> None:
        super().give_up()
        self.given_up = True

    def take(self, url: str) -> None:
        """Choose the worker with this URL among those that were shown."""
        self.settle([worker.url for worker in self.workers].index(url))


class Deliberating(Policy):
    """Chooses when the test has it choose.

    Attributes:
        asked: its choices, in the order in which it was asked for them.
        told: how its requests have ended.
    """

    name = "deliberating"

    def __init__(self, needs: frozenset[str] = frozenset()) -> None:
        self.needs = needs
        self.asked: list[Deliberation] = []
        self.told: list[Outcome] = []

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        raise AssertionError("who can wait asks for a choice that may come later")

    def choose(self, workers: WorkerView, request: RequestView) -> PendingChoice:
        choice = Deliberation(workers, request)
        self.asked.append(choice)
        return choice

    def on_request_complete(self, outcome: Outcome) -> None:
        self.told.append(outcome)


class Waiting:
    """A bench with one decision under way, and what has come of it."""

    def __init__(
        self,
        workers: int = 3,
        needs: frozenset[str] = frozenset(),
        breakers: BreakerSettings | None = None,
        body: bytes = b"",
    ) -> None:
        self.policy = Deliberating(needs)
        self.fallback = Scripted("fallback", 0)
        self.bench = Bench(self.policy, self.fallback, workers, breakers)
        self.registry, self.workers = self.bench.registry, self.bench.workers
        self.told: list[Decision | RequestError] = []
        pending = self.bench.dispatcher.begin(RequestView("id", "/v1/completions", body))
        assert isinstance(pending, PendingDecision)
        self.pending = pending
        pending.then = self.told.append
        (self.choice,) = self.policy.asked

    def decision(self) -> Decision:
        (decision,) = self.told
        assert isinstance(decision, Decision)
        return decision

    def error(self) -> RequestError:
        (error,) = self.told
        assert isinstance(error, RequestError)
        return error


def test_nothing_is_counted_before_it_is_there() -> None:
    waiting = Waiting()
    assert (waiting.told, waiting.bench.loads()) == ([], [0, 0, 0])
    waiting.choice.settle(2)
    decision = waiting.decision()
    assert decision.worker is waiting.workers[2]
    assert (decision.policy, decision.failure) == (waiting.policy, None)
    assert waiting.bench.loads() == [0, 0, 1]
    waiting.bench.dispatcher.complete(decision, DONE)
    assert waiting.bench.loads() == [0, 0, 0]
    assert waiting.policy.told == [DONE]


def test_it_can_be_replayed_with_what_the_policy_was_given() -> None:
    waiting = Waiting()
    given = waiting.choice.request.entropy, waiting.choice.request.now_ms
    ticks = waiting.bench.ticks
    for _ in range(5):
        waiting.bench.tick()
    waiting.choice.settle(0)
    decision = waiting.decision()
    assert (decision.entropy, decision.now_ms) == given
    assert decision.elapsed_ns == waiting.bench.ticks - ticks == 6, "the wait is part of it"


def test_a_policy_that_declines_is_an_error_that_is_told_and_not_raised() -> None:
    waiting = Waiting()
    waiting.choice.settle(None)
    error = waiting.error()
    assert (error.status, error.code) == (503, "no_available_workers")
    assert "deliberating" in error.message
    assert error.__traceback__ is None, "its frames would keep the request"
    assert waiting.fallback.asked == [], "to decline is not to fail"


def test_the_fallback_decides_where_the_policy_has_failed() -> None:
    waiting = Waiting()
    failure = DecisionError("deliberating", "timeout", "1 ms")
    waiting.choice.settle(failure)
    decision = waiting.decision()
    assert (decision.worker, decision.policy) == (waiting.workers[0], waiting.fallback)
    assert decision.failure is failure
    waiting.bench.dispatcher.complete(decision, DONE)
    assert (waiting.policy.told, waiting.fallback.told) == ([], [DONE])


def leaves(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.remove(worker)


def goes_down(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.set_health(worker, Health.DOWN)


def drains(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.set_health(worker, Health.DRAINING)


def fails_too_often(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.set_circuit(worker, Circuit.OPEN)


def is_tried_by_another(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.set_circuit(worker, Circuit.HALF_OPEN, probing=True)


def is_another_at_its_url(waiting: Waiting, worker: Worker) -> None:
    waiting.registry.remove(worker)
    waiting.registry.add(Worker(worker.url, Health.UP))


HAPPENINGS = [
    leaves,
    goes_down,
    drains,
    fails_too_often,
    is_tried_by_another,
    is_another_at_its_url,
]


@pytest.mark.parametrize("happens", HAPPENINGS)
def test_a_worker_that_cannot_take_it_any_more_is_replaced(
    happens: Callable[[Waiting, Worker], None],
) -> None:
    waiting = Waiting()
    happens(waiting, waiting.workers[1])
    waiting.choice.settle(1)
    decision = waiting.decision()
    assert (decision.worker, decision.policy) == (waiting.workers[0], waiting.fallback)
    assert decision.failure is None, "the policy has not failed: it could not know"
    assert waiting.bench.loads() == [1, 0, 0]


@pytest.mark.parametrize("happens", HAPPENINGS[:5])
def test_where_none_is_left_that_is_told(happens: Callable[[Waiting, Worker], None]) -> None:
    waiting = Waiting()
    for worker in waiting.workers:
        happens(waiting, worker)
    waiting.choice.settle(1)
    assert (waiting.error().status, waiting.error().code) == (503, "no_available_workers")
    assert waiting.fallback.asked == []
    assert waiting.bench.loads() == [0, 0, 0]


def test_its_worker_is_the_one_that_was_shown_whatever_its_index_has_become() -> None:
    waiting = Waiting()
    waiting.registry.remove(waiting.workers[0])
    waiting.registry.add(Worker("http://another", Health.UP))
    waiting.choice.settle(1)
    assert waiting.decision().worker is waiting.workers[1]
    assert waiting.decision().policy is waiting.policy


def test_a_policy_that_was_replaced_meanwhile_decides_what_it_was_asked() -> None:
    waiting, later = Waiting(), Scripted("later", 0)
    waiting.bench.dispatcher.use(later, waiting.fallback)
    waiting.choice.settle(1)
    assert waiting.decision().policy is waiting.policy
    waiting.bench.dispatcher.complete(waiting.decision(), DONE)
    assert (waiting.policy.told, later.told) == ([DONE], [])


@pytest.mark.parametrize("choice", [1, None, DecisionError("deliberating", "trap", "it did")])
def test_what_was_given_up_places_nothing(choice: Choice) -> None:
    waiting = Waiting()
    waiting.pending.give_up()
    assert waiting.choice.given_up
    waiting.choice.settle(choice)
    assert (waiting.told, waiting.fallback.asked) == ([], [])
    assert waiting.bench.loads() == [0, 0, 0]


def test_a_worker_on_probation_is_tried_by_it() -> None:
    waiting = Waiting(breakers=BreakerSettings(1, 1, 10, 60))
    waiting.registry.set_circuit(waiting.workers[2], Circuit.HALF_OPEN)
    waiting.choice.settle(2)
    assert waiting.decision().probe
    assert waiting.workers[2].probing
    waiting.bench.complete(waiting.decision())
    assert waiting.workers[2].circuit is Circuit.CLOSED


def test_what_is_kept_of_a_placement_is_kept_when_it_is_one() -> None:
    body = b'{"prompt": "%b"}' % (b"word " * 80)
    waiting = Waiting(needs=frozenset({"pending_tokens", "prefix_match"}), body=body)
    assert [worker.pending_tokens for worker in waiting.workers] == [0, 0, 0]
    waiting.choice.settle(1)
    assert [worker.pending_tokens for worker in waiting.workers] == [0, 100, 0]
    again = waiting.bench.dispatcher.begin(RequestView("id", "/v1/completions", body))
    assert isinstance(again, PendingDecision)
    prefix = waiting.policy.asked[-1].request.prefix
    assert prefix is not None and prefix.characters == 400
    again.give_up()
    waiting.bench.complete(waiting.decision())
    assert [worker.pending_tokens for worker in waiting.workers] == [0, 0, 0]


def test_who_is_asked_for_by_the_client_is_not_waited_for() -> None:
    bench = Bench(Deliberating())
    request = RequestView("id", "/v1/completions")
    request.target = 1
    decision = bench.dispatcher.begin(request)
    assert isinstance(decision, Decision) and decision.worker is bench.workers[1]


def test_a_policy_that_fails_at_once_is_not_waited_for() -> None:
    bench = Bench(failing())
    decision = bench.dispatcher.begin(RequestView("id", "/v1/completions"))
    assert isinstance(decision, Decision) and decision.failure is not None
    assert decision.worker is bench.workers[1]


def test_nobody_is_asked_where_there_is_nobody_to_choose() -> None:
    policy = Deliberating()
    with pytest.raises(RequestError) as raised:
        Bench(policy, workers=0).dispatcher.begin(RequestView("id", "/v1/completions"))
    assert raised.value.status == 503
    assert policy.asked == []


@pytest.mark.parametrize("choice", [0, None, DecisionError("p", "trap", "it did"), "given up"])
def test_it_leaves_no_cycles(choice: Choice | str) -> None:
    class Marked(RequestView):
        """One that can be waited for to go."""

    policy = Deliberating()
    bench = Bench(policy)
    request = Marked("id", "/v1/completions")
    gone = weakref.ref(request)
    pending = bench.dispatcher.begin(request)
    assert isinstance(pending, PendingDecision)
    told: list[Decision | RequestError] = []
    pending.then = told.append
    gc.disable()
    try:
        if isinstance(choice, str):
            pending.give_up()
        else:
            policy.asked[0].settle(choice)
        policy.asked.clear()
        del pending, request
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("policy", BUILTIN_POLICIES)
@given(loads=st.lists(st.integers(0, 5), min_size=2, max_size=2))
def test_what_can_be_decided_at_once_is_decided_alike(
    policy: type[Policy], loads: list[int]
) -> None:
    chosen: list[list[str]] = []
    for begins in (True, False):
        bench = Bench(policy())
        for worker, load in zip(bench.workers, loads, strict=True):
            worker.load = load
        ask = bench.dispatcher.begin if begins else bench.dispatcher.dispatch
        decisions = [ask(RequestView("id", "/v1/completions")) for _ in range(4)]
        chosen.append([d.worker.url for d in decisions if isinstance(d, Decision)])
    assert len(chosen[0]) == 4
    assert chosen[0] == chosen[1]
