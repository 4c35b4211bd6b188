"""What a router would say of a module, read from its bytes: nothing of the plugin runs.

`sgl-router plugin check` shows it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from sgl_router.devkit.target import Target
from sgl_router.errors import PluginRefused
from sgl_router.testing.settings import BUILTIN_NAMES
from sgl_router.wasm.binary import (
    ELEMENT_BYTES,
    MAGIC,
    MalformedModule,
    ModuleInfo,
    is_component,
    read_info,
)
from sgl_router.wasm.component_binary import ComponentInfo, read_component
from sgl_router.wasm.component_check import tables_bytes
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.driver import PAGE_BYTES
from sgl_router.wasm.grants import granted, group_of
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.module import (
    check_module,
    most_bytes,
    read_file,
)
from sgl_router.wasm.printable import printable
from sgl_router.wasm.refusals import RefusalCode, refusals

_NAMES_SECTIONS = ("name", "component-name")
_CODES: Mapping[str, RefusalCode] = {code: code for code in get_args(RefusalCode)}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing for which a router would refuse the plugin.

    Attributes:
        code: of what kind it is; `docs/why-refused.md` tells more.
        text: what was found, and what was expected.
        remedy: what to do.
    """

    code: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module.

    Attributes:
        name: its full name.
        granted: whether the settings grant it.
        group: what would, or None where nothing does.
    """

    name: str
    granted: bool
    group: str | None


@dataclass(frozen=True, slots=True)
class CheckedModule:
    """All that is known of a module without running it. What could not be read is None or empty.

    Attributes:
        file, size, sha256: of its bytes.
        max_bytes: how large one of its kind may be.
        kind: whether it is a core module or a component.
        abi: the contract that it keeps; None where a router refuses it.
        memory_bytes: of its memories and tables at its start.
        max_memory_bytes: what its settings allow.
        imports: what it takes from the host, each once.
        exports: all of their names.
        manifest: what it says of itself, as it stands there.
        named: whether a trap's backtrace would have the functions' names.
        problems: why a router with these settings would refuse it.
    """

    file: str
    size: int
    max_bytes: int
    sha256: str
    kind: Literal["core module", "component"] | None
    abi: str | None
    memory_bytes: int | None
    max_memory_bytes: int
    imports: Sequence[Import]
    exports: Sequence[str]
    manifest: Mapping[str, Any] | None
    named: bool
    problems: Sequence[Problem]

    @property
    def accepted(self) -> bool:
        return not self.problems


def check_target(target: Target) -> CheckedModule:
    """Check a module with its settings. Raises OSError or ValueError where it cannot be read."""
    wasm = read_file(str(target.module))
    config = target.config
    problems: Sequence[Problem] = ()
    abi = None
    try:
        abi = check_module(config, wasm, BUILTIN_NAMES).abi
    except PluginRefused as error:
        problems = [
            Problem(code, text, refusals()[_CODES[code]].remedy)
            for code, text in zip(error.codes, error.reasons, strict=True)
        ]
    kind, info = _read(wasm)
    return CheckedModule(
        file=str(target.module),
        size=len(wasm),
        max_bytes=most_bytes(wasm),
        sha256=hashlib.sha256(wasm).hexdigest(),
        kind=kind,
        abi=abi,
        memory_bytes=None if info is None else _at_start(info),
        max_memory_bytes=config.max_memory_bytes,
        imports=[] if info is None else list(_imports(info, config)),
        exports=[] if info is None else [printable(name, 120) for name in info.exports],
        manifest=None if info is None else _manifest(info),
        named=info is not None and any(name in info.custom_sections for name in _NAMES_SECTIONS),
        problems=problems,
    )


def _read(
    wasm: bytes,
) -> tuple[Literal["core module", "component"] | None, ModuleInfo | ComponentInfo | None]:
    try:
        if is_component(wasm):
            return "component", read_component(wasm)
        return ("core module", read_info(wasm)) if wasm[:4] == MAGIC else (None, None)
    except MalformedModule:  # which is one of the reasons
        return None, None


def _at_start(info: ModuleInfo | ComponentInfo) -> int:
    pages = sum(memory.minimum for memory in info.memories)
    if isinstance(info, ComponentInfo):
        return pages * PAGE_BYTES + tables_bytes(info)
    elements = sum(table.minimum for table in info.tables)
    return pages * PAGE_BYTES + elements * ELEMENT_BYTES


def _imports(info: ModuleInfo | ComponentInfo, config: WasmPolicyConfig) -> Iterable[Import]:
    if isinstance(info, ComponentInfo):
        for name in info.imports:
            yield Import(printable(name, 120), False, None)
        return
    try:
        grants = granted(config.allowed_syscalls)
    except TypeError:  # a list of something else, which is one of the reasons
        grants = frozenset()
    for full in dict.fromkeys(f"{module}.{name}" for module, name, _ in info.imports):
        yield Import(printable(full, 120), full in grants, group_of(full))


def _manifest(info: ModuleInfo | ComponentInfo) -> Mapping[str, Any] | None:
    try:
        said = orjson.loads(info.custom_sections.get(SECTION, b"null"))
    except orjson.JSONDecodeError:  # which is one of the reasons
        return None
    return said if isinstance(said, dict) else None
