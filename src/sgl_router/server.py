"""The composition root: builds everything below from a configuration, starts it and stops it."""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from sgl_router.config import RouterConfig
from sgl_router.core.dispatch import Decision, Dispatcher
from sgl_router.core.health import HealthTable, HealthThresholds
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError
from sgl_router.gateway.checks import CheckSettings
from sgl_router.gateway.context import GatewaySettings
from sgl_router.gateway.gateway import Gateway
from sgl_router.policies import PolicyFactory, WasmPolicyConfig, shipped_plugins

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_PLUGIN_OPTIONS = [field.name for field in fields(WasmPolicyConfig) if field.name != "name"]


class RouterServer:
    """One router: workers, policies and the gateway.

    Args:
        config: the settings.
        entropy: returns 53 random bits; given by tests that repeat themselves.
        on_complete: told of each request that was placed and has ended; must not raise.

    Attributes:
        factory: the policies.
        registry: the workers.
        port: what it listens on, once started.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        entropy: Callable[[], int] | None = None,
        on_complete: Callable[[Decision, Outcome], None] | None = None,
    ) -> None:
        """Raises ConfigError where a worker's URL cannot be used."""
        self._config = config
        self._entropy = entropy or partial(random.Random().getrandbits, 53)
        self._on_complete = on_complete
        self.factory = PolicyFactory()
        self.registry = WorkerRegistry()
        self._health = HealthTable(
            self.registry,
            HealthThresholds(config.health_failure_threshold, config.health_success_threshold),
        )
        for url in config.worker_urls:
            self.registry.add(
                Worker(url, Health.UP if config.disable_health_check else Health.UNKNOWN)
            )
        self.port = config.port
        self._gateway: Gateway | None = None
        self._dispatcher: Dispatcher | None = None

    async def start(self) -> None:
        """Load the plugins and listen.

        Raises ConfigError or PluginRefused where the settings cannot be used.
        """
        config = self._config
        for plugin in _plugins_to_load(config):
            await self.factory.load_wasm_plugin(plugin)
        policy, fallback = self._policies(_policy_name(config.policy))
        self._dispatcher = Dispatcher(
            self.registry,
            policy,
            fallback,
            entropy=self._entropy,
            now_ms=lambda: time.time_ns() // 1_000_000,
            clock_ns=time.perf_counter_ns,
            on_complete=self._on_complete,
        )
        checks = CheckSettings(
            config.health_check_endpoint,
            config.health_check_interval_secs,
            config.health_check_timeout_secs,
        )
        gateway = Gateway(
            self._dispatcher,
            None if config.disable_health_check else self._health,
            GatewaySettings(
                max_payload_bytes=config.max_payload_size,
                request_timeout_secs=config.request_timeout_secs,
                request_id_headers=[h.lower().encode("latin-1") for h in config.request_id_headers],
            ),
            checks,
        )
        try:
            self.port = await gateway.start(config.host, config.port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host} port {config.port}: {error} "
                "(options --host and --port)"
            ) from error
        self._gateway = gateway

    async def use_policy(self, name: str) -> None:
        """Decide by another policy from the next request on: built in, loaded, or shipped.

        Raises ConfigError where there is none of that name, PluginRefused where it is not loaded.
        """
        assert self._dispatcher is not None, "started before it is changed"
        name = name.removeprefix("wasm:")
        if self.factory.create_by_name(name) is None and name in shipped_plugins():
            await self.factory.load_wasm_plugin(
                _plugin(self._config, name, shipped_plugins()[name])
            )
        self._dispatcher.use(*self._policies(name))

    async def stop(self, grace_secs: float | None = None) -> bool:
        """Drain and close; False where requests had to be cut off after `grace_secs`."""
        grace = self._config.shutdown_grace_period_secs if grace_secs is None else grace_secs
        complete = await self._gateway.stop(grace) if self._gateway is not None else True
        self.factory.close()
        return complete

    def _policies(self, name: str) -> tuple[Policy, Policy]:
        """The policy of that name, and the one that decides where it fails."""
        policy = self.factory.create_by_name(name)
        if policy is None:
            known = [*self.factory.list_builtin_policies(), *self.factory.list_wasm_plugins()]
            raise ConfigError(
                f"there is no policy {name!r}; there are {', '.join(known)}, the plugins "
                f"{', '.join(shipped_plugins())}, or the path of a .wasm file (option --policy)"
            )
        fallback = self.factory.create_by_name(policy.fallback or "power_of_two")
        assert fallback is not None, "checked when the plugin was loaded"
        return policy, fallback


def _policy_name(policy: str) -> str:
    """A path names the plugin that is loaded from it."""
    return Path(policy).stem if policy.endswith(".wasm") else policy


def _plugins_to_load(config: RouterConfig) -> list[WasmPolicyConfig]:
    """Each plugin that the settings name, once."""
    settings = config.plugin_config
    assert not isinstance(settings, str), "the file was read when the settings were"
    paths: dict[str, str | Path] = {}
    for path in (*config.plugin, *([config.policy] if config.policy.endswith(".wasm") else [])):
        name = Path(path).stem
        if paths.setdefault(name, path) != path:
            raise ConfigError(
                f"two plugins are named {name!r}: {paths[name]} and {path} (option --plugin)"
            )
    for name, options in (settings or {}).items():
        if "module_path" in options:
            paths.setdefault(name, str(options["module_path"]))
    shipped = shipped_plugins()
    wanted = {config.policy.removeprefix("wasm:"), *(settings or {})}
    for name in sorted(wanted & shipped.keys() - paths.keys()):
        paths[name] = shipped[name]
    unknown = sorted((settings or {}).keys() - paths.keys())
    if unknown:
        raise ConfigError(
            f"plugin_config names {', '.join(map(repr, unknown))}, which is not loaded; add "
            "module_path to its settings or give --plugin PATH (option --plugin-config)"
        )
    return [_plugin(config, name, path) for name, path in paths.items()]


def _plugin(config: RouterConfig, name: str, path: str | Path) -> WasmPolicyConfig:
    assert not isinstance(config.plugin_config, str), "the file was read when the settings were"
    options: dict[str, Any] = (config.plugin_config or {}).get(name, {})
    unknown = sorted(options.keys() - set(_PLUGIN_OPTIONS))
    if unknown:
        raise ConfigError(
            f"plugin_config of {name!r} has the unknown setting {', '.join(unknown)}; known: "
            f"{', '.join(_PLUGIN_OPTIONS)} (option --plugin-config)"
        )
    return WasmPolicyConfig(**{**options, "module_path": str(path), "name": name})


def run(config: RouterConfig) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status."""
    return run_loop(_serve(config))


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on the event loop that the router is made for."""
    return uvloop.run(main)


async def _serve(config: RouterConfig) -> int:
    server = RouterServer(config)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
    except BaseException:
        await server.stop(0)
        raise
    if not config.worker_urls:
        _log.warning("no workers: every request is answered 503 (option --worker-urls)")
    _log.info(
        "listening on http://%s:%d, %d workers, policy %s",
        f"[{config.host}]" if ":" in config.host else config.host,
        server.port,
        len(server.registry),
        config.policy,
    )
    await stopping.wait()
    _log.info("stopping; requests under way have %g s", config.shutdown_grace_period_secs)
    stopping.clear()
    drained = asyncio.create_task(server.stop())
    again = asyncio.create_task(stopping.wait())
    await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drained.done():
        _log.warning("stopped at once: asked a second time")
        drained.cancel()
        return 1
    return 0 if drained.result() else 1
