"""Guests that could end the process which runs them: endless recursion and bad pointers.

With handlers of signals for traps, as engines have them by default, each of the bad pointers is a
SIGSEGV first, and whoever installs his own handler after the engine's turns it into a crash.
"""

from typing import Any

from tests.hostile.modules import GRANTED, turning
from tests.wasm.guests import guest, wasi

_MANY = 300
_LOCALS = "".join(f"(local $l{number} i64)" for number in range(_MANY))
_TOUCHED = "".join(
    f"(local.set $l{number} (i64.add (local.get $l{number}) (i64.extend_i32_u (local.get $n))))"
    for number in range(_MANY)
)
_SUM = (
    "".join(f"(i64.add (local.get $l{number}) " for number in range(50))
    + "(i64.const 1)"
    + ")" * 50
)
DEEP = """
  (func $deep (param $n i32) (result i32)
    (i32.add (call $deep (local.get $n)) (i32.const 1)))"""
WIDE = f"""(func $wide (param $n i32) (result i64) {_LOCALS} {_TOUCHED}
  (i64.add (call $wide (i32.add (local.get $n) (i32.const 1))) {_SUM}))"""
MUTUAL = """
  (func $even (param $n i32) (result i32)
    (i32.xor (call $odd (local.get $n)) (i32.const 1)))
  (func $odd (param $n i32) (result i32)
    (i32.xor (call $even (local.get $n)) (i32.const 3)))"""
INDIRECT = """
  (type $t (func (param i32) (result i32)))
  (table 1 funcref) (elem (i32.const 0) $through)
  (func $through (type $t) (i32.add (i32.const 1)
    (call_indirect (type $t) (local.get 0) (i32.const 0))))"""
HOSTED = """(func $hosted (result i32)
  (drop (call $random_get (i32.const 0) (i32.const 8))) (i32.add (call $hosted) (i32.const 1)))"""
ALL = f"{DEEP} {WIDE} {MUTUAL} {INDIRECT} {HOSTED} (type $nothing (func))"
RANDOM = wasi("random_get", "i32 i32")


def _turning(**bodies: str) -> bytes:
    return turning(extra=ALL, imports=RANDOM, **bodies)


def _selecting(body: str) -> bytes:
    return _turning(select_worker=body)


_DEEP = "(drop (call $deep (i32.const 0)))"

AT_A_DECISION: dict[str, bytes] = {
    "8-recursion": _selecting(_DEEP),
    "8-recursion-of-wide-frames": _selecting("(drop (call $wide (i32.const 0)))"),
    "8-mutual-recursion": _selecting("(drop (call $even (i32.const 0)))"),
    "8-recursion-through-the-table": _selecting("(drop (call $through (i32.const 0)))"),
    "8-recursion-with-host-calls": _selecting("(drop (call $hosted))"),
    "8-recursion-in-alloc": _turning(alloc=_DEEP),
    "9-load-at-the-end": _selecting("(drop (i32.load (i32.const 65533)))"),
    "9-load-far-out": _selecting("(drop (i64.load offset=0xffffffff (i32.const -1)))"),
    "9-store-at-minus-4": _selecting("(i32.store (i32.const -4) (i32.const 0))"),
    "9-store-past-2-GB": _selecting("(i32.store8 (i32.const 0x80000000) (i32.const 0))"),
    "9-copy-out-of-bounds": _selecting(
        "(memory.copy (i32.const 0) (i32.const 1) (i32.const 65536))"
    ),
    "9-fill-out-of-bounds": _selecting(
        "(memory.fill (i32.const 65535) (i32.const 0) (i32.const 2))"
    ),
    "9-division-by-zero": _selecting("(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
    "9-remainder-by-zero": _selecting("(drop (i64.rem_s (i64.const 1) (i64.const 0)))"),
    "9-division-that-overflows": _selecting(
        "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))"
    ),
    "9-nan-as-an-integer": _selecting("(drop (i32.trunc_f64_s (f64.const nan)))"),
    "9-unreachable": _selecting("(unreachable)"),
    "9-call-of-another-type": _selecting("(call_indirect (type $nothing) (i32.const 0))"),
    "9-call-past-the-table": _selecting("(call_indirect (type $nothing) (i32.const 9))"),
}
"""Each turns in a decision (`modules.LONG`), and is a trap."""

AT_LOAD: dict[str, bytes] = {
    "8-recursion-in-init": guest(init=_DEEP, extra=DEEP),
    "8-recursion-in-start": guest(extra=f"{DEEP} (func $s {_DEEP}) (start $s)"),
    "9-load-in-init": guest(init="(drop (i32.load (i32.const -1)))"),
    "9-division-in-start": guest(
        extra="(func $s (drop (i32.div_u (i32.const 1) (i32.const 0)))) (start $s)"
    ),
}
"""Each is refused, as a trap."""

SETTINGS: dict[str, Any] = {"allowed_syscalls": list(GRANTED)}
