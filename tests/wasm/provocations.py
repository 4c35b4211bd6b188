"""For each code of a refusal, a plugin that is refused for it and for nothing else.

A new code needs an entry in `PROVOCATIONS`. What is said then is the example on the pages
`docs/why-refused*.md`, so nothing in it may depend on the machine.
"""

import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from sgl_router.errors import PluginRefused
from sgl_router.policies import PolicyFactory, WasmPolicyConfig
from sgl_router.server.plugins import known_settings
from sgl_router.wasm.compile_child import NO_MEMORY
from sgl_router.wasm.manifest import MAX_MANIFEST_BYTES, SECTION
from sgl_router.wasm.module import MAX_MODULE_BYTES
from sgl_router.wasm.refusals import RefusalCode
from sgl_router.wasm.runtime import RuntimeOptions
from tests.wasm.compiling import framed, replace_child, saying
from tests.wasm.component_guests import component
from tests.wasm.guests import ONE_PAGE, Bench, assemble, guest, wasi
from tests.wasm.refusals import HEADER, exports
from tests.wasm.table_guests import table_guest

NAME = "my_policy"


@dataclass(frozen=True)
class Scene:
    """What a provocation may use: plugins are loaded by `bench`, what it changes is undone."""

    bench: Bench
    patch: pytest.MonkeyPatch

    async def load(self, wasm: bytes, name: str = NAME, **settings: Any) -> PluginRefused:
        """What a plugin is refused for; compiled in this process."""
        return await refusal_of(self.bench.factory, self.bench.config(wasm, name, **settings))

    async def compile(self, wasm: bytes) -> PluginRefused:
        """The same, compiled as a router does it, in a child, though another was before it."""
        factory = PolicyFactory(runtime=RuntimeOptions(cache_folder=None))
        try:
            return await refusal_of(factory, self.bench.config(wasm, NAME))
        finally:
            factory.close()

    def child_does(self, program: str) -> None:
        """Children that compile do this instead."""
        replace_child(self.bench.folder, self.patch, program)


async def refusal_of(factory: PolicyFactory, config: WasmPolicyConfig) -> PluginRefused:
    with pytest.raises(PluginRefused) as caught:
        await factory.load_wasm_plugin(config)
    return caught.value


@dataclass(frozen=True)
class Load:
    """A provocation that loads a plugin."""

    wasm: bytes = field(default_factory=guest, repr=False)
    name: str = NAME
    settings: Mapping[str, Any] = field(default_factory=dict)

    async def __call__(self, scene: Scene) -> PluginRefused:
        return await scene.load(self.wasm, self.name, **self.settings)


def _with(**settings: Any) -> Load:
    return Load(settings=settings)


def _saying(manifest: object, **settings: Any) -> Load:
    """With a manifest that is this in JSON."""
    return Load(guest(sections={SECTION: orjson.dumps(manifest)}), settings=settings)


def _importing(*fields: str) -> Load:
    return Load(guest(imports=" ".join(fields)))


# ---- those that take more than a module and its settings


async def _loaded_twice(scene: Scene) -> PluginRefused:
    await scene.bench.policy(guest(), NAME)
    return await scene.load(guest())


async def _with_a_slip(_scene: Scene) -> PluginRefused:
    """The settings of an upload; of those in a program, Python itself finds it."""
    with pytest.raises(PluginRefused) as caught:
        known_settings(NAME, "", {"max_memory": 1})
    return caught.value


async def _without_a_file(scene: Scene) -> PluginRefused:
    scene.patch.chdir(scene.bench.folder)
    config = WasmPolicyConfig("plugins/my_policy.wasm", NAME)
    return await refusal_of(scene.bench.factory, config)


async def _not_validated(scene: Scene) -> PluginRefused:
    wasm = exports(init="(func $init (export {}) (drop (i32.const 1)))")
    return await scene.compile(wasm.replace(b"\x41\x01\x1a", b"\x41\x01\x01"))


def _compiling(program: str) -> Callable[[Scene], Awaitable[PluginRefused]]:
    """Real limits would take a machine's time and memory: the child ends as if at one of them."""

    async def provoke(scene: Scene) -> PluginRefused:
        scene.child_does(program)
        return await scene.compile(guest())

    return provoke


async def _with_files_nowhere(scene: Scene) -> PluginRefused:
    scene.patch.setattr(tempfile, "tempdir", "/nowhere")
    imports = wasi("fd_sync", "i32")
    return await scene.load(guest(imports=imports), allowed_syscalls=["wasi:filesystem"])


async def _after_the_end(scene: Scene) -> PluginRefused:
    scene.bench.factory.close()
    return await scene.load(guest())


# ---- all of them

_SHARED = '(memory (export "memory") 1 2 shared)'
_SCHEMA = {"type": "object", "properties": {"threshold": {"type": "integer"}}}
_EMPTY_INTERFACE = '(instance $i) (export "sgl:router/policy@1.0.0" (instance $i))'
_GC_TYPE = HEADER + b"\x01\x03\x01\x5f\x00"
_DECIDES = "(export {}) (param i32 i32) (result i32)"
_KIB_70 = {"a": "x" * 70_004}

