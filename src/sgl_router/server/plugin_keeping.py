"""What is kept of uploaded plugins on disk, so that a router that starts again has them."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from sgl_router.config import RouterConfig
from sgl_router.errors import RequestError
from sgl_router.server.policy_use import now_ms
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.store import PluginStore, StoredPlugin, StoredVersion, StoreError
from sgl_router.wasm.version import PluginVersion

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class PluginKeeping:
    """See the module; one event loop's. Whoever changes a plugin holds its lock.

    Args:
        store: where they are kept; None: they are not.
    """

    def __init__(self, store: PluginStore | None) -> None:
        self._store = store

    async def found(self) -> dict[str, StoredPlugin]:
        """The plugins by their names; what is damaged is logged."""
        if self._store is None:
            return {}
        try:
            plugins, complaints = await asyncio.to_thread(self._store.list)
        except StoreError as error:
            _log.error("uploaded plugins are not loaded: %s", error)
            return {}
        for complaint in complaints:
            _log.error("%s", complaint)
        return {plugin.name: plugin for plugin in plugins}

    async def read(self, version: StoredVersion) -> bytes:
        """The module of a version that was found. Raises RequestError (500)."""
        assert self._store is not None, "it holds the version"
        return await _done(partial(self._store.read_module, version.sha256))

    async def keep(self, version: PluginVersion, replaces: str | None) -> None:
        """Have an uploaded version found again.

        Args:
            version: not in use yet.
            replaces: the SHA-256 of the plugin's file that it takes the place of.

        Raises RequestError (500).
        """
        if self._store is not None:
            await _done(partial(_put, self._store, version, replaces))

    async def keep_state(self, policy: WasmPolicy, replaces: str | None) -> None:
        """Have found again what decides now; nothing where that is no upload.

        Raises RequestError (500).
        """
        store, current, previous = self._store, policy.current, policy.previous
        if store is None:
            return
        if current.source.kind != "upload":
            await _done(partial(store.remove, policy.name))
            return
        uploaded = previous is not None and previous.source.kind == "upload"
        before = _stored(previous) if previous is not None and uploaded else None
        await _done(partial(_return_to, store, current, before, replaces))

    async def forget(self, name: str) -> None:
        """Have nothing found again of a plugin. Raises RequestError (500)."""
        if self._store is not None:
            await _done(partial(self._store.remove, name))


async def _done(work: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(work)
    except StoreError as error:
        raise RequestError(500, "plugin_store_failed", str(error)) from error


def _put(store: PluginStore, version: PluginVersion, replaces: str | None) -> None:
    settings = version.config.settings()
    name, now = version.config.name, now_ms()
    store.put(name, version.wasm, settings, replaces=replaces, now_ms=now)


def _return_to(
    store: PluginStore, current: PluginVersion, before: StoredVersion | None, replaces: str | None
) -> None:
    try:
        store.set_current(current.config.name, _stored(current), before, replaces=replaces)
    except StoreError as error:  # it is there no more, since a file had taken its place
        _log.info("%s: it is put there again", error)
        _put(store, current, replaces)


def _stored(version: PluginVersion) -> StoredVersion:
    return StoredVersion(version.digest, version.config.settings(), now_ms())


def default_store(config: RouterConfig, default: Path | None) -> PluginStore | None:
    """Where uploaded plugins are kept, by the settings."""
    if config.plugin_store is None:
        return None if default is None else PluginStore(default)
    return None if config.plugin_store == "none" else PluginStore(Path(config.plugin_store))
