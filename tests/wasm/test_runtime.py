"""The clock that bounds guests, and what the engine leaves out."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.errors import DecisionError
from sgl_router.policies import PolicyFactory
from sgl_router.wasm import clock
from sgl_router.wasm.clock import NEVER, EpochClock
from sgl_router.wasm.runtime import WasmRuntime, make_engine
from tests.wasm.guests import ANSWER_AT, FIRST, LOOP, Bench, assemble, guest


def parked(clock: EpochClock) -> bool:
    """Whether the clock parks within a bounded number of looks."""
    pause = threading.Event()
    return any(not clock.ticking or pause.wait(0.01) for _ in range(1000))


def test_the_clock_stops_when_it_is_closed() -> None:
    runtime = WasmRuntime()
    assert runtime.clock.ticking
    runtime.close()
    assert not runtime.clock.ticking


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=6))
def test_each_call_has_its_limit_and_little_more(limits: list[int]) -> None:
    runtime = WasmRuntime()
    try:
        users = [runtime.clock.call_time(limit) for limit in limits]
        tick = runtime.clock.tick_ms
        assert tick <= max(1, min(limits) // 4)
        for limit, user in zip(limits, users, strict=True):
            assert (user.ticks - 1) * tick >= limit, "less the tick that is under way"
            assert user.ticks * tick <= max(limit * 1.5, limit + 2) + tick
    finally:
        runtime.close()


def test_a_plugin_with_a_short_limit_leaves_the_others_theirs(tmp_path: Path) -> None:
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    patient = bench.instance(guest(), max_execution_time_ms=30_000)
    before = runtime.clock.tick_ms
    hasty = bench.instance(guest(select_worker=LOOP), max_execution_time_ms=4)
    assert runtime.clock.tick_ms < before
    with pytest.raises(DecisionError):
        hasty.select_worker(b"{}", 0, 0)
    patient.select_worker(b"{}", 0, 0)
    assert patient._ticks == 30_001
    runtime.close()


def test_a_parked_clock_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PARK_AFTER_SECS", 0.002)
    runtime = WasmRuntime()
    assert parked(runtime.clock)
    runtime.close()
    assert not runtime.clock.ticking


def test_a_call_after_the_clock_was_parked_is_bounded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "PARK_AFTER_SECS", 0.1)  # longer than the call's limit
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    instance = bench.instance(guest(select_worker=LOOP), max_execution_time_ms=20)
    assert parked(runtime.clock)
    kinds: list[str] = []

    def call() -> None:
        try:
            instance.select_worker(b"{}", 0, 0)
        except DecisionError as error:
            kinds.append(error.kind)

    thread = threading.Thread(target=call, daemon=True)  # so that a failure here is no hang
    thread.start()
    thread.join(30)
    assert kinds == ["timeout"]
    runtime.close()


def test_a_call_is_ended_though_the_timer_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system makes no thread for a tick, the epoch stands still, and nobody says so."""
    monkeypatch.setattr(clock, "LOOK_SECS", 0.05)
    monkeypatch.setattr(EpochClock, "_set", lambda self, interval: None)
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    instance = bench.instance(guest(select_worker=LOOP), max_execution_time_ms=20)
    with pytest.raises(DecisionError) as failed:
        instance.select_worker(b"{}", 0, 0)
    assert failed.value.kind == "timeout"
    runtime.close()


def test_what_a_guest_does_after_its_decision_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "LOOK_SECS", 0.05)
    monkeypatch.setattr(EpochClock, "_set", lambda self, interval: None)
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    instance = bench.instance(guest(dealloc=LOOP), max_execution_time_ms=20)
    assert instance.select_worker(b"{}", 0, 0) == FIRST.encode()
    assert instance.late_failure is not None
    assert instance.late_failure.kind == "timeout"
    runtime.close()


def test_nothing_is_called_once_the_clock_has_stopped(tmp_path: Path) -> None:
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    instance = bench.instance(guest())
    runtime.close()
    with pytest.raises(DecisionError, match="stopped"):
        instance.select_worker(b"{}", 0, 0)
    with pytest.raises(DecisionError, match="stopped"):
        bench.instance(guest())


@pytest.mark.parametrize("body", ["", "(unreachable)"])
def test_the_clock_is_told_when_a_call_is_over(tmp_path: Path, body: str) -> None:
    runtime = WasmRuntime()
    bench = Bench(tmp_path, runtime, PolicyFactory())
    instance = bench.instance(guest(select_worker=f"{body} (i32.const {ANSWER_AT})"))
    with suppress(DecisionError):
        instance.select_worker(b"{}", 0, 0)
    assert runtime.clock.late(1e12) == []
    runtime.close()


def test_only_calls_under_way_are_late() -> None:
    """The epoch is one for all of an engine's calls: to end one that is over would hurt others."""
    runtime = WasmRuntime()
    under_way, over, idle = (runtime.clock.call_time(limit) for limit in (30, 20, 10))
    assert under_way.begin()
    assert over.begin()
    over.ends_at = NEVER
    long_after = under_way.ends_at + 1000
    assert runtime.clock.late(long_after) == [under_way.ticks]
    assert runtime.clock.late(under_way.ends_at) == []
    del under_way
    assert runtime.clock.late(long_after) == [], "who is gone is forgotten"
    assert idle.ends_at == NEVER
    runtime.close()


def test_a_limit_is_kept_while_the_interpreter_is_busy(bench: Bench) -> None:
    """The clock does not need the GIL: not even one that another thread never gives away."""
    instance = bench.instance(guest(select_worker=LOOP), max_execution_time_ms=20)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            with pytest.raises(DecisionError) as failed:
                instance.select_worker(b"{}", 0, 0)
            assert failed.value.kind == "timeout"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_closing_the_factory_stops_its_clock(bench: Bench) -> None:
    factory = PolicyFactory()
    await factory.load_wasm_plugin(bench.config(guest()))
    names = [thread.name for thread in threading.enumerate()]
    factory.close()
    assert factory.list_wasm_plugins() == []
    left = [thread.name for thread in threading.enumerate()]
    assert names.count("wasm-clock") == left.count("wasm-clock") + 1


@pytest.mark.parametrize(
    "fields",
    [
        "(memory 1 1 shared)",
        "(memory i64 1)",
        "(func $f (return_call $f))",
        "(tag $t) (func (throw $t))",
        "(type $s (struct (field i32)))",
        "(type $f (func)) (func (param (ref $f)))",
        "(func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0))))",
    ],
)
def test_what_a_policy_does_not_need_is_off(fields: str) -> None:
    wasm = assemble(f"(module {fields})")
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(make_engine(), wasm)


def test_what_toolchains_emit_by_default_is_on() -> None:
    wasm = assemble(
        """(module (memory 1) (table 1 funcref)
          (func (param i32) (result i32 i32) (i32.extend8_s (local.get 0)) (i32.const 1))
          (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1)))
          (func (result i32) (i32.trunc_sat_f32_u (f32.const 1)))
          (func (param v128) (result v128) (i8x16.neg (local.get 0))))"""
    )
    assert wasmtime.Module(make_engine(), wasm)
