"""What a component is refused for before it is compiled, and by its types after that."""

from collections.abc import Iterator

import wasmtime
from wasmtime import component as wc

from sgl_router.wasm.abi.component_v1 import FUNCTIONS, INTERFACE
from sgl_router.wasm.abi.wit_types import ListOf, Option, Record, Result, TupleOf, WitType
from sgl_router.wasm.binary import ELEMENT_BYTES
from sgl_router.wasm.component_binary import ComponentInfo
from sgl_router.wasm.config import MAX_MEMORY_BYTES
from sgl_router.wasm.driver import PAGE_BYTES
from sgl_router.wasm.printable import printable
from sgl_router.wasm.refusals import Reason

_SHOWN_NAMES = 10
_SHOWN_CHARACTERS = 120
_SHOWN_TYPE = 500

_PRIMITIVES = {
    wc.Bool: "bool",
    wc.S8: "s8",
    wc.U8: "u8",
    wc.S16: "s16",
    wc.U16: "u16",
    wc.S32: "s32",
    wc.U32: "u32",
    wc.S64: "s64",
    wc.U64: "u64",
    wc.F32: "f32",
    wc.F64: "f64",
    wc.Char: "char",
    wc.String: "string",
}


def component_problems(info: ComponentInfo, max_memory_bytes: object) -> list[Reason]:
    """Everything for which a component is refused by what it declares."""
    return [
        *_import_problems(info.imports),
        *_export_problems(info.exports),
        *_builtin_problems(info.builtins),
        *_memory_problems(info, max_memory_bytes),
    ]


def tables_bytes(info: ComponentInfo) -> int:
    """What the tables of an instance may take together.

    wasmtime limits each table and their number, not their sum: so each may be as large as the
    largest is at the start.
    """
    return len(info.tables) * largest_table(info) * ELEMENT_BYTES


def largest_table(info: ComponentInfo) -> int:
    """Elements of a component's largest table, at its start."""
    return max((table.minimum for table in info.tables), default=0)


def _import_problems(imports: dict[str, str]) -> Iterator[Reason]:
    for name, kind in list(imports.items())[:_SHOWN_NAMES]:
        remedy = "a component may import nothing"
        if name.startswith("wasi:"):
            remedy += "; build it without WASI (componentize-py: componentize --stub-wasi)"
        text = f"it imports the {kind} {printable(name, _SHOWN_CHARACTERS)}, which nothing grants"
        yield Reason("component_import", f"{text}: {remedy}")
    if len(imports) > _SHOWN_NAMES:
        text = f"it imports {len(imports) - _SHOWN_NAMES:,} more, which nothing grants"
        yield Reason("component_import", text)


def _export_problems(exports: dict[str, str]) -> Iterator[Reason]:
    kind = exports.get(INTERFACE)
    if kind is None:
        others = [printable(name, _SHOWN_CHARACTERS) for name in list(exports)[:_SHOWN_NAMES]]
        if len(exports) > _SHOWN_NAMES:
            others.append("…")
        found = f"it exports {', '.join(others)}" if others else "it exports nothing"
        text = f"it does not export the interface {INTERFACE}; {found}"
        yield Reason("component_interface_missing", text)
    elif kind != "instance":
        text = f"its export {INTERFACE} is a {kind}; expected an instance of that interface"
        yield Reason("component_wrong_type", text)


def _builtin_problems(builtins: set[str]) -> Iterator[Reason]:
    """The host keeps handles of resources outside of the memory that is limited, without bound."""
    if builtins:
        text = f"it uses built-ins of the component model: {', '.join(sorted(builtins))}; expected "
        text += "none but lift and lower, as a policy's interface has no resources and no streams"
        yield Reason("component_builtin", text)


def _memory_problems(info: ComponentInfo, max_memory_bytes: object) -> Iterator[Reason]:
    if len(info.memories) > 1:
        text = f"its core modules have {len(info.memories):,} memories together; one is allowed"
        yield Reason("memories_many", text)
    for memory in info.memories[:1]:
        if memory.shared or memory.is_64:
            what = " and ".join(["shared"] * memory.shared + ["64-bit"] * memory.is_64)
            yield Reason("memory_not_plain", f"its memory is {what}; that is not allowed")
    needed = sum(memory.minimum for memory in info.memories) * PAGE_BYTES + tables_bytes(info)
    if isinstance(max_memory_bytes, int) and needed > max_memory_bytes:
        text = f"it needs {needed:,} bytes of memory at its start; max_memory_bytes is "
        text += f"{max_memory_bytes:,}: raise it (at most {MAX_MEMORY_BYTES:,})"
        yield Reason("memory_at_start", text)


