"""A process that runs the deadly guests, to be watched: `python -m tests.hostile.child HANDLER`.

HANDLER says when `faulthandler`, which installs handlers of signals for the whole process, is
enabled: `never`, `before` the engine is made, or `after` it. `dies` shows what the watching is
worth: the process ends itself by such a signal.

It prints a line of JSON for each case: its name, and `trap` or what is wrong.
"""

import asyncio
import faulthandler
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from sgl_router.policies import PolicyFactory
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.hostile.deadly import AT_A_DECISION, AT_LOAD, SETTINGS
from tests.hostile.outcomes import HOSTILE, refused, stand
from tests.wasm.guests import Bench


async def decides(bench: Bench, wasm: bytes) -> None:
    """The guest turns in a decision: the standard outcome."""
    seat = await stand(bench, wasm, **SETTINGS)
    seat.fails_alone("trap")
    bench.factory.unload_wasm_plugin(HOSTILE)


async def loads(bench: Bench, wasm: bytes) -> None:
    """The guest turns while it is loaded."""
    await refused(bench, wasm, "trap", **SETTINGS)


async def verdict(
    case: Callable[[Bench, bytes], Awaitable[None]], bench: Bench, wasm: bytes
) -> str:
    try:
        await case(bench, wasm)
    except Exception as error:  # noqa: BLE001 (it is the verdict, and the next case follows)
        return f"{type(error).__name__}: {error}"
    return "trap"


async def run(handler: str, folder: Path) -> None:
    """All cases, one after the other, in one router."""
    options = RuntimeOptions(in_child=False)
    gc.disable()  # what is freed is freed by its last reference
    bench = Bench(folder, WasmRuntime(options), PolicyFactory(runtime=options))
    if handler == "after":
        faulthandler.enable()
    if handler == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    for cases, case in ((AT_A_DECISION, decides), (AT_LOAD, loads)):
        for name, wasm in cases.items():
            told = {"case": name, "verdict": await verdict(case, bench, wasm)}
            print(json.dumps(told), flush=True)
    bench.factory.close()
    bench.runtime.close()


if __name__ == "__main__":
    if sys.argv[1] == "before":
        faulthandler.enable()
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(run(sys.argv[1], Path(made)))
