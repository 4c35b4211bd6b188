"""Reads what a WebAssembly binary declares, without running or compiling it.

Only the sections that describe a module are looked into (WebAssembly core specification,
section 5.5); function bodies and data are skipped. Every count is bounded, so that hostile bytes
cost no more than their own length.
"""

from dataclasses import dataclass, field

from sgl_router.wasm.refusals import RefusalCode

MAGIC = b"\0asm"
ELEMENT_BYTES = 8
"""What wasmtime spends on one element of a table."""

_CORE_VERSION = b"\x01\0\0\0"
_COMPONENT_LAYER = b"\x01\0"  # bytes 6 and 7 of a component's header

_VALUE_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}
_KINDS = ("function", "table", "memory", "global", "tag")

# Far above what any toolchain emits for a policy, far below what would take long to compile.
MAX_ENTRIES = {
    "types": 10_000,
    "imports": 1_000,
    "functions": 100_000,
    "exports": 10_000,
    "globals": 10_000,  # kept outside of the memory that is limited, for each instance
    "data segments": 100_000,
}

_I32_CONST, _GLOBAL_GET, _END = 0x41, 0x23, 0x0B
_ARITHMETIC = (0x6A, 0x6B, 0x6C)  # i32.add, sub, mul: extended constant expressions


class MalformedModule(Exception):
    """The bytes are not a module; the message says where they go wrong.

    Attributes:
        code: what a plugin is refused for that is made of them.
    """

    def __init__(self, message: str, code: RefusalCode = "module_malformed") -> None:
        self.code: RefusalCode = code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class FuncSignature:
    """Parameter and result types, by their names in the specification."""

    params: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.params)}) -> ({', '.join(self.results)})"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a memory (in pages) or a table (in elements)."""

    minimum: int
    shared: bool
    is_64: bool


@dataclass(slots=True)
class ModuleInfo:
    """What a core module declares.

    Attributes:
        imports: (module, name, kind) in order.
        exports: name -> (kind, index in the index space of that kind).
        functions: the signature of each function, the imported ones first.
        memories, tables: the module's own and the imported ones.
        data: (offset, size) of each segment that instantiating puts at a constant place.
        custom_sections: name -> content; of several with one name, the first.
    """

    imports: list[tuple[str, str, str]] = field(default_factory=list)
    exports: dict[str, tuple[str, int]] = field(default_factory=dict)
    functions: list[FuncSignature] = field(default_factory=list)
    memories: list[Limits] = field(default_factory=list)
    tables: list[Limits] = field(default_factory=list)
    data: list[tuple[int, int]] = field(default_factory=list)
    custom_sections: dict[str, bytes] = field(default_factory=dict)