PROVOCATIONS: dict[RefusalCode, Callable[[Scene], Awaitable[PluginRefused]]] = {
    "name_invalid": Load(name="my policy"),
    "name_reserved": Load(name="round_robin"),
    "name_taken": _loaded_twice,
    "setting_unknown": _with_a_slip,
    "setting_out_of_range": _with(max_memory_bytes=200 * 1024 * 1024),
    "choice_unknown": _with(isolation="process"),
    "lane_with_files": Load(
        guest(imports=wasi("fd_sync", "i32")),
        settings={"allowed_syscalls": ["wasi:filesystem"], "lane": "inline"},
    ),
    "fallback_unknown": _with(fallback="least_connections"),
    "sha256_invalid": _with(sha256="ABCDEF"),
    "syscalls_not_a_list": _with(allowed_syscalls="wasi:random"),
    "syscall_unknown": _with(allowed_syscalls=["random_get"]),
    "syscall_is_network": _with(allowed_syscalls=["wasi:sockets"]),
    "config_not_an_object": _with(config=["threshold"]),
    "config_not_json": _with(config={"workers": {"a", "b"}}),
    "config_too_large": _with(config=_KIB_70),
    "file_unreadable": _without_a_file,
    "file_empty": Load(b""),
    "file_too_large": Load(HEADER + bytes(MAX_MODULE_BYTES)),
    "digest_mismatch": Load(exports(), settings={"sha256": "ab" * 32}),
    "not_a_module": Load(b"(module)"),
    "module_malformed": Load(exports()[:29]),
    "module_too_complex": _importing(*(wasi(f"f{i}", "i32") for i in range(1_001))),
    "types_not_allowed": Load(_GC_TYPE),
    "import_not_granted": _importing(wasi("random_get", "i32 i32")),
    "import_unknown": _importing('(import "env" "abort" (func (param i32 i32 i32 i32)))'),
    "import_is_network": _importing(wasi("sock_accept", "i32 i32 i32")),
    "import_not_a_function": Load(
        guest(
            imports='(import "env" "memory" (memory 1))',
            memory="",
            extra='(export "memory" (memory 0))',
        )
    ),
    "import_wrong_type": _importing(wasi("random_get", "i32")),
    "decides_nothing": Load(exports(select_worker='(func (export "choose"))')),
    "export_missing": Load(exports(alloc='(func (export "malloc"))')),
    "export_not_a_function": Load(exports(init="(global (export {}) i32 (i32.const 0))")),
    "export_wrong_type": Load(
        exports(alloc="(func (export {}) (param i64) (result i32) (i32.const 8))")
    ),
    "component_interface_missing": Load(assemble("(component)")),
    "component_wrong_type": Load(assemble(f"(component {_EMPTY_INTERFACE})")),
    "component_import": Load(
        assemble(f'(component (import "wasi:random/random@0.2.0" (instance)) {_EMPTY_INTERFACE})')
    ),
    "component_builtin": Load(
        component(
            outer="(type $r (resource (rep i32)))"
            "(core func (canon resource.new $r)) (core func (canon resource.drop $r))"
        )
    ),
    "memory_at_start": Load(exports('(memory (export "memory") 40)')),
    "memory_not_exported": Load(exports("(memory 1)")),
    "memory_not_plain": Load(exports(_SHARED)),
    "memory_empty": Load(exports('(memory (export "memory") 0)')),
    "memories_many": Load(exports(f"{ONE_PAGE} (memory 1)")),
    "tables_many": Load(exports(f"{ONE_PAGE} (table 1 funcref) (table 1 funcref)")),
    "data_beyond_memory": Load(guest(extra='(data (i32.const 65536) "x")')),
    "manifest_too_large": Load(guest(sections={SECTION: b" " * (MAX_MANIFEST_BYTES + 1)})),
    "manifest_not_json": _saying([]),
    "manifest_abi": _saying({"abi": 2}),
    "manifest_needs": _saying({"needs": "prefix_match"}),
    "manifest_need_unknown": _saying({"needs": ["gpu_temperature"]}),
    "manifest_reads_body": _saying({"needs": [], "reads_body": "no"}),
    "manifest_body_needed": _saying({"needs": ["request_text"], "reads_body": False}),
    "schema_invalid": _saying({"config_schema": "object"}),
    "schema_keyword": _saying({"config_schema": {"items": {"$ref": "#"}}}),
    "config_mismatch": _saying({"config_schema": _SCHEMA}, config={"threshold": "four"}),
    "module_invalid": _not_validated,
    "compile_memory": _compiling(saying(framed(NO_MEMORY, b""))),
    "compile_time": _compiling(f"os.kill(os.getpid(), {int(signal.SIGXCPU)})"),
    "compile_size": _compiling("while True: os.write(1, bytes(1024 * 1024))"),
    "compile_failed": _compiling(f"os.kill(os.getpid(), {int(signal.SIGSEGV)})"),
    "trial_trap": Load(exports(select_worker=f"(func $choose {_DECIDES} (unreachable))")),
    "trial_timeout": Load(
        exports(init="(func $init (export {}) (loop $l (br $l)))"),
        settings={"max_execution_time_ms": 100},
    ),
    "trial_out_of_memory": Load(guest(alloc="(i32.const 0)")),
    "trial_bad_output": Load(guest("[0]")),
    "trial_bad_choice": Load(guest('{"selected_worker": 2}')),
    "trial_plugin_error": Load(
        table_guest(
            extra='(func (export "sgl_table_v1_configure") (param i32 i32) (result i32) '
            "(i32.const 3))"
        )
    ),
    "folder_unavailable": _with_files_nowhere,
    "router_stopping": _after_the_end,
}
