"""What is read more strictly than the framework does: paths, and JSON."""

import re
from typing import Any
from urllib.parse import unquote

import orjson
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

_KEPT = re.compile(rb"%(?=2[Ff]|0[Aa])")


class PathSegments:
    """Keeps a name in a path from being taken for more than a name.

    An escaped slash separates no segments (RFC 3986, section 2.2), and the framework's patterns
    end before a final line feed: both stay escaped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if _KEPT.search(raw) is not None:
            path = unquote(_KEPT.sub(b"%25", raw).decode("latin-1"))
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class StrictRequest(Request):
    """A request whose JSON is that of RFC 8259: no NaN, no half of a surrogate pair."""

    async def json(self) -> Any:
        """Raises json.JSONDecodeError."""
        return orjson.loads(await self.body())
