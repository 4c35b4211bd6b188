"""Where a plugin decides: on the event loop, or on a thread of its own.

A guest here is slow where the request is long (`on_long`), so that it passes the trial at load.
"""

import asyncio
import threading
import weakref

import pytest

from sgl_router.core.policy import Choice, Outcome, PendingChoice
from sgl_router.errors import DecisionError
from sgl_router.wasm import offload, version
from sgl_router.wasm.guest import Guest
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import (
    ANSWER_AT,
    LONG_ID,
    LOOP,
    LOOPS_HERE,
    PRINT,
    PRINTS,
    Bench,
    Gate,
    awaited,
    guest,
    hold_prints,
    on_long,
    request,
    settled,
    until,
    view,
    wasi,
)

OTHER_AT = 4096
REMEMBERS = '{"selected_worker": 1, "state": {"n": 1}}'
SLOW_HERE = guest(REMEMBERS, select_worker=on_long(LOOPS_HERE), imports=PRINT)
HELD = guest(REMEMBERS, select_worker=on_long(PRINTS), imports=PRINT)
QUICK = guest(REMEMBERS)
STDIO = ["wasi:stdio"]
WORKERS = view(True, True, False)
OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)


def told(body: str) -> str:
    return f'(func (export "on_request_complete") (param $ptr i32) (param $len i32) {body})'


def short(policy: WasmPolicy) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request())


def long(policy: WasmPolicy) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request(id=LONG_ID))


def pending(choice: int | PendingChoice | None) -> PendingChoice:
    assert isinstance(choice, PendingChoice)
    return choice


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return hold_prints(monkeypatch)


def state_of(policy: WasmPolicy) -> dict[str, object]:
    return policy.current._guest.contract.state.values


async def aside(bench: Bench, wasm: bytes) -> WasmPolicy:
    """A plugin that decides on its own thread."""
    policy = await bench.policy(wasm, allowed_syscalls=STDIO)
    policy.keep_aside(True)
    return policy


async def idle(policy: WasmPolicy) -> None:
    """Once all that waited in the lane has been made."""
    made = asyncio.get_running_loop().create_future()
    policy.current._lane.submit(lambda: int, made.set_result, 60.0)
    await asyncio.wait_for(made, 60)


# ---- from one to the other


async def test_a_decision_that_takes_long_is_taken_again_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    gate.open.set()
    policy = await bench.policy(SLOW_HERE, allowed_syscalls=STDIO, inline_budget_ms=1)
    asked: list[tuple[object, ...]] = []
    threads: list[threading.Thread] = []
    select_worker = Instance.select_worker

    def noted(self: Instance, *given: object) -> bytes:
        asked.append(given[:3])
        threads.append(threading.current_thread())
        return select_worker(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Instance, "select_worker", noted)
    given = request(id=LONG_ID, entropy=2**53 - 1, now_ms=1_700_000_000_000)
    choice = policy.choose(WORKERS, given)
    assert await settled(pending(choice)) == 1
    assert len(asked) == 2
    assert asked[0] == asked[1]
    assert asked[0][1:] == (given.now_ms, given.entropy)
    assert threads[0] is threading.current_thread() is not threads[1]
    assert policy.current.decisions == 1
    assert not policy.failures
    assert state_of(policy) == {"n": 1}


async def test_a_decision_within_its_budget_is_taken_at_once(bench: Bench) -> None:
    policy = await bench.policy(QUICK)
    assert short(policy) == 1
    assert not policy.current.offloaded
    assert policy.current._lane._thread is None


async def test_where_the_budget_is_all_there_is_a_decision_fails(bench: Bench) -> None:
    wasm = guest(select_worker=on_long(LOOP))
    policy = await bench.policy(wasm, inline_budget_ms=100, max_execution_time_ms=100)
    with pytest.raises(DecisionError, match=r"max_execution_time_ms \(100\)"):
        long(policy)
    assert not policy.current.offloaded


async def test_the_event_loop_turns_while_a_guest_loops(bench: Bench) -> None:
    wasm = guest(select_worker=on_long(LOOP))
    policy = await bench.policy(wasm, inline_budget_ms=1, max_execution_time_ms=300)
    result = asyncio.ensure_future(settled(long(policy)))
    turns = 0
    while not result.done():
        await asyncio.sleep(0)
        turns += 1
    failed = result.result()
    assert isinstance(failed, DecisionError)
    assert failed.kind == "timeout"
    assert turns > 1
    assert policy.failures == {"timeout": 1}


