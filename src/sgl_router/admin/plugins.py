"""`/plugins`: what is loaded, and how another version takes over."""

import asyncio
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import CHANGE, described
from sgl_router.admin.plugin_schemas import (
    NAME_SCHEMA,
    SETTINGS_SCHEMA,
    PluginErrorBody,
    PluginList,
    PluginUnloaded,
    ReloadSpec,
)
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import ErrorBody
from sgl_router.admin.security import whom
from sgl_router.admin.upload_budget import UploadBudget
from sgl_router.admin.uploads import read_upload
from sgl_router.errors import RequestError
from sgl_router.wasm.module import MAX_COMPONENT_BYTES, MAX_MODULE_BYTES
from sgl_router.wasm.status import PluginStatus, PutResult

_log = logging.getLogger(__name__)

PLUGINS_PATH = "/plugins"

_ONE = f"{PLUGINS_PATH}/{{name}}"

_UNKNOWN = described(404, ErrorBody, "There is no such plugin")
_REFUSED = described(400, PluginErrorBody, "The request cannot be read, or the plugin is refused")

_BYTES = {"type": "string", "format": "binary", "minLength": 1}

_UPLOAD: dict[str, Any] = {
    "parameters": [
        {
            "name": "settings",
            "in": "query",
            "required": False,
            "description": "of the plugin; in a form it is a part instead",
            "content": {"application/json": {"schema": SETTINGS_SCHEMA}},
        }
    ],
    "requestBody": {
        "required": True,
        "description": f"the module: a core module of at most {MAX_MODULE_BYTES:,} bytes, or a "
        f"component of at most {MAX_COMPONENT_BYTES:,}; whatever is no form is taken for the "
        "module itself",
        "content": {
            "application/wasm": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["module"],
                    "properties": {"module": _BYTES, "settings": SETTINGS_SCHEMA},
                    "additionalProperties": False,
                },
                "encoding": {
                    "module": {"contentType": "application/wasm, application/octet-stream"},
                    "settings": {"contentType": "application/json"},
                },
            },
        },
    },
}


class Plugins:
    """`/plugins`: lists, loads, replaces, rolls back and unloads."""

    def __init__(self, control: ControlPlane) -> None:
        self._plugins = control.plugins
        self._uploads = UploadBudget()

    def add_routes(self, router: APIRouter, uploads: APIRouter) -> None:
        """`uploads` takes bodies of any type; those of `router` are JSON."""
        router.get(PLUGINS_PATH, response_model=PluginList)(self.list_plugins)
        router.get(_ONE, response_model=PluginStatus, responses=_UNKNOWN)(self.get_plugin)
        uploads.put(
            _ONE,
            response_model=PutResult,
            responses={
                201: {"model": PutResult, "description": "It is loaded, and was not before"},
                **_REFUSED,
                **CHANGE,
                **described(413, ErrorBody, "The module is too large"),
                **described(503, ErrorBody, "Too much is being uploaded, or changed, already"),
            },
            openapi_extra=_UPLOAD,
        )(self.put_plugin)
        router.post(
            f"{_ONE}/reload",
            response_model=PutResult,
            responses={**_REFUSED, **CHANGE, **_UNKNOWN, **described(413, ErrorBody)},
        )(self.reload_plugin)
        router.post(
            f"{_ONE}/rollback",
            response_model=PluginStatus,
            responses={
                **CHANGE,
                **_UNKNOWN,
                **described(409, ErrorBody, "There is no version to return to"),
            },
        )(self.roll_back_plugin)
        router.delete(
            _ONE,
            response_model=PluginUnloaded,
            responses={
                **CHANGE,
                **_UNKNOWN,
                **described(409, ErrorBody, "It is in use: as a policy, or as a shadow"),
            },
        )(self.unload_plugin)

    async def list_plugins(self) -> Response:
        """All plugins that are loaded."""
        plugins = self._plugins.list_plugins()
        return json_reply(PluginList(plugins, len(plugins)))

    async def get_plugin(self, name: str) -> Response:
        """One plugin."""
        plugin = self._plugins.get_plugin(name)
        if plugin is None:
            message = f"there is no plugin {name!a:.100}; GET {PLUGINS_PATH} lists those there are"
            raise RequestError(404, "plugin_not_found", message)
        return json_reply(plugin)

    async def put_plugin(
        self, name: Annotated[str, Path(json_schema_extra=NAME_SCHEMA)], request: Request
    ) -> Response:
        """Load a plugin, or have this version of it take over from the next decision on."""
        result = await self._put(name, request)
        _log.info("plugin %s is %s for %s", name, result.status, whom(request))
        return json_reply(result, 201 if result.status == "loaded" else 200)

    async def _put(self, name: str, request: Request) -> PutResult:
        share = self._uploads.share()
        try:
            upload = await read_upload(request, share)
        except BaseException:
            share.release()
            raise

        def ended(change: asyncio.Task[PutResult]) -> None:
            share.release()
            if not change.cancelled():
                change.exception()  # asked for, since a client that has gone does not ask

        put = self._plugins.put_plugin(name, upload.wasm, upload.settings)
        change = asyncio.get_running_loop().create_task(put)
        change.add_done_callback(ended)
        # A change goes on, and holds the module, though the client that asked for it has gone.
        return await asyncio.shield(change)

    async def reload_plugin(
        self, name: str, request: Request, spec: ReloadSpec | None = None
    ) -> Response:
        """Read a plugin's file again, or the module that was uploaded, and apply settings."""
        settings = None if spec is None else spec.settings
        result = await self._plugins.reload_plugin(name, settings)
        _log.info("plugin %s is read again for %s: %s", name, whom(request), result.status)
        return json_reply(result)

    async def roll_back_plugin(self, name: str, request: Request) -> Response:
        """Return to the version before."""
        plugin = await self._plugins.roll_back_plugin(name)
        _log.info("plugin %s is rolled back for %s", name, whom(request))
        return json_reply(plugin)

    async def unload_plugin(self, name: str, request: Request) -> Response:
        """Forget a plugin that is not in use."""
        await self._plugins.unload_plugin(name)
        _log.info("plugin %s is unloaded for %s", name, whom(request))
        return json_reply(PluginUnloaded("unloaded", name))
