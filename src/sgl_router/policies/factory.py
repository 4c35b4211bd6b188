"""`PolicyFactory`: policies by name, built in or plugged in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from sgl_router.core.policy import Policy
from sgl_router.policies.builtin import BUILTIN_POLICIES, PowerOfTwo
from sgl_router.policies.cache_aware import CacheAware
from sgl_router.policies.least_load import LeastLoad
from sgl_router.policies.manual import Manual
from sgl_router.policies.waiting import fresh_ms
from sgl_router.wasm.artifacts import default_cache_folder
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.registry import WasmPolicyRegistry
from sgl_router.wasm.runtime import RuntimeOptions

_PREFIX = "wasm:"


def shipped_plugins() -> dict[str, Path]:
    """The compiled plugins that come with this package: name -> file."""
    folder = Path(str(files("sgl_router.policies"))) / "plugins"
    return {path.stem: path for path in sorted(folder.glob("*.wasm"))}


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The settings of the built-in policies that have any.

    Defaults are sglang-router's where it has the setting.

    Attributes:
        cache_threshold, balance_abs_threshold, balance_rel_threshold: of `CacheAware`.
        max_idle_secs: of `Manual`.
        engine_metrics_interval_secs: between two polls of an engine's metrics, which `PowerOfTwo`
            and `LeastLoad` use.
    """

    cache_threshold: float = 0.3
    balance_abs_threshold: float = 64
    balance_rel_threshold: float = 1.5
    max_idle_secs: float = 14_400.0
    engine_metrics_interval_secs: float = 1.0


class PolicyFactory:
    """Loads, lists and unloads plugins, and makes policies by name.

    Args:
        options: the built-in policies' settings.
        runtime: how plugins are compiled; by default in processes of their own, and kept on disk.

    Attributes:
        plugins: the loaded ones, and how they are swapped.
    """

    def __init__(
        self, options: PolicyOptions | None = None, runtime: RuntimeOptions | None = None
    ) -> None:
        options = options or PolicyOptions()
        self._builtin: dict[str, Callable[[], Policy]] = {p.name: p for p in BUILTIN_POLICIES}
        assert len(self._builtin) == len(BUILTIN_POLICIES), "no two built-ins share a name"
        self._builtin[CacheAware.name] = partial(
            CacheAware,
            options.cache_threshold,
            options.balance_abs_threshold,
            options.balance_rel_threshold,
        )
        self._builtin[Manual.name] = partial(Manual, options.max_idle_secs)
        fresh = fresh_ms(options.engine_metrics_interval_secs)
        self._builtin[PowerOfTwo.name] = partial(PowerOfTwo, fresh)
        self._builtin[LeastLoad.name] = partial(LeastLoad, fresh)
        runtime = runtime or RuntimeOptions(cache_folder=default_cache_folder())
        self.plugins = WasmPolicyRegistry(self._builtin, runtime)

    async def load_wasm_plugin(self, config: WasmPolicyConfig) -> None:
        """Check, compile, instantiate and test the plugin, off the event loop.

        Raises PluginRefused with every reason found; a plugin of that name stays as it was.
        """
        await self.plugins.load(config)

    def create_by_name(self, name: str) -> Policy | None:
        """The policy of that name, or None where there is none.

        A built-in policy is made anew by each call. A plugin is one policy, however often it is
        asked for: all its users share its module and its state. `wasm:NAME` means the plugin.
        """
        if name in self._builtin:
            return self._builtin[name]()
        return self.plugins.get(name.removeprefix(_PREFIX))

    def list_wasm_plugins(self) -> list[str]:
        """The names of the loaded plugins, in the order in which they were loaded."""
        return self.plugins.names()

    def unload_wasm_plugin(self, name: str) -> bool:
        """Forget the plugin; False where none of that name is loaded.

        A router that still decides by it goes on doing so until it is given another policy.
        """
        return self.plugins.unload(name)

    def list_builtin_policies(self) -> list[str]:
        """The names that are always there."""
        return list(self._builtin)

    def close(self) -> None:
        """Unload every plugin and stop the clock that bounds them."""
        self.plugins.close()
