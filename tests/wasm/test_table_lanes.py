"""Where a table plugin decides that takes long without a loop."""

from sgl_router.core.policy import PendingChoice
from tests.wasm.guests import Bench, request, settled, view
from tests.wasm.table_guests import table_guest

PAGES = 1_200
FILLS = f"""
  (memory.fill (i32.const 131072) (i32.const 1) (i32.const {(PAGES - 3) * 65_536}))
  (i32.const 1)"""


async def test_a_guest_that_fills_its_memory_and_returns_leaves_the_event_loop(
    bench: Bench,
) -> None:
    """Milliseconds in one instruction, after which nothing of the guest's looks at the time."""
    wasm = table_guest(FILLS, memory=f'(memory (export "memory") {PAGES})')
    policy = await bench.policy(wasm, max_memory_bytes=100 * 2**20, inline_budget_ms=1)
    choice = policy.choose(view(True, True), request())
    assert isinstance(choice, PendingChoice)
    assert await settled(choice) == 1
    assert policy.current.offloaded
    assert not policy.failures
