"""Reads what a WebAssembly component declares, without running or compiling it.

A component is sections like a core module's, some of which are whole core modules and components
(component model, `Binary.md`). Only what has to be known before compiling is read: custom sections,
imports and exports of the outermost component, of every component within it the built-ins that it
uses, and of every core module the memories, the tables, and how many functions and globals it has.
Types are left to wasmtime.

Nothing is copied but names and custom sections, nothing is read twice, and sections and entries are
counted, so that hostile bytes cost no more than their own length.
"""

from contextlib import suppress
from dataclasses import dataclass, field

from sgl_router.wasm.binary import MAGIC, Limits, MalformedModule, Reader, is_component

MAX_SECTIONS = 20_000
"""Of a component and all within it; what componentize-py makes has some 700."""

MAX_ENTRIES = 200_000
"""Of the sections that are read, together; what componentize-py makes has some 10,000."""

MAX_DEPTH = 20
MAX_NAME_BYTES = 64 * 1024
MAX_NAMES = 1_000_000
MAX_DEFINITIONS = 4_000_000
"""Functions and globals of the largest core module, times the instances of core modules: for each
the host keeps up to 32 bytes outside of the memory that is limited. What componentize-py makes has
some 400,000."""

_CUSTOM, _CORE_MODULE, _CORE_INSTANCE, _COMPONENT, _IMPORT, _EXPORT = 0, 1, 2, 4, 10, 11
_CANON = 8
_CORE_FUNCTIONS, _CORE_TABLES, _CORE_MEMORIES, _CORE_GLOBALS = 3, 4, 5, 6
_SORTS = ("core", "function", "value", "type", "component", "instance")
_CORE_SORT, _CORE_MODULE_SORT = 0, 0x11
_FUNCREF, _EXTERNREF = 0x70, 0x6F
_MODULE_NAME, _FUNCTION_NAMES = 0, 1
_LIFT, _LOWER = 0, 1
_OF_RESOURCES = {2: "resource.new", 3: "resource.drop", 4: "resource.rep"}
_FIRST_WITH_INDEX, _LAST_OPTION = 3, 5  # UTF-8, UTF-16, Latin-1; memory, realloc, post-return


class _TooComplex(Exception):
    """More of something than is allowed."""

    def __init__(self, what: str, limit: int) -> None:
        self.what = f"it has more than {limit:,} {what}, the most that is allowed"
        super().__init__(self.what)


