"""What all built-in policies promise, and the two simplest of them."""

from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.policy import KNOWN_NEEDS, Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerView
from sgl_router.policies import BUILTIN_POLICIES, PowerOfTwo, Random
from sgl_router.policies.waiting import FRESH_MS
from tests.policies.pools import ENTROPY, NOW_MS, ask, metrics, pools, request_of, view_of

each_policy = pytest.mark.parametrize("policy_type", BUILTIN_POLICIES, ids=lambda p: p.name)

NEEDS = {
    "random": set[str](),
    "round_robin": set[str](),
    "power_of_two": set[str](),
    "least_load": {"engine_metrics", "pending_tokens"},
    "cache_aware": {"body", "prefix_match"},
    "consistent_hashing": {"body"},
    "prefix_hash": {"body"},
    "manual": {"body"},
}


def test_their_names() -> None:
    assert [policy.name for policy in BUILTIN_POLICIES] == list(NEEDS)


@each_policy
def test_what_they_need(policy_type: type[Policy]) -> None:
    assert policy_type.needs == NEEDS[policy_type.name]
    assert policy_type.needs <= KNOWN_NEEDS


@each_policy
def test_none_can_fail(policy_type: type[Policy]) -> None:
    assert policy_type.fallback is None


@dataclass(frozen=True)
class Given:
    """How a pool is when a question is asked: loads, who is down, who reports what."""

    loads: tuple[int, ...]
    down: frozenset[int]
    reports: tuple[tuple[int, float | None, int] | None, ...]  # queued, kv_usage, age in ms


@dataclass(frozen=True)
class Question:
    pool: int
    entropy: int
    text: str | None
    key: str | None
    now_ms: int


REPORT = st.none() | st.tuples(
    st.integers(0, 50), st.none() | st.floats(0, 1), st.integers(-10, 2 * FRESH_MS)
)


@st.composite
def some_pool(draw: st.DrawFn) -> Given:
    count = draw(st.integers(1, 6) | st.just(135))  # a few, and more than are asked each time
    loads = draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    up = draw(st.sets(st.sampled_from(range(count)), min_size=1, max_size=8))
    down = frozenset(range(min(count, 8))) - up
    reports = draw(st.lists(REPORT, min_size=1, max_size=6))
    return Given(
        tuple(loads[i % len(loads)] for i in range(count)),
        down,
        tuple(reports[i % len(reports)] for i in range(count)),
    )


QUESTION = st.builds(
    Question,
    pool=st.integers(0, 2),
    entropy=ENTROPY,
    text=st.none() | st.text("ab", max_size=12),
    key=st.none() | st.sampled_from(["one", "two"]),
    now_ms=st.integers(NOW_MS, NOW_MS + 200),
)


class Asked:
    """A policy and pools of its own, so that it shares no object with another."""

    def __init__(self, policy: Policy, made: list[Given]) -> None:
        self.policy = policy
        self.index = PrefixIndex()
        self.views = [
            view_of(pool.loads, sorted(pool.down), model=str(i)) for i, pool in enumerate(made)
        ]
        for view, pool in zip(self.views, made, strict=True):
            for worker, report in zip(view, pool.reports, strict=True):
                if report is not None:
                    queued, usage, age = report
                    worker.metrics = metrics(queued, usage, NOW_MS - age)

    def answer(self, question: Question) -> tuple[WorkerView, int]:
        view = self.views[question.pool % len(self.views)]
        text = question.text
        prefix = (
            self.index.match(view.pool, text or "") if "prefix_match" in self.policy.needs else None
        )
        index = ask(
            self.policy,
            view,
            question.entropy,
            text=text,
            key=question.key,
            now_ms=question.now_ms,
            prefix=prefix,
        )
        self.index.insert(view.pool, text or "", view[index])
        view[index].load += 1
        return view, index


@each_policy
@settings(deadline=None)
@given(
    made=st.lists(some_pool(), min_size=1, max_size=3), questions=st.lists(QUESTION, max_size=12)
)
def test_the_choice_is_eligible_and_the_same_each_time(
    policy_type: type[Policy], made: list[Given], questions: list[Question]
) -> None:
    one, other = Asked(policy_type(), made), Asked(policy_type(), made)
    for question in questions:
        view, index = one.answer(question)
        assert index in view.eligible
        assert other.answer(question)[1] == index


@each_policy
def test_the_only_worker_is_chosen(policy_type: type[Policy]) -> None:
    view, policy = view_of([5, 9, 1], down=[0, 2]), policy_type()
    chosen = {ask(policy, view, n, text="text" * (n % 2), key=str(n) * (n % 3)) for n in range(20)}
    assert chosen == {1}


