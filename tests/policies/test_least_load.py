"""Least load: the lowest expected wait, by what engines report and by what was sent."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.registry import WorkerView
from sgl_router.core.worker import EngineMetrics, Worker
from sgl_router.policies import LeastLoad
from sgl_router.policies.waiting import FRESH_MS, REQUEST_TOKENS
from tests.policies.pools import ENTROPY, NOW_MS, ask, metrics, pools, seen_as, view_of

USUAL = "x" * REQUEST_TOKENS * 4  # as long as a request is taken to be: the average stays
LARGE = 200  # workers: more than are asked for each decision


@settings(deadline=None)
@given(view=pools(max_size=100), start=ENTROPY, rounds=st.integers(1, 3))
def test_it_is_even_among_the_least_loaded_and_chooses_no_other(
    view: WorkerView, start: int, rounds: int
) -> None:
    least = min(view[i].load for i in view.eligible)
    tied = [i for i in view.eligible if view[i].load == least]
    chosen = Counter(ask(LeastLoad(), view, start + i) for i in range(len(tied) * rounds))
    assert chosen == dict.fromkeys(tied, rounds)


def wait_of(worker: Worker) -> float:
    """The formula, written out, in seconds; all requests being of the usual length."""
    report = worker.metrics
    if report is None or NOW_MS - report.at_ms >= FRESH_MS:
        return worker.load * REQUEST_TOKENS / 2_000
    k = min(report.kv_usage or 0, 0.99)
    tokens = report.queued * REQUEST_TOKENS + worker.unreported_tokens
    return tokens / 2_000 + 0.15 * k / (1 - k)


REPORTS = st.none() | st.builds(
    EngineMetrics,
    queued=st.integers(0, 5),
    running=st.integers(0, 50),
    kv_usage=st.none() | st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    at_ms=st.integers(NOW_MS - 2 * FRESH_MS, NOW_MS + 100),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(REPORTS, st.integers(0, 5), st.integers(0, 5_000)), min_size=1, max_size=8),
    ENTROPY,
)
def test_the_lowest_expected_wait(
    workers: list[tuple[EngineMetrics | None, int, int]], entropy: int
) -> None:
    view = view_of([load for _, load, _ in workers])
    for worker, (report, _, unreported) in zip(view, workers, strict=True):
        worker.metrics, worker.unreported_tokens = report, unreported
    waits = [wait_of(worker) for worker in view]
    assert waits[ask(LeastLoad(), view, entropy, text=USUAL)] == pytest.approx(min(waits))


def test_metrics_that_are_too_old_are_none() -> None:
    view = view_of([0, 1])
    for age, chosen in ((FRESH_MS - 1, 1), (FRESH_MS, 0)):
        view[0].metrics = metrics(9, at_ms=NOW_MS - age)
        view[1].metrics = metrics(1)
        assert {ask(LeastLoad(), view, n, text=USUAL) for n in range(5)} == {chosen}


def test_a_queued_request_weighs_what_requests_have_been_long_of_late() -> None:
    view, policy = view_of([0, 0]), LeastLoad()
    view[0].metrics, view[1].metrics = metrics(queued=2), metrics(queued=0)
    view[1].unreported_tokens = 4_000
    assert ask(policy, view, text=USUAL) == 0  # 2 requests of 512 are less than 4,000 tokens
    for _ in range(500):
        ask(policy, view, text="x" * 40_000)
    assert ask(policy, view, text=USUAL) == 1  # 2 requests of some 10,000 are more


def test_requests_without_text_are_spread_like_others() -> None:
    policy, loads = LeastLoad(), [3, 2, 4]
    for _ in range(2_000):
        ask(policy, view_of(loads))
    assert {ask(policy, view_of(loads), n) for n in range(5)} == {1}


# ---- large pools


@pytest.mark.parametrize("text", [USUAL, None])
def test_in_a_large_pool_what_was_placed_counts_before_all_are_asked_again(
    text: str | None,
) -> None:
    policy, view = LeastLoad(), view_of([0] * LARGE)
    for _ in range(3):  # no load is counted here: the policy itself knows
        chosen = Counter(ask(policy, view, n // 3, text=text) for n in range(LARGE))
        assert chosen == dict.fromkeys(range(LARGE), 1)


def test_after_50_ms_all_are_asked_again() -> None:
    policy, view = LeastLoad(), view_of([5] * LARGE)
    ask(policy, view)
    view[7].load = 0
    assert ask(policy, view, now_ms=NOW_MS + 50) == 7


@pytest.mark.parametrize("now_ms", [NOW_MS - 1, NOW_MS - 10**9])
def test_a_clock_that_is_set_back_makes_it_ask_too(now_ms: int) -> None:
    policy, view = LeastLoad(), view_of([5] * LARGE)
    ask(policy, view)
    view[7].load = 0
    assert ask(policy, view, now_ms=now_ms) == 7


def test_another_view_makes_it_ask_too() -> None:
    policy, view = LeastLoad(), view_of([5] * LARGE)
    ask(policy, view)
    view[7].load = view[8].load = 0
    assert ask(policy, seen_as(view, down=[7])) == 8


def test_each_pool_is_asked_for_itself() -> None:
    policy = LeastLoad()
    one, other = view_of([5] * LARGE), view_of([5] * LARGE, model="m")
    one[7].load = other[9].load = 0
    assert [ask(policy, one), ask(policy, other)] == [7, 9]
