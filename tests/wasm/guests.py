"""Guests for the tests, written as WebAssembly text.

`guest()` composes a whole plugin of the JSON ABI, version 1, from parts: it answers a fixed JSON
text, and each function's body can be replaced. Memory: the answer stands at `ANSWER_AT`, bodies
may use what is below it, `$hex` writes at `HEX_AT`, and the heap begins at `HEAP_AT`.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from sgl_router.core.policy import Choice, PendingChoice
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.policies import BUILTIN_POLICIES, PolicyFactory, WasmPolicyConfig
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.module import read_module
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.runtime import WasmRuntime
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.wasi_output import GuestOutput

BUILTIN_NAMES = tuple(policy.name for policy in BUILTIN_POLICIES)
ANSWER_AT = 1024
HEX_AT = 24 * 1024
HEAP_AT = 32 * 1024
ONE_PAGE = '(memory (export "memory") 1)'
FIRST = '{"selected_worker": 0}'
LOOP = "(loop $l (br $l)) (unreachable)"

# Takes back what was allocated last, which is all that a decision needs.
RELEASE = f"""
  (if (i32.ge_u (local.get $ptr) (i32.const {HEAP_AT}))
    (then (global.set $heap (local.get $ptr))))"""
_BUMP = """
  (func $bump (param $size i32) (result i32)
    (local $at i32) (local.set $at (global.get $heap))
    (if (i32.gt_u (i32.add (local.get $at) (local.get $size))
        (i32.mul (memory.size) (i32.const 65536)))
      (then (return (i32.const 0))))
    (global.set $heap (i32.add (local.get $at) (local.get $size)))
    (local.get $at))"""
_HEX = f"""
  (func $digit (param $at i32) (param $n i32)
    (i32.store8 (local.get $at) (i32.add (local.get $n)
      (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $n) (i32.const 10))))))
  (func $hex (param $from i32) (param $size i32) (result i32)
    (local $i i32) (local $to i32) (local $byte i32)
    (block $done (loop $next
      (local.set $to (i32.add (i32.const {HEX_AT}) (i32.shl (local.get $i) (i32.const 1))))
      (i32.store8 (local.get $to) (i32.const 0))
      (br_if $done (i32.ge_u (local.get $i) (local.get $size)))
      (local.set $byte (i32.load8_u (i32.add (local.get $from) (local.get $i))))
      (call $digit (local.get $to) (i32.shr_u (local.get $byte) (i32.const 4)))
      (call $digit (i32.add (local.get $to) (i32.const 1))
        (i32.and (local.get $byte) (i32.const 15)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.const {HEX_AT}))"""


def guest(
    answer: str | bytes = FIRST,
    *,
    select_worker: str = f"(i32.const {ANSWER_AT})",
    alloc: str = "(call $bump (local.get $size))",
    dealloc: str = RELEASE,
    init: str = "",
    imports: str = "",
    memory: str = ONE_PAGE,
    extra: str = "",
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """A plugin; each keyword replaces a part.

    Bodies see `$ptr` and `$len` (`select_worker`), `$size` (`alloc`), `$ptr` and `$size`
    (`dealloc`), the heap's end as the global `$heap`, `$calls` (see `second_call`), and `$hex`,
    which turns memory into a result of hexadecimal digits. `extra` is fields of the module:
    functions, globals, data.
    """
    text = f"""(module
  {imports}
  {memory}
  (global $heap (mut i32) (i32.const {HEAP_AT}))
  (global $calls (mut i32) (i32.const 0))
  {extra}
  {_BUMP}
  {_HEX}
  (func (export "init") {init})
  (func (export "alloc") (param $size i32) (result i32) {alloc})
  (func (export "dealloc") (param $ptr i32) (param $size i32) {dealloc})
  (func (export "select_worker") (param $ptr i32) (param $len i32) (result i32) {select_worker})
  {text_at(ANSWER_AT, answer)})"""
    return assemble(text) + b"".join(custom(name, c) for name, c in (sections or {}).items())


def second_call(body: str) -> str:
    """A `select_worker` that does as usual, but in an instance's second call what `body` says."""
    return f"""
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (if (i32.eq (global.get $calls) (i32.const 2)) (then {body}))
      (i32.const {ANSWER_AT})"""


def assemble(text: str) -> bytes:
    """The module of a text."""
    return bytes(wasmtime.wat2wasm(text))


def text_at(at: int, text: str | bytes) -> str:
    """A data segment that puts `text` at `at`."""
    data = text.encode() if isinstance(text, str) else text
    escaped = "".join(f"\\{byte:02x}" for byte in data)
    return f'(data (i32.const {at}) "{escaped}")'


def custom(name: str, content: bytes) -> bytes:
    """A custom section."""
    body = leb128(len(name)) + name.encode() + content
    return b"\0" + leb128(len(body)) + body


def leb128(value: int) -> bytes:
    """An unsigned number as WebAssembly writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def wasi(name: str, params: str, result: str = "(result i32)") -> str:
    """The import of a WASI function, as `$name`."""
    return f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) {result}))'


PRINT = wasi("fd_write", "i32 i32 i32 i32")
PRINTS = "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"
"""Prints what the address and the length at 0 say: nothing, as long as nothing stands there."""

LOOPS_HERE = f"(if {PRINTS.removeprefix('(drop ').removesuffix(')')} (then {LOOP}))"
"""Loops for ever where a `Gate` refuses what it prints."""

SPIN = """(func $spin (local $n i32) (local.set $n (i32.const 20_000_000))
  (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))"""
"""Takes a few milliseconds."""

LONG_ID = "r" * 1000
"""A request with it is what `on_long` knows: the inputs of all others here are shorter."""


def on_long(body: str, usual: str = f"(i32.const {ANSWER_AT})") -> str:
    """A `select_worker` that does as usual, but for a long request what `body` says."""
    return f"(if (i32.gt_u (local.get $len) (i32.const 1200)) (then {body})) {usual}"


class Gate:
    """Where guests that print are held; on the thread that made it, printing fails instead.

    Attributes:
        entered: set when a guest is held.
        threads: those on which guests have printed, in this order.
        open: lets them go on.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.threads: list[threading.Thread] = []
        self._maker = threading.current_thread()

    def write(self, *_: object) -> None:
        """In the place of `GuestOutput.write`."""
        thread = threading.current_thread()
        self.threads.append(thread)
        if thread is self._maker:
            raise OSError("a guest prints here")
        self.entered.set()
        assert self.open.wait(60), "the test opens it"


def until(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold within a bounded number of looks."""
    pause = threading.Event()
    return any(holds() or pause.wait(0.01) for _ in range(2000))


def hold_prints(patch: pytest.MonkeyPatch) -> Gate:
    """A gate for all guests."""
    gate = Gate()
    patch.setattr(GuestOutput, "write", gate.write)
    return gate


@dataclass(frozen=True)
class Bench:
    """Writes modules to files and loads them."""

    folder: Path
    runtime: WasmRuntime
    factory: PolicyFactory

    def config(self, wasm: bytes, name: str = "plugin", **settings: Any) -> WasmPolicyConfig:
        """The configuration of a module, which it writes to a file."""
        settings.setdefault("max_execution_time_ms", 5_000)  # for machines under load
        settings.setdefault("inline_budget_ms", 100)
        path = self.folder / f"{name}.wasm"
        path.write_bytes(wasm)
        return WasmPolicyConfig(module_path=str(path), name=name, **settings)

    def instance(self, wasm: bytes, **settings: Any) -> Instance:
        """A bare instance, as a policy would make it."""
        config = self.config(wasm, **settings)
        sandbox = Sandbox(read_module(config, BUILTIN_NAMES), config, self.runtime)
        return Instance(sandbox, config.max_execution_time_ms)

    async def policy(self, wasm: bytes, name: str = "plugin", **settings: Any) -> WasmPolicy:
        """The policy of a module, loaded as a user would load it."""
        await self.factory.load_wasm_plugin(self.config(wasm, name, **settings))
        policy = self.factory.create_by_name(name)
        assert isinstance(policy, WasmPolicy)
        return policy


def awaited(choice: int | PendingChoice | None) -> asyncio.Future[Choice]:
    """A choice, once it has been made; from this moment on it is waited for, for a minute."""
    made: asyncio.Future[Choice] = asyncio.get_running_loop().create_future()
    if isinstance(choice, PendingChoice):
        choice.then = made.set_result
    else:
        made.set_result(choice)
    return asyncio.ensure_future(asyncio.wait_for(made, 60))


async def settled(choice: int | PendingChoice | None) -> Choice:
    """A choice, once it has been made."""
    return await awaited(choice)


def view(*healthy: bool) -> WorkerView:
    """A pool whose workers' health is given."""
    registry = WorkerRegistry()
    for port, up in enumerate(healthy, start=30_000):
        registry.add(Worker(f"http://10.0.0.1:{port}", Health.UP if up else Health.DOWN))
    return registry.view()


def request(
    body: bytes = b"", *, entropy: int = 0, now_ms: int = 0, id: str = "req-1"
) -> RequestView:
    """A request as the dispatcher hands it to a policy."""
    made = RequestView(id, "/v1/chat/completions", body)
    made.entropy, made.now_ms = entropy, now_ms
    return made
