"""A process that runs deadly components: `python -m tests.hostile.component_child HANDLER`.

HANDLER says when `faulthandler` is enabled: `before` the engine is made, or `after` it. Each turns
in a decision on the event loop, and in one on a thread of its own; of each a line of JSON is
printed.
"""

import asyncio
import faulthandler
import json
import sys
import tempfile
from pathlib import Path

from sgl_router.errors import DecisionError
from sgl_router.policies import PolicyFactory
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.hostile.component_modules import turning
from tests.hostile.modules import LONG, SHORT
from tests.wasm.guests import Bench, request, settled, view

_MANY = 300
_LOCALS = "".join(f"(local $l{i} i64)" for i in range(_MANY))
_SET = "".join(f"(local.set $l{i} (i64.extend_i32_u (local.get $n)))" for i in range(_MANY))
_SUM = "".join(f"(i64.add (local.get $l{i}) " for i in range(50)) + "(i64.const 1)" + ")" * 50
DEEP = """(func $deep (param i32) (result i32)
  (i32.add (call $deep (local.get 0)) (i32.const 1)))"""
WIDE = f"""(func $wide (param $n i32) (result i64) {_LOCALS} {_SET}
  (i64.add (call $wide (i32.add (local.get $n) (i32.const 1))) {_SUM}))"""

CASES = {
    "recursion": turning("(drop (call $deep (i32.const 0)))", extra=DEEP),
    "recursion of wide frames": turning("(drop (call $wide (i32.const 0)))", extra=WIDE),
    "load far out": turning("(drop (i64.load offset=0xffffffff (i32.const -1)))"),
    "division by zero": turning("(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
}


async def kind_of(bench: Bench, name: str, lane: str) -> str:
    policy = await bench.policy(
        CASES[name], f"p{len(bench.factory.list_wasm_plugins())}", lane=lane
    )
    workers = view(True, True)
    for body in (SHORT, LONG, SHORT):
        try:
            choice = await settled(policy.choose(workers, request(body)))
        except DecisionError as error:
            choice = error
        if body is LONG:
            return choice.kind if isinstance(choice, DecisionError) else "it decided"
        if choice != 0:
            return f"{choice}"
    return "it was not asked"


async def main(handler: str, folder: Path) -> None:
    options = RuntimeOptions(in_child=False)
    bench = Bench(folder, WasmRuntime(options), PolicyFactory(runtime=options))
    if handler == "after":
        faulthandler.enable()
    for name in CASES:
        for lane in ("inline", "offload"):
            told = {"case": name, "lane": lane, "kind": await kind_of(bench, name, lane)}
            print(json.dumps(told), flush=True)
    bench.factory.close()
    bench.runtime.close()


if __name__ == "__main__":
    if sys.argv[1] == "before":
        faulthandler.enable()
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(sys.argv[1], Path(made)))
