"""Answers: JSON, errors in their two shapes, and what catches everything else."""

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sgl_router.admin.plugin_schemas import PluginErrorBody
from sgl_router.admin.schemas import ErrorBody, ErrorObject, WorkersErrorBody, WorkersErrorCode
from sgl_router.admin.security import REALMS
from sgl_router.core.request import ENDPOINTS
from sgl_router.errors import PluginRefused, RequestError

_log = logging.getLogger(__name__)

WORKERS_PATH = "/workers"

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class WorkersError(RequestError):
    """A request to `/workers` that is refused; its body has another shape than all others."""

    def __init__(self, status: int, code: WorkersErrorCode, message: str) -> None:
        super().__init__(status, code, message)
        self.body = WorkersErrorBody(error=message, code=code)


def json_reply(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A dataclass, or what JSON has, as an answer."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_reply(error: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """An error in its shape, with the headers that go with its status."""
    added = dict(headers or {})
    if error.status == 401:
        added["WWW-Authenticate"] = f'Bearer realm="{REALMS[error.code]}"'
    if error.retry_after_secs is not None:
        added["Retry-After"] = str(error.retry_after_secs)
    if isinstance(error, WorkersError):
        return json_reply(error.body.model_dump(), error.status, added)
    return json_reply(ErrorBody(error=_object(error)).model_dump(), error.status, added)


class ErrorHandlers:
    """Turns what handlers raise into answers.

    Args:
        app: whose errors they are.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        app.add_exception_handler(RequestError, self.on_request_error)
        app.add_exception_handler(PluginRefused, self.on_plugin_refused)
        app.add_exception_handler(RequestValidationError, self.on_invalid)
        app.add_exception_handler(HTTPException, self.on_http_exception)

    async def on_request_error(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError), "registered for these"
        return error_reply(error)

    async def on_plugin_refused(self, _request: Request, error: Exception) -> Response:
        """The message is cut, the list of reasons is not."""
        assert isinstance(error, PluginRefused), "registered for these"
        what = _object(RequestError(400, "plugin_refused", f"{error!s:.2000}"))
        body = PluginErrorBody(error=what, reasons=list(error.reasons), codes=list(error.codes))
        return json_reply(body.model_dump(), 400)

    async def on_invalid(self, request: Request, error: Exception) -> Response:
        """A body or a query that is not as the document says: 400, where FastAPI has 422."""
        assert isinstance(error, RequestValidationError), "registered for these"
        return error_reply(bad_request(request, "; ".join(map(_problem, error.errors()[:5]))))

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        """What the framework refuses: paths, methods, and bodies that cannot be parsed."""
        assert isinstance(error, HTTPException), "registered for these"
        path, method = request.scope["path"], request.method
        if error.status_code == 404 and method == "OPTIONS" and _is_data_path(path):
            allowed = "POST"
        elif error.status_code == 404:
            unknown = RequestError(404, "unknown_url", f"there is nothing at {path!a:.200}")
            return error_reply(unknown)
        elif error.status_code == 405:
            allowed = ", ".join(self._methods_at(request.scope))
        else:
            return error_reply(bad_request(request, f"the body cannot be read: {error.detail}"))
        not_allowed = RequestError(
            405,
            "method_not_allowed",
            f"{method:.20} is not allowed at {path!a:.200}; use {allowed}",
        )
        return error_reply(not_allowed, {"Allow": allowed})

    def _methods_at(self, scope: Scope) -> list[str]:
        """All that the path takes (RFC 9110, section 10.2.1); Starlette names one route's."""
        routes = self._app.router.routes
        methods = [
            method
            for method in _METHODS
            if any(r.matches({**scope, "method": method})[0] is Match.FULL for r in routes)
        ]
        return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


class LastResort:
    """Answers 500 where nothing else has caught an exception, and logs it.

    Starlette's own raises it again after the answer, and stands outside of CORS. Also asks for
    GET where the client asks for HEAD: the server leaves the body out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        method = scope["method"]
        inner = {**scope, "method": "GET"} if method == "HEAD" else scope
        try:
            await self._app(inner, receive, watched)
        except Exception:
            if started:
                raise
            _log.exception("%s %.200s failed", method, ascii(scope["path"]))
            error = RequestError(500, "internal_error", "the router failed; its log says why")
            await error_reply(error)(scope, receive, send)


def _object(error: RequestError) -> ErrorObject:
    return ErrorObject(type=error.type, code=error.code, message=error.message, param=None)


def _is_data_path(path: str) -> bool:
    """Whether the gateway takes POST there; a browser's OPTIONS for it comes here."""
    return path in ENDPOINTS or path.startswith("/v1/")


def bad_request(request: Request, message: str) -> RequestError:
    """What is answered 400, in the shape of errors at that path."""
    path = request.scope["path"]
    if path == WORKERS_PATH or path.startswith(f"{WORKERS_PATH}/"):
        return WorkersError(400, "BAD_REQUEST", message)
    return RequestError(400, "bad_request", message)


def _problem(problem: Mapping[str, Any]) -> str:
    """Where it is and what is wrong; never the value, which may be a key."""
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']} at {problem['loc'][-1]}"
    where = ".".join(map(str, problem["loc"][1:])) or problem["loc"][0]
    return f"{where!a:.200}: {problem['msg'].removeprefix('Value error, ')}"
