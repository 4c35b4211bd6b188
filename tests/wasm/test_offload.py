"""The offload lane itself, with calls that are no guests'."""

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import pytest

from sgl_router.errors import DecisionError
from sgl_router.wasm import offload
from sgl_router.wasm.offload import MAX_WAITING, NICENESS, STACK_BYTES, Job, OffloadLane
from tests.wasm.guests import until

LONG_SECS = 60.0

Result = object


class Told:
    """What a lane has said, in order.

    Attributes:
        results: of each call.
    """

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._more = asyncio.Event()

    def __call__(self, result: Result) -> None:
        self.results.append(result)
        self._more.set()

    async def have(self, count: int) -> list[Result]:
        """Once there are so many."""
        async with asyncio.timeout(LONG_SECS):
            while len(self.results) < count:
                self._more.clear()
                await self._more.wait()
        return self.results


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
async def lane() -> OffloadLane:
    return OffloadLane("plugin")


def submit(
    lane: OffloadLane,
    told: Callable[[Result], None],
    run: Callable[[], Result],
    wait_secs: float = LONG_SECS,
) -> Job[Result]:
    return lane.submit(lambda: run, told, wait_secs)


def thread_of(lane: OffloadLane) -> threading.Thread:
    assert lane._thread is not None
    return lane._thread


def ended(thread: threading.Thread) -> bool:
    thread.join(LONG_SECS)
    return not thread.is_alive()


async def test_results_come_in_the_order_of_the_calls(lane: OffloadLane, told: Told) -> None:
    for number in range(100):
        submit(lane, told, lambda number=number: number)  # type: ignore[misc]
    assert lane.waiting == 100
    assert await told.have(100) == list(range(100))
    assert lane.waiting == 0


async def test_a_call_is_made_elsewhere_and_told_of_on_the_loops_thread(lane: OffloadLane) -> None:
    here, done = threading.get_ident(), asyncio.get_running_loop().create_future()
    submit(lane, lambda there: done.set_result((there, threading.get_ident())), threading.get_ident)
    async with asyncio.timeout(LONG_SECS):
        there, told_on = await done
    assert told_on == here != there


async def test_the_loop_turns_while_a_call_is_made(lane: OffloadLane, told: Told) -> None:
    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert told.results == []
    open.set()
    assert await told.have(1) == [True]


async def test_where_too_many_wait_no_more_are_taken(lane: OffloadLane, told: Told) -> None:
    open = threading.Event()
    for _ in range(MAX_WAITING):
        submit(lane, told, lambda: open.wait(LONG_SECS))
    with pytest.raises(DecisionError, match="256 calls wait") as failed:
        submit(lane, told, int)
    assert failed.value.kind == "timeout"
    open.set()
    await told.have(MAX_WAITING)
    submit(lane, told, int)
    assert (await told.have(MAX_WAITING + 1))[-1] == 0


async def test_a_call_that_has_waited_too_long_is_not_made(lane: OffloadLane, told: Told) -> None:
    made: list[int] = []
    submit(lane, told, lambda: made.append(1), wait_secs=-1.0)
    submit(lane, told, lambda: made.append(2))
    assert await told.have(2) == [None, None]
    assert made == [2]


async def test_a_call_that_was_dropped_is_not_made(lane: OffloadLane, told: Told) -> None:
    open, made = threading.Event(), []
    submit(lane, told, lambda: open.wait(LONG_SECS))
    job = submit(lane, told, lambda: made.append(1))
    job.dropped = True
    open.set()
    assert await told.have(2) == [True, None], "it is told of all the same"
    assert made == []
    assert lane.waiting == 0


async def test_a_call_is_prepared_when_the_one_before_it_has_been_told_of(
    lane: OffloadLane, told: Told
) -> None:
    here, order = threading.get_ident(), []

    def prepare(number: int) -> Callable[[], int]:
        assert threading.get_ident() == here
        order.append(f"prepared {number}, {len(told.results)} told of")
        return lambda: number

    for number in range(3):
        lane.submit(partial(prepare, number), told, LONG_SECS)
    await told.have(3)
    assert order == [f"prepared {number}, {number} told of" for number in range(3)]


async def test_what_is_prepared_at_once_waits_for_no_turn_of_the_loop(
    lane: OffloadLane, told: Told
) -> None:
    order: list[int] = []
    made = threading.Event()

    def prepare(number: int) -> Callable[[], None]:
        order.append(number)
        return made.set if number == 2 else lambda: None

    for number in range(3):
        lane.submit(partial(prepare, number), told, LONG_SECS, at_once=True)
    assert order == [0, 1, 2]
    assert made.wait(LONG_SECS), "while the loop does not turn"
    await told.have(3)
    assert lane.waiting == 0


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_cannot_be_prepared_fails_and_nothing_else_does(
    lane: OffloadLane, told: Told, caplog: pytest.LogCaptureFixture, *, at_once: bool
) -> None:
    def prepare() -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(DecisionError, match="log says why"):
        lane.submit(prepare, told, LONG_SECS, at_once=at_once)
    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    lane.submit(prepare, told, LONG_SECS)
    submit(lane, told, int)
    open.set()
    first, second, third = await told.have(3)
    assert (first, third) == (True, 0)
    assert isinstance(second, DecisionError)
    assert lane.waiting == 0
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