@each_policy
def test_a_policy_that_decides_for_many_models_is_bounded_and_goes_on(
    policy_type: type[Policy],
) -> None:
    policy = policy_type()
    for n in range(1_100):
        view = view_of([0, 0], model=f"model-{n}")
        assert ask(policy, view, text="text", key="key") in (0, 1)


# ---- random


@settings(deadline=None)
@given(view=pools(), start=ENTROPY, rounds=st.integers(1, 3))
def test_random_is_even_over_consecutive_entropies(
    view: WorkerView, start: int, rounds: int
) -> None:
    count = len(view.eligible)
    chosen = Counter(ask(Random(), view, start + i) for i in range(count * rounds))
    assert chosen == dict.fromkeys(view.eligible, rounds)


# ---- power_of_two


@settings(deadline=None)
@given(view=pools(min_eligible=2), entropy=ENTROPY)
def test_power_of_two_never_takes_a_worker_busier_than_all_others(
    view: WorkerView, entropy: int
) -> None:
    index = ask(PowerOfTwo(), view, entropy)
    others = [view[i].load for i in view.eligible if i != index]
    assert view[index].load <= max(others)


@settings(deadline=None)
@given(view=pools(min_eligible=2, max_size=30), start=st.integers(0, 2**40))
def test_power_of_two_compares_every_pair_equally_often(view: WorkerView, start: int) -> None:
    """n(n-1) consecutive entropies are the n(n-1) ordered pairs of different workers."""
    count = len(view.eligible)
    pairs = count * (count - 1)
    first = start // pairs * pairs
    chosen = Counter(ask(PowerOfTwo(), view, first + i) for i in range(pairs))
    expected: Counter[int] = Counter()
    for one, other in permutations(view.eligible, 2):  # the first of a pair wins a tie
        expected[other if view[other].load < view[one].load else one] += 1
    assert chosen == expected


@settings(deadline=None)
@given(count=st.integers(2, 9), entropy=ENTROPY)
def test_power_of_two_keeps_the_first_of_two_equals(count: int, entropy: int) -> None:
    assert ask(PowerOfTwo(), view_of([3] * count), entropy) == entropy % count


def test_power_of_two_prefers_by_rank() -> None:
    view = view_of([30, 10, 40, 20])
    chosen = Counter(ask(PowerOfTwo(), view, entropy) for entropy in range(12))
    assert chosen == {1: 6, 3: 4, 0: 2}  # the busiest, 2, loses each of its comparisons


def test_power_of_two_reads_no_body() -> None:
    view = view_of([0, 1])
    view[0].metrics, view[1].metrics = metrics(1), metrics(2)
    request = request_of()
    request.body = b'{"prompt": "text"}'
    PowerOfTwo().select_worker(view, request)
    assert request._json is None


@pytest.mark.parametrize(
    ("reports", "loads", "chosen"),
    [
        ((metrics(5), metrics(2)), (0, 0), 1),
        ((metrics(5), metrics(2)), (0, 2), 1),  # what is queued and what is in flight
        ((metrics(5), metrics(2)), (0, 4), 0),
        ((metrics(0, 0.9), metrics(0, 0.1)), (0, 0), 1),
        ((metrics(0, 0.5), metrics(0, None)), (0, 0), 1),
        ((metrics(0, 0.0), metrics(1, 0.0)), (0, 0), 0),
        ((metrics(0, 1.0), metrics(500, 0.0)), (0, 0), 0),  # full, but not for ever
        ((metrics(5), None), (0, 1), 0),  # one says nothing: the loads decide
        ((None, metrics(5)), (1, 0), 1),
        ((metrics(5, at_ms=NOW_MS - FRESH_MS), metrics(0)), (0, 1), 0),  # too old
        ((metrics(5, at_ms=NOW_MS - FRESH_MS + 1), metrics(0)), (0, 1), 1),
        ((metrics(0), metrics(0)), (0, 0), 0),
    ],
)
def test_power_of_two_compares_waits_where_both_are_known(
    reports: tuple[object, object], loads: tuple[int, int], chosen: int
) -> None:
    view = view_of(loads)
    for worker, report in zip(view, reports, strict=True):
        worker.metrics = report  # type: ignore[assignment]
    assert ask(PowerOfTwo(), view, 0) == chosen
    if view[0].load != view[1].load or reports[0] != reports[1]:
        assert ask(PowerOfTwo(), view, 1) == chosen  # whichever of the two comes first