# ---- types


def type_problems(component: wc.Component, engine: wasmtime.Engine) -> list[Reason]:
    """Where the functions of the interface have other types than those of the contract."""
    try:
        interface = component.type.exports(engine).get(INTERFACE)
        if not isinstance(interface, wc.ComponentInstanceType):
            return [_wrong_type("it is no instance of an interface")]
        found = interface.exports(engine)
        texts = (_function(name, found.get(name)) for name in FUNCTIONS)
        return [_wrong_type(text) for text in texts if text is not None]
    except TypeError as error:  # of a type that wasmtime's Python classes do not know
        return [_wrong_type(f"it has a type that the contract has not: {error}")]


def _wrong_type(text: str) -> Reason:
    return Reason("component_wrong_type", f"its export {INTERFACE}: {text}")


def _function(name: str, found: object) -> str | None:
    expected = FUNCTIONS[name]
    if not isinstance(found, wc.FuncType):
        what = f"it has no function {name}" if found is None else f"{name} is no function"
        return f"{what}; expected {printable(str(expected), _SHOWN_TYPE)}"
    params = found.params
    if len(params) != len(expected.params):
        return f"{name} has {len(params):,} parameters; expected {len(expected.params)}"
    for (param, type_), (_, of) in zip(params, expected.params, strict=True):
        if (text := _difference(of, type_, f"{name}, {printable(param, 40)}")) is not None:
            return text
    return _case_difference(expected.result, found.result, f"{name}, its result")


def _case_difference(expected: WitType | None, found: wc.ValType | None, at: str) -> str | None:
    """Of what there may be no value of."""
    if expected is None or found is None:
        if expected is None and found is None:
            return None
        is_found = "nothing" if found is None else _words(found)
        wanted = "nothing" if expected is None else printable(str(expected), _SHOWN_TYPE)
        return f"{at} is {is_found}; expected {wanted}"
    return _difference(expected, found, at)


def _difference(expected: WitType, found: wc.ValType, at: str) -> str | None:
    """The first place where two types differ, in a sentence; None where they are the same.

    It goes no deeper than the expected type does, however deep the other is.
    """
    parts: list[str | None]
    if isinstance(expected, Record) and isinstance(found, wc.RecordType):
        parts = [_record_difference(expected, found, at)]
    elif isinstance(expected, Option) and isinstance(found, wc.OptionType):
        parts = [_difference(expected.of, found.payload, at)]
    elif isinstance(expected, ListOf) and isinstance(found, wc.ListType):
        parts = [_difference(expected.of, found.element, f"{at}[]")]
    elif isinstance(expected, Result) and isinstance(found, wc.ResultType):
        parts = [
            _case_difference(expected.ok, found.ok, f"{at}, ok"),
            _case_difference(expected.err, found.err, f"{at}, err"),
        ]
    elif (
        isinstance(expected, TupleOf)
        and isinstance(found, wc.TupleType)
        and len(expected.of) == len(found.elements)
    ):
        pairs = enumerate(zip(expected.of, found.elements, strict=True))
        parts = [_difference(of, element, f"{at}.{i}") for i, (of, element) in pairs]
    elif isinstance(expected, str) and _PRIMITIVES.get(type(found)) == expected:
        return None
    else:
        return f"{at} is {_words(found)}; expected {printable(str(expected), _SHOWN_TYPE)}"
    return next((text for text in parts if text is not None), None)


def _record_difference(expected: Record, found: wc.RecordType, at: str) -> str | None:
    fields = found.fields
    names = [name for name, _ in fields]
    if names != [name for name, _ in expected.fields]:
        return f"{at} is {_words(found)}; expected {printable(str(expected), _SHOWN_TYPE)}"
    for (name, of), (_, type_) in zip(expected.fields, fields, strict=True):
        if (text := _difference(of, type_, f"{at}.{name}")) is not None:
            return text
    return None


def _words(found: wc.ValType) -> str:
    """A type as WIT writes it, not going into it."""
    if type(found) in _PRIMITIVES:
        return _PRIMITIVES[type(found)]
    if isinstance(found, wc.RecordType):
        names = ", ".join(printable(name, 40) for name, _ in found.fields[:20])
        return f"record {{ {names} }}"
    kind = type(found).__name__.removesuffix("Type").lower()
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