async def test_what_is_not_made_is_not_prepared(lane: OffloadLane, told: Told) -> None:
    def prepare() -> NoReturn:
        raise AssertionError

    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    lane.submit(prepare, told, LONG_SECS).dropped = True
    lane.submit(prepare, told, -1.0)
    open.set()
    assert set(await told.have(3)) == {True, None}


async def test_one_that_hangs_does_not_keep_the_others_from_their_end(
    lane: OffloadLane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "HANGS_AFTER_SECS", 0.0)
    open = threading.Event()
    for _ in range(3):
        submit(lane, told, lambda: open.wait(LONG_SECS), wait_secs=0.001)
    assert await told.have(3) == [None, None, None]
    assert lane.waiting == 0
    open.set()
    submit(lane, told, int)
    assert (await told.have(4))[-1] == 0, "the thread is free again"


async def test_where_no_thread_can_be_had_any_more_who_waits_is_told(
    lane: OffloadLane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    submit(lane, told, int)
    submit(lane, told, int)
    lane.close()
    thread = thread_of(lane)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        open.set()
        assert ended(thread)
        first, *others = await told.have(3)
    assert first is True
    assert [isinstance(other, DecisionError) for other in others] == [True, True]
    assert lane.waiting == 0


async def test_what_a_call_raises_is_its_result(
    lane: OffloadLane, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    expected = DecisionError("plugin", "trap", "it fails")

    def fail() -> None:
        try:
            raise KeyError
        except KeyError:
            raise expected  # noqa: B904 (what was handled must not be kept)

    def break_down() -> None:
        raise ZeroDivisionError

    for run in (fail, break_down, int):
        submit(lane, told, run)
    first, second, third = await told.have(3)
    assert first is expected
    assert expected.__traceback__ is None
    assert expected.__context__ is None
    assert isinstance(second, DecisionError)
    assert second.kind == "trap"
    assert "log says why" in second.detail
    assert third == 0, "the thread goes on"
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_an_idle_thread_ends_and_another_takes_its_place(
    lane: OffloadLane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "IDLE_SECS", 0.001)
    threads: list[threading.Thread] = []
    for number in range(1, 4):
        submit(lane, told, lambda: threads.append(threading.current_thread()))
        await told.have(number)
        assert ended(threads[-1])
        assert lane._thread is None
    assert len(set(threads)) == 3


async def test_however_soon_a_thread_ends_no_call_is_lost(
    lane: OffloadLane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "IDLE_SECS", 0.0)
    for number in range(200):
        submit(lane, told, lambda number=number: number)  # type: ignore[misc]
        if number % 3 == 0:
            await told.have(number)
    assert await told.have(200) == list(range(200))


async def test_closing_ends_the_thread_after_what_waits(lane: OffloadLane, told: Told) -> None:
    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    submit(lane, told, int)
    thread = thread_of(lane)
    lane.close()
    open.set()
    assert await told.have(2) == [True, 0]
    assert ended(thread)


async def test_a_closed_lane_can_be_used_again(lane: OffloadLane, told: Told) -> None:
    open = threading.Event()
    submit(lane, told, lambda: open.wait(LONG_SECS))
    lane.close()
    submit(lane, told, int)  # after the thread was told to end, and before it has heard of it
    open.set()
    assert await told.have(2) == [True, 0]
    lane.close()
    assert until(lambda: lane._thread is None)
    lane.close()
    submit(lane, told, lambda: 1)
    assert (await told.have(3))[-1] == 1


def test_where_the_loop_was_closed_meanwhile_the_thread_goes_on() -> None:
    lane, open, made = OffloadLane("plugin"), threading.Event(), threading.Event()
    results: list[Result] = []

    def make() -> None:
        open.wait(LONG_SECS)
        made.set()

    async def begin() -> None:
        submit(lane, results.append, make)

    asyncio.run(begin())
    thread = thread_of(lane)
    open.set()
    assert made.wait(LONG_SECS)
    lane.close()
    assert ended(thread), "of its own accord"
    assert results == []


async def test_where_no_thread_can_be_had_a_call_fails(
    lane: OffloadLane, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(DecisionError, match="can't start new thread") as failed:
            submit(lane, told, int)
    assert failed.value.kind == "trap"
    assert lane.waiting == 0
    submit(lane, told, lambda: 1)
    assert await told.have(1) == [1], "and the one before is forgotten"


async def test_the_event_loops_turn_comes_first(lane: OffloadLane, told: Told) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    submit(lane, told, lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert await told.have(1) == [min(before + NICENESS, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


async def test_other_threads_keep_the_size_of_their_stacks(lane: OffloadLane, told: Told) -> None:
    before = threading.stack_size(STACK_BYTES // 2)
    try:
        submit(lane, told, int)
        assert threading.stack_size() == STACK_BYTES // 2
    finally:
        threading.stack_size(before)
    await told.have(1)
