"""Where a component decides: on a thread of its own, or where its settings say."""

import asyncio

import pytest

from sgl_router.core.policy import Outcome, PendingChoice
from sgl_router.core.registry import WorkerView
from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.component_guests import LOOP, RESULT_AT, TEXT_AT, answer, component
from tests.wasm.guests import Bench, awaited, guest, request, settled, view

WORKERS = view(True, True, False)
LAST = f"""(i32.store offset=8 (i32.const {RESULT_AT})
  (i32.load offset=12 (i32.load (local.get $input)))) (i32.const {RESULT_AT})"""
"""Chooses by the load of the first worker."""

ON_TEXT = "(if (i32.load8_u offset=8 (local.get $input)) (then {}))"
OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.25, 913.5, 64, None)
LONG = request(b'{"prompt": "x"}')


async def aside(policy: WasmPolicy, workers: WorkerView = WORKERS) -> object:
    choice = policy.choose(workers, request())
    assert isinstance(choice, PendingChoice)
    return await settled(choice)


@pytest.mark.parametrize(
    ("wasm", "lane", "offloaded"),
    [
        (component(), "auto", True),
        (component(), "offload", True),
        (component(), "inline", False),
        (guest(), "auto", False),
        (guest(), "inline", False),
        (guest(), "offload", True),
    ],
)
async def test_the_lane_that_is_set(bench: Bench, wasm: bytes, lane: str, offloaded: bool) -> None:
    policy = await bench.policy(wasm, lane=lane)
    for _ in range(3):
        choice = policy.choose(WORKERS, request())
        assert isinstance(choice, PendingChoice) is offloaded
        assert await settled(choice) == 0


async def test_a_lane_that_is_set_is_not_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_router.wasm.version.FITS_TO_RETURN", 2)
    policy = await bench.policy(component())
    for _ in range(5):
        assert await aside(policy) == 0
    assert policy.current.offloaded


async def test_files_are_not_for_the_event_loop(bench: Bench) -> None:
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(guest(), lane="inline", allowed_syscalls=["wasi:filesystem"])
    assert caught.value.codes == ("lane_with_files",)


async def test_inline_a_decision_that_takes_long_is_taken_again_elsewhere(bench: Bench) -> None:
    text = b'{"n": 1}'
    wasm = component(
        answer(1, (TEXT_AT, len(text))),
        text=text,
        select=f"{ON_TEXT.format(LOOP)} (i32.const {RESULT_AT})",
    )
    policy = await bench.policy(wasm, lane="inline", inline_budget_ms=1, max_execution_time_ms=100)
    assert await settled(policy.choose(WORKERS, request())) == 1
    failed = await settled(policy.choose(WORKERS, LONG))
    assert isinstance(failed, DecisionError)
    assert failed.kind == "timeout"
    assert policy.current.offloaded
    assert await aside(policy) == 1
    assert policy.current._guest.contract.state.values == {"n": 1}


async def test_a_decision_knows_where_those_before_it_have_gone(bench: Bench) -> None:
    """Of a burst, all of which waits for the thread: else each would choose the same worker."""
    policy = await bench.policy(component(select=LAST))
    workers = view(True, True, True, True)
    made: asyncio.Queue[object] = asyncio.Queue()

    def place(choice: object) -> None:
        workers[0].load += 1
        made.put_nowait(choice)

    for _ in workers:
        choice = policy.choose(workers, request())
        assert isinstance(choice, PendingChoice)
        choice.then = place
    assert [await made.get() for _ in workers] == [0, 1, 2, 3]


async def test_the_event_loop_turns_while_it_loops(bench: Bench) -> None:
    wasm = component(select=f"{ON_TEXT.format(LOOP)} (i32.const {RESULT_AT})")
    policy = await bench.policy(wasm, max_execution_time_ms=200)
    result = awaited(policy.choose(WORKERS, LONG))
    turns = 0
    while not result.done():
        await asyncio.sleep(0)
        turns += 1
    failed = result.result()
    assert isinstance(failed, DecisionError)
    assert failed.kind == "timeout"
    assert turns > 1
    assert await aside(policy) == 0


async def test_it_is_unloaded_while_decisions_wait(bench: Bench) -> None:
    policy = await bench.policy(component())
    choices = [awaited(policy.choose(WORKERS, request())) for _ in range(20)]
    assert bench.factory.unload_wasm_plugin("plugin")
    policy.current.retire()
    assert await asyncio.gather(*choices) == [0] * 20
    assert policy.current._guest.instance is None


async def test_outcomes_are_told_in_the_lane(bench: Bench) -> None:
    count = "(global $count (mut i32) (i32.const 0))"
    select = f"""(i32.store offset=8 (i32.const {RESULT_AT}) (global.get $count))
      (i32.const {RESULT_AT})"""
    report = "(global.set $count (local.get 2))"  # whether it was a success
    told = {"sgl-router.manifest": b'{"needs": ["outcomes"]}'}
    wasm = component(select=select, report=report, extra=count, sections=told)
    policy = await bench.policy(wasm)
    assert await aside(policy) == 0
    policy.on_request_complete(OUTCOME)
    assert await aside(policy) == 1


async def test_an_instance_for_each_decision_in_the_lane(bench: Bench) -> None:
    count = "(global $count (mut i32) (i32.const 0))"
    select = f"""(i32.store offset=8 (i32.const {RESULT_AT}) (global.get $count))
      (global.set $count (i32.const 1)) (i32.const {RESULT_AT})"""
    policy = await bench.policy(component(select=select, extra=count), isolation="per_call")
    assert [await aside(policy) for _ in range(3)] == [0, 0, 0]
