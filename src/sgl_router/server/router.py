"""One router: workers, policies, gateway, control plane and metrics, put together."""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sgl_router.admin.app import create_app
from sgl_router.config import RouterConfig
from sgl_router.core.admission import Admission
from sgl_router.core.breaker import BreakerSettings, BreakerTable
from sgl_router.core.decision import Decision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.health import HealthTable, HealthThresholds
from sgl_router.core.policy import Outcome
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.retry import RetrySettings
from sgl_router.core.worker import Circuit, Health, Role, Worker
from sgl_router.errors import ConfigError
from sgl_router.gateway.admission import AdmissionGate
from sgl_router.gateway.checks import CheckSettings, HealthChecks
from sgl_router.gateway.connection import Outbox
from sgl_router.gateway.context import AsgiApp, GatewayContext, GatewaySettings
from sgl_router.gateway.downstream import Clients
from sgl_router.gateway.engine_metrics import EngineMetricsPoller
from sgl_router.gateway.fetch import Fetcher
from sgl_router.gateway.gateway import Gateway
from sgl_router.gateway.pool import ConnectionPool
from sgl_router.gateway.request_id import RequestIds
from sgl_router.policies import PolicyFactory, PolicyOptions
from sgl_router.server import tls
from sgl_router.server.control import control_plane, metrics_app, needed_roles
from sgl_router.server.plugin_keeping import default_store
from sgl_router.server.plugin_manager import PluginManager
from sgl_router.telemetry.gauges import Sources
from sgl_router.telemetry.metrics import Telemetry
from sgl_router.wasm.store import default_store_folder

_log = logging.getLogger(__name__)


