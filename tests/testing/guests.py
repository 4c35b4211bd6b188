"""Plugins that keep the contract, each part of which can be made not to.

`sound()` picks the first healthy worker of the JSON that it is given; `sound_table()` does so in
the table ABI.
"""

from sgl_router.testing.case import MAX_I32
from tests.wasm.guests import HEAP_AT, RELEASE, guest, text_at
from tests.wasm.table_guests import table_guest

NULL_AT, OUT_AT, HEALTHY_AT, NEEDLE_AT = 1024, 4096, 2048, 2304
_HEALTHY = '"healthy":'
_BEFORE = '{"selected_worker":'
_DIGITS_AT = OUT_AT + len(_BEFORE)

_FUNCTIONS = f"""
  (func $at (param $a i32) (param $b i32) (param $size i32) (result i32)
    (block $no (loop $next
      (if (i32.eqz (local.get $size)) (then (return (i32.const 1))))
      (br_if $no (i32.ne (i32.load8_u (local.get $a)) (i32.load8_u (local.get $b))))
      (local.set $a (i32.add (local.get $a) (i32.const 1)))
      (local.set $b (i32.add (local.get $b) (i32.const 1)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br $next)))
    (i32.const 0))
  (func $find (param $from i32) (param $end i32) (param $what i32) (param $size i32) (result i32)
    (block $no (loop $next
      (br_if $no (i32.gt_u (i32.add (local.get $from) (local.get $size)) (local.get $end)))
      (if (call $at (local.get $from) (local.get $what) (local.get $size))
        (then (return (local.get $from))))
      (local.set $from (i32.add (local.get $from) (i32.const 1)))
      (br $next)))
    (i32.const 0))
  (func $first (param $from i32) (param $end i32) (result i32)
    (local $index i32)
    (block $none (loop $next
      (local.set $from (call $find (local.get $from) (local.get $end)
        (i32.const {HEALTHY_AT}) (i32.const {len(_HEALTHY)})))
      (br_if $none (i32.eqz (local.get $from)))
      (local.set $from (i32.add (local.get $from) (i32.const {len(_HEALTHY)})))
      (if (i32.eq (i32.load8_u (local.get $from)) (i32.const {ord("t")}))
        (then (return (local.get $index))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br $next)))
    (i32.const -1))
  (func $put (param $place i32) (param $value i32) (param $always i32)
    (i32.store8 (i32.add (i32.const {_DIGITS_AT}) (local.get $place))
      (select (i32.add (i32.rem_u (local.get $value) (i32.const 10)) (i32.const 48)) (i32.const 32)
        (i32.or (local.get $value) (local.get $always)))))
  (func $picked (param $index i32) (result i32)
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (return (i32.const {NULL_AT}))))
    (call $put (i32.const 0) (i32.div_u (local.get $index) (i32.const 100)) (i32.const 0))
    (call $put (i32.const 1) (i32.div_u (local.get $index) (i32.const 10)) (i32.const 0))
    (call $put (i32.const 2) (local.get $index) (i32.const 1))
    (i32.const {OUT_AT}))"""

PICK = """
  (call $picked (call $first (local.get $ptr) (i32.add (local.get $ptr) (local.get $len))))"""

GROW = """
  (if (i32.gt_u (i32.add (global.get $heap) (local.get $size))
      (i32.mul (memory.size) (i32.const 65536)))
    (then (drop (memory.grow (i32.add (i32.const 1)
      (i32.div_u (local.get $size) (i32.const 65536)))))))
  (call $bump (local.get $size))"""
"""An `alloc` that takes more memory where there is none left."""

KEEP = ""
"""A `dealloc` that frees nothing."""


def holds(needle_size: int) -> str:
    """Whether the input holds the needle."""
    return f"""(call $find (local.get $ptr) (i32.add (local.get $ptr) (local.get $len))
      (i32.const {NEEDLE_AT}) (i32.const {needle_size}))"""


def sound(
    first: str = "",
    *,
    needle: str = "",
    state: str = "null",
    init: str = "",
    alloc: str = "(call $bump (local.get $size))",
    dealloc: str = RELEASE,
    extra: str = "",
    pages: int = 8,
    manifest: bytes | None = None,
) -> bytes:
    """A plugin of the JSON ABI.

    Args:
        first: what is done before it decides.
        needle: a text in its memory, for `holds`.
        state: what it returns as its state.
    """
    assert len(needle.encode()) < NULL_AT, "it has a place of its own"
    data = (
        text_at(HEALTHY_AT, _HEALTHY)
        + text_at(NEEDLE_AT, needle)
        + text_at(OUT_AT, f'{_BEFORE}   ,"state":{state}}}')
    )
    return guest(
        '{"selected_worker":null}',
        select_worker=first + PICK,
        init=init,
        alloc=alloc,
        dealloc=dealloc,
        memory=f'(memory (export "memory") {pages})',
        extra=_FUNCTIONS + data + extra,
        sections=None if manifest is None else {"sgl-router.manifest": manifest},
    )


