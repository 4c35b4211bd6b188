"""Plugins of the benchmarks' own, as WebAssembly text, and a router in this process to ask them.

They do what no plugin that ships does: choose one worker always, spin, trap when they are told to.
Their manifest says that they need nothing and do not read the body, as the shipped ones' do.
"""

import asyncio
import json
import os
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import compress
from pathlib import Path

import wasmtime

from sgl_router.config import RouterConfig
from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.server import RouterServer
from sgl_router.server.process import tune_interpreter
from sgl_router.wasm.engine import make_engine
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.offload import NICENESS

TRAPPING_ENTROPY = 9
"""With it a plugin of `trapping_json` or `trapping_table` traps."""

HEARTBEAT_SECS = 0.005

_TRIES, _TURNS_TRIED = 5, 200_000_000
_ANSWER_AT, _CLOCK_AT, _HEAP_AT = 1024, 2048, 4096
_MAX_WORKERS_TRIED = 2
"""A plugin is tried out with two workers when it is loaded, and one that spins then is refused."""

# Takes back what was allocated last, which is all that a decision of the JSON ABI needs. The
# buffers of the table ABI are kept.
_HEAP = f"""
  (global $heap (mut i32) (i32.const {_HEAP_AT}))
  (func (export "init"))
  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32) (local.set $at (global.get $heap))
    (global.set $heap (i32.add (local.get $at)
      (i32.and (i32.add (local.get $size) (i32.const 15)) (i32.const -16))))
    (local.get $at))
  (func (export "dealloc") (param $ptr i32) (param $size i32)
    (if (i32.ge_u (local.get $ptr) (i32.const {_HEAP_AT}))
      (then (global.set $heap (local.get $ptr)))))"""


# ---- modules


def constant_json(index: int) -> bytes:
    """A plugin of the JSON ABI that always chooses the worker of that index."""
    return _json_plugin(index, "")


def trapping_json(data_bytes: int, pages: int) -> bytes:
    """A plugin of the JSON ABI that chooses worker 0, and traps with `TRAPPING_ENTROPY`.

    Args:
        data_bytes: of constants in its module, which each new instance has in its memory.
        pages: of 64 KiB, of its memory; above its heap the constants stand.
    """
    last_digit = "(i32.load8_u (i32.add (local.get $ptr) (i32.sub (local.get $len) (i32.const 2))))"
    trap = f"(if (i32.eq {last_digit} (i32.const {ord(str(TRAPPING_ENTROPY))})) (then unreachable))"
    return _json_plugin(0, trap, _constants(data_bytes, pages), pages)


def trapping_table(data_bytes: int, pages: int) -> bytes:
    """The same of the table ABI."""
    entropy = "(i64.load (local.get $request))"
    trap = f"(if (i64.eq {entropy} (i64.const {TRAPPING_ENTROPY})) (then unreachable))"
    return _table_plugin(f"{trap} (i32.const 0)", _constants(data_bytes, pages), pages)


def spinning(turns: int | None) -> bytes:
    """A plugin of the table ABI that goes round a loop so often, None: for ever; then worker 0."""
    loop = "(loop $l (br $l)) (unreachable)" if turns is None else _loop(f"(i64.const {turns})")
    return _table_plugin(f"(local $left i64) {_unless_tried_out(loop)} (i32.const 0)")


def calling() -> bytes:
    """A plugin of the table ABI that asks the host for the time, for ever.

    Each of these calls takes the GIL. It needs the grant `wasi:clocks`.
    """
    call = f"(drop (call $time (i32.const 0) (i64.const 1) (i32.const {_CLOCK_AT})))"
    imports = (
        '(import "wasi_snapshot_preview1" "clock_time_get" '
        "(func $time (param i32 i64 i32) (result i32)))"
    )
    spin = _unless_tried_out(f"(loop $l {call} (br $l)) (unreachable)")
    return _table_plugin(f"{spin} (i32.const 0)", imports=imports)


