"""The router as its control plane sees it."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from sgl_router.admin.control import AdminSettings, ControlPlane
from sgl_router.admin.plugin_control import PluginControl
from sgl_router.config import RouterConfig
from sgl_router.core.worker import Health, Role, Worker
from sgl_router.gateway.checks import HealthChecks
from sgl_router.gateway.context import AsgiApp, GatewayContext, Message
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.fetch import Fetcher
from sgl_router.telemetry.metrics import Telemetry


def control_plane(
    config: RouterConfig,
    context: GatewayContext,
    fetcher: Fetcher,
    checks: HealthChecks | None,
    telemetry: Telemetry,
    *,
    plugins: PluginControl,
) -> ControlPlane:
    """What `admin` needs, from what serves."""
    registry = context.dispatcher.registry

    def add_worker(worker: Worker) -> None:
        if checks is None:
            worker.health = Health.UP
        registry.add(worker)

    def drain_worker(worker: Worker) -> None:
        registry.set_health(worker, Health.DRAINING)
        if not worker.load:
            registry.remove(worker)

    async def verify_ready() -> bool:
        return (checks is None or await checks.confirm()) and (
            needed_roles(config) <= registry.available_roles
        )

    async def fetch(
        worker: Worker,
        path: str,
        timeout_secs: float,
        headers: bytes = b"",
        *,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> tuple[int, bytes, bytes]:
        head, answer = await fetcher.request(
            worker, path, timeout_secs, headers, method=method, body=body
        )
        return head.status, answer, head.get(b"content-type") or b""

    return ControlPlane(
        registry=registry,
        fetch=fetch,
        add_worker=add_worker,
        drain_worker=drain_worker,
        draining=lambda: context.draining,
        verify_ready=verify_ready,
        render_metrics=partial(metrics_page, telemetry),
        running_on=partial(running_on, context),
        cache_flushed=context.dispatcher.forget_prefixes,
        plugins=plugins,
        settings=_settings(config),
    )


def needed_roles(config: RouterConfig) -> frozenset[Role]:
    """Of which there must be a worker each, or requests are not served."""
    return frozenset(("prefill", "decode") if config.pd_disaggregation else ("regular",))


def running_on(context: GatewayContext, id: str) -> Worker | None:
    """The worker whose engine has the request of that id; None where none is known to."""
    for request in context.requests:
        # One that is still being read has no engine that could be told to stop.
        if isinstance(request, Exchange) and request.engine_reading is not None:
            worker = request.runs(id)
            if worker is not None:
                return worker
    return None


async def metrics_page(telemetry: Telemetry, accept: str) -> tuple[bytes, str]:
    """The whole page and its content type; other work is done between its pieces."""
    pieces, content_type = telemetry.pieces(accept)
    page = []
    for piece in pieces:
        page.append(piece)
        await asyncio.sleep(0)
    return b"".join(page), content_type


def _settings(config: RouterConfig) -> AdminSettings:
    admin, api = config.admin_api_key, config.api_key
    return AdminSettings(
        admin_key=admin.get_secret_value().encode() if admin is not None else None,
        api_key=api.get_secret_value().encode() if api is not None else None,
        cors_origins=frozenset(config.cors_allowed_origins),
    )


def metrics_app(telemetry: Telemetry) -> AsgiApp:
    """Answers `/metrics` and nothing else, for an address of its own."""

    async def app(
        scope: Message, _receive: object, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        found = scope["path"] == "/metrics" and scope["method"] == "GET"
        body, content_type = b"only GET /metrics is here", "text/plain"
        if found:
            body, content_type = await metrics_page(telemetry, accept)
        headers = [(b"content-type", content_type.encode("latin-1"))]
        await send(
            {"type": "http.response.start", "status": 200 if found else 404, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    return app
