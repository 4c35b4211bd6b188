"""What a plugin runs in: a store with limits, linked with what it was granted and nothing else."""

import shutil
import tempfile
import weakref

import wasmtime

from sgl_router.errors import PluginRefused
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.grants import has_files
from sgl_router.wasm.module import TABLE_ELEMENT_BYTES, PluginModule
from sgl_router.wasm.printable import printable
from sgl_router.wasm.runtime import WasmRuntime
from sgl_router.wasm.wasi import WasiHost

GUEST_FOLDER = "/tmp"  # the one directory a guest may see; private to the plugin


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
        self._folder: str | None = None
        if has_files(module.grants):
            self._folder = _new_folder(config.name)
            # Not when the plugin is unloaded: a router may still be deciding by it.
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        try:
            linker = wasmtime.Linker(runtime.engine)
            with runtime.linking:
                self.host.define(linker, module.grants)
            self._linked = linker.instantiate_pre(wasmtime.Module(runtime.engine, module.wasm))
        except wasmtime.WasmtimeError as error:
            raise PluginRefused(
                config.name, [f"the module is not valid: {printable(str(error), 300)}"]
            ) from error

    def new_store(self) -> wasmtime.Store:
        """A store for one instance, with the plugin's limits."""
        store = wasmtime.Store(self.runtime.engine)
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
        if self._folder is not None:
            with self.runtime.linking:
                store.set_wasi(self._wasi_config(self._folder))
        return store

    def instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        """Make the instance and run the module's start function."""
        return self._linked.instantiate(store)

    def _wasi_config(self, folder: str) -> wasmtime.WasiConfig:
        config = wasmtime.WasiConfig()
        config.preopen_dir(folder, GUEST_FOLDER)
        # Not methods of the sandbox: wasmtime lets go of them some time after the store, on a
        # thread of its own, and the folder would live as long.
        config.stdout_custom = self.host.log_output
        config.stderr_custom = self.host.log_output
        return config


def _new_folder(plugin: str) -> str:
    try:
        return tempfile.mkdtemp(prefix=f"sgl-router-{plugin}-")
    except OSError as error:
        raise PluginRefused(
            plugin, [f"no private directory can be made for wasi:filesystem: {error}"]
        ) from error