async def test_it_comes_back_once_it_has_been_quick_for_long(bench: Bench, gate: Gate) -> None:
    gate.open.set()
    policy = await bench.policy(SLOW_HERE, allowed_syscalls=STDIO, inline_budget_ms=1)
    assert await settled(pending(long(policy))) == 1
    policy.current._inline_ms = 5_000  # whatever the machine does meanwhile
    policy.current._fits = 0
    for _ in range(version.FITS_TO_RETURN):
        assert await settled(pending(short(policy))) == 1
    assert not policy.current.offloaded
    assert short(policy) == 1


async def test_what_fails_or_takes_long_meanwhile_is_not_quick(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "FITS_TO_RETURN", 3)
    wasm = guest(select_worker=on_long("(unreachable)"))
    policy = await bench.policy(wasm, inline_budget_ms=100)
    policy.current._leave_loop()
    for _ in range(3):
        for choose in (short, short, long):
            await settled(pending(choose(policy)))
    assert policy.current.offloaded
    policy.current._inline_ms = 0
    for _ in range(5):
        await settled(pending(short(policy)))
    assert policy.current.offloaded


async def test_it_does_not_come_back_while_decisions_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """An instance has one user at a time."""
    monkeypatch.setattr(version, "FITS_TO_RETURN", 1)
    policy = await bench.policy(HELD, allowed_syscalls=STDIO, inline_budget_ms=100)
    policy.current._leave_loop()
    first, second = short(policy), long(policy)
    assert await settled(first) == 1
    assert policy.current.offloaded
    gate.open.set()
    await settled(second)


async def test_a_plugin_with_files_never_decides_on_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "FITS_TO_RETURN", 1)
    wasm = guest(imports=wasi("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"))
    policy = await bench.policy(wasm, allowed_syscalls=["wasi:filesystem"])
    for _ in range(3):
        assert await settled(pending(short(policy))) == 0


async def test_a_plugin_is_kept_aside_until_it_is_told_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "FITS_TO_RETURN", 2)
    policy = await bench.policy(QUICK, inline_budget_ms=100)
    policy.keep_aside(True)
    policy.current._inline_ms = 5_000
    for _ in range(4):
        assert await settled(pending(short(policy))) == 1
    policy.keep_aside(False)
    assert short(policy) == 1


# ---- in the lane


async def test_decisions_come_in_the_order_in_which_they_were_asked_for(bench: Bench) -> None:
    policy = await aside(bench, QUICK)
    order: list[int] = []
    for number in range(20):
        pending(short(policy)).then = lambda _, number=number: order.append(number)
    assert await settled(short(policy)) == 1
    assert order == list(range(20))
    assert policy.current.decisions == 21


async def test_what_it_remembers_is_kept_and_what_fails_changes_nothing(bench: Bench) -> None:
    other = '{"selected_worker": 2, "state": {"n": 2}}'
    wasm = guest(
        REMEMBERS,
        select_worker=on_long(f"(return (i32.const {OTHER_AT}))"),
        extra=f'(data (i32.const {OTHER_AT}) "{other.replace(chr(34), chr(92) + "22")}")',
    )
    policy = await aside(bench, wasm)
    assert await settled(short(policy)) == 1
    assert state_of(policy) == {"n": 1}
    failed = await settled(long(policy))
    assert isinstance(failed, DecisionError)
    assert failed.kind == "unhealthy_pick"
    assert state_of(policy) == {"n": 1}
    assert policy.failures == {"unhealthy_pick": 1}


async def test_where_too_many_decisions_wait_the_next_fails_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.setattr(offload, "MAX_WAITING", 3)
    policy = await aside(bench, HELD)
    waiting = [awaited(long(policy)) for _ in range(3)]
    with pytest.raises(DecisionError, match="3 calls wait") as failed:
        short(policy)
    assert failed.value.kind == "timeout"
    assert policy.choose_aside(WORKERS, request(), most=3) is None
    gate.open.set()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert await settled(short(policy)) == 1


async def test_a_decision_that_has_waited_too_long_is_not_taken(bench: Bench, gate: Gate) -> None:
    policy = await aside(bench, HELD)
    _, second = long(policy), pending(long(policy))
    second.job.begin_by = 0.0  # type: ignore[attr-defined]
    gate.open.set()
    failed = await settled(second)
    assert isinstance(failed, DecisionError)
    assert failed.kind == "timeout"
    assert "waited 5,000 ms" in failed.detail
    assert policy.failures == {"timeout": 1}
    assert len(gate.threads) == 1, "of the first"


