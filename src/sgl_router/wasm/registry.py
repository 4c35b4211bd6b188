"""The loaded plugins."""

import asyncio
import logging
from collections.abc import Collection

from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.module import read_module
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.runtime import WasmRuntime
from sgl_router.wasm.sandbox import Sandbox

_log = logging.getLogger(__name__)


class WasmPolicyRegistry:
    """Loads, lists and unloads plugins; one event loop's.

    Args:
        reserved_names: the built-in policies, whose names a plugin may not take.
    """

    def __init__(self, reserved_names: Collection[str]) -> None:
        self._reserved_names = reserved_names
        self._plugins: dict[str, WasmPolicy] = {}
        self._loading: set[str] = set()
        self._runtime: WasmRuntime | None = None
        # Threads at work, under the runtime's lock; they end after a load that was given up.
        self._building = 0
        self._closed = False

    async def load(self, config: WasmPolicyConfig) -> WasmPolicy:
        """Read, check, compile, instantiate and try out a plugin, in a thread.

        Raises PluginRefused.
        """
        name = str(config.name)  # of any type until it has been checked
        if name in self._plugins or name in self._loading:
            raise PluginRefused(name, ["a plugin of this name is loaded already; unload it first"])
        if self._closed:
            raise PluginRefused(name, ["the router has stopped"])
        if self._runtime is None:
            self._runtime = WasmRuntime()
        self._loading.add(name)
        try:
            policy = await asyncio.to_thread(self._build, config, self._runtime)
        finally:
            self._loading.discard(name)
        if self._closed:
            raise PluginRefused(name, ["the router stopped while it was being loaded"])
        self._plugins[name] = policy
        version = "" if policy.version is None else f" {policy.version}"
        _log.info(
            "plugin %s%s loaded from %s, sha256 %s",
            name,
            version,
            config.module_path,
            policy.digest,
        )
        return policy

    def get(self, name: str) -> WasmPolicy | None:
        return self._plugins.get(name)

    def names(self) -> list[str]:
        return list(self._plugins)

    def unload(self, name: str) -> bool:
        """Forget a plugin; False where none of that name is loaded."""
        return self._plugins.pop(name, None) is not None

    def close(self) -> None:
        """Unload every plugin and stop the clock."""
        self._plugins.clear()
        self._closed = True
        if (runtime := self._runtime) is not None:
            with runtime.linking:
                self._stop_clock()

    def _stop_clock(self) -> None:
        """Not while a thread is at work on a plugin: an endless `init` would never be stopped."""
        if self._runtime is not None and not self._building:
            self._runtime.close()
            self._runtime = None

    def _begin(self, config: WasmPolicyConfig, runtime: WasmRuntime) -> None:
        """Count this thread; not sooner: a load may be given up while it waits for a thread."""
        with runtime.linking:
            if self._closed:
                raise PluginRefused(str(config.name), ["the router has stopped"])
            self._building += 1

    def _build(self, config: WasmPolicyConfig, runtime: WasmRuntime) -> WasmPolicy:
        self._begin(config, runtime)
        try:
            module = read_module(config, self._reserved_names)
            return WasmPolicy(Sandbox(module, config, runtime))
        except DecisionError as error:
            raise PluginRefused(
                config.name, [f"it fails when tried out: {error.kind}: {error.detail}"]
            ) from error
        finally:
            with runtime.linking:
                self._building -= 1
                if self._closed:
                    self._stop_clock()
