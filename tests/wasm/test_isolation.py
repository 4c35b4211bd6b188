"""What one plugin does and the others do not notice; quarantine; an instance for each decision."""

import asyncio
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from sgl_router.core.policy import Outcome, PendingChoice
from sgl_router.errors import DecisionError
from sgl_router.wasm import offload
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.quarantine import FAILURES_IN_ROW, FIRST_OPEN_MS
from sgl_router.wasm.status import PluginSource
from tests.wasm.guests import (
    ANSWER_AT,
    LONG_ID,
    LOOP,
    PRINT,
    PRINTS,
    Bench,
    awaited,
    guest,
    hold_prints,
    on_long,
    request,
    settled,
    until,
    view,
)
from tests.wasm.table_guests import table_guest

ROOT = Path(__file__).resolve().parents[2]
STDIO = ["wasi:stdio"]
WORKERS = view(True, False, True)
DIGIT_AT = ANSWER_AT + len('{"selected_worker": ')
COUNTS = f"""
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (i32.store8 (i32.const {DIGIT_AT}) (i32.add (i32.const 48) (global.get $calls)))
  (i32.const {ANSWER_AT})"""
OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)
MANY = view(*[True] * 9)

DEEP_CHILD = """
import asyncio, pathlib, sys
from sgl_router.policies import PolicyFactory
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.wasm.guests import LONG_ID, Bench, guest, on_long, request, settled, view

async def main():
    options = RuntimeOptions(in_child=False)
    factory = PolicyFactory(runtime=options)
    bench = Bench(pathlib.Path(sys.argv[1]), WasmRuntime(options), factory)
    wasm = guest(
        select_worker=on_long("(drop (call $deep))"),
        extra="(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))",
    )
    policy = await bench.policy(wasm)
    policy.keep_aside(True)
    for _ in range(3):
        failed = await settled(policy.choose(view(True), request(id=LONG_ID)))
        print(failed.kind, await settled(policy.choose(view(True), request())))
    factory.close()

asyncio.run(main())
"""


def short(policy: WasmPolicy, now_ms: int = 0) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request(now_ms=now_ms))


def long(policy: WasmPolicy, now_ms: int = 0) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request(id=LONG_ID, now_ms=now_ms))


# ---- one plugin and the others


async def test_a_plugin_that_loops_leaves_the_others_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = guest(imports=PRINT, select_worker=on_long(PRINTS + LOOP))
    gate = hold_prints(monkeypatch)
    gate.open.set()
    bad = await bench.policy(
        loops, "bad", inline_budget_ms=1, max_execution_time_ms=500, allowed_syscalls=STDIO
    )
    others = [await bench.policy(guest(), name) for name in ("one", "two")]
    result = asyncio.ensure_future(settled(long(bad)))
    assert await asyncio.to_thread(gate.entered.wait, 60)
    for _ in range(100):
        assert [short(policy) for policy in others] == [0, 0]
    assert bad.current.waiting == 1, "all this while"
    assert isinstance(await result, DecisionError)
    assert [policy.failures for policy in others] == [{}, {}]


@pytest.mark.parametrize("aside", [False, True])
async def test_a_plugin_that_is_unloaded_is_freed_by_its_last_reference(
    bench: Bench, no_collector: None, aside: bool
) -> None:
    policy = await bench.policy(guest())
    policy.keep_aside(aside)
    assert await settled(short(policy)) == 0
    kept = weakref.ref(policy), weakref.ref(policy.current)
    bench.factory.unload_wasm_plugin("plugin")
    del policy
    await asyncio.sleep(0)
    assert until(lambda: [of() for of in kept] == [None, None])


