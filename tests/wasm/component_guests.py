"""Components for the tests, written as WebAssembly text.

`component()` composes a whole plugin of the component ABI from parts: one core module whose bodies
can be replaced, lifted with the types of the contract (canonical ABI, `CanonicalABI.md`). What
`select-worker` returns is laid out by `answers`.
"""

import struct
from collections.abc import Mapping

from sgl_router.wasm.abi.component_v1 import (
    DECISION,
    ENGINE_METRICS,
    FUNCTIONS,
    INPUT,
    INTERFACE,
    OUTCOME,
    REQUEST,
    WORKER,
    WORKER_INFO,
)
from sgl_router.wasm.abi.wit_types import Function, ListOf, Option, Record, Result, TupleOf, WitType
from tests.wasm.guests import assemble, custom, text_at

RESULT_AT = 1024
"""Where `select-worker` finds what it returns, unless its body says otherwise."""

REFUSED_AT = 512
"""Where the result of an `init` that refuses may stand."""

TEXT_AT = 4096
HEAP_AT = 32 * 1024
PAGES = '(memory (export "memory") 2)'
LOOP = "(loop $l (br $l)) (unreachable)"

RECORDS = {
    "engine-metrics": ENGINE_METRICS,
    "worker-info": WORKER_INFO,
    "worker": WORKER,
    "request": REQUEST,
    "input": INPUT,
    "decision": DECISION,
    "outcome": OUTCOME,
}
"""Those that the interface names, in the order in which they need each other."""

_REALLOC = f"""
  (global $heap (mut i32) (i32.const {HEAP_AT}))
  (func (export "realloc") (param $old i32) (param $oldsize i32) (param $align i32)
      (param $size i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (if (i32.gt_u (i32.add (local.get $at) (local.get $size))
        (i32.mul (memory.size) (i32.const 65536)))
      (then (if (i32.eq (memory.grow (i32.add (i32.const 1)
          (i32.shr_u (local.get $size) (i32.const 16)))) (i32.const -1)) (then unreachable))))
    (global.set $heap (i32.add (local.get $at) (local.get $size)))
    (local.get $at))"""
_REPORT = "i32 i32 i32 i32 i32 i32 f64 f64 i32 i32 i32 i32"


def answer(
    index: int | None = 0,
    state: tuple[int, int] | None = None,
    error: tuple[int, int] | None = None,
) -> bytes:
    """A `result<decision, string>` in memory; texts by their address and length."""
    if error is not None:
        return struct.pack("<B3xII12x", 1, *error)
    has, at = (0, (0, 0)) if state is None else (1, state)
    return struct.pack("<B3xB3xIB3xII", 0, index is not None, index or 0, has, *at)


def component(
    result: bytes | None = None,
    *,
    text: str | bytes = "",
    init: str = "(i32.const 0)",
    select: str = f"(i32.const {RESULT_AT})",
    report: str = "",
    memory: str = PAGES,
    extra: str = "",
    realloc: str = _REALLOC,
    post: str = "(global.set $heap (i32.const 32768))",
    outer: str = "",
    records: Mapping[str, Record] = RECORDS,
    functions: Mapping[str, Function] = FUNCTIONS,
    interface: str = INTERFACE,
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    """A plugin; each keyword replaces a part.

    `select` sees the address of its input as `$input`, `init` the configuration as `$at` and
    `$size`; both return the address of a result. `text` stands at `TEXT_AT`. `extra` is fields of
    the core module, `outer` of the component, before all else.
    """
    given = answer() if result is None else result
    core = f"""(core module $guest
  {memory} {extra} {realloc}
  (func (export "init") (param $at i32) (param $size i32) (result i32) {init})
  (func (export "select-worker") (param $input i32) (result i32) {select})
  (func (export "post") (param i32) {post})
  (func (export "on-request-complete") (param {_REPORT}) {report})
  {text_at(RESULT_AT, given)} {text_at(TEXT_AT, text)}
  {text_at(REFUSED_AT, struct.pack("<B3xII", 1, TEXT_AT, len(text)))})
  (core instance $core (instantiate $guest))"""
    whole = f"(component {outer} {core} {_lifted(records, functions, interface)})"
    made = assemble(whole)
    return made + b"".join(custom(name, c) for name, c in (sections or {}).items())


def _lifted(
    records: Mapping[str, Record], functions: Mapping[str, Function], interface: str
) -> str:
    """The functions with their types, and the interface: the types of what is exported must be
    exported too, which takes a component within, that is given both."""
    outer = {id(record): name for name, record in records.items()}
    given = {id(record): f"given-{name}" for name, record in records.items()}
    shown = {id(record): f"shown-{name}" for name, record in records.items()}
    types, imports, exports, withs = [], [], [], []
    for name, of in records.items():
        types.append(f"(type ${name} {_shape(of, outer)})")
        imports.append(
            f"(type $own-{name} {_shape(of, given)})"
            f'(import "type-{name}" (type $given-{name} (eq $own-{name})))'
        )
        exports.append(
            f"(type $new-{name} {_shape(of, shown)})"
            f'(export $shown-{name} "{name}" (type $new-{name}))'
        )
        withs.append(f'(with "type-{name}" (type ${name}))')
    for name, function in functions.items():
        post = '(post-return (func $core "post"))' if function.result is not None else ""
        types.append(
            f'(func ${name} {_type(function, outer)} (canon lift (core func $core "{name}") '
            f'(memory $core "memory") (realloc (func $core "realloc")) {post}))'
        )
        imports.append(f'(import "func-{name}" (func ${name} {_type(function, given)}))')
        exports.append(f'(export "{name}" (func ${name}) (func {_type(function, shown)}))')
        withs.append(f'(with "func-{name}" (func ${name}))')
    return f"""{" ".join(types)}
  (component $named {" ".join(imports)} {" ".join(exports)})
  (instance $policy (instantiate $named {" ".join(withs)}))
  (export "{interface}" (instance $policy))"""


def _type(function: Function, names: Mapping[int, str]) -> str:
    params = " ".join(f'(param "{name}" {_word(of, names)})' for name, of in function.params)
    result = "" if function.result is None else f"(result {_word(function.result, names)})"
    return f"{params} {result}"


def _shape(record: Record, names: Mapping[int, str]) -> str:
    fields = " ".join(f'(field "{name}" {_word(of, names)})' for name, of in record.fields)
    return f"(record {fields})"


def _word(of: WitType, names: Mapping[int, str]) -> str:
    match of:
        case Record():
            return f"${names[id(of)]}"
        case Option():
            return f"(option {_word(of.of, names)})"
        case ListOf():
            return f"(list {_word(of.of, names)})"
        case TupleOf():
            return f"(tuple {' '.join(_word(part, names) for part in of.of)})"
        case Result():
            ok = "" if of.ok is None else _word(of.ok, names)
            err = "" if of.err is None else f"(error {_word(of.err, names)})"
            return f"(result {ok} {err})"
    return of
