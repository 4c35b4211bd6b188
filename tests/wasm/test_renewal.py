"""An instance that has grown too much is replaced between calls."""

import asyncio
import weakref

import pytest

from sgl_router.core.policy import Outcome, PendingChoice
from sgl_router.wasm.config import MAX_MEMORY_BYTES
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import ANSWER_AT, Bench, guest, request, settled, view
from tests.wasm.table_guests import table_guest

PAGES = 16  # of 64 KiB in `max_memory_bytes`, where a test does not say otherwise
WORN_AT = 12  # three quarters of that
MANY = view(*[True] * 9)
DIGIT_AT = ANSWER_AT + len('{"selected_worker": ')
GROW = "(drop (memory.grow (i32.const 1)))"
# Which decision of its instance it is, is what a guest chooses.
COUNT = f"""
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (i32.store8 (i32.const {DIGIT_AT}) (i32.add (i32.const 48) (global.get $calls)))
  (i32.const {ANSWER_AT})"""
COUNTED = '{"selected_worker": 0, "state": {"seen": 1}}'


def memory(pages: int) -> str:
    return f'(memory (export "memory") {pages})'


def choose(policy: WasmPolicy) -> int | PendingChoice | None:
    return policy.choose(MANY, request())


async def chosen(policy: WasmPolicy, count: int) -> list[object]:
    return [await settled(choose(policy)) for _ in range(count)]


@pytest.fixture(params=["inline", "aside"])
def aside(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "aside")


async def test_one_that_has_grown_is_replaced_and_its_state_kept(bench: Bench, aside: bool) -> None:
    """It has 8 pages and grows by one each time: with the fourth decision it has reached 12."""
    policy = await bench.policy(guest(COUNTED, memory=memory(8), select_worker=GROW + COUNT))
    policy.keep_aside(aside)
    before = policy.current._guest.instances
    assert await chosen(policy, 10) == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert policy.current._guest.instances == before + 2
    assert policy.current._guest.contract.state.values == {"seen": 1}
    assert not policy.failures
    assert policy.current.decisions == 10


async def test_the_one_before_is_freed(bench: Bench, no_collector: None) -> None:
    policy = await bench.policy(guest(memory=memory(11), select_worker=GROW + COUNT))
    instance = policy.current._guest.instance
    assert instance is not None
    kept = weakref.ref(instance)
    assert instance.memory_bytes == 11 * 65_536
    del instance
    assert choose(policy) == 1
    assert kept() is None
    assert policy.current.status().memory_bytes == 0


@pytest.mark.parametrize("pages", [1, WORN_AT - 1, WORN_AT, PAGES])
async def test_one_that_does_not_grow_is_kept_however_it_starts(
    bench: Bench, aside: bool, pages: int
) -> None:
    policy = await bench.policy(guest(memory=memory(pages), select_worker=COUNT))
    policy.keep_aside(aside)
    assert await chosen(policy, 8) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_one_that_starts_above_is_replaced_once_it_grows(bench: Bench) -> None:
    policy = await bench.policy(guest(memory=memory(WORN_AT + 1), select_worker=GROW + COUNT))
    assert await chosen(policy, 3) == [1, 1, 1]


async def test_one_that_grows_while_it_starts_is_measured_from_there(bench: Bench) -> None:
    grows = f"(drop (memory.grow (i32.const {WORN_AT})))"
    policy = await bench.policy(guest(init=grows, select_worker=COUNT))
    assert await chosen(policy, 3) == [1, 2, 3]


async def test_what_is_too_much_depends_on_the_limit(bench: Bench) -> None:
    wasm = guest(memory=memory(WORN_AT - 1), select_worker=GROW + COUNT)
    policy = await bench.policy(wasm, max_memory_bytes=MAX_MEMORY_BYTES)
    assert await chosen(policy, 8) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_one_that_cannot_grow_any_more_is_not_reached(bench: Bench) -> None:
    """A plugin that leaks decides all the same, where it would run out of memory."""
    leaks = "(if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))"
    policy = await bench.policy(guest(select_worker=leaks + COUNT, memory=memory(9)))
    await chosen(policy, 50)
    assert not policy.failures
    assert policy.current.quarantine.asked


async def test_memory_that_grew_while_it_learnt_counts_too(bench: Bench) -> None:
    told = f'(func (export "on_request_complete") (param $ptr i32) (param $len i32) {GROW})'
    outcome = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)
    policy = await bench.policy(guest(memory=memory(8), select_worker=COUNT, extra=told))
    seen: list[object] = []
    for _ in range(6):
        seen.append(choose(policy))
        policy.on_request_complete(outcome)
    assert seen == [1, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("isolation", ["shared", "per_call"])
async def test_a_table_plugin_is_replaced_too_and_is_told_all(
    bench: Bench, aside: bool, isolation: str
) -> None:
    """It grows by its whole page each time, and traps where a record was not written."""
    wasm = table_guest(
        f"""{GROW}
          (if (i32.ne (i32.load offset=68 (local.get $table)) (i32.const 1)) (then (unreachable)))
          (i32.load offset=72 (local.get $table))""",
        memory=memory(10),
    )
    policy = await bench.policy(wasm, isolation=isolation)
    policy.keep_aside(aside)
    before = policy.current._guest.instances
    workers = view(True, True, True)
    for load in (0, 1, 2, 0, 1, 2):
        workers[1].load = load
        workers[1].touched()
        assert await settled(policy.choose(workers, request())) == load
    assert not policy.failures
    assert policy.current._guest.instances - before == (6 if isolation == "per_call" else 2)


async def test_many_plugins_that_leak_do_so_each_for_itself(bench: Bench) -> None:
    leaks = guest(memory=memory(8), select_worker=GROW + COUNT)
    policies = [await bench.policy(leaks, name) for name in ("one", "two")]
    policies[1].keep_aside(True)
    results = await asyncio.gather(*(chosen(policy, 6) for policy in policies))
    assert results == [[1, 2, 3, 4, 1, 2]] * 2