@dataclass(slots=True)
class ComponentInfo:
    """What a component declares.

    Attributes:
        imports, exports: of the outermost component: name -> what it is (`function`, `instance` …).
        custom_sections: of the outermost component: name -> content; of several with one name, the
            first.
        builtins: canonical built-ins that it uses beside `lift` and `lower`, at any depth.
        memories, tables: those that the core modules have of their own.
        instances: core modules that are instantiated, each as often as it is written down; a
            component that is instantiated twice counts once.
        most_definitions: functions and globals of the core module that has the most.
    """

    imports: dict[str, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    custom_sections: dict[str, bytes] = field(default_factory=dict)
    builtins: set[str] = field(default_factory=set)
    memories: list[Limits] = field(default_factory=list)
    tables: list[Limits] = field(default_factory=list)
    instances: int = 0
    most_definitions: int = 0


def read_component(data: bytes) -> ComponentInfo:
    """Read what a component declares; raises MalformedModule."""
    if not is_component(data) or len(data) < 8:
        raise MalformedModule("it has no header of a WebAssembly component")
    try:
        return _ComponentReader().read(data)
    except _TooComplex as error:
        raise MalformedModule(error.what, "module_too_complex") from None


class _ComponentReader:
    def __init__(self) -> None:
        self._info = ComponentInfo()
        self._sections = self._entries = self._names = 0

    def read(self, data: bytes) -> ComponentInfo:
        """See `read_component`."""
        pending = [(Reader(data, 8, len(data)), 0)]  # of nested components; no recursion
        while pending:
            reader, depth = pending.pop()
            if depth > MAX_DEPTH:
                raise _TooComplex(f"components within components, {depth} deep", MAX_DEPTH)
            while reader.pos < reader.end:
                section, body = self._next_section(reader)
                if section == _COMPONENT:
                    if not is_component(body.take(8)):
                        raise MalformedModule(f"a component that is none at byte {body.pos - 8}")
                    pending.append((body, depth + 1))
                elif section == _CORE_MODULE:
                    self._read_core_module(body)
                elif section == _CORE_INSTANCE:
                    self._read_core_instances(body)
                elif section == _CANON:
                    self._read_canonical(body)
                elif depth == 0:
                    self._read_outermost(section, body)
        if self._info.instances * self._info.most_definitions > MAX_DEFINITIONS:
            raise _TooComplex("functions and globals in all its instances", MAX_DEFINITIONS)
        return self._info

    def _next_section(self, reader: Reader) -> tuple[int, Reader]:
        self._sections += 1
        if self._sections > MAX_SECTIONS:
            raise _TooComplex("sections", MAX_SECTIONS)
        return reader.byte(), reader.part(reader.u32())

    def _count(self, body: Reader) -> int:
        """How many entries follow."""
        count = body.u32()
        self._entries += count
        if self._entries > MAX_ENTRIES:
            raise _TooComplex("entries", MAX_ENTRIES)
        return count

    def _read_outermost(self, section: int, body: Reader) -> None:
        info = self._info
        if section == _CUSTOM:
            name = body.name()
            info.custom_sections.setdefault(name, body.take(body.end - body.pos))
        elif section == _IMPORT:
            for _ in range(self._count(body)):
                name = _extern_name(body)
                info.imports[name] = _extern(body)
        elif section == _EXPORT:
            for _ in range(self._count(body)):
                name = _extern_name(body)
                info.exports[name] = _sort(body)
                body.u32()
                if body.byte():
                    _extern(body)

    def _read_core_instances(self, body: Reader) -> None:
        for _ in range(self._count(body)):
            if body.byte() == 0:  # of a module; else of names for what is there
                self._info.instances += 1
                body.u32()
            for _ in range(self._count(body)):
                body.name()
                body.byte()
                body.u32()

    def _read_canonical(self, body: Reader) -> None:
        """What is not known to be harmless counts as used; how it goes on is not known then."""
        for _ in range(self._count(body)):
            code = body.byte()
            if code in _OF_RESOURCES:
                self._info.builtins.add(_OF_RESOURCES[code])
                body.u32()
            elif code not in (_LIFT, _LOWER):
                self._info.builtins.add(f"number {code:#x}")
                return
            elif not self._read_lift_or_lower(code, body):
                return

    def _read_lift_or_lower(self, code: int, body: Reader) -> bool:
        """False after an option that is not known."""
        if body.byte():
            raise MalformedModule(f"a canonical function of unknown kind at byte {body.pos - 1}")
        body.u32()
        for _ in range(self._count(body)):
            option = body.byte()
            if option > _LAST_OPTION:
                self._info.builtins.add(f"the option {option:#x}")
                return False
            if option >= _FIRST_WITH_INDEX:
                body.u32()
        if code == _LIFT:
            body.u32()  # its type
        return True

    def _read_core_module(self, reader: Reader) -> None:
        if reader.take(8) != MAGIC + b"\x01\0\0\0":
            raise MalformedModule(f"a core module that is none at byte {reader.pos - 8}")
        definitions = 0
        while reader.pos < reader.end:
            section, body = self._next_section(reader)
            if section == _CORE_TABLES:
                self._info.tables += [_table(body) for _ in range(self._count(body))]
            elif section == _CORE_MEMORIES:
                self._info.memories += [body.limits() for _ in range(self._count(body))]
            elif section in (_CORE_FUNCTIONS, _CORE_GLOBALS):
                definitions += body.u32()
            elif section == _CUSTOM and body.name() == "name":
                with suppress(MalformedModule):  # names that wasmtime does not see either
                    self._check_names(body)
        self._info.most_definitions = max(self._info.most_definitions, definitions)

    def _check_names(self, body: Reader) -> None:
        """wasmtime writes the names of the functions under way into the text of each failure."""
        while body.pos < body.end:
            kind, names = body.byte(), body.part(body.u32())
            if kind == _MODULE_NAME:
                self._check_name(names)
            elif kind == _FUNCTION_NAMES:
                for _ in range(names.u32()):
                    names.u32()
                    self._check_name(names)

    def _check_name(self, names: Reader) -> None:
        self._names += 1
        size = names.u32()
        if size > MAX_NAME_BYTES:
            raise _TooComplex("bytes in the name of a function", MAX_NAME_BYTES)
        if self._names > MAX_NAMES:
            raise _TooComplex("names of functions", MAX_NAMES)
        names.part(size)


def _extern_name(body: Reader) -> str:
    kind = body.byte()
    if kind > 2:
        raise MalformedModule(f"a name of unknown kind {kind:#x} at byte {body.pos - 1}")
    name = body.name()
    if kind == 2:
        body.name()  # the end of its version
    return name


def _sort(body: Reader) -> str:
    sort = body.byte()
    if sort >= len(_SORTS):
        raise MalformedModule(f"an import or export of unknown kind {sort:#x}")
    if sort == _CORE_SORT:
        return "core module" if body.byte() == _CORE_MODULE_SORT else "core"
    return _SORTS[sort]


def _extern(body: Reader) -> str:
    """What is imported, or how an export is described."""
    kind = _sort(body)
    if kind in ("value", "type"):
        bound = body.byte()
        if kind == "value" and bound == 1:
            _value_type(body)
        elif not (kind == "type" and bound == 1):  # 1: a type of its own, a resource
            body.u32()
    else:
        body.u32()
    return kind


def _value_type(body: Reader) -> None:
    body.s32()  # a negative number is a primitive type


def _table(body: Reader) -> Limits:
    kind = body.byte()
    if kind not in (_FUNCREF, _EXTERNREF):
        raise MalformedModule(
            f"a table of elements of type {kind:#x}; only plain references are allowed",
            "types_not_allowed",
        )
    return body.limits()
