"""The least of some figures, and the memory that policies have of each pool."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.registry import WorkerView
from sgl_router.policies.pools import PerPool, Roster, least, least_loaded, two_of
from tests.policies.pools import ENTROPY, pools, seen_as, view_of

VALUES = st.lists(st.integers(0, 3), min_size=1, max_size=60) | st.lists(
    st.floats(0, 1), min_size=1
)


@given(VALUES, ENTROPY)
def test_least_counts_the_ties_from_the_front(values: list[float], entropy: int) -> None:
    ties = [i for i, value in enumerate(values) if value == min(values)]
    assert least(values, entropy) == ties[entropy % len(ties)]


@settings(deadline=None)
@given(pools(), ENTROPY)
def test_least_loaded_is_the_least_of_the_loads_of_those_eligible(
    view: WorkerView, entropy: int
) -> None:
    lowest = min(view[i].load for i in view.eligible)
    ties = [i for i in view.eligible if view[i].load == lowest]
    assert least_loaded(view, entropy) == ties[entropy % len(ties)]


@given(st.lists(st.integers(), min_size=2, max_size=7, unique=True))
def test_two_are_drawn_without_preference(indexes: list[int]) -> None:
    count = len(indexes)
    drawn = Counter(two_of(indexes, entropy) for entropy in range(count * (count - 1)))
    assert drawn == {(one, two): 1 for one in indexes for two in indexes if one != two}


def test_of_one_both_are_that_one() -> None:
    assert {two_of([7], entropy) for entropy in range(5)} == {(7, 7)}


def test_each_role_and_model_is_a_pool() -> None:
    memory = PerPool(list[str])
    for view in (view_of([0]), view_of([0], model="m"), view_of([0], role="decode")):
        assert memory.of(view) == []
        memory.of(view).append(str(view.pool))
    assert memory.of(view_of([0, 0], model="m")) == ["('regular', 'm')"]


def test_the_pools_that_were_first_are_forgotten_first() -> None:
    memory = PerPool(list[int])
    for n in range(1_025):
        memory.of(view_of([0], model=f"{n}")).append(n)
    assert memory.of(view_of([0], model="1024")) == [1024]
    assert memory.of(view_of([0], model="0")) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(0, 5), max_size=5), st.booleans()), max_size=12))
def test_a_roster_knows_where_each_stands_in_the_last_view(
    changes: list[tuple[set[int], bool]],
) -> None:
    workers, roster, before = list(view_of([0] * 6)), Roster(), None
    for gone, down in changes:
        view = seen_as(workers, [5] if down else [], without=sorted(gone))
        assert roster.update(view) is (tuple(view) != before if before is not None else True)
        assert not roster.update(view)
        assert roster.places == {worker: i for i, worker in enumerate(view)}
        assert roster.members == (before := tuple(view))
