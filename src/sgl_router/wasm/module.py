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
from sgl_router.wasm.wasi_types import WASI_TYPES

Abi = Literal["json_v1", "table_v1"]
"""The contract that a module keeps; known by what it exports."""

MAX_MODULE_BYTES = 4 * 1024 * 1024
PAGE_BYTES = 65_536
TABLE_ELEMENT_BYTES = 8  # what wasmtime spends on one

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
    (b"(component", "WebAssembly text, of a component; this router takes core modules"),
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
        table_elements: elements of its table at the start.
        imports: full names of the functions that it imports, all of them granted.
        grants: full names of the imports that it may use.
        manifest: what it says of itself.
    """

    wasm: bytes
    digest: str
    abi: Abi
    exports: frozenset[str]
    table_elements: int
    imports: frozenset[str]
    grants: frozenset[str]
    manifest: Manifest


def read_module(config: WasmPolicyConfig, builtin_names: Collection[str]) -> PluginModule:
    """Read and check a plugin; raises PluginRefused with every reason found."""
    try:
        wasm = read_file(config.module_path)
    except (OSError, TypeError, ValueError) as error:
        problems = config.problems(builtin_names)
        problems.append(f"cannot read module_path {config.module_path!r:.300}: {error}")
        raise PluginRefused(str(config.name), problems) from error
    return check_module(config, wasm, builtin_names)


def read_file(path: str) -> bytes:
    """The file's bytes, one more than allowed at most; never blocks on a FIFO or a device.

    Raises OSError, TypeError or ValueError where it is not a regular file that can be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_MODULE_BYTES + 1)
    finally:
        os.close(fd)


def check_module(
    config: WasmPolicyConfig, wasm: bytes, builtin_names: Collection[str]
) -> PluginModule:
    """Check a plugin's settings and its module, whatever `module_path` holds.

    Raises PluginRefused with every reason found.
    """
    problems = config.problems(builtin_names)
    settings_are_sound = not problems
    info = ModuleInfo()
    if (found := _not_a_core_module(wasm)) is not None:
        problems.append(found)
    else:
        try:
            info = read_info(wasm)
        except MalformedModule as error:
            found = f"the module is malformed: {error}"
            problems.append(found)
    digest = hashlib.sha256(wasm).hexdigest()
    if len(wasm) <= MAX_MODULE_BYTES:  # else there are bytes that were not read
        problems += _digest_problems(digest, config.sha256)
    if found is not None:
        raise PluginRefused(str(config.name), problems)
    grants = _grants_of(config.allowed_syscalls)
    abi = _abi_of(info)
    manifest, of_manifest = _read_manifest(info)
    problems += of_manifest
    problems += _import_problems(info, grants)
    problems += _export_problems(info, abi)
    problems += _memory_problems(info, config.max_memory_bytes)
    if settings_are_sound and not of_manifest:
        problems += config_problems(manifest, config.config)
    if problems:
        raise PluginRefused(str(config.name), problems)
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


def _not_a_core_module(wasm: bytes) -> str | None:
    """What the bytes are, where they are not a core module of a fitting size."""
    if len(wasm) > MAX_MODULE_BYTES:
        return f"the module has more than {MAX_MODULE_BYTES:,} bytes, the most that is allowed"
    if not wasm:
        return "the module's file is empty"
    if is_component(wasm):
        return "it is a WebAssembly component; this router takes core modules"
    if wasm[:4] == b"\0asm":
        return None
    head = wasm[:64].lstrip()
    for prefix, what in _LOOKS_LIKE:
        if head.startswith(prefix):
            return f"it is not a WebAssembly module but {what}"
    return f"it is not a WebAssembly module: it starts with {wasm[:8]!r} instead of b'\\x00asm'"


def _digest_problems(digest: str, pinned: object) -> list[str]:
    if pinned is None or pinned == digest or not isinstance(pinned, str):
        return []
    return [
        f"the module's SHA-256 is {digest}, and the setting sha256 asks for {pinned!r:.80}; change "
        "the setting if this is the module that is meant"
    ]


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


def _read_manifest(info: ModuleInfo) -> tuple[Manifest, list[str]]:
    section = info.custom_sections.get(SECTION)
    return (Manifest(), []) if section is None else read_manifest(section)


def _import_problems(info: ModuleInfo, grants: frozenset[str]) -> list[str]:
    problems = []
    signatures = iter(info.functions)  # those of imported functions come first
    for module, name, kind in info.imports:
        full = f"{module}.{name}"
        signature = next(signatures) if kind == "function" else None
        expected = WASI_TYPES.get(full)
        if signature is None:
            remedy = "which nothing grants: only functions are imported"
        elif expected is not None and signature != expected:
            remedy = f"with the type {_cut(signature)}; it has the type {expected}"
        elif full in grants:
            continue
        elif (group := group_of(full)) is not None:
            remedy = f"granted by allowed_syscalls: [{group!r}]"
        else:
            remedy = "which nothing grants"
        problems.append(f"it imports the {kind} {printable(full, 120)}, {remedy}")
    return problems


def _export_problems(info: ModuleInfo, abi: Abi) -> list[str]:
    problems = []
    required = _required(abi)
    for name, expected in (required | _OPTIONAL_EXPORTS[abi]).items():
        if name not in info.exports:
            if name in required:
                problems.append(
                    f"it does not export the function {name} {expected}{_or_else(name)}"
                )
            continue
        kind, index = info.exports[name]
        if kind != "function":
            problems.append(f"its export {name} is a {kind}; expected a function {expected}")
        elif index >= len(info.functions):
            problems.append(f"its export {name} is a function that does not exist")
        elif info.functions[index] != expected:
            problems.append(
                f"its export {name} has the type {_cut(info.functions[index])}; expected {expected}"
            )
    return problems


def _or_else(name: str) -> str:
    """A module that takes no decision at all may have meant either contract."""
    if name != _DECIDES["json_v1"][0]:
        return ""
    other, signature = _DECIDES["table_v1"]
    return f", nor that of the table ABI, {other} {signature}"


def _cut(signature: FuncSignature) -> str:
    return printable(str(signature), 120)


def _memory_problems(info: ModuleInfo, max_memory_bytes: object) -> list[str]:
    problems = []
    if len(info.tables) > 1:
        problems.append(f"it has {len(info.tables)} tables; one is allowed")
    if info.exports.get("memory", ("",))[0] != "memory":
        problems.append("it does not export its memory under the name memory")
    if len(info.memories) > 1:
        problems.append(f"it has {len(info.memories)} memories; one is allowed")
    for memory in info.memories[:1]:
        if memory.shared or memory.is_64:
            what = " and ".join(["shared"] * memory.shared + ["64-bit"] * memory.is_64)
            problems.append(f"its memory is {what}; that is not allowed")
        elif memory.minimum == 0:
            problems.append("its memory has no page at its start; at least one is expected")
    start = sum(memory.minimum for memory in info.memories) * PAGE_BYTES
    beyond = max((offset + size for offset, size in info.data if size), default=0)
    if beyond > start and info.memories:
        problems.append(
            f"its data ends at byte {beyond:,}, and its memory has {start:,} bytes at its start"
        )
    needed = start + sum(table.minimum for table in info.tables) * TABLE_ELEMENT_BYTES
    if isinstance(max_memory_bytes, int) and needed > max_memory_bytes:
        problems.append(
            f"it needs {needed:,} bytes of memory at its start; max_memory_bytes is "
            f"{max_memory_bytes:,}: raise it (at most {MAX_MEMORY_BYTES:,}) or link the "
            "module with a smaller stack (-C link-arg=-zstack-size=65536)"
        )
    return problems
