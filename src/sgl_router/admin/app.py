"""The control plane's application: its routes, what guards them, and CORS."""

from typing import Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from sgl_router.admin.aborts import Aborts
from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import DocumentedApp, described
from sgl_router.admin.engines import Engines
from sgl_router.admin.models import Models
from sgl_router.admin.plugins import Plugins
from sgl_router.admin.policies import Policies, Shadows
from sgl_router.admin.probes import Probes
from sgl_router.admin.replies import ErrorHandlers, LastResort
from sgl_router.admin.schemas import ErrorBody
from sgl_router.admin.security import Check, Guard, guarded
from sgl_router.admin.strict import PathSegments
from sgl_router.admin.workers import OlderClients, Workers, require_json, require_json_if_any
from sgl_router.gateway.context import EXPOSED_HEADERS

CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def create_app(control: ControlPlane) -> FastAPI:
    """The application: no state of its own, no start-up, no shut-down.

    It is called as by an ASGI server, for HTTP only. It answers a request in one piece, and raises
    nothing but what cancels it.
    """
    app = DocumentedApp()
    ErrorHandlers(app)
    app.add_middleware(LastResort)
    app.add_middleware(PathSegments)
    if control.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(control.settings.cors_origins),
            allow_methods=CORS_METHODS,
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    _add_routes(app, control)
    return app


def _add_routes(app: FastAPI, control: ControlPlane) -> None:
    settings = control.settings
    guard = Guard(settings)
    admin_key = "admin" if settings.admin_key is not None else None
    # Without an admin key, the data plane's is asked for, but not on this machine.
    refusable = admin_key is not None or settings.api_key is not None

    probes = APIRouter(tags=["probes"])
    Probes(control).add_routes(probes)

    api_key = "api" if settings.api_key is not None else None
    data = _router("data plane", api_key, guard.data_plane)
    Models(control).add_routes(data)
    aborts = _router("data plane", api_key, guard.either_plane, require_json)
    Aborts(control, guard).add_routes(aborts)

    workers = _router("workers", admin_key, guard.control_plane, require_json, refusable=refusable)
    Workers(control).add_routes(workers)

    older = _router(
        "workers, as older clients ask", admin_key, guard.control_plane, refusable=refusable
    )
    OlderClients(control).add_routes(older)

    engines = _router("engines", admin_key, guard.control_plane, refusable=refusable)
    Engines(control).add_routes(engines)

    changes = (guard.control_plane, require_json_if_any)
    plugins = _router("plugins", admin_key, *changes, refusable=refusable)
    uploads = _router("plugins", admin_key, guard.control_plane, refusable=refusable)
    Plugins(control).add_routes(plugins, uploads)

    policies = _router("policies", admin_key, *changes, refusable=refusable)
    Policies(control).add_routes(policies)
    Shadows(control).add_routes(policies)

    async def openapi_document() -> Response:
        return Response(document, media_type="application/json")

    engines.get("/openapi.json", include_in_schema=False)(openapi_document)
    for router in (probes, data, aborts, workers, older, plugins, uploads, policies, engines):
        app.include_router(router)
    document = orjson.dumps(app.openapi())  # made once: it takes longer than a stream may stand


def _router(tag: str, key: str | None, *checks: Check, refusable: bool = False) -> APIRouter:
    """Routes with these checks before them.

    Args:
        tag: their heading in the document.
        key: whose key the document asks for, `admin` or `api`; None: nobody's.
        checks: see `guarded`.
        refusable: whether 401 is possible without `key`.
    """
    schemes: list[Any] = []
    if key is not None:
        schemes.append(Depends(HTTPBearer(scheme_name=f"{key}Bearer", auto_error=False)))
        header = APIKeyHeader(name="X-Api-Key", scheme_name=f"{key}Header", auto_error=False)
        schemes.append(Depends(header))
    return APIRouter(
        tags=[tag],
        route_class=guarded(*checks),
        dependencies=schemes,
        responses=described(401, ErrorBody) if key is not None or refusable else None,
    )
