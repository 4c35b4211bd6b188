"""The loaded plugins."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from sgl_router.errors import DecisionError, FailureKind, PluginRefused
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.module import PluginModule, check_module, read_module
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.refusals import Reason, RefusalCode
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.status import PluginSource
from sgl_router.wasm.version import PluginVersion

_T = TypeVar("_T")

MAX_BUILDS = 3
"""Versions that are built at a time; each holds a thread for as long as its plugin may take."""

MAX_COMPONENT_BUILDS = 1
"""Components that are built at a time besides: as many as are compiled (`component_limits`). One
may take minutes, and those that wait for it must not take the core modules' turns."""

# A version that is tried out is in no quarantine.
_OF_TRIAL: dict[FailureKind, RefusalCode] = {
    "trap": "trial_trap",
    "timeout": "trial_timeout",
    "out_of_memory": "trial_out_of_memory",
    "bad_output": "trial_bad_output",
    "out_of_range": "trial_bad_choice",
    "unhealthy_pick": "trial_bad_choice",
    "plugin_error": "trial_plugin_error",
}

_log = logging.getLogger(__name__)


class WasmPolicyRegistry:
    """Loads, swaps, lists and unloads plugins; one event loop's.

    Args:
        reserved_names: the built-in policies, whose names a plugin may not take.
        options: how plugins are compiled and called.
    """

    def __init__(
        self, reserved_names: Collection[str], options: RuntimeOptions | None = None
    ) -> None:
        self._reserved_names = reserved_names
        self._options = options or RuntimeOptions()
        self._plugins: dict[str, WasmPolicy] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._builds = asyncio.Semaphore(MAX_BUILDS)
        self._component_builds = asyncio.Semaphore(MAX_COMPONENT_BUILDS)
        self._runtime: WasmRuntime | None = None
        self._closed = False

    async def load(
        self,
        config: WasmPolicyConfig,
        wasm: bytes | None = None,
        source: PluginSource | None = None,
    ) -> WasmPolicy:
        """Read, check, compile, instantiate and try out a plugin, in a thread.

        Args:
            config: its settings.
            wasm: its module; None: what is at `module_path`.
            source: where it comes from; None: from the file at `module_path`.

        Raises PluginRefused, also where there is a plugin of that name.
        """
        name = str(config.name)  # of any type until it has been checked
        lock = self._locks.get(name)
        if name in self._plugins or (lock is not None and lock.locked()):
            text = "a plugin of this name is loaded already; unload it first"
            raise PluginRefused(name, [Reason("name_taken", text)])
        policy, _ = await self.put(config, wasm, source)
        return policy

    async def put(
        self,
        config: WasmPolicyConfig,
        wasm: bytes | None = None,
        source: PluginSource | None = None,
    ) -> tuple[WasmPolicy, Literal["loaded", "replaced", "unchanged"]]:
        """As `load`, but a plugin of that name is replaced.

        It decides from the next decision on; where that is refused, the version before stays.
        Where neither the module nor the settings differ, nothing happens.
        """
        async with self.lock(str(config.name)):
            source = source or PluginSource("file", str(config.module_path))
            version = await self.build(config, wasm, source)
            return self.install(version)

    def lock(self, name: str) -> asyncio.Lock:
        """Held by whoever changes the plugin of that name."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def build(
        self, config: WasmPolicyConfig, wasm: bytes | None, source: PluginSource
    ) -> PluginVersion:
        """A version that has been tried out, and is in use nowhere. Raises PluginRefused."""
        check = partial(_checked, config, wasm, self._reserved_names)
        module = await _in_thread(self._builds, check)
        turns = self._builds if module.component is None else self._component_builds
        return await _in_thread(turns, partial(self._build, module, config, source))

    def install(
        self, version: PluginVersion
    ) -> tuple[WasmPolicy, Literal["loaded", "replaced", "unchanged"]]:
        """Take a version into use. Raises PluginRefused where the router has stopped meanwhile."""
        name = version.config.name
        if self._closed:
            raise _stopping(name, "the router stopped while it was being loaded")
        policy = self._plugins.get(name)
        if policy is None:
            policy = self._plugins[name] = WasmPolicy(version)
            _log.info("plugin %s loaded: %s", name, version)
            return policy, "loaded"
        policy.stale = None
        if same(policy.current, version):
            policy.current.source, policy.current.config = version.source, version.config
            return policy, "unchanged"
        policy.swap(version)
        return policy, "replaced"

    def get(self, name: str) -> WasmPolicy | None:
        return self._plugins.get(name)

    def names(self) -> list[str]:
        return list(self._plugins)

    def unload(self, name: str) -> bool:
        """Forget a plugin; False where none of that name is loaded."""
        return self._plugins.pop(name, None) is not None

    def put_back(self, policy: WasmPolicy) -> None:
        """Take back that a plugin was unloaded."""
        self._plugins[policy.name] = policy

    def close(self) -> None:
        """Unload every plugin, and end what is under way."""
        self._plugins.clear()
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def _begin(self, name: str) -> WasmRuntime:
        """Not sooner than on the thread: a load may be given up while it waits for one."""
        with self._lock:
            if self._closed:
                raise _stopping(name, "the router has stopped")
            if self._runtime is None:
                self._runtime = WasmRuntime(self._options)
            return self._runtime

    def _build(
        self, module: PluginModule, config: WasmPolicyConfig, source: PluginSource
    ) -> PluginVersion:
        name = config.name
        runtime = self._begin(name)
        id = f"{module.digest[:12]}-{next(self._numbers)}"
        try:
            return PluginVersion(Sandbox(module, config, runtime), source, id)
        except DecisionError as error:
            text = f"it fails when tried out: {error.why}{error.where}"
            raise PluginRefused(name, [Reason(_OF_TRIAL[error.kind], text)]) from error


def _checked(
    config: WasmPolicyConfig, wasm: bytes | None, reserved_names: Collection[str]
) -> PluginModule:
    if wasm is None:
        return read_module(config, reserved_names)
    return check_module(config, wasm, reserved_names)


async def _in_thread(turns: asyncio.Semaphore, work: Callable[[], _T]) -> _T:
    """What `work` returns in a thread, of which there are few: who waits his turn has none.

    Where this is cancelled the work goes on, as threads do, and its turn ends with it.
    """

    def ended(job: asyncio.Future[_T]) -> None:
        turns.release()
        if not job.cancelled():
            job.exception()  # asked for, since whoever gave up does not ask

    await turns.acquire()
    try:
        job = asyncio.get_running_loop().run_in_executor(None, work)
    except BaseException:
        turns.release()
        raise
    job.add_done_callback(ended)
    return await asyncio.shield(job)


def _stopping(plugin: str, text: str) -> PluginRefused:
    return PluginRefused(plugin, [Reason("router_stopping", text)])


def same(one: PluginVersion, other: PluginVersion) -> bool:
    """Whether two versions have the same module and the same settings, wherever they come from."""
    settings = replace(one.config, module_path=other.config.module_path)
    return one.digest == other.digest and settings == other.config