async def test_nobody_is_told_of_a_decision_that_was_given_up(bench: Bench, gate: Gate) -> None:
    policy = await aside(bench, HELD)
    results: list[Choice] = []
    begun, waiting, last = (pending(long(policy)) for _ in range(3))
    for choice in (begun, waiting):
        choice.then = results.append
    assert await asyncio.to_thread(gate.entered.wait, 60)
    begun.give_up()
    waiting.give_up()
    gate.open.set()
    assert await settled(last) == 1
    assert results == []
    assert len(gate.threads) == 2, "the one that had not begun was not taken"
    assert policy.current.decisions == 1
    assert policy.current.waiting == 0


async def test_a_decision_given_up_leaves_no_state(bench: Bench, gate: Gate) -> None:
    policy = await aside(bench, HELD)
    begun, waiting = pending(long(policy)), pending(long(policy))
    for choice in (begun, waiting):
        choice.then = lambda _: None
    assert await asyncio.to_thread(gate.entered.wait, 60)
    waiting.give_up()
    begun.give_up()
    gate.open.set()
    await idle(policy)
    assert state_of(policy) == {}


async def test_what_goes_wrong_with_the_router_itself_is_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = await aside(bench, QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(Guest, "answer", lambda *_: 1 // 0)
        failed = await settled(short(policy))
    assert isinstance(failed, DecisionError)
    assert failed.kind == "trap"
    assert "ZeroDivisionError" in caplog.text
    assert await settled(short(policy)) == 1


@pytest.mark.parametrize("kind", ["good", "failed"])
async def test_a_decision_is_freed_by_its_last_reference(
    bench: Bench, no_collector: None, kind: str
) -> None:
    policy = await bench.policy(guest(select_worker=on_long("(unreachable)")))
    policy.keep_aside(True)
    choice = pending(short(policy) if kind == "good" else long(policy))
    result = await settled(choice)
    assert isinstance(result, DecisionError) == (kind == "failed")
    kept: list[weakref.ref[object]] = [weakref.ref(choice.request)]  # type: ignore[attr-defined]
    if isinstance(result, DecisionError):
        kept.append(weakref.ref(result))
    del choice, result
    await asyncio.sleep(0)
    assert until(lambda: not any(ref() for ref in kept))


# ---- what comes after a decision


async def test_an_outcome_that_takes_long_is_told_again_elsewhere(bench: Bench, gate: Gate) -> None:
    digit = ANSWER_AT + len('{"selected_worker": ')
    learns = told(f"{LOOPS_HERE} (i32.store8 (i32.const {digit}) (i32.const {ord('1')}))")
    wasm = guest(imports=PRINT, extra=learns)
    gate.open.set()
    policy = await bench.policy(wasm, allowed_syscalls=STDIO)
    assert short(policy) == 0
    policy.on_request_complete(OUTCOME)
    assert policy.current.waiting == 1
    assert await settled(pending(short(policy))) == 1
    assert not policy.failures


async def test_a_plugin_that_takes_long_to_learn_stays_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "FITS_TO_RETURN", 2)
    wasm = guest(extra=told(LOOP))
    policy = await bench.policy(wasm, inline_budget_ms=100, max_execution_time_ms=200)
    for _ in range(3):
        policy.on_request_complete(OUTCOME)
        await idle(policy)
        assert await settled(pending(short(policy))) == 0
        assert policy.current.offloaded
    assert policy.failures == {"timeout": 3}


async def test_an_outcome_that_finds_no_room_is_a_failure_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await bench.policy(guest(extra=told("")))
    policy.keep_aside(True)
    monkeypatch.setattr(offload, "MAX_WAITING", 0)
    policy.on_request_complete(OUTCOME)
    assert policy.failures == {"timeout": 1}


async def test_a_guest_that_does_not_end_once_it_has_decided_leaves_the_loop(bench: Bench) -> None:
    """Its decisions are good, but each would hold the loop for the whole budget."""
    wasm = guest(
        REMEMBERS,
        dealloc=f"(if (global.get $calls) (then {LOOP}))",
        select_worker="""
      (global.set $calls (i32.gt_u (local.get $len) (i32.const 1200))) (i32.const 1024)""",
    )
    policy = await bench.policy(wasm, inline_budget_ms=100, max_execution_time_ms=200)
    assert long(policy) == 1
    assert policy.failures == {"timeout": 1}
    assert await settled(pending(long(policy))) == 1
    assert policy.failures == {"timeout": 2}
    assert policy.current.decisions == 2


async def test_what_fails_after_a_decision_elsewhere_is_counted_on_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await bench.policy(guest(REMEMBERS, dealloc="(unreachable)"))
    policy.keep_aside(True)
    before = policy.failures["trap"]
    choice = pending(short(policy))
    lane = policy.current._lane
    lane.close()
    assert until(lambda: lane._thread is None)
    assert policy.failures["trap"] == before, "its record is the loop's"
    assert await settled(choice) == 1
    assert policy.failures["trap"] == before + 1