class RouterServer:
    """One router: workers, policies, the gateway and the control plane.

    Args:
        config: the settings.
        entropy: returns 53 random bits; given by tests that repeat themselves.
        on_complete: told of each request that was placed and has ended; must not raise.

    Attributes:
        factory: the policies.
        plugins: the plugins among them, and which policies are in use.
        registry: the workers.
        port: what it listens on, once started.
        admin_port, prometheus_port: likewise, where there are such.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        entropy: Callable[[], int] | None = None,
        on_complete: Callable[[Decision, Outcome], None] | None = None,
    ) -> None:
        """Raises ConfigError where a worker's URL cannot be used or is given twice."""
        self._config = config
        self._entropy = entropy or partial(random.Random().getrandbits, 53)
        self._on_complete = on_complete
        self.factory = PolicyFactory(
            PolicyOptions(
                cache_threshold=config.cache_threshold,
                balance_abs_threshold=config.balance_abs_threshold,
                balance_rel_threshold=config.balance_rel_threshold,
                max_idle_secs=config.max_idle_secs,
                engine_metrics_interval_secs=config.engine_metrics_interval_secs,
            )
        )
        self.plugins = PluginManager(
            config, self.factory, default_store(config, default_store_folder())
        )
        self.registry = WorkerRegistry()
        _add_workers(self.registry, config)
        self.port = config.port
        self.admin_port: int | None = None
        self.prometheus_port: int | None = None
        self._gateway: Gateway | None = None
        self._dispatcher: Dispatcher | None = None
        self._stops: list[Callable[[], Awaitable[None]]] = [self.plugins.stop]

    async def start(self) -> None:
        """Load the plugins and listen.

        Raises ConfigError or PluginRefused where the settings cannot be used.
        """
        await self.plugins.load_all()
        self._dispatcher = self._make_dispatcher()
        self.plugins.begin(self._dispatcher)
        await self._open(self._dispatcher)

    async def use_policy(self, name: str, role: Role = "regular") -> None:
        """Decide by another policy from the next request on: built in, loaded, or shipped.

        Raises ConfigError where there is none of that name, PluginRefused where it is not loaded.
        """
        await self.plugins.use(name, role)

    async def reload(self, config: RouterConfig) -> None:
        """Take over what changed settings say of plugins and policies.

        Raises ConfigError or PluginRefused; what decided before goes on deciding.
        """
        await self.plugins.apply(config)

    async def stop(self, grace_secs: float | None = None) -> bool:
        """Drain and close; False where requests had to be cut off after `grace_secs`."""
        grace = self._config.shutdown_grace_period_secs if grace_secs is None else grace_secs
        complete = await self._gateway.stop(grace) if self._gateway is not None else True
        stops, self._stops = self._stops, []
        for stop in stops:
            await stop()
        self.factory.close()
        return complete

    def _make_dispatcher(self) -> Dispatcher:
        config = self._config
        policy, fallback = self.plugins.named(config.policy)
        breakers = None
        if not config.disable_circuit_breaker:
            breakers = BreakerTable(
                self.registry,
                BreakerSettings(
                    failures=config.cb_failure_threshold,
                    successes=config.cb_success_threshold,
                    open_secs=config.cb_timeout_duration_secs,
                    window_secs=config.cb_window_duration_secs,
                ),
            )
            breakers.on_change = _log_circuit
        return Dispatcher(
            self.registry,
            policy,
            fallback,
            entropy=self._entropy,
            now_ms=lambda: time.time_ns() // 1_000_000,
            clock_ns=time.perf_counter_ns,
            on_complete=self._on_complete,
            breakers=breakers,
            prefixes=PrefixIndex(config.max_tree_size),
        )

    async def _open(self, dispatcher: Dispatcher) -> None:
        """Build what talks to the network, and listen."""
        config, loop = self._config, asyncio.get_running_loop()
        engine_tls = tls.for_engines(config)
        fetcher, outbox = Fetcher(engine_tls), Outbox(loop)
        pool = ConnectionPool(outbox, config.connect_timeout_secs, engine_tls)
        self.registry.on_remove.append(pool.forget)
        checks = None
        if not config.disable_health_check:
            checks = self._health_checks(fetcher)
            pool.on_idle_lost = checks.suspect
        admission = None
        if config.max_concurrent_requests > 0:
            admission = Admission[Any](
                config.max_concurrent_requests, config.queue_size, config.queue_timeout_secs
            )
        clients = Clients()
        telemetry = self._telemetry(admission, clients, pool)
        dispatcher.on_complete = _both(telemetry.observe, self._on_complete)
        context = GatewayContext(
            dispatcher=dispatcher,
            health=checks.table if checks is not None else None,
            suspect=checks.suspect if checks is not None else lambda _worker: None,
            outbox=outbox,
            pool=pool,
            admission=AdmissionGate(admission, loop) if admission is not None else None,
            settings=_gateway_settings(config),
            counters=telemetry,
            loop=loop,
            new_id=RequestIds().new,
        )
        self._gateway = Gateway(context, clients)
        context.app = create_app(
            control_plane(config, context, fetcher, checks, telemetry, plugins=self.plugins)
        )
        await self._listen_everywhere(context.app, telemetry)
        if checks is not None:
            checks.start()
            self._stops.append(checks.stop)
        poller = EngineMetricsPoller(
            self.registry,
            fetcher,
            needed=lambda: "engine_metrics" in dispatcher.needs,
            interval_secs=config.engine_metrics_interval_secs,
            endpoint=config.engine_metrics_endpoint,
        )
        poller.start()
        self._stops.append(poller.stop)

    def _telemetry(
        self, admission: Admission[Any] | None, clients: Clients, pool: ConnectionPool
    ) -> Telemetry:
        def running() -> int:
            if admission is not None:
                return admission.running
            return sum(worker.load for worker in self.registry)

        return Telemetry(
            self.registry,
            Sources(
                running=running,
                waiting=lambda: admission.waiting if admission is not None else 0,
                client_connections=lambda: len(clients.connections),
                kept_connections=lambda: pool.idle,
                plugins=self.plugins.list_plugins,
                shadow=self.plugins.shadow,
            ),
        )

    async def _listen_everywhere(self, app: AsgiApp, telemetry: Telemetry) -> None:
        config = self._config
        client_tls = tls.for_clients(config)
        self.port = await self._listen("", config.host, config.port, client_tls)
        if config.admin_port is not None:
            self.admin_port = await self._listen(
                "admin-", config.admin_host, config.admin_port, client_tls, app
            )
        if config.prometheus_port is not None:
            self.prometheus_port = await self._listen(
                "prometheus-",
                config.prometheus_host,
                config.prometheus_port,
                None,
                metrics_app(telemetry),
            )

    def _health_checks(self, fetcher: Fetcher) -> HealthChecks:
        config = self._config
        table = HealthTable(
            self.registry,
            HealthThresholds(config.health_failure_threshold, config.health_success_threshold),
        )
        settings = CheckSettings(
            endpoint=config.health_check_endpoint,
            interval_secs=config.health_check_interval_secs,
            timeout_secs=config.health_check_timeout_secs,
            recovery_interval_secs=config.worker_startup_check_interval,
            startup_timeout_secs=config.worker_startup_timeout_secs,
            roles=needed_roles(config),
        )
        return HealthChecks(self.registry, table, settings, fetcher)

    async def _listen(
        self,
        prefix: str,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        only: AsgiApp | None = None,
    ) -> int:
        assert self._gateway is not None, "built before it listens"
        try:
            return await self._gateway.listen(host, port, context, only)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error} (options --{prefix}host and "
                f"--{prefix}port)"
            ) from error


