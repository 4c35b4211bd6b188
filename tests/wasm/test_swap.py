"""One version of a plugin after another: swaps, rollbacks, and those that come by themselves."""

import asyncio
import gc
import itertools
import threading
import weakref
from typing import Any

import pytest

from sgl_router.core.decision import Decision, PendingDecision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Choice, PendingChoice
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, RequestError
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.wasm.policy import TRIAL_DECISIONS, TRIAL_FAILURES, WasmPolicy
from sgl_router.wasm.quarantine import FAILURES_IN_ROW
from sgl_router.wasm.status import PluginSource
from sgl_router.wasm.version import PluginVersion
from tests.wasm.guests import (
    LONG_ID,
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
    view,
)
from tests.wasm.table_guests import table_guest

STDIO = ["wasi:stdio"]
WORKERS = view(True, True)
FIRST = guest('{"selected_worker": 0, "state": {"by": "first"}}')
SECOND = guest('{"selected_worker": 1, "state": {"also": "second"}}')
# Each says by its choice which of the two it is; long requests are held by the gate.
HELD = [
    guest(f'{{"selected_worker": {which}}}', select_worker=on_long(PRINTS), imports=PRINT)
    for which in range(2)
]
FRAGILE = guest('{"selected_worker": 1}', select_worker=on_long("(unreachable)"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return hold_prints(monkeypatch)


def short(policy: WasmPolicy) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request())


def long(policy: WasmPolicy) -> int | PendingChoice | None:
    return policy.choose(WORKERS, request(id=LONG_ID))


def fail(policy: WasmPolicy) -> str:
    """How a decision about a long request fails at once."""
    with pytest.raises(DecisionError) as failed:
        long(policy)
    return failed.value.kind


def failure_of(choice: Choice) -> str:
    assert isinstance(choice, DecisionError)
    return choice.kind


def lives(version: PluginVersion) -> bool:
    """Whether it has an instance."""
    return version._guest.instance is not None


def state_of(policy: WasmPolicy) -> dict[str, object]:
    return policy.current._guest.contract.state.values


async def put(bench: Bench, wasm: bytes, **settings: Any) -> str:
    """Replace the plugin, as the control plane does; what came of it."""
    _, status = await bench.factory.plugins.put(bench.config(wasm, **settings))
    return status


# ---- swaps


async def test_the_next_decision_is_the_new_versions_and_the_state_stays(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    assert short(policy) == 0
    before = policy.current
    assert await put(bench, SECOND) == "replaced"
    assert bench.factory.create_by_name("plugin") is policy
    assert (policy.previous, policy.version) == (before, policy.current.id)
    assert before.id != policy.current.id
    assert state_of(policy) == {"by": "first"}
    assert short(policy) == 1
    assert state_of(policy) == {"by": "first", "also": "second"}
    assert (before.decisions, policy.current.decisions) == (1, 1)
    assert before._guest.instance is None


async def test_what_is_the_same_is_not_swapped(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    before = policy.current
    assert await put(bench, FIRST) == "unchanged"
    assert policy.current is before
    assert policy.swaps == 0
    assert await put(bench, FIRST, fallback="random") == "replaced"
    assert policy.fallback == "random"


async def test_a_plugin_of_another_contract_takes_over_and_gives_the_state_back(
    bench: Bench,
) -> None:
    policy = await bench.policy(FIRST)
    assert short(policy) == 0
    assert await put(bench, table_guest("(i32.const 1)")) == "replaced"
    assert short(policy) == 1
    assert await put(bench, SECOND) == "replaced"
    assert state_of(policy) == {"by": "first"}


@pytest.mark.parametrize("aside", [False, True])
async def test_a_table_plugin_is_told_all_after_a_swap(bench: Bench, aside: bool) -> None:
    """Each chooses the second worker where that has the load that it was told of."""
    policy = await bench.policy(table_guest("(i32.load offset=72 (local.get $table))"))
    policy.keep_aside(aside)
    workers = view(True, True)
    for load in (0, 1, 0, 1):
        workers[1].load = load
        workers[1].touched()
        assert await settled(policy.choose(workers, request())) == load
        extra = f"(global $g{load}{policy.swaps} i32 (i32.const {policy.swaps}))"
        wasm = table_guest("(i32.load offset=72 (local.get $table))", extra=extra)
        assert await put(bench, wasm) == "replaced"
        assert len(workers[1].watched_by) == 0, "the version before watches nobody"


async def test_a_swap_ends_a_quarantine(bench: Bench) -> None:
    policy = await bench.policy(FRAGILE)
    for _ in range(FAILURES_IN_ROW):
        assert fail(policy) == "trap"
    assert fail(policy) == "quarantined"
    await put(bench, SECOND)
    assert short(policy) == 1


async def test_what_is_under_way_ends_on_the_version_that_began_it(
    bench: Bench, gate: Gate
) -> None:
    policy = await bench.policy(HELD[0], allowed_syscalls=STDIO)
    policy.keep_aside(True)
    first = policy.current
    begun, waiting = awaited(long(policy)), awaited(long(policy))
    await put(bench, HELD[1], allowed_syscalls=STDIO)
    assert await settled(short(policy)) == 1, "it need not wait for the other"
    assert first.waiting == 2
    assert lives(first)
    gate.open.set()
    assert [await begun, await waiting] == [0, 0]
    assert (first.decisions, policy.current.decisions) == (2, 1)
    assert not lives(first)
    lane = first._lane._thread
    if lane is not None:
        await asyncio.to_thread(lane.join, 60)
        assert not lane.is_alive()


async def test_each_decision_is_of_one_version_however_they_take_turns(
    bench: Bench, gate: Gate
) -> None:
    """The worker chosen says who chose it, and the decision says which version that was."""
    gate.open.set()
    registry = WorkerRegistry()
    for port in (1, 2):
        registry.add(Worker(f"http://10.0.0.1:{port}", Health.UP))
    policy = await bench.policy(HELD[0], allowed_syscalls=STDIO, inline_budget_ms=100)
    versions = [policy.current]
    dispatcher = Dispatcher(
        registry, policy, RoundRobin(), entropy=int, now_ms=int, clock_ns=itertools.count().__next__
    )
    later: list[asyncio.Future[Decision | RequestError]] = []
    decisions: list[Decision | RequestError] = []
    for turn in range(60):
        policy.keep_aside(turn % 4 > 1)
        begun = dispatcher.begin(request(id=LONG_ID if turn % 3 else "short"))
        if isinstance(begun, PendingDecision):
            later.append(asyncio.get_running_loop().create_future())
            begun.then = later[-1].set_result
        else:
            decisions.append(begun)
        if turn % 5 == 0:
            await put(bench, HELD[len(versions) % 2], allowed_syscalls=STDIO, inline_budget_ms=100)
            versions.append(policy.current)
    decisions += await asyncio.wait_for(asyncio.gather(*later), 60)
    which = {version.id: number % 2 for number, version in enumerate(versions)}
    assert len(decisions) == 60
    assert later, "some were taken aside"
    for decision in decisions:
        assert isinstance(decision, Decision)
        assert decision.failure is None
        assert decision.worker.url.endswith(f":{which[str(decision.version)] + 1}")
    assert sum(version.decisions for version in versions) == 60


async def test_what_fails_on_a_version_that_was_replaced_says_nothing_of_the_other(
    bench: Bench,
) -> None:
    policy = await bench.policy(FIRST)
    await put(bench, FRAGILE)
    policy.keep_aside(True)
    plugins = bench.factory.plugins
    last = await plugins.build(bench.config(SECOND), None, PluginSource("upload"))
    bad = [awaited(long(policy)) for _ in range(TRIAL_FAILURES)]
    plugins.install(last)
    assert [failure_of(await choice) for choice in bad] == ["trap"] * TRIAL_FAILURES
    assert policy.rejected is None
    assert await settled(short(policy)) == 1
    assert not policy.failures


async def test_two_hundred_swaps_leave_nothing_behind(bench: Bench, no_collector: None) -> None:
    """Old versions are freed by their last reference: start-up's are frozen for the collector."""
    policy = await bench.policy(HELD[0], allowed_syscalls=STDIO)
    versions: list[weakref.ref[PluginVersion]] = []
    threads = threading.active_count()
    for turn in range(200):
        policy.keep_aside(turn % 2 == 0)
        assert await settled(short(policy)) == turn % 2
        versions.append(weakref.ref(policy.current))
        await put(bench, HELD[(turn + 1) % 2], allowed_syscalls=STDIO)
    alive = [version for version in (ref() for ref in versions) if version is not None]
    assert alive == [policy.previous]
    assert threading.active_count() <= threads + 3
    gc.collect()


# ---- rollbacks


async def test_a_rollback_returns_to_where_it_stopped_and_a_second_one_back(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    assert not policy.roll_back()
    assert short(policy) == 0
    await put(bench, SECOND)
    first, second = policy.previous, policy.current
    assert short(policy) == 1
    assert policy.roll_back()
    assert (policy.current, policy.previous) == (first, second)
    assert state_of(policy) == {"by": "first"}
    assert short(policy) == 0
    assert policy.roll_back()
    assert (policy.current, policy.previous) == (second, first)
    assert policy.version == policy.current.id
    assert short(policy) == 1
    assert state_of(policy) == {"by": "first", "also": "second"}
    assert policy.swaps == 3


async def test_a_version_to_which_it_returned_has_never_failed(bench: Bench) -> None:
    policy = await bench.policy(FRAGILE)
    for _ in range(FAILURES_IN_ROW):
        fail(policy)
    await put(bench, FIRST)
    assert policy.roll_back()
    assert short(policy) == 1
    assert fail(policy) == "trap"


async def test_a_version_to_which_it_returned_is_aside_only_where_it_should(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_router.wasm.version.FITS_TO_RETURN", 1)
    policy = await bench.policy(FIRST, inline_budget_ms=100)
    policy.keep_aside(True)
    await put(bench, SECOND)
    policy.keep_aside(False)
    policy.roll_back()
    policy.current._inline_ms = 5_000
    await settled(short(policy))
    assert short(policy) == 0


async def test_who_wants_to_know_is_told_of_each_change(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    told: list[tuple[str, str | None]] = []
    policy.on_change.append(lambda of, change: told.append((change, of.version)))
    ids = [policy.version]
    await put(bench, FRAGILE)
    ids.append(policy.version)
    policy.roll_back()
    await put(bench, FRAGILE)
    ids.append(policy.version)
    for _ in range(TRIAL_FAILURES):
        fail(policy)
    assert [change for change, _ in told] == ["swapped", "rolled_back", "swapped", "rejected"]
    assert [version for _, version in told] == [ids[1], ids[0], ids[2], ids[0]]


# ---- a version that fails


async def test_a_version_that_fails_from_the_start_is_not_kept(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    policy = await bench.policy(FIRST)
    assert short(policy) == 0
    first = policy.current
    await put(bench, FRAGILE)
    second = policy.current
    for _ in range(TRIAL_FAILURES):
        assert policy.current is second
        assert fail(policy) == "trap"
    assert policy.current is first
    assert policy.previous is None, "what failed is not returned to"
    assert not policy.roll_back()
    assert policy.rejected == second.digest
    assert policy.stale is not None
    assert "failed 3 of its first 3 decisions" in policy.stale
    assert "trap" in policy.stale
    assert second.id in policy.stale
    assert sum(policy.stale in record.getMessage() for record in caplog.records) == 1
    assert short(policy) == 0
    assert state_of(policy) == {"by": "first"}


async def test_what_is_put_after_that_is_not_stale(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    await put(bench, FRAGILE)
    for _ in range(TRIAL_FAILURES):
        fail(policy)
    stale = [policy.stale]
    await put(bench, SECOND)
    stale.append(policy.stale)
    assert [why is None for why in stale] == [False, True]
    assert short(policy) == 1
    await put(bench, FRAGILE)
    for _ in range(TRIAL_FAILURES - 1):
        fail(policy)
    assert short(policy) == 1
    assert policy.stale is None, "its failures are counted anew"


async def test_one_that_works_at_times_is_rolled_back_when_it_is_quarantined(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    first = policy.current
    await put(bench, FRAGILE)
    second = policy.current
    assert short(policy) == 1
    for _ in range(FAILURES_IN_ROW):
        assert policy.current is second
        assert fail(policy) == "trap"
    assert policy.current is first
    assert policy.rejected == second.digest


async def test_one_past_its_trial_is_quarantined_instead(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    await put(bench, FRAGILE)
    second = policy.current
    for _ in range(TRIAL_DECISIONS):
        assert short(policy) == 1
    for _ in range(FAILURES_IN_ROW):
        assert fail(policy) == "trap"
    assert policy.current is second
    assert fail(policy) == "quarantined"
    assert policy.rejected is None


async def test_the_only_version_is_quarantined_and_not_rolled_back(bench: Bench) -> None:
    policy = await bench.policy(FRAGILE)
    for _ in range(FAILURES_IN_ROW):
        assert fail(policy) == "trap"
    assert fail(policy) == "quarantined"
    assert policy.rejected is None


async def test_one_that_fails_aside_is_rolled_back_too(bench: Bench) -> None:
    policy = await bench.policy(FIRST)
    first = policy.current
    policy.keep_aside(True)
    await put(bench, FRAGILE)
    bad = [awaited(long(policy)) for _ in range(2 * TRIAL_FAILURES)]
    assert [failure_of(await choice) for choice in bad] == ["trap"] * 2 * TRIAL_FAILURES
    assert policy.current is first
    assert await settled(short(policy)) == 0
    assert not policy.failures
