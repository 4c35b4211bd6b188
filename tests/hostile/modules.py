"""Hostile guests, and the pieces they are made of.

Most of them decide well until a request is long (`LONG`), so that they are loaded like any other
plugin and turn on the router in the middle of its work, whenever a test wants it.
"""

from typing import Any

from tests.wasm.guests import ANSWER_AT, HEAP_AT, RELEASE, guest, leb128, text_at

HEADER = b"\0asm\x01\0\0\0"
LONG_BYTES = 4096
LONG = b'{"prompt": "%b"}' % (b"x" * 2 * LONG_BYTES)
SHORT = b'{"prompt": "hello"}'
GOOD = '{"selected_worker": 0, "state": {"n": 1}}'
GRANTED = ("wasi:clocks", "wasi:random", "wasi:stdio", "wasi:environ")

_SAID_AT = 320 * 1024
_SAY, _END = ord("~"), ord('"')


def when_long(body: str, size: str) -> str:
    """`body`, where the local `size` is that of a long input."""
    return f"(if (i32.ge_u (local.get {size}) (i32.const {LONG_BYTES})) (then {body}))"


def turning(*, select_worker: str = "", alloc: str = "", dealloc: str = "", **parts: Any) -> bytes:
    """A guest that decides well, but does what the bodies say where its input is long."""
    return guest(
        GOOD,
        select_worker=when_long(select_worker, "$len") + f"(i32.const {ANSWER_AT})",
        alloc=when_long(alloc, "$size") + "(call $bump (local.get $size))",
        dealloc=when_long(dealloc, "$size") + RELEASE,
        **parts,
    )


def parrot(**parts: Any) -> bytes:
    """A guest that returns the bytes which a request tells it (`say`), otherwise `GOOD`.

    It looks for the first `~` in its input; from there on two letters, a to p, are a byte.
    """
    digit = "(i32.sub (i32.load8_u offset={} (local.get $at)) (i32.const 97))"
    repeat = f"""
  (func $repeat (param $at i32) (param $end i32) (result i32)
    (local $to i32) (local.set $to (i32.const {_SAID_AT}))
    (block $silent
      (loop $find
        (br_if $silent (i32.ge_u (local.get $at) (local.get $end)))
        (if (i32.ne (i32.load8_u (local.get $at)) (i32.const {_SAY})) (then
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $find))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (block $done (loop $next
        (br_if $done (i32.eq (i32.load8_u (local.get $at)) (i32.const {_END})))
        (i32.store8 (local.get $to)
          (i32.add (i32.shl {digit.format(0)} (i32.const 4)) {digit.format(1)}))
        (local.set $to (i32.add (local.get $to) (i32.const 1)))
        (local.set $at (i32.add (local.get $at) (i32.const 2)))
        (br $next)))
      (i32.store8 (local.get $to) (i32.const 0))
      (return (i32.const {_SAID_AT})))
    (i32.const {ANSWER_AT}))"""
    return guest(
        GOOD,
        memory='(memory (export "memory") 7)',
        extra=repeat,
        select_worker="(call $repeat (local.get $ptr) (i32.add (local.get $ptr) (local.get $len)))",
        **parts,
    )


def say(result: str | bytes) -> bytes:
    """The body of a request on which a `parrot` returns `result`."""
    data = result.encode() if isinstance(result, str) else result
    letters = "".join(chr(97 + (byte >> 4)) + chr(97 + (byte & 15)) for byte in data)
    return b'{"prompt": "~%b"}' % letters.encode()


def flood(head: str, eight: str, times: int) -> bytes:
    """A guest that answers a long request with `head` and `times` eight characters."""
    at, pages = 64 * 1024, (64 * 1024 + len(head) + 8 * times) // 65_536 + 2
    assert len(eight) == 8, "one store of 64 bits writes it"
    fill = f"""
  (func $flood (result i32)
    (local $to i32) (local.set $to (i32.const {at + len(head)}))
    (memory.copy (i32.const {at}) (i32.const 4096) (i32.const {len(head)}))
    (loop $next
      (i64.store (local.get $to) (i64.load (i32.const 8192)))
      (local.set $to (i32.add (local.get $to) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $to) (i32.const {at + len(head) + 8 * times}))))
    (i32.const {at}))"""
    return turning(
        select_worker="(return (call $flood))",
        memory=f'(memory (export "memory") {pages})',
        extra=fill + text_at(4096, head) + text_at(8192, eight),
        dealloc="",
    )


def section(number: int, *entries: bytes) -> bytes:
    """A section that is a vector of entries."""
    return sized(number, leb128(len(entries)) + b"".join(entries))


def sized(number: int, content: bytes) -> bytes:
    """A section of any content."""
    return bytes([number]) + leb128(len(content)) + content


def named(name: bytes) -> bytes:
    """A name as modules write it, valid UTF-8 or not."""
    return leb128(len(name)) + name


def carrying(*bodies: bytes) -> bytes:
    """A sound plugin that has functions of these bodies besides, and never calls them.

    A body is its locals and its instructions, the last `end` among them.
    """
    types = (b"\x60\0\0", b"\x60\1\x7f\1\x7f", b"\x60\2\x7f\x7f\0", b"\x60\2\x7f\x7f\1\x7f")
    nothing, input_at, answer_at = b"\0\x0b", b"\0\x41\x80\x20\x0b", b"\0\x41\x08\x0b"
    own = (nothing, input_at, nothing, answer_at)
    names = (b"init", b"alloc", b"dealloc", b"select_worker")
    exported = [named(name) + b"\0" + bytes([number]) for number, name in enumerate(names)]
    return (
        HEADER
        + section(1, *types)
        + section(3, b"\0", b"\1", b"\2", b"\3", *[b"\0"] * len(bodies))
        + section(5, b"\0\1")
        + section(7, named(b"memory") + b"\2\0", *exported)
        + section(10, *[leb128(len(body)) + body for body in (*own, *bodies)])
        + section(11, b"\0\x41\x08\x0b" + named(GOOD.encode()))
    )


assert HEAP_AT > 8192 + 8, "the pieces of a flood stand below the heap"
