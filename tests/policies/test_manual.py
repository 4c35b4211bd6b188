"""Manual: a key stays where it was put."""

import sys
from collections import OrderedDict
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sgl_router.core.worker import Worker
from sgl_router.policies import Manual
from tests.policies.pools import ENTROPY, NOW_MS, ask, request_of, seen_as, view_of

HOUR_MS = 3_600_000


def test_a_key_stays_whatever_happens_to_the_loads() -> None:
    policy, view = Manual(), view_of([0] * 6)
    home = ask(policy, view, 3, key="key")
    view[home].load = 10_000
    assert {ask(policy, view, n, key="key") for n in range(50)} == {home}


def test_a_key_that_is_new_goes_to_the_less_loaded_of_two() -> None:
    view = view_of([9, 1])
    assert {ask(Manual(), view, n, key="key") for n in range(10)} == {1}


def test_the_session_in_the_body_is_a_key_too() -> None:
    policy, view = Manual(), view_of([0] * 6)
    request = request_of(3)
    request.body = b'{"user": "u"}'
    home = policy.select_worker(view, request)
    assert {ask(policy, view, n, key="u") for n in range(50)} == {home}


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_the_less_loaded_of_two_each_time(key: str | None) -> None:
    policy, view = Manual(), view_of([0, 0])
    assert {ask(policy, view, n, key=key, text="text") for n in range(4)} == {0, 1}


def test_a_key_whose_worker_is_down_is_pinned_anew_and_does_not_go_back() -> None:
    policy, workers = Manual(), list(view_of([0] * 3))
    home = ask(policy, seen_as(workers), 0, key="key")
    second = ask(policy, seen_as(workers, [home]), 0, key="key")
    assert second != home
    assert {ask(policy, seen_as(workers), n, key="key") for n in range(20)} == {second}


def test_a_key_follows_its_worker_through_the_pool() -> None:
    policy, workers = Manual(), list(view_of([0, 5, 5]))
    workers[2].load = -1  # so that it is chosen
    assert ask(policy, seen_as(workers), 2, key="key") == 2
    left = seen_as(workers, without=[0])
    assert left[ask(policy, left, key="key")] is workers[2]


def test_a_key_that_is_not_used_is_forgotten() -> None:
    policy, view = Manual(max_idle_secs=3600), view_of([0, 0])
    assert ask(policy, view, 0, key="key", now_ms=NOW_MS) == 0
    assert ask(policy, view, 1, key="key", now_ms=NOW_MS + HOUR_MS) == 0
    assert ask(policy, view, 1, key="key", now_ms=NOW_MS + 2 * HOUR_MS) == 0  # it was used
    assert ask(policy, view, 1, key="key", now_ms=NOW_MS + 3 * HOUR_MS + 1) == 1


def test_a_key_is_forgotten_though_others_that_are_older_are_still_remembered() -> None:
    """A few of them are tidied up with each request, not all of them at once."""
    policy, view = Manual(max_idle_secs=3600), view_of([0, 0])
    keys = [f"key {n}" for n in range(10)]
    assert {ask(policy, view, 0, key=key, now_ms=NOW_MS) for key in keys} == {0}
    assert ask(policy, view, 1, key=keys[-1], now_ms=NOW_MS + HOUR_MS + 1) == 1


def test_the_default_is_four_hours() -> None:
    policy, view = Manual(), view_of([0, 0])
    ask(policy, view, 0, key="key")
    assert ask(policy, view, 1, key="key", now_ms=NOW_MS + 4 * HOUR_MS) == 0
    assert ask(policy, view, 1, key="key", now_ms=NOW_MS + 8 * HOUR_MS + 1) == 1


def test_keys_that_are_not_used_keep_nothing_in_memory() -> None:
    policy, worker = Manual(max_idle_secs=60), view_of([0])[0]
    before = sys.getrefcount(worker)
    for n in range(100):
        ask(policy, seen_as([worker]), key=f"key {n}")
    others = view_of([0], model="m")
    assert sys.getrefcount(worker) > before + 90
    for n in range(60):
        ask(policy, others, key=f"other {n}", now_ms=NOW_MS + 60_001)
    assert sys.getrefcount(worker) < before + 10


def test_pools_pin_a_key_each() -> None:
    policy = Manual()
    one, other = view_of([0, 0]), view_of([0, 0], model="m")
    decode = view_of([0, 0], role="decode")
    assert ask(policy, one, 0, key="key") == 0
    assert ask(policy, other, 1, key="key") == 1
    assert ask(policy, decode, 1, key="key") == 1
    assert [ask(policy, view, n, key="key") for view, n in ((one, 1), (other, 0), (decode, 0))] == [
        0,
        1,
        1,
    ]


def test_any_text_is_a_key_and_different_keys_are_different() -> None:
    policy, view = Manual(), view_of([0, 0])
    keys = ["k", "ü", "中文", "\x00", "\udc80", "x" * 100_000, "x" * 100_001]
    homes = {key: ask(policy, view, n, key=key) for key, n in zip(keys, count(), strict=False)}
    assert homes == {key: n % 2 for n, key in enumerate(keys)}
    assert {key: ask(policy, view, 5, key=key) for key in keys} == homes


class ManualMachine(RuleBasedStateMachine):
    """Against a dictionary in the order of use."""

    @initialize(room=st.integers(1, 5), idle=st.integers(1, 10))
    def start(self, room: int, idle: int) -> None:
        self.room, self.idle = room, idle
        self.policy = Manual(idle, room)
        self.workers = list(view_of([0] * 4))
        self.pins: OrderedDict[str, tuple[Worker, int]] = OrderedDict()
        self.now_ms = NOW_MS

    @rule(
        key=st.sampled_from("abcdefg"),
        entropy=ENTROPY,
        down=st.sets(st.integers(0, 3), max_size=2),
        away=st.sets(st.integers(0, 3), max_size=1),
    )
    def request(self, key: str, entropy: int, down: set[int], away: set[int]) -> None:
        view = seen_as(self.workers, sorted(down), without=sorted(away))
        index = ask(self.policy, view, entropy, key=key, now_ms=self.now_ms)
        assert index in view.eligible
        worker, (pinned, used) = view[index], self.pins.pop(key, (None, 0))
        if pinned is not None and self.now_ms - used <= self.idle * 1000:
            eligible = [view[i] for i in view.eligible]
            assert worker is pinned or pinned not in eligible
        self.pins[key] = worker, self.now_ms
        if len(self.pins) > self.room:
            self.pins.popitem(last=False)

    @rule(secs=st.integers(0, 6))
    def wait(self, secs: int) -> None:
        self.now_ms += secs * 1000

    @rule(key=st.sampled_from("abcdefg"))
    def one_that_is_forgotten_is_placed_anew(self, key: str) -> None:
        """Which only entropy tells: it goes to either of two workers, as it says."""
        pinned, used = self.pins.get(key, (None, 0))
        if pinned is None or self.now_ms - used > self.idle * 1000:
            for entropy in (0, 1):  # the first of the pair, which wins the tie
                other = Manual(self.idle, self.room)
                other._pins = self.policy._pins.copy()
                view = seen_as(self.workers)
                assert ask(other, view, entropy, key=key, now_ms=self.now_ms) == entropy


ManualMachine.TestCase.settings = settings(deadline=None)
TestManualMachine = ManualMachine.TestCase
