"""Reads a plugin's file and refuses, before anything is compiled, what can be refused.

All reasons are collected, so that an author mends a plugin in one go.
"""

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass

from sgl_router.errors import PluginRefused
from sgl_router.wasm.binary import (
    FuncSignature,
    MalformedModule,
    ModuleInfo,
    is_component,
    read_info,
)
from sgl_router.wasm.config import MAX_MEMORY_BYTES, WasmPolicyConfig
from sgl_router.wasm.grants import granted, group_of
from sgl_router.wasm.manifest import SECTION, Manifest, config_problems, read_manifest
from sgl_router.wasm.printable import printable

MAX_MODULE_BYTES = 4 * 1024 * 1024
PAGE_BYTES = 65_536
TABLE_ELEMENT_BYTES = 8  # what wasmtime spends on one

_NOTHING = FuncSignature((), ())
_POINTER_AND_LENGTH = FuncSignature(("i32", "i32"), ())
REQUIRED_EXPORTS = {
    "init": _NOTHING,
    "alloc": FuncSignature(("i32",), ("i32",)),
    "dealloc": _POINTER_AND_LENGTH,
    "select_worker": FuncSignature(("i32", "i32"), ("i32",)),
}
OPTIONAL_EXPORTS = {"_initialize": _NOTHING, "on_request_complete": _POINTER_AND_LENGTH}

_LOOKS_LIKE = (
    (b"\x7fELF", "an ELF file or a precompiled artifact"),
    (b"(module", "WebAssembly text; assemble it first, for instance with wat2wasm"),
    (b"<", "an HTML or XML page"),
    (b"#!", "a script"),
)


@dataclass(frozen=True, slots=True)
class PluginModule:
    """A module that may be compiled.

    Attributes:
        wasm: its bytes.
        digest: their SHA-256, hexadecimal.
        exports: the names of those of its exports that the contract knows.
        table_elements: elements of its table at the start.
        imports: full names of the functions that it imports, all of them granted.
        grants: full names of the imports that it may use.
        manifest: what it says of itself.
    """

    wasm: bytes
    digest: str
    exports: frozenset[str]
    table_elements: int
    imports: frozenset[str]
    grants: frozenset[str]
    manifest: Manifest


def read_module(config: WasmPolicyConfig, builtin_names: Collection[str]) -> PluginModule:
    """Read and check a plugin; raises PluginRefused with every reason found."""
    problems = config.problems(builtin_names)
    wasm = b""
    try:
        wasm = _read_file(config.module_path)
    except (OSError, TypeError, ValueError) as error:
        problems.append(f"cannot read module_path {config.module_path!r}: {error}")
    else:
        if (found := _not_a_core_module(wasm)) is not None:
            problems.append(found)
    if problems:
        raise PluginRefused(str(config.name), problems)
    try:
        info = read_info(wasm)
    except MalformedModule as error:
        raise PluginRefused(config.name, [f"the module is malformed: {error}"]) from error
    grants = granted(config.allowed_syscalls)
    manifest, problems = _read_manifest(info)
    problems += _import_problems(info, grants)
    problems += _export_problems(info)
    problems += _memory_problems(info, config)
    if not problems:
        problems = config_problems(manifest, config.config)
    if problems:
        raise PluginRefused(config.name, problems)
    return PluginModule(
        wasm=wasm,
        digest=hashlib.sha256(wasm).hexdigest(),
        exports=frozenset(info.exports) & (REQUIRED_EXPORTS.keys() | OPTIONAL_EXPORTS.keys()),
        table_elements=sum(table.minimum for table in info.tables),
        imports=frozenset(f"{module}.{name}" for module, name, _ in info.imports),
        grants=grants,
        manifest=manifest,
    )


def _read_file(path: str) -> bytes:
    """The file's bytes, one more than allowed at most; never blocks on a FIFO or a device."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a regular file")
        return file.read(MAX_MODULE_BYTES + 1)


def _not_a_core_module(wasm: bytes) -> str | None:
    """What the bytes are, where they are not a core module of a fitting size."""
    if len(wasm) > MAX_MODULE_BYTES:
        return f"the module has more than {MAX_MODULE_BYTES:,} bytes, the most that is allowed"
    if not wasm:
        return "the module's file is empty"
    if is_component(wasm):
        return "it is a WebAssembly component; this router takes core modules (JSON ABI version 1)"
    if wasm[:4] == b"\0asm":
        return None
    head = wasm[:64].lstrip()
    for prefix, what in _LOOKS_LIKE:
        if head.startswith(prefix):
            return f"it is not a WebAssembly module but {what}"
    return f"it is not a WebAssembly module: it starts with {wasm[:8]!r} instead of b'\\x00asm'"


def _read_manifest(info: ModuleInfo) -> tuple[Manifest, list[str]]:
    section = info.custom_sections.get(SECTION)
    return (Manifest(), []) if section is None else read_manifest(section)


def _import_problems(info: ModuleInfo, grants: frozenset[str]) -> list[str]:
    problems = []
    for module, name, kind in info.imports:
        full = f"{module}.{name}"
        if kind == "function" and full in grants:
            continue
        group = group_of(full) if kind == "function" else None
        remedy = (
            f"granted by allowed_syscalls: [{group!r}]"
            if group is not None
            else "which nothing grants"
        )
        problems.append(f"it imports the {kind} {printable(full, 120)}, {remedy}")
    return problems


def _export_problems(info: ModuleInfo) -> list[str]:
    if "sgl_table_v1_select" in info.exports and "select_worker" not in info.exports:
        return ["it speaks the table ABI; this router takes modules of the JSON ABI version 1"]
    problems = []
    for name, expected in (REQUIRED_EXPORTS | OPTIONAL_EXPORTS).items():
        if name not in info.exports:
            if name in REQUIRED_EXPORTS:
                problems.append(f"it does not export the function {name} {expected}")
            continue
        kind, index = info.exports[name]
        if kind != "function":
            problems.append(f"its export {name} is a {kind}; expected a function {expected}")
        elif index >= len(info.functions):
            problems.append(f"its export {name} is a function that does not exist")
        elif info.functions[index] != expected:
            problems.append(
                f"its export {name} has the type {info.functions[index]}; expected {expected}"
            )
    return problems


def _memory_problems(info: ModuleInfo, config: WasmPolicyConfig) -> list[str]:
    if len(info.tables) > 1:
        return [f"it has {len(info.tables)} tables; one is allowed"]
    if info.exports.get("memory", ("",))[0] != "memory":
        return ["it does not export its memory under the name memory"]
    if len(info.memories) != 1:
        return [f"it has {len(info.memories)} memories; one is allowed"]
    memory = info.memories[0]
    if memory.shared or memory.is_64:
        return [f"its memory is {'shared' if memory.shared else '64-bit'}; neither is allowed"]
    needed = memory.minimum * PAGE_BYTES + sum(
        table.minimum * TABLE_ELEMENT_BYTES for table in info.tables
    )
    if needed > config.max_memory_bytes:
        return [
            f"it needs {needed:,} bytes of memory at its start; max_memory_bytes is "
            f"{config.max_memory_bytes:,}: raise it (at most {MAX_MEMORY_BYTES:,}) or link the "
            "module with a smaller stack (-C link-arg=-zstack-size=65536)"
        ]
    return []
