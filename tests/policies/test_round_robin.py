"""Round robin: whose turn it is, whoever comes and goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.policies import RoundRobin
from tests.policies.pools import ask, seen_as, view_of

PRESENCE = st.lists(
    st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=40
)  # for each decision, who of six is there


def test_it_goes_round_in_the_order_of_the_pool() -> None:
    policy, view = RoundRobin(), view_of([9, 0, 5, 0], down=[1])
    assert [ask(policy, view) for _ in range(7)] == [0, 2, 3, 0, 2, 3, 0]


def test_the_last_worker_chosen_goes_down_and_returns() -> None:
    policy, workers = RoundRobin(), list(view_of([0] * 3))
    everybody, without_1 = seen_as(workers), seen_as(workers, [1])
    chosen = [ask(policy, view) for view in (everybody, everybody, without_1, without_1, everybody)]
    assert chosen == [0, 1, 2, 0, 1]


@settings(deadline=None)
@given(PRESENCE)
def test_the_next_eligible_worker_after_the_last(eligible: list[set[int]]) -> None:
    policy, last, workers = RoundRobin(), 5, list(view_of([0] * 6))
    for up in eligible:
        view = seen_as(workers, [i for i in range(6) if i not in up])
        expected = next(i % 6 for i in range(last + 1, last + 7) if i % 6 in up)
        last = ask(policy, view)
        assert last == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 9)), st.integers(0, 2)), max_size=30))
def test_the_next_worker_after_the_last_though_workers_come_and_go(
    changes: list[tuple[set[int], int]],
) -> None:
    policy, ever, last = RoundRobin(), list(view_of([0] * 3)), -1
    there = [0, 1, 2]  # places in `ever`: those who come stand at the end, as in the registry
    for gone, come in changes:
        there = [place for i, place in enumerate(there) if i not in gone]
        there += range(len(ever), len(ever) + come)
        ever += view_of([0] * come)
        if there:
            view = seen_as([ever[place] for place in there])
            expected = next((place for place in there if place > last), there[0])
            last = ever.index(view[ask(policy, view)])
            assert last == expected


@settings(deadline=None)
@given(PRESENCE, st.sets(st.integers(0, 5), min_size=1), st.booleans())
def test_it_is_fair_to_those_who_stay(
    changing: list[set[int]], stay: set[int], removed: bool
) -> None:
    """Between two turns of a worker, each worker that is there all the time has one."""
    policy, workers = RoundRobin(), list(view_of([0] * 6))
    turns: list[int] = []
    for up in changing:
        away = [i for i in range(6) if i not in up | stay]
        view = seen_as(workers, without=away) if removed else seen_as(workers, away)
        turns.append(workers.index(view[ask(policy, view)]))
    of_those = [index for index in turns if index in stay]
    for start in range(len(of_those) - len(stay) + 1):
        assert set(of_those[start : start + len(stay)]) == stay


def test_two_round_robins_do_not_share_a_turn() -> None:
    view, one, other = view_of([0, 0]), RoundRobin(), RoundRobin()
    assert [ask(one, view), ask(other, view), ask(one, view)] == [0, 0, 1]


def test_each_pool_has_its_own_turn() -> None:
    policy = RoundRobin()
    views = [view_of([0, 0]), view_of([0, 0], model="m"), view_of([0, 0], role="decode")]
    assert [[ask(policy, view) for view in views] for _ in range(3)] == [[0] * 3, [1] * 3, [0] * 3]
