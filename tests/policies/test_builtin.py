"""The built-in policies' laws."""

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.policies import BUILTIN_POLICIES, LeastLoad, PowerOfTwo, Random, RoundRobin
from tests.policies.pools import ENTROPY, ask, pools, view_of

each_policy = pytest.mark.parametrize("policy_type", BUILTIN_POLICIES, ids=lambda p: p.name)


def test_their_names() -> None:
    names = [policy.name for policy in BUILTIN_POLICIES]
    assert names == ["random", "round_robin", "power_of_two", "least_load"]


@each_policy
def test_none_reads_the_body_or_falls_back(policy_type: type[Policy]) -> None:
    assert not policy_type.needs_body
    assert policy_type.fallback is None


@each_policy
@settings(deadline=None)
@given(views=st.lists(pools(), min_size=1, max_size=6), entropy=ENTROPY)
def test_the_choice_is_eligible(
    policy_type: type[Policy], views: list[WorkerView], entropy: int
) -> None:
    policy = policy_type()
    for view in views:  # one after the other: round_robin remembers an index of another pool
        assert ask(policy, view, entropy) in view.eligible


@each_policy
@settings(deadline=None)
@given(view=pools(), entropies=st.lists(ENTROPY, min_size=1, max_size=8))
def test_the_same_questions_get_the_same_answers(
    policy_type: type[Policy], view: WorkerView, entropies: list[int]
) -> None:
    one, other = policy_type(), policy_type()
    assert [ask(one, view, e) for e in entropies] == [ask(other, view, e) for e in entropies]


@each_policy
def test_the_only_worker_is_chosen(policy_type: type[Policy]) -> None:
    view = view_of([5, 9, 1], down=[0, 2])
    assert {ask(policy_type(), view, entropy) for entropy in range(20)} == {1}


@settings(deadline=None)
@given(view=pools(), start=ENTROPY, rounds=st.integers(1, 3))
def test_random_is_even_over_consecutive_entropies(
    view: WorkerView, start: int, rounds: int
) -> None:
    count = len(view.eligible)
    chosen = Counter(ask(Random(), view, start + i) for i in range(count * rounds))
    assert chosen == dict.fromkeys(view.eligible, rounds)


@settings(deadline=None)
@given(view=pools(), start=ENTROPY, rounds=st.integers(1, 3))
def test_least_load_is_even_among_the_least_loaded_and_chooses_no_other(
    view: WorkerView, start: int, rounds: int
) -> None:
    least = min(view[i].load for i in view.eligible)
    tied = [i for i in view.eligible if view[i].load == least]
    chosen = Counter(ask(LeastLoad(), view, start + i) for i in range(len(tied) * rounds))
    assert chosen == dict.fromkeys(tied, rounds)


@settings(deadline=None)
@given(view=pools(min_eligible=2), entropy=ENTROPY)
def test_power_of_two_never_takes_a_worker_busier_than_all_others(
    view: WorkerView, entropy: int
) -> None:
    index = ask(PowerOfTwo(), view, entropy)
    others = [view[i].load for i in view.eligible if i != index]
    assert view[index].load <= max(others)


@settings(deadline=None)
@given(view=pools(min_eligible=2), start=st.integers(0, 2**40))
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


def test_round_robin_goes_round_in_the_order_of_the_pool() -> None:
    policy, view = RoundRobin(), view_of([9, 0, 5, 0], down=[1])
    assert [ask(policy, view) for _ in range(7)] == [0, 2, 3, 0, 2, 3, 0]


def test_round_robin_when_the_last_worker_chosen_goes_and_returns() -> None:
    policy = RoundRobin()
    everybody, without_1 = view_of([0] * 3), view_of([0] * 3, down=[1])
    chosen = [ask(policy, view) for view in (everybody, everybody, without_1, without_1, everybody)]
    assert chosen == [0, 1, 2, 0, 1]


PRESENCE = st.lists(
    st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=40
)  # for each decision, who of six is eligible


@settings(deadline=None)
@given(PRESENCE)
def test_round_robin_takes_the_next_eligible_worker_after_the_last(
    eligible: list[set[int]],
) -> None:
    policy, last = RoundRobin(), 5
    for up in eligible:
        view = view_of([0] * 6, down=[i for i in range(6) if i not in up])
        expected = next(i % 6 for i in range(last + 1, last + 7) if i % 6 in up)
        last = ask(policy, view)
        assert last == expected


@settings(deadline=None)
@given(PRESENCE, st.sets(st.integers(0, 5), min_size=1))
def test_round_robin_is_fair_to_those_who_stay(changing: list[set[int]], stay: set[int]) -> None:
    """Between two turns of a worker, each worker that is there all the time has one."""
    policy = RoundRobin()
    turns: list[int] = []
    for up in changing:
        view = view_of([0] * 6, down=[i for i in range(6) if i not in up | stay])
        turns.append(ask(policy, view))
    of_those = [index for index in turns if index in stay]
    for start in range(len(of_those) - len(stay) + 1):
        assert set(of_those[start : start + len(stay)]) == stay


def test_two_round_robins_do_not_share_a_turn() -> None:
    view, one, other = view_of([0, 0]), RoundRobin(), RoundRobin()
    assert [ask(one, view), ask(other, view), ask(one, view)] == [0, 0, 1]
