"""What a plugin runs in: a store with limits, linked with what it was granted and nothing else."""

import weakref

import wasmtime

from sgl_router.errors import PluginRefused
from sgl_router.wasm.compile import CompileError
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.grants import has_files
from sgl_router.wasm.module import TABLE_ELEMENT_BYTES, PluginModule
from sgl_router.wasm.printable import printable
from sgl_router.wasm.private_folder import PrivateFolder
from sgl_router.wasm.runtime import WasmRuntime
from sgl_router.wasm.wasi import WasiHost
from sgl_router.wasm.wasi_files import FilesHost


class Sandbox:
    """A compiled plugin and everything that its instances have in common.

    Attributes:
        module: what was read and checked.
        config: the plugin's settings.
        runtime: the engine and its clock.
        host: what the guest's WASI calls see.
    """

    def __init__(
        self, module: PluginModule, config: WasmPolicyConfig, runtime: WasmRuntime
    ) -> None:
        """Compile and link; raises PluginRefused where wasmtime does not accept the module."""
        self.module = module
        self.config = config
        self.runtime = runtime
        self.host = WasiHost(config.name)
        self._files: FilesHost | None = None
        if has_files(module.grants):
            self.host = self._files = FilesHost(config.name, _new_folder(config.name))
            # Not when the plugin is unloaded: a router may still be deciding by it.
            weakref.finalize(self, self._files.close)
        try:
            linker = wasmtime.Linker(runtime.engine)
            with runtime.linking:
                self.host.define(linker, module.grants)
            self._linked = linker.instantiate_pre(runtime.compile(module.wasm, module.digest))
        except CompileError as error:
            raise PluginRefused(config.name, [error.reason]) from error
        except wasmtime.WasmtimeError as error:
            raise PluginRefused(
                config.name, [f"the module is not valid: {printable(str(error), 300)}"]
            ) from error

    def new_store(self) -> wasmtime.Store:
        """A store for one instance, with the plugin's limits; the one before is used no more.

        Raises wasmtime.WasmtimeError.
        """
        store = wasmtime.Store(self.runtime.engine)
        self.runtime.clock.guard(store)
        table_elements = self.module.table_elements
        # Limits are for each memory, not for their sum: so one memory, and a table that stays
        # as large as it starts. The second instance and memory are the driver's.
        store.set_limits(
            memory_size=self.config.max_memory_bytes - table_elements * TABLE_ELEMENT_BYTES,
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

    def instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        """Make the instance and run the module's start function."""
        return self._linked.instantiate(store)


def _new_folder(plugin: str) -> PrivateFolder:
    try:
        return PrivateFolder(plugin)
    except OSError as error:
        raise PluginRefused(
            plugin, [f"no private directory can be made for wasi:filesystem: {error}"]
        ) from error
