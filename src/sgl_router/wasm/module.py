"""Reads a plugin's file and refuses, before anything is compiled, what can be refused.

All reasons are collected, so that an author mends a plugin in one go.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sgl_router.errors import PluginRefused
from sgl_router.wasm.binary import (
    ELEMENT_BYTES,
    FuncSignature,
    MalformedModule,
    ModuleInfo,
    is_component,
    read_info,
)
from sgl_router.wasm.component_binary import ComponentInfo, read_component
from sgl_router.wasm.component_check import component_problems
from sgl_router.wasm.config import MAX_MEMORY_BYTES, Lane, WasmPolicyConfig, is_digest
from sgl_router.wasm.driver import PAGE_BYTES
from sgl_router.wasm.grants import granted, group_of, has_files, is_network
from sgl_router.wasm.manifest import SECTION, Manifest, config_problems, read_manifest
from sgl_router.wasm.printable import printable
from sgl_router.wasm.refusals import Reason, RefusalCode
from sgl_router.wasm.wasi_types import WASI_TYPES

Abi = Literal["json_v1", "table_v1", "component_v1"]
"""The contract that a module keeps; known by what it exports, or by its being a component."""

MAX_MODULE_BYTES = 8 * 1024 * 1024
MAX_COMPONENT_BYTES = 64 * 1024 * 1024
HEAD_BYTES = 8
"""Of a module: its magic number and its version, which tells a component from a core module."""

_NOTHING = FuncSignature((), ())
_POINTER_AND_LENGTH = FuncSignature(("i32", "i32"), ())
_NUMBER_OF_POINTER_AND_LENGTH = FuncSignature(("i32", "i32"), ("i32",))
_OF_EACH_ABI = {
    "init": _NOTHING,
    "alloc": FuncSignature(("i32",), ("i32",)),
    "dealloc": _POINTER_AND_LENGTH,
}
_DECIDES: dict[Abi, tuple[str, FuncSignature]] = {
    "table_v1": ("sgl_table_v1_select", FuncSignature(("i32", "i32", "i32"), ("i32",))),
    "json_v1": ("select_worker", _NUMBER_OF_POINTER_AND_LENGTH),
}
"""What takes a decision, and so tells the contract: the first that is exported."""

_OPTIONAL = {"_initialize": _NOTHING, "on_request_complete": _POINTER_AND_LENGTH}
_OPTIONAL_EXPORTS: dict[Abi, dict[str, FuncSignature]] = {
    "table_v1": {**_OPTIONAL, "sgl_table_v1_configure": _NUMBER_OF_POINTER_AND_LENGTH},
    "json_v1": _OPTIONAL,
}

_LOOKS_LIKE = (
    (b"\x7fELF", "an ELF file or a precompiled artifact"),
    (b"(module", "WebAssembly text; assemble it first, for instance with wat2wasm"),
    (b"(component", "WebAssembly text, of a component; assemble it first, with wasm-tools parse"),
    (b"<", "an HTML or XML page"),
    (b"#!", "a script"),
    (b"PK\x03\x04", "a zip archive (it starts with b'PK')"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"BC\xc0\xde", "LLVM bitcode; link it first"),
    (b"version https://git-lfs", "a pointer of Git LFS; get its content with git lfs pull"),
)


@dataclass(frozen=True, slots=True)
class PluginModule:
    """A module that may be compiled.

    Attributes:
        wasm: its bytes.
        digest: their SHA-256, hexadecimal.
        abi: the contract that it keeps.
        exports: the names of those of its exports that the contract knows.
        table_elements: elements of its table at the start; of a core module only.
        imports: full names of the functions that it imports, all of them granted.
        grants: full names of the imports that it may use.
        manifest: what it says of itself.
        component: what it declares, where it is a component.
    """

    wasm: bytes
    digest: str
    abi: Abi
    exports: frozenset[str]
    table_elements: int
    imports: frozenset[str]
    grants: frozenset[str]
    manifest: Manifest
    component: ComponentInfo | None = None

    def decides_aside(self, lane: Lane) -> bool:
        """Whether it decides on a thread of its own however quick it is.

        Files may hang, and a component's decision takes as long as its language's runtime likes.
        """
        as_usual = lane == "auto" and self.component is not None
        return lane == "offload" or as_usual or has_files(self.grants)


def read_module(config: WasmPolicyConfig, builtin_names: Collection[str]) -> PluginModule:
    """Read and check a plugin; raises PluginRefused with every reason found."""
    try:
        wasm = read_file(config.module_path)
    except (OSError, TypeError, ValueError) as error:
        problems = config.problems(builtin_names)
        text = f"cannot read module_path {config.module_path!r:.300}: {error}"
        problems.append(Reason("file_unreadable", text))
        raise PluginRefused(str(config.name), problems) from error
    return check_module(config, wasm, builtin_names)


def read_file(path: str) -> bytes:
    """The file's bytes, one more than allowed at most; never blocks on a FIFO or a device.

    Raises OSError, TypeError or ValueError where it is not a regular file that can be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        most = min(status.st_size, most_bytes(os.pread(fd, HEAD_BYTES, 0)))
        with open(fd, "rb", closefd=False) as file:
            return file.read(most + 1)  # at once, as all of that is allocated, and nothing copied
    finally:
        os.close(fd)


