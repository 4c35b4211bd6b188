"""The clock that bounds guests.

Guests that would loop for ever are given a limit of half a minute where something else is to end
them: a test that waited for their limit would fail.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.errors import DecisionError
from sgl_router.policies import PolicyFactory
from sgl_router.wasm import clock
from sgl_router.wasm.calls import advance_epoch
from sgl_router.wasm.clock import NEVER, CallTimer
from sgl_router.wasm.engine import make_engine
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.wasm.guests import (
    ANSWER_AT,
    FIRST,
    LOOP,
    PRINT,
    PRINTS,
    SPIN,
    Bench,
    guest,
    hold_prints,
    until,
    wasi,
)

STDIO = ["wasi:stdio"]
EXIT = wasi("proc_exit", "i32", result="")
FOREVER_MS = 30_000
PATIENCE_SECS = 20.0  # less than that


@pytest.fixture
def own(tmp_path: Path, runtime_options: RuntimeOptions) -> Iterator[Bench]:
    """A bench with a clock that a test may stop, or make fail."""
    runtime = WasmRuntime(runtime_options)
    factory = PolicyFactory(runtime=runtime_options)
    yield Bench(tmp_path, runtime, factory)
    runtime.close()
    factory.close()


class Call(threading.Thread):
    """A decision on a thread of its own.

    Attributes:
        result: what was decided, or how that failed.
    """

    def __init__(self, instance: Instance) -> None:
        super().__init__(daemon=True)  # so that a failure here is no hang
        self.result: bytes | str | None = None
        self._instance = instance
        self.start()

    def run(self) -> None:
        try:
            self.result = self._instance.select_worker(b"{}", 0, 0)
        except DecisionError as error:
            self.result = f"{error.kind}: {error.detail}"

    def done(self) -> bytes | str | None:
        """Its result; fails where it has none in time."""
        self.join(PATIENCE_SECS)
        assert not self.is_alive(), "it has come to its end"
        return self.result


@pytest.fixture
def busy() -> Iterator[None]:
    """Other threads want the interpreter all the time."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every call that asks whether it may go on will be told; True is no."""
    answers: list[bool] = []
    asked = CallTimer.time_is_up

    def noted(self: CallTimer) -> bool:
        answers.append(asked(self))
        return answers[-1]

    monkeypatch.setattr(CallTimer, "time_is_up", noted)
    return answers


