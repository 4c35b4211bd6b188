"""What a plugin runs in: a store with limits, linked with what it was granted and nothing else."""

import weakref

import orjson
import wasmtime

from sgl_router.errors import PluginRefused
from sgl_router.wasm.binary import ELEMENT_BYTES
from sgl_router.wasm.compile import CompileError
from sgl_router.wasm.component import ComponentDriver, LinkedComponent
from sgl_router.wasm.component_binary import ComponentInfo
from sgl_router.wasm.component_check import largest_table, tables_bytes, type_problems
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.grants import has_files
from sgl_router.wasm.module import PluginModule
from sgl_router.wasm.printable import printable
from sgl_router.wasm.private_folder import PrivateFolder
from sgl_router.wasm.refusals import Reason
from sgl_router.wasm.runtime import WasmRuntime
from sgl_router.wasm.wasi import WasiHost
from sgl_router.wasm.wasi_files import FilesHost


class Sandbox:
    """A compiled plugin and everything that its instances have in common.

    Attributes:
        module: what was read and checked.
        config: the plugin's settings.
        runtime: what all plugins share.
        clock: bounds the calls.
        host: what the guest's WASI calls see.
    """

    def __init__(
        self, module: PluginModule, config: WasmPolicyConfig, runtime: WasmRuntime
    ) -> None:
        """Compile and link; raises PluginRefused where wasmtime does not accept the module."""
        self.module = module
        self.config = config
        self.runtime = runtime
        self.clock = runtime.clock
        self.host = WasiHost(config.name)
        self._files: FilesHost | None = None
        if has_files(module.grants):
            self.host = self._files = FilesHost(config.name, _new_folder(config.name))
            # Not when the plugin is unloaded: a router may still be deciding by it.
            weakref.finalize(self, self._files.close)
        try:
            self._link()
        except CompileError as error:
            raise PluginRefused(config.name, [error.reason]) from error
        except wasmtime.WasmtimeError as error:
            text = f"the module is not valid: {printable(str(error), 300)}"
            raise PluginRefused(config.name, [Reason("module_invalid", text)]) from error

    def _link(self) -> None:
        """Raises PluginRefused, CompileError or wasmtime.WasmtimeError."""
        module, runtime = self.module, self.runtime
        if module.component is not None:
            components = runtime.components
            self.clock = components.clock
            component = components.compile(module.wasm, module.digest)
            problems = type_problems(component, components.engine)
            if problems:
                raise PluginRefused(self.config.name, problems)
            self._component = LinkedComponent(component, components)
            return
        linker = wasmtime.Linker(runtime.engine)
        with runtime.linking:
            self.host.define(linker, module.grants)
        self._linked = linker.instantiate_pre(runtime.compile(module.wasm, module.digest))

    def new_store(self) -> wasmtime.Store:
        """A store for one instance, with the plugin's limits; the one before is used no more.

        Raises wasmtime.WasmtimeError.
        """
        if self.module.component is not None:
            return self._component_store(self.module.component)
        store = wasmtime.Store(self.runtime.engine)
        self.runtime.clock.guard(store)
        table_elements = self.module.table_elements
        # Limits are for each memory, not for their sum: so one memory, and a table that stays
        # as large as it starts. The second instance and memory are the driver's.
        store.set_limits(
            memory_size=self.config.max_memory_bytes - table_elements * ELEMENT_BYTES,
            table_elements=table_elements,
            instances=2,
            tables=1,
            memories=2,
        )
        if self._files is not None:
            try:
                self._files.new_instance()
            except OSError as error:
                raise wasmtime.WasmtimeError(
                    f"its private directory cannot be opened: {error}"
                ) from error
        return store

    def _component_store(self, declared: ComponentInfo) -> wasmtime.Store:
        store = wasmtime.Store(self.runtime.components.engine)
        self.clock.guard(store)
        store.set_limits(
            memory_size=self.config.max_memory_bytes - tables_bytes(declared),
            table_elements=largest_table(declared),
            instances=declared.instances,
            tables=len(declared.tables),
            memories=1,
        )
        return store

    def start_component(self, store: wasmtime.Store, declared: ComponentInfo) -> ComponentDriver:
        """Make the instance of a component, and give it the configuration.

        Raises wasmtime.WasmtimeError and GuestError.
        """
        pages = sum(memory.minimum for memory in declared.memories)
        return self._component.start(store, orjson.dumps(dict(self.config.config)), pages)

    def instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        """Make the instance of a core module and run its start function."""
        return self._linked.instantiate(store)


def _new_folder(plugin: str) -> PrivateFolder:
    try:
        return PrivateFolder(plugin)
    except OSError as error:
        text = f"no private directory can be made for wasi:filesystem: {error}"
        raise PluginRefused(plugin, [Reason("folder_unavailable", text)]) from error