def test_a_deep_recursion_in_the_lane_is_a_trap_and_no_crash(tmp_path: Path) -> None:
    """In a process of its own, and under faulthandler."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", DEEP_CHILD, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == ["trap 0"] * 3


# ---- quarantine


FAILS = guest(select_worker=on_long("(unreachable)"))


async def fail_until_quarantined(policy: WasmPolicy) -> None:
    for _ in range(FAILURES_IN_ROW):
        failed = await failure(policy)
        assert failed.kind == "trap"


async def failure(policy: WasmPolicy, now_ms: int = 0) -> DecisionError:
    """Of a long request."""
    try:
        choice = await settled(long(policy, now_ms))
    except DecisionError as error:
        return error
    assert isinstance(choice, DecisionError)
    return choice


@pytest.mark.parametrize("aside", [False, True])
async def test_a_plugin_that_fails_again_and_again_is_not_asked(
    bench: Bench, aside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy = await bench.policy(FAILS)
    policy.keep_aside(aside)
    assert await settled(short(policy)) == 0
    await fail_until_quarantined(policy)
    instances = policy.current._guest.instances
    for _ in range(3):
        with pytest.raises(DecisionError) as failed:
            short(policy)
        assert failed.value.kind == "quarantined"
    assert policy.current._guest.instances == instances
    assert policy.current.decisions == 1
    assert policy.failures == {"trap": FAILURES_IN_ROW}, "who was not asked did not fail"
    assert caplog.text.count("is in quarantine for 1 s") == 1
    status = policy.current.quarantine.status(400)
    assert (status.state, status.left_ms, status.times) == ("open", 600, 1)


@pytest.mark.parametrize("aside", [False, True])
async def test_one_request_tries_it_out(
    bench: Bench, aside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    policy = await bench.policy(FAILS)
    policy.keep_aside(aside)
    await fail_until_quarantined(policy)
    assert (await failure(policy, FIRST_OPEN_MS)).kind == "trap"
    with pytest.raises(DecisionError, match="quarantined"):
        short(policy, FIRST_OPEN_MS)
    assert await settled(short(policy, 4 * FIRST_OPEN_MS)) == 0
    assert await settled(short(policy, 4 * FIRST_OPEN_MS)) == 0
    assert caplog.text.count("is in quarantine for") == 2
    assert caplog.text.count("is asked again") == 1


async def test_while_one_is_trying_it_out_elsewhere_no_other_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await bench.policy(FAILS)
    policy.keep_aside(True)
    await fail_until_quarantined(policy)
    probe = short(policy, FIRST_OPEN_MS)
    with pytest.raises(DecisionError, match="quarantined"):
        short(policy, FIRST_OPEN_MS)
    assert await settled(probe) == 0
    assert policy.current.quarantine.asked


async def test_a_probe_that_is_given_up_makes_room_for_another(bench: Bench) -> None:
    policy = await bench.policy(FAILS)
    policy.keep_aside(True)
    await fail_until_quarantined(policy)
    probe = short(policy, FIRST_OPEN_MS)
    assert isinstance(probe, PendingChoice)
    probe.then = lambda _: None
    probe.give_up()
    assert await settled(short(policy, FIRST_OPEN_MS)) == 0
    assert policy.current.quarantine.asked
    assert policy.current.waiting == 0


async def test_a_probe_that_finds_no_room_makes_room_for_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = await bench.policy(FAILS)
    policy.keep_aside(True)
    await fail_until_quarantined(policy)
    with monkeypatch.context() as patch:
        patch.setattr(offload, "MAX_WAITING", 0)
        with pytest.raises(DecisionError, match="0 calls wait"):
            short(policy, FIRST_OPEN_MS)
    assert await settled(short(policy, FIRST_OPEN_MS)) == 0


async def test_a_probe_says_nothing_of_a_quarantine_that_is_forgotten(bench: Bench) -> None:
    """The version is swapped out and taken back while it is tried out."""
    policy = await bench.policy(FAILS)
    policy.keep_aside(True)
    await fail_until_quarantined(policy)
    plugins = bench.factory.plugins
    other = await plugins.build(bench.config(guest()), None, PluginSource("upload"))
    probe = awaited(short(policy, FIRST_OPEN_MS))
    plugins.install(other)
    policy.roll_back()
    assert await probe == 0
    assert policy.current.quarantine.asked
    assert policy.current.decisions == 1


async def test_a_probe_that_takes_long_goes_on_elsewhere(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm = guest(select_worker=on_long(LOOP))
    policy = await bench.policy(wasm, inline_budget_ms=1, max_execution_time_ms=100)
    for _ in range(FAILURES_IN_ROW):
        assert (await failure(policy)).kind == "timeout"
    policy.current.offloaded = False
    probe = long(policy, FIRST_OPEN_MS)
    assert policy.current.quarantine.status(FIRST_OPEN_MS).state == "half_open"
    assert isinstance(await settled(probe), DecisionError)
    status = policy.current.quarantine.status(FIRST_OPEN_MS)
    assert (status.state, status.left_ms) == ("open", 2 * FIRST_OPEN_MS)


async def test_what_was_under_way_when_it_was_quarantined_changes_nothing(bench: Bench) -> None:
    policy = await bench.policy(FAILS)
    policy.keep_aside(True)
    bad = [long(policy) for _ in range(FAILURES_IN_ROW)]
    good = short(policy)
    for choice in bad:
        assert isinstance(choice, PendingChoice)
        choice.then = lambda _: None
    assert await settled(good) == 0
    assert not policy.current.quarantine.asked


async def test_one_content_that_kills_it_does_not_take_it_from_the_others(bench: Bench) -> None:
    """Decisions with other bodies in between are good."""
    policy = await bench.policy(FAILS)
    poison, other = request(b"poison", id=LONG_ID), request(b"other")
    for _ in range(3 * FAILURES_IN_ROW):
        with pytest.raises(DecisionError, match="trap"):
            policy.choose(WORKERS, poison)
        assert policy.choose(WORKERS, other) == 0
    for _ in range(FAILURES_IN_ROW):
        with pytest.raises(DecisionError, match="trap"):
            policy.choose(WORKERS, poison)
    with pytest.raises(DecisionError, match="quarantined"):
        policy.choose(WORKERS, poison)
    assert policy.choose(WORKERS, other) == 0, "it is unlike the one that fails: tried at once"
    assert policy.choose(WORKERS, other) == 0


async def test_a_plugin_in_quarantine_is_not_told_of_outcomes(bench: Bench) -> None:
    told = '(func (export "on_request_complete") (param i32 i32) (unreachable))'
    policy = await bench.policy(guest(select_worker=on_long("(unreachable)"), extra=told))
    await fail_until_quarantined(policy)
    policy.on_request_complete(OUTCOME)
    assert policy.failures == {"trap": FAILURES_IN_ROW}


# ---- an instance for each decision


@pytest.mark.parametrize("aside", [False, True])
async def test_each_decision_has_a_guest_of_its_own(bench: Bench, aside: bool) -> None:
    policy = await bench.policy(guest(select_worker=COUNTS), isolation="per_call")
    policy.keep_aside(aside)
    before = policy.current._guest.instances
    choices = [policy.choose(MANY, request()) for _ in range(5)]
    assert [await settled(choice) for choice in choices[-1:]] == [1]
    assert policy.current.decisions in (1, 5)
    assert policy.current._guest.instance is None
    assert policy.current._guest.instances == before + 5


async def test_one_guest_that_is_shared_counts(bench: Bench) -> None:
    policy = await bench.policy(guest(select_worker=COUNTS))
    assert [policy.choose(MANY, request()) for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_what_a_guest_of_one_decision_returns_is_kept(bench: Bench) -> None:
    policy = await bench.policy(
        guest('{"selected_worker": 0, "state": {"n": 1}}'), isolation="per_call"
    )
    assert short(policy) == 0
    assert policy.current._guest.contract.state.values == {"n": 1}


async def test_one_decision_that_fails_in_a_guest_of_its_own(bench: Bench) -> None:
    policy = await bench.policy(FAILS, isolation="per_call")
    for _ in range(3):
        assert (await failure(policy)).kind == "trap"
        assert short(policy) == 0
    assert policy.failures == {"trap": 3}


@pytest.mark.parametrize("aside", [False, True])
async def test_each_decision_has_a_table_guest_of_its_own(bench: Bench, aside: bool) -> None:
    """It is given the whole table each time: it says how many workers it was given, less one."""
    wasm = table_guest("""
      (if (i32.ne (global.get $calls) (i32.const 1)) (then (unreachable)))
      (i32.sub (local.get $count) (i32.const 1))""")
    policy = await bench.policy(wasm, isolation="per_call")
    policy.keep_aside(aside)
    for count in (1, 3, 3, 2):
        choice = policy.choose(view(*[True] * count), request())
        assert await settled(choice) == count - 1
    assert not policy.failures