class Reader:
    """A cursor over bytes; every read is checked against the end."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, pos: int, end: int) -> None:
        self.data, self.pos, self.end = data, pos, end

    def byte(self) -> int:
        if self.pos >= self.end:
            raise MalformedModule(f"it ends unexpectedly at byte {self.pos}")
        self.pos += 1
        return self.data[self.pos - 1]

    def u32(self) -> int:
        return self._leb128(5)

    def u64(self) -> int:
        return self._leb128(10)

    def _leb128(self, most: int) -> int:
        value = 0
        for i in range(most):
            byte = self.byte()
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value
        raise MalformedModule(f"a number at byte {self.pos} is too long")

    def s32(self) -> int:
        """A signed number, as the unsigned one of the same 32 bits."""
        start = self.pos
        value = self._leb128(5)
        bits = 7 * (self.pos - start)
        if value >> (bits - 1):
            value -= 1 << bits
        return value & 0xFFFFFFFF

    def take(self, size: int) -> bytes:
        if size > self.end - self.pos:
            raise MalformedModule(f"it ends unexpectedly at byte {self.pos}")
        self.pos += size
        return self.data[self.pos - size : self.pos]

    def part(self, size: int) -> "Reader":
        """A reader of the bytes that come next, which this one leaves out."""
        if size > self.end - self.pos:
            raise MalformedModule(f"it ends unexpectedly at byte {self.end}")
        self.pos += size
        return Reader(self.data, self.pos - size, self.pos)

    def name(self) -> str:
        return self.take(self.u32()).decode("utf-8", "replace")

    def count(self, what: str) -> int:
        number = self.u32()
        if number > MAX_ENTRIES[what]:
            raise MalformedModule(
                f"it declares {number:,} {what}; at most {MAX_ENTRIES[what]:,} are allowed",
                "module_too_complex",
            )
        return number

    def value_type(self) -> str:
        code = self.byte()
        return _VALUE_TYPES.get(code, f"type {code:#x}")

    def limits(self) -> Limits:
        flags = self.byte()
        minimum = self.u64()
        if flags & 1:
            self.u64()  # the maximum; the sandbox sets its own
        return Limits(minimum, shared=bool(flags & 2), is_64=bool(flags & 4))


def is_component(data: bytes) -> bool:
    return data[:4] == MAGIC and data[6:8] == _COMPONENT_LAYER


def read_info(data: bytes) -> ModuleInfo:
    """Read what a core module declares; raises MalformedModule."""
    if data[:8] != MAGIC + _CORE_VERSION:
        raise MalformedModule("it has no header of a WebAssembly core module")
    info = ModuleInfo()
    types: list[FuncSignature] = []
    reader = Reader(data, 8, len(data))
    while reader.pos < reader.end:
        section = reader.byte()
        size = reader.u32()
        start = reader.pos
        reader.take(size)
        _read_section(section, Reader(data, start, start + size), info, types)
    return info


def _read_section(section: int, body: Reader, info: ModuleInfo, types: list[FuncSignature]) -> None:
    match section:
        case 0:
            name = body.name()
            info.custom_sections.setdefault(name, body.take(body.end - body.pos))
        case 1:
            types.extend(_func_type(body) for _ in range(body.count("types")))
        case 2:
            for _ in range(body.count("imports")):
                _read_import(body, info, types)
        case 3:
            info.functions += [_type_at(types, body.u32()) for _ in range(body.count("functions"))]
        case 4:
            info.tables += [_table(body) for _ in range(min(body.u32(), body.end))]
        case 5:
            info.memories += [body.limits() for _ in range(min(body.u32(), body.end))]
        case 6:
            body.count("globals")
        case 7:
            info.exports |= dict(_export(body) for _ in range(body.count("exports")))
        case 11:
            for _ in range(body.count("data segments")):
                _read_data(body, info)


def _func_type(body: Reader) -> FuncSignature:
    form = body.byte()
    if form != 0x60:
        raise MalformedModule(
            f"type of form {form:#x}; only plain function types are allowed", "types_not_allowed"
        )
    params = tuple(body.value_type() for _ in range(min(body.u32(), 1000)))
    results = tuple(body.value_type() for _ in range(min(body.u32(), 1000)))
    return FuncSignature(params, results)


def _read_import(body: Reader, info: ModuleInfo, types: list[FuncSignature]) -> None:
    module, name = body.name(), body.name()
    kind = _kind(body.byte())
    match kind:
        case "function":
            info.functions.append(_type_at(types, body.u32()))
        case "table":
            info.tables.append(_table(body))
        case "memory":
            info.memories.append(body.limits())
        case "global":
            body.byte()
            body.byte()
        case _:
            body.byte()
            body.u32()
    info.imports.append((module, name, kind))


def _table(body: Reader) -> Limits:
    body.byte()  # the type of its elements
    return body.limits()


def _export(body: Reader) -> tuple[str, tuple[str, int]]:
    return body.name(), (_kind(body.byte()), body.u32())


def _read_data(body: Reader, info: ModuleInfo) -> None:
    kind = body.u32()  # 0: active, 1: passive, 2: active in the memory that is named
    if kind > 2:
        raise MalformedModule(f"a data segment of unknown kind {kind:#x}")
    if kind == 2:
        body.u32()
    offset = None if kind == 1 else _offset(body)
    size = body.u32()
    body.take(size)
    if offset is not None:
        info.data.append((offset, size))


def _offset(body: Reader) -> int | None:
    """The value of a constant expression of type i32; None where it has to be computed."""
    steps = 0
    value = None
    while (code := body.byte()) != _END:
        steps += 1
        if code == _I32_CONST:
            value = body.s32()
        elif code == _GLOBAL_GET:
            body.u32()
            value = None
        elif code not in _ARITHMETIC:
            raise MalformedModule(f"an offset of a data segment with the instruction {code:#x}")
    return value if steps == 1 else None


def _kind(code: int) -> str:
    if code >= len(_KINDS):
        raise MalformedModule(f"an import or export of unknown kind {code:#x}")
    return _KINDS[code]


def _type_at(types: list[FuncSignature], index: int) -> FuncSignature:
    if index >= len(types):
        raise MalformedModule(f"a function of type {index}, which does not exist")
    return types[index]