def turns_a_second() -> list[float]:
    """How often `spinning` goes round in a second, tried several times; other threads go on.

    To be called on a thread of its own, which gets a plugin's niceness for good.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    engine = make_engine()
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1 << 40)
    text = f'(module (func (export "spin") (param $left i64) {_loop("(local.get $left)")}))'
    spin = wasmtime.Instance(store, wasmtime.Module(engine, text), []).exports(store)["spin"]
    assert isinstance(spin, wasmtime.Func), "it stands in the text above"
    rates = []
    for _ in range(_TRIES):
        started = time.monotonic()
        spin(store, _TURNS_TRIED)
        rates.append(_TURNS_TRIED / (time.monotonic() - started))
    return rates


def _json_plugin(index: int, body: str, extra: str = "", pages: int = 1) -> bytes:
    """Of the JSON ABI; `body` sees `$ptr` and `$len`."""
    answer = f'{{\\"selected_worker\\":{index}}}\\00'
    return _assembled(
        f"""(module (memory (export "memory") {pages}) {_HEAP} {extra}
  (func (export "select_worker") (param $ptr i32) (param $len i32) (result i32)
    {body} (i32.const {_ANSWER_AT}))
  (data (i32.const {_ANSWER_AT}) "{answer}"))"""
    )


def _table_plugin(body: str, extra: str = "", pages: int = 1, *, imports: str = "") -> bytes:
    """Of the table ABI; `body` sees `$table`, `$count` and `$request`."""
    return _assembled(
        f"""(module {imports} (memory (export "memory") {pages}) {_HEAP} {extra}
  (func (export "sgl_table_v1_select") (param $table i32) (param $count i32) (param $request i32)
    (result i32) {body}))"""
    )


def _loop(turns: str) -> str:
    """Counts the local `$left` down from what `turns` is."""
    return f"""(local.set $left {turns})
      (loop $l (br_if $l (i64.ne (i64.const 0)
        (local.tee $left (i64.sub (local.get $left) (i64.const 1))))))"""


def _unless_tried_out(body: str) -> str:
    workers = f"(i32.gt_u (local.get $count) (i32.const {_MAX_WORKERS_TRIED}))"
    return f"(if {workers} (then {body}))"


def _constants(size: int, pages: int) -> str:
    at = pages * 65_536 - size
    assert at > 65_536, "the heap has a page at least"
    return f'(data (i32.const {at}) "{"x" * size}")'


def _assembled(text: str) -> bytes:
    """The module, with its manifest in a custom section."""
    manifest = json.dumps({"abi": 1, "needs": [], "reads_body": False}).encode("ascii")
    name = SECTION.encode("ascii")
    content = bytes([len(name)]) + name + manifest
    assert len(name) < 128 and len(content) < 128, "each length is one byte of LEB128"
    return bytes(wasmtime.wat2wasm(text)) + b"\0" + bytes([len(content)]) + content


# ---- a router


@asynccontextmanager
async def router_here(
    folder: Path,
    urls: Sequence[str],
    on_complete: Callable[[Decision, Outcome], None] | None = None,
) -> AsyncIterator[RouterServer]:
    """A router in this process, which decides by `round_robin` until it is told otherwise.

    Args:
        folder: for plugins that are sent to it, and for what they are compiled to.
        urls: of its workers.
        on_complete: see `RouterServer`.
    """
    os.environ["CACHE_DIRECTORY"] = str(folder / "cache")
    config = RouterConfig(
        host="127.0.0.1",
        port=0,
        worker_urls=tuple(urls),
        policy="round_robin",
        disable_health_check=True,
        plugin_store=str(folder / "store"),
    )
    server = RouterServer(config, on_complete=on_complete)
    await server.start()
    try:
        tune_interpreter()
        yield server
    finally:
        await server.stop(1)


class Heartbeat:
    """Notes by how much the event loop is late, every five milliseconds; costs 1 % of a CPU."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._times: array[int] = array("q")
        self._late: array[int] = array("q")
        self._beat(time.monotonic_ns())

    def most_ms(self, begun_ns: int, ended_ns: int) -> float:
        """The most between two moments of the monotonic clock."""
        inside = (begun_ns <= at < ended_ns for at in self._times)
        return max(compress(self._late, inside), default=0) / 1e6

    def forget(self) -> None:
        """What was before is not asked for any more."""
        del self._times[:], self._late[:]

    def _beat(self, due: int) -> None:
        now = time.monotonic_ns()
        self._times.append(now)
        self._late.append(max(0, now - due))
        self._loop.call_later(HEARTBEAT_SECS, self._beat, now + int(HEARTBEAT_SECS * 1e9))
