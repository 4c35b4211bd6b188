"""Cache aware: who holds the prompt, whether that is worth it, and whether it has time."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome
from sgl_router.core.prefix_index import MAX_TEXT_CHARACTERS, PrefixIndex, PrefixMatch
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.policies import CacheAware, Random
from tests.policies.pools import ENTROPY, ask, request_of, seen_as, view_of

POOL = ("regular", None)


def index_of(view: WorkerView, sent: dict[str, list[int]]) -> PrefixIndex:
    """An index where the workers at these indexes were sent these texts."""
    index = PrefixIndex()
    for text, indexes in sent.items():
        for i in indexes:
            index.insert(("regular", None), text, view[i])
    return index


def match_of(view: WorkerView, sent: dict[str, list[int]], text: str) -> PrefixMatch:
    return index_of(view, sent).match(("regular", None), text)


def choices(
    view: WorkerView, sent: dict[str, list[int]], text: str, policy: CacheAware | None = None
) -> set[int]:
    """All that it chooses, whatever the entropy."""
    policy, match = policy or CacheAware(), match_of(view, sent, text)
    return {ask(policy, view, n, text=text, prefix=match) for n in range(200)}


def test_the_holder_of_the_prompt_though_others_are_less_loaded() -> None:
    view = view_of([50, 0, 0])
    assert choices(view, {"conversation": [0]}, "conversation and more") == {0}


def test_without_a_match_the_least_loaded() -> None:
    view = view_of([2, 1, 1, 3, 0], down=[4])
    assert choices(view, {}, "text") == {1, 2}
    assert ask(CacheAware(), view, 0, text=None) in {1, 2}
    assert ask(CacheAware(), view, 0, text="text", prefix=None) in {1, 2}


@pytest.mark.parametrize(
    ("known", "stays"), [(0, False), (29, False), (30, False), (31, True), (100, True)]
)
def test_more_than_the_threshold_must_be_known(known: int, stays: bool) -> None:
    view, text = view_of([1, 0]), "x" * known + "y" * (100 - known)
    assert choices(view, {"x" * 100: [0]}, text) == ({0} if stays else {1})


@pytest.mark.parametrize(
    ("threshold", "known", "stays"),
    [(0.0, 1, True), (0.0, 0, False), (1.0, 100, False), (0.99, 100, True), (0.5, 51, True)],
)
def test_the_threshold_is_a_setting(threshold: float, known: int, stays: bool) -> None:
    view, text = view_of([1, 0]), "x" * known + "y" * (100 - known)
    policy = CacheAware(cache_threshold=threshold)
    assert choices(view, {"x" * 100: [0]}, text, policy) == ({0} if stays else {1})


def test_of_a_long_text_only_the_part_that_is_remembered_counts() -> None:
    view, text = view_of([1, 0]), "x" * (20 * MAX_TEXT_CHARACTERS)
    assert choices(view, {text: [0]}, text) == {0}


def test_the_least_loaded_of_those_who_hold_most() -> None:
    view = view_of([9, 5, 7, 5, 0])
    sent = {"system prompt, one": [0, 1, 2, 3], "system prompt": [4]}
    assert choices(view, sent, "system prompt, one") == {1, 3}


CROWD = [i for i in range(81) if i % 3 or i % 9 == 0]  # each third of the least loaded, and others


@pytest.mark.parametrize("holders", [*(list(range(n)) for n in (2, 31, 32, 33, 60, 81)), CROWD])
def test_it_is_even_among_the_least_loaded_holders(holders: list[int]) -> None:
    """Also where so many hold the text that the least loaded of all are looked at first."""
    count = 81
    view = view_of([3 if i % 3 else 2 for i in range(count)])
    match = match_of(view, {"text": holders}, "text")
    least = [i for i in holders if view[i].load == 2]
    draws = range(count * len(least))
    chosen = Counter(ask(CacheAware(), view, n, text="text", prefix=match) for n in draws)
    assert chosen == dict.fromkeys(least, count)


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_where_holders_stand_in_memory_makes_no_difference(order: list[int]) -> None:
    workers = list(view_of([0] * 8))
    view = seen_as([workers[i] for i in order])
    match = match_of(view, {"text": list(range(8))}, "text")
    chosen = [ask(CacheAware(), view, n, text="text", prefix=match) for n in range(16)]
    assert chosen == [*range(8), *range(8)]


def test_holders_that_are_more_loaded_than_others_in_a_crowd() -> None:
    view = view_of([5] * 40 + [4] * 3 + [0])
    assert choices(view, {"text": list(range(43))}, "text") == {40, 41, 42}


def test_a_holder_that_is_not_eligible_is_passed_over_for_who_holds_the_most_then() -> None:
    view = view_of([0, 3, 4, 4, 0], down=[0])
    sent = {"system prompt, one two": [0], "system prompt, one": [2, 3], "system prompt": [1]}
    assert choices(view, sent, "system prompt, one two") == {2, 3}


def test_where_what_is_left_is_too_little_the_least_loaded() -> None:
    view = view_of([0, 3, 1], down=[0])
    assert choices(view, {"x" * 100: [0], "x" * 30: [1]}, "x" * 100) == {2}


def test_a_holder_that_is_gone_is_nobody() -> None:
    view = view_of([5, 1, 0])
    index = index_of(view, {"text": [0]})
    left = seen_as(view, without=[0])
    match = index.match(("regular", None), "text")
    assert ask(CacheAware(), left, text="text", prefix=match) == 1


def test_a_holder_is_found_in_each_view_wherever_it_stands_there() -> None:
    workers, policy = list(view_of([0, 0, 9, 0])), CacheAware()
    match = match_of(seen_as(workers), {"text": [2]}, "text")
    for gone, place in (([], 2), ([0], 1), ([0, 1], 0), ([3], 2), ([], 2)):
        view = seen_as(workers, without=gone)
        assert ask(policy, view, text="text", prefix=match) == place


# ---- balance


def stays(loads: list[int], policy: CacheAware | None = None) -> bool:
    """Whether the worker at 0 keeps a prompt that it alone holds."""
    view = view_of(loads)
    chosen = choices(view, {"text": [0]}, "text", policy)
    least = {i for i, load in enumerate(loads) if load == min(loads)}
    assert chosen in ({0}, least)
    return chosen == {0}


@pytest.mark.parametrize(
    ("loads", "kept"),
    [
        ([64, 0, 0, 0], True),
        ([85, 0, 0, 0], True),  # 85 is not more than 21.25 + 64
        ([86, 0, 0, 0], False),
        ([300, 200, 200, 200], True),  # 75 above the mean, but not one and a half times it
        ([400, 200, 200, 200], False),
        ([5, 0, 0, 500], True),  # an imbalance between others
        ([150, 150, 150, 0], True),
        ([1_000, 1_000, 1_000, 1_000], True),
    ],
)
def test_a_holder_keeps_its_prompts_until_it_is_overloaded(loads: list[int], kept: bool) -> None:
    assert stays(loads) is kept


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=2, max_size=6),
    st.integers(0, 100),
    st.floats(1, 3),
)
def test_overloaded_is_above_the_mean_by_both_measures(
    loads: list[int], by: int, times: float
) -> None:
    assume(loads[0] != min(loads))  # it would be chosen either way
    mean = sum(loads) / len(loads)
    overloaded = loads[0] > mean + by and loads[0] > mean * times
    assert stays(loads, CacheAware(0.3, by, times)) is not overloaded


def test_the_mean_is_that_of_the_eligible_workers() -> None:
    view = view_of([120, 0, 800], down=[2])
    assert choices(view, {"text": [0]}, "text") == {0}  # 120 is not above 60 + 64
    view = view_of([130, 0, 800], down=[2])
    assert choices(view, {"text": [0]}, "text") == {1}


# ---- through the dispatcher


def dispatcher_over(count: int, entropies: list[int]) -> Dispatcher:
    registry = WorkerRegistry()
    for i in range(count):
        registry.add(Worker(f"http://engine-{i}", Health.UP))
    drawn = iter(entropies)
    return Dispatcher(
        registry,
        CacheAware(),
        Random(),
        entropy=lambda: next(drawn, 0),
        now_ms=lambda: 0,
        clock_ns=lambda: 0,
    )


@settings(deadline=None)
@given(
    count=st.integers(1, 6),
    turns=st.lists(
        st.tuples(st.integers(0, 4), st.text("ab ", min_size=1, max_size=20)),
        min_size=1,
        max_size=40,
    ),
    entropies=st.lists(ENTROPY, max_size=40),
)
def test_a_conversation_stays_on_its_worker(
    count: int, turns: list[tuple[int, str]], entropies: list[int]
) -> None:
    """However five conversations take turns, while nobody has more than 64 requests in flight."""
    dispatcher = dispatcher_over(count, entropies)
    texts = [f"{name} is how this conversation begins. " for name in range(5)]
    homes: dict[int, Worker] = {}
    for which, said in turns:
        texts[which] += said
        request = request_of(text=texts[which])
        worker = dispatcher.dispatch(request).worker
        assert homes.setdefault(which, worker) is worker


def test_requests_that_share_nothing_are_spread_evenly() -> None:
    dispatcher = dispatcher_over(4, [])
    for n in range(40):
        dispatcher.dispatch(request_of(text=f"{n:02} is how this one begins"))
    assert [worker.load for worker in dispatcher.registry] == [10] * 4


def test_a_conversation_whose_worker_goes_down_moves_once() -> None:
    dispatcher = dispatcher_over(3, [])
    registry, text = dispatcher.registry, "this is how it begins. "

    def next_turn() -> Worker:
        nonlocal text
        text += "and so it goes on. "
        decision = dispatcher.dispatch(RequestView("id", "/", request_of(text=text).body))
        url = decision.worker.url
        dispatcher.complete(decision, Outcome(url, True, 200, None, 1.0, 1, None))
        return decision.worker

    first = next_turn()
    registry.set_health(first, Health.DOWN)
    second = next_turn()
    assert second is not first
    registry.set_health(first, Health.UP)
    assert [next_turn() for _ in range(5)] == [second] * 5