def _add_workers(registry: WorkerRegistry, config: RouterConfig) -> None:
    """Add the workers that the settings name, in their order."""
    health = Health.UP if config.disable_health_check else Health.UNKNOWN
    for url in config.worker_urls:
        with _given_by("option --worker-urls"):
            registry.add(Worker(url, health))
    for prefill in config.prefill:
        with _given_by("option --prefill"):
            port = prefill.bootstrap_port
            registry.add(Worker(prefill.url, health, role="prefill", bootstrap_port=port))
    for url in config.decode:
        with _given_by("option --decode"):
            registry.add(Worker(url, health, role="decode"))
    for given in config.workers:
        with _given_by("key workers"):
            worker = Worker(
                given.url,
                health,
                role=given.worker_type,
                model_id=given.model_id,
                labels=given.labels,
                priority=given.priority,
                cost=given.cost,
                weight=given.weight,
                api_key=given.api_key.get_secret_value() if given.api_key is not None else None,
                bootstrap_port=given.bootstrap_port,
            )
            registry.add(worker)


@contextmanager
def _given_by(where: str) -> Iterator[None]:
    """Adds to what is refused of a worker where it was given."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error} ({where})") from error


def _log_circuit(worker: Worker) -> None:
    level = logging.WARNING if worker.circuit is Circuit.OPEN else logging.INFO
    _log.log(level, "%r: its breaker is %s", worker, worker.circuit.value.replace("_", "-"))


def _gateway_settings(config: RouterConfig) -> GatewaySettings:
    retries = 0 if config.disable_retries else config.retry_max_retries
    key = config.api_key
    return GatewaySettings(
        max_payload_bytes=config.max_payload_size,
        request_timeout=config.request_timeout_secs,
        first_byte_timeout=config.first_byte_timeout_secs,
        stream_idle_timeout=config.stream_idle_timeout_secs,
        head_timeout=config.client_head_timeout_secs,
        body_timeout=config.client_body_timeout_secs,
        keep_alive_timeout=config.keep_alive_timeout_secs,
        request_id_headers=[h.lower().encode("latin-1") for h in config.request_id_headers],
        retry=RetrySettings(
            max_retries=retries,
            initial_backoff_ms=config.retry_initial_backoff_ms,
            max_backoff_ms=config.retry_max_backoff_ms,
            backoff_multiplier=config.retry_backoff_multiplier,
            jitter_factor=config.retry_jitter_factor,
        ),
        pd_engine=config.pd_engine if config.pd_disaggregation else None,
        api_key=key.get_secret_value().encode() if key is not None else None,
        cors_origins=frozenset(o.encode("latin-1") for o in config.cors_allowed_origins),
    )


def _both(
    first: Callable[[Decision, Outcome], None], second: Callable[[Decision, Outcome], None] | None
) -> Callable[[Decision, Outcome], None]:
    if second is None:
        return first

    def told(decision: Decision, outcome: Outcome) -> None:
        first(decision, outcome)
        second(decision, outcome)

    return told