def most_bytes(head: bytes) -> int:
    """How large a module may be that begins so; `HEAD_BYTES` of it are enough to know."""
    return MAX_COMPONENT_BYTES if is_component(head) else MAX_MODULE_BYTES


def check_module(
    config: WasmPolicyConfig, wasm: bytes, builtin_names: Collection[str]
) -> PluginModule:
    """Check a plugin's settings and its module, whatever `module_path` holds.

    Raises PluginRefused with every reason found.
    """
    problems = config.problems(builtin_names)
    settings_are_sound = not problems
    info = _declared(wasm)
    if isinstance(info, Reason):
        problems.append(info)
    digest = hashlib.sha256(wasm).hexdigest()
    if len(wasm) <= most_bytes(wasm):  # else there are bytes that were not read
        problems += _digest_problems(digest, config.sha256)
    if isinstance(info, Reason):
        raise PluginRefused(str(config.name), problems)
    manifest, of_manifest = _read_manifest(info)
    problems += of_manifest
    if isinstance(info, ComponentInfo):
        module = _component(wasm, digest, manifest, info)
        problems += component_problems(info, config.max_memory_bytes)
    else:
        module = _core_module(wasm, digest, manifest, info, _grants_of(config.allowed_syscalls))
        problems += _import_problems(info, module.grants)
        problems += _export_problems(info, module.abi)
        problems += _memory_problems(info, config.max_memory_bytes)
    if config.lane == "inline" and has_files(module.grants):
        text = "lane is inline, and it may use files, which may hang: expected auto or offload"
        problems.append(Reason("lane_with_files", text))
    if settings_are_sound and not of_manifest:
        problems += config_problems(manifest, config.config)
    if problems:
        raise PluginRefused(str(config.name), problems)
    return module


def _core_module(
    wasm: bytes, digest: str, manifest: Manifest, info: ModuleInfo, grants: frozenset[str]
) -> PluginModule:
    abi = _abi_of(info)
    return PluginModule(
        wasm=wasm,
        digest=digest,
        abi=abi,
        exports=frozenset(info.exports) & (_required(abi).keys() | _OPTIONAL_EXPORTS[abi].keys()),
        table_elements=sum(table.minimum for table in info.tables),
        imports=frozenset(f"{module}.{name}" for module, name, _ in info.imports),
        grants=grants,
        manifest=manifest,
    )


def _component(wasm: bytes, digest: str, manifest: Manifest, info: ComponentInfo) -> PluginModule:
    """Nothing is granted to it, and it is told of outcomes only where its manifest asks for that:
    it has the function in any case."""
    told = {"on_request_complete"} if "outcomes" in manifest.needs else set[str]()
    return PluginModule(
        wasm=wasm,
        digest=digest,
        abi="component_v1",
        exports=frozenset({"init", "select_worker"} | told),
        table_elements=0,
        imports=frozenset(),
        grants=frozenset(),
        manifest=manifest,
        component=info,
    )


def _declared(wasm: bytes) -> ModuleInfo | ComponentInfo | Reason:
    """What the bytes declare, or why they are no module."""
    if (reason := _not_a_module(wasm)) is not None:
        return reason
    kind = "component" if is_component(wasm) else "module"
    try:
        return read_component(wasm) if kind == "component" else read_info(wasm)
    except MalformedModule as error:
        return Reason(error.code, f"the {kind} is malformed: {error}")


def _not_a_module(wasm: bytes) -> Reason | None:
    """What the bytes are, where they are not a module of a fitting size."""
    if len(wasm) > (most := most_bytes(wasm)):
        text = f"the module has more than {most:,} bytes, the most that is allowed"
        return Reason("file_too_large", text)
    if not wasm:
        return Reason("file_empty", "the module's file is empty")
    if wasm[:4] == b"\0asm":
        return None
    head = wasm[:64].lstrip()
    for prefix, what in _LOOKS_LIKE:
        if head.startswith(prefix):
            return Reason("not_a_module", f"it is not a WebAssembly module but {what}")
    text = f"it is not a WebAssembly module: it starts with {wasm[:8]!r} instead of b'\\x00asm'"
    return Reason("not_a_module", text)


def _digest_problems(digest: str, pinned: object) -> list[Reason]:
    if pinned == digest or not is_digest(pinned):
        return []
    text = f"the module's SHA-256 is {digest}, and the setting sha256 asks for {pinned!r:.80}; "
    text += "change the setting if this is the module that is meant"
    return [Reason("digest_mismatch", text)]


def _grants_of(allowed_syscalls: object) -> frozenset[str]:
    """What is granted, also where some of it is refused."""
    if isinstance(allowed_syscalls, str) or not isinstance(allowed_syscalls, Sequence):
        return frozenset()
    return granted(entry for entry in allowed_syscalls if isinstance(entry, str))


