"""The plugins of a router: from its settings, from its store, from whoever sends one."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sgl_router.config import RouterConfig
from sgl_router.core.dispatch import Dispatcher
from sgl_router.errors import ConfigError, PluginRefused, RequestError, RouterError
from sgl_router.policies import PolicyFactory, WasmPolicyConfig, shipped_plugins
from sgl_router.server.plugin_keeping import PluginKeeping
from sgl_router.server.plugins import known_settings, plugin_settings, plugins_to_load
from sgl_router.server.policy_use import (
    PolicyUse,
    configured_policy,
    no_such_plugin,
    now_ms,
)
from sgl_router.server.watch import FileWatch
from sgl_router.wasm.module import read_file
from sgl_router.wasm.policy import Change, WasmPolicy
from sgl_router.wasm.status import PluginSource, PluginStatus, PutResult
from sgl_router.wasm.store import PluginStore, StoredPlugin
from sgl_router.wasm.version import PluginVersion

_T = TypeVar("_T")

MAX_CHANGES = 16
"""Under way or waiting: each may hold a module, though whoever asked for it has gone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    """A plugin's file, and the SHA-256 of what it was last read to hold."""

    path: str
    digest: str


class PluginManager(PolicyUse):
    """See the module; one event loop's. What it does for the control plane: `PluginControl`.

    Of a plugin that stands in a file and was uploaded too, the newer one decides: the upload, until
    the file changes again.

    Args:
        config: the settings.
        factory: the policies.
        store: where uploaded plugins are kept; None: they are not.
    """

    def __init__(
        self, config: RouterConfig, factory: PolicyFactory, store: PluginStore | None
    ) -> None:
        super().__init__(config, factory)
        self._plugins = factory.plugins
        self._kept = PluginKeeping(store)
        self._watch = FileWatch(self._file_changed, self._file_problem, read_file)
        self._files: dict[str, _File] = {}  # by the plugins that stand in them, loaded or not
        self._tasks: set[asyncio.Task[Any]] = set()

    async def load_all(self) -> None:
        """Load what the settings name and what the store holds.

        Raises ConfigError or PluginRefused where the settings cannot be used; what the store holds
        and cannot be used is logged.
        """
        stored = await self._kept.found()
        for settings in plugins_to_load(self._config, stored.keys()):
            try:
                await self._load(settings)
            except PluginRefused as error:
                if settings.name not in stored:
                    raise
                _log.error("%s; what was uploaded decides", error)
                self._files[settings.name] = _File(settings.module_path, "")
                self._watch.add(settings.module_path, "")  # it is looked at again, and told of
        for plugin in stored.values():
            await self._load_stored(plugin)

    def begin(self, dispatcher: Dispatcher) -> None:
        super().begin(dispatcher)
        self._watch.start()

    async def stop(self) -> None:
        """Watch no more files; what is being loaded is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._watch.stop()

    async def apply(self, config: RouterConfig) -> None:
        """Take over what is said of plugins and policies in settings that were read again.

        Raises RouterError; what was taken over until then stays, and the next time all of it is
        looked at again.
        """
        before, self._config = self._config, config
        try:
            for settings in plugins_to_load(config, self._plugins.names()):
                await self._apply_to(settings)
            for role in self._roles:
                name = configured_policy(config, role)
                if name != configured_policy(before, role):
                    await self.use(name, role)
        except BaseException:
            self._config = before
            raise

    # ---- for the control plane

    def list_plugins(self) -> list[PluginStatus]:
        return [self._status(policy) for policy in map(self._policy, self._plugins.names())]

    def get_plugin(self, name: str) -> PluginStatus | None:
        policy = self._plugins.get(name)
        return None if policy is None else self._status(policy)

    async def put_plugin(self, name: str, wasm: bytes, settings: Mapping[str, Any]) -> PutResult:
        return await self._uncancelled(self._put(name, wasm, settings))

    async def reload_plugin(self, name: str, settings: Mapping[str, Any] | None) -> PutResult:
        return await self._uncancelled(self._reload(name, settings or {}))

    async def roll_back_plugin(self, name: str) -> PluginStatus:
        return await self._uncancelled(self._roll_back(name))

    async def unload_plugin(self, name: str) -> None:
        await self._uncancelled(self._unload(name))

    # ---- loading and swapping

    async def _load(self, settings: WasmPolicyConfig) -> None:
        async with self._plugins.lock(settings.name):
            version = await self._plugins.build(settings, None, _source(settings))
            self._install(version)

    async def _apply_to(self, settings: WasmPolicyConfig) -> None:
        """Load a plugin that the settings name, or have them decide about it."""
        async with self._plugins.lock(settings.name):
            policy = self._plugins.get(settings.name)
            if policy is not None and policy.current.source.kind == "upload":
                _log.info("plugin %s was uploaded: its settings stay", settings.name)
                return
            try:
                version = await self._plugins.build(settings, None, _source(settings))
            except PluginRefused as error:
                if policy is not None:
                    policy.stale = f"its settings are not used: {error.shown()}"
                raise
            if policy is not None and version.digest == policy.rejected:
                current = policy.current  # the file still holds what has failed
                version = await self._plugins.build(settings, current.wasm, current.source)
            self._install(version)

    async def _reload(self, name: str, given: Mapping[str, Any]) -> PutResult:
        async with self._plugins.lock(name):
            current = self._policy(name).current
            settings = self._settings(name, given)
            if current.source.kind == "upload":
                return await self._accept(settings, current.wasm)
            return self._install(await self._plugins.build(settings, None, current.source))

    async def _put(self, name: str, wasm: bytes, given: Mapping[str, Any]) -> PutResult:
        async with self._plugins.lock(name):
            return await self._accept(self._settings(name, given), wasm)

    async def _accept(self, settings: WasmPolicyConfig, wasm: bytes) -> PutResult:
        version = await self._plugins.build(settings, wasm, PluginSource("upload"))
        await self._kept.keep(version, self._replaced(settings.name))
        return self._install(version)

    def _install(self, version: PluginVersion) -> PutResult:
        policy, status = self._plugins.install(version)
        self._took(policy)
        return PutResult(status, self._status(policy), version.self_test)

    def _took(self, policy: WasmPolicy) -> None:
        """A version is in use: it is watched where it stands in a file."""
        if self._changed not in policy.on_change:
            self.loaded(policy)
        source = policy.current.source
        if source.kind == "file" and source.path is not None:
            before = self._files.get(policy.name)
            self._files[policy.name] = _File(source.path, policy.current.digest)
            if before is not None and not self._names_in(before.path):
                self._watch.discard(before.path)
            self._watch.add(source.path, policy.current.digest)

    async def _roll_back(self, name: str) -> PluginStatus:
        async with self._plugins.lock(name):
            policy = self._policy(name)
            if not policy.roll_back():
                stored = (await self._kept.found()).get(name)
                if stored is None or stored.previous is None:
                    raise RequestError(
                        409,
                        "nothing_to_roll_back_to",
                        f"there is no version of plugin {name!r} before this one",
                    )
                wasm = await self._kept.read(stored.previous)
                settings = self._settings(name, stored.previous.settings)
                version = await self._plugins.build(settings, wasm, PluginSource("upload"))
                self._install(version)
            if name in self._files:
                policy.stale = self._unused(policy)
            await self._kept.keep_state(policy, self._replaced(name))
            return self._status(policy)

    async def _unload(self, name: str) -> None:
        async with self._plugins.lock(name):
            policy = self._policy(name)
            if uses := self.in_use_as(policy):
                raise RequestError(
                    409,
                    "plugin_in_use",
                    f"plugin {name!r} is in use ({', '.join(uses)}): use another policy first, or "
                    "end its shadow run",
                )
            self._plugins.unload(name)  # at once: nobody may take it into use meanwhile
            try:
                await self._kept.forget(name)
            except RequestError:
                self._plugins.put_back(policy)
                raise
            policy.close()

    def _settings(self, name: str, given: Mapping[str, Any]) -> WasmPolicyConfig:
        """What is given, on top of what is in use or configured. Raises PluginRefused."""
        policy = self._plugins.get(name)
        if policy is not None:
            base = policy.current.config.settings()
            path = policy.current.config.module_path
        else:
            configured = self._config.plugin_config
            assert not isinstance(configured, str), "the file was read when the settings were"
            base, path = dict((configured or {}).get(name, {})), ""
            base.pop("module_path", None)
        return known_settings(name, path, {**base, **given})

    # ---- files

    async def _file_changed(self, path: str, wasm: bytes, digest: str) -> None:
        for name in self._names_in(path):
            async with self._plugins.lock(name):
                self._files[name] = _File(path, digest)
                policy = self._plugins.get(name)
                if policy is None:  # it was unloaded
                    continue
                if digest == policy.rejected:
                    policy.stale = f"{path} holds the module that was rolled back (sha256 {digest})"
                    _log.warning("plugin %s: %s", name, policy.stale)
                    continue
                await self._take_file(policy, path, wasm)

    async def _take_file(self, policy: WasmPolicy, path: str, wasm: bytes) -> None:
        try:
            if policy.current.source.kind == "upload":  # whose settings came with it
                settings = plugin_settings(self._config, policy.name, path)
            else:
                settings = known_settings(policy.name, path, policy.current.config.settings())
            version = await self._plugins.build(settings, wasm, PluginSource("file", path))
            self._install(version)
        except (ConfigError, PluginRefused) as error:
            why = error.shown() if isinstance(error, PluginRefused) else str(error)
            policy.stale = f"{path} has changed and is not used: {why}"
            _log.warning("plugin %s: %s", policy.name, policy.stale)
            return
        try:
            await self._kept.keep_state(policy, None)
        except RequestError as error:
            _log.error("plugin %s: what was uploaded is still kept: %s", policy.name, error)

    def _file_problem(self, path: str, problem: str) -> None:
        for policy in filter(None, map(self._plugins.get, self._names_in(path))):
            policy.stale = f"{path}: {problem}" if problem else self._unused(policy)
            _log.warning("plugin %s: %s", policy.name, policy.stale or f"{path} is well again")

    def _unused(self, policy: WasmPolicy) -> str | None:
        """What is to be said of a plugin's file where another module than the file's decides."""
        file, current = self._files[policy.name], policy.current
        if current.source.kind != "file" or file.digest == current.digest:
            return None
        return f"{file.path} holds a module that is not used (sha256 {file.digest})"

    def _names_in(self, path: str) -> list[str]:
        return [name for name, file in self._files.items() if file.path == path]

    def _replaced(self, name: str) -> str | None:
        """SHA-256 of what a plugin's file holds; None where it stands in none."""
        file = self._files.get(name)
        return None if file is None else file.digest

    # ---- the store

    async def _load_stored(self, stored: StoredPlugin) -> None:
        """Load an uploaded plugin, unless its file has changed since it was uploaded."""
        name, policy = stored.name, self._plugins.get(stored.name)
        in_file = policy is not None and policy.current.source.kind == "file"
        if policy is not None and in_file and policy.current.digest != stored.replaces:
            _log.warning("plugin %s: its file is newer than what was uploaded", name)
            try:
                await self._kept.forget(name)
            except RequestError as error:
                _log.error("plugin %s: what was uploaded is still kept: %s", name, error)
            return
        try:
            wasm = await self._kept.read(stored.current)
            settings = known_settings(name, "", stored.current.settings)
            version = await self._plugins.build(settings, wasm, PluginSource("upload"))
        except (PluginRefused, RequestError) as error:
            _log.error("the uploaded plugin %s is not loaded: %s", name, error)
        else:
            self._install(version)

    async def _keep_rejection(self, policy: WasmPolicy) -> None:
        async with self._plugins.lock(policy.name):
            if self._plugins.get(policy.name) is not policy:
                return
            try:
                await self._kept.keep_state(policy, self._replaced(policy.name))
            except RequestError as error:
                _log.error(
                    "plugin %s: the version that failed may come back: %s", policy.name, error
                )

    # ---- within

    def _changed(self, policy: WasmPolicy, change: Change) -> None:
        super()._changed(policy, change)
        if change == "rejected":
            self._spawn(self._keep_rejection(policy))

    def _policy(self, name: str) -> WasmPolicy:
        """Raises RequestError (404)."""
        policy = self._plugins.get(name)
        if policy is None:
            raise no_such_plugin(name)
        return policy

    def _status(self, policy: WasmPolicy) -> PluginStatus:
        return policy.status(now_ms(), self.in_use_as(policy))

    async def _uncancelled(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Finish a change although whoever asked for it has gone."""
        if len(self._tasks) >= MAX_CHANGES:
            change.close()
            raise RequestError(
                503, "too_many_changes", f"{len(self._tasks)} changes of plugins are under way"
            )
        return await asyncio.shield(self._spawn(change))

    def _spawn(self, change: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, RouterError):
            _log.debug("%s", error)  # told to whoever asked, if he is still there
        elif error is not None:
            _log.error("a change of plugins failed", exc_info=error)


def _source(settings: WasmPolicyConfig) -> PluginSource:
    path = settings.module_path
    shipped = path == str(shipped_plugins().get(settings.name))
    return PluginSource("shipped" if shipped else "file", path)