def dead_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system makes no thread for a tick, the epoch stands still, and nobody says so."""
    monkeypatch.setattr(clock, "LOOK_SECS", 0.05)
    monkeypatch.setattr(CallTimer, "_fire_after", lambda self, secs, at: None)


# ---- limits


def test_a_loop_is_ended_while_other_threads_are_busy(bench: Bench, busy: None) -> None:
    """The clock does not need the GIL: not even one that another thread never gives away."""
    for limit_ms in (1, 20, 20, 5):
        instance = bench.instance(guest(select_worker=LOOP))
        with pytest.raises(DecisionError) as failed:
            instance.select_worker(b"{}", 0, 0, limit_ms)
        assert failed.value.kind == "timeout"


def test_limits_of_several_threads_end_their_own_calls_only(bench: Bench) -> None:
    spins = guest(select_worker=f"(call $spin) (i32.const {ANSWER_AT})", extra=SPIN)
    limits = (1, 3, 20, 100)
    patient = [Call(bench.instance(spins, max_execution_time_ms=30_000)) for _ in range(3)]
    ended = [
        Call(bench.instance(guest(select_worker=LOOP), max_execution_time_ms=limit_ms))
        for limit_ms in limits
        for _ in range(2)
    ]
    assert {call.done() for call in patient} == {FIRST.encode()}
    assert [str(call.done()).split(":")[0] for call in ended] == ["timeout"] * 8


def test_a_call_goes_on_when_the_time_of_another_is_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = hold_prints(monkeypatch)
    wasm = guest(imports=PRINT, select_worker=f"{PRINTS} (call $spin) (i32.const 1024)", extra=SPIN)
    call = Call(bench.instance(wasm, allowed_syscalls=STDIO, max_execution_time_ms=FOREVER_MS))
    assert gate.entered.wait(PATIENCE_SECS)
    with pytest.raises(DecisionError):
        bench.instance(guest(select_worker=LOOP)).select_worker(b"{}", 0, 0, 1)
    answers = looks(monkeypatch)
    gate.open.set()
    assert call.done() == FIRST.encode()
    assert answers, "the tick of the other has been seen"
    assert True not in answers


def test_a_tick_for_a_call_that_is_over_does_nothing_to_the_next(bench: Bench) -> None:
    instance = bench.instance(guest(), max_execution_time_ms=FOREVER_MS)
    timer = bench.runtime.clock.here.timer
    for _ in range(3):
        timer.end_now()
        advance_epoch(bench.runtime.engine.ptr())
        assert instance.select_worker(b"{}", 0, 0) == FIRST.encode()
        assert not timer.expired


@pytest.mark.parametrize("late", [False, True])
def test_a_call_is_ended_though_the_timer_is_dead(
    tmp_path: Path, runtime_options: RuntimeOptions, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    dead_timers(monkeypatch)
    runtime = WasmRuntime(runtime_options)  # its watching thread looks often
    bench = Bench(tmp_path, runtime, PolicyFactory(runtime=runtime_options))
    wasm = guest(dealloc=LOOP) if late else guest(select_worker=LOOP)
    instance = bench.instance(wasm, max_execution_time_ms=20)
    result = Call(instance).done()
    runtime.close()
    if late:
        assert result == FIRST.encode(), "it was decided before"
        assert instance.late_failure is not None
        assert instance.late_failure.kind == "timeout"
    else:
        assert str(result).startswith("timeout: ")


@given(st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 40_000)), min_size=1))
def test_whatever_was_before_a_timer_fires_when_a_call_should_end_and_not_later(
    calls: list[tuple[int, int]],
) -> None:
    """Of calls one after the other, each with its limit, and what it takes, in milliseconds.

    Time passes here only as it is told to. It is looked at each time that the timer fires.
    """
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "monotonic", lambda: now)
        fires = NEVER

        def fire_after(self: CallTimer, secs: float, at: float) -> None:
            nonlocal fires
            assert secs > 0
            self._fires_at = at
            fires = now + secs

        patch.setattr(CallTimer, "_fire_after", fire_after)
        timer = CallTimer(make_engine())
        for limit_ms, takes_ms in calls:
            began, over_at = now, now + takes_ms / 1000
            timer.begin(limit_ms / 1000)
            ended = False
            while fires <= over_at and not ended:
                now, fires = max(now, fires), NEVER
                ended = timer.time_is_up()
            timer.ends_at = NEVER
            assert ended == timer.expired
            assert ended or takes_ms <= limit_ms
            if ended:
                assert now == pytest.approx(began + limit_ms / 1000)
            else:
                now = over_at


# ---- exits


def test_a_guest_that_exits_is_ended_at_once(bench: Bench) -> None:
    wasm = guest(imports=EXIT, select_worker=f"(call $proc_exit (i32.const 7)) {LOOP}")
    settings = {"allowed_syscalls": ["wasi:environ"], "max_execution_time_ms": FOREVER_MS}
    call = Call(bench.instance(wasm, **settings))
    assert call.done() == "trap: called proc_exit(7); a plugin must not exit"


# ---- closing


def test_closing_ends_what_is_under_way(own: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = hold_prints(monkeypatch)
    gate.open.set()
    wasm = guest(imports=PRINT, select_worker=PRINTS + LOOP)
    settings = {"allowed_syscalls": STDIO, "max_execution_time_ms": FOREVER_MS}
    calls = [Call(own.instance(wasm, **settings)) for _ in range(2)]
    assert until(lambda: len(gate.threads) == 2)
    own.runtime.close()
    assert own.runtime.clock.late(1e12) == [], "it has waited: nothing runs any more"
    own.runtime.close()
    assert [str(call.done()).split(":")[0] for call in calls] == ["trap"] * 2


def test_a_call_that_begins_while_it_is_closed_is_not_made(
    own: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = own.instance(guest(select_worker=LOOP), max_execution_time_ms=FOREVER_MS)
    begin = CallTimer.begin

    def closed_before(self: CallTimer, limit_secs: float) -> None:
        own.runtime.close()
        begin(self, limit_secs)

    monkeypatch.setattr(CallTimer, "begin", closed_before)
    assert Call(instance).done() == "trap: the router has stopped"


def test_nothing_is_called_once_it_is_closed(own: Bench) -> None:
    instance = own.instance(guest())
    assert instance.select_worker(b"{}", 0, 0) == FIRST.encode()
    own.runtime.close()
    with pytest.raises(DecisionError, match="stopped"):
        instance.select_worker(b"{}", 0, 0)
    with pytest.raises(DecisionError, match="stopped"):
        own.instance(guest())


async def test_closing_the_factory_stops_its_clock(
    bench: Bench, runtime_options: RuntimeOptions
) -> None:
    factory = PolicyFactory(runtime=runtime_options)
    await factory.load_wasm_plugin(bench.config(guest()))
    names = [thread.name for thread in threading.enumerate()]
    factory.close()
    assert factory.list_wasm_plugins() == []
    left = [thread.name for thread in threading.enumerate()]
    assert names.count("wasm-clock") == left.count("wasm-clock") + 1


# ---- timers


@pytest.mark.parametrize("body", ["", "(unreachable)", "(return (i32.const -1))"])
def test_it_is_told_when_a_call_is_over(own: Bench, body: str) -> None:
    instance = own.instance(guest(select_worker=f"{body} (i32.const {ANSWER_AT})"))
    with suppress(DecisionError):
        instance.select_worker(b"{}", 0, 0)
    assert own.runtime.clock.here.timer.ends_at == NEVER
    assert own.runtime.clock.late(1e12) == []


def test_only_calls_under_way_are_late(own: Bench) -> None:
    """The epoch is one for all of an engine's calls: to end one that is over would hurt others."""
    epochs = own.runtime.clock
    timer = epochs.here.timer
    timer.begin(0.02)
    long_after = timer.ends_at + 1000
    assert epochs.late(long_after) == [timer]
    assert epochs.late(timer.ends_at) == []
    timer.ends_at = NEVER
    assert epochs.late(long_after) == []


def test_a_timer_is_freed_with_its_thread(own: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[object] = []
    delete = clock._libc.timer_delete

    def counted(timer: object) -> int:
        deleted.append(timer)
        return int(delete(timer))

    monkeypatch.setattr(clock._libc, "timer_delete", counted)

    def freed(number: int) -> bool:
        return len(deleted) == number

    instance = own.instance(guest())
    of_this_thread = own.runtime.clock.here.timer
    for number in range(1, 6):
        assert Call(instance).done() == FIRST.encode()
        assert until(partial(freed, number))
    assert list(own.runtime.clock._timers) == [of_this_thread]


def test_where_the_system_has_no_timer_left_a_call_fails(
    own: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: object) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return -1

    instance = own.instance(guest())
    monkeypatch.setattr(clock._libc, "timer_create", create)
    said = os.strerror(errno.EAGAIN)
    failed = Call(instance).done()
    assert isinstance(failed, str)
    assert failed.startswith("trap: its deadline cannot be set: ")
    assert failed.endswith(said)
    assert instance.select_worker(b"{}", 0, 0) == FIRST.encode(), "this thread has its timer"