def traps_on(needle: str) -> bytes:
    """Fails where its input holds this text."""
    size = len(needle.encode())
    return sound(f"(if {holds(size)} (then unreachable))", needle=needle)


def sound_table(first: str = "", *, stale: bool = False) -> bytes:
    """A plugin of the table ABI; `stale`: it takes the number of workers for what it was before."""
    last = "(local.get $stale)" if stale else "(i32.const -1)"
    return table_guest(
        f"""
    {first}
    (call $pick (local.get $table) (local.get $count))""",
        memory='(memory (export "memory") 4)',
        extra=f"""
  (global $before (mut i32) (i32.const 0))
  (func $pick (param $table i32) (param $count i32) (result i32)
    (local $index i32) (local $stale i32)
    (local.set $stale (i32.sub (global.get $before) (i32.const 1)))
    (global.set $before (local.get $count))
    (if (i32.ge_s {last} (local.get $count)) (then (return {last})))
    (block $none (loop $next
      (br_if $none (i32.ge_u (local.get $index) (local.get $count)))
      (if (i32.and (i32.const 1) (i32.load offset=4
          (i32.add (local.get $table) (i32.shl (local.get $index) (i32.const 6)))))
        (then (return (local.get $index))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br $next)))
    (i32.const -1))""",
    )


TIRES = f"""
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (if (i32.gt_u (global.get $calls) (i32.const 6)) (then (return (i32.const {NULL_AT}))))"""
"""Takes six decisions and no more, with every instance."""

SHORT_INPUTS_TRAP = "(if (i32.lt_u (local.get $len) (i32.const 50)) (then unreachable))"

MUST_KNOW_ITS_STATE = f"""
  (if (i32.and (i32.eqz (global.get $calls)) (i32.ne (i32.const 0) {holds(len('"state":{"n"'))}))
    (then unreachable))
  (global.set $calls (i32.const 1))"""
"""Fails where an instance that has decided nothing is given a state."""

RETRIES_ANYWHERE = f"""
  (if (i32.eqz {holds(len('"attempt":0'))}) (then (return (call $picked (i32.const 0)))))"""

NO_NULL_OUTCOMES = f"""
  (func (export "on_request_complete") (param $ptr i32) (param $len i32)
    (if {holds(len('"status":null'))} (then unreachable)))"""

LISTENS = '(func (export "on_request_complete") (param $ptr i32) (param $len i32))'

HOSTILE: dict[str, tuple[bytes, dict[str, object]]] = {
    "loads": (sound(init="unreachable"), {}),
    "decides": (traps_on("10.0.2.12:"), {}),
    "healthy_only": (sound(RETRIES_ANYWHERE, needle='"attempt":0'), {}),
    "pool_changes": (sound_table(stale=True), {}),
    "deterministic": (sound(TIRES), {}),
    "nulls": (traps_on('"model":null'), {}),
    "unicode": (traps_on("مرحبا"), {}),
    "long_text": (traps_on("a" * 16), {}),
    "extremes": (traps_on(f'"load":{MAX_I32}'), {}),
    "unknown_keys": (traps_on("sgl_unknown"), {}),
    "malformed_input": (sound(SHORT_INPUTS_TRAP), {}),
    "empty_config": (traps_on('"config":{}'), {"config": {"a": 1}}),
    "foreign_state": (traps_on("sgl_foreign"), {}),
    "memory": (sound(alloc=GROW, dealloc=KEEP), {"max_memory_bytes": 64 * 2**20}),
    "frees_results": (sound(dealloc="unreachable"), {}),
    "outcomes": (sound(extra=NO_NULL_OUTCOMES, needle='"status":null'), {}),
    "after_failure": (sound(MUST_KNOW_ITS_STATE, needle='"state":{"n"', state='{"n":1}'), {}),
}
"""A check -> a plugin that fails it and no other, and its settings."""

assert OUT_AT + 64 < HEAP_AT, "what it answers stands below the heap"