def _abi_of(info: ModuleInfo) -> Abi:
    """The contract; the JSON one where neither is kept."""
    return next((abi for abi, (name, _) in _DECIDES.items() if name in info.exports), "json_v1")


def _required(abi: Abi) -> dict[str, FuncSignature]:
    name, signature = _DECIDES[abi]
    return {**_OF_EACH_ABI, name: signature}


def _read_manifest(info: ModuleInfo | ComponentInfo) -> tuple[Manifest, list[Reason]]:
    section = info.custom_sections.get(SECTION)
    return (Manifest(), []) if section is None else read_manifest(section)


def _import_problems(info: ModuleInfo, grants: frozenset[str]) -> list[Reason]:
    problems = []
    code: RefusalCode
    signatures = iter(info.functions)  # those of imported functions come first
    for module, name, kind in info.imports:
        full = f"{module}.{name}"
        signature = next(signatures) if kind == "function" else None
        expected = WASI_TYPES.get(full)
        if signature is None:
            code = "import_not_a_function"
            remedy = "which nothing grants: only functions are imported"
        elif expected is not None and signature != expected:
            code = "import_wrong_type"
            remedy = f"with the type {_cut(signature)}; it has the type {expected}"
        elif full in grants:
            continue
        elif (group := group_of(full)) is not None:
            code = "import_not_granted"
            remedy = f"granted by allowed_syscalls: [{group!r}]"
        else:
            code = "import_is_network" if is_network(full) else "import_unknown"
            remedy = "which nothing grants"
        text = f"it imports the {kind} {printable(full, 120)}, {remedy}"
        problems.append(Reason(code, text))
    return list(dict.fromkeys(problems))  # a module may import the same twice, as Go's do


def _export_problems(info: ModuleInfo, abi: Abi) -> list[Reason]:
    problems = []
    required = _required(abi)
    for name, expected in (required | _OPTIONAL_EXPORTS[abi]).items():
        if name not in info.exports:
            if name in required:
                problems.append(_missing(name, expected))
            continue
        kind, index = info.exports[name]
        if kind != "function":
            text = f"its export {name} is a {kind}; expected a function {expected}"
            problems.append(Reason("export_not_a_function", text))
        elif index >= len(info.functions):
            text = f"its export {name} is a function that does not exist"
            problems.append(Reason("module_malformed", text))
        elif info.functions[index] != expected:
            found = _cut(info.functions[index])
            text = f"its export {name} has the type {found}; expected {expected}"
            problems.append(Reason("export_wrong_type", text))
    return problems


def _missing(name: str, expected: FuncSignature) -> Reason:
    """A module that takes no decision at all may have meant either contract."""
    text = f"it does not export the function {name} {expected}"
    if name != _DECIDES["json_v1"][0]:
        return Reason("export_missing", text)
    other, signature = _DECIDES["table_v1"]
    return Reason("decides_nothing", f"{text}, nor that of the table ABI, {other} {signature}")


def _cut(signature: FuncSignature) -> str:
    return printable(str(signature), 120)


def _memory_problems(info: ModuleInfo, max_memory_bytes: object) -> list[Reason]:
    problems = []
    if len(info.tables) > 1:
        problems.append(Reason("tables_many", f"it has {len(info.tables)} tables; one is allowed"))
    if info.exports.get("memory", ("",))[0] != "memory":
        text = "it does not export its memory under the name memory"
        problems.append(Reason("memory_not_exported", text))
    if len(info.memories) > 1:
        text = f"it has {len(info.memories)} memories; one is allowed"
        problems.append(Reason("memories_many", text))
    for memory in info.memories[:1]:
        if memory.shared or memory.is_64:
            what = " and ".join(["shared"] * memory.shared + ["64-bit"] * memory.is_64)
            problems.append(
                Reason("memory_not_plain", f"its memory is {what}; that is not allowed")
            )
        elif memory.minimum == 0:
            text = "its memory has no page at its start; at least one is expected"
            problems.append(Reason("memory_empty", text))
    return problems + _size_problems(info, max_memory_bytes)


def _size_problems(info: ModuleInfo, max_memory_bytes: object) -> list[Reason]:
    """What is wrong with the memory that it needs at its start."""
    problems = []
    start = sum(memory.minimum for memory in info.memories) * PAGE_BYTES
    beyond = max((offset + size for offset, size in info.data if size), default=0)
    if beyond > start and info.memories:
        text = f"its data ends at byte {beyond:,}, and its memory has {start:,} bytes at its start"
        problems.append(Reason("data_beyond_memory", text))
    needed = start + sum(table.minimum for table in info.tables) * ELEMENT_BYTES
    if isinstance(max_memory_bytes, int) and needed > max_memory_bytes:
        text = (
            f"it needs {needed:,} bytes of memory at its start; max_memory_bytes is "
            f"{max_memory_bytes:,}: raise it (at most {MAX_MEMORY_BYTES:,}) or link the "
            "module with a smaller stack (-C link-arg=-zstack-size=65536)"
        )
        problems.append(Reason("memory_at_start", text))
    return problems
