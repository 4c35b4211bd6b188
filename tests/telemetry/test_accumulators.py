"""`Tally`: counts by names that nobody knows beforehand. `RunningTotals`: of what others count."""

from hypothesis import given
from hypothesis import strategies as st

from sgl_router.telemetry.accumulators import MAX_VALUES, RunningTotals, Tally
from sgl_router.telemetry.catalogue import OTHER


def test_what_is_known_keeps_its_name_when_there_is_no_room_for_more() -> None:
    tally, names = Tally(), [f"name {n}" for n in range(MAX_VALUES)]
    for name in (*names, "one more", *names, "and another"):
        tally.add(name)
    assert tally.counts == {**dict.fromkeys(names, 2), OTHER: 2}


RUNS = st.lists(st.lists(st.integers(0, 9), min_size=1), min_size=1)
"""By how much a number grows from one reading to the next, in run after run."""


@given(RUNS)
def test_a_total_is_the_sum_of_what_was_read_last_of_each_run(runs: list[list[int]]) -> None:
    totals, done = RunningTotals(), 0
    for run, steps in enumerate(runs):
        number = 0
        for step in steps:
            number += step
            assert totals.update([(("a",), run, number)]) == [(("a",), done + number)]
        done += number


@given(st.lists(st.integers(0, 9)))
def test_a_number_that_falls_has_begun_again(numbers: list[int]) -> None:
    """As Prometheus itself takes it."""
    totals, last, expected = RunningTotals(), 0, 0
    for number in numbers:
        expected += number - last if number >= last else number
        assert totals.update([(("a",), None, number)]) == [(("a",), expected)]
        last = number


def test_each_has_its_own_total_and_none_that_is_gone() -> None:
    totals = RunningTotals()
    totals.update([(("a",), 1, 5), (("b",), 1, 7)])
    assert totals.update([(("b",), 2, 1)]) == [(("b",), 8)]
    assert totals.update([(("a",), 1, 5), (("b",), 2, 1)]) == [(("a",), 5), (("b",), 8)]
